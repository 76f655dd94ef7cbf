//! When to announce which own blob: a pure state machine.
//!
//! A hand sweeps over the key space once an interval, at constant speed, and announces what it passes. So the load
//! is even whatever the number of blobs, blobs next to each other in the key space go to the same peers one after
//! the other, and no schedule has to be kept: where the hand is follows from the clock alone, so that a restart
//! goes on where it was. Each process starts its hand elsewhere, or else all holders of a popular blob would
//! announce it at once to the same peers.
//!
//! What was not announced while the process was down is overdue after a restart and comes first, in order, at no
//! more than the configured pace.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_types::{Digest, Timestamp, WallTime};

use super::config::ReprovideConfig;

/// A blob's place in the key space: the first eight bytes of the hash Kademlia compares.
type Position = u64;

#[derive(Clone, Copy, Debug)]
struct Own {
    position: Position,
    due: WallTime,
    announced: Option<WallTime>,
    in_flight: bool,
}

/// What [`Reprovider::finished`] is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The announcement reached peers.
    Announced,
    /// It reached nobody.
    Failed,
}

/// The schedule.
#[derive(Debug)]
pub struct Reprovider {
    config: ReprovideConfig,
    /// Where this process's hand stands at the epoch, as a part of the interval.
    offset_millis: u64,
    seed: u64,
    blobs: BTreeMap<Digest, Own>,
    queue: BTreeSet<(WallTime, Position, Digest)>,
    in_flight: usize,
    /// No announcement starts before this moment.
    open_at: Timestamp,
}

impl Reprovider {
    /// An empty schedule; `seed` sets this process apart from the others.
    pub fn new(config: ReprovideConfig, seed: u64) -> Self {
        let interval = millis(config.interval).max(1);
        Self {
            offset_millis: seed % interval,
            seed,
            config,
            blobs: BTreeMap::new(),
            queue: BTreeSet::new(),
            in_flight: 0,
            open_at: Timestamp::ZERO,
        }
    }

    /// Number of blobs.
    pub fn len(&self) -> usize {
        self.blobs.len()
    }

    /// Whether there are no blobs.
    pub fn is_empty(&self) -> bool {
        self.blobs.is_empty()
    }

    /// Number of announcements under way.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Number of blobs whose time has come.
    pub fn overdue(&self, wall: WallTime) -> usize {
        self.queue.iter().take_while(|(due, _, _)| *due <= wall).count()
    }

