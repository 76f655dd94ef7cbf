//! Asking for pieces and taking them in.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_types::{Digest, PeerId, PieceIndex, Zone};

use super::Engine;
use super::connections::TICK_MIN;
use super::picking::Picked;
use crate::flow::Flow;
use crate::io::{BufferId, DropReason, Effect, Event, ReadError};
use crate::message::{Channel, Message, PeerHint};
use crate::swarm::member::{Member, Outstanding, Refusal};
use crate::swarm::{Pending, Swarm};
use crate::timers::Timer;

/// How often pieces held back for somebody else are looked at again.
const HELD_BACK_TICK: Duration = Duration::from_millis(50);
/// Refusals remembered a peer; more come from a peer that has nothing to give, and it is asked less then.
const REFUSALS_MAX: usize = 1024;
/// Refusals in a row after which a peer is left alone for a while.
const REFUSALS_FREE: u32 = 2;
/// For how long at first; it doubles with every further refusal.
const REST_MIN: Duration = Duration::from_millis(5);
const REST_DOUBLINGS_MAX: u32 = 6;
/// A refusal's pause grows up to this many times `busy_retry`.
const REFUSAL_FACTOR_MAX: u32 = 8;
/// A peer with a full queue is asked again after this at the latest.
const FULL_MAX: Duration = Duration::from_secs(2);
/// After so many pieces a swarm looks whether it is behind its peers.
const BEHIND_CHECK_PIECES: u32 = 8;
/// Failures in a row after which a backend counts as down.
const BACKEND_FAILURES_MAX: u32 = 3;
/// Pause after a backend's failure.
const BACKEND_PAUSE: Duration = Duration::from_millis(500);

impl Engine {
    /// Asks for as much as is allowed, one piece a peer in turn, so that the first pieces come from everybody.
    pub(super) fn fill_swarm(&mut self, digest: Digest) {
        if !self.may_fill(digest) {
            return;
        }
        let Some(swarm) = self.swarms.get(&digest) else { return };
        let piece_bytes = swarm.blob.as_ref().map_or(0, |blob| blob.layout.piece_bytes());
        let has_room = |peer: &PeerId| {
            self.peers.get(peer).is_some_and(|known| known.flow.has_room(&self.config, piece_bytes))
        };
        let interesting =
            || swarm.members.iter().filter(|(_, member)| member.interesting > 0 && member.is_joined());
        let mut order: Vec<(bool, bool, PeerId)> = interesting()
            .filter(|(_, member)| member.full_until <= self.now)
            .map(|(peer, member)| (!member.same_zone, member.is_complete(), *peer))
            .collect();
        // Whatever woke the swarm before that time has used its timer up.
        let full = interesting().filter(|(_, member)| member.full_until > self.now);
        let again = full.filter(|(peer, _)| has_room(peer)).map(|(_, member)| member.full_until).min();
        self.random.shuffle(&mut order);
        // A lone seeder first, while it has what nobody else has.
        let lone = swarm.lone_seeder();
        order.sort_by_key(|(foreign, seeder, _)| (*foreign, *seeder != lone));
        if let Some(at) = again {
            self.timers.set_earlier(Timer::Fill(digest), at);
        }
        // What waits for room in the buffer gets none from the next peer either.
        self.hungry.remove(&digest);
        while !order.is_empty() {
            order
                .retain(|(_, _, peer)| !self.hungry.contains_key(&digest) && self.request_one(digest, *peer));
        }
        self.fetch_from_backend(digest);
        self.check_starved(digest);
    }

    /// A download is over: the others have its part of what may be in flight.
    pub(super) fn fill_fetching(&mut self) {
        let fetching = self.swarms.values().filter(|swarm| swarm.is_fetching());
        let fetching: Vec<Digest> = fetching.map(|swarm| swarm.digest).collect();
        fetching.into_iter().for_each(|digest| self.fill_swarm(digest));
    }

