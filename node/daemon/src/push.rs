//! Keeping a pushed blob safe: its owners fetch it from here and answer when they have it.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use shoal_engine::io::Input;
use shoal_net::control::Origin;
use shoal_types::{Digest, Metainfo, RepositoryName, VouchedMetainfo};

use crate::driver::blocking;
use crate::links::AskError;
use crate::node::Node;
use crate::queue::Item;
use crate::rpc::{Answer, Failure, Request};
use crate::vault::{AnchorError, is_shared};
use crate::vouchers;

/// How long an owner may take to fetch and store a blob, beyond [`ANCHOR_SECONDS_PER_GIB`].
const ANCHOR_TIMEOUT: Duration = Duration::from_secs(60);
/// What a gibibyte may take: a link of 100 Mbit/s shared by two owners.
const ANCHOR_SECONDS_PER_GIB: u64 = 300;
/// How often the origins known are looked at while there are too few.
const ORIGINS_POLL: Duration = Duration::from_millis(100);

/// Why a blob is not safe.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// Too few origins are alive or took it.
    #[error("{kept} of {wanted} origins have it: {why}")]
    TooFew {
        /// Origins that have it.
        kept: usize,
        /// Origins that must have it.
        wanted: usize,
        /// What the last one said.
        why: String,
    },
    /// An origin's disk is full.
    #[error("an origin has no space left: {0}")]
    NoSpace(String),
    /// This process may not push.
    #[error("{0}")]
    Denied(String),
    /// The bytes here do not have the digest any more: the local disk is at fault.
    #[error("the content does not have the digest {0}")]
    Corrupt(Digest),
    /// The local store failed.
    #[error("the local store failed: {0}")]
    Store(String),
}

impl Node {
    /// Returns when `replicas` origins have the blob, which is complete in the local store, on stable storage.
    ///
    /// # Errors
    /// [`KeepError`]: nothing may be acknowledged.
    pub async fn keep_safe(
        &self,
        digest: Digest,
        repository: Option<RepositoryName>,
    ) -> Result<(), KeepError> {
        let store = self.store().clone();
        let entry = blocking(move || store.lookup(&digest)).await.map_err(KeepError::Store)?;
        let Some(entry) = entry.filter(|entry| entry.complete) else {
            return Err(KeepError::Store("the pushed blob vanished".to_owned()));
        };
        // Before any owner looks whether it has the blob already.
        self.retain(&[digest]).await;
        let deadline = tokio::time::Instant::now() + self.config().search_patience;
        let result = loop {
            let owners = self.wait_for_owners(&digest, deadline).await;
            let result = self.anchor_at(&owners, &entry.metainfo, repository.clone()).await;
            // Origins restart, and others take their place: a pusher is not told of it.
            let too_few = matches!(result, Err(KeepError::TooFew { .. }));
            if !too_few || tokio::time::Instant::now() >= deadline {
                break result;
            }
            tokio::time::sleep(ORIGINS_POLL).await;
        };
        // An origin that is the gateway as well may have it in its queue of writes.
        let waits = self.vault().is_some_and(|vault| vault.queue().contains(&Item::Blob(digest)));
        if result.is_ok() && !waits && !self.store().path(&digest).is_some_and(|path| is_shared(&path)) {
            // It is safe elsewhere: from now on it may be evicted here.
            let store = self.store().clone();
            blocking(move || store.set_anchored(&digest, true)).await.map_err(KeepError::Store)?;
        }
        if result.is_ok() {
            self.upstreams().forget_cached(digest).await;
        }
        match &result {
            Ok(()) => self.metrics().pushes.inc(),
            Err(_) => self.metrics().push_failures.inc(),
        };
        result
    }

    /// The blob's owners, waiting a while for as many as are needed to be known.
    async fn wait_for_owners(&self, digest: &Digest, deadline: tokio::time::Instant) -> Vec<Origin> {
        loop {
            let owners = self.discovery().blob_owners(digest);
            if owners.len() >= self.config().replicas || tokio::time::Instant::now() >= deadline {
                return owners;
            }
            tokio::time::sleep(ORIGINS_POLL).await;
        }
    }

