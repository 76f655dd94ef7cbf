//! The pieces nobody has been asked for yet, rarest first.

use shoal_types::Bitfield;

use crate::prefetch::prefetch_at;
use crate::random::Random;

/// A piece that is not wanted has this position.
const NOWHERE: u32 = u32::MAX;

/// Wanted pieces in buckets by how many partial peers have them. Peers with the whole blob count for every piece
/// alike and so are left out. Every operation but [`Self::pick`] takes constant time.
#[derive(Debug)]
// In the order of use: docs/adr/0018.
#[repr(C)]
pub(crate) struct Picker {
    /// The wanted pieces, a bit each.
    bits: Vec<u64>,
    availability: Vec<u16>,
    position: Vec<u32>,
    /// Shuffled by the engine's seed, so that engines that know the same ask for different pieces.
    buckets: Vec<Vec<u32>>,
    wanted: usize,
}

impl Picker {
    /// Pieces `wanted` of a blob of `count`, none available anywhere yet.
    pub(crate) fn new(count: u32, mut wanted: Vec<u32>, random: &mut Random) -> Self {
        random.shuffle(&mut wanted);
        let mut position = vec![NOWHERE; count as usize];
        let mut bits = vec![0; count.div_ceil(u64::BITS) as usize];
        for (piece, place) in wanted.iter().zip(0u32..) {
            if let Some(slot) = position.get_mut(*piece as usize) {
                *slot = place;
            }
            flip(&mut bits, *piece);
        }
        let availability = vec![0; count as usize];
        Self { availability, position, bits, wanted: wanted.len(), buckets: vec![wanted] }
    }

    /// Prefetches what is known of a piece.
    pub(crate) fn prefetch(&self, piece: u32) {
        prefetch_at(&self.availability, piece as usize);
        prefetch_at(&self.position, piece as usize);
        prefetch_at(&self.bits, (piece / u64::BITS) as usize);
    }

    /// Prefetches where the list is that a piece is in.
    pub(crate) fn prefetch_bucket(&self, piece: u32) {
        prefetch_at(&self.buckets, self.availability(piece).into());
    }

    /// Prefetches what changes when one more peer has a piece.
    pub(crate) fn prefetch_moves(&self, piece: u32) {
        let availability = usize::from(self.availability(piece));
        if self.is_wanted(piece)
            && let Some(position) = self.position.get(piece as usize)
            && let Some(bucket) = self.buckets.get(availability)
        {
            prefetch_at(bucket, *position as usize);
            prefetch_at(bucket, bucket.len().saturating_sub(1));
            if let Some(next) = self.buckets.get(availability.saturating_add(1)) {
                prefetch_at(next, next.len());
            }
        }
    }

    /// Number of wanted pieces.
    pub(crate) fn wanted(&self) -> usize {
        self.wanted
    }

    pub(crate) fn is_wanted(&self, piece: u32) -> bool {
        let word = self.bits.get((piece / u64::BITS) as usize);
        word.is_some_and(|word| word >> (piece % u64::BITS) & 1 > 0)
    }

    /// How many partial peers have `piece`.
    pub(crate) fn availability(&self, piece: u32) -> u16 {
        self.availability.get(piece as usize).copied().unwrap_or(0)
    }

    /// Makes `piece` wanted, at a random place among those as rare.
    pub(crate) fn want(&mut self, piece: u32, random: &mut Random) {
        if piece as usize >= self.position.len() || self.is_wanted(piece) {
            return;
        }
        self.wanted = self.wanted.saturating_add(1);
        flip(&mut self.bits, piece);
        self.put(piece, Some(random));
    }

    /// Makes `piece` not wanted: it was requested, or is there.
    pub(crate) fn unwant(&mut self, piece: u32) {
        if self.is_wanted(piece) {
            self.take(piece);
            flip(&mut self.bits, piece);
            self.wanted = self.wanted.saturating_sub(1);
        }
    }

    /// One more partial peer has `piece`.
    pub(crate) fn gained(&mut self, piece: u32) {
        self.shift(piece, self.availability(piece).saturating_add(1));
    }

    /// One partial peer that had `piece` is gone.
    pub(crate) fn lost(&mut self, piece: u32) {
        self.shift(piece, self.availability(piece).saturating_sub(1));
    }

    /// The rarest wanted piece that `allowed` lets pass.
    pub(crate) fn pick(&self, mut allowed: impl FnMut(u32) -> bool) -> Option<u32> {
        self.iter().find(|piece| allowed(*piece))
    }

