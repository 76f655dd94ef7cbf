//! Numbers in place of digests.
//!
//! A digest is 65 bytes. What is looked up, compared and handed on all the time is a number instead, by which an engine knows a
//! blob as long as it has to do with it.

use shoal_types::Digest;

use crate::keyed::Map;
use crate::prefetch::{prefetch, prefetch_ends, prefetch_list};

/// One engine's number for a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BlobName(u32);

#[cfg(test)]
impl BlobName {
    pub(crate) fn of(number: u32) -> Self {
        Self(number)
    }
}

/// Names that are kept at least before it is looked which of them are in use.
const KEPT_MIN: usize = 64;

/// Cache lines of digests that are prefetched: two digests'.
const PREFETCHED_LINES: usize = 3;
/// Values that are prefetched: most processes have no more swarms at a time.
const PREFETCHED_VALUES: usize = 2;

/// Blobs by name. Whether a name is in use is looked at whenever there are twice as many as were in use the last time.
#[derive(Debug)]
// In the order of use: docs/adr/0018.
#[repr(C, align(64))]
pub(crate) struct Names {
    by_digest: Map<Digest, BlobName>,
    /// By number; what is at those that are unused means nothing.
    digests: Vec<Digest>,
    unused: Vec<BlobName>,
    kept_max: usize,
}

impl Default for Names {
    fn default() -> Self {
        Self { by_digest: Map::default(), digests: Vec::new(), unused: Vec::new(), kept_max: KEPT_MIN }
    }
}

impl Names {
    /// Prefetches where [`Self::prefetch_digest`] finds what it prefetches, and with `by_digest` where [`Self::prefetch_tables`] does.
    pub(crate) fn prefetch_head(&self, by_digest: bool) {
        prefetch(&self.digests);
        if by_digest {
            prefetch(&self.by_digest);
        }
    }

    /// Prefetches what giving a name to a digest and the other way round reads, of a few blobs.
    pub(crate) fn prefetch_tables(&self) {
        self.by_digest.prefetch_keys();
        self.by_digest.prefetch_entries(PREFETCHED_LINES);
        prefetch_list(&self.digests, PREFETCHED_LINES);
    }

    /// Prefetches the digest of a blob.
    pub(crate) fn prefetch_digest(&self, name: BlobName) {
        if let Some(digest) = self.digests.get(name.0 as usize) {
            prefetch_ends(digest);
        }
    }

    /// The name of a blob, if it has one.
    pub(crate) fn get(&self, digest: &Digest) -> Option<BlobName> {
        self.by_digest.get(digest).copied()
    }

    /// Gives a name to a blob that has none.
    pub(crate) fn add(&mut self, digest: Digest) -> BlobName {
        let next = BlobName(u32::try_from(self.digests.len()).unwrap_or(u32::MAX));
        let name = self.unused.pop().unwrap_or(next);
        match self.digests.get_mut(name.0 as usize) {
            Some(place) => *place = digest,
            None => self.digests.push(digest),
        }
        self.by_digest.insert(digest, name);
        name
    }

    /// The blob that a name stands for.
    pub(crate) fn digest(&self, name: BlobName) -> Option<Digest> {
        self.digests.get(name.0 as usize).copied()
    }

    /// Whether it is time for [`Self::retain`].
    pub(crate) fn are_many(&self) -> bool {
        self.by_digest.len() >= self.kept_max
    }

    /// Takes out the names that are not in use. They will stand for other blobs.
    pub(crate) fn retain(&mut self, is_used: impl Fn(BlobName) -> bool) {
        let gone: Vec<(Digest, BlobName)> = self
            .by_digest
            .iter()
            .filter(|(_, name)| !is_used(**name))
            .map(|(digest, name)| (*digest, *name))
            .collect();
        for (digest, name) in gone {
            self.by_digest.swap_remove(&digest);
            self.unused.push(name);
        }
        self.kept_max = self.by_digest.len().saturating_mul(2).max(KEPT_MIN);
    }
}

