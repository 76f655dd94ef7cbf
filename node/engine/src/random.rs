//! Seeded randomness.

use rand_core::{Rng as _, SeedableRng as _};

/// A generator whose output is the same for the same seed on every machine and in every release.
#[derive(Debug)]
pub(crate) struct Random(rand_pcg::Pcg64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(rand_pcg::Pcg64::seed_from_u64(seed))
    }

    /// A number below `bound`; zero for a bound of zero. The bias of at most `bound / 2^64` is of no matter.
    #[expect(clippy::cast_possible_truncation, reason = "the product's upper half is below `bound`")]
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.0.next_u64()).saturating_mul(bound as u128)) >> 64) as usize
    }

    /// `true` in `part` of `whole` draws.
    pub(crate) fn chance(&mut self, part: usize, whole: usize) -> bool {
        self.below(whole) < part
    }

    /// A factor from 0.75 to 1.25, so that what starts together does not stay together.
    pub(crate) fn jitter(&mut self) -> f64 {
        f64::from(self.0.next_u32()) / f64::from(u32::MAX) * 0.5 + 0.75
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            let other = self.below(end.saturating_add(1));
            items.swap(end, other);
        }
    }
}
