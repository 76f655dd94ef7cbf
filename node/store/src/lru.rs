//! A map bounded by weight that forgets what was used longest ago.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// Holds entries of a total weight up to a limit. One entry alone may be over it: it is kept until the next comes.
#[derive(Debug)]
pub(crate) struct Lru<K, V> {
    entries: HashMap<K, Entry<V>>,
    by_use: BTreeMap<u64, K>,
    next_use: u64,
    weight: usize,
    weight_max: usize,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    weight: usize,
    used: u64,
}

impl<K: Hash + Eq + Copy, V: Clone> Lru<K, V> {
    pub(crate) fn new(weight_max: usize) -> Self {
        Self { entries: HashMap::new(), by_use: BTreeMap::new(), next_use: 0, weight: 0, weight_max }
    }

    pub(crate) fn get(&mut self, key: &K) -> Option<V> {
        let entry = self.entries.get_mut(key)?;
        self.by_use.remove(&entry.used);
        entry.used = self.next_use;
        self.by_use.insert(self.next_use, *key);
        self.next_use = self.next_use.saturating_add(1);
        Some(entry.value.clone())
    }

    pub(crate) fn insert(&mut self, key: K, value: V, weight: usize) {
        self.remove(&key);
        let used = self.next_use;
        self.next_use = self.next_use.saturating_add(1);
        self.weight = self.weight.saturating_add(weight);
        self.entries.insert(key, Entry { value, weight, used });
        self.by_use.insert(used, key);
        while self.weight > self.weight_max && self.entries.len() > 1 {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            self.forget(&oldest);
        }
    }

    pub(crate) fn remove(&mut self, key: &K) {
        if let Some(used) = self.forget(key) {
            self.by_use.remove(&used);
        }
    }

    fn forget(&mut self, key: &K) -> Option<u64> {
        let entry = self.entries.remove(key)?;
        self.weight = self.weight.saturating_sub(entry.weight);
        Some(entry.used)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Op {
        Get(u8),
        Insert(u8, usize),
        Remove(u8),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0u8..8).prop_map(Op::Get),
            (0u8..8, 0usize..6).prop_map(|(key, weight)| Op::Insert(key, weight)),
            (0u8..8).prop_map(Op::Remove),
        ]
    }

    proptest! {
        /// The model is a list in order of use.
        #[test]
        fn agrees_with_a_list(ops in prop::collection::vec(op(), 0..80)) {
            let mut lru = Lru::new(10);
            let mut model: Vec<(u8, usize)> = Vec::new();
            for op in ops {
                match op {
                    Op::Get(key) => {
                        let found = model.iter().position(|(k, _)| *k == key).map(|at| {
                            let entry = model.remove(at);
                            model.push(entry);
                            entry.1
                        });
                        prop_assert_eq!(lru.get(&key), found);
                    }
                    Op::Insert(key, weight) => {
                        lru.insert(key, weight, weight);
                        model.retain(|(k, _)| *k != key);
                        model.push((key, weight));
                        while model.len() > 1 && model.iter().map(|(_, w)| w).sum::<usize>() > 10 {
                            model.remove(0);
                        }
                    }
                    Op::Remove(key) => { lru.remove(&key); model.retain(|(k, _)| *k != key); }
                }
                prop_assert_eq!(lru.len(), model.len());
                prop_assert_eq!(lru.by_use.len(), model.len());
                prop_assert_eq!(lru.weight, model.iter().map(|(_, w)| w).sum::<usize>());
            }
        }
    }
}
