//! The port's in-memory double: a registry in a map, for tests.
//!
//! It behaves as the real mesh promises to, and can be told to fail: see [`MemoryMesh::set_fault`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use shoal_types::{Digest, DigestHasher, RecordValue, Reference, RepositoryName, TagName};

use crate::port::{
    BlobRead, BlobSource, ByteStream, DeleteError, ListError, ManifestInfo, ManifestPut, Mesh, PreheatError,
    PullError, PushError, UploadId, compare_tags,
};

/// Bytes of one item of a blob's stream.
const ITEM_BYTES: usize = 1 << 10;

/// How the double fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Reads of blobs break off after this many bytes.
    BreakAfter(u64),
    /// Reads of blobs stop after this many bytes and never go on.
    StallAfter(u64),
    /// Reads of blobs end after this many bytes as if that were all.
    EndAfter(u64),
    /// Nobody can be reached.
    Unavailable,
    /// No room for another transfer.
    Busy,
    /// The disk is full: bytes are taken, uploads do not finish.
    NoSpace,
}

#[derive(Default)]
struct Repository {
    blobs: BTreeSet<Digest>,
    manifests: BTreeMap<Digest, (RecordValue, Bytes)>,
    tags: BTreeMap<TagName, Digest>,
}

#[derive(Default)]
struct State {
    blobs: BTreeMap<Digest, Bytes>,
    repositories: BTreeMap<RepositoryName, Repository>,
    uploads: BTreeMap<UploadId, (RepositoryName, Vec<u8>)>,
    upload_count: u64,
    fault: Option<Fault>,
    stale: bool,
    preheated: Vec<(RepositoryName, Reference)>,
}

/// A mesh of one machine without a disk.
#[derive(Default)]
pub struct MemoryMesh {
    state: Mutex<State>,
    reads: AtomicU64,
    reads_open: std::sync::Arc<AtomicU64>,
}

const RETRY_AFTER: Duration = Duration::from_millis(1500);

impl MemoryMesh {
    /// An empty mesh.
    pub fn new() -> Self {
        Self::default()
    }

    /// Fails from now on as told; `None` heals.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.lock().fault = fault;
    }

    /// Whether manifests are called stale.
    pub fn set_stale(&self, stale: bool) {
        self.lock().stale = stale;
    }

    /// How many reads of blobs were opened.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::SeqCst)
    }

    /// How many reads of blobs are open.
    pub fn reads_open(&self) -> u64 {
        self.reads_open.load(Ordering::SeqCst)
    }

    /// The images that were to be preheated, in their order.
    pub fn preheated(&self) -> Vec<(RepositoryName, Reference)> {
        self.lock().preheated.clone()
    }

    /// How many uploads are open.
    pub fn uploads_open(&self) -> usize {
        self.lock().uploads.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<(Bytes, Option<Fault>), PullError> {
        let state = self.lock();
        match state.fault {
            Some(Fault::Unavailable) => return Err(PullError::Unavailable { retry_after: RETRY_AFTER }),
            Some(Fault::Busy) => return Err(PullError::Busy { retry_after: RETRY_AFTER }),
            _ => {}
        }
        let own = state.repositories.get(repository).ok_or(PullError::RepositoryUnknown)?;
        let held = own.blobs.contains(digest).then(|| state.blobs.get(digest)).flatten();
        // A manifest is a blob of its repository as well.
        let held = held.or_else(|| own.manifests.get(digest).map(|(_, bytes)| bytes));
        Ok((held.cloned().ok_or(PullError::NotFound)?, state.fault))
    }
}

impl State {
    fn upload(&mut self, repository: &RepositoryName, upload: &UploadId) -> Result<&mut Vec<u8>, PushError> {
        match self.uploads.get_mut(upload) {
            Some((own, bytes)) if own == repository => Ok(bytes),
            _ => Err(PushError::UploadUnknown),
        }
    }

    fn deletable(&mut self, repository: &RepositoryName) -> Result<&mut Repository, DeleteError> {
        self.repositories.get_mut(repository).ok_or(DeleteError::RepositoryUnknown)
    }
}

/// Counts a read as open until it is dropped.
struct OpenRead(std::sync::Arc<AtomicU64>);

