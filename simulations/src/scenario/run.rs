//! A scenario in virtual time.

use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use shoal_engine::EngineConfig;
use shoal_engine::io::{ReaderId, ReaderWant};
use shoal_types::{PeerId, Zone, rendezvous};

use super::{Arrival, BlobTable, FaultKind, FaultTable, Order, PullTable, Scenario, ScenarioError};
use crate::LookupConfig;
use crate::fleet::{Cut, DiskSpec, Fleet, FleetConfig, NodeId, NodeSpec};
use crate::network::{LinkSpec, NetworkConfig, nanos};
use crate::report::{Report, Summary};
use crate::trace::TraceFilter;
use crate::truth::Truth;

/// Hosts of a group that hold a blob when a scenario does not say: as many as a mesh of origins keeps.
const COPIES_DEFAULT: usize = 3;
/// A pull that failed, or whose host came back, is tried again after this long.
const RETRY: Duration = Duration::from_secs(1);
/// Virtual time between two looks at progress and at failed pulls.
const SLICE: Duration = Duration::from_millis(100);

/// How far a run is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Virtual time.
    pub now: Duration,
    /// Pulls done.
    pub done: usize,
    /// Pulls in all.
    pub pulls: usize,
    /// Events so far.
    pub events: u64,
    /// Payload bytes verified so far.
    pub bytes: u64,
}

/// A host of the scenario and what it pulls.
#[derive(Clone, Debug)]
pub(crate) struct Pull {
    pub(crate) node: NodeId,
    pub(crate) blob: usize,
    order: Order,
    /// When it was first asked for.
    pub(crate) first: u64,
    reader: Option<ReaderId>,
    again_at: Option<u64>,
    pub(crate) retries: u32,
    pub(crate) first_byte: Option<u64>,
    pub(crate) done: Option<u64>,
}

#[derive(Clone, Debug)]
enum Action {
    Pull(usize),
    Crash(NodeId),
    Vanish(NodeId),
    Freeze(NodeId),
    BackendDown(NodeId, bool),
    Cut(Zone, Zone, bool),
    Back(NodeId),
    Thaw(NodeId),
}

/// One run of a scenario.
#[derive(Debug)]
pub struct Simulation {
    scenario: Scenario,
    pub(crate) fleet: Fleet,
    groups: Vec<(String, Vec<NodeId>)>,
    pub(crate) blobs: Vec<(String, Truth)>,
    /// Nodes that hold a blob at the beginning.
    pub(crate) holders: Vec<Vec<NodeId>>,
    pub(crate) pulls: Vec<Pull>,
    /// Latest first.
    actions: Vec<(u64, Action)>,
    pub(crate) links: Vec<(Zone, Zone, Option<u64>)>,
}

impl Simulation {
    /// The fleet of a scenario at time zero, with `seed` in place of the scenario's own if it is given.
    ///
    /// # Errors
    /// [`ScenarioError`]: a zone's name is none.
    pub fn new(scenario: &Scenario, seed: Option<u64>) -> Result<Self, ScenarioError> {
        let seed = seed.unwrap_or(scenario.seed);
        let config = scenario.fleet_config()?;
        let links = config.network.links.iter();
        let links = links.map(|((a, b), link)| (a.clone(), b.clone(), link.rate_bytes_per_sec)).collect();
        let mut own = Self {
            fleet: Fleet::new(config, seed),
            scenario: scenario.clone(),
            groups: Vec::new(),
            blobs: Vec::new(),
            holders: Vec::new(),
            pulls: Vec::new(),
            actions: Vec::new(),
            links,
        };
        own.scenario.seed = seed;
        own.add_hosts()?;
        for table in scenario.blobs.clone() {
            own.add_blobs(&table);
        }
        for table in scenario.pulls.clone() {
            own.add_pulls(&table);
        }
        for table in scenario.faults.clone() {
            own.add_fault(&table)?;
        }
        own.actions.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        Ok(own)
    }

    fn add_hosts(&mut self) -> Result<(), ScenarioError> {
        for group in self.scenario.hosts.clone() {
            let rate = |own: Option<super::Rate>| own.or(group.rate).map(|rate| rate.0);
            let disk = DiskSpec::default();
            let spec = NodeSpec {
                zone: self.scenario.zone(group.zone.as_deref())?,
                origin: group.origin,
                up_bytes_per_sec: rate(group.up),
                down_bytes_per_sec: rate(group.down),
                corrupt: group.corrupt,
                disk: DiskSpec {
                    write_bytes_per_sec: group.disk_write.map(|rate| rate.0).or(disk.write_bytes_per_sec),
                    read_bytes_per_sec: group.disk_read.map(|rate| rate.0).or(disk.read_bytes_per_sec),
                    ..disk
                },
                backend_bytes_per_sec: group.backend.map(|rate| rate.0),
                ..NodeSpec::default()
            };
            let nodes = (0..group.count).map(|_| self.fleet.add(spec.clone())).collect();
            self.groups.push((group.name.clone(), nodes));
        }
        Ok(())
    }

