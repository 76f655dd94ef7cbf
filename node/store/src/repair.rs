//! What a crash left, put right when the store opens.
//!
//! Records are compared with files, by name and length only: a committed file was fsynced before it got its name,
//! and the pieces of a partial one are verified before their first use.

use std::collections::HashMap;
use std::fs::{self, DirEntry, File};
use std::path::Path;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use parking_lot::Mutex;
use shoal_types::{Digest, WallTime};

use crate::blob::record_of;
use crate::db::RecordRow;
use crate::disk;
use crate::error::StoreError;
use crate::format::BlobRecord;
use crate::index::{Slot, State, charge};
use crate::store::Inner;
use crate::upload::{Upload, UploadId, hash_file};

/// What the store had when it was opened, and what was repaired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// Complete blobs.
    pub complete: u64,
    /// Partial blobs.
    pub partial: u64,
    /// Uploads that can go on.
    pub uploads: u64,
    /// Uploads thrown away because they were too old.
    pub uploads_expired: u64,
    /// Blobs whose commit was cut off between its file and its record; put in the state the file is in.
    pub half_renamed: u64,
    /// Records dropped because their file is missing or of the wrong length.
    pub lost: u64,
    /// Partial files brought back to full length; their pieces are verified before use.
    pub truncated: u64,
    /// Records dropped, with their files, because this program cannot read them.
    pub unreadable: u64,
    /// Files without a record removed: partial ones, and others whose content is not what their name says.
    pub orphans_removed: u64,
    /// Complete files without a record whose content is what their name says; kept, and not evictable.
    pub orphans_adopted: u64,
    /// Deletions finished that waited for a pin.
    pub deletions_finished: u64,
    /// Files and directories left alone because they are not the store's.
    pub foreign: u64,
}

pub(crate) fn repair(inner: &Inner, now: WallTime) -> Result<RepairReport, StoreError> {
    let mut report = RepairReport::default();
    let rows: Vec<RecordRow> = inner.db.records().collect::<Result<_, _>>()?;
    for (key, record) in rows {
        match (Digest::from_multihash_bytes(&key), record) {
            (Some(digest), Ok(record)) => repair_blob(inner, digest, &record, &mut report)?,
            (digest, _) => {
                tracing::warn!(?digest, "a blob's record cannot be read, the blob is dropped");
                if let Some(digest) = digest {
                    remove_files(inner, &digest)?;
                }
                inner.db.delete_blob(&key)?;
                report.unreadable = report.unreadable.saturating_add(1);
            }
        }
    }
    sweep_blobs(inner, &mut report)?;
    sweep_partial(inner, &mut report)?;
    sweep_uploads(inner, now, &mut report)?;
    Ok(report)
}

fn remove_files(inner: &Inner, digest: &Digest) -> Result<(), StoreError> {
    disk::remove_file(&inner.disk.blob_path(digest))?;
    disk::remove_file(&inner.disk.partial_path(digest))
}

fn repair_blob(
    inner: &Inner,
    digest: Digest,
    record: &BlobRecord,
    report: &mut RepairReport,
) -> Result<(), StoreError> {
    if record.doomed {
        remove_files(inner, &digest)?;
        inner.db.delete_blob(&crate::db::key(&digest))?;
        report.deletions_finished = report.deletions_finished.saturating_add(1);
        return Ok(());
    }
    let whole = disk::file_len(&inner.disk.blob_path(&digest))? == Some(record.size);
    let partial = disk::file_len(&inner.disk.partial_path(&digest))?;
    if whole {
        // An upload may have taken the place of a partial blob, whose file it removes last.
        disk::remove_file(&inner.disk.partial_path(&digest))?;
        if !record.complete {
            report.half_renamed = report.half_renamed.saturating_add(1);
            inner.db.put_complete(&digest, &BlobRecord { complete: true, ..*record })?;
        }
        report.complete = report.complete.saturating_add(1);
        insert(inner, digest, record, State::Complete);
        return Ok(());
    }
    let Some(len) = partial else {
        tracing::warn!(%digest, "the blob's file is missing or damaged, its record is dropped");
        remove_files(inner, &digest)?;
        inner.db.delete_blob(&crate::db::key(&digest))?;
        report.lost = report.lost.saturating_add(1);
        return Ok(());
    };
    disk::remove_file(&inner.disk.blob_path(&digest))?;
    if len != record.size {
        let path = inner.disk.partial_path(&digest);
        let file = File::options().write(true).open(&path);
        file.and_then(|file| file.set_len(record.size)).map_err(StoreError::io("lengthen", &path))?;
        report.truncated = report.truncated.saturating_add(1);
    }
    if record.complete {
        report.half_renamed = report.half_renamed.saturating_add(1);
        inner.db.put_record(&digest, &BlobRecord { complete: false, ..*record })?;
    }
    report.partial = report.partial.saturating_add(1);
    insert(inner, digest, record, State::Cold);
    Ok(())
}

