//! Having the processor fetch memory into its caches before it is read, without waiting for it.
//!
//! None of this has an effect that a program can see, whatever is asked for. What is asked for beyond a value's end is fetched too, or
//! nothing is.

use std::ops::Range;

use prefetch_index::prefetch_index;

/// Bytes of a cache line of the processors that this is for.
const LINE_BYTES: usize = 64;

/// The cache line that a value begins in.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    prefetch_index(std::slice::from_ref(value), 0);
}

/// The cache lines that a value begins in and ends behind: all there are of one of up to 64 bytes.
#[inline(always)]
pub fn prefetch_ends<T>(value: &T) {
    prefetch_index(std::slice::from_ref(value), 0);
    prefetch_index(std::slice::from_ref(value), 1);
}

/// Cache lines of a larger value, counted from the one that its first field begins in. The size of that field divides 64.
#[inline(always)]
pub(crate) fn prefetch_lines<T>(first: &T, lines: Range<usize>) {
    for line in lines {
        prefetch_index(
            std::slice::from_ref(first),
            line.saturating_mul(const { LINE_BYTES / size_of::<T>() }),
        );
    }
}

/// The first cache lines of a list, or all of them if it has no more.
#[inline(always)]
pub fn prefetch_list<T>(values: &[T], lines: usize) {
    let step = const { if size_of::<T>() < LINE_BYTES { LINE_BYTES / size_of::<T>() } else { 1 } };
    (0..values.len()).step_by(step).take(lines).for_each(|place| prefetch_index(values, place));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_asked_for_there_is_no_harm() {
        let (small, large) = (vec![1_u16; 1000], vec![[2_u64; 20]; 3]);
        for lines in [0, 1, 4, 1000] {
            prefetch_list(&small, lines);
            prefetch_list(&large, lines);
            prefetch_list::<u64>(&[], lines);
            prefetch_lines(&small[0], 0..lines);
        }
        prefetch_lines(&small[0], usize::MAX - 1..usize::MAX);
        prefetch_ends(&large);
        prefetch(&small);
        assert!(small.iter().all(|value| *value == 1) && large.iter().all(|value| *value == [2; 20]));
    }
}
