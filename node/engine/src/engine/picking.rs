//! Which piece to ask a peer for.

use std::time::Duration;

use shoal_types::{PeerId, PieceIndex, Role, Timestamp};

use super::Engine;
use crate::io::ReaderWant;
use crate::message::Absence;
use crate::names::BlobName;
use crate::swarm::member::Member;
use crate::swarm::search::{Candidate, Standing};
use crate::swarm::zones::Importer;
use crate::swarm::{Blob, Pending, Swarm};

/// Below this many pieces of interest a peer's pieces are listed instead of the wanted ones.
const FEW_PIECES: u32 = 64;
/// Members of the zone that share the imports at most.
const IMPORTERS_MAX: usize = 32;
/// How long an owner in the own zone may take to say what it has before anything is imported. Connecting to it is a few
/// round trips in one zone; over the link, to whom there may be a connection already, the answer can be here first.
const OWNER_WAIT: Duration = Duration::from_millis(250);
/// Imports are taken over when so many pieces are left for each member of the zone, and not before: until then the link is
/// busy, and who is ahead does no good by asking too.
const TAKE_OVER_PIECES: usize = 2;
/// Imports that are under way at their importer at least.
const UNDER_WAY_MIN: u32 = 4;
/// An odd number with bits all over (2^32 over the golden ratio), as in Fibonacci hashing (Knuth, TAOCP 3, 6.4).
const HASH_FACTOR: u32 = 0x9e37_79b9;
/// Peers asked for the same piece at the end, at most.
const DUPLICATES_MAX: usize = 2;

/// What a look for a piece came to.
pub(super) enum Picked {
    /// Ask for this one.
    Piece(u32),
    /// Take this one from the stalled peer that was asked for it.
    Stolen(u32),
    /// Nothing now; pieces it has are held back for their importer or after a refusal.
    HeldBack,
    /// It has nothing that is not taken care of.
    Nothing,
}

impl Engine {
    pub(super) fn pick(&self, swarm: &Swarm, blob: &Blob, peer: &PeerId, member: &Member) -> Picked {
        let Some(pieces) = &member.pieces else { return Picked::Nothing };
        if !member.same_zone && self.awaits_owner(swarm, blob) {
            return Picked::HeldBack;
        }
        let mut held_back = false;
        let has = |number| blob.layout.piece(number).is_some_and(|piece| pieces.contains(piece));
        // Of a piece that it has and that is wanted.
        let mut allowed = |number: u32, wait: Duration, since| {
            let good = member.may_ask(number, self.now)
                && (member.same_zone || self.may_import(swarm, blob, number, wait, since));
            held_back |= !good;
            good
        };
        for reader in swarm.readers.values() {
            let mut ahead = reader.window(&blob.layout, self.config.reader_window_bytes);
            // While the zone gets on, what a reader waits for is on its way too; but not for ever.
            let (wait, since) = self.zone_patience(blob, reader.advanced);
            let mut good =
                |number: u32| has(number) && blob.picker.is_wanted(number) && allowed(number, wait, since);
            if let Some(number) = ahead.find(|number| good(*number)) {
                return Picked::Piece(number);
            }
        }
        let (wait, since) = (self.config.zone_wait, blob.zone_progress);
        if !member.same_zone
            && let Some(number) = blob
                .picker
                .wanted_of(pieces, self.front(swarm, blob))
                .find(|number| allowed(*number, wait, since))
        {
            return Picked::Piece(number);
        }
        if let Some(number) =
            self.unseen_of_share(swarm, blob, peer, member, |number| allowed(number, wait, since))
        {
            return Picked::Piece(number);
        }
        let ahead = blob.picker.wanted_of(pieces, self.ahead(swarm, blob, member));
        let key = |number| (blob.picker.availability(number), self.place(number));
        if let Some(number) = least(ahead, key, |number| allowed(number, wait, since)) {
            return Picked::Piece(number);
        }
        let rarest = if !member.has_interesting(&blob.have, FEW_PIECES) {
            let all = blob.picker.wanted_of(pieces, 0..blob.layout.piece_count());
            least(all, |number| blob.picker.availability(number), |number| allowed(number, wait, since))
        } else {
            blob.picker.pick(|number| has(number) && allowed(number, wait, since))
        };
        match rarest.or_else(|| self.take_over(swarm, blob, member)) {
            Some(number) => Picked::Piece(number),
            None => self.pick_pending(blob, peer, member, held_back),
        }
    }

