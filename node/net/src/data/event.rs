//! What the data plane tells the daemon, and what it is given to send.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use shoal_engine::io::DropReason;
use shoal_engine::message::{Channel, Message};
use shoal_types::{Digest, Endpoint, PeerId, SignedCredential};
use tokio_util::sync::CancellationToken;

use super::link::Link;
use super::pool::PieceBuf;
use super::protocol::{ByeReason, CallRefusal, ProtocolError};
use crate::tls::Rejection;

/// A fact. Events of one peer come in order: `Connected`, anything, `Disconnected`; never two `Connected` in a row.
#[derive(Debug)]
pub enum DataEvent {
    /// A connection is open and the peer has said Hello.
    Connected {
        /// Who.
        peer: PeerId,
        /// What the mesh says of it; checked.
        credential: SignedCredential,
        /// Where it says it is dialled.
        endpoints: Vec<Endpoint>,
        /// The other end of the TCP connection.
        remote: SocketAddr,
        /// Whether this side dialled.
        outbound: bool,
    },
    /// The connection is gone. Queued sends are given up without a `PieceSent`.
    Disconnected {
        /// Who.
        peer: PeerId,
        /// Why.
        reason: DisconnectReason,
        /// Tells, when it is dropped, that this event was handled. Until then no other connection of the peer begins:
        /// what is said to the peer meanwhile must not end up in the wrong one.
        taken: Taken,
    },
    /// `connect` came to nothing, and there is no connection in the other direction either.
    ConnectFailed {
        /// Who.
        peer: PeerId,
        /// Why.
        why: ConnectError,
    },
    /// A swarm's message. Its limits are checked, its metainfo is vouched for.
    Message {
        /// From whom.
        peer: PeerId,
        /// What.
        message: Message,
    },
    /// Part of an expected piece came: after each 256 KiB, or 50 ms, or at the piece's end (before `PieceArrived`).
    PieceProgress {
        /// From whom.
        peer: PeerId,
        /// Our channel.
        channel: Channel,
        /// The piece's number.
        piece: u32,
        /// Bytes since the last event of this piece.
        bytes: u32,
    },
    /// All of an expected piece came. It is not verified.
    PieceArrived {
        /// From whom.
        peer: PeerId,
        /// Our channel.
        channel: Channel,
        /// The piece's number.
        piece: u32,
        /// The blob, as given to `expect`.
        digest: Digest,
        /// Its bytes.
        buffer: PieceBuf,
    },
    /// A `send_piece` is done.
    PieceSent {
        /// To whom.
        peer: PeerId,
        /// The peer's channel.
        to_channel: Channel,
        /// The piece's number.
        piece: u32,
        /// Bytes sent; zero when it was cancelled or could not be read.
        bytes: u32,
    },
    /// A peer asks something.
    Call {
        /// Who.
        peer: PeerId,
        /// What; the daemon defines it.
        body: Bytes,
        /// Where the answer goes.
        answer: AnswerHandle,
    },
}

