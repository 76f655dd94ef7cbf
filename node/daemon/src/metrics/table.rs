//! The one table of all metrics: name, kind, unit, labels, help. Whatever is shown at `/metrics` has a row here, and
//! `docs/METRICS.md` is made of it.

use std::borrow::Cow;
use std::fmt::Write as _;

use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Metric, Registry, Unit};
use shoal_net::control::ControlStats;
use shoal_net::data::DataStats;

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only goes up, and begins at zero when the process starts. Shown with `_total` behind its name.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Observations in buckets.
    Histogram,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }

    pub(crate) fn metric_type(self) -> MetricType {
        match self {
            Self::Counter => MetricType::Counter,
            Self::Gauge => MetricType::Gauge,
            Self::Histogram => MetricType::Histogram,
        }
    }
}

/// One metric.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name without `_total`. A name that ends in `_bytes` or `_seconds` has that unit.
    pub name: Cow<'static, str>,
    /// What it is.
    pub kind: Kind,
    /// Its labels; [`LABELS`] says which values each can have.
    pub labels: &'static [&'static str],
    /// What it tells, without a full stop.
    pub help: Cow<'static, str>,
}

impl Row {
    const fn new(
        name: &'static str,
        kind: Kind,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self { name: Cow::Borrowed(name), kind, labels, help: Cow::Borrowed(help) }
    }

    /// Its name as Prometheus knows it.
    pub fn exposed(&self) -> String {
        match self.kind {
            Kind::Counter => format!("{}_total", self.name),
            Kind::Gauge | Kind::Histogram => self.name.clone().into_owned(),
        }
    }

    /// The name without its unit, and the unit.
    pub(crate) fn split(&self) -> (&str, Option<Unit>) {
        if let Some(base) = self.name.strip_suffix("_bytes") {
            (base, Some(Unit::Bytes))
        } else if let Some(base) = self.name.strip_suffix("_seconds") {
            (base, Some(Unit::Seconds))
        } else {
            (&*self.name, None)
        }
    }

    /// Registers the metric that this row describes.
    pub fn register(&self, registry: &mut Registry, metric: impl Metric) {
        match self.split() {
            (base, Some(unit)) => registry.register_with_unit(base, &*self.help, unit, metric),
            (base, None) => registry.register(base, &*self.help, metric),
        }
    }
}

macro_rules! rows {
    ($($group:literal { $($row:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)* })*) => {
        $($(
            #[doc = $help]
            pub const $row: Row = Row::new($name, Kind::$kind, &[$($label),*], $help);
        )*)*

        /// The rows that stand in this file, by the chapter of the documentation.
        const GROUPS: &[(&str, &[&Row])] = &[$(($group, &[$(&$row),*])),*];
    };
}

