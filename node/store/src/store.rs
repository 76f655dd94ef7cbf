//! The handle, and what all operations share.

use std::collections::HashMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, RwLock};
use shoal_types::{Bitfield, Digest, Metainfo, VouchedMetainfo, WallTime};

use crate::config::StoreConfig;
use crate::db::{self, Db, KvTable, Table};
use crate::disk::{self, Disk};
use crate::error::{OpenError, StoreError};
use crate::format::{BlobRecord, MetainfoRecord};
use crate::index::{Index, Partial, Slot, State, charge};
use crate::lru::Lru;
use crate::repair::{self, RepairReport};
use crate::upload::{Upload, UploadId};

/// A handle to the store. Clones share it; the last one dropped writes out what is not saved yet.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

/// Why a blob left the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RemovalReason {
    /// To make room.
    Evicted,
    /// Somebody asked for it.
    Deleted,
    /// Its content does not have its digest.
    Corrupt,
}

/// What the store holds and has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that can be used.
    pub capacity_bytes: u64,
    /// Bytes in use by blobs (partial ones in full length) and uploads.
    pub used_bytes: u64,
    /// Blobs, partial ones included.
    pub blobs: u64,
    /// Uploads open.
    pub uploads: u64,
    /// Blobs evicted.
    pub evicted_blobs: u64,
    /// Bytes evicted.
    pub evicted_bytes: u64,
    /// Blobs and uploads refused for want of space.
    pub refused_no_space: u64,
    /// Uploads refused because too many were open.
    pub refused_uploads: u64,
    /// Claimed pieces that a former process left and that did not have their hash.
    pub pieces_lost: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) evicted_blobs: AtomicU64,
    pub(crate) evicted_bytes: AtomicU64,
    pub(crate) refused_no_space: AtomicU64,
    pub(crate) refused_uploads: AtomicU64,
    pub(crate) pieces_lost: AtomicU64,
}

/// A blob's metainfo and its voucher.
#[derive(Debug)]
pub(crate) struct Meta {
    pub(crate) metainfo: Arc<Metainfo>,
    pub(crate) vouched: Option<Arc<VouchedMetainfo>>,
}

pub(crate) type RemovalListener = Box<dyn Fn(Digest, RemovalReason) + Send + Sync>;

pub(crate) struct Inner {
    pub(crate) config: StoreConfig,
    pub(crate) disk: Disk,
    pub(crate) db: Arc<Db>,
    pub(crate) index: Mutex<Index>,
    /// One eviction at a time: two would each free what one has to.
    pub(crate) evicting: Mutex<()>,
    pub(crate) uploads: Mutex<HashMap<UploadId, Arc<Mutex<Upload>>>>,
    pub(crate) counters: Counters,
    files: Mutex<Lru<Digest, Arc<File>>>,
    metainfos: Mutex<Lru<Digest, Arc<Meta>>>,
    listener: RwLock<Option<RemovalListener>>,
    /// The last use stamp given.
    last_stamp: AtomicU64,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("dir", &self.disk.root()).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store in `config.dir`, making it if it is not there, and repairs what a crash left. Takes a time
    /// that grows with the number of blobs (one `stat` each), not with their size. `now` expires old uploads.
    ///
    /// # Errors
    /// [`OpenError`]: a bad configuration, another process has it, a later program wrote it, or the disk failed.
    pub fn open(config: StoreConfig, now: WallTime) -> Result<(Self, RepairReport), OpenError> {
        config.validate()?;
        let disk = Disk::open(&config.dir)?;
        let db = Db::open(&disk.db_path(), disk.root())?;
        let inner = Inner {
            files: Mutex::new(Lru::new(config.open_files_max)),
            metainfos: Mutex::new(Lru::new(config.metainfo_cache_bytes)),
            db: Arc::new(db),
            index: Mutex::default(),
            evicting: Mutex::default(),
            uploads: Mutex::default(),
            counters: Counters::default(),
            listener: RwLock::new(None),
            last_stamp: AtomicU64::new(0),
            disk,
            config,
        };
        let report = repair::repair(&inner, now)?;
        Ok((Self { inner: Arc::new(inner) }, report))
    }

    /// A table for small records of another crate.
    pub fn table(&self, table: Table) -> KvTable {
        KvTable::new(self.inner.db.clone(), table)
    }