impl Drop for OpenRead {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn faulty_stream(bytes: Bytes, fault: Option<Fault>, open: OpenRead) -> ByteStream {
    let limit = match fault {
        Some(Fault::BreakAfter(limit) | Fault::StallAfter(limit) | Fault::EndAfter(limit)) => limit,
        _ => u64::MAX,
    };
    let cut = bytes.len().min(usize::try_from(limit).unwrap_or(usize::MAX));
    let whole = cut == bytes.len();
    let items: Vec<_> = bytes.slice(..cut).chunks(ITEM_BYTES).map(|item| Ok(bytes.slice_ref(item))).collect();
    let tail = match fault {
        Some(Fault::BreakAfter(_)) if !whole => {
            stream::iter([Err(io::Error::other("told to break"))]).boxed()
        }
        Some(Fault::StallAfter(_)) if !whole => stream::pending().boxed(),
        _ => stream::empty().boxed(),
    };
    // The guard lives as long as the closure, which lives as long as the stream.
    stream::iter(items)
        .chain(tail)
        .map(move |item| {
            let _alive = &open;
            item
        })
        .boxed()
}

#[async_trait]
impl Mesh for MemoryMesh {
    async fn stat_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<u64, PullError> {
        Ok(self.blob(repository, digest)?.0.len() as u64)
    }

    async fn read_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        range: Option<Range<u64>>,
    ) -> Result<BlobRead, PullError> {
        let (bytes, fault) = self.blob(repository, digest)?;
        let size = bytes.len() as u64;
        let range = range.map_or(0..size, |range| range.start..range.end.min(size));
        if range.start > size || (range.start == size && size > 0) {
            return Err(PullError::Range { size });
        }
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.reads_open.fetch_add(1, Ordering::SeqCst);
        let open = OpenRead(self.reads_open.clone());
        let part = bytes.slice(range.start as usize..range.end as usize);
        let stream = faulty_stream(part, fault, open);
        Ok(BlobRead { size, range, stream, source: Some(BlobSource::Local) })
    }

    async fn begin_upload(&self, repository: &RepositoryName) -> Result<UploadId, PushError> {
        let mut state = self.lock();
        match state.fault {
            Some(Fault::Unavailable) => return Err(PushError::Unavailable { retry_after: RETRY_AFTER }),
            Some(Fault::Busy) => return Err(PushError::Busy { retry_after: RETRY_AFTER }),
            _ => {}
        }
        state.upload_count += 1;
        let text = format!("00000000-0000-4000-8000-{:012x}", state.upload_count);
        let id: UploadId = text.parse().map_err(|error| PushError::Internal(format!("{error}")))?;
        state.uploads.insert(id.clone(), (repository.clone(), Vec::new()));
        Ok(id)
    }

    async fn upload_offset(&self, repository: &RepositoryName, upload: &UploadId) -> Result<u64, PushError> {
        Ok(self.lock().upload(repository, upload)?.len() as u64)
    }

    async fn append_upload(
        &self,
        repository: &RepositoryName,
        upload: &UploadId,
        offset: Option<u64>,
        mut body: ByteStream,
    ) -> Result<u64, PushError> {
        let expected = self.upload_offset(repository, upload).await?;
        if offset.is_some_and(|offset| offset != expected) {
            return Err(PushError::OffsetMismatch { expected });
        }
        while let Some(item) = body.next().await {
            let bytes = item.map_err(PushError::Interrupted)?;
            self.lock().upload(repository, upload)?.extend_from_slice(&bytes);
        }
        self.upload_offset(repository, upload).await
    }

    async fn finish_upload(
        &self,
        repository: &RepositoryName,
        upload: &UploadId,
        digest: &Digest,
    ) -> Result<(), PushError> {
        let mut state = self.lock();
        if state.fault == Some(Fault::NoSpace) {
            return Err(PushError::NoSpace);
        }
        let bytes = std::mem::take(state.upload(repository, upload)?);
        state.uploads.remove(upload);
        let mut hasher = DigestHasher::new(digest.algorithm());
        hasher.update(&bytes);
        let actual = hasher.finish();
        if actual != *digest {
            return Err(PushError::DigestMismatch { actual });
        }
        state.blobs.insert(*digest, Bytes::from(bytes));
        state.repositories.entry(repository.clone()).or_default().blobs.insert(*digest);
        Ok(())
    }

    async fn cancel_upload(&self, repository: &RepositoryName, upload: &UploadId) -> Result<(), PushError> {
        let mut state = self.lock();
        state.upload(repository, upload)?;
        state.uploads.remove(upload);
        Ok(())
    }

