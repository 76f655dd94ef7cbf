//! What becomes of requests: pieces that come, refusals, withdrawals.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_types::{PeerId, PieceIndex};

use super::Engine;
use super::connections::TICK_MIN;
use crate::io::{BufferId, DropReason, Effect, Event, ReadError};
use crate::message::{Channel, Message, PeerHint};
use crate::names::BlobName;
use crate::swarm::Pending;
use crate::swarm::member::{Member, Outstanding, Refusal};
use crate::timers::Timer;

/// Refusals remembered a peer; more come from a peer that has nothing to give, and it is asked less then.
const REFUSALS_MAX: usize = 1024;
/// Refusals in a row after which a peer is left alone for a while.
const REFUSALS_FREE: u32 = 2;
/// The same for a lone seeder, and for everybody where there are other zones. Refused one piece, this process asks for another that
/// nobody else here has; refused so many, it would learn one at a time that most are given.
const REFUSALS_FREE_LONE: u32 = 16;
/// For how long at first; it doubles with every further refusal.
const REST_MIN: Duration = Duration::from_millis(5);
const REST_DOUBLINGS_MAX: u32 = 6;
/// 40 ms: a seeder that has pieces left to give is asked again before it has sent what it has to do.
const REST_DOUBLINGS_LONE_MAX: u32 = 3;
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
    /// A request that was taken out of its member ends without payload. The piece is wanted again unless somebody
    /// else was asked for it too.
    pub(super) fn request_ended(
        &mut self,
        name: BlobName,
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
        let Some(blob) = self.swarms.get_mut(name).and_then(|swarm| swarm.blob.as_mut()) else { return };
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
        for (name, bytes) in later.into_iter().chain(waiting).chain(last) {
            if !self.buffer_has_room(bytes) {
                self.hungry.insert(name, bytes);
            } else {
                self.fed = Some(name);
                self.fill_swarm(name);
            }
        }
    }

    /// Takes a request back from every peer asked for a piece but `keep`.
    pub(super) fn withdraw_others(&mut self, name: BlobName, number: u32, keep: Option<PeerId>) {
        let Some(swarm) = self.swarms.get(name) else { return };
        let asked: Vec<PeerId> = swarm
            .members
            .iter()
            .filter(|(peer, member)| Some(**peer) != keep && member.outstanding.contains(number))
            .map(|(peer, _)| *peer)
            .collect();
        for peer in asked {
            self.withdraw(name, peer, number);
        }
    }

    /// Takes a request out of the member that was asked.
    fn answered(&mut self, name: BlobName, peer: &PeerId, number: u32) -> Option<(&mut Member, Outstanding)> {
        let swarm = self.swarms.get_mut(name)?;
        let fetching = swarm.is_fetching();
        let outstanding = swarm.answered(peer, number)?;
        self.fetching = self.fetching.saturating_sub(usize::from(fetching && !swarm.is_fetching()));
        Some((swarm.members.get_mut(peer)?, outstanding))
    }

    pub(super) fn withdraw(&mut self, name: BlobName, peer: PeerId, number: u32) {
        let Some((member, outstanding)) = self.answered(name, &peer, number) else { return };
        let (channel, to) = (member.our_channel, member.their_channel);
        if let Some(to) = to {
            self.out.send(peer, Message::Cancel { to, piece: number });
        }
        self.request_ended(name, peer, channel, number, &outstanding);
    }

    /// Takes from a stalled peer what others have too. What only it has stays asked for: slow is better than never.
    pub(super) fn move_requests(&mut self, name: BlobName, peer: PeerId) {
        let Some(swarm) = self.swarms.get(name) else { return };
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
            self.withdraw(name, peer, number);
        }
        for piece in pieces {
            self.report(name, |digest| Event::RequestTimedOut { digest, piece, peer });
        }
        self.fill_swarm(name);
    }

    pub(super) fn refused(
        &mut self,
        name: BlobName,
        peer: PeerId,
        number: u32,
        peers: Vec<PeerHint>,
        again_millis: u32,
    ) {
        let (now, retry) = (self.now, self.config.busy_retry);
        let jitter = self.random.jitter();
        let again = Duration::from_millis(again_millis.into()).min(FULL_MAX).mul_f64(jitter);
        // A lone seeder has what nobody else has, and one far away what the zone lacks: those are asked for other pieces first.
        let elsewhere =
            self.swarms.get(name).is_some_and(|swarm| !swarm.lone_seeder() && !swarm.spans_zones());
        let (free, doublings_max) = if elsewhere {
            (REFUSALS_FREE, REST_DOUBLINGS_MAX)
        } else {
            (REFUSALS_FREE_LONE, REST_DOUBLINGS_LONE_MAX)
        };
        if let Some(swarm) = self.swarms.get_mut(name)
            && let (Some(blob), Some(member)) = (&swarm.blob, swarm.members.get_mut(&peer))
        {
            member.see_refusals_through(|number| blob.has(number));
        }
        let Some((member, outstanding)) = self.answered(name, &peer, number) else { return };
        let channel = member.our_channel;
        let pause = member.refused.get(number).map_or(retry, |before| {
            before.pause.saturating_mul(2).min(retry.saturating_mul(REFUSAL_FACTOR_MAX))
        });
        let full = !again.is_zero();
        if full {
            member.full_until = now + again;
        } else {
            member.refusals = member.refusals.saturating_add(1);
            if let Some(doublings) = member.refusals.checked_sub(free) {
                let rest = REST_MIN.saturating_mul(1 << doublings.min(doublings_max));
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
            let after = known.flow.window;
            self.window_changed(peer, window, after);
        }
        self.request_ended(name, peer, channel, number, &outstanding);
        let next = if full { again } else { pause };
        self.timers.set_earlier(Timer::Fill(name), now + next.max(TICK_MIN));
        if !peers.is_empty() {
            self.peers_found(name, None, peers);
        }
        self.fill_member(name, peer);
    }

    pub(super) fn piece_progress(
        &mut self,
        peer: PeerId,
        channel: Channel,
        number: u32,
        bytes: u32,
        since_first: Duration,
    ) {
        let now = self.now;
        let Some(name) = self.blob_on(&peer, channel) else { return };
        let outstanding =
            self.member_mut(name, &peer).and_then(|member| member.outstanding.get_mut(number)).map(|o| {
                let first = (o.arrived_bytes == 0).then(|| o.waited(now, since_first));
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
            self.fill_member(name, peer);
        }
    }

    pub(super) fn piece_arrived(
        &mut self,
        peer: PeerId,
        channel: Channel,
        number: u32,
        buffer: BufferId,
        since_first: Duration,
    ) {
        let now = self.now;
        let found = self.blob_on(&peer, channel).and_then(|name| {
            let (member, outstanding) = self.answered(name, &peer, number)?;
            member.refusals = 0;
            Some((name, outstanding))
        });
        let Some((name, outstanding)) = found else {
            // It crossed our cancel.
            return self.out.push(Effect::DropBuffer { buffer });
        };
        let waited = outstanding.waited(now, since_first);
        let Outstanding { at, bytes, arrived_bytes, link } = outstanding;
        let Some(blob) = self.swarms.get_mut(name).and_then(|swarm| swarm.blob.as_mut()) else { return };
        let Some(piece) = blob.layout.piece(number) else { return };
        let piece_bytes = blob.layout.piece_bytes();
        let before = blob.pending.insert(number, Pending::Verifying { from: peer, since: at });
        let asked_twice = matches!(before, Some(Pending::Requested(asked)) if asked.len() > 1);
        let first = (arrived_bytes == 0).then_some(waited);
        let window = |own: &Self| own.peers.get(&peer).map_or(0, |known| known.flow.window);
        let window_before = window(self);
        let flow = self.peers.get_mut(&peer).map(|known| &mut known.flow);
        let link_flow = link.as_ref().and_then(|zone| self.links.get_mut(zone));
        for flow in flow.into_iter().chain(link_flow) {
            flow.progressed(now, bytes.saturating_sub(arrived_bytes), first);
            flow.settled(bytes);
            flow.piece_arrived(&self.config, now, piece_bytes);
        }
        self.window_changed(peer, window_before, window(self));
        self.hold(name, number, bytes);
        self.wish(name, |digest| Effect::VerifyPiece { digest, piece, buffer, from: peer });
        if asked_twice {
            self.withdraw_others(name, number, Some(peer));
        }
        self.refill(peer, channel, link.is_some());
        self.check_starved(name);
    }

    /// Gives a peer's free room to the swarms shared with it, in turn from the one after `channel` on, so that a
    /// blob that began first does not keep the others waiting until it is done. Room on a link is room for any peer
    /// beyond it, and is not given to the same peer again: it may be the slow one.
    fn refill(&mut self, peer: PeerId, channel: Channel, link: bool) {
        let Some(known) = self.peers.get(&peer) else { return };
        let mut turn: Vec<BlobName> = known.channels.around(channel).map(|shared| shared.name).collect();
        if link {
            return turn.into_iter().for_each(|name| self.fill_swarm(name));
        }
        while !turn.is_empty() {
            turn.retain(|name| self.may_fill(*name) && self.request_one(*name, peer));
        }
    }

    /// Notes that bytes already counted stay in the buffer until the piece's fate is known.
    fn hold(&mut self, name: BlobName, number: u32, bytes: u32) {
        if let Some(before) = self.verifying.insert((name, number), bytes) {
            self.release(before);
        }
    }

    fn unhold(&mut self, name: BlobName, number: u32) {
        if let Some(bytes) = self.verifying.remove((name, number)) {
            self.release(bytes);
        }
    }

    pub(super) fn piece_verified(&mut self, name: BlobName, piece: PieceIndex) {
        let (now, number) = (self.now, piece.get());
        self.unhold(name, number);
        let Some(swarm) = self.swarms.get_mut(name) else { return };
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
        self.report(name, |digest| Event::PieceReceived { digest, piece, bytes, from, zone, latency });
        if provide {
            self.wish(name, |digest| Effect::Provide { digest });
        }
        if asked {
            self.withdraw_others(name, number, None);
        }
        self.note_have(name, number);
        self.advance_readers(name);
        self.finish_if_whole(name);
        if have.is_multiple_of(BEHIND_CHECK_PIECES) {
            self.dial(name);
        }
        self.judge(name);
        self.fetch_from_backend(name);
        self.check_starved(name);
    }

    /// A piece that did not come to be is wanted again.
    fn piece_lost(&mut self, name: BlobName, piece: PieceIndex) {
        let number = piece.get();
        self.unhold(name, number);
        let Some(blob) = self.swarms.get_mut(name).and_then(|swarm| swarm.blob.as_mut()) else { return };
        if matches!(blob.pending.get(number), Some(Pending::Verifying { .. } | Pending::Backend { .. })) {
            blob.pending.remove(number);
            if !blob.have.contains(piece) {
                blob.picker.want(number, &mut self.random);
            }
        }
    }

    pub(super) fn piece_corrupt(&mut self, name: BlobName, piece: PieceIndex, from: Option<PeerId>) {
        let Some(peer) = from else { return self.backend_failed(name, piece) };
        self.piece_lost(name, piece);
        let ban = Some(self.config.ban);
        self.drop_peer(peer, DropReason::CorruptPiece, ban);
        self.fill_swarm(name);
    }

    pub(super) fn write_failed(&mut self, name: BlobName, piece: PieceIndex, why: String) {
        self.piece_lost(name, piece);
        let why = ReadError::Store(why);
        self.report(name, |digest| Event::BlobFailed { digest, why: why.clone() });
        self.fail_readers(name, &why);
        // What was asked for could not be written either; what is there stays in the store.
        self.end_swarm(name, None);
    }

    pub(super) fn backend_failed(&mut self, name: BlobName, piece: PieceIndex) {
        self.piece_lost(name, piece);
        let retry = self.now + BACKEND_PAUSE;
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        swarm.backend_failures = swarm.backend_failures.saturating_add(1);
        swarm.backend_retry = retry;
        if swarm.backend_failures >= BACKEND_FAILURES_MAX {
            swarm.in_backend = false;
            swarm.backend_down = true;
        }
        self.timers.set_earlier(Timer::Fill(name), retry);
        self.fill_swarm(name);
    }

    /// Fetches what no peer has from the local backend, a few pieces at a time: readers' pieces first.
    pub(super) fn fetch_from_backend(&mut self, name: BlobName) {
        let now = self.now;
        loop {
            let Some(swarm) = self.swarms.get(name) else { return };
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
            if !self.buffer_has_room(bytes) {
                self.hungry.insert(name, bytes);
                return;
            }
            if let Some(blob) = self.swarms.get_mut(name).and_then(|swarm| swarm.blob.as_mut()) {
                blob.picker.unwant(number);
                blob.pending.insert(number, Pending::Backend { since: now });
            }
            self.buffered_bytes = self.buffered_bytes.saturating_add(bytes.into());
            self.hold(name, number, bytes);
            self.wish(name, |digest| Effect::FetchFromBackend { digest, piece });
        }
    }
}
