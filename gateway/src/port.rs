//! The port: what the gateway needs of the mesh behind it.
//!
//! The gateway speaks HTTP and the distribution specification; everything that takes the mesh is one method here.
//! Two implementations exist: the daemon's node, and the in-memory double of `memory` that the tests use.
//!
//! Patience is the mesh's duty: a client takes a single 404 or 5xx for a blob as the end of its whole pull, so a
//! method that may yet succeed holds its answer while peers are searched, and fails only when the search is over.
//!
//! Dropping the future of any method cancels the call. A dropped [`BlobRead::stream`] ends the read.

use std::cmp::Ordering;
use std::fmt;
use std::io;
use std::ops::Range;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use shoal_types::{Digest, RecordValue, Reference, RepositoryName, TagName};

/// Bytes on their way in or out. After an error the stream yields nothing more.
pub type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// Longest upload id in bytes.
pub const UPLOAD_ID_BYTES_MAX: usize = 64;

/// Names an upload session: 1 to [`UPLOAD_ID_BYTES_MAX`] letters, digits, `-` or `_`, hard to guess.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UploadId(String);

/// The text is not an upload id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an upload id: expected 1 to {UPLOAD_ID_BYTES_MAX} letters, digits, - or _")]
pub struct UploadIdParseError;

impl UploadId {
    /// The id as it stands in a URL.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UploadId {
    type Err = UploadIdParseError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let good = (1..=UPLOAD_ID_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if good { Ok(Self(text.to_owned())) } else { Err(UploadIdParseError) }
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where the bytes of a read come from, as far as is known when it begins (response header `Shoal-Source`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobSource {
    /// All of them are in this machine's store.
    Local,
    /// Some of them come from peers.
    Mesh,
}

impl BlobSource {
    /// The header's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Mesh => "mesh",
        }
    }
}

/// A read of a blob under way.
pub struct BlobRead {
    /// Size of the whole blob in bytes.
    pub size: u64,
    /// What [`Self::stream`] yields: the wanted range, cut at the blob's end.
    pub range: Range<u64>,
    /// The bytes of [`Self::range`], verified. Ends after exactly that many bytes, or with an error.
    pub stream: ByteStream,
    /// Where they come from, when it is known.
    pub source: Option<BlobSource>,
}

impl fmt::Debug for BlobRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobRead")
            .field("size", &self.size)
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

/// What is known of a manifest before its bytes are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestInfo {
    /// Its digest.
    pub digest: Digest,
    /// Its media type as it was pushed.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
    /// No owner of the repository could be asked, or not the registry that it is pulled through from: this is the newest
    /// that was known.
    pub stale: bool,
}

/// A manifest that has been checked and is to be stored.
#[derive(Clone, Debug)]
pub struct ManifestPut {
    /// What the records (of the manifest, and of the tag if it is put by tag) shall say.
    pub value: RecordValue,
    /// The bytes, as they came.
    pub bytes: Bytes,
    /// The blobs and manifests it needs, in order of appearance and without repetition: not its subject, and not
    /// layers that are fetched from URLs.
    pub references: Vec<Digest>,
}

/// Why something cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The search is over: the repository has no such blob, manifest or tag. Answered with 404.
    #[error("not found")]
    NotFound,
    /// There is no such repository. Answered with 404.
    #[error("the repository is unknown")]
    RepositoryUnknown,
    /// The registry that it is pulled through from refuses this mesh. Answered with 403.
    #[error("denied: {0}")]
    Denied(String),
    /// Those who may have it cannot be reached. Answered with 503; trying again may help.
    #[error("the mesh cannot answer now")]
    Unavailable {
        /// When to try again.
        retry_after: Duration,
    },
    /// This machine has no room for another transfer. Answered with 429.
    #[error("too many transfers at once")]
    Busy {
        /// When to try again.
        retry_after: Duration,
    },
    /// The wanted range begins at or beyond the end. Answered with 416.
    #[error("the range begins beyond the blob's {size} bytes")]
    Range {
        /// Blob size in bytes.
        size: u64,
    },
    /// A fault of this machine. Answered with 500; the text goes to the log, not to the client.
    #[error("{0}")]
    Internal(String),
}

