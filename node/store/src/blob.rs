//! Looking at blobs, making and removing them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use shoal_types::{Bitfield, Digest, Metainfo, VouchedMetainfo, WallTime};

use crate::error::{CreateError, PutError, StoreError, VouchStoreError};
use crate::format::MetainfoRecord;
use crate::index::{Partial, Slot, State, charge};
use crate::store::{Inner, Meta, RemovalReason, Store};

/// What the store has of a blob.
#[derive(Clone, Debug)]
pub struct BlobEntry {
    /// Pieces and hashes.
    pub metainfo: Arc<Metainfo>,
    /// The metainfo as an origin vouched for it, when one did.
    pub vouched: Option<Arc<VouchedMetainfo>>,
    /// The pieces that are here, each verified.
    pub pieces: Bitfield,
    /// Whether the whole digest has been checked.
    pub complete: bool,
}

/// A line of the list of blobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobSummary {
    /// The blob.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// When it was read, written or made last.
    pub last_use: WallTime,
    /// Whether it is complete and committed.
    pub complete: bool,
    /// Whether it may be evicted; `false` says that it is not safe elsewhere yet.
    pub anchored: bool,
}

/// What came of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The blob is gone.
    Removed,
    /// It is pinned: nobody finds it any more, and it goes with its last pin.
    Deferred,
    /// It was not here.
    Absent,
}

impl Store {
    /// What the store has of a blob; `None` when nothing. The first look at a partial blob after a restart reads and
    /// verifies its pieces.
    ///
    /// # Errors
    /// [`StoreError`] when disk or database fail.
    pub fn lookup(&self, digest: &Digest) -> Result<Option<BlobEntry>, StoreError> {
        let Some(slot) = self.inner.slot(digest) else { return Ok(None) };
        if slot.is_doomed() {
            return Ok(None);
        }
        let mut state = slot.state.lock();
        self.inner.warm(&slot, &mut state)?;
        let (pieces, complete) = match &*state {
            State::Partial(partial) => (Some(partial.bits.clone()), partial.checked),
            State::Complete => (None, true),
            State::Vacant | State::Cold | State::Gone => return Ok(None),
        };
        let meta = self.inner.meta(&slot)?;
        let pieces = match pieces {
            Some(pieces) => known(pieces, &meta.metainfo),
            None => Bitfield::full(meta.metainfo.layout().piece_count()),
        };
        Ok(Some(BlobEntry {
            metainfo: meta.metainfo.clone(),
            vouched: meta.vouched.clone(),
            pieces,
            complete,
        }))
    }

    /// Makes a partial blob with no pieces, and room for all of them; one that is here already is left as it is
    /// (and gets the voucher if it had none, and a longer metainfo in the place of a live one). It may be evicted whenever it is not pinned: pin first.
    ///
    /// # Errors
    /// [`CreateError`]: no room even after eviction, other pieces under way, or a failure.
    pub fn create(
        &self,
        metainfo: Arc<Metainfo>,
        vouched: Option<Arc<VouchedMetainfo>>,
    ) -> Result<(), CreateError> {
        loop {
            let slot = self.inner.slot_or_new(metainfo.digest(), metainfo.size());
            let mut state = slot.state.lock();
            match &*state {
                State::Gone => continue,
                State::Vacant => {
                    let made = self.inner.make_partial(&slot, &mut state, metainfo, vouched);
                    if made.is_err() {
                        *state = State::Gone;
                        self.inner.index.lock().forget(&slot);
                    }
                    return made;
                }
                State::Cold | State::Partial(_) | State::Complete => {
                    return self.inner.join_existing(&slot, &state, &metainfo, vouched);
                }
            }
        }
    }

    /// Keeps the voucher of a blob that is here without one.
    ///
    /// # Errors
    /// [`VouchStoreError`]: not here, other pieces than those stored, or a failure.
    pub fn set_vouched(&self, vouched: Arc<VouchedMetainfo>) -> Result<(), VouchStoreError> {
        let digest = vouched.value().digest();
        let slot = self.inner.slot(&digest).ok_or(VouchStoreError::Absent(digest))?;
        let state = slot.state.lock();
        if matches!(*state, State::Vacant | State::Gone) {
            return Err(VouchStoreError::Absent(digest));
        }
        if !self.inner.vouch(&slot, vouched)? {
            return Err(VouchStoreError::Conflict(digest));
        }
        Ok(())
    }