    /// The wanted pieces, rarest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        self.buckets.iter().flatten().copied()
    }

    /// The wanted pieces among those of `pieces` whose numbers are in `range`, in order.
    pub(crate) fn wanted_of<'a>(&'a self, pieces: &'a Bitfield, range: std::ops::Range<u32>) -> WantedOf<'a> {
        let (first, last) = (range.start / u64::BITS, range.end.div_ceil(u64::BITS));
        let part = |words: &'a [u64]| {
            let end = words.len().min(last as usize);
            words.get(first as usize..end).unwrap_or_default()
        };
        let words = part(&self.bits).iter().zip(part(pieces.words()));
        WantedOf { words, base: first.saturating_mul(u64::BITS), left: 0, range }
    }

    /// Whether a wanted piece is with no partial peer.
    pub(crate) fn has_unavailable(&self) -> bool {
        self.buckets.first().is_some_and(|bucket| !bucket.is_empty())
    }

    fn shift(&mut self, piece: u32, availability: u16) {
        let wanted = self.is_wanted(piece);
        if wanted {
            self.take(piece);
        }
        if let Some(slot) = self.availability.get_mut(piece as usize) {
            *slot = availability;
        }
        if wanted {
            self.put(piece, None);
        }
    }

    fn put(&mut self, piece: u32, random: Option<&mut Random>) {
        let bucket = usize::from(self.availability(piece));
        if bucket >= self.buckets.len() {
            self.buckets.resize_with(bucket.saturating_add(1), Vec::new);
        }
        let Some(bucket) = self.buckets.get_mut(bucket) else { return };
        let last = bucket.len();
        bucket.push(piece);
        let place = random.map_or(last, |random| random.below(last.saturating_add(1)));
        bucket.swap(place, last);
        for moved in [place, last] {
            Self::note(&mut self.position, bucket, moved);
        }
    }

    fn take(&mut self, piece: u32) {
        let bucket = usize::from(self.availability(piece));
        let Some(slot) = self.position.get_mut(piece as usize) else { return };
        let place = *slot as usize;
        *slot = NOWHERE;
        let Some(bucket) = self.buckets.get_mut(bucket) else { return };
        if place < bucket.len() {
            bucket.swap_remove(place);
            Self::note(&mut self.position, bucket, place);
        }
    }

    /// Writes down where the piece at `place` is.
    #[expect(clippy::cast_possible_truncation, reason = "a bucket has at most 2^22 pieces (BLOB_BYTES_MAX)")]
    fn note(position: &mut [u32], bucket: &[u32], place: usize) {
        if let Some(slot) = bucket.get(place).and_then(|piece| position.get_mut(*piece as usize)) {
            *slot = place as u32;
        }
    }
}

/// Wanted pieces that somebody has, in order. Written out because it is gone through for every request.
#[derive(Debug)]
pub(crate) struct WantedOf<'a> {
    words: std::iter::Zip<std::slice::Iter<'a, u64>, std::slice::Iter<'a, u64>>,
    /// The first number of the next word.
    base: u32,
    /// Those left of the word before it.
    left: u64,
    /// The first number of the range, and the one after the last.
    range: std::ops::Range<u32>,
}

impl Iterator for WantedOf<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        while self.left == 0 {
            let (wanted, theirs) = self.words.next()?;
            self.left = wanted & theirs & from_bit(self.range.start.saturating_sub(self.base));
            self.left &= !from_bit(self.range.end.saturating_sub(self.base));
            self.base = self.base.saturating_add(u64::BITS);
        }
        let bit = self.left.trailing_zeros();
        self.left &= self.left.wrapping_sub(1);
        Some(self.base.saturating_sub(u64::BITS).saturating_add(bit))
    }
}

/// All bits from one on; none when it is beyond the word.
fn from_bit(bit: u32) -> u64 {
    u64::MAX.checked_shl(bit).unwrap_or(0)
}

fn flip(bits: &mut [u64], piece: u32) {
    if let Some(word) = bits.get_mut((piece / u64::BITS) as usize) {
        *word ^= 1 << (piece % u64::BITS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shoal_types::PieceLayout;
    use std::collections::BTreeSet;

    proptest! {
        /// Against the naive model: availability counts and a set of wanted pieces.
        #[test]
        fn picks_the_rarest(
            ops in prop::collection::vec((0u8..4, 0u32..140), 0..300),
            theirs in prop::collection::vec(any::<u8>(), 18),
            from in 0u32..150,
            to in 0u32..150,
            seed: u64,
        ) {
            let mut random = Random::new(seed);
            let mut picker = Picker::new(140, (0..140).collect(), &mut random);
            let mut wanted: BTreeSet<u32> = (0..140).collect();
            let mut counts = [0u16; 140];
            let theirs = Bitfield::from_bytes(140, &[&theirs[..17], &[theirs[17] & 15]].concat()).unwrap();
            for (op, piece) in ops {
                match op {
                    0 => { picker.want(piece, &mut random); wanted.insert(piece); }
                    1 => { picker.unwant(piece); wanted.remove(&piece); }
                    2 => { picker.gained(piece); counts[piece as usize] = counts[piece as usize].saturating_add(1); }
                    _ => {
                        picker.lost(piece);
                        counts[piece as usize] = counts[piece as usize].saturating_sub(1);
                    }
                }
                prop_assert_eq!(picker.wanted(), wanted.len());
                let odd = picker.pick(|piece| piece % 2 == 1);
                let rarest = wanted.iter().filter(|p| *p % 2 == 1).map(|p| counts[*p as usize]).min();
                prop_assert_eq!(odd.map(|p| counts[p as usize]), rarest);
                prop_assert_eq!(picker.has_unavailable(), wanted.iter().any(|p| counts[*p as usize] == 0));
                let layout = PieceLayout::for_size(140 << 18).unwrap();
                let has = |piece: u32| layout.piece(piece).is_some_and(|piece| theirs.contains(piece));
                let expected = wanted.iter().copied().filter(|piece| (from..to).contains(piece) && has(*piece));
                prop_assert!(picker.wanted_of(&theirs, from..to).eq(expected));
                for piece in 0..140 {
                    prop_assert_eq!(picker.is_wanted(piece), wanted.contains(&piece));
                    prop_assert_eq!(picker.availability(piece), counts[piece as usize]);
                }
            }
        }
    }

    #[test]
    fn seeds_give_different_orders() {
        let order = |seed| {
            let mut picker = Picker::new(100, (0..100).collect(), &mut Random::new(seed));
            std::iter::from_fn(|| {
                let piece = picker.pick(|_| true)?;
                picker.unwant(piece);
                Some(piece)
            })
            .collect::<Vec<_>>()
        };
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
    }
}
