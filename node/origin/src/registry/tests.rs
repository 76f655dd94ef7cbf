use std::path::Path;

use super::*;
use crate::conformance::servers::{REGISTRY_PASSWORD, REGISTRY_USER, Server};

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// Pushes an image of one layer; gives the digests of layer and manifest.
async fn push(server: &Server, name: &str, layer: &[u8], user: bool) -> (Digest, Digest) {
    let base = format!("http://127.0.0.1:{}/v2/{name}", server.port());
    let client = Client::new();
    let with = |request: reqwest::RequestBuilder| {
        if user { request.basic_auth(REGISTRY_USER, Some(REGISTRY_PASSWORD)) } else { request }
    };
    let config = b"{}".as_slice();
    for blob in [layer, config] {
        let begun = with(client.post(format!("{base}/blobs/uploads/"))).send().await.unwrap();
        assert_eq!(begun.status(), StatusCode::ACCEPTED);
        let at = begun.headers()["location"].to_str().unwrap().to_owned();
        let put = with(client.put(format!("{at}&digest={}", Digest::sha256(blob)))).body(blob.to_vec());
        assert_eq!(put.send().await.unwrap().status(), StatusCode::CREATED);
    }
    let descriptor = |kind: &str, bytes: &[u8]| serde_json::json!({"mediaType": kind, "digest": Digest::sha256(bytes).to_string(), "size": bytes.len()});
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor("application/vnd.oci.image.config.v1+json", config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
    });
    let manifest = manifest.to_string().into_bytes();
    let digest = Digest::sha256(&manifest);
    let put =
        with(client.put(format!("{base}/manifests/v1"))).header(CONTENT_TYPE, MANIFEST_TYPE).body(manifest);
    assert_eq!(put.send().await.unwrap().status(), StatusCode::CREATED);
    (Digest::sha256(layer), digest)
}

async fn reads_through(
    backend: &RegistryBackend,
    repository: &str,
    layer: &[u8],
    (blob, manifest): (Digest, Digest),
) {
    let repository: RepositoryName = repository.parse().unwrap();
    let within = Some(&repository);
    let size = layer.len() as u64;
    backend.probe().await.unwrap();
    assert_eq!(backend.stat(&blob, within).await.unwrap(), Some(size));
    for range in [0..size, 3..7, size..size] {
        let (from, to) = (usize::try_from(range.start).unwrap(), usize::try_from(range.end).unwrap());
        assert!(backend.read_range(&blob, within, range).await.unwrap()[..] == layer[from..to]);
    }
    let beyond = backend.read_range(&blob, within, 0..size + 1).await;
    assert!(matches!(beyond, Err(BackendError::Invalid { .. })), "{beyond:?}");
    let tag = Reference::Tag("v1".parse().unwrap());
    let found = backend.resolve(&repository, &tag).await.unwrap().unwrap();
    assert_eq!((found.digest, found.media_type.as_str()), (manifest, MANIFEST_TYPE));
    assert_eq!(
        backend.resolve(&repository, &Reference::Digest(manifest)).await.unwrap(),
        Some(found.clone())
    );
    // A manifest is read like a blob.
    let bytes = backend.read_range(&manifest, within, 0..found.size).await.unwrap();
    assert_eq!(Digest::sha256(&bytes), manifest);
    // What is not there.
    assert_eq!(backend.resolve(&repository, &Reference::Tag("v2".parse().unwrap())).await.unwrap(), None);
    let other = Digest::sha256(b"other");
    assert_eq!(backend.stat(&other, within).await.unwrap(), None);
    assert!(matches!(backend.read_range(&other, within, 0..1).await, Err(BackendError::NotFound { .. })));
    assert_eq!(backend.stat(&blob, None).await.unwrap(), None);
    let put = backend.put(&blob, Path::new("/x"), 1, b"m").await;
    assert!(matches!(put, Err(BackendError::ReadOnly { .. })), "{put:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_registry_is_read_through() {
    let mut server = Server::registry(false).await;
    let layer = vec![7; 3 << 20];
    let digests = push(&server, "up/team/app", &layer, false).await;
    let url = format!("registry://127.0.0.1:{}/up?plain-http&strip=mirror.example", server.port());
    let backend = RegistryBackend::open(&url.parse().unwrap()).await.unwrap();
    reads_through(&backend, "mirror.example/team/app", &layer, digests).await;
    // A name that upstream does not have under any name of its own.
    assert_eq!(backend.stat(&digests.0, Some(&"elsewhere/app".parse().unwrap())).await.unwrap(), None);
    server.stop().await;
    let error =
        backend.stat(&digests.0, Some(&"mirror.example/team/app".parse().unwrap())).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn basic_authentication_from_docker_s_file() {
    let server = Server::registry(true).await;
    let digests = push(&server, "app", b"layer bytes", true).await;
    let host = format!("127.0.0.1:{}", server.port());
    let file = server.dir().join("config.json");
    let url: BackendUrl =
        format!("registry://{host}?plain-http&docker-config={}", file.display()).parse().unwrap();
    let write = |user: &str, password: &str| {
        let auth = data_encoding::BASE64.encode(format!("{user}:{password}").as_bytes());
        let config = serde_json::json!({"auths": {host.clone(): {"auth": auth}}});
        std::fs::write(&file, config.to_string()).unwrap();
    };
    let repository: RepositoryName = "app".parse().unwrap();
    write(REGISTRY_USER, "not the password");
    let backend = RegistryBackend::open(&url).await.unwrap();
    let error = backend.stat(&digests.0, Some(&repository)).await.unwrap_err();
    assert!(matches!(error, BackendError::Denied { .. }), "{error:?}");
    // Put right while the process runs.
    write(REGISTRY_USER, REGISTRY_PASSWORD);
    reads_through(&backend, "app", b"layer bytes", digests).await;
    for text in [format!("{backend:?}"), backend.describe()] {
        assert!(!text.contains(REGISTRY_PASSWORD), "{text}");
    }
}
