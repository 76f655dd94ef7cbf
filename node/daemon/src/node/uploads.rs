//! Uploads: bytes spool into the store, and a finished one is kept safe before it is acknowledged.

use std::io;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use shoal_store::{UploadError, UploadFinishError, UploadId};
use shoal_types::{Digest, RecordKey, RecordKind, RecordValue, RepositoryName};

use super::Node;
use crate::driver::blocking;
use crate::push::KeepError;
use crate::records::service::RecordError;

mod away;

pub(crate) use away::home_key;
pub use away::{UploadName, UploadNameParseError};

/// Bytes gathered before they are written.
const WRITE_BYTES: usize = 256 * 1024;
/// Media type of a blob link's record.
const BLOB_MEDIA_TYPE: &str = "application/octet-stream";

/// Why an upload does not begin.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// Too many are open.
    #[error("{0}")]
    TooMany(String),
    /// No room on disk.
    #[error("{0}")]
    NoSpace(String),
    /// The local store failed.
    #[error("{0}")]
    Store(String),
}

/// Why bytes are not added to an upload.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// There is no such upload in this repository.
    #[error("the upload is unknown")]
    Unknown,
    /// Another request is writing to it.
    #[error("the upload is being written by another request")]
    Busy,
    /// The bytes do not begin where the upload stands.
    #[error("the upload stands at {expected} bytes")]
    Offset {
        /// Where the next byte belongs.
        expected: u64,
    },
    /// The body broke off; what came before is kept.
    #[error("the body broke off: {0}")]
    Body(#[source] io::Error),
    /// No room on disk.
    #[error("{0}")]
    NoSpace(String),
    /// Over the largest blob this mesh takes.
    #[error("{0}")]
    TooLarge(String),
    /// The process that has the upload cannot be reached.
    #[error("{0}")]
    Away(String),
    /// The local store failed.
    #[error("{0}")]
    Store(String),
}

/// Why an upload does not become a blob.
#[derive(Debug, thiserror::Error)]
pub enum FinishError {
    /// There is no such upload in this repository.
    #[error("the upload is unknown")]
    Unknown,
    /// Another request is writing to it.
    #[error("the upload is being written by another request")]
    Busy,
    /// Its bytes have another digest; it is gone.
    #[error("the content has the digest {0}")]
    Digest(Digest),
    /// No room on disk, here or at an origin.
    #[error("{0}")]
    NoSpace(String),
    /// It is here, but too few origins have it: finish again.
    #[error("{0}")]
    Unsafe(String),
    /// This process may not push there.
    #[error("{0}")]
    Denied(String),
    /// The local store failed.
    #[error("{0}")]
    Store(String),
}

/// Holds the right to write to an upload.
struct Writing<'a>(&'a Node, UploadId);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.0.writing.lock().remove(&self.1);
    }
}

impl Node {
    /// Begins an upload to `repository`.
    ///
    /// # Errors
    /// [`BeginError`].
    pub async fn begin_upload(&self, repository: &RepositoryName) -> Result<UploadId, BeginError> {
        let id = UploadId::from_bytes(crate::keys::random_id());
        let (store, uploads) = (self.store().clone(), self.0.uploads.clone());
        let name = repository.as_str().as_bytes().to_vec();
        let begun = tokio::task::spawn_blocking(move || {
            store.upload_begin(id)?;
            uploads.put(&upload_key(id), &name).map_err(UploadError::Store)
        });
        match begun.await {
            Ok(Ok(())) => Ok(id),
            Ok(Err(error @ UploadError::TooMany(_))) => Err(BeginError::TooMany(error.to_string())),
            Ok(Err(UploadError::NoSpace(error))) => Err(BeginError::NoSpace(error.to_string())),
            Ok(Err(error)) => Err(BeginError::Store(error.to_string())),
            Err(error) => Err(BeginError::Store(error.to_string())),
        }
    }

    /// Bytes of an upload that are here; `None` for an unknown one.
    pub async fn upload_offset(&self, repository: &RepositoryName, id: UploadId) -> Option<u64> {
        self.check_upload(repository, id).await?;
        let store = self.store().clone();
        tokio::task::spawn_blocking(move || store.upload_offset(id)).await.ok().flatten()
    }

