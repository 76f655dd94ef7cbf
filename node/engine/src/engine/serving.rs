//! Sending pieces to peers.

use std::time::Duration;

use shoal_types::{PeerId, PieceIndex, Role, Timestamp, Zone};

use super::Engine;
use crate::io::{DropReason, Effect, Event};
use crate::message::{HAVE_RUNS_MAX, Message, PeerHint};
use crate::names::BlobName;
use crate::swarm::{Blob, Given, Swarm};
use crate::timers::Timer;
use crate::uploads::{Job, PROGRESS_STEPS};

/// Times that a first copy's receiver may take to pass it on to all others, one after the other.
const PASSING_ON_FACTOR: u32 = 2;
/// A second copy is never refused for longer.
const SPREAD_PATIENCE_MAX: Duration = Duration::from_secs(20);
/// The same for a piece that somebody says he has: it did not come from here.
const HELD_PATIENCE_MAX: Duration = Duration::from_secs(2);
/// So many of a crowd who say that they have a piece are enough, however long it takes them.
const HELD_MANY: u16 = 2;
/// Shortest time after which somebody is told to ask again, in milliseconds.
const AGAIN_MILLIS_MIN: u32 = 2;
/// Longest time after which somebody is told to ask again, in milliseconds.
const AGAIN_MILLIS_MAX: u32 = 1000;
/// Haves told at once at the start of a swarm, so that it does not wait for a batch.
const EAGER_PIECES: u32 = 16;
/// The same for other zones: each message is a packet on a link that may be narrow.
const EAGER_PIECES_FAR: u32 = 4;
/// Pieces at the beginning of a blob that go to other zones at once.
const OPENING_PIECES: u32 = 2;

impl Engine {
    pub(super) fn requested(&mut self, name: BlobName, peer: PeerId, number: u32) {
        self.note_held(name, &peer, number);
        let Some(swarm) = self.swarms.get(name) else { return };
        let Some(blob) = &swarm.blob else {
            return self.drop_peer(peer, DropReason::Protocol, None);
        };
        let Some(piece) = blob.layout.piece(number) else {
            return self.drop_peer(peer, DropReason::Protocol, None);
        };
        let Some(member) = swarm.members.get(&peer) else { return };
        let Some(to) = member.their_channel else { return };
        let count = blob.layout.piece_count();
        let steps = member
            .pieces
            .as_ref()
            .map_or(0, |pieces| u64::from(pieces.count()).saturating_mul(PROGRESS_STEPS.into()));
        let progress = u8::try_from(steps.checked_div(count.into()).unwrap_or(0)).unwrap_or(PROGRESS_STEPS);
        let first_copy = blob.complete
            && blob.given.get(&number).is_none_or(|given| given.held)
            && !blob.given_before.contains(piece);
        let same_zone = member.same_zone;
        let opened = self.opens_zone(swarm, blob, &peer, number);
        let importer = !same_zone && self.roles_of(&peer).contains(Role::Origin);
        let bytes = blob.layout.len_of(piece);
        let opens_zone = opened.is_some();
        let job = Job { name, piece, to, bytes, progress, first_copy, importer, opens_zone };
        if !blob.have.contains(piece) {
            return self
                .out
                .send(peer, Message::Busy { to, piece: number, peers: Vec::new(), again_millis: 0 });
        }
        if !opens_zone && let Some(hint) = self.first_receiver(name, peer, number) {
            return self
                .out
                .send(peer, Message::Busy { to, piece: number, peers: vec![hint], again_millis: 0 });
        }
        if self.uploads.push(&self.config, peer, same_zone, job) {
            self.note_given(name, peer, piece);
            if let (Some(zone), Some(blob)) = (opened, self.blob_mut(name)) {
                blob.given_abroad.insert((number, zone), peer);
            }
            self.serve();
        } else {
            let again = self
                .uploads
                .room_after(&self.config)
                .as_millis()
                .clamp(AGAIN_MILLIS_MIN.into(), AGAIN_MILLIS_MAX.into());
            let again_millis = u32::try_from(again).unwrap_or(AGAIN_MILLIS_MAX);
            self.out.send(peer, Message::Busy { to, piece: number, peers: Vec::new(), again_millis });
        }
    }

