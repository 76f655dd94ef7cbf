//! Whom to serve next.

mod active;

use std::collections::VecDeque;
use std::time::Duration;

use shoal_types::{PeerId, PieceIndex, Timestamp};

use crate::config::EngineConfig;
use crate::keyed::{Map, Set, Sorted};
use crate::message::Channel;
use crate::names::BlobName;
use crate::prefetch::prefetch;
use active::{Active, Sending};

/// One grant in this many goes to whoever was served least, whatever its zone and progress: neither other zones nor those who are
/// ahead of a stream of newcomers are ever starved.
const FAIR_TURN: u32 = 4;
/// Steps in which peers' progress is compared. Peers within a step take turns by what they were served.
pub(crate) const PROGRESS_STEPS: u8 = 50;
/// Who has less of the blob is a beginner: a 25th.
const BEGINNERS_STEPS: u8 = 2;
/// Weight of a new sample in the mean time of a send: 1/8, as TCP's smoothed round trip (RFC 6298).
const GAIN: f64 = 0.125;
/// A send that takes so many times the mean hangs.
const HANGS_FACTOR: u32 = 4;
/// No send hangs before this. Before a send has ended, the first ones are taken to need so long.
const SLOT_HOLD_MIN: Duration = Duration::from_millis(50);
/// No send holds others back for longer than this.
const SLOT_HOLD_MAX: Duration = Duration::from_secs(1);
/// Sends that hang may hold at most this many times the slots.
const HUNG_FACTOR: usize = 4;
/// Sends begin so many times faster than the wire was seen to carry them: what it can carry is found out by trying.
const PACE_FACTOR: f64 = 1.3;
/// Part of the difference by which the wire's rate falls with every send that was slower.
const RATE_DECAY: f64 = 1.0 / 64.0;

/// Cache lines of those for whom something waits that are prefetched.
const READY_LINES: usize = 8;

/// A piece a peer waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) name: BlobName,
    pub(crate) piece: PieceIndex,
    pub(crate) to: Channel,
    pub(crate) bytes: u32,
    /// How much of the blob the peer has, in steps of [`PROGRESS_STEPS`].
    pub(crate) progress: u8,
    /// Nobody else is known to have it.
    pub(crate) first_copy: bool,
    /// The peer imports for another zone: a whole zone waits for it.
    pub(crate) importer: bool,
    /// All of another zone waits for this piece to begin with: it goes at once, whatever else is being sent.
    pub(crate) opens_zone: bool,
}

impl Job {
    fn is_for_zone(&self) -> bool {
        self.importer || self.opens_zone
    }
}

#[derive(Debug, Default)]
struct Queue {
    same_zone: bool,
    waiting: VecDeque<Job>,
    active: Sorted<Sending, (BlobName, PieceIndex), 1>,
    served_bytes: u64,
}

/// What decides who of those for whom something waits is served next: kept beside the peers, because all are looked at for each send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Next {
    same_zone: bool,
    active: usize,
    served_bytes: u64,
    progress: u8,
    for_zone: bool,
    opens_zone: bool,
}

/// All uploads of the process.
#[derive(Debug, Default)]
// In the order of use: docs/adr/0018.
#[repr(C, align(64))]
pub(crate) struct Uploads {
    queues: Map<PeerId, Queue>,
    /// Peers for whom something waits.
    ready: Map<PeerId, Next>,
    /// How many of them have a next piece that opens a zone.
    opening: usize,
    waiting: usize,
    /// Mean time of a send, smoothed; `None` before the first ended.
    send_mean: Option<f64>,
    /// Mean time of a send over the sends beside it, smoothed: what a piece takes on this process's wire.
    wire_mean: Option<f64>,
    /// The most that the wire was seen to carry lately, in bytes per second; `None` before a send has ended.
    wire_rate: Option<f64>,
    active: Active,
    turn: u32,
    /// Nobody of another zone is connected or known.
    pub(crate) one_zone: bool,
    /// Peers that were refused and have not come again: they share the room there will be.
    turned_away: Set<PeerId>,
}