    /// Has `listener` called after each removal of a blob, on the thread that removed it and perhaps under
    /// another blob's lock: it sends on a channel, and does not call the store. It takes the place of an earlier one.
    pub fn on_removal(&self, listener: impl Fn(Digest, RemovalReason) + Send + Sync + 'static) {
        *self.inner.listener.write() = Some(Box::new(listener));
    }

    /// Writes out last uses and bitfields that are not saved yet. Call it every minute or so; a crash in between
    /// costs some order of eviction, and pieces of very large blobs.
    ///
    /// # Errors
    /// [`StoreError`] when the database fails.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.inner.flush()
    }

    /// What the store holds and has done.
    pub fn usage(&self) -> Usage {
        let inner = &self.inner;
        let (used_bytes, blobs) = {
            let index = inner.index.lock();
            (index.used, index.blobs.len() as u64)
        };
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Usage {
            capacity_bytes: inner.capacity(used_bytes).unwrap_or(used_bytes),
            used_bytes,
            blobs,
            uploads: inner.uploads.lock().len() as u64,
            evicted_blobs: read(&inner.counters.evicted_blobs),
            evicted_bytes: read(&inner.counters.evicted_bytes),
            refused_no_space: read(&inner.counters.refused_no_space),
            refused_uploads: read(&inner.counters.refused_uploads),
            pieces_lost: read(&inner.counters.pieces_lost),
        }
    }
}

impl Inner {
    pub(crate) fn slot(&self, digest: &Digest) -> Option<Arc<Slot>> {
        self.index.lock().blobs.get(digest).cloned()
    }

    /// The digest's slot, a new vacant one when there is none.
    pub(crate) fn slot_or_new(&self, digest: Digest, size: u64) -> Arc<Slot> {
        let last_use = self.stamp();
        let mut index = self.index.lock();
        let new = || {
            // Nothing to evict yet; it is anchored once it is made.
            let record = BlobRecord { size, complete: false, last_use, anchored: false, doomed: false };
            Arc::new(Slot::new(digest, &record, State::Vacant))
        };
        index.blobs.entry(digest).or_insert_with(new).clone()
    }

