//! Facts that go into the engine and wishes that come out.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use shoal_types::{
    Bitfield, Digest, Endpoint, Metainfo, PeerId, PieceIndex, Roles, Timestamp, VouchedMetainfo, Zone,
};

use crate::message::{Channel, Message, PeerHint};

/// Names a local reader. Chosen by the driver, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReaderId(pub u64);

/// Names received payload the driver holds until the engine says what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BufferId(pub u64);

/// Where a set of peers came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LookupSource {
    /// The blob's owners, by rendezvous hashing over the origins alive.
    Owners,
    /// Provider records in the DHT.
    Dht,
}

/// What a local reader needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReaderWant {
    /// Size and pieces only: nothing is downloaded (an OCI HEAD).
    Metainfo,
    /// These bytes first and in order, then the rest of the blob.
    Range(Range<u64>),
    /// The whole blob, in no order (preheating, replication).
    Whole,
}

/// What the local store has of a blob.
#[derive(Clone, Debug)]
pub struct LocalBlob {
    /// Pieces and hashes.
    pub metainfo: Arc<Metainfo>,
    /// The metainfo as an origin vouched for it; `None` for a blob this process is just pushing, whose pieces only
    /// go to peers who know its metainfo already.
    pub vouched: Option<Arc<VouchedMetainfo>>,
    /// The verified pieces in the store.
    pub pieces: Bitfield,
    /// Whether the whole digest has been checked.
    pub complete: bool,
    /// Whether a local backend can give the pieces the store lacks (an origin that has it in its bucket).
    pub in_backend: bool,
}

/// What came of looking into the local store (and, at an origin, its backend).
#[derive(Clone, Debug)]
pub enum Opened {
    /// It is here, wholly or in part.
    Here(LocalBlob),
    /// It is not here. `owner` says that this process owns the blob and so answers with authority.
    Absent {
        /// This process is one of the blob's owners.
        owner: bool,
        /// The backend did not answer (only an owner has one).
        backend_down: bool,
    },
}

/// A fact.
#[derive(Clone, Debug)]
pub enum Input {
    /// A data-plane connection is open, in either direction. At most one a peer.
    PeerConnected {
        /// Who.
        peer: PeerId,
        /// Its zone, from its credential.
        zone: Zone,
        /// Its roles, from its credential.
        roles: Roles,
        /// Where it can be dialled, for introducing it to others.
        endpoints: Vec<Endpoint>,
    },
    /// The connection is gone; payload it had not delivered will not come.
    PeerDisconnected {
        /// Who.
        peer: PeerId,
    },
    /// [`Effect::Connect`] failed.
    ConnectFailed {
        /// Who.
        peer: PeerId,
    },
    /// A peer said something.
    Message {
        /// Who.
        peer: PeerId,
        /// What. Vouchers in it are verified.
        message: Message,
    },
    /// Part of a piece arrived from a peer (for rates and stall detection).
    PieceProgress {
        /// From whom.
        peer: PeerId,
        /// Our channel.
        channel: Channel,
        /// The piece's number.
        piece: u32,
        /// Payload bytes since the last such input of this piece.
        bytes: u32,
        /// Time since its first part was here. Looked at in the first such input of a piece only; zero when this is that part.
        since_first: Duration,
    },
    /// All of a piece arrived; the driver holds it in `buffer`.
    PieceArrived {
        /// From whom.
        peer: PeerId,
        /// Our channel.
        channel: Channel,
        /// The piece's number.
        piece: u32,
        /// Where it is. The engine answers with `VerifyPiece` or `DropBuffer`.
        buffer: BufferId,
        /// Time since its first part was here. Looked at only where no `PieceProgress` told of it; zero when it is known only now.
        since_first: Duration,
    },
    /// [`Effect::SendPiece`] is done: its last byte is in the socket, or it was given up.
    PieceSent {
        /// To whom.
        peer: PeerId,
        /// The blob.
        digest: Digest,
        /// The piece.
        piece: PieceIndex,
        /// Payload bytes sent; zero when it was given up.
        bytes: u32,
    },
    /// A local reader came.
    ReaderOpened {
        /// Its name.
        reader: ReaderId,
        /// The blob it wants.
        digest: Digest,
        /// What of it.
        want: ReaderWant,
    },
    /// A local reader has consumed the blob up to `offset`: its window moves.
    ReaderMoved {
        /// Its name.
        reader: ReaderId,
        /// The next byte it will read.
        offset: u64,
    },
    /// A local reader is gone.
    ReaderClosed {
        /// Its name.
        reader: ReaderId,
    },
    /// The answer to [`Effect::OpenBlob`].
    BlobOpened {
        /// The blob.
        digest: Digest,
        /// What was found.
        opened: Opened,
    },
    /// The driver learned metainfo from elsewhere (a pusher's proposal, an owner's vouched answer).
    MetainfoLearned {
        /// The metainfo.
        metainfo: Arc<Metainfo>,
        /// The voucher, when an origin has signed it.
        vouched: Option<Arc<VouchedMetainfo>>,
    },
    /// A peer sent metainfo that is not to be used, for a reason that says nothing about the peer: its signer has been
    /// revoked. The peer is left; the blob's metainfo may still come from others.
    MetainfoRefused {
        /// Who sent it.
        peer: PeerId,
        /// On which of our channels.
        channel: Channel,
    },
    /// A lookup found peers. Addresses may be missing when the peer is connected anyway.
    PeersFound {
        /// The blob.
        digest: Digest,
        /// Who said so.
        source: LookupSource,
        /// The peers.
        peers: Vec<PeerHint>,
    },
    /// A lookup ended; what it found came before as `PeersFound`.
    LookupFinished {
        /// The blob.
        digest: Digest,
        /// Which lookup.
        source: LookupSource,
        /// It could be carried out at all (`false`: no origin is known, or the DHT is empty).
        answered: bool,
    },
    /// A piece from a peer or the backend was verified; from now on the driver can serve and read it.
    PieceVerified {
        /// The blob.
        digest: Digest,
        /// The piece.
        piece: PieceIndex,
    },
    /// A piece did not have its hash.
    PieceCorrupt {
        /// The blob.
        digest: Digest,
        /// The piece.
        piece: PieceIndex,
        /// Who sent it; `None` for the backend.
        from: Option<PeerId>,
    },
    /// A verified piece could not be written: the local disk is at fault.
    WriteFailed {
        /// The blob.
        digest: Digest,
        /// The piece.
        piece: PieceIndex,
        /// What to tell readers.
        why: String,
    },
    /// [`Effect::FetchFromBackend`] failed.
    BackendFailed {
        /// The blob.
        digest: Digest,
        /// The piece.
        piece: PieceIndex,
    },
    /// [`Effect::FinishBlob`]: the whole digest is right.
    BlobFinished {
        /// The blob.
        digest: Digest,
    },
    /// [`Effect::FinishBlob`]: every piece was as vouched and the digest is still wrong. The blob was thrown away.
    BlobCorrupt {
        /// The blob.
        digest: Digest,
    },
    /// The store evicted or deleted the blob.
    BlobRemoved {
        /// The blob.
        digest: Digest,
    },
}

