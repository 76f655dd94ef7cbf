//! `fs:`, a directory: the embedded default, or a shared mount.
//!
//! Every object is written under `tmp/`, fsynced and renamed to its place, and the directories are fsynced, so a
//! crash leaves whole objects and files under `tmp/`, which are removed when they are old. A marker file at the root
//! tells a directory that lost its mount from one that has no blobs yet.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use shoal_types::{Digest, RecordKey, RepositoryName};

use crate::backend::{
    Backend, BackendError, BlobFile, Mark, StoredRecord, check_record_bytes, check_source, of_range,
    range_len,
};
use crate::layout;

mod files;
mod list;

use files::{copy, entries, failed, is_absence, remove, sync_dir, write_synced};

/// The marker's name and content: the version of the layout.
const MARKER: &str = "shoal-backend";
const MARKER_CONTENT: &[u8] = b"1\n";
const TMP: &str = "tmp";
/// Locked while a record is compared and replaced; under `tmp/`, for it means nothing to a reader.
const LOCK: &str = "records.lock";
/// Files under `tmp/` untouched for so long are a crash's: no put takes this long.
const TMP_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// A backend in a directory.
#[derive(Clone, Debug)]
pub struct FsBackend {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    next_tmp: AtomicU64,
}

impl FsBackend {
    /// Opens the backend in the directory `root`, which must be there: one that is missing may be a mount that is.
    /// An empty directory becomes a backend; one with other things in it is refused.
    ///
    /// # Errors
    /// [`BackendError`], with what to put right.
    pub async fn open(root: &Path) -> Result<Self, BackendError> {
        let inner = Arc::new(Inner { root: root.to_owned(), next_tmp: AtomicU64::new(0) });
        let own = Self { inner };
        own.blocking(Inner::open).await?;
        Ok(own)
    }

    /// As [`Self::open`], making the directory when it is missing: for one that belongs to the process.
    ///
    /// # Errors
    /// [`BackendError`], with what to put right.
    pub async fn create(root: &Path) -> Result<Self, BackendError> {
        tokio::fs::create_dir_all(root).await.map_err(failed("make the directory", root))?;
        Self::open(root).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let inner = self.inner.clone();
        let joined = tokio::task::spawn_blocking(move || work(&inner)).await;
        joined.unwrap_or_else(|error| {
            Err(BackendError::Unavailable {
                what: "run a file operation".to_owned(),
                source: Box::new(error),
            })
        })
    }
}

#[async_trait]
impl Backend for FsBackend {
    fn describe(&self) -> String {
        format!("fs:{}", self.inner.root.display())
    }

    async fn probe(&self) -> Result<(), BackendError> {
        self.blocking(|inner| {
            inner.check_mounted()?;
            let tmp = inner.new_tmp();
            let written = write_synced(&tmp, b"probe");
            let _ = fs::remove_file(&tmp);
            written
        })
        .await
    }

    fn has_conditional_writes(&self) -> bool {
        true
    }

    async fn stat(&self, digest: &Digest, _: Option<&RepositoryName>) -> Result<Option<u64>, BackendError> {
        let key = layout::blob_key(digest);
        self.blocking(move |inner| {
            let path = inner.root.join(key);
            inner.optional(&path, fs::metadata(&path).map(|meta| meta.len()))
        })
        .await
    }

    async fn metainfo(&self, digest: &Digest) -> Result<Option<Vec<u8>>, BackendError> {
        let key = layout::metainfo_key(digest);
        self.blocking(move |inner| inner.read_object(&key)).await
    }

    async fn read_range(
        &self,
        digest: &Digest,
        _: Option<&RepositoryName>,
        range: Range<u64>,
    ) -> Result<Bytes, BackendError> {
        let digest = *digest;
        self.blocking(move |inner| inner.read_range(&digest, range)).await
    }

    async fn put(
        &self,
        digest: &Digest,
        path: &Path,
        size: u64,
        metainfo: &[u8],
    ) -> Result<(), BackendError> {
        let (digest, source, metainfo) = (*digest, path.to_owned(), metainfo.to_vec());
        self.blocking(move |inner| inner.put(&digest, &source, size, &metainfo)).await
    }

    async fn delete(&self, digest: &Digest) -> Result<bool, BackendError> {
        let digest = *digest;
        self.blocking(move |inner| {
            // The blob first: one that is there has its metainfo.
            let was = inner.delete(&layout::blob_key(&digest))?;
            inner.delete(&layout::metainfo_key(&digest))?;
            Ok(was)
        })
        .await
    }