    async fn mount_blob(
        &self,
        repository: &RepositoryName,
        from: Option<&RepositoryName>,
        digest: &Digest,
    ) -> Result<bool, PushError> {
        let mut state = self.lock();
        let found = state
            .repositories
            .iter()
            .any(|(name, own)| from.is_none_or(|from| from == name) && own.blobs.contains(digest));
        if found {
            state.repositories.entry(repository.clone()).or_default().blobs.insert(*digest);
        }
        Ok(found)
    }

    async fn resolve(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<ManifestInfo, PullError> {
        let state = self.lock();
        if state.fault == Some(Fault::Unavailable) {
            return Err(PullError::Unavailable { retry_after: RETRY_AFTER });
        }
        let own = state.repositories.get(repository).ok_or(PullError::RepositoryUnknown)?;
        let digest = match reference {
            Reference::Tag(tag) => *own.tags.get(tag).ok_or(PullError::NotFound)?,
            Reference::Digest(digest) => *digest,
        };
        let (value, _) = own.manifests.get(&digest).ok_or(PullError::NotFound)?;
        Ok(ManifestInfo {
            digest,
            media_type: value.media_type.clone(),
            size: value.size,
            stale: state.stale,
        })
    }

    async fn read_manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<(ManifestInfo, Bytes), PullError> {
        let info = self.resolve(repository, &Reference::Digest(*digest)).await?;
        let (bytes, _) = self.blob(repository, digest)?;
        Ok((info, bytes))
    }

    async fn put_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        manifest: ManifestPut,
    ) -> Result<(), PushError> {
        let mut state = self.lock();
        match state.fault {
            Some(Fault::Unavailable) => return Err(PushError::Unavailable { retry_after: RETRY_AFTER }),
            Some(Fault::NoSpace) => return Err(PushError::NoSpace),
            _ => {}
        }
        let own = state.repositories.entry(repository.clone()).or_default();
        let digest = manifest.value.digest;
        own.manifests.insert(digest, (manifest.value, manifest.bytes));
        if let Reference::Tag(tag) = reference {
            own.tags.insert(tag.clone(), digest);
        }
        Ok(())
    }

    async fn delete_tag(&self, repository: &RepositoryName, tag: &TagName) -> Result<(), DeleteError> {
        self.lock().deletable(repository)?.tags.remove(tag).map(|_| ()).ok_or(DeleteError::NotFound)
    }

    async fn delete_manifest(&self, repository: &RepositoryName, digest: &Digest) -> Result<(), DeleteError> {
        let mut state = self.lock();
        let own = state.deletable(repository)?;
        own.manifests.remove(digest).ok_or(DeleteError::NotFound)?;
        own.tags.retain(|_, named| named != digest);
        Ok(())
    }

    async fn delete_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<(), DeleteError> {
        if self.lock().deletable(repository)?.blobs.remove(digest) {
            Ok(())
        } else {
            Err(DeleteError::NotFound)
        }
    }

    async fn list_tags(
        &self,
        repository: &RepositoryName,
        after: Option<&TagName>,
        limit: usize,
    ) -> Result<Vec<TagName>, ListError> {
        let state = self.lock();
        let own = state.repositories.get(repository).ok_or(ListError::RepositoryUnknown)?;
        let mut tags: Vec<TagName> = own.tags.keys().cloned().collect();
        tags.sort_by(compare_tags);
        tags.retain(|tag| after.is_none_or(|after| compare_tags(tag, after).is_gt()));
        tags.truncate(limit);
        Ok(tags)
    }

    async fn list_repositories(
        &self,
        after: Option<&RepositoryName>,
        limit: usize,
    ) -> Result<Vec<RepositoryName>, ListError> {
        let state = self.lock();
        let names = state.repositories.keys().filter(|name| after.is_none_or(|after| *name > after));
        Ok(names.take(limit).cloned().collect())
    }

    async fn referrers(
        &self,
        repository: &RepositoryName,
        subject: &Digest,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<Vec<RecordValue>, ListError> {
        let state = self.lock();
        let own = state.repositories.get(repository).into_iter().flat_map(|own| own.manifests.iter());
        Ok(own
            .filter(|(digest, _)| after.is_none_or(|after| *digest > after))
            .filter(|(_, (value, _))| value.subject == Some(*subject))
            .map(|(_, (value, _))| value.clone())
            .take(limit)
            .collect())
    }

    async fn preheat(&self, repository: &RepositoryName, reference: &Reference) -> Result<(), PreheatError> {
        let mut state = self.lock();
        if state.fault == Some(Fault::Busy) {
            return Err(PreheatError::Full { retry_after: RETRY_AFTER });
        }
        state.preheated.push((repository.clone(), reference.clone()));
        Ok(())
    }
}