impl Uploads {
    /// Prefetches where the tables are, and what decides whether anything is sent.
    pub(crate) fn prefetch_head(&self) {
        prefetch(&self.queues);
        prefetch(&self.ready);
        prefetch(&self.opening);
        prefetch(&self.active);
        prefetch(&self.turn);
    }

    /// Prefetches the tables that are gone through.
    pub(crate) fn prefetch_tables(&self) {
        self.queues.prefetch_keys();
        self.ready.prefetch_keys();
        self.ready.prefetch_entries(READY_LINES);
        self.active.prefetch();
    }

    /// Prefetches what waits for a peer, and what is sent to it.
    pub(crate) fn prefetch_queue(&self, peer: &PeerId) {
        if let Some((key, queue)) = self.queues.likely(peer) {
            prefetch(key);
            prefetch(&queue.waiting);
            prefetch(&queue.active);
            prefetch(&queue.served_bytes);
        }
    }

    /// Queues a job; `false` when there is no room. A piece that waits already is not queued twice.
    pub(crate) fn push(&mut self, config: &EngineConfig, peer: PeerId, same_zone: bool, job: Job) -> bool {
        let room = self.queue_max(config);
        if !self.queues.contains_key(&peer) {
            // A newcomer starts level with whoever was served least: no debt to it, none of its own.
            let level = self.queues.values().map(|queue| queue.served_bytes).min().unwrap_or(0);
            self.queues.insert(peer, Queue { same_zone, served_bytes: level, ..Queue::default() });
        }
        let Some(queue) = self.queues.get_mut(&peer) else { return false };
        let same = |other: &Job| other.name == job.name && other.piece == job.piece;
        if queue.waiting.iter().any(same) || queue.active.contains((job.name, job.piece)) {
            return true;
        }
        // A first copy is nowhere else to be had: whoever asks for one may always wait for one.
        // An importer is far away: those who are near would take every place before it could ask again.
        let room = self.waiting < room || job.first_copy && queue.waiting.is_empty() || job.is_for_zone();
        if queue.waiting.len() >= config.upload_queue_per_peer_max || !room {
            self.turned_away.insert(peer);
            return false;
        }
        self.turned_away.swap_remove(&peer);
        if job.opens_zone {
            queue.waiting.push_front(job);
        } else {
            queue.waiting.push_back(job);
        }
        self.waiting = self.waiting.saturating_add(1);
        self.note(&peer);
        true
    }

    /// Looks anew at what waits for a peer.
    fn note(&mut self, peer: &PeerId) {
        let next = self.queues.get(peer).and_then(|queue| {
            let job = queue.waiting.front()?;
            Some(Next {
                same_zone: queue.same_zone,
                active: queue.active.len(),
                served_bytes: queue.served_bytes,
                progress: job.progress,
                for_zone: job.is_for_zone(),
                opens_zone: job.opens_zone,
            })
        });
        let before = match next {
            Some(next) => self.ready.insert(*peer, next),
            None => self.ready.swap_remove(peer),
        };
        let opens = |next: Option<Next>| usize::from(next.is_some_and(|next| next.opens_zone));
        self.opening = self.opening.saturating_add(opens(next)).saturating_sub(opens(before));
    }

