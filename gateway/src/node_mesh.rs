//! The port over a running node.

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use shoal_daemon::node::{
    AppendError, BeginError, FinishError, ManifestError, Node, OpenError, Resolved, StatError, UploadName,
};
use shoal_daemon::preheat::Order;
use shoal_daemon::records::service::RecordError;
use shoal_daemon::rpc::{Listing, PAGE_MAX};
use shoal_types::layout::BLOB_BYTES_MAX;
use shoal_types::{Digest, RecordKey, RecordKind, RecordValue, Reference, RepositoryName, TagName};

use crate::holdings::{Holdings, Unsure};
use crate::port::{
    BlobRead, BlobSource, ByteStream, DeleteError, ListError, ManifestInfo, ManifestPut, Mesh, PreheatError,
    PullError, PushError, UploadId, compare_tags,
};

/// When a client may try again what the mesh could not do: origins come back, or time out, within seconds.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// The mesh as a registry sees it, through a node of this process.
pub struct NodeMesh(Node, Option<std::sync::Arc<Holdings>>);

impl NodeMesh {
    /// The mesh through `node`.
    pub fn new(node: Node) -> Self {
        Self(node, None)
    }

    /// The same, but a blob is to be had only through a repository that holds it, cached or not: for a gateway that does
    /// not let everybody read everything. Pushes leave a record of each blob, for other such gateways.
    pub fn confined(node: Node) -> Self {
        Self(node, Some(Holdings::new()))
    }

    /// Whether `digest` may be read through `repository`.
    async fn check_held(&self, repository: &RepositoryName, digest: &Digest) -> Result<(), PullError> {
        let Some(holdings) = &self.1 else { return Ok(()) };
        match holdings.holds(&self.0, repository, digest).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(PullError::NotFound),
            Err(Unsure) => Err(PullError::Unavailable { retry_after: RETRY_AFTER }),
        }
    }

    /// After a push or mount: the blob is the repository's, for every gateway.
    async fn link(&self, repository: &RepositoryName, digest: &Digest) -> Result<(), PushError> {
        let Some(holdings) = &self.1 else { return Ok(()) };
        self.0.record_blob(repository, *digest).await.map_err(push_error)?;
        holdings.note_blob(repository, *digest);
        Ok(())
    }

    /// A manifest that is known only by its bytes, because no owner can be asked and no record is remembered, may be
    /// another repository's.
    fn check_recorded(&self, repository: &RepositoryName, resolved: &Resolved) -> Result<(), PullError> {
        if self.1.is_none() || !resolved.stale {
            return Ok(());
        }
        let kind = RecordKind::Manifest(resolved.value.digest);
        let key = RecordKey { repository: repository.clone(), kind };
        match self.0.records().remembered(&key) {
            Ok(Some(record)) if record.value().value.is_some() => Ok(()),
            Ok(_) => Err(PullError::Unavailable { retry_after: RETRY_AFTER }),
            Err(error) => Err(PullError::Internal(error.to_string())),
        }
    }

    /// Whether a blob was deleted from a repository. From one of another registry nothing is, only its cached bytes.
    async fn is_deleted(&self, repository: &RepositoryName, digest: Digest) -> bool {
        !self.0.is_mirrored(repository) && self.0.is_blob_deleted(repository, digest).await
    }

    async fn has(&self, repository: &RepositoryName, digest: Digest) -> bool {
        self.0.stat(digest, Some(repository)).await.is_ok()
    }
}

#[async_trait]
impl Mesh for NodeMesh {
    async fn stat_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<u64, PullError> {
        self.check_held(repository, digest).await?;
        let (deleted, size) =
            tokio::join!(self.is_deleted(repository, *digest), self.0.stat(*digest, Some(repository)));
        if deleted {
            return Err(PullError::NotFound);
        }
        size.map_err(|error| match error {
            StatError::NotFound => PullError::NotFound,
            StatError::Unavailable => PullError::Unavailable { retry_after: RETRY_AFTER },
            StatError::Store(why) => PullError::Internal(why),
        })
    }

