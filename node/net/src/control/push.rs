//! One-way messages: one stream, one message, no answer. What they carry proves itself, so it does not matter who
//! passes it on.

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
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

/// Sending takes at most this long.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What is pushed.
pub(crate) trait Payload: std::fmt::Debug + Send + Sized + 'static {
    /// The protocol's name.
    const PROTOCOL: StreamProtocol;
    /// A message's bytes at most.
    const BYTES_MAX: u64;

    /// Decodes a message, and checks whatever signatures are in it.
    fn decode(bytes: &[u8]) -> Result<Self, String>;
}

/// The receiving side of one message.
#[derive(Debug)]
pub(crate) struct Incoming<P>(PhantomData<fn() -> P>);

impl<P> Clone for Incoming<P> {
    fn clone(&self) -> Self {
        Self(PhantomData)
    }
}

/// The sending side of one message.
#[derive(Debug)]
pub(crate) struct Outgoing<P>(Vec<u8>, PhantomData<fn() -> P>);

impl<P> Clone for Outgoing<P> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

/// What a stream ended with.
#[derive(Debug)]
pub(crate) enum Exchanged<P> {
    /// A message came.
    Received(P),
    /// Ours went out.
    Sent,
}

impl<P: Payload> From<P> for Exchanged<P> {
    fn from(message: P) -> Self {
        Self::Received(message)
    }
}

/// Ours went out.
#[derive(Debug)]
pub(crate) struct Sent;

impl<P> From<Sent> for Exchanged<P> {
    fn from(_: Sent) -> Self {
        Self::Sent
    }
}

impl<P: Payload> UpgradeInfo for Incoming<P> {
    type Info = StreamProtocol;
    type InfoIter = std::iter::Once<StreamProtocol>;
    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(P::PROTOCOL)
    }
}

impl<P: Payload> UpgradeInfo for Outgoing<P> {
    type Info = StreamProtocol;
    type InfoIter = std::iter::Once<StreamProtocol>;
    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(P::PROTOCOL)
    }
}

impl<P: Payload, S: AsyncRead + Unpin + Send + 'static> InboundUpgrade<S> for Incoming<P> {
    type Output = P;
    type Error = io::Error;
    type Future = BoxFuture<'static, Result<P, io::Error>>;

    fn upgrade_inbound(self, stream: S, _: StreamProtocol) -> Self::Future {
        async move {
            let mut bytes = Vec::new();
            stream.take(P::BYTES_MAX).read_to_end(&mut bytes).await?;
            P::decode(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        }
        .boxed()
    }
}

impl<P: Payload, S: AsyncWrite + Unpin + Send + 'static> OutboundUpgrade<S> for Outgoing<P> {
    type Output = Sent;
    type Error = io::Error;
    type Future = BoxFuture<'static, Result<Sent, io::Error>>;

    fn upgrade_outbound(self, mut stream: S, _: StreamProtocol) -> Self::Future {
        async move {
            stream.write_all(&self.0).await?;
            stream.close().await?;
            Ok(Sent)
        }
        .boxed()
    }
}

/// A message that `peer` passed on.
#[derive(Debug)]
pub(crate) struct Pushed<P> {
    pub(crate) peer: PeerId,
    pub(crate) message: P,
}

/// The behaviour: sends when told to, reports what comes.
#[derive(Debug)]
pub(crate) struct Behaviour<P> {
    events: VecDeque<ToSwarm<Pushed<P>, Outgoing<P>>>,
}

impl<P> Default for Behaviour<P> {
    fn default() -> Self {
        Self { events: VecDeque::new() }
    }
}

impl<P: Payload> Behaviour<P> {
    /// Pushes a message to a connected peer.
    pub(crate) fn push(&mut self, peer_id: PeerId, bytes: Vec<u8>) {
        let event = Outgoing(bytes, PhantomData);
        self.events.push_back(ToSwarm::NotifyHandler { peer_id, handler: NotifyHandler::Any, event });
    }

    fn handler() -> OneShotHandler<Incoming<P>, Outgoing<P>, Exchanged<P>> {
        let listen = SubstreamProtocol::new(Incoming(PhantomData), ()).with_timeout(TIMEOUT);
        let config = OneShotHandlerConfig { outbound_substream_timeout: TIMEOUT, max_dial_negotiated: 1 };
        OneShotHandler::new(listen, config)
    }
}

impl<P: Payload> NetworkBehaviour for Behaviour<P> {
    type ConnectionHandler = OneShotHandler<Incoming<P>, Outgoing<P>, Exchanged<P>>;
    type ToSwarm = Pushed<P>;

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
        if let Ok(Exchanged::Received(message)) = event {
            self.events.push_back(ToSwarm::GenerateEvent(Pushed { peer, message }));
        }
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Pushed<P>, THandlerInEvent<Self>>> {
        self.events.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}