    fn list_blobs(&self) -> BoxStream<'_, Result<BlobFile, BackendError>> {
        list::stream(Arc::clone(&self.inner), layout::BLOBS, |key, size| {
            layout::blob_of(key).map(|digest| BlobFile { digest, size })
        })
    }

    async fn get_record(&self, key: &RecordKey) -> Result<Option<StoredRecord>, BackendError> {
        let key = layout::record_key(key);
        self.blocking(move |inner| {
            let object = inner.read_object(&key)?;
            Ok(object.map(|object| StoredRecord { mark: mark_of(&object), object }))
        })
        .await
    }

    async fn put_record(
        &self,
        key: &RecordKey,
        object: &[u8],
        expected: Option<&Mark>,
    ) -> Result<bool, BackendError> {
        check_record_bytes(key, object)?;
        let (key, object, expected) = (layout::record_key(key), object.to_vec(), expected.cloned());
        self.blocking(move |inner| {
            let _lock = inner.lock_records()?;
            let now = inner.read_object(&key)?.map(|object| mark_of(&object));
            if now != expected {
                return Ok(false);
            }
            inner.write_object(&key, &object).map(|()| true)
        })
        .await
    }

    async fn delete_record(&self, key: &RecordKey) -> Result<bool, BackendError> {
        let key = layout::record_key(key);
        self.blocking(move |inner| inner.delete(&key)).await
    }

    fn list_records(&self) -> BoxStream<'_, Result<RecordKey, BackendError>> {
        list::stream(Arc::clone(&self.inner), layout::TAGS, |key, _| layout::record_of(key))
    }
}

/// The state of a file: its content, for times and inodes repeat.
fn mark_of(object: &[u8]) -> Mark {
    Mark(Digest::sha256(object).hex())
}

impl Inner {
    fn open(&self) -> Result<(), BackendError> {
        let meta = fs::metadata(&self.root);
        if meta.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            let why = "the directory does not exist: make it, or mount what belongs there";
            return Err(BackendError::invalid(self.root.display(), why));
        }
        if !meta.map_err(failed("look at", &self.root))?.is_dir() {
            return Err(BackendError::invalid(self.root.display(), "not a directory"));
        }
        let marker = self.root.join(MARKER);
        match fs::read(&marker) {
            Ok(content) if content == MARKER_CONTENT => {}
            Ok(_) => {
                let why = "the layout is of a version that this program does not know: use a newer one";
                return Err(BackendError::invalid(marker.display(), why));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.initialize(&marker)?,
            Err(error) => return Err(failed("read", &marker)(error)),
        }
        let tmp = self.root.join(TMP);
        fs::create_dir_all(&tmp).map_err(failed("make the directory", &tmp))?;
        self.sweep_tmp(&tmp, TMP_AGE_MAX)
    }

    fn initialize(&self, marker: &Path) -> Result<(), BackendError> {
        let others = self.names(&self.root)?;
        // A fresh filesystem has `lost+found`; `tmp` is ours, of a first start that was cut off.
        if others.iter().any(|name| name != "lost+found" && name != TMP) {
            let why = "the directory has other things in it: give the backend one of its own";
            return Err(BackendError::invalid(self.root.display(), why));
        }
        let tmp = self.root.join(TMP);
        fs::create_dir_all(&tmp).map_err(failed("make the directory", &tmp))?;
        let staged = self.new_tmp();
        write_synced(&staged, MARKER_CONTENT)?;
        fs::rename(&staged, marker).map_err(failed("make", marker))?;
        sync_dir(&self.root)
    }

    fn sweep_tmp(&self, tmp: &Path, age_max: Duration) -> Result<(), BackendError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for entry in entries(tmp)? {
            if entry.file_name() == LOCK {
                continue;
            }
            // The time of the last change of the inode: a hard link keeps its file's time of writing.
            let Ok(meta) = entry.metadata() else { continue };
            let changed = Duration::from_secs(u64::try_from(meta.ctime()).unwrap_or(0));
            if now.saturating_sub(changed) >= age_max {
                let path = entry.path();
                tracing::info!(path = %path.display(), "a file that a crash left in the backend is removed");
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Tells "not there" from "nothing is there because the mount is gone".
    fn check_mounted(&self) -> Result<(), BackendError> {
        let marker = self.root.join(MARKER);
        match fs::metadata(&marker) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let why = "the directory is no backend any more; has it been unmounted?";
                let source = io::Error::new(io::ErrorKind::NotFound, why);
                Err(BackendError::Unavailable {
                    what: self.root.display().to_string(),
                    source: source.into(),
                })
            }
            Err(error) => Err(failed("look at", &marker)(error)),
        }
    }

