//! What can go wrong, by operation.

use std::io;
use std::path::{Path, PathBuf};

use shoal_types::{Digest, LayoutError};

use crate::config::ConfigError;
use crate::format::FormatError;
use crate::upload::UploadId;

/// There is no room, in the capacity or on the disk. What was there is untouched: free space, then try again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no space: {needed} more bytes do not fit, {free} can be used; free some or raise the capacity")]
pub struct NoSpace {
    /// Bytes asked for.
    pub needed: u64,
    /// Bytes that could have been had, after eviction.
    pub free: u64,
}

/// The disk or the database failed. Nothing the caller did; what was committed before is untouched.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full.
    #[error(transparent)]
    NoSpace(#[from] NoSpace),
    /// A file operation failed.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// The operation.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// RocksDB failed.
    #[error("the database cannot {what}: {source}")]
    Db {
        /// The operation.
        what: &'static str,
        /// Why.
        source: rocksdb::Error,
    },
    /// A stored value cannot be read.
    #[error("the stored {what} of {digest} cannot be read: {source}")]
    Format {
        /// Which value.
        what: &'static str,
        /// Of which blob.
        digest: Digest,
        /// Why.
        source: FormatError,
    },
}

impl StoreError {
    /// For `map_err`: a failed file operation, told apart from a full disk.
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace(NoSpace { needed: 0, free: 0 })
            }
            _ => Self::Io { what, path, source },
        }
    }

    /// For `map_err`: a failed database operation, told apart from a full disk.
    pub(crate) fn db(what: &'static str) -> impl FnOnce(rocksdb::Error) -> Self {
        // The binding hands on RocksDB's status as text only; `No space left on device` is its wording of ENOSPC.
        move |source| {
            if source.to_string().contains("No space left") {
                Self::NoSpace(NoSpace { needed: 0, free: 0 })
            } else {
                Self::Db { what, source }
            }
        }
    }
}

/// Lifts a [`StoreError`] into an operation's error, its full disk into the operation's own variant.
macro_rules! from_store_error {
    ($($type:ident),*) => {$(
        impl From<StoreError> for $type {
            fn from(error: StoreError) -> Self {
                match error {
                    StoreError::NoSpace(error) => Self::NoSpace(error),
                    other => Self::Store(other),
                }
            }
        }
    )*};
}

from_store_error!(CreateError, WriteError, FinishError, UploadError, UploadFinishError, PutError);

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Another process has it open.
    #[error("the store {path} is in use by another process{}", holder.map_or(String::new(), |pid| format!(" (pid {pid})")))]
    InUse {
        /// The store's directory.
        path: PathBuf,
        /// Who has it, when that can be told.
        holder: Option<u32>,
    },
    /// A later version of the program wrote it.
    #[error("the store {path} has format {found}, this program knows {known}: use a newer one")]
    Newer {
        /// The store's directory.
        path: PathBuf,
        /// The format found.
        found: u8,
        /// The newest format known here.
        known: u8,
    },
    /// The disk or the database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a partial blob cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// There is no room.
    #[error(transparent)]
    NoSpace(NoSpace),
    /// The blob is here in part, under a metainfo with other pieces. Remove it to start over.
    #[error("{0} is here in part under another metainfo")]
    Conflict(Digest),
    /// The disk or the database failed.
    #[error(transparent)]
    Store(StoreError),
}

/// Why a piece cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// There is no such blob: it was not created, or has been removed since.
    #[error("{0} is not in the store")]
    Absent(Digest),
    /// The bytes are not as many as the piece has, or the piece is of another blob.
    #[error("{got} bytes for piece {piece} of {digest}, which has {wanted}")]
    Length {
        /// The blob.
        digest: Digest,
        /// The piece's number.
        piece: u32,
        /// Bytes given.
        got: usize,
        /// Bytes it has; zero beyond the blob's last piece.
        wanted: u32,
    },
    /// The disk is full.
    #[error(transparent)]
    NoSpace(NoSpace),
    /// The disk or the database failed.
    #[error(transparent)]
    Store(StoreError),
}

/// Why bytes cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no such blob.
    #[error("{0} is not in the store")]
    Absent(Digest),
    /// A piece the range touches is not here yet.
    #[error("piece {piece} of {digest} is not in the store")]
    Missing {
        /// The blob.
        digest: Digest,
        /// The first missing piece's number.
        piece: u32,
    },
    /// The range ends beyond the blob.
    #[error("the range ends at {end}, beyond the {size} bytes of {digest}")]
    Range {
        /// The blob.
        digest: Digest,
        /// End of the range.
        end: u64,
        /// Blob size in bytes.
        size: u64,
    },
    /// The disk or the database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a blob cannot be called complete.
