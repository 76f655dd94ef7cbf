//! The model of discovery: owners by rendezvous hashing, providers in a DHT.

use std::collections::BTreeMap;
use std::time::Duration;

use rand_core::Rng as _;

use crate::network::nanos;

/// Delays, limits and faults of lookups. The defaults are those of the daemon's discovery and of rust-libp2p's
/// Kademlia as it was measured.
#[derive(Clone, Debug)]
pub struct LookupConfig {
    /// Time in which owners are found: they are known from heartbeats.
    pub owners_delay: Duration,
    /// Owners named at most.
    pub owners_asked: usize,
    /// Time after which a dead origin is not named any more: missed heartbeats.
    pub owner_forgotten_after: Duration,
    /// A DHT lookup begins after a random time below this.
    pub dht_jitter: Duration,
    /// Round trips of a DHT lookup, on average (4.7 were measured with 399 hosts).
    pub dht_hops: f64,
    /// Time of one of them.
    pub dht_hop_delay: Duration,
    /// A lookup goes on for so long after the first providers.
    pub dht_linger: Duration,
    /// A lookup that has found nothing ends after this long.
    pub dht_timeout: Duration,
    /// Providers named at once: a random sample.
    pub dht_sample: usize,
    /// Providers of a blob kept at most: a newer one takes the oldest's place.
    pub dht_providers_max: usize,
    /// Time from a wish to provide to the record being there: a random time below this.
    pub provide_delay: Duration,
    /// Answers a second of one DHT server.
    pub dht_answers_per_sec: u64,
    /// Share of the lookups of one key that end at the server nearest to it (302 of 399 were measured).
    pub dht_hot_share: f64,
    /// Share of lookups that miss the records: servers that left, routing tables that are wrong.
    pub dht_missing: f64,
    /// Share of named providers that are not there any more.
    pub dht_stale: f64,
}

impl Default for LookupConfig {
    fn default() -> Self {
        let millis = Duration::from_millis;
        Self {
            owners_delay: Duration::from_micros(50),
            owners_asked: 3,
            owner_forgotten_after: millis(5000),
            dht_jitter: millis(50),
            dht_hops: 4.7,
            dht_hop_delay: millis(5),
            dht_linger: millis(200),
            dht_timeout: millis(10_000),
            dht_sample: 16,
            dht_providers_max: 256,
            provide_delay: millis(500),
            dht_answers_per_sec: 2000,
            dht_hot_share: 302.0 / 399.0,
            dht_missing: 0.0,
            dht_stale: 0.0,
        }
    }
}

/// Provider records of one blob.
#[derive(Debug, Default)]
struct Records {
    /// Oldest first.
    providers: Vec<u32>,
    /// When the server nearest to the key has answered all it was asked.
    busy_until: u64,
}

/// The DHT as lookups see it.
#[derive(Debug)]
pub(crate) struct Dht {
    config: LookupConfig,
    records: BTreeMap<u32, Records>,
}

/// What came of a DHT lookup.
#[derive(Debug)]
pub(crate) struct Looked {
    pub(crate) providers: Vec<u32>,
    /// When the providers are told.
    pub(crate) found: u64,
    /// When the lookup is over.
    pub(crate) over: u64,
}

impl Dht {
    pub(crate) fn new(config: LookupConfig) -> Self {
        Self { config, records: BTreeMap::new() }
    }

    /// A provider record is stored.
    pub(crate) fn store(&mut self, blob: u32, node: u32) {
        let records = self.records.entry(blob).or_default();
        if records.providers.contains(&node) {
            return;
        }
        if records.providers.len() >= self.config.dht_providers_max {
            records.providers.remove(0);
        }
        records.providers.push(node);
    }

    /// A lookup of `blob` by `asker` begins.
    pub(crate) fn look_up(
        &mut self,
        blob: u32,
        asker: u32,
        now: u64,
        random: &mut rand_pcg::Pcg64,
    ) -> Looked {
        let mut chance = |part: f64| (random.next_u64() >> 11) as f64 / ((1u64 << 53) as f64) < part;
        let missing = chance(self.config.dht_missing);
        let hot = chance(self.config.dht_hot_share);
        let jitter = random.next_u64() % nanos(self.config.dht_jitter).max(1);
        let hops = nanos(self.config.dht_hop_delay.mul_f64(self.config.dht_hops));
        // Half to one and a half times the mean.
        let walk = hops / 2 + random.next_u64() % hops.max(1);
        let begin = now + jitter;
        let mut found = begin + walk;
        let records = self.records.entry(blob).or_default();
        if hot {
            let turn = 1_000_000_000 / self.config.dht_answers_per_sec.max(1);
            records.busy_until = records.busy_until.max(found) + turn;
            found = records.busy_until;
        }
        let timeout = begin + nanos(self.config.dht_timeout);
        if found > timeout || missing || records.providers.iter().all(|node| *node == asker) {
            return Looked { providers: Vec::new(), found, over: found.min(timeout) };
        }
        let mut providers: Vec<u32> =
            records.providers.iter().copied().filter(|node| *node != asker).collect();
        let sample = self.config.dht_sample.min(providers.len());
        for place in 0..sample {
            let other = place + (random.next_u64() % (providers.len() - place) as u64) as usize;
            providers.swap(place, other);
        }
        providers.truncate(sample);
        let stale = self.config.dht_stale;
        if stale > 0.0 {
            providers.retain(|_| (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64 >= stale);
        }
        Looked { providers, found, over: (found + nanos(self.config.dht_linger)).min(timeout.max(found)) }
    }
}
