//! Room: reservations against the capacity, and eviction of what was used longest ago.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use shoal_types::{Digest, WallTime};

use crate::error::{NoSpace, StoreError};
use crate::index::{Slot, State, charge};
use crate::store::{Inner, RemovalReason, Store};

/// Bytes counted as used; given back when dropped, unless [kept](Self::keep).
#[derive(Debug)]
pub(crate) struct Reservation<'a> {
    inner: &'a Inner,
    bytes: u64,
}

impl Reservation<'_> {
    /// The bytes now belong to a blob or upload, which gives them back when it goes.
    pub(crate) fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.inner.index.lock().release(self.bytes);
        }
    }
}

impl Store {
    /// Evicts down to the low watermark when the store is above the high one; returns what went. Also expires
    /// uploads as of `now`, which count as much. Call it from time to time; [`Self::create`] and uploads evict for
    /// themselves when they need room.
    ///
    /// # Errors
    /// [`StoreError`] when disk or database fail; what was evicted before is told to the listener.
    pub fn evict(&self, now: WallTime) -> Result<Vec<Digest>, StoreError> {
        self.upload_expire(now)?;
        let used = self.inner.index.lock().used;
        let capacity = self.inner.capacity(used)?;
        if used <= share(capacity, self.inner.config.watermark_high) {
            return Ok(Vec::new());
        }
        self.inner.evict_to(share(capacity, self.inner.config.watermark_low))
    }
}

impl Inner {
    /// What can be used in all, when `used` bytes are.
    pub(crate) fn capacity(&self, used: u64) -> Result<u64, StoreError> {
        match self.config.capacity_bytes {
            Some(capacity) => Ok(capacity),
            None => {
                let free = self.disk.available()?.saturating_sub(self.config.free_bytes_min);
                Ok(used.saturating_add(free))
            }
        }
    }

    /// Counts `bytes` as used, evicting when that goes over the high watermark or the filesystem is near its end.
    /// What is over the watermark and cannot be evicted may fill the capacity, but not exceed it.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<Reservation<'_>, StoreError> {
        if let Some(reservation) = self.try_reserve(bytes, self.config.watermark_high)? {
            return Ok(reservation);
        }
        let (candidates, used) = self.candidates();
        let evictable = candidates.iter().map(|slot| charge(slot.size())).fold(0, u64::saturating_add);
        let capacity = self.capacity(used)?;
        let on_disk = self.disk.available()?.saturating_sub(self.config.free_bytes_min);
        let free =
            capacity.saturating_sub(used.saturating_sub(evictable)).min(on_disk.saturating_add(evictable));
        if bytes > free {
            // Not even an empty cache would do: it is not emptied for nothing.
            return Err(self.refuse(bytes, free));
        }
        let low = share(capacity, self.config.watermark_low).saturating_sub(bytes);
        // The filesystem may be fuller than our count says: others write to it too.
        let short = bytes.saturating_sub(on_disk);
        self.evict_to(low.min(used.saturating_sub(short)))?;
        match self.try_reserve(bytes, 1.0)? {
            Some(reservation) => Ok(reservation),
            None => {
                Err(self.refuse(bytes, self.disk.available()?.saturating_sub(self.config.free_bytes_min)))
            }
        }
    }

    fn refuse(&self, needed: u64, free: u64) -> StoreError {
        self.counters.refused_no_space.fetch_add(1, Ordering::Relaxed);
        NoSpace { needed, free }.into()
    }

    /// What may be evicted, used longest ago first, and the bytes used by everything.
    fn candidates(&self) -> (Vec<Arc<Slot>>, u64) {
        let index = self.index.lock();
        let evictable = |slot: &&Arc<Slot>| slot.is_anchored() && !index.pins.contains_key(&slot.digest);
        let slots = index.blobs.values().filter(evictable);
        let mut slots: Vec<_> =
            slots.map(|slot| (slot.last_use.load(Ordering::Relaxed), slot.clone())).collect();
        let used = index.used;
        drop(index);
        slots.sort_unstable_by_key(|(last_use, slot)| (*last_use, slot.digest));
        (slots.into_iter().map(|(_, slot)| slot).collect(), used)
    }

    fn try_reserve(&self, bytes: u64, watermark: f64) -> Result<Option<Reservation<'_>>, StoreError> {
        let available = self.disk.available()?;
        if available < bytes.saturating_add(self.config.free_bytes_min) {
            return Ok(None);
        }
        let mut index = self.index.lock();
        let wanted = index.used.saturating_add(bytes);
        if wanted > share(self.capacity(index.used)?, watermark) {
            return Ok(None);
        }
        index.used = wanted;
        Ok(Some(Reservation { inner: self, bytes }))
    }

    /// Evicts what was used longest ago until at most `target` bytes are used, or nothing is left that may go.
    fn evict_to(&self, target: u64) -> Result<Vec<Digest>, StoreError> {
        let _one_at_a_time = self.evicting.lock();
        let mut evicted = Vec::new();
        for slot in self.candidates().0 {
            if self.index.lock().used <= target {
                break;
            }
            if self.evict_one(&slot)? {
                evicted.push(slot.digest);
            }
        }
        Ok(evicted)
    }

    fn evict_one(&self, slot: &Arc<Slot>) -> Result<bool, StoreError> {
        // Only tried: the caller may hold another blob's state, and a blob whose state is held is in use anyway.
        let Some(mut state) = slot.state.try_lock() else { return Ok(false) };
        let pinned = self.index.lock().pins.contains_key(&slot.digest);
        if pinned || !slot.is_anchored() || matches!(*state, State::Vacant | State::Gone) {
            return Ok(false);
        }
        self.destroy(slot, &mut state)?;
        drop(state);
        self.counters.evicted_blobs.fetch_add(1, Ordering::Relaxed);
        self.counters.evicted_bytes.fetch_add(charge(slot.size()), Ordering::Relaxed);
        self.notify(slot.digest, RemovalReason::Evicted);
        Ok(true)
    }
}

/// `part` of `whole` bytes, for a part from 0 to 1.
fn share(whole: u64, part: f64) -> u64 {
    if part >= 1.0 {
        return whole;
    }
    // In thousandths, for a product of f64 would not be exact for large stores.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 <= part < 1")]
    let thousandths = (part * 1000.0).round() as u64;
    let (thousands, rest) = (whole / 1000, whole % 1000);
    thousands.saturating_mul(thousandths).saturating_add(rest.saturating_mul(thousandths) / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_exact() {
        assert_eq!(share(1000, 0.95), 950);
        assert_eq!(share(1, 0.5), 0);
        assert_eq!(share(u64::MAX, 1.0), u64::MAX);
        assert_eq!(share(10_000_000_000_001, 0.85), 8_500_000_000_000);
    }
}
