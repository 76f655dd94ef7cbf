//! Eviction, and disks that are full.

use super::*;
use crate::index::charge;
use crate::*;

/// A store for ten blobs of one piece: it evicts above nine, down to five.
fn small(dir: &Path) -> Store {
    let config = StoreConfig {
        capacity_bytes: Some(10 * PIECE as u64),
        watermark_high: 0.9,
        watermark_low: 0.5,
        ..config(dir)
    };
    Store::open(config, NOW).unwrap().0
}

#[test]
fn what_was_used_longest_ago_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = small(dir.path());
    let (tell, told) = std::sync::mpsc::channel();
    store.on_removal(move |digest, why| tell.send((digest, why)).unwrap());
    let blobs: Vec<_> = (0..9).map(|seed| Blob::new(seed, PIECE)).collect();
    blobs.iter().for_each(|blob| blob.put(&store));
    assert_eq!(store.evict(NOW).unwrap(), []);
    // The second is read, the third pinned, the fourth is not safe elsewhere.
    store.read_piece(&blobs[1].digest(), blobs[1].piece(0)).unwrap();
    let _pin = store.pin(&blobs[2].digest());
    store.set_anchored(&blobs[3].digest(), false).unwrap();
    let tenth = Blob::new(9, PIECE);
    store.create(tenth.metainfo.clone(), None).unwrap();
    let gone: Vec<_> = [0, 4, 5, 6, 7].map(|n: usize| blobs[n].digest()).into();
    let reported: Vec<_> = told.try_iter().collect();
    assert_eq!(reported, gone.iter().map(|d| (*d, RemovalReason::Evicted)).collect::<Vec<_>>());
    assert!(gone.iter().all(|digest| store.lookup(digest).unwrap().is_none()));
    assert_eq!(store.usage().used_bytes, 5 * PIECE as u64);
    assert_eq!((store.usage().evicted_blobs, store.usage().evicted_bytes), (5, 5 * PIECE as u64));
    assert_eq!(file_count(&dir.path().join("blobs")), 4);
}

#[test]
fn the_order_of_use_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = small(dir.path());
    let blobs: Vec<_> = (0..9).map(|seed| Blob::new(seed, PIECE)).collect();
    blobs.iter().for_each(|blob| blob.put(&store));
    for at in [3usize, 2, 1, 0] {
        blobs[at].assert_readable(&store);
    }
    drop(store);
    let store = small(dir.path());
    store.create(Blob::new(9, PIECE).metainfo, None).unwrap();
    let mut left: Vec<_> = [0, 1, 2, 3].map(|n: usize| blobs[n].digest()).into();
    left.push(Blob::new(9, PIECE).digest());
    left.sort();
    assert_eq!(list(&store), left);
}

