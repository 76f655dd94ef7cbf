//! Provider records kept for others: in memory, bounded, written behind.
//!
//! Why not libp2p's `MemoryStore`: it keeps 20 providers a key and drops the 21st silently, 1,024 keys a process,
//! forgets at exit, and gives everybody the same providers. Here a key's newest providers displace the ones next to
//! expire, a random sample is handed out, and nobody's flood displaces the records of others.
//!
//! Values (`PUT_VALUE`) are refused: the mesh keeps provider records only.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use indexmap::IndexMap;
use libp2p::kad::store::{Error as StoreError, RecordStore};
use libp2p::kad::{ProviderRecord, Record, RecordKey};
use libp2p::{Multiaddr, PeerId};
use minicbor::bytes::ByteVec;
use rand_core::Rng as _;
use rand_pcg::Pcg64Mcg;
use shoal_types::{Digest, WallTime};

use super::addr;
use super::config::RecordsConfig;
use super::persist::{Change, StoredProvider};

/// The DHT key of a blob: its multihash.
pub(crate) fn key_of(digest: &Digest) -> RecordKey {
    RecordKey::from(digest.multihash().to_bytes())
}

/// The blob a DHT key names; `None` for keys that are no blob's.
pub(crate) fn digest_of(key: &RecordKey) -> Option<Digest> {
    Digest::from_multihash_bytes(key.as_ref())
}

/// What happened to records, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RecordCounters {
    /// Records refused: no blob's key, a publisher over its share, or a value.
    pub(crate) refused: u64,
    /// Records displaced by others.
    pub(crate) displaced: u64,
    /// Records that lapsed.
    pub(crate) lapsed: u64,
    /// Changes that were not remembered because too many waited.
    pub(crate) unsaved: u64,
}

#[derive(Debug)]
struct Kept {
    expires: Instant,
    addresses: Vec<Multiaddr>,
}

/// The record store. Everything is O(log n) except loading; it is called inside the host's poll.
pub(crate) struct Records {
    local: PeerId,
    config: RecordsConfig,
    keys: HashMap<Digest, IndexMap<PeerId, Kept>>,
    /// Each publisher's records by expiry; its size is the publisher's count.
    publishers: HashMap<PeerId, BTreeSet<(Instant, Digest)>>,
    /// Publishers by count, to find the largest.
    by_count: BTreeSet<(usize, PeerId)>,
    by_expiry: BTreeSet<(Instant, Digest, PeerId)>,
    /// Own blobs, which never lapse and are not counted.
    own: HashSet<Digest>,
    unsaved: BTreeSet<(Digest, PeerId)>,
    random: parking_lot::Mutex<Pcg64Mcg>,
    counters: RecordCounters,
}

impl Records {
    pub(crate) fn new(local: PeerId, config: RecordsConfig, seed: u64) -> Self {
        Self {
            local,
            config,
            keys: HashMap::new(),
            publishers: HashMap::new(),
            by_count: BTreeSet::new(),
            by_expiry: BTreeSet::new(),
            own: HashSet::new(),
            unsaved: BTreeSet::new(),
            random: parking_lot::Mutex::new(Pcg64Mcg::new(u128::from(seed))),
            counters: RecordCounters::default(),
        }
    }

    /// Takes back remembered records that have not lapsed.
    pub(crate) fn restore(&mut self, stored: Vec<StoredProvider>, now: Instant, wall: WallTime) {
        for record in stored {
            // A clock that was set back must not make a record live longer than a fresh one.
            let left = record.expires.saturating_since(wall).min(self.config.ttl);
            if left.is_zero() {
                // Dropped from memory here, and from where it is kept by the next save.
                self.note_unsaved(record.digest, addr::to_libp2p(record.provider));
                continue;
            }
            let addresses = record
                .addresses
                .iter()
                .filter_map(|bytes| Multiaddr::try_from(bytes.to_vec()).ok())
                .collect();
            let _ = self.keep(record.digest, addr::to_libp2p(record.provider), now + left, addresses);
            self.unsaved.remove(&(record.digest, addr::to_libp2p(record.provider)));
        }
    }

