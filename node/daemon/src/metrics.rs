//! The metrics of a daemon: what it counts itself, and what it copies from its parts at each scrape. Names, kinds, labels
//! and help stand in [`table`] alone.

mod process;
mod samples;
mod scrape;
pub mod table;
mod text;

use std::collections::BTreeMap;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use shoal_engine::io::{DropReason, Event, Input, LookupSource, Report};
use shoal_types::{Digest, PeerId, Role, Roles, Timestamp, Zone};

pub(crate) use scrape::{door, node};

use crate::rpc::Traffic;

/// Most zones told apart by a label.
const ZONES_MAX: usize = 64;
/// The label of further zones.
const ZONE_OTHER: &str = "other";
/// Most blobs whose first piece is awaited; past it the time to it is not observed.
const AWAITED_MAX: usize = 4096;

/// Where payload came from or went to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source: &'static str,
}

/// Why something happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ZoneLabel {
    zone: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LookupLabels {
    lookup: &'static str,
    result: &'static str,
}

/// All counters, gauges and histograms of the daemon itself.
pub struct Metrics {
    own_zone: Zone,
    received: Family<SourceLabel, Counter>,
    served: Counter,
    zone_received: ZoneBytes,
    zone_served: ZoneBytes,
    pieces_received: Counter,
    pieces_served: Counter,
    piece_latency: Histogram,
    first_piece: Histogram,
    blob_seconds: Histogram,
    timeouts: Counter,
    dropped: Family<ReasonLabel, Counter>,
    completed: Counter,
    failed: Counter,
    swarms: Gauge,
    lookups: Family<LookupLabels, Counter>,
    /// Blobs wanted, none of whose pieces is here yet.
    awaited: Mutex<BTreeMap<Digest, Timestamp>>,
    /// Pieces that did not have their hash.
    pub pieces_corrupt: Counter,
    /// Metainfo that was not taken because its origin has been revoked.
    pub metainfo_revoked: Counter,
    read: Family<SourceLabel, Counter>,
    /// Pulls begun by local clients.
    pub pulls: Counter,
    /// Pushes acknowledged.
    pub pushes: Counter,
    /// Pushes that failed because too few origins kept them.
    pub push_failures: Counter,
    /// Questions from peers dropped because the queue was full.
    pub calls_shed: Counter,
    /// Questions from peers answered.
    pub calls: Counter,
    /// Blobs evicted from the store.
    pub evicted: Counter,
    preheated: Family<OutcomeLabel, Counter>,
    /// Images that this process had others fetch.
    pub preheats: Counter,
    /// Images that it did not, too many waiting.
    pub preheats_refused: Counter,
    /// Blobs that garbage collection deleted.
    pub collected: Counter,
    /// Their bytes.
    pub collected_bytes: Counter,
}

impl Metrics {
    /// Registers everything in `registry`.
    pub fn new(registry: &mut Registry, own_zone: Zone) -> Self {
        let own = Self {
            own_zone,
            received: Family::default(),
            served: Counter::default(),
            zone_received: ZoneBytes::default(),
            zone_served: ZoneBytes::default(),
            pieces_received: Counter::default(),
            pieces_served: Counter::default(),
            // 1 ms to 32 s.
            piece_latency: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            first_piece: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            // 10 ms to 5 h.
            blob_seconds: Histogram::new(exponential_buckets(0.01, 2.0, 22)),
            timeouts: Counter::default(),
            dropped: Family::default(),
            completed: Counter::default(),
            failed: Counter::default(),
            swarms: Gauge::default(),
            lookups: Family::default(),
            awaited: Mutex::default(),
            pieces_corrupt: Counter::default(),
            metainfo_revoked: Counter::default(),
            read: Family::default(),
            pulls: Counter::default(),
            pushes: Counter::default(),
            push_failures: Counter::default(),
            calls_shed: Counter::default(),
            calls: Counter::default(),
            evicted: Counter::default(),
            preheated: Family::default(),
            preheats: Counter::default(),
            preheats_refused: Counter::default(),
            collected: Counter::default(),
            collected_bytes: Counter::default(),
        };
        own.begin_at_zero();
        own.register(registry);
        own
    }

