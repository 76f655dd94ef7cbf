//! A tiny HTTP client, and what cases do again and again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use shoal_types::Digest;
use tokio::net::TcpStream;

use super::check;

/// Most bytes of an answer.
const REPLY_BYTES_MAX: usize = 64 << 20;
/// Longest wait for an answer.
const REPLY_TIME_MAX: Duration = Duration::from_secs(60);

/// OCI image manifest.
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A registry under test.
#[derive(Clone, Debug)]
pub struct Registry {
    authority: String,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: http::HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Reply {
    /// A header's value, empty when it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as JSON, `null` when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// Checks the status.
    ///
    /// # Errors
    /// Another status, with the body.
    pub fn expect_status(self, status: u16) -> Result<Self, String> {
        if self.status == status {
            return Ok(self);
        }
        let body = String::from_utf8_lossy(&self.body).chars().take(500).collect::<String>();
        Err(format!("status {} instead of {status}: {body}", self.status))
    }

    /// Checks the status and that the body carries an error with `code`.
    ///
    /// # Errors
    /// Anything else.
    pub fn expect_error(self, status: u16, code: &str) -> Result<Self, String> {
        let own = self.expect_status(status)?;
        let errors = own.json();
        let codes: Vec<&str> =
            errors["errors"].as_array().into_iter().flatten().filter_map(|e| e["code"].as_str()).collect();
        check!(codes.contains(&code), "{code} not in {codes:?}");
        check!(own.header("content-type") == "application/json", "{:?}", own.headers);
        Ok(own)
    }
}

impl Registry {
    /// The registry at `base_url`, such as `http://127.0.0.1:5000`; only plain HTTP.
    pub fn new(base_url: &str) -> Self {
        let authority = base_url.trim_start_matches("http://").trim_end_matches('/');
        Self { authority: authority.to_owned() }
    }

    /// A repository name nobody has used.
    pub fn fresh_repository(&self) -> String {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        format!("conformance/r{nanos:x}-{:x}", COUNT.fetch_add(1, Ordering::Relaxed))
    }

    /// Sends one request on a connection of its own. `path` may also be an absolute URL of this registry.
    ///
    /// # Errors
    /// A text that says what failed on the way.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Reply, String> {
        let exchange = self.exchange(method, path, headers, body.into());
        let reply = tokio::time::timeout(REPLY_TIME_MAX, exchange).await;
        reply
            .map_err(|_| "no answer in time".to_owned())?
            .map_err(|error| format!("{method} {path}: {error}"))
    }

    async fn exchange(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Reply, Box<dyn std::error::Error + Send + Sync>> {
        let path = path.strip_prefix(&format!("http://{}", self.authority)).unwrap_or(path);
        let stream = TcpStream::connect(&self.authority).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let mut request = Request::builder()
            .method(Method::from_bytes(method.as_bytes())?)
            .uri(path)
            .header("host", &self.authority)
            .header("connection", "close");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = sender.send_request(request.body(Full::new(body))?).await?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, REPLY_BYTES_MAX).collect().await?.to_bytes();
        driver.abort();
        Ok(Reply { status: head.status.as_u16(), headers: head.headers, body })
    }

    /// GET.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn get(&self, path: &str) -> Result<Reply, String> {
        self.send("GET", path, &[], "").await
    }

    /// Begins an upload and returns its location.
    pub(crate) async fn begin(&self, repository: &str) -> Result<String, String> {
        let reply = self
            .send("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], "")
            .await?
            .expect_status(202)?;
        check!(!reply.header("location").is_empty(), "no Location in {:?}", reply.headers);
        Ok(reply.header("location").to_owned())
    }

    /// Sends a chunk to an upload. `range` is the value of `Content-Range`.
    pub(crate) async fn patch(
        &self,
        location: &str,
        range: &str,
        chunk: &'static [u8],
    ) -> Result<Reply, String> {
        let headers = [("content-range", range), ("content-type", "application/octet-stream")];
        self.send("PATCH", location, &headers, chunk).await
    }

    /// Pushes a blob.
    ///
    /// # Errors
    /// What went wrong.
    pub async fn push_blob(&self, repository: &str, content: &[u8]) -> Result<Digest, String> {
        let digest = Digest::sha256(content);
        let location = self.begin(repository).await?;
        let path = with_query(&location, &format!("digest={digest}"));
        self.send("PUT", &path, &[], content.to_vec()).await?.expect_status(201)?;
        Ok(digest)
    }

    /// Pushes a manifest as it is and returns the answer.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn put_manifest(
        &self,
        repository: &str,
        reference: &str,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> Result<Reply, String> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        self.send("PUT", &path, &[("content-type", media_type)], bytes).await
    }

    /// Pushes a config and a layer and returns a manifest of them, distinct by `seed`.
    ///
    /// # Errors
    /// What went wrong.
    pub async fn image(&self, repository: &str, seed: &str) -> Result<Value, String> {
        let config = json!({ "seed": seed }).to_string();
        let layer = format!("layer of {seed}");
        self.push_blob(repository, config.as_bytes()).await?;
        self.push_blob(repository, layer.as_bytes()).await?;
        Ok(json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes()),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer.as_bytes())],
        }))
    }

    /// Pushes an OCI image under a tag and returns its manifest's bytes.
    ///
    /// # Errors
    /// What went wrong.
    pub async fn push_image(&self, repository: &str, tag: &str) -> Result<String, String> {
        let manifest = self.image(repository, tag).await?.to_string();
        self.put_manifest(repository, tag, OCI_MANIFEST, manifest.clone()).await?.expect_status(201)?;
        Ok(manifest)
    }
}

/// A descriptor of `content`.
pub(crate) fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::sha256(content), "size": content.len()})
}

/// `location` with another query parameter.
pub(crate) fn with_query(location: &str, query: &str) -> String {
    let separator = if location.contains('?') { '&' } else { '?' };
    format!("{location}{separator}{query}")
}
