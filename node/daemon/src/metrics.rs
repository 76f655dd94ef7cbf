//! The metrics of a daemon: one table of name, kind, unit, labels and help.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use shoal_engine::io::{DropReason, Event, Report};

/// Where payload came from or went to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SourceLabel {
    /// `zone` (a peer of this zone), `other_zone`, `backend` or `local`.
    pub source: &'static str,
}

/// Why something happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// A short word from a fixed set.
    pub reason: &'static str,
}

/// Help of the figures that other parts count themselves.
pub const FIGURE_HELP: &str = "Counts of the planes, of admission and of the store, by name";

/// A figure that another part counts itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FigureLabel {
    /// `control`, `data`, `tls`, `store`, `queue`, `replication` or `records`.
    pub part: &'static str,
    /// The figure's name there.
    pub name: &'static str,
}

/// What is counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    /// `blob` or `record`.
    pub kind: &'static str,
}

/// A count of one of an origin's backends.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BackendLabel {
    /// The backend, without secrets.
    pub backend: String,
    /// `read_bytes`, `written_bytes` or `failures`.
    pub what: &'static str,
}

/// All counters, gauges and histograms of the daemon itself.
pub struct Metrics {
    own_zone: shoal_types::Zone,
    received: Family<SourceLabel, Counter>,
    served: Counter,
    pieces_received: Counter,
    pieces_served: Counter,
    piece_latency: Histogram,
    timeouts: Counter,
    dropped: Family<ReasonLabel, Counter>,
    completed: Counter,
    failed: Counter,
    swarms: Gauge,
    /// Pieces that did not have their hash.
    pub pieces_corrupt: Counter,
    /// Bytes read by local clients, by whether they were here already.
    pub read: Family<SourceLabel, Counter>,
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
    /// Blobs evicted or deleted from the store.
    pub evicted: Counter,
    /// Blobs that garbage collection deleted.
    pub collected: Counter,
    /// Their bytes.
    pub collected_bytes: Counter,
    /// Blobs in the store.
    pub store_blobs: Gauge,
    /// Bytes in the store.
    pub store_bytes: Gauge<i64>,
    /// Data-plane connections.
    pub connections: Gauge,
    /// Origins alive, as far as this process knows.
    pub origins: Gauge,
    /// Members this process has heard of.
    pub members: Gauge,
    /// What waits to be written to an origin's backends, copied at each scrape.
    pub queue: Family<KindLabel, Gauge>,
    /// How long the oldest of it has been waiting, in seconds.
    pub queue_age: Gauge<f64, AtomicU64>,
    /// Traffic of an origin's backends, copied at each scrape.
    pub backends: Family<BackendLabel, Gauge<u64, AtomicU64>>,
    /// Figures that other parts count themselves, copied at each scrape.
    pub figures: Family<FigureLabel, Gauge<u64, AtomicU64>>,
}

impl Metrics {
    /// Registers everything in `registry` under the prefix `shoal`.
    pub fn new(registry: &mut Registry, own_zone: shoal_types::Zone) -> Self {
        let own = Self {
            own_zone,
            received: Family::default(),
            served: Counter::default(),
            pieces_received: Counter::default(),
            pieces_served: Counter::default(),
            piece_latency: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            timeouts: Counter::default(),
            dropped: Family::default(),
            completed: Counter::default(),
            failed: Counter::default(),
            swarms: Gauge::default(),
            pieces_corrupt: Counter::default(),
            read: Family::default(),
            pulls: Counter::default(),
            pushes: Counter::default(),
            push_failures: Counter::default(),
            calls_shed: Counter::default(),
            calls: Counter::default(),
            evicted: Counter::default(),
            collected: Counter::default(),
            collected_bytes: Counter::default(),
            store_blobs: Gauge::default(),
            store_bytes: Gauge::default(),
            connections: Gauge::default(),
            origins: Gauge::default(),
            members: Gauge::default(),
            queue: Family::default(),
            queue_age: Gauge::default(),
            backends: Family::default(),
            figures: Family::default(),
        };
        own.register(registry.sub_registry_with_prefix("shoal"));
        own
    }

