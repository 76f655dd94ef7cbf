//! Finding peers, and giving up.

use std::collections::BTreeSet;
use std::time::Duration;

use shoal_types::{PeerId, Timestamp};

use super::Engine;
use super::asking::HELD_BACK_TICK;
use crate::io::{Effect, Event, LookupSource, ReadError};
use crate::message::{Absence, HINTS_MAX, Message, PeerHint};
use crate::names::BlobName;
use crate::swarm::member::Member;
use crate::swarm::search::{Candidate, Lookup, Standing, Verdict};
use crate::swarm::{Blob, Swarm};
use crate::timers::Timer;

/// How often an open search looks after those that do not answer.
const SEARCH_TICK: Duration = Duration::from_millis(100);
/// Owners of a zone that are dialled at once.
const OWNERS_AT_ONCE: usize = 2;
/// Pause until the next one is dialled while these are silent: the delay between connection attempts that RFC 8305, 5 recommends.
const OWNER_STAGGER: Duration = Duration::from_millis(250);
/// The pause between rounds doubles this many times at most.
const RETRY_DOUBLINGS_MAX: u32 = 3;

impl Engine {
    /// Starts a search unless one is under way.
    pub(super) fn search(&mut self, name: BlobName) {
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        if swarm.search.since.is_some() || swarm.opening {
            return;
        }
        swarm.search.since = Some(self.now);
        swarm.search.round = 0;
        self.search_round(name);
    }

    fn search_round(&mut self, name: BlobName) {
        let jitter = self.random.jitter();
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        let (digest, search) = (swarm.digest, &mut swarm.search);
        if search.round > 0 {
            search.forgive();
        }
        let doublings = search.round.min(RETRY_DOUBLINGS_MAX);
        let pause = self.config.search_retry.saturating_mul(1 << doublings).mul_f64(jitter);
        search.next_round = self.now + pause;
        search.round = search.round.saturating_add(1);
        for source in [LookupSource::Owners, LookupSource::Dht] {
            let lookup = search.lookup_mut(source);
            if *lookup != Lookup::Running {
                *lookup = Lookup::Running;
                self.out.push(Effect::Lookup { digest, source });
            }
        }
        self.timers.set(Timer::Search(name), self.now + SEARCH_TICK);
        self.dial(name);
    }

    pub(super) fn search_tick(&mut self, name: BlobName) {
        self.dial(name);
        self.judge(name);
        if let Some(swarm) = self.swarms.get(name)
            && swarm.search.since.is_some()
        {
            self.timers.set_earlier(Timer::Search(name), self.now + SEARCH_TICK);
        }
    }

    pub(super) fn lookup_finished(&mut self, name: BlobName, source: LookupSource) {
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        *swarm.search.lookup_mut(source) = Lookup::Ended;
        self.judge(name);
    }

    pub(super) fn peers_found(&mut self, name: BlobName, source: Option<LookupSource>, peers: Vec<PeerHint>) {
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        let owner = source == Some(LookupSource::Owners);
        for hint in peers.into_iter().take(HINTS_MAX) {
            if hint.peer == self.local {
                continue;
            }
            let near_owner =
                owner && hint.zone == self.zone && !swarm.search.near_owners.contains(&hint.peer);
            if let Some(known) = swarm.search.candidates.get_mut(&hint.peer) {
                if near_owner {
                    swarm.search.near_owners.push(hint.peer);
                }
                known.owner |= owner;
                known.heard = self.now;
                known.hint.complete |= hint.complete;
                if !hint.endpoints.is_empty() {
                    known.hint.endpoints = hint.endpoints;
                }
                continue;
            }
            if swarm.search.candidates.len() >= self.config.candidates_per_swarm_max && !evict(swarm) {
                break;
            }
            let member = swarm.members.contains_key(&hint.peer);
            let standing = if member { Standing::Asked } else { Standing::Fresh };
            let foreign = hint.zone != self.zone;
            swarm.search.foreign |= foreign;
            self.uploads.one_zone &= !foreign;
            if near_owner {
                swarm.search.near_owners.push(hint.peer);
            }
            swarm.add_candidate(Candidate::new(hint, owner, standing, self.now));
        }
        if owner {
            self.refresh_zone(name);
        }
        self.dial(name);
        self.judge(name);
    }