    fn nodes_of(&self, groups: &[String]) -> Vec<NodeId> {
        let wanted = self.groups.iter().filter(|(name, _)| groups.contains(name));
        wanted.flat_map(|(_, nodes)| nodes.iter().copied()).collect()
    }

    fn add_blobs(&mut self, table: &BlobTable) {
        for _ in 0..table.count {
            let size = match (table.size, table.sizes) {
                (Some(size), _) => size.0,
                (None, Some([least, most])) => least.0 + self.fleet.draw(most.0 - least.0 + 1),
                (None, None) => 0,
            };
            let truth = Truth::new(self.scenario.seed << 32 | self.blobs.len() as u64, size);
            let key = truth.metainfo.digest().multihash().to_bytes();
            let mut holders = Vec::new();
            for group in &table.on {
                let nodes = self.nodes_of(std::slice::from_ref(group));
                let peers = nodes.iter().map(|node| (self.fleet.peer(*node), *node));
                let by_peer: std::collections::BTreeMap<PeerId, NodeId> = peers.collect();
                let ranked = rendezvous::rank(&key, by_peer.keys().copied());
                let copies = ranked.iter().take(table.copies.unwrap_or(COPIES_DEFAULT));
                holders.extend(copies.filter_map(|peer| by_peer.get(peer).copied()));
            }
            for node in &holders {
                if table.in_backend {
                    self.fleet.store_in_backend(*node, &truth);
                } else {
                    self.fleet.store(*node, &truth);
                }
            }
            self.blobs.push((table.name.clone(), truth));
            self.holders.push(holders);
        }
    }

    fn add_pulls(&mut self, table: &PullTable) {
        let mut nodes = self.nodes_of(&table.by);
        let blobs: Vec<usize> =
            (0..self.blobs.len()).filter(|blob| table.blobs.contains(&self.blobs[*blob].0)).collect();
        for place in (1..nodes.len()).rev() {
            let other = self.fleet.draw(place as u64 + 1) as usize;
            nodes.swap(place, other);
        }
        let start = table.start.map_or(0, |time| nanos(time.0));
        let arrivals = self.arrivals(table.arrival, nodes.len(), start);
        let mut wanted: Vec<(usize, usize)> = Vec::new();
        match table.downloads {
            None => {
                for place in 0..nodes.len() {
                    wanted.extend(blobs.iter().map(|blob| (place, *blob)));
                }
            }
            Some(downloads) => {
                let mut taken = std::collections::BTreeSet::new();
                for number in 0..downloads.min(nodes.len() * blobs.len()) {
                    let place = number % nodes.len();
                    let mut choice = self.fleet.draw(blobs.len() as u64) as usize;
                    while !taken.insert((place, blobs[choice])) {
                        choice = (choice + 1) % blobs.len();
                    }
                    wanted.push((place, blobs[choice]));
                }
            }
        }
        for (place, blob) in wanted {
            let (node, first) = (nodes[place], arrivals[place]);
            if self.holders[blob].contains(&node) {
                continue;
            }
            self.actions.push((first, Action::Pull(self.pulls.len())));
            self.pulls.push(Pull {
                node,
                blob,
                order: table.order,
                first,
                reader: None,
                again_at: None,
                retries: 0,
                first_byte: None,
                done: None,
            });
        }
    }

    /// When each host comes.
    fn arrivals(&mut self, arrival: Arrival, count: usize, start: u64) -> Vec<u64> {
        let mut at = start;
        (0..count as u64)
            .map(|number| match arrival {
                Arrival::AtOnce => start,
                Arrival::Rolling(time) => start + nanos(time.0) / (count as u64).max(1) * number,
                Arrival::Poisson(per_sec) => {
                    at += (exponential(&mut self.fleet) / per_sec * 1e9) as u64;
                    at
                }
                Arrival::Waves { count: waves, every } => {
                    start + nanos(every.0) * (number * waves as u64 / (count as u64).max(1))
                }
            })
            .collect()
    }

