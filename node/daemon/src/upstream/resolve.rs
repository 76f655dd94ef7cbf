//! What a registry's tags and digests name.

use std::collections::BTreeMap;

use shoal_origin::{BackendError, Content, Member, UpstreamManifest};
use shoal_types::{RecordKey, RecordKind, RecordValue, Reference, RepositoryName};

use super::{SOURCE_ANNOTATION, SourceError};
use crate::calls::failed;
use crate::node::Node;
use crate::rpc::{Answer, Fetched, Request};

impl Node {
    /// Answers a question about what is pulled through.
    pub(crate) async fn answer_upstream(&self, request: Request) -> Answer {
        let answered = match request {
            Request::ResolveUpstream { key } => {
                let resolved = self.resolve_upstream(&key).await;
                resolved.map(|(value, stale)| {
                    let record = self.records().remembered(&key).ok().flatten();
                    let record = record.filter(|record| record.value().value == value).map(Box::new);
                    Answer::Upstream { value, stale, record }
                })
            }
            Request::FetchUpstream { digest, repository, manifest, look } => {
                let content = if manifest { Content::Manifest } else { Content::Blob };
                self.fetch_upstream(digest, &repository, content, look).await.map(Answer::Fetched)
            }
            _ => Err(SourceError::NoSource),
        };
        answered.unwrap_or_else(|error| failed(error.failure(), error.to_string()))
    }

    /// The source that this process, as an origin, pulls a repository through from.
    pub(crate) fn source_of(&self, repository: &RepositoryName) -> Option<&Member> {
        self.vault().and_then(|vault| vault.source(repository))
    }

    /// What the registry names by `key`, and whether it could not be asked just now.
    async fn resolve_upstream(&self, key: &RecordKey) -> Result<(Option<RecordValue>, bool), SourceError> {
        let source = self.source_of(&key.repository).ok_or(SourceError::NoSource)?;
        // However many ask, the registry is asked once.
        self.upstreams().asking.alone(key, self.resolve_alone(key, source)).await
    }

    async fn resolve_alone(
        &self,
        key: &RecordKey,
        source: &Member,
    ) -> Result<(Option<RecordValue>, bool), SourceError> {
        let seen = self.records().read(key).await;
        let seen = seen.map_err(|error| SourceError::Unavailable(error.to_string()))?;
        let known = seen.value().cloned();
        let reference = match &key.kind {
            RecordKind::Tag(tag) => Reference::Tag(tag.clone()),
            // It never changes.
            RecordKind::Manifest(_) | RecordKind::Blob(_) if known.is_some() => return Ok((known, false)),
            RecordKind::Manifest(digest) | RecordKind::Blob(digest) => Reference::Digest(*digest),
        };
        if self.upstreams().just_checked(key, source.max_age) == Some(known.is_some()) {
            return Ok((known, false));
        }
        let asked = match self.ask_registry(source, &key.repository, &reference).await {
            Ok(Some(found)) => self.take_in(key, known.as_ref(), found, source).await.map(Some),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        match (asked, known) {
            (Ok(value), known) => {
                if value.is_none() && known.is_some() {
                    self.write_down(key, None).await;
                }
                self.upstreams().note_checked(key, value.is_some());
                Ok((value, false))
            }
            (Err(error), Some(known)) => {
                tracing::warn!(%key, %error, "the registry cannot be asked: the last known answer is given");
                Ok((Some(known), true))
            }
            (Err(error), None) => Err(error),
        }
    }

    async fn ask_registry(
        &self,
        source: &Member,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Option<UpstreamManifest>, SourceError> {
        let name = source.backend.describe();
        if self.upstreams().is_down(&name) {
            return Err(SourceError::Unavailable(format!("{name} did not answer a moment ago")));
        }
        match source.backend.resolve(repository, reference).await {
            Ok(found) => {
                self.upstreams().note_up(&name);
                Ok(found)
            }
            Err(error @ BackendError::Denied { .. }) => Err(SourceError::Denied(error.to_string())),
            Err(error) => {
                if error.is_retryable() {
                    self.upstreams().note_down(name);
                }
                Err(SourceError::Unavailable(error.to_string()))
            }
        }
    }

    /// Has a manifest that the registry names, and remembers it.
    async fn take_in(
        &self,
        key: &RecordKey,
        known: Option<&RecordValue>,
        found: UpstreamManifest,
        source: &Member,
    ) -> Result<RecordValue, SourceError> {
        if let Some(known) = known.filter(|known| known.digest == found.digest) {
            return Ok(known.clone());
        }
        let unavailable = |why: String| SourceError::Unavailable(why);
        let manifest =
            RecordKey { repository: key.repository.clone(), kind: RecordKind::Manifest(found.digest) };
        let recorded =
            self.records().read(&manifest).await.map_err(|error| unavailable(error.to_string()))?;
        let value = match recorded.value() {
            Some(value) => value.clone(),
            None => {
                let fetched =
                    self.fetch_from_source(&key.repository, found.digest, Content::Manifest).await?;
                let Fetched::Here(size) = fetched else {
                    return Err(unavailable(format!(
                        "the registry names {} and does not have it",
                        found.digest
                    )));
                };
                let value = RecordValue {
                    digest: found.digest,
                    media_type: found.media_type,
                    size,
                    subject: None,
                    artifact_type: None,
                    annotations: BTreeMap::from([(SOURCE_ANNOTATION.to_owned(), source.backend.describe())]),
                };
                self.write_down(&manifest, Some(&value)).await;
                value
            }
        };
        if matches!(key.kind, RecordKind::Tag(_)) {
            self.write_down(key, Some(&value)).await;
        }
        Ok(value)
    }

    /// Remembers what the registry says. It holds whether it is remembered or not.
    async fn write_down(&self, key: &RecordKey, value: Option<&RecordValue>) {
        if let Err(error) = self.records().write(key.clone(), value.cloned()).await {
            tracing::warn!(%key, %error, "what a registry says is not remembered");
        }
    }
}