/// Tells with its end that the event it came in was handled.
#[derive(Debug)]
pub struct Taken(pub(crate) CancellationToken);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DisconnectReason {
    /// This side wanted it.
    #[error("dropped: {0:?}")]
    Dropped(DropReason),
    /// This side banned the peer.
    #[error("banned")]
    Banned,
    /// The peer's credential expired or was revoked.
    #[error("no longer admitted: {0}")]
    Expelled(String),
    /// This side shuts down.
    #[error("shutting down")]
    Shutdown,
    /// The peer said why.
    #[error("the peer said goodbye: {0:?}")]
    Bye(ByeReason),
    /// The peer broke the protocol.
    #[error("protocol error: {0}")]
    Protocol(#[from] ProtocolError),
    /// The peer was silent for too long.
    #[error("silent for too long")]
    Silent,
    /// The peer did not read what was queued for it.
    #[error("the peer does not read")]
    Overflow,
    /// The connection broke.
    #[error("connection lost: {0}")]
    Lost(String),
}

impl DisconnectReason {
    /// What the peer is told, when there is a point in telling it.
    pub(crate) fn bye(&self) -> Option<ByeReason> {
        match self {
            Self::Dropped(why) => Some(ByeReason::Dropped(*why)),
            Self::Banned => Some(ByeReason::Banned),
            Self::Shutdown => Some(ByeReason::Shutdown),
            Self::Protocol(ProtocolError::Version) => Some(ByeReason::Version),
            Self::Protocol(_) => Some(ByeReason::Dropped(DropReason::Protocol)),
            Self::Expelled(_) | Self::Bye(_) | Self::Silent | Self::Overflow | Self::Lost(_) => None,
        }
    }
}

/// Why a dial failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// No endpoint led to an address.
    #[error("no address to dial")]
    NoAddress,
    /// This side has banned the peer.
    #[error("the peer is banned for now")]
    Banned,
    /// This side has no room for another connection.
    #[error("too many connections")]
    Full,
    /// Nobody could be reached in time.
    #[error("timed out")]
    Timeout,
    /// The network or the far end's system refused.
    #[error("cannot reach it: {0}")]
    Io(String),
    /// Somebody answered who is not admitted.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The peer refused.
    #[error("the peer refused: {0:?}")]
    Refused(ByeReason),
    /// The peer broke the protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

/// There is no connection to the peer, or no more room in its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Not connected. A `Disconnected` came or is about to.
    #[error("not connected")]
    NotConnected,
    /// The queue is full. For control frames the connection is being dropped.
    #[error("too much is queued for the peer")]
    Full,
}

/// Why a call has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Not connected, or not any more.
    #[error("not connected")]
    NotConnected,
    /// The question is over `call_bytes_max`.
    #[error("the question is too long")]
    TooLong,
    /// Too many open calls to this peer.
    #[error("too many open calls to this peer")]
    TooMany,
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The peer does not answer this one.
    #[error("the peer does not answer: {0:?}")]
    Refused(CallRefusal),
}

/// Where a piece to send comes from. A queued one holds no memory but this.
pub enum PieceSource {
    /// From memory.
    Bytes(Bytes),
    /// Read when its turn comes (at most one piece ahead on a connection). An error, or a result longer than a
    /// piece may be, is reported as `PieceSent` of zero bytes.
    Read(Box<dyn FnOnce() -> BoxFuture<'static, std::io::Result<Bytes>> + Send>),
}

impl PieceSource {
    /// A source that runs `read` when its turn comes.
    pub fn read<F>(read: impl FnOnce() -> F + Send + 'static) -> Self
    where
        F: Future<Output = std::io::Result<Bytes>> + Send + 'static,
    {
        Self::Read(Box::new(move || Box::pin(read())))
    }
}

impl fmt::Debug for PieceSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bytes(_) => "Bytes",
            Self::Read(_) => "Read",
        })
    }
}

/// Answers one call. Dropped without an answer it tells the caller that there will be none.
#[derive(Debug)]
pub struct AnswerHandle {
    pub(crate) link: Arc<Link>,
    pub(crate) id: Option<u32>,
    pub(crate) bytes_max: usize,
}

impl AnswerHandle {
    /// Sends the answer. One over `call_bytes_max` is a failure for the caller.
    pub fn answer(mut self, body: Bytes) {
        if let Some(id) = self.id.take_if(|_| body.len() <= self.bytes_max) {
            self.link.answer(id, Ok(body));
        }
    }
}

impl Drop for AnswerHandle {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.link.answer(id, Err(CallRefusal::Failed));
        }
    }
}

/// One open connection, for status pages.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Who.
    pub peer: PeerId,
    /// Its credential: zone and roles.
    pub credential: SignedCredential,
    /// The other end.
    pub remote: SocketAddr,
    /// Whether this side dialled.
    pub outbound: bool,
    /// Since when.
    pub open_for: Duration,
    /// Round-trip time of the last ping, once there was one.
    pub rtt: Option<Duration>,
    /// Bytes received, frames and all.
    pub bytes_in: u64,
    /// Bytes sent, frames and all.
    pub bytes_out: u64,
}