    /// A time of use: microseconds since the Unix epoch, each one later than the one before.
    pub(crate) fn stamp(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        let step = |last: u64| now.max(last.saturating_add(1));
        let update =
            self.last_stamp.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(step(last)));
        update.map_or(now, step)
    }

    /// Later stamps come after `stamp`, whatever the clock says.
    pub(crate) fn stamp_at_least(&self, stamp: u64) {
        self.last_stamp.fetch_max(stamp, Ordering::Relaxed);
    }

    pub(crate) fn touch(&self, slot: &Slot) {
        slot.last_use.store(self.stamp(), Ordering::Relaxed);
    }

    /// The blob's metainfo. The caller holds the state's lock, so that a cached one is of this life of the blob.
    pub(crate) fn meta(&self, slot: &Slot) -> Result<Arc<Meta>, StoreError> {
        if let Some(found) = self.metainfos.lock().get(&slot.digest) {
            return Ok(found);
        }
        let meta = Arc::new(match self.db.metainfo(&slot.digest)? {
            MetainfoRecord::Plain(metainfo) => Meta { metainfo: Arc::from(metainfo), vouched: None },
            MetainfoRecord::Vouched(vouched) => {
                Meta { metainfo: Arc::new(vouched.value().clone()), vouched: Some(Arc::from(vouched)) }
            }
        });
        self.remember_meta(slot.digest, meta.clone());
        Ok(meta)
    }

    pub(crate) fn remember_meta(&self, digest: Digest, meta: Arc<Meta>) {
        // A vouched one holds its hashes three times: decoded, decoded in the envelope, encoded.
        let copies = if meta.vouched.is_some() { 3 } else { 1 };
        let hashes = (meta.metainfo.layout().piece_count() as usize).saturating_mul(32);
        let weight = hashes.saturating_mul(copies).saturating_add(512);
        self.metainfos.lock().insert(digest, meta, weight);
    }

    /// The open file of a blob in `state`, whose lock the caller holds.
    pub(crate) fn file(&self, slot: &Slot, state: &State) -> Result<Arc<File>, StoreError> {
        if let Some(file) = self.files.lock().get(&slot.digest) {
            return Ok(file);
        }
        let complete = matches!(state, State::Complete);
        let path = match complete {
            true => self.disk.blob_path(&slot.digest),
            false => self.disk.partial_path(&slot.digest),
        };
        let file = OpenOptions::new().read(true).write(!complete).open(&path);
        let file = Arc::new(file.map_err(StoreError::io("open", &path))?);
        self.remember_file(slot.digest, file.clone());
        Ok(file)
    }

    pub(crate) fn remember_file(&self, digest: Digest, file: Arc<File>) {
        self.files.lock().insert(digest, file, 1);
    }

    pub(crate) fn forget_file(&self, digest: &Digest) {
        self.files.lock().remove(digest);
    }

    /// Makes a blob's bits usable: those of a former process are loaded and each is checked against its piece.
    pub(crate) fn warm(&self, slot: &Slot, state: &mut State) -> Result<(), StoreError> {
        if !matches!(state, State::Cold) {
            return Ok(());
        }
        let meta = self.meta(slot)?;
        let layout = meta.metainfo.layout();
        let claimed = Bitfield::from_bytes(layout.piece_count(), &self.db.pieces(&slot.digest)?);
        let claimed = claimed.unwrap_or_else(|| meta.metainfo.empty_bitfield());
        let file = self.file(slot, state)?;
        let mut bits = meta.metainfo.empty_bitfield();
        let mut buffer = Vec::new();
        for piece in claimed.iter(&layout) {
            buffer.resize(layout.len_of(piece) as usize, 0);
            let read =
                std::os::unix::fs::FileExt::read_exact_at(&*file, &mut buffer, layout.range_of(piece).start);
            // A piece that cannot be read is as good as missing; the write that replaces it tells of a bad disk.
            if read.is_ok() && meta.metainfo.verifies(piece, &buffer) {
                bits.insert(piece);
            }
        }
        let lost = claimed.count_beyond(&bits);
        if lost > 0 {
            self.counters.pieces_lost.fetch_add(u64::from(lost), Ordering::Relaxed);
            tracing::warn!(digest = %slot.digest, lost, "claimed pieces are not on the disk, they will be fetched again");
            self.db.put_pieces(&slot.digest, bits.to_bytes())?;
        }
        *state = State::Partial(Partial { bits, unsaved: 0, checked: false });
        Ok(())
    }

    pub(crate) fn save_record(&self, slot: &Slot, state: &State) -> Result<(), StoreError> {
        match state {
            State::Vacant | State::Gone => Ok(()),
            State::Cold | State::Partial(_) => self.db.put_record(&slot.digest, &slot.record(false)),
            State::Complete => self.db.put_record(&slot.digest, &slot.record(true)),
        }
    }

    pub(crate) fn save_bits(&self, slot: &Slot, partial: &mut Partial) -> Result<(), StoreError> {
        self.db.put_pieces(&slot.digest, partial.bits.to_bytes())?;
        partial.unsaved = 0;
        Ok(())
    }

    /// Takes a blob off the disk and out of the index. The caller holds its state, and tells the listener when it
    /// holds it no more.
    pub(crate) fn destroy(&self, slot: &Arc<Slot>, state: &mut State) -> Result<(), StoreError> {
        // The files first: a record without its file is dropped by the repair, a file without record is adopted.
        disk::remove_file(&self.disk.blob_path(&slot.digest))?;
        disk::remove_file(&self.disk.partial_path(&slot.digest))?;
        self.db.delete_blob(&db::key(&slot.digest))?;
        *state = State::Gone;
        self.forget_file(&slot.digest);
        self.metainfos.lock().remove(&slot.digest);
        let mut index = self.index.lock();
        index.forget(slot);
        index.release(charge(slot.size()));
        Ok(())
    }

    pub(crate) fn notify(&self, digest: Digest, reason: RemovalReason) {
        if let Some(listener) = &*self.listener.read() {
            listener(digest, reason);
        }
    }

    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        let slots: Vec<_> = self.index.lock().blobs.values().cloned().collect();
        for slot in slots {
            let mut state = slot.state.lock();
            if slot.last_use.load(Ordering::Relaxed) != slot.saved_use.load(Ordering::Relaxed) {
                self.save_record(&slot, &state)?;
            }
            if let State::Partial(partial) = &mut *state
                && partial.unsaved > 0
            {
                self.save_bits(&slot, partial)?;
            }
        }
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn cached(&self) -> (usize, usize) {
        (self.files.lock().len(), self.metainfos.lock().len())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.flush() {
            tracing::warn!(%error, "last uses and bitfields were not saved");
        }
    }
}