rows! {
    "Pulls and pushes" {
        PULLS: Counter "shoal_pulls" [] "Blobs opened by local clients";
        READ: Counter "shoal_read_bytes" ["source"] "Bytes read by local clients, by whether the blob was here already";
        COMPLETED: Counter "shoal_blobs_completed" [] "Blobs fetched and checked against their digest";
        FAILED: Counter "shoal_blobs_failed" [] "Blobs whose fetch failed";
        BLOB_SECONDS: Histogram "shoal_blob_seconds" [] "From the first wish for a blob until its whole digest was right";
        FIRST_PIECE: Histogram "shoal_first_piece_seconds" [] "From the first wish for a blob until its first piece was verified";
        PHASES: Counter "shoal_pull_phase_seconds" ["phase"] "Time that pulls spent, by what they waited for";
        PUSHES: Counter "shoal_pushes" [] "Blobs whose push was acknowledged";
        PUSH_FAILURES: Counter "shoal_push_failures" [] "Blobs that too few origins kept";
    }
    "Transfer" {
        RECEIVED: Counter "shoal_received_bytes" ["source"] "Verified payload, by who gave it";
        SERVED: Counter "shoal_served_bytes" [] "Payload sent to peers";
        ZONE_RECEIVED: Counter "shoal_zone_received_bytes" ["zone"] "Verified payload from peers and origins, by their zone";
        ZONE_SERVED: Counter "shoal_zone_served_bytes" ["zone"] "Payload sent to peers, by their zone";
        PIECES_RECEIVED: Counter "shoal_pieces_received" [] "Pieces verified";
        PIECES_SERVED: Counter "shoal_pieces_served" [] "Pieces sent to peers";
        PIECES_CORRUPT: Counter "shoal_pieces_corrupt" [] "Pieces that did not have their hash";
        METAINFO_REVOKED: Counter "shoal_metainfo_revoked" [] "Metainfo not taken: its origin has been revoked";
        PIECE_LATENCY: Histogram "shoal_piece_latency_seconds" [] "From a request to the piece's last byte";
        TIMEOUTS: Counter "shoal_request_timeouts" [] "Requests given to another peer after their deadline";
        DROPPED: Counter "shoal_peers_dropped" ["reason"] "Peers disconnected, by reason";
        SWARMS: Gauge "shoal_swarms" [] "Swarms this process takes part in";
        CONNECTIONS: Gauge "shoal_connections" [] "Data-plane connections";
        BUFFER: Gauge "shoal_buffer_bytes" [] "Memory of pieces requested or being verified";
        BUFFER_LIMIT: Gauge "shoal_buffer_limit_bytes" [] "Most memory for pieces on their way: buffer-memory";
        RATE_LIMIT: Gauge "shoal_rate_limit_bytes_per_second" ["direction", "scope"] "Payload rates allowed by rate-in, rate-out, zone-rate-in and zone-rate-out; +Inf without a limit";
    }
    "Discovery" {
        LOOKUPS: Counter "shoal_lookups" ["lookup", "result"] "Lookups for peers that have a blob, by where and whether they could be carried out";
        ORIGINS: Gauge "shoal_origins" [] "Origins alive, as far as known";
        MEMBERS: Gauge "shoal_members" [] "Members heard of";
        CALLS: Counter "shoal_calls" [] "Questions from peers answered";
        CALLS_SHED: Counter "shoal_calls_shed" [] "Questions from peers dropped, the queue being full";
        HANDSHAKES_REJECTED: Counter "shoal_handshakes_rejected" ["rejection"] "Handshakes refused and members disconnected, by reason";
        RECORDS_SETTLED: Gauge "shoal_records_settled" [] "1 when this process holds all records it should";
        RECORDS_RECOVERED: Counter "shoal_records_recovered" [] "Records read back from a backend";
    }
    "Store" {
        STORE_BYTES: Gauge "shoal_store_bytes" [] "Bytes of blobs and uploads in the store";
        STORE_CAPACITY: Gauge "shoal_store_capacity_bytes" [] "Bytes that the store may use";
        STORE_BLOBS: Gauge "shoal_store_blobs" [] "Blobs in the store, partial ones included";
        STORE_UPLOADS: Gauge "shoal_store_uploads" [] "Uploads open";
        EVICTED: Counter "shoal_store_evictions" [] "Blobs evicted from the store";
        EVICTED_BYTES: Counter "shoal_store_evicted_bytes" [] "Bytes evicted from the store";
        STORE_REFUSED: Counter "shoal_store_refused" ["want"] "Blobs and uploads that the store refused, by what it lacked";
        PIECES_LOST: Counter "shoal_store_pieces_lost" [] "Pieces of a former run that did not have their hash";
    }
    "Origins and their backends" {
        QUEUE: Gauge "shoal_backend_queue" ["kind"] "Blobs and records that wait to be written to a backend";
        QUEUE_AGE: Gauge "shoal_backend_queue_age_seconds" [] "How long the oldest of them has been waiting";
        QUEUE_RETRIES: Counter "shoal_backend_queue_retries" [] "Writes to a backend that failed and are tried again";
        COLLECTED: Counter "shoal_gc_blobs" [] "Blobs deleted by garbage collection";
        COLLECTED_BYTES: Counter "shoal_gc_deleted_bytes" [] "Bytes of blobs deleted by garbage collection";
        REPLICATION_WAITING: Gauge "shoal_replication_waiting" [] "Tags and manifests that wait to be copied to other zones";
        REPLICATION_AGE: Gauge "shoal_replication_age_seconds" [] "How long the oldest of them has been waiting";
        REPLICATION_COPIED: Counter "shoal_replication_copied" [] "Tags and manifests copied to other zones";
        REPLICATION_BYTES: Counter "shoal_replication_copied_bytes" [] "Bytes of the blobs that other zones have because of that";
        REPLICATION_RETRIES: Counter "shoal_replication_retries" [] "Copies that failed and are tried again";
        BACKEND_READ: Counter "shoal_backend_read_bytes" ["backend"] "Bytes of blobs read from a backend";
        BACKEND_WRITTEN: Counter "shoal_backend_written_bytes" ["backend"] "Bytes of blobs put into a backend";
        BACKEND_FAILURES: Counter "shoal_backend_failures" ["backend"] "Requests that a backend did not answer, or refused";
    }
    "Preheating" {
        PREHEATED: Counter "shoal_preheat_images" ["outcome"] "Images that this process was asked to fetch, by what became of it";
        PREHEATING: Gauge "shoal_preheat_images_waiting" [] "Images that it was asked to fetch and has not yet";
        PREHEATS: Counter "shoal_preheat_orders" [] "Images that this process had gateways fetch";
        PREHEATS_REFUSED: Counter "shoal_preheat_orders_refused" [] "Images that it did not, too many waiting";
    }
    "The registry API of a gateway" {
        GATEWAY_REQUESTS: Counter "shoal_gateway_requests" ["route", "method", "code"] "Requests answered";
        GATEWAY_IN_FLIGHT: Gauge "shoal_gateway_requests_in_flight" [] "Requests not yet answered to the end";
        GATEWAY_CONNECTIONS: Gauge "shoal_gateway_connections" [] "Connections open";
        GATEWAY_RECEIVED: Counter "shoal_gateway_received_bytes" [] "Body bytes from clients";
        GATEWAY_SENT: Counter "shoal_gateway_sent_bytes" [] "Body bytes to clients";
        GATEWAY_BROKEN: Counter "shoal_gateway_responses_broken" [] "Responses broken off in mid-stream";
        GATEWAY_STALE: Counter "shoal_gateway_stale" [] "Manifests answered with the newest known, their owners or registry being out of reach";
        GATEWAY_REJECTED: Counter "shoal_gateway_rejected" ["refusal"] "Connections and requests turned away";
        GATEWAY_FIRST_BYTE: Histogram "shoal_gateway_first_byte_seconds" ["route"] "Time from a request to the first byte of its response's body";
    }
    "The process" {
        BUILD_INFO: Gauge "shoal_build_info" ["version"] "Always 1: which program this is";
        NODE_INFO: Gauge "shoal_node_info" ["peer", "zone", "roles"] "Always 1: who this process is";
        CREDENTIAL_EXPIRY: Gauge "shoal_credential_expiry_timestamp_seconds" [] "When this process's credential expires, in seconds since 1970";
        RUNTIME_WORKERS: Gauge "shoal_runtime_workers" [] "Threads that run tasks";
        RUNTIME_TASKS: Gauge "shoal_runtime_tasks" [] "Tasks alive";
        RUNTIME_QUEUE: Gauge "shoal_runtime_queued_tasks" [] "Tasks that wait in the runtime's shared queue";
        RUNTIME_BUSY: Counter "shoal_runtime_busy_seconds" [] "Time that the runtime's threads were running tasks";
        PROCESS_CPU: Counter "process_cpu_seconds" [] "Processor time used, in user and system mode";
        PROCESS_MEMORY: Gauge "process_resident_memory_bytes" [] "Resident memory";
        PROCESS_THREADS: Gauge "process_threads" [] "Threads";
        PROCESS_FDS: Gauge "process_open_fds" [] "File descriptors open";
        PROCESS_FDS_MAX: Gauge "process_max_fds" [] "File descriptors allowed";
        PROCESS_START: Gauge "process_start_time_seconds" [] "When the process started, in seconds since 1970";
    }
}