    /// Makes every label value that can be known: a counter that comes to be with its first count has no rate then.
    fn begin_at_zero(&self) {
        for source in ["zone", "other_zone", "origin", "backend"] {
            drop(self.received.get_or_create(&SourceLabel { source }));
        }
        for source in ["local", "mesh"] {
            drop(self.read.get_or_create(&SourceLabel { source }));
        }
        for outcome in ["done", "failed"] {
            drop(self.preheated.get_or_create(&OutcomeLabel { outcome }));
        }
        for why in DROP_REASONS {
            drop(self.dropped.get_or_create(&ReasonLabel { reason: drop_reason(why) }));
        }
        for lookup in ["owners", "dht"] {
            for result in ["answered", "unanswered"] {
                drop(self.lookups.get_or_create(&LookupLabels { lookup, result }));
            }
        }
    }

    fn register(&self, registry: &mut Registry) {
        table::RECEIVED.register(registry, self.received.clone());
        table::SERVED.register(registry, self.served.clone());
        table::ZONE_RECEIVED.register(registry, self.zone_received.family.clone());
        table::ZONE_SERVED.register(registry, self.zone_served.family.clone());
        table::PIECES_RECEIVED.register(registry, self.pieces_received.clone());
        table::PIECES_SERVED.register(registry, self.pieces_served.clone());
        table::PIECES_CORRUPT.register(registry, self.pieces_corrupt.clone());
        table::METAINFO_REVOKED.register(registry, self.metainfo_revoked.clone());
        table::PIECE_LATENCY.register(registry, self.piece_latency.clone());
        table::FIRST_PIECE.register(registry, self.first_piece.clone());
        table::BLOB_SECONDS.register(registry, self.blob_seconds.clone());
        table::TIMEOUTS.register(registry, self.timeouts.clone());
        table::DROPPED.register(registry, self.dropped.clone());
        table::COMPLETED.register(registry, self.completed.clone());
        table::FAILED.register(registry, self.failed.clone());
        table::SWARMS.register(registry, self.swarms.clone());
        table::LOOKUPS.register(registry, self.lookups.clone());
        table::READ.register(registry, self.read.clone());
        table::PULLS.register(registry, self.pulls.clone());
        table::PUSHES.register(registry, self.pushes.clone());
        table::PUSH_FAILURES.register(registry, self.push_failures.clone());
        table::CALLS.register(registry, self.calls.clone());
        table::CALLS_SHED.register(registry, self.calls_shed.clone());
        table::EVICTED.register(registry, self.evicted.clone());
        table::PREHEATED.register(registry, self.preheated.clone());
        table::PREHEATS.register(registry, self.preheats.clone());
        table::PREHEATS_REFUSED.register(registry, self.preheats_refused.clone());
        table::COLLECTED.register(registry, self.collected.clone());
        table::COLLECTED_BYTES.register(registry, self.collected_bytes.clone());
    }

    /// Takes note of an engine's report; `member` tells the zone and roles of a peer.
    pub fn note(&self, report: &Report, member: impl Fn(&PeerId) -> Option<(Zone, Roles)>) {
        match &report.event {
            Event::SwarmStarted { digest } => {
                self.swarms.inc();
                let mut awaited = self.awaited.lock();
                if awaited.len() < AWAITED_MAX {
                    awaited.insert(*digest, report.at);
                }
            }
            Event::SwarmEnded { digest } => {
                self.swarms.dec();
                self.awaited.lock().remove(digest);
            }
            Event::PieceReceived { digest, bytes, from, zone, latency, .. } => {
                let roles = from.as_ref().and_then(&member).map(|(_, roles)| roles);
                self.note_received(from.is_some(), zone.as_ref(), roles, u64::from(*bytes));
                self.pieces_received.inc();
                self.piece_latency.observe(latency.as_secs_f64());
                if let Some(since) = self.awaited.lock().remove(digest) {
                    self.first_piece.observe(report.at.saturating_since(since).as_secs_f64());
                }
            }
            Event::PieceServed { bytes, to, .. } => {
                self.served.inc_by(u64::from(*bytes));
                self.pieces_served.inc();
                if let Some((zone, _)) = member(to) {
                    self.zone_served.count(&zone, u64::from(*bytes));
                }
            }
            Event::RequestTimedOut { .. } => {
                self.timeouts.inc();
            }
            Event::PeerDropped { why, .. } => {
                self.dropped.get_or_create(&ReasonLabel { reason: drop_reason(*why) }).inc();
            }
            Event::BlobCompleted { took, .. } => {
                self.completed.inc();
                self.blob_seconds.observe(took.as_secs_f64());
            }
            Event::BlobFailed { .. } => {
                self.failed.inc();
            }
            _ => {}
        }
    }

