use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};

use shoal_types::{Credential, Keypair, MeshKey, Role, Roles, Signed, VouchedMetainfo};

use super::*;
use crate::*;

fn vouch(metainfo: &Metainfo) -> Arc<VouchedMetainfo> {
    let signer = Keypair::from_secret(&[2; 32]);
    Arc::new(VouchedMetainfo {
        metainfo: Signed::sign(metainfo.clone(), &signer),
        credential: MeshKey::from_secret(&[1; 32]).issue(Credential {
            peer: signer.peer_id(),
            roles: Roles::NONE.with(Role::Origin),
            zone: Default::default(),
            namespaces: vec![],
            not_before: Default::default(),
            not_after: Default::default(),
            issuer: None,
        }),
    })
}

/// Whoever is told of a piece must be able to verify it.
#[test]
fn a_live_blobs_pieces_are_seen_when_their_hashes_are() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let blob = Blob::new(11, 4 * PIECE);
    let (digest, layout) = (blob.digest(), blob.metainfo.layout());
    let live = |known: u32| {
        let hashes = layout.pieces().take(known as usize).map(|piece| blob.metainfo.hash_of(piece).unwrap());
        Arc::new(Metainfo::live(digest, layout, hashes.collect()).unwrap())
    };
    let seen = |store: &Store| {
        let entry = store.lookup(&digest).unwrap().unwrap();
        (entry.metainfo.known_pieces(), entry.pieces.iter(&layout).map(PieceIndex::get).collect::<Vec<_>>())
    };
    store.create(live(1), None).unwrap();
    blob.write(&store, [0, 1, 2]);
    assert_eq!(seen(&store), (1, vec![0]));
    store.create(live(2), None).unwrap();
    assert_eq!(seen(&store), (2, vec![0, 1]));
    store.create(live(3), None).unwrap();
    assert_eq!(seen(&store), (3, vec![0, 1, 2]));
    store.create(blob.metainfo.clone(), None).unwrap();
    blob.write(&store, [3]);
    store.check_digest(&digest).unwrap();
    blob.assert_readable(&store);
}

#[test]
fn pieces_in_any_order_make_a_blob() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let blob = Blob::new(1, 9 * PIECE + 7);
    let digest = blob.digest();
    assert!(store.lookup(&digest).unwrap().is_none());
    assert!(matches!(
        store.write_piece(&digest, blob.piece(0), blob.bytes_of(0)),
        Err(WriteError::Absent(_))
    ));
    store.create(blob.metainfo.clone(), None).unwrap();
    blob.write(&store, [9, 3, 2, 1, 1, 7]);
    let entry = store.lookup(&digest).unwrap().unwrap();
    assert_eq!((entry.pieces.count(), entry.complete), (5, false));
    assert_eq!(entry.metainfo, blob.metainfo);

    let mut buffer = vec![9; 3];
    store.read(&digest, (PIECE as u64 + 5)..(4 * PIECE as u64), &mut buffer).unwrap();
    assert!(buffer == blob.data[PIECE + 5..4 * PIECE]);
    let missing = store.read(&digest, 0..PIECE as u64 + 1, &mut buffer);
    assert!(matches!(missing, Err(ReadError::Missing { piece: 0, .. })));
    let beyond = store.read(&digest, 0..blob.data.len() as u64 + 1, &mut buffer);
    assert!(matches!(beyond, Err(ReadError::Range { .. })));
    assert!(matches!(store.check_digest(&digest), Err(FinishError::Incomplete { missing: 5, .. })));
    assert!(matches!(store.commit(&digest), Err(FinishError::Unchecked(_))));

    blob.write(&store, [0, 4, 5, 6, 8]);
    assert!(!store.lookup(&digest).unwrap().unwrap().complete);
    store.check_digest(&digest).unwrap();
    assert!(store.lookup(&digest).unwrap().unwrap().complete);
    assert_eq!(store.path(&digest), None);
    store.commit(&digest).unwrap();
    store.commit(&digest).unwrap();
    assert!(std::fs::read(store.path(&digest).unwrap()).unwrap() == blob.data);
    blob.assert_readable(&store);
    assert_eq!(store.read_piece(&digest, blob.piece(9)).unwrap(), blob.bytes_of(9));
    assert_eq!(file_count(&dir.path().join("partial")), 0);

    let (store, report) = reopen(store, dir.path());
    assert_eq!(report, RepairReport { complete: 1, ..Default::default() });
    assert!(store.lookup(&digest).unwrap().unwrap().complete);
    blob.assert_readable(&store);
}

#[test]
fn a_partial_blob_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let blob = Blob::new(1, 3 * PIECE);
    store.create(blob.metainfo.clone(), Some(vouch(&blob.metainfo))).unwrap();
    blob.write(&store, [0, 2]);
    let (store, report) = reopen(store, dir.path());
    assert_eq!(report, RepairReport { partial: 1, ..Default::default() });
    let entry = store.lookup(&blob.digest()).unwrap().unwrap();
    assert_eq!(entry.pieces.iter(&blob.metainfo.layout()).map(PieceIndex::get).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(entry.vouched, Some(vouch(&blob.metainfo)));
    blob.write(&store, [1]);
    store.check_digest(&blob.digest()).unwrap();
    store.commit(&blob.digest()).unwrap();
    blob.assert_readable(&store);
}

