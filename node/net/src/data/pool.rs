//! The bounded pool of piece buffers.
//!
//! A buffer is taken when the first payload of a piece comes, not when the piece is expected, and given back when
//! its [`PieceBuf`] is dropped. When the pool is exhausted the connection stops reading (TCP slows the sender) until
//! one comes back; how often that happens is counted. A peer that stops in mid-piece holds a buffer no longer than
//! the engine waits for it: taking the piece back (`unexpect`) or disconnecting returns it, and one connection may
//! have only a few pieces begun.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Smallest buffer, a page: tiny blobs do not take up room for large ones.
const CLASS_BYTES_MIN: usize = 4096;

/// A bounded set of buffers.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Inner>);

struct Inner {
    limit: usize,
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Default)]
struct State {
    /// Bytes of all buffers, in use and idle.
    allocated: usize,
    in_use: usize,
    idle: BTreeMap<usize, Vec<Box<[u8]>>>,
}

/// A piece's bytes in a buffer of the pool, which gets it back on drop.
pub struct PieceBuf {
    bytes: Box<[u8]>,
    len: usize,
    pool: Pool,
}

impl Pool {
    /// A pool of at most `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self(Arc::new(Inner { limit, state: Mutex::default(), freed: Notify::new() }))
    }

    /// Bytes in use.
    pub(crate) fn in_use(&self) -> usize {
        self.0.state.lock().in_use
    }

    /// A buffer for `len` bytes, or `None` while the pool is exhausted. A buffer of any length is granted when
    /// nothing else is in use, so that a limit under the piece size slows and does not block.
    pub(crate) fn try_take(&self, len: usize) -> Option<PieceBuf> {
        let class = len.next_power_of_two().max(CLASS_BYTES_MIN);
        let mut state = self.0.state.lock();
        if state.in_use > 0 && state.in_use + class > self.0.limit {
            return None;
        }
        state.in_use += class;
        let idle = state.idle.get_mut(&class).and_then(Vec::pop);
        let bytes = idle.unwrap_or_else(|| {
            state.make_room(self.0.limit.saturating_sub(class));
            state.allocated += class;
            vec![0; class].into_boxed_slice()
        });
        Some(PieceBuf { bytes, len, pool: self.clone() })
    }

    /// Waits until a buffer came back since this future was first polled.
    pub(crate) fn freed(&self) -> tokio::sync::futures::Notified<'_> {
        self.0.freed.notified()
    }

    fn give_back(&self, bytes: Box<[u8]>) {
        let mut state = self.0.state.lock();
        state.in_use -= bytes.len();
        if state.allocated > self.0.limit {
            state.allocated -= bytes.len();
        } else {
            state.idle.entry(bytes.len()).or_default().push(bytes);
        }
        drop(state);
        self.0.freed.notify_waiters();
    }
}

impl State {
    /// Frees idle buffers, large ones first, until at most `target` bytes are allocated.
    fn make_room(&mut self, target: usize) {
        while self.allocated > target {
            let Some(mut entry) = self.idle.last_entry() else { return };
            match entry.get_mut().pop() {
                Some(buffer) => self.allocated -= buffer.len(),
                None => drop(entry.remove()),
            }
        }
    }
}

impl PieceBuf {
    /// The bytes, for filling.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.len).unwrap_or_default()
    }
}

impl Deref for PieceBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl AsRef<[u8]> for PieceBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for PieceBuf {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.bytes));
    }
}

impl fmt::Debug for PieceBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PieceBuf({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_limit_under_the_piece_size_slows_and_does_not_block() {
        let pool = Pool::new(4096);
        let large = pool.try_take(1 << 20).unwrap();
        assert!(pool.try_take(1).is_none());
        drop(large);
        assert_eq!(pool.in_use(), 0);
        assert_eq!(pool.0.state.lock().allocated, 0);
    }

    proptest! {
        #[test]
        fn never_over_its_limit(ops in prop::collection::vec((0usize..300_000, any::<bool>()), 0..200)) {
            let limit = 1 << 20;
            let pool = Pool::new(limit);
            let mut held: Vec<PieceBuf> = vec![];
            for (number, take) in ops {
                if take {
                    let buffer = pool.try_take(number);
                    let room = limit - held.iter().map(|held| held.bytes.len()).sum::<usize>();
                    prop_assert_eq!(buffer.is_some(), number.next_power_of_two().max(CLASS_BYTES_MIN) <= room);
                    held.extend(buffer);
                } else if !held.is_empty() {
                    held.swap_remove(number % held.len());
                }
                let state = pool.0.state.lock();
                let idle: usize = state.idle.values().flatten().map(|buffer| buffer.len()).sum();
                prop_assert!(state.allocated <= limit);
                prop_assert_eq!(state.allocated, state.in_use + idle);
                prop_assert_eq!(state.in_use, held.iter().map(|held| held.bytes.len()).sum::<usize>());
            }
        }
    }
}