    fn note_received(&self, from_peer: bool, zone: Option<&Zone>, roles: Option<Roles>, bytes: u64) {
        let source = match zone {
            _ if !from_peer => "backend",
            _ if roles.is_some_and(|roles| roles.contains(Role::Origin)) => "origin",
            Some(zone) if *zone != self.own_zone => "other_zone",
            _ => "zone",
        };
        self.received.get_or_create(&SourceLabel { source }).inc_by(bytes);
        if let Some(zone) = zone.filter(|_| from_peer) {
            self.zone_received.count(zone, bytes);
        }
    }

    /// What this process has received and given since it started.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            received: self.zone_received.totals.lock().clone().into_iter().collect(),
            backend: self.received.get_or_create(&SourceLabel { source: "backend" }).get(),
            served: self.served.get(),
            swarms: u64::try_from(self.swarms.get()).unwrap_or_default(),
        }
    }

    /// Takes note of a fact that the engine is told.
    pub fn note_fact(&self, fact: &Input) {
        if let Input::LookupFinished { source, answered, .. } = fact {
            let lookup = match source {
                LookupSource::Owners => "owners",
                LookupSource::Dht => "dht",
            };
            let result = if *answered { "answered" } else { "unanswered" };
            self.lookups.get_or_create(&LookupLabels { lookup, result }).inc();
        }
    }

    /// Counts an image that this process was to fetch: `done` or `failed`.
    pub(crate) fn note_preheated(&self, outcome: &'static str) {
        self.preheated.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// Counts bytes a local client read.
    pub fn note_read(&self, local: bool, bytes: u64) {
        let source = if local { "local" } else { "mesh" };
        self.read.get_or_create(&SourceLabel { source }).inc_by(bytes);
    }
}

/// Bytes by zone: for a scrape, and for whoever shows them. Of more than [`ZONES_MAX`] zones the rest stand together.
#[derive(Debug, Default)]
struct ZoneBytes {
    family: Family<ZoneLabel, Counter>,
    totals: Mutex<BTreeMap<String, u64>>,
}

impl ZoneBytes {
    fn count(&self, zone: &Zone, bytes: u64) {
        let mut totals = self.totals.lock();
        let mut zone = zone.to_string();
        if totals.len() >= ZONES_MAX && !totals.contains_key(&zone) {
            zone = ZONE_OTHER.to_owned();
        }
        self.family.get_or_create(&ZoneLabel { zone: zone.clone() }).inc_by(bytes);
        *totals.entry(zone).or_default() += bytes;
    }
}

const DROP_REASONS: [DropReason; 5] = [
    DropReason::CorruptPiece,
    DropReason::Protocol,
    DropReason::Stalled,
    DropReason::Idle,
    DropReason::Replaced,
];

/// The label of a reason.
pub fn drop_reason(why: DropReason) -> &'static str {
    match why {
        DropReason::CorruptPiece => "corrupt_piece",
        DropReason::Protocol => "protocol",
        DropReason::Stalled => "stalled",
        DropReason::Idle => "idle",
        DropReason::Replaced => "replaced",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_told_apart_up_to_a_bound() {
        let zones = ZoneBytes::default();
        for n in 0..ZONES_MAX + 10 {
            zones.count(&format!("z{n}").parse().unwrap(), 1);
        }
        zones.count(&"z3".parse().unwrap(), 5);
        let totals = zones.totals.lock();
        assert_eq!((totals.len(), totals["z3"], totals[ZONE_OTHER]), (ZONES_MAX + 1, 6, 10));
    }
}
