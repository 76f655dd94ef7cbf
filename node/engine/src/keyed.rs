//! Maps by digest and by peer.
//!
//! Every message is looked up by both, several times over, and what that costs is memory touched. These maps find a value with
//! one look into a table of places, keep their values side by side, and are gone through in the order in which they were
//! filled (what is taken out leaves its place to the last one), whatever the hashes are.

use std::hash::{BuildHasherDefault, Hasher};

use indexmap::{IndexMap, IndexSet};

pub(crate) type Map<K, V> = IndexMap<K, V, BuildHasherDefault<HeadHasher>>;
pub(crate) type Set<K> = IndexSet<K, BuildHasherDefault<HeadHasher>>;

/// That of FxHash (Firefox, rustc).
const FACTOR: u64 = 0x517c_c1b7_2722_0a95;

/// Hashes the first eight bytes of what it is given: keys and digests are spread evenly already. Whoever makes some that are alike
/// there makes a look as long as that many steps: of peers no more than have a credential and a place, of blobs no more than there
/// may be swarms.
#[derive(Debug, Default)]
pub(crate) struct HeadHasher(u64);

impl HeadHasher {
    /// As FxHash does: cheap, and good enough for what is random.
    fn word(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(FACTOR);
    }
}

impl Hasher for HeadHasher {
    fn write(&mut self, bytes: &[u8]) {
        let head = match bytes.first_chunk::<8>() {
            Some(head) => u64::from_le_bytes(*head),
            None => bytes.iter().fold(0, |head, byte| head << 8 | u64::from(*byte)),
        };
        self.word(head);
    }

    fn write_u32(&mut self, word: u32) {
        self.word(word.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.word(word);
    }

    /// Which of its kinds a key is.
    fn write_isize(&mut self, kind: isize) {
        self.write(&kind.to_le_bytes());
    }

    /// Lengths, which are the same for all keys.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        (self.0 ^ self.0 >> 32).wrapping_mul(FACTOR).rotate_left(26)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_types::{Digest, PeerId};
    use std::hash::{BuildHasher as _, Hash};

    fn places<K: Hash>(keys: impl Iterator<Item = K>) -> (usize, usize) {
        let hashes: Vec<u64> =
            keys.map(|key| BuildHasherDefault::<HeadHasher>::default().hash_one(key)).collect();
        let count = |bits: &dyn Fn(u64) -> u64| {
            hashes.iter().map(|hash| bits(*hash)).collect::<std::collections::BTreeSet<_>>().len()
        };
        // A table takes places from the low bits and tells neighbours apart by the seven highest.
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
