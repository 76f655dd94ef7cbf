//! One blob and who shares it.

pub(crate) mod member;
pub(crate) mod news;
pub(crate) mod picker;
pub(crate) mod readers;
pub(crate) mod search;
pub(crate) mod shares;
pub(crate) mod zones;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use shoal_types::{Bitfield, Digest, Metainfo, PeerId, PieceLayout, Timestamp, VouchedMetainfo, Zone};
use smallvec::SmallVec;

use crate::io::{ReaderId, ReaderWant};
use crate::keyed::{Map, Sorted};
use crate::names::BlobName;
use crate::prefetch::{prefetch_at, prefetch_ends, prefetch_lines, prefetch_list};
use crate::random::Random;
use member::{Member, Outstanding};
use news::News;
use picker::Picker;
use readers::Reader;
use search::{Candidate, Search};
use shares::Share;
use zones::ZoneRanks;

/// Cache lines of a swarm that nearly every input about it looks at, without the first, which says that there is one.
const PREFETCHED_LINES: Range<usize> = 1..6;
/// Cache lines of pieces under way that are prefetched.
const PENDING_LINES: usize = 4;

/// Cache lines of a set of pieces that is gone through: 1024 pieces.
const WORDS_LINES: usize = 2;

/// Prefetches what tells whether a piece is in a set.
fn prefetch_word(pieces: &Bitfield, piece: u32) {
    prefetch_at(pieces.words(), (piece / u64::BITS) as usize);
}

/// What is being done about a piece.
#[derive(Debug)]
pub(crate) enum Pending {
    /// Peers were asked for it; more than one only at the end.
    Requested(SmallVec<[PeerId; 1]>),
    /// It arrived; the peer is `None` for the backend.
    Verifying { from: PeerId, since: Timestamp },
    /// The local backend was asked for it.
    Backend { since: Timestamp },
}

/// The first copy of a piece that a lone seeder gave away.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) to: PeerId,
    /// When it was granted.
    pub(crate) since: Timestamp,
    /// When its last byte was sent; `None` while it waits or is on its way.
    pub(crate) sent: Option<Timestamp>,
    /// It was not sent from here: the peer says that it has it.
    pub(crate) held: bool,
}

/// A blob whose metainfo is known.
#[derive(Debug)]
// In the order of use: docs/adr/0018.
#[repr(C)]
pub(crate) struct Blob {
    pub(crate) picker: Picker,
    /// Verified pieces in the store.
    pub(crate) have: Bitfield,
    pub(crate) layout: PieceLayout,
    /// The first piece that may be missing: all before it are here.
    pub(crate) front: u32,
    pub(crate) complete: bool,
    pub(crate) finishing: bool,
    /// The own zone has a seeder or an origin in the swarm.
    pub(crate) zone_source: bool,
    /// When the zone last got on by itself.
    pub(crate) zone_progress: Timestamp,
    pub(crate) pending: Sorted<Pending>,
    /// To whom a lone seeder gave the first copy of a piece.
    pub(crate) given: BTreeMap<u32, Given>,
    pub(crate) metainfo: Arc<Metainfo>,
    pub(crate) vouched: Option<Arc<VouchedMetainfo>>,
    /// Since when its pieces have been known.
    pub(crate) since: Timestamp,
    /// Pieces sent to somebody before the blob was complete here: none of them is in `given`.
    pub(crate) given_before: Bitfield,
    /// To whom of another zone a seeder gave one of the first pieces.
    pub(crate) given_abroad: BTreeMap<(u32, Zone), PeerId>,
    pub(crate) zone_ranks: ZoneRanks,
    /// Others of the own zone that fetch the blob too.
    pub(crate) zone_leechers: usize,
}

