//! Engines, and the driver that carries out what they wish.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use rand_core::{Rng as _, SeedableRng as _};
use shoal_engine::io::{
    BufferId, Effect, Event, Input, LocalBlob, LookupSource, Opened, ReadError, ReaderId, ReaderWant,
};
use shoal_engine::message::{Channel, Message, PeerHint};
use shoal_engine::{Engine, EngineConfig};
use shoal_types::{
    Bitfield, Digest, Endpoint, Metainfo, PeerId, PieceIndex, Role, Roles, Timestamp, VouchedMetainfo, Zone,
};

use crate::network::{Link, Network, NetworkConfig};
use crate::truth::Truth;

/// Names a node of a fleet.
pub type NodeId = usize;

/// Providers a DHT lookup returns at most.
const PROVIDERS_MAX: usize = 8;

/// What all nodes of a fleet have in common.
#[derive(Clone, Debug)]
pub struct FleetConfig {
    /// The engines' configuration.
    pub engine: EngineConfig,
    /// The network.
    pub network: NetworkConfig,
    /// Time of a DHT lookup.
    pub dht_delay: Duration,
    /// Time the owners are found in: they are known from heartbeats.
    pub owners_delay: Duration,
    /// Time of a store operation.
    pub disk_delay: Duration,
    /// Time until a dial to a dead peer fails.
    pub connect_timeout: Duration,
    /// Time of a fetch from the backend.
    pub backend_delay: Duration,
}

impl Default for FleetConfig {
    fn default() -> Self {
        Self {
            engine: EngineConfig::default(),
            network: NetworkConfig::default(),
            dht_delay: Duration::from_millis(50),
            owners_delay: Duration::from_micros(50),
            disk_delay: Duration::from_micros(500),
            connect_timeout: Duration::from_millis(500),
            backend_delay: Duration::from_millis(20),
        }
    }
}

/// What a node is.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    /// Its zone.
    pub zone: Zone,
    /// Whether it is an origin: an owner of every blob.
    pub origin: bool,
    /// Rate of its access link, each way, in bytes per second.
    pub rate_bytes_per_sec: Option<u64>,
    /// It sends rubbish.
    pub corrupt: bool,
}

impl Default for NodeSpec {
    fn default() -> Self {
        Self { zone: Zone::default(), origin: false, rate_bytes_per_sec: Some(12_500_000), corrupt: false }
    }
}

/// How a reader stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReaderOutcome {
    /// Its blob's metainfo is known.
    pub started: bool,
    /// End of what it can read.
    pub until: u64,
    /// When its first byte could be read.
    pub first_byte: Option<Timestamp>,
    /// When it had everything.
    pub done: Option<Timestamp>,
    /// Why it failed.
    pub failed: Option<ReadError>,
}

/// What a node did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Payload bytes sent to peers.
    pub sent_bytes: u64,
    /// Payload bytes of verified pieces.
    pub verified_bytes: u64,
    /// Payload received and thrown away.
    pub wasted_pieces: u64,
    /// Pieces fetched from the backend.
    pub backend_pieces: u64,
    /// Messages sent.
    pub messages: u64,
}

#[derive(Debug)]
struct Disk {
    metainfo: Arc<Metainfo>,
    vouched: Option<Arc<VouchedMetainfo>>,
    pieces: Bitfield,
    complete: bool,
}

#[derive(Debug)]
struct Sending {
    to: NodeId,
    channel: Channel,
    digest: Digest,
    piece: PieceIndex,
    sent: u32,
    bytes: u32,
    connection: u64,
}

#[derive(Debug)]
struct Node {
    spec: NodeSpec,
    peer: PeerId,
    engine: Engine,
    alive: bool,
    /// Stopped as by SIGSTOP: it neither reads, sends nor runs, and its connections stay open.
    stopped: bool,
    missed: Vec<Happening>,
    /// The next wake-up that is scheduled.
    wake: Option<Timestamp>,
    up: Link,
    down: Link,
    sending: VecDeque<Sending>,
    uplink_busy: bool,
    disk: BTreeMap<Digest, Disk>,
    backend: BTreeSet<Digest>,
    backend_down: bool,
    expected: BTreeMap<(NodeId, Channel, u32), u32>,
    buffers: BTreeMap<BufferId, bool>,
    buffers_made: u64,
    readers: BTreeMap<ReaderId, (Digest, ReaderOutcome)>,
    readers_made: u64,
    tally: Tally,
}

