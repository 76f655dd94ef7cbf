//! How a blob is cut into pieces.
//!
//! [`PieceLayout`] alone mints [`PieceIndex`] values, so that an index in hand is always inside its blob.

use std::ops::Range;

/// Smallest piece size, 256 KiB (design §2): below it the per-piece cost of haves and requests shows.
pub const PIECE_BYTES_MIN: u32 = 256 * 1024;
/// Largest piece size, 4 MiB (design §2): what a peer must receive before it can pass anything on.
pub const PIECE_BYTES_MAX: u32 = 4 * 1024 * 1024;
/// The number of pieces a blob is aimed at (design §2).
const PIECES_AIMED_AT: u64 = 1024;
/// Largest accepted blob, 1 TiB: keeps a metainfo's hash list within 8 MiB.
pub const BLOB_BYTES_MAX: u64 = 1 << 40;

/// The number of one piece inside its blob, counted from zero; always valid for the layout that minted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceIndex(u32);

impl PieceIndex {
    /// The plain number.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The plain number as an index into per-piece arrays.
    pub fn as_usize(self) -> usize {
        self.0 as usize
    }
}

/// The cut of a blob of known size: `size` bytes in pieces of `piece_bytes`, the last one shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PieceLayout {
    size: u64,
    piece_bytes: u32,
    piece_count: u32,
}

/// Why a layout is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The blob is over [`BLOB_BYTES_MAX`].
    #[error("a blob of {0} bytes is over the limit of {BLOB_BYTES_MAX} bytes")]
    TooLarge(u64),
    /// The piece size is not a power of two from [`PIECE_BYTES_MIN`] to [`PIECE_BYTES_MAX`].
    #[error("a piece size of {0} bytes is not a power of two from {PIECE_BYTES_MIN} to {PIECE_BYTES_MAX}")]
    PieceBytes(u32),
}

impl PieceLayout {
    /// The layout of a new blob of `size` bytes: the next power of two of `size / 1024`, within the limits.
    ///
    /// # Errors
    /// [`LayoutError::TooLarge`].
    pub fn for_size(size: u64) -> Result<Self, LayoutError> {
        if size > BLOB_BYTES_MAX {
            return Err(LayoutError::TooLarge(size));
        }
        let wanted = size.div_ceil(PIECES_AIMED_AT).next_power_of_two();
        let clamped = wanted.clamp(u64::from(PIECE_BYTES_MIN), u64::from(PIECE_BYTES_MAX));
        #[expect(clippy::cast_possible_truncation, reason = "clamped to a u32 just above")]
        Self::new(size, clamped as u32)
    }

    /// A layout as a metainfo states it.
    ///
    /// # Errors
    /// [`LayoutError`] when either number is outside its limits.
    pub fn new(size: u64, piece_bytes: u32) -> Result<Self, LayoutError> {
        if size > BLOB_BYTES_MAX {
            return Err(LayoutError::TooLarge(size));
        }
        if !piece_bytes.is_power_of_two() || !(PIECE_BYTES_MIN..=PIECE_BYTES_MAX).contains(&piece_bytes) {
            return Err(LayoutError::PieceBytes(piece_bytes));
        }
        #[expect(clippy::cast_possible_truncation, reason = "BLOB_BYTES_MAX / PIECE_BYTES_MIN is 2^22")]
        let piece_count = size.div_ceil(u64::from(piece_bytes)) as u32;
        Ok(Self { size, piece_bytes, piece_count })
    }

    /// Blob size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of every piece but the last.
    pub fn piece_bytes(&self) -> u32 {
        self.piece_bytes
    }

    /// Number of pieces; zero for the empty blob.
    pub fn piece_count(&self) -> u32 {
        self.piece_count
    }

    /// The index numbered `number`, or `None` beyond the last piece.
    pub fn piece(&self, number: u32) -> Option<PieceIndex> {
        (number < self.piece_count()).then_some(PieceIndex(number))
    }

    /// All pieces in order.
    pub fn pieces(&self) -> impl DoubleEndedIterator<Item = PieceIndex> + ExactSizeIterator + use<> {
        (0..self.piece_count()).map(PieceIndex)
    }

    /// The piece that holds byte `offset`, or `None` at or beyond the end.
    pub fn piece_at(&self, offset: u64) -> Option<PieceIndex> {
        if offset >= self.size {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "offset < size, so this is below piece_count")]
        Some(PieceIndex((offset / u64::from(self.piece_bytes)) as u32))
    }

    /// The pieces that hold any byte of `range` (clipped to the blob), in order.
    pub fn pieces_in(&self, range: Range<u64>) -> impl DoubleEndedIterator<Item = PieceIndex> + use<> {
        let end = range.end.min(self.size);
        let numbers = if range.start >= end {
            0..0
        } else {
            let width = u64::from(self.piece_bytes);
            #[expect(
                clippy::cast_possible_truncation,
                reason = "end <= size, so both are within piece_count"
            )]
            {
                (range.start / width) as u32..end.div_ceil(width) as u32
            }
        };
        numbers.map(PieceIndex)
    }

    /// The bytes of `piece` inside the blob.
    pub fn range_of(&self, piece: PieceIndex) -> Range<u64> {
        let start = u64::from(piece.0) * u64::from(self.piece_bytes);
        start..(start + u64::from(self.piece_bytes)).min(self.size)
    }

    /// Length of `piece` in bytes, at least one.
    pub fn len_of(&self, piece: PieceIndex) -> u32 {
        let range = self.range_of(piece);
        #[expect(clippy::cast_possible_truncation, reason = "at most piece_bytes")]
        {
            range.end.saturating_sub(range.start) as u32
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn piece_size_grows_with_the_blob() {
        let bytes = |size| PieceLayout::for_size(size).unwrap().piece_bytes();
        assert_eq!(bytes(0), PIECE_BYTES_MIN);
        assert_eq!(bytes(100 << 20), PIECE_BYTES_MIN);
        assert_eq!(bytes((256 << 20) + 1), 512 * 1024);
        assert_eq!(bytes(1 << 30), 1 << 20);
        assert_eq!(bytes(100 << 30), PIECE_BYTES_MAX);
        assert_eq!(PieceLayout::for_size(BLOB_BYTES_MAX + 1), Err(LayoutError::TooLarge(BLOB_BYTES_MAX + 1)));
        assert_eq!(PieceLayout::new(1, 300_000), Err(LayoutError::PieceBytes(300_000)));
    }

    proptest! {
        #[test]
        fn pieces_tile_the_blob(size in 0u64..40 << 20, from in 0u64..41 << 20, len in 0u64..9 << 20) {
            let layout = PieceLayout::for_size(size).unwrap();
            let mut next = 0;
            for piece in layout.pieces() {
                let range = layout.range_of(piece);
                prop_assert_eq!(range.start, next);
                prop_assert!(range.end > range.start);
                prop_assert_eq!(u64::from(layout.len_of(piece)), range.end - range.start);
                prop_assert_eq!(layout.piece_at(range.start), Some(piece));
                prop_assert_eq!(layout.piece_at(range.end - 1), Some(piece));
                next = range.end;
            }
            prop_assert_eq!(next, size);
            let touched: Vec<_> = layout.pieces_in(from..from + len).collect();
            let naive: Vec<_> = layout.pieces().filter(|p| {
                let r = layout.range_of(*p);
                r.start < from + len && from < r.end
            }).collect();
            prop_assert_eq!(touched, naive);
        }
    }
}