    /// A seeder that a crowd came to, and whose wire has room for more of it than it took in at first, asks some of those that
    /// it turned away: a few for each piece it sends, so that it sees what they do to its wire before it asks more.
    pub(super) fn invite(&mut self, name: BlobName) {
        for _ in 0..INVITATIONS {
            let Some(swarm) = self.swarms.get(name) else { return };
            let crowd = self.config.peers_per_swarm_inbound_max..self.uploads.seed_room(&self.config);
            if !swarm.is_complete() || !crowd.contains(&swarm.members.len()) {
                return;
            }
            let candidates = &swarm.search.candidates;
            let skipped = self.random.below(candidates.len().max(1));
            let turned_away = |(_, candidate): &(&PeerId, &Candidate)| {
                candidate.standing == Standing::Fresh && !candidate.hint.complete && !candidate.member
            };
            let later = candidates.iter().skip(skipped).find(turned_away);
            let Some((peer, _)) = later.or_else(|| candidates.iter().find(turned_away)) else { return };
            let peer = *peer;
            self.reach(name, peer);
        }
    }

    /// Asks candidates until the swarm has the peers it looks for.
    pub(super) fn dial(&mut self, name: BlobName) {
        let Some(swarm) = self.swarms.get(name) else { return };
        if swarm.opening
            || !(swarm.wants_payload(self.now, self.config.linger) || swarm.search.since.is_some())
        {
            return;
        }
        // A zone full of its own would import nothing: some peers elsewhere have a place beside all others.
        let mut abroad = self.foreign_wanted(swarm);
        // Nearly every introduction comes to a swarm that has all the peers it looks for.
        let sought = self.peers_sought(swarm);
        if swarm.members.len() >= sought && abroad == 0 {
            return;
        }
        let busy = swarm
            .search
            .candidates
            .values()
            .filter(|candidate| candidate.standing == Standing::Dialing)
            .count();
        let mut room = sought.saturating_sub(swarm.members.len().saturating_add(busy));
        if room == 0 && abroad == 0 {
            return;
        }
        let mut fresh: Vec<(PeerId, bool, bool)> = swarm
            .others()
            .filter(|(_, candidate)| candidate.standing == Standing::Fresh)
            .map(|(peer, candidate)| (*peer, candidate.owner, candidate.hint.zone == self.zone))
            .collect();
        // Random keeps the graph connected. Owners come first while nothing is known and last of their zone after that: a crowd
        // is served by itself. Of the others two in three are of the own zone: enough to share there, and some links to elsewhere.
        self.random.shuffle(&mut fresh);
        let unknown = swarm.blob.is_none();
        let mut keyed: Vec<(bool, bool, bool, bool, PeerId)> = Vec::with_capacity(fresh.len());
        for (peer, owner, same_zone) in fresh {
            let far = !same_zone && self.random.chance(2, 3);
            keyed.push((!(unknown && owner), far, owner, same_zone, peer));
        }
        keyed.sort_by_key(|(known, far, owner, ..)| (*known, *far, *owner));
        for (known, _, _, same_zone, peer) in keyed {
            if room == 0 && abroad == 0 {
                break;
            }
            if !known && !self.peers.contains_key(&peer) && self.awaits_fellows(name, &peer) {
                continue;
            }
            if (room > 0 || !same_zone) && self.reach(name, peer) {
                room = room.saturating_sub(1);
                abroad = abroad.saturating_sub(usize::from(!same_zone));
            }
        }
    }

    /// Whether enough other owners of the same zone were asked just now, and have not said that they lack the metainfo. All of them
    /// are more than a download needs to begin with, and each has to open a connection to everybody in a crowd first.
    fn awaits_fellows(&self, name: BlobName, owner: &PeerId) -> bool {
        let Some(swarm) = self.swarms.get(name) else { return false };
        let candidates = &swarm.search.candidates;
        let zone = candidates.get(owner).map(|candidate| &candidate.hint.zone);
        let fellows = candidates.iter().filter(|(peer, candidate)| {
            let searches = |member: &Member| member.is_joined() && member.wants_metainfo;
            let helps = match candidate.standing {
                Standing::Dialing => true,
                Standing::Asked => swarm.members.get(*peer).is_some_and(|member| !searches(member)),
                Standing::Fresh | Standing::Absent(_) | Standing::Gone => false,
            };
            candidate.owner
                && helps
                && Some(&candidate.hint.zone) == zone
                && self.now.saturating_since(candidate.tried) < OWNER_STAGGER
        });
        fellows.count() >= OWNERS_AT_ONCE
    }