    /// Number of records of others.
    pub(crate) fn len(&self) -> usize {
        self.by_expiry.len()
    }

    pub(crate) fn counters(&self) -> RecordCounters {
        self.counters
    }

    /// The addresses on record for a provider.
    pub(crate) fn addresses(&self, digest: &Digest, provider: &PeerId) -> &[Multiaddr] {
        let kept = self.keys.get(digest).and_then(|providers| providers.get(provider));
        kept.map_or(&[], |kept| &kept.addresses)
    }

    /// Drops up to `most` records that have lapsed.
    pub(crate) fn lapse(&mut self, now: Instant, most: usize) {
        for _ in 0..most {
            let Some(&(expires, digest, provider)) = self.by_expiry.first() else { return };
            if expires > now {
                return;
            }
            self.forget(&digest, &provider);
            self.counters.lapsed += 1;
        }
    }

    /// Whether changes wait to be remembered.
    pub(crate) fn has_changes(&self) -> bool {
        !self.unsaved.is_empty()
    }

    /// Takes up to `most` changes to be remembered.
    pub(crate) fn take_changes(&mut self, most: usize, now: Instant, wall: WallTime) -> Vec<Change> {
        let mut changes = Vec::new();
        while changes.len() < most {
            let Some((digest, peer)) = self.unsaved.pop_first() else { break };
            let Some(provider) = addr::from_libp2p(&peer) else { continue };
            let kept = self.keys.get(&digest).and_then(|providers| providers.get(&peer));
            changes.push(match kept {
                Some(kept) => Change::PutProvider(StoredProvider {
                    digest,
                    provider,
                    addresses: kept.addresses.iter().map(|a| ByteVec::from(a.to_vec())).collect(),
                    expires: wall.saturating_add(kept.expires.saturating_duration_since(now)),
                }),
                None => Change::DeleteProvider { digest, provider },
            });
        }
        changes
    }

    fn keep(
        &mut self,
        digest: Digest,
        provider: PeerId,
        expires: Instant,
        mut addresses: Vec<Multiaddr>,
    ) -> Result<(), StoreError> {
        addresses.retain(|address| address.len() <= self.config.address_bytes_max);
        // Data endpoints first: they are what a provider record is for.
        addresses.sort_by_key(|address| addr::parse_data_address(address).is_none());
        addresses.truncate(self.config.addresses_max);
        let known = self.keys.get(&digest).is_some_and(|providers| providers.contains_key(&provider));
        if known {
            self.forget(&digest, &provider);
        } else {
            self.make_room(&digest, &provider)?;
        }
        self.keys.entry(digest).or_default().insert(provider, Kept { expires, addresses });
        self.by_expiry.insert((expires, digest, provider));
        let records = self.publishers.entry(provider).or_default();
        self.by_count.remove(&(records.len(), provider));
        records.insert((expires, digest));
        self.by_count.insert((records.len(), provider));
        self.note_unsaved(digest, provider);
        Ok(())
    }

    /// Makes room for one more record, or says that its publisher has had its share.
    fn make_room(&mut self, digest: &Digest, provider: &PeerId) -> Result<(), StoreError> {
        let count = self.publishers.get(provider).map_or(0, BTreeSet::len);
        if count >= self.config.per_publisher_max {
            return Err(StoreError::MaxProvidedKeys);
        }
        if self.len() >= self.config.records_max {
            let Some(&(largest, publisher)) = self.by_count.last() else {
                return Err(StoreError::MaxProvidedKeys);
            };
            // Only who has clearly more gives way, so that two equals do not displace each other for ever.
            if largest <= count + 1 {
                return Err(StoreError::MaxProvidedKeys);
            }
            let next = self.publishers.get(&publisher).and_then(BTreeSet::first).map(|(_, digest)| *digest);
            if let Some(displaced) = next {
                self.forget(&displaced, &publisher);
                self.counters.displaced += 1;
            }
        }
        let full = self.keys.get(digest).filter(|providers| providers.len() >= self.config.per_key_max);
        let soonest = full.and_then(|providers| {
            providers.iter().min_by_key(|(peer, kept)| (kept.expires, **peer)).map(|(peer, _)| *peer)
        });
        if let Some(peer) = soonest {
            self.forget(digest, &peer);
            self.counters.displaced += 1;
        }
        Ok(())
    }