    /// The first pieces that are missing, as far as a reader's window would reach: whoever imports and has no reader of its own
    /// keeps those of the others in its zone going.
    fn front(&self, swarm: &Swarm, blob: &Blob) -> std::ops::Range<u32> {
        let reads = swarm.readers.values().any(|reader| matches!(reader.want, ReaderWant::Range(_)));
        if reads {
            return 0..0;
        }
        let pieces =
            self.config.reader_window_bytes.checked_div(blob.layout.piece_bytes().into()).unwrap_or(0);
        let pieces = u32::try_from(pieces).unwrap_or(u32::MAX).max(1);
        blob.front..blob.front.saturating_add(pieces)
    }

    /// Of what no member but seeders is known to have, a piece that `peer`, one of several owners, is to give. Owners give the same
    /// pieces to different parts of a crowd otherwise, for it takes a while until what one gave is seen by those who ask another.
    fn unseen_of_share(
        &self,
        swarm: &Swarm,
        blob: &Blob,
        peer: &PeerId,
        member: &Member,
        mut allowed: impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        if !member.is_complete() || !member.same_zone || !blob.picker.has_unavailable() {
            return None;
        }
        let share = swarm.share_of(peer)?;
        let mut good =
            |number: u32| blob.picker.availability(number) == 0 && share.has(number) && allowed(number);
        // Those near the front first where this is the only seeder here, as far as they would be asked for without shares.
        let ahead = self.ahead(swarm, blob, member);
        let width = ahead.len().saturating_mul(share.owners());
        let end = ahead.start.saturating_add(u32::try_from(width).unwrap_or(u32::MAX));
        let pieces = member.pieces.as_ref()?;
        let near = blob.picker.wanted_of(pieces, ahead.start..end.min(blob.layout.piece_count()));
        least(near, |number| self.place(number), &mut good).or_else(|| {
            blob.picker
                .iter()
                .take_while(|number| blob.picker.availability(*number) == 0)
                .find(|number| good(*number))
        })
    }

    /// The first missing pieces, as far as the digest that runs along is to be kept going: what it has not seen is hashed at
    /// the end. A lone seeder gives each piece once, so what it is asked for is spread wider; of several seeders anything may
    /// be asked, for new pieces are what a swarm begins with, and so are imports: who imports what is decided elsewhere.
    fn ahead(&self, swarm: &Swarm, blob: &Blob, member: &Member) -> std::ops::Range<u32> {
        let width = if !member.is_complete() {
            self.config.ahead_pieces
        } else if swarm.lone_seeder() && !swarm.spans_zones() {
            self.config.ahead_pieces_lone
        } else {
            0
        };
        let end = blob.front.saturating_add(width);
        blob.front..end.min(blob.layout.piece_count())
    }

    /// A piece's place in this process's own order of pieces that are as rare: others have other orders.
    fn place(&self, number: u32) -> u32 {
        number.wrapping_mul(HASH_FACTOR) ^ self.order
    }

