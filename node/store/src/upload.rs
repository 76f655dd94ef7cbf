//! Uploads: pushed content before its digest is known.
//!
//! An upload is a file; its length is the upload's offset. Bytes appended survive a crash of the process at once and
//! one of the machine when the upload is finished.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use shoal_types::{
    Algorithm, Digest, DigestHasher, Metainfo, MetainfoBuilder, PieceHash, PieceLayout, WallTime,
};

use crate::blob::record_of;
use crate::disk;
use crate::error::{StoreError, UploadError, UploadFinishError};
use crate::format::BlobRecord;
use crate::index::{Slot, State, charge};
use crate::store::{Inner, Meta, Store};

/// Names an upload: 128 random bits, in text 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UploadId([u8; 16]);

impl UploadId {
    /// The id of 16 bytes of the operating system's randomness.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not 32 lower-case hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an upload id: expected 32 lower-case hex digits")]
pub struct UploadIdParseError;

impl FromStr for UploadId {
    type Err = UploadIdParseError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).map_err(|_| UploadIdParseError)?;
        Ok(Self(bytes.try_into().map_err(|_| UploadIdParseError)?))
    }
}

/// An upload under way.
#[derive(Debug)]
pub(crate) struct Upload {
    pub(crate) len: u64,
    /// SHA-256 of all bytes so far; lost in a restart.
    pub(crate) hasher: Option<DigestHasher>,
    pub(crate) last_active: WallTime,
    /// Finished, cancelled or expired while somebody waited for the lock.
    pub(crate) gone: bool,
}

impl Store {
    /// Begins an upload of no bytes.
    ///
    /// # Errors
    /// [`UploadError`]: the id is taken, too many are open, no room, or a failure.
    pub fn upload_begin(&self, id: UploadId) -> Result<(), UploadError> {
        let inner = &self.inner;
        let mut uploads = inner.uploads.lock();
        if uploads.contains_key(&id) {
            return Err(UploadError::Exists(id));
        }
        if uploads.len() >= inner.config.uploads_max {
            inner.counters.refused_uploads.fetch_add(1, Ordering::Relaxed);
            return Err(UploadError::TooMany(uploads.len()));
        }
        let reservation = inner.reserve(charge(0))?;
        let path = inner.disk.upload_path(id);
        File::create_new(&path).map_err(StoreError::io("create", &path))?;
        reservation.keep();
        let hasher = Some(DigestHasher::new(Algorithm::Sha256));
        let upload = Upload { len: 0, hasher, last_active: wall_now(), gone: false };
        uploads.insert(id, Arc::new(Mutex::new(upload)));
        Ok(())
    }

    /// Appends to an upload whose end is at `offset`; returns the new end. All of `data` is appended or none.
    ///
    /// # Errors
    /// [`UploadError`]: no such upload, its end is elsewhere, too large, no room, or a failure.
    pub fn upload_append(&self, id: UploadId, offset: u64, data: &[u8]) -> Result<u64, UploadError> {
        let inner = &self.inner;
        let upload = self.upload(id).ok_or(UploadError::Unknown(id))?;
        let mut upload = upload.lock();
        if upload.gone {
            return Err(UploadError::Unknown(id));
        }
        if offset != upload.len {
            return Err(UploadError::WrongOffset { id, got: offset, expected: upload.len });
        }
        let end = offset.saturating_add(data.len() as u64);
        PieceLayout::for_size(end)?;
        let reservation = inner.reserve(charge(end).saturating_sub(charge(offset)))?;
        let path = inner.disk.upload_path(id);
        let file = OpenOptions::new().write(true).open(&path).map_err(StoreError::io("open", &path))?;
        if let Err(error) = inner.disk.write_at(&file, &path, data, offset, true) {
            // Part of it may have been written; what stays beyond the end would be overwritten or, after a restart,
            // be taken for appended, which it was meant to be.
            let _ = file.set_len(offset);
            return Err(error.into());
        }
        reservation.keep();
        if let Some(hasher) = &mut upload.hasher {
            hasher.update(data);
        }
        upload.len = end;
        upload.last_active = wall_now();
        Ok(end)
    }

    /// Where an upload ends; `None` when there is no such upload.
    pub fn upload_offset(&self, id: UploadId) -> Option<u64> {
        let upload = self.upload(id)?;
        let upload = upload.lock();
        (!upload.gone).then_some(upload.len)
    }