    /// Asks one peer for as much as is allowed.
    pub(super) fn fill_member(&mut self, digest: Digest, peer: PeerId) {
        if !self.may_fill(digest) {
            return;
        }
        while self.request_one(digest, peer) {}
        self.check_starved(digest);
    }

    /// Whether a swarm is to ask for anything now.
    fn may_fill(&self, digest: Digest) -> bool {
        self.swarms
            .get(&digest)
            .is_some_and(|swarm| !swarm.opening && swarm.wants_payload(self.now, self.config.linger))
    }

    fn request_one(&mut self, digest: Digest, peer: PeerId) -> bool {
        let Some(swarm) = self.swarms.get(&digest) else { return false };
        let (Some(blob), Some(member)) = (&swarm.blob, swarm.members.get(&peer)) else { return false };
        let Some(known) = self.peers.get(&peer) else { return false };
        let piece_bytes = blob.layout.piece_bytes();
        if known.dropped
            || member.interesting == 0
            || !member.is_joined()
            || !known.flow.has_room(&self.config, piece_bytes)
            || !member.same_zone && !self.link_has_room(&known.zone, piece_bytes)
        {
            return false;
        }
        if member.full_until > self.now {
            // Whatever woke the swarm before that time has used its timer up.
            self.timers.set_earlier(Timer::Fill(digest), member.full_until);
            return false;
        }
        if self.buffered_bytes.saturating_add(piece_bytes.into()) > self.config.buffer_bytes_max {
            self.hungry.insert(digest, piece_bytes);
            return false;
        }
        let lone_seeder = swarm.lone_seeder();
        if member.same_zone && !(lone_seeder && member.is_complete()) {
            let in_flight = swarm.in_flight(lone_seeder);
            if !self.may_be_in_flight(swarm, in_flight) {
                return false;
            }
        }
        let same_zone = member.same_zone;
        let picked = self.pick(swarm, blob, &peer, member);
        let number = match picked {
            Picked::Piece(number) | Picked::Stolen(number) => number,
            Picked::HeldBack => {
                self.timers.set_earlier(Timer::Fill(digest), self.now + HELD_BACK_TICK);
                return false;
            }
            Picked::Nothing => return false,
        };
        let link = if same_zone { None } else { self.zone_rate_in.wait(self.now) };
        if let Some(later) = self.rate_in.wait(self.now).max(link) {
            self.timers.set_earlier(Timer::Fill(digest), later.max(self.now + TICK_MIN));
            return false;
        }
        if matches!(picked, Picked::Stolen(_)) {
            self.withdraw_others(digest, number, None);
        }
        self.request(digest, peer, number, same_zone);
        true
    }

    fn request(&mut self, digest: Digest, peer: PeerId, number: u32, same_zone: bool) {
        let now = self.now;
        let Some(swarm) = self.swarms.get_mut(&digest) else { return };
        let (Some(blob), Some(member)) = (&mut swarm.blob, swarm.members.get_mut(&peer)) else { return };
        let (Some(piece), Some(to)) = (blob.layout.piece(number), member.their_channel) else { return };
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let bytes = blob.layout.len_of(piece);
        blob.picker.unwant(number);
        match blob.pending.get_mut(number) {
            Some(Pending::Requested(asked)) => asked.push(peer),
            Some(Pending::Verifying { .. } | Pending::Backend { .. }) => return,
            None => drop(blob.pending.insert(number, Pending::Requested(vec![peer]))),
        }
        let link = (!same_zone).then(|| known.zone.clone());
        if let Some(zone) = &link {
            let fresh = || Flow::new(&self.config, now).over_link();
            self.links.entry(zone.clone()).or_insert_with(fresh).requested(now, bytes);
        }
        let channel = member.our_channel;
        let fetching = swarm.is_fetching();
        swarm.asked(&peer, number, Outstanding { at: now, bytes, arrived_bytes: 0, link });
        self.fetching = self.fetching.saturating_add(usize::from(swarm.is_fetching() && !fetching));
        known.flow.requested(now, bytes);
        self.buffered_bytes = self.buffered_bytes.saturating_add(bytes.into());
        self.rate_in.take(bytes);
        if !same_zone {
            self.zone_rate_in.take(bytes);
        }
        self.out.push(Effect::Expect { peer, channel, digest, piece, bytes });
        self.out.send(peer, Message::Request { to, piece: number });
        self.arm_stall(peer);
    }

