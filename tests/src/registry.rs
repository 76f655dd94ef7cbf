//! The OCI distribution API as a client sees it: pushing and pulling with every byte checked.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, LOCATION};
use http::{Method, Request, StatusCode};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::http::{Answer, call, full, get, send};
use crate::image::{
    Blob, DOCKER_LIST, DOCKER_MANIFEST, Dialect, Image, OCI_INDEX, OCI_MANIFEST, digest_of, index_of,
};

/// One repository behind one gateway.
#[derive(Clone, Debug)]
pub struct Registry {
    /// The gateway.
    pub addr: SocketAddr,
    /// The repository's name.
    pub repository: String,
    /// The registry that what is pulled is of, as containerd tells a mirror.
    pub namespace: Option<String>,
}

impl Registry {
    /// Names a repository.
    pub fn new(addr: SocketAddr, repository: &str) -> Self {
        Self { addr, repository: repository.to_owned(), namespace: None }
    }

    /// The same repository of the registry `host`, for which the gateway stands in.
    #[must_use]
    pub fn of(self, host: &str) -> Self {
        Self { namespace: Some(host.to_owned()), ..self }
    }

    /// The reference a container client is given.
    pub fn reference(&self, tag: &str) -> String {
        format!("{}/{}:{tag}", self.addr, self.repository)
    }

    fn path(&self, rest: &str) -> String {
        format!("/v2/{}/{rest}", self.repository)
    }

    fn path_to_pull(&self, rest: &str) -> String {
        let namespace = self.namespace.as_ref().map(|host| format!("?ns={host}")).unwrap_or_default();
        self.path(rest) + &namespace
    }

