//! Maps by peer and by digest, and lists by number.
//!
//! Every message is looked up by several of them, and what that costs is memory touched. These maps keep a few bytes
//! of all keys side by side, so that a look goes through a few cache lines one after the other and then to the value,
//! and only maps of many keys have a table of places besides. Values are side by side too, and are gone through in the
//! order in which they came (what is taken out leaves its place to the last one), whatever the keys are.

use std::cell::Cell;
use std::fmt::{Debug, Formatter};

use hashbrown::HashTable;
use shoal_types::{Digest, PeerId};
use smallvec::SmallVec;

use crate::prefetch::prefetch_list;

/// What is looked up by. Keys and digests are spread evenly, so that their first bytes nearly always tell them apart. Whoever
/// makes some that are alike there makes a look as long as that many steps: of peers no more than have a credential and a
/// place, of blobs no more than twice as many as there may be swarms.
pub(crate) trait Key: Copy + Eq {
    /// Eight bytes that nearly always tell keys apart.
    fn head(&self) -> u64;
}

impl Key for PeerId {
    #[inline]
    fn head(&self) -> u64 {
        self.head()
    }
}

impl Key for Digest {
    #[inline]
    fn head(&self) -> u64 {
        self.head()
    }
}

/// That of FxHash (Firefox, rustc).
const FACTOR: u64 = 0x517c_c1b7_2722_0a95;

/// A table takes places from the low bits and tells neighbours apart by the seven highest.
fn hash_of(head: u64) -> u64 {
    (head ^ head >> 32).wrapping_mul(FACTOR).rotate_left(26)
}

/// Heads that are compared at once.
const LANES: usize = 16;
/// What maps keep side by side of a head.
fn short(head: u64) -> u16 {
    (head.wrapping_mul(FACTOR) >> 48) as u16
}

/// What maps keep of a head to tell at once that it is not the one found last.
fn half(head: u64) -> u32 {
    (head >> u32::BITS) as u32
}

/// Keys that are gone through one after the other: their heads fill four cache lines, which are fetched at once. A table's places are
/// found in two, the one after the other.
const SCANNED_MAX: usize = 128;

/// Cache lines of as many heads.
const SCANNED_MAX_LINES: usize = 4;

/// A map, as large as a cache line. See the module's documentation.
pub(crate) struct Map<K, V> {
    heads: Vec<u16>,
    entries: Vec<(K, V)>,
    /// Places by key, of more than [`SCANNED_MAX`] keys; else none.
    table: Option<Box<HashTable<usize>>>,
    /// What was found last, which is looked for again more often than not: half of its head, and its place.
    last: Cell<(u32, u32)>,
}

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Self { heads: Vec::new(), entries: Vec::new(), table: None, last: Cell::default() }
    }
}

impl<K: Debug, V: Debug> Debug for Map<K, V> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.entries.iter().map(|(key, value)| (key, value))).finish()
    }
}

impl<K: Key, V> Map<K, V> {
    #[inline]
    fn is_at(&self, place: usize, key: &K) -> bool {
        self.entries.get(place).is_some_and(|(known, _)| known == key)
    }

    #[inline]
    fn place_of(&self, key: &K) -> Option<usize> {
        let head = key.head();
        let (known, last) = self.last.get();
        let last = last as usize;
        if known == half(head) && self.is_at(last, key) { Some(last) } else { self.look_for(head, key) }
    }

    #[inline(never)]
    fn look_for(&self, head: u64, key: &K) -> Option<usize> {
        let place = match &self.table {
            None => self.scan(head, key)?,
            Some(table) => *table.find(hash_of(head), |place| self.is_at(*place, key))?,
        };
        self.note_last(head, place);
        Some(place)
    }

    /// Notes what was found. Whatever is noted, a look compares the whole key.
    #[inline]
    fn note_last(&self, head: u64, place: usize) {
        self.last.set((half(head), u32::try_from(place).unwrap_or(u32::MAX)));
    }

    fn scan(&self, head: u64, key: &K) -> Option<usize> {
        let short = short(head);
        let mut from = 0_usize;
        for heads in self.heads.chunks(LANES) {
            // Without a branch for each the processor compares several at once.
            if heads.iter().fold(false, |any, known| any | (*known == short)) {
                for (lane, known) in heads.iter().enumerate() {
                    let place = from.saturating_add(lane);
                    if *known == short && self.is_at(place, key) {
                        return Some(place);
                    }
                }
            }
            from = from.saturating_add(LANES);
        }
        None
    }