    fn add_fault(&mut self, table: &FaultTable) -> Result<(), ScenarioError> {
        let every = table.every.map_or(0, |time| nanos(time.0));
        let mut hosts =
            table.of.as_ref().map_or(Vec::new(), |group| self.nodes_of(std::slice::from_ref(group)));
        for place in (1..hosts.len()).rev() {
            let other = self.fleet.draw(place as u64 + 1) as usize;
            hosts.swap(place, other);
        }
        let count = table.count.unwrap_or(if table.every.is_some() { 1 } else { hosts.len() });
        for turn in 0..table.times.unwrap_or(1) {
            let at = nanos(table.at.0) + every * turn as u64;
            let back = table.back_after.map(|time| at + nanos(time.0));
            if let Some([one, other]) = &table.zones {
                let pair = (self.scenario.zone(Some(one))?, self.scenario.zone(Some(other))?);
                self.actions.push((at, Action::Cut(pair.0.clone(), pair.1.clone(), true)));
                let mend = back.map(|at| (at, Action::Cut(pair.0, pair.1, false)));
                self.actions.extend(mend);
            }
            for node in hosts.iter().copied().skip(turn * count).take(count) {
                let (action, over) = match table.kind {
                    FaultKind::Crash => (Action::Crash(node), Action::Back(node)),
                    FaultKind::Vanish => (Action::Vanish(node), Action::Back(node)),
                    FaultKind::Freeze => (Action::Freeze(node), Action::Thaw(node)),
                    FaultKind::BackendDown => {
                        (Action::BackendDown(node, true), Action::BackendDown(node, false))
                    }
                    FaultKind::Cut => continue,
                };
                self.actions.push((at, action));
                self.actions.extend(back.map(|at| (at, over)));
            }
        }
        Ok(())
    }

    /// Keeps the story of a host or piece.
    pub fn trace(&mut self, filter: TraceFilter) {
        self.fleet.trace(filter);
    }

    /// The story asked for with [`Self::trace`].
    pub fn trace_lines(&self) -> Vec<String> {
        self.fleet.trace_lines()
    }

    /// The same run on so many threads. They change nothing but the time it takes.
    #[must_use]
    pub fn with_threads(self, threads: NonZero<usize>) -> Self {
        Self { fleet: self.fleet.with_threads(threads), ..self }
    }

    /// Runs to the end, and tells `progress` now and then.
    pub fn run(&mut self, mut progress: impl FnMut(&Progress)) -> Report {
        let limit = nanos(self.scenario.limit.0);
        let mut pending = self.pulls.len();
        while pending > 0 && self.fleet.violation().is_none() {
            let now = nanos(self.fleet.now().since_start());
            if now >= limit {
                break;
            }
            self.act(now);
            let next = self.actions.last().map_or(u64::MAX, |(at, _)| *at);
            let end = next.min(now + nanos(SLICE)).min(limit);
            let idle_ends = next == u64::MAX && self.pulls.iter().all(|pull| pull.again_at.is_none());
            if !idle_ends || !self.fleet.run_readers(Duration::from_nanos(end - now)) {
                let rest = Duration::from_nanos(end).saturating_sub(self.fleet.now().since_start());
                self.fleet.run_for(rest);
            }
            pending = self.look();
            progress(&self.progress(pending));
        }
        self.look();
        self.report()
    }

    fn progress(&self, pending: usize) -> Progress {
        Progress {
            now: self.fleet.now().since_start(),
            done: self.pulls.len() - pending,
            pulls: self.pulls.len(),
            events: self.fleet.events(),
            bytes: self.fleet.timeline().bytes().iter().sum(),
        }
    }

    /// Takes in how the pulls stand, and arranges another try for those that failed; returns how many are not done.
    /// What a dead host that does not come back wanted counts as settled.
    fn look(&mut self) -> usize {
        let now = nanos(self.fleet.now().since_start());
        let mut pending = 0;
        let final_dead: Vec<bool> = {
            let mut dead: Vec<bool> =
                (0..self.fleet.node_count()).map(|node| self.fleet.is_dead(node)).collect();
            for (_, action) in &self.actions {
                if let Action::Back(node) = action {
                    dead[*node] = false;
                }
            }
            dead
        };
        for pull in self.pulls.iter_mut().filter(|pull| pull.done.is_none()) {
            if let Some(reader) = pull.reader {
                let outcome = self.fleet.outcome(pull.node, reader);
                let first_byte = outcome.first_byte.map(|at| nanos(at.since_start()));
                pull.first_byte = pull.first_byte.or(first_byte);
                pull.done = outcome.done.map(|at| nanos(at.since_start()));
                let gone = !self.fleet.is_live(pull.node, reader);
                if pull.done.is_none() && (gone || outcome.failed.is_some()) {
                    pull.reader = None;
                    pull.again_at = Some(now + nanos(RETRY));
                }
            } else if pull.again_at.is_some_and(|at| at <= now) && self.fleet.is_running(pull.node) {
                pull.again_at = None;
                pull.retries += 1;
                let digest = self.blobs[pull.blob].1.metainfo.digest();
                pull.reader = Some(self.fleet.read(pull.node, digest, want(pull.order)));
            }
            pending += usize::from(pull.done.is_none() && !final_dead[pull.node]);
        }
        pending
    }