fn insert(inner: &Inner, digest: Digest, record: &BlobRecord, state: State) {
    inner.stamp_at_least(record.last_use);
    let mut index = inner.index.lock();
    index.used = index.used.saturating_add(charge(record.size));
    index.blobs.insert(digest, Arc::new(Slot::new(digest, record, state)));
}

/// Complete files without a record.
fn sweep_blobs(inner: &Inner, report: &mut RepairReport) -> Result<(), StoreError> {
    for algorithm in entries(&inner.disk.blobs_dir())? {
        let algorithm_name = algorithm.file_name().to_string_lossy().into_owned();
        if !matches!(algorithm_name.as_str(), "sha256" | "sha512") {
            report.foreign = report.foreign.saturating_add(1);
            continue;
        }
        for fan in entries(&algorithm.path())? {
            if !fan.path().is_dir() {
                report.foreign = report.foreign.saturating_add(1);
                continue;
            }
            for file in entries(&fan.path())? {
                let name = format!("{algorithm_name}:{}", file.file_name().to_string_lossy());
                match name.parse::<Digest>() {
                    Ok(digest) if inner.disk.blob_path(&digest) == file.path() => {
                        if inner.slot(&digest).is_none() {
                            adopt(inner, &digest, &file.path(), report)?;
                        }
                    }
                    _ => report.foreign = report.foreign.saturating_add(1),
                }
            }
        }
    }
    Ok(())
}

/// Keeps a complete file without a record if it is what its name says. Nothing acknowledged gets here unless the
/// database was lost; then this is what saves the blobs.
fn adopt(inner: &Inner, digest: &Digest, path: &Path, report: &mut RepairReport) -> Result<(), StoreError> {
    let read = |path: &Path| {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        hash_file(&file, len, digest.algorithm())
    };
    match read(path) {
        Ok(metainfo) if metainfo.digest() == *digest => {
            let record = BlobRecord {
                size: metainfo.size(),
                complete: true,
                last_use: inner.stamp(),
                anchored: false,
                doomed: false,
            };
            inner.db.put_blob(digest, &record, &record_of(&metainfo, None))?;
            insert(inner, *digest, &record, State::Complete);
            report.complete = report.complete.saturating_add(1);
            report.orphans_adopted = report.orphans_adopted.saturating_add(1);
        }
        _ => {
            disk::remove_file(path)?;
            report.orphans_removed = report.orphans_removed.saturating_add(1);
        }
    }
    Ok(())
}

/// Partial files without a record.
fn sweep_partial(inner: &Inner, report: &mut RepairReport) -> Result<(), StoreError> {
    for file in entries(&inner.disk.partial_dir())? {
        let name = file.file_name().to_string_lossy().replacen('-', ":", 1);
        match name.parse::<Digest>() {
            Ok(digest) if inner.slot(&digest).is_none() => {
                disk::remove_file(&file.path())?;
                report.orphans_removed = report.orphans_removed.saturating_add(1);
            }
            Ok(_) => {}
            Err(_) => report.foreign = report.foreign.saturating_add(1),
        }
    }
    Ok(())
}

fn sweep_uploads(inner: &Inner, now: WallTime, report: &mut RepairReport) -> Result<(), StoreError> {
    let mut uploads = HashMap::new();
    for file in entries(&inner.disk.uploads_dir())? {
        let Ok(id) = file.file_name().to_string_lossy().parse::<UploadId>() else {
            report.foreign = report.foreign.saturating_add(1);
            continue;
        };
        let path = file.path();
        let meta = file.metadata().map_err(StoreError::io("look at", &path))?;
        let modified = meta.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let millis = modified.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        let last_active = WallTime::from_unix_millis(millis);
        if now.saturating_since(last_active) >= inner.config.upload_expiry {
            disk::remove_file(&path)?;
            report.uploads_expired = report.uploads_expired.saturating_add(1);
            continue;
        }
        {
            let mut index = inner.index.lock();
            index.used = index.used.saturating_add(charge(meta.len()));
        }
        uploads.insert(
            id,
            Arc::new(Mutex::new(Upload { len: meta.len(), hasher: None, last_active, gone: false })),
        );
        report.uploads = report.uploads.saturating_add(1);
    }
    *inner.uploads.lock() = uploads;
    Ok(())
}

fn entries(dir: &Path) -> Result<Vec<DirEntry>, StoreError> {
    let list = fs::read_dir(dir).and_then(Iterator::collect);
    list.map_err(StoreError::io("list", dir))
}
