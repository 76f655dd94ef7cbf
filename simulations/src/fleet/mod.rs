//! Engines in virtual time, and the driver that carries out what they wish.
//!
//! Nodes are in shards that run at the same time, each by itself, for a step as long as the shortest delay of the network: what
//! one node says reaches no other within it. The wire, which all share, runs a stride of one or a few steps ahead of them meanwhile,
//! for nothing goes onto it sooner than a piece is read. Mail goes round between steps, and that of the wire between strides. How
//! many threads there are changes nothing but the time it takes: the shards follow from the number of nodes.

mod crew;
mod disk;
mod effects;
mod faults;
mod mail;
mod node;
mod shard;
mod steps;
mod store;
mod wire;
mod world;

use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use rand_core::{Rng as _, SeedableRng as _};
use shoal_engine::io::{Input, ReaderId, ReaderWant};
use shoal_engine::{Engine, EngineConfig};
use shoal_types::{Bitfield, Digest, PeerId, Timestamp, Zone};

use crate::discovery::{Dht, LookupConfig};
use crate::network::{Network, NetworkConfig, nanos};
use crate::timeline::Timeline;
use crate::trace::{HASH_START, TraceFilter, hash_word, shown};
use crate::truth::Truth;

pub use faults::Cut;
use mail::{Mail, Posted};
pub use node::{DiskSpec, NodeSpec, ReaderOutcome, Tally};
use node::{Node, Opened, time_of};
use shard::Shard;
use store::Held;
use wire::Wire;
use world::{Fact, World};

/// Names a node of a fleet.
pub type NodeId = usize;

/// Shortest step in nanoseconds.
const STEP_MIN: u64 = 10_000;

/// What all nodes of a fleet have in common.
#[derive(Clone, Debug)]
pub struct FleetConfig {
    /// The engines' configuration.
    pub engine: Arc<EngineConfig>,
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
            engine: Arc::default(),
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

/// The quickest reads of a fleet.
#[derive(Debug)]
struct Reads {
    /// The smallest size of a piece in bytes, those at a blob's end aside.
    piece_bytes_min: u32,
    /// In nanoseconds.
    delay_min: u64,
    /// `None` is unlimited.
    bytes_per_sec_max: Option<u64>,
}

impl Default for Reads {
    fn default() -> Self {
        Self { piece_bytes_min: u32::MAX, delay_min: u64::from(u32::MAX), bytes_per_sec_max: Some(0) }
    }
}

impl Reads {
    fn note(&mut self, disk: &DiskSpec) {
        self.delay_min = self.delay_min.min(nanos(disk.delay));
        self.bytes_per_sec_max =
            self.bytes_per_sec_max.zip(disk.read_bytes_per_sec).map(|(known, own)| known.max(own));
    }

    /// No piece is read in less, in nanoseconds.
    fn time_min(&self) -> u64 {
        self.delay_min + time_of(self.piece_bytes_min.into(), self.bytes_per_sec_max)
    }
}

/// Many engines in virtual time.
#[derive(Debug)]
pub struct Fleet {
    now: u64,
    seed: u64,
    world: World,
    shards: Vec<Shard>,
    /// The nodes have been spread over their shards.
    spread: bool,
    wire: Wire,
    /// Mail from outside, and to which node.
    posted: Vec<(u32, Posted)>,
    /// The first time that mail is for which lies with its shard; `u64::MAX` when there is none.
    mail_at: u64,
    /// Threads that share the shards, this one included.
    threads: usize,
    /// Length of a step in nanoseconds.
    step: u64,
    reads: Reads,
    /// Events of the last step.
    busy: u64,
    parts_made: u32,
    random: rand_pcg::Pcg64,
    violation: Option<String>,
}

impl Fleet {
    /// An empty fleet.
    pub fn new(config: FleetConfig, seed: u64) -> Self {
        let network = Network::new(config.network.clone());
        let dht = Dht::new(config.lookup.clone());
        let near = config.network.links.values().map(|link| link.delay).min();
        let step = near.unwrap_or(Duration::MAX).min(config.network.delay).min(config.network.zone_delay);
        Self {
            now: 0,
            seed,
            world: World::new(config, seed),
            shards: vec![Shard::new(0)],
            spread: false,
            wire: Wire::new(network, dht, seed),
            posted: Vec::new(),
            mail_at: u64::MAX,
            threads: std::thread::available_parallelism().map_or(1, NonZero::get),
            step: nanos(step).max(STEP_MIN),
            reads: Reads::default(),
            busy: 0,
            parts_made: 0,
            random: rand_pcg::Pcg64::seed_from_u64(seed),
            violation: None,
        }
    }

    /// The same fleet on so many threads. They change nothing but the time it takes.
    #[must_use]
    pub fn with_threads(self, threads: NonZero<usize>) -> Self {
        Self { threads: threads.get(), ..self }
    }