/// What each label can say. Every one is bounded, whatever clients and peers do.
pub const LABELS: &[(&str, &str)] = &[
    ("backend", "the backend's URL without secrets; one for each configured backend"),
    ("code", "HTTP status codes that the gateway answers with"),
    ("direction", "`in`, `out`"),
    ("kind", "`blob`, `record`"),
    ("lookup", "`owners` (rendezvous hashing over the origins alive), `dht`"),
    ("method", "`GET`, `HEAD`, `POST`, `PUT`, `PATCH`, `DELETE`, `other`"),
    ("outcome", "`done`, `failed`"),
    ("peer", "the process's own peer id"),
    ("phase", "`lookup`, `seeder`, `own_link`, `backend`, `disk`, `client`: what `shoal why` calls them"),
    ("reason", "`corrupt_piece`, `protocol`, `stalled`, `idle`, `replaced`"),
    ("refusal", "a fixed set of words, such as `overload`, `access`, `garbage`, `timeout`, `handshake`"),
    ("rejection", "a fixed set of words, such as `no_credential`, `expired`, `revoked`, `banned`"),
    ("result", "`answered`, `unanswered`"),
    ("roles", "the roles in the process's own credential"),
    ("route", "the registry API's route templates, `/v2/<name>/blobs/<digest>` and so on, or `none`"),
    ("scope", "`node` (all peers), `zone` (peers of other zones)"),
    (
        "source",
        "of received bytes `zone` (a peer of this zone), `other_zone`, `origin` (of any zone), `backend` (this \
         process's own); of read bytes `local`, `mesh`",
    ),
    ("version", "the program's version"),
    ("want", "`space`, `uploads` (too many open)"),
    ("zone", "the zones of members, at most 64; further ones are counted as `other`"),
];

