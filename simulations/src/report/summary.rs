//! From a finished run to its report.

use std::collections::{BTreeMap, BTreeSet};

use super::{LinkReport, Percentiles, Report, TargetReport};
use crate::scenario::{Scenario, Simulation, Targets};

/// Points of a curve at most.
const POINTS_MAX: usize = 400;
/// Missing downloads named at most.
const INCOMPLETE_NAMED: usize = 20;
const NANOS: f64 = 1e9;

pub(crate) struct Summary<'a> {
    pub(crate) simulation: &'a Simulation,
    pub(crate) scenario: &'a Scenario,
}

#[derive(Default)]
struct Host {
    first: u64,
    done: Option<u64>,
    bytes: u64,
    blobs: BTreeSet<usize>,
}

impl Summary<'_> {
    pub(crate) fn report(&self) -> Report {
        let fleet = &self.simulation.fleet;
        let pulls = &self.simulation.pulls;
        let survives = |node: usize| !fleet.is_dead(node);
        let hosts = self.hosts();
        let secs = |from: u64, to: u64| to.saturating_sub(from) as f64 / NANOS;
        let sorted = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values
        };
        let done = sorted(
            hosts
                .iter()
                .filter(|(node, _)| survives(**node))
                .filter_map(|(_, host)| Some(secs(host.first, host.done?)))
                .collect(),
        );
        let bounds = sorted(hosts.iter().map(|(node, host)| self.bound(*node, host)).collect());
        let each = sorted(pulls.iter().filter_map(|pull| Some(secs(pull.first, pull.done?))).collect());
        let first =
            sorted(pulls.iter().filter_map(|pull| Some(secs(pull.first, pull.first_byte?))).collect());
        let incomplete: Vec<(usize, usize)> = pulls
            .iter()
            .filter(|pull| pull.done.is_none() && survives(pull.node))
            .map(|pull| (pull.node, pull.blob))
            .collect();
        let tallies: Vec<_> = (0..fleet.node_count()).map(|node| fleet.tally(node)).collect();
        let sum = |part: &dyn Fn(&crate::fleet::Tally) -> u64| tallies.iter().map(part).sum::<u64>();
        let pulled: BTreeSet<usize> = pulls.iter().map(|pull| pull.blob).collect();
        let holders: BTreeSet<usize> =
            pulled.iter().flat_map(|blob| self.simulation.holders[*blob].iter().copied()).collect();
        let distinct: u64 = pulled.iter().map(|blob| self.size(*blob)).sum();
        let origin_bytes = holders.iter().map(|node| tallies[*node].sent_bytes).sum::<u64>();
        let mut report = Report {
            scenario: self.scenario.name.clone(),
            seed: self.scenario.seed,
            hosts: fleet.node_count(),
            pullers: hosts.len(),
            pulls: pulls.len(),
            bytes: pulls.iter().map(|pull| self.size(pull.blob)).sum(),
            took: fleet.now().since_start().as_secs_f64(),
            bound: bounds.last().copied().unwrap_or(0.0),
            hosts_done: Percentiles::of(&done),
            pulls_done: Percentiles::of(&each),
            first_byte: Percentiles::of(&first),
            links: self.links(),
            origin_bytes,
            origin_copies: origin_bytes as f64 / distinct.max(1) as f64,
            backend_pieces: sum(&|tally| tally.backend_pieces),
            owner_lookups: sum(&|tally| tally.lookups[0]),
            dht_lookups: sum(&|tally| tally.lookups[1]),
            messages: sum(&|tally| tally.messages),
            control_bytes: sum(&|tally| tally.control_bytes),
            wasted_bytes: sum(&|tally| tally.wasted_bytes),
            retries: pulls.iter().map(|pull| u64::from(pull.retries)).sum(),
            incomplete_count: incomplete.len(),
            incomplete: incomplete.into_iter().take(INCOMPLETE_NAMED).collect(),
            violation: fleet.violation().map(str::to_owned),
            targets: Vec::new(),
            cdf: curve(&done, hosts.len()),
            bound_cdf: curve(&bounds, hosts.len()),
            timeline_secs: fleet.timeline().width_secs(),
            timeline: fleet.timeline().bytes().to_vec(),
            events: fleet.events(),
            trace_hash: format!("{:016x}", fleet.trace_hash()),
        };
        report.targets = targets(&self.scenario.targets, &report);
        report
    }

    fn size(&self, blob: usize) -> u64 {
        self.simulation.blobs[blob].1.metainfo.size()
    }

    fn hosts(&self) -> BTreeMap<usize, Host> {
        let mut hosts: BTreeMap<usize, Host> = BTreeMap::new();
        for pull in &self.simulation.pulls {
            let fresh = !hosts.contains_key(&pull.node);
            let host = hosts.entry(pull.node).or_default();
            if fresh {
                (host.first, host.done) = (pull.first, Some(0));
            }
            host.first = host.first.min(pull.first);
            host.done = host.done.zip(pull.done).map(|(one, other)| one.max(other));
            host.bytes += self.size(pull.blob);
            host.blobs.insert(pull.blob);
        }
        hosts
    }

    /// The least time a host needs: its bytes over its access link, or what its zone lacks over the links to it.
    fn bound(&self, node: usize, host: &Host) -> f64 {
        let fleet = &self.simulation.fleet;
        let spec = fleet.spec(node);
        let overhead = fleet.overhead();
        let access = spec.down_bytes_per_sec.map_or(0.0, |rate| host.bytes as f64 * overhead / rate as f64);
        let lacking: u64 = host
            .blobs
            .iter()
            .filter(|blob| {
                !self.simulation.holders[**blob].iter().any(|other| fleet.spec(*other).zone == spec.zone)
            })
            .map(|blob| self.size(*blob))
            .sum();
        let links = self.simulation.links.iter().filter(|(a, b, _)| *a == spec.zone || *b == spec.zone);
        let rate = links.map(|(.., rate)| rate.map_or(f64::INFINITY, |rate| rate as f64)).sum::<f64>();
        let over_links = if lacking == 0 || rate == 0.0 { 0.0 } else { lacking as f64 * overhead / rate };
        access.max(over_links)
    }

    fn links(&self) -> Vec<LinkReport> {
        let fleet = &self.simulation.fleet;
        let carried: Vec<_> = fleet.links().filter(|(.., bytes)| *bytes > 0).collect();
        carried
            .into_iter()
            .map(|(from, to, bytes)| {
                let pulled: BTreeSet<usize> = self
                    .simulation
                    .pulls
                    .iter()
                    .filter(|pull| fleet.spec(pull.node).zone == *to)
                    .map(|pull| pull.blob)
                    .filter(|blob| {
                        !self.simulation.holders[*blob].iter().any(|node| fleet.spec(*node).zone == *to)
                    })
                    .collect();
                let distinct: u64 = pulled.iter().map(|blob| self.size(*blob)).sum();
                let copies = bytes as f64 / distinct.max(1) as f64;
                let copies = if distinct == 0 { 0.0 } else { copies };
                LinkReport { from: from.to_string(), to: to.to_string(), bytes, copies }
            })
            .collect()
    }
}

