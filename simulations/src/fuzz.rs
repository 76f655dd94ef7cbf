//! Faults first, then peace: whatever happened, every node that is up must end with the whole blob.

use std::sync::Arc;
use std::time::Duration;

use shoal_engine::io::{ReaderId, ReaderWant};
use shoal_types::{Digest, Zone};

use crate::fleet::{Cut, Fleet, FleetConfig, NodeId, NodeSpec};
use crate::network::NetworkConfig;
use crate::truth::Truth;
use crate::{LookupConfig, TraceFilter};

/// How long faults last at most: shorter than the engines' patience with a search, so that no pull may fail for it.
const FAULTS: Duration = Duration::from_secs(8);
/// Time until answers under way are there: a few round trips and lookups.
const UNDER_WAY: Duration = Duration::from_millis(500);
/// Time after the last fault within which everybody must be complete.
const LIMIT: Duration = Duration::from_secs(300);

/// Origins without the blob at most: three owners are asked, and the one that has it must be among them.
const OTHER_ORIGINS_MAX: usize = 2;

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FuzzOutcome {
    /// A hash of everything that happened.
    pub trace_hash: u64,
    /// Virtual time at the end.
    pub took: Duration,
    /// Nodes that should have the blob and have not.
    pub incomplete: Vec<NodeId>,
    /// What must never happen and did.
    pub violation: Option<String>,
}

impl FuzzOutcome {
    /// What went wrong, if anything did.
    pub fn trouble(&self) -> Option<String> {
        let missing = || format!("nodes {:?} are not complete after {:?}", self.incomplete, self.took);
        self.violation.clone().or_else(|| (!self.incomplete.is_empty()).then(missing))
    }
}

struct Run {
    fleet: Fleet,
    digest: Digest,
    source: NodeId,
    good: Vec<NodeId>,
    readers: Vec<(NodeId, ReaderId)>,
}

/// Runs the fleet of a seed: an origin with a blob, up to eight nodes in one or two zones, some of which are origins without it
/// and some of which send rubbish; kills, restarts, stops, continues, partitions and heals at random; then lets everybody come back.
pub fn run(seed: u64) -> FuzzOutcome {
    run_traced(seed, None).0
}

/// [`run`], and the story of a host or piece, a line an effect.
pub fn run_traced(seed: u64, filter: Option<TraceFilter>) -> (FuzzOutcome, Vec<String>) {
    let mut run = build(seed);
    if let Some(filter) = filter {
        run.fleet.trace(filter);
    }
    let steps = 6 + run.fleet.draw(10);
    for _ in 0..steps {
        let pause = run.fleet.draw(FAULTS.as_millis() as u64 / steps);
        run.fleet.run_for(Duration::from_millis(pause));
        fault(&mut run);
    }
    make_peace(&mut run);
    run.fleet.run_readers(LIMIT);
    let digest = run.digest;
    let incomplete = run.good.iter().copied().filter(|node| !run.fleet.is_complete(*node, &digest)).collect();
    let violation = run.fleet.violation().map(str::to_owned);
    let outcome = FuzzOutcome {
        trace_hash: run.fleet.trace_hash(),
        took: run.fleet.now().since_start(),
        incomplete,
        violation,
    };
    (outcome, run.fleet.trace_lines())
}

fn build(seed: u64) -> Run {
    let network = NetworkConfig { zone_rate_bytes_per_sec: Some(4_000_000), ..NetworkConfig::default() };
    let connect_timeout = Duration::from_millis(500);
    let lookup = LookupConfig { dht_missing: (seed % 4) as f64 * 0.1, ..LookupConfig::default() };
    let mut config = FleetConfig { network, lookup, connect_timeout, ..FleetConfig::default() };
    if seed.is_multiple_of(5) {
        // Room for four pieces: downloads wait for each other.
        Arc::make_mut(&mut config.engine).buffer_bytes_max = 1 << 20;
    }
    let mut fleet = Fleet::new(config, seed);
    let size = 1 + fleet.draw(24 << 20);
    let truth = Truth::new(seed, size);
    let zones: Vec<Zone> = if fleet.draw(2) == 0 {
        vec![Zone::default()]
    } else {
        ["east", "west"].into_iter().filter_map(|name| name.parse().ok()).collect()
    };
    let zone = |fleet: &mut Fleet| zones[fleet.draw(zones.len() as u64) as usize].clone();
    let spec = NodeSpec { zone: zone(&mut fleet), origin: true, ..NodeSpec::default() };
    let source = fleet.add(spec);
    if fleet.draw(3) == 0 {
        fleet.store_in_backend(source, &truth);
    } else {
        fleet.store(source, &truth);
    }
    let digest = truth.metainfo.digest();
    let mut run = Run { fleet, digest, source, good: Vec::new(), readers: Vec::new() };
    let mut others = 0;
    for _ in 0..2 + run.fleet.draw(7) {
        let zone = zone(&mut run.fleet);
        let corrupt = run.fleet.draw(6) == 0;
        let rate = 500_000 << run.fleet.draw(6);
        let origin = !corrupt && others < OTHER_ORIGINS_MAX && run.fleet.draw(4) == 0;
        others += usize::from(origin);
        let node = run.fleet.add(NodeSpec { zone, corrupt, origin, ..NodeSpec::with_rate(rate) });
        if !corrupt {
            run.good.push(node);
        } else if run.fleet.draw(2) == 0 {
            run.fleet.store(node, &truth);
        }
        open(&mut run, node);
    }
    run
}

fn open(run: &mut Run, node: NodeId) {
    let want = if run.fleet.draw(2) == 0 { ReaderWant::Whole } else { ReaderWant::Range(0..u64::MAX) };
    let reader = run.fleet.read(node, run.digest, want);
    run.readers.push((node, reader));
}

fn fault(run: &mut Run) {
    let nodes: Vec<NodeId> = std::iter::once(run.source).chain(run.good.iter().copied()).collect();
    let node = nodes[run.fleet.draw(nodes.len() as u64) as usize];
    match run.fleet.draw(7) {
        0 if !run.fleet.is_dead(node) => run.fleet.kill(node),
        0 | 1 => revive(run, node),
        2 if run.fleet.is_running(node) => run.fleet.stop(node),
        3 => {
            let part: Vec<NodeId> = nodes.into_iter().filter(|_| run.fleet.draw(2) == 0).collect();
            let how = if run.fleet.draw(2) == 0 { Cut::Reset } else { Cut::Silent };
            run.fleet.partition(&part, how);
        }
        4 => run.fleet.heal(),
        5 if run.fleet.is_running(node) => run.fleet.vanish(node),
        _ => {}
    }
}

fn revive(run: &mut Run, node: NodeId) {
    if run.fleet.is_dead(node) {
        run.fleet.restart(node);
        if node != run.source {
            open(run, node);
        }
    } else if !run.fleet.is_running(node) {
        run.fleet.resume(node);
    }
}

/// Everybody comes back, and who was told meanwhile that nobody has the blob tries again, once answers to what was asked before
/// are there.
fn make_peace(run: &mut Run) {
    run.fleet.heal();
    for node in std::iter::once(run.source).chain(run.good.clone()) {
        revive(run, node);
    }
    run.fleet.run_for(UNDER_WAY);
    for (node, reader) in std::mem::take(&mut run.readers) {
        if run.fleet.outcome(node, reader).failed.is_some() && run.good.contains(&node) {
            open(run, node);
        }
    }
}
