//! What came of a run.

mod compare;
mod plot;
mod summary;
mod table;

use serde::{Deserialize, Serialize};

pub use compare::compare;
pub use plot::plot;
pub(crate) use summary::Summary;

/// A distribution of times, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Half are done.
    pub p50: f64,
    /// 90 % are done.
    pub p90: f64,
    /// 99 % are done.
    pub p99: f64,
    /// 99.9 % are done.
    pub p99_9: f64,
    /// All are done.
    pub last: f64,
}

impl Percentiles {
    /// Those of `values`, which are sorted.
    pub(crate) fn of(values: &[f64]) -> Self {
        // Nearest rank: the least value that so many are not above.
        let at = |part: f64| {
            let rank = (values.len() as f64 * part).ceil() as usize;
            values.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
        };
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p99_9: at(0.999), last: at(1.0) }
    }
}

/// Payload over one direction of a link between zones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkReport {
    /// From this zone.
    pub from: String,
    /// To this one.
    pub to: String,
    /// Payload bytes.
    pub bytes: u64,
    /// As a multiple of all different bytes the receiving zone pulled and did not hold.
    pub copies: f64,
}

/// A target and what was reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetReport {
    /// What is measured.
    pub name: String,
    /// It must not be above this.
    pub wanted: f64,
    /// It is this.
    pub reached: f64,
}

impl TargetReport {
    /// Whether it was reached.
    pub fn is_met(&self) -> bool {
        self.reached <= self.wanted
    }
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The scenario's name.
    pub scenario: String,
    /// The seed.
    pub seed: u64,
    /// Hosts in all.
    pub hosts: usize,
    /// Hosts that pull.
    pub pullers: usize,
    /// Downloads.
    pub pulls: usize,
    /// Payload bytes they add up to.
    pub bytes: u64,
    /// Virtual time at the end, in seconds.
    pub took: f64,
    /// Time in which the slowest host's bytes can at best be there, in seconds.
    pub bound: f64,
    /// Time from a host's first wish to its last byte.
    pub hosts_done: Percentiles,
    /// The same for single downloads.
    pub pulls_done: Percentiles,
    /// Time from a wish to its first readable byte.
    pub first_byte: Percentiles,
    /// Links between zones.
    pub links: Vec<LinkReport>,
    /// Payload bytes the hosts that held the blobs sent.
    pub origin_bytes: u64,
    /// As a multiple of all different bytes pulled.
    pub origin_copies: f64,
    /// Pieces read from backends.
    pub backend_pieces: u64,
    /// Lookups of owners.
    pub owner_lookups: u64,
    /// Lookups in the DHT.
    pub dht_lookups: u64,
    /// Messages.
    pub messages: u64,
    /// Their bytes.
    pub control_bytes: u64,
    /// Payload received and thrown away.
    pub wasted_bytes: u64,
    /// Downloads that had to be asked for again.
    pub retries: u64,
    /// Downloads of surviving hosts that were not done in time; the first few, as host and blob.
    pub incomplete: Vec<(usize, usize)>,
    /// Downloads of surviving hosts that were not done in time.
    pub incomplete_count: usize,
    /// What must never happen and did.
    pub violation: Option<String>,
    /// What had to be reached.
    pub targets: Vec<TargetReport>,
    /// Hosts' times in order, thinned out: seconds and share of hosts.
    pub cdf: Vec<(f64, f64)>,
    /// The same for what is physically possible.
    pub bound_cdf: Vec<(f64, f64)>,
    /// Width of a column of `timeline` in seconds.
    pub timeline_secs: f64,
    /// Payload bytes verified in each column.
    pub timeline: Vec<u64>,
    /// Events simulated.
    pub events: u64,
    /// A hash of everything that happened.
    pub trace_hash: String,
}

impl Report {
    /// Whether nothing forbidden happened and every surviving host got what it wanted.
    pub fn is_sound(&self) -> bool {
        self.violation.is_none() && self.incomplete_count == 0
    }

    /// Whether it is sound and all targets are met.
    pub fn is_met(&self) -> bool {
        self.is_sound() && self.targets.iter().all(TargetReport::is_met)
    }

    /// As JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// From [`Self::to_json`].
    ///
    /// # Errors
    /// A text that is no report.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}
