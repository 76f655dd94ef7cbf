//! Engines in virtual time, and the driver that carries out what they wish.

mod effects;
mod faults;
mod links;
mod node;
mod pieces;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand_core::{Rng as _, SeedableRng as _};
use shoal_engine::io::{Input, ReaderId, ReaderWant};
use shoal_engine::message::Message;
use shoal_engine::{Engine, EngineConfig};
use shoal_types::{Bitfield, Digest, PeerId, Timestamp, Zone};

use crate::discovery::{Dht, LookupConfig};
use crate::network::{Milestone, Network, NetworkConfig, nanos};
use crate::queue::Queue;
use crate::slab::Slab;
use crate::timeline::Timeline;
use crate::trace::{Trace, TraceFilter};
use crate::truth::Truth;

pub use faults::Cut;
use links::Connection;
pub use node::{DiskSpec, NodeSpec, ReaderOutcome, Tally};
use node::{Held, Node, Opened};

/// Names a node of a fleet.
pub type NodeId = usize;

/// What all nodes of a fleet have in common.
#[derive(Clone, Debug)]
pub struct FleetConfig {
    /// The engines' configuration.
    pub engine: EngineConfig,
    /// The network.
    pub network: NetworkConfig,
    /// Discovery.
    pub lookup: LookupConfig,
    /// Time until a dial that nobody answers fails.
    pub connect_timeout: Duration,
    /// Processor time of a TLS handshake at the side that accepts (0.57 ms for both sides, measured).
    pub handshake: Duration,
    /// Time after which a connection that carries nothing because the network is cut ends.
    pub silence_max: Duration,
    /// Time from a request to a backend to its first byte.
    pub backend_delay: Duration,
    /// Time in which a local reader takes what it can read.
    pub reader_delay: Duration,
}

impl Default for FleetConfig {
    fn default() -> Self {
        Self {
            engine: EngineConfig::default(),
            network: NetworkConfig::default(),
            lookup: LookupConfig::default(),
            connect_timeout: Duration::from_secs(10),
            handshake: Duration::from_micros(285),
            silence_max: Duration::from_secs(60),
            backend_delay: Duration::from_millis(20),
            reader_delay: Duration::from_micros(100),
        }
    }
}

/// What happens. Small: what is large is in a slab.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    Input { node: u32, life: u32, input: u32 },
    Wake { node: u32 },
    Message { to: u32, connection: u32, serial: u32, message: u32 },
    Dialed { from: u32, to: u32 },
    Connected { from: u32, to: u32 },
    Begin { connection: u32, serial: u32, way: u8 },
    Reached(Milestone),
    Arrived { connection: u32, serial: u32, way: u8, channel: u32, piece: u32, bytes: u32 },
    Verified { node: u32, life: u32, blob: u32, piece: u32 },
    ReaderMoved { node: u32, life: u32, reader: u32, offset: u64 },
    Provided { node: u32, blob: u32 },
    Silence { connection: u32, serial: u32 },
    Rebalance,
}

/// Many engines in virtual time.
#[derive(Debug)]
pub struct Fleet {
    config: FleetConfig,
    now: u64,
    seed: u64,
    events: u64,
    queue: Queue<Event>,
    inputs: Slab<Input>,
    messages: Slab<Message>,
    due: Vec<Milestone>,
    nodes: Vec<Node>,
    /// How often each node was started: what was meant for a life before is not for this one.
    lives: Vec<u32>,
    connections: Vec<Connection>,
    unused: Vec<u32>,
    network: Network,
    dht: Dht,
    origins: Vec<u32>,
    blobs: Vec<Truth>,
    by_digest: BTreeMap<Digest, u32>,
    /// Nodes of different parts cannot reach each other.
    parts: Vec<u32>,
    parts_made: u32,
    /// Pairs of zones between which nothing passes.
    cut_zones: BTreeSet<(u32, u32)>,
    /// Who refuses whom.
    bans: BTreeSet<(u32, u32)>,
    trace: Trace,
    random: rand_pcg::Pcg64,
    open_readers: usize,
    timeline: Timeline,
    violation: Option<String>,
}