/// Chapters of the rows that the two planes count themselves.
const CONTROL: &str = "The control plane";
const DATA: &str = "The data plane";

/// The row of one of the control plane's figures.
pub(crate) fn control_row(name: &'static str, help: &'static str) -> Row {
    let kind = if ControlStats::is_gauge(name) { Kind::Gauge } else { Kind::Counter };
    plane_row("control", name, help, kind)
}

/// The row of one of the data plane's counters.
pub(crate) fn data_row(name: &'static str, help: &'static str) -> Row {
    plane_row("data", name, help, Kind::Counter)
}

fn plane_row(plane: &str, name: &str, help: &'static str, kind: Kind) -> Row {
    let help = help.trim().trim_end_matches('.');
    Row { name: Cow::Owned(format!("shoal_{plane}_{name}")), kind, labels: &[], help: Cow::Borrowed(help) }
}

/// Every metric, by chapter.
pub fn table() -> Vec<(&'static str, Vec<Row>)> {
    let mut chapters: Vec<(&'static str, Vec<Row>)> = GROUPS
        .iter()
        .map(|(title, rows)| (*title, rows.iter().map(|row| (*row).clone()).collect()))
        .collect();
    let control = ControlStats::default();
    chapters.push((CONTROL, control.iter().map(|(name, help, _)| control_row(name, help)).collect()));
    let data = DataStats::default();
    chapters.push((DATA, data.iter().map(|(name, help, _)| data_row(name, help)).collect()));
    chapters
}

/// The table as Markdown: `docs/METRICS.md`.
pub fn reference() -> String {
    let mut text = String::from(
        "# Metrics\n\nWhat a daemon shows at `/metrics` of its ops listener, as OpenMetrics or in Prometheus's older text \
         format. Made by `shoal config metrics`; a test checks that it is current. Counters begin at zero when the process \
         starts. A bootstrap peer shows the chapters on the control plane and the process.\n",
    );
    for (title, rows) in table() {
        let _ = write!(text, "\n## {title}\n\n| name | kind | labels | what it tells |\n|---|---|---|---|\n");
        for row in rows {
            let labels: Vec<String> = row.labels.iter().map(|label| format!("`{label}`")).collect();
            let (name, kind) = (row.exposed(), row.kind.name());
            let _ = writeln!(text, "| `{name}` | {kind} | {} | {} |", labels.join(", "), row.help);
        }
    }
    text.push_str("\n## Labels\n\n| label | values |\n|---|---|\n");
    for (label, values) in LABELS {
        let _ = writeln!(text, "| `{label}` | {values} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn the_reference_is_current() {
        let path = Path::new("../../docs/METRICS.md");
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(written == reference(), "run: shoal config metrics > docs/METRICS.md");
    }

    #[test]
    fn names_are_unique_and_labels_are_described() {
        let described: BTreeSet<&str> = LABELS.iter().map(|(label, _)| *label).collect();
        let (mut names, mut used) = (BTreeSet::new(), BTreeSet::new());
        for row in table().into_iter().flat_map(|(_, rows)| rows) {
            assert!(names.insert(row.exposed()), "{} stands there twice", row.name);
            assert!(!row.help.is_empty() && !row.help.ends_with('.'), "{}: {:?}", row.name, row.help);
            assert!(!row.name.ends_with("_total"), "{}", row.name);
            used.extend(row.labels);
        }
        assert_eq!(described, used);
    }
}
