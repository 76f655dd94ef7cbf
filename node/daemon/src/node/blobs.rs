//! Reading blobs: from the store, or from the mesh while they arrive.

use std::ops::Range;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use shoal_engine::io::{ReadError, ReaderWant};
use shoal_origin::Content;
use shoal_types::{Digest, RepositoryName};

use super::Node;
use crate::driver::blocking;
use crate::reader::{BlobReader, ReadLog, Wanted};
use crate::rpc::{Answer, Fetched, Found, Request};
use crate::upstream::SourceError;

/// Owners asked whether they have a blob; further down the ranking none should.
const OWNERS_ASKED: usize = 8;
/// How long an owner may take to look into its store and backend.
const STAT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a blob's size cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum StatError {
    /// Those who would know say that there is none.
    #[error("the blob is not in the mesh")]
    NotFound,
    /// Those who would know cannot be reached.
    #[error("nobody who may have the blob can be reached")]
    Unavailable,
    /// The local store failed.
    #[error("the local store failed: {0}")]
    Store(String),
}

/// Why a blob cannot be opened.
pub type OpenError = ReadError;

impl Node {
    /// Size in bytes of a blob. Nothing is downloaded.
    ///
    /// # Errors
    /// [`StatError`].
    pub async fn stat(&self, digest: Digest, repository: Option<&RepositoryName>) -> Result<u64, StatError> {
        let store = self.store().clone();
        let entry = blocking(move || store.lookup(&digest)).await.map_err(StatError::Store)?;
        if let Some(entry) = entry.filter(|entry| entry.complete)
            && self.counts_for(digest, repository).await
        {
            return Ok(entry.metainfo.size());
        }
        match self.ask_owners(digest, repository, false).await {
            Some(Found::Size(size)) => Ok(size),
            Some(Found::Absent) => Err(StatError::NotFound),
            // Nobody answers for the blob: look for a cache that has it.
            Some(Found::Unsure) | None => self.stat_in_swarm(digest).await,
        }
    }

    /// What the owners say of a blob, of a copy that is kept for good or of any; `None` when none of them answers.
    pub(super) async fn ask_owners(
        &self,
        digest: Digest,
        repository: Option<&RepositoryName>,
        kept: bool,
    ) -> Option<Found> {
        let asked_for = repository.cloned();
        let request = if kept {
            Request::IsKept { digest, repository: asked_for }
        } else {
            Request::Stat { digest, repository: asked_for }
        };
        let owners = self.discovery().blob_owners(&digest);
        let mut asked: FuturesUnordered<_> = owners
            .iter()
            .take(OWNERS_ASKED)
            .map(|owner| async {
                if owner.peer == self.peer_id() {
                    return Some(if kept {
                        self.kept_here(digest, repository).await
                    } else {
                        self.stat_here(digest, repository).await
                    });
                }
                match self.links().ask(owner.peer, &owner.endpoints, &request, STAT_TIMEOUT).await {
                    Ok(Answer::Stat(found)) => Some(found),
                    _ => None,
                }
            })
            .collect();
        let mut all = None;
        while let Some(answer) = asked.next().await {
            all = match (all, answer) {
                (_, Some(Found::Size(size))) => return Some(Found::Size(size)),
                (_, Some(Found::Unsure)) | (Some(Found::Unsure), _) => Some(Found::Unsure),
                (known, None) => known,
                (_, Some(Found::Absent)) => Some(Found::Absent),
            };
        }
        all
    }

    /// What this process itself has of a blob: the answer to a peer's question.
    pub(crate) async fn stat_here(&self, digest: Digest, repository: Option<&RepositoryName>) -> Found {
        let store = self.store().clone();
        match blocking(move || store.lookup(&digest)).await {
            Ok(Some(entry)) if entry.complete && self.counts_for(digest, repository).await => {
                return Found::Size(entry.metainfo.size());
            }
            Ok(_) => {}
            Err(why) => {
                tracing::warn!(%digest, %why, "the store cannot be asked for a blob");
                return Found::Unsure;
            }
        }
        let Some(vault) = self.vault() else { return Found::Absent };
        match vault.stat(&digest, repository).await {
            Ok(Some(size)) => Found::Size(size),
            Ok(None) => Found::Absent,
            Err(_) => Found::Unsure,
        }
    }

    /// Whether this process keeps a blob for good: in a backend, or on its disk until it is there. Its store may evict what is only there.
    pub(crate) async fn kept_here(&self, digest: Digest, repository: Option<&RepositoryName>) -> Found {
        let Some(vault) = self.vault() else { return Found::Absent };
        match vault.kept(&digest, repository).await {
            Ok(Some(size)) => Found::Size(size),
            Ok(None) => Found::Absent,
            Err(_) => Found::Unsure,
        }
    }

    async fn stat_in_swarm(&self, digest: Digest) -> Result<u64, StatError> {
        let mut reader = self.driver().open(digest, ReaderWant::Metainfo).await;
        match reader.metainfo().await {
            Ok(metainfo) => Ok(metainfo.size()),
            Err(ReadError::NotFound) => Err(StatError::NotFound),
            Err(ReadError::Store(why)) => Err(StatError::Store(why)),
            Err(_) => Err(StatError::Unavailable),
        }
    }

    /// Opens a blob, or the bytes of `range`, for reading in order. Returns when the size is known; bytes come while
    /// the blob arrives. However many readers a blob has, it is downloaded once.
    ///
    /// # Errors
    /// [`OpenError`]: the search is over, or the range begins beyond the end.
    pub async fn open(&self, digest: Digest, range: Option<Range<u64>>) -> Result<BlobReader, OpenError> {
        self.open_of(None, digest, range).await
    }

