//! What two peers say to each other about the swarms they share.
//!
//! A *channel* is a number by which a process knows one swarm on one connection. Each side picks its own, tells it
//! in [`Message::Join`], and is addressed by it from then on (`to` below is always the receiver's number), so that
//! a digest crosses the wire once a swarm and not once a message. Payload travels in frames of its own (see the
//! data plane), which name the receiver's channel and the piece.

use minicbor::bytes::{ByteArray, ByteVec};
use shoal_types::{Digest, Endpoint, PeerId, VouchedMetainfo, Zone};

/// The receiver's number for a swarm on this connection.
pub type Channel = u32;

/// Most runs in one [`Message::Have`].
pub const HAVE_RUNS_MAX: usize = 1024;
/// Most hints in one message that introduces peers.
pub const HINTS_MAX: usize = 32;

/// A peer one may ask, and where.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct PeerHint {
    /// The peer.
    #[n(0)]
    pub peer: PeerId,
    /// Its zone, as the introducer knows it. The credential shown on connecting decides.
    #[n(1)]
    pub zone: Zone,
    /// Where its data plane is dialled, best first.
    #[n(2)]
    pub endpoints: Vec<Endpoint>,
    /// Whether it has the whole blob, as far as the introducer knows.
    #[n(3)]
    pub complete: bool,
}

/// The span of a trace (W3C Trace Context) for which a peer is asked. The engine neither reads nor sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct TraceContext {
    /// The trace's id.
    #[n(0)]
    pub trace: ByteArray<16>,
    /// The asker's span's id.
    #[n(1)]
    pub span: ByteArray<8>,
}

/// Why a peer does not take part in a swarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(index_only)]
pub enum Absence {
    /// It does not have the blob and is not fetching it.
    #[n(0)]
    NotHere,
    /// It is an owner of the blob, its backend answered, and nobody it knows has the blob: the blob is unknown.
    #[n(1)]
    Unknown,
    /// It is an owner of the blob but its backend does not answer: ask again later.
    #[n(2)]
    BackendDown,
    /// It has no room for another swarm or peer now.
    #[n(3)]
    Full,
}

/// One message of a swarm.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub enum Message {
    /// "Let us share this blob." Both sides send it; the second one is the answer to the first.
    #[n(0)]
    Join {
        /// The sender's channel for this swarm.
        #[n(0)]
        channel: Channel,
        /// The blob.
        #[n(1)]
        digest: Digest,
        /// The sender has no metainfo and wants it.
        #[n(2)]
        wants_metainfo: bool,
        /// The sender only wants the metainfo and will leave when it has it.
        #[n(3)]
        probe: bool,
        /// What the sender does this for, if that is traced.
        #[n(4)]
        trace: Option<TraceContext>,
    },
    /// The answer to `Join` of somebody who does not take part.
    #[n(1)]
    Absent {
        /// The receiver's channel.
        #[n(0)]
        to: Channel,
        /// Why.
        #[n(1)]
        why: Absence,
        /// Others to ask.
        #[n(2)]
        peers: Vec<PeerHint>,
    },
    /// The blob's metainfo, to who wanted it, as soon as the sender has it.
    #[n(2)]
    Metainfo {
        /// The receiver's channel.
        #[n(0)]
        to: Channel,
        /// The metainfo. Its signature is verified as it is decoded, its voucher before the engine sees it.
        #[n(1)]
        metainfo: Box<VouchedMetainfo>,
    },
    /// The pieces the sender has, all of them. Sent once both sides have metainfo.
    #[n(3)]
    Bitfield {
        /// The receiver's channel.
        #[n(0)]
        to: Channel,
        /// `Bitfield::to_bytes`.
        #[n(1)]
        pieces: ByteVec,
    },
    /// Pieces the sender has since its last `Bitfield` or `Have`, batched. It may tell later of those that the receiver has too, and
    /// of any while the receiver has enough to ask it for; in the end it tells all.
    #[n(4)]
    Have {
        /// The receiver's channel.
        #[n(0)]
        to: Channel,
        /// Runs of pieces: first piece and count.
        #[n(1)]
        runs: Vec<(u32, u32)>,
    },
    /// "Send me this piece."
    #[n(5)]
    Request {
        /// The receiver's channel.
        #[n(0)]
        to: Channel,
        /// The piece's number.
        #[n(1)]
        piece: u32,
    },
    /// "I do not need this piece from you any more." Payload already under way is thrown away.
    #[n(6)]
    Cancel {
        /// The receiver's channel.
        #[n(0)]
        to: Channel,
        /// The piece's number.
        #[n(1)]
        piece: u32,
    },
    /// "I will not send you this piece now." Names others who may.
    #[n(7)]
    Busy {
        /// The receiver's channel.
        #[n(0)]
        to: Channel,
        /// The piece's number.
        #[n(1)]
        piece: u32,
        /// Others to ask.
        #[n(2)]
        peers: Vec<PeerHint>,
        /// The sender's queue is full, and will have room in so many milliseconds: until then it is not to be asked
        /// for anything. Zero: only this piece is refused.
        #[n(3)]
        again_millis: u32,
    },
    /// Introductions.
    #[n(8)]
    Peers {
        /// The receiver's channel.
        #[n(0)]
        to: Channel,
        /// Who else takes part.
        #[n(1)]
        peers: Vec<PeerHint>,
    },
    /// "I take no more part in this swarm."
    #[n(9)]
    Leave {
        /// The receiver's channel.
        #[n(0)]
        to: Channel,
    },
}

impl Message {
    /// The receiver's channel that it is for; `None` for `Join`.
    pub(crate) fn to(&self) -> Option<Channel> {
        match self {
            Self::Join { .. } => None,
            Self::Absent { to, .. }
            | Self::Metainfo { to, .. }
            | Self::Bitfield { to, .. }
            | Self::Have { to, .. }
            | Self::Request { to, .. }
            | Self::Cancel { to, .. }
            | Self::Busy { to, .. }
            | Self::Peers { to, .. }
            | Self::Leave { to } => Some(*to),
        }
    }
}
