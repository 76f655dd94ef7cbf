//! The port.

use std::error::Error;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use shoal_types::{Digest, RecordKey, Reference, RepositoryName};

/// Bytes one [`Backend::read_range`] may ask for: a few of the largest pieces.
pub const READ_BYTES_MAX: u64 = 4 * shoal_types::layout::PIECE_BYTES_MAX as u64;
/// Bytes a record's object may have: a signed record is at most 64 KiB, and its envelope adds a few hundred bytes.
pub const RECORD_OBJECT_BYTES_MAX: usize = 128 << 10;

/// Bytes of one request of a stream made of ranges: a piece of the largest size.
const STREAM_BYTES: usize = 4 << 20;
/// Such requests side by side: one alone would wait for each answer.
const STREAM_AHEAD: usize = 4;

/// Why a backend does not do what it is asked to. The variants are what a caller can act on.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The object is not there: the backend answered, so this may be passed on as such (404).
    #[error("{what} is not in the backend")]
    NotFound {
        /// The object.
        what: String,
    },
    /// The backend does not answer or fails now; it may or may not have the object (503). Try again later.
    #[error("the backend failed at {what}: {source}")]
    Unavailable {
        /// The operation and its object.
        what: String,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The backend refuses this process: credentials or permissions are to be put right.
    #[error("the backend denies {what}: {source}; check its permissions or credentials")]
    Denied {
        /// The operation and its object.
        what: String,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The backend keeps nothing of what is pushed: it reads from somewhere else.
    #[error("{backend} is read only: it has {what} only if its source has")]
    ReadOnly {
        /// What was to be written.
        what: String,
        /// The backend.
        backend: String,
    },
    /// The request makes no sense, or what is stored does not: trying again does not help.
    #[error("{what}: {why}")]
    Invalid {
        /// The operation and its object.
        what: String,
        /// Why.
        why: String,
    },
}

impl BackendError {
    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// What `what` is about cannot be had now.
    pub fn unavailable(what: impl fmt::Display, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Unavailable { what: what.to_string(), source: source.into() }
    }

    pub(crate) fn denied(what: impl fmt::Display, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Denied { what: what.to_string(), source: source.into() }
    }

    /// `what` is not as it has to be.
    pub fn invalid(what: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::Invalid { what: what.to_string(), why: why.to_string() }
    }
}

/// A blob that a backend lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobFile {
    /// The blob.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
}

/// The state an object was read in: an ETag, a generation, or a hash of the content. Only equality means anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark(pub(crate) String);

/// A record's object as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// The bytes, as they were put.
    pub object: Vec<u8>,
    /// The state they are of, for [`Backend::put_record`].
    pub mark: Mark,
}

/// What a digest is the digest of, for sources that keep the two apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A layer or a config; unless there is none, and then a manifest.
    Blob,
    /// A manifest or an index; unless there is none, and then a blob.
    Manifest,
}

/// A blob on its way out of a backend.
pub struct BlobStream<'a> {
    /// Size in bytes of the whole blob.
    pub size: u64,
    /// Its bytes from where they were asked for on, unverified. It may end early, with an error or without.
    pub bytes: BoxStream<'a, Result<Bytes, BackendError>>,
}

/// What a source of images says of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamManifest {
    /// The manifest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
}

/// A place that keeps blobs and the records of repositories. Blobs never change; a blob that is there is whole, and its
/// metainfo is there too. What has been put is durable when the call returns. Operations on one object from many
/// processes at once leave one of their results, never a mixture.
///
/// All methods are cancel safe: dropped, they may or may not have had their effect, wholly.
#[async_trait]
pub trait Backend: Send + Sync + fmt::Debug {
    /// What it is, for messages; without secrets.
    fn describe(&self) -> String;

    /// Whether it keeps what is pushed. One that does not answers all writes with [`BackendError::ReadOnly`], has no
    /// records and lists nothing: it is the cache of somebody else's images.
    fn is_writable(&self) -> bool {
        true
    }

    /// Whether [`Backend::put_record`] holds its condition against writers in other processes. Where it does not, two
    /// that write one record in the same moment can leave the older one, until it is written again.
    fn has_conditional_writes(&self) -> bool;

    /// Checks that the backend can be read, and written if it is meant to be.
    ///
    /// # Errors
    /// [`BackendError`], any but `NotFound`.
    async fn probe(&self) -> Result<(), BackendError>;

    /// The size of a blob; `None` when it is not there. Sources that keep blobs by repository look into `repository`;
    /// without one they may not find it.
    ///
    /// # Errors
    /// [`BackendError`], any but `NotFound`.
    async fn stat(
        &self,
        digest: &Digest,
        repository: Option<&RepositoryName>,
    ) -> Result<Option<u64>, BackendError>;

    /// The bytes of a blob's metainfo, as they were put; `None` when it is not there.
    ///
    /// # Errors
    /// [`BackendError`], any but `NotFound`.
    async fn metainfo(&self, digest: &Digest) -> Result<Option<Vec<u8>>, BackendError>;

