//! Tests of the store as a whole.
#![expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test may panic"
)]

mod faults;
mod model;
mod operations;
mod repairs;
mod space;
mod uploads;

use std::path::Path;
use std::sync::Arc;

use shoal_types::{Algorithm, Digest, Metainfo, PieceIndex, WallTime};

pub(crate) use faults::Faults;

use crate::{RepairReport, Store, StoreConfig};

/// Smallest piece: what tests cut by.
const PIECE: usize = shoal_types::layout::PIECE_BYTES_MIN as usize;
const NOW: WallTime = WallTime::from_unix_millis(0);

/// A blob of tests: content and metainfo.
#[derive(Clone, Debug)]
struct Blob {
    data: Vec<u8>,
    metainfo: Arc<Metainfo>,
}

impl Blob {
    /// `len` bytes that `seed` determines.
    fn new(seed: u8, len: usize) -> Self {
        Self::of(Algorithm::Sha256, seed, len)
    }

    fn of(algorithm: Algorithm, seed: u8, len: usize) -> Self {
        let mix = |at: usize| (at as u64 ^ u64::from(seed) << 56).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
        let data: Vec<u8> = (0..len).map(|at| mix(at) as u8).collect();
        let metainfo = Arc::new(Metainfo::of_bytes(algorithm, &data).unwrap());
        Self { data, metainfo }
    }

    /// A blob whose metainfo ties right pieces to a wrong digest.
    fn liar(seed: u8, len: usize) -> Self {
        let honest = Self::new(seed, len);
        let layout = honest.metainfo.layout();
        let hashes = layout.pieces().map(|piece| honest.metainfo.hash_of(piece).unwrap()).collect();
        let digest = Digest::sha256(b"something else");
        Self { metainfo: Arc::new(Metainfo::new(digest, layout, hashes).unwrap()), ..honest }
    }

    fn digest(&self) -> Digest {
        self.metainfo.digest()
    }

    fn piece(&self, number: u32) -> PieceIndex {
        self.metainfo.layout().piece(number).unwrap()
    }

    fn bytes_of(&self, number: u32) -> &[u8] {
        let range = self.metainfo.layout().range_of(self.piece(number));
        &self.data[range.start as usize..range.end as usize]
    }

    fn write(&self, store: &Store, numbers: impl IntoIterator<Item = u32>) {
        for number in numbers {
            store.write_piece(&self.digest(), self.piece(number), self.bytes_of(number)).unwrap();
        }
    }

    /// Creates, fills, checks and commits it.
    fn put(&self, store: &Store) {
        store.create(self.metainfo.clone(), None).unwrap();
        self.write(store, 0..self.metainfo.layout().piece_count());
        store.check_digest(&self.digest()).unwrap();
        store.commit(&self.digest()).unwrap();
    }

    fn assert_readable(&self, store: &Store) {
        let mut buffer = Vec::new();
        store.read(&self.digest(), 0..self.data.len() as u64, &mut buffer).unwrap();
        assert!(buffer == self.data, "wrong bytes of {}", self.digest());
    }
}

fn config(dir: &Path) -> StoreConfig {
    StoreConfig { free_bytes_min: 0, capacity_bytes: Some(1 << 30), ..StoreConfig::new(dir) }
}

fn open(dir: &Path) -> Store {
    Store::open(config(dir), NOW).unwrap().0
}

fn reopen(store: Store, dir: &Path) -> (Store, RepairReport) {
    drop(store);
    Store::open(config(dir), NOW).unwrap()
}

fn list(store: &Store) -> Vec<Digest> {
    let mut digests: Vec<_> = store.blobs().into_iter().map(|blob| blob.digest).collect();
    digests.sort();
    digests
}

fn file_count(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| if entry.path().is_dir() { file_count(&entry.path()) } else { 1 }).sum()
}
