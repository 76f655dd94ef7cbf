//! What all object stores have in common: the layout over named objects.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use shoal_types::{Digest, RecordKey, RepositoryName};

use crate::backend::{
    Backend, BackendError, BlobFile, Mark, StoredRecord, check_record_bytes, check_source, of_range,
    range_len,
};
use crate::layout;
use crate::throttle::Throttle;

/// Bytes of a metainfo that are read: that of the largest blob with the most pieces is well below.
const METAINFO_BYTES_MAX: u64 = 64 << 20;

/// What must be true of an object for it to be replaced.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Condition<'a> {
    /// Nothing.
    Any,
    /// It is not there.
    Absent,
    /// It is in this state.
    Is(&'a Mark),
}

/// An object that a store lists.
#[derive(Debug)]
pub(crate) struct Listed {
    /// Its name, without the prefix of the backend.
    pub(crate) key: String,
    /// Its size in bytes.
    pub(crate) size: u64,
}

/// Named objects in a bucket. Names are without the prefix of the backend.
#[async_trait]
pub(crate) trait ObjectStore: Send + Sync + fmt::Debug {
    fn describe(&self) -> String;

    /// Whether conditions of [`Self::put`] are held against other writers; known after [`Self::probe`].
    fn is_conditional(&self) -> bool;

    /// Checks access, and finds out what the store can do.
    async fn probe(&self) -> Result<(), BackendError>;

    /// The object's size; `None` when it is not there.
    async fn size(&self, key: &str) -> Result<Option<u64>, BackendError>;

    /// A small object with its state; `None` when it is not there.
    async fn get(&self, key: &str, bytes_max: u64) -> Result<Option<(Bytes, Mark)>, BackendError>;

    /// Bytes of an object, fewer when it ends before; `None` when it is not there. The range is not empty.
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Bytes>, BackendError>;

    /// Sets a small object; returns whether the condition was true.
    async fn put(&self, key: &str, object: Bytes, condition: Condition<'_>) -> Result<bool, BackendError>;

    /// Sets an object to a file's content. It appears as a whole or not at all.
    async fn put_file(&self, key: &str, path: &Path, size: u64, rate: &Throttle) -> Result<(), BackendError>;

    /// Deletes an object, if it is there.
    async fn delete(&self, key: &str) -> Result<(), BackendError>;

    /// All objects whose names begin with `prefix`.
    fn list(&self, prefix: &str) -> BoxStream<'_, Result<Listed, BackendError>>;
}

/// A backend over an object store.
#[derive(Debug)]
pub(crate) struct ObjectBackend<S> {
    store: S,
    rate_out: Throttle,
}

impl<S: ObjectStore> ObjectBackend<S> {
    /// The backend in `store`, to which blobs are written at `rate_out` at most.
    pub(crate) fn new(store: S, rate_out: Throttle) -> Self {
        Self { store, rate_out }
    }

    #[cfg(test)]
    pub(crate) fn store(&self) -> &S {
        &self.store
    }
}

#[async_trait]
impl<S: ObjectStore> Backend for ObjectBackend<S> {
    fn describe(&self) -> String {
        self.store.describe()
    }

    fn has_conditional_writes(&self) -> bool {
        self.store.is_conditional()
    }

    async fn probe(&self) -> Result<(), BackendError> {
        self.store.probe().await
    }

    async fn stat(&self, digest: &Digest, _: Option<&RepositoryName>) -> Result<Option<u64>, BackendError> {
        self.store.size(&layout::blob_key(digest)).await
    }

    async fn metainfo(&self, digest: &Digest) -> Result<Option<Vec<u8>>, BackendError> {
        let got = self.store.get(&layout::metainfo_key(digest), METAINFO_BYTES_MAX).await?;
        Ok(got.map(|(bytes, _)| bytes.to_vec()))
    }

    async fn read_range(
        &self,
        digest: &Digest,
        _: Option<&RepositoryName>,
        range: Range<u64>,
    ) -> Result<Bytes, BackendError> {
        let len = range_len(digest, &range)?;
        let key = layout::blob_key(digest);
        let not_found = || BackendError::NotFound { what: digest.to_string() };
        let beyond =
            |size: u64| BackendError::invalid(of_range(digest, &range), format!("beyond its {size} bytes"));
        if len == 0 {
            let size = self.store.size(&key).await?.ok_or_else(not_found)?;
            return if range.end <= size { Ok(Bytes::new()) } else { Err(beyond(size)) };
        }
        let bytes = self.store.get_range(&key, range.clone()).await?.ok_or_else(not_found)?;
        if bytes.len() as u64 == len {
            return Ok(bytes);
        }
        Err(beyond(range.start.saturating_add(bytes.len() as u64)))
    }

    async fn put(
        &self,
        digest: &Digest,
        path: &Path,
        size: u64,
        metainfo: &[u8],
    ) -> Result<(), BackendError> {
        check_source(path, size)?;
        // The metainfo first: a blob that is there has its metainfo.
        let metainfo = Bytes::copy_from_slice(metainfo);
        self.store.put(&layout::metainfo_key(digest), metainfo, Condition::Any).await?;
        let key = layout::blob_key(digest);
        if self.store.size(&key).await? == Some(size) {
            return Ok(());
        }
        self.store.put_file(&key, path, size, &self.rate_out).await
    }

    async fn delete(&self, digest: &Digest) -> Result<bool, BackendError> {
        let key = layout::blob_key(digest);
        let was = self.store.size(&key).await?.is_some();
        // The blob first: one that is there has its metainfo.
        self.store.delete(&key).await?;
        self.store.delete(&layout::metainfo_key(digest)).await?;
        Ok(was)
    }

    fn list_blobs(&self) -> BoxStream<'_, Result<BlobFile, BackendError>> {
        let blob = |listed: Listed| {
            layout::blob_of(&listed.key).map(|digest| BlobFile { digest, size: listed.size })
        };
        let listed = self.store.list(&format!("{}/", layout::BLOBS));
        listed.filter_map(move |listed| std::future::ready(listed.map(blob).transpose())).boxed()
    }

    async fn get_record(&self, key: &RecordKey) -> Result<Option<StoredRecord>, BackendError> {
        let got = self.store.get(&layout::record_key(key), crate::RECORD_OBJECT_BYTES_MAX as u64).await?;
        Ok(got.map(|(object, mark)| StoredRecord { object: object.to_vec(), mark }))
    }

    async fn put_record(
        &self,
        key: &RecordKey,
        object: &[u8],
        expected: Option<&Mark>,
    ) -> Result<bool, BackendError> {
        check_record_bytes(key, object)?;
        let condition = expected.map_or(Condition::Absent, Condition::Is);
        self.store.put(&layout::record_key(key), Bytes::copy_from_slice(object), condition).await
    }

    async fn delete_record(&self, key: &RecordKey) -> Result<bool, BackendError> {
        let key = layout::record_key(key);
        let was = self.store.size(&key).await?.is_some();
        self.store.delete(&key).await?;
        Ok(was)
    }

    fn list_records(&self) -> BoxStream<'_, Result<RecordKey, BackendError>> {
        let listed = self.store.list(&format!("{}/", layout::TAGS));
        listed
            .filter_map(|listed| {
                std::future::ready(listed.map(|listed| layout::record_of(&listed.key)).transpose())
            })
            .boxed()
    }
}
