//! Outbound connections.

use std::net::SocketAddr;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use shoal_types::{Endpoint, PeerId};
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::event::{ConnectError, DataEvent};
use super::greet::{self, READ_BYTES, Registered, Stream};
use super::hub::Hub;
use super::protocol::ENDPOINTS_MAX;
use super::{accept, connection};
use crate::tls::{self, Plane};

/// Addresses tried for one peer: each endpoint may be a name with several.
const ADDRESSES_MAX: usize = 16;

/// Dials `peer`, and runs the connection when there is one.
pub(crate) async fn dial(
    hub: Arc<Hub>,
    peer: PeerId,
    endpoints: Vec<Endpoint>,
    cancelled: CancellationToken,
) {
    hub.stats.dials.inc();
    let Ok(place) = hub.places.clone().try_acquire_owned() else {
        hub.end_dial(&peer);
        return fail(&hub, peer, ConnectError::Full).await;
    };
    let attempt = tokio::time::timeout(hub.config.handshake_timeout, attempt(&hub, peer, &endpoints));
    let result = tokio::select! {
        // Dropping a dial whose Hello is out is harmless: the other side sees the connection end.
        () = cancelled.cancelled() => Ok(None),
        () = hub.stopping.cancelled() => Ok(None),
        result = attempt => result.unwrap_or(Err(ConnectError::Timeout)),
    };
    hub.end_dial(&peer);
    match result {
        Ok(Some((stream, registered))) => connection::run(hub, stream, registered, (place, None)).await,
        Ok(None) => {}
        Err(why) => fail(&hub, peer, why).await,
    }
}

/// Says that a dial came to nothing, unless the peer is connected all the same.
async fn fail(hub: &Hub, peer: PeerId, why: ConnectError) {
    hub.stats.dials_failed.inc();
    if hub.link(&peer).is_none() {
        tracing::debug!(%peer, %why, "a dial failed");
        let _ = hub.events.send(DataEvent::ConnectFailed { peer, why }).await;
    }
}

async fn attempt(
    hub: &Hub,
    peer: PeerId,
    endpoints: &[Endpoint],
) -> Result<Option<(Stream, Registered)>, ConnectError> {
    let addresses = resolve(endpoints).await;
    if addresses.is_empty() {
        return Err(ConnectError::NoAddress);
    }
    let stagger = hub.config.dial_stagger;
    let mut attempts: FuturesUnordered<_> = addresses
        .into_iter()
        .zip(0u32..)
        .map(|(addr, number)| async move {
            tokio::time::sleep(stagger * number).await;
            (addr, TcpStream::connect(addr).await)
        })
        .collect();
    let mut last = ConnectError::NoAddress;
    while let Some((addr, connected)) = attempts.next().await {
        let result = match connected {
            Ok(tcp) => handshake(hub, peer, tcp, addr).await,
            Err(error) => Err(ConnectError::Io(error.to_string())),
        };
        match result {
            Ok(done) => return Ok(done),
            // The peer itself has spoken: its other addresses would say the same.
            Err(why @ ConnectError::Refused(_)) => return Err(why),
            Err(why) => last = why,
        }
    }
    Err(last)
}

async fn handshake(
    hub: &Hub,
    peer: PeerId,
    tcp: TcpStream,
    addr: SocketAddr,
) -> Result<Option<(Stream, Registered)>, ConnectError> {
    accept::set_options(hub, &tcp);
    let config = tls::client_config(&hub.setup, Plane::Data, Some(peer))
        .map_err(|error| ConnectError::Io(error.to_string()))?;
    let socket = BufReader::with_capacity(READ_BYTES, tcp);
    let stream = TlsConnector::from(config).connect(tls::server_name(), socket).await;
    let mut stream = Stream::Client(stream.map_err(greet::io_error)?);
    let registered = greet::as_dialler(hub, &mut stream, addr).await?;
    Ok(registered.map(|registered| (stream, registered)))
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