    /// Adds `body`, whose bytes begin at `offset` (`None`: where the upload stands); returns the new offset.
    ///
    /// # Errors
    /// [`AppendError`]; the body is not touched when the offset is wrong.
    pub async fn append_upload(
        &self,
        repository: &RepositoryName,
        id: UploadId,
        offset: Option<u64>,
        mut body: impl Stream<Item = io::Result<Bytes>> + Unpin + Send,
    ) -> Result<u64, AppendError> {
        let _writing = self.start_writing(id).ok_or(AppendError::Busy)?;
        let appended = self.append_alone(repository, id, offset, &mut body).await;
        if let Err(AppendError::NoSpace(_)) = &appended {
            // It cannot go on, and what it holds is room that others need.
            self.cancel_upload(repository, id).await;
        }
        appended
    }

    async fn append_alone(
        &self,
        repository: &RepositoryName,
        id: UploadId,
        offset: Option<u64>,
        body: &mut (impl Stream<Item = io::Result<Bytes>> + Unpin + Send),
    ) -> Result<u64, AppendError> {
        let mut at = self.upload_offset(repository, id).await.ok_or(AppendError::Unknown)?;
        if offset.is_some_and(|offset| offset != at) {
            return Err(AppendError::Offset { expected: at });
        }
        let mut gathered = Vec::new();
        loop {
            let part = body.next().await;
            let ended = !matches!(part, Some(Ok(_)));
            if let Some(Ok(bytes)) = &part {
                gathered.extend_from_slice(bytes);
            }
            if gathered.len() >= WRITE_BYTES || (ended && !gathered.is_empty()) {
                at = self.write_upload(id, at, std::mem::take(&mut gathered)).await?;
            }
            match part {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(AppendError::Body(error)),
                None => return Ok(at),
            }
        }
    }

    /// Makes an upload the blob `digest` of `repository`; returns when as many origins as configured have it.
    ///
    /// # Errors
    /// [`FinishError`]. After [`FinishError::Unsafe`] the bytes are still here, as a blob: pushing it again costs no
    /// bytes but those to the origins.
    pub async fn finish_upload(
        &self,
        repository: &RepositoryName,
        id: UploadId,
        digest: Digest,
    ) -> Result<(), FinishError> {
        let _writing = self.start_writing(id).ok_or(FinishError::Busy)?;
        self.check_upload(repository, id).await.ok_or(FinishError::Unknown)?;
        let store = self.store().clone();
        let finished = tokio::task::spawn_blocking(move || store.upload_finish(id, &digest)).await;
        match finished {
            Ok(Ok(_)) => {}
            Ok(Err(UploadFinishError::Unknown(_))) => return Err(FinishError::Unknown),
            Ok(Err(UploadFinishError::DigestMismatch { got, .. })) => return Err(FinishError::Digest(got)),
            Ok(Err(UploadFinishError::NoSpace(error))) => {
                return Err(FinishError::NoSpace(error.to_string()));
            }
            Ok(Err(error)) => return Err(FinishError::Store(error.to_string())),
            Err(error) => return Err(FinishError::Store(error.to_string())),
        }
        self.forget_upload(id).await;
        self.link_blob(repository, digest).await
    }

    /// Makes a blob that is complete here a blob of `repository`, safe at the origins.
    ///
    /// # Errors
    /// [`FinishError`].
    pub async fn link_blob(&self, repository: &RepositoryName, digest: Digest) -> Result<(), FinishError> {
        self.keep_safe(digest, Some(repository.clone())).await?;
        self.revive_blob(repository, digest).await
    }

    /// Takes back the deletion of a blob from `repository`, if there was one.
    ///
    /// # Errors
    /// [`FinishError`].
    pub async fn revive_blob(&self, repository: &RepositoryName, digest: Digest) -> Result<(), FinishError> {
        let key = RecordKey { repository: repository.clone(), kind: RecordKind::Blob(digest) };
        let seen = self.records().read(&key).await?;
        if seen.is_deleted() {
            self.records().write(key, Some(blob_value(digest))).await?;
        }
        Ok(())
    }