    /// How many peers a swarm looks for: more when those it has are ahead of it, for then they get more than it does. A
    /// swarm that spans zones waits for its link as likely as not, and has places for peers elsewhere.
    fn peers_sought(&self, swarm: &Swarm) -> usize {
        let sought = self.config.peers_per_swarm_max;
        let most = sought.max(self.config.peers_per_swarm_behind_max);
        let Some(blob) = &swarm.blob else { return sought };
        // With as many as it could look for it looks for none either way.
        if !(sought..most).contains(&swarm.members.len()) || swarm.spans_zones() {
            return sought;
        }
        let counts = swarm.members.values().filter(|member| member.is_leecher());
        let (peers, pieces) =
            counts.filter_map(|member| member.pieces.as_ref()).fold((0u32, 0u64), |(peers, sum), pieces| {
                (peers.saturating_add(1), sum.saturating_add(pieces.count().into()))
            });
        let mean = pieces.checked_div(peers.into()).unwrap_or(0);
        let behind = mean.saturating_sub(blob.have.count().into());
        if behind > u64::from(blob.layout.piece_count()) / BEHIND_PART { most } else { sought }
    }

    /// How many more peers of other zones a swarm looks for.
    fn foreign_wanted(&self, swarm: &Swarm) -> usize {
        if !swarm.search.foreign || swarm.is_complete() {
            return 0;
        }
        let members = swarm.members.values().filter(|member| !member.same_zone).count();
        let dialing = || {
            let candidates = swarm.search.candidates.values();
            candidates
                .filter(|other| other.standing == Standing::Dialing && other.hint.zone != self.zone)
                .count()
        };
        let wanted = FOREIGN_PEERS_MIN.saturating_sub(members);
        if wanted == 0 { 0 } else { wanted.saturating_sub(dialing()) }
    }

    /// Asks a connected peer or dials it; `false` when it cannot be reached.
    fn reach(&mut self, name: BlobName, peer: PeerId) -> bool {
        if let Some(swarm) = self.swarms.get_mut(name)
            && let Some(candidate) = swarm.search.candidates.get_mut(&peer)
        {
            candidate.tried = self.now;
        }
        if self.peers.get(&peer).is_some_and(|known| !known.dropped) {
            return self.ask(name, peer);
        }
        let full = self.peers.len().saturating_add(self.dialing.len()) >= self.config.connections_max;
        let Some(swarm) = self.swarms.get_mut(name) else { return false };
        let Some(candidate) = swarm.search.candidates.get_mut(&peer) else { return false };
        if let Some(waiting) = self.dialing.get_mut(&peer) {
            waiting.insert(name);
            candidate.standing = Standing::Dialing;
            return true;
        }
        if candidate.hint.endpoints.is_empty() || full {
            swarm.search.set_standing(&peer, Standing::Gone);
            return false;
        }
        candidate.standing = Standing::Dialing;
        let endpoints = candidate.hint.endpoints.clone();
        if let Some(waiting) = self.dialing.get_or_insert_with(peer, BTreeSet::new) {
            waiting.insert(name);
        }
        self.out.push(Effect::Connect { peer, endpoints });
        true
    }

    /// Asks a connected peer to share a blob.
    pub(super) fn ask(&mut self, name: BlobName, peer: PeerId) -> bool {
        let Some(swarm) = self.swarms.get_mut(name) else { return false };
        swarm.search.set_standing(&peer, Standing::Asked);
        if swarm.members.contains_key(&peer) {
            return true;
        }
        if !self.add_member(name, peer) {
            if let Some(swarm) = self.swarms.get_mut(name) {
                swarm.search.set_standing(&peer, Standing::Gone);
            }
            return false;
        }
        self.send_join(name, peer);
        true
    }

    /// Whether an answer of `peer` that could change the outcome is still awaited.
    fn is_pending(&self, swarm: &Swarm, peer: &PeerId, owner: bool) -> bool {
        let Some(member) = swarm.members.get(peer) else { return false };
        if self.now.saturating_since(member.since) >= self.config.ask_patience {
            return false;
        }
        if !member.is_joined() {
            return true;
        }
        match (&swarm.blob, &member.pieces) {
            // It searches as we do. Only an owner's own search is worth waiting for, and owners do not wait for
            // each other: that would be a circle.
            (None, _) if member.wants_metainfo => owner && !swarm.owner,
            (_, pieces) => pieces.is_none() && !member.wants_metainfo,
        }
    }

