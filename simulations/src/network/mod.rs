//! How bytes travel: a flow-level network of access links and links between zones.
//!
//! A *flow* is one direction of a connection that has pieces to carry. Flows share what they cross by max-min
//! fairness, as long-lived TCP flows of like round trips nearly do. Rates are set anew at a fixed interval;
//! between two settings a flow that ends leaves its share unclaimed, and one that begins takes what is
//! unclaimed on its way. Where others share a full wire with a flow that ended, and it was what held them back, they carry what
//! it left in the next interval: TCP's flows take it up within a round trip, here it is late and not lost. Messages are
//! small: they have a delay and no bandwidth.

mod fair;
mod flows;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_types::Zone;

use fair::{Demand, Filler, distinct};
use flows::{Flow, Flows};

/// Payload bytes in a frame of the data plane: what has to arrive before a receiver counts the first part of a piece as here.
const FRAME_BYTES: f64 = 262_144.0;
/// Progress of a piece is told this often, once its first part is through, and not of one that is whole before that.
const PROGRESS_INTERVAL: u64 = 250_000_000;
/// Rate of what is said to be unlimited, in bytes per second.
const UNLIMITED: f64 = 1e12;
/// Bytes below which a piece counts as through: rounding of sums of products.
const ROUNDING: f64 = 1e-3;
/// Idle time after which TCP begins with a small window again, at least (RFC 6298's shortest timer on Linux).
const IDLE_RESET: u64 = 200_000_000;
/// A link is full when the flows leave no more of it than this part.
const FULL: f64 = 0.01;
const NANOS: f64 = 1e9;

/// Rates and delays of a virtual network.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// One-way delay inside a zone.
    pub delay: Duration,
    /// One-way delay between zones without a link of their own in `links`.
    pub zone_delay: Duration,
    /// Rate of the link between each two zones, each way, in bytes per second on the wire; `None` is unlimited.
    pub zone_rate_bytes_per_sec: Option<u64>,
    /// Links of their own, by the zones in order of their names.
    pub links: BTreeMap<(Zone, Zone), LinkSpec>,
    /// Bytes on the wire a byte of payload: headers of Ethernet, IP, TCP and TLS.
    pub overhead: f64,
    /// How long packets wait in the queue of a full wire. TCP then shares the wire in inverse proportion to round trips,
    /// the queue's time included; without it, equally.
    pub queue: Option<Duration>,
    /// Time between two settings of the flows' rates.
    pub rebalance: Duration,
    /// TCP's first congestion window in bytes (RFC 6928: ten segments).
    pub window_start_bytes: u64,
    /// TCP's largest window in bytes (Linux's default `tcp_wmem` allows 4 MiB).
    pub window_max_bytes: u64,
}

/// A link between two zones, the same each way.
#[derive(Clone, Copy, Debug)]
pub struct LinkSpec {
    /// Bytes per second on the wire; `None` is unlimited.
    pub rate_bytes_per_sec: Option<u64>,
    /// One-way delay.
    pub delay: Duration,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            delay: Duration::from_micros(200),
            zone_delay: Duration::from_millis(20),
            zone_rate_bytes_per_sec: None,
            links: BTreeMap::new(),
            overhead: 1.046,
            queue: None,
            rebalance: Duration::from_millis(2),
            window_start_bytes: 14_600,
            window_max_bytes: 4 << 20,
        }
    }
}

/// Smallest part of a full wire, relative to a flow inside a zone.
const WEIGHT_MIN: f64 = 0.01;

/// Names a flow.
pub(crate) type FlowId = u32;

/// What a flow reaches on its way through a piece.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Milestone {
    pub(crate) at: u64,
    pub(crate) flow: FlowId,
    pub(crate) serial: u32,
    /// The piece is through; otherwise only part of it is.
    pub(crate) whole: bool,
}

#[derive(Debug)]
struct Pair {
    resource: Option<u32>,
    delay: u64,
    carried: f64,
}

/// What a link that was full when the rates were set has not carried since, because flows ended, while there were others that
/// it holds back.
#[derive(Clone, Copy, Debug, Default)]
struct Idle {
    /// Active flows that have as much of the link as any, and so would have more of it if there were more: max-min fairness's
    /// bottleneck condition (Bertsekas and Gallager, Data Networks, 6.5.2). None when it was not full.
    held_back: u32,
    bytes: f64,
    /// Until when it is counted.
    at: u64,
    /// What it carries of the interval before beyond its own rate, in bytes per second.
    late: f64,
    /// Flows of this level and above are held back.
    held_from: f64,
}

