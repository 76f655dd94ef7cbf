//! What every backend must do, as a test: an adapter's own tests call [`check`] with an empty backend.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

pub mod servers;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::TryStreamExt as _;
use shoal_types::{Algorithm, Digest, DigestHasher, RecordKey, RecordKind};

use crate::backend::{Backend, BackendError, READ_BYTES_MAX};

/// More than two parts of every adapter.
const LARGE: usize = 35 << 20;

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
    a_large_blob(&*backend, scratch).await;
    lists_are_complete(&*backend, scratch).await;
    records(&*backend).await;
    many_at_once(&backend, scratch).await;
    if backend.has_conditional_writes() {
        one_of_many_writers_wins(&backend).await;
    }
}

fn file(scratch: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = scratch.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

async fn absent_things(backend: &dyn Backend) {
    let digest = Digest::sha256(b"absent");
    assert_eq!(backend.stat(&digest, None).await.unwrap(), None);
    assert_eq!(backend.metainfo(&digest).await.unwrap(), None);
    assert!(!backend.delete(&digest).await.unwrap());
    let read = backend.read_range(&digest, None, 0..1).await;
    assert!(matches!(read, Err(BackendError::NotFound { .. })), "{read:?}");
    assert_eq!(blobs(backend).await, BTreeSet::new());
    let key = record("none", RecordKind::Tag("none".parse().unwrap()));
    assert_eq!(backend.get_record(&key).await.unwrap(), None);
    assert!(!backend.delete_record(&key).await.unwrap());
    assert_eq!(keys(backend).await, BTreeSet::new());
}

fn record(repository: &str, kind: RecordKind) -> RecordKey {
    RecordKey { repository: repository.parse().unwrap(), kind }
}

async fn blobs(backend: &dyn Backend) -> BTreeSet<(Digest, u64)> {
    let listed = backend.list_blobs().map_ok(|blob| (blob.digest, blob.size));
    listed.try_collect().await.unwrap()
}

async fn keys(backend: &dyn Backend) -> BTreeSet<RecordKey> {
    backend.list_records().try_collect().await.unwrap()
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
        assert_eq!(backend.stat(&digest, None).await.unwrap(), Some(size));
        assert_eq!(backend.metainfo(&digest).await.unwrap().unwrap(), b"metainfo 2");
        for range in [0..size, size / 3..size / 2, size..size] {
            let (from, to) = (usize::try_from(range.start).unwrap(), usize::try_from(range.end).unwrap());
            let bytes = backend.read_range(&digest, None, range).await.unwrap();
            assert!(bytes[..] == content[from..to], "bytes {from} to {to} of {digest}");
        }
        for range in [0..size + 1, size + 1..size + 2, 0..READ_BYTES_MAX + 1, backwards()] {
            let read = backend.read_range(&digest, None, range).await;
            assert!(matches!(read, Err(BackendError::Invalid { .. })), "{read:?}");
        }
        assert!(backend.delete(&digest).await.unwrap());
        assert!(!backend.delete(&digest).await.unwrap());
        assert_eq!(backend.stat(&digest, None).await.unwrap(), None);
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
    assert_eq!(backend.stat(&digest, None).await.unwrap(), None);
    assert_eq!(blobs(backend).await, BTreeSet::new());
}

/// One that does not go up in one request, read in ranges side by side.
async fn a_large_blob(backend: &dyn Backend, scratch: &Path) {
    let mut content = vec![0; LARGE];
    for (number, part) in content.chunks_mut(8).enumerate() {
        part.copy_from_slice(&(number as u64).to_be_bytes()[..part.len()]);
    }
    let digest = Digest::sha256(&content);
    backend.put(&digest, &file(scratch, "large", &content), LARGE as u64, b"m").await.unwrap();
    assert_eq!(backend.stat(&digest, None).await.unwrap(), Some(LARGE as u64));
    let step = 5 << 20;
    let reads = (0..LARGE).step_by(step).map(|from| async move {
        let to = LARGE.min(from + step);
        (from, backend.read_range(&digest, None, from as u64..to as u64).await.unwrap())
    });
    for (from, bytes) in futures::future::join_all(reads).await {
        assert!(bytes[..] == content[from..from + bytes.len()], "bytes from {from}");
    }
    assert!(backend.delete(&digest).await.unwrap());
}

async fn lists_are_complete(backend: &dyn Backend, scratch: &Path) {
    let mut expected = BTreeSet::new();
    for number in 0u8..7 {
        let mut hasher = DigestHasher::new(if number < 5 { Algorithm::Sha256 } else { Algorithm::Sha512 });
        hasher.update(&[number]);
        let digest = hasher.finish();
        backend.put(&digest, &file(scratch, "listed", &[number]), 1, b"m").await.unwrap();
        expected.insert((digest, 1));
    }
    assert_eq!(blobs(backend).await, expected);
    for (digest, _) in &expected {
        assert!(backend.delete(digest).await.unwrap());
    }
    assert_eq!(blobs(backend).await, BTreeSet::new());
}

async fn records(backend: &dyn Backend) {
    // Names that are in each other's way in a naive layout.
    let repositories = ["a", "a/b", "a/b/c", "a-b", "a/tags", "tags"];
    let digest = Digest::sha256(b"x");
    let tags = ["b", "B", "_b", "c", "_tags", "b.metainfo"].map(|tag| RecordKind::Tag(tag.parse().unwrap()));
    let kinds: Vec<_> =
        tags.into_iter().chain([RecordKind::Manifest(digest), RecordKind::Blob(digest)]).collect();
    let mut expected = BTreeSet::new();
    for repository in repositories {
        for kind in &kinds {
            let key = record(repository, kind.clone());
            assert!(backend.put_record(&key, b"first", None).await.unwrap());
            assert!(!backend.put_record(&key, b"not first", None).await.unwrap(), "{key} is replaced unseen");
            let first = backend.get_record(&key).await.unwrap().unwrap();
            assert_eq!(first.object, b"first");
            assert!(backend.put_record(&key, key.to_string().as_bytes(), Some(&first.mark)).await.unwrap());
            let late = backend.put_record(&key, b"late", Some(&first.mark)).await.unwrap();
            assert!(!late, "{key} is replaced by who saw an older one");
            expected.insert(key);
        }
    }
    for key in &expected {
        let object = backend.get_record(key).await.unwrap().unwrap().object;
        assert_eq!(object, key.to_string().into_bytes());
    }
    assert_eq!(keys(backend).await, expected);
    for key in &expected {
        assert!(backend.delete_record(key).await.unwrap());
        assert!(!backend.delete_record(key).await.unwrap());
    }
    assert_eq!(keys(backend).await, BTreeSet::new());
}

/// Whoever reads, counts and writes back has counted once.
async fn one_of_many_writers_wins(backend: &Arc<dyn Backend>) {
    const WRITERS: usize = 4;
    const TIMES: usize = 5;
    let key = record("count", RecordKind::Tag("all".parse().unwrap()));
    let tasks = (0..WRITERS).map(|_| {
        let (backend, key) = (backend.clone(), key.clone());
        tokio::spawn(async move {
            for _ in 0..TIMES {
                loop {
                    let now = backend.get_record(&key).await.unwrap();
                    let next = now.as_ref().map_or(0, |now| now.object.len()) + 1;
                    let mark = now.map(|now| now.mark);
                    if backend.put_record(&key, &vec![b'x'; next], mark.as_ref()).await.unwrap() {
                        break;
                    }
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(backend.get_record(&key).await.unwrap().unwrap().object.len(), WRITERS * TIMES);
    assert!(backend.delete_record(&key).await.unwrap());
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
            assert!(backend.read_range(&digest, None, 0..size).await.unwrap() == content);
            assert_eq!(backend.metainfo(&digest).await.unwrap().unwrap(), b"m");
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(blobs(&**backend).await.len(), 1);
    assert!(backend.delete(&digest).await.unwrap());
}
