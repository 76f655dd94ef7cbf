//! What a crash leaves, made by hand, and what the next start makes of it.

use std::fs;
use std::os::unix::fs::FileExt;

use super::*;
use crate::disk;
use crate::*;

/// A store with a complete and a partial blob (pieces 0 and 2 of 3), closed.
fn two_blobs(dir: &Path) -> (Blob, Blob) {
    let store = open(dir);
    let (whole, part) = (Blob::new(1, PIECE + 5), Blob::new(2, 3 * PIECE));
    whole.put(&store);
    store.create(part.metainfo.clone(), None).unwrap();
    part.write(&store, [0, 2]);
    (whole, part)
}

fn blob_path(dir: &Path, blob: &Blob) -> std::path::PathBuf {
    let hex = blob.digest().hex();
    dir.join("blobs/sha256").join(&hex[..2]).join(hex)
}

fn partial_path(dir: &Path, blob: &Blob) -> std::path::PathBuf {
    dir.join("partial").join(format!("sha256-{}", blob.digest().hex()))
}

fn pieces(store: &Store, blob: &Blob) -> Vec<u32> {
    let entry = store.lookup(&blob.digest()).unwrap().unwrap();
    entry.pieces.iter(&blob.metainfo.layout()).map(PieceIndex::get).collect()
}

fn whole_and_part(report: RepairReport) -> RepairReport {
    RepairReport { complete: 1, partial: 1, ..report }
}

#[test]
fn a_clean_end_needs_no_repair() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, part) = two_blobs(dir.path());
    let (store, report) = Store::open(config(dir.path()), NOW).unwrap();
    assert_eq!(report, whole_and_part(RepairReport::default()));
    whole.assert_readable(&store);
    assert_eq!(pieces(&store, &part), [0, 2]);
    assert_eq!(store.usage().pieces_lost, 0);
}

#[test]
fn records_without_files_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, part) = two_blobs(dir.path());
    fs::remove_file(blob_path(dir.path(), &whole)).unwrap();
    fs::remove_file(partial_path(dir.path(), &part)).unwrap();
    let (store, report) = Store::open(config(dir.path()), NOW).unwrap();
    assert_eq!(report, RepairReport { lost: 2, ..Default::default() });
    assert_eq!((list(&store), store.usage().used_bytes), (vec![], 0));
    whole.put(&store);
    let (_, report) = reopen(store, dir.path());
    assert_eq!(report, RepairReport { complete: 1, ..Default::default() });
}

#[test]
fn a_truncated_complete_blob_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, _) = two_blobs(dir.path());
    fs::File::options().write(true).open(blob_path(dir.path(), &whole)).unwrap().set_len(9).unwrap();
    let (store, report) = Store::open(config(dir.path()), NOW).unwrap();
    assert_eq!(report, RepairReport { partial: 1, lost: 1, ..Default::default() });
    assert!(store.lookup(&whole.digest()).unwrap().is_none());
    assert!(!blob_path(dir.path(), &whole).exists());
}

#[test]
fn claimed_pieces_are_verified_before_use() {
    let dir = tempfile::tempdir().unwrap();
    let (_, part) = two_blobs(dir.path());
    // The bit reached the disk and the bytes did not, all of them, as after a power cut.
    let file = fs::File::options().write(true).open(partial_path(dir.path(), &part)).unwrap();
    file.write_all_at(&[0; 100], 77).unwrap();
    let (store, report) = Store::open(config(dir.path()), NOW).unwrap();
    assert_eq!(report, whole_and_part(RepairReport::default()));
    let read = store.read(&part.digest(), 0..1, &mut vec![]);
    assert!(matches!(read, Err(ReadError::Missing { piece: 0, .. })));
    assert_eq!((pieces(&store, &part), store.usage().pieces_lost), (vec![2], 1));
    // The database was told, too.
    let (store, _) = reopen(store, dir.path());
    assert_eq!((pieces(&store, &part), store.usage().pieces_lost), (vec![2], 0));
    part.write(&store, [0, 1]);
    store.check_digest(&part.digest()).unwrap();
    store.commit(&part.digest()).unwrap();
    part.assert_readable(&store);
}

#[test]
fn a_truncated_partial_blob_loses_its_tail() {
    let dir = tempfile::tempdir().unwrap();
    let (_, part) = two_blobs(dir.path());
    let file = fs::File::options().write(true).open(partial_path(dir.path(), &part)).unwrap();
    file.set_len(2 * PIECE as u64).unwrap();
    let (store, report) = Store::open(config(dir.path()), NOW).unwrap();
    assert_eq!(report, whole_and_part(RepairReport { truncated: 1, ..Default::default() }));
    assert_eq!(pieces(&store, &part), [0]);
    part.put(&store);
    part.assert_readable(&store);
}