    /// The next job to begin, if a slot is free, and to whom.
    pub(crate) fn next(
        &mut self,
        config: &EngineConfig,
        now: Timestamp,
        mut allowed: impl FnMut(bool) -> bool,
    ) -> Option<(PeerId, Job)> {
        let slot = self.waiting > 0 && self.has_slot(config, now);
        if !slot && self.opening == 0 {
            return None;
        }
        let held_back = self.held_back(config, now).is_some();
        let fair = self.turn % FAIR_TURN == FAIR_TURN.saturating_sub(1);
        let peer = self
            .ready
            .iter()
            .filter(|(_, next)| slot || next.opens_zone)
            .filter(|(_, next)| next.active < config.upload_slots_per_peer)
            .filter(|(_, next)| !held_back || next.progress >= BEGINNERS_STEPS || next.opens_zone)
            .filter(|(_, next)| allowed(next.same_zone))
            .min_by_key(|(peer, next)| {
                // Whoever is behind comes first: uplinks are idle when some are done and others, limited by their own
                // wires, are not.
                let foreign = !next.same_zone && !next.for_zone;
                let (foreign, progress) = if fair { (false, 0) } else { (foreign, next.progress) };
                (foreign, progress, next.served_bytes, next.active, **peer)
            })
            .map(|(peer, ..)| *peer)?;
        let queue = self.queues.get_mut(&peer)?;
        let job = queue.waiting.pop_front()?;
        queue.active.insert((job.name, job.piece), self.active.begin(now, job.bytes));
        queue.served_bytes = queue.served_bytes.saturating_add(job.bytes.into());
        self.waiting = self.waiting.saturating_sub(1);
        self.turn = self.turn.wrapping_add(1);
        self.note(&peer);
        Some((peer, job))
    }

    /// A send ended; `whole` says that the piece was sent. Returns whether it was one of ours.
    pub(crate) fn sent(
        &mut self,
        now: Timestamp,
        peer: &PeerId,
        name: BlobName,
        piece: PieceIndex,
        whole: bool,
    ) -> bool {
        let active = self.queues.get_mut(peer).and_then(|queue| queue.active.remove((name, piece)));
        let Some(sending) = active else { return false };
        self.note(peer);
        let carried = self.active.end(now, &sending, whole);
        if whole {
            if let Some(carried) = carried {
                let rate = self.wire_rate.unwrap_or_default();
                self.wire_rate =
                    Some(if carried > rate { carried } else { rate + (carried - rate) * RATE_DECAY });
            }
            let secs = now.saturating_since(sending.since).as_secs_f64();
            let mean = self.send_mean.unwrap_or(secs);
            self.send_mean = Some(mean + (secs - mean) * GAIN);
            let beside = u32::try_from(self.active.count.saturating_add(1)).unwrap_or(u32::MAX);
            let own = secs / f64::from(beside);
            let mean = self.wire_mean.unwrap_or(own);
            self.wire_mean = Some(mean + (own - mean) * GAIN);
        }
        true
    }