    /// Whether a swarm may have one more than so many requests in flight inside the zone, those at a lone seeder aside. What is asked
    /// of all peers together beyond what they send at once waits in their queues or is refused: swarms share it.
    fn may_be_in_flight(&self, swarm: &Swarm, in_flight: usize) -> bool {
        debug_assert_eq!(self.fetching, self.swarms.values().filter(|swarm| swarm.is_fetching()).count());
        let in_flight = u32::try_from(in_flight).unwrap_or(u32::MAX);
        let sharing = self.fetching.saturating_add(usize::from(!swarm.is_fetching()));
        let sharing = u32::try_from(sharing).unwrap_or(u32::MAX);
        // A pipeline as long as a new peer's comes with each.
        let more = self.config.pipeline_pieces_start.saturating_mul(sharing.saturating_sub(1));
        let spread = self.config.pipeline_pieces_spread.saturating_add(more);
        let share = spread.checked_div(sharing).unwrap_or_default();
        // Windows are looked at only where they matter.
        let Some(beyond) = in_flight.checked_sub(share) else { return true };
        let longest = || {
            let window = |peer| self.peers.get(peer).map_or(0, |known| known.flow.window);
            swarm.members.keys().map(window).max().unwrap_or(0)
        };
        let window_max = swarm.window_max.get().unwrap_or_else(longest);
        debug_assert_eq!(window_max, longest());
        swarm.window_max.set(Some(window_max));
        window_max > beyond
    }

    /// The window of a peer has changed.
    pub(super) fn window_changed(&self, peer: PeerId) {
        let Some(known) = self.peers.get(&peer) else { return };
        for swarm in known.channels.values().filter_map(|digest| self.swarms.get(digest)) {
            swarm.window_max.set(None);
        }
    }

    fn link_has_room(&self, zone: &Zone, bytes: u32) -> bool {
        self.links.get(zone).is_none_or(|link| link.has_room(&self.config, bytes))
    }

    /// A request that was taken out of its member ends without payload. The piece is wanted again unless somebody
    /// else was asked for it too.
    pub(super) fn request_ended(
        &mut self,
        digest: Digest,
        peer: PeerId,
        channel: Channel,
        number: u32,
        outstanding: &Outstanding,
    ) {
        let bytes = outstanding.bytes;
        if let Some(link) = outstanding.link.as_ref().and_then(|zone| self.links.get_mut(zone)) {
            link.settled(bytes);
        }
        if let Some(known) = self.peers.get_mut(&peer) {
            known.flow.settled(bytes);
            if !known.dropped {
                self.out.push(Effect::Unexpect { peer, channel, piece: number });
            }
        }
        self.release(bytes);
        let Some(blob) = self.swarms.get_mut(&digest).and_then(|swarm| swarm.blob.as_mut()) else { return };
        let Some(Pending::Requested(asked)) = blob.pending.get_mut(number) else { return };
        asked.retain(|other| *other != peer);
        if asked.is_empty() {
            blob.pending.remove(number);
            if !blob.has(number) {
                blob.picker.want(number, &mut self.random);
            }
        }
    }

    /// Gives buffer room back.
    fn release(&mut self, bytes: u32) {
        self.buffered_bytes = self.buffered_bytes.saturating_sub(bytes.into());
    }