#[test]
fn pieces_of_a_wrong_digest_are_thrown_away() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (tell, told) = mpsc::channel();
    store.on_removal(move |digest, why| tell.send((digest, why)).unwrap());
    let liar = Blob::liar(1, 2 * PIECE);
    store.create(liar.metainfo.clone(), None).unwrap();
    liar.write(&store, 0..2);
    let wanted = liar.digest();
    match store.check_digest(&wanted) {
        Err(FinishError::DigestMismatch { got }) => assert_eq!(got, Digest::sha256(&liar.data)),
        other => panic!("{other:?}"),
    }
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [(wanted, RemovalReason::Corrupt)]);
    assert!(store.lookup(&wanted).unwrap().is_none());
    assert_eq!(file_count(&dir.path().join("partial")) + file_count(&dir.path().join("blobs")), 0);
    assert_eq!(store.usage().used_bytes, 0);
    let put = store.put_bytes(&liar.metainfo, None, &liar.data);
    assert!(matches!(put, Err(PutError::Mismatch(_))));
}

#[test]
fn small_blobs_go_in_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for blob in [Blob::new(1, 0), Blob::new(2, 700), Blob::of(Algorithm::Sha512, 3, PIECE + 1)] {
        assert!(matches!(
            store.put_bytes(&blob.metainfo, None, &[&blob.data[..], b"x"].concat()),
            Err(PutError::Mismatch(_))
        ));
        store.put_bytes(&blob.metainfo, None, &blob.data).unwrap();
        store.put_bytes(&blob.metainfo, None, &blob.data).unwrap();
        blob.assert_readable(&store);
    }
    assert!(store.blobs().iter().all(|blob| blob.complete && !blob.anchored));
    let (store, report) = reopen(store, dir.path());
    assert_eq!(report, RepairReport { complete: 3, ..Default::default() });
    assert!(store.blobs().iter().all(|blob| blob.complete && !blob.anchored));
}

#[test]
fn other_pieces_of_a_blob_under_way_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let honest = Blob::new(1, 2 * PIECE);
    let mut hashes: Vec<_> = (0..2).map(|n| honest.metainfo.hash_of(honest.piece(n)).unwrap()).collect();
    hashes.reverse();
    let other = Arc::new(Metainfo::new(honest.digest(), honest.metainfo.layout(), hashes).unwrap());
    store.create(honest.metainfo.clone(), None).unwrap();
    store.create(honest.metainfo.clone(), None).unwrap();
    assert!(matches!(store.create(other.clone(), None), Err(CreateError::Conflict(_))));
    assert!(matches!(store.set_vouched(vouch(&other)), Err(VouchStoreError::Conflict(_))));
    store.set_vouched(vouch(&honest.metainfo)).unwrap();
    assert_eq!(store.lookup(&honest.digest()).unwrap().unwrap().vouched, Some(vouch(&honest.metainfo)));
    let absent = Blob::new(2, 5);
    assert!(matches!(store.set_vouched(vouch(&absent.metainfo)), Err(VouchStoreError::Absent(_))));
    // Once complete, any cut is fine.
    honest.put(&store);
    store.create(other, None).unwrap();
    let (store, _) = reopen(store, dir.path());
    assert_eq!(store.lookup(&honest.digest()).unwrap().unwrap().vouched, Some(vouch(&honest.metainfo)));
}

#[test]
fn wrong_lengths_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (short, long) = (Blob::new(1, PIECE + 5), Blob::new(2, 3 * PIECE));
    store.create(short.metainfo.clone(), None).unwrap();
    let write = |piece, data: &[u8]| store.write_piece(&short.digest(), piece, data);
    assert!(matches!(write(short.piece(1), &[0; 4]), Err(WriteError::Length { wanted: 5, got: 4, .. })));
    assert!(matches!(write(long.piece(2), &[]), Err(WriteError::Length { wanted: 0, .. })));
    assert!(matches!(
        store.read_piece(&short.digest(), long.piece(2)),
        Err(ReadError::Missing { piece: 2, .. })
    ));
}

#[test]
fn a_pinned_blob_is_deleted_with_its_last_pin() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (tell, told) = mpsc::channel();
    store.on_removal(move |digest, why| tell.send((digest, why)).unwrap());
    let blob = Blob::new(1, PIECE + 5);
    let digest = blob.digest();
    let pin = store.pin(&digest);
    let second = pin.clone();
    blob.put(&store);
    assert_eq!(store.remove(&digest).unwrap(), Removal::Deferred);
    assert_eq!(store.remove(&digest).unwrap(), Removal::Absent);
    assert!(store.lookup(&digest).unwrap().is_none());
    assert!(store.blobs().is_empty());
    blob.assert_readable(&store);
    drop(pin);
    blob.assert_readable(&store);
    assert_eq!(told.try_iter().count(), 0);
    drop(second);
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [(digest, RemovalReason::Deleted)]);
    assert!(matches!(store.read(&digest, 0..1, &mut vec![]), Err(ReadError::Absent(_))));
    assert_eq!(file_count(&dir.path().join("blobs")), 0);

    // Asked for again before the last pin went, it stays.
    let pin = store.pin(&digest);
    blob.put(&store);
    assert_eq!(store.remove(&digest).unwrap(), Removal::Deferred);
    store.create(blob.metainfo.clone(), None).unwrap();
    drop(pin);
    blob.assert_readable(&store);
    assert!(store.lookup(&digest).unwrap().unwrap().complete);
    assert_eq!(store.remove(&digest).unwrap(), Removal::Removed);
    assert_eq!(store.usage().used_bytes, 0);
}