    /// Records that a blob is `repository`'s, unless that is recorded already.
    ///
    /// # Errors
    /// [`FinishError`].
    pub async fn record_blob(&self, repository: &RepositoryName, digest: Digest) -> Result<(), FinishError> {
        let key = RecordKey { repository: repository.clone(), kind: RecordKind::Blob(digest) };
        if self.records().read(&key).await?.value().is_none() {
            self.records().write(key, Some(blob_value(digest))).await?;
        }
        Ok(())
    }

    /// Ends an upload; `false` for an unknown one.
    pub async fn cancel_upload(&self, repository: &RepositoryName, id: UploadId) -> bool {
        if self.check_upload(repository, id).await.is_none() {
            return false;
        }
        let store = self.store().clone();
        let cancelled = blocking(move || store.upload_cancel(id)).await;
        self.forget_upload(id).await;
        cancelled.unwrap_or(false)
    }

    async fn write_upload(&self, id: UploadId, at: u64, bytes: Vec<u8>) -> Result<u64, AppendError> {
        let store = self.store().clone();
        match tokio::task::spawn_blocking(move || store.upload_append(id, at, &bytes)).await {
            Ok(Ok(offset)) => Ok(offset),
            Ok(Err(UploadError::Unknown(_))) => Err(AppendError::Unknown),
            Ok(Err(UploadError::WrongOffset { expected, .. })) => Err(AppendError::Offset { expected }),
            Ok(Err(error @ UploadError::TooLarge(_))) => Err(AppendError::TooLarge(error.to_string())),
            Ok(Err(UploadError::NoSpace(error))) => Err(AppendError::NoSpace(error.to_string())),
            Ok(Err(error)) => Err(AppendError::Store(error.to_string())),
            Err(error) => Err(AppendError::Store(error.to_string())),
        }
    }

    fn start_writing(&self, id: UploadId) -> Option<Writing<'_>> {
        self.0.writing.lock().insert(id).then(|| Writing(self, id))
    }

    /// Whether the upload is this repository's.
    async fn check_upload(&self, repository: &RepositoryName, id: UploadId) -> Option<()> {
        let uploads = self.0.uploads.clone();
        let name = blocking(move || uploads.get(&upload_key(id))).await.ok().flatten()?;
        (name == repository.as_str().as_bytes()).then_some(())
    }

    /// Whether a blob is complete here and safe, as a finished upload is.
    async fn is_finished(&self, repository: &RepositoryName, digest: Digest) -> bool {
        let store = self.store().clone();
        let entry = blocking(move || store.lookup(&digest)).await.ok().flatten();
        entry.is_some_and(|entry| entry.complete) && self.link_blob(repository, digest).await.is_ok()
    }

    async fn forget_upload(&self, id: UploadId) {
        let uploads = self.0.uploads.clone();
        if let Err(why) = blocking(move || uploads.delete(&upload_key(id))).await {
            tracing::warn!(%why, "an ended upload cannot be forgotten");
        }
    }
}

fn blob_value(digest: Digest) -> RecordValue {
    RecordValue {
        digest,
        media_type: BLOB_MEDIA_TYPE.to_owned(),
        size: 0,
        subject: None,
        artifact_type: None,
        annotations: std::collections::BTreeMap::new(),
    }
}

fn upload_key(id: UploadId) -> Vec<u8> {
    format!("upload/{id}").into_bytes()
}

impl From<KeepError> for FinishError {
    fn from(error: KeepError) -> Self {
        match error {
            KeepError::NoSpace(why) => Self::NoSpace(why),
            KeepError::Denied(why) => Self::Denied(why),
            error @ KeepError::TooFew { .. } => Self::Unsafe(error.to_string()),
            error => Self::Store(error.to_string()),
        }
    }
}

impl From<RecordError> for FinishError {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Unavailable(why) => Self::Unsafe(why),
            RecordError::Denied(why) => Self::Denied(why),
            RecordError::Ledger(error) => Self::Store(error.to_string()),
        }
    }
}
