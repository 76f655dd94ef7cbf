//! Whether what clients saw of a register can be explained by one order of its operations: linearizability, by the search of
//! Wing and Gong ("Testing and Verifying Concurrent Objects", 1993) with the memory of Lowe ("Testing for
//! Linearizability", 2017): a set of operations done and a value reached are tried once.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Debug;
use std::hash::Hash;

/// What a client did to a register, and what it was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op<V> {
    /// It wrote this.
    Write(V),
    /// It read this.
    Read(V),
}

/// One operation, with when it was called and when it returned, on one clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<V> {
    /// Who, for people.
    pub client: String,
    /// What.
    pub op: Op<V>,
    /// When it was called.
    pub called: u64,
    /// When it returned; `None` when it failed: such a write may take effect at any time after its call, or never.
    pub returned: Option<u64>,
}

/// No order explains the history.
#[derive(Debug)]
pub struct Violation(String);

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}

/// Looks for an order of a register's operations in which each lies between its call and its return and every read gives
/// what was written last. Reads that failed are no part of a history. Returns how many states were tried.
///
/// # Errors
/// [`Violation`], with the operations at which every order ends.
pub fn check<V: Clone + Eq + Hash + Debug>(initial: &V, history: &[Event<V>]) -> Result<usize, Violation> {
    let events = relevant(history);
    let mut tried = HashSet::new();
    let mut longest = Place { done: 0, beyond: BTreeSet::new(), value: initial.clone() };
    let mut stack = vec![longest.clone()];
    while let Some(place) = stack.pop() {
        if !tried.insert(place.clone()) {
            continue;
        }
        // What is left are writes that failed: they may never have happened.
        if place.open(&events).all(|(_, event)| event.returned.is_none()) {
            return Ok(tried.len());
        }
        if place.count() > longest.count() {
            longest = place.clone();
        }
        // Whatever comes next was called before anything that is open returned.
        let end = place.open(&events).filter_map(|(_, event)| event.returned).min().unwrap_or(u64::MAX);
        let next = place.open(&events).take_while(|(_, event)| event.called <= end);
        let next = next.filter_map(|(number, event)| place.after(number, &event.op, &events));
        stack.extend(next.collect::<Vec<_>>().into_iter().rev());
    }
    let open: Vec<_> = longest.open(&events).take(8).map(|(_, event)| format!("  {event:?}")).collect();
    Err(Violation(format!(
        "no order explains the history: after {} of {} operations the value is {:?}, and none of these can come next:\n{}",
        longest.count(),
        events.len(),
        longest.value,
        open.join("\n")
    )))
}

/// The operations by their calls, without failed writes that nobody has seen the value of: whether they happened makes no
/// difference.
fn relevant<V: Clone + Eq + Hash>(history: &[Event<V>]) -> Vec<Event<V>> {
    let read: HashSet<&V> = history
        .iter()
        .filter_map(|event| match &event.op {
            Op::Read(value) => Some(value),
            Op::Write(_) => None,
        })
        .collect();
    let counts = |event: &&Event<V>| match &event.op {
        Op::Write(value) => event.returned.is_some() || read.contains(value),
        Op::Read(_) => event.returned.is_some(),
    };
    let mut events: Vec<_> = history.iter().filter(counts).cloned().collect();
    events.sort_by_key(|event| event.called);
    events
}

/// How far an order has come.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Place<V> {
    /// All operations before this one are done.
    done: usize,
    /// And these after it.
    beyond: BTreeSet<usize>,
    value: V,
}

impl<V: Clone + Eq> Place<V> {
    fn count(&self) -> usize {
        self.done + self.beyond.len()
    }

