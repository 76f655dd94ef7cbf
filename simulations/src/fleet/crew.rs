//! Threads that share the parts of one step after the other.
//!
//! A step is a millisecond or two of work. A thread that sleeps until the next one is woken late, and a processor that rests meanwhile
//! begins slowly, so they spin.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Looks at what another thread does before the processor is offered to others: a millisecond or less.
const SPINS: u32 = 1 << 13;

/// This thread and its helpers, while they are at work.
#[derive(Debug)]
pub(crate) struct Crew<P> {
    part: P,
    parts: usize,
    /// The number of the step.
    step: AtomicU64,
    /// The next part of it that nobody has taken; from `parts` on there is none.
    next: AtomicUsize,
    /// Parts that are done.
    done: AtomicUsize,
    /// A part panicked.
    failed: AtomicBool,
    over: AtomicBool,
}

/// Lets `lead` run steps of so many parts, of which `helpers` take some.
///
/// # Panics
/// When a part did, on whichever thread.
pub(crate) fn work<P: Fn(usize) + Sync, R>(
    helpers: usize,
    parts: usize,
    part: P,
    lead: impl FnOnce(&Crew<P>) -> R,
) -> R {
    let crew = Crew {
        part,
        parts,
        step: AtomicU64::new(0),
        next: AtomicUsize::new(parts),
        done: AtomicUsize::new(0),
        failed: AtomicBool::new(false),
        over: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        // Also when `lead` panics: the scope waits for them.
        let _over = Over(&crew.over);
        (0..helpers).for_each(|_| drop(scope.spawn(|| crew.help())));
        lead(&crew)
    })
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl<P: Fn(usize)> Crew<P> {
    /// Runs all parts of a step, each once, and returns when they are done; `false` when one of a helper's panicked.
    pub(crate) fn run(&self) -> bool {
        // Nobody takes any before `next` is set.
        self.done.store(0, Ordering::SeqCst);
        self.next.store(0, Ordering::SeqCst);
        self.step.fetch_add(1, Ordering::SeqCst);
        self.take_parts();
        wait_until(|| self.done.load(Ordering::SeqCst) >= self.parts);
        !self.failed.load(Ordering::SeqCst)
    }

    fn help(&self) {
        let mut seen = 0;
        loop {
            wait_until(|| self.over.load(Ordering::SeqCst) || self.step.load(Ordering::SeqCst) != seen);
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            seen = self.step.load(Ordering::SeqCst);
            self.take_parts();
        }
    }

    fn take_parts(&self) {
        loop {
            let part = self.next.fetch_add(1, Ordering::SeqCst);
            if part >= self.parts {
                return;
            }
            let _done = Done(self);
            (self.part)(part);
        }
    }
}

/// Counts a part as done, whether it was or panicked.
struct Done<'a, P>(&'a Crew<P>);

impl<P> Drop for Done<'_, P> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed.store(true, Ordering::SeqCst);
        }
        self.0.done.fetch_add(1, Ordering::SeqCst);
    }
}

fn wait_until(ready: impl Fn() -> bool) {
    let mut spins = 0;
    while !ready() {
        if spins < SPINS {
            spins += 1;
            spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_every_step_is_run_once() {
        for helpers in [0, 1, 4] {
            let runs: Vec<AtomicUsize> = std::iter::repeat_with(AtomicUsize::default).take(7).collect();
            let part = |number: usize| {
                runs[number].fetch_add(1, Ordering::SeqCst);
            };
            let steps = work(helpers, runs.len(), part, |crew| {
                let whole = |step: &usize| {
                    crew.run() && runs.iter().all(|runs| runs.load(Ordering::SeqCst) == step + 1)
                };
                (0..2000).take_while(whole).count()
            });
            assert_eq!(steps, 2000, "{helpers} helpers");
        }
    }

    #[test]
    fn a_panic_ends_all_threads() {
        // On whichever of them: that is chance.
        for last in 0..50 {
            let steps = AtomicUsize::new(0);
            let part = |number: usize| {
                assert!(number != 3 || steps.fetch_add(1, Ordering::SeqCst) < last, "as it should");
            };
            let run = || work(2, 5, part, |crew| while crew.run() {});
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
        }
    }
}
