//! Which pieces of a blob somebody has.

use crate::layout::{PieceIndex, PieceLayout};

const WORD_BITS: u32 = u64::BITS;

/// A set of pieces of one layout, a bit a piece.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bitfield {
    words: Vec<u64>,
    len: u32,
    ones: u32,
}

impl Bitfield {
    /// No pieces of a blob cut into `piece_count`.
    pub fn new(piece_count: u32) -> Self {
        Self { words: vec![0; piece_count.div_ceil(WORD_BITS) as usize], len: piece_count, ones: 0 }
    }

    /// All pieces of a blob cut into `piece_count`.
    pub fn full(piece_count: u32) -> Self {
        let mut own = Self::new(piece_count);
        for (word, number) in own.words.iter_mut().zip(0u32..) {
            let left = piece_count - number * WORD_BITS;
            *word = if left >= WORD_BITS { u64::MAX } else { (1 << left) - 1 };
        }
        own.ones = piece_count;
        own
    }

    /// Number of pieces of the blob.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether the blob has no pieces at all (it is empty).
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of pieces in the set.
    pub fn count(&self) -> u32 {
        self.ones
    }

    /// Whether every piece is in the set.
    pub fn is_full(&self) -> bool {
        self.ones == self.len
    }

    /// The set in words of 64 pieces, the first piece lowest; spare bits are zero.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Whether `piece` is in the set; `false` for an index of a longer layout.
    pub fn contains(&self, piece: PieceIndex) -> bool {
        self.words.get(word_of(piece)).is_some_and(|word| word & mask_of(piece) != 0)
    }

    /// Adds `piece`; returns whether it was missing. An index of a longer layout is ignored.
    pub fn insert(&mut self, piece: PieceIndex) -> bool {
        if piece.get() >= self.len {
            return false;
        }
        let Some(word) = self.words.get_mut(word_of(piece)) else { return false };
        let fresh = *word & mask_of(piece) == 0;
        *word |= mask_of(piece);
        self.ones += u32::from(fresh);
        fresh
    }

    /// Removes `piece`; returns whether it was there.
    pub fn remove(&mut self, piece: PieceIndex) -> bool {
        let Some(word) = self.words.get_mut(word_of(piece)) else { return false };
        let was = *word & mask_of(piece) != 0;
        *word &= !mask_of(piece);
        self.ones -= u32::from(was);
        was
    }

    /// Adds all pieces of `other`, a set of the same layout.
    pub fn union_with(&mut self, other: &Self) {
        for (word, theirs) in self.words.iter_mut().zip(&other.words) {
            *word |= theirs;
        }
        self.ones = self.words.iter().map(|word| word.count_ones()).sum();
    }

    /// Whether `self` has a piece that `other` lacks.
    pub fn has_beyond(&self, other: &Self) -> bool {
        self.words.iter().zip(&other.words).any(|(own, theirs)| own & !theirs != 0)
    }

    /// Number of pieces in `self` that `other` lacks.
    pub fn count_beyond(&self, other: &Self) -> u32 {
        self.words.iter().zip(&other.words).map(|(own, theirs)| (own & !theirs).count_ones()).sum()
    }

    /// The pieces in the set, in order.
    pub fn iter<'a>(&'a self, layout: &'a PieceLayout) -> impl Iterator<Item = PieceIndex> + 'a {
        self.words.iter().zip(0u32..).flat_map(move |(word, number)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                if left == 0 {
                    return None;
                }
                let bit = left.trailing_zeros();
                left &= left - 1;
                Some(number * WORD_BITS + bit)
            })
            .filter_map(|number| layout.piece(number))
        })
    }

    /// The pieces not in the set, in order.
    pub fn iter_missing<'a>(&'a self, layout: &'a PieceLayout) -> impl Iterator<Item = PieceIndex> + 'a {
        layout.pieces().filter(|piece| !self.contains(*piece))
    }

    /// Wire and disk form: bit `i` is bit `i % 8` of byte `i / 8`; spare bits are zero.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(self.len.div_ceil(8) as usize);
        bytes
    }

    /// Reads [`Self::to_bytes`] for a blob of `piece_count` pieces; `None` for a wrong length or a set spare bit.
    pub fn from_bytes(piece_count: u32, bytes: &[u8]) -> Option<Self> {
        if bytes.len() != piece_count.div_ceil(8) as usize {
            return None;
        }
        let words: Vec<u64> = bytes
            .chunks(8)
            .map(|chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                u64::from_le_bytes(word)
            })
            .collect();
        let ones = words.iter().map(|word| word.count_ones()).sum();
        let own = Self { words, len: piece_count, ones };
        (!own.has_beyond(&Self::full(piece_count))).then_some(own)
    }
}

fn word_of(piece: PieceIndex) -> usize {
    (piece.get() / WORD_BITS) as usize
}

fn mask_of(piece: PieceIndex) -> u64 {
    1 << (piece.get() % WORD_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn agrees_with_a_set(count in 0u32..300, ops: Vec<(u16, bool)>) {
            let layout = PieceLayout::new(u64::from(count) << 18, 1 << 18).unwrap();
            let mut field = Bitfield::new(count);
            let mut model = BTreeSet::new();
            for (number, add) in ops {
                let Some(piece) = layout.piece(u32::from(number) % 320) else { continue };
                if add { prop_assert_eq!(field.insert(piece), model.insert(piece)); }
                else { prop_assert_eq!(field.remove(piece), model.remove(&piece)); }
            }
            prop_assert_eq!(field.iter(&layout).collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(field.count() as usize, model.len());
            prop_assert_eq!(field.iter_missing(&layout).count() as u32, count - field.count());
            prop_assert_eq!(Bitfield::from_bytes(count, &field.to_bytes()), Some(field.clone()));
            prop_assert_eq!(Bitfield::full(count).count_beyond(&field), count - field.count());
            prop_assert_eq!(field.is_full(), model.len() == count as usize);
            field.union_with(&Bitfield::full(count));
            prop_assert!(field.is_full());
        }

        #[test]
        fn bytes_are_checked(count in 0u32..200, bytes: Vec<u8>) {
            if let Some(field) = Bitfield::from_bytes(count, &bytes) {
                prop_assert_eq!(field.to_bytes(), bytes);
                prop_assert!(field.count() <= count);
            }
        }
    }
}