    /// Puts a whole blob held in memory: durable when this returns, and not evictable until it is
    /// [anchored](Self::set_anchored). For manifests; layers come by pieces or uploads.
    ///
    /// # Errors
    /// [`PutError`]: not the metainfo's bytes, no room, changed by somebody else meanwhile, or a failure.
    pub fn put_bytes(
        &self,
        metainfo: &Arc<Metainfo>,
        vouched: Option<Arc<VouchedMetainfo>>,
        data: &[u8],
    ) -> Result<(), PutError> {
        let digest = metainfo.digest();
        let layout = metainfo.layout();
        if data.len() as u64 != layout.size() {
            return Err(PutError::Mismatch(digest));
        }
        let pieces = || layout.pieces().zip(data.chunks(layout.piece_bytes() as usize));
        if !pieces().all(|(piece, bytes)| metainfo.verifies(piece, bytes)) {
            return Err(PutError::Mismatch(digest));
        }
        let _pin = self.pin(&digest);
        self.create(metainfo.clone(), vouched)?;
        self.set_anchored(&digest, false)?;
        for (piece, bytes) in pieces() {
            self.write_piece(&digest, piece, bytes)?;
        }
        let finished = self.check_digest(&digest).and_then(|()| self.commit(&digest));
        finished.map_err(|error| PutError::of_finish(digest, error))?;
        // A blob that was complete already may have been called anchored until now.
        Ok(self.inner.db.sync()?)
    }

    /// Says whether the blob is safe elsewhere. One that is not is never evicted, across restarts too. Blobs made
    /// by [`Self::create`] begin anchored; those uploaded or put in one go begin not anchored. Returns whether the
    /// blob is here.
    ///
    /// # Errors
    /// [`StoreError`] when the database fails.
    pub fn set_anchored(&self, digest: &Digest, anchored: bool) -> Result<bool, StoreError> {
        let Some(slot) = self.inner.slot(digest) else { return Ok(false) };
        let state = slot.state.lock();
        if matches!(*state, State::Vacant | State::Gone) {
            return Ok(false);
        }
        if slot.anchored.swap(anchored, Ordering::AcqRel) != anchored {
            self.inner.save_record(&slot, &state)?;
        }
        Ok(true)
    }

    /// Deletes a blob, anchored or not.
    ///
    /// # Errors
    /// [`StoreError`] when disk or database fail; the blob may then be found again.
    pub fn remove(&self, digest: &Digest) -> Result<Removal, StoreError> {
        let Some(slot) = self.inner.slot(digest) else { return Ok(Removal::Absent) };
        {
            let state = slot.state.lock();
            if slot.is_doomed() || matches!(*state, State::Vacant | State::Gone) {
                return Ok(Removal::Absent);
            }
            slot.doomed.store(true, Ordering::Release);
            self.inner.save_record(&slot, &state)?;
        }
        Ok(if self.inner.reap(&slot)? { Removal::Removed } else { Removal::Deferred })
    }

    /// All blobs, in no order; the caller sorts.
    pub fn blobs(&self) -> Vec<BlobSummary> {
        let slots: Vec<_> = self.inner.index.lock().blobs.values().cloned().collect();
        let summary = |slot: Arc<Slot>| {
            let complete = match &*slot.state.lock() {
                State::Vacant | State::Gone => return None,
                State::Cold | State::Partial(_) => false,
                State::Complete => true,
            };
            let millis = slot.last_use.load(Ordering::Relaxed) / 1000;
            (!slot.is_doomed()).then(|| BlobSummary {
                digest: slot.digest,
                size: slot.size(),
                last_use: WallTime::from_unix_millis(millis),
                complete,
                anchored: slot.is_anchored(),
            })
        };
        slots.into_iter().filter_map(summary).collect()
    }
}

