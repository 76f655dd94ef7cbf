//! Deadlines by name.

use std::collections::BTreeMap;

use shoal_types::{PeerId, Timestamp};

use crate::keyed::Map;
use crate::names::{BlobName, Named};
use crate::prefetch::{prefetch, prefetch_at};

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// Tell the haves gathered.
    Haves(BlobName),
    /// Tell other zones the haves gathered for them.
    FarHaves(BlobName),
    /// Look at a search's progress.
    Search(BlobName),
    /// Something that kept a swarm from requesting may be over.
    Fill(BlobName),
    /// A swarm may have outlived its use.
    Linger(BlobName),
    /// A peer may have stalled.
    Stall(PeerId),
    /// A connection may have outlived its use.
    Idle(PeerId),
    /// Budget or a stuck slot may allow the next upload.
    Uploads,
}

/// A deadline: when, and the how manieth that was set.
type Place = (Timestamp, u64);

/// A standing deadline: its place, and its timer's number.
type Standing = Option<(Place, usize)>;

#[derive(Debug, Default)]
struct OfSwarm {
    haves: Standing,
    far_haves: Standing,
    search: Standing,
    fill: Standing,
    linger: Standing,
}

#[derive(Debug, Default)]
struct OfPeer {
    stall: Standing,
    idle: Standing,
}

/// Standing deadlines by name. Whoever has none is not kept.
#[derive(Debug, Default)]
// In the order of use: docs/adr/0018.
#[repr(C, align(64))]
struct Names {
    swarms: Named<OfSwarm>,
    uploads: Standing,
    peers: Map<PeerId, OfPeer>,
}

impl Names {
    fn get(&self, timer: Timer) -> Standing {
        match timer {
            Timer::Haves(name) => self.swarms.get(name)?.haves,
            Timer::FarHaves(name) => self.swarms.get(name)?.far_haves,
            Timer::Search(name) => self.swarms.get(name)?.search,
            Timer::Fill(name) => self.swarms.get(name)?.fill,
            Timer::Linger(name) => self.swarms.get(name)?.linger,
            Timer::Stall(peer) => self.peers.get(&peer)?.stall,
            Timer::Idle(peer) => self.peers.get(&peer)?.idle,
            Timer::Uploads => self.uploads,
        }
    }

    fn get_mut(&mut self, timer: Timer) -> Option<&mut Standing> {
        Some(match timer {
            Timer::Haves(name) => &mut self.swarm(name)?.haves,
            Timer::FarHaves(name) => &mut self.swarm(name)?.far_haves,
            Timer::Search(name) => &mut self.swarm(name)?.search,
            Timer::Fill(name) => &mut self.swarm(name)?.fill,
            Timer::Linger(name) => &mut self.swarm(name)?.linger,
            Timer::Stall(peer) => &mut self.peer(peer)?.stall,
            Timer::Idle(peer) => &mut self.peer(peer)?.idle,
            Timer::Uploads => &mut self.uploads,
        })
    }

    fn swarm(&mut self, name: BlobName) -> Option<&mut OfSwarm> {
        if !self.swarms.contains(name) {
            self.swarms.insert(name, OfSwarm::default());
        }
        self.swarms.get_mut(name)
    }

    fn peer(&mut self, peer: PeerId) -> Option<&mut OfPeer> {
        self.peers.get_or_insert_with(peer, OfPeer::default)
    }

    /// Takes a deadline out.
    fn take(&mut self, timer: Timer) -> Standing {
        self.get(timer)?;
        let taken = self.get_mut(timer)?.take();
        match timer {
            Timer::Haves(name)
            | Timer::FarHaves(name)
            | Timer::Search(name)
            | Timer::Fill(name)
            | Timer::Linger(name) => {
                let OfSwarm { haves, far_haves, search, fill, linger } = self.swarms.get(name)?;
                if [haves, far_haves, search, fill, linger].iter().all(|standing| standing.is_none()) {
                    self.swarms.remove(name);
                }
            }
            Timer::Stall(peer) | Timer::Idle(peer) => {
                let OfPeer { stall, idle } = self.peers.get(&peer)?;
                if stall.is_none() && idle.is_none() {
                    self.peers.swap_remove(&peer);
                }
            }
            Timer::Uploads => {}
        }
        taken
    }
}

/// At most one deadline a [`Timer`].
#[derive(Debug, Default)]
// In the order of use: docs/adr/0018.
#[repr(C, align(64))]
pub(crate) struct Timers {
    /// The first of `by_time`, and its timer's number: asked for after every input.
    first: Option<(Timestamp, usize)>,
    /// Numbers of timers by time and, at one time, in the order in which they were set.
    by_time: BTreeMap<Place, usize>,
    /// Times that a deadline was set.
    sets: u64,
    by_name: Names,
    /// Timers by number, and the numbers that are free.
    names: Vec<Timer>,
    unused: Vec<usize>,
}