    /// Makes an upload the blob `digest`: complete, durable and not [anchored](Self::set_anchored) when this
    /// returns. The content is read once, to hash its pieces (and the whole, if the running digest is of another
    /// algorithm or was lost in a restart). When the blob is here already, the upload is dropped.
    ///
    /// # Errors
    /// [`UploadFinishError`]: no such upload, another digest (the upload is then gone), no room, or a failure.
    pub fn upload_finish(&self, id: UploadId, digest: &Digest) -> Result<Arc<Metainfo>, UploadFinishError> {
        let inner = &self.inner;
        let upload = self.upload(id).ok_or(UploadFinishError::Unknown(id))?;
        let mut upload = upload.lock();
        if upload.gone {
            return Err(UploadFinishError::Unknown(id));
        }
        upload.last_active = wall_now();
        let path = inner.disk.upload_path(id);
        let file = File::open(&path).map_err(StoreError::io("open", &path))?;
        let running = upload.hasher.as_ref().filter(|_| digest.algorithm() == Algorithm::Sha256);
        let running = running.map(|hasher| hasher.clone().finish());
        let metainfo = match running {
            Some(got) if got != *digest => Err(got),
            Some(got) => Ok(hash_pieces(&file, upload.len, got).map_err(StoreError::io("read", &path))?),
            None => {
                let got = hash_file(&file, upload.len, digest.algorithm());
                let got = got.map_err(StoreError::io("read", &path))?;
                if got.digest() == *digest { Ok(got) } else { Err(got.digest()) }
            }
        };
        let metainfo = match metainfo {
            Ok(metainfo) => Arc::new(metainfo),
            Err(got) => {
                inner.drop_upload(id, &mut upload)?;
                return Err(UploadFinishError::DigestMismatch { got });
            }
        };
        file.sync_all().map_err(StoreError::io("fsync", &path))?;
        let stored = inner.install(&metainfo, id, &mut upload)?;
        inner.disk.sync_parents(&inner.disk.blob_path(digest))?;
        inner.db.sync()?;
        Ok(stored)
    }

    /// Throws an upload away; returns whether there was one.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be removed; the upload stays.
    pub fn upload_cancel(&self, id: UploadId) -> Result<bool, StoreError> {
        let Some(upload) = self.upload(id) else { return Ok(false) };
        let mut upload = upload.lock();
        if upload.gone {
            return Ok(false);
        }
        self.inner.drop_upload(id, &mut upload)?;
        Ok(true)
    }

    /// Throws away the uploads to which nothing was appended for [`StoreConfig`](crate::StoreConfig)'s
    /// `upload_expiry` before `now`; returns which.
    ///
    /// # Errors
    /// [`StoreError`] when a file cannot be removed.
    pub fn upload_expire(&self, now: WallTime) -> Result<Vec<UploadId>, StoreError> {
        let uploads: Vec<_> =
            self.inner.uploads.lock().iter().map(|(id, upload)| (*id, upload.clone())).collect();
        let mut expired = Vec::new();
        for (id, upload) in uploads {
            // One that is locked is in use.
            let Some(mut upload) = upload.try_lock() else { continue };
            if !upload.gone && now.saturating_since(upload.last_active) >= self.inner.config.upload_expiry {
                self.inner.drop_upload(id, &mut upload)?;
                expired.push(id);
            }
        }
        Ok(expired)
    }

    fn upload(&self, id: UploadId) -> Option<Arc<Mutex<Upload>>> {
        self.inner.uploads.lock().get(&id).cloned()
    }
}

impl Inner {
    fn drop_upload(&self, id: UploadId, upload: &mut Upload) -> Result<(), StoreError> {
        disk::remove_file(&self.disk.upload_path(id))?;
        self.forget_upload(id, upload);
        self.index.lock().release(charge(upload.len));
        Ok(())
    }

    fn forget_upload(&self, id: UploadId, upload: &mut Upload) {
        upload.gone = true;
        self.uploads.lock().remove(&id);
    }

