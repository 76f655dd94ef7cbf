//! What came out: medians, as a table and as JSON.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::args::{Args, System};
use crate::client::Read;
use crate::measure::Usage;
use crate::micro::Micro;
use crate::scenario::Scenario;

/// Above this share of the machine's processors in use a ratio to the wires' bound says little.
const BUSY_MAX: f64 = 0.85;
const MB: f64 = 1e6;

/// One run.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    /// Seconds until the last and the median host had everything.
    pub(crate) last_secs: f64,
    pub(crate) median_secs: f64,
    /// Those over the bound; `None` where the wires have no rate.
    pub(crate) last_ratio: Option<f64>,
    pub(crate) median_ratio: Option<f64>,
    /// Bytes the blob's source put on its wire, over the blob's size.
    pub(crate) source_copies: f64,
    /// Bytes on the links between zones, both ways, over the blob's size and the number of zones that need it.
    pub(crate) link_copies: Option<f64>,
    /// Processor seconds of the system's processes, source included, per gigabyte at the clients.
    pub(crate) cpu_per_gb: f64,
    /// The same of the clients that read over HTTP.
    pub(crate) client_cpu_per_gb: f64,
    pub(crate) anonymous_peak_mb: f64,
    /// Median host's time to the first byte.
    pub(crate) first_byte_ms: f64,
    pub(crate) machine_busy: f64,
    /// Every host's time, in order.
    pub(crate) hosts_secs: Vec<f64>,
}

impl Figures {
    pub(crate) fn new(
        scenario: &Scenario,
        reads: &[Read],
        usage: Usage,
        source_bytes: u64,
        link_bytes: u64,
    ) -> Self {
        let size = scenario.blob_bytes as f64;
        let mut hosts_secs: Vec<f64> = reads.iter().map(|read| read.whole.as_secs_f64()).collect();
        hosts_secs.sort_by(f64::total_cmp);
        let first: Vec<f64> = reads.iter().map(|read| read.first_byte.as_secs_f64() * 1000.0).collect();
        let last_secs = hosts_secs.last().copied().unwrap_or(0.0);
        let median_secs = median(&hosts_secs);
        let bound = scenario.bound().map(|bound| bound.as_secs_f64());
        let delivered_gb = size * reads.len() as f64 / 1e9;
        let client: Duration = reads.iter().map(|read| read.cpu).sum();
        Self {
            last_ratio: bound.map(|bound| last_secs / bound),
            median_ratio: bound.map(|bound| median_secs / bound),
            source_copies: source_bytes as f64 / size,
            link_copies: (scenario.zones > 1).then(|| link_bytes as f64 / size / (scenario.zones - 1) as f64),
            cpu_per_gb: usage.cpu_secs / delivered_gb,
            client_cpu_per_gb: client.as_secs_f64() / delivered_gb,
            anonymous_peak_mb: usage.anonymous_peak_bytes as f64 / MB,
            first_byte_ms: median(&first),
            machine_busy: usage.machine_busy,
            last_secs,
            median_secs,
            hosts_secs,
        }
    }

    /// The median of each figure by itself.
    fn median_of(runs: &[Self]) -> Option<Self> {
        let first = runs.first()?;
        let of = |figure: &dyn Fn(&Self) -> f64| median(&runs.iter().map(figure).collect::<Vec<_>>());
        let maybe = |figure: &dyn Fn(&Self) -> Option<f64>| {
            let values: Vec<f64> = runs.iter().filter_map(figure).collect();
            (!values.is_empty()).then(|| median(&values))
        };
        Some(Self {
            last_secs: of(&|run| run.last_secs),
            median_secs: of(&|run| run.median_secs),
            last_ratio: maybe(&|run| run.last_ratio),
            median_ratio: maybe(&|run| run.median_ratio),
            source_copies: of(&|run| run.source_copies),
            link_copies: maybe(&|run| run.link_copies),
            cpu_per_gb: of(&|run| run.cpu_per_gb),
            client_cpu_per_gb: of(&|run| run.client_cpu_per_gb),
            anonymous_peak_mb: of(&|run| run.anonymous_peak_mb),
            first_byte_ms: of(&|run| run.first_byte_ms),
            machine_busy: of(&|run| run.machine_busy),
            hosts_secs: first.hosts_secs.clone(),
        })
    }

    /// One line for who watches.
    pub(crate) fn line(&self) -> String {
        format!(
            "last {:.2} s{}, source {:.2} copies{}, {:.1} CPU s/GB (clients {:.1}), first byte {:.0} ms, {:.0} MB, machine {:.0} % busy",
            self.last_secs,
            self.last_ratio.map_or_else(String::new, |ratio| format!(" = {ratio:.3} x bound")),
            self.source_copies,
            self.link_copies.map_or_else(String::new, |copies| format!(", link {copies:.3} copies")),
            self.cpu_per_gb,
            self.client_cpu_per_gb,
            self.first_byte_ms,
            self.anonymous_peak_mb,
            self.machine_busy * 100.0,
        )
    }