/// Sorted times as a curve of the share that is done, of `count` in all.
fn curve(sorted: &[f64], count: usize) -> Vec<(f64, f64)> {
    let step = sorted.len().div_ceil(POINTS_MAX).max(1);
    let last = sorted.len().saturating_sub(1);
    sorted
        .iter()
        .enumerate()
        .filter(|(at, _)| at % step == 0 || *at == last)
        .map(|(at, secs)| (*secs, (at + 1) as f64 / count.max(1) as f64))
        .collect()
}

fn targets(wanted: &Targets, report: &Report) -> Vec<TargetReport> {
    let secs = |time: Option<crate::scenario::units::Time>| time.map(|time| time.0.as_secs_f64());
    let link = report.links.iter().map(|link| link.copies).fold(0.0, f64::max);
    [
        ("p50, s", secs(wanted.p50), report.hosts_done.p50),
        ("p99, s", secs(wanted.p99), report.hosts_done.p99),
        ("p99.9, s", secs(wanted.p99_9), report.hosts_done.p99_9),
        ("last, s", secs(wanted.last), report.hosts_done.last),
        ("p99.9 / bound", wanted.p99_9_of_bound, report.hosts_done.p99_9 / report.bound.max(1e-9)),
        ("origin copies", wanted.origin_copies, report.origin_copies),
        ("copies over a link", wanted.link_copies, link),
    ]
    .into_iter()
    .filter_map(|(name, wanted, reached)| {
        Some(TargetReport { name: name.to_owned(), wanted: wanted?, reached })
    })
    .collect()
}