    /// The blobs of which something is being sent or waits.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = BlobName> {
        self.queues.values().flat_map(|queue| {
            let waiting = queue.waiting.iter().map(|job| job.name);
            waiting.chain(queue.active.iter().map(|((name, _), _)| name))
        })
    }

    /// How long a piece takes to be sent; zero while nothing is known.
    pub(crate) fn send_mean(&self) -> Duration {
        self.send_mean.and_then(|secs| Duration::try_from_secs_f64(secs).ok()).unwrap_or_default()
    }

    /// Takes a piece back. `true` when it is being sent already, so that the driver has to be told.
    pub(crate) fn cancel(&mut self, peer: &PeerId, name: BlobName, piece: PieceIndex) -> bool {
        let Some(queue) = self.queues.get_mut(peer) else { return false };
        let before = queue.waiting.len();
        queue.waiting.retain(|job| job.name != name || job.piece != piece);
        self.waiting = self.waiting.saturating_sub(before.saturating_sub(queue.waiting.len()));
        let sending = queue.active.contains((name, piece));
        self.note(peer);
        sending
    }

    /// Forgets what waits of one blob for one peer.
    pub(crate) fn leave(&mut self, peer: &PeerId, name: BlobName) {
        let Some(queue) = self.queues.get_mut(peer) else { return };
        let before = queue.waiting.len();
        queue.waiting.retain(|job| job.name != name);
        self.waiting = self.waiting.saturating_sub(before.saturating_sub(queue.waiting.len()));
        self.note(peer);
    }

    /// Forgets a peer that is gone.
    pub(crate) fn remove(&mut self, now: Timestamp, peer: &PeerId) {
        self.turned_away.swap_remove(peer);
        if let Some(queue) = self.queues.swap_remove(peer) {
            self.waiting = self.waiting.saturating_sub(queue.waiting.len());
            for (_, sending) in queue.active.into_iter() {
                self.active.end(now, &sending, false);
            }
        }
        self.note(peer);
    }

    /// Requests that may wait: as many as are served in a short time, for what waits here is not asked for elsewhere.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
    fn queue_max(&self, config: &EngineConfig) -> usize {
        let slots = f64::from(u32::try_from(config.upload_slots).unwrap_or(u32::MAX));
        let served = config.upload_queue_time.as_secs_f64() * slots / self.send_mean.unwrap_or(f64::MAX);
        (served as usize).clamp(config.upload_queue_min.min(config.upload_queue_max), config.upload_queue_max)
    }

    /// When a full queue has room for one more of those that were turned away, each of which gets its turn.
    pub(crate) fn room_after(&self, config: &EngineConfig) -> Duration {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let sends = count(self.turned_away.len());
        self.send_mean().saturating_mul(sends).checked_div(count(config.upload_slots)).unwrap_or_default()
    }

    /// How long a send counts as one that gets on.
    pub(crate) fn slot_hold(&self, config: &EngineConfig) -> Duration {
        let hangs = self.send_mean().saturating_mul(HANGS_FACTOR).max(SLOT_HOLD_MIN);
        if self.send_mean.is_some() { hangs.min(config.upload_slot_hold) } else { config.upload_slot_hold }
    }

    pub(crate) fn has_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// Sends that hang (their receiver stopped reading) stop counting, so that they cannot keep others out.
    fn has_slot(&self, config: &EngineConfig, now: Timestamp) -> bool {
        if self.active.count < config.upload_slots {
            return true;
        }
        let slots = self.slots(config);
        self.active.count < slots
            || self.active.younger_than(self.slot_hold(config), now) < slots
                && self.active.count < slots.saturating_mul(HUNG_FACTOR)
    }

    /// Until when no further send to a beginner begins: a few begin at once, and more no faster than the wire carries them.
    /// Sends that share a wire end late and all together, and a piece is passed on only when it is whole: a crowd that
    /// begins has nothing else to exchange meanwhile. Those whose receivers are slower than this wire do not hold others
    /// up: in the time they would take on it alone, the next begin.
    pub(crate) fn held_back(&self, config: &EngineConfig, now: Timestamp) -> Option<Timestamp> {
        // With other zones about, what one of them imports is waited for by many: no piece of wire may lie idle.
        let (since, bytes) = self.active.last(config.upload_burst).filter(|_| self.one_zone)?;
        #[expect(clippy::cast_precision_loss, reason = "bytes of a few pieces")]
        let time = self.wire_rate.map_or(SLOT_HOLD_MIN, |rate| {
            let secs = bytes as f64 / (rate * PACE_FACTOR).max(f64::EPSILON);
            Duration::try_from_secs_f64(secs).unwrap_or(SLOT_HOLD_MAX).min(SLOT_HOLD_MAX)
        });
        Some(since + time).filter(|until| *until > now)
    }

    /// When the next send may begin at the latest, as far as time alone decides: a send hangs then and gives its slot up, or beginners'
    /// next is due. Where no slot is free that is not looked at: it is when one is.
    pub(crate) fn free_at(&self, config: &EngineConfig, now: Timestamp) -> Timestamp {
        let hold = self.slot_hold(config);
        let hangs = self.active.last(self.slots(config)).map(|(since, _)| since + hold);
        let hangs = hangs.filter(|at| *at > now).unwrap_or(now + hold);
        let paced = self.held_back(config, now).filter(|_| self.has_slot(config, now));
        paced.map_or(hangs, |paced| paced.min(hangs))
    }

    /// Peers a seeder has room for: so many that each gets a piece in a short time, at the pace of the last sends.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
    pub(crate) fn seed_room(&self, config: &EngineConfig) -> usize {
        let least = config.peers_per_swarm_inbound_max;
        let Some(each) = self.wire_mean.filter(|_| self.one_zone) else { return least };
        let fitting = (config.seed_time.as_secs_f64() / each) as usize;
        fitting.clamp(least, config.peers_per_swarm_seed_max.max(least))
    }

    /// Pieces that may be sent at once.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
    fn slots(&self, config: &EngineConfig) -> usize {
        let Some(each) = self.wire_mean.filter(|_| self.one_zone) else { return config.upload_slots };
        let fitting = (config.upload_slot_time.as_secs_f64() / each) as usize;
        fitting.clamp(config.upload_slots, config.upload_slots_max.max(config.upload_slots))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_types::PieceLayout;

    fn peer(n: u8) -> PeerId {
        PeerId::from_public_key([n; 32])
    }

    fn job(number: u32) -> Job {
        let layout = PieceLayout::for_size(100 << 20).unwrap();
        Job {
            name: BlobName::of(7),
            piece: layout.piece(number).unwrap(),
            to: 0,
            bytes: 1000,
            progress: 0,
            first_copy: false,
            importer: false,
            opens_zone: false,
        }
    }

    #[test]
    fn who_is_behind_comes_first_and_who_is_ahead_has_its_turn() {
        let config = EngineConfig { upload_slots: 1, upload_queue_min: 1000, ..EngineConfig::default() };
        let mut uploads = Uploads::default();
        for number in 0..40 {
            assert!(uploads.push(&config, peer(1), true, Job { progress: 40, ..job(number) }));
            assert!(uploads.push(&config, peer(2), true, Job { progress: 3, ..job(number) }));
        }
        let now = Timestamp::ZERO;
        let mut served = [0; 3];
        for _ in 0..40 {
            let (to, sent) = uploads.next(&config, now, |_| true).unwrap();
            served[usize::from(to == peer(1)) + 1] += 1;
            assert!(uploads.sent(now, &to, sent.name, sent.piece, true));
        }
        assert_eq!(served, [0, 30, 10]);
    }

    #[test]
    fn shares_are_equal_and_queues_bounded() {
        let config = EngineConfig {
            upload_slots: 1,
            upload_queue_per_peer_max: 30,
            upload_queue_min: 1000,
            ..EngineConfig::default()
        };
        let mut uploads = Uploads::default();
        for n in 0..3 {
            for number in 0..30 {
                assert!(uploads.push(&config, peer(n), true, job(number)));
            }
            assert!(!uploads.push(&config, peer(n), true, job(31)), "over the limit");
            assert!(uploads.push(&config, peer(n), true, job(5)), "twice the same is once");
        }
        let mut served = std::collections::BTreeMap::new();
        for _ in 0..30 {
            let (to, job) = uploads.next(&config, Timestamp::ZERO, |_| true).unwrap();
            assert!(uploads.next(&config, Timestamp::ZERO, |_| true).is_none(), "one slot");
            assert!(uploads.sent(Timestamp::ZERO, &to, job.name, job.piece, true));
            *served.entry(to).or_insert(0) += 1;
        }
        assert_eq!(served.values().copied().collect::<Vec<_>>(), [10, 10, 10]);
    }

    #[test]
    fn own_zone_comes_first_and_others_are_not_starved() {
        let config = EngineConfig { upload_slots: 1, upload_queue_min: 1000, ..EngineConfig::default() };
        let mut uploads = Uploads::default();
        for number in 0..40 {
            uploads.push(&config, peer(1), true, job(number));
            uploads.push(&config, peer(2), false, job(number));
        }
        let mut foreign = 0;
        for _ in 0..40 {
            let (to, job) = uploads.next(&config, Timestamp::ZERO, |_| true).unwrap();
            assert!(uploads.sent(Timestamp::ZERO, &to, job.name, job.piece, true));
            foreign += usize::from(to == peer(2));
        }
        assert_eq!(foreign, 10);
    }

    #[test]
    fn no_more_waits_than_is_served_soon_but_for_first_copies() {
        let config = EngineConfig { upload_slots: 2, upload_queue_min: 3, ..EngineConfig::default() };
        let mut uploads = Uploads::default();
        for number in 0..3 {
            assert!(uploads.push(&config, peer(1), true, job(number)));
        }
        assert!(!uploads.push(&config, peer(2), true, job(9)), "nothing is known of the pace: the least");
        assert!(uploads.push(&config, peer(2), true, Job { first_copy: true, ..job(9) }));
        assert!(!uploads.push(&config, peer(2), true, Job { first_copy: true, ..job(10) }), "one a peer");
        // A send took 10 ms: in 100 ms two slots serve twenty.
        let (to, sent) = uploads.next(&config, Timestamp::ZERO, |_| true).unwrap();
        let later = Timestamp::ZERO + Duration::from_millis(10);
        assert!(uploads.sent(later, &to, sent.name, sent.piece, true));
        for number in 20..37 {
            assert!(uploads.push(&config, peer(3), true, job(number)), "{number}");
        }
        assert!(!uploads.push(&config, peer(4), true, job(50)));
        assert!(!uploads.push(&config, peer(5), true, job(50)));
        assert_eq!(uploads.room_after(&config), Duration::from_millis(15), "three were turned away");
    }

    #[test]
    fn an_importer_waits_among_those_of_the_own_zone_however_full_the_queue_is() {
        let config = EngineConfig { upload_slots: 1, upload_queue_min: 3, ..EngineConfig::default() };
        let mut uploads = Uploads::default();
        for number in 0..3 {
            assert!(uploads.push(&config, peer(1), true, Job { progress: 9, ..job(number) }));
        }
        assert!(!uploads.push(&config, peer(2), false, job(3)));
        for number in 3..6 {
            assert!(uploads.push(&config, peer(3), false, Job { importer: true, ..job(number) }));
        }
        let (to, _) = uploads.next(&config, Timestamp::ZERO, |_| true).unwrap();
        assert_eq!(to, peer(3), "it is behind");
    }

    #[test]
    fn more_is_sent_at_once_while_pieces_are_quick_and_stay_in_the_zone() {
        let config =
            EngineConfig { upload_queue_min: 1000, upload_burst: usize::MAX, ..EngineConfig::default() };
        let sent_at_once = |millis: u64, one_zone: bool| {
            let mut uploads = Uploads { one_zone, ..Uploads::default() };
            for n in 0..40 {
                uploads.push(&config, peer(n), true, job(u32::from(n)));
            }
            let now = Timestamp::ZERO;
            let (to, sent) = uploads.next(&config, now, |_| true).unwrap();
            assert!(uploads.sent(now + Duration::from_millis(millis), &to, sent.name, sent.piece, true));
            std::iter::from_fn(|| uploads.next(&config, now, |_| true)).count()
        };
        assert_eq!(sent_at_once(1, true), 20);
        assert_eq!(sent_at_once(12, true), 12, "that many end in 150 ms");
        assert_eq!(sent_at_once(200, true), 10);
        assert_eq!(sent_at_once(1, false), 10, "other zones are there");
    }

    /// Uploads with forty peers that each want a piece of 1,000 bytes.
    fn forty_wait(config: &EngineConfig) -> Uploads {
        let mut uploads = Uploads { one_zone: true, ..Uploads::default() };
        for n in 0..40 {
            assert!(uploads.push(config, peer(n), true, job(u32::from(n))));
        }
        uploads
    }

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_start(Duration::from_millis(millis))
    }

    fn begin(uploads: &mut Uploads, config: &EngineConfig, millis: u64) -> Vec<(PeerId, Job)> {
        std::iter::from_fn(|| uploads.next(config, at(millis), |_| true)).collect()
    }

    #[test]
    fn sends_begin_no_faster_than_the_wire_carries_them() {
        let config = EngineConfig { upload_queue_min: 1000, ..EngineConfig::default() };
        let mut uploads = forty_wait(&config);
        let mut sending = begin(&mut uploads, &config, 0);
        assert_eq!(sending.len(), config.upload_burst);
        assert_eq!(uploads.held_back(&config, at(0)), Some(at(50)), "nothing is known of the wire");
        // The three shared the wire for 30 ms: it carries 100,000 bytes a second, a piece in 10 ms.
        for (to, job) in sending.drain(..) {
            assert!(uploads.sent(at(30), &to, job.name, job.piece, true));
        }
        assert_eq!(begin(&mut uploads, &config, 30).len(), 3);
        assert_eq!(begin(&mut uploads, &config, 52).len(), 0);
        assert_eq!(uploads.held_back(&config, at(52)).map(|until| until.since_start().as_millis()), Some(53));
        // Their receivers are slower than this wire: others begin meanwhile, until as many are sent as end in 150 ms.
        assert_eq!(begin(&mut uploads, &config, 54).len(), 1);
        assert_eq!((55..120).map(|millis| begin(&mut uploads, &config, millis).len()).sum::<usize>(), 7);
        assert_eq!((uploads.active.count, uploads.slots(&config)), (11, 11));
    }

    #[test]
    fn what_waits_is_looked_at_when_time_alone_could_let_it_begin() {
        let config = EngineConfig { upload_queue_min: 1000, upload_slots: 6, ..EngineConfig::default() };
        let mut uploads = forty_wait(&config);
        assert_eq!(begin(&mut uploads, &config, 0).len(), 3);
        assert_eq!(uploads.free_at(&config, at(10)), at(50), "a slot is free, and the pace decides");
        assert_eq!(begin(&mut uploads, &config, 50).len(), 3);
        assert_eq!(uploads.held_back(&config, at(51)), Some(at(100)));
        let hold = config.upload_slot_hold;
        assert_eq!(uploads.free_at(&config, at(51)), at(0) + hold, "none is: the first three hang then");
        let later = at(1) + hold;
        assert_eq!(
            uploads.free_at(&config, later),
            later + hold,
            "nothing comes of waiting but what was seen"
        );
    }

    #[test]
    fn before_a_send_has_ended_a_few_begin_every_fifty_milliseconds() {
        let config = EngineConfig { upload_queue_min: 1000, ..EngineConfig::default() };
        let mut uploads = forty_wait(&config);
        let begun = [0, 49, 50, 99, 100].map(|millis| begin(&mut uploads, &config, millis).len());
        assert_eq!(begun, [3, 0, 3, 0, 3]);
    }

    #[test]
    fn a_wire_that_carries_less_is_believed_slowly_and_one_that_carries_more_at_once() {
        let config = EngineConfig { upload_queue_min: 1000, ..EngineConfig::default() };
        let mut uploads = forty_wait(&config);
        let mut send = |from: u64, until: u64| {
            let (to, job) = uploads.next(&config, at(from), |_| true).unwrap();
            assert!(uploads.sent(at(until), &to, job.name, job.piece, true));
            uploads.wire_rate.unwrap().round()
        };
        assert_eq!(send(0, 10), 100_000.0);
        assert_eq!(send(10, 110), 98_594.0, "one that took ten times as long");
        assert_eq!(send(110, 115), 200_000.0);
        assert_eq!(send(120, 120), 200_000.0, "nothing was measured");
    }

    #[test]
    fn a_send_that_is_lucky_says_no_more_of_the_wire_than_what_it_carried() {
        let config = EngineConfig { upload_queue_min: 1000, ..EngineConfig::default() };
        let mut uploads = forty_wait(&config);
        let sending = begin(&mut uploads, &config, 0);
        // One has the wire to itself for 10 ms, then the others share it.
        for ((to, job), millis) in sending.iter().zip([10, 30, 30]) {
            assert!(uploads.sent(at(millis), to, job.name, job.piece, true));
            assert!(uploads.wire_rate.is_some_and(|rate| (99_000.0..100_001.0).contains(&rate)), "{millis}");
        }
        assert_eq!(uploads.wire_rate.map(f64::round), Some(100_000.0));
        // What is given up was not carried.
        let (to, job) = uploads.next(&config, at(40), |_| true).unwrap();
        uploads.next(&config, at(40), |_| true).unwrap();
        assert!(uploads.sent(at(41), &to, job.name, job.piece, false));
        assert_eq!(uploads.wire_rate.map(f64::round), Some(100_000.0));
    }

    #[test]
    fn a_short_send_beside_a_long_one_says_little_of_the_wire() {
        let config = EngineConfig { upload_queue_min: 1000, ..EngineConfig::default() };
        let mut uploads = Uploads { one_zone: true, ..Uploads::default() };
        assert!(uploads.push(&config, peer(1), true, Job { bytes: 1_000_000, ..job(1) }));
        assert!(uploads.push(&config, peer(2), true, Job { bytes: 10, ..job(2) }));
        let (long, a) = uploads.next(&config, at(0), |_| true).unwrap();
        let (short, b) = uploads.next(&config, at(999), |_| true).unwrap();
        assert_eq!((long, short), (peer(1), peer(2)));
        assert!(uploads.sent(at(1000), &long, a.name, a.piece, true));
        assert_eq!(uploads.wire_rate.map(f64::round), Some(1_000_000.0));
        assert!(uploads.sent(at(1000), &short, b.name, b.piece, true));
        assert!(uploads.wire_rate.unwrap() < 1_000_001.0, "the long one was sent before it began");
    }

    #[test]
    fn nobody_is_held_back_with_other_zones_about() {
        let config = EngineConfig { upload_queue_min: 1000, ..EngineConfig::default() };
        let mut uploads = Uploads { one_zone: false, ..forty_wait(&config) };
        assert_eq!(begin(&mut uploads, &config, 0).len(), config.upload_slots);
    }

    #[test]
    fn those_who_are_no_beginners_and_those_for_whom_a_zone_waits_are_not_held_back() {
        let config = EngineConfig { upload_queue_min: 1000, ..EngineConfig::default() };
        let mut uploads = forty_wait(&config);
        assert_eq!(begin(&mut uploads, &config, 0).len(), 3);
        assert!(uploads.push(&config, peer(50), false, Job { opens_zone: true, ..job(50) }));
        assert!(uploads.push(&config, peer(51), true, Job { progress: 1, ..job(51) }));
        assert!(uploads.push(&config, peer(52), true, Job { progress: 2, ..job(52) }));
        let mut begun: Vec<_> = begin(&mut uploads, &config, 1).into_iter().map(|(to, _)| to).collect();
        begun.sort();
        let mut expected = [peer(50), peer(52)];
        expected.sort();
        assert_eq!(begun, expected);
    }

    #[test]
    fn hung_sends_give_their_slots_up() {
        let config = EngineConfig { upload_slots: 1, ..EngineConfig::default() };
        let mut uploads = Uploads::default();
        uploads.push(&config, peer(1), true, job(0));
        uploads.push(&config, peer(2), true, job(1));
        assert!(uploads.next(&config, Timestamp::ZERO, |_| true).is_some());
        assert!(uploads.next(&config, Timestamp::ZERO, |_| true).is_none());
        let later = Timestamp::ZERO + config.upload_slot_hold + Duration::from_millis(1);
        assert!(uploads.next(&config, later, |_| true).is_some());
    }
}
