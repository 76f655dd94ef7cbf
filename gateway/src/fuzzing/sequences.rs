//! Arbitrary sequences of OCI requests, over HTTP, against a model: what the gateway should answer if it were a few maps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use http::header::{CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use shoal_types::Digest;

use crate::config::GatewayConfig;
use crate::memory::MemoryMesh;
use crate::metrics::GatewayMetrics;
use crate::server::{Gateway, serve_stream};

/// Operations of a sequence.
const OPERATIONS_MAX: usize = 48;
/// Bytes of an operation: which, on what, how.
const OPERATION_BYTES: usize = 3;
const REPOSITORIES: [&str; 2] = ["one", "team/two"];
const TAGS: [&str; 3] = ["1", "latest", "v2"];
const UNKNOWN_UPLOAD: &str = "blobs/uploads/00000000-0000-4000-8000-ffffffffffff";
const PIPE_BYTES: usize = 64 << 10;

/// What is pushed and asked for.
struct Universe {
    blobs: [Bytes; 4],
    manifests: [Pushed; 4],
}

struct Pushed {
    bytes: Bytes,
    digest: Digest,
    media_type: &'static str,
    blobs: Vec<Digest>,
    manifests: Vec<Digest>,
    subject: Option<Digest>,
}

static UNIVERSE: LazyLock<Universe> = LazyLock::new(|| {
    let blobs = [&b""[..], b"one", b"two and two", &[7; 3000]].map(Bytes::copy_from_slice);
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let descriptor = |kind: &str, bytes: &Bytes| serde_json::json!({ "mediaType": kind, "digest": Digest::sha256(bytes), "size": bytes.len() });
    let image = |config: usize, layer: usize, subject: Option<&Pushed>| {
        let mut document = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": kind,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &blobs[config]),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &blobs[layer])],
        });
        if let Some(subject) = subject {
            document["subject"] = descriptor(kind, &subject.bytes);
        }
        let bytes = Bytes::from(document.to_string());
        Pushed {
            digest: Digest::sha256(&bytes),
            bytes,
            media_type: kind,
            blobs: [config, layer].map(|at| Digest::sha256(&blobs[at])).to_vec(),
            manifests: vec![],
            subject: subject.map(|subject| subject.digest),
        }
    };
    let (first, second) = (image(1, 2, None), image(1, 3, None));
    let third = image(0, 2, Some(&first));
    let list = "application/vnd.oci.image.index.v1+json";
    let index = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": list,
        "manifests": [descriptor(kind, &first.bytes), descriptor(kind, &second.bytes)],
    });
    let bytes = Bytes::from(index.to_string());
    let index = Pushed {
        digest: Digest::sha256(&bytes),
        bytes,
        media_type: list,
        blobs: vec![],
        manifests: vec![first.digest, second.digest],
        subject: None,
    };
    Universe { blobs, manifests: [first, second, third, index] }
});

#[derive(Default)]
struct Repository {
    /// Something was ever in it.
    known: bool,
    blobs: BTreeMap<Digest, Bytes>,
    manifests: BTreeMap<Digest, usize>,
    tags: BTreeMap<&'static str, Digest>,
}

struct Upload {
    repository: usize,
    path: String,
    bytes: Vec<u8>,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: impl http::header::AsHeaderName) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

struct Client {
    send: SendRequest<Full<Bytes>>,
    repositories: [Repository; 2],
    uploads: Vec<Upload>,
}

/// Plays one sequence.
///
/// # Panics
/// When the gateway answers otherwise than the model.
pub fn play(data: &[u8]) {
    thread_local! {
        static RUNTIME: Option<tokio::runtime::Runtime> =
            tokio::runtime::Builder::new_current_thread().enable_all().build().ok();
    }
    RUNTIME.with(|runtime| {
        if let Some(runtime) = runtime {
            runtime.block_on(play_all(data));
        }
    });
}