    /// An import of somebody else's, for a process that has done its own: the link's capacity would be left to few
    /// connections at the end, and those start slowly. The importer takes its pieces in the order of its readers, so
    /// the last are the least likely to be under way, and its last few are left to it; and only the second in rank
    /// takes one, lest several do.
    fn take_over(&self, swarm: &Swarm, blob: &Blob, member: &Member) -> Option<u32> {
        if member.same_zone
            || blob.zone_source
            || blob.picker.wanted() > blob.zone_ranks.other_importers().saturating_mul(TAKE_OVER_PIECES)
        {
            return None;
        }
        let pieces = member.pieces.as_ref()?;
        // What each importer has still to do, and the last piece of it that this process may take.
        let mut left = vec![(0u32, None); blob.zone_ranks.others()];
        for number in blob.picker.iter() {
            let piece = blob.layout.piece(number)?;
            if is_near(swarm, piece) {
                continue;
            }
            // One of its own: it is not done.
            let (count, last) = left.get_mut(blob.zone_ranks.importer(number)?)?;
            *count = count.saturating_add(1);
            if blob.zone_ranks.rank(number) == 1
                && *last < Some(number)
                && pieces.contains(piece)
                && member.may_ask(number, self.now)
            {
                *last = Some(number);
            }
        }
        // What an importer has under way is what this process would have: the link is the same.
        let window = self.links.values().map(|link| link.window).max().unwrap_or(0).max(UNDER_WAY_MIN);
        let behind = left.into_iter().filter(|(count, _)| *count > window);
        behind.filter_map(|(count, last)| Some((count, last?))).max().map(|(_, last)| last)
    }

    /// A piece others were asked for: of a stalled peer at any time, of a slower one only at the very end.
    fn pick_pending(&self, blob: &Blob, peer: &PeerId, member: &Member, mut held_back: bool) -> Picked {
        let endgame = blob.picker.wanted() == 0 && blob.pending.len() <= self.config.endgame_pieces_max;
        if !endgame && !self.stalls {
            return if held_back { Picked::HeldBack } else { Picked::Nothing };
        }
        let stalled = |id: &PeerId| self.peers.get(id).is_some_and(|known| known.flow.stalled);
        for (number, pending) in blob.pending.iter() {
            let Pending::Requested(asked) = pending else { continue };
            let has =
                member.pieces.as_ref().zip(blob.layout.piece(number)).is_some_and(|(p, i)| p.contains(i));
            if !has || asked.contains(peer) || !member.may_ask(number, self.now) {
                continue;
            }
            if asked.iter().all(stalled) {
                return Picked::Stolen(number);
            }
            if endgame && asked.len() < DUPLICATES_MAX && member.same_zone {
                if self.is_late(blob, number, asked, peer) {
                    return Picked::Piece(number);
                }
                // Nothing else may happen until it is.
                held_back = true;
            }
        }
        if held_back { Picked::HeldBack } else { Picked::Nothing }
    }

    /// Whether `peer` would likely deliver a piece before those that were asked for it.
    fn is_late(&self, blob: &Blob, number: u32, asked: &[PeerId], peer: &PeerId) -> bool {
        let bytes = blob.bytes_of(number);
        let expected =
            |id: &PeerId| self.peers.get(id).map_or(Duration::MAX, |known| known.flow.expected(bytes));
        let own = expected(peer);
        asked.iter().all(|id| {
            let Some(flow) = self.peers.get(id).map(|known| &known.flow) else { return false };
            // Progress may be told with whole pieces only.
            let usual = flow.usual_silence().unwrap_or_default();
            self.now.saturating_since(flow.life) > own.max(expected(id)).max(usual)
        })
    }

    /// How long a piece that a reader waits for since `advanced` is left to the zone's importer, a rank, and from when
    /// on: shortly when the zone stands still, longer while it gets on.
    fn zone_patience(&self, blob: &Blob, advanced: Timestamp) -> (Duration, Timestamp) {
        if self.now >= advanced + self.config.zone_wait_max {
            (self.config.zone_wait_max, advanced)
        } else {
            (self.config.zone_wait_window, advanced.max(blob.zone_progress))
        }
    }

    /// Whether this process may fetch a piece from another zone: it is the zone's importer, or whoever is has had
    /// its time. Those further down the ranking wait longer, so that a slow importer is not doubled by everybody.
    fn may_import(&self, swarm: &Swarm, blob: &Blob, number: u32, wait: Duration, since: Timestamp) -> bool {
        if blob.zone_leechers == 0 && !blob.zone_source {
            return true;
        }
        let Some(piece) = blob.layout.piece(number) else { return false };
        let near = blob.zone_source || is_near(swarm, piece);
        let rank = u32::from(blob.zone_ranks.rank(number)).saturating_add(u32::from(near));
        rank == 0 || self.now >= since + wait.saturating_mul(rank)
    }

