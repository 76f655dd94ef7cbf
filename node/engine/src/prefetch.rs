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

/// The cache lines that a value begins in and ends behind: all there are of one of up to 64 bytes that may begin anywhere. Of one that
/// begins with a line see [`prefetch_lines`].
#[inline(always)]
pub fn prefetch_ends<T>(value: &T) {
    prefetch_index(std::slice::from_ref(value), 0);
    prefetch_index(std::slice::from_ref(value), 1);
}

/// The cache line that the value at a place of a list begins in. If there is none, nothing that matters.
#[inline(always)]
pub fn prefetch_at<T>(values: &[T], place: usize) {
    prefetch_index(values, place);
}

/// Cache lines of a larger value, counted from the one that its first field begins in. The size of that field divides 64.
#[inline(always)]
pub fn prefetch_lines<T>(first: &T, lines: Range<usize>) {
    const { assert!(LINE_BYTES.is_multiple_of(size_of::<T>())) }
    for line in lines {
        prefetch_index(
            std::slice::from_ref(first),
            line.saturating_mul(const { LINE_BYTES / size_of::<T>() }),
        );
    }
}

/// The first cache lines of a list, or all of them if it has no more. Of values that are larger than a line only those lines that one
/// begins in, and that behind the last.
#[inline(always)]
pub fn prefetch_list<T>(values: &[T], lines: usize) {
    let step = const { if size_of::<T>() < LINE_BYTES { LINE_BYTES / size_of::<T>() } else { 1 } };
    let behind = size_of::<T>() > LINE_BYTES && !values.is_empty();
    let end = values.len().saturating_add(usize::from(behind));
    (0..end).step_by(step).take(lines).for_each(|place| prefetch_index(values, place));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In debug builds arithmetic is checked: what is asked for may be anything.
    #[test]
    fn nothing_overflows() {
        let (small, large) = (vec![1_u16; 1000], vec![[2_u64; 20]; 3]);
        for lines in [0, 1, 4, 1000, usize::MAX] {
            prefetch_list(&small, lines);
            prefetch_list(&large, lines);
            prefetch_list::<u64>(&[], lines);
            prefetch_at(&large, lines);
        }
        prefetch_lines(&small[0], usize::MAX - 1..usize::MAX);
        prefetch_ends(&large);
    }
}
