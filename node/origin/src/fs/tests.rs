use std::os::unix::fs::PermissionsExt;

use futures::StreamExt as _;
use shoal_types::RecordKind;

use super::*;

async fn backend(dir: &Path) -> FsBackend {
    FsBackend::create(&dir.join("backend")).await.unwrap()
}

fn file_names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        entries(dir).unwrap().iter().map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn conforms() {
    let dir = tempfile::tempdir().unwrap();
    let backend = backend(dir.path()).await;
    crate::conformance::check(Arc::new(backend.clone()), dir.path()).await;
    assert_eq!(file_names(&backend.inner.root.join(TMP)), [LOCK]);
}

#[tokio::test]
async fn bytes_are_shared_where_they_can_be() {
    let dir = tempfile::tempdir().unwrap();
    let backend = backend(dir.path()).await;
    let source = dir.path().join("source");
    fs::write(&source, b"hello").unwrap();
    let digest = Digest::sha256(b"hello");
    backend.put(&digest, &source, 5, b"m").await.unwrap();
    let path = backend.inner.root.join(layout::blob_key(&digest));
    assert_eq!(fs::metadata(&path).unwrap().ino(), fs::metadata(&source).unwrap().ino());
    // The store lets go of its name; the backend's stays.
    fs::remove_file(&source).unwrap();
    assert_eq!(backend.read_range(&digest, None, 0..5).await.unwrap(), &b"hello"[..]);
}

#[test]
fn bytes_that_cannot_be_shared_are_copied() {
    let dir = tempfile::tempdir().unwrap();
    let (source, to) = (dir.path().join("source"), dir.path().join("to"));
    fs::write(&source, b"hello").unwrap();
    copy(&source, &to, 5).unwrap();
    assert_eq!(fs::read(&to).unwrap(), b"hello");
    assert!(matches!(copy(&source, &to, 4), Err(BackendError::Invalid { .. })));
}

#[tokio::test]
async fn a_damaged_blob_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let backend = backend(dir.path()).await;
    let source = dir.path().join("source");
    fs::write(&source, b"hello").unwrap();
    let digest = Digest::sha256(b"hello");
    let path = backend.inner.root.join(layout::blob_key(&digest));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, b"hel").unwrap();
    backend.put(&digest, &source, 5, b"m").await.unwrap();
    assert_eq!(backend.read_range(&digest, None, 0..5).await.unwrap(), &b"hello"[..]);
}

#[tokio::test]
async fn directories_that_will_not_do() {
    let dir = tempfile::tempdir().unwrap();
    let message = |result: Result<FsBackend, BackendError>| result.unwrap_err().to_string();
    let missing = FsBackend::open(&dir.path().join("missing")).await;
    assert!(message(missing).contains("does not exist"));
    let file = dir.path().join("file");
    fs::write(&file, b"").unwrap();
    assert!(message(FsBackend::open(&file).await).contains("not a directory"));
    assert!(message(FsBackend::open(dir.path()).await).contains("other things"));

    let root = dir.path().join("backend");
    FsBackend::create(&root).await.unwrap();
    FsBackend::open(&root).await.unwrap().probe().await.unwrap();
    fs::write(root.join(MARKER), b"2\n").unwrap();
    assert!(message(FsBackend::open(&root).await).contains("newer"));
}

#[tokio::test]
async fn a_lost_mount_is_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    let backend = backend(dir.path()).await;
    let digest = Digest::sha256(b"hello");
    assert_eq!(backend.stat(&digest, None).await.unwrap(), None);
    fs::rename(&backend.inner.root, dir.path().join("elsewhere")).unwrap();
    fs::create_dir(&backend.inner.root).unwrap();
    let key = RecordKey { repository: "a".parse().unwrap(), kind: RecordKind::Tag("b".parse().unwrap()) };
    let source = dir.path().join("source");
    fs::write(&source, b"hello").unwrap();
    for error in [
        backend.stat(&digest, None).await.unwrap_err(),
        backend.read_range(&digest, None, 0..1).await.unwrap_err(),
        backend.list_blobs().next().await.unwrap().unwrap_err(),
        backend.get_record(&key).await.unwrap_err(),
        backend.put_record(&key, b"x", None).await.unwrap_err(),
        backend.put(&digest, &source, 5, b"m").await.unwrap_err(),
        backend.probe().await.unwrap_err(),
    ] {
        assert!(error.is_retryable(), "{error}");
        assert!(error.to_string().contains("unmounted"), "{error}");
    }
    // Nothing was written to where the mount should be.
    assert_eq!(file_names(&backend.inner.root), Vec::<String>::new());
}

#[test]
fn refusals_are_told_apart() {
    let path = Path::new("/x");
    let denied = failed("write", path)(io::ErrorKind::PermissionDenied.into());
    assert!(matches!(denied, BackendError::Denied { .. }) && !denied.is_retryable());
    assert!(denied.to_string().contains("write /x"), "{denied}");
    let read_only = failed("write", path)(io::ErrorKind::ReadOnlyFilesystem.into());
    assert!(matches!(read_only, BackendError::Denied { .. }));
    let full = failed("write", path)(io::ErrorKind::StorageFull.into());
    assert!(matches!(full, BackendError::Unavailable { .. }) && full.is_retryable());
}

#[tokio::test]
async fn a_directory_without_permission_is_denied() {
    let dir = tempfile::tempdir().unwrap();
    let backend = backend(dir.path()).await;
    let tmp = backend.inner.root.join(TMP);
    fs::set_permissions(&tmp, fs::Permissions::from_mode(0o500)).unwrap();
    let probed = backend.probe().await;
    fs::set_permissions(&tmp, fs::Permissions::from_mode(0o700)).unwrap();
    // The superuser may write all the same.
    let may = fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0);
    assert_eq!(probed.is_ok(), may);
    assert!(probed.is_ok() || matches!(probed, Err(BackendError::Denied { .. })));
}

#[tokio::test]
async fn what_a_crash_left_is_removed_when_it_is_old() {
    let dir = tempfile::tempdir().unwrap();
    let backend = backend(dir.path()).await;
    let tmp = backend.inner.root.join(TMP);
    fs::write(tmp.join("left"), b"x").unwrap();
    // Another process may be writing it this moment.
    FsBackend::open(&backend.inner.root).await.unwrap();
    assert_eq!(file_names(&tmp), ["left"]);
    assert!(backend.list_blobs().next().await.is_none());
    backend.inner.sweep_tmp(&tmp, Duration::ZERO).unwrap();
    assert_eq!(file_names(&tmp), Vec::<String>::new());
    // A first start that was cut off before the marker is taken up again.
    fs::remove_file(backend.inner.root.join(MARKER)).unwrap();
    FsBackend::open(&backend.inner.root).await.unwrap();
}
