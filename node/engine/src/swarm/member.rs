//! A peer as one swarm sees it.

use std::time::Duration;

use shoal_types::{Bitfield, Timestamp, Zone};

use crate::keyed::Sorted;
use crate::message::Channel;

/// A piece a peer was asked for.
#[derive(Debug)]
pub(crate) struct Outstanding {
    pub(crate) at: Timestamp,
    pub(crate) bytes: u32,
    pub(crate) arrived_bytes: u32,
    /// The other zone it comes from.
    pub(crate) link: Option<Zone>,
}

/// A peer's refusal of one piece.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) until: Timestamp,
    pub(crate) pause: Duration,
}

/// A connected peer that was asked to share, or asks to.
///
/// What is looked at of every member whenever a piece comes stands at the beginning, in one or two cache lines.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Member {
    pub(crate) pieces: Option<Bitfield>,
    /// Pieces it refused and until when not to ask again.
    pub(crate) refused: Sorted<Refusal>,
    /// Pieces it has and we lack.
    pub(crate) interesting: u32,
    pub(crate) join_sent: bool,
    pub(crate) same_zone: bool,
    pub(crate) probe: bool,
    pub(crate) bitfield_sent: bool,
    /// Its channel, once it joined.
    pub(crate) their_channel: Option<Channel>,
    /// Its queue is full, or it refuses whatever it is asked for: it is asked for nothing before this.
    pub(crate) full_until: Timestamp,
    /// When it is told of them at the latest, if there is any among them that it may lack.
    pub(crate) owed_until: Option<Timestamp>,
    /// Pieces that we have, which it has not been told of yet: it has them too, or can wait.
    pub(crate) owed: Vec<u32>,
    pub(crate) outstanding: Sorted<Outstanding>,
    pub(crate) our_channel: Channel,
    /// Pieces it refused since it last sent one.
    pub(crate) refusals: u32,
    pub(crate) since: Timestamp,
    /// How many piece hashes it knows, from the first on, as far as we can tell; `None` before it can be told.
    pub(crate) hashes_known: Option<u32>,
    /// It said that it has no metainfo.
    pub(crate) wants_metainfo: bool,
    /// It is known to have the metainfo.
    pub(crate) knows_metainfo: bool,
    pub(crate) metainfo_sent: bool,
    /// It came with the whole blob and is not counted in the picker's availability.
    pub(crate) uncounted: bool,
    /// It anchors blobs, and imports those that it wants.
    pub(crate) origin: bool,
}

impl Member {
    pub(crate) fn new(our_channel: Channel, same_zone: bool, origin: bool, now: Timestamp) -> Self {
        Self {
            our_channel,
            their_channel: None,
            join_sent: false,
            since: now,
            wants_metainfo: false,
            probe: false,
            knows_metainfo: false,
            metainfo_sent: false,
            hashes_known: None,
            bitfield_sent: false,
            owed: Vec::new(),
            owed_until: None,
            pieces: None,
            uncounted: false,
            interesting: 0,
            outstanding: Sorted::default(),
            refused: Sorted::default(),
            full_until: Timestamp::ZERO,
            refusals: 0,
            same_zone,
            origin,
        }
    }

    pub(crate) fn is_joined(&self) -> bool {
        self.join_sent && self.their_channel.is_some()
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.pieces.as_ref().is_some_and(Bitfield::is_full)
    }

    /// Whether it takes part and lacks pieces.
    pub(crate) fn is_leecher(&self) -> bool {
        self.is_joined() && !self.probe && !self.is_complete()
    }

    /// Whether it may be asked for `piece` at `now`.
    pub(crate) fn may_ask(&self, piece: u32, now: Timestamp) -> bool {
        self.refused.get(piece).is_none_or(|refusal| refusal.until <= now)
    }
}