/// Why a peer is disconnected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// It sent a piece without the right hash.
    CorruptPiece,
    /// It broke the protocol.
    Protocol,
    /// It stopped answering.
    Stalled,
    /// No swarm needs the connection.
    Idle,
    /// A better connection took its place.
    Replaced,
}

/// Why a reader gets nothing more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Owners answered, and nobody has the blob.
    #[error("the blob is not in the mesh")]
    NotFound,
    /// No owner and no provider could be asked, or those who have it cannot be reached.
    #[error("nobody who may have the blob can be reached")]
    Unavailable,
    /// All pieces were as vouched and the digest is wrong.
    #[error("the blob's content does not have its digest")]
    Corrupt,
    /// The local disk failed.
    #[error("the local store failed: {0}")]
    Store(String),
    /// The wanted range begins at or beyond the blob's end.
    #[error("the range begins beyond the blob's {size} bytes")]
    Range {
        /// Blob size in bytes.
        size: u64,
    },
    /// The node has no room for another swarm.
    #[error("too many downloads at once")]
    Busy,
}

/// A wish.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Open a data-plane connection. Answer: `PeerConnected` or `ConnectFailed`.
    Connect {
        /// To whom.
        peer: PeerId,
        /// Where.
        endpoints: Vec<Endpoint>,
    },
    /// Close a connection. Answer: `PeerDisconnected`.
    Disconnect {
        /// To whom.
        peer: PeerId,
        /// Why.
        why: DropReason,
        /// Refuse it for this long.
        ban: Option<Duration>,
    },
    /// Say something to a connected peer.
    Send {
        /// To whom.
        peer: PeerId,
        /// What.
        message: Message,
    },
    /// A request is about to be sent: payload of this piece is welcome from this peer until `Unexpect`.
    /// Comes right before the `Send` of the `Request`.
    Expect {
        /// From whom.
        peer: PeerId,
        /// Our channel.
        channel: Channel,
        /// The blob.
        digest: Digest,
        /// The piece.
        piece: PieceIndex,
        /// Its length in bytes.
        bytes: u32,
    },
    /// Payload of this piece is not welcome any more: what still arrives is thrown away, for it may be under way.
    Unexpect {
        /// From whom.
        peer: PeerId,
        /// Our channel.
        channel: Channel,
        /// The piece's number.
        piece: u32,
    },
    /// Send a piece to a peer. Answer: `PieceSent`.
    SendPiece {
        /// To whom.
        peer: PeerId,
        /// The peer's channel.
        to: Channel,
        /// The blob.
        digest: Digest,
        /// The piece.
        piece: PieceIndex,
    },
    /// Give up a `SendPiece` that has not begun. It is answered with `PieceSent` of zero bytes all the same.
    CancelSend {
        /// To whom.
        peer: PeerId,
        /// The blob.
        digest: Digest,
        /// The piece.
        piece: PieceIndex,
    },
    /// Look into the local store. Answer: `BlobOpened`.
    OpenBlob {
        /// The blob.
        digest: Digest,
    },
    /// Make room for a blob: create the partial blob in the store before its first piece; or replace the live metainfo of
    /// one that is there by a longer one, before the pieces that it adds.
    CreateBlob {
        /// The metainfo.
        metainfo: Arc<Metainfo>,
        /// The voucher, when there is one.
        vouched: Option<Arc<VouchedMetainfo>>,
    },
    /// Find peers. Answers: any number of `PeersFound`, then `LookupFinished`.
    Lookup {
        /// The blob.
        digest: Digest,
        /// How.
        source: LookupSource,
    },
    /// Announce in the DHT that this process has (part of) the blob, and keep it announced.
    Provide {
        /// The blob.
        digest: Digest,
    },
    /// Check a received piece and write it. Answer: `PieceVerified`, `PieceCorrupt` or `WriteFailed`.
    VerifyPiece {
        /// The blob.
        digest: Digest,
        /// The piece.
        piece: PieceIndex,
        /// Where its bytes are; the driver frees it.
        buffer: BufferId,
        /// Who sent it.
        from: PeerId,
    },
    /// Throw a received piece away.
    DropBuffer {
        /// Which.
        buffer: BufferId,
    },
    /// Fetch a piece from the local backend, check it and write it. Answer: `PieceVerified`, `PieceCorrupt`,
    /// `WriteFailed` or `BackendFailed`.
    FetchFromBackend {
        /// The blob.
        digest: Digest,
        /// The piece.
        piece: PieceIndex,
    },
    /// All pieces are there: check the whole digest. Answer: `BlobFinished` or `BlobCorrupt`.
    FinishBlob {
        /// The blob.
        digest: Digest,
    },
    /// A reader's blob is known: its metainfo. Once a reader, before any `ReaderAdvance`.
    ReaderStarted {
        /// Which reader.
        reader: ReaderId,
        /// The metainfo.
        metainfo: Arc<Metainfo>,
    },
    /// All bytes from the reader's position up to `until` can be read from the store.
    ReaderAdvance {
        /// Which reader.
        reader: ReaderId,
        /// End of what can be read, exclusive.
        until: u64,
    },
    /// The reader has all it will get: a `Whole` reader's blob is complete, a `Metainfo` reader was answered, a
    /// `Range` reader's last byte can be read.
    ReaderDone {
        /// Which reader.
        reader: ReaderId,
    },
    /// The reader gets nothing more.
    ReaderFailed {
        /// Which reader.
        reader: ReaderId,
        /// Why.
        why: ReadError,
    },
    /// Something worth telling: logs, metrics and explanations read these.
    Report(Report),
}