    /// Lets the swarms that waited for buffer room go on, in turn from the one after the last that did.
    pub(super) fn feed_hungry(&mut self) {
        if self.hungry.is_empty() {
            return;
        }
        let mut waiting = std::mem::take(&mut self.hungry);
        let mut later = match self.fed {
            Some(last) => waiting.split_off(&last),
            None => BTreeMap::new(),
        };
        // `last` itself comes at the very end.
        let last = self.fed.and_then(|last| later.remove_entry(&last));
        for (digest, bytes) in later.into_iter().chain(waiting).chain(last) {
            if self.buffered_bytes.saturating_add(bytes.into()) > self.config.buffer_bytes_max {
                self.hungry.insert(digest, bytes);
            } else {
                self.fed = Some(digest);
                self.fill_swarm(digest);
            }
        }
    }

    /// Takes a request back from every peer asked for a piece but `keep`.
    fn withdraw_others(&mut self, digest: Digest, number: u32, keep: Option<PeerId>) {
        let Some(swarm) = self.swarms.get(&digest) else { return };
        let asked: Vec<PeerId> = swarm
            .members
            .iter()
            .filter(|(peer, member)| Some(**peer) != keep && member.outstanding.contains(number))
            .map(|(peer, _)| *peer)
            .collect();
        for peer in asked {
            self.withdraw(digest, peer, number);
        }
    }

    /// Takes a request out of the member that was asked.
    fn answered(&mut self, digest: Digest, peer: &PeerId, number: u32) -> Option<(&mut Member, Outstanding)> {
        let swarm = self.swarms.get_mut(&digest)?;
        let fetching = swarm.is_fetching();
        let outstanding = swarm.answered(peer, number)?;
        self.fetching = self.fetching.saturating_sub(usize::from(fetching && !swarm.is_fetching()));
        Some((swarm.members.get_mut(peer)?, outstanding))
    }

    pub(super) fn withdraw(&mut self, digest: Digest, peer: PeerId, number: u32) {
        let Some((member, outstanding)) = self.answered(digest, &peer, number) else { return };
        let (channel, to) = (member.our_channel, member.their_channel);
        if let Some(to) = to {
            self.out.send(peer, Message::Cancel { to, piece: number });
        }
        self.request_ended(digest, peer, channel, number, &outstanding);
    }

    /// Takes from a stalled peer what others have too. What only it has stays asked for: slow is better than never.
    pub(super) fn move_requests(&mut self, digest: Digest, peer: PeerId) {
        let Some(swarm) = self.swarms.get(&digest) else { return };
        let (Some(blob), Some(member)) = (&swarm.blob, swarm.members.get(&peer)) else { return };
        let elsewhere = |number: u32| {
            swarm.in_backend
                || swarm.members.iter().any(|(id, other)| {
                    *id != peer
                        && other.is_joined()
                        && self.peers.get(id).is_some_and(|known| !known.flow.stalled)
                        && blob
                            .layout
                            .piece(number)
                            .zip(other.pieces.as_ref())
                            .is_some_and(|(piece, pieces)| pieces.contains(piece))
                })
        };
        let moving: Vec<u32> =
            member.outstanding.iter().map(|(number, _)| number).filter(|number| elsewhere(*number)).collect();
        let pieces: Vec<PieceIndex> = moving.iter().filter_map(|number| blob.layout.piece(*number)).collect();
        for number in moving {
            self.withdraw(digest, peer, number);
        }
        for piece in pieces {
            self.out.report(Event::RequestTimedOut { digest, piece, peer });
        }
        self.fill_swarm(digest);
    }

