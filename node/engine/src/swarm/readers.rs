//! Local readers of one blob.

use shoal_types::{Bitfield, PieceLayout, Timestamp};

use crate::io::ReaderWant;

/// One local reader.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) want: ReaderWant,
    /// `ReaderStarted` was sent.
    pub(crate) started: bool,
    /// It has got everything; it stays until the driver closes it.
    pub(crate) done: bool,
    /// The next byte it will read.
    offset: u64,
    /// End of its range inside the blob; set when the metainfo is known.
    end: u64,
    /// What it was told it can read.
    released: u64,
    /// First piece it waits for.
    next: u32,
    /// When `next` last moved.
    pub(crate) advanced: Timestamp,
}

/// What a reader is to be told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Advance {
    /// The new end of what it can read, when it moved.
    pub(crate) until: Option<u64>,
    /// It has got everything.
    pub(crate) done: bool,
}

impl Reader {
    pub(crate) fn new(want: ReaderWant, now: Timestamp) -> Self {
        let offset = match &want {
            ReaderWant::Range(range) => range.start,
            ReaderWant::Metainfo | ReaderWant::Whole => 0,
        };
        Self { want, started: false, done: false, offset, end: 0, released: offset, next: 0, advanced: now }
    }

    /// The blob is known. `false` when the range begins beyond its end (an empty blob has an empty range).
    pub(crate) fn start(&mut self, layout: &PieceLayout) -> bool {
        self.started = true;
        let ReaderWant::Range(range) = &self.want else { return true };
        self.end = range.end.min(layout.size());
        self.next = layout.piece_at(self.offset).map_or(0, |piece| piece.get());
        range.start < layout.size() || (layout.size() == 0 && range.start == 0)
    }

    /// The reader has read up to `offset`, or jumped there.
    pub(crate) fn moved(&mut self, offset: u64, layout: Option<&PieceLayout>) {
        self.offset = offset;
        if offset < self.released || offset > self.end {
            return;
        }
        if let Some(piece) = layout.and_then(|layout| layout.piece_at(offset))
            && piece.get() > self.next
        {
            self.next = piece.get();
            self.released = offset;
        }
    }

    /// Looks how far it can read now. The blob's last piece is held back until the whole digest is checked, so that
    /// no reader takes a blob for whole that is not.
    pub(crate) fn advance(
        &mut self,
        now: Timestamp,
        layout: &PieceLayout,
        have: &Bitfield,
        complete: bool,
    ) -> Advance {
        let none = Advance { until: None, done: false };
        if self.done || !self.started {
            return none;
        }
        match &self.want {
            ReaderWant::Metainfo => self.done = true,
            ReaderWant::Whole => self.done = complete,
            ReaderWant::Range(_) => return self.advance_range(now, layout, have, complete),
        }
        Advance { until: None, done: self.done }
    }

    fn advance_range(
        &mut self,
        now: Timestamp,
        layout: &PieceLayout,
        have: &Bitfield,
        complete: bool,
    ) -> Advance {
        let last = layout.piece_count().saturating_sub(1);
        while let Some(piece) = layout.piece(self.next) {
            if !(complete || (self.next < last && have.contains(piece))) {
                break;
            }
            self.next = self.next.saturating_add(1);
            self.advanced = now;
        }
        let readable = layout.piece(self.next).map_or(layout.size(), |piece| layout.range_of(piece).start);
        let until = readable.min(self.end);
        let moved = until > self.released;
        if moved {
            self.released = until;
        }
        self.done = self.released >= self.end && (self.end > 0 || complete);
        Advance { until: moved.then_some(until), done: self.done }
    }

    /// The pieces it needs before all others, in order: `window_bytes` from the first it waits for.
    pub(crate) fn window(&self, layout: &PieceLayout, window_bytes: u64) -> std::ops::Range<u32> {
        if self.done || !self.started || !matches!(self.want, ReaderWant::Range(_)) {
            return 0..0;
        }
        let Some(next) = layout.piece(self.next) else { return 0..0 };
        let start = layout.range_of(next).start;
        let end = start.max(self.offset).saturating_add(window_bytes).min(self.end);
        let pieces = layout.pieces_in(start..end);
        self.next..pieces.last().map_or(self.next, |piece| piece.get().saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u64 = 256 * 1024;

    fn at(layout: &PieceLayout, have: &[u32]) -> Bitfield {
        let mut field = Bitfield::new(layout.piece_count());
        for number in have {
            field.insert(layout.piece(*number).unwrap());
        }
        field
    }

    #[test]
    fn a_range_grows_with_its_prefix_and_ends_with_the_digest() {
        let layout = PieceLayout::for_size(4 * PIECE).unwrap();
        let now = Timestamp::ZERO;
        let mut reader = Reader::new(ReaderWant::Range(10..u64::MAX), now);
        assert!(reader.start(&layout));
        let mut look = |have: &[u32], complete| reader.advance(now, &layout, &at(&layout, have), complete);
        assert_eq!(look(&[1, 2], false), Advance { until: None, done: false });
        assert_eq!(look(&[0, 1], false), Advance { until: Some(2 * PIECE), done: false });
        assert_eq!(look(&[0, 1, 2, 3], false), Advance { until: Some(3 * PIECE), done: false });
        assert_eq!(look(&[0, 1, 2, 3], true), Advance { until: Some(4 * PIECE), done: true });
    }

    #[test]
    fn a_range_inside_is_done_early_and_windows_are_in_order() {
        let layout = PieceLayout::for_size(8 * PIECE).unwrap();
        let now = Timestamp::ZERO;
        let mut reader = Reader::new(ReaderWant::Range(PIECE..3 * PIECE), now);
        assert!(reader.start(&layout));
        assert_eq!(reader.window(&layout, 8 * PIECE), 1..3);
        let end = reader.advance(now, &layout, &at(&layout, &[1, 2]), false);
        assert_eq!(end, Advance { until: Some(3 * PIECE), done: true });
        assert_eq!(reader.window(&layout, 8 * PIECE), 0..0);
        let mut beyond = Reader::new(ReaderWant::Range(8 * PIECE..9 * PIECE), now);
        assert!(!beyond.start(&layout));
    }

    #[test]
    fn an_empty_blob_is_done_once_it_is_checked() {
        let layout = PieceLayout::for_size(0).unwrap();
        let mut reader = Reader::new(ReaderWant::Range(0..u64::MAX), Timestamp::ZERO);
        assert!(reader.start(&layout));
        assert!(!reader.advance(Timestamp::ZERO, &layout, &Bitfield::new(0), false).done);
        assert!(reader.advance(Timestamp::ZERO, &layout, &Bitfield::new(0), true).done);
    }
}
