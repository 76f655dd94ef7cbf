//! A peer as one swarm sees it.

use std::cell::Cell;
use std::time::Duration;

use shoal_types::{Bitfield, Timestamp, Zone};

use crate::keyed::Sorted;
use crate::message::Channel;
use crate::prefetch::prefetch;

/// Refusals below which those of pieces that came from elsewhere stay too.
const REFUSALS_SEEN_THROUGH: usize = 16;

/// A piece a peer was asked for.
#[derive(Debug)]
pub(crate) struct Outstanding {
    pub(crate) at: Timestamp,
    pub(crate) bytes: u32,
    pub(crate) arrived_bytes: u32,
    /// The other zone it comes from.
    pub(crate) link: Option<Zone>,
}

impl Outstanding {
    /// Time from the request to the first part, which was here `since_first` before `now`.
    pub(crate) fn waited(&self, now: Timestamp, since_first: Duration) -> Duration {
        now.saturating_since(self.at).saturating_sub(since_first)
    }
}

/// A peer's refusal of one piece.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) until: Timestamp,
    pub(crate) pause: Duration,
}

/// How many pieces a member has that we lack. A piece that comes makes it one less or none: that is looked at when it matters.
#[derive(Clone, Copy, Debug, Default)]
struct Interest {
    /// When it was counted; what the member got since that we lacked is in it.
    count: u32,
    /// Our pieces then.
    have: u32,
}

/// A connected peer that was asked to share, or asks to.
///
/// What is looked at of every member whenever a piece comes stands at the end, in one or two cache lines, before the key it is kept with.
#[derive(Debug)]
// In the order of use: docs/adr/0018.
#[repr(C)]
pub(crate) struct Member {
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
    pub(crate) our_channel: Channel,
    pub(crate) outstanding: Sorted<Outstanding>,
    /// Its queue is full, or it refuses whatever it is asked for: it is asked for nothing before this.
    pub(crate) full_until: Timestamp,
    /// Its channel, once it joined.
    pub(crate) their_channel: Option<Channel>,
    pub(crate) join_sent: bool,
    pub(crate) same_zone: bool,
    pub(crate) probe: bool,
    pub(crate) bitfield_sent: bool,
    interest: Cell<Interest>,
    /// Pieces it refused and until when not to ask again.
    pub(crate) refused: Sorted<Refusal>,
    pub(crate) pieces: Option<Bitfield>,
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
            pieces: None,
            uncounted: false,
            interest: Cell::default(),
            outstanding: Sorted::default(),
            refused: Sorted::default(),
            full_until: Timestamp::ZERO,
            refusals: 0,
            same_zone,
            origin,
        }
    }

    /// Prefetches what is looked at of every member.
    pub(crate) fn prefetch(&self) {
        prefetch(&self.our_channel);
        prefetch(&self.interest);
    }

    /// Notes what it has, all of it; `have` is ours.
    pub(crate) fn set_pieces(&mut self, pieces: Bitfield, have: &Bitfield) {
        self.interest.set(Interest { count: pieces.count_beyond(have), have: have.count() });
        self.pieces = Some(pieces);
    }

    /// Takes out what it has.
    pub(crate) fn take_pieces(&mut self) -> Option<Bitfield> {
        self.interest.take();
        self.pieces.take()
    }

    /// Notes that it got so many pieces that we lack.
    pub(crate) fn got_interesting(&mut self, count: u32) {
        let interest = self.interest.get_mut();
        interest.count = interest.count.saturating_add(count);
    }

    /// Whether it has so many pieces that we lack; `have` is ours.
    pub(crate) fn has_interesting(&self, have: &Bitfield, least: u32) -> bool {
        let interest = self.interest.get();
        let come = have.count().saturating_sub(interest.have);
        let certain = interest.count.saturating_sub(come);
        let good = certain >= least
            || interest.count >= least && {
                let count = self.pieces.as_ref().map_or(0, |pieces| pieces.count_beyond(have));
                self.interest.set(Interest { count, have: have.count() });
                count >= least
            };
        debug_assert_eq!(good, self.pieces.as_ref().map_or(0, |pieces| pieces.count_beyond(have)) >= least);
        good
    }

    /// Takes out refusals of pieces that are here, each time that there are twice as many refusals.
    pub(crate) fn see_refusals_through(&mut self, is_here: impl Fn(u32) -> bool) {
        let count = self.refused.len();
        if count >= REFUSALS_SEEN_THROUGH && count.is_power_of_two() {
            self.refused.retain(|number, _| !is_here(number));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_pieces_that_are_here_go_when_there_are_many() {
        let mut member = Member::new(0, true, false, Timestamp::ZERO);
        for number in 0..16 {
            member.see_refusals_through(|number| number < 10);
            member.refused.insert(number, Refusal { until: Timestamp::ZERO, pause: Duration::ZERO });
            assert_eq!(member.refused.len(), number as usize + 1);
        }
        member.see_refusals_through(|number| number < 10);
        assert!(member.refused.iter().map(|(number, _)| number).eq(10..16));
    }
}