    async fn read_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        range: Option<Range<u64>>,
    ) -> Result<BlobRead, PullError> {
        self.check_held(repository, digest).await?;
        let (deleted, opened) = tokio::join!(
            self.is_deleted(repository, *digest),
            self.0.open_of(Some(repository), *digest, range)
        );
        if deleted {
            return Err(PullError::NotFound);
        }
        let reader = opened.map_err(pull_error)?;
        let (size, range, local) = (reader.size(), reader.range(), reader.is_local());
        let (node, digest) = (self.0.clone(), *digest);
        let at = u64::try_from(node.clock().now().since_start().as_millis()).unwrap_or(u64::MAX);
        let stream = reader.into_stream(move |bytes| {
            node.metrics().note_read(local, bytes as u64);
            if local {
                node.pulls().note_local(&digest, size, bytes as u64, at);
            }
        });
        let source = Some(if local { BlobSource::Local } else { BlobSource::Mesh });
        Ok(BlobRead { size, range, stream: stream.boxed(), source })
    }

    async fn begin_upload(&self, repository: &RepositoryName) -> Result<UploadId, PushError> {
        let id = self.0.begin_upload(repository).await.map_err(|error| match error {
            BeginError::TooMany(_) => PushError::Busy { retry_after: RETRY_AFTER },
            BeginError::NoSpace(_) => PushError::NoSpace,
            BeginError::Store(why) => PushError::Internal(why),
        })?;
        let name = self.0.upload_name(id);
        name.to_string()
            .parse()
            .map_err(|_| PushError::Internal("an upload id of the store is none here".to_owned()))
    }

    async fn upload_offset(&self, repository: &RepositoryName, upload: &UploadId) -> Result<u64, PushError> {
        self.0.offset_of(repository, named(upload)?).await.map_err(append_error)
    }

    async fn append_upload(
        &self,
        repository: &RepositoryName,
        upload: &UploadId,
        offset: Option<u64>,
        body: ByteStream,
    ) -> Result<u64, PushError> {
        self.0.append_to(repository, named(upload)?, offset, body).await.map_err(append_error)
    }

    async fn finish_upload(
        &self,
        repository: &RepositoryName,
        upload: &UploadId,
        digest: &Digest,
    ) -> Result<(), PushError> {
        self.0.finish_at(repository, named(upload)?, *digest).await.map_err(push_error)?;
        self.link(repository, digest).await
    }

    async fn cancel_upload(&self, repository: &RepositoryName, upload: &UploadId) -> Result<(), PushError> {
        if self.0.cancel_at(repository, named(upload)?).await.map_err(append_error)? {
            Ok(())
        } else {
            Err(PushError::UploadUnknown)
        }
    }

    async fn mount_blob(
        &self,
        repository: &RepositoryName,
        from: Option<&RepositoryName>,
        digest: &Digest,
    ) -> Result<bool, PushError> {
        if let Some(from) = from
            && self.0.is_blob_deleted(from, *digest).await
        {
            return Ok(false);
        }
        // Without a source, only what the repository has already.
        if self.check_held(from.unwrap_or(repository), digest).await.is_err() {
            return Ok(false);
        }
        if !self.has(repository, *digest).await {
            return Ok(false);
        }
        self.0.revive_blob(repository, *digest).await.map_err(push_error)?;
        self.link(repository, digest).await?;
        Ok(true)
    }

    async fn resolve(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<ManifestInfo, PullError> {
        let resolved = self.0.resolve(repository, reference).await.map_err(manifest_error)?;
        if matches!(reference, Reference::Digest(_)) {
            self.check_recorded(repository, &resolved)?;
        }
        Ok(info(resolved))
    }

    async fn read_manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<(ManifestInfo, Bytes), PullError> {
        let resolved =
            self.0.resolve(repository, &Reference::Digest(*digest)).await.map_err(manifest_error)?;
        self.check_recorded(repository, &resolved)?;
        let bytes = self.0.read_manifest_of(repository, *digest).await.map_err(manifest_error)?;
        if let Some(holdings) = &self.1 {
            holdings.note_manifest(repository, *digest, &bytes);
        }
        Ok((info(resolved), bytes))
    }

    async fn put_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        manifest: ManifestPut,
    ) -> Result<(), PushError> {
        let tag = match reference {
            Reference::Tag(tag) => Some(tag),
            Reference::Digest(_) => None,
        };
        let put = self.0.put_manifest(repository, tag, manifest.value, manifest.bytes.to_vec());
        put.await.map_err(push_error)
    }

    async fn delete_tag(&self, repository: &RepositoryName, tag: &TagName) -> Result<(), DeleteError> {
        found(self.0.delete_tag(repository, tag).await)
    }

    async fn delete_manifest(&self, repository: &RepositoryName, digest: &Digest) -> Result<(), DeleteError> {
        found(self.0.delete_manifest(repository, *digest).await)
    }

    async fn delete_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<(), DeleteError> {
        match self.stat_blob(repository, digest).await {
            Ok(_) => {}
            Err(PullError::Unavailable { retry_after }) => {
                return Err(DeleteError::Unavailable { retry_after });
            }
            Err(PullError::Internal(why)) => return Err(DeleteError::Internal(why)),
            Err(_) => return Err(DeleteError::NotFound),
        }
        found(self.0.delete_blob(repository, *digest).await.map(|()| true))
    }

    async fn list_tags(
        &self,
        repository: &RepositoryName,
        after: Option<&TagName>,
        limit: usize,
    ) -> Result<Vec<TagName>, ListError> {
        let mut tags = self.all_tags(repository).await?;
        // The owners keep byte order; the specification asks for a lexical one that ignores case.
        tags.sort_by(compare_tags);
        if let Some(after) = after {
            tags.retain(|tag| compare_tags(tag, after).is_gt());
        }
        tags.truncate(limit);
        if tags.is_empty() && after.is_none() && !self.is_repository(repository).await? {
            return Err(ListError::RepositoryUnknown);
        }
        Ok(tags)
    }

    async fn list_repositories(
        &self,
        after: Option<&RepositoryName>,
        limit: usize,
    ) -> Result<Vec<RepositoryName>, ListError> {
        self.0.records().repositories(after, limit).await.map_err(list_error)
    }

    async fn referrers(
        &self,
        repository: &RepositoryName,
        subject: &Digest,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<Vec<RecordValue>, ListError> {
        let after = after.copied().map(RecordKind::Manifest);
        let what = Listing::Referrers(*subject);
        let records = self.0.records().list(repository, &what, after, limit).await.map_err(list_error)?;
        Ok(records.iter().filter_map(|record| record.value().value.clone()).collect())
    }

    fn name_of(&self, host: Option<&str>, repository: RepositoryName) -> RepositoryName {
        let upstreams = self.0.config().upstreams();
        let rule = host.and_then(|host| upstreams.iter().find(|rule| rule.host().eq_ignore_ascii_case(host)));
        let below = rule.and_then(|rule| format!("{}/{repository}", rule.prefix()).parse().ok());
        below.unwrap_or(repository)
    }

    async fn preheat(&self, repository: &RepositoryName, reference: &Reference) -> Result<(), PreheatError> {
        let scope = self.0.config().preheat.clone().ok_or(PreheatError::Off)?;
        let order = Order {
            repositories: vec![repository.clone()],
            reference: reference.clone(),
            scope,
            platforms: Vec::new(),
        };
        // Nobody listens: metrics and logs tell what becomes of it.
        self.0.preheat(order).map(drop).map_err(|_| PreheatError::Full { retry_after: RETRY_AFTER })
    }
}

