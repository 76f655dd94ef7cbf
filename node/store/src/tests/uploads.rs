use std::time::Duration;

use super::*;
use crate::*;

fn id(n: u8) -> UploadId {
    UploadId::from_bytes([n; 16])
}

fn uploaded(store: &Store, n: u8, data: &[u8]) -> UploadId {
    store.upload_begin(id(n)).unwrap();
    let mut at = 0;
    for part in data.chunks(100_000) {
        at = store.upload_append(id(n), at, part).unwrap();
    }
    assert_eq!(at, data.len() as u64);
    id(n)
}

#[test]
fn an_upload_becomes_a_blob() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let sizes = [0, 5, 2 * PIECE + 3];
    for (n, size) in (0u8..).zip(sizes) {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let blob = Blob::of(algorithm, n, size);
            let upload = uploaded(&store, n, &blob.data);
            assert_eq!(store.upload_finish(upload, &blob.digest()).unwrap(), blob.metainfo);
            assert_eq!(store.upload_offset(upload), None);
            let again = store.upload_finish(upload, &blob.digest());
            assert!(matches!(again, Err(UploadFinishError::Unknown(_))));
            assert!(store.lookup(&blob.digest()).unwrap().unwrap().complete);
            blob.assert_readable(&store);
        }
    }
    assert!(store.blobs().iter().all(|blob| !blob.anchored));
    assert_eq!(file_count(&dir.path().join("uploads")), 0);
    let used = store.usage().used_bytes;
    let (store, report) = reopen(store, dir.path());
    assert_eq!(report, RepairReport { complete: 6, ..Default::default() });
    assert_eq!(store.usage().used_bytes, used);
}

#[test]
fn offsets_are_exact() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.upload_begin(id(1)).unwrap();
    assert!(matches!(store.upload_begin(id(1)), Err(UploadError::Exists(_))));
    assert!(matches!(store.upload_append(id(2), 0, b"x"), Err(UploadError::Unknown(_))));
    assert_eq!(store.upload_append(id(1), 0, b"hel").unwrap(), 3);
    for wrong in [0, 2, 4] {
        match store.upload_append(id(1), wrong, b"lo") {
            Err(UploadError::WrongOffset { expected, got, .. }) => assert_eq!((expected, got), (3, wrong)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(store.upload_append(id(1), 3, b"").unwrap(), 3);
    assert_eq!(store.upload_append(id(1), 3, b"lo").unwrap(), 5);
    store.upload_finish(id(1), &Digest::sha256(b"hello")).unwrap();
}

#[test]
fn a_wrong_digest_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let wanted = Digest::sha256(b"other");
    uploaded(&store, 1, b"hello");
    match store.upload_finish(id(1), &wanted) {
        Err(UploadFinishError::DigestMismatch { got, .. }) => assert_eq!(got, Digest::sha256(b"hello")),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.upload_offset(id(1)), None);
    assert!(store.lookup(&wanted).unwrap().is_none());
    assert_eq!(store.usage().used_bytes, 0);
    assert_eq!(file_count(&dir.path().join("uploads")) + file_count(&dir.path().join("blobs")), 0);
}

#[test]
fn an_upload_of_what_is_here() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (whole, part) = (Blob::new(1, PIECE + 1), Blob::new(2, 2 * PIECE));
    whole.put(&store);
    store.create(part.metainfo.clone(), None).unwrap();
    part.write(&store, [1]);
    let used = store.usage().used_bytes;
    for (n, blob) in [(1, &whole), (2, &part)] {
        uploaded(&store, n, &blob.data);
        store.upload_finish(id(n), &blob.digest()).unwrap();
        blob.assert_readable(&store);
        assert!(store.lookup(&blob.digest()).unwrap().unwrap().complete);
        // A download that was under way does not mind.
        blob.write(&store, [0]);
        store.check_digest(&blob.digest()).unwrap();
        store.commit(&blob.digest()).unwrap();
    }
    assert!(store.blobs().iter().all(|blob| !blob.anchored), "acknowledged, so not evictable");
    assert_eq!(store.usage().used_bytes, used);
    assert_eq!(file_count(&dir.path().join("partial")), 0);
}

#[test]
fn an_upload_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let blob = Blob::new(1, PIECE + 77);
    store.upload_begin(id(1)).unwrap();
    store.upload_append(id(1), 0, &blob.data[..1000]).unwrap();
    let used = store.usage().used_bytes;
    let (store, report) = reopen(store, dir.path());
    assert_eq!(report, RepairReport { uploads: 1, ..Default::default() });
    assert_eq!((store.upload_offset(id(1)), store.usage().used_bytes), (Some(1000), used));
    store.upload_append(id(1), 1000, &blob.data[1000..]).unwrap();
    assert_eq!(store.upload_finish(id(1), &blob.digest()).unwrap(), blob.metainfo);
    // The running digest was lost, so a wrong one is found by reading.
    uploaded(&store, 2, b"hello");
    let (store, _) = reopen(store, dir.path());
    let wrong = store.upload_finish(id(2), &blob.digest());
    assert!(matches!(wrong, Err(UploadFinishError::DigestMismatch { .. })));
}

#[test]
fn uploads_are_bounded_cancelled_and_expire() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { uploads_max: 2, upload_expiry: Duration::from_secs(60), ..config(dir.path()) };
    let (store, _) = Store::open(config.clone(), NOW).unwrap();
    uploaded(&store, 1, b"a");
    uploaded(&store, 2, b"b");
    assert!(matches!(store.upload_begin(id(3)), Err(UploadError::TooMany(2))));
    assert_eq!(store.usage().refused_uploads, 1);
    assert!(store.upload_cancel(id(1)).unwrap());
    assert!(!store.upload_cancel(id(1)).unwrap());
    uploaded(&store, 3, b"c");
    assert_eq!(store.upload_expire(NOW).unwrap(), []);
    let late = WallTime::from_unix_millis(u64::MAX);
    let mut expired = store.upload_expire(late).unwrap();
    expired.sort();
    assert_eq!(expired, [id(2), id(3)]);
    assert_eq!((store.usage().uploads, store.usage().used_bytes), (0, 0));
    uploaded(&store, 4, b"d");
    drop(store);
    let (store, report) = Store::open(config, late).unwrap();
    assert_eq!(report, RepairReport { uploads_expired: 1, ..Default::default() });
    assert_eq!(store.upload_offset(id(4)), None);
}

#[test]
fn upload_ids_in_text() {
    let text = "00ff00ff00ff00ff00ff00ff00ff00ff";
    assert_eq!(text.parse::<UploadId>().unwrap().to_string(), text);
    for bad in ["", "00", "00FF00FF00FF00FF00FF00FF00FF00FF", "../../../../../../../../etc/pass"] {
        assert_eq!(bad.parse::<UploadId>(), Err(UploadIdParseError), "{bad}");
    }
}