    /// Does what is due.
    fn act(&mut self, now: u64) {
        while let Some((_, action)) = self.actions.pop_if(|(at, _)| *at <= now) {
            match action {
                Action::Pull(number) => {
                    let pull = &mut self.pulls[number];
                    if self.fleet.is_running(pull.node) {
                        let digest = self.blobs[pull.blob].1.metainfo.digest();
                        pull.reader = Some(self.fleet.read(pull.node, digest, want(pull.order)));
                    } else {
                        pull.again_at = Some(now);
                    }
                }
                Action::Crash(node) => self.fleet.kill(node),
                Action::Vanish(node) => self.fleet.vanish(node),
                Action::Freeze(node) if self.fleet.is_running(node) => self.fleet.stop(node),
                Action::Thaw(node) if !self.fleet.is_dead(node) => self.fleet.resume(node),
                Action::Back(node) if self.fleet.is_dead(node) => self.fleet.restart(node),
                Action::Freeze(_) | Action::Thaw(_) | Action::Back(_) => {}
                Action::BackendDown(node, down) => self.fleet.set_backend_down(node, down),
                Action::Cut(one, other, cut) => {
                    self.fleet.cut_zones(&one, &other, cut.then_some(Cut::Silent));
                }
            }
        }
    }

    fn report(&self) -> Report {
        Summary { simulation: self, scenario: &self.scenario }.report()
    }
}

fn want(order: Order) -> ReaderWant {
    match order {
        Order::InOrder => ReaderWant::Range(0..u64::MAX),
        Order::Whole => ReaderWant::Whole,
    }
}

/// A draw from the exponential distribution of mean one. The logarithm is a series of our own: the standard library's
/// is not promised to be the same on every machine.
fn exponential(fleet: &mut Fleet) -> f64 {
    let mut value = (fleet.draw(1 << 53) + 1) as f64 / (1u64 << 53) as f64;
    let mut sum = 0.0;
    while value < 0.5 {
        value *= 2.0;
        sum += std::f64::consts::LN_2;
    }
    // ln x = -2 artanh((1 - x) / (1 + x))
    let part = (1.0 - value) / (1.0 + value);
    let (square, mut power) = (part * part, part);
    for odd in 0..16 {
        sum += 2.0 * power / f64::from(2 * odd + 1);
        power *= square;
    }
    sum
}

impl Scenario {
    fn fleet_config(&self) -> Result<FleetConfig, ScenarioError> {
        let fleet = FleetConfig::default();
        let (network, lookup, engine) =
            (NetworkConfig::default(), LookupConfig::default(), EngineConfig::default());
        let mut links = std::collections::BTreeMap::new();
        for link in &self.links {
            let [one, other] = &link.between;
            let (one, other) = (self.zone(Some(one))?, self.zone(Some(other))?);
            let key = if one <= other { (one, other) } else { (other, one) };
            let spec = LinkSpec { rate_bytes_per_sec: link.rate.map(|rate| rate.0), delay: link.delay.0 };
            links.insert(key, spec);
        }
        Ok(FleetConfig {
            network: NetworkConfig {
                delay: self.network.delay.map_or(network.delay, |time| time.0),
                overhead: self.network.overhead.unwrap_or(network.overhead),
                rebalance: self.network.rebalance.map_or(network.rebalance, |time| time.0),
                queue: self.network.queue.map(|time| time.0),
                links,
                ..network
            },
            lookup: LookupConfig {
                dht_hops: self.lookup.hops.unwrap_or(lookup.dht_hops),
                dht_hop_delay: self.lookup.hop_delay.map_or(lookup.dht_hop_delay, |time| time.0),
                dht_answers_per_sec: self.lookup.answers_per_sec.unwrap_or(lookup.dht_answers_per_sec),
                dht_missing: self.lookup.missing.unwrap_or(lookup.dht_missing),
                dht_stale: self.lookup.stale.unwrap_or(lookup.dht_stale),
                ..lookup
            },
            engine: Arc::new(EngineConfig {
                peers_per_swarm_max: self.engine.peers_per_swarm_max.unwrap_or(engine.peers_per_swarm_max),
                upload_slots: self.engine.upload_slots.unwrap_or(engine.upload_slots),
                upload_slots_max: self.engine.upload_slots_max.unwrap_or(engine.upload_slots_max),
                have_delay: self.engine.have_delay.map_or(engine.have_delay, |time| time.0),
                buffer_bytes_max: self.engine.buffer_bytes_max.map_or(engine.buffer_bytes_max, |size| size.0),
                rate_in_bytes_per_sec: self.engine.rate_in.map(|rate| rate.0),
                rate_out_bytes_per_sec: self.engine.rate_out.map(|rate| rate.0),
                ..engine
            }),
            ..fleet
        })
    }
}
