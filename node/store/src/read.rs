//! Reading verified bytes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use shoal_types::{Digest, PieceIndex};

use crate::error::{ReadError, StoreError};
use crate::index::State;
use crate::store::{Inner, Store};

impl Store {
    /// Reads `range` of a blob into `buffer`, whose old content goes. Only pieces that are here, and so were
    /// verified, are read; a blob need not be complete. The caller bounds the range, for `buffer` takes all of it.
    ///
    /// # Errors
    /// [`ReadError`]: not here, a piece of it is missing, the range ends beyond the blob, or a failure.
    pub fn read(&self, digest: &Digest, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<(), ReadError> {
        let file = self.inner.readable(digest, &range)?;
        let len = range.end.saturating_sub(range.start);
        // A range inside a blob, whose size is a u64 at most BLOB_BYTES_MAX; usize is 64 bits where this runs.
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        // The lock is not held here: a blob removed meanwhile is read from its open file all the same.
        read_at(&file, range.start, len, buffer)
            .map_err(StoreError::io("read", &self.inner.disk.blob_path(digest)))?;
        Ok(())
    }

    /// Reads one piece.
    ///
    /// # Errors
    /// [`ReadError`], as [`Self::read`].
    pub fn read_piece(&self, digest: &Digest, piece: PieceIndex) -> Result<Vec<u8>, ReadError> {
        let layout = {
            let slot = self.inner.slot(digest).ok_or(ReadError::Absent(*digest))?;
            let state = slot.state.lock();
            if matches!(*state, State::Vacant | State::Gone) {
                return Err(ReadError::Absent(*digest));
            }
            self.inner.meta(&slot)?.metainfo.layout()
        };
        let mut buffer = Vec::new();
        if layout.piece(piece.get()).is_none() {
            return Err(ReadError::Missing { digest: *digest, piece: piece.get() });
        }
        self.read(digest, layout.range_of(piece), &mut buffer)?;
        Ok(buffer)
    }

    /// The file of a committed blob, to hand to a storage backend; `None` when it is not here or not committed. Its
    /// content never changes; pin the blob for as long as the name is used.
    pub fn path(&self, digest: &Digest) -> Option<PathBuf> {
        let slot = self.inner.slot(digest)?;
        let complete = matches!(*slot.state.lock(), State::Complete);
        complete.then(|| self.inner.disk.blob_path(digest))
    }
}

/// Replaces what is in `buffer` by `len` bytes of a file. Memory that is filled anyway is not zeroed first: for a piece
/// that costs as much as reading it does.
fn read_at(file: &File, mut offset: u64, len: usize, buffer: &mut Vec<u8>) -> io::Result<()> {
    buffer.clear();
    buffer.reserve_exact(len);
    while buffer.len() < len {
        match rustix::io::pread(file, rustix::buffer::spare_capacity(buffer), offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => offset = offset.saturating_add(read as u64),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // The buffer may be larger than was asked for.
    buffer.truncate(len);
    Ok(())
}

impl Inner {
    /// The file to read `range` from, once all pieces of it are known to be there.
    fn readable(&self, digest: &Digest, range: &Range<u64>) -> Result<Arc<File>, ReadError> {
        let slot = self.slot(digest).ok_or(ReadError::Absent(*digest))?;
        let mut state = slot.state.lock();
        self.warm(&slot, &mut state)?;
        let size = slot.size();
        match &*state {
            State::Vacant | State::Cold | State::Gone => return Err(ReadError::Absent(*digest)),
            _ if range.end > size => return Err(ReadError::Range { digest: *digest, end: range.end, size }),
            State::Complete => {}
            State::Partial(partial) => {
                let layout = self.meta(&slot)?.metainfo.layout();
                if let Some(piece) =
                    layout.pieces_in(range.clone()).find(|piece| !partial.bits.contains(*piece))
                {
                    return Err(ReadError::Missing { digest: *digest, piece: piece.get() });
                }
            }
        }
        self.touch(&slot);
        Ok(self.file(&slot, &state)?)
    }
}