    /// Uploads under a digest that may be wrong, with POST then PUT (distribution specification, "Pushing a blob
    /// monolithically"), and gives the answer to the PUT, or to the POST when that was refused.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn try_push_blob(&self, digest: &str, bytes: Bytes) -> Result<Answer> {
        let started = call(self.addr, Method::POST, &self.path("blobs/uploads/")).await?;
        if started.status != StatusCode::ACCEPTED {
            return Ok(started);
        }
        let location = location_of(&started)?;
        let separator = if location.contains('?') { '&' } else { '?' };
        let request = Request::builder()
            .method(Method::PUT)
            .uri(format!("{location}{separator}digest={digest}"))
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(full(bytes))?;
        send(self.addr, request).await
    }

    /// Uploads a blob and has it acknowledged.
    ///
    /// # Errors
    /// When it is not.
    pub async fn push_blob(&self, blob: &Blob) -> Result<()> {
        let answer = self.try_push_blob(&blob.digest, blob.bytes.clone()).await?;
        answer.expect(StatusCode::CREATED).await?;
        Ok(())
    }

    /// Uploads a manifest or an index under a tag or its digest.
    ///
    /// # Errors
    /// When it is not acknowledged.
    pub async fn push_manifest(&self, reference: &str, manifest: &Blob) -> Result<Answer> {
        let request = Request::builder()
            .method(Method::PUT)
            .uri(self.path(&format!("manifests/{reference}")))
            .header(CONTENT_TYPE, &manifest.media_type)
            .body(full(manifest.bytes.clone()))?;
        send(self.addr, request).await?.expect(StatusCode::CREATED).await
    }

    /// Uploads an image: blobs first, tag last.
    ///
    /// # Errors
    /// When a part of it is not acknowledged.
    pub async fn push_image(&self, tag: &str, image: &Image) -> Result<()> {
        for blob in image.blobs() {
            self.push_blob(blob).await?;
        }
        self.push_manifest(tag, &image.manifest).await?;
        Ok(())
    }

    /// Uploads images of several platforms under one tag.
    ///
    /// # Errors
    /// When a part of it is not acknowledged.
    pub async fn push_index(&self, tag: &str, images: &[Image], dialect: Dialect) -> Result<Blob> {
        for image in images {
            self.push_image(&image.manifest.digest, image).await?;
        }
        let index = index_of(images, dialect);
        self.push_manifest(tag, &index).await?;
        Ok(index)
    }

    /// GETs a blob, whatever the answer.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn blob(&self, digest: &str) -> Result<Answer> {
        get(self.addr, &self.path_to_pull(&format!("blobs/{digest}"))).await
    }

    /// GETs a manifest, whatever the answer.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn manifest(&self, reference: &str) -> Result<Answer> {
        let request = Request::builder()
            .method(Method::GET)
            .uri(self.path_to_pull(&format!("manifests/{reference}")))
            .header(ACCEPT, [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", "))
            .body(full(Bytes::new()))?;
        send(self.addr, request).await
    }

    /// Reads a blob to the end and checks its digest; gives its size.
    ///
    /// # Errors
    /// When it is not all there, or a [`WrongBytes`] when it is not what was asked for.
    pub async fn pull_blob(&self, digest: &str) -> Result<u64> {
        let mut answer = self.blob(digest).await?.expect(StatusCode::OK).await?;
        let announced: Option<u64> = answer.header("content-length").parse().ok();
        let (mut size, mut hash) = (0, Sha256::new());
        while let Some(part) = answer.part().await? {
            size += part.len() as u64;
            hash.update(&part);
        }
        let got = format!("sha256:{}", data_encoding::HEXLOWER.encode(&hash.finalize()));
        if got != digest || announced.is_some_and(|announced| announced != size) {
            bail!(WrongBytes { wanted: digest.to_owned(), got, size });
        }
        Ok(size)
    }

    /// Pulls everything that a tag or digest reaches and checks all of it; gives the bytes.
    ///
    /// # Errors
    /// When anything is missing, or a [`WrongBytes`] when it is not what was asked for.
    pub async fn pull(&self, reference: &str) -> Result<u64> {
        let mut total = 0;
        let mut queue = vec![reference.to_owned()];
        while let Some(reference) = queue.pop() {
            let answer = self.manifest(&reference).await?.expect(StatusCode::OK).await?;
            let digest = answer.header("docker-content-digest").to_owned();
            let bytes = answer.bytes().await?;
            let got = digest_of(&bytes);
            if got != digest || (reference.starts_with("sha256:") && got != reference) {
                bail!(WrongBytes {
                    wanted: format!("{reference} ({digest})"),
                    got,
                    size: bytes.len() as u64
                });
            }
            total += bytes.len() as u64;
            let manifest: Value = serde_json::from_slice(&bytes).context("a manifest that is not JSON")?;
            queue.extend(digests(&manifest["manifests"]));
            let config = manifest["config"]["digest"].as_str().map(str::to_owned);
            for blob in config.into_iter().chain(digests(&manifest["layers"])) {
                total += self.pull_blob(&blob).await.with_context(|| format!("blob of {reference}"))?;
            }
        }
        Ok(total)
    }

    /// The descriptors of what refers to a manifest.
    ///
    /// # Errors
    /// When the answer is no image index.
    pub async fn referrers(&self, digest: &str, query: &str) -> Result<Vec<Value>> {
        let path = self.path(&format!("referrers/{digest}{query}"));
        let answer = get(self.addr, &path).await?.expect(StatusCode::OK).await?;
        ensure!(
            answer.header("content-type") == OCI_INDEX,
            "referrers come as {}",
            answer.header("content-type")
        );
        let index = answer.json().await?;
        Ok(index["manifests"].as_array().context("an index without manifests")?.clone())
    }
}

/// Bytes that are not those asked for: what no test may ever see.
#[derive(Debug)]
pub struct WrongBytes {
    wanted: String,
    got: String,
    size: u64,
}

impl std::fmt::Display for WrongBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WRONG BYTES: asked for {}, got {} bytes of {}", self.wanted, self.size, self.got)
    }
}

impl std::error::Error for WrongBytes {}

/// The path and query of a `Location`, which may be relative or absolute.
///
/// # Errors
/// When there is none, or it is no URI.
pub fn location_of(answer: &Answer) -> Result<String> {
    let location = answer.headers.get(LOCATION).context("an upload without Location")?.to_str()?;
    let uri: http::Uri = location.parse()?;
    Ok(uri.path_and_query().context("a Location without a path")?.to_string())
}

fn digests(descriptors: &Value) -> Vec<String> {
    let list = descriptors.as_array().into_iter().flatten();
    list.filter_map(|descriptor| descriptor["digest"].as_str().map(str::to_owned)).collect()
}