#[test]
fn one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    match Store::open(config(dir.path()), NOW) {
        Err(OpenError::InUse { holder, .. }) => assert_eq!(holder, Some(std::process::id())),
        other => panic!("{other:?}"),
    }
    drop(store);
    open(dir.path());
}

#[test]
fn caches_are_bounded_and_do_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { open_files_max: 2, metainfo_cache_bytes: 1200, ..config(dir.path()) };
    let (store, _) = Store::open(config, NOW).unwrap();
    let blobs: Vec<_> = (0..6).map(|seed| Blob::new(seed, 2 * PIECE)).collect();
    for blob in &blobs {
        store.create(blob.metainfo.clone(), None).unwrap();
    }
    for number in [1, 0] {
        for blob in &blobs {
            blob.write(&store, [number]);
            let (files, metainfos) = store.inner.cached();
            assert!(files <= 2 && metainfos <= 2, "{files} {metainfos}");
        }
    }
    for blob in &blobs {
        store.check_digest(&blob.digest()).unwrap();
        store.commit(&blob.digest()).unwrap();
    }
    blobs.iter().for_each(|blob| blob.assert_readable(&store));
    let (files, metainfos) = store.inner.cached();
    assert!(files <= 2 && metainfos <= 2);
}

#[test]
fn readers_do_not_notice_the_commit() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let blob = Blob::new(1, 4 * PIECE);
    store.create(blob.metainfo.clone(), None).unwrap();
    blob.write(&store, 0..4);
    let done = AtomicBool::new(false);
    let rounds = Mutex::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    blob.assert_readable(&store);
                    *rounds.lock().unwrap() += 1;
                }
            });
        }
        while *rounds.lock().unwrap() < 3 {
            std::thread::yield_now();
        }
        store.check_digest(&blob.digest()).unwrap();
        store.commit(&blob.digest()).unwrap();
        let then = *rounds.lock().unwrap();
        while *rounds.lock().unwrap() < then + 3 {
            std::thread::yield_now();
        }
        done.store(true, Ordering::SeqCst);
    });
}

#[test]
fn many_writers_of_one_blob() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let blob = Blob::new(1, 16 * PIECE);
    std::thread::scope(|scope| {
        for first in 0..4u32 {
            let (store, blob) = (&store, &blob);
            scope.spawn(move || {
                store.create(blob.metainfo.clone(), None).unwrap();
                // Each piece has two writers.
                blob.write(store, (0..16).filter(|n| n % 4 == first || n % 4 == (first + 1) % 4));
            });
        }
    });
    store.check_digest(&blob.digest()).unwrap();
    store.commit(&blob.digest()).unwrap();
    blob.assert_readable(&store);
}

#[test]
fn tables_page_and_batch() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let table = store.table(Table::Records);
    let put = |key: &str| KvOp::Put(key.into(), format!("v{key}").into_bytes());
    table.write_batch(&["a/1", "a/2", "a/3", "b/1"].map(put), true).unwrap();
    table.write_batch(&[KvOp::Delete(b"a/3".to_vec()), put("a/4")], false).unwrap();
    table.put(b"a/5", b"x").unwrap();
    table.delete(b"a/5").unwrap();
    let scan = |prefix: &str, after: Option<&str>, limit| {
        let rows = table.scan_prefix(prefix.as_bytes(), after.map(str::as_bytes), limit).unwrap();
        rows.into_iter().map(|(key, _)| String::from_utf8(key).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(scan("a/", None, 10), ["a/1", "a/2", "a/4"]);
    assert_eq!(scan("a/", None, 2), ["a/1", "a/2"]);
    assert_eq!(scan("a/", Some("a/2"), 2), ["a/4"]);
    assert_eq!(scan("a/", Some("a/20"), 2), ["a/4"]);
    assert_eq!(scan("a/", Some("A"), 1), ["a/1"]);
    assert_eq!(scan("a/", Some("b"), 9), Vec::<String>::new());
    assert_eq!(scan("", None, 0), Vec::<String>::new());
    assert_eq!(store.table(Table::Misc).get(b"a/1").unwrap(), None);
    drop(table);
    let (store, _) = reopen(store, dir.path());
    assert_eq!(store.table(Table::Records).get(b"a/4").unwrap().as_deref(), Some(&b"va/4"[..]));
}