    /// Adds a node that is up.
    pub fn add(&mut self, spec: NodeSpec) -> NodeId {
        let id = u32::try_from(self.world.facts.len()).unwrap_or(u32::MAX);
        let peer = self.peer_of_new(id);
        let zone = self.zone(&spec.zone);
        let network = &mut self.wire.network;
        let access = (network.access(spec.up_bytes_per_sec), network.access(spec.down_bytes_per_sec));
        self.wire.access.push(access);
        self.wire.sent_bytes.push(0);
        if spec.origin {
            self.world.origins.push(id);
        }
        self.world.facts.push(Fact {
            peer,
            life: 0,
            part: 0,
            zone,
            alive: true,
            stopped: false,
            corrupt: spec.corrupt,
            roles: spec.roles(),
            died: 0,
        });
        self.reads.note(&spec.disk);
        let engine = self.engine(id, &spec);
        let random = rand_pcg::Pcg64::seed_from_u64(self.random_of(id));
        let shard = id as usize & (self.shards.len() - 1);
        self.shards[shard].nodes.push(Node::new(spec, engine, random));
        id as NodeId
    }

    /// A zone's number, with its delays to the others.
    fn zone(&mut self, zone: &Zone) -> u32 {
        let number = self.wire.network.zone(zone);
        if number as usize >= self.world.delays.len() {
            let network = &mut self.wire.network;
            let delays = (0..=number).map(|from| (0..=number).map(|to| network.delay(from, to)).collect());
            self.world.delays = delays.collect();
            self.world.zones.push(zone.clone());
        }
        number
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

    fn random_of(&self, id: u32) -> u64 {
        let life = u64::from(self.world.fact(id).life) << 32;
        self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(u64::from(id) + life)
    }

    fn engine(&self, id: u32, spec: &NodeSpec) -> Engine {
        let (config, zone) = (self.world.config.engine.clone(), spec.zone.clone());
        let peer = self.world.fact(id).peer;
        Engine::new(config, peer, zone, self.random_of(id), self.now()).with_roles(spec.roles())
    }

    fn shard_mut(&mut self, node: NodeId) -> &mut Shard {
        let shard = node & (self.shards.len() - 1);
        &mut self.shards[shard]
    }

    fn node(&self, node: NodeId) -> &Node {
        self.shards[node & (self.shards.len() - 1)].node(node as u32)
    }

    fn node_mut(&mut self, node: NodeId) -> &mut Node {
        self.shard_mut(node).own(node as u32)
    }

    /// The number of a blob, known from now on.
    fn blob(&mut self, truth: &Truth) -> u32 {
        let digest = truth.metainfo.digest();
        if let Some(number) = self.world.blob_of(&digest) {
            return number;
        }
        let number = u32::try_from(self.world.blobs.len()).unwrap_or(u32::MAX);
        self.reads.piece_bytes_min = self.reads.piece_bytes_min.min(truth.metainfo.layout().piece_bytes());
        self.world.blobs.push(truth.clone());
        self.world.digests.push(digest);
        self.world.by_digest.insert(digest, number);
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
        self.node_mut(node).disk.insert(blob, held);
        self.wire.dht.store(blob, node as u32);
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
        let own = self.node_mut(node);
        own.disk.insert(blob, held);
        own.backend.insert(blob);
    }

    /// Whether an origin's backend answers.
    pub fn set_backend_down(&mut self, node: NodeId, down: bool) {
        self.node_mut(node).backend_down = down;
    }

    /// Opens a reader.
    pub fn read(&mut self, node: NodeId, digest: Digest, want: ReaderWant) -> ReaderId {
        let outcome = ReaderOutcome { opened: self.now(), ..ReaderOutcome::default() };
        let shard = self.shard_mut(node);
        shard.open_readers += 1;
        let readers = &mut shard.own(node as u32).readers;
        let reader = ReaderId(readers.len() as u64);
        readers.push(Opened { digest, outcome, live: true });
        self.input(node, Input::ReaderOpened { reader, digest, want });
        reader
    }

    /// Closes a reader.
    pub fn close(&mut self, node: NodeId, reader: ReaderId) {
        self.end_reader(node, reader);
        self.input(node, Input::ReaderClosed { reader });
    }

    fn end_reader(&mut self, node: NodeId, reader: ReaderId) {
        let shard = self.shard_mut(node);
        if let Some(opened) = shard.own(node as u32).readers.get_mut(reader.0 as usize)
            && std::mem::take(&mut opened.live)
            && !opened.outcome.is_over()
        {
            shard.open_readers -= 1;
        }
    }

    /// How a reader stands.
    pub fn outcome(&self, node: NodeId, reader: ReaderId) -> ReaderOutcome {
        let opened = self.node(node).readers.get(reader.0 as usize);
        opened.map(|opened| opened.outcome.clone()).unwrap_or_default()
    }

    /// Feeds an input of the local driver to a node.
    pub fn input(&mut self, node: NodeId, input: Input) {
        let node = node as u32;
        let mail = Mail::input(node, self.world.fact(node).life, input);
        self.posted.push((node, Posted { at: self.now, mail }));
    }

    /// Runs for a time.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + nanos(time);
        self.run_to(end, false);
        if self.violation.is_none() {
            // Nothing is due until then: the network's clock goes on too, or what is mended now would carry as of before.
            self.now = self.now.max(end);
            if self.wire.until < end {
                self.wire.skip_to(end);
            }
        }
    }