impl Inner {
    fn make_partial(
        &self,
        slot: &Slot,
        state: &mut State,
        metainfo: Arc<Metainfo>,
        vouched: Option<Arc<VouchedMetainfo>>,
    ) -> Result<(), CreateError> {
        let size = metainfo.size();
        slot.size.store(size, Ordering::Relaxed);
        let reservation = self.reserve(charge(size))?;
        let path = self.disk.partial_path(&slot.digest);
        let file = self.disk.create_sized(&path, size)?;
        let record = record_of(&metainfo, vouched.as_deref());
        slot.anchored.store(true, Ordering::Release);
        if let Err(error) = self.db.put_blob(&slot.digest, &slot.record(false), &record) {
            // The file is the repair's, if it cannot be removed now.
            let _ = crate::disk::remove_file(&path);
            return Err(error.into());
        }
        reservation.keep();
        let bits = metainfo.empty_bitfield();
        *state = State::Partial(Partial { bits, unsaved: 0, checked: false });
        self.remember_file(slot.digest, Arc::new(file));
        self.remember_meta(slot.digest, Arc::new(Meta { metainfo, vouched }));
        Ok(())
    }

    fn join_existing(
        &self,
        slot: &Slot,
        state: &State,
        metainfo: &Arc<Metainfo>,
        vouched: Option<Arc<VouchedMetainfo>>,
    ) -> Result<(), CreateError> {
        if slot.doomed.swap(false, Ordering::AcqRel) {
            self.save_record(slot, state)?;
        }
        let meta = self.meta(slot)?;
        if *meta.metainfo != **metainfo {
            // A complete blob needs no pieces: whatever cut it has is right.
            if matches!(state, State::Complete) || meta.metainfo.extends(metainfo) {
                return Ok(());
            }
            if !metainfo.extends(&meta.metainfo) {
                return Err(CreateError::Conflict(slot.digest));
            }
            self.db.put_metainfo(&slot.digest, &record_of(metainfo, vouched.as_deref()))?;
            self.remember_meta(slot.digest, Arc::new(Meta { metainfo: Arc::clone(metainfo), vouched }));
            self.touch(slot);
            return Ok(());
        }
        if let (None, Some(vouched)) = (&meta.vouched, vouched) {
            self.vouch(slot, vouched)?;
        }
        self.touch(slot);
        Ok(())
    }

    /// Keeps a voucher; `false` when it is for other pieces. The caller holds the state's lock.
    fn vouch(&self, slot: &Slot, vouched: Arc<VouchedMetainfo>) -> Result<bool, StoreError> {
        let meta = self.meta(slot)?;
        if *meta.metainfo != *vouched.value() {
            return Ok(false);
        }
        self.db.put_metainfo(&slot.digest, &record_of(&meta.metainfo, Some(&vouched)))?;
        let metainfo = meta.metainfo.clone();
        self.remember_meta(slot.digest, Arc::new(Meta { metainfo, vouched: Some(vouched) }));
        Ok(true)
    }

    /// Removes a doomed blob unless it is pinned; returns whether it is gone.
    pub(crate) fn reap(&self, slot: &Arc<Slot>) -> Result<bool, StoreError> {
        let mut state = slot.state.lock();
        if matches!(*state, State::Gone) {
            return Ok(true);
        }
        // Somebody may have asked for the blob again.
        if !slot.is_doomed() || self.index.lock().pins.contains_key(&slot.digest) {
            return Ok(false);
        }
        self.destroy(slot, &mut state)?;
        drop(state);
        self.notify(slot.digest, RemovalReason::Deleted);
        Ok(true)
    }
}

pub(crate) fn record_of(metainfo: &Metainfo, vouched: Option<&VouchedMetainfo>) -> MetainfoRecord {
    match vouched {
        Some(vouched) => MetainfoRecord::Vouched(Box::new(vouched.clone())),
        None => MetainfoRecord::Plain(Box::new(metainfo.clone())),
    }
}

/// The pieces whose hashes are known: of a blob that is read for the first time, pieces are here a moment before their hashes are
/// out, and nobody who gets one then could verify it.
fn known(mut pieces: Bitfield, metainfo: &Metainfo) -> Bitfield {
    let layout = metainfo.layout();
    for number in metainfo.known_pieces()..layout.piece_count() {
        if let Some(piece) = layout.piece(number) {
            pieces.remove(piece);
        }
    }
    pieces
}
