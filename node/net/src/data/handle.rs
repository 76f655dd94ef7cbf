//! What the daemon calls.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shoal_engine::io::DropReason;
use shoal_engine::message::{Channel, Message};
use shoal_types::{Digest, Endpoint, PeerId, SignedCredential};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::config::{BindError, DataConfig};
use super::event::{
    CallError, ConnectError, ConnectionInfo, DataEvent, DisconnectReason, PieceSource, SendError,
};
use super::hub::Hub;
use super::outbox::QueuedPiece;
use super::protocol::Frame;
use super::stats::DataStats;
use super::{accept, dial};
use crate::tls::{self, Plane, TlsSetup};

/// How often the credentials of connected members are looked at.
const EXPEL_INTERVAL: Duration = Duration::from_millis(500);
/// How long connections may take to end at shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// The data plane of one process.
pub struct DataPlane;

impl DataPlane {
    /// Listens, on the current tokio runtime. Events come in the receiver; when it is not emptied, connections stop
    /// reading. Dropping it loses events and nothing else.
    ///
    /// # Errors
    /// [`BindError`]: the process cannot start; each variant says why.
    pub async fn bind(
        config: DataConfig,
        setup: TlsSetup,
    ) -> Result<(DataHandle, mpsc::Receiver<DataEvent>), BindError> {
        let server = tls::server_config(&setup, Plane::Data)?;
        let addr = config.listen;
        let listen = |source| BindError::Listen { addr, source };
        let listener = TcpListener::bind(addr).await.map_err(listen)?;
        let local_addr = listener.local_addr().map_err(listen)?;
        let instance = getrandom::u64().map_err(|_| BindError::Randomness)?;
        let (sender, events) = mpsc::channel(config.events_max.max(1));
        let hub = Arc::new(Hub::new(config, setup, server, instance, sender));
        tokio::spawn(accept::accept(hub.clone(), listener));
        tokio::spawn(expel(hub.clone()));
        Ok((DataHandle { hub, local_addr }, events))
    }
}

/// The handle of a running data plane; cheap to clone. Must be used within a tokio runtime.
#[derive(Clone)]
pub struct DataHandle {
    pub(super) hub: Arc<Hub>,
    local_addr: SocketAddr,
}

impl std::fmt::Debug for DataHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataHandle").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}

impl DataHandle {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Opens a connection, unless there is one or it is being opened. `Connected` or `ConnectFailed` comes.
    pub fn connect(&self, peer: PeerId, endpoints: Vec<Endpoint>) {
        let hub = self.hub.clone();
        if hub.is_banned(&peer) || peer == hub.local() {
            let why = if peer == hub.local() { ConnectError::NoAddress } else { ConnectError::Banned };
            tokio::spawn(async move { hub.dial_failed(peer, why, None).await });
            return;
        }
        if let Some(begun) = hub.begin_dial(peer) {
            tokio::spawn(dial::dial(hub, peer, endpoints, begun));
        }
    }

    /// Closes the connection with `peer`, if there is one. `Disconnected` comes.
    pub fn disconnect(&self, peer: PeerId, why: DropReason) {
        if let Some(link) = self.hub.link(&peer) {
            link.close(DisconnectReason::Dropped(why));
        }
    }

    /// Closes the connection with `peer`, and refuses others for a while.
    pub fn ban(&self, peer: PeerId, lasting: Duration) {
        self.hub.ban(peer, lasting);
    }

    /// Queues a swarm's message.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn send(&self, peer: PeerId, message: Message) -> Result<(), SendError> {
        self.hub.link(&peer).ok_or(SendError::NotConnected)?.send(&Frame::Swarm(message))
    }

    /// From now on payload of this piece is welcome. Call it before the request is sent.
    pub fn expect(&self, peer: PeerId, channel: Channel, digest: Digest, piece: u32, bytes: u32) {
        if let Some(link) = self.hub.link(&peer) {
            link.expected.lock().expect((channel, piece), digest, bytes);
        }
    }

    /// From now on payload of this piece is thrown away.
    pub fn unexpect(&self, peer: PeerId, channel: Channel, piece: u32) {
        if let Some(link) = self.hub.link(&peer) {
            link.expected.lock().unexpect((channel, piece));
            link.taken_back.notify_one();
        }
    }

    /// Queues a piece; `PieceSent` comes when its last byte is on its way.
    ///
    /// # Errors
    /// [`SendError`]: no `PieceSent` comes.
    pub fn send_piece(
        &self,
        peer: PeerId,
        to_channel: Channel,
        piece: u32,
        source: PieceSource,
    ) -> Result<(), SendError> {
        let link = self.hub.link(&peer).ok_or(SendError::NotConnected)?;
        link.outbox.push_piece(QueuedPiece { to_channel, piece, source })
    }

    /// Takes a queued piece back if it has not begun; `PieceSent` of zero bytes comes then.
    pub fn cancel_send(&self, peer: PeerId, to_channel: Channel, piece: u32) {
        if let Some(link) = self.hub.link(&peer) {
            link.outbox.cancel_piece(to_channel, piece);
        }
    }

    /// Asks a connected peer something. Cancel safe: a cancelled call's answer is thrown away.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn call(&self, peer: PeerId, body: Bytes, timeout: Duration) -> Result<Bytes, CallError> {
        if body.len() > self.hub.config.call_bytes_max {
            return Err(CallError::TooLong);
        }
        let link = self.hub.link(&peer).ok_or(CallError::NotConnected)?;
        let (id, answer) = link.open_call(body)?;
        self.hub.stats.calls_out.inc();
        let _abandon = Abandon { link: &link, id };
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(CallError::NotConnected),
            Err(_) => Err(CallError::Timeout),
        }
    }

    /// The credential a connected peer has shown.
    pub fn credential_of(&self, peer: &PeerId) -> Option<SignedCredential> {
        self.hub.link(peer).map(|link| link.remote.credential.clone())
    }

    /// The open connections.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        self.hub.links().iter().map(|link| link.info()).collect()
    }

    /// What was counted.
    pub fn stats(&self) -> &DataStats {
        &self.hub.stats
    }

    /// Bytes of piece buffers in use.
    pub fn buffer_bytes_in_use(&self) -> usize {
        self.hub.pool.in_use()
    }

    /// Closes everything; waits a moment for last words.
    pub async fn shutdown(&self) {
        self.hub.stopping.cancel();
        // All places are free when the last connection is gone.
        let all = u32::try_from(self.hub.config.connections_max).unwrap_or(u32::MAX);
        let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, self.hub.places.acquire_many(all)).await;
    }
}

/// Closes the connections of members whose credential expires or is revoked, until the hub stops.
async fn expel(hub: Arc<Hub>) {
    loop {
        tokio::select! {
            () = hub.stopping.cancelled() => return,
            () = tokio::time::sleep(EXPEL_INTERVAL) => {}
        }
        for link in hub.links() {
            let remote = &link.remote;
            if let Err(why) = hub.setup.check_member(remote.peer, &remote.credential) {
                tracing::info!(peer = %remote.peer, %why, "a connection is closed");
                link.close(DisconnectReason::Expelled(why.to_string()));
            }
        }
    }
}

/// Forgets a call when its caller does.
struct Abandon<'a> {
    link: &'a super::link::Link,
    id: u32,
}

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        self.link.abandon_call(self.id);
    }
}
