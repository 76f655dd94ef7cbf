//! Steps: the wire and all shards run at the same time, and exchange mail in between.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Fleet;
use super::crew;
use super::mail::Outbox;
use super::node::Opened;
use super::shard::Shard;
use super::wire::Wire;
use super::world::World;

/// Nodes of a shard at least: smaller ones are not worth a thread.
const SHARD_NODES_MIN: usize = 32;
/// Binary logarithm of the most shards.
const SHARD_BITS_MAX: u32 = 4;
/// A step is shared out to threads when the one before had so many events.
const SHARED_EVENTS_MIN: u64 = 64;

/// What runs at the same time.
struct Parts<'a> {
    world: &'a World,
    wire: Mutex<&'a mut Wire>,
    shards: Vec<Mutex<&'a mut Shard>>,
    /// The shards run until then in this step.
    until: AtomicU64,
    /// The wire runs until then; zero when it rests.
    ahead: AtomicU64,
}

impl<'a> Parts<'a> {
    fn count(&self) -> usize {
        self.shards.len() + 1
    }

    /// The wire, which takes longest, and then the shards.
    fn run(&self, part: usize) {
        match part.checked_sub(1).and_then(|shard| self.shards.get(shard)) {
            Some(shard) => lock(shard).run(self.world, self.until.load(Ordering::SeqCst)),
            None => match self.ahead.load(Ordering::SeqCst) {
                0 => {}
                ahead => lock(&self.wire).run(self.world, ahead),
            },
        }
    }

    fn meet(&self) -> Meeting<'_, 'a> {
        Meeting { wire: lock(&self.wire), shards: self.shards.iter().map(lock).collect() }
    }
}

/// All parts, between two steps.
struct Meeting<'m, 'a> {
    wire: MutexGuard<'m, &'a mut Wire>,
    shards: Vec<MutexGuard<'m, &'a mut Shard>>,
}

impl Meeting<'_, '_> {
    fn events(&self) -> u64 {
        self.wire.events + self.shards.iter().map(|shard| shard.events).sum::<u64>()
    }

    fn open_readers(&self) -> usize {
        self.shards.iter().map(|shard| shard.open_readers).sum()
    }

    fn violation(&self) -> Option<String> {
        let violations = self.shards.iter().filter_map(|shard| shard.violation.as_ref());
        let (at, what) = violations.min_by_key(|(at, _)| *at)?;
        Some(format!("at {:.6} s: {what}", *at as f64 / 1e9))
    }

    /// When something happens next, mail aside; `u64::MAX` when nothing does.
    fn next_at(&mut self) -> u64 {
        let nodes = self.shards.iter_mut().map(|shard| shard.next_at()).min().unwrap_or(u64::MAX);
        nodes.min(self.wire.next_at())
    }

    /// Hands all mail and wishes over to whom they are for; returns the first time that any of it is for.
    fn exchange(&mut self) -> u64 {
        let mut first = u64::MAX;
        for from in 0..self.shards.len() {
            let shard = &mut **self.shards[from];
            hand_over(&mut shard.ops, &mut self.wire.inbox[from]);
            let mut outbox = std::mem::take(&mut shard.outbox);
            first = first.min(self.deliver(from, &mut outbox));
            self.shards[from].outbox = outbox;
        }
        let mut outbox = std::mem::take(&mut self.wire.outbox);
        first = first.min(self.deliver(self.shards.len(), &mut outbox));
        self.wire.outbox = outbox;
        first
    }

    fn deliver(&mut self, from: usize, outbox: &mut Outbox) -> u64 {
        let earliest = std::mem::replace(&mut outbox.earliest, u64::MAX);
        if earliest < u64::MAX {
            for (mail, shard) in outbox.boxes.iter_mut().zip(&mut self.shards) {
                hand_over(mail, &mut shard.inbox[from]);
            }
        }
        earliest
    }
}

impl Fleet {
    /// Runs until the end of `end`, as long as anything happens; with `readers_end` until no reader is open, and returns whether
    /// that was so.
    pub(super) fn run_to(&mut self, end: u64, readers_end: bool) -> bool {
        self.spread_out();
        for (node, posted) in std::mem::take(&mut self.posted) {
            self.shard_mut(node as usize).accept(posted);
        }
        let Self { world, wire, shards, now, mail_at, busy, violation, .. } = self;
        let helpers = self.threads.min(shards.len()).saturating_sub(1);
        let parts = Parts {
            world,
            wire: Mutex::new(wire),
            shards: shards.iter_mut().map(Mutex::new).collect(),
            until: AtomicU64::new(0),
            ahead: AtomicU64::new(0),
        };
        crew::work(
            helpers,
            parts.count(),
            |part| parts.run(part),
            |crew| loop {
                let mut meeting = parts.meet();
                if readers_end && meeting.open_readers() == 0 {
                    return true;
                }
                *mail_at = meeting.exchange().min(*mail_at);
                let next = meeting.next_at().min(*mail_at);
                if violation.is_some() || next > end || next == u64::MAX {
                    return false;
                }
                // The nodes run until where the wire is, and the wire a step further meanwhile.
                if next >= meeting.wire.until {
                    meeting.wire.skip_to(next);
                }
                let until = meeting.wire.until.min(end.saturating_add(1));
                let ahead = if until == meeting.wire.until { until.saturating_add(self.step) } else { 0 };
                parts.until.store(until, Ordering::SeqCst);
                parts.ahead.store(ahead, Ordering::SeqCst);
                let before = meeting.events();
                drop(meeting);
                if *busy < SHARED_EVENTS_MIN {
                    (0..parts.count()).for_each(|part| parts.run(part));
                } else if !crew.run() {
                    return false;
                }
                let meeting = parts.meet();
                *mail_at = u64::MAX;
                *now = until.min(end);
                *busy = meeting.events() - before;
                *violation = meeting.violation();
            },
        )
    }

    /// Spreads the nodes over their shards, before anything happens.
    fn spread_out(&mut self) {
        if std::mem::replace(&mut self.spread, true) {
            return;
        }
        let bits = (self.node_count() / SHARD_NODES_MIN).max(1).ilog2().min(SHARD_BITS_MAX);
        let shards = (0..1 << bits).map(|_| Shard::new(bits)).collect();
        for before in std::mem::replace(&mut self.shards, shards) {
            self.shards.iter_mut().for_each(|shard| shard.trace.filter = before.trace.filter);
            for (id, node) in before.nodes.into_iter().enumerate() {
                let shard = self.shard_mut(id);
                let open = |opened: &&Opened| opened.live && !opened.outcome.is_over();
                shard.open_readers += node.readers.iter().filter(open).count();
                shard.nodes.push(node);
            }
        }
        self.wire.inbox.resize_with(self.shards.len(), Vec::new);
        self.wire.outbox = Outbox::new(self.shards.len());
    }
}

/// What panicked is of no use any more, but the panic is what is to be seen.
fn lock<T>(part: &Mutex<T>) -> MutexGuard<'_, T> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Moves all of one list behind another. Lists that take turns keep their room.
fn hand_over<T>(from: &mut Vec<T>, to: &mut Vec<T>) {
    if to.is_empty() {
        std::mem::swap(from, to);
    } else {
        to.append(from);
    }
}