impl Fleet {
    /// An empty fleet.
    pub fn new(config: FleetConfig, seed: u64) -> Self {
        Self {
            network: Network::new(config.network.clone()),
            dht: Dht::new(config.lookup.clone()),
            config,
            now: 0,
            seed,
            events: 0,
            queue: Queue::new(),
            inputs: Slab::new(),
            messages: Slab::new(),
            due: Vec::new(),
            nodes: Vec::new(),
            lives: Vec::new(),
            connections: Vec::new(),
            unused: Vec::new(),
            origins: Vec::new(),
            blobs: Vec::new(),
            by_digest: BTreeMap::new(),
            parts: Vec::new(),
            parts_made: 0,
            cut_zones: BTreeSet::new(),
            bans: BTreeSet::new(),
            trace: Trace::new(),
            random: rand_pcg::Pcg64::seed_from_u64(seed),
            open_readers: 0,
            timeline: Timeline::default(),
            violation: None,
        }
    }

    /// Adds a node that is up.
    pub fn add(&mut self, spec: NodeSpec) -> NodeId {
        let id = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        let peer = self.peer_of_new(id);
        let zone = self.network.zone(&spec.zone);
        let (up, down) =
            (self.network.access(spec.up_bytes_per_sec), self.network.access(spec.down_bytes_per_sec));
        if spec.origin {
            self.origins.push(id);
        }
        self.lives.push(0);
        self.parts.push(0);
        let engine = self.engine(id, peer, &spec);
        self.nodes.push(Node {
            spec,
            peer,
            zone,
            engine,
            alive: true,
            died: 0,
            stopped: false,
            missed: std::collections::VecDeque::new(),
            wake: u64::MAX,
            up,
            down,
            links: Vec::new(),
            disk: BTreeMap::new(),
            disk_free: 0,
            backend: BTreeSet::new(),
            backend_down: false,
            backend_free: 0,
            accept_free: 0,
            buffers: Vec::new(),
            buffers_made: 0,
            readers: Vec::new(),
            tally: Tally::default(),
        });
        id as NodeId
    }

    /// A peer id spread over the key space, as real keys are, whose last bytes are the node's number.
    fn peer_of_new(&mut self, id: u32) -> PeerId {
        let mut key = [0; 32];
        for part in key[..24].chunks_mut(8) {
            part.copy_from_slice(&self.random.next_u64().to_le_bytes());
        }
        key[24..28].copy_from_slice(&id.to_le_bytes());
        PeerId::from_public_key(key)
    }

    fn id_of(&self, peer: &PeerId) -> Option<u32> {
        let bytes = peer.public_key().get(24..28)?;
        let id = u32::from_le_bytes(bytes.try_into().ok()?);
        (self.nodes.get(id as usize)?.peer == *peer).then_some(id)
    }

    fn engine(&self, id: u32, peer: PeerId, spec: &NodeSpec) -> Engine {
        let life = u64::from(self.lives[id as usize]) << 32;
        let seed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(u64::from(id) + life);
        let (config, zone) = (self.config.engine.clone(), spec.zone.clone());
        Engine::new(config, peer, zone, seed, self.time()).with_roles(spec.roles())
    }

    /// The number of a blob, known from now on.
    fn blob(&mut self, truth: &Truth) -> u32 {
        let digest = truth.metainfo.digest();
        if let Some(number) = self.by_digest.get(&digest) {
            return *number;
        }
        let number = u32::try_from(self.blobs.len()).unwrap_or(u32::MAX);
        self.blobs.push(truth.clone());
        self.by_digest.insert(digest, number);
        number
    }

    /// Puts a complete blob on a node's disk and announces it.
    pub fn store(&mut self, node: NodeId, truth: &Truth) {
        let blob = self.blob(truth);
        let count = truth.metainfo.layout().piece_count();
        let held = Held {
            metainfo: truth.metainfo.clone(),
            vouched: Some(truth.vouched.clone()),
            pieces: Bitfield::full(count),
            complete: true,
            hashed: count,
        };
        self.nodes[node].disk.insert(blob, held);
        self.dht.store(blob, node as u32);
    }