/// Why something cannot be pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The bytes do not have the stated digest. The upload is gone.
    #[error("the content has the digest {actual}")]
    DigestMismatch {
        /// What the content really has.
        actual: Digest,
    },
    /// The bytes do not begin where the upload stands. The upload is unchanged.
    #[error("the upload stands at {expected} bytes")]
    OffsetMismatch {
        /// Where the next byte belongs.
        expected: u64,
    },
    /// There is no such upload in this repository: it was finished, cancelled or has expired.
    #[error("the upload is unknown")]
    UploadUnknown,
    /// Another request is writing to this upload.
    #[error("the upload is being written by another request")]
    UploadBusy,
    /// The request's body broke off. What came before is kept, as [`Mesh::upload_offset`] tells.
    #[error("the request's body broke off: {0}")]
    Interrupted(#[source] io::Error),
    /// A disk is full. Answered with 507.
    #[error("no space left")]
    NoSpace,
    /// The content is over a limit of this mesh.
    #[error("the content is over the limit of {limit} bytes")]
    TooLarge {
        /// Most bytes accepted.
        limit: u64,
    },
    /// This process may not push there.
    #[error("denied: {0}")]
    Denied(String),
    /// Not enough owners can be reached to keep it safe. Answered with 503; the upload, if any, is unchanged.
    #[error("the mesh cannot keep it safe now")]
    Unavailable {
        /// When to try again.
        retry_after: Duration,
    },
    /// This machine has no room for another upload. Answered with 429.
    #[error("too many uploads at once")]
    Busy {
        /// When to try again.
        retry_after: Duration,
    },
    /// A fault of this machine. Answered with 500; the text goes to the log, not to the client.
    #[error("{0}")]
    Internal(String),
}

/// Why something cannot be deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// The repository has no such tag, manifest or blob.
    #[error("not found")]
    NotFound,
    /// There is no such repository.
    #[error("the repository is unknown")]
    RepositoryUnknown,
    /// This process may not delete there.
    #[error("denied: {0}")]
    Denied(String),
    /// Not enough owners can be reached.
    #[error("the mesh cannot delete now")]
    Unavailable {
        /// When to try again.
        retry_after: Duration,
    },
    /// A fault of this machine. The text goes to the log, not to the client.
    #[error("{0}")]
    Internal(String),
}

/// Why an image is not preheated.
#[derive(Debug, thiserror::Error)]
pub enum PreheatError {
    /// This mesh does not preheat on notifications. Answered with 404.
    #[error("images are not preheated here")]
    Off,
    /// Too many images wait. Answered with 429.
    #[error("too many images wait to be preheated")]
    Full {
        /// When to try again.
        retry_after: Duration,
    },
}

/// Why something cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// There is no such repository.
    #[error("the repository is unknown")]
    RepositoryUnknown,
    /// Owners cannot be reached.
    #[error("the mesh cannot answer now")]
    Unavailable {
        /// When to try again.
        retry_after: Duration,
    },
    /// A fault of this machine. The text goes to the log, not to the client.
    #[error("{0}")]
    Internal(String),
}

/// The order of tag lists: "lexical order (i.e. case-insensitive alphanumeric order)" (distribution specification,
/// "Listing Tags"), made total by the order of bytes.
pub fn compare_tags(one: &TagName, two: &TagName) -> Ordering {
    let folded = |tag: &TagName| tag.as_str().to_ascii_lowercase();
    folded(one).cmp(&folded(two)).then_with(|| one.cmp(two))
}