#[derive(Clone, Debug)]
enum Happening {
    Input(NodeId, Box<Input>),
    Wake(NodeId),
    Message { from: NodeId, to: NodeId, connection: u64, message: Box<Message> },
    Uplink(NodeId),
    Frame { from: NodeId, to: NodeId, connection: u64, channel: Channel, piece: u32, bytes: u32, last: bool },
    Connected { from: NodeId, to: NodeId },
    Read { node: NodeId, reader: ReaderId, offset: u64 },
}

/// Many engines in virtual time.
#[derive(Debug)]
pub struct Fleet {
    config: FleetConfig,
    now: Timestamp,
    seed: u64,
    sequence: u64,
    queue: BTreeMap<(Timestamp, u64), Happening>,
    nodes: Vec<Node>,
    by_peer: BTreeMap<PeerId, NodeId>,
    connections: BTreeMap<(NodeId, NodeId), u64>,
    providers: BTreeMap<Digest, BTreeSet<NodeId>>,
    network: Network,
    /// Nodes of different parts cannot reach each other.
    parts: BTreeMap<NodeId, u32>,
    trace: Fnv,
    random: rand_pcg::Pcg64,
    /// Who refuses whom.
    bans: BTreeSet<(NodeId, NodeId)>,
}

/// FNV-1a, for a hash of the trace that is the same in every release.
#[derive(Clone, Debug)]
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

impl Fleet {
    /// An empty fleet.
    pub fn new(config: FleetConfig, seed: u64) -> Self {
        Self {
            network: Network::new(config.network.clone()),
            config,
            now: Timestamp::ZERO,
            seed,
            sequence: 0,
            queue: BTreeMap::new(),
            nodes: Vec::new(),
            by_peer: BTreeMap::new(),
            connections: BTreeMap::new(),
            providers: BTreeMap::new(),
            parts: BTreeMap::new(),
            trace: Fnv(0xcbf2_9ce4_8422_2325),
            random: rand_pcg::Pcg64::seed_from_u64(seed),
            bans: BTreeSet::new(),
        }
    }

    /// Adds a node that is up.
    pub fn add(&mut self, spec: NodeSpec) -> NodeId {
        let id = self.nodes.len();
        let mut key = [0; 32];
        key[..8].copy_from_slice(&(id as u64 + 1).to_le_bytes());
        key[8..16].copy_from_slice(&self.random.next_u64().to_le_bytes());
        // Spread over the key space, as real keys are.
        let peer = PeerId::from_public_key(*shoal_types::PieceHash::of(&key).as_bytes());
        let engine = self.engine(id, peer, &spec);
        self.by_peer.insert(peer, id);
        self.nodes.push(Node {
            up: Link::new(spec.rate_bytes_per_sec),
            down: Link::new(spec.rate_bytes_per_sec),
            spec,
            peer,
            engine,
            alive: true,
            stopped: false,
            missed: Vec::new(),
            wake: None,
            sending: VecDeque::new(),
            uplink_busy: false,
            disk: BTreeMap::new(),
            backend: BTreeSet::new(),
            backend_down: false,
            expected: BTreeMap::new(),
            buffers: BTreeMap::new(),
            buffers_made: 0,
            readers: BTreeMap::new(),
            readers_made: 0,
            tally: Tally::default(),
        });
        id
    }

    fn engine(&self, id: NodeId, peer: PeerId, spec: &NodeSpec) -> Engine {
        let seed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(id as u64);
        Engine::new(self.config.engine.clone(), peer, spec.zone.clone(), seed, self.now)
    }

