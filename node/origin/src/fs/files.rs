//! File operations with errors that say what failed, and durably.

use std::fs::{self, DirEntry, File};
use std::io::{self, Write};
use std::path::Path;

use crate::backend::BackendError;

pub(super) fn is_absence(error: &io::Error) -> bool {
    // Not a directory: `a/b` where `a` is a file.
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

pub(super) fn failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> BackendError {
    let what = format!("{what} {}", path.display());
    move |source| match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            BackendError::Denied { what, source: source.into() }
        }
        _ => BackendError::Unavailable { what, source: source.into() },
    }
}

pub(super) fn copy(source: &Path, to: &Path, size: u64) -> Result<(), BackendError> {
    let copied = fs::copy(source, to).map_err(failed("copy the blob to", to))?;
    if copied != size {
        return Err(BackendError::invalid(source.display(), "the file changed while it was copied"));
    }
    Ok(())
}

pub(super) fn write_synced(path: &Path, content: &[u8]) -> Result<(), BackendError> {
    let written = File::create_new(path).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    written.map_err(failed("write", path))
}

pub(super) fn sync_dir(path: &Path) -> Result<(), BackendError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(failed("fsync the directory", path))
}

pub(super) fn remove(path: &Path) -> Result<(), BackendError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

pub(super) fn entries(dir: &Path) -> Result<Vec<DirEntry>, BackendError> {
    fs::read_dir(dir).and_then(Iterator::collect).map_err(failed("list", dir))
}