    /// Bytes of a blob, exactly `range`, which lies inside it and is at most [`READ_BYTES_MAX`] long. `repository` as
    /// in [`Backend::stat`].
    ///
    /// # Errors
    /// [`BackendError`]; `Invalid` for a range that is too long or not inside the blob.
    async fn read_range(
        &self,
        digest: &Digest,
        repository: Option<&RepositoryName>,
        range: Range<u64>,
    ) -> Result<Bytes, BackendError>;

    /// Opens a blob for reading from `offset` on to its end, in one request where the backend can; `None` when it is not
    /// there. `repository` as in [`Backend::stat`].
    ///
    /// # Errors
    /// [`BackendError`], any but `NotFound`.
    async fn open_blob<'a>(
        &'a self,
        digest: &Digest,
        repository: Option<&RepositoryName>,
        content: Content,
        offset: u64,
    ) -> Result<Option<BlobStream<'a>>, BackendError> {
        let _ = content;
        let Some(size) = self.stat(digest, repository).await? else { return Ok(None) };
        let (digest, repository) = (*digest, repository.cloned());
        let ranges = (offset..size).step_by(STREAM_BYTES).map(move |start| {
            let (range, repository) = (start..size.min(start + STREAM_BYTES as u64), repository.clone());
            async move { self.read_range(&digest, repository.as_ref(), range).await }
        });
        Ok(Some(BlobStream { size, bytes: futures::stream::iter(ranges).buffered(STREAM_AHEAD).boxed() }))
    }

    /// Puts the blob whose checked content is the local file `path`, of `size` bytes. The file must never change
    /// again (a backend may share its bytes); it may be unlinked once this returns. Does nothing but renew the
    /// metainfo when the blob is there.
    ///
    /// # Errors
    /// [`BackendError`]; `Invalid` when the file is missing or not `size` bytes long.
    async fn put(&self, digest: &Digest, path: &Path, size: u64, metainfo: &[u8])
    -> Result<(), BackendError>;

    /// Deletes a blob and its metainfo; returns whether it was there.
    ///
    /// # Errors
    /// [`BackendError`], any but `NotFound`.
    async fn delete(&self, digest: &Digest) -> Result<bool, BackendError>;

    /// All blobs, in no particular order, each at least once if it is there all the time. Ends at the first error.
    fn list_blobs(&self) -> BoxStream<'_, Result<BlobFile, BackendError>>;

    /// A record's object; `None` when there is none.
    ///
    /// # Errors
    /// [`BackendError`], any but `NotFound`.
    async fn get_record(&self, key: &RecordKey) -> Result<Option<StoredRecord>, BackendError>;

    /// Sets a record's object, at most [`RECORD_OBJECT_BYTES_MAX`] long, if it is still as it was read: with `expected`
    /// of that mark, without one not there. Returns whether it was, and so the object is set; `false` asks for another
    /// look. See [`Backend::has_conditional_writes`].
    ///
    /// # Errors
    /// [`BackendError`], any but `NotFound`. After `Unavailable` it may be set all the same.
    async fn put_record(
        &self,
        key: &RecordKey,
        object: &[u8],
        expected: Option<&Mark>,
    ) -> Result<bool, BackendError>;

    /// Deletes a record's object; returns whether there was one.
    ///
    /// # Errors
    /// [`BackendError`], any but `NotFound`.
    async fn delete_record(&self, key: &RecordKey) -> Result<bool, BackendError>;

    /// The keys of all records, in no particular order, each at least once if it is there all the time. Ends at the
    /// first error.
    fn list_records(&self) -> BoxStream<'_, Result<RecordKey, BackendError>>;

    /// What a source of images says that `reference` names in `repository`; `None` when it has no such manifest. A
    /// backend that only keeps blobs and records says so of every reference.
    ///
    /// # Errors
    /// [`BackendError`], any but `NotFound`.
    async fn resolve(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Option<UpstreamManifest>, BackendError> {
        let _ = (repository, reference);
        Ok(None)
    }
}

/// Checks the shape of a range; returns its length.
pub(crate) fn range_len(digest: &Digest, range: &Range<u64>) -> Result<u64, BackendError> {
    let len = range.end.checked_sub(range.start).filter(|len| *len <= READ_BYTES_MAX);
    len.ok_or_else(|| BackendError::invalid(of_range(digest, range), "not a range that may be asked for"))
}

/// Names bytes of a blob in messages.
pub(crate) fn of_range(digest: &Digest, range: &Range<u64>) -> String {
    format!("bytes {} to {} of {digest}", range.start, range.end)
}

/// Checks that `path` is a file of `size` bytes, and no link to one.
pub(crate) fn check_source(path: &Path, size: u64) -> Result<(), BackendError> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() && meta.len() == size => Ok(()),
        Ok(meta) => {
            let why = format!("expected a file of {size} bytes, found {}", meta.len());
            Err(BackendError::invalid(path.display(), why))
        }
        Err(error) => Err(BackendError::invalid(path.display(), error)),
    }
}

pub(crate) fn check_record_bytes(key: &RecordKey, object: &[u8]) -> Result<(), BackendError> {
    if object.len() > RECORD_OBJECT_BYTES_MAX {
        let why = format!("{} bytes are over the limit of {RECORD_OBJECT_BYTES_MAX}", object.len());
        return Err(BackendError::invalid(key, why));
    }
    Ok(())
}