    /// Prefetches what a look goes through in a map that has no table.
    #[inline]
    pub(crate) fn prefetch_keys(&self) {
        if self.table.is_none() {
            prefetch_list(&self.heads, SCANNED_MAX_LINES);
        }
    }

    /// A key's entry, or one that looks like it, found without reading any entry, so that it can be prefetched; `None` in a large map.
    #[inline]
    pub(crate) fn likely(&self, key: &K) -> Option<(&K, &V)> {
        self.entry_at(self.likely_place(key)?)
    }

    /// The place of that entry.
    #[inline]
    pub(crate) fn likely_place(&self, key: &K) -> Option<usize> {
        let head = key.head();
        let (known, last) = self.last.get();
        if known == half(head) {
            return Some(last as usize);
        }
        if self.table.is_some() {
            return None;
        }
        let short = short(head);
        self.heads.iter().position(|known| *known == short)
    }

    /// Prefetches so many cache lines of entries.
    #[inline]
    pub(crate) fn prefetch_entries(&self, lines: usize) {
        prefetch_list(&self.entries, lines);
    }

    /// The place of a key that was at `place` once, most likely still is, and will be looked for again.
    pub(crate) fn recall(&self, key: &K, place: usize) -> Option<usize> {
        if self.is_at(place, key) {
            self.note_last(key.head(), place);
            return Some(place);
        }
        self.place_of(key)
    }

    /// The place of a key, as [`Self::values`] counts them.
    pub(crate) fn place(&self, key: &K) -> Option<usize> {
        self.place_of(key)
    }

    /// The key and value at a place.
    pub(crate) fn entry_at(&self, place: usize) -> Option<(&K, &V)> {
        self.entries.get(place).map(|(key, value)| (key, value))
    }

    /// The value at a place, as [`Self::values`] counts them.
    pub(crate) fn at(&self, place: usize) -> Option<&V> {
        self.entries.get(place).map(|(_, value)| value)
    }