impl Blob {
    pub(crate) fn new(
        metainfo: Arc<Metainfo>,
        vouched: Option<Arc<VouchedMetainfo>>,
        have: Bitfield,
        complete: bool,
        random: &mut Random,
        now: Timestamp,
    ) -> Self {
        let layout = metainfo.layout();
        let wanted =
            if complete { Vec::new() } else { have.iter_missing(&layout).map(|piece| piece.get()).collect() };
        let mut own = Self {
            since: now,
            front: 0,
            picker: Picker::new(layout.piece_count(), wanted, random),
            metainfo,
            vouched,
            layout,
            have,
            complete,
            finishing: false,
            pending: Sorted::default(),
            given: BTreeMap::new(),
            given_before: Bitfield::new(layout.piece_count()),
            given_abroad: BTreeMap::new(),
            zone_ranks: ZoneRanks::default(),
            zone_progress: now,
            zone_leechers: 0,
            zone_source: false,
        };
        own.advance_front();
        own
    }

    /// Looks anew at what the first missing piece is.
    pub(crate) fn advance_front(&mut self) {
        while self.has(self.front) {
            self.front = self.front.saturating_add(1);
        }
    }

    pub(crate) fn has(&self, number: u32) -> bool {
        self.layout.piece(number).is_some_and(|piece| self.have.contains(piece))
    }

    /// Whether somebody was given each piece.
    pub(crate) fn all_given(&self) -> bool {
        let before = self.given_before.count() as usize;
        self.given.len().saturating_add(before) >= self.layout.piece_count() as usize
    }

    pub(crate) fn bytes_of(&self, number: u32) -> u32 {
        self.layout.piece(number).map_or(0, |piece| self.layout.len_of(piece))
    }
}

/// One blob this process reads, downloads or serves.
///
/// What most inputs look at stands at the beginning.
#[derive(Debug)]
// In the order of use: docs/adr/0018.
#[repr(C, align(64))]
pub(crate) struct Swarm {
    presence: Presence,
    /// Requests in flight at members of the own zone.
    near_in_flight: usize,
    /// Members of other zones.
    foreign_members: usize,
    /// The longest window of its members, in pieces, where it was looked for and none has changed since.
    pub(crate) window_max: Cell<Option<u32>>,
    pub(crate) readers: Sorted<Reader, ReaderId>,
    /// The local store has not answered yet.
    pub(crate) opening: bool,
    /// This process owns the blob and answers with authority.
    pub(crate) owner: bool,
    pub(crate) in_backend: bool,
    pub(crate) backend_down: bool,
    pub(crate) provided: bool,
    pub(crate) members: Map<PeerId, Member>,
    /// Pieces that came and that members are to be told of, in the order of the members.
    pub(crate) news: News,
    /// The metainfo, once known.
    pub(crate) blob: Option<Blob>,
    /// Members with the whole blob and the place of the last, where they were counted and none has changed since.
    seeders: Cell<Option<(usize, usize)>>,
    /// When the last reader left.
    pub(crate) unread_since: Option<Timestamp>,
    /// Since when nobody could be asked for anything that is missing.
    pub(crate) starved: Option<Timestamp>,
    pub(crate) name: BlobName,
    pub(crate) digest: Digest,
    pub(crate) started: Timestamp,
    pub(crate) search: Search,
    pub(crate) backend_failures: u32,
    pub(crate) backend_retry: Timestamp,
}

/// What tells a swarm from none where there may be one: it has the largest niche there is, and so the compiler looks in the first cache
/// line and not at any of those that few inputs need.
#[derive(Debug)]
#[repr(u64)]
enum Presence {
    Here,
}

impl Swarm {
    pub(crate) fn new(name: BlobName, digest: Digest, now: Timestamp) -> Self {
        Self {
            presence: Presence::Here,
            name,
            digest,
            started: now,
            opening: true,
            blob: None,
            members: Map::default(),
            foreign_members: 0,
            near_in_flight: 0,
            window_max: Cell::new(None),
            seeders: Cell::new(None),
            readers: Sorted::default(),
            search: Search::default(),
            owner: false,
            backend_down: false,
            in_backend: false,
            backend_failures: 0,
            backend_retry: now,
            news: News::default(),
            provided: false,
            starved: None,
            unread_since: None,
        }
    }

    /// Prefetches what most inputs look at.
    #[inline]
    pub(crate) fn prefetch(&self) {
        prefetch_lines(&self.presence, PREFETCHED_LINES);
    }

    /// Prefetches the member at a place.
    pub(crate) fn prefetch_member(&self, place: usize) {
        if let Some((peer, member)) = self.members.entry_at(place) {
            prefetch_ends(peer);
            member.prefetch();
        }
    }