    fn open<'a>(&'a self, events: &'a [Event<V>]) -> impl Iterator<Item = (usize, &'a Event<V>)> {
        let all = events.iter().enumerate().skip(self.done);
        all.filter(|(number, _)| !self.beyond.contains(number))
    }

    fn after(&self, number: usize, op: &Op<V>, events: &[Event<V>]) -> Option<Self> {
        let value = match op {
            Op::Write(value) => value.clone(),
            Op::Read(value) if *value == self.value => value.clone(),
            Op::Read(_) => return None,
        };
        let (mut done, mut beyond) = (self.done, self.beyond.clone());
        beyond.insert(number);
        while done < events.len() && beyond.remove(&done) {
            done += 1;
        }
        Some(Self { done, beyond, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::{Rng as _, SeedableRng as _};
    use rand_pcg::Pcg64Mcg;

    fn event(op: Op<u32>, called: u64, returned: impl Into<Option<u64>>) -> Event<u32> {
        Event { client: String::new(), op, called, returned: returned.into() }
    }

    fn is_linearizable(history: &[Event<u32>]) -> bool {
        check(&0, history).is_ok()
    }

    #[test]
    fn reads_see_the_last_write_that_returned() {
        assert!(is_linearizable(&[]));
        assert!(is_linearizable(&[event(Op::Write(1), 0, 1), event(Op::Read(1), 2, 3)]));
        assert!(!is_linearizable(&[event(Op::Write(1), 0, 1), event(Op::Read(0), 2, 3)]), "a lost write");
        assert!(is_linearizable(&[event(Op::Write(1), 0, 5), event(Op::Read(0), 1, 2)]), "side by side");
        let inverted = [event(Op::Write(1), 0, 9), event(Op::Read(1), 1, 2), event(Op::Read(0), 3, 4)];
        assert!(!is_linearizable(&inverted), "new, then old");
        let back = [
            event(Op::Write(1), 0, 1),
            event(Op::Write(2), 2, 3),
            event(Op::Read(2), 4, 5),
            event(Op::Read(1), 6, 7),
        ];
        assert!(!is_linearizable(&back), "an old value came back");
    }

    #[test]
    fn failed_writes_may_happen_late_or_never_but_once() {
        let failed = event(Op::Write(1), 0, None);
        assert!(is_linearizable(&[failed.clone(), event(Op::Read(0), 1, 2)]));
        assert!(is_linearizable(&[failed.clone(), event(Op::Read(0), 1, 2), event(Op::Read(1), 3, 4)]));
        let twice = [
            failed.clone(),
            event(Op::Read(1), 1, 2),
            event(Op::Write(2), 3, 4),
            event(Op::Read(2), 5, 6),
            event(Op::Read(1), 7, 8),
        ];
        assert!(!is_linearizable(&twice), "it happened twice");
        assert!(
            !is_linearizable(&[event(Op::Read(1), 0, 1), event(Op::Write(1), 2, None)]),
            "before its call"
        );
    }

    /// Histories of a real register: each operation happens at a moment between its call and its return.
    fn real_history(seed: u64) -> Vec<Event<u32>> {
        let mut random = Pcg64Mcg::seed_from_u64(seed);
        let mut moments: Vec<(u64, u64, u64, bool)> = (0..200)
            .map(|number| {
                let called = number * 5 + u64::from(random.next_u32() % 20);
                let moment = called + 1 + u64::from(random.next_u32() % 20);
                (
                    moment,
                    called,
                    moment + 1 + u64::from(random.next_u32() % 20),
                    random.next_u32().is_multiple_of(3),
                )
            })
            .collect();
        moments.sort_unstable();
        let mut value = 0;
        let of = |(number, (_, called, returned, write)): (usize, (u64, u64, u64, bool))| {
            if write {
                value = number as u32 + 1;
                let returned = (!random.next_u32().is_multiple_of(10)).then_some(returned);
                return event(Op::Write(value), called, returned);
            }
            event(Op::Read(value), called, returned)
        };
        moments.into_iter().enumerate().map(of).collect()
    }

    #[test]
    fn real_registers_pass_and_forged_reads_do_not() {
        let mut caught = 0;
        for seed in 0..50 {
            let mut history = real_history(seed);
            check(&0, &history).unwrap();
            // A read of what was written forty operations before it.
            let old = history.iter().position(|event| matches!(event.op, Op::Write(_))).unwrap();
            let Op::Write(value) = history[old].op else { unreachable!() };
            let late = history.iter().rposition(|event| matches!(event.op, Op::Read(_))).unwrap();
            history[late].op = Op::Read(value);
            caught += u32::from(!is_linearizable(&history));
        }
        // A failed write may happen as late as that.
        assert!(caught >= 40, "{caught} of 50");
    }
}