#[test]
fn what_does_not_fit_is_refused_and_evicts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = small(dir.path());
    let blobs: Vec<_> = (0..8).map(|seed| Blob::new(seed, PIECE)).collect();
    blobs.iter().for_each(|blob| blob.put(&store));
    let huge = Blob::new(100, 11 * PIECE);
    match store.create(huge.metainfo.clone(), None) {
        Err(CreateError::NoSpace(error)) => {
            assert_eq!(error, NoSpace { needed: charge(huge.metainfo.size()), free: 10 * PIECE as u64 });
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(list(&store).len(), 8);
    assert!(store.lookup(&huge.digest()).unwrap().is_none());
    assert_eq!(store.usage().refused_no_space, 1);

    // Nothing may go, so the watermark may be passed but not the capacity.
    blobs.iter().for_each(|blob| assert!(store.set_anchored(&blob.digest(), false).unwrap()));
    for seed in [50, 51] {
        let blob = Blob::new(seed, PIECE);
        blob.put(&store);
        store.set_anchored(&blob.digest(), false).unwrap();
    }
    assert!(matches!(store.create(Blob::new(52, 1).metainfo, None), Err(CreateError::NoSpace(_))));
    let id = UploadId::from_bytes([1; 16]);
    assert!(matches!(store.upload_begin(id), Err(UploadError::NoSpace(_))));
    assert_eq!(list(&store).len(), 10);
    // Told that one is safe, the store goes on.
    store.set_anchored(&blobs[0].digest(), true).unwrap();
    store.upload_begin(id).unwrap();
    assert!(store.lookup(&blobs[0].digest()).unwrap().is_none());
}

#[test]
fn evict_goes_from_high_to_low() {
    let dir = tempfile::tempdir().unwrap();
    let blobs: Vec<_> = (0..10).map(|seed| Blob::new(seed, PIECE)).collect();
    let store = open(dir.path());
    blobs.iter().for_each(|blob| blob.put(&store));
    drop(store);
    let store = small(dir.path());
    let gone = store.evict(NOW).unwrap();
    assert_eq!(gone, blobs[..5].iter().map(Blob::digest).collect::<Vec<_>>());
    assert_eq!(store.evict(NOW).unwrap(), []);
}

#[test]
fn without_a_capacity_the_filesystem_is_the_bound() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { capacity_bytes: None, free_bytes_min: 1000, ..config(dir.path()) };
    let (store, _) = Store::open(config, NOW).unwrap();
    let first = Blob::new(1, PIECE);
    first.put(&store);
    let piece = PIECE as u64;
    store.inner.disk.faults.claim_available(Some(piece + 1000));
    assert_eq!(store.usage().capacity_bytes, 2 * piece);
    // A second would take it to the end of the disk, so the first goes.
    Blob::new(2, PIECE).put(&store);
    assert!(store.lookup(&first.digest()).unwrap().is_none());
    store.inner.disk.faults.claim_available(Some(999));
    store.set_anchored(&Blob::new(2, PIECE).digest(), false).unwrap();
    assert!(matches!(store.create(first.metainfo, None), Err(CreateError::NoSpace(_))));
}

#[test]
fn a_full_disk_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let faults = &store.inner.disk.faults;
    let (kept, blob) = (Blob::new(1, PIECE + 9), Blob::new(2, 2 * PIECE));
    kept.put(&store);
    let used = store.usage().used_bytes;

    faults.limit_space(Some(PIECE as u64));
    assert!(matches!(store.create(blob.metainfo.clone(), None), Err(CreateError::NoSpace(_))));
    assert!(store.lookup(&blob.digest()).unwrap().is_none());
    assert_eq!((store.usage().used_bytes, file_count(&dir.path().join("partial"))), (used, 0));
    faults.limit_space(None);
    store.create(blob.metainfo.clone(), None).unwrap();

    // A filesystem without allocation is full when a piece is written.
    faults.tear_writes(true);
    let torn = store.write_piece(&blob.digest(), blob.piece(0), blob.bytes_of(0));
    assert!(matches!(torn, Err(WriteError::NoSpace(_))));
    assert!(matches!(store.read_piece(&blob.digest(), blob.piece(0)), Err(ReadError::Missing { .. })));
    faults.tear_writes(false);
    blob.write(&store, 0..2);
    blob.assert_readable(&store);

    let id = UploadId::from_bytes([1; 16]);
    store.upload_begin(id).unwrap();
    store.upload_append(id, 0, &kept.data[..100]).unwrap();
    let used = store.usage().used_bytes;
    faults.tear_writes(true);
    assert!(matches!(store.upload_append(id, 100, &kept.data[100..]), Err(UploadError::NoSpace(_))));
    faults.tear_writes(false);
    assert_eq!((store.upload_offset(id), store.usage().used_bytes), (Some(100), used));
    assert_eq!(dir.path().join("uploads").join(id.to_string()).metadata().unwrap().len(), 100);
    store.upload_append(id, 100, &kept.data[100..]).unwrap();
    store.upload_finish(id, &kept.digest()).unwrap();
    kept.assert_readable(&store);
}