    /// Puts a blob into an origin's backend: described on its disk, and no piece there.
    pub fn store_in_backend(&mut self, node: NodeId, truth: &Truth) {
        let blob = self.blob(truth);
        let held = Held {
            metainfo: truth.metainfo.clone(),
            vouched: Some(truth.vouched.clone()),
            pieces: truth.metainfo.empty_bitfield(),
            complete: false,
            hashed: 0,
        };
        self.nodes[node].disk.insert(blob, held);
        self.nodes[node].backend.insert(blob);
    }

    /// Whether an origin's backend answers.
    pub fn set_backend_down(&mut self, node: NodeId, down: bool) {
        self.nodes[node].backend_down = down;
    }

    /// Opens a reader.
    pub fn read(&mut self, node: NodeId, digest: Digest, want: ReaderWant) -> ReaderId {
        let outcome = ReaderOutcome { opened: self.time(), ..ReaderOutcome::default() };
        let own = &mut self.nodes[node];
        let reader = ReaderId(own.readers.len() as u64);
        own.readers.push(Opened { digest, outcome, live: true });
        self.open_readers += 1;
        self.input(node, Input::ReaderOpened { reader, digest, want });
        reader
    }

    /// Closes a reader.
    pub fn close(&mut self, node: NodeId, reader: ReaderId) {
        self.end_reader(node as u32, reader);
        self.input(node, Input::ReaderClosed { reader });
    }

    fn end_reader(&mut self, node: u32, reader: ReaderId) {
        if let Some(opened) = self.nodes[node as usize].readers.get_mut(reader.0 as usize)
            && std::mem::take(&mut opened.live)
            && !opened.outcome.is_over()
        {
            self.open_readers -= 1;
        }
    }

    /// How a reader stands.
    pub fn outcome(&self, node: NodeId, reader: ReaderId) -> ReaderOutcome {
        let opened = self.nodes[node].readers.get(reader.0 as usize);
        opened.map(|opened| opened.outcome.clone()).unwrap_or_default()
    }

    /// Feeds an input of the local driver to a node.
    pub fn input(&mut self, node: NodeId, input: Input) {
        self.answer(node as u32, self.now, input);
    }

    fn answer(&mut self, node: u32, at: u64, input: Input) {
        let input = self.inputs.insert(input);
        let life = self.lives[node as usize];
        self.queue.push(at, Event::Input { node, life, input });
    }

