//! Pins: blobs in use stay.

use std::sync::Arc;

use shoal_types::Digest;

use crate::store::{Inner, Store};

/// Keeps a blob from being evicted or deleted from the disk while it is held. Whether the blob is here is another
/// question: look it up after pinning. Dropping the last pin of a deleted blob removes its file.
#[derive(Debug)]
pub struct Pin {
    inner: Arc<Inner>,
    digest: Digest,
}

impl Store {
    /// Pins a blob, here or not.
    pub fn pin(&self, digest: &Digest) -> Pin {
        Pin::new(self.inner.clone(), *digest)
    }
}

impl Pin {
    fn new(inner: Arc<Inner>, digest: Digest) -> Self {
        let mut index = inner.index.lock();
        let count = index.pins.entry(digest).or_default();
        *count = count.saturating_add(1);
        drop(index);
        Self { inner, digest }
    }

    /// The pinned blob.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }
}

impl Clone for Pin {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.digest)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let slot = {
            let mut index = self.inner.index.lock();
            let Some(count) = index.pins.get_mut(&self.digest) else { return };
            *count = count.saturating_sub(1);
            if *count > 0 {
                return;
            }
            index.pins.remove(&self.digest);
            index.blobs.get(&self.digest).filter(|slot| slot.is_doomed()).cloned()
        };
        if let Some(slot) = slot
            && let Err(error) = self.inner.reap(&slot)
        {
            tracing::warn!(digest = %self.digest, %error, "a deleted blob could not be removed, the next start does it");
        }
    }
}