/// The mesh as a registry sees it.
///
/// # Errors
/// Each method returns its operation's error type, which says what the gateway answers.
#[async_trait]
pub trait Mesh: Send + Sync + 'static {
    /// Size in bytes of a blob of `repository`. Nothing is downloaded.
    async fn stat_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<u64, PullError>;

    /// Opens a blob of `repository` for reading, wholly or the bytes of `range` (not empty; its end may lie beyond
    /// the blob's). Returns once the size is known; the bytes stream while they arrive.
    async fn read_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        range: Option<Range<u64>>,
    ) -> Result<BlobRead, PullError>;

    /// Begins an upload.
    async fn begin_upload(&self, repository: &RepositoryName) -> Result<UploadId, PushError>;

    /// How many bytes of an upload are here.
    async fn upload_offset(&self, repository: &RepositoryName, upload: &UploadId) -> Result<u64, PushError>;

    /// Adds `body` to an upload, whose bytes begin at `offset` (`None`: wherever the upload stands), and returns the
    /// new offset. Must not read `body` when it fails with [`PushError::OffsetMismatch`].
    async fn append_upload(
        &self,
        repository: &RepositoryName,
        upload: &UploadId,
        offset: Option<u64>,
        body: ByteStream,
    ) -> Result<u64, PushError>;

    /// Makes a finished upload a blob of `repository`. Returns when as many owners as configured have it on stable
    /// storage; from then on every method sees it, from any gateway.
    async fn finish_upload(
        &self,
        repository: &RepositoryName,
        upload: &UploadId,
        digest: &Digest,
    ) -> Result<(), PushError>;

    /// Ends an upload and forgets its bytes.
    async fn cancel_upload(&self, repository: &RepositoryName, upload: &UploadId) -> Result<(), PushError>;

    /// Makes a blob of `from` (`None`: of any repository) a blob of `repository` without an upload; `false` when
    /// there is none to be had.
    async fn mount_blob(
        &self,
        repository: &RepositoryName,
        from: Option<&RepositoryName>,
        digest: &Digest,
    ) -> Result<bool, PushError>;

    /// What a tag names now, or what is known of a manifest of `repository` by digest. Nothing is downloaded.
    async fn resolve(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<ManifestInfo, PullError>;

    /// A manifest of `repository` and its bytes.
    async fn read_manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<(ManifestInfo, Bytes), PullError>;

    /// Stores a manifest and, when `reference` is a tag, moves the tag to it. Returns when it is safe, as
    /// [`Self::finish_upload`] does.
    async fn put_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        manifest: ManifestPut,
    ) -> Result<(), PushError>;

    /// Deletes a tag; the manifest stays.
    async fn delete_tag(&self, repository: &RepositoryName, tag: &TagName) -> Result<(), DeleteError>;

    /// Deletes a manifest and every tag that names it.
    async fn delete_manifest(&self, repository: &RepositoryName, digest: &Digest) -> Result<(), DeleteError>;

    /// Takes a blob out of `repository`.
    async fn delete_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<(), DeleteError>;

    /// The first `limit` tags after `after` in the order of [`compare_tags`]. `after` need not exist.
    async fn list_tags(
        &self,
        repository: &RepositoryName,
        after: Option<&TagName>,
        limit: usize,
    ) -> Result<Vec<TagName>, ListError>;

    /// The first `limit` repositories after `after` in the order of their bytes. `after` need not exist.
    async fn list_repositories(
        &self,
        after: Option<&RepositoryName>,
        limit: usize,
    ) -> Result<Vec<RepositoryName>, ListError>;

    /// The first `limit` manifests of `repository` whose subject is `subject`, after `after`, in the order of their
    /// digests. None is not an error, nor is an unknown repository.
    async fn referrers(
        &self,
        repository: &RepositoryName,
        subject: &Digest,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<Vec<RecordValue>, ListError>;

    /// The repository that stands in this mesh for one of the registry at `host`.
    fn name_of(&self, host: Option<&str>, repository: RepositoryName) -> RepositoryName {
        let _ = host;
        repository
    }

    /// Has gateways fetch an image. Returns when that is queued.
    async fn preheat(&self, _: &RepositoryName, _: &Reference) -> Result<(), PreheatError> {
        Err(PreheatError::Off)
    }
}