    /// The zone that waits for what `asker` wants: one of the first pieces, which nobody there was given yet. All readers of that
    /// zone begin with them, and whoever was given them here has its own zone to serve first.
    fn opens_zone(&self, swarm: &Swarm, blob: &Blob, asker: &PeerId, number: u32) -> Option<Zone> {
        if !blob.complete || number >= OPENING_PIECES {
            return None;
        }
        let zone = &self.peers.get(asker)?.zone;
        let takes_part = |peer: &PeerId| swarm.members.get(peer).is_some_and(|member| member.is_leecher());
        let before = blob.given_abroad.get(&(number, zone.clone()));
        let free = before.is_none_or(|before| before == asker || !takes_part(before));
        (*zone != self.zone && free).then(|| zone.clone())
    }

    /// What one of a crowd has from another source counts as given to it: several sources of one blob give the crowd a copy
    /// between them and not one each. Whoever has it gets its time to pass it on, once; where several have it by then, another one
    /// gets his.
    fn note_held(&mut self, name: BlobName, asker: &PeerId, number: u32) {
        let now = self.now;
        let Some(swarm) = self.swarms.get(name) else { return };
        let members = swarm.members.len();
        if !swarm.is_complete() || members <= self.config.peers_per_swarm_inbound_max {
            return;
        }
        let patience = self.patience(members, true);
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        let Some(blob) = &mut swarm.blob else { return };
        let Some(piece) = blob.layout.piece(number) else { return };
        let enough = match blob.given.get(&number) {
            Some(given) if !given.held || now.saturating_since(given.since) < patience => return,
            Some(_) => HELD_MANY,
            None => 1,
        };
        let near = |peer: &PeerId| swarm.members.get(peer).filter(|member| member.same_zone);
        if blob.given_before.contains(piece)
            || blob.picker.availability(number) < enough
            || near(asker).is_none()
        {
            return;
        }
        let holds = |peer: &&PeerId| {
            *peer != asker
                && near(peer).is_some_and(|member| member.is_leecher() && holds(Some(member), piece))
        };
        let skipped = self.random.below(members);
        let to = swarm.members.keys().skip(skipped).find(holds).or_else(|| swarm.members.keys().find(holds));
        if let Some(to) = to.copied() {
            blob.given.insert(number, Given { to, since: now, sent: Some(now), held: true });
        }
    }

    /// From here the piece counts as given, so that a second peer asking in the same moment is sent there. Who is of
    /// the own zone takes the place of who is not, for the zone waits for its own, and of who had it from elsewhere.
    fn note_given(&mut self, name: BlobName, peer: PeerId, piece: PieceIndex) {
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        let Some(blob) = &mut swarm.blob else { return };
        let number = piece.get();
        if !blob.complete || blob.given_before.contains(piece) {
            return;
        }
        let is_near = |peer: &PeerId| swarm.members.get(peer).is_some_and(|member| member.same_zone);
        let before = blob.given.get(&number);
        if before.is_none_or(|before| before.held || is_near(&peer) && !is_near(&before.to)) {
            blob.given.insert(number, Given { to: peer, since: self.now, sent: None, held: false });
        }
    }

    /// When this process is the only seeder and still has pieces to give that nobody else holds, or others wait for what it
    /// sends, a second copy of one can wait: whoever got the first will pass it on. Returns whom to ask instead.
    fn first_receiver(&self, name: BlobName, asker: PeerId, number: u32) -> Option<PeerHint> {
        let swarm = self.swarms.get(name)?;
        let blob = swarm.blob.as_ref()?;
        let given = blob.given.get(&number)?;
        let spread = blob.all_given() && !self.uploads.has_waiting();
        let alone = blob.complete && swarm.seeders() == 0;
        let reachable = swarm.members.get(&given.to).is_some_and(|member| member.is_leecher());
        if given.to == asker || spread || !alone || !reachable {
            return None;
        }
        // What crosses a link may take long: the own zone does not wait for that.
        let is_near = |peer: &PeerId| swarm.members.get(peer).is_some_and(|member| member.same_zone);
        let slow = || self.now.saturating_since(given.since) >= self.uploads.slot_hold(&self.config);
        if is_near(&asker) && !is_near(&given.to) && given.sent.is_none() && slow() {
            return None;
        }
        // Until it is sent there is nothing to be impatient about.
        let patience = self.patience(swarm.members.len(), given.held);
        if given.sent.is_some_and(|sent| self.now.saturating_since(sent) >= patience) {
            return None;
        }
        // Introduced or not, the asker must not count on this process: without an address it still has its others.
        self.hint_of(&given.to, false).or_else(|| {
            let zone = self.peers.get(&given.to)?.zone.clone();
            Some(PeerHint { peer: given.to, zone, endpoints: Vec::new(), complete: false })
        })
    }

