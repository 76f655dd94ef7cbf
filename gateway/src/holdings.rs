//! Which blobs a repository holds, for a gateway that does not let everybody read everything.
//!
//! Content is shared by all repositories of the mesh, and a digest is no secret: without this, whoever may read one
//! repository could read every blob, cached or not. A blob is a repository's when it was pushed or mounted there (its
//! record says so), or when one of the repository's manifests refers to it; a manifest is accepted only when the
//! repository holds all that it refers to, so neither way can be used to reach for somebody else's.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use indexmap::IndexSet;
use parking_lot::Mutex;
use shoal_daemon::node::{ManifestError, Node};
use shoal_daemon::records::service::RecordError;
use shoal_daemon::rpc::{Listing, PAGE_MAX};
use shoal_types::{Digest, RecordKey, RecordKind, RepositoryName};

use crate::manifest::Manifest;

/// Holdings remembered; the first found gives way.
const KNOWN_MAX: usize = 262_144;
/// Manifests of a repository that are looked through for a blob that has no record of its own: one that was pushed
/// through a gateway that lets everybody read.
const MANIFESTS_MAX: usize = 4096;
/// Manifests read at once.
const READS_MAX: usize = 8;

/// It cannot be told now.
#[derive(Debug)]
pub(crate) struct Unsure;

/// A memory of what was found. Holdings only grow: what was deleted, the mesh itself refuses.
#[derive(Default)]
pub(crate) struct Holdings {
    blobs: Mutex<IndexSet<(RepositoryName, Digest)>>,
    manifests: Mutex<IndexSet<(RepositoryName, Digest)>>,
}

fn remember(known: &Mutex<IndexSet<(RepositoryName, Digest)>>, repository: &RepositoryName, digest: Digest) {
    let mut known = known.lock();
    if known.len() >= KNOWN_MAX {
        known.shift_remove_index(0);
    }
    known.insert((repository.clone(), digest));
}

impl Holdings {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A blob was pushed to or mounted into `repository`.
    pub(crate) fn note_blob(&self, repository: &RepositoryName, digest: Digest) {
        remember(&self.blobs, repository, digest);
    }

    /// `bytes` is a manifest of `repository`: what it refers to is the repository's.
    pub(crate) fn note_manifest(&self, repository: &RepositoryName, digest: Digest, bytes: &[u8]) {
        if self.manifests.lock().contains(&(repository.clone(), digest)) {
            return;
        }
        if let Ok(manifest) = Manifest::parse(bytes, None) {
            for reference in &manifest.references {
                remember(&self.blobs, repository, *reference.digest());
            }
        }
        remember(&self.manifests, repository, digest);
    }

    fn knows(&self, repository: &RepositoryName, digest: &Digest) -> bool {
        self.blobs.lock().contains(&(repository.clone(), *digest))
    }

    /// Whether `repository` holds the blob.
    pub(crate) async fn holds(
        &self,
        node: &Node,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<bool, Unsure> {
        if self.knows(repository, digest) {
            return Ok(true);
        }
        for kind in [RecordKind::Blob(*digest), RecordKind::Manifest(*digest)] {
            let key = RecordKey { repository: repository.clone(), kind };
            let seen = node.records().read(&key).await.map_err(|_| Unsure)?;
            if seen.value().is_some() {
                self.note_blob(repository, *digest);
                return Ok(true);
            }
            if seen.is_deleted() {
                return Ok(false);
            }
        }
        self.look_through(node, repository).await?;
        Ok(self.knows(repository, digest))
    }

    /// Reads the repository's manifests that have not been read yet.
    async fn look_through(&self, node: &Node, repository: &RepositoryName) -> Result<(), Unsure> {
        let (mut after, mut seen) = (None, 0);
        while seen < MANIFESTS_MAX {
            let page = node.records().list(repository, &Listing::Manifests, after, PAGE_MAX as usize).await;
            let page = page.map_err(|error: RecordError| {
                tracing::debug!(%repository, %error, "a repository's manifests cannot be listed");
                Unsure
            })?;
            let digests = page.iter().filter_map(|record| match record.value().key.kind {
                RecordKind::Manifest(digest) => Some(digest),
                _ => None,
            });
            let unread: Vec<Digest> = digests
                .filter(|digest| !self.manifests.lock().contains(&(repository.clone(), *digest)))
                .collect();
            let reads = unread.into_iter().map(|digest| self.read_one(node, repository, digest));
            stream::iter(reads.collect::<Vec<_>>())
                .buffer_unordered(READS_MAX)
                .try_collect::<Vec<()>>()
                .await?;
            seen += page.len();
            match page.last() {
                Some(last) if page.len() == PAGE_MAX as usize => after = Some(last.value().key.kind.clone()),
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    async fn read_one(&self, node: &Node, repository: &RepositoryName, digest: Digest) -> Result<(), Unsure> {
        match node.read_manifest_of(repository, digest).await {
            Ok(bytes) => {
                self.note_manifest(repository, digest, &bytes);
                Ok(())
            }
            // Its bytes are lost, so nobody can pull by it either.
            Err(ManifestError::NotFound) => Ok(()),
            Err(_) => Err(Unsure),
        }
    }
}
