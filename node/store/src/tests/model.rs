//! Random operations on the store and on a naive model of it, restarts and crashes among them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::*;

#[derive(Clone, Debug)]
enum Op {
    Create(usize),
    Write(usize, u32),
    Read(usize, u32),
    Check(usize),
    Commit(usize),
    Put(usize),
    Remove(usize),
    Pin(usize),
    Unpin(usize),
    Anchor(usize, bool),
    Begin(u8),
    /// So many bytes of the blob, from where the upload ends.
    Append(u8, usize, usize),
    Finish(u8, usize),
    Cancel(u8),
    Flush,
    Reopen,
    /// The process is killed: the directory as it is at this moment is all that is left.
    Crash,
}

const BLOBS: usize = 5;
const UPLOADS: u8 = 2;

fn op() -> impl Strategy<Value = Op> {
    let blob = 0..BLOBS;
    let upload = 0..UPLOADS;
    prop_oneof![
        3 => blob.clone().prop_map(Op::Create),
        8 => (blob.clone(), 0u32..3).prop_map(|(blob, piece)| Op::Write(blob, piece)),
        4 => (blob.clone(), 0u32..3).prop_map(|(blob, piece)| Op::Read(blob, piece)),
        3 => blob.clone().prop_map(Op::Check),
        3 => blob.clone().prop_map(Op::Commit),
        1 => blob.clone().prop_map(Op::Put),
        2 => blob.clone().prop_map(Op::Remove),
        1 => blob.clone().prop_map(Op::Pin),
        1 => blob.clone().prop_map(Op::Unpin),
        1 => (blob.clone(), any::<bool>()).prop_map(|(blob, on)| Op::Anchor(blob, on)),
        2 => upload.clone().prop_map(Op::Begin),
        4 => (upload.clone(), blob.clone(), 0usize..2 * PIECE).prop_map(|(u, blob, n)| Op::Append(u, blob, n)),
        3 => (upload.clone(), blob).prop_map(|(upload, blob)| Op::Finish(upload, blob)),
        1 => upload.prop_map(Op::Cancel),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
        1 => Just(Op::Crash),
    ]
}

/// What the model knows of a blob.
#[derive(Clone, Debug, Default)]
struct Known {
    pieces: BTreeSet<u32>,
    checked: bool,
    committed: bool,
    anchored: bool,
    doomed: bool,
}

struct World {
    blobs: Vec<Blob>,
    known: BTreeMap<usize, Known>,
    pins: BTreeMap<usize, Vec<Pin>>,
    uploads: BTreeMap<u8, Vec<u8>>,
    store: Option<Store>,
    dir: tempfile::TempDir,
}

/// What is below a directory: files with their lengths in bytes, directories without.
fn listing(dir: &Path) -> io::Result<BTreeMap<PathBuf, Option<u64>>> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_path_buf()];
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(next)? {
            let entry = entry?;
            let is_dir = entry.file_type()?.is_dir();
            found.insert(entry.path(), (!is_dir).then_some(entry.metadata()?.len()));
            left.extend(is_dir.then(|| entry.path()));
        }
    }
    Ok(found)
}

