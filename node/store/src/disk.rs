//! Files: where they are, and the few operations on them.
//!
//! ```text
//! LOCK                          held by the process that has the store open
//! db/                           RocksDB
//! blobs/<algorithm>/ab/<hex>    complete blobs: written, checked and fsynced before they are renamed to here
//! partial/<algorithm>-<hex>     blobs with pieces missing, of full length from the start
//! uploads/<id>                  uploads; a file's length is the upload's offset
//! ```

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation};
use shoal_types::Digest;

use crate::error::{OpenError, StoreError};
use crate::upload::UploadId;

/// The store's directory.
#[derive(Debug)]
pub(crate) struct Disk {
    root: PathBuf,
    /// Held for its lock.
    _lock: File,
    #[cfg(test)]
    pub(crate) faults: crate::tests::Faults,
}

impl Disk {
    /// Makes the directories and takes the lock.
    pub(crate) fn open(root: &Path) -> Result<Self, OpenError> {
        for dir in [root.to_owned(), root.join("blobs"), root.join("partial"), root.join("uploads")] {
            fs::create_dir_all(&dir).map_err(StoreError::io("make the directory", &dir))?;
        }
        let lock = take_lock(root)?;
        Ok(Self {
            root: root.to_owned(),
            _lock: lock,
            #[cfg(test)]
            faults: Default::default(),
        })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn db_path(&self) -> PathBuf {
        self.root.join("db")
    }

    pub(crate) fn blobs_dir(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub(crate) fn partial_dir(&self) -> PathBuf {
        self.root.join("partial")
    }

    pub(crate) fn uploads_dir(&self) -> PathBuf {
        self.root.join("uploads")
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let fan = hex.get(..2).unwrap_or_default();
        self.blobs_dir().join(digest.algorithm().name()).join(fan).join(&hex)
    }

    pub(crate) fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.partial_dir().join(format!("{}-{}", digest.algorithm().name(), digest.hex()))
    }

    pub(crate) fn upload_path(&self, id: UploadId) -> PathBuf {
        self.uploads_dir().join(id.to_string())
    }

    /// A new file of `size` bytes, with its blocks allocated where the filesystem can, so that a full disk shows
    /// now and not in mid-download. An old file of the same name is replaced.
    pub(crate) fn create_sized(&self, path: &Path, size: u64) -> Result<File, StoreError> {
        remove_file(path)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(StoreError::io("create", path))?;
        let sized = self.allocate(&file, size);
        if let Err(error) = sized {
            drop(file);
            remove_file(path)?;
            return Err(StoreError::io("allocate", path)(error));
        }
        Ok(file)
    }

    fn allocate(&self, file: &File, size: u64) -> io::Result<()> {
        #[cfg(test)]
        self.faults.spend(size)?;
        if size == 0 {
            return Ok(());
        }
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
            Ok(()) => Ok(()),
            // The filesystem cannot: a sparse file, and a full disk shows at a piece's write.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => file.set_len(size),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes all of `data` at `offset`. With `grows`, the bytes are new to the disk.
    pub(crate) fn write_at(
        &self,
        file: &File,
        path: &Path,
        data: &[u8],
        offset: u64,
        grows: bool,
    ) -> Result<(), StoreError> {
        #[cfg(test)]
        {
            self.faults.fail_write(file, data, offset).map_err(StoreError::io("write", path))?;
            if grows {
                self.faults.spend(data.len() as u64).map_err(StoreError::io("write", path))?;
            }
        }
        #[cfg(not(test))]
        let _ = grows;
        file.write_all_at(data, offset).map_err(StoreError::io("write", path))
    }

    /// Renames a finished, fsynced file to its final place, making the directory. Not durable until
    /// [`Self::sync_parents`].
    pub(crate) fn publish(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(StoreError::io("make the directory", parent))?;
        }
        fs::rename(from, to).map_err(StoreError::io("rename into place", to))
    }

    /// Makes a rename or creation of `path` durable, together with the directories above it up to the root.
    pub(crate) fn sync_parents(&self, path: &Path) -> Result<(), StoreError> {
        let mut dir = path.parent();
        while let Some(at) = dir.filter(|at| at.starts_with(&self.root)) {
            File::open(at)
                .and_then(|handle| handle.sync_all())
                .map_err(StoreError::io("fsync the directory", at))?;
            dir = at.parent();
        }
        Ok(())
    }

    /// Bytes an unprivileged process can still write to the filesystem.
    pub(crate) fn available(&self) -> Result<u64, StoreError> {
        let stat = rustix::fs::statvfs(&self.root)
            .map_err(|error| StoreError::io("look at the filesystem of", &self.root)(error.into()))?;
        let available = stat.f_bavail.saturating_mul(stat.f_frsize);
        #[cfg(test)]
        let available = self.faults.available(available);
        Ok(available)
    }
}

/// Removes a file; that there is none is fine.
pub(crate) fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The length of a regular file, or `None` when there is none.
pub(crate) fn file_len(path: &Path) -> Result<Option<u64>, StoreError> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() => Ok(Some(meta.len())),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("look at", path)(error)),
    }
}

fn take_lock(root: &Path) -> Result<File, OpenError> {
    let path = root.join("LOCK");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(StoreError::io("open the lock", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let holder = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
            return Err(OpenError::InUse { path: root.to_owned(), holder });
        }
        Err(error) => return Err(StoreError::io("lock", &path)(error.into()).into()),
    }
    // Only for the message of whoever comes second, so a failure to write it does not matter.
    let pid = format!("{}\n", std::process::id());
    let _ = file.set_len(0).and_then(|()| file.write_all_at(pid.as_bytes(), 0));
    Ok(file)
}