impl NodeMesh {
    async fn all_tags(&self, repository: &RepositoryName) -> Result<Vec<TagName>, ListError> {
        let page_max = PAGE_MAX as usize;
        let mut tags = Vec::new();
        let mut after = None;
        loop {
            let page = self
                .0
                .records()
                .list(repository, &Listing::Tags, after, page_max)
                .await
                .map_err(list_error)?;
            let names = page.iter().filter_map(|record| match &record.value().key.kind {
                RecordKind::Tag(tag) => Some(tag.clone()),
                _ => None,
            });
            tags.extend(names);
            match page.last() {
                Some(last) if page.len() == page_max => after = Some(last.value().key.kind.clone()),
                _ => return Ok(tags),
            }
        }
    }

    /// Whether the repository holds anything: without a tag it may still hold manifests.
    async fn is_repository(&self, repository: &RepositoryName) -> Result<bool, ListError> {
        self.0.records().is_repository(repository).await.map_err(list_error)
    }
}

fn named(upload: &UploadId) -> Result<UploadName, PushError> {
    upload.as_str().parse().map_err(|_| PushError::UploadUnknown)
}

fn append_error(error: AppendError) -> PushError {
    match error {
        AppendError::Unknown => PushError::UploadUnknown,
        AppendError::Busy => PushError::UploadBusy,
        AppendError::Offset { expected } => PushError::OffsetMismatch { expected },
        AppendError::Body(error) => PushError::Interrupted(error),
        AppendError::NoSpace(_) => PushError::NoSpace,
        AppendError::TooLarge(_) => PushError::TooLarge { limit: BLOB_BYTES_MAX },
        AppendError::Away(why) => {
            tracing::warn!(why, "an upload that began at another gateway cannot go on");
            PushError::Unavailable { retry_after: RETRY_AFTER }
        }
        AppendError::Store(why) => PushError::Internal(why),
    }
}

