//! Inbound connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::connection::{self, Place};
use super::event::ConnectError;
use super::greet::{self, READ_BYTES, Stream};
use super::hub::{Hub, Registered};

/// Pause after accept(2) failed, as it does at once again while no file descriptors are left.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until the hub stops.
pub(crate) async fn accept(hub: Arc<Hub>, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            () = hub.stopping.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, addr)) => take_in(&hub, tcp, addr),
            Err(error) => {
                hub.stats.accept_errors.inc();
                tracing::warn!(%error, "cannot accept a data-plane connection");
                tokio::time::sleep(ERROR_PAUSE).await;
            }
        }
    }
}

/// Checks the limits; beyond one the connection is closed at once.
fn take_in(hub: &Arc<Hub>, tcp: TcpStream, addr: SocketAddr) {
    hub.stats.accepted.inc();
    if !hub.arrivals.admit(addr.ip(), Instant::now()) {
        return hub.stats.refused_too_often.inc();
    }
    let Ok(place) = hub.places.clone().try_acquire_owned() else {
        return hub.stats.refused_full.inc();
    };
    let Some(ip_place) = hub.admit_ip(addr.ip()) else {
        return hub.stats.refused_per_ip.inc();
    };
    let (handshake, evicted) = hub.handshakes.begin(Some(addr.ip()));
    if evicted {
        hub.stats.handshakes_evicted.inc();
    }
    let hub = hub.clone();
    tokio::spawn(async move {
        let greeted = tokio::time::timeout(hub.config.handshake_timeout, greet(&hub, tcp, addr));
        let greeted = tokio::select! {
            // A greeting that has put its connection in place is not dropped: it is done in that moment.
            biased;
            greeted = greeted => greeted.unwrap_or(Err(ConnectError::Timeout)),
            () = handshake.evicted() => Err(ConnectError::Full),
            () = hub.stopping.cancelled() => return,
        };
        drop(handshake);
        match greeted {
            Ok(Some((stream, registered))) => {
                let place: Place = (place, Some(ip_place));
                connection::run(hub, stream, registered, place).await;
            }
            Ok(None) => {}
            Err(why) => {
                hub.stats.handshakes_failed.inc();
                tracing::debug!(%addr, %why, "an inbound handshake failed");
            }
        }
    });
}

async fn greet(
    hub: &Hub,
    tcp: TcpStream,
    addr: SocketAddr,
) -> Result<Option<(Stream, Registered)>, ConnectError> {
    set_options(hub, &tcp);
    let socket = BufReader::with_capacity(READ_BYTES, tcp);
    let stream = TlsAcceptor::from(hub.server.clone()).accept(socket).await.map_err(greet::io_error)?;
    let mut stream = Stream::Server(stream);
    let registered = greet::as_acceptor(hub, &mut stream, addr).await?;
    Ok(registered.map(|registered| (stream, registered)))
}

/// Control frames go out at once, do not queue behind much in the kernel, and a dead machine is noticed. An option
/// the system does not know is done without.
pub(crate) fn set_options(hub: &Hub, tcp: &TcpStream) {
    let socket = socket2::SockRef::from(tcp);
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_notsent_lowat(hub.config.notsent_bytes_max);
    let _ = socket.set_tcp_user_timeout(Some(hub.config.silence_max));
}
