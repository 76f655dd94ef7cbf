//! `registry://`: images of another registry, read through (OCI distribution specification v1.1, "Pull").

use std::ops::Range;
use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Method, StatusCode};
use reqwest::{Client, Response};
use shoal_types::{Digest, RecordKey, Reference, RepositoryName};

use crate::backend::{
    Backend, BackendError, BlobFile, BlobStream, Content, Mark, StoredRecord, UpstreamManifest, of_range,
    range_len,
};
use crate::url::BackendUrl;
use crate::web;

mod auth;
mod credentials;
mod ecr;

use auth::Authenticator;
#[cfg(feature = "fuzzing")]
pub(crate) use auth::fuzz_challenge;

/// Largest manifest that is read (distribution specification v1.1, "Pushing Manifests").
const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// The kinds of manifests there are; registries send what they like to those that name none.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Another registry.
#[derive(Debug)]
pub(crate) struct RegistryBackend {
    client: Client,
    /// `https://HOST:PORT`.
    base: String,
    described: String,
    /// What names here begin with and upstream's do not; without slashes around it.
    strip: String,
    /// What upstream's names begin with and names here do not; without slashes around it.
    prefix: String,
    namespace: Option<String>,
    auth: Authenticator,
}

impl RegistryBackend {
    /// The registry at `url`. Nothing is asked of it yet.
    ///
    /// # Errors
    /// [`BackendError::Invalid`].
    pub(crate) async fn open(url: &BackendUrl) -> Result<Self, BackendError> {
        let (host, prefix) = url.split_place();
        let scheme = if url.is_on("plain-http") { "http" } else { "https" };
        let client = web::client(url).await?;
        Ok(Self {
            auth: Authenticator::new(client.clone(), host, url),
            client,
            base: format!("{scheme}://{host}"),
            described: url.to_string(),
            strip: url.option("strip").unwrap_or_default().trim_matches('/').to_owned(),
            prefix: prefix.to_owned(),
            namespace: url.option("ns").map(str::to_owned),
        })
    }

    /// The repository's name upstream; `None` for one that upstream cannot have.
    fn name_of(&self, repository: &RepositoryName) -> Option<String> {
        let name = repository.as_str();
        let name =
            if self.strip.is_empty() { name } else { name.strip_prefix(&self.strip)?.strip_prefix('/')? };
        Some(if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) })
    }

    fn url(&self, name: &str, kind: &str, reference: &str) -> String {
        let namespace =
            self.namespace.as_ref().map(|namespace| format!("?ns={namespace}")).unwrap_or_default();
        format!("{}/v2/{name}/{kind}/{reference}{namespace}", self.base)
    }

    /// Sends a request, with credentials once the registry has asked for them.
    async fn ask(
        &self,
        method: Method,
        name: &str,
        (kind, reference): (&str, &str),
        range: Option<&Range<u64>>,
    ) -> Result<Response, BackendError> {
        let url = self.url(name, kind, reference);
        let what = format!("{method} {url}");
        let request = || {
            let request = self.client.request(method.clone(), &url);
            let request = if kind == "manifests" { request.header(ACCEPT, MANIFEST_TYPES) } else { request };
            match range {
                Some(range) => web::with_range(request, range),
                None => request,
            }
        };
        let known = self.auth.known(name);
        let answer = web::send(&what, auth::authorized(request(), known.as_deref())).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let fresh = self.auth.answer_challenge(name, &answer).await?;
        web::send(&what, auth::authorized(request(), Some(&fresh))).await
    }

    /// The same of a blob, or, where there is none, of the manifest of this digest; of a manifest in the other order.
    async fn ask_for(
        &self,
        method: Method,
        (digest, content): (&Digest, Content),
        repository: Option<&RepositoryName>,
        range: Option<&Range<u64>>,
    ) -> Result<Option<Response>, BackendError> {
        // A registry keeps blobs by repository: without one there is nothing to ask for.
        let Some(name) = repository.and_then(|repository| self.name_of(repository)) else { return Ok(None) };
        let reference = digest.to_string();
        let kinds = match content {
            Content::Blob => ["blobs", "manifests"],
            Content::Manifest => ["manifests", "blobs"],
        };
        for kind in kinds {
            let answer = self.ask(method.clone(), &name, (kind, &reference), range).await?;
            match answer.status() {
                StatusCode::NOT_FOUND => {}
                StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                    return Ok(Some(answer));
                }
                status => return Err(web::refused(&self.url(&name, kind, &reference), status)),
            }
        }
        Ok(None)
    }

    fn read_only(&self, what: &impl ToString) -> BackendError {
        BackendError::ReadOnly { what: what.to_string(), backend: self.describe() }
    }

    /// Reads a manifest to learn its digest: of a registry whose answers to HEAD do not name it.
    async fn read_manifest(
        &self,
        name: &str,
        reference: &Reference,
    ) -> Result<Option<UpstreamManifest>, BackendError> {
        let what = self.url(name, "manifests", &reference.to_string());
        let answer = self.ask(Method::GET, name, ("manifests", &reference.to_string()), None).await?;
        let media_type = media_type_of(&answer);
        let bytes = web::ranged_body(&what, answer, &(0..MANIFEST_BYTES_MAX)).await?;
        let digest = match reference {
            Reference::Digest(digest) => *digest,
            Reference::Tag(_) => Digest::sha256(&bytes),
        };
        Ok(Some(UpstreamManifest { digest, media_type, size: bytes.len() as u64 }))
    }
}