    /// How long whoever has a piece may take to pass it on: to one member after the other. `held` says that it did not come from here.
    fn patience(&self, members: usize, held: bool) -> Duration {
        let most = if held { HELD_PATIENCE_MAX } else { SPREAD_PATIENCE_MAX };
        let members = u32::try_from(members).unwrap_or(u32::MAX);
        let passing_on = self.uploads.send_mean().saturating_mul(members).saturating_mul(PASSING_ON_FACTOR);
        self.config.spread_patience.max(passing_on).min(most)
    }

    pub(super) fn cancelled(&mut self, name: BlobName, peer: PeerId, number: u32) {
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        let Some(blob) = &mut swarm.blob else { return };
        let Some(piece) = blob.layout.piece(number) else {
            return self.drop_peer(peer, DropReason::Protocol, None);
        };
        if self.uploads.cancel(&peer, name, piece) {
            self.wish(name, |digest| Effect::CancelSend { peer, digest, piece });
        } else if blob.given.get(&number).is_some_and(|given| given.to == peer)
            && !holds(swarm.members.get(&peer), piece)
        {
            blob.given.remove(&number);
        }
    }

    pub(super) fn piece_sent(&mut self, peer: PeerId, name: BlobName, piece: PieceIndex, bytes: u32) {
        if self.uploads.sent(self.now, &peer, name, piece, bytes > 0) {
            let number = piece.get();
            if let Some(blob) = self.swarms.get_mut(name).and_then(|swarm| swarm.blob.as_mut()) {
                let first = blob.given.get_mut(&number).filter(|given| given.to == peer);
                match (first, bytes > 0) {
                    (Some(given), true) => given.sent = Some(self.now),
                    (Some(_), false) => drop(blob.given.remove(&number)),
                    (None, true) if !blob.complete => drop(blob.given_before.insert(piece)),
                    (None, _) => {}
                }
            }
            if bytes > 0 {
                self.report(name, |digest| Event::PieceServed { digest, piece, bytes, to: peer });
                self.invite(name);
            }
        }
        self.serve();
    }

    /// Begins as many sends as slots and budgets allow.
    pub(super) fn serve(&mut self) {
        while self.uploads.has_waiting() {
            if let Some(later) = self.rate_out.wait(self.now) {
                return self.timers.set(Timer::Uploads, later);
            }
            let link = self.zone_rate_out.wait(self.now);
            let allowed = |same_zone: bool| same_zone || link.is_none();
            let Some((peer, job)) = self.uploads.next(&self.config, self.now, allowed) else {
                // A slot or the link will be free again; a hung send frees its slot by time, and the wire its next piece's.
                let free = self.uploads.free_at(&self.config, self.now);
                let at = link.map_or(free, |link| link.min(free));
                return self
                    .timers
                    .set_earlier(Timer::Uploads, at.max(self.now + super::connections::TICK_MIN));
            };
            self.rate_out.take(job.bytes);
            if self.peers.get(&peer).is_some_and(|known| known.zone != self.zone) {
                self.zone_rate_out.take(job.bytes);
            }
            let Job { name, piece, to, .. } = job;
            self.wish(name, |digest| Effect::SendPiece { peer, to, digest, piece });
        }
        self.timers.cancel(Timer::Uploads);
    }

    /// Notes a piece to be told, and tells at once what speeds up the start or fills a batch. Other zones hear of it in
    /// larger batches: their links are scarce, and they import a piece once.
    pub(super) fn note_have(&mut self, name: BlobName, number: u32) {
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        // Whoever comes from elsewhere later is told of all there is then.
        let abroad = swarm.has_foreign_members();
        swarm.news.add(number, abroad);
        let early =
            swarm.blob.as_ref().is_some_and(|blob| blob.have.count() <= EAGER_PIECES || blob.have.is_full());
        let full = swarm.news.fresh(true) >= self.config.have_batch_max;
        if abroad {
            self.timers.set_earlier(Timer::FarHaves(name), self.now + self.config.have_delay_far);
        }
        if early || full {
            self.flush_haves(name);
        } else {
            self.timers.set_earlier(Timer::Haves(name), self.now + self.config.have_delay);
        }
    }