impl Timers {
    /// Sets or moves a deadline.
    pub(crate) fn set(&mut self, timer: Timer, at: Timestamp) {
        self.sets = self.sets.wrapping_add(1);
        let place = (at, self.sets);
        let Some(standing) = self.by_name.get_mut(timer) else { return };
        let number = match standing {
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
                *standing = Some((place, number));
                number
            }
        };
        self.by_time.insert(place, number);
        self.note_first();
    }

    /// Sets a deadline unless an earlier one stands.
    pub(crate) fn set_earlier(&mut self, timer: Timer, at: Timestamp) {
        if self.by_name.get(timer).is_none_or(|((standing, _), _)| at < standing) {
            self.set(timer, at);
        }
    }

    pub(crate) fn cancel(&mut self, timer: Timer) {
        if let Some((place, number)) = self.by_name.take(timer) {
            self.by_time.remove(&place);
            self.unused.push(number);
            self.note_first();
        }
    }

    fn note_first(&mut self) {
        self.first = self.by_time.first_key_value().map(|((at, _), number)| (*at, *number));
    }

    pub(crate) fn is_set(&self, timer: Timer) -> bool {
        self.by_name.get(timer).is_some()
    }

    /// Prefetches where deadlines are found.
    pub(crate) fn prefetch_head(&self) {
        prefetch(&self.first);
        prefetch(&self.by_name.swarms);
        prefetch(&self.names);
    }

    /// What is due next.
    pub(crate) fn next_timer(&self) -> Option<Timer> {
        self.names.get(self.first?.1).copied()
    }

    /// Prefetches what [`Self::next_timer`] reads.
    pub(crate) fn prefetch_next(&self) {
        if let Some((_, number)) = self.first {
            prefetch_at(&self.names, number);
        }
    }

    pub(crate) fn next(&self) -> Option<Timestamp> {
        self.first.map(|(at, _)| at)
    }

    /// Takes out what is due at `now`.
    pub(crate) fn take_due(&mut self, now: Timestamp) -> Vec<Timer> {
        let mut due = Vec::new();
        while let Some(first) = self.by_time.first_entry().filter(|first| first.key().0 <= now) {
            let number = first.remove();
            self.unused.push(number);
            let Some(timer) = self.names.get(number) else { continue };
            self.by_name.take(*timer);
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
    /// Every operation against the naive model: a list of names with their deadlines, in the order in which they were set.
    #[test]
    fn deadlines_are_those_of_a_list() {
        let blobs = [1, 2].map(BlobName::of);
        let names: Vec<Timer> = blobs
            .into_iter()
            .flat_map(|blob| {
                let of = [Timer::Haves, Timer::FarHaves, Timer::Search, Timer::Fill, Timer::Linger];
                of.map(|name| name(blob))
            })
            .chain((0..40).flat_map(|n| {
                let peer = PeerId::from_public_key([n; 32]);
                [Timer::Stall(peer), Timer::Idle(peer)]
            }))
            .chain([Timer::Uploads])
            .collect();
        let mut random = crate::random::Random::new(3);
        let mut draw = |bound| random.below(bound);
        let at = |ms: usize| Timestamp::from_start(Duration::from_millis(ms as u64));
        let (mut timers, mut model) = (Timers::default(), Vec::<(Timestamp, Timer)>::new());
        for now in 0..20_000 {
            let name = names[draw(names.len())];
            let then = at(now / 20 + draw(60));
            let known = model.iter().position(|(_, known)| *known == name);
            let op = draw(4);
            let moved = match (op, known) {
                (0, Some(place)) => {
                    timers.cancel(name);
                    model.remove(place);
                    false
                }
                (1, Some(place)) => model[place].0 != then,
                (_, Some(place)) => model[place].0 > then,
                (0, None) => false,
                (_, None) => true,
            };
            match op {
                0 => timers.cancel(name),
                1 => timers.set(name, then),
                _ => timers.set_earlier(name, then),
            }
            if moved {
                model.retain(|(_, known)| *known != name);
                model.push((then, name));
            }
            model.sort_by_key(|(at, _)| *at);
            let due = model.partition_point(|(then, _)| *then <= at(now / 20));
            let due: Vec<Timer> = model.drain(..due).map(|(_, name)| name).collect();
            assert_eq!(timers.take_due(at(now / 20)), due);
            assert_eq!(timers.next(), model.first().map(|(at, _)| *at));
            assert_eq!(timers.next_timer(), model.first().map(|(_, name)| *name));
            let name = names[draw(names.len())];
            assert_eq!(timers.is_set(name), model.iter().any(|(_, known)| *known == name));
        }
        let kept = (timers.by_name.swarms.len(), timers.by_name.peers.len(), timers.names.len());
        assert!(kept.0 <= 2 && kept.1 <= model.len() && kept.2 <= names.len(), "{kept:?}");
    }
}