/// Links, flows and their rates.
#[derive(Debug)]
pub(crate) struct Network {
    config: NetworkConfig,
    zones: Vec<Zone>,
    /// Pairs of zones, from `zone * zones + zone`; grown with the zones.
    pairs: BTreeMap<(u32, u32), u32>,
    pair_list: Vec<Pair>,
    capacity: Vec<f64>,
    /// What the flows leave of each link, and of what it carries late; below zero by rounding only.
    unclaimed: Vec<f64>,
    idle: Vec<Idle>,
    flows: Flows,
    demands: Vec<Demand>,
    filler: Filler,
    /// Until when rates stand.
    pub(crate) next_tick: Option<u64>,
    tick: u64,
}

const NOWHERE: u32 = u32::MAX;

impl Network {
    pub(crate) fn new(config: NetworkConfig) -> Self {
        let tick = nanos(config.rebalance).max(1);
        Self {
            config,
            zones: Vec::new(),
            pairs: BTreeMap::new(),
            pair_list: Vec::new(),
            capacity: Vec::new(),
            unclaimed: Vec::new(),
            idle: Vec::new(),
            flows: Flows::default(),
            demands: Vec::new(),
            filler: Filler::default(),
            next_tick: None,
            tick,
        }
    }

    /// A zone's number.
    pub(crate) fn zone(&mut self, zone: &Zone) -> u32 {
        let number = self.zones.iter().position(|known| known == zone).unwrap_or_else(|| {
            self.zones.push(zone.clone());
            self.zones.len() - 1
        });
        u32::try_from(number).unwrap_or(NOWHERE)
    }

    /// A new access link's number: one direction, in bytes per second on the wire.
    pub(crate) fn access(&mut self, rate_bytes_per_sec: Option<u64>) -> u32 {
        let rate = rate_bytes_per_sec.map_or(UNLIMITED, |rate| rate as f64) / self.config.overhead;
        self.capacity.push(rate);
        self.unclaimed.push(rate);
        self.idle.push(Idle::default());
        u32::try_from(self.capacity.len() - 1).unwrap_or(NOWHERE)
    }

    fn pair(&mut self, from: u32, to: u32) -> u32 {
        if let Some(pair) = self.pairs.get(&(from, to)) {
            return *pair;
        }
        let (one, other) = (self.zones[from as usize].clone(), self.zones[to as usize].clone());
        let key = if one <= other { (one, other) } else { (other, one) };
        let spec = self.config.links.get(&key).copied().unwrap_or(LinkSpec {
            rate_bytes_per_sec: self.config.zone_rate_bytes_per_sec,
            delay: self.config.zone_delay,
        });
        let resource = spec.rate_bytes_per_sec.map(|rate| self.access(Some(rate)));
        let number = u32::try_from(self.pair_list.len()).unwrap_or(NOWHERE);
        self.pair_list.push(Pair { resource, delay: nanos(spec.delay), carried: 0.0 });
        self.pairs.insert((from, to), number);
        number
    }

    /// One-way delay in nanoseconds between two zones.
    pub(crate) fn delay(&mut self, from: u32, to: u32) -> u64 {
        if from == to {
            return nanos(self.config.delay);
        }
        let pair = self.pair(from, to);
        self.pair_list[pair as usize].delay
    }

    /// A flow's part of a full wire, one inside a zone having 1.
    fn weight(&self, rtt: f64) -> f64 {
        let Some(queue) = self.config.queue else { return 1.0 };
        let (queue, near) = (queue.as_secs_f64(), 2.0 * self.config.delay.as_secs_f64());
        ((near + queue) / (rtt + queue)).clamp(WEIGHT_MIN, 1.0)
    }

    /// Makes a flow from an access link in one zone to one in another.
    pub(crate) fn flow(&mut self, owner: u32, up: u32, down: u32, from: u32, to: u32) -> FlowId {
        let rtt = 2.0 * self.delay(from, to) as f64 / NANOS;
        let pair = if from == to { NOWHERE } else { self.pair(from, to) };
        let link = self.pair_list.get(pair as usize).and_then(|pair| pair.resource);
        let weight = self.weight(rtt);
        self.flows.add(Flow {
            id: NOWHERE,
            crosses: [up, down, link.unwrap_or(up)],
            pair,
            owner,
            serial: 0,
            rate: 0.0,
            since: 0,
            done: 0.0,
            total: 0.0,
            told: 0.0,
            told_at: 0,
            rtt,
            weight,
            window: self.config.window_start_bytes as f64,
            first: u64::MAX,
            held_back: [false; 3],
        })
    }

    /// Whom a flow belongs to, when `serial` is still its piece's.
    pub(crate) fn owner(&self, flow: FlowId, serial: u32) -> Option<u32> {
        let known = self.flows.get(flow);
        (known.serial == serial).then_some(known.owner)
    }