    /// Whether the blob is to be announced.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.blobs.contains_key(digest)
    }

    /// Adds a blob; `announced` says when it last was, if ever. Returns `false` when there is no room. A blob that
    /// is there already stays as it is.
    pub fn add(&mut self, digest: Digest, announced: Option<WallTime>, wall: WallTime) -> bool {
        if self.blobs.contains_key(&digest) {
            return true;
        }
        if self.blobs.len() >= self.config.keys_max {
            return false;
        }
        let position = position_of(&digest);
        // A clock that was set back must not postpone announcements beyond one interval.
        let announced = announced.map(|announced| announced.min(wall));
        let due = match announced {
            Some(announced) => self.next_pass(position, announced),
            None => wall.saturating_add(self.first_delay(position)),
        };
        self.blobs.insert(digest, Own { position, due, announced, in_flight: false });
        self.queue.insert((due, position, digest));
        true
    }

    /// Removes a blob; returns whether it was there.
    pub fn remove(&mut self, digest: &Digest) -> bool {
        let Some(own) = self.blobs.remove(digest) else { return false };
        self.queue.remove(&(own.due, own.position, *digest));
        self.in_flight -= usize::from(own.in_flight);
        true
    }

    /// The next blob to announce, if one is due and the pace allows.
    pub fn next(&mut self, now: Timestamp, wall: WallTime) -> Option<Digest> {
        if self.in_flight >= self.config.in_flight_max || now < self.open_at {
            return None;
        }
        let &(due, position, digest) = self.queue.first()?;
        if due > wall {
            return None;
        }
        self.queue.remove(&(due, position, digest));
        if let Some(own) = self.blobs.get_mut(&digest) {
            own.in_flight = true;
            self.in_flight += 1;
        }
        self.open_at = now + self.config.gap_min;
        Some(digest)
    }

    /// How long until [`Self::next`] may have something; `None` while it waits for [`Self::finished`] or has
    /// nothing to do.
    pub fn wait(&self, now: Timestamp, wall: WallTime) -> Option<Duration> {
        if self.in_flight >= self.config.in_flight_max {
            return None;
        }
        let (due, _, _) = self.queue.first()?;
        Some(due.saturating_since(wall).max(self.open_at.saturating_since(now)))
    }

    /// An announcement ended. Returns when the blob counts as announced, to be remembered.
    pub fn finished(&mut self, digest: &Digest, outcome: Outcome, wall: WallTime) -> Option<WallTime> {
        let (position, in_flight) = self.blobs.get(digest).map(|own| (own.position, own.in_flight))?;
        if !in_flight {
            return None;
        }
        let due = match outcome {
            Outcome::Announced => self.next_pass(position, wall),
            Outcome::Failed => wall.saturating_add(self.config.retry_delay),
        };
        self.in_flight -= 1;
        let own = self.blobs.get_mut(digest)?;
        own.in_flight = false;
        own.due = due;
        self.queue.insert((due, position, *digest));
        if outcome == Outcome::Failed {
            return None;
        }
        own.announced = Some(wall);
        Some(wall)
    }

    /// When the hand next passes `position`, at least half an interval after `announced`: a blob announced for the
    /// first time just before the hand comes is not announced twice in a row. So announcements are at most one and
    /// a half intervals apart, which the records' time to live covers.
    fn next_pass(&self, position: Position, announced: WallTime) -> WallTime {
        let interval = millis(self.config.interval).max(1);
        let earliest = announced.unix_millis().saturating_add(interval / 2);
        let along = ((u128::from(position) * u128::from(interval)) >> 64) as u64;
        let phase = (along + self.offset_millis) % interval;
        let rest = (phase + interval - earliest % interval) % interval;
        WallTime::from_unix_millis(earliest.saturating_add(rest))
    }

    fn first_delay(&self, position: Position) -> Duration {
        // Differs between processes for one blob, and between blobs for one process (SplitMix64's finisher).
        let mut mixed = position ^ self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let most = u128::from(millis(self.config.first_delay_max));
        Duration::from_millis(((u128::from(mixed) * most) >> 64) as u64)
    }
}

