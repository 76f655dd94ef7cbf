//! Steps and strides: the shards run at the same time for a step and exchange mail, and the wire runs beside for a stride of a few
//! steps.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Fleet;
use super::crew::{self, Crew};
use super::mail::Outbox;
use super::node::Opened;
use super::shard::Shard;
use super::wire::Wire;
use super::world::World;

/// Nodes of a shard at least: smaller ones are not worth a thread.
const SHARD_NODES_MIN: usize = 32;
/// Binary logarithm of the most shards.
const SHARD_BITS_MAX: u32 = 4;
/// Steps are shared out to threads when the one before had so many events.
const SHARED_EVENTS_MIN: u64 = 64;
/// Longest stride in nanoseconds: enough for setting all rates anew, of which there is much at a time. What a node wishes takes effect
/// at the wire two strides later at the latest, so a stride is no longer than half of what reading a piece takes: no send is late by
/// it. A connection that is opened may be, by a few hundred microseconds.
pub(super) const STRIDE_MAX: u64 = 600_000;

/// What runs at the same time.
struct Parts<'a> {
    world: &'a World,
    wire: Mutex<&'a mut Wire>,
    shards: Vec<Mutex<&'a mut Shard>>,
    /// The shards run until then in this step.
    until: AtomicU64,
    /// The wire runs until then in this stride; zero when it rests.
    ahead: AtomicU64,
}

impl<'a> Parts<'a> {
    fn run(&self, shard: usize) {
        if let Some(shard) = self.shards.get(shard) {
            lock(shard).run(self.world, self.until.load(Ordering::SeqCst));
        }
    }

    fn run_wire(&self) {
        match self.ahead.load(Ordering::SeqCst) {
            0 => {}
            ahead => lock(&self.wire).run(self.world, ahead),
        }
    }

    fn meet(&self) -> Meeting<'_, 'a> {
        Meeting { shards: self.shards.iter().map(lock).collect() }
    }
}

/// All shards, between two steps.
struct Meeting<'m, 'a> {
    shards: Vec<MutexGuard<'m, &'a mut Shard>>,
}

impl Meeting<'_, '_> {
    fn events(&self) -> u64 {
        self.shards.iter().map(|shard| shard.events).sum()
    }

    fn open_readers(&self) -> usize {
        self.shards.iter().map(|shard| shard.open_readers).sum()
    }

    fn violation(&self) -> Option<String> {
        let violations = self.shards.iter().filter_map(|shard| shard.violation.as_ref());
        let (at, what) = violations.min_by_key(|(at, _)| *at)?;
        Some(format!("at {:.6} s: {what}", *at as f64 / 1e9))
    }

    /// When something happens next at a node, mail aside; `u64::MAX` when nothing does.
    fn next_at(&mut self) -> u64 {
        self.shards.iter_mut().map(|shard| shard.next_at()).min().unwrap_or(u64::MAX)
    }

    /// Hands all mail of the shards to those it is for; returns the first time that any of it is for.
    fn exchange(&mut self) -> u64 {
        let mut first = u64::MAX;
        for from in 0..self.shards.len() {
            let mut outbox = std::mem::take(&mut self.shards[from].outbox);
            first = first.min(self.deliver(from, &mut outbox));
            self.shards[from].outbox = outbox;
        }
        first
    }

    /// The same with the wire, which gets the nodes' wishes.
    fn exchange_with(&mut self, wire: &mut Wire) -> u64 {
        for (shard, ops) in self.shards.iter_mut().zip(&mut wire.inbox) {
            hand_over(&mut shard.ops, ops);
        }
        self.deliver(self.shards.len(), &mut wire.outbox)
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
        let Self { world, wire, shards, now, mail_at, busy, violation, step, reads, threads, .. } = self;
        let helpers = (*threads).min(shards.len()).saturating_sub(1);
        let (step, stride) = (*step, stride(*step, reads.time_min()));
        let parts = Parts {
            world,
            wire: Mutex::new(wire),
            shards: shards.iter_mut().map(Mutex::new).collect(),
            until: AtomicU64::new(0),
            ahead: AtomicU64::new(0),
        };
        let lead = |crew: &Crew<_, _>| loop {
            let (mut meeting, mut wire) = (parts.meet(), lock(&parts.wire));
            if readers_end && meeting.open_readers() == 0 {
                return true;
            }
            *mail_at = (*mail_at).min(meeting.exchange()).min(meeting.exchange_with(&mut wire));
            let mut from = meeting.next_at().min(*mail_at);
            let next = from.min(wire.next_at());
            if violation.is_some() || next > end || next == u64::MAX {
                return false;
            }
            // The nodes run until where the wire is, and the wire a stride further meanwhile.
            if next >= wire.until {
                wire.skip_to(next);
            }
            let until = wire.until.min(end.saturating_add(1));
            let ahead = if until == wire.until { until.saturating_add(stride) } else { 0 };
            parts.ahead.store(ahead, Ordering::SeqCst);
            drop((meeting, wire));
            let shared = *busy >= SHARED_EVENTS_MIN;
            if shared {
                crew.hand_out();
            } else {
                parts.run_wire();
            }
            while from < until {
                let to = from.saturating_add(step).min(until);
                parts.until.store(to, Ordering::SeqCst);
                let before = parts.meet().events();
                if *busy < SHARED_EVENTS_MIN {
                    (0..parts.shards.len()).for_each(|shard| parts.run(shard));
                } else if !crew.run() {
                    return false;
                }
                let mut meeting = parts.meet();
                *busy = meeting.events() - before;
                *mail_at = meeting.exchange();
                from = to.max(meeting.next_at().min(*mail_at));
            }
            if shared && !crew.finish_aside() {
                return false;
            }
            *now = until.min(end);
            *violation = parts.meet().violation();
        };
        crew::work(helpers, parts.shards.len(), |shard| parts.run(shard), || parts.run_wire(), lead)
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

/// The length of a stride in nanoseconds: of so many steps that no piece is read in less than two.
fn stride(step: u64, read_min: u64) -> u64 {
    ((read_min / 2).min(STRIDE_MAX) / step).max(1) * step
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

#[cfg(test)]
mod tests {
    use super::super::{DiskSpec, Reads};
    use super::*;

    #[test]
    fn two_strides_are_no_longer_than_a_read() {
        // Pieces of a fleet, its disks, its step, and how many of them a stride has.
        let quick = DiskSpec { read_bytes_per_sec: None, ..DiskSpec::default() };
        let cases = [
            (2 << 20, vec![DiskSpec::default()], 200_000, 3),
            (1 << 20, vec![DiskSpec::default()], 200_000, 2),
            (256 << 10, vec![DiskSpec::default()], 200_000, 1),
            (256 << 10, vec![DiskSpec::default()], 50_000, 4),
            (2 << 20, vec![DiskSpec::default(), quick], 50_000, 3),
            (2 << 20, vec![DiskSpec::default()], 5_000_000, 1),
        ];
        for (piece_bytes_min, disks, step, steps) in cases {
            let mut reads = Reads { piece_bytes_min, ..Reads::default() };
            disks.iter().for_each(|disk| reads.note(disk));
            assert_eq!(stride(step, reads.time_min()), steps * step, "{reads:?}");
        }
        assert_eq!(stride(10_000, Reads::default().time_min()), STRIDE_MAX, "nothing is read");
    }
}
