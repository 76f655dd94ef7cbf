//! What is to happen, in order of time and, at one time, in the order in which it was arranged.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// A bucket is 2^16 ns (66 µs) wide: a few hundred events of a large fleet, which stay in the processor's cache.
const BUCKET_BITS: u32 = 16;
/// Buckets ahead of the present: 268 ms. What is later waits in a heap.
const RING: u64 = 4096;

#[derive(Debug)]
struct Entry<E> {
    at: u64,
    sequence: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Reversed: the heap's greatest is the earliest.
impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}

/// A calendar queue: a heap for the present bucket, plain lists for the next ones, a heap for what is far.
/// Most events of a simulation are less than a few milliseconds ahead, and then cost no deep heap.
#[derive(Debug)]
pub(crate) struct Queue<E> {
    /// What is to happen until the time [`Self::plan`] was last called with, the last of it first: as far as it was known then.
    planned: Vec<Entry<E>>,
    present: BinaryHeap<Entry<E>>,
    ring: Vec<Vec<Entry<E>>>,
    in_ring: usize,
    far: BinaryHeap<Entry<E>>,
    bucket: u64,
    sequence: u64,
}

impl<E> Queue<E> {
    pub(crate) fn new() -> Self {
        Self {
            planned: Vec::new(),
            present: BinaryHeap::new(),
            ring: std::iter::repeat_with(Vec::new).take(RING as usize).collect(),
            in_ring: 0,
            far: BinaryHeap::new(),
            bucket: 0,
            sequence: 0,
        }
    }

    /// Arranges `event` for `at` nanoseconds.
    pub(crate) fn push(&mut self, at: u64, event: E) {
        self.sequence += 1;
        let entry = Entry { at, sequence: self.sequence, event };
        let bucket = at >> BUCKET_BITS;
        if bucket <= self.bucket {
            self.present.push(entry);
        } else if bucket - self.bucket < RING {
            self.ring[(bucket % RING) as usize].push(entry);
            self.in_ring += 1;
        } else {
            self.far.push(entry);
        }
    }

    /// When the next event is due, of those that are not planned.
    pub(crate) fn next_at(&mut self) -> Option<u64> {
        while self.present.is_empty() {
            if !self.advance() {
                return None;
            }
        }
        self.present.peek().map(|entry| entry.at)
    }

    /// Puts what is to happen before `until` in order, so that [`Self::ahead`] knows it. What was planned before has happened, or was
    /// taken back.
    pub(crate) fn plan(&mut self, until: u64) {
        debug_assert!(self.planned.is_empty());
        while self.next_at().is_some_and(|at| at < until) {
            let Some(entry) = self.present.pop() else { break };
            self.planned.push(entry);
        }
        self.planned.reverse();
    }

    /// What of what was planned comes after `count` others of it.
    pub(crate) fn ahead(&self, count: usize) -> Option<&E> {
        let place = self.planned.len().checked_sub(count + 1)?;
        self.planned.get(place).map(|entry| &entry.event)
    }

    /// How many of those that were planned are left.
    pub(crate) fn planned(&self) -> usize {
        self.planned.len()
    }

    /// Takes back what was planned and has not happened.
    pub(crate) fn unplan(&mut self) {
        self.present.extend(self.planned.drain(..));
    }

    /// What comes next, if it does before the `until` that was planned for, and whether it was planned: it may have been arranged since.
    pub(crate) fn pop_before(&mut self, until: u64) -> Option<(u64, E, bool)> {
        let fresh = self.next_at().filter(|at| *at < until).and(self.present.peek());
        let (next, planned) = match (self.planned.last(), fresh) {
            // The greater one is the earlier.
            (Some(planned), Some(fresh)) if planned < fresh => (self.present.pop()?, false),
            (Some(_), _) => (self.planned.pop()?, true),
            (None, Some(_)) => (self.present.pop()?, false),
            (None, None) => return None,
        };
        Some((next.at, next.event, planned))
    }