    /// Prefetches where a flow is.
    pub(crate) fn prefetch_place(&self, flow: FlowId) {
        self.flows.prefetch_place(flow);
    }

    /// Prefetches a flow, once its place is there.
    pub(crate) fn prefetch_flow(&self, flow: FlowId) {
        self.flows.prefetch(flow);
    }

    /// Whom a flow belongs to.
    pub(crate) fn owner_of(&self, flow: FlowId) -> u32 {
        self.flows.get(flow).owner
    }

    pub(crate) fn is_active(&self, flow: FlowId) -> bool {
        self.flows.is_active(flow)
    }

    /// Puts a piece on a flow, whether the one before has just ended or the flow was idle.
    pub(crate) fn carry(&mut self, flow: FlowId, now: u64, bytes: u32, due: &mut Vec<Milestone>) {
        self.settle(flow, now);
        let active = self.flows.is_active(flow);
        let own = self.flows.get_mut(flow);
        own.serial = own.serial.wrapping_add(1);
        own.done = 0.0;
        own.told = 0.0;
        own.told_at = now;
        own.first = u64::MAX;
        own.total = f64::from(bytes);
        if !active {
            // It has stood still since it was last settled.
            if now.saturating_sub(own.since) > IDLE_RESET.max((own.rtt * NANOS) as u64) {
                own.window = self.config.window_start_bytes as f64;
            }
            self.resume(flow, now, due);
        } else {
            self.milestones(flow, now, due);
        }
    }

    /// Lets a suspended flow go on.
    pub(crate) fn resume(&mut self, flow: FlowId, now: u64, due: &mut Vec<Milestone>) {
        let until = *self.next_tick.get_or_insert(now + self.tick);
        let own = self.flows.activate(flow);
        own.since = now;
        let offered = own.crosses.iter().map(|at| self.unclaimed[*at as usize]).fold(f64::INFINITY, f64::min);
        own.rate = offered.min(limit(own, self.tick)).max(0.0);
        let (crosses, rate) = (own.crosses, own.rate);
        self.claim(crosses, rate, now);
        if until > now {
            self.milestones(flow, now, due);
        }
    }

    /// Stops a flow; what it has carried of its piece stays.
    pub(crate) fn suspend(&mut self, flow: FlowId, now: u64) {
        if !self.flows.is_active(flow) {
            return;
        }
        self.settle(flow, now);
        let own = self.flows.deactivate(flow);
        own.serial = own.serial.wrapping_add(1);
        let (crosses, rate) = (own.crosses, std::mem::take(&mut own.rate));
        let held_back = std::mem::take(&mut own.held_back);
        self.claim(crosses, -rate, now);
        for (link, _) in crosses.iter().zip(held_back).filter(|(_, held_back)| *held_back) {
            self.idle[*link as usize].held_back -= 1;
        }
    }

    /// Ends a flow for good.
    pub(crate) fn remove(&mut self, flow: FlowId, now: u64) {
        self.suspend(flow, now);
        let own = self.flows.get_mut(flow);
        own.serial = own.serial.wrapping_add(1);
        self.flows.release(flow);
    }

    /// Payload bytes of the present piece that were not told yet; they are told now.
    pub(crate) fn tell(&mut self, flow: FlowId, now: u64) -> u32 {
        self.settle(flow, now);
        let own = self.flows.get_mut(flow);
        let fresh = (own.done - own.told).round().max(0.0);
        own.told += fresh;
        own.told_at = now;
        fresh as u32
    }

    /// Nanoseconds since the first part of the present piece was through; zero when it is not, or is only now.
    pub(crate) fn since_first(&mut self, flow: FlowId, now: u64) -> u32 {
        self.settle(flow, now);
        u32::try_from(now.saturating_sub(self.flows.get(flow).first)).unwrap_or(u32::MAX)
    }

    /// Payload bytes of the present piece that were carried.
    pub(crate) fn carried(&mut self, flow: FlowId, now: u64) -> u64 {
        self.settle(flow, now);
        self.flows.get(flow).done.round() as u64
    }

    fn claim(&mut self, crosses: [u32; 3], rate: f64, now: u64) {
        for link in distinct(&crosses) {
            self.count_idle(*link as usize, now);
            self.unclaimed[*link as usize] -= rate;
        }
    }

    /// Brings a link's account of what it has not carried up to `now`.
    fn count_idle(&mut self, link: usize, now: u64) {
        let idle = &mut self.idle[link];
        if idle.held_back > 0 {
            let unused = (self.unclaimed[link] - idle.late).max(0.0);
            idle.bytes += unused * (now - idle.at) as f64 / NANOS;
        }
        idle.at = now;
    }

