//! Deadlines by name.

use std::collections::BTreeMap;

use shoal_types::{Digest, PeerId, Timestamp};

use crate::keyed::{FACTOR, Key, Map};

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// Tell the haves gathered.
    Haves(Digest),
    /// Tell other zones the haves gathered for them.
    FarHaves(Digest),
    /// Look at a search's progress.
    Search(Digest),
    /// Something that kept a swarm from requesting may be over.
    Fill(Digest),
    /// A swarm may have outlived its use.
    Linger(Digest),
    /// A peer may have stalled.
    Stall(PeerId),
    /// A connection may have outlived its use.
    Idle(PeerId),
    /// Budget or a stuck slot may allow the next upload.
    Uploads,
}

impl Key for Timer {
    fn head(&self) -> u64 {
        let (kind, head) = match self {
            Self::Haves(digest) => (1, digest.head()),
            Self::FarHaves(digest) => (2, digest.head()),
            Self::Search(digest) => (3, digest.head()),
            Self::Fill(digest) => (4, digest.head()),
            Self::Linger(digest) => (5, digest.head()),
            Self::Stall(peer) => (6, peer.head()),
            Self::Idle(peer) => (7, peer.head()),
            Self::Uploads => (8, 0),
        };
        head ^ FACTOR.wrapping_mul(kind)
    }
}

/// A deadline: when, and the how manieth that was set.
type Place = (Timestamp, u64);

/// At most one deadline a [`Timer`].
#[derive(Debug, Default)]
pub(crate) struct Timers {
    /// Numbers of timers by time and, at one time, in the order in which they were set.
    by_time: BTreeMap<Place, usize>,
    by_name: Map<Timer, (Place, usize)>,
    /// Timers by number, and the numbers that are free.
    names: Vec<Timer>,
    unused: Vec<usize>,
    /// The first of `by_time`: asked for after every input.
    first: Option<Timestamp>,
    /// Times that a deadline was set.
    sets: u64,
}

impl Timers {
    /// Sets or moves a deadline.
    pub(crate) fn set(&mut self, timer: Timer, at: Timestamp) {
        self.sets = self.sets.wrapping_add(1);
        let place = (at, self.sets);
        let number = match self.by_name.get_mut(&timer) {
            Some((before, _)) if before.0 == at => return,
            Some((before, number)) => {
                self.by_time.remove(&std::mem::replace(before, place));
                *number
            }
            None => {
                let number = self.unused.pop().unwrap_or(self.names.len());
                match self.names.get_mut(number) {
                    Some(name) => *name = timer,
                    None => self.names.push(timer),
                }
                self.by_name.insert(timer, (place, number));
                number
            }
        };
        self.by_time.insert(place, number);
        self.note_first();
    }

    /// Sets a deadline unless an earlier one stands.
    pub(crate) fn set_earlier(&mut self, timer: Timer, at: Timestamp) {
        if self.by_name.get(&timer).is_none_or(|((standing, _), _)| at < *standing) {
            self.set(timer, at);
        }
    }

    pub(crate) fn cancel(&mut self, timer: Timer) {
        if let Some((place, number)) = self.by_name.swap_remove(&timer) {
            self.by_time.remove(&place);
            self.unused.push(number);
            self.note_first();
        }
    }

    fn note_first(&mut self) {
        self.first = self.by_time.first_key_value().map(|((at, _), _)| *at);
    }

    pub(crate) fn is_set(&self, timer: Timer) -> bool {
        self.by_name.contains_key(&timer)
    }

    pub(crate) fn next(&self) -> Option<Timestamp> {
        self.first
    }

    /// Takes out what is due at `now`.
    pub(crate) fn take_due(&mut self, now: Timestamp) -> Vec<Timer> {
        let mut due = Vec::new();
        while let Some(first) = self.by_time.first_entry().filter(|first| first.key().0 <= now) {
            let number = first.remove();
            self.unused.push(number);
            let Some(timer) = self.names.get(number) else { continue };
            self.by_name.swap_remove(timer);
            due.push(*timer);
        }
        self.note_first();
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn one_deadline_a_name() {
        let at = |ms| Timestamp::from_start(Duration::from_millis(ms));
        let mut timers = Timers::default();
        timers.set(Timer::Uploads, at(5));
        timers.set_earlier(Timer::Uploads, at(9));
        assert_eq!(timers.next(), Some(at(5)));
        timers.set(Timer::Uploads, at(9));
        assert!(timers.take_due(at(8)).is_empty());
        assert_eq!(timers.take_due(at(9)), vec![Timer::Uploads]);
        assert_eq!(timers.next(), None);
    }
}