    fn forget(&mut self, digest: &Digest, provider: &PeerId) {
        let Some(providers) = self.keys.get_mut(digest) else { return };
        let Some(kept) = providers.swap_remove(provider) else { return };
        if providers.is_empty() {
            self.keys.remove(digest);
        }
        self.by_expiry.remove(&(kept.expires, *digest, *provider));
        if let Some(records) = self.publishers.get_mut(provider) {
            self.by_count.remove(&(records.len(), *provider));
            records.remove(&(kept.expires, *digest));
            if records.is_empty() {
                self.publishers.remove(provider);
            } else {
                self.by_count.insert((records.len(), *provider));
            }
        }
        self.note_unsaved(*digest, *provider);
    }

    fn note_unsaved(&mut self, digest: Digest, provider: PeerId) {
        if self.unsaved.len() < self.config.unsaved_max {
            self.unsaved.insert((digest, provider));
        } else if !self.unsaved.contains(&(digest, provider)) {
            self.counters.unsaved += 1;
        }
    }

    /// Positions of a random sample of `wanted` out of `total` (Floyd's method).
    fn sample(&self, total: usize, wanted: usize) -> Vec<usize> {
        if total <= wanted {
            return (0..total).collect();
        }
        let mut random = self.random.lock();
        let mut chosen = BTreeMap::new();
        for upper in (total - wanted)..total {
            // The remainder's bias is below 2^-40 for any number of providers that fits memory.
            let at = usize::try_from(random.next_u64() % (upper as u64 + 1)).unwrap_or(upper);
            let at = if chosen.contains_key(&at) { upper } else { at };
            chosen.insert(at, random.next_u64());
        }
        // Insertion order would favour the front positions; order by the drawn numbers instead.
        let mut drawn: Vec<(u64, usize)> = chosen.into_iter().map(|(at, tag)| (tag, at)).collect();
        drawn.sort_unstable();
        drawn.into_iter().map(|(_, at)| at).collect()
    }
}

impl RecordStore for Records {
    type RecordsIter<'a> = std::iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = std::iter::Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, _: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _: Record) -> Result<(), StoreError> {
        self.counters.refused += 1;
        Err(StoreError::MaxRecords)
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }

    fn add_provider(&mut self, record: ProviderRecord) -> Result<(), StoreError> {
        let Some(digest) = digest_of(&record.key) else {
            self.counters.refused += 1;
            return Err(StoreError::ValueTooLarge);
        };
        if record.provider == self.local {
            self.own.insert(digest);
            return Ok(());
        }
        let longest = Instant::now() + self.config.ttl;
        let expires = record.expires.map_or(longest, |expires| expires.min(longest));
        let kept = self.keep(digest, record.provider, expires, record.addresses);
        self.counters.refused += u64::from(kept.is_err());
        kept
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let Some(digest) = digest_of(key) else { return Vec::new() };
        let mut found = Vec::new();
        if self.own.contains(&digest) {
            // Without addresses: Kademlia fills in the current ones.
            found.push(ProviderRecord::new(key.clone(), self.local, Vec::new()));
        }
        let Some(providers) = self.keys.get(&digest) else { return found };
        for at in self.sample(providers.len(), self.config.sample.saturating_sub(found.len())) {
            let Some((peer, kept)) = providers.get_index(at) else { continue };
            found.push(ProviderRecord {
                key: key.clone(),
                provider: *peer,
                expires: Some(kept.expires),
                addresses: kept.addresses.clone(),
            });
        }
        found
    }

    /// Empty, so that Kademlia republishes nothing itself: the reprovider does.
    fn provided(&self) -> Self::ProvidedIter<'_> {
        std::iter::empty()
    }

    fn remove_provider(&mut self, key: &RecordKey, provider: &PeerId) {
        let Some(digest) = digest_of(key) else { return };
        if *provider == self.local {
            self.own.remove(&digest);
        } else {
            self.forget(&digest, provider);
        }
    }
}

/// How long the records of a batch of changes may wait before they are remembered.
pub(crate) const SAVE_INTERVAL: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests;