    /// Whether an owner of the own zone, who may have all of the blob, is still to be heard.
    fn awaits_owner(&self, swarm: &Swarm, blob: &Blob) -> bool {
        // One that searches too has nothing yet.
        let said = |member: &Member| member.is_joined() && (member.pieces.is_some() || member.wants_metainfo);
        let silent = |(peer, candidate): (&PeerId, &Candidate)| {
            candidate.owner
                && candidate.hint.zone == self.zone
                && matches!(candidate.standing, Standing::Fresh | Standing::Dialing | Standing::Asked)
                && !swarm.members.get(peer).is_some_and(said)
        };
        self.now < blob.since + OWNER_WAIT && swarm.search.candidates.iter().any(silent)
    }

    /// Looks anew at who of the zone takes part, after somebody came, went or became a seeder. It matters while there is
    /// somebody elsewhere to import from: whoever comes is not asked for anything before this was called.
    pub(super) fn refresh_zone(&mut self, name: BlobName) {
        let Some(swarm) = self.swarms.get(name) else { return };
        if swarm.is_complete() || !swarm.has_foreign_members() {
            return;
        }
        let near = || swarm.members.iter().filter(|(_, member)| member.same_zone && member.is_joined());
        let source = near().any(|(_, member)| member.is_complete());
        let joined = near().filter(|(_, member)| member.is_leecher());
        let known = swarm.search.candidates.iter().filter(|(peer, candidate)| {
            let member = swarm.members.get(*peer);
            candidate.hint.zone == self.zone
                && member.is_none_or(|member| candidate.owner && !member.is_joined())
                && may_import_soon(candidate)
        });
        let owner = |peer: &PeerId| swarm.search.candidates.get(peer).is_some_and(|known| known.owner);
        let mut importers: Vec<Importer> = joined
            .map(|(peer, _)| peer)
            .chain(known.map(|(peer, _)| peer))
            .map(|peer| Importer {
                origin: owner(peer) || self.roles_of(peer).contains(Role::Origin),
                peer: *peer,
            })
            .collect();
        importers.sort_unstable_by_key(|importer| (!importer.origin, importer.peer));
        importers.truncate(IMPORTERS_MAX);
        let local = Importer { origin: self.roles.contains(Role::Origin), peer: self.local };
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        let digest = swarm.digest;
        let Some(blob) = &mut swarm.blob else { return };
        blob.zone_leechers = importers.len();
        blob.zone_source = source;
        let pieces = blob.layout.piece_count();
        blob.zone_ranks.update(&digest, local, importers, pieces);
    }
}

/// The first with the least key of those that are allowed. Whether one is is asked only where it matters, or where none is.
fn least<K: Ord>(
    numbers: impl Iterator<Item = u32>,
    key: impl Fn(u32) -> K,
    mut allowed: impl FnMut(u32) -> bool,
) -> Option<u32> {
    let mut best: Option<(K, u32)> = None;
    for number in numbers {
        let key = key(number);
        if best.as_ref().is_none_or(|(least, _)| key < *least) && allowed(number) {
            best = Some((key, number));
        }
    }
    best.map(|(_, number)| number)
}

/// Whether somebody who is not connected is likely to take part. An origin takes part though it has no room for this process:
/// others of the zone are connected to it.
fn may_import_soon(candidate: &Candidate) -> bool {
    match candidate.standing {
        Standing::Fresh | Standing::Dialing => candidate.owner || !candidate.hint.complete,
        Standing::Asked | Standing::Absent(Absence::Full) => candidate.owner,
        Standing::Absent(_) | Standing::Gone => false,
    }
}

/// Whether somebody of the own zone has a piece.
fn is_near(swarm: &Swarm, piece: PieceIndex) -> bool {
    let has = |member: &Member| member.pieces.as_ref().is_some_and(|pieces| pieces.contains(piece));
    swarm.members.values().any(|member| member.same_zone && has(member))
}
