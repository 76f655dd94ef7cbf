//! The port.

use std::error::Error;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use shoal_types::{Digest, RepositoryName, TagName};

/// Bytes one [`Backend::read_range`] may ask for: a few of the largest pieces.
pub const READ_BYTES_MAX: u64 = 4 * shoal_types::layout::PIECE_BYTES_MAX as u64;
/// Entries one page of a list may have.
pub const LIST_MAX: usize = 1000;
/// Bytes a tag's object may have: a signed record with its annotations (a manifest is at most 4 MiB, and the record
/// repeats part of it).
pub const TAG_OBJECT_BYTES_MAX: usize = 4 << 20;

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

    pub(crate) fn invalid(what: impl fmt::Display, why: impl fmt::Display) -> Self {
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

/// A place that keeps blobs and tags. Blobs never change; a blob that is there is whole, and its metainfo is there
/// too. What has been put is durable when the call returns. Operations on one object from many processes at once
/// leave one of their results, never a mixture.
///
/// All methods are cancel safe: dropped, they may or may not have had their effect, wholly.
#[async_trait]
pub trait Backend: Send + Sync + fmt::Debug {
    /// What it is, for messages; without secrets.
    fn describe(&self) -> String;

    /// Checks that the backend can be read and written.
    ///
    /// # Errors
    /// [`BackendError`], any but `NotFound`.
    async fn probe(&self) -> Result<(), BackendError>;

    /// The size of a blob; `None` when it is not there.
    ///
    /// # Errors
    /// [`BackendError`], any but `NotFound`.
    async fn stat(&self, digest: &Digest) -> Result<Option<u64>, BackendError>;

    /// The bytes of a blob's metainfo, as they were put; `None` when it is not there.
    ///
    /// # Errors
    /// [`BackendError`], any but `NotFound`.
    async fn metainfo(&self, digest: &Digest) -> Result<Option<Vec<u8>>, BackendError>;

    /// Bytes of a blob, exactly `range`, which lies inside it and is at most [`READ_BYTES_MAX`] long.
    ///
    /// # Errors
    /// [`BackendError`]; `Invalid` for a range that is too long or not inside the blob.
    async fn read_range(&self, digest: &Digest, range: Range<u64>) -> Result<Bytes, BackendError>;

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

    /// Up to `limit` (at most [`LIST_MAX`]) blobs after `after`, in the digests' order.
    ///
    /// # Errors
    /// [`BackendError`], any but `NotFound`.
    async fn list(&self, after: Option<&Digest>, limit: usize) -> Result<Vec<BlobFile>, BackendError>;

    /// Sets a tag's object, at most [`TAG_OBJECT_BYTES_MAX`] long.
    ///
    /// # Errors
    /// [`BackendError`], any but `NotFound`.
    async fn put_tag(
        &self,
        repository: &RepositoryName,
        tag: &TagName,
        object: &[u8],
    ) -> Result<(), BackendError>;

    /// A tag's object; `None` when there is none.
    ///
    /// # Errors
    /// [`BackendError`], any but `NotFound`.
    async fn get_tag(
        &self,
        repository: &RepositoryName,
        tag: &TagName,
    ) -> Result<Option<Vec<u8>>, BackendError>;

    /// Deletes a tag's object; returns whether there was one.
    ///
    /// # Errors
    /// [`BackendError`], any but `NotFound`.
    async fn delete_tag(&self, repository: &RepositoryName, tag: &TagName) -> Result<bool, BackendError>;

    /// Up to `limit` (at most [`LIST_MAX`]) tags of a repository after `after`, in bytewise order.
    ///
    /// # Errors
    /// [`BackendError`], any but `NotFound`.
    async fn list_tags(
        &self,
        repository: &RepositoryName,
        after: Option<&TagName>,
        limit: usize,
    ) -> Result<Vec<TagName>, BackendError>;

    /// Up to `limit` (at most [`LIST_MAX`]) repositories that have tags, after `after`, in bytewise order.
    ///
    /// # Errors
    /// [`BackendError`], any but `NotFound`.
    async fn list_repositories(
        &self,
        after: Option<&RepositoryName>,
        limit: usize,
    ) -> Result<Vec<RepositoryName>, BackendError>;
}