    /// Prefetches what tells whether the member at a place has a piece, and what it was asked for.
    pub(crate) fn prefetch_pieces_of(&self, place: usize, piece: u32) {
        let Some(member) = self.members.at(place) else { return };
        member.outstanding.prefetch(PENDING_LINES);
        if let Some(pieces) = &member.pieces {
            prefetch_word(pieces, piece);
        }
    }

    /// Prefetches which pieces the member at a place has.
    pub(crate) fn prefetch_all_pieces_of(&self, place: usize) {
        if let Some(pieces) = self.members.at(place).and_then(|member| member.pieces.as_ref()) {
            prefetch_list(pieces.words(), WORDS_LINES);
        }
    }

    /// Prefetches which pieces are here.
    pub(crate) fn prefetch_have(&self) {
        if let Some(blob) = &self.blob {
            prefetch_list(blob.have.words(), WORDS_LINES);
        }
    }

    /// Prefetches what is known of some pieces, and of those that are under way.
    pub(crate) fn prefetch_pieces(&self, pieces: impl Iterator<Item = u32>) {
        let Some(blob) = &self.blob else { return };
        blob.pending.prefetch(PENDING_LINES);
        for piece in pieces {
            blob.picker.prefetch(piece);
            prefetch_word(&blob.have, piece);
        }
    }

    /// The window of a member has changed.
    pub(crate) fn note_window(&self, before: u32, after: u32) {
        let longest = self.window_max.get();
        // One that was the longest may have been so alone.
        let known = longest.filter(|longest| after >= *longest || before < *longest);
        self.window_max.set(known.map(|longest| longest.max(after)));
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.blob.as_ref().is_some_and(|blob| blob.complete)
    }

    /// Takes in a member that is not one yet.
    pub(crate) fn add_member(&mut self, peer: PeerId, member: Member) {
        self.foreign_members = self.foreign_members.saturating_add(usize::from(!member.same_zone));
        self.members.insert(peer, member);
        self.news.add_member();
        self.search.note_member(&peer, true);
        self.window_max.set(None);
        self.seeders.set(None);
    }

    /// Takes in a candidate that is not one yet.
    pub(crate) fn add_candidate(&mut self, candidate: Candidate) {
        debug_assert!(!candidate.standing.is_useless(), "nothing is known of it yet");
        let peer = candidate.hint.peer;
        let member = self.members.contains_key(&peer);
        self.search.candidates.insert(peer, Candidate { member, ..candidate });
    }

    /// Candidates that are no members.
    pub(crate) fn others(&self) -> impl Iterator<Item = (&PeerId, &Candidate)> {
        self.search.candidates.iter().filter(|(peer, candidate)| {
            debug_assert_eq!(candidate.member, self.members.contains_key(peer));
            !candidate.member
        })
    }

    /// Takes a member out, with what it was asked for.
    pub(crate) fn take_member(&mut self, peer: &PeerId) -> Option<Member> {
        let place = self.members.place(peer)?;
        let member = self.members.swap_remove(peer)?;
        self.news.swap_remove_member(place);
        self.search.note_member(peer, false);
        self.window_max.set(None);
        self.seeders.set(None);
        if member.same_zone {
            self.near_in_flight = self.near_in_flight.saturating_sub(member.outstanding.len());
        } else {
            self.foreign_members = self.foreign_members.saturating_sub(1);
        }
        Some(member)
    }

    /// Notes that a member is asked for a piece that it was not asked for.
    pub(crate) fn asked(&mut self, peer: &PeerId, number: u32, outstanding: Outstanding) {
        let Some(member) = self.members.get_mut(peer) else { return };
        self.near_in_flight = self.near_in_flight.saturating_add(usize::from(member.same_zone));
        member.outstanding.insert(number, outstanding);
    }

    /// Takes out a request that a member has answered or that is withdrawn.
    pub(crate) fn answered(&mut self, peer: &PeerId, number: u32) -> Option<Outstanding> {
        let member = self.members.get_mut(peer)?;
        let outstanding = member.outstanding.remove(number)?;
        self.near_in_flight = self.near_in_flight.saturating_sub(usize::from(member.same_zone));
        Some(outstanding)
    }