    pub(super) fn refused(
        &mut self,
        digest: Digest,
        peer: PeerId,
        number: u32,
        peers: Vec<PeerHint>,
        again_millis: u32,
    ) {
        let (now, retry) = (self.now, self.config.busy_retry);
        let jitter = self.random.jitter();
        let again = Duration::from_millis(again_millis.into()).min(FULL_MAX).mul_f64(jitter);
        // A lone seeder has what nobody else has, and one far away what the zone lacks: those are asked for other pieces.
        let elsewhere =
            self.swarms.get(&digest).is_some_and(|swarm| !swarm.lone_seeder() && !swarm.spans_zones());
        let Some((member, outstanding)) = self.answered(digest, &peer, number) else { return };
        let channel = member.our_channel;
        let pause = member.refused.get(&number).map_or(retry, |before| {
            before.pause.saturating_mul(2).min(retry.saturating_mul(REFUSAL_FACTOR_MAX))
        });
        let full = !again.is_zero();
        if full {
            member.full_until = now + again;
        } else {
            member.refusals = member.refusals.saturating_add(1);
            if let Some(doublings) = member.refusals.checked_sub(REFUSALS_FREE).filter(|_| elsewhere) {
                let rest = REST_MIN.saturating_mul(1 << doublings.min(REST_DOUBLINGS_MAX));
                member.full_until = member.full_until.max(now + rest.mul_f64(jitter));
            }
        }
        if member.refused.len() >= REFUSALS_MAX {
            member.refused.retain(|_, refusal| refusal.until > now);
        }
        if !full && member.refused.len() < REFUSALS_MAX {
            member.refused.insert(number, Refusal { until: now + pause, pause });
        }
        if let Some(known) = self.peers.get_mut(&peer) {
            known.flow.revive(now);
            let window = known.flow.window;
            if full {
                known.flow.refused();
            }
            if known.flow.window != window {
                self.window_changed(peer);
            }
        }
        self.request_ended(digest, peer, channel, number, &outstanding);
        let next = if full { again } else { pause };
        self.timers.set_earlier(Timer::Fill(digest), now + next.max(TICK_MIN));
        if !peers.is_empty() {
            self.peers_found(digest, None, peers);
        }
        self.fill_member(digest, peer);
    }

    pub(super) fn piece_progress(&mut self, peer: PeerId, channel: Channel, number: u32, bytes: u32) {
        let now = self.now;
        let Some(digest) = self.digest_of(&peer, channel) else { return };
        let outstanding =
            self.member_mut(digest, &peer).and_then(|member| member.outstanding.get_mut(number)).map(|o| {
                let first = (o.arrived_bytes == 0).then(|| now.saturating_since(o.at));
                let fresh = bytes.min(o.bytes.saturating_sub(o.arrived_bytes));
                o.arrived_bytes = o.arrived_bytes.saturating_add(fresh);
                (first, fresh, o.link.clone())
            });
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let was_stalled = known.flow.stalled;
        match outstanding {
            Some((first, fresh, link)) => {
                known.flow.progressed(now, fresh, first);
                if let Some(link) = link.and_then(|zone| self.links.get_mut(&zone)) {
                    link.progressed(now, fresh, first);
                }
            }
            None => known.flow.revive(now),
        }
        if was_stalled {
            self.arm_stall(peer);
            self.fill_member(digest, peer);
        }
    }

    pub(super) fn piece_arrived(&mut self, peer: PeerId, channel: Channel, number: u32, buffer: BufferId) {
        let now = self.now;
        let found = self.digest_of(&peer, channel).and_then(|digest| {
            let (member, outstanding) = self.answered(digest, &peer, number)?;
            member.refusals = 0;
            Some((digest, outstanding))
        });
        let Some((digest, outstanding)) = found else {
            // It crossed our cancel.
            return self.out.push(Effect::DropBuffer { buffer });
        };
        let Outstanding { at, bytes, arrived_bytes, link } = outstanding;
        let Some(blob) = self.swarms.get_mut(&digest).and_then(|swarm| swarm.blob.as_mut()) else { return };
        let Some(piece) = blob.layout.piece(number) else { return };
        let piece_bytes = blob.layout.piece_bytes();
        let before = blob.pending.insert(number, Pending::Verifying { from: peer, since: at });
        let asked_twice = matches!(before, Some(Pending::Requested(asked)) if asked.len() > 1);
        let first = (arrived_bytes == 0).then(|| now.saturating_since(at));
        let window = |own: &Self| own.peers.get(&peer).map(|known| known.flow.window);
        let window_before = window(self);
        let flow = self.peers.get_mut(&peer).map(|known| &mut known.flow);
        let link_flow = link.as_ref().and_then(|zone| self.links.get_mut(zone));
        for flow in flow.into_iter().chain(link_flow) {
            flow.progressed(now, bytes.saturating_sub(arrived_bytes), first);
            flow.settled(bytes);
            flow.piece_arrived(&self.config, now, piece_bytes);
        }
        if window(self) != window_before {
            self.window_changed(peer);
        }
        self.hold(digest, number, bytes);
        self.out.push(Effect::VerifyPiece { digest, piece, buffer, from: peer });
        if asked_twice {
            self.withdraw_others(digest, number, Some(peer));
        }
        self.refill(peer, channel, link.is_some());
        self.check_starved(digest);
    }