    async fn anchor_at(
        &self,
        owners: &[Origin],
        metainfo: &Arc<Metainfo>,
        repository: Option<RepositoryName>,
    ) -> Result<(), KeepError> {
        let wanted = self.config().replicas;
        let too_few = |kept, why: &str| KeepError::TooFew { kept, wanted, why: why.to_owned() };
        if owners.len() < wanted {
            return Err(too_few(
                0,
                &format!("{} origins are known; start more, or lower replicas", owners.len()),
            ));
        }
        let mut candidates = owners.iter();
        let mut asked: FuturesUnordered<_> = candidates
            .by_ref()
            .take(wanted)
            .map(|owner| self.anchor_one(owner, metainfo, &repository))
            .collect();
        let mut kept = 0;
        let mut last = None;
        while let Some(result) = asked.next().await {
            match result {
                Ok(vouched) => {
                    kept += 1;
                    self.learn_vouched(vouched).await;
                    if kept == wanted {
                        return Ok(());
                    }
                }
                Err(error @ (KeepError::Denied(_) | KeepError::Corrupt(_))) => return Err(error),
                Err(error) => {
                    tracing::warn!(digest = %metainfo.digest(), %error, "an origin does not keep a pushed blob");
                    last = Some(error);
                    if let Some(next) = candidates.next() {
                        asked.push(self.anchor_one(next, metainfo, &repository));
                    }
                }
            }
        }
        match last {
            Some(error @ KeepError::NoSpace(_)) => Err(error),
            Some(error) => Err(too_few(kept, &error.to_string())),
            None => Err(too_few(kept, "no more origins to ask")),
        }
    }

    async fn anchor_one(
        &self,
        owner: &Origin,
        metainfo: &Arc<Metainfo>,
        repository: &Option<RepositoryName>,
    ) -> Result<VouchedMetainfo, KeepError> {
        if owner.peer == self.peer_id() {
            let Some(vault) = self.vault() else {
                return Err(KeepError::Store("this process is no origin".to_owned()));
            };
            let anchored = vault.anchor(metainfo.as_ref().clone(), repository.as_ref(), None, self.driver());
            return anchored.await.map_err(keep_error);
        }
        let gib = metainfo.size() >> 30;
        let timeout = ANCHOR_TIMEOUT + Duration::from_secs(gib.saturating_mul(ANCHOR_SECONDS_PER_GIB));
        let request =
            Request::Anchor { metainfo: Box::new(metainfo.as_ref().clone()), repository: repository.clone() };
        let failed = |why: String| KeepError::TooFew { kept: 0, wanted: 1, why };
        match self.links().ask(owner.peer, &owner.endpoints, &request, timeout).await {
            Ok(Answer::Anchored(vouched)) if vouched.value() == metainfo.as_ref() => Ok(*vouched),
            Ok(_) => Err(failed(format!("{} vouched for something else", owner.peer))),
            Err(AskError::Failed { kind: Failure::Denied, message, .. }) => Err(KeepError::Denied(message)),
            Err(AskError::Failed { kind: Failure::NoSpace, message, .. }) => Err(KeepError::NoSpace(message)),
            Err(AskError::Failed { kind: Failure::Corrupt, .. }) => {
                Err(KeepError::Corrupt(metainfo.digest()))
            }
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// From now on this process can give the blob to anybody.
    async fn learn_vouched(&self, vouched: VouchedMetainfo) {
        let revoked = vouchers::is_revoked(self.tls().revocations(), &vouched);
        if revoked || vouched.check(&self.identity().mesh).is_err() {
            return;
        }
        let vouched = Arc::new(vouched);
        let (store, proof) = (self.store().clone(), Arc::clone(&vouched));
        if let Err(why) = blocking(move || store.set_vouched(proof)).await {
            tracing::warn!(%why, "a voucher cannot be kept");
        }
        let metainfo = Arc::new(vouched.value().clone());
        self.driver().tell(Input::MetainfoLearned { metainfo, vouched: Some(vouched) }).await;
    }
}

fn keep_error(error: AnchorError) -> KeepError {
    match error {
        AnchorError::Corrupt(digest) => KeepError::Corrupt(digest),
        other @ AnchorError::Nowhere(_) => KeepError::Denied(other.to_string()),
        other if crate::calls::is_no_space(&other.to_string()) => KeepError::NoSpace(other.to_string()),
        other => KeepError::TooFew { kept: 0, wanted: 1, why: other.to_string() },
    }
}
