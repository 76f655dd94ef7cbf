//! Manifests and tags.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use shoal_engine::io::{ReadError, ReaderWant};
use shoal_origin::Content;
use shoal_types::{Digest, Metainfo, RecordKey, RecordKind, RecordValue, Reference, RepositoryName, TagName};

use super::upstream::{is_from_source, key_of};
use super::{FinishError, Node};
use crate::driver::blocking;
use crate::manifests::Contents;
use crate::records::service::{RecordError, Seen};
use crate::rpc::{Fetched, Found, Listing, PAGE_MAX};
use crate::upstream::SourceError;

/// Largest manifest (distribution specification v1.1, "Pushing Manifests": registries should accept at least 4 MiB).
pub(crate) const MANIFEST_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Blobs of a manifest looked up side by side.
const CHECKS: usize = 16;
/// How often a register is read again while no owner can be reached.
const RETRY: Duration = Duration::from_millis(250);

/// What a tag or digest names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The manifest's record.
    pub value: RecordValue,
    /// Its owners could not be asked: there may be a newer one.
    pub stale: bool,
}

/// Why a manifest cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The repository has no such manifest or tag.
    #[error("not found")]
    NotFound,
    /// Those who would know cannot be reached.
    #[error("{0}")]
    Unavailable(String),
    /// The registry that it is pulled through from refuses.
    #[error("{0}")]
    Denied(String),
    /// The local store failed.
    #[error("{0}")]
    Store(String),
}