    /// Makes an upload's fsynced file the blob's; returns the metainfo the blob has from now on.
    fn install(
        &self,
        metainfo: &Arc<Metainfo>,
        id: UploadId,
        upload: &mut Upload,
    ) -> Result<Arc<Metainfo>, StoreError> {
        loop {
            let slot = self.slot_or_new(metainfo.digest(), metainfo.size());
            let mut state = slot.state.lock();
            let stored = match &*state {
                State::Gone => continue,
                State::Complete => {
                    slot.anchored.store(false, Ordering::Release);
                    slot.doomed.store(false, Ordering::Release);
                    self.save_record(&slot, &state)?;
                    let stored = self.meta(&slot)?.metainfo.clone();
                    self.drop_upload(id, upload)?;
                    stored
                }
                State::Vacant => {
                    let placed = self.place(&slot, &mut state, metainfo, id);
                    if placed.is_err() {
                        *state = State::Gone;
                        self.index.lock().forget(&slot);
                    }
                    placed?;
                    self.forget_upload(id, upload);
                    metainfo.clone()
                }
                State::Cold | State::Partial(_) => {
                    let partial_bytes = charge(slot.size());
                    self.place(&slot, &mut state, metainfo, id)?;
                    self.forget_upload(id, upload);
                    self.index.lock().release(partial_bytes);
                    metainfo.clone()
                }
            };
            self.touch(&slot);
            return Ok(stored);
        }
    }

    /// Puts an upload's file in the blob's place, over what there was of it. The upload's charge becomes the blob's.
    fn place(
        &self,
        slot: &Slot,
        state: &mut State,
        metainfo: &Arc<Metainfo>,
        id: UploadId,
    ) -> Result<(), StoreError> {
        // The voucher of a partial blob still holds when it is for the same pieces.
        let known = if matches!(state, State::Vacant) { None } else { Some(self.meta(slot)?) };
        let vouched = known.filter(|meta| *meta.metainfo == **metainfo).and_then(|meta| meta.vouched.clone());
        let (from, to) = (self.disk.upload_path(id), self.disk.blob_path(&slot.digest));
        self.disk.publish(&from, &to)?;
        let record = BlobRecord {
            size: metainfo.size(),
            complete: true,
            last_use: self.stamp(),
            anchored: false,
            doomed: false,
        };
        if let Err(error) = self.db.put_blob(&slot.digest, &record, &record_of(metainfo, vouched.as_deref()))
        {
            // The upload stays, so that it can be finished again.
            let _ = self.disk.publish(&to, &from);
            return Err(error);
        }
        slot.adopt(&record);
        self.forget_file(&slot.digest);
        if let Err(error) = disk::remove_file(&self.disk.partial_path(&slot.digest)) {
            tracing::warn!(digest = %slot.digest, %error, "a replaced partial file stays, the next start removes it");
        }
        *state = State::Complete;
        self.remember_meta(slot.digest, Arc::new(Meta { metainfo: metainfo.clone(), vouched }));
        Ok(())
    }
}

/// The metainfo of a file of `len` bytes, its digest included, in one pass.
pub(crate) fn hash_file(file: &File, len: u64, algorithm: Algorithm) -> std::io::Result<Metainfo> {
    let layout = PieceLayout::for_size(len).map_err(std::io::Error::other)?;
    let mut builder = MetainfoBuilder::new(algorithm, layout);
    each_piece(file, &layout, |bytes| builder.update(bytes))?;
    builder.finish().ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
}

/// The metainfo of a file of `len` bytes whose digest is known.
fn hash_pieces(file: &File, len: u64, digest: Digest) -> std::io::Result<Metainfo> {
    let layout = PieceLayout::for_size(len).map_err(std::io::Error::other)?;
    let mut hashes = Vec::with_capacity(layout.piece_count() as usize);
    each_piece(file, &layout, |bytes| hashes.push(PieceHash::of(bytes)))?;
    Metainfo::new(digest, layout, hashes).map_err(std::io::Error::other)
}

fn each_piece(file: &File, layout: &PieceLayout, mut seen: impl FnMut(&[u8])) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    for piece in layout.pieces() {
        buffer.resize(layout.len_of(piece) as usize, 0);
        file.read_exact_at(&mut buffer, layout.range_of(piece).start)?;
        seen(&buffer);
    }
    Ok(())
}

fn wall_now() -> WallTime {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime::from_unix_millis(u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}