async fn play_all(data: &[u8]) {
    let gateway =
        Gateway::new(Arc::new(MemoryMesh::new()), GatewayConfig::default(), GatewayMetrics::default());
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let server = tokio::spawn(async move { serve_stream(theirs, Arc::new(gateway)).await });
    let Ok((send, connection)) = http1::handshake(TokioIo::new(ours)).await else { return };
    let connection = tokio::spawn(connection);
    let mut client = Client { send, repositories: Default::default(), uploads: Vec::new() };
    for operation in data.chunks_exact(OPERATION_BYTES).take(OPERATIONS_MAX) {
        if let [which, what, how] = *operation {
            client.step(which, usize::from(what), usize::from(how)).await;
        }
    }
    drop(client);
    let _ = connection.await;
    server.abort();
}

impl Client {
    async fn step(&mut self, which: u8, what: usize, how: usize) {
        let (repository, item) = (what & 1, what >> 1 & 3);
        match which % 14 {
            0 => self.get_blob(repository, item, how).await,
            1 => self.push_at_once(repository, item, how & 1 == 0).await,
            2 => self.begin(repository).await,
            3 => self.append(what >> 3, item, how).await,
            4 => self.finish(what >> 3, item, how).await,
            5 => self.cancel(what >> 3).await,
            6 => self.progress(what >> 3).await,
            7 | 8 => self.put_manifest(repository, item, how).await,
            9 => self.get_manifest(repository, item, how).await,
            10 => self.delete(repository, item, how).await,
            11 => self.list(repository).await,
            12 => self.mount(repository, item, how).await,
            _ => self.nonsense(repository, what, how).await,
        }
    }

