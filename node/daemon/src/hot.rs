//! Manifests that are asked for again and again: kept in memory, so that they cost no read of the store.

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use shoal_types::Digest;

/// Bytes kept at most.
const BYTES_MAX: usize = 4 << 20;
/// Larger ones are rare, and would take the place of many.
const MANIFEST_BYTES_MAX: usize = 256 << 10;

/// The manifests used last. What is kept has been read by its digest, and never changes.
pub(crate) struct HotManifests(Mutex<Kept>);

struct Kept {
    manifests: LruCache<Digest, Bytes>,
    bytes: usize,
}

impl Default for HotManifests {
    fn default() -> Self {
        Self(Mutex::new(Kept { manifests: LruCache::unbounded(), bytes: 0 }))
    }
}

impl HotManifests {
    pub(crate) fn get(&self, digest: &Digest) -> Option<Bytes> {
        self.0.lock().manifests.get(digest).cloned()
    }

    pub(crate) fn keep(&self, digest: Digest, manifest: &Bytes) {
        if manifest.len() > MANIFEST_BYTES_MAX {
            return;
        }
        let mut kept = self.0.lock();
        let replaced = kept.manifests.put(digest, manifest.clone());
        kept.bytes += manifest.len();
        kept.bytes -= replaced.map_or(0, |replaced| replaced.len());
        while kept.bytes > BYTES_MAX {
            let Some((_, oldest)) = kept.manifests.pop_lru() else { break };
            kept.bytes -= oldest.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ones_used_last_stay() {
        let hot = HotManifests::default();
        let digest = |number: usize| Digest::sha256(&number.to_be_bytes());
        let manifest = Bytes::from(vec![1; MANIFEST_BYTES_MAX]);
        let room = BYTES_MAX / MANIFEST_BYTES_MAX;
        for number in 0..room {
            hot.keep(digest(number), &manifest);
            hot.keep(digest(number), &manifest);
        }
        assert!((0..room).all(|number| hot.get(&digest(number)).is_some()));
        assert!(hot.get(&digest(0)).is_some());
        hot.keep(digest(room), &manifest);
        assert!(hot.get(&digest(0)).is_some() && hot.get(&digest(room)).is_some());
        assert!(hot.get(&digest(1)).is_none());
        hot.keep(digest(1), &Bytes::from(vec![1; MANIFEST_BYTES_MAX + 1]));
        assert!(hot.get(&digest(1)).is_none());
        let kept = hot.0.lock();
        assert_eq!(kept.bytes, kept.manifests.iter().map(|(_, manifest)| manifest.len()).sum::<usize>());
    }
}