    /// Goes on to the next bucket; `false` when nothing is left.
    fn advance(&mut self) -> bool {
        if self.in_ring == 0 {
            let Some(first) = self.far.peek() else { return false };
            self.bucket = first.at >> BUCKET_BITS;
        } else {
            self.bucket += 1;
        }
        let place = (self.bucket % RING) as usize;
        if !self.ring[place].is_empty() {
            self.in_ring -= self.ring[place].len();
            self.present.extend(self.ring[place].drain(..));
        }
        while self.far.peek().is_some_and(|entry| (entry.at >> BUCKET_BITS) - self.bucket < RING) {
            let Some(entry) = self.far.pop() else { break };
            let bucket = entry.at >> BUCKET_BITS;
            if bucket <= self.bucket {
                self.present.push(entry);
            } else {
                self.ring[(bucket % RING) as usize].push(entry);
                self.in_ring += 1;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::{Rng as _, SeedableRng as _};

    #[test]
    fn order_is_that_of_time_and_then_of_arrangement() {
        let mut random = rand_pcg::Pcg64::seed_from_u64(1);
        let mut queue = Queue::new();
        let mut model = std::collections::BTreeMap::new();
        let mut now = 0;
        for number in 0u64..20_000 {
            let reach = [1_000, 1 << 20, 1 << 26, 1 << 32][(random.next_u64() % 4) as usize];
            let at = now + random.next_u64() % reach;
            queue.push(at, number);
            model.insert((at, number), number);
            if random.next_u64().is_multiple_of(2) {
                let (key, expected) = model.pop_first().unwrap();
                assert_eq!(queue.next_at(), Some(key.0));
                assert_eq!(queue.pop_before(u64::MAX), Some((key.0, expected, false)));
                now = key.0;
            }
        }
        while let Some((key, expected)) = model.pop_first() {
            assert_eq!(queue.pop_before(u64::MAX), Some((key.0, expected, false)));
        }
        assert_eq!(queue.pop_before(u64::MAX), None);
    }

    #[test]
    fn what_is_arranged_since_comes_between_what_was_planned() {
        const TICK: u64 = 10_000;
        let mut random = rand_pcg::Pcg64::seed_from_u64(2);
        let mut queue = Queue::new();
        let mut model = std::collections::BTreeMap::new();
        let (mut number, mut fresh, mut ties, mut taken_back) = (0u64, 0, 0, 0);
        for step in 0..2_000 {
            let (now, until) = (step * 10 * TICK, (step + 1) * 10 * TICK);
            let mut draw = |bound: u64| random.next_u64() % bound;
            let mut arrange = |queue: &mut Queue<u64>, at: u64| {
                queue.push(at, number);
                number += 1;
                (at, number - 1)
            };
            for reach in [30, 100, 400_000] {
                model.extend([(arrange(&mut queue, now + draw(reach) * TICK), true)]);
            }
            queue.plan(until);
            model.values_mut().for_each(|planned| *planned = true);
            let planned: Vec<u64> = model.range(..(until, 0)).map(|((_, number), _)| *number).collect();
            assert!((0..planned.len() + 1).all(|n| queue.ahead(n) == planned.get(n)));
            assert_eq!(queue.planned(), planned.len());
            while let Some(popped) = queue.pop_before(until) {
                let ((at, expected), planned) = model.pop_first().unwrap();
                assert_eq!(popped, (at, expected, planned));
                fresh += u32::from(!planned);
                if draw(3) == 0 {
                    let next = arrange(&mut queue, at + draw(10) * TICK);
                    ties += u32::from(model.range((next.0, 0)..next).any(|(_, planned)| *planned));
                    model.insert(next, false);
                }
                if draw(20) == 0 {
                    // As after a violation: then it is as if nothing had been planned.
                    taken_back += u32::from(queue.ahead(0).is_some());
                    queue.unplan();
                    assert_eq!(queue.next_at(), model.first_key_value().map(|((at, _), _)| *at));
                    queue.plan(until);
                    model.range_mut(..(until, 0)).for_each(|(_, planned)| *planned = true);
                }
            }
            assert!(model.first_key_value().is_none_or(|((at, _), _)| *at >= until));
        }
        assert!(fresh > 500 && ties > 100 && taken_back > 50, "{fresh} {ties} {taken_back}");
    }
}
