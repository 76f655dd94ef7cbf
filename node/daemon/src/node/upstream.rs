//! Images of other registries, at whoever wants them: an owner is asked, which asks the registry.

use std::time::Duration;

use futures::future::BoxFuture;
use shoal_net::control::Origin;
use shoal_origin::Content;
use shoal_types::{Digest, RecordKey, RecordKind, RecordValue, Reference, RepositoryName};

use super::images::tag_key;
use super::{ManifestError, Node, Resolved};
use crate::links::AskError;
use crate::rpc::{Answer, Failure, Fetched, Request};
use crate::upstream::{SOURCE_ANNOTATION, SourceError};

/// Owners asked one after the other.
const OWNERS_ASKED: usize = 4;
/// How long an owner may take to ask a registry: a token, a look and a manifest, each with its own time-out.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an owner may take to say how far a fetch is: what it waits for it, and a look into its store.
const FETCH_TIMEOUT: Duration = Duration::from_secs(20);

impl Node {
    /// Whether a repository is of a registry that this process is told of in `upstream`.
    pub fn is_mirrored(&self, repository: &RepositoryName) -> bool {
        self.upstreams().rules().iter().any(|rule| rule.owns(repository))
    }

    /// Whether a blob that is complete here may count as one of `repository`'s: what is only cached of another registry
    /// is not the mesh's own.
    pub(super) async fn counts_for(&self, digest: Digest, repository: Option<&RepositoryName>) -> bool {
        let foreign = repository
            .is_some_and(|repository| self.is_mirrored(repository) || self.source_of(repository).is_some());
        foreign || !self.upstreams().is_cached(digest).await
    }

    /// What a registry names by `reference`.
    pub(super) async fn resolve_mirrored(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Resolved, ManifestError> {
        let key = key_of(repository, reference);
        if let Reference::Digest(_) = reference
            && let Some(value) = self.remembered_value(&key)?
        {
            return Ok(Resolved { value, stale: false });
        }
        match self.resolve_at_source(&key).await {
            Ok(Some((value, stale))) => Ok(Resolved { value, stale }),
            Ok(None) => Err(ManifestError::NotFound),
            Err(SourceError::Denied(why)) => Err(ManifestError::Denied(why)),
            Err(error) => {
                // Those who would ask the registry cannot be reached: what is known, if anything.
                let seen = self.records().read(&key).await;
                let seen = seen.map_err(|error| ManifestError::Store(error.to_string()))?;
                match (seen.value(), reference) {
                    (Some(value), _) => Ok(Resolved { value: value.clone(), stale: true }),
                    (None, Reference::Digest(digest)) if !seen.is_deleted() => self
                        .described_by_itself(*digest)
                        .await
                        .map_err(|_| ManifestError::Unavailable(error.to_string())),
                    (None, _) => Err(ManifestError::Unavailable(error.to_string())),
                }
            }
        }
    }

    fn remembered_value(&self, key: &RecordKey) -> Result<Option<RecordValue>, ManifestError> {
        let remembered = self.records().remembered(key);
        let remembered = remembered.map_err(|error| ManifestError::Store(error.to_string()))?;
        Ok(remembered.and_then(|record| record.value().value.clone()))
    }

    /// What a registry names, and whether that is what it said last; `None` when it has no such manifest.
    pub(super) async fn resolve_at_source(
        &self,
        key: &RecordKey,
    ) -> Result<Option<(RecordValue, bool)>, SourceError> {
        let request = Request::ResolveUpstream { key: key.clone() };
        let owners = self.discovery().repository_owners(&key.repository);
        match self.ask_owners_of_source(&owners, &request, RESOLVE_TIMEOUT).await? {
            Answer::Upstream { value, stale, record } => {
                if let Some(record) = record.filter(|record| record.value().key == *key) {
                    self.records().note_change(&record);
                }
                Ok(value.map(|value| (value, stale)))
            }
            _ => Err(SourceError::Unavailable("an origin gave an answer to another question".to_owned())),
        }
    }

    /// Has an owner fetch a blob from its registry, and waits for it.
    pub(crate) async fn fetch_from_source(
        &self,
        repository: &RepositoryName,
        digest: Digest,
        content: Content,
    ) -> Result<Fetched, SourceError> {
        let request = Request::FetchUpstream {
            digest,
            repository: repository.clone(),
            manifest: content == Content::Manifest,
            look: false,
        };
        loop {
            let owners = self.discovery().blob_owners(&digest);
            match self.ask_owners_of_source(&owners, &request, FETCH_TIMEOUT).await? {
                // It came further meanwhile, or it is given up there.
                Answer::Fetched(Fetched::Underway) => {}
                Answer::Fetched(fetched) => return Ok(fetched),
                _ => {
                    let why = "an origin gave an answer to another question";
                    return Err(SourceError::Unavailable(why.to_owned()));
                }
            }
        }
    }

    /// The answer of the first owner that can give one.
    async fn ask_owners_of_source(
        &self,
        owners: &[Origin],
        request: &Request,
        timeout: Duration,
    ) -> Result<Answer, SourceError> {
        let mut failed = match owners {
            [] => SourceError::Unavailable("no origin is known".to_owned()),
            _ => SourceError::NoSource,
        };
        for owner in owners.iter().take(OWNERS_ASKED) {
            let answer = if owner.peer == self.peer_id() {
                Ok(self.answer_upstream_here(request.clone()).await)
            } else {
                self.links().ask(owner.peer, &owner.endpoints, request, timeout).await
            };
            failed = match answer {
                Ok(Answer::Failed { kind, message }) | Err(AskError::Failed { kind, message, .. }) => {
                    match kind {
                        // One that does not pull it through, or is too old to know what that is.
                        Failure::Refused => continue,
                        Failure::Denied => SourceError::Denied(message),
                        _ => SourceError::Unavailable(message),
                    }
                }
                Ok(answer) => return Ok(answer),
                Err(error) => SourceError::Unavailable(error.to_string()),
            };
        }
        Err(failed)
    }

    /// Boxed: an owner of a repository asks the owners of its manifests in turn.
    fn answer_upstream_here(&self, request: Request) -> BoxFuture<'_, Answer> {
        Box::pin(self.answer_upstream(request))
    }
}

/// Whether a record came from another registry.
pub(super) fn is_from_source(value: &RecordValue) -> bool {
    value.annotations.contains_key(SOURCE_ANNOTATION)
}

pub(super) fn key_of(repository: &RepositoryName, reference: &Reference) -> RecordKey {
    match reference {
        Reference::Tag(tag) => tag_key(repository, tag),
        Reference::Digest(digest) => {
            RecordKey { repository: repository.clone(), kind: RecordKind::Manifest(*digest) }
        }
    }
}