fn position_of(digest: &Digest) -> Position {
    // Kademlia hashes keys once more (SHA-256 of the multihash) and compares those hashes.
    let hashed = Digest::sha256(&digest.multihash().to_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hashed.as_bytes()[..8]);
    u64::from_be_bytes(first)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    const START: u64 = 1_700_000_000_000;

    fn wall(millis: u64) -> WallTime {
        WallTime::from_unix_millis(START + millis)
    }

    fn now(millis: u64) -> Timestamp {
        Timestamp::from_start(Duration::from_millis(millis))
    }

    fn blob(n: u32) -> Digest {
        Digest::sha256(&n.to_le_bytes())
    }

    /// Runs from `from` to `until` in steps of 100 ms, each announcement taking one step; counts a minute's worth.
    fn run(own: &mut Reprovider, from: u64, until: u64) -> (Vec<u64>, Vec<Digest>) {
        let (mut minutes, mut order) =
            (vec![0; usize::try_from((until - from) / 60_000 + 1).unwrap()], vec![]);
        let mut at = from;
        while at < until {
            let mut started = vec![];
            while let Some(digest) = own.next(now(at), wall(at)) {
                started.push(digest);
            }
            at += 100;
            for digest in started {
                own.finished(&digest, Outcome::Announced, wall(at)).unwrap();
                minutes[usize::try_from((at - from) / 60_000).unwrap()] += 1;
                order.push(digest);
            }
        }
        (minutes, order)
    }

    #[test]
    fn a_hundred_thousand_blobs_are_a_steady_load_in_key_order() {
        let config = ReprovideConfig { gap_min: Duration::ZERO, ..ReprovideConfig::default() };
        let mut own = Reprovider::new(config, 99);
        // Announced at any time of the interval before; two intervals settle the schedule.
        for n in 0..100_000 {
            own.add(blob(n), Some(WallTime::from_unix_millis(START - u64::from(n % 1200) * 1000)), wall(0));
        }
        run(&mut own, 0, 40 * 60_000);
        let (minutes, order) = run(&mut own, 40 * 60_000, 60 * 60_000);
        let total: u64 = minutes.iter().sum();
        assert!((99_000..=101_000).contains(&total), "{total}");
        // 5,000 a minute expected; 5 % is five standard deviations.
        assert!(minutes[..20].iter().all(|count| (4_650..5_350).contains(count)), "{minutes:?}");
        let backward = order.windows(2).filter(|pair| position_of(&pair[0]) > position_of(&pair[1])).count();
        assert!(backward <= 1, "one wrap around the key space at most: {backward}");
    }

    #[test]
    fn announcements_are_never_further_apart_than_a_record_lives() {
        let config = ReprovideConfig::default();
        let ttl = super::super::config::RecordsConfig::default().ttl;
        let own = Reprovider::new(config.clone(), 12345);
        for n in 0..2_000 {
            let announced = wall(u64::from(n) * 977);
            let gap = own.next_pass(position_of(&blob(n)), announced).saturating_since(announced);
            assert!(gap >= config.interval / 2 && gap < config.interval * 3 / 2, "{gap:?}");
            assert!(gap + Duration::from_secs(300) < ttl);
        }
    }

    #[test]
    fn the_first_announcement_is_soon_and_jittered() {
        let config =
            ReprovideConfig { in_flight_max: 10_000, gap_min: Duration::ZERO, ..ReprovideConfig::default() };
        let mut own = Reprovider::new(config, 1);
        for n in 0..1_000 {
            assert!(own.add(blob(n), None, wall(0)));
        }
        let at_once = std::iter::from_fn(|| own.next(now(0), wall(0))).count();
        assert!(at_once < 20, "{at_once}");
        let rest = std::iter::from_fn(|| own.next(now(500), wall(500))).count();
        assert_eq!(at_once + rest, 1_000);
        let (mut here, mut there) =
            (Reprovider::new(ReprovideConfig::default(), 1), Reprovider::new(ReprovideConfig::default(), 2));
        here.add(blob(1), None, wall(0));
        there.add(blob(1), None, wall(0));
        assert_ne!(here.wait(now(0), wall(0)), there.wait(now(0), wall(0)), "processes differ for one blob");
    }

    #[test]
    fn a_restart_catches_up_what_was_missed_at_a_bounded_pace() {
        let config =
            ReprovideConfig { in_flight_max: 4, gap_min: Duration::from_millis(10), ..Default::default() };
        let mut own = Reprovider::new(config, 3);
        for n in 0..100 {
            own.add(blob(n), Some(wall(0)), wall(3 * HOUR));
        }
        assert_eq!(own.overdue(wall(3 * HOUR)), 100);
        let first = own.next(now(0), wall(3 * HOUR)).unwrap();
        assert_eq!(own.next(now(5), wall(3 * HOUR)), None, "not before the gap has passed");
        assert_eq!(own.wait(now(5), wall(3 * HOUR)), Some(Duration::from_millis(5)));
        for at in [10, 20, 30] {
            assert!(own.next(now(at), wall(3 * HOUR)).is_some());
        }
        assert_eq!(own.next(now(40), wall(3 * HOUR)), None, "four are under way");
        assert_eq!(own.wait(now(40), wall(3 * HOUR)), None);
        own.finished(&first, Outcome::Announced, wall(3 * HOUR)).unwrap();
        assert!(own.next(now(40), wall(3 * HOUR)).is_some());
        assert_eq!(own.overdue(wall(3 * HOUR)), 95);
    }

    #[test]
    fn failures_are_retried_and_removal_is_final() {
        let mut own = Reprovider::new(ReprovideConfig { keys_max: 2, ..ReprovideConfig::default() }, 3);
        assert!(own.add(blob(1), Some(wall(0)), wall(HOUR)) && own.add(blob(2), None, wall(HOUR)));
        assert!(!own.add(blob(3), None, wall(HOUR)), "bounded");
        let digest = own.next(now(0), wall(HOUR)).unwrap();
        assert_eq!(digest, blob(1));
        assert_eq!(own.finished(&digest, Outcome::Failed, wall(HOUR)), None);
        assert_eq!(own.in_flight(), 0);
        assert!(own.next(now(9_000), wall(HOUR + 9_000)) == Some(blob(2)));
        assert!(own.remove(&blob(2)) && !own.remove(&blob(2)));
        assert_eq!((own.in_flight(), own.len()), (0, 1));
        assert_eq!(own.finished(&blob(2), Outcome::Announced, wall(HOUR)), None);
        assert_eq!(own.next(now(20_000), wall(HOUR + 20_000)), Some(blob(1)));
    }
}