    async fn ask(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(http::HeaderName, String)],
        body: Bytes,
    ) -> Answer {
        let mut request = Request::builder().method(method.clone()).uri(path).header("host", "gateway");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body)).unwrap_or_default();
        let ready = self.send.ready().await;
        assert!(ready.is_ok(), "{method} {path}: the connection ended before: {ready:?}");
        let answer = self.send.send_request(request).await;
        let Ok(answer) = answer else { panic!("{method} {path}: {answer:?}") };
        let (head, body) = answer.into_parts();
        let body = body.collect().await;
        let Ok(body) = body else { panic!("{method} {path}: the body breaks off") };
        let answer = Answer { status: head.status, headers: head.headers, body: body.to_bytes() };
        assert_eq!(answer.header("docker-distribution-api-version"), "registry/2.0");
        assert!(!answer.status.is_server_error(), "{method} {path}: {}", answer.status);
        if method == Method::HEAD {
            assert!(answer.body.is_empty());
        } else if answer.status.is_client_error() {
            let error: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            assert!(error["errors"][0]["code"].is_string(), "{method} {path}: {:?}", answer.body);
        }
        answer
    }

    fn holds(&self, repository: usize, digest: &Digest) -> Option<Bytes> {
        let own = &self.repositories[repository];
        let manifest = || own.manifests.get(digest).map(|at| UNIVERSE.manifests[*at].bytes.clone());
        own.blobs.get(digest).cloned().or_else(manifest)
    }

    async fn get_blob(&mut self, repository: usize, item: usize, how: usize) {
        let digest = Digest::sha256(&UNIVERSE.blobs[item]);
        let path = format!("/v2/{}/blobs/{digest}", REPOSITORIES[repository]);
        let held = self.holds(repository, &digest);
        let method = if how & 1 == 0 { Method::GET } else { Method::HEAD };
        let (first, last) = (how >> 2 & 7, (how >> 2 & 7) + (how >> 5));
        let ranged = how & 3 == 2;
        let range = ranged.then(|| (RANGE, format!("bytes={first}-{last}")));
        let answer = self.ask(method.clone(), &path, range.as_slice(), Bytes::new()).await;
        let Some(bytes) = held else { return assert_eq!(answer.status, StatusCode::NOT_FOUND) };
        if ranged && first >= bytes.len() {
            let empty = bytes.is_empty() && answer.status == StatusCode::OK;
            return assert!(empty || answer.status == StatusCode::RANGE_NOT_SATISFIABLE, "{}", answer.status);
        }
        assert_eq!(answer.header("docker-content-digest"), digest.to_string());
        if ranged {
            assert_eq!(answer.status, StatusCode::PARTIAL_CONTENT);
            assert_eq!(answer.body, bytes.slice(first..bytes.len().min(last + 1)));
        } else {
            assert_eq!(answer.status, StatusCode::OK);
            assert_eq!(answer.header("content-length"), bytes.len().to_string());
            assert!(method == Method::HEAD || answer.body == bytes);
        }
    }

    fn keep(&mut self, repository: usize, bytes: Bytes) {
        let own = &mut self.repositories[repository];
        own.known = true;
        own.blobs.insert(Digest::sha256(&bytes), bytes);
    }

    async fn push_at_once(&mut self, repository: usize, item: usize, right: bool) {
        let bytes = UNIVERSE.blobs[item].clone();
        let digest = if right { Digest::sha256(&bytes) } else { Digest::sha256(b"something else") };
        let path = format!("/v2/{}/blobs/uploads/?digest={digest}", REPOSITORIES[repository]);
        let answer = self.ask(Method::POST, &path, &[], bytes.clone()).await;
        assert_eq!(answer.status, if right { StatusCode::CREATED } else { StatusCode::BAD_REQUEST });
        if right {
            self.keep(repository, bytes);
        }
    }

    async fn begin(&mut self, repository: usize) {
        let path = format!("/v2/{}/blobs/uploads/", REPOSITORIES[repository]);
        let answer = self.ask(Method::POST, &path, &[], Bytes::new()).await;
        self.begun(repository, &answer);
    }

    fn begun(&mut self, repository: usize, answer: &Answer) {
        assert_eq!(answer.status, StatusCode::ACCEPTED);
        let path = answer.header(LOCATION).to_owned();
        assert!(self.uploads.iter().all(|other| other.path != path), "{path} twice");
        self.uploads.push(Upload { repository, path, bytes: Vec::new() });
    }

    /// One of the uploads; none when there is none, or when `which` is not to be one.
    fn upload(&self, which: usize) -> (Option<usize>, String) {
        let at = (which < 31).then(|| which.checked_rem(self.uploads.len())).flatten();
        let unknown = || format!("/v2/{}/{UNKNOWN_UPLOAD}", REPOSITORIES[0]);
        (at, at.map_or_else(unknown, |at| self.uploads[at].path.clone()))
    }

    async fn append(&mut self, which: usize, item: usize, how: usize) {
        let (at, path) = self.upload(which);
        let bytes = UNIVERSE.blobs[item].clone();
        let start = at.map_or(0, |at| self.uploads[at].bytes.len());
        let range = |first: usize, len: usize| vec![(CONTENT_RANGE, format!("{first}-{}", first + len - 1))];
        let (headers, expected) = match how & 3 {
            1 if !bytes.is_empty() => (range(start, bytes.len()), StatusCode::ACCEPTED),
            2 if !bytes.is_empty() => (range(start + 1, bytes.len()), StatusCode::RANGE_NOT_SATISFIABLE),
            3 if !bytes.is_empty() => (range(start, bytes.len() + 1), StatusCode::BAD_REQUEST),
            _ => (vec![], StatusCode::ACCEPTED),
        };
        let answer = self.ask(Method::PATCH, &path, &headers, bytes.clone()).await;
        let Some(at) = at else { return assert_eq!(answer.status, StatusCode::NOT_FOUND) };
        assert_eq!(answer.status, expected, "{headers:?}");
        if answer.status == StatusCode::ACCEPTED {
            self.uploads[at].bytes.extend_from_slice(&bytes);
            assert_eq!(answer.header(RANGE), self.reached(at));
        }
    }

    fn reached(&self, at: usize) -> String {
        format!("0-{}", self.uploads[at].bytes.len().saturating_sub(1))
    }

    async fn finish(&mut self, which: usize, item: usize, how: usize) {
        let (at, path) = self.upload(which);
        let last = if how & 1 == 0 { Bytes::new() } else { UNIVERSE.blobs[item].clone() };
        let mut all = at.map(|at| self.uploads[at].bytes.clone()).unwrap_or_default();
        all.extend_from_slice(&last);
        let right = how & 2 == 0;
        let digest = if right { Digest::sha256(&all) } else { Digest::sha256(b"something else") };
        let answer = self.ask(Method::PUT, &format!("{path}?digest={digest}"), &[], last).await;
        let Some(at) = at else { return assert_eq!(answer.status, StatusCode::NOT_FOUND) };
        assert_eq!(answer.status, if right { StatusCode::CREATED } else { StatusCode::BAD_REQUEST });
        // Either way it is over.
        let upload = self.uploads.remove(at);
        if right {
            self.keep(upload.repository, all.into());
        }
    }

    async fn cancel(&mut self, which: usize) {
        let (at, path) = self.upload(which);
        let answer = self.ask(Method::DELETE, &path, &[], Bytes::new()).await;
        let Some(at) = at else { return assert_eq!(answer.status, StatusCode::NOT_FOUND) };
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
        self.uploads.remove(at);
    }

    async fn progress(&mut self, which: usize) {
        let (at, path) = self.upload(which);
        let answer = self.ask(Method::GET, &path, &[], Bytes::new()).await;
        let Some(at) = at else { return assert_eq!(answer.status, StatusCode::NOT_FOUND) };
        assert_eq!(
            (answer.status, answer.header(RANGE)),
            (StatusCode::NO_CONTENT, self.reached(at).as_str())
        );
    }

    async fn put_manifest(&mut self, repository: usize, item: usize, how: usize) {
        let pushed = &UNIVERSE.manifests[item];
        let wrong = Digest::sha256(b"something else");
        let (reference, tag, named_right) = match how & 3 {
            0 => (pushed.digest.to_string(), None, true),
            1 => (wrong.to_string(), None, false),
            _ => (TAGS[(how >> 2) % TAGS.len()].to_owned(), Some(TAGS[(how >> 2) % TAGS.len()]), true),
        };
        let path = format!("/v2/{}/manifests/{reference}", REPOSITORIES[repository]);
        let headers = [(CONTENT_TYPE, pushed.media_type.to_owned())];
        let answer = self.ask(Method::PUT, &path, &headers, pushed.bytes.clone()).await;
        if !named_right {
            return assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        }
        let complete = pushed.blobs.iter().all(|digest| self.holds(repository, digest).is_some());
        let own = &mut self.repositories[repository];
        if !complete || !pushed.manifests.iter().all(|digest| own.manifests.contains_key(digest)) {
            return assert_eq!(answer.status, StatusCode::NOT_FOUND);
        }
        assert_eq!(answer.status, StatusCode::CREATED);
        assert_eq!(answer.header("docker-content-digest"), pushed.digest.to_string());
        own.known = true;
        own.manifests.insert(pushed.digest, item);
        if let Some(tag) = tag {
            own.tags.insert(tag, pushed.digest);
        }
    }

    async fn get_manifest(&mut self, repository: usize, item: usize, how: usize) {
        let tag = TAGS[(how >> 2) % TAGS.len()];
        let own = &self.repositories[repository];
        let (reference, digest) = if how & 2 == 0 {
            (tag.to_owned(), own.tags.get(tag).copied())
        } else {
            let digest = UNIVERSE.manifests[item].digest;
            (digest.to_string(), Some(digest))
        };
        let at = digest.and_then(|digest| own.manifests.get(&digest).copied());
        let method = if how & 1 == 0 { Method::GET } else { Method::HEAD };
        let path = format!("/v2/{}/manifests/{reference}", REPOSITORIES[repository]);
        let answer = self.ask(method.clone(), &path, &[], Bytes::new()).await;
        let Some(at) = at else { return assert_eq!(answer.status, StatusCode::NOT_FOUND) };
        let pushed = &UNIVERSE.manifests[at];
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.header("docker-content-digest"), pushed.digest.to_string());
        assert_eq!(answer.header(CONTENT_TYPE), pushed.media_type);
        assert!(method == Method::HEAD || answer.body == pushed.bytes);
    }

    async fn delete(&mut self, repository: usize, item: usize, how: usize) {
        let tag = TAGS[(how >> 2) % TAGS.len()];
        let (manifest, blob) = (UNIVERSE.manifests[item].digest, Digest::sha256(&UNIVERSE.blobs[item]));
        let below = match how % 3 {
            0 => format!("manifests/{tag}"),
            1 => format!("manifests/{manifest}"),
            _ => format!("blobs/{blob}"),
        };
        let path = format!("/v2/{}/{below}", REPOSITORIES[repository]);
        let answer = self.ask(Method::DELETE, &path, &[], Bytes::new()).await;
        let own = &mut self.repositories[repository];
        let there = match how % 3 {
            0 => own.tags.remove(tag).is_some(),
            1 => {
                own.tags.retain(|_, named| *named != manifest);
                own.manifests.remove(&manifest).is_some()
            }
            _ => own.blobs.remove(&blob).is_some(),
        };
        assert_eq!(
            answer.status,
            if there { StatusCode::ACCEPTED } else { StatusCode::NOT_FOUND },
            "{below}"
        );
    }

    async fn list(&mut self, repository: usize) {
        let name = REPOSITORIES[repository];
        let answer = self.ask(Method::GET, &format!("/v2/{name}/tags/list"), &[], Bytes::new()).await;
        let own = &self.repositories[repository];
        if !own.known {
            return assert_eq!(answer.status, StatusCode::NOT_FOUND);
        }
        let texts = |body: &Bytes, pointer: &str| -> BTreeSet<String> {
            let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
            let rows =
                body.pointer(pointer).and_then(serde_json::Value::as_array).cloned().unwrap_or_default();
            rows.iter()
                .filter_map(|row| Some(row.as_str().or_else(|| row["digest"].as_str())?.to_owned()))
                .collect()
        };
        assert_eq!(answer.status, StatusCode::OK);
        let expected: BTreeSet<String> = own.tags.keys().map(|tag| (*tag).to_owned()).collect();
        assert_eq!(texts(&answer.body, "/tags"), expected);
        let subject = UNIVERSE.manifests[0].digest;
        let referring =
            own.manifests.iter().filter(|(_, at)| UNIVERSE.manifests[**at].subject == Some(subject));
        let expected: BTreeSet<String> = referring.map(|(digest, _)| digest.to_string()).collect();
        let path = format!("/v2/{name}/referrers/{subject}");
        let answer = self.ask(Method::GET, &path, &[], Bytes::new()).await;
        assert_eq!(texts(&answer.body, "/manifests"), expected);
    }

    async fn mount(&mut self, repository: usize, item: usize, how: usize) {
        let digest = Digest::sha256(&UNIVERSE.blobs[item]);
        let source = (how & 1 == 0).then_some(how >> 1 & 1);
        let from = source.map(|at| format!("&from={}", REPOSITORIES[at])).unwrap_or_default();
        let path = format!("/v2/{}/blobs/uploads/?mount={digest}{from}", REPOSITORIES[repository]);
        let answer = self.ask(Method::POST, &path, &[], Bytes::new()).await;
        let mut holders =
            self.repositories.iter().enumerate().filter(|(_, own)| own.blobs.contains_key(&digest));
        if holders.any(|(at, _)| source.is_none_or(|source| source == at)) {
            assert_eq!(answer.status, StatusCode::CREATED);
            self.keep(repository, UNIVERSE.blobs[item].clone());
        } else {
            self.begun(repository, &answer);
        }
    }

    /// What changes nothing whatever it is.
    async fn nonsense(&mut self, repository: usize, what: usize, how: usize) {
        let name = REPOSITORIES[repository];
        let path = match how % 6 {
            0 => format!("/v2/{name}/blobs/sha256:{what:x}"),
            1 => format!("/v2/{name}/manifests/%{what:02x}%{how:02x}"),
            2 => format!("/v2/{name}/tags/list?n={what}&last=%{how:02x}"),
            3 => format!("/v2/_catalog?n=-{what}"),
            4 => format!("/v2/{name}/blobs/uploads/..%2f{what}"),
            _ => format!("/{what}/v2/{name}"),
        };
        self.ask(Method::GET, &path, &[], Bytes::new()).await;
    }
}