    /// Puts a complete blob on a node's disk and announces it.
    pub fn store(&mut self, node: NodeId, truth: &Truth) {
        let digest = truth.metainfo.digest();
        let pieces = Bitfield::full(truth.metainfo.layout().piece_count());
        let disk = Disk {
            metainfo: truth.metainfo.clone(),
            vouched: Some(truth.vouched.clone()),
            pieces,
            complete: true,
        };
        self.nodes[node].disk.insert(digest, disk);
        self.providers.entry(digest).or_default().insert(node);
    }

    /// Puts a blob into an origin's backend: described on its disk, and no piece there.
    pub fn store_in_backend(&mut self, node: NodeId, truth: &Truth) {
        let digest = truth.metainfo.digest();
        let disk = Disk {
            metainfo: truth.metainfo.clone(),
            vouched: Some(truth.vouched.clone()),
            pieces: truth.metainfo.empty_bitfield(),
            complete: false,
        };
        self.nodes[node].disk.insert(digest, disk);
        self.nodes[node].backend.insert(digest);
    }

    /// Whether an origin's backend answers.
    pub fn set_backend_down(&mut self, node: NodeId, down: bool) {
        self.nodes[node].backend_down = down;
    }

    /// Opens a reader.
    pub fn read(&mut self, node: NodeId, digest: Digest, want: ReaderWant) -> ReaderId {
        let own = &mut self.nodes[node];
        let reader = ReaderId(own.readers_made);
        own.readers_made += 1;
        own.readers.insert(reader, (digest, ReaderOutcome::default()));
        self.input(node, Input::ReaderOpened { reader, digest, want });
        reader
    }

    /// Closes a reader.
    pub fn close(&mut self, node: NodeId, reader: ReaderId) {
        self.input(node, Input::ReaderClosed { reader });
    }

    /// How a reader stands.
    pub fn outcome(&self, node: NodeId, reader: ReaderId) -> ReaderOutcome {
        self.nodes[node].readers.get(&reader).map(|(_, outcome)| outcome.clone()).unwrap_or_default()
    }

    /// Feeds an input of the local driver to a node.
    pub fn input(&mut self, node: NodeId, input: Input) {
        self.schedule(Duration::ZERO, Happening::Input(node, Box::new(input)));
    }

    /// Kills a node: its connections and readers end, its disk stays.
    pub fn kill(&mut self, node: NodeId) {
        self.nodes[node].alive = false;
        self.nodes[node].stopped = false;
        self.nodes[node].missed.clear();
        self.nodes[node].sending.clear();
        self.nodes[node].readers.clear();
        self.disconnect_where(|a, b| a == node || b == node);
    }

    /// Starts a killed node again with what its disk holds.
    pub fn restart(&mut self, node: NodeId) {
        let engine = self.engine(node, self.nodes[node].peer, &self.nodes[node].spec);
        let own = &mut self.nodes[node];
        own.engine = engine;
        own.alive = true;
        own.uplink_busy = false;
        own.wake = None;
        own.expected.clear();
        own.buffers.clear();
    }

    /// Stops a node as SIGSTOP does.
    pub fn stop(&mut self, node: NodeId) {
        self.nodes[node].stopped = true;
    }

    /// Continues a stopped node: what it missed reaches it now.
    pub fn resume(&mut self, node: NodeId) {
        self.nodes[node].stopped = false;
        for missed in std::mem::take(&mut self.nodes[node].missed) {
            self.schedule(Duration::ZERO, missed);
        }
        self.schedule(Duration::ZERO, Happening::Wake(node));
        for id in 0..self.nodes.len() {
            self.pump_uplink(id);
        }
    }

    /// Cuts the network: nodes in `part` reach only each other.
    pub fn partition(&mut self, part: &[NodeId]) {
        let number = self.parts.values().max().map_or(1, |max| max + 1);
        for node in part {
            self.parts.insert(*node, number);
        }
        let parts = self.parts.clone();
        self.disconnect_where(|a, b| parts.get(&a) != parts.get(&b));
    }

    /// Mends the network.
    pub fn heal(&mut self) {
        self.parts.clear();
    }

