//! Inbound connections of the control plane before they are anybody's: how many handshakes there are at once, how often
//! an address may try, and how many connections it may have.
//!
//! libp2p's own limit refuses newcomers when too many handshakes are under way: whoever opens that many connections and
//! says nothing shuts the door. Here one gives way: the longest of the address that has the most.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Either, select};
use libp2p::core::Endpoint;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{DialOpts, ListenerId, PortUse, Transport, TransportError, TransportEvent};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
    ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId};

use super::config::ConnectionsConfig;
use super::host::MemberTransport;
use super::members::ip_of;
use super::stats::ControlStats;
use crate::budget::{Arrivals, place};
use crate::handshakes::Handshakes;

type Output = (PeerId, StreamMuxerBox);

/// A transport whose inbound handshakes are bounded, and give way to later ones.
pub(crate) struct Guarded {
    inner: MemberTransport,
    handshakes: Handshakes,
    arrivals: Arrivals,
    stats: Arc<ControlStats>,
}

impl Guarded {
    /// The transport that `inner` is with the guard.
    pub(crate) fn around(
        inner: MemberTransport,
        config: &ConnectionsConfig,
        stats: Arc<ControlStats>,
    ) -> MemberTransport {
        let handshakes = Handshakes::new(config.handshakes_max);
        Self { inner, handshakes, arrivals: Arrivals::new(config.arrivals), stats }.boxed()
    }

    fn guard(
        &self,
        from: Option<IpAddr>,
        upgrade: <MemberTransport as Transport>::ListenerUpgrade,
    ) -> BoxFuture<'static, io::Result<Output>> {
        // Addresses without an IP are of transports within one process.
        if from.is_some_and(|ip| !self.arrivals.admit(ip, Instant::now())) {
            self.stats.inbound_too_often.count();
            let refused = io::Error::new(io::ErrorKind::QuotaExceeded, "the address connects too often");
            return futures::future::ready(Err(refused)).boxed();
        }
        let (handshake, evicted) = self.handshakes.begin(from);
        if evicted {
            self.stats.handshakes_evicted.count();
        }
        async move {
            let gone = std::pin::pin!(handshake.evicted());
            match select(upgrade, gone).await {
                Either::Left((done, _)) => done,
                Either::Right(_) => {
                    Err(io::Error::new(io::ErrorKind::TimedOut, "later handshakes need the place"))
                }
            }
        }
        .boxed()
    }
}

impl Transport for Guarded {
    type Output = Output;
    type Error = io::Error;
    type ListenerUpgrade = BoxFuture<'static, io::Result<Output>>;
    type Dial = <MemberTransport as Transport>::Dial;

    fn listen_on(&mut self, id: ListenerId, addr: Multiaddr) -> Result<(), TransportError<io::Error>> {
        self.inner.listen_on(id, addr)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(&mut self, addr: Multiaddr, opts: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
        self.inner.dial(addr, opts)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Pin::new(&mut self.inner).poll(cx).map(|event| {
            let from = match &event {
                TransportEvent::Incoming { send_back_addr, .. } => ip_of(send_back_addr),
                _ => None,
            };
            event.map_upgrade(|upgrade| self.guard(from, upgrade))
        })
    }
}

/// Refuses inbound connections beyond so many of one address, whoever they are: one member behind an address cannot
/// take all places, nor can somebody with many credentials.
#[derive(Debug)]
pub(crate) struct AddressLimit {
    max: usize,
    counts: HashMap<IpAddr, usize>,
    open: HashMap<ConnectionId, IpAddr>,
}

/// Why a connection was refused.
#[derive(Debug, thiserror::Error)]
#[error("{0} has as many connections as an address may have")]
struct TooMany(IpAddr);

impl AddressLimit {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, counts: HashMap::new(), open: HashMap::new() }
    }

    fn admit(&mut self, connection: ConnectionId, from: &Multiaddr) -> Result<(), TooMany> {
        let Some(ip) = ip_of(from).map(place) else { return Ok(()) };
        let count = self.counts.entry(ip).or_default();
        if *count >= self.max {
            return Err(TooMany(ip));
        }
        *count += 1;
        self.open.insert(connection, ip);
        Ok(())
    }

    fn over(&mut self, connection: ConnectionId) {
        let Some(ip) = self.open.remove(&connection) else { return };
        if let Some(count) = self.counts.get_mut(&ip) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&ip);
            }
        }
    }
}

impl NetworkBehaviour for AddressLimit {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        from: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(connection, from).map_err(ConnectionDenied::new)?;
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionClosed(closed) => self.over(closed.connection_id),
            // Another behaviour refused it.
            FromSwarm::ListenFailure(failed) => self.over(failed.connection_id),
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_connections_and_others_theirs() {
        let mut limit = AddressLimit::new(2);
        let at = |ip: &str| format!("/ip4/{ip}/tcp/1").parse::<Multiaddr>().unwrap();
        let id = ConnectionId::new_unchecked;
        for n in 0..2 {
            limit.admit(id(n), &at("10.0.0.1")).unwrap();
        }
        assert!(limit.admit(id(2), &at("10.0.0.1")).is_err());
        limit.admit(id(3), &at("10.0.0.2")).unwrap();
        // One that was refused does not count, nor does one end twice.
        limit.over(id(2));
        assert!(limit.admit(id(4), &at("10.0.0.1")).is_err());
        limit.over(id(0));
        limit.over(id(0));
        limit.admit(id(5), &at("10.0.0.1")).unwrap();
        for n in [1, 3, 5] {
            limit.over(id(n));
        }
        assert!(limit.counts.is_empty() && limit.open.is_empty());
    }
}