    /// Whether requests are in flight inside the zone.
    pub(crate) fn is_fetching(&self) -> bool {
        self.near_in_flight > 0
    }

    /// Whether somebody of another zone takes part or was heard of.
    pub(crate) fn spans_zones(&self) -> bool {
        self.search.foreign || self.has_foreign_members()
    }

    pub(crate) fn has_foreign_members(&self) -> bool {
        debug_assert_eq!(self.foreign_members, self.members.values().filter(|m| !m.same_zone).count());
        self.foreign_members > 0
    }

    /// What a member is known to have has changed.
    pub(crate) fn pieces_changed(&self) {
        self.seeders.set(None);
    }

    /// Members with the whole blob.
    pub(crate) fn seeders(&self) -> usize {
        self.count_seeders().0
    }

    fn count_seeders(&self) -> (usize, usize) {
        let count = || {
            let complete = self.members.values().enumerate().filter(|(_, member)| member.is_complete());
            complete.fold((0_usize, 0), |(count, _), (place, _)| (count.saturating_add(1), place))
        };
        let seeders = self.seeders.get().unwrap_or_else(count);
        debug_assert_eq!(seeders, count());
        self.seeders.set(Some(seeders));
        seeders
    }

    /// The share of an owner of the own zone, beside the others there; `None` when it is not one of several that have the blob or
    /// may have it.
    pub(crate) fn share_of(&self, owner: &PeerId) -> Option<Share> {
        let owners = &self.search.near_owners;
        if owners.len() < 2 || !owners.contains(owner) {
            return None;
        }
        let may_have = |peer: &&PeerId| match self.members.get(*peer) {
            Some(member) if member.pieces.is_some() => member.is_complete(),
            // It searches too.
            Some(member) if member.is_joined() && member.wants_metainfo => false,
            _ => self.search.candidates.get(*peer).is_some_and(Candidate::may_have),
        };
        let share =
            Share::new(&self.digest, owner, owners.iter().filter(|peer| *peer != owner).filter(may_have));
        (share.owners() > 1).then_some(share)
    }

    /// Whether one member alone has pieces that are wanted and nobody else has.
    pub(crate) fn lone_seeder(&self) -> bool {
        self.blob.as_ref().is_some_and(|blob| blob.picker.has_unavailable()) && self.seeders() == 1
    }

    /// Requests in flight inside the zone, those at a `lone` seeder aside; a link between zones has a window of its own.
    pub(crate) fn in_flight(&self, lone: bool) -> usize {
        debug_assert_eq!(
            self.near_in_flight,
            self.members.values().filter(|m| m.same_zone).map(|m| m.outstanding.len()).sum::<usize>()
        );
        let seeder = lone.then(|| self.members.at(self.count_seeders().1)).flatten();
        let at_seeder = seeder.filter(|member| member.same_zone).map_or(0, |member| member.outstanding.len());
        self.near_in_flight.saturating_sub(at_seeder)
    }

    /// Whether readers wait for anything at all.
    pub(crate) fn is_awaited(&self) -> bool {
        self.readers.values().any(|reader| !reader.done)
    }

    /// Whether the missing pieces are to be got: for a reader, for a while after the last one, because this process has them in
    /// its backend and somebody wants them, or because it is an owner and a host of its zone was told to ask it. Not for
    /// other zones, nor for fellow origins, which ask when something is pushed to them: each blob would cross every link.
    pub(crate) fn wants_payload(&self, now: Timestamp, linger: std::time::Duration) -> bool {
        if self.is_complete() {
            return false;
        }
        self.readers.values().any(|reader| reader.want != ReaderWant::Metainfo)
            || self.unread_since.is_some_and(|since| now.saturating_since(since) < linger)
            || self.members.values().any(|member| {
                member.is_leecher() && (self.in_backend || self.owner && member.same_zone && !member.origin)
            })
    }

    /// Whether only the metainfo is wanted.
    pub(crate) fn is_probe(&self) -> bool {
        !self.owner
            && !self.readers.is_empty()
            && self.readers.values().all(|reader| reader.want == ReaderWant::Metainfo)
    }
}