    /// Looks whether a search has found something, or is over.
    pub(super) fn judge(&mut self, name: BlobName) {
        let Some(swarm) = self.swarms.get(name) else { return };
        let Some(since) = swarm.search.since else { return };
        if self.has_found(swarm) {
            return self.end_search(name);
        }
        let open = swarm.search.is_open(|peer, candidate| self.is_pending(swarm, peer, candidate.owner));
        let exhausted = self.now.saturating_since(since) >= self.config.search_patience;
        if open && !exhausted {
            return;
        }
        let own =
            swarm.owner.then_some(if swarm.backend_down { Absence::BackendDown } else { Absence::Unknown });
        let verdict =
            if open || swarm.blob.is_some() { Verdict::Unavailable } else { swarm.search.verdict(own) };
        let awaited = swarm.is_awaited();
        match verdict {
            Verdict::NotFound => self.give_up(name, ReadError::NotFound),
            Verdict::Unavailable if exhausted || !awaited => self.give_up(name, ReadError::Unavailable),
            Verdict::Unavailable if self.now >= swarm.search.next_round => self.search_round(name),
            Verdict::Unavailable => {
                self.timers.set_earlier(Timer::Search(name), swarm.search.next_round);
            }
        }
    }

    fn has_found(&self, swarm: &Swarm) -> bool {
        let Some(blob) = &swarm.blob else { return false };
        blob.complete
            || swarm.is_probe()
            || swarm.in_backend
            || !blob.pending.is_empty()
            || swarm.members.values().any(|member| member.has_interesting(&blob.have, 1))
            || blob.picker.wanted() == 0
    }

    pub(super) fn end_search(&mut self, name: BlobName) {
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        swarm.search.since = None;
        swarm.starved = None;
        self.timers.cancel(Timer::Search(name));
    }

    /// The search is over, and nobody has it.
    fn give_up(&mut self, name: BlobName, why: ReadError) {
        self.end_search(name);
        self.report(name, |digest| Event::BlobFailed { digest, why: why.clone() });
        self.fail_readers(name, &why);
        let pause = self.config.search_retry.saturating_mul(1 << RETRY_DOUBLINGS_MAX);
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        swarm.unread_since = None;
        swarm.search.next_round = self.now + pause;
        if swarm.blob.is_none() {
            let answer = match (swarm.owner, swarm.backend_down) {
                (true, false) => Absence::Unknown,
                (true, true) => Absence::BackendDown,
                (false, _) => Absence::NotHere,
            };
            self.end_swarm(name, Some(answer));
        }
    }

    /// A download that nobody can go on with searches, after a moment in which haves may come.
    pub(super) fn check_starved(&mut self, name: BlobName) {
        let now = self.now;
        let Some(swarm) = self.swarms.get(name) else { return };
        let idle = swarm.blob.as_ref().is_some_and(|blob| {
            !blob.complete && blob.pending.is_empty() && blob.picker.wanted() > 0 && !swarm.in_backend
        });
        let waits = idle && swarm.wants_payload(now, self.config.linger);
        let has_any =
            |blob: &Blob| swarm.members.values().any(|member| member.has_interesting(&blob.have, 1));
        let starved = waits && !swarm.blob.as_ref().is_some_and(has_any);
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        if !starved {
            swarm.starved = None;
            // Who has something has no room: other downloads have it, and however they end, they wake nobody.
            if waits {
                self.timers.set_earlier(Timer::Fill(name), now + HELD_BACK_TICK);
            }
            return;
        }
        let since = *swarm.starved.get_or_insert(now);
        let awaited = swarm.is_awaited();
        let mut due: Timestamp = since + self.config.starved_after;
        if !awaited {
            due = due.max(swarm.search.next_round);
        }
        if swarm.search.since.is_some() {
            return;
        }
        // With members there is hope for haves; without, waiting gains nothing.
        if due <= now || (awaited && swarm.members.is_empty()) {
            self.search(name);
        } else {
            self.timers.set_earlier(Timer::Fill(name), due);
        }
    }

    /// Some who take part in a swarm or would like to, for introducing them: those of the asker's zone first, otherwise
    /// random.
    pub(super) fn hints_for(&mut self, name: BlobName, peer: PeerId) -> Vec<PeerHint> {
        let zone = self.peers.get(&peer).map(|known| &known.zone);
        let own_zone = zone == Some(&self.zone);
        let Some(swarm) = self.swarms.get(name) else { return Vec::new() };
        let mut known: Vec<(bool, PeerId)> = Vec::new();
        for (id, member) in swarm.members.iter() {
            if *id != peer && member.is_joined() && !member.probe {
                let far = if own_zone {
                    !member.same_zone
                } else {
                    member.same_zone || self.peers.get(id).map(|other| &other.zone) != zone
                };
                known.push((far, *id));
            }
        }
        for (id, candidate) in swarm.others() {
            let useless = matches!(
                candidate.standing,
                Standing::Absent(Absence::NotHere | Absence::Unknown) | Standing::Gone
            );
            let hint = &candidate.hint;
            if *id != peer && !useless && !hint.endpoints.is_empty() {
                known.push((Some(&hint.zone) != zone, *id));
            }
        }
        self.random.shuffle(&mut known);
        // A few of elsewhere are among them, or nobody would ever hear of other zones.
        let far = known.iter().filter(|(far, _)| *far).count().min(HINTS_FOREIGN_MAX);
        known.sort_by_key(|(far, _)| *far);
        if known.len() > HINTS_SENT_MAX {
            known.rotate_right(far);
        }
        let hint = |id: &PeerId| match swarm.members.get(id) {
            Some(member) => self.hint_of(id, member.is_complete()),
            None => swarm.search.candidates.get(id).map(|candidate| candidate.hint.clone()),
        };
        known.iter().filter_map(|(_, id)| hint(id)).take(HINTS_SENT_MAX).collect()
    }

