//! Writing pieces, and the digest that runs along behind them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use shoal_types::{Digest, DigestHasher, PieceIndex};

use crate::error::{StoreError, WriteError};
use crate::index::{Partial, Prefix, Slot, State};
use crate::store::{Inner, Store};

/// Bytes of records a written piece may cost: a bitfield is saved once for so many pieces that its length,
/// shared between them, is no more than this. Those of up to 2,048 pieces are saved with each piece.
const SAVED_BYTES_PER_PIECE: usize = 256;

/// Pieces a writer hashes at most for the running digest besides writing its own: out-of-order arrivals leave
/// stretches to catch up with, and no one write should pay for all of them.
const CATCH_UP_PIECES: usize = 4;

impl Store {
    /// Writes a piece whose hash the caller has verified. Writing one that is here already does nothing.
    ///
    /// # Errors
    /// [`WriteError`]: not here, not as many bytes as the piece has, a full disk or a failure. The piece is then as
    /// missing as before.
    pub fn write_piece(&self, digest: &Digest, piece: PieceIndex, data: &[u8]) -> Result<(), WriteError> {
        let slot = self.inner.slot(digest).ok_or(WriteError::Absent(*digest))?;
        let Some((file, start)) = self.inner.writable(&slot, piece, data.len())? else { return Ok(()) };
        let path = self.inner.disk.partial_path(digest);
        // No lock: two writers of one piece write the same verified bytes.
        self.inner.disk.write_at(&file, &path, data, start, false)?;
        {
            let mut state = slot.state.lock();
            match &mut *state {
                State::Partial(partial) => self.inner.mark(&slot, partial, piece)?,
                // Somebody else brought the blob in whole.
                State::Complete => return Ok(()),
                State::Vacant | State::Cold | State::Gone => return Err(WriteError::Absent(*digest)),
            }
        }
        self.inner.touch(&slot);
        Ok(self.inner.advance_prefix(&slot, piece, data)?)
    }
}

impl Inner {
    /// Where `piece` goes, or `None` when it is here already.
    fn writable(
        &self,
        slot: &Slot,
        piece: PieceIndex,
        got: usize,
    ) -> Result<Option<(Arc<File>, u64)>, WriteError> {
        let digest = slot.digest;
        let mut state = slot.state.lock();
        self.warm(slot, &mut state)?;
        let State::Partial(partial) = &*state else {
            let complete = matches!(*state, State::Complete);
            return if complete { Ok(None) } else { Err(WriteError::Absent(digest)) };
        };
        let layout = self.meta(slot)?.metainfo.layout();
        let wanted = layout.piece(piece.get()).map_or(0, |piece| layout.len_of(piece));
        if wanted == 0 || got != wanted as usize {
            return Err(WriteError::Length { digest, piece: piece.get(), got, wanted });
        }
        if partial.bits.contains(piece) {
            return Ok(None);
        }
        Ok(Some((self.file(slot, &state)?, layout.range_of(piece).start)))
    }

    fn mark(&self, slot: &Slot, partial: &mut Partial, piece: PieceIndex) -> Result<(), StoreError> {
        if partial.bits.insert(piece) {
            partial.unsaved = partial.unsaved.saturating_add(1);
        }
        let record_bytes = (partial.bits.len() / 8) as usize;
        let due = (partial.unsaved as usize).saturating_mul(SAVED_BYTES_PER_PIECE) >= record_bytes;
        if due || partial.bits.is_full() {
            self.save_bits(slot, partial)?;
        }
        Ok(())
    }

    /// Takes the running digest as far as the pieces are contiguous, a few at a time. `piece` was just written.
    fn advance_prefix(&self, slot: &Slot, piece: PieceIndex, data: &[u8]) -> Result<(), StoreError> {
        // Whoever has it takes care of this piece too, or leaves it to the next writer or to `check_digest`.
        let Some(mut prefix) = slot.prefix.try_lock() else { return Ok(()) };
        let prefix = prefix.get_or_insert_with(|| Prefix::new(slot));
        let mut buffer = Vec::new();
        for _ in 0..CATCH_UP_PIECES {
            if prefix.next == piece.get() {
                prefix.hasher.update(data);
                prefix.next = prefix.next.saturating_add(1);
            } else if !self.hash_next(slot, prefix, &mut buffer)? {
                break;
            }
        }
        Ok(())
    }

    /// Hashes the next piece of the prefix from the disk (the page cache, mostly); `false` when it is not here.
    pub(crate) fn hash_next(
        &self,
        slot: &Slot,
        prefix: &mut Prefix,
        buffer: &mut Vec<u8>,
    ) -> Result<bool, StoreError> {
        let (file, range) = {
            let state = slot.state.lock();
            let State::Partial(partial) = &*state else { return Ok(false) };
            let layout = self.meta(slot)?.metainfo.layout();
            let Some(piece) = layout.piece(prefix.next).filter(|piece| partial.bits.contains(*piece)) else {
                return Ok(false);
            };
            buffer.resize(layout.len_of(piece) as usize, 0);
            (self.file(slot, &state)?, layout.range_of(piece))
        };
        file.read_exact_at(buffer, range.start)
            .map_err(StoreError::io("read", &self.disk.partial_path(&slot.digest)))?;
        prefix.hasher.update(buffer);
        prefix.next = prefix.next.saturating_add(1);
        Ok(true)
    }
}

impl Prefix {
    pub(crate) fn new(slot: &Slot) -> Self {
        Self { hasher: DigestHasher::new(slot.digest.algorithm()), next: 0 }
    }
}