    /// Gives a peer's free room to the swarms shared with it, in turn from the one after `channel` on, so that a
    /// blob that began first does not keep the others waiting until it is done. Room on a link is room for any peer
    /// beyond it, and is not given to the same peer again: it may be the slow one.
    fn refill(&mut self, peer: PeerId, channel: Channel, link: bool) {
        let Some(known) = self.peers.get(&peer) else { return };
        let mut turn: Vec<Digest> = known.channels.around(channel).copied().collect();
        if link {
            return turn.into_iter().for_each(|digest| self.fill_swarm(digest));
        }
        while !turn.is_empty() {
            turn.retain(|digest| self.may_fill(*digest) && self.request_one(*digest, peer));
        }
    }

    /// Notes that bytes already counted stay in the buffer until the piece's fate is known.
    fn hold(&mut self, digest: Digest, number: u32, bytes: u32) {
        if let Some(before) = self.verifying.insert((digest, number), bytes) {
            self.release(before);
        }
    }

    fn unhold(&mut self, digest: Digest, number: u32) {
        if let Some(bytes) = self.verifying.swap_remove(&(digest, number)) {
            self.release(bytes);
        }
    }

    pub(super) fn piece_verified(&mut self, digest: Digest, piece: PieceIndex) {
        let (now, number) = (self.now, piece.get());
        self.unhold(digest, number);
        let Some(swarm) = self.swarms.get_mut(&digest) else { return };
        let Some(blob) = &mut swarm.blob else { return };
        if piece.get() >= blob.layout.piece_count() || !blob.have.insert(piece) {
            return;
        }
        let pending = blob.pending.remove(number);
        blob.picker.unwant(number);
        blob.zone_progress = now;
        blob.advance_front();
        swarm.starved = None;
        swarm.backend_failures = 0;
        for member in swarm.members.values_mut() {
            if !member.refused.is_empty() {
                member.refused.remove(&number);
            }
            if member.pieces.as_ref().is_some_and(|pieces| pieces.contains(piece)) {
                member.interesting = member.interesting.saturating_sub(1);
            }
        }
        let (bytes, have) = (blob.layout.len_of(piece), blob.have.count());
        // A piece that is being verified was taken back from all others when it arrived.
        let asked = matches!(pending, Some(Pending::Requested(_)));
        let (from, since) = match pending {
            Some(Pending::Verifying { from, since }) => (Some(from), since),
            Some(Pending::Backend { since }) => (None, since),
            Some(Pending::Requested(_)) | None => (None, now),
        };
        let zone = from.and_then(|peer| self.peers.get(&peer)).map(|known| known.zone.clone());
        let latency = now.saturating_since(since);
        let provide = !std::mem::replace(&mut swarm.provided, true);
        self.out.report(Event::PieceReceived { digest, piece, bytes, from, zone, latency });
        if provide {
            self.out.push(Effect::Provide { digest });
        }
        if asked {
            self.withdraw_others(digest, number, None);
        }
        self.note_have(digest, number);
        self.advance_readers(digest);
        self.finish_if_whole(digest);
        if have.is_multiple_of(BEHIND_CHECK_PIECES) {
            self.dial(digest);
        }
        self.judge(digest);
        self.fetch_from_backend(digest);
        self.check_starved(digest);
    }