#[derive(Debug, thiserror::Error)]
pub enum FinishError {
    /// There is no such blob.
    #[error("{0} is not in the store")]
    Absent(Digest),
    /// Pieces are missing.
    #[error("{missing} pieces of {digest} are missing")]
    Incomplete {
        /// The blob.
        digest: Digest,
        /// How many.
        missing: u32,
    },
    /// All pieces are as the metainfo says and the whole is not what the digest says: the metainfo was wrong. The
    /// blob has been thrown away.
    #[error("the pieces are as the metainfo says and make {got}: thrown away")]
    DigestMismatch {
        /// The content's digest.
        got: Digest,
    },
    /// [`Store::commit`](crate::Store::commit) before [`Store::check_digest`](crate::Store::check_digest).
    #[error("the digest of {0} has not been checked")]
    Unchecked(Digest),
    /// The disk is full.
    #[error(transparent)]
    NoSpace(NoSpace),
    /// The disk or the database failed.
    #[error(transparent)]
    Store(StoreError),
}

/// Why a whole small blob cannot be put.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// The bytes are not what the metainfo says.
    #[error("the bytes are not those of {0}")]
    Mismatch(Digest),
    /// There is no room.
    #[error(transparent)]
    NoSpace(NoSpace),
    /// The blob is being removed or is here under another metainfo: try again.
    #[error("{0} is being changed by somebody else")]
    Conflict(Digest),
    /// The disk or the database failed.
    #[error(transparent)]
    Store(StoreError),
}

impl From<CreateError> for PutError {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::NoSpace(error) => Self::NoSpace(error),
            CreateError::Conflict(digest) => Self::Conflict(digest),
            CreateError::Store(error) => Self::Store(error),
        }
    }
}

impl From<WriteError> for PutError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Absent(digest) => Self::Conflict(digest),
            WriteError::Length { digest, .. } => Self::Mismatch(digest),
            WriteError::NoSpace(error) => Self::NoSpace(error),
            WriteError::Store(error) => Self::Store(error),
        }
    }
}

impl PutError {
    /// Why the blob `digest`, all of whose pieces were just written, could not be finished.
    pub(crate) fn of_finish(digest: Digest, error: FinishError) -> Self {
        match error {
            FinishError::Absent(_) | FinishError::Incomplete { .. } | FinishError::Unchecked(_) => {
                Self::Conflict(digest)
            }
            FinishError::DigestMismatch { .. } => Self::Mismatch(digest),
            FinishError::NoSpace(error) => Self::NoSpace(error),
            FinishError::Store(error) => Self::Store(error),
        }
    }
}

/// Why a metainfo's voucher is not kept.
#[derive(Debug, thiserror::Error)]
pub enum VouchStoreError {
    /// There is no such blob.
    #[error("{0} is not in the store")]
    Absent(Digest),
    /// It vouches for other pieces than those stored.
    #[error("the vouched metainfo of {0} is not the stored one")]
    Conflict(Digest),
    /// The disk or the database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why an upload cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// There is no such upload: it never began, was cancelled, finished or has expired.
    #[error("there is no upload {0}")]
    Unknown(UploadId),
    /// An upload of this id is there already.
    #[error("upload {0} has begun already")]
    Exists(UploadId),
    /// As many uploads as allowed are open.
    #[error("{0} uploads are open, which is the limit: try again later")]
    TooMany(usize),
    /// The bytes do not continue where the upload ends.
    #[error("upload {id} is at {expected}, not at {got}")]
    WrongOffset {
        /// The upload.
        id: UploadId,
        /// Where the caller would continue.
        got: u64,
        /// Where it must.
        expected: u64,
    },
    /// The upload would be over the largest blob size.
    #[error(transparent)]
    TooLarge(#[from] LayoutError),
    /// There is no room. The upload stays where it was.
    #[error(transparent)]
    NoSpace(NoSpace),
    /// The disk failed. The upload stays where it was.
    #[error(transparent)]
    Store(StoreError),
}

/// Why an upload does not become a blob.
#[derive(Debug, thiserror::Error)]
pub enum UploadFinishError {
    /// There is no such upload.
    #[error("there is no upload {0}")]
    Unknown(UploadId),
    /// The content is another. The upload has been thrown away.
    #[error("the content is {got}, not what it was said to be")]
    DigestMismatch {
        /// The content's digest.
        got: Digest,
    },
    /// There is no room. The upload stays.
    #[error(transparent)]
    NoSpace(NoSpace),
    /// The disk or the database failed. The upload stays.
    #[error(transparent)]
    Store(StoreError),
}
