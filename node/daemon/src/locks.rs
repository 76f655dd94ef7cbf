//! One at a time a key.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

type Locks<K> = Mutex<BTreeMap<K, Arc<tokio::sync::Mutex<()>>>>;

/// A lock for each key that somebody holds or waits for.
pub(crate) struct KeyedLocks<K>(Locks<K>);

impl<K> Default for KeyedLocks<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Ord + Clone> KeyedLocks<K> {
    /// Does `work` while nobody else does any for `key`. Cancel safe.
    pub(crate) async fn alone<T>(&self, key: &K, work: impl Future<Output = T>) -> T {
        let turn =
            Turn { locks: &self.0, key, lock: Arc::clone(self.0.lock().entry(key.clone()).or_default()) };
        let _held = turn.lock.lock().await;
        work.await
    }
}

/// Forgets a key's lock when the last one who held or waited for it goes.
struct Turn<'a, K: Ord> {
    locks: &'a Locks<K>,
    key: &'a K,
    lock: Arc<tokio::sync::Mutex<()>>,
}

impl<K: Ord> Drop for Turn<'_, K> {
    fn drop(&mut self) {
        let mut locks = self.locks.lock();
        // Two owners: the map and this turn.
        if Arc::strong_count(&self.lock) <= 2 {
            locks.remove(self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_and_nothing_is_left() {
        let locks = Arc::new(KeyedLocks::default());
        let inside = Arc::new(Mutex::new(0));
        let works = (0..20).map(|number: i32| {
            let (locks, inside) = (Arc::clone(&locks), Arc::clone(&inside));
            tokio::spawn(async move {
                let key = number % 2;
                let work = async {
                    *inside.lock() += 1;
                    tokio::task::yield_now().await;
                    let seen = *inside.lock();
                    *inside.lock() -= 1;
                    seen
                };
                locks.alone(&key, work).await
            })
        });
        for work in works.collect::<Vec<_>>() {
            assert!(work.await.unwrap() <= 2, "two keys, so two at once");
        }
        assert!(locks.0.lock().is_empty());
    }

    #[tokio::test]
    async fn who_gives_up_waiting_leaves_nothing() {
        let locks = KeyedLocks::default();
        let stuck = locks.alone(&1, std::future::pending::<()>());
        let waiting = locks.alone(&1, async {});
        let both = futures::future::join(stuck, waiting);
        assert!(tokio::time::timeout(std::time::Duration::from_millis(10), both).await.is_err());
        assert!(locks.0.lock().is_empty());
    }
}
