//! Blobs of registries: fetched once, by the blob's owner, for all who want them.

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use shoal_engine::io::Input;
use shoal_origin::{BackendError, Content, Member};
use shoal_store::{UploadFinishError, UploadId};
use shoal_types::{Digest, RepositoryName};
use std::sync::Arc;
use tokio::sync::watch;

use super::{Outcome, SourceError};
use crate::driver::blocking;
use crate::node::Node;
use crate::rpc::{Answer, Fetched, Request};
use crate::vault::live::Source;

/// How long an asker waits for a fetch before it is told to ask again.
pub(crate) const FETCH_WAIT: Duration = Duration::from_secs(10);
/// Fetches that may be under way or waiting.
const FETCHES_MAX: usize = 4096;
/// Other origins asked whether they have a blob before the registry is.
const OTHERS_ASKED: usize = 3;
/// How long another origin may take to look into its store.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes gathered before they are written.
const WRITE_BYTES: usize = 1 << 20;
/// Times that a fetch goes on after it broke off without a byte having come in between.
const RESUMES_MAX: u32 = 4;
/// Pause before the first of these; it doubles.
const RESUME_PAUSE: Duration = Duration::from_millis(250);

impl Node {
    /// As an origin: has a blob of a repository that is pulled through, or says how far it is.
    pub(super) async fn fetch_upstream(
        &self,
        digest: Digest,
        repository: &RepositoryName,
        content: Content,
        look: bool,
    ) -> Result<Fetched, SourceError> {
        if let Some(size) = self.complete_size(digest).await? {
            return Ok(Fetched::Here(size));
        }
        if look {
            return Ok(Fetched::Absent);
        }
        let source = self.source_of(repository).ok_or(SourceError::NoSource)?;
        let mut outcome = self.join_fetch(digest, repository, content, source)?;
        let over = tokio::time::timeout(FETCH_WAIT, outcome.wait_for(Option::is_some)).await;
        match over {
            Ok(Ok(over)) => over.clone().unwrap_or(Ok(Fetched::Underway)),
            Ok(Err(_)) => Err(SourceError::Unavailable("the fetch was given up".to_owned())),
            Err(_) => Ok(Fetched::Underway),
        }
    }

    async fn complete_size(&self, digest: Digest) -> Result<Option<u64>, SourceError> {
        let store = self.store().clone();
        let entry = blocking(move || store.lookup(&digest)).await.map_err(SourceError::Unavailable)?;
        Ok(entry.filter(|entry| entry.complete).map(|entry| entry.metainfo.size()))
    }

    fn join_fetch(
        &self,
        digest: Digest,
        repository: &RepositoryName,
        content: Content,
        source: &Member,
    ) -> Result<Outcome, SourceError> {
        let mut fetches = self.upstreams().fetches.lock();
        if let Some(outcome) = fetches.get(&digest) {
            return Ok(outcome.clone());
        }
        if fetches.len() >= FETCHES_MAX {
            return Err(SourceError::Unavailable("too many fetches from registries at once".to_owned()));
        }
        let (over, outcome) = watch::channel(None);
        fetches.insert(digest, outcome.clone());
        drop(fetches);
        let (node, repository, source) = (self.clone(), repository.clone(), source.clone());
        tokio::spawn(async move {
            let fetched = tokio::select! {
                () = node.stopping() => Err(SourceError::Unavailable("this origin stops".to_owned())),
                fetched = node.run_fetch(digest, &repository, content, &source) => fetched,
            };
            if let Err(error) = &fetched {
                tracing::warn!(%digest, %repository, %error, "a blob cannot be fetched from its registry");
            }
            // Whoever asks from here on finds it in the store, or begins anew.
            node.upstreams().fetches.lock().remove(&digest);
            over.send_replace(Some(fetched));
        });
        Ok(outcome)
    }

    async fn run_fetch(
        &self,
        digest: Digest,
        repository: &RepositoryName,
        content: Content,
        source: &Member,
    ) -> Result<Fetched, SourceError> {
        let _slot = self.upstreams().slots.acquire().await;
        if let Some(vault) = self.vault()
            && let Ok(Some(size)) = vault.stat(&digest, None).await
        {
            return Ok(Fetched::Here(size));
        }
        if let Some(size) = self.find_at_others(digest, repository).await {
            return Ok(Fetched::Here(size));
        }
        if content == Content::Blob {
            return self.begin_fetch(digest, repository, source).await;
        }
        let id = UploadId::from_bytes(crate::keys::random_id());
        let spooled = self.spool(id, digest, repository, content, source).await;
        let Ok(Some(())) = spooled else {
            let store = self.store().clone();
            let _ = blocking(move || store.upload_cancel(id)).await;
            return spooled.map(|_| Fetched::Absent);
        };
        let size = self.admit(id, digest).await?;
        Ok(Fetched::Here(size))
    }

    /// Begins to read a blob from its registry; from now on it is passed on as it comes.
    async fn begin_fetch(
        &self,
        digest: Digest,
        repository: &RepositoryName,
        source: &Member,
    ) -> Result<Fetched, SourceError> {
        let Some(vault) = self.vault() else { return Err(SourceError::NoSource) };
        self.upstreams().note_cached(digest).await;
        let from =
            Source { member: source.clone(), repository: Some(repository.clone()), content: Content::Blob };
        match vault.read_live(digest, from, self.driver().clone()).await {
            Ok(Some(size)) => Ok(Fetched::Here(size)),
            Ok(None) => {
                self.upstreams().forget_cached(digest).await;
                Ok(Fetched::Absent)
            }
            Err(error @ BackendError::Denied { .. }) => Err(SourceError::Denied(error.to_string())),
            Err(error) => Err(SourceError::Unavailable(error.to_string())),
        }
    }