/// Copies a directory as it is at one moment, which is what a killed process leaves.
///
/// RocksDB's own threads go on creating and deleting files beside us, so a copy counts only if the files were the
/// same before and after it.
pub(super) fn copy_at_one_moment(from: &Path) -> tempfile::TempDir {
    let attempt = || -> io::Result<Option<tempfile::TempDir>> {
        let copy = tempfile::tempdir()?;
        let before = listing(from)?;
        for (path, len) in &before {
            let target = copy.path().join(path.strip_prefix(from).unwrap());
            match len {
                None => std::fs::create_dir(target)?,
                Some(_) => drop(std::fs::copy(path, target)?),
            }
        }
        Ok((listing(from)? == before).then_some(copy))
    };
    for _ in 0..1_000 {
        match attempt() {
            Ok(Some(copy)) => return copy,
            Ok(None) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{} does not come to rest", from.display());
}

fn id(upload: u8) -> UploadId {
    UploadId::from_bytes([upload; 16])
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let blobs = vec![
            Blob::new(0, 0),
            Blob::new(1, 5),
            Blob::new(2, PIECE + 1),
            Blob::of(Algorithm::Sha512, 3, 3 * PIECE),
            Blob::liar(4, 2 * PIECE),
        ];
        assert_eq!(blobs.len(), BLOBS);
        let store = Some(open(dir.path()));
        Self { blobs, known: BTreeMap::new(), pins: BTreeMap::new(), uploads: BTreeMap::new(), store, dir }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn is_liar(blob: usize) -> bool {
        blob == BLOBS - 1
    }

    fn count(&self, blob: usize) -> u32 {
        self.blobs[blob].metainfo.layout().piece_count()
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Create(blob) => self.create(blob),
            Op::Write(blob, piece) => self.write(blob, piece),
            Op::Read(blob, piece) => self.read(blob, piece),
            Op::Check(blob) => self.check(blob),
            Op::Commit(blob) => self.commit(blob),
            Op::Put(blob) => self.put(blob),
            Op::Remove(blob) => self.remove(blob),
            Op::Pin(blob) => {
                let pin = self.store().pin(&self.blobs[blob].digest());
                self.pins.entry(blob).or_default().push(pin);
            }
            Op::Unpin(blob) => self.unpin(blob),
            Op::Anchor(blob, on) => {
                let is = self.store().set_anchored(&self.blobs[blob].digest(), on).unwrap();
                assert_eq!(is, self.known.contains_key(&blob));
                if let Some(known) = self.known.get_mut(&blob) {
                    known.anchored = on;
                }
            }
            Op::Begin(upload) => {
                let begun = self.store().upload_begin(id(upload));
                assert_eq!(begun.is_ok(), !self.uploads.contains_key(&upload), "{begun:?}");
                self.uploads.entry(upload).or_default();
            }
            Op::Append(upload, blob, bytes) => self.append(upload, blob, bytes),
            Op::Finish(upload, blob) => self.finish(upload, blob),
            Op::Cancel(upload) => {
                let was = self.store().upload_cancel(id(upload)).unwrap();
                assert_eq!(was, self.uploads.remove(&upload).is_some());
            }
            Op::Flush => self.store().flush().unwrap(),
            Op::Reopen => self.restart(false),
            Op::Crash => self.restart(true),
        }
    }

    fn create(&mut self, blob: usize) {
        self.store().create(self.blobs[blob].metainfo.clone(), None).unwrap();
        let new = Known { anchored: true, ..Known::default() };
        self.known.entry(blob).or_insert(new).doomed = false;
    }

    fn write(&mut self, blob: usize, piece: u32) {
        if piece >= self.count(blob) {
            return;
        }
        let this = &self.blobs[blob];
        let written = self.store().write_piece(&this.digest(), this.piece(piece), this.bytes_of(piece));
        assert_eq!(written.is_ok(), self.known.contains_key(&blob), "{written:?}");
        if let Some(known) = self.known.get_mut(&blob) {
            known.pieces.insert(piece);
        }
    }

    fn read(&mut self, blob: usize, piece: u32) {
        if piece >= self.count(blob) {
            return;
        }
        let this = &self.blobs[blob];
        let read = self.store().read_piece(&this.digest(), this.piece(piece));
        match self.known.get(&blob) {
            Some(known) if known.pieces.contains(&piece) => assert_eq!(read.unwrap(), this.bytes_of(piece)),
            Some(_) => assert!(matches!(read, Err(ReadError::Missing { .. }))),
            None => assert!(matches!(read, Err(ReadError::Absent(_)))),
        }
    }

    fn check(&mut self, blob: usize) {
        let checked = self.store().check_digest(&self.blobs[blob].digest());
        let count = self.count(blob);
        let Some(known) = self.known.get_mut(&blob) else {
            return assert!(matches!(checked, Err(FinishError::Absent(_))));
        };
        if known.pieces.len() < count as usize {
            return assert!(matches!(checked, Err(FinishError::Incomplete { .. })));
        }
        if Self::is_liar(blob) {
            assert!(matches!(checked, Err(FinishError::DigestMismatch { .. })), "{checked:?}");
            self.known.remove(&blob);
        } else {
            checked.unwrap();
            known.checked = true;
        }
    }

    fn commit(&mut self, blob: usize) {
        let committed = self.store().commit(&self.blobs[blob].digest());
        match self.known.get_mut(&blob) {
            Some(known) if known.checked => {
                committed.unwrap();
                known.committed = true;
            }
            Some(_) => assert!(matches!(committed, Err(FinishError::Unchecked(_)))),
            None => assert!(matches!(committed, Err(FinishError::Absent(_)))),
        }
    }

    fn put(&mut self, blob: usize) {
        let this = &self.blobs[blob];
        let put = self.store().put_bytes(&this.metainfo, None, &this.data);
        if Self::is_liar(blob) {
            assert!(matches!(put, Err(PutError::Mismatch(_))), "{put:?}");
            self.known.remove(&blob);
        } else {
            put.unwrap();
            self.complete(blob);
        }
    }

    fn complete(&mut self, blob: usize) {
        let pieces = (0..self.count(blob)).collect();
        let known = Known { pieces, checked: true, committed: true, anchored: false, doomed: false };
        self.known.insert(blob, known);
    }

    fn remove(&mut self, blob: usize) {
        let removed = self.store().remove(&self.blobs[blob].digest()).unwrap();
        match self.known.get_mut(&blob) {
            None => assert_eq!(removed, Removal::Absent),
            Some(known) if known.doomed => assert_eq!(removed, Removal::Absent),
            Some(known) if self.pins.contains_key(&blob) => {
                assert_eq!(removed, Removal::Deferred);
                known.doomed = true;
            }
            Some(_) => {
                assert_eq!(removed, Removal::Removed);
                self.known.remove(&blob);
            }
        }
    }

    fn unpin(&mut self, blob: usize) {
        let Some(pins) = self.pins.get_mut(&blob) else { return };
        pins.pop();
        if pins.is_empty() {
            self.pins.remove(&blob);
            if self.known.get(&blob).is_some_and(|known| known.doomed) {
                self.known.remove(&blob);
            }
        }
    }

    fn append(&mut self, upload: u8, blob: usize, bytes: usize) {
        let at = self.uploads.get(&upload).map_or(0, Vec::len);
        let data = &self.blobs[blob].data;
        let part = &data[at.min(data.len())..(at + bytes).min(data.len()).max(at.min(data.len()))];
        let appended = self.store().upload_append(id(upload), at as u64, part);
        match self.uploads.get_mut(&upload) {
            Some(content) => {
                content.extend_from_slice(part);
                assert_eq!(appended.unwrap(), content.len() as u64);
            }
            None => assert!(matches!(appended, Err(UploadError::Unknown(_)))),
        }
    }

    fn finish(&mut self, upload: u8, blob: usize) {
        let this = &self.blobs[blob];
        let finished = self.store().upload_finish(id(upload), &this.digest());
        match self.uploads.remove(&upload) {
            None => assert!(matches!(finished, Err(UploadFinishError::Unknown(_)))),
            Some(content) if content == this.data && !Self::is_liar(blob) => {
                assert_eq!(finished.unwrap(), this.metainfo);
                self.complete(blob);
            }
            Some(_) => assert!(matches!(finished, Err(UploadFinishError::DigestMismatch { .. }))),
        }
    }

    fn restart(&mut self, crash: bool) {
        if crash {
            let copy = copy_at_one_moment(self.dir.path());
            self.pins.clear();
            self.store = None;
            self.dir = copy;
        } else {
            self.pins.clear();
            self.store = None;
        }
        // Dropping the pins finishes deletions; after a crash the repair does.
        self.known.retain(|_, known| !known.doomed);
        for known in self.known.values_mut() {
            known.checked = known.committed;
        }
        let (store, report) = Store::open(config(self.dir.path()), NOW).unwrap();
        let complete = self.known.values().filter(|known| known.committed).count() as u64;
        assert_eq!((report.complete, report.partial), (complete, self.known.len() as u64 - complete));
        assert_eq!(report.uploads, self.uploads.len() as u64);
        let expected = RepairReport {
            complete: report.complete,
            partial: report.partial,
            uploads: report.uploads,
            deletions_finished: report.deletions_finished,
            ..Default::default()
        };
        assert_eq!(report, expected, "nothing else was to repair");
        self.store = Some(store);
    }

    fn compare(&self) {
        let mut used = 0;
        for (number, blob) in self.blobs.iter().enumerate() {
            let found = self.store().lookup(&blob.digest()).unwrap();
            let known = self.known.get(&number);
            used += known.map_or(0, |_| crate::index::charge(blob.metainfo.size()));
            let Some(known) = known.filter(|known| !known.doomed) else {
                assert!(found.is_none());
                continue;
            };
            let found = found.unwrap();
            let pieces: BTreeSet<_> =
                found.pieces.iter(&blob.metainfo.layout()).map(PieceIndex::get).collect();
            assert_eq!((&pieces, found.complete), (&known.pieces, known.checked), "blob {number}");
            let summary = self.store().blobs().into_iter().find(|line| line.digest == blob.digest()).unwrap();
            assert_eq!((summary.complete, summary.anchored), (known.committed, known.anchored));
        }
        for upload in 0..UPLOADS {
            let content = self.uploads.get(&upload);
            assert_eq!(self.store().upload_offset(id(upload)), content.map(|content| content.len() as u64));
            used += content.map_or(0, |content| crate::index::charge(content.len() as u64));
        }
        assert_eq!(self.store().usage().used_bytes, used);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_model(ops in prop::collection::vec(op(), 1..60)) {
        let mut world = World::new();
        for op in ops {
            world.apply(op);
            world.compare();
        }
        // What is whole can be read whole, to the end.
        world.restart(true);
        for known in world.known.iter().filter(|(_, known)| known.committed) {
            world.blobs[*known.0].assert_readable(world.store());
        }
    }
}