    /// Tells the own zone all haves gathered; other zones only of the first pieces, the last, and a batch that is full.
    pub(super) fn flush_haves(&mut self, name: BlobName) {
        self.timers.cancel(Timer::Haves(name));
        self.tell_haves(name, true);
        let Some(swarm) = self.swarms.get(name) else { return };
        let over = swarm.is_complete()
            || swarm
                .blob
                .as_ref()
                .is_some_and(|blob| blob.have.count() <= EAGER_PIECES_FAR || blob.have.is_full())
            || swarm.news.fresh(false) >= self.config.have_batch_max;
        if over {
            self.flush_far_haves(name);
        }
    }

    pub(super) fn flush_far_haves(&mut self, name: BlobName) {
        self.timers.cancel(Timer::FarHaves(name));
        self.tell_haves(name, false);
    }

    fn tell_haves(&mut self, name: BlobName, same_zone: bool) {
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        let spans_zones = swarm.spans_zones();
        let Swarm { blob, members, news, .. } = swarm;
        let Some(blob) = blob else { return };
        let done = blob.have.is_full();
        let (config, now, out) = (&self.config, self.now, &mut self.out);
        let mut again: Option<Timestamp> = None;
        // What the last one who was told was told: most are owed the same.
        let mut told: (usize, Vec<(u32, u32)>) = (0, Vec::new());
        news.tell(same_zone, done, |place, owed, pieces, fresh| {
            let full = done || pieces.len() >= config.have_batch_max;
            let enough = pieces.len().saturating_add(config.have_enough_pieces);
            let enough = u32::try_from(enough).unwrap_or(u32::MAX);
            // In all but a few cases it is known without a look at the member that it can wait.
            if same_zone
                && !full
                && !spans_zones
                && let Some((until, spare)) = owed.waits(now, fresh)
            {
                debug_assert!(
                    members
                        .at(place)
                        .and_then(|member| member.pieces.as_ref())
                        .is_some_and(|theirs| !theirs.is_full()
                            && blob.have.count_beyond(theirs) >= enough.saturating_add(spare))
                );
                owed.spare = Some(spare);
                again = again.into_iter().chain([until]).min();
                return false;
            }
            let Some((peer, member)) = members.entry_at(place) else { return false };
            let to = member.their_channel.filter(|_| member.bitfield_sent && member.same_zone == same_zone);
            let Some(to) = to else { return false };
            // Nobody waits for news of what he has, nor one who has enough to ask for; but a seeder wants to know who has what.
            let theirs = member.pieces.as_ref();
            let held = |number: &u32| {
                blob.layout.piece(*number).zip(theirs).is_some_and(|(piece, pieces)| pieces.contains(piece))
            };
            let seeder = member.is_complete();
            let spare = theirs
                .filter(|_| !spans_zones && !seeder)
                .and_then(|theirs| blob.have.count_beyond(theirs).checked_sub(enough));
            owed.spare = spare;
            let news = pieces.get(pieces.len().saturating_sub(fresh)..).unwrap_or_default();
            if owed.until.is_none() && (seeder || !news.iter().all(held)) {
                owed.until = Some(if spare.is_some() { now + config.have_delay_enough } else { now });
            }
            if !full && owed.until.is_none_or(|until| spare.is_some() && now < until) {
                again = again.into_iter().chain(owed.until).min();
                return false;
            }
            if told.0 != pieces.len() {
                let mut sorted = pieces.to_vec();
                sorted.sort_unstable();
                told = (pieces.len(), runs_of(&sorted));
            }
            for part in told.1.chunks(HAVE_RUNS_MAX) {
                out.send(*peer, Message::Have { to, runs: part.to_vec() });
            }
            true
        });
        if let Some(at) = again {
            self.timers.set_earlier(Timer::Haves(name), at);
        }
    }
}

fn holds(member: Option<&crate::swarm::member::Member>, piece: PieceIndex) -> bool {
    member.and_then(|member| member.pieces.as_ref()).is_some_and(|pieces| pieces.contains(piece))
}

/// Sorted numbers as runs of first and count.
fn runs_of(sorted: &[u32]) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in sorted {
        match runs.last_mut() {
            Some((first, count)) if first.saturating_add(*count) == *number => {
                *count = count.saturating_add(1)
            }
            _ => runs.push((*number, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    #[test]
    fn runs() {
        assert_eq!(super::runs_of(&[0, 1, 2, 5, 7, 8]), [(0, 3), (5, 1), (7, 2)]);
        assert!(super::runs_of(&[]).is_empty());
    }
}