    #[inline]
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(self.place_of(key)?).map(|(_, value)| value)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let place = self.place_of(key)?;
        self.entries.get_mut(place).map(|(_, value)| value)
    }

    #[inline]
    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.place_of(key).is_some()
    }

    /// Puts a value in; returns the one that was there.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        if let Some(known) = self.get_mut(&key) {
            return Some(std::mem::replace(known, value));
        }
        self.add(key, value);
        None
    }

    /// The value of a key; a new one if there is none.
    pub(crate) fn get_or_insert_with(&mut self, key: K, fresh: impl FnOnce() -> V) -> Option<&mut V> {
        if !self.contains_key(&key) {
            self.add(key, fresh());
        }
        self.get_mut(&key)
    }

    /// Puts in a key that is not there.
    fn add(&mut self, key: K, value: V) {
        let (place, head) = (self.entries.len(), key.head());
        self.heads.push(short(head));
        self.entries.push((key, value));
        self.note_last(head, place);
        let entries = &self.entries;
        let hash = |place: &usize| entries.get(*place).map_or(0, |(key, _)| hash_of(key.head()));
        match &mut self.table {
            Some(table) => {
                table.insert_unique(hash_of(head), place, hash);
            }
            None if entries.len() > SCANNED_MAX => {
                let table = self.table.insert(Box::new(HashTable::with_capacity(entries.len())));
                for place in 0..entries.len() {
                    table.insert_unique(hash(&place), place, hash);
                }
            }
            None => {}
        }
    }

    /// Takes a key out; the last one comes to its place.
    pub(crate) fn swap_remove(&mut self, key: &K) -> Option<V> {
        let place = self.place_of(key)?;
        let last = self.entries.len().saturating_sub(1);
        if self.entries.len() <= SCANNED_MAX / 2 {
            self.table = None;
        } else if let Some(table) = &mut self.table {
            let hash = |place: usize| self.entries.get(place).map_or(0, |(key, _)| hash_of(key.head()));
            if let Ok(found) = table.find_entry(hash(place), |known| *known == place) {
                found.remove();
            }
            if let Some(moved) = table.find_mut(hash(last), |known| *known == last) {
                *moved = place;
            }
        }
        self.heads.swap_remove(place);
        Some(self.entries.swap_remove(place).1)
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (&K, &V)> + DoubleEndedIterator {
        self.entries.iter().map(|(key, value)| (key, value))
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &K> {
        self.entries.iter().map(|(key, _)| key)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.entries.iter().map(|(_, value)| value)
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.entries.iter_mut().map(|(_, value)| value)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// A set. See the module's documentation.
#[derive(Debug)]
pub(crate) struct Set<K>(Map<K, ()>);

impl<K> Default for Set<K> {
    fn default() -> Self {
        Self(Map::default())
    }
}

impl<K: Key> Set<K> {
    pub(crate) fn insert(&mut self, key: K) {
        self.0.insert(key, ());
    }

    pub(crate) fn swap_remove(&mut self, key: &K) {
        self.0.swap_remove(key);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Few values by number, side by side in order of the numbers. Up to `INLINE` of them need no memory of their own.
#[derive(Clone, Debug)]
pub(crate) struct Sorted<V, N = u32, const INLINE: usize = 0>(SmallVec<[(N, V); INLINE]>);

impl<V, N, const INLINE: usize> Default for Sorted<V, N, INLINE> {
    fn default() -> Self {
        Self(SmallVec::new())
    }
}

impl<V, N: Copy + Ord, const INLINE: usize> Sorted<V, N, INLINE> {
    /// Prefetches so many cache lines.
    #[inline]
    pub(crate) fn prefetch(&self, lines: usize) {
        prefetch_list(&self.0, lines);
    }

    fn search(&self, number: N) -> Result<usize, usize> {
        // What comes in order goes behind the last.
        match self.0.last() {
            Some((last, _)) if *last < number => Err(self.0.len()),
            _ => self.0.binary_search_by_key(&number, |(number, _)| *number),
        }
    }

    pub(crate) fn get(&self, number: N) -> Option<&V> {
        self.search(number).ok().and_then(|place| self.0.get(place)).map(|(_, value)| value)
    }

    pub(crate) fn get_mut(&mut self, number: N) -> Option<&mut V> {
        let place = self.search(number).ok()?;
        self.0.get_mut(place).map(|(_, value)| value)
    }

    pub(crate) fn contains(&self, number: N) -> bool {
        self.search(number).is_ok()
    }

    /// Puts a value in; returns the one that was there.
    pub(crate) fn insert(&mut self, number: N, value: V) -> Option<V> {
        match self.search(number) {
            Ok(place) => self.0.get_mut(place).map(|(_, known)| std::mem::replace(known, value)),
            Err(place) => {
                self.0.insert(place, (number, value));
                None
            }
        }
    }

    pub(crate) fn remove(&mut self, number: N) -> Option<V> {
        self.search(number).ok().map(|place| self.0.remove(place).1)
    }

    pub(crate) fn retain(&mut self, mut keep: impl FnMut(N, &V) -> bool) {
        self.0.retain(|(number, value)| keep(*number, value));
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (N, &V)> {
        self.0.iter().map(|(number, value)| (*number, value))
    }

    /// The values, from the first behind `number` on and around.
    pub(crate) fn around(&self, number: N) -> impl Iterator<Item = &V> {
        let first = self.0.partition_point(|(known, _)| *known <= number);
        let (before, behind) = self.0.split_at_checked(first).unwrap_or((&self.0, &[]));
        behind.iter().chain(before).map(|(_, value)| value)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.0.iter().map(|(_, value)| value)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (N, &mut V)> {
        self.0.iter_mut().map(|(number, value)| (*number, value))
    }

    pub(crate) fn into_iter(self) -> impl Iterator<Item = (N, V)> {
        self.0.into_iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// A key whose head it shares with three others.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Alike(u32);

    impl Key for Alike {
        fn head(&self) -> u64 {
            (u64::from(self.0) / 4).wrapping_mul(FACTOR)
        }
    }

    proptest! {
        /// Against the naive model, a list, with so many keys that the table comes and goes.
        #[test]
        fn is_a_map_in_order(ops in prop::collection::vec((0u8..5, 0u32..400), 0..2000)) {
            let mut map = Map::default();
            let mut model: Vec<(u32, usize)> = Vec::new();
            for (count, (op, key)) in ops.into_iter().enumerate() {
                let at = model.iter().position(|(known, _)| *known == key);
                // Long runs of one kind: it fills and empties.
                let op = if count % 1000 < 600 { op } else { 4_u8.abs_diff(op) };
                match op {
                    0..=2 => {
                        let before = map.insert(Alike(key), count);
                        prop_assert_eq!(before, at.map(|at| std::mem::replace(&mut model[at].1, count)));
                        if at.is_none() { model.push((key, count)); }
                    }
                    3 => {
                        let value = *map.get_or_insert_with(Alike(key), || count).unwrap();
                        if at.is_none() { model.push((key, count)); }
                        prop_assert_eq!(value, at.map_or(count, |at| model[at].1));
                    }
                    _ => prop_assert_eq!(map.swap_remove(&Alike(key)), at.map(|at| model.swap_remove(at).1)),
                }
                let at = model.iter().position(|(known, _)| *known == key / 2);
                prop_assert_eq!(map.recall(&Alike(key / 2), key as usize / 3), at);
                prop_assert_eq!(map.get(&Alike(key / 2)).copied(), at.map(|at| model[at].1));
                prop_assert_eq!(map.len(), model.len());
            }
            prop_assert!(map.iter().map(|(key, value)| (key.0, *value)).eq(model.iter().copied()));
            for (key, value) in &model {
                prop_assert_eq!(map.get(&Alike(*key)), Some(value));
            }
        }
    }

    proptest! {
        /// Against the standard library's.
        #[test]
        fn is_a_map_in_order_of_numbers(ops in prop::collection::vec((0u8..3, 0u32..30), 0..200)) {
            let mut sorted = Sorted::<_, u32, 2>::default();
            let mut model = std::collections::BTreeMap::new();
            for (count, (op, number)) in ops.into_iter().enumerate() {
                match op {
                    0 => prop_assert_eq!(sorted.insert(number, count), model.insert(number, count)),
                    1 => prop_assert_eq!(sorted.remove(number), model.remove(&number)),
                    _ => {
                        prop_assert_eq!(sorted.get(number), model.get(&number));
                        prop_assert_eq!(sorted.contains(number), model.contains_key(&number));
                        let around = model.range(number.saturating_add(1)..).chain(model.range(..=number));
                        prop_assert!(sorted.around(number).eq(around.map(|(_, value)| value)));
                    }
                }
                prop_assert!(sorted.iter().eq(model.iter().map(|(number, value)| (*number, value))));
                prop_assert_eq!((sorted.len(), sorted.is_empty()), (model.len(), model.is_empty()));
            }
        }
    }

    #[test]
    fn what_is_likely_is_what_is_looked_for() {
        let keys: Vec<PeerId> = (0..100).map(|n| PeerId::from_public_key([n; 32])).collect();
        let mut map = Map::default();
        for (key, value) in keys.iter().zip(0..) {
            assert_eq!(map.insert(*key, value), None);
        }
        for key in &keys {
            // Not the one that was found last, and then that.
            assert_eq!(map.likely(key), map.iter().find(|(known, _)| *known == key));
            assert!(map.contains_key(key));
            assert_eq!(map.likely(key), map.iter().find(|(known, _)| *known == key));
        }
        assert_eq!(map.likely(&PeerId::from_public_key([200; 32])), None);
    }

    #[test]
    #[cfg(target_pointer_width = "64")]
    fn a_map_is_a_cache_line() {
        assert_eq!(size_of::<Map<Digest, [u8; 100]>>(), 64);
    }

    fn places<K: Key>(keys: impl Iterator<Item = K>) -> (usize, usize) {
        let hashes: Vec<u64> = keys.map(|key| hash_of(key.head())).collect();
        let count =
            |bits: &dyn Fn(u64) -> u64| hashes.iter().map(|hash| bits(*hash)).collect::<BTreeSet<_>>().len();
        (count(&|hash| hash % 1024), count(&|hash| hash >> 57))
    }

    #[test]
    fn hashes_of_digests_and_peers_are_spread() {
        let digest = |n: u32| Digest::sha256(&n.to_le_bytes());
        // Of 1024 balls in 1024 places 647 are expected to have one.
        let peers = places(
            (0..1024).map(|n| PeerId::from_public_key(*digest(n).as_bytes().first_chunk::<32>().unwrap())),
        );
        for (low, high) in [places((0..1024).map(digest)), peers] {
            assert!(low > 600 && high == 128, "{low} {high}");
        }
    }
}