fn info(resolved: Resolved) -> ManifestInfo {
    let Resolved { value, stale } = resolved;
    ManifestInfo { digest: value.digest, media_type: value.media_type, size: value.size, stale }
}

fn pull_error(error: OpenError) -> PullError {
    match error {
        OpenError::NotFound => PullError::NotFound,
        OpenError::Unavailable => PullError::Unavailable { retry_after: RETRY_AFTER },
        OpenError::Range { size } => PullError::Range { size },
        OpenError::Busy => PullError::Busy { retry_after: RETRY_AFTER },
        OpenError::Corrupt | OpenError::Store(_) => PullError::Internal(error.to_string()),
    }
}

fn manifest_error(error: ManifestError) -> PullError {
    match error {
        ManifestError::NotFound => PullError::NotFound,
        ManifestError::Denied(why) => PullError::Denied(why),
        ManifestError::Unavailable(_) => PullError::Unavailable { retry_after: RETRY_AFTER },
        ManifestError::Store(why) => PullError::Internal(why),
    }
}

fn push_error(error: FinishError) -> PushError {
    match error {
        FinishError::Unknown => PushError::UploadUnknown,
        FinishError::Busy => PushError::UploadBusy,
        FinishError::Digest(actual) => PushError::DigestMismatch { actual },
        FinishError::NoSpace(_) => PushError::NoSpace,
        FinishError::Unsafe(why) => {
            tracing::warn!(%why, "a push cannot be kept safe");
            PushError::Unavailable { retry_after: RETRY_AFTER }
        }
        FinishError::Denied(why) => PushError::Denied(why),
        FinishError::Store(why) => PushError::Internal(why),
    }
}

fn found(deleted: Result<bool, RecordError>) -> Result<(), DeleteError> {
    match deleted {
        Ok(true) => Ok(()),
        Ok(false) => Err(DeleteError::NotFound),
        Err(RecordError::Unavailable(_)) => Err(DeleteError::Unavailable { retry_after: RETRY_AFTER }),
        Err(RecordError::Denied(why)) => Err(DeleteError::Denied(why)),
        Err(RecordError::Ledger(error)) => Err(DeleteError::Internal(error.to_string())),
    }
}

fn list_error(error: RecordError) -> ListError {
    match error {
        RecordError::Ledger(error) => ListError::Internal(error.to_string()),
        _ => ListError::Unavailable { retry_after: RETRY_AFTER },
    }
}