    /// A piece that did not come to be is wanted again.
    fn piece_lost(&mut self, digest: Digest, piece: PieceIndex) {
        let number = piece.get();
        self.unhold(digest, number);
        let Some(blob) = self.swarms.get_mut(&digest).and_then(|swarm| swarm.blob.as_mut()) else { return };
        if matches!(blob.pending.get(number), Some(Pending::Verifying { .. } | Pending::Backend { .. })) {
            blob.pending.remove(number);
            if !blob.have.contains(piece) {
                blob.picker.want(number, &mut self.random);
            }
        }
    }

    pub(super) fn piece_corrupt(&mut self, digest: Digest, piece: PieceIndex, from: Option<PeerId>) {
        let Some(peer) = from else { return self.backend_failed(digest, piece) };
        self.piece_lost(digest, piece);
        let ban = Some(self.config.ban);
        self.drop_peer(peer, DropReason::CorruptPiece, ban);
        self.fill_swarm(digest);
    }

    pub(super) fn write_failed(&mut self, digest: Digest, piece: PieceIndex, why: String) {
        self.piece_lost(digest, piece);
        let why = ReadError::Store(why);
        self.out.report(Event::BlobFailed { digest, why: why.clone() });
        self.fail_readers(digest, &why);
        // What was asked for could not be written either; what is there stays in the store.
        self.end_swarm(digest, None);
    }

    pub(super) fn backend_failed(&mut self, digest: Digest, piece: PieceIndex) {
        self.piece_lost(digest, piece);
        let retry = self.now + BACKEND_PAUSE;
        let Some(swarm) = self.swarms.get_mut(&digest) else { return };
        swarm.backend_failures = swarm.backend_failures.saturating_add(1);
        swarm.backend_retry = retry;
        if swarm.backend_failures >= BACKEND_FAILURES_MAX {
            swarm.in_backend = false;
            swarm.backend_down = true;
        }
        self.timers.set_earlier(Timer::Fill(digest), retry);
        self.fill_swarm(digest);
    }

    /// Fetches what no peer has from the local backend, a few pieces at a time: readers' pieces first.
    pub(super) fn fetch_from_backend(&mut self, digest: Digest) {
        let now = self.now;
        loop {
            let Some(swarm) = self.swarms.get(&digest) else { return };
            if !swarm.in_backend {
                return;
            }
            let Some(blob) = &swarm.blob else { return };
            let running = blob.pending.values().filter(|p| matches!(p, Pending::Backend { .. })).count();
            if swarm.opening
                || now < swarm.backend_retry
                || running >= self.config.backend_fetches_max
                || !swarm.wants_payload(now, self.config.linger)
            {
                return;
            }
            let window = swarm
                .readers
                .values()
                .flat_map(|reader| reader.window(&blob.layout, self.config.reader_window_bytes))
                .find(|number| blob.picker.is_wanted(*number));
            let seeded = swarm.members.values().any(|member| member.uncounted);
            let rarest = || blob.picker.pick(|number| blob.picker.availability(number) == 0 && !seeded);
            let Some(number) = window.or_else(rarest) else { return };
            let Some(piece) = blob.layout.piece(number) else { return };
            let bytes = blob.layout.len_of(piece);
            if self.buffered_bytes.saturating_add(bytes.into()) > self.config.buffer_bytes_max {
                self.hungry.insert(digest, bytes);
                return;
            }
            if let Some(blob) = self.swarms.get_mut(&digest).and_then(|swarm| swarm.blob.as_mut()) {
                blob.picker.unwant(number);
                blob.pending.insert(number, Pending::Backend { since: now });
            }
            self.buffered_bytes = self.buffered_bytes.saturating_add(bytes.into());
            self.hold(digest, number, bytes);
            self.out.push(Effect::FetchFromBackend { digest, piece });
        }
    }
}