    /// The size of a blob that another origin of this zone has fetched already: one that was the owner until just now.
    async fn find_at_others(&self, digest: Digest, repository: &RepositoryName) -> Option<u64> {
        let zone = self.zone();
        let request =
            Request::FetchUpstream { digest, repository: repository.clone(), manifest: false, look: true };
        let owners = self.discovery().blob_owners(&digest);
        let others = owners.iter().filter(|owner| owner.zone == zone && owner.peer != self.peer_id());
        let mut asked: FuturesUnordered<_> = others
            .take(OTHERS_ASKED)
            .map(|owner| self.links().ask(owner.peer, &owner.endpoints, &request, LOOK_TIMEOUT))
            .collect();
        while let Some(answer) = asked.next().await {
            if let Ok(Answer::Fetched(Fetched::Here(size))) = answer {
                return Some(size);
            }
        }
        None
    }

    /// Spools a blob from its registry; `None` when the registry does not have it. Goes on where it broke off.
    async fn spool(
        &self,
        id: UploadId,
        digest: Digest,
        repository: &RepositoryName,
        content: Content,
        source: &Member,
    ) -> Result<Option<()>, SourceError> {
        let store = self.store().clone();
        blocking(move || store.upload_begin(id)).await.map_err(SourceError::Unavailable)?;
        let (mut at, mut resumes) = (0, 0);
        loop {
            let before = at;
            let failed = match self.spool_on(id, &mut at, digest, repository, content, source).await {
                Ok(Some(size)) if at >= size => return Ok(Some(())),
                Ok(Some(size)) => BackendError::Unavailable {
                    what: digest.to_string(),
                    source: format!("it ended after {at} of {size} bytes").into(),
                },
                Ok(None) => return Ok(None),
                Err(SpoolError::Store(why)) => return Err(SourceError::Unavailable(why)),
                Err(SpoolError::Source(error)) => error,
            };
            resumes = if at > before { 1 } else { resumes + 1 };
            match failed {
                BackendError::Denied { .. } => return Err(SourceError::Denied(failed.to_string())),
                _ if !failed.is_retryable() || resumes > RESUMES_MAX => {
                    return Err(SourceError::Unavailable(failed.to_string()));
                }
                _ => {
                    tracing::info!(%digest, at, error = %failed, "a fetch from a registry broke off; it goes on")
                }
            }
            tokio::time::sleep(RESUME_PAUSE * (1 << (resumes - 1))).await;
        }
    }

    /// Spools from `at` on as far as it comes in one go; returns the blob's size, `None` when it is not there.
    async fn spool_on(
        &self,
        id: UploadId,
        at: &mut u64,
        digest: Digest,
        repository: &RepositoryName,
        content: Content,
        source: &Member,
    ) -> Result<Option<u64>, SpoolError> {
        let opened = source.backend.open_blob(&digest, Some(repository), content, *at).await?;
        let Some(mut blob) = opened else { return Ok(None) };
        let mut gathered = Vec::new();
        loop {
            let part = blob.bytes.next().await;
            let ended = !matches!(part, Some(Ok(_)));
            if let Some(Ok(bytes)) = &part {
                gathered.extend_from_slice(bytes);
            }
            if gathered.len() >= WRITE_BYTES || (ended && !gathered.is_empty()) {
                let (store, offset, bytes) = (self.store().clone(), *at, std::mem::take(&mut gathered));
                let written = blocking(move || store.upload_append(id, offset, &bytes)).await;
                *at = written.map_err(SpoolError::Store)?;
            }
            match part {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
                None => return Ok(Some(blob.size)),
            }
        }
    }

    /// Makes what was spooled a blob of the store, if it has its digest, and tells the mesh.
    async fn admit(&self, id: UploadId, digest: Digest) -> Result<u64, SourceError> {
        let Some(vault) = self.vault().cloned() else { return Err(SourceError::NoSource) };
        self.upstreams().note_cached(digest).await;
        let store = self.store().clone();
        let finished = tokio::task::spawn_blocking(move || store.upload_finish(id, &digest)).await;
        let metainfo = match finished {
            Ok(Ok(metainfo)) => metainfo,
            Ok(Err(UploadFinishError::DigestMismatch { got, .. })) => {
                let why = format!("the registry gave content of the digest {got} for {digest}");
                return Err(SourceError::Unavailable(why));
            }
            Ok(Err(error)) => return Err(SourceError::Unavailable(error.to_string())),
            Err(error) => return Err(SourceError::Unavailable(error.to_string())),
        };
        let vouched = Arc::new(vault.vouch(metainfo.as_ref().clone()));
        let (store, proof) = (self.store().clone(), Arc::clone(&vouched));
        let noted = blocking(move || {
            store.set_vouched(proof).map_err(|error| error.to_string())?;
            // The registry has it: it may be evicted here.
            store.set_anchored(&digest, true).map_err(|error| error.to_string())
        });
        noted.await.map_err(SourceError::Unavailable)?;
        let size = metainfo.size();
        self.driver().tell(Input::MetainfoLearned { metainfo, vouched: Some(vouched) }).await;
        Ok(size)
    }
}

enum SpoolError {
    Source(BackendError),
    Store(String),
}

impl From<BackendError> for SpoolError {
    fn from(error: BackendError) -> Self {
        Self::Source(error)
    }
}
