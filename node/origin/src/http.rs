//! `http://` and `https://`: blobs of any web server, by a template. Read only.

use std::ops::Range;
use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use http::StatusCode;
use reqwest::Client;
use shoal_types::{Digest, RecordKey, RepositoryName};

use crate::backend::{Backend, BackendError, BlobFile, Mark, StoredRecord, of_range, range_len};
use crate::url::BackendUrl;
use crate::web;

/// Blobs under URLs made of their digests.
#[derive(Debug)]
pub(crate) struct HttpBackend {
    client: Client,
    /// With `{digest}`, `{algorithm}`, `{hex}` and `{repository}` in it.
    template: String,
}

impl HttpBackend {
    /// The backend at `url`. Nothing is asked of the server yet.
    ///
    /// # Errors
    /// [`BackendError::Invalid`].
    pub(crate) async fn open(url: &BackendUrl) -> Result<Self, BackendError> {
        Ok(Self { client: web::client(url).await?, template: url.to_string() })
    }

    fn url(&self, digest: &Digest, repository: Option<&RepositoryName>) -> String {
        self.template
            .replace("{digest}", &digest.to_string())
            .replace("{algorithm}", digest.algorithm().name())
            .replace("{hex}", &digest.hex())
            .replace("{repository}", repository.map_or("", RepositoryName::as_str))
    }

    fn read_only(&self, what: &impl ToString) -> BackendError {
        BackendError::ReadOnly { what: what.to_string(), backend: self.describe() }
    }
}

#[async_trait]
impl Backend for HttpBackend {
    fn describe(&self) -> String {
        self.template.clone()
    }

    fn is_writable(&self) -> bool {
        false
    }

    fn has_conditional_writes(&self) -> bool {
        false
    }

    async fn probe(&self) -> Result<(), BackendError> {
        // Any answer shows that somebody is there; of what no server has, absence is the right one.
        self.stat(&Digest::sha256(b"shoal probe"), None).await.map(|_| ())
    }

    async fn stat(
        &self,
        digest: &Digest,
        repository: Option<&RepositoryName>,
    ) -> Result<Option<u64>, BackendError> {
        let url = self.url(digest, repository);
        let answer = web::send(&url, self.client.head(&url)).await?;
        match answer.status() {
            StatusCode::OK => web::size_of(&url, &answer).map(Some),
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(None),
            status => Err(web::refused(&url, status)),
        }
    }

    async fn metainfo(&self, _: &Digest) -> Result<Option<Vec<u8>>, BackendError> {
        Ok(None)
    }

    async fn read_range(
        &self,
        digest: &Digest,
        repository: Option<&RepositoryName>,
        range: Range<u64>,
    ) -> Result<Bytes, BackendError> {
        let len = range_len(digest, &range)?;
        let url = self.url(digest, repository);
        let not_found = || BackendError::NotFound { what: digest.to_string() };
        let beyond = || BackendError::invalid(of_range(digest, &range), "beyond its end");
        if len == 0 {
            let size = self.stat(digest, repository).await?.ok_or_else(not_found)?;
            return if range.end <= size { Ok(Bytes::new()) } else { Err(beyond()) };
        }
        let answer = web::send(&url, web::with_range(self.client.get(&url), &range)).await?;
        if matches!(answer.status(), StatusCode::NOT_FOUND | StatusCode::GONE) {
            return Err(not_found());
        }
        let bytes = web::ranged_body(&url, answer, &range).await?;
        if bytes.len() as u64 == len { Ok(bytes) } else { Err(beyond()) }
    }

    async fn put(&self, digest: &Digest, _: &Path, _: u64, _: &[u8]) -> Result<(), BackendError> {
        Err(self.read_only(digest))
    }

    async fn delete(&self, digest: &Digest) -> Result<bool, BackendError> {
        Err(self.read_only(digest))
    }

    fn list_blobs(&self) -> BoxStream<'_, Result<BlobFile, BackendError>> {
        futures::stream::empty().boxed()
    }

    async fn get_record(&self, _: &RecordKey) -> Result<Option<StoredRecord>, BackendError> {
        Ok(None)
    }

    async fn put_record(&self, key: &RecordKey, _: &[u8], _: Option<&Mark>) -> Result<bool, BackendError> {
        Err(self.read_only(key))
    }

    async fn delete_record(&self, key: &RecordKey) -> Result<bool, BackendError> {
        Err(self.read_only(key))
    }

    fn list_records(&self) -> BoxStream<'_, Result<RecordKey, BackendError>> {
        futures::stream::empty().boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::servers::Server;

    async fn reads(server: &mut Server) {
        let content: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        let digest = Digest::sha256(&content);
        std::fs::write(server.dir().join("www").join(digest.hex()), &content).unwrap();
        let url = format!("http://127.0.0.1:{}/{{hex}}", server.port());
        let backend = HttpBackend::open(&url.parse().unwrap()).await.unwrap();
        backend.probe().await.unwrap();
        let size = content.len() as u64;
        assert_eq!(backend.stat(&digest, None).await.unwrap(), Some(size));
        for range in [0..size, 0..1, 70_000..270_000, size - 1..size, size..size] {
            let (from, to) = (usize::try_from(range.start).unwrap(), usize::try_from(range.end).unwrap());
            let bytes = backend.read_range(&digest, None, range).await.unwrap();
            assert!(bytes[..] == content[from..to], "bytes {from} to {to}");
        }
        for range in [0..size + 1, size..size + 1, size + 5..size + 6] {
            let read = backend.read_range(&digest, None, range).await;
            assert!(matches!(read, Err(BackendError::Invalid { .. })), "{read:?}");
        }
        let other = Digest::sha256(b"other");
        assert_eq!(backend.stat(&other, None).await.unwrap(), None);
        assert!(matches!(backend.read_range(&other, None, 0..1).await, Err(BackendError::NotFound { .. })));
        let put = backend.put(&digest, Path::new("/x"), 1, b"m").await;
        assert!(matches!(put, Err(BackendError::ReadOnly { .. })), "{put:?}");
        server.stop().await;
        assert!(backend.stat(&digest, None).await.unwrap_err().is_retryable());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn ranges_of_a_server_that_knows_them() {
        reads(&mut Server::files().await).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn ranges_of_a_server_that_does_not() {
        reads(&mut Server::files_without_ranges().await).await;
    }
}
