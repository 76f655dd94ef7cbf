//! What every backend gets whatever its kind: a bound on the bytes read from it, and counts.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use shoal_types::{Digest, RecordKey, Reference, RepositoryName};

use crate::backend::{
    Backend, BackendError, BlobFile, BlobStream, Content, Mark, StoredRecord, UpstreamManifest,
};
use crate::throttle::Throttle;

/// What went to and from a backend since the process started.
#[derive(Debug, Default)]
pub struct Traffic {
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    failures: AtomicU64,
}

impl Traffic {
    /// Bytes of blobs read.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of blobs put.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    /// Requests that the backend did not answer, or refused for want of permission.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

/// A backend with a bound on its reads.
#[derive(Debug)]
pub(crate) struct Limited {
    inner: Arc<dyn Backend>,
    rate_in: Throttle,
    traffic: Arc<Traffic>,
}

impl Limited {
    pub(crate) fn new(inner: Arc<dyn Backend>, rate_in: Throttle, traffic: Arc<Traffic>) -> Self {
        Self { inner, rate_in, traffic }
    }

    fn note<T>(&self, result: Result<T, BackendError>) -> Result<T, BackendError> {
        if matches!(result, Err(BackendError::Unavailable { .. } | BackendError::Denied { .. })) {
            self.traffic.failures.fetch_add(1, Ordering::Relaxed);
        }
        result
    }
}

#[async_trait]
impl Backend for Limited {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn is_writable(&self) -> bool {
        self.inner.is_writable()
    }

    fn has_conditional_writes(&self) -> bool {
        self.inner.has_conditional_writes()
    }

    async fn probe(&self) -> Result<(), BackendError> {
        self.note(self.inner.probe().await)
    }

    async fn stat(
        &self,
        digest: &Digest,
        repository: Option<&RepositoryName>,
    ) -> Result<Option<u64>, BackendError> {
        self.note(self.inner.stat(digest, repository).await)
    }

    async fn metainfo(&self, digest: &Digest) -> Result<Option<Vec<u8>>, BackendError> {
        self.note(self.inner.metainfo(digest).await)
    }

    async fn read_range(
        &self,
        digest: &Digest,
        repository: Option<&RepositoryName>,
        range: Range<u64>,
    ) -> Result<Bytes, BackendError> {
        self.rate_in.pass(range.end.saturating_sub(range.start)).await;
        let bytes = self.note(self.inner.read_range(digest, repository, range).await)?;
        self.traffic.read_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    async fn open_blob<'a>(
        &'a self,
        digest: &Digest,
        repository: Option<&RepositoryName>,
        content: Content,
        offset: u64,
    ) -> Result<Option<BlobStream<'a>>, BackendError> {
        let opened = self.note(self.inner.open_blob(digest, repository, content, offset).await)?;
        let counted = |BlobStream { size, bytes }| {
            let bytes = bytes.then(|part| async {
                let part = self.note(part)?;
                self.rate_in.pass(part.len() as u64).await;
                self.traffic.read_bytes.fetch_add(part.len() as u64, Ordering::Relaxed);
                Ok(part)
            });
            BlobStream { size, bytes: bytes.boxed() }
        };
        Ok(opened.map(counted))
    }

    async fn put(
        &self,
        digest: &Digest,
        path: &Path,
        size: u64,
        metainfo: &[u8],
    ) -> Result<(), BackendError> {
        self.note(self.inner.put(digest, path, size, metainfo).await)?;
        self.traffic.written_bytes.fetch_add(size, Ordering::Relaxed);
        Ok(())
    }

    async fn delete(&self, digest: &Digest) -> Result<bool, BackendError> {
        self.note(self.inner.delete(digest).await)
    }

    fn list_blobs(&self) -> BoxStream<'_, Result<BlobFile, BackendError>> {
        self.inner.list_blobs()
    }

    async fn get_record(&self, key: &RecordKey) -> Result<Option<StoredRecord>, BackendError> {
        self.note(self.inner.get_record(key).await)
    }

    async fn put_record(
        &self,
        key: &RecordKey,
        object: &[u8],
        expected: Option<&Mark>,
    ) -> Result<bool, BackendError> {
        self.note(self.inner.put_record(key, object, expected).await)
    }

    async fn delete_record(&self, key: &RecordKey) -> Result<bool, BackendError> {
        self.note(self.inner.delete_record(key).await)
    }

    fn list_records(&self) -> BoxStream<'_, Result<RecordKey, BackendError>> {
        self.inner.list_records()
    }

    async fn resolve(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Option<UpstreamManifest>, BackendError> {
        self.note(self.inner.resolve(repository, reference).await)
    }
}
