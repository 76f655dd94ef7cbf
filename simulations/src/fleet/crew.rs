//! Threads that share the parts of one step after the other, and one of which does something else beside several steps.
//!
//! A step is a millisecond or two of work. A thread that sleeps until the next one is woken late, and a processor that rests meanwhile
//! begins slowly, so they spin.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Looks at what another thread does before the processor is offered to others: a millisecond or less.
const SPINS: u32 = 1 << 13;

/// This thread and its helpers, while they are at work.
#[derive(Debug)]
pub(crate) struct Crew<P, A> {
    part: P,
    parts: usize,
    /// The number of the step.
    step: AtomicU64,
    /// The next part of it that nobody has taken; from `parts` on there is none.
    next: AtomicUsize,
    /// Parts that are done.
    done: AtomicUsize,
    /// What is done beside steps.
    aside: A,
    /// Times that it was handed out, was taken by somebody, and is done.
    aside_handed: AtomicUsize,
    aside_taken: AtomicUsize,
    aside_done: AtomicUsize,
    /// Something panicked.
    failed: AtomicBool,
    over: AtomicBool,
}

/// Lets `lead` run steps of so many parts, of which `helpers` take some, and hand out what is to be done aside.
///
/// # Panics
/// When a part did, on whichever thread.
pub(crate) fn work<P: Fn(usize) + Sync, A: Fn() + Sync, R>(
    helpers: usize,
    parts: usize,
    part: P,
    aside: A,
    lead: impl FnOnce(&Crew<P, A>) -> R,
) -> R {
    let crew = Crew {
        part,
        parts,
        step: AtomicU64::new(0),
        next: AtomicUsize::new(parts),
        done: AtomicUsize::new(0),
        aside,
        aside_handed: AtomicUsize::new(0),
        aside_taken: AtomicUsize::new(0),
        aside_done: AtomicUsize::new(0),
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

impl<P: Fn(usize), A: Fn()> Crew<P, A> {
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

    /// Hands out what is to be done aside: the first helper that is free does it. What was handed out before is done.
    pub(crate) fn hand_out(&self) {
        self.aside_handed.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns when what was handed out is done, whoever does it; `false` when something panicked.
    pub(crate) fn finish_aside(&self) -> bool {
        self.take_aside();
        let handed = self.aside_handed.load(Ordering::SeqCst);
        wait_until(|| self.aside_done.load(Ordering::SeqCst) >= handed);
        !self.failed.load(Ordering::SeqCst)
    }

    fn help(&self) {
        let mut seen = 0;
        loop {
            let is_over = || self.over.load(Ordering::SeqCst);
            let has_step = || self.step.load(Ordering::SeqCst) != seen;
            wait_until(|| is_over() || has_step() || self.has_aside());
            if is_over() {
                return;
            }
            if !self.take_aside() && has_step() {
                seen = self.step.load(Ordering::SeqCst);
                self.take_parts();
            }
        }
    }

    fn take_parts(&self) {
        loop {
            let part = self.next.fetch_add(1, Ordering::SeqCst);
            if part >= self.parts {
                return;
            }
            let _done = Done { failed: &self.failed, count: &self.done };
            (self.part)(part);
        }
    }

    fn has_aside(&self) -> bool {
        self.aside_taken.load(Ordering::SeqCst) < self.aside_handed.load(Ordering::SeqCst)
    }

    /// Does what was handed out, unless somebody else does.
    fn take_aside(&self) -> bool {
        let next = |taken: usize| (taken < self.aside_handed.load(Ordering::SeqCst)).then_some(taken + 1);
        if self.aside_taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next).is_err() {
            return false;
        }
        let _done = Done { failed: &self.failed, count: &self.aside_done };
        (self.aside)();
        true
    }
}

/// Counts something as done, whether it was or panicked.
struct Done<'a> {
    failed: &'a AtomicBool,
    count: &'a AtomicUsize,
}

impl Drop for Done<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.failed.store(true, Ordering::SeqCst);
        }
        self.count.fetch_add(1, Ordering::SeqCst);
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
    fn every_part_of_every_step_is_run_once_and_what_is_aside_too() {
        for helpers in [0, 1, 4] {
            let runs: Vec<AtomicUsize> = std::iter::repeat_with(AtomicUsize::default).take(7).collect();
            let asides = AtomicUsize::new(0);
            let part = |number: usize| {
                runs[number].fetch_add(1, Ordering::SeqCst);
            };
            let aside = || {
                asides.fetch_add(1, Ordering::SeqCst);
            };
            let steps = work(helpers, runs.len(), part, aside, |crew| {
                let whole = |step: &usize| {
                    crew.run() && runs.iter().all(|runs| runs.load(Ordering::SeqCst) == step + 1)
                };
                let three = |stride: &usize| {
                    crew.hand_out();
                    (3 * stride..3 * stride + 3).all(|step| whole(&step))
                        && crew.finish_aside()
                        && asides.load(Ordering::SeqCst) == stride + 1
                };
                (0..700).take_while(three).count()
            });
            assert_eq!(steps, 700, "{helpers} helpers");
        }
    }

    #[test]
    fn a_panic_ends_all_threads() {
        // On whichever of them: that is chance.
        for last in 0..50 {
            let steps = AtomicUsize::new(0);
            let fails = |is_last: bool| {
                assert!(!is_last || steps.fetch_add(1, Ordering::SeqCst) < last, "as it should")
            };
            let in_part = || work(2, 5, |part| fails(part == 3), || (), |crew| while crew.run() {});
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(in_part)).is_err());
            steps.store(0, Ordering::SeqCst);
            let aside = || {
                work(
                    2,
                    5,
                    |_| (),
                    || fails(true),
                    |crew| {
                        while crew.finish_aside() && crew.run() {
                            crew.hand_out();
                        }
                    },
                );
            };
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(aside)).is_err());
        }
    }
}