    fn json(&self) -> Value {
        json!({
            "last_secs": self.last_secs,
            "median_secs": self.median_secs,
            "last_over_bound": self.last_ratio,
            "median_over_bound": self.median_ratio,
            "source_wire_bytes_over_blob": self.source_copies,
            "link_bytes_over_blob": self.link_copies,
            "cpu_secs_per_gb": self.cpu_per_gb,
            "client_cpu_secs_per_gb": self.client_cpu_per_gb,
            "anonymous_peak_mb": self.anonymous_peak_mb,
            "first_byte_ms": self.first_byte_ms,
            "machine_busy": self.machine_busy,
            "hosts_secs": self.hosts_secs,
        })
    }
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

/// All runs.
pub(crate) struct Results {
    about: Value,
    scenarios: Vec<Scenario>,
    runs: BTreeMap<(usize, System), Vec<Figures>>,
    pub(crate) failures: Vec<String>,
    pub(crate) micro: Option<Micro>,
}

impl Results {
    pub(crate) fn new(args: &Args, program: &Path) -> Result<Self> {
        let version = std::process::Command::new(program).arg("--version").output()?;
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let cpu = read("/proc/cpuinfo");
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        let about = json!({
            "shoal": String::from_utf8_lossy(&version.stdout).trim(),
            "kernel": read("/proc/sys/kernel/osrelease"),
            "processor": model.trim_start_matches([' ', '\t', ':']),
            "processors": std::thread::available_parallelism()?.get(),
            "congestion_control": args.congestion.clone()
                .unwrap_or_else(|| read("/proc/sys/net/ipv4/tcp_congestion_control")),
            "runs": args.runs,
            "flags": args.flags,
        });
        Ok(Self { about, scenarios: Vec::new(), runs: BTreeMap::new(), failures: Vec::new(), micro: None })
    }

    fn index(&mut self, scenario: &Scenario) -> usize {
        let known = self.scenarios.iter().position(|other| other.name == scenario.name);
        known.unwrap_or_else(|| {
            self.scenarios.push(scenario.clone());
            self.scenarios.len() - 1
        })
    }

    pub(crate) fn add(&mut self, scenario: &Scenario, system: System, figures: Figures) {
        let at = self.index(scenario);
        self.runs.entry((at, system)).or_default().push(figures);
    }

    pub(crate) fn failed(&mut self, scenario: &Scenario, system: System, error: &anyhow::Error) {
        eprintln!("  FAILED: {error:#}");
        self.failures.push(format!("{} {}: {error:#}", scenario.name, system.name()));
    }

    /// Each scenario and system with the median of its runs.
    pub(crate) fn medians(&self) -> Vec<(&Scenario, System, Figures, usize)> {
        self.runs
            .iter()
            .filter_map(|((at, system), runs)| {
                Some((self.scenarios.get(*at)?, *system, Figures::median_of(runs)?, runs.len()))
            })
            .collect()
    }

    pub(crate) fn table(&self) -> String {
        let head = format!(
            "{:<14} {:<9} {:>6} {:>8} {:>7} {:>8} {:>8} {:>8} {:>7} {:>9} {:>9} {:>9} {:>6}\n",
            "scenario",
            "system",
            "runs",
            "bound s",
            "last s",
            "last /",
            "median /",
            "source /",
            "link /",
            "CPU s/GB",
            "first ms",
            "anon MB",
            "busy"
        );
        let mut text = format!("{}\n\n{head}", self.about);
        let optional =
            |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
        for (scenario, system, figures, runs) in self.medians() {
            let bound = scenario.bound().map(|bound| bound.as_secs_f64());
            let note = if figures.machine_busy > BUSY_MAX { " !" } else { "" };
            text += &format!(
                "{:<14} {:<9} {:>6} {:>8} {:>7.2} {:>8} {:>8} {:>8.3} {:>7} {:>9.2} {:>9.0} {:>9.1} {:>5.0}%{note}\n",
                scenario.name,
                system.name(),
                runs,
                optional(bound),
                figures.last_secs,
                optional(figures.last_ratio),
                optional(figures.median_ratio),
                figures.source_copies,
                optional(figures.link_copies),
                figures.cpu_per_gb,
                figures.first_byte_ms,
                figures.anonymous_peak_mb,
                figures.machine_busy * 100.0,
            );
        }
        text += "\nlast, median: time of that host over the bound (size / slowest rate; headers alone make 1.046). source, link: bytes on the\nwire over the blob's size. CPU: all processes of the system, its source too, per GB at the clients; HTTP clients not counted.\n! marks runs in which the machine was over 85 % busy: their ratio to the bound says little.\n";
        if let Some(micro) = &self.micro {
            text += &micro.table();
        }
        for failure in &self.failures {
            text += &format!("FAILED {failure}\n");
        }
        text
    }

    pub(crate) fn json(&self) -> Value {
        let runs: Vec<Value> = self
            .runs
            .iter()
            .filter_map(|((at, system), runs)| {
                let scenario = self.scenarios.get(*at)?;
                Some(json!({
                    "scenario": scenario.name,
                    "hosts": scenario.hosts,
                    "zones": scenario.zones,
                    "blob_bytes": scenario.blob_bytes,
                    "wire_bits_per_sec": scenario.wire,
                    "link_bits_per_sec": scenario.link.rate,
                    "link_delay_ms": scenario.link.delay.as_secs_f64() * 1000.0,
                    "bound_secs": scenario.bound().map(|bound| bound.as_secs_f64()),
                    "system": system.name(),
                    "median": Figures::median_of(runs)?.json(),
                    "runs": runs.iter().map(Figures::json).collect::<Vec<_>>(),
                }))
            })
            .collect();
        json!({
            "about": self.about,
            "runs": runs,
            "micro": self.micro.as_ref().map(Micro::json),
            "failures": self.failures,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }
}