    /// `None` for what is not there.
    fn optional<T>(&self, path: &Path, result: io::Result<T>) -> Result<Option<T>, BackendError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if is_absence(&error) => self.check_mounted().map(|()| None),
            Err(error) => Err(failed("read", path)(error)),
        }
    }

    fn read_object(&self, key: &str) -> Result<Option<Vec<u8>>, BackendError> {
        let path = self.root.join(key);
        self.optional(&path, fs::read(&path))
    }

    fn read_range(&self, digest: &Digest, range: Range<u64>) -> Result<Bytes, BackendError> {
        let path = self.root.join(layout::blob_key(digest));
        let len = range_len(digest, &range)?;
        let file = self.optional(&path, File::open(&path))?;
        let file = file.ok_or_else(|| BackendError::NotFound { what: digest.to_string() })?;
        let size = file.metadata().map_err(failed("look at", &path))?.len();
        if range.end > size {
            return Err(BackendError::invalid(of_range(digest, &range), format!("beyond its {size} bytes")));
        }
        // At most READ_BYTES_MAX.
        let mut buffer = vec![0; usize::try_from(len).unwrap_or(0)];
        file.read_exact_at(&mut buffer, range.start).map_err(failed("read", &path))?;
        Ok(buffer.into())
    }

    fn put(&self, digest: &Digest, source: &Path, size: u64, metainfo: &[u8]) -> Result<(), BackendError> {
        self.check_mounted()?;
        // Not through a symbolic link: a hard link would be one to the link.
        check_source(source, size)?;
        // The metainfo first: a blob that is there has its metainfo.
        self.write_object(&layout::metainfo_key(digest), metainfo)?;
        let path = self.root.join(layout::blob_key(digest));
        if self.optional(&path, fs::metadata(&path))?.is_some_and(|meta| meta.len() == size) {
            return Ok(());
        }
        let tmp = self.new_tmp();
        let placed = self.copy_or_link(source, &tmp, size).and_then(|()| self.place(&tmp, &path));
        // Also when it was placed: a rename onto another link of the same file leaves both names.
        remove(&tmp)?;
        placed
    }

    /// Brings the source's bytes to `tmp`, fsynced. On one filesystem they are shared: both names are of a file
    /// that never changes.
    fn copy_or_link(&self, source: &Path, tmp: &Path, size: u64) -> Result<(), BackendError> {
        // It fails on another filesystem, on one without links, and for a file of another owner
        // (`fs.protected_hardlinks`).
        if fs::hard_link(source, tmp).is_err() {
            copy(source, tmp, size)?;
        }
        File::open(tmp).and_then(|file| file.sync_all()).map_err(failed("fsync", tmp))
    }

    fn write_object(&self, key: &str, content: &[u8]) -> Result<(), BackendError> {
        self.check_mounted()?;
        let path = self.root.join(key);
        let tmp = self.new_tmp();
        let placed = write_synced(&tmp, content).and_then(|()| self.place(&tmp, &path));
        if placed.is_err() {
            remove(&tmp)?;
        }
        placed
    }

    /// Renames an fsynced file to its place, durably.
    fn place(&self, tmp: &Path, path: &Path) -> Result<(), BackendError> {
        let Some(parent) = path.parent() else {
            return Err(BackendError::invalid(path.display(), "no parent"));
        };
        fs::create_dir_all(parent).map_err(failed("make the directory", parent))?;
        fs::rename(tmp, path).map_err(failed("rename into place", path))?;
        // Any of the directories up to the root may be new.
        let mut dir = Some(parent);
        while let Some(at) = dir.filter(|at| at.starts_with(&self.root)) {
            sync_dir(at)?;
            dir = at.parent();
        }
        Ok(())
    }

    /// One comparison at a time, among all processes that share the directory (where its locks reach).
    fn lock_records(&self) -> Result<File, BackendError> {
        self.check_mounted()?;
        let path = self.root.join(TMP).join(LOCK);
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let locked = file.and_then(|file| file.lock().map(|()| file));
        locked.map_err(failed("lock", &path))
    }

    fn delete(&self, key: &str) -> Result<bool, BackendError> {
        let path = self.root.join(key);
        let was = self.optional(&path, fs::remove_file(&path))?.is_some();
        if was && let Some(parent) = path.parent() {
            sync_dir(parent)?;
        }
        Ok(was)
    }

    fn new_tmp(&self) -> PathBuf {
        let number = self.next_tmp.fetch_add(1, Ordering::Relaxed);
        // Processes on several machines may share the directory, so the time takes part.
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        self.root.join(TMP).join(format!("{}-{nanos}-{number}", std::process::id()))
    }
}

#[cfg(test)]
mod tests;
