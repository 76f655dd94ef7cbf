//! Maps by digest and by peer.
//!
//! Every message is looked up by both, several times over, and what that costs is memory touched. These maps keep the first eight
//! bytes of all keys side by side, so that a look goes through a few cache lines one after the other and then to the value,
//! and only maps of many keys have a table of places besides. Values are side by side too, and are gone through in the
//! order in which they came (what is taken out leaves its place to the last one), whatever the keys are.

use std::cell::Cell;
use std::fmt::{Debug, Formatter};

use hashbrown::HashTable;
use shoal_types::{Digest, PeerId, PieceIndex};

/// What is looked up by. Keys and digests are spread evenly, so that their first bytes nearly always tell them apart. Whoever
/// makes some that are alike there makes a look as long as that many steps: of peers no more than have a credential and a
/// place, of blobs no more than there may be swarms.
pub(crate) trait Key: Copy + Eq {
    /// Eight bytes that nearly always tell keys apart.
    fn head(&self) -> u64;
}

impl Key for PeerId {
    fn head(&self) -> u64 {
        head_of(self.public_key())
    }
}

impl Key for Digest {
    fn head(&self) -> u64 {
        head_of(self.as_bytes())
    }
}

impl Key for (Digest, u32) {
    fn head(&self) -> u64 {
        self.0.head() ^ u64::from(self.1).wrapping_mul(FACTOR)
    }
}

impl Key for (Digest, PieceIndex) {
    fn head(&self) -> u64 {
        (self.0, self.1.get()).head()
    }
}

fn head_of(bytes: &[u8]) -> u64 {
    bytes.first_chunk::<8>().map_or(0, |head| u64::from_le_bytes(*head))
}

/// That of FxHash (Firefox, rustc).
pub(crate) const FACTOR: u64 = 0x517c_c1b7_2722_0a95;

/// A table takes places from the low bits and tells neighbours apart by the seven highest.
fn hash_of(head: u64) -> u64 {
    (head ^ head >> 32).wrapping_mul(FACTOR).rotate_left(26)
}

/// Keys that are gone through one after the other: their heads fill sixteen cache lines.
const SCANNED_MAX: usize = 128;

/// A map. See the module's documentation.
pub(crate) struct Map<K, V> {
    heads: Vec<u64>,
    entries: Vec<(K, V)>,
    /// Places by key, of more than [`SCANNED_MAX`] keys; else empty.
    table: HashTable<usize>,
    /// What was found last is looked for again more often than not.
    last: Cell<usize>,
}

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Self { heads: Vec::new(), entries: Vec::new(), table: HashTable::new(), last: Cell::new(0) }
    }
}

impl<K: Debug, V: Debug> Debug for Map<K, V> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.entries.iter().map(|(key, value)| (key, value))).finish()
    }
}

impl<K: Key, V> Map<K, V> {
    fn is_at(&self, place: usize, head: u64, key: &K) -> bool {
        self.heads.get(place) == Some(&head) && self.entries.get(place).is_some_and(|(known, _)| known == key)
    }

    fn place_of(&self, key: &K) -> Option<usize> {
        let head = key.head();
        let last = self.last.get();
        if self.is_at(last, head, key) {
            return Some(last);
        }
        let place = if self.table.is_empty() {
            let mut from = 0_usize;
            loop {
                let step = self.heads.get(from..)?.iter().position(|known| *known == head)?;
                let place = from.saturating_add(step);
                if self.is_at(place, head, key) {
                    break place;
                }
                from = place.saturating_add(1);
            }
        } else {
            *self.table.find(hash_of(head), |place| self.is_at(*place, head, key))?
        };
        self.last.set(place);
        Some(place)
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(self.place_of(key)?).map(|(_, value)| value)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let place = self.place_of(key)?;
        self.entries.get_mut(place).map(|(_, value)| value)
    }

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
        self.heads.push(head);
        self.entries.push((key, value));
        self.last.set(place);
        let heads = &self.heads;
        let hash = |place: &usize| hash_of(heads.get(*place).copied().unwrap_or_default());
        if !self.table.is_empty() {
            self.table.insert_unique(hash_of(head), place, hash);
        } else if self.entries.len() > SCANNED_MAX {
            for place in 0..self.entries.len() {
                self.table.insert_unique(hash(&place), place, hash);
            }
        }
    }

    /// Takes a key out; the last one comes to its place.
    pub(crate) fn swap_remove(&mut self, key: &K) -> Option<V> {
        let place = self.place_of(key)?;
        let last = self.entries.len().saturating_sub(1);
        if self.entries.len() <= SCANNED_MAX / 2 {
            self.table.clear();
        } else if !self.table.is_empty() {
            let hash = |place: usize| hash_of(self.heads.get(place).copied().unwrap_or_default());
            if let Ok(found) = self.table.find_entry(hash(place), |known| *known == place) {
                found.remove();
            }
            if let Some(moved) = self.table.find_mut(hash(last), |known| *known == last) {
                *moved = place;
            }
        }
        self.heads.swap_remove(place);
        Some(self.entries.swap_remove(place).1)
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (&K, &V)> + DoubleEndedIterator {
        self.entries.iter().map(|(key, value)| (key, value))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.entries.iter_mut().map(|(key, value)| (&*key, value))
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

    pub(crate) fn into_values(self) -> impl Iterator<Item = V> {
        self.entries.into_iter().map(|(_, value)| value)
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

    pub(crate) fn iter(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
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
                let op = if count % 1000 < 600 { op } else { 4 - op };
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
                prop_assert_eq!(map.get(&Alike(key / 2)).copied(), at.map(|at| model[at].1));
                prop_assert_eq!(map.len(), model.len());
            }
            prop_assert!(map.iter().map(|(key, value)| (key.0, *value)).eq(model.iter().copied()));
            for (key, value) in &model {
                prop_assert_eq!(map.get(&Alike(*key)), Some(value));
            }
        }
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
        for (low, high) in [places((0..1024).map(digest)), peers, places((0..1024).map(|n| (digest(0), n)))] {
            assert!(low > 600 && high == 128, "{low} {high}");
        }
    }
}