    /// Runs until every reader of the living nodes is done or failed; `false` when `limit` passes first or something that must
    /// never happen did. It looks after every stride: as many of the network's shortest delays as are within 0.6 ms, or fewer
    /// where pieces are read sooner, and one at least.
    pub fn run_readers(&mut self, limit: Duration) -> bool {
        let end = self.now + nanos(limit);
        self.run_to(end, true)
    }

    /// A number below `bound` from the fleet's own generator, for scenarios.
    pub fn draw(&mut self, bound: u64) -> u64 {
        self.random.next_u64() % bound.max(1)
    }

    /// Whether a node runs: neither killed nor stopped.
    pub fn is_running(&self, node: NodeId) -> bool {
        let fact = self.world.fact(node as u32);
        fact.alive && !fact.stopped
    }

    /// Whether a node was killed.
    pub fn is_dead(&self, node: NodeId) -> bool {
        !self.world.fact(node as u32).alive
    }

    /// A node's peer id.
    pub fn peer(&self, node: NodeId) -> PeerId {
        self.world.fact(node as u32).peer
    }

    /// What a node is.
    pub fn spec(&self, node: NodeId) -> &NodeSpec {
        &self.node(node).spec
    }

    /// Bytes on the wire a byte of payload.
    pub fn overhead(&self) -> f64 {
        self.world.config.network.overhead
    }

    /// Whether a reader belongs to its process's present life.
    pub fn is_live(&self, node: NodeId, reader: ReaderId) -> bool {
        self.node(node).readers.get(reader.0 as usize).is_some_and(|opened| opened.live)
    }

    /// Virtual time.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_start(Duration::from_nanos(self.now))
    }

    /// Events so far.
    pub fn events(&self) -> u64 {
        self.wire.events + self.shards.iter().map(|shard| shard.events).sum::<u64>()
    }

    /// Nodes, dead ones included.
    pub fn node_count(&self) -> usize {
        self.world.facts.len()
    }

    /// A node's engine, for inspection.
    pub fn engine_of(&self, node: NodeId) -> &Engine {
        &self.node(node).engine
    }

    /// What a node did.
    pub fn tally(&self, node: NodeId) -> Tally {
        let sent_bytes = self.wire.sent_bytes.get(node).copied().unwrap_or(0);
        Tally { sent_bytes, ..self.node(node).tally }
    }

    /// Every reader of a node, in the order of their opening, with its blob and whether it belongs to the process's
    /// present life.
    pub fn readers(&self, node: NodeId) -> impl Iterator<Item = (Digest, &ReaderOutcome, bool)> + '_ {
        self.node(node).readers.iter().map(|opened| (opened.digest, &opened.outcome, opened.live))
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
        self.node(node).disk.get(self.world.blob_of(digest)?)
    }

    /// Payload bytes that crossed links between zones.
    pub fn crossed_bytes(&self) -> u64 {
        self.wire.network.crossed().map(|(.., bytes)| bytes).sum()
    }

    /// Payload bytes over each link between zones, by direction.
    pub fn links(&self) -> impl Iterator<Item = (&Zone, &Zone, u64)> + '_ {
        self.wire.network.crossed()
    }

    /// Payload verified over time, all nodes together.
    pub fn timeline(&self) -> Timeline {
        let mut all = Timeline::default();
        self.shards.iter().for_each(|shard| all.absorb(shard.timeline.clone()));
        all
    }

    /// A hash of everything that happened so far: of each node's story, in the order of the nodes.
    pub fn trace_hash(&self) -> u64 {
        (0..self.node_count()).fold(HASH_START, |hash, node| hash_word(hash, self.node(node).trace_hash))
    }

    /// Keeps the story of a host or piece from now on.
    pub fn trace(&mut self, filter: TraceFilter) {
        self.shards.iter_mut().for_each(|shard| shard.trace.filter = Some(filter));
    }

    /// The story, a line an effect.
    pub fn trace_lines(&self) -> Vec<String> {
        let mut lines: Vec<_> = self.shards.iter().flat_map(|shard| &shard.trace.lines).collect();
        lines.sort_by_key(|(at, ..)| *at);
        lines.into_iter().map(shown).collect()
    }

    /// What must never happen and did; the run ends there.
    pub fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }
}