    /// Runs for a time.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + nanos(time);
        self.run_to(end, |_| false);
        self.now = end;
    }

    /// Runs until `done` says so or the time is up; returns whether it did. A violation ends it too.
    pub fn run_until(&mut self, end: Timestamp, done: impl FnMut(&Self) -> bool) -> bool {
        self.run_to(nanos(end.since_start()), done)
    }

    fn run_to(&mut self, end: u64, mut done: impl FnMut(&Self) -> bool) -> bool {
        while !done(self) {
            if self.violation.is_some() || self.queue.next_at().is_none_or(|at| at > end) {
                return false;
            }
            let Some((at, event)) = self.queue.pop() else { return false };
            self.now = at;
            self.events += 1;
            self.happen(event);
        }
        true
    }

    /// Runs until every reader of the living nodes is done or failed; `false` when `limit` passes first.
    pub fn run_readers(&mut self, limit: Duration) -> bool {
        let end = self.now + nanos(limit);
        self.run_to(end, |fleet| fleet.open_readers == 0)
    }

    /// Readers of living nodes that are neither done nor failed.
    pub fn open_readers(&self) -> usize {
        self.open_readers
    }

    /// A number below `bound` from the fleet's own generator, for scenarios.
    pub fn draw(&mut self, bound: u64) -> u64 {
        self.random.next_u64() % bound.max(1)
    }

    /// Whether a node runs: neither killed nor stopped.
    pub fn is_running(&self, node: NodeId) -> bool {
        self.nodes[node].alive && !self.nodes[node].stopped
    }

    /// Whether a node was killed.
    pub fn is_dead(&self, node: NodeId) -> bool {
        !self.nodes[node].alive
    }

    /// A node's peer id.
    pub fn peer(&self, node: NodeId) -> PeerId {
        self.nodes[node].peer
    }

    /// What a node is.
    pub fn spec(&self, node: NodeId) -> &NodeSpec {
        &self.nodes[node].spec
    }

    /// Bytes on the wire a byte of payload.
    pub fn overhead(&self) -> f64 {
        self.config.network.overhead
    }

    /// Whether a reader belongs to its process's present life.
    pub fn is_live(&self, node: NodeId, reader: ReaderId) -> bool {
        self.nodes[node].readers.get(reader.0 as usize).is_some_and(|opened| opened.live)
    }

    /// Virtual time.
    pub fn now(&self) -> Timestamp {
        self.time()
    }

    fn time(&self) -> Timestamp {
        Timestamp::from_start(Duration::from_nanos(self.now))
    }

    /// Events so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Nodes, dead ones included.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// A node's engine, for inspection.
    pub fn engine_of(&self, node: NodeId) -> &Engine {
        &self.nodes[node].engine
    }

    /// What a node did.
    pub fn tally(&self, node: NodeId) -> Tally {
        self.nodes[node].tally
    }

    /// Every reader of a node, in the order of their opening, with its blob and whether it belongs to the process's
    /// present life.
    pub fn readers(&self, node: NodeId) -> impl Iterator<Item = (Digest, &ReaderOutcome, bool)> + '_ {
        self.nodes[node].readers.iter().map(|opened| (opened.digest, &opened.outcome, opened.live))
    }

    /// Whether a node's disk holds a whole, checked blob.
    pub fn is_complete(&self, node: NodeId, digest: &Digest) -> bool {
        self.held(node, digest).is_some_and(|held| held.complete)
    }

    /// Number of pieces of a blob on a node's disk.
    pub fn pieces_of(&self, node: NodeId, digest: &Digest) -> u32 {
        self.held(node, digest).map_or(0, |held| held.pieces.count())
    }

    fn held(&self, node: NodeId, digest: &Digest) -> Option<&Held> {
        self.nodes[node].disk.get(self.by_digest.get(digest)?)
    }

    /// Payload bytes that crossed links between zones.
    pub fn crossed_bytes(&self) -> u64 {
        self.network.crossed().map(|(.., bytes)| bytes).sum()
    }

    /// Payload bytes over each link between zones, by direction.
    pub fn links(&self) -> impl Iterator<Item = (&Zone, &Zone, u64)> + '_ {
        self.network.crossed()
    }

    /// Payload verified over time, all nodes together.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// A hash of everything that happened so far.
    pub fn trace_hash(&self) -> u64 {
        self.trace.hash()
    }

    /// Keeps the story of a host or piece from now on.
    pub fn trace(&mut self, filter: TraceFilter) {
        self.trace.tell(filter);
    }

    /// The story, a line an effect.
    pub fn trace_lines(&self) -> &[String] {
        &self.trace.lines
    }

    /// What must never happen and did; the run ends there.
    pub fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    fn violate(&mut self, what: impl FnOnce() -> String) {
        let at = self.time().since_start();
        self.violation.get_or_insert_with(|| format!("at {:.6} s: {}", at.as_secs_f64(), what()));
    }

    fn happen(&mut self, event: Event) {
        let event = match event {
            Event::Rebalance => return self.rebalance(),
            Event::Reached(milestone) => return self.reached(milestone),
            Event::Provided { node, blob } => {
                if self.nodes[node as usize].alive {
                    self.dht.store(blob, node);
                }
                return;
            }
            Event::Silence { connection, serial } => return self.silence_over(connection, serial),
            Event::Begin { connection, serial, way } => return self.begin(connection, serial, way),
            Event::Dialed { from, to } => return self.dialed(from, to),
            other => other,
        };
        let Some(node) = self.receiver(&event) else { return self.lost(event) };
        if self.nodes[node as usize].stopped {
            return self.nodes[node as usize].missed.push_back(event);
        }
        match event {
            Event::Input { node, input, .. } => {
                if let Some(input) = self.inputs.take(input) {
                    self.deliver(node, input);
                }
            }
            Event::Wake { node } => self.wake(node),
            Event::Message { to, connection, message, .. } => {
                let from = self.connections[connection as usize].other(to);
                let peer = self.nodes[from as usize].peer;
                if let Some(message) = self.messages.take(message) {
                    self.deliver(to, Input::Message { peer, message });
                }
            }
            Event::Connected { from, to } => self.connected(from, to),
            Event::Arrived { connection, way, channel, piece, bytes, .. } => {
                self.arrived(connection, way, channel, piece, bytes);
            }
            Event::Verified { node, blob, piece, .. } => self.verified(node, blob, piece),
            Event::ReaderMoved { node, reader, offset, .. } => {
                self.deliver(node, Input::ReaderMoved { reader: ReaderId(reader.into()), offset });
            }
            _ => {}
        }
    }

    /// Whom an event reaches; `None` when it reaches nobody (any more), or not now.
    fn receiver(&mut self, event: &Event) -> Option<u32> {
        let living = |node: u32, life: u32| {
            (self.nodes[node as usize].alive && self.lives[node as usize] == life).then_some(node)
        };
        match *event {
            Event::Input { node, life, .. }
            | Event::Verified { node, life, .. }
            | Event::ReaderMoved { node, life, .. } => living(node, life),
            Event::Wake { node } => self.nodes[node as usize].alive.then_some(node),
            Event::Connected { from, .. } => self.nodes[from as usize].alive.then_some(from),
            Event::Message { to, connection, serial, .. } => {
                let known = &mut self.connections[connection as usize];
                if known.serial != serial {
                    return None;
                }
                if known.cut {
                    known.delayed.push(*event);
                    return None;
                }
                Some(to)
            }
            Event::Arrived { connection, serial, way, .. } => {
                let known = &mut self.connections[connection as usize];
                if known.serial != serial {
                    return None;
                }
                if known.cut {
                    known.delayed.push(*event);
                    return None;
                }
                Some(known.ends[1 - way as usize])
            }
            _ => None,
        }
    }

    /// Frees what an event that reaches nobody carried.
    fn lost(&mut self, event: Event) {
        match event {
            Event::Input { input, .. } => drop(self.inputs.take(input)),
            Event::Message { connection, serial, message, .. } => {
                let known = &self.connections[connection as usize];
                if known.serial != serial || !known.cut {
                    self.messages.take(message);
                }
            }
            _ => {}
        }
    }

    fn wake(&mut self, node: u32) {
        let now = self.time();
        let own = &mut self.nodes[node as usize];
        if own.wake <= self.now {
            own.wake = u64::MAX;
        }
        if own.engine.poll_timeout().is_some_and(|at| at <= now) {
            own.engine.handle_timeout(now);
        }
        self.carry_out(node);
    }

    fn deliver(&mut self, node: u32, input: Input) {
        let now = self.time();
        let own = &mut self.nodes[node as usize];
        if !own.alive {
            return;
        }
        own.engine.handle_input(now, input);
        self.carry_out(node);
    }

    fn carry_out(&mut self, node: u32) {
        while let Some(effect) = self.nodes[node as usize].engine.poll_effect() {
            self.trace.effect(self.now, node, &effect);
            self.effect(node, effect);
        }
        let limit = self.config.engine.buffer_bytes_max;
        let own = &mut self.nodes[node as usize];
        if own.engine.buffered_bytes() > limit {
            self.violate(|| format!("node {node} buffers more than {limit} bytes"));
            return;
        }
        if let Some(at) = own.engine.poll_timeout() {
            let at = nanos(at.since_start()).max(self.now);
            if at < own.wake {
                own.wake = at;
                self.queue.push(at, Event::Wake { node });
            }
        }
    }
}