/// A typed event, stamped with the engine's time.
#[derive(Clone, Debug)]
pub struct Report {
    /// When.
    pub at: Timestamp,
    /// What.
    pub event: Event,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A swarm began.
    SwarmStarted {
        /// The blob.
        digest: Digest,
    },
    /// The first metainfo came.
    MetainfoReceived {
        /// The blob.
        digest: Digest,
        /// Blob size in bytes.
        size: u64,
    },
    /// A piece was verified.
    PieceReceived {
        /// The blob.
        digest: Digest,
        /// The piece.
        piece: PieceIndex,
        /// Its length in bytes.
        bytes: u32,
        /// From whom; `None` for the backend.
        from: Option<PeerId>,
        /// Zone of the sender, when it is a peer.
        zone: Option<Zone>,
        /// From the request to the last byte.
        latency: Duration,
    },
    /// A piece was sent.
    PieceServed {
        /// The blob.
        digest: Digest,
        /// The piece.
        piece: PieceIndex,
        /// Its length in bytes.
        bytes: u32,
        /// To whom.
        to: PeerId,
    },
    /// A peer was dropped.
    PeerDropped {
        /// Who.
        peer: PeerId,
        /// Why.
        why: DropReason,
    },
    /// A request's deadline passed and the piece was given to somebody else.
    RequestTimedOut {
        /// The blob.
        digest: Digest,
        /// The piece.
        piece: PieceIndex,
        /// Who did not deliver.
        peer: PeerId,
    },
    /// The whole blob is here and has its digest.
    BlobCompleted {
        /// The blob.
        digest: Digest,
        /// Blob size in bytes.
        size: u64,
        /// Since the swarm began.
        took: Duration,
    },
    /// The blob failed.
    BlobFailed {
        /// The blob.
        digest: Digest,
        /// Why.
        why: ReadError,
    },
    /// Peers connected in a swarm, and pieces, changed (for gauges).
    SwarmEnded {
        /// The blob.
        digest: Digest,
    },
}
