//! From all pieces to a complete blob.

use std::fs::File;
use std::sync::Arc;

use shoal_types::Digest;

use crate::error::{FinishError, StoreError};
use crate::index::{Prefix, Slot, State};
use crate::store::{Inner, RemovalReason, Store};

impl Store {
    /// Checks the whole digest of a blob all of whose pieces are here. Most of it was computed while they came in.
    /// From then on it counts as complete; [`Self::commit`] makes that durable.
    ///
    /// # Errors
    /// [`FinishError`]: not here, pieces missing, a failure, or the wrong digest, upon which the blob is gone.
    pub fn check_digest(&self, digest: &Digest) -> Result<(), FinishError> {
        let slot = self.inner.slot(digest).ok_or(FinishError::Absent(*digest))?;
        if self.inner.is_checked(&slot)? {
            return Ok(());
        }
        let got = self.inner.hash_whole(&slot)?;
        let mut state = slot.state.lock();
        match &mut *state {
            State::Complete => Ok(()),
            State::Vacant | State::Cold | State::Gone => Err(FinishError::Absent(*digest)),
            State::Partial(partial) if got == *digest => {
                partial.checked = true;
                Ok(())
            }
            State::Partial(_) => {
                self.inner.destroy(&slot, &mut state)?;
                drop(state);
                self.inner.notify(*digest, RemovalReason::Corrupt);
                Err(FinishError::DigestMismatch { got })
            }
        }
    }

    /// Makes a checked blob durable: its bytes, its place among the complete ones and its record are on stable
    /// storage when this returns. Readers are not disturbed.
    ///
    /// # Errors
    /// [`FinishError`]: not here, not checked, or a failure; then it stays as it was and can be committed again.
    pub fn commit(&self, digest: &Digest) -> Result<(), FinishError> {
        let slot = self.inner.slot(digest).ok_or(FinishError::Absent(*digest))?;
        let mut durable = slot.durable.lock();
        let to = self.inner.disk.blob_path(digest);
        if let Some(file) = self.inner.to_commit(&slot)? {
            let from = self.inner.disk.partial_path(digest);
            file.sync_all().map_err(StoreError::io("fsync", &from))?;
            let mut state = slot.state.lock();
            match &*state {
                State::Partial(_) => self.inner.publish(&slot, &mut state)?,
                // An upload brought it in.
                State::Complete => {}
                State::Vacant | State::Cold | State::Gone => return Err(FinishError::Absent(*digest)),
            }
        }
        if !*durable {
            // Readers have the blob already; only this caller waits for the disk.
            self.inner.disk.sync_parents(&to)?;
            self.inner.db.sync()?;
            *durable = true;
        }
        Ok(())
    }
}

impl Inner {
    fn is_checked(&self, slot: &Arc<Slot>) -> Result<bool, FinishError> {
        let digest = slot.digest;
        let mut state = slot.state.lock();
        self.warm(slot, &mut state)?;
        match &*state {
            State::Complete => Ok(true),
            State::Vacant | State::Cold | State::Gone => Err(FinishError::Absent(digest)),
            State::Partial(partial) if !partial.bits.is_full() => {
                let missing = partial.bits.len().saturating_sub(partial.bits.count());
                Err(FinishError::Incomplete { digest, missing })
            }
            State::Partial(partial) => Ok(partial.checked),
        }
    }

    /// The file to fsync before the blob can be published; `None` when it was published before.
    fn to_commit(&self, slot: &Arc<Slot>) -> Result<Option<Arc<File>>, FinishError> {
        let state = slot.state.lock();
        match &*state {
            State::Complete => Ok(None),
            State::Partial(partial) if partial.checked => Ok(Some(self.file(slot, &state)?)),
            State::Cold | State::Partial(_) => Err(FinishError::Unchecked(slot.digest)),
            State::Vacant | State::Gone => Err(FinishError::Absent(slot.digest)),
        }
    }

    /// Moves a checked, fsynced blob among the complete ones. Its open file stays good.
    fn publish(&self, slot: &Slot, state: &mut State) -> Result<(), StoreError> {
        let (from, to) = (self.disk.partial_path(&slot.digest), self.disk.blob_path(&slot.digest));
        self.disk.publish(&from, &to)?;
        if let Err(error) = self.db.put_complete(&slot.digest, &slot.record(true)) {
            // As it was, so that it can be tried again; if even that fails, the repair finds the file.
            let _ = self.disk.publish(&to, &from);
            return Err(error);
        }
        *state = State::Complete;
        Ok(())
    }

    /// The digest of a blob all of whose pieces are here.
    fn hash_whole(&self, slot: &Arc<Slot>) -> Result<Digest, FinishError> {
        let mut prefix = slot.prefix.lock();
        let prefix = prefix.get_or_insert_with(|| Prefix::new(slot));
        let mut buffer = Vec::new();
        while self.hash_next(slot, prefix, &mut buffer)? {}
        Ok(prefix.hasher.clone().finish())
    }
}
