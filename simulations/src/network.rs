//! How bytes travel: access links of nodes, links between zones, delays.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_types::{Timestamp, Zone};

/// Rates and delays of a virtual network.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// One-way delay inside a zone.
    pub delay: Duration,
    /// One-way delay between zones.
    pub zone_delay: Duration,
    /// Rate of the link between each two zones, each way, in bytes per second; `None` is unlimited.
    pub zone_rate_bytes_per_sec: Option<u64>,
    /// Payload bytes a frame; frames of concurrent transfers take turns on a wire.
    pub frame_bytes: u32,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            delay: Duration::from_micros(200),
            zone_delay: Duration::from_millis(20),
            zone_rate_bytes_per_sec: None,
            frame_bytes: 32 * 1024,
        }
    }
}

/// A wire that carries one frame after the other.
#[derive(Clone, Debug)]
pub struct Link {
    rate_bytes_per_sec: Option<u64>,
    free: Timestamp,
    /// Payload bytes carried.
    pub carried_bytes: u64,
}

impl Link {
    /// An idle link; `None` is unlimited.
    pub fn new(rate_bytes_per_sec: Option<u64>) -> Self {
        Self { rate_bytes_per_sec, free: Timestamp::ZERO, carried_bytes: 0 }
    }

    /// Carries `bytes` that are ready at `ready`; returns when the last of them is through.
    pub fn carry(&mut self, ready: Timestamp, bytes: u32) -> Timestamp {
        self.carried_bytes += u64::from(bytes);
        let start = self.free.max(ready);
        let nanos = self.rate_bytes_per_sec.map_or(0, |rate| u64::from(bytes) * 1_000_000_000 / rate.max(1));
        self.free = start + Duration::from_nanos(nanos);
        self.free
    }
}

/// The links between zones.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) config: NetworkConfig,
    links: BTreeMap<(Zone, Zone), Link>,
}

impl Network {
    pub(crate) fn new(config: NetworkConfig) -> Self {
        Self { config, links: BTreeMap::new() }
    }

    pub(crate) fn delay(&self, from: &Zone, to: &Zone) -> Duration {
        if from == to { self.config.delay } else { self.config.zone_delay }
    }

    /// When a frame ready at `ready` in `from` is at the access link of its receiver in `to`.
    pub(crate) fn cross(&mut self, ready: Timestamp, from: &Zone, to: &Zone, bytes: u32) -> Timestamp {
        if from == to {
            return ready + self.config.delay;
        }
        let rate = self.config.zone_rate_bytes_per_sec;
        let link = self.links.entry((from.clone(), to.clone())).or_insert_with(|| Link::new(rate));
        link.carry(ready, bytes) + self.config.zone_delay
    }

    pub(crate) fn crossed_bytes(&self) -> u64 {
        self.links.values().map(|link| link.carried_bytes).sum()
    }
}
