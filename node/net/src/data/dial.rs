//! Outbound connections.

use std::net::SocketAddr;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use shoal_types::{Endpoint, PeerId};
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::event::ConnectError;
use super::greet::{self, READ_BYTES, Stream};
use super::hub::{Dial, Hub, Registered};
use super::protocol::ENDPOINTS_MAX;
use super::{accept, connection};
use crate::tls::{self, Plane};

/// Addresses tried for one peer: each endpoint may be a name with several.
const ADDRESSES_MAX: usize = 16;

/// Dials `peer`, and runs the connection when there is one.
pub(crate) async fn dial(hub: Arc<Hub>, peer: PeerId, endpoints: Vec<Endpoint>, dial: Dial) {
    hub.stats.dials.inc();
    let Ok(place) = hub.places.clone().try_acquire_owned() else {
        return fail(&hub, peer, ConnectError::Full, &dial).await;
    };
    let attempt = tokio::time::timeout(hub.config.handshake_timeout, attempt(&hub, peer, &dial, &endpoints));
    let result = tokio::select! {
        // An attempt that has put its connection in place is not dropped: it is done in that moment.
        biased;
        result = attempt => result.unwrap_or(Err(ConnectError::Timeout)),
        () = dial.token.cancelled() => Ok(None),
        () = hub.stopping.cancelled() => Ok(None),
    };
    match result {
        Ok(registered) => {
            hub.end_dial(&peer, &dial);
            if let Some((stream, registered)) = registered {
                connection::run(hub, stream, registered, (place, None)).await;
            }
        }
        Err(why) => {
            drop(place);
            fail(&hub, peer, why, &dial).await;
        }
    }
}

async fn fail(hub: &Hub, peer: PeerId, why: ConnectError, dial: &Dial) {
    hub.stats.dials_failed.inc();
    tracing::debug!(%peer, %why, "a dial failed");
    tokio::select! {
        () = hub.dial_failed(peer, why, Some(dial)) => {}
        () = hub.stopping.cancelled() => {}
    }
}

async fn attempt(
    hub: &Hub,
    peer: PeerId,
    dial: &Dial,
    endpoints: &[Endpoint],
) -> Result<Option<(Stream, Registered)>, ConnectError> {
    let addresses = resolve(endpoints).await;
    let stagger = hub.config.dial_stagger;
    // TLS belongs to an attempt: an address where something accepts and says nothing must not hold up the others.
    let mut attempts: FuturesUnordered<_> = addresses
        .into_iter()
        .zip(0u32..)
        .map(|(addr, number)| async move {
            tokio::time::sleep(stagger * number).await;
            (addr, open(hub, peer, addr).await)
        })
        .collect();
    let mut last = ConnectError::NoAddress;
    while let Some((addr, opened)) = attempts.next().await {
        let result = match opened {
            Ok(mut stream) => {
                let registered = greet::as_dialler(hub, dial, &mut stream, addr).await;
                registered.map(|registered| registered.map(|registered| (stream, registered)))
            }
            Err(why) => Err(why),
        };
        match result {
            Ok(done) => return Ok(done),
            // The peer itself has spoken: its other addresses would say the same.
            Err(why @ (ConnectError::Refused(_) | ConnectError::Banned)) => return Err(why),
            Err(why) => last = why,
        }
    }
    Err(last)
}

async fn open(hub: &Hub, peer: PeerId, addr: SocketAddr) -> Result<Stream, ConnectError> {
    let tcp = TcpStream::connect(addr).await.map_err(|error| ConnectError::Io(error.to_string()))?;
    accept::set_options(hub, &tcp);
    let config = tls::client_config(&hub.setup, Plane::Data, Some(peer))
        .map_err(|error| ConnectError::Io(error.to_string()))?;
    let socket = BufReader::with_capacity(READ_BYTES, tcp);
    let stream = TlsConnector::from(config).connect(tls::server_name(), socket).await;
    Ok(Stream::Client(stream.map_err(greet::io_error)?))
}

/// The addresses of endpoints, in their order. Names that do not resolve are passed over.
async fn resolve(endpoints: &[Endpoint]) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for endpoint in endpoints.iter().take(ENDPOINTS_MAX) {
        if let Some(ip) = endpoint.ip() {
            addresses.push(SocketAddr::new(ip, endpoint.port()));
        } else if let Some(name) = endpoint.dns()
            && let Ok(found) = tokio::net::lookup_host((name, endpoint.port())).await
        {
            addresses.extend(found);
        }
    }
    let mut seen = std::collections::HashSet::new();
    addresses.retain(|address| seen.insert(*address));
    addresses.truncate(ADDRESSES_MAX);
    addresses
}