#[test]
fn a_commit_cut_off_after_the_rename_is_completed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let blob = Blob::new(1, 2 * PIECE);
    store.create(blob.metainfo.clone(), None).unwrap();
    blob.write(&store, 0..2);
    drop(store);
    fs::create_dir_all(blob_path(dir.path(), &blob).parent().unwrap()).unwrap();
    fs::rename(partial_path(dir.path(), &blob), blob_path(dir.path(), &blob)).unwrap();
    let (store, report) = Store::open(config(dir.path()), NOW).unwrap();
    assert_eq!(report, RepairReport { complete: 1, half_renamed: 1, ..Default::default() });
    blob.assert_readable(&store);
    let (_, report) = reopen(store, dir.path());
    assert_eq!(report, RepairReport { complete: 1, ..Default::default() });
}

#[test]
fn a_record_ahead_of_its_rename_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, _) = two_blobs(dir.path());
    fs::rename(blob_path(dir.path(), &whole), partial_path(dir.path(), &whole)).unwrap();
    let (store, report) = Store::open(config(dir.path()), NOW).unwrap();
    assert_eq!(report, RepairReport { partial: 2, half_renamed: 1, ..Default::default() });
    // Its bits went with the commit, so its pieces come again.
    assert_eq!(pieces(&store, &whole), Vec::<u32>::new());
    whole.put(&store);
    whole.assert_readable(&store);
}

#[test]
fn files_without_records() {
    let dir = tempfile::tempdir().unwrap();
    two_blobs(dir.path());
    let (right, wrong, part) = (Blob::new(7, PIECE + 1), Blob::new(8, 5), Blob::new(9, 6));
    for (path, content) in [
        (blob_path(dir.path(), &right), &right.data[..]),
        (blob_path(dir.path(), &wrong), b"not it"),
        (partial_path(dir.path(), &part), b"zz"),
        (dir.path().join("partial/notes.txt"), b"mine"),
        (dir.path().join("blobs/sha256/README"), b"mine"),
        (dir.path().join("uploads/README"), b"mine"),
    ] {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let (store, report) = Store::open(config(dir.path()), NOW).unwrap();
    let wanted = RepairReport {
        complete: 2,
        partial: 1,
        orphans_adopted: 1,
        orphans_removed: 2,
        foreign: 3,
        ..Default::default()
    };
    assert_eq!(report, wanted);
    right.assert_readable(&store);
    let adopted = store.blobs().into_iter().find(|blob| blob.digest == right.digest()).unwrap();
    assert!(adopted.complete && !adopted.anchored);
    assert!(store.lookup(&wrong.digest()).unwrap().is_none());
    assert!(disk::file_len(&blob_path(dir.path(), &wrong)).unwrap().is_none());
}

#[test]
fn a_lost_database_does_not_lose_complete_blobs() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, part) = two_blobs(dir.path());
    fs::remove_dir_all(dir.path().join("db")).unwrap();
    let (store, report) = Store::open(config(dir.path()), NOW).unwrap();
    let wanted = RepairReport { complete: 1, orphans_adopted: 1, orphans_removed: 1, ..Default::default() };
    assert_eq!(report, wanted);
    whole.assert_readable(&store);
    assert!(store.lookup(&part.digest()).unwrap().is_none());
}

#[test]
fn deletions_that_waited_are_finished() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let blob = Blob::new(1, 5);
    blob.put(&store);
    let pin = store.pin(&blob.digest());
    assert_eq!(store.remove(&blob.digest()).unwrap(), Removal::Deferred);
    std::mem::forget(pin);
    // The pin keeps the store open, so the crash is of a copy.
    let copy = super::model::copy_at_one_moment(dir.path());
    let (store, report) = Store::open(config(copy.path()), NOW).unwrap();
    assert_eq!(report, RepairReport { deletions_finished: 1, ..Default::default() });
    assert_eq!((list(&store), file_count(&copy.path().join("blobs"))), (vec![], 0));
}

#[test]
fn a_record_that_cannot_be_read_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, part) = two_blobs(dir.path());
    let store = open(dir.path());
    store.inner.db.put_raw_record(&whole.digest(), &[1, 0xff]);
    let (store, report) = reopen(store, dir.path());
    assert_eq!(report, RepairReport { partial: 1, unreadable: 1, ..Default::default() });
    assert_eq!(list(&store), [part.digest()]);
    assert!(!blob_path(dir.path(), &whole).exists());
}