impl Node {
    /// What `reference` names in `repository`, which may be one that is pulled through from another registry. Waits for
    /// owners that cannot be reached as long as a pull's patience.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub async fn resolve(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Resolved, ManifestError> {
        if self.is_mirrored(repository) {
            return self.resolve_mirrored(repository, reference).await;
        }
        match self.resolve_own(repository, reference).await {
            // Of a registry that only the origins know.
            Ok(resolved) if matches!(reference, Reference::Tag(_)) && is_from_source(&resolved.value) => {
                self.resolve_mirrored(repository, reference).await
            }
            Err(ManifestError::NotFound) => {
                match self.resolve_at_source(&key_of(repository, reference)).await {
                    Ok(Some((value, stale))) => Ok(Resolved { value, stale }),
                    Ok(None) | Err(SourceError::NoSource) => Err(ManifestError::NotFound),
                    Err(SourceError::Denied(why)) => Err(ManifestError::Denied(why)),
                    Err(SourceError::Unavailable(why)) => Err(ManifestError::Unavailable(why)),
                }
            }
            other => other,
        }
    }

    async fn resolve_own(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Resolved, ManifestError> {
        match reference {
            Reference::Tag(tag) => {
                let key = tag_key(repository, tag);
                let seen = self.read_patiently(&key).await?;
                let stale = seen.stale;
                let value = seen.value().cloned().ok_or(ManifestError::NotFound)?;
                Ok(Resolved { value, stale })
            }
            Reference::Digest(digest) => self.resolve_digest(repository, *digest).await,
        }
    }

    async fn resolve_digest(
        &self,
        repository: &RepositoryName,
        digest: Digest,
    ) -> Result<Resolved, ManifestError> {
        let key = manifest_key(repository, digest);
        // A manifest never changes: what is remembered is true until a deletion is heard of.
        let remembered =
            self.records().remembered(&key).map_err(|error| ManifestError::Store(error.to_string()))?;
        if let Some(value) = remembered.and_then(|record| record.value().value.clone()) {
            return Ok(Resolved { value, stale: false });
        }
        let seen = self.records().read(&key).await.map_err(store_error)?;
        if let Some(value) = seen.value() {
            return Ok(Resolved { value: value.clone(), stale: seen.stale });
        }
        if !seen.stale || seen.is_deleted() {
            return Err(ManifestError::NotFound);
        }
        self.described_by_itself(digest).await
    }

    /// Nobody can be asked for a manifest's record: the manifest itself says what it is.
    pub(super) async fn described_by_itself(&self, digest: Digest) -> Result<Resolved, ManifestError> {
        let bytes = self.read_manifest_bytes(digest).await?;
        let media_type = media_type_of(&bytes).ok_or(ManifestError::NotFound)?;
        let value = RecordValue {
            digest,
            media_type,
            size: bytes.len() as u64,
            subject: None,
            artifact_type: None,
            annotations: std::collections::BTreeMap::new(),
        };
        Ok(Resolved { value, stale: true })
    }

    /// A manifest's bytes.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub async fn read_manifest_bytes(&self, digest: Digest) -> Result<Bytes, ManifestError> {
        if let Some(manifest) = self.hot_manifests().get(&digest) {
            return Ok(manifest);
        }
        let read = self.read_all(digest, MANIFEST_BYTES_MAX).await;
        let manifest = read.map(Bytes::from).map_err(|error| match error {
            ReadError::NotFound => ManifestError::NotFound,
            ReadError::Store(why) => ManifestError::Store(why),
            other => ManifestError::Unavailable(other.to_string()),
        })?;
        self.hot_manifests().keep(digest, &manifest);
        Ok(manifest)
    }

    /// The bytes of a manifest of `repository`, wherever they have to be fetched from.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub async fn read_manifest_of(
        &self,
        repository: &RepositoryName,
        digest: Digest,
    ) -> Result<Bytes, ManifestError> {
        let mirrored = self.is_mirrored(repository);
        if mirrored {
            self.have_from_source(repository, digest, Content::Manifest).await;
        }
        let read = self.read_manifest_bytes(digest).await;
        if !matches!(read, Err(ManifestError::NotFound)) {
            return read;
        }
        match self.fetch_from_source(repository, digest, Content::Manifest).await {
            Ok(Fetched::Here(_)) => self.read_manifest_bytes(digest).await,
            Ok(_) | Err(SourceError::NoSource) => read,
            Err(SourceError::Denied(why)) => Err(ManifestError::Denied(why)),
            Err(SourceError::Unavailable(why)) => Err(ManifestError::Unavailable(why)),
        }
    }

    /// Stores a manifest, and moves `tag` to it; returns when both are safe.
    ///
    /// # Errors
    /// [`FinishError`].
    pub async fn put_manifest(
        &self,
        repository: &RepositoryName,
        tag: Option<&TagName>,
        value: RecordValue,
        bytes: Vec<u8>,
    ) -> Result<(), FinishError> {
        let digest = value.digest;
        let metainfo = Metainfo::of_bytes(digest.algorithm(), &bytes)
            .map_err(|error| FinishError::Store(error.to_string()))?;
        if metainfo.digest() != digest {
            return Err(FinishError::Digest(metainfo.digest()));
        }
        let contents = Contents::parse(&bytes).map_err(FinishError::Store)?;
        let (store, metainfo) = (self.store().clone(), Arc::new(metainfo));
        let put = tokio::task::spawn_blocking(move || store.put_bytes(&metainfo, None, &bytes)).await;
        match put {
            Ok(Ok(())) => {}
            Ok(Err(shoal_store::PutError::NoSpace(error))) => {
                return Err(FinishError::NoSpace(error.to_string()));
            }
            Ok(Err(error)) => return Err(FinishError::Store(error.to_string())),
            Err(error) => return Err(FinishError::Store(error.to_string())),
        }
        self.keep_safe(digest, Some(repository.clone())).await?;
        self.keep_contents(repository, &contents).await?;
        self.records().write(manifest_key(repository, digest), Some(value.clone())).await?;
        if let Some(tag) = tag {
            // What only referrers lists need is in the manifest's record; a tag's stays small enough for gossip.
            let value =
                RecordValue { subject: None, artifact_type: None, annotations: Default::default(), ..value };
            self.records().write(tag_key(repository, tag), Some(value)).await?;
        }
        Ok(())
    }

    /// Sees to it that garbage collection keeps what a manifest refers to, and that origins have it: what a client did not
    /// push because it was here may be a copy of what is deleted.
    async fn keep_contents(
        &self,
        repository: &RepositoryName,
        contents: &Contents,
    ) -> Result<(), FinishError> {
        let all: Vec<Digest> = contents.manifests.iter().chain(&contents.blobs).copied().collect();
        self.retain(&all).await;
        let checks = all.into_iter().map(|digest| async move {
            if !matches!(self.ask_owners(digest, Some(repository), true).await, Some(Found::Absent)) {
                return Ok(());
            }
            let store = self.store().clone();
            let here = blocking(move || store.lookup(&digest)).await.map_err(FinishError::Store)?;
            if !here.is_some_and(|entry| entry.complete) {
                // It was seen a moment ago: somebody has a copy, or it is being deleted.
                let mut copy = self.driver().open(digest, ReaderWant::Whole).await;
                copy.done().await.map_err(|_| {
                    FinishError::Unsafe(format!("{digest} has just been deleted: push it again"))
                })?;
            }
            self.keep_safe(digest, Some(repository.clone())).await.map_err(FinishError::from)
        });
        let mut checks = futures::stream::iter(checks.collect::<Vec<_>>()).buffer_unordered(CHECKS);
        while let Some(checked) = checks.next().await {
            checked?;
        }
        drop(checks);
        for child in &contents.manifests {
            let seen = self.records().read(&manifest_key(repository, *child)).await?;
            if seen.is_deleted() && !seen.stale {
                let why = format!("the manifest {child} has just been deleted: push it again");
                return Err(FinishError::Unsafe(why));
            }
        }
        Ok(())
    }

    /// Deletes a tag; `false` when there is none.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn delete_tag(&self, repository: &RepositoryName, tag: &TagName) -> Result<bool, RecordError> {
        self.delete_record(tag_key(repository, tag)).await
    }

    /// Deletes a manifest and every tag that names it; `false` when there is none.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn delete_manifest(
        &self,
        repository: &RepositoryName,
        digest: Digest,
    ) -> Result<bool, RecordError> {
        let mut after = None;
        loop {
            let page = self.records().list(repository, &Listing::Tags, after, PAGE_MAX as usize).await?;
            for record in &page {
                let record = record.value();
                if record.value.as_ref().is_some_and(|value| value.digest == digest) {
                    self.records().write(record.key.clone(), None).await?;
                }
            }
            match page.last() {
                Some(last) if page.len() == PAGE_MAX as usize => after = Some(last.value().key.kind.clone()),
                _ => break,
            }
        }
        self.delete_record(manifest_key(repository, digest)).await
    }

    /// Takes a blob out of a repository. Its bytes stay where other repositories may need them.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn delete_blob(&self, repository: &RepositoryName, digest: Digest) -> Result<(), RecordError> {
        let key = RecordKey { repository: repository.clone(), kind: RecordKind::Blob(digest) };
        self.records().write(key, None).await.map(|_| ())
    }

    /// Whether a blob was deleted from a repository, as far as can be told.
    pub async fn is_blob_deleted(&self, repository: &RepositoryName, digest: Digest) -> bool {
        let key = RecordKey { repository: repository.clone(), kind: RecordKind::Blob(digest) };
        let remembered = self.records().remembered(&key).ok().flatten();
        match remembered {
            // Deletions are gossiped, so what is not remembered was not deleted while this process listened.
            Some(record) if record.value().value.is_none() => {
                self.records().read(&key).await.is_ok_and(|seen| seen.is_deleted())
            }
            Some(_) => false,
            None => self.records().read(&key).await.is_ok_and(|seen| seen.is_deleted()),
        }
    }

    async fn delete_record(&self, key: RecordKey) -> Result<bool, RecordError> {
        if self.records().read(&key).await?.value().is_none() {
            return Ok(false);
        }
        self.records().write(key, None).await?;
        Ok(true)
    }

    /// Reads a register; while no owner answers and nobody knows it, again until patience is out.
    async fn read_patiently(&self, key: &RecordKey) -> Result<Seen, ManifestError> {
        let deadline = tokio::time::Instant::now() + self.config().search_patience;
        loop {
            let seen = self.records().read(key).await.map_err(store_error)?;
            if !seen.stale || seen.record.is_some() {
                return Ok(seen);
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(ManifestError::Unavailable(
                    "no owner of the repository can be reached".to_owned(),
                ));
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// The media type a manifest states, or the one its shape tells.
pub(crate) fn media_type_of(bytes: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    if let Some(stated) = value.get("mediaType").and_then(|stated| stated.as_str()) {
        return Some(stated.to_owned());
    }
    // OCI image specification: mediaType is optional in both, the property sets are disjoint.
    if value.get("manifests").is_some() {
        Some("application/vnd.oci.image.index.v1+json".to_owned())
    } else if value.get("layers").is_some() {
        Some("application/vnd.oci.image.manifest.v1+json".to_owned())
    } else {
        None
    }
}

pub(super) fn tag_key(repository: &RepositoryName, tag: &TagName) -> RecordKey {
    RecordKey { repository: repository.clone(), kind: RecordKind::Tag(tag.clone()) }
}

fn manifest_key(repository: &RepositoryName, digest: Digest) -> RecordKey {
    RecordKey { repository: repository.clone(), kind: RecordKind::Manifest(digest) }
}

fn store_error(error: RecordError) -> ManifestError {
    match error {
        RecordError::Ledger(error) => ManifestError::Store(error.to_string()),
        other => ManifestError::Unavailable(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_are_stated_or_told_by_shape() {
        assert_eq!(media_type_of(br#"{"mediaType":"x/y"}"#).as_deref(), Some("x/y"));
        let index = media_type_of(br#"{"schemaVersion":2,"manifests":[]}"#);
        assert_eq!(index.as_deref(), Some("application/vnd.oci.image.index.v1+json"));
        assert_eq!(media_type_of(b"{}"), None);
        assert_eq!(media_type_of(b"not json"), None);
    }
}
