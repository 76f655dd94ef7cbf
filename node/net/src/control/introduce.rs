//! `/shoal/origins/1`: who connects is told at once which origins are alive.
//!
//! Gossip alone would let a newcomer wait for the next heartbeat. Both sides of a new connection push the last
//! heartbeats they heard; these are signed by the origins and carry their credentials, so it does not matter who
//! passes them on. Each comes with its age, so that passing it on does not keep a dead origin alive.
//!
//! On the wire: one stream, one message, no answer; the CBOR array of `[age in milliseconds, signed heartbeat]`.

use std::collections::VecDeque;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, FutureExt as _};
use libp2p::core::transport::PortUse;
use libp2p::core::{Endpoint, UpgradeInfo};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, OneShotHandler,
    OneShotHandlerConfig, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{InboundUpgrade, Multiaddr, OutboundUpgrade, PeerId, StreamProtocol};
use shoal_types::{Heartbeat, Signed};

const PROTOCOL: StreamProtocol = StreamProtocol::new("/shoal/origins/1");
/// Heartbeats in one message at most.
pub(crate) const BEATS_MAX: usize = 32;
/// A message's bytes at most: [`BEATS_MAX`] heartbeats of the largest size with their heads.
const MESSAGE_BYTES_MAX: u64 = 64 << 10;
/// Sending takes at most this long.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Heartbeats and how long ago they were heard.
pub(crate) type Beats = Vec<(Duration, Signed<Heartbeat>)>;

#[derive(minicbor::Encode, minicbor::Decode)]
struct Aged {
    #[n(0)]
    age_millis: u64,
    #[n(1)]
    beat: Signed<Heartbeat>,
}

fn encode(beats: &[(Duration, Signed<Heartbeat>)]) -> Vec<u8> {
    let aged = beats.iter().take(BEATS_MAX).map(|(age, beat)| Aged {
        age_millis: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
        beat: beat.clone(),
    });
    minicbor::to_vec(aged.collect::<Vec<_>>()).unwrap_or_default()
}

/// Decodes a message. Signatures are verified, [`BEATS_MAX`] of them at most.
fn decode(bytes: &[u8]) -> Result<Beats, minicbor::decode::Error> {
    let mut decoder = minicbor::Decoder::new(bytes);
    let count = decoder.array()?.unwrap_or(u64::MAX);
    if count > BEATS_MAX as u64 {
        return Err(minicbor::decode::Error::message("too many heartbeats"));
    }
    (0..count)
        .map(|_| decoder.decode::<Aged>().map(|aged| (Duration::from_millis(aged.age_millis), aged.beat)))
        .collect()
}

/// The receiving side of one message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Incoming;

/// The sending side of one message.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing(Vec<u8>);

/// What a stream ended with.
#[derive(Debug)]
pub(crate) enum Exchanged {
    /// A message came.
    Received(Beats),
    /// Ours went out.
    Sent,
}

impl From<Beats> for Exchanged {
    fn from(beats: Beats) -> Self {
        Self::Received(beats)
    }
}

impl From<()> for Exchanged {
    fn from((): ()) -> Self {
        Self::Sent
    }
}

impl UpgradeInfo for Incoming {
    type Info = StreamProtocol;
    type InfoIter = std::iter::Once<StreamProtocol>;
    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(PROTOCOL)
    }
}

impl UpgradeInfo for Outgoing {
    type Info = StreamProtocol;
    type InfoIter = std::iter::Once<StreamProtocol>;
    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(PROTOCOL)
    }
}

impl<S: AsyncRead + Unpin + Send + 'static> InboundUpgrade<S> for Incoming {
    type Output = Beats;
    type Error = io::Error;
    type Future = BoxFuture<'static, Result<Beats, io::Error>>;

    fn upgrade_inbound(self, stream: S, _: StreamProtocol) -> Self::Future {
        async move {
            let mut bytes = Vec::new();
            stream.take(MESSAGE_BYTES_MAX).read_to_end(&mut bytes).await?;
            decode(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
        }
        .boxed()
    }
}

impl<S: AsyncWrite + Unpin + Send + 'static> OutboundUpgrade<S> for Outgoing {
    type Output = ();
    type Error = io::Error;
    type Future = BoxFuture<'static, Result<(), io::Error>>;

    fn upgrade_outbound(self, mut stream: S, _: StreamProtocol) -> Self::Future {
        async move {
            stream.write_all(&self.0).await?;
            stream.close().await
        }
        .boxed()
    }
}

/// Heartbeats that `peer` passed on.
#[derive(Debug)]
pub(crate) struct Introduced {
    pub(crate) peer: PeerId,
    pub(crate) beats: Beats,
}

/// The behaviour: sends when told to, reports what comes.
#[derive(Debug, Default)]
pub(crate) struct Behaviour {
    events: VecDeque<ToSwarm<Introduced, Outgoing>>,
}

impl Behaviour {
    /// Pushes heartbeats to a connected peer.
    pub(crate) fn push(&mut self, peer_id: PeerId, beats: &[(Duration, Signed<Heartbeat>)]) {
        if beats.is_empty() {
            return;
        }
        let event = Outgoing(encode(beats));
        self.events.push_back(ToSwarm::NotifyHandler { peer_id, handler: NotifyHandler::Any, event });
    }

    fn handler() -> OneShotHandler<Incoming, Outgoing, Exchanged> {
        let listen = SubstreamProtocol::new(Incoming, ()).with_timeout(TIMEOUT);
        let config = OneShotHandlerConfig { outbound_substream_timeout: TIMEOUT, max_dial_negotiated: 1 };
        OneShotHandler::new(listen, config)
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = OneShotHandler<Incoming, Outgoing, Exchanged>;
    type ToSwarm = Introduced;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Self::handler())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Self::handler())
    }

    fn on_swarm_event(&mut self, _: FromSwarm) {}

    fn on_connection_handler_event(&mut self, peer: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        if let Ok(Exchanged::Received(beats)) = event {
            self.events.push_back(ToSwarm::GenerateEvent(Introduced { peer, beats }));
        }
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Introduced, THandlerInEvent<Self>>> {
        self.events.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shoal_types::{Credential, Keypair, MeshKey, Roles, WallTime, Zone};

    fn beats(count: usize) -> Beats {
        let keypair = Keypair::from_secret(&[2; 32]);
        let credential = MeshKey::from_secret(&[1; 32]).issue(Credential {
            peer: keypair.peer_id(),
            roles: Roles::NONE,
            zone: Zone::default(),
            namespaces: vec![],
            not_before: WallTime::default(),
            not_after: WallTime::default(),
        });
        let beat = Heartbeat { credential, endpoints: vec![], sent: WallTime::default(), leaving: false };
        vec![(Duration::from_millis(1234), Signed::sign(beat, &keypair)); count]
    }

    #[test]
    fn messages_round_trip_within_their_bounds() {
        for count in [0, 1, BEATS_MAX] {
            let bytes = encode(&beats(count));
            assert!((bytes.len() as u64) < MESSAGE_BYTES_MAX);
            assert_eq!(decode(&bytes).unwrap(), beats(count));
        }
        assert_eq!(decode(&encode(&beats(BEATS_MAX + 1))).unwrap().len(), BEATS_MAX);
        // An indefinite array, and one that claims more than it may.
        assert!(decode(&[0x9f, 0xff]).is_err());
        assert!(decode(&[0x9a, 0xff, 0xff, 0xff, 0xff]).is_err());
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes: Vec<u8>) { let _ = decode(&bytes); }
    }
}
