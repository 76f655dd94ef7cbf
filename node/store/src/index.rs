//! Which blobs there are, in memory: about two hundred bytes each.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use shoal_types::{Bitfield, Digest, DigestHasher};

use crate::config::ALLOCATION_BYTES;
use crate::format::BlobRecord;

/// One blob. Taken out of the index when its state is [`State::Gone`]; a new life of the digest has a new slot.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) digest: Digest,
    pub(crate) size: AtomicU64,
    pub(crate) last_use: AtomicU64,
    /// `last_use` as the database has it.
    pub(crate) saved_use: AtomicU64,
    pub(crate) anchored: AtomicBool,
    pub(crate) doomed: AtomicBool,
    pub(crate) state: Mutex<State>,
    /// The digest of the leading pieces, computed as they come in.
    pub(crate) prefix: Mutex<Option<Prefix>>,
    /// Held by a commit, so that a second one returns when the first one's work is durable: whether it is.
    pub(crate) durable: Mutex<bool>,
}

/// Where a blob is in its life.
#[derive(Debug)]
pub(crate) enum State {
    /// In the index, but nothing of it on disk: it is just being made.
    Vacant,
    /// In part on disk, as a former process left it: its claimed pieces are to be verified before use.
    Cold,
    /// In part on disk.
    Partial(Partial),
    /// Whole, checked, in its final place.
    Complete,
    /// Removed.
    Gone,
}

/// The pieces of a partial blob.
#[derive(Debug)]
pub(crate) struct Partial {
    /// Verified and written.
    pub(crate) bits: Bitfield,
    /// Pieces set in `bits` since the database was told.
    pub(crate) unsaved: u32,
    /// The whole digest has been checked.
    pub(crate) checked: bool,
}

/// A digest under way over the pieces before `next`.
#[derive(Debug)]
pub(crate) struct Prefix {
    pub(crate) hasher: DigestHasher,
    pub(crate) next: u32,
}

impl Slot {
    pub(crate) fn new(digest: Digest, record: &BlobRecord, state: State) -> Self {
        Self {
            digest,
            size: AtomicU64::new(record.size),
            last_use: AtomicU64::new(record.last_use),
            saved_use: AtomicU64::new(record.last_use),
            anchored: AtomicBool::new(record.anchored),
            doomed: AtomicBool::new(record.doomed),
            state: Mutex::new(state),
            prefix: Mutex::new(None),
            durable: Mutex::new(false),
        }
    }

    /// Takes over what the database was told.
    pub(crate) fn adopt(&self, record: &BlobRecord) {
        self.size.store(record.size, Ordering::Relaxed);
        self.last_use.store(record.last_use, Ordering::Relaxed);
        self.saved_use.store(record.last_use, Ordering::Relaxed);
        self.anchored.store(record.anchored, Ordering::Release);
        self.doomed.store(record.doomed, Ordering::Release);
    }

    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    pub(crate) fn is_anchored(&self) -> bool {
        self.anchored.load(Ordering::Acquire)
    }

    pub(crate) fn is_doomed(&self) -> bool {
        self.doomed.load(Ordering::Acquire)
    }

    /// The record to store; the caller holds the state's lock.
    pub(crate) fn record(&self, complete: bool) -> BlobRecord {
        let last_use = self.last_use.load(Ordering::Relaxed);
        self.saved_use.store(last_use, Ordering::Relaxed);
        BlobRecord {
            size: self.size(),
            complete,
            last_use,
            anchored: self.is_anchored(),
            doomed: self.is_doomed(),
        }
    }
}

/// All blobs, the pins on them, and the space they and the uploads take.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(crate) blobs: HashMap<Digest, Arc<Slot>>,
    /// Pins by digest; also of blobs that are not here (yet).
    pub(crate) pins: HashMap<Digest, u32>,
    /// Bytes charged, reservations included.
    pub(crate) used: u64,
}

impl Index {
    pub(crate) fn release(&mut self, bytes: u64) {
        self.used = self.used.saturating_sub(bytes);
    }

    /// Takes `slot` out, unless another life of the digest took its place.
    pub(crate) fn forget(&mut self, slot: &Arc<Slot>) {
        if self.blobs.get(&slot.digest).is_some_and(|found| Arc::ptr_eq(found, slot)) {
            self.blobs.remove(&slot.digest);
        }
    }
}

/// What a blob or upload of `size` bytes counts as.
pub(crate) fn charge(size: u64) -> u64 {
    size.max(1).checked_next_multiple_of(ALLOCATION_BYTES).unwrap_or(u64::MAX)
}