    /// Runs for a time.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        self.run_until(end, |_| false);
        self.now = end;
    }

    /// Runs until `done` says so or the time is up; returns whether it did.
    pub fn run_until(&mut self, end: Timestamp, mut done: impl FnMut(&Self) -> bool) -> bool {
        while !done(self) {
            let Some(entry) = self.queue.first_entry() else { return false };
            let (at, _) = *entry.key();
            if at > end {
                return false;
            }
            self.now = at;
            let happening = entry.remove();
            self.happen(happening);
        }
        true
    }

    /// Runs until every reader of the living nodes is done or failed; `false` when `limit` passes first.
    pub fn run_readers(&mut self, limit: Duration) -> bool {
        let end = self.now + limit;
        self.run_until(end, |fleet| {
            fleet.nodes.iter().filter(|node| node.alive).all(|node| {
                node.readers.values().all(|(_, outcome)| outcome.done.is_some() || outcome.failed.is_some())
            })
        })
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

    /// Virtual time.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// A node's engine, for inspection.
    pub fn engine_of(&self, node: NodeId) -> &Engine {
        &self.nodes[node].engine
    }

    /// What a node did.
    pub fn tally(&self, node: NodeId) -> Tally {
        self.nodes[node].tally
    }

    /// Whether a node's disk holds a whole, checked blob.
    pub fn is_complete(&self, node: NodeId, digest: &Digest) -> bool {
        self.nodes[node].disk.get(digest).is_some_and(|disk| disk.complete)
    }

    /// Number of pieces of a blob on a node's disk.
    pub fn pieces_of(&self, node: NodeId, digest: &Digest) -> u32 {
        self.nodes[node].disk.get(digest).map_or(0, |disk| disk.pieces.count())
    }

    /// Payload bytes that crossed links between zones.
    pub fn crossed_bytes(&self) -> u64 {
        self.network.crossed_bytes()
    }

    /// A hash of everything that happened so far.
    pub fn trace_hash(&self) -> u64 {
        self.trace.finish()
    }

    fn schedule(&mut self, after: Duration, happening: Happening) {
        self.schedule_at(self.now + after, happening);
    }

    fn schedule_at(&mut self, at: Timestamp, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), happening);
    }

    fn connection(&self, a: NodeId, b: NodeId) -> Option<u64> {
        self.connections.get(&(a.min(b), a.max(b))).copied()
    }

    fn reaches(&self, a: NodeId, b: NodeId) -> bool {
        self.nodes[a].alive
            && self.nodes[b].alive
            && self.parts.get(&a) == self.parts.get(&b)
            && !self.bans.contains(&(a, b))
            && !self.bans.contains(&(b, a))
    }

    fn disconnect_where(&mut self, which: impl Fn(NodeId, NodeId) -> bool) {
        let ending: Vec<_> = self.connections.keys().copied().filter(|(a, b)| which(*a, *b)).collect();
        for (a, b) in ending {
            self.connections.remove(&(a, b));
            for (own, other) in [(a, b), (b, a)] {
                let peer = self.nodes[other].peer;
                self.nodes[own].expected.retain(|(from, ..), _| *from != other);
                self.nodes[own].sending.retain(|sending| sending.to != other);
                self.schedule(
                    Duration::ZERO,
                    Happening::Input(own, Box::new(Input::PeerDisconnected { peer })),
                );
            }
        }
    }

    fn happen(&mut self, happening: Happening) {
        let node = match &happening {
            Happening::Input(node, _) | Happening::Wake(node) | Happening::Uplink(node) => *node,
            Happening::Message { to, .. } | Happening::Frame { to, .. } | Happening::Connected { to, .. } => {
                *to
            }
            Happening::Read { node, .. } => *node,
        };
        if !self.nodes[node].alive {
            if let Happening::Connected { from, to } = happening {
                let peer = self.nodes[to].peer;
                self.deliver(from, Input::ConnectFailed { peer });
            }
            return;
        }
        if self.nodes[node].stopped {
            self.nodes[node].missed.push(happening);
            return;
        }
        match happening {
            Happening::Input(node, input) => self.deliver(node, *input),
            Happening::Wake(node) => self.wake(node),
            Happening::Message { from, to, connection, message } => {
                if self.connection(from, to) == Some(connection) {
                    let peer = self.nodes[from].peer;
                    self.deliver(to, Input::Message { peer, message: *message });
                }
            }
            Happening::Uplink(node) => {
                self.nodes[node].uplink_busy = false;
                self.pump_uplink(node);
            }
            Happening::Frame { from, to, connection, channel, piece, bytes, last } => {
                if self.connection(from, to) == Some(connection) {
                    self.frame(from, to, channel, piece, bytes, last);
                }
            }
            Happening::Connected { from, to } => self.connected(from, to),
            Happening::Read { node, reader, offset } => {
                self.deliver(node, Input::ReaderMoved { reader, offset });
            }
        }
    }

    fn wake(&mut self, node: NodeId) {
        let now = self.now;
        if self.nodes[node].wake.is_some_and(|at| at <= now) {
            self.nodes[node].wake = None;
        }
        if self.nodes[node].engine.poll_timeout().is_some_and(|at| at <= now) {
            self.nodes[node].engine.handle_timeout(now);
        }
        self.carry_out(node);
    }

    fn deliver(&mut self, node: NodeId, input: Input) {
        if !self.nodes[node].alive {
            return;
        }
        let now = self.now;
        self.nodes[node].engine.handle_input(now, input);
        self.carry_out(node);
    }

    fn connected(&mut self, from: NodeId, to: NodeId) {
        if !self.reaches(from, to) {
            let peer = self.nodes[to].peer;
            return self.deliver(from, Input::ConnectFailed { peer });
        }
        let key = (from.min(to), from.max(to));
        if !self.connections.contains_key(&key) {
            self.sequence += 1;
            self.connections.insert(key, self.sequence);
        }
        for (own, other) in [(from, to), (to, from)] {
            let hint = self.hint(other, false);
            let roles = self.roles(other);
            let Node { peer, spec, .. } = &self.nodes[other];
            let input = Input::PeerConnected {
                peer: *peer,
                zone: spec.zone.clone(),
                roles,
                endpoints: hint.endpoints,
            };
            self.deliver(own, input);
        }
    }

    fn roles(&self, node: NodeId) -> Roles {
        let roles = Roles::NONE.with(Role::Node);
        if self.nodes[node].spec.origin { roles.with(Role::Origin) } else { roles }
    }

    fn hint(&self, node: NodeId, complete: bool) -> PeerHint {
        let own = &self.nodes[node];
        let ip = std::net::IpAddr::from(u32::try_from(node).unwrap_or(0).to_be_bytes());
        PeerHint {
            peer: own.peer,
            zone: own.spec.zone.clone(),
            endpoints: vec![Endpoint::from_ip(ip, 4002)],
            complete,
        }
    }

    fn carry_out(&mut self, node: NodeId) {
        while let Some(effect) = self.nodes[node].engine.poll_effect() {
            self.trace(node, &effect);
            self.effect(node, effect);
        }
        let limit = self.config.engine.buffer_bytes_max;
        assert!(
            self.nodes[node].engine.buffered_bytes() <= limit,
            "seed {}: buffer over its limit",
            self.seed
        );
        if let Some(at) = self.nodes[node].engine.poll_timeout() {
            let at = at.max(self.now);
            if self.nodes[node].wake.is_none_or(|scheduled| at < scheduled || scheduled < self.now) {
                self.nodes[node].wake = Some(at);
                self.schedule_at(at, Happening::Wake(node));
            }
        }
    }

    fn trace(&mut self, node: NodeId, effect: &Effect) {
        (self.now, node, std::mem::discriminant(effect)).hash(&mut self.trace);
        if let Effect::Send { peer, message } = effect {
            (peer, std::mem::discriminant(message)).hash(&mut self.trace);
            if let Message::Request { piece, .. } = message {
                piece.hash(&mut self.trace);
            }
        }
    }

    fn answer(&mut self, node: NodeId, after: Duration, input: Input) {
        self.schedule(after, Happening::Input(node, Box::new(input)));
    }

    fn effect(&mut self, node: NodeId, effect: Effect) {
        let disk_delay = self.config.disk_delay;
        match effect {
            Effect::Connect { peer, .. } => self.connect(node, peer),
            Effect::Disconnect { peer, ban, .. } => {
                let Some(other) = self.by_peer.get(&peer).copied() else { return };
                if ban.is_some() {
                    self.bans.insert((node, other));
                }
                self.disconnect_where(|a, b| (a, b) == (node.min(other), node.max(other)));
            }
            Effect::Send { peer, message } => self.send(node, peer, message),
            Effect::Expect { peer, channel, piece, bytes, .. } => {
                let Some(from) = self.by_peer.get(&peer).copied() else { return };
                self.nodes[node].expected.insert((from, channel, piece.get()), bytes);
            }
            Effect::Unexpect { peer, channel, piece } => {
                let Some(from) = self.by_peer.get(&peer).copied() else { return };
                self.nodes[node].expected.remove(&(from, channel, piece));
            }
            Effect::SendPiece { peer, to, digest, piece } => self.send_piece(node, peer, to, digest, piece),
            Effect::CancelSend { peer, digest, piece } => {
                let Some(to) = self.by_peer.get(&peer).copied() else { return };
                let waiting =
                    |s: &Sending| s.to == to && s.digest == digest && s.piece == piece && s.sent == 0;
                if self.nodes[node].sending.iter().any(waiting) {
                    self.nodes[node].sending.retain(|sending| !waiting(sending));
                    self.answer(node, Duration::ZERO, Input::PieceSent { peer, digest, piece, bytes: 0 });
                }
            }
            Effect::OpenBlob { digest } => {
                let opened = self.open(node, &digest);
                self.answer(node, disk_delay, Input::BlobOpened { digest, opened });
            }
            Effect::CreateBlob { metainfo, vouched } => {
                let pieces = metainfo.empty_bitfield();
                let disk = Disk { pieces, metainfo, vouched, complete: false };
                self.nodes[node].disk.entry(disk.metainfo.digest()).or_insert(disk);
            }
            Effect::Lookup { digest, source } => self.lookup(node, digest, source),
            Effect::Provide { digest } => {
                self.providers.entry(digest).or_default().insert(node);
            }
            Effect::VerifyPiece { digest, piece, buffer, from } => {
                let input = self.verify(node, digest, piece, buffer, from);
                self.answer(node, disk_delay, input);
            }
            Effect::DropBuffer { buffer } => {
                self.nodes[node].buffers.remove(&buffer);
                self.nodes[node].tally.wasted_pieces += 1;
            }
            Effect::FetchFromBackend { digest, piece } => {
                let input = self.fetch(node, digest, piece);
                let delay = self.config.backend_delay;
                self.answer(node, delay, input);
            }
            Effect::FinishBlob { digest } => {
                let disk = self.nodes[node].disk.get_mut(&digest);
                let whole = disk.is_some_and(|disk| {
                    disk.complete = disk.pieces.is_full();
                    disk.complete
                });
                assert!(whole, "seed {}: node {node} finishes a blob that is not whole", self.seed);
                self.answer(node, disk_delay, Input::BlobFinished { digest });
            }
            Effect::ReaderStarted { reader, .. } => self.reader(node, reader).started = true,
            Effect::ReaderAdvance { reader, until } => self.advance(node, reader, until),
            Effect::ReaderDone { reader } => {
                let now = self.now;
                let outcome = self.reader(node, reader);
                assert!(outcome.done.is_none() && outcome.failed.is_none());
                outcome.done = Some(now);
            }
            Effect::ReaderFailed { reader, why } => self.reader(node, reader).failed = Some(why),
            Effect::Report(report) => {
                if let Event::PieceReceived { bytes, .. } = report.event {
                    self.nodes[node].tally.verified_bytes += u64::from(bytes);
                }
            }
        }
    }

    #[expect(clippy::expect_used, reason = "a simulation ends where the engine breaks its word")]
    fn reader(&mut self, node: NodeId, reader: ReaderId) -> &mut ReaderOutcome {
        &mut self.nodes[node].readers.get_mut(&reader).expect("the engine names readers of this run only").1
    }

    /// What a reader is told it can read must be on the disk; the last piece only of a checked blob.
    fn advance(&mut self, node: NodeId, reader: ReaderId, until: u64) {
        let (now, seed) = (self.now, self.seed);
        let own = &mut self.nodes[node];
        let Some((digest, outcome)) = own.readers.get_mut(&reader) else { return };
        let Some(disk) = own.disk.get(digest) else { panic!("seed {seed}: read of a blob that is not here") };
        assert!(until > outcome.until, "seed {seed}: node {node} advances backwards");
        let mut pieces = disk.metainfo.layout().pieces_in(outcome.until..until);
        assert!(pieces.all(|piece| disk.pieces.contains(piece)), "seed {seed}: unverified piece released");
        assert!(
            until < disk.metainfo.size() || disk.complete,
            "seed {seed}: end of an unchecked blob released"
        );
        outcome.until = until;
        outcome.first_byte.get_or_insert(now);
        self.schedule(Duration::from_micros(100), Happening::Read { node, reader, offset: until });
    }

    fn connect(&mut self, node: NodeId, peer: PeerId) {
        let target = self.by_peer.get(&peer).copied();
        let Some(to) = target.filter(|to| self.reaches(node, *to) && !self.nodes[*to].stopped) else {
            let delay = self.config.connect_timeout;
            return self.answer(node, delay, Input::ConnectFailed { peer });
        };
        let delay = self.network.delay(&self.nodes[node].spec.zone, &self.nodes[to].spec.zone);
        // TCP and TLS 1.3: two round trips.
        self.schedule(delay * 4, Happening::Connected { from: node, to });
    }

    fn send(&mut self, from: NodeId, peer: PeerId, message: Message) {
        let Some(to) = self.by_peer.get(&peer).copied() else { return };
        let Some(connection) = self.connection(from, to) else { return };
        self.nodes[from].tally.messages += 1;
        let delay = self.network.delay(&self.nodes[from].spec.zone, &self.nodes[to].spec.zone);
        self.schedule(delay, Happening::Message { from, to, connection, message: Box::new(message) });
    }

    fn send_piece(
        &mut self,
        node: NodeId,
        peer: PeerId,
        channel: Channel,
        digest: Digest,
        piece: PieceIndex,
    ) {
        let Some(to) = self.by_peer.get(&peer).copied() else { return };
        let Some(connection) = self.connection(node, to) else { return };
        let seed = self.seed;
        let own = &mut self.nodes[node];
        let Some(disk) = own.disk.get(&digest) else { panic!("seed {seed}: serves a blob it has not") };
        assert!(disk.pieces.contains(piece), "seed {seed}: node {node} serves an unverified piece");
        let bytes = disk.metainfo.layout().len_of(piece);
        own.sending.push_back(Sending { to, channel, digest, piece, sent: 0, bytes, connection });
        self.pump_uplink(node);
    }

    /// Puts the next frame on a node's access link: transfers take turns, those to stopped nodes wait.
    fn pump_uplink(&mut self, node: NodeId) {
        let own = &self.nodes[node];
        if own.uplink_busy || own.stopped || !own.alive {
            return;
        }
        let Some(at) = own.sending.iter().position(|sending| !self.nodes[sending.to].stopped) else { return };
        let frame_bytes = self.config.network.frame_bytes;
        let now = self.now;
        let own = &mut self.nodes[node];
        let Some(mut sending) = own.sending.remove(at) else { return };
        let bytes = frame_bytes.min(sending.bytes - sending.sent);
        sending.sent += bytes;
        let last = sending.sent == sending.bytes;
        let through = own.up.carry(now, bytes);
        own.uplink_busy = true;
        own.tally.sent_bytes += u64::from(bytes);
        let Sending { to, channel, digest, piece, connection, bytes: total, .. } = sending;
        if !last {
            own.sending.push_back(sending);
        }
        let (from_zone, to_zone) = (own.spec.zone.clone(), self.nodes[to].spec.zone.clone());
        let there = self.network.cross(through, &from_zone, &to_zone, bytes);
        let arrives = self.nodes[to].down.carry(there, bytes);
        let piece_number = piece.get();
        self.schedule_at(
            arrives,
            Happening::Frame { from: node, to, connection, channel, piece: piece_number, bytes, last },
        );
        self.schedule_at(through, Happening::Uplink(node));
        if last {
            let peer = self.nodes[to].peer;
            let input = Input::PieceSent { peer, digest, piece, bytes: total };
            self.schedule_at(through, Happening::Input(node, Box::new(input)));
        }
    }

    fn frame(&mut self, from: NodeId, to: NodeId, channel: Channel, piece: u32, bytes: u32, last: bool) {
        let corrupt = self.nodes[from].spec.corrupt;
        let peer = self.nodes[from].peer;
        if !self.nodes[to].expected.contains_key(&(from, channel, piece)) {
            return;
        }
        if !last {
            return self.deliver(to, Input::PieceProgress { peer, channel, piece, bytes });
        }
        let own = &mut self.nodes[to];
        own.expected.remove(&(from, channel, piece));
        let buffer = BufferId(own.buffers_made);
        own.buffers_made += 1;
        own.buffers.insert(buffer, !corrupt);
        self.deliver(to, Input::PieceArrived { peer, channel, piece, buffer });
    }

    fn verify(
        &mut self,
        node: NodeId,
        digest: Digest,
        piece: PieceIndex,
        buffer: BufferId,
        from: PeerId,
    ) -> Input {
        let seed = self.seed;
        let own = &mut self.nodes[node];
        let Some(good) = own.buffers.remove(&buffer) else { panic!("seed {seed}: a buffer used twice") };
        if !good {
            return Input::PieceCorrupt { digest, piece, from: Some(from) };
        }
        let Some(disk) = own.disk.get_mut(&digest) else { panic!("seed {seed}: piece before CreateBlob") };
        assert!(disk.pieces.insert(piece), "seed {seed}: node {node} got piece {piece:?} twice");
        Input::PieceVerified { digest, piece }
    }

    fn fetch(&mut self, node: NodeId, digest: Digest, piece: PieceIndex) -> Input {
        let own = &mut self.nodes[node];
        if own.backend_down || !own.backend.contains(&digest) {
            return Input::BackendFailed { digest, piece };
        }
        own.tally.backend_pieces += 1;
        if let Some(disk) = own.disk.get_mut(&digest) {
            disk.pieces.insert(piece);
        }
        Input::PieceVerified { digest, piece }
    }

    fn open(&self, node: NodeId, digest: &Digest) -> Opened {
        let own = &self.nodes[node];
        match own.disk.get(digest) {
            Some(disk) => Opened::Here(LocalBlob {
                metainfo: disk.metainfo.clone(),
                vouched: disk.vouched.clone(),
                pieces: disk.pieces.clone(),
                complete: disk.complete,
                in_backend: own.backend.contains(digest) && !own.backend_down,
            }),
            None => Opened::Absent { owner: own.spec.origin, backend_down: own.backend_down },
        }
    }

    fn lookup(&mut self, node: NodeId, digest: Digest, source: LookupSource) {
        let (peers, delay) = match source {
            LookupSource::Owners => {
                let owners: Vec<_> = (0..self.nodes.len())
                    .filter(|other| *other != node && self.nodes[*other].spec.origin)
                    .collect();
                (owners, self.config.owners_delay)
            }
            LookupSource::Dht => {
                let known: Vec<_> = self.providers.get(&digest).into_iter().flatten().copied().collect();
                let mut known: Vec<_> = known.into_iter().filter(|other| *other != node).collect();
                while known.len() > PROVIDERS_MAX {
                    let at = (self.random.next_u64() % known.len() as u64) as usize;
                    known.swap_remove(at);
                }
                (known, self.config.dht_delay)
            }
        };
        let answered = source == LookupSource::Dht || !peers.is_empty();
        let peers: Vec<PeerHint> = peers.into_iter().map(|other| self.hint(other, false)).collect();
        if !peers.is_empty() {
            self.answer(node, delay, Input::PeersFound { digest, source, peers });
        }
        self.answer(node, delay, Input::LookupFinished { digest, source, answered });
    }
}