/// Values by name, found without a search.
#[derive(Debug)]
pub(crate) struct Named<V> {
    values: Vec<Option<V>>,
    count: usize,
}

impl<V> Default for Named<V> {
    fn default() -> Self {
        Self { values: Vec::new(), count: 0 }
    }
}

impl<V> Named<V> {
    #[inline]
    pub(crate) fn get(&self, name: BlobName) -> Option<&V> {
        self.values.get(name.0 as usize)?.as_ref()
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, name: BlobName) -> Option<&mut V> {
        self.values.get_mut(name.0 as usize)?.as_mut()
    }

    /// Prefetches where values begin: the last ones, for there is always one at the end.
    pub(crate) fn prefetch(&self) {
        self.values.iter().rev().take(PREFETCHED_VALUES).for_each(prefetch);
    }

    pub(crate) fn contains(&self, name: BlobName) -> bool {
        self.get(name).is_some()
    }

    /// Puts a value in; returns the one that was there.
    pub(crate) fn insert(&mut self, name: BlobName, value: V) -> Option<V> {
        let place = name.0 as usize;
        if place >= self.values.len() {
            self.values.resize_with(place.saturating_add(1), || None);
        }
        let before = self.values.get_mut(place)?.replace(value);
        self.count = self.count.saturating_add(usize::from(before.is_none()));
        before
    }

    pub(crate) fn remove(&mut self, name: BlobName) -> Option<V> {
        let value = self.values.get_mut(name.0 as usize)?.take()?;
        self.count = self.count.saturating_sub(1);
        while self.values.last().is_some_and(Option::is_none) {
            self.values.pop();
        }
        Some(value)
    }

    /// In the order of the names.
    pub(crate) fn values(&self) -> impl DoubleEndedIterator<Item = &V> {
        self.values.iter().flatten()
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn names_in_use_stand_for_their_blobs_and_others_are_given_anew() {
        let digest = |number: u32| Digest::sha256(&number.to_le_bytes());
        let mut random = crate::random::Random::new(4);
        let (mut names, mut used) = (Names::default(), BTreeMap::new());
        for number in 0..5000 {
            let name = names.get(&digest(number)).unwrap_or_else(|| names.add(digest(number)));
            assert_eq!(names.digest(name), Some(digest(number)));
            assert_eq!(used.insert(name, number), None, "in use for another");
            while used.len() > random.below(200) {
                used.pop_first();
            }
            if names.are_many() {
                names.retain(|name| used.contains_key(&name));
                assert_eq!(names.by_digest.len(), used.len());
            }
            for (name, number) in &used {
                assert_eq!(names.get(&digest(*number)), Some(*name));
                assert_eq!(names.digest(*name), Some(digest(*number)));
            }
        }
        assert!(names.digests.len() < 1000, "{}", names.digests.len());
    }

    #[test]
    fn values_by_name_are_those_of_a_map() {
        let mut random = crate::random::Random::new(9);
        let (mut named, mut model) = (Named::default(), BTreeMap::new());
        for value in 0..2000 {
            let name = BlobName(u32::try_from(random.below(40)).unwrap());
            if random.below(2) == 0 {
                assert_eq!(named.insert(name, value), model.insert(name, value));
            } else {
                assert_eq!(named.remove(name), model.remove(&name));
            }
            let name = BlobName(u32::try_from(random.below(60)).unwrap());
            assert_eq!(named.get(name), model.get(&name));
            assert_eq!(named.get_mut(name).copied(), model.get(&name).copied());
            assert_eq!(named.contains(name), model.contains_key(&name));
            assert!(named.values().eq(model.values()));
            assert_eq!(named.len(), model.len());
        }
        model.keys().for_each(|name| assert!(named.remove(*name).is_some()));
        assert!(named.values.is_empty());
    }
}