    /// [`Self::open`] of a blob of `repository`, which may be one that is pulled through from another registry.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open_of(
        &self,
        repository: Option<&RepositoryName>,
        digest: Digest,
        range: Option<Range<u64>>,
    ) -> Result<BlobReader, OpenError> {
        self.metrics().pulls.inc();
        let wanted = Wanted::now(&self.clock());
        let range = range.unwrap_or(0..u64::MAX);
        let store = self.store().clone();
        let entry = blocking(move || store.lookup(&digest)).await.map_err(ReadError::Store)?;
        if let Some(entry) = entry.filter(|entry| entry.complete) {
            let size = entry.metainfo.size();
            check_range(&range, size)?;
            return Ok(BlobReader::local(self.store().clone(), digest, size, range, self.log(wanted)));
        }
        let Some(repository) = repository else { return self.open_in_mesh(digest, range, wanted).await };
        self.get_of(repository, digest, || self.open_in_mesh(digest, range.clone(), wanted)).await
    }

    /// Gets a blob of `repository` by `get`, which looks in the mesh: has it fetched from its registry before, if this is a
    /// mirror of it, and after, if nobody has it and an origin may know where it is.
    async fn get_of<T, F>(
        &self,
        repository: &RepositoryName,
        digest: Digest,
        get: impl Fn() -> F,
    ) -> Result<T, OpenError>
    where
        F: Future<Output = Result<T, OpenError>>,
    {
        let mut failed = None;
        if self.is_mirrored(repository) {
            failed = self.have_from_source(repository, digest, Content::Blob).await;
            if failed == Some(ReadError::NotFound) {
                return Err(ReadError::NotFound);
            }
        }
        match get().await {
            Err(ReadError::NotFound) => {}
            got => return got,
        }
        // Its registry cannot be asked, and nobody has it: whether it exists cannot be told.
        if let Some(failed) = failed {
            return Err(failed);
        }
        match self.fetch_from_source(repository, digest, Content::Blob).await {
            Ok(Fetched::Here(_)) => get().await,
            Ok(_) | Err(SourceError::NoSource) => Err(ReadError::NotFound),
            Err(_) => Err(ReadError::Unavailable),
        }
    }

    fn log(&self, wanted: Wanted) -> ReadLog {
        ReadLog::new(self.0.pulls.clone(), wanted)
    }

    async fn open_in_mesh(
        &self,
        digest: Digest,
        range: Range<u64>,
        wanted: Wanted,
    ) -> Result<BlobReader, OpenError> {
        self.0.traces.wanted(&digest);
        let mut reader = self.driver().open(digest, ReaderWant::Range(range.clone())).await;
        let metainfo = reader.metainfo().await.inspect_err(|why| self.0.traces.gave_up(&digest, why))?;
        let size = metainfo.size();
        check_range(&range, size)?;
        Ok(BlobReader::arriving(self.store().clone(), digest, size, range, reader, self.log(wanted)))
    }

    /// Has a blob of a mirrored repository somewhere in the mesh, unless it is here; says why it could not be fetched.
    pub(super) async fn have_from_source(
        &self,
        repository: &RepositoryName,
        digest: Digest,
        content: Content,
    ) -> Option<ReadError> {
        let store = self.store().clone();
        let here = blocking(move || store.lookup(&digest)).await.ok().flatten();
        if here.as_ref().is_some_and(|entry| entry.complete) {
            return None;
        }
        if here.is_none() {
            self.upstreams().note_cached(digest).await;
        }
        match self.fetch_from_source(repository, digest, content).await {
            Ok(Fetched::Absent) => Some(ReadError::NotFound),
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(%digest, %repository, %error, "a blob of another registry is looked for in the mesh only");
                Some(ReadError::Unavailable)
            }
        }
    }

    /// All bytes of a small blob.
    ///
    /// # Errors
    /// [`OpenError`]; also when the blob has more than `limit` bytes.
    pub async fn read_all(&self, digest: Digest, limit: u64) -> Result<Vec<u8>, OpenError> {
        let mut reader = self.open(digest, None).await?;
        if reader.size() > limit {
            return Err(ReadError::Store(format!("{digest} has {} bytes, more than {limit}", reader.size())));
        }
        let mut all = Vec::new();
        while let Some(bytes) = reader.next().await.map_err(|error| ReadError::Store(error.to_string()))? {
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }

    /// Fetches a whole blob into the store.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn fetch(&self, digest: Digest) -> Result<(), OpenError> {
        let mut reader = self.driver().open(digest, ReaderWant::Whole).await;
        reader.done().await
    }

    /// [`Self::fetch`] of a blob of `repository`, which may be one that is pulled through from another registry.
    ///
    /// # Errors
    /// [`OpenError`].
    pub(crate) async fn fetch_of(
        &self,
        repository: &RepositoryName,
        digest: Digest,
    ) -> Result<(), OpenError> {
        let store = self.store().clone();
        let here = blocking(move || store.lookup(&digest)).await.map_err(ReadError::Store)?;
        if here.is_some_and(|entry| entry.complete) {
            return Ok(());
        }
        self.get_of(repository, digest, || self.fetch(digest)).await
    }
}

fn check_range(range: &Range<u64>, size: u64) -> Result<(), OpenError> {
    if range.start > 0 && range.start >= size { Err(ReadError::Range { size }) } else { Ok(()) }
}
