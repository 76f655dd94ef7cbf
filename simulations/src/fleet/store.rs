//! What a node's disk holds.

use std::sync::Arc;

use shoal_engine::prefetch::{prefetch, prefetch_at, prefetch_ends};
use shoal_types::{Bitfield, Metainfo, VouchedMetainfo};

/// Blobs whose pieces are prefetched: most nodes have no more.
const PREFETCHED_BLOBS: usize = 2;

/// What a node's disk holds of a blob.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) metainfo: Arc<Metainfo>,
    pub(crate) vouched: Option<Arc<VouchedMetainfo>>,
    pub(crate) pieces: Bitfield,
    pub(crate) complete: bool,
    /// Pieces the running digest has seen: all before this one.
    pub(crate) hashed: u32,
}

/// All that a node's disk holds, side by side in order of the blobs' numbers.
#[derive(Debug, Default)]
pub(crate) struct Store(Vec<(u32, Held)>);

impl Store {
    fn place(&self, blob: u32) -> Result<usize, usize> {
        self.0.binary_search_by_key(&blob, |(number, _)| *number)
    }

    pub(crate) fn get(&self, blob: u32) -> Option<&Held> {
        self.place(blob).ok().map(|place| &self.0[place].1)
    }

    pub(crate) fn get_mut(&mut self, blob: u32) -> Option<&mut Held> {
        self.place(blob).ok().map(|place| &mut self.0[place].1)
    }

    /// Puts a blob in, in place of what was there of it.
    pub(crate) fn insert(&mut self, blob: u32, held: Held) {
        match self.place(blob) {
            Ok(place) => self.0[place].1 = held,
            Err(place) => self.0.insert(place, (blob, held)),
        }
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut Held> {
        self.0.iter_mut().map(|(_, held)| held)
    }

    /// Prefetches where it is.
    #[inline]
    pub(crate) fn prefetch(&self) {
        prefetch(&self.0);
    }

    /// Prefetches the blobs' entries.
    #[inline]
    pub(crate) fn prefetch_blobs(&self) {
        self.0.iter().take(PREFETCHED_BLOBS).for_each(prefetch_ends);
    }

    /// Prefetches what tells whether a piece of one of few blobs is there.
    #[inline]
    pub(crate) fn prefetch_piece(&self, piece: u32) {
        for (_, held) in self.0.iter().take(PREFETCHED_BLOBS) {
            prefetch_at(held.pieces.words(), (piece / u64::BITS) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::{Rng as _, SeedableRng as _};

    #[test]
    fn what_was_put_in_last_is_there() {
        let truth = crate::Truth::new(1, 1 << 20);
        let mut random = rand_pcg::Pcg64::seed_from_u64(6);
        let (mut store, mut model) = (Store::default(), std::collections::BTreeMap::new());
        for hashed in 0..200 {
            let blob = (random.next_u64() % 50) as u32;
            let pieces = truth.metainfo.empty_bitfield();
            let held =
                Held { metainfo: truth.metainfo.clone(), vouched: None, pieces, complete: false, hashed };
            store.insert(blob, held);
            model.insert(blob, hashed);
            for blob in 0..50 {
                let known = model.get(&blob).copied();
                assert_eq!(store.get(blob).map(|held| held.hashed), known);
                assert_eq!(store.get_mut(blob).map(|held| held.hashed), known);
            }
            assert!(store.values_mut().map(|held| held.hashed).eq(model.values().copied()));
        }
    }
}