fn media_type_of(answer: &Response) -> String {
    let value = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_owned()
}

#[async_trait]
impl Backend for RegistryBackend {
    fn describe(&self) -> String {
        self.described.clone()
    }

    fn is_writable(&self) -> bool {
        false
    }

    fn has_conditional_writes(&self) -> bool {
        false
    }

    async fn probe(&self) -> Result<(), BackendError> {
        let url = format!("{}/v2/", self.base);
        let answer = web::send(&url, self.client.get(&url)).await?;
        match answer.status() {
            // Whether credentials are right shows with the first repository: registries differ in what they ask of
            // this endpoint.
            StatusCode::OK | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {
                Ok(())
            }
            status => Err(web::refused(&url, status)),
        }
    }

    async fn stat(
        &self,
        digest: &Digest,
        repository: Option<&RepositoryName>,
    ) -> Result<Option<u64>, BackendError> {
        match self.ask_for(Method::HEAD, (digest, Content::Blob), repository, None).await? {
            Some(answer) => web::size_of(&digest.to_string(), &answer).map(Some),
            None => Ok(None),
        }
    }

    async fn metainfo(&self, _: &Digest) -> Result<Option<Vec<u8>>, BackendError> {
        Ok(None)
    }

    async fn read_range(
        &self,
        digest: &Digest,
        repository: Option<&RepositoryName>,
        range: Range<u64>,
    ) -> Result<Bytes, BackendError> {
        let len = range_len(digest, &range)?;
        let not_found = || BackendError::NotFound { what: digest.to_string() };
        let beyond = || BackendError::invalid(of_range(digest, &range), "beyond its end");
        if len == 0 {
            let size = self.stat(digest, repository).await?.ok_or_else(not_found)?;
            return if range.end <= size { Ok(Bytes::new()) } else { Err(beyond()) };
        }
        let wanted = (digest, Content::Blob);
        let answer =
            self.ask_for(Method::GET, wanted, repository, Some(&range)).await?.ok_or_else(not_found)?;
        let bytes = web::ranged_body(&of_range(digest, &range), answer, &range).await?;
        if bytes.len() as u64 == len { Ok(bytes) } else { Err(beyond()) }
    }

    async fn open_blob<'a>(
        &'a self,
        digest: &Digest,
        repository: Option<&RepositoryName>,
        content: Content,
        offset: u64,
    ) -> Result<Option<BlobStream<'a>>, BackendError> {
        let rest = (offset > 0).then_some(offset..u64::MAX);
        let wanted = (digest, content);
        let answer = self.ask_for(Method::GET, wanted, repository, rest.as_ref()).await?;
        answer.map(|answer| web::stream_from(&digest.to_string(), answer, offset)).transpose()
    }

    async fn put(&self, digest: &Digest, _: &Path, _: u64, _: &[u8]) -> Result<(), BackendError> {
        Err(self.read_only(digest))
    }

    async fn delete(&self, digest: &Digest) -> Result<bool, BackendError> {
        Err(self.read_only(digest))
    }

    fn list_blobs(&self) -> BoxStream<'_, Result<BlobFile, BackendError>> {
        futures::stream::empty().boxed()
    }

    async fn get_record(&self, _: &RecordKey) -> Result<Option<StoredRecord>, BackendError> {
        Ok(None)
    }

    async fn put_record(&self, key: &RecordKey, _: &[u8], _: Option<&Mark>) -> Result<bool, BackendError> {
        Err(self.read_only(key))
    }

    async fn delete_record(&self, key: &RecordKey) -> Result<bool, BackendError> {
        Err(self.read_only(key))
    }

    fn list_records(&self) -> BoxStream<'_, Result<RecordKey, BackendError>> {
        futures::stream::empty().boxed()
    }

    async fn resolve(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Option<UpstreamManifest>, BackendError> {
        let Some(name) = self.name_of(repository) else { return Ok(None) };
        let answer = self.ask(Method::HEAD, &name, ("manifests", &reference.to_string()), None).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            status => {
                return Err(web::refused(&self.url(&name, "manifests", &reference.to_string()), status));
            }
        }
        let named = answer.headers().get("docker-content-digest");
        let named = named.and_then(|value| value.to_str().ok()?.parse::<Digest>().ok());
        let size = web::size_of("a manifest", &answer).ok();
        match (named, size) {
            (Some(digest), Some(size))
                if matches!(reference, Reference::Tag(_)) || *reference == Reference::Digest(digest) =>
            {
                Ok(Some(UpstreamManifest { digest, media_type: media_type_of(&answer), size }))
            }
            _ => self.read_manifest(&name, reference).await,
        }
    }
}

#[cfg(test)]
mod tests;