    fn register(&self, shoal: &mut Registry) {
        let bytes = || Unit::Bytes;
        shoal.register_with_unit("received", "Verified payload, by source", bytes(), self.received.clone());
        shoal.register_with_unit("served", "Payload sent to peers", bytes(), self.served.clone());
        shoal.register("pieces_received", "Pieces verified", self.pieces_received.clone());
        shoal.register("pieces_served", "Pieces sent to peers", self.pieces_served.clone());
        shoal.register_with_unit(
            "piece_latency",
            "From a request to the piece's last byte",
            Unit::Seconds,
            self.piece_latency.clone(),
        );
        shoal.register(
            "request_timeouts",
            "Requests given to another peer after their deadline",
            self.timeouts.clone(),
        );
        shoal.register("peers_dropped", "Peers disconnected, by reason", self.dropped.clone());
        shoal.register(
            "blobs_completed",
            "Blobs fetched and checked against their digest",
            self.completed.clone(),
        );
        shoal.register("blobs_failed", "Blobs whose fetch failed", self.failed.clone());
        shoal.register("pieces_corrupt", "Pieces that did not have their hash", self.pieces_corrupt.clone());
        shoal.register("swarms", "Swarms this process takes part in", self.swarms.clone());
        shoal.register_with_unit(
            "read",
            "Bytes read by local clients, by source",
            bytes(),
            self.read.clone(),
        );
        shoal.register("pulls", "Blobs opened by local clients", self.pulls.clone());
        shoal.register("pushes", "Blobs whose push was acknowledged", self.pushes.clone());
        shoal.register("push_failures", "Blobs that too few origins kept", self.push_failures.clone());
        shoal.register("calls", "Questions from peers answered", self.calls.clone());
        shoal.register(
            "calls_shed",
            "Questions from peers dropped, the queue being full",
            self.calls_shed.clone(),
        );
        shoal.register("store_evictions", "Blobs evicted from the store", self.evicted.clone());
        shoal.register("gc_blobs", "Blobs deleted by garbage collection", self.collected.clone());
        shoal.register_with_unit(
            "gc_deleted",
            "Bytes of blobs deleted by garbage collection",
            bytes(),
            self.collected_bytes.clone(),
        );
        shoal.register("store_blobs", "Blobs in the store", self.store_blobs.clone());
        shoal.register_with_unit("store", "Bytes of blobs in the store", bytes(), self.store_bytes.clone());
        shoal.register("connections", "Data-plane connections", self.connections.clone());
        shoal.register("origins", "Origins alive, as far as known", self.origins.clone());
        shoal.register("members", "Members heard of", self.members.clone());
        shoal.register(
            "backend_queue",
            "Blobs and records that wait to be written to a backend",
            self.queue.clone(),
        );
        shoal.register_with_unit(
            "backend_queue_age",
            "How long the oldest of them has been waiting",
            Unit::Seconds,
            self.queue_age.clone(),
        );
        shoal.register(
            "backend",
            "Traffic of an origin's backends since the start, by backend",
            self.backends.clone(),
        );
        shoal.register("figure", FIGURE_HELP, self.figures.clone());
    }

    /// Takes note of an engine's report.
    pub fn note(&self, report: &Report) {
        match &report.event {
            Event::SwarmStarted { .. } => {
                self.swarms.inc();
            }
            Event::SwarmEnded { .. } => {
                self.swarms.dec();
            }
            Event::PieceReceived { bytes, from, zone, latency, .. } => {
                let source = match (from, zone) {
                    (None, _) => "backend",
                    (Some(_), Some(zone)) if *zone != self.own_zone => "other_zone",
                    (Some(_), _) => "zone",
                };
                self.received.get_or_create(&SourceLabel { source }).inc_by(u64::from(*bytes));
                self.pieces_received.inc();
                self.piece_latency.observe(latency.as_secs_f64());
            }
            Event::PieceServed { bytes, .. } => {
                self.served.inc_by(u64::from(*bytes));
                self.pieces_served.inc();
            }
            Event::RequestTimedOut { .. } => {
                self.timeouts.inc();
            }
            Event::PeerDropped { why, .. } => {
                self.dropped.get_or_create(&ReasonLabel { reason: drop_reason(*why) }).inc();
            }
            Event::BlobCompleted { .. } => {
                self.completed.inc();
            }
            Event::BlobFailed { .. } => {
                self.failed.inc();
            }
            _ => {}
        }
    }

    /// Counts bytes a local client read.
    pub fn note_read(&self, local: bool, bytes: u64) {
        let source = if local { "local" } else { "mesh" };
        self.read.get_or_create(&SourceLabel { source }).inc_by(bytes);
    }
}

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
