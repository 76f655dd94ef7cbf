//! Manifests that are asked for again and again: kept in memory, so that they cost no read of the store.

use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use shoal_types::Digest;

/// Bytes kept at most.
const BYTES_MAX: usize = 4 << 20;
/// How long one is kept, however often it is asked for: the store, which evicts what was not read for long, is to know
/// of it.
const AGE_MAX: Duration = Duration::from_secs(60);
/// Larger ones are rare, and would take the place of many.
const MANIFEST_BYTES_MAX: usize = 256 << 10;

/// The manifests used last. What is kept has been read by its digest, and never changes.
pub(crate) struct HotManifests(Mutex<Kept>);

struct Kept {
    manifests: LruCache<Digest, (Bytes, Instant)>,
    bytes: usize,
}

impl Default for HotManifests {
    fn default() -> Self {
        Self(Mutex::new(Kept { manifests: LruCache::unbounded(), bytes: 0 }))
    }
}

impl HotManifests {
    pub(crate) fn get(&self, digest: &Digest) -> Option<Bytes> {
        self.get_at(digest, Instant::now())
    }

    fn get_at(&self, digest: &Digest, now: Instant) -> Option<Bytes> {
        let mut kept = self.0.lock();
        let (manifest, since) = kept.manifests.get(digest)?;
        (now.saturating_duration_since(*since) < AGE_MAX).then(|| manifest.clone())
    }

    pub(crate) fn keep(&self, digest: Digest, manifest: &Bytes) {
        if manifest.len() > MANIFEST_BYTES_MAX {
            return;
        }
        let mut kept = self.0.lock();
        let replaced = kept.manifests.put(digest, (manifest.clone(), Instant::now()));
        kept.bytes += manifest.len();
        kept.bytes -= replaced.map_or(0, |(replaced, _)| replaced.len());
        while kept.bytes > BYTES_MAX {
            let Some((_, (oldest, _))) = kept.manifests.pop_lru() else { break };
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
        assert_eq!(kept.bytes, kept.manifests.iter().map(|(_, (manifest, _))| manifest.len()).sum::<usize>());
    }

    #[test]
    fn the_store_hears_of_one_every_minute() {
        let hot = HotManifests::default();
        let digest = Digest::sha256(b"x");
        hot.keep(digest, &Bytes::from_static(b"x"));
        assert!(hot.get(&digest).is_some());
        assert!(hot.get_at(&digest, Instant::now() + AGE_MAX).is_none());
        hot.keep(digest, &Bytes::from_static(b"x"));
        assert!(hot.get(&digest).is_some());
    }
}