    /// Brings a flow's account up to `now`.
    fn settle(&mut self, flow: FlowId, now: u64) {
        if self.flows.is_active(flow) {
            settle(self.flows.get_mut(flow), now, self.config.window_max_bytes as f64, &mut self.pair_list);
        }
    }

    fn milestones(&self, flow: FlowId, now: u64, due: &mut Vec<Milestone>) {
        milestones(self.flows.get(flow), now, self.next_tick.unwrap_or(now), due);
    }

    /// Sets all rates anew. Returns what the flows reach before the next setting.
    pub(crate) fn rebalance(&mut self, now: u64, due: &mut Vec<Milestone>) {
        self.next_tick = None;
        if self.flows.active.is_empty() {
            self.idle.fill(Idle::default());
            self.unclaimed.copy_from_slice(&self.capacity);
            return;
        }
        let window_max = self.config.window_max_bytes as f64;
        self.demands.clear();
        for own in &mut self.flows.active {
            settle(own, now, window_max, &mut self.pair_list);
            self.demands.push(Demand {
                crosses: own.crosses,
                weight: own.weight,
                limit: limit(own, self.tick),
                level: 0.0,
            });
        }
        for link in 0..self.capacity.len() {
            self.count_idle(link, now);
            let late = self.idle[link].bytes * NANOS / self.tick as f64;
            self.idle[link] = Idle { late, at: now, ..Idle::default() };
            self.unclaimed[link] = self.capacity[link] + late;
        }
        self.filler.fill(&mut self.unclaimed, &mut self.demands);
        for (link, idle) in self.idle.iter_mut().enumerate() {
            let full = self.unclaimed[link] <= self.capacity[link] * FULL;
            idle.held_from = if full { self.filler.top(link) * (1.0 - FULL) } else { f64::INFINITY };
        }
        let until = now + self.tick;
        self.next_tick = Some(until);
        for (own, demand) in self.flows.active.iter_mut().zip(&self.demands) {
            own.rate = demand.rate();
            for (place, link) in distinct(&demand.crosses).iter().enumerate() {
                let idle = &mut self.idle[*link as usize];
                own.held_back[place] = demand.level >= idle.held_from;
                idle.held_back += u32::from(own.held_back[place]);
            }
            milestones(own, now, until, due);
        }
    }

    /// Payload bytes over each ordered pair of zones.
    pub(crate) fn crossed(&self) -> impl Iterator<Item = (&Zone, &Zone, u64)> + '_ {
        self.pairs.iter().map(|((from, to), pair)| {
            let carried = self.pair_list[*pair as usize].carried.round() as u64;
            (&self.zones[*from as usize], &self.zones[*to as usize], carried)
        })
    }
}

/// Brings an active flow's account up to `now`.
fn settle(own: &mut Flow, now: u64, window_max: f64, pairs: &mut [Pair]) {
    let moved = (own.rate * (now - own.since) as f64 / NANOS).min(own.total - own.done).max(0.0);
    let needed = FRAME_BYTES - own.done;
    if needed > 0.0 && moved >= needed {
        own.first = own.since + (needed / own.rate * NANOS) as u64;
    }
    own.since = now;
    own.done += moved;
    // A window doubles in a round trip while nothing is lost: its growth is ln 2 of what is acknowledged.
    own.window = (own.window + moved * std::f64::consts::LN_2).min(window_max);
    if let Some(pair) = pairs.get_mut(own.pair as usize) {
        pair.carried += moved;
    }
}

/// What a flow reaches before the rates are set anew, which is at `until`.
fn milestones(own: &Flow, now: u64, until: u64, due: &mut Vec<Milestone>) {
    let mut reach = |bytes: f64, whole: bool| {
        if bytes > ROUNDING && own.rate <= 0.0 {
            return;
        }
        let wait = if bytes <= ROUNDING { 0.0 } else { bytes / own.rate * NANOS };
        if wait <= (until - now) as f64 {
            let at = now + wait.ceil() as u64;
            due.push(Milestone { at: at.min(until), flow: own.id, serial: own.serial, whole });
        }
    };
    reach(own.total - own.done, true);
    if own.first < u64::MAX && own.done > own.told && now.saturating_sub(own.told_at) >= PROGRESS_INTERVAL {
        reach(0.0, false);
    }
}

/// The rate TCP's window allows. Round trips shorter than the interval are over before the next setting.
fn limit(flow: &Flow, tick: u64) -> f64 {
    if flow.rtt * NANOS <= tick as f64 { f64::INFINITY } else { flow.window / flow.rtt }
}

/// A duration in nanoseconds; 584 years at most.
pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