    /// Keeps a peer in mind that was refused for want of room: it looks for peers as others do, so that it is the
    /// one to name to the next who comes. Naming only those inside sends a whole crowd to the same few full peers.
    pub(super) fn remember(&mut self, name: BlobName, peer: PeerId) {
        let Some(hint) = self.hint_of(&peer, false) else { return };
        let (now, most) = (self.now, self.config.candidates_per_swarm_max);
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        // A search that is open waits for everybody who was not asked yet; those who ask would make it wait in vain.
        if swarm.search.since.is_some() {
            return;
        }
        if let Some(known) = swarm.search.candidates.get_mut(&peer) {
            known.heard = now;
            return;
        }
        if swarm.search.candidates.len() >= most && !evict(swarm) && !evict_oldest(swarm) {
            return;
        }
        swarm.add_candidate(Candidate::new(hint, false, Standing::Fresh, now));
    }

    /// Tells some members of one that has just joined: who came first would otherwise never hear of the others.
    pub(super) fn introduce(&mut self, name: BlobName, newcomer: PeerId) {
        let Some(hint) = self.hint_of(&newcomer, false) else { return };
        let Some(swarm) = self.swarms.get(name) else { return };
        let zone_of = |peer| self.peers.get(peer).map(|known| &known.zone);
        let mut others: Vec<(bool, PeerId)> = swarm
            .members
            .iter()
            .filter(|(peer, member)| **peer != newcomer && member.is_leecher())
            .map(|(peer, _)| (zone_of(peer) != Some(&hint.zone), *peer))
            .collect();
        self.random.shuffle(&mut others);
        others.sort_by_key(|(far, _)| *far);
        others.truncate(INTRODUCTIONS_MAX);
        for (_, peer) in others {
            let Some(to) = self.their_channel(name, &peer) else { continue };
            self.out.send(peer, Message::Peers { to, peers: vec![hint.clone()] });
        }
    }
}

/// Peers named in one answer at most.
const HINTS_SENT_MAX: usize = 16;
/// Of these, peers of other zones than the asker's at most, while there are enough of its own.
const HINTS_FOREIGN_MAX: usize = 4;
/// Peers of other zones a swarm looks for even when it has all the peers it wants.
const FOREIGN_PEERS_MIN: usize = 2;
/// Peers that a seeder with room asks for each piece it sent.
const INVITATIONS: usize = 2;
/// A swarm is behind its peers when it lacks this part of the blob that they have on average.
const BEHIND_PART: u64 = 32;
/// Members told of a newcomer at most.
const INTRODUCTIONS_MAX: usize = 6;

/// Makes room among the candidates: whoever was of no use, longest unheard first.
fn evict(swarm: &mut Swarm) -> bool {
    let useless =
        |(_, candidate): &(&PeerId, &Candidate)| !candidate.owner && candidate.standing.is_useless();
    if swarm.search.all_useful {
        debug_assert!(!swarm.others().any(|other| useless(&other)));
        return false;
    }
    let victim = swarm
        .others()
        .filter(useless)
        .min_by_key(|(peer, candidate)| (candidate.heard, **peer))
        .map(|(peer, _)| *peer);
    swarm.search.all_useful = victim.is_none();
    victim.is_some_and(|peer| swarm.search.candidates.swap_remove(&peer).is_some())
}

/// Makes room for somebody who was heard of just now.
fn evict_oldest(swarm: &mut Swarm) -> bool {
    let victim = swarm
        .search
        .candidates
        .iter()
        .filter(|(_, candidate)| !candidate.owner && candidate.standing == Standing::Fresh)
        .min_by_key(|(peer, candidate)| (candidate.heard, **peer))
        .map(|(peer, _)| *peer);
    victim.is_some_and(|peer| swarm.search.candidates.swap_remove(&peer).is_some())
}
