//! What every backend must do, as a test: an adapter's own tests call [`check`] with an empty backend.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use shoal_types::{Algorithm, Digest, DigestHasher, RepositoryName, TagName};

use crate::backend::{Backend, BackendError, READ_BYTES_MAX};

/// Runs the whole suite against an empty backend; `scratch` is a directory for local files.
///
/// # Panics
/// When the backend does not do what [`Backend`] says.
pub async fn check(backend: Arc<dyn Backend>, scratch: &Path) {
    backend.probe().await.unwrap();
    assert!(!backend.describe().is_empty());
    absent_things(&*backend).await;
    a_blob_s_life(&*backend, scratch).await;
    bad_sources(&*backend, scratch).await;
    lists_page(&*backend, scratch).await;
    tags(&*backend).await;
    many_at_once(&backend, scratch).await;
}

fn file(scratch: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = scratch.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

async fn absent_things(backend: &dyn Backend) {
    let digest = Digest::sha256(b"absent");
    assert_eq!(backend.stat(&digest).await.unwrap(), None);
    assert_eq!(backend.metainfo(&digest).await.unwrap(), None);
    assert!(!backend.delete(&digest).await.unwrap());
    let read = backend.read_range(&digest, 0..1).await;
    assert!(matches!(read, Err(BackendError::NotFound { .. })), "{read:?}");
    assert_eq!(backend.list(None, 10).await.unwrap(), []);
    let (repository, tag) = ("none".parse().unwrap(), "none".parse().unwrap());
    assert_eq!(backend.get_tag(&repository, &tag).await.unwrap(), None);
    assert!(!backend.delete_tag(&repository, &tag).await.unwrap());
    assert_eq!(backend.list_tags(&repository, None, 10).await.unwrap(), []);
    assert_eq!(backend.list_repositories(None, 10).await.unwrap(), []);
}

async fn a_blob_s_life(backend: &dyn Backend, scratch: &Path) {
    let long = vec![7; 700_000];
    for (content, algorithm) in
        [(&b""[..], Algorithm::Sha256), (b"hello", Algorithm::Sha512), (&long, Algorithm::Sha256)]
    {
        let mut hasher = DigestHasher::new(algorithm);
        hasher.update(content);
        let digest = hasher.finish();
        let size = content.len() as u64;
        let source = file(scratch, "life", content);
        backend.put(&digest, &source, size, b"metainfo 1").await.unwrap();
        backend.put(&digest, &source, size, b"metainfo 2").await.unwrap();
        std::fs::remove_file(&source).unwrap();
        assert_eq!(backend.stat(&digest).await.unwrap(), Some(size));
        assert_eq!(backend.metainfo(&digest).await.unwrap().unwrap(), b"metainfo 2");
        for range in [0..size, size / 3..size / 2, size..size] {
            let (from, to) = (usize::try_from(range.start).unwrap(), usize::try_from(range.end).unwrap());
            let bytes = backend.read_range(&digest, range).await.unwrap();
            assert!(bytes[..] == content[from..to], "bytes {from} to {to} of {digest}");
        }
        for range in [0..size + 1, size + 1..size + 2, 0..READ_BYTES_MAX + 1, backwards()] {
            let read = backend.read_range(&digest, range).await;
            assert!(matches!(read, Err(BackendError::Invalid { .. })), "{read:?}");
        }
        assert!(backend.delete(&digest).await.unwrap());
        assert!(!backend.delete(&digest).await.unwrap());
        assert_eq!(backend.stat(&digest).await.unwrap(), None);
        assert_eq!(backend.metainfo(&digest).await.unwrap(), None);
    }
}

#[expect(clippy::reversed_empty_ranges, reason = "what must be refused")]
fn backwards() -> std::ops::Range<u64> {
    2..1
}

async fn bad_sources(backend: &dyn Backend, scratch: &Path) {
    let digest = Digest::sha256(b"hello");
    let source = file(scratch, "bad", b"hell");
    for path in [&source, &scratch.join("missing"), &scratch.to_owned()] {
        let put = backend.put(&digest, path, 5, b"m").await;
        assert!(matches!(put, Err(BackendError::Invalid { .. })), "{put:?}");
    }
    assert_eq!(backend.stat(&digest).await.unwrap(), None);
    assert_eq!(backend.list(None, 10).await.unwrap(), []);
}

async fn lists_page(backend: &dyn Backend, scratch: &Path) {
    let mut digests = Vec::new();
    for number in 0u8..7 {
        let mut hasher = DigestHasher::new(if number < 5 { Algorithm::Sha256 } else { Algorithm::Sha512 });
        hasher.update(&[number]);
        let digest = hasher.finish();
        backend.put(&digest, &file(scratch, "listed", &[number]), 1, b"m").await.unwrap();
        digests.push(digest);
    }
    digests.sort();
    for page in [1, 2, 3, 7, 8] {
        let mut found: Vec<Digest> = Vec::new();
        loop {
            let blobs = backend.list(found.last(), page).await.unwrap();
            assert!(blobs.len() <= page && blobs.iter().all(|blob| blob.size == 1));
            if blobs.is_empty() {
                break;
            }
            found.extend(blobs.iter().map(|blob| blob.digest));
        }
        assert_eq!(found, digests);
    }
    for digest in &digests {
        assert!(backend.delete(digest).await.unwrap());
    }
}

async fn tags(backend: &dyn Backend) {
    let repository = |name: &str| name.parse::<RepositoryName>().unwrap();
    let tag = |name: &str| name.parse::<TagName>().unwrap();
    // Names that are in each other's way in a naive layout, and whose order is not that of their parts.
    let names = ["a", "a/b", "a/b/c", "a-b", "a/tags", "tags"];
    let tags = ["b", "B", "_b", "c", "_tags", "b.metainfo"];
    for name in names {
        for tagged in tags {
            let object = format!("{name}:{tagged}");
            backend.put_tag(&repository(name), &tag(tagged), b"older").await.unwrap();
            backend.put_tag(&repository(name), &tag(tagged), object.as_bytes()).await.unwrap();
        }
    }
    let mut sorted: Vec<_> = tags.iter().map(|name| tag(name)).collect();
    sorted.sort();
    for name in names {
        for tagged in tags {
            let object = backend.get_tag(&repository(name), &tag(tagged)).await.unwrap().unwrap();
            assert_eq!(object, format!("{name}:{tagged}").into_bytes());
        }
        assert_eq!(backend.list_tags(&repository(name), None, 10).await.unwrap(), sorted);
        let after = backend.list_tags(&repository(name), Some(&sorted[1]), 2).await.unwrap();
        assert_eq!(after, sorted[2..4]);
    }
    let mut repositories: Vec<_> = names.iter().map(|name| repository(name)).collect();
    repositories.sort();
    assert_eq!(backend.list_repositories(None, 10).await.unwrap(), repositories);
    let after = backend.list_repositories(Some(&repositories[1]), 3).await.unwrap();
    assert_eq!(after, repositories[2..5]);
    for name in names {
        for tagged in tags {
            assert!(backend.delete_tag(&repository(name), &tag(tagged)).await.unwrap());
        }
    }
    assert_eq!(backend.list_repositories(None, 10).await.unwrap(), []);
}

/// Puts of one blob side by side: whoever sees it sees all of it.
async fn many_at_once(backend: &Arc<dyn Backend>, scratch: &Path) {
    let content = vec![9; 300_000];
    let digest = Digest::sha256(&content);
    let size = content.len() as u64;
    let mut tasks = Vec::new();
    for number in 0..8 {
        let source = file(scratch, &format!("at-once-{number}"), &content);
        let (backend, content) = (backend.clone(), content.clone());
        tasks.push(tokio::spawn(async move {
            backend.put(&digest, &source, size, b"m").await.unwrap();
            assert!(backend.read_range(&digest, 0..size).await.unwrap() == content);
            assert_eq!(backend.metainfo(&digest).await.unwrap().unwrap(), b"m");
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(backend.list(None, 10).await.unwrap().len(), 1);
    assert!(backend.delete(&digest).await.unwrap());
}
