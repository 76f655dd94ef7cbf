//! Connections, what they carry, and the DHT: what all nodes share. It runs a stride ahead of them.

use std::collections::{BTreeMap, VecDeque};

use rand_core::SeedableRng as _;
use shoal_engine::io::{Input, LookupSource};
use shoal_engine::prefetch::{prefetch, prefetch_lines};

use super::mail::{Coming, Event, Mail, Op, Outbox, Sending};
use super::world::World;
use crate::discovery::Dht;
use crate::network::{FlowId, Milestone, Network};
use crate::queue::Queue;

/// Stages of prefetching.
const STAGES: usize = 4;
/// Happenings from one stage of prefetching to the next: enough for memory to answer.
const STAGE_HAPPENINGS: usize = 4;
/// Happenings ahead of the present one at which prefetching begins.
const PREFETCHED_HAPPENINGS: usize = STAGE_HAPPENINGS * STAGES;

/// One direction of a connection.
#[derive(Debug, Default)]
struct Way {
    /// Pieces to send, the first of which is being sent once the flow is active.
    queue: VecDeque<Sending>,
    /// A piece is read from the disk before it is sent.
    reading: bool,
    /// A piece has begun and not ended.
    begun: bool,
    flow: Option<FlowId>,
}

/// Two cache lines.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Connection {
    /// No other connection ever has the same.
    pub(crate) serial: u32,
    pub(crate) ends: [u32; 2],
    pub(crate) open: bool,
    /// The network between the ends is cut.
    pub(crate) cut: bool,
    /// How often it was cut.
    cuts: u32,
    /// One-way delay in nanoseconds.
    delay: u64,
    /// Way `i` is from end `i`.
    ways: [Way; 2],
}

const _: () = assert!(size_of::<Connection>() == CONNECTION_LINES * 64);
/// Cache lines of a connection.
const CONNECTION_LINES: usize = 2;

impl Connection {
    fn way_from(&self, node: u32) -> u8 {
        u8::from(self.ends[0] != node)
    }
}

#[derive(Clone, Copy, Debug)]
enum Happening {
    Begin { connection: u32, serial: u32, way: u8 },
    Reached(Milestone),
    Rebalance,
    Open { from: u32, life: u32, to: u32 },
    Silence { connection: u32, serial: u32, cuts: u32 },
    Provided { node: u32, blob: u32 },
}

/// What the network calls the owner of a flow: a connection's number and one of its ways.
fn owner_from(connection: u32, way: u8) -> u32 {
    connection << 1 | u32::from(way)
}

fn way_of(owner: u32) -> (u32, u8) {
    (owner >> 1, (owner & 1) as u8)
}

#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) network: Network,
    pub(crate) connections: Vec<Connection>,
    unused: Vec<u32>,
    by_ends: BTreeMap<(u32, u32), u32>,
    serials: u32,
    /// Each node's access links: up and down.
    pub(crate) access: Vec<(u32, u32)>,
    /// Payload bytes that each node sent.
    pub(crate) sent_bytes: Vec<u64>,
    pub(crate) dht: Dht,
    random: rand_pcg::Pcg64,
    queue: Queue<Happening>,
    due: Vec<Milestone>,
    /// Everything before this has happened.
    pub(crate) until: u64,
    now: u64,
    pub(crate) events: u64,
    /// Wishes of each shard.
    pub(crate) inbox: Vec<Vec<Op>>,
    pub(crate) outbox: Outbox,
}

impl Wire {
    pub(crate) fn new(network: Network, dht: Dht, seed: u64) -> Self {
        Self {
            network,
            connections: Vec::new(),
            unused: Vec::new(),
            by_ends: BTreeMap::new(),
            serials: 0,
            access: Vec::new(),
            sent_bytes: Vec::new(),
            dht,
            random: rand_pcg::Pcg64::seed_from_u64(!seed),
            queue: Queue::new(),
            due: Vec::new(),
            until: 0,
            now: 0,
            events: 0,
            inbox: vec![Vec::new()],
            outbox: Outbox::new(1),
        }
    }

    /// When something is to happen next; `u64::MAX` when nothing is.
    pub(crate) fn next_at(&mut self) -> u64 {
        let wished = self.inbox.iter().any(|ops| !ops.is_empty());
        if wished { self.until } else { self.queue.next_at().unwrap_or(u64::MAX) }
    }

    /// Runs what happens before `until`. Nodes have run until `self.until` at most.
    pub(crate) fn run(&mut self, world: &World, until: u64) {
        self.now = self.until;
        self.outbox.not_before = self.until;
        for shard in 0..self.inbox.len() {
            let mut ops = std::mem::take(&mut self.inbox[shard]);
            for place in 0..ops.len() {
                if let Some(Op::Send { connection, .. }) = ops.get(place + STAGE_HAPPENINGS) {
                    self.prefetch_connection(*connection);
                }
                self.carry_out(world, ops[place]);
            }
            ops.clear();
            self.inbox[shard] = ops;
        }
        self.queue.plan(until);
        for place in 0..PREFETCHED_HAPPENINGS {
            self.prefetch(place);
        }
        while let Some((at, happening, planned)) = self.queue.pop_before(until) {
            if planned {
                self.prefetch(PREFETCHED_HAPPENINGS - 1);
            }
            self.now = at;
            self.events += 1;
            match happening {
                Happening::Begin { connection, serial, way } => self.begin(world, connection, serial, way),
                Happening::Reached(milestone) => self.reached(milestone),
                Happening::Rebalance => self.rebalance(),
                Happening::Open { from, life, to } => self.open(world, from, life, to),
                Happening::Silence { connection, serial, cuts } => {
                    let known = &self.connections[connection as usize];
                    if self.is_open(connection, serial) && known.cut && known.cuts == cuts {
                        self.hang_up(connection, self.now);
                    }
                }
                Happening::Provided { node, blob } => {
                    if world.fact(node).alive {
                        self.dht.store(blob, node);
                    }
                }
            }
        }
        self.skip_to(until);
    }

    /// Prefetches for the planned happening at `place` and those before it, each its next stage.
    fn prefetch(&self, place: usize) {
        for stage in 0..STAGES {
            let place = place.checked_sub(stage * STAGE_HAPPENINGS);
            match place.and_then(|place| self.queue.ahead(place)) {
                Some(Happening::Reached(milestone)) => self.prefetch_reached(stage, milestone.flow),
                Some(Happening::Begin { connection, way, .. }) => {
                    self.prefetch_begin(stage, *connection, *way)
                }
                _ => {}
            }
        }
    }

    fn prefetch_reached(&self, stage: usize, flow: FlowId) {
        let way = || way_of(self.network.owner_of(flow));
        match stage {
            0 => self.network.prefetch_place(flow),
            1 => self.network.prefetch_flow(flow),
            2 => self.prefetch_connection(way().0),
            _ => self.prefetch_front(way()),
        }
    }

    fn prefetch_begin(&self, stage: usize, connection: u32, way: u8) {
        let flow = || self.way((connection, way)).and_then(|way| way.flow);
        match stage {
            0 => self.prefetch_connection(connection),
            1 => {
                self.prefetch_front((connection, way));
                flow().iter().for_each(|flow| self.network.prefetch_place(*flow));
            }
            2 => flow().iter().for_each(|flow| self.network.prefetch_flow(*flow)),
            _ => {}
        }
    }

    fn prefetch_connection(&self, number: u32) {
        if let Some(connection) = self.connections.get(number as usize) {
            prefetch_lines(&connection.serial, 0..CONNECTION_LINES);
        }
    }

    /// Prefetches the piece that is being sent, or will be next.
    fn prefetch_front(&self, way: (u32, u8)) {
        self.way(way).and_then(|way| way.queue.front()).into_iter().for_each(prefetch);
    }

    fn way(&self, (number, way): (u32, u8)) -> Option<&Way> {
        self.connections.get(number as usize)?.ways.get(way as usize)
    }

    /// Nothing happens before `until`.
    pub(crate) fn skip_to(&mut self, until: u64) {
        self.until = until;
        self.now = until;
    }

    fn push(&mut self, at: u64, happening: Happening) {
        self.queue.push(at.max(self.now), happening);
    }

    fn is_open(&self, connection: u32, serial: u32) -> bool {
        self.connections.get(connection as usize).is_some_and(|known| known.open && known.serial == serial)
    }

    fn carry_out(&mut self, world: &World, op: Op) {
        match op {
            Op::Open { from, life, to, at } => self.push(at, Happening::Open { from, life, to }),
            Op::HangUp { connection, serial, at } => {
                if self.is_open(connection, serial) {
                    self.hang_up(connection, at);
                }
            }
            Op::Send { connection, serial, node, sending, read } => {
                if !self.is_open(connection, serial) {
                    return;
                }
                let known = &mut self.connections[connection as usize];
                let way = known.way_from(node);
                let own = &mut known.ways[way as usize];
                own.queue.push_back(sending);
                // Behind another piece it is read meanwhile.
                if !own.reading && !own.begun {
                    own.reading = true;
                    self.push(read, Happening::Begin { connection, serial, way });
                }
            }
            Op::Cancel { connection, serial, node, blob, piece, at } => {
                if self.is_open(connection, serial) {
                    self.cancel(connection, node, blob, piece, at);
                }
            }
            Op::Provide { node, blob, at } => self.push(at, Happening::Provided { node, blob }),
            Op::LookUp { node, life, blob, at } => {
                let digest = world.digests[blob as usize];
                let looked = self.dht.look_up(blob, node, at, &mut self.random);
                let source = LookupSource::Dht;
                let peers: Vec<_> = looked.providers.iter().map(|other| world.hint(*other)).collect();
                if !peers.is_empty() {
                    let input = Input::PeersFound { digest, source, peers };
                    self.outbox.post(node, looked.found, Mail::input(node, life, input));
                }
                let input = Input::LookupFinished { digest, source, answered: true };
                self.outbox.post(node, looked.over, Mail::input(node, life, input));
            }
        }
    }

    /// A handshake is over.
    fn open(&mut self, world: &World, from: u32, life: u32, to: u32) {
        let (now, fact) = (self.now, world.fact(to));
        if !fact.alive || fact.stopped || !world.reaches(from, to) {
            let input = Input::ConnectFailed { peer: fact.peer };
            return self.outbox.post(from, now, Mail::input(from, life, input));
        }
        if !world.fact(from).alive || world.fact(from).life != life {
            return;
        }
        let ends = (from.min(to), from.max(to));
        let connection = match self.by_ends.get(&ends) {
            Some(connection) => *connection,
            None => {
                let connection = self.add(from, to, world.delay(from, to));
                self.by_ends.insert(ends, connection);
                connection
            }
        };
        let serial = self.connections[connection as usize].serial;
        for (node, other) in [(from, to), (to, from)] {
            self.outbox.post(node, now, Mail::Event(Event::Linked { node, other, connection, serial }));
        }
    }

    fn add(&mut self, from: u32, to: u32, delay: u64) -> u32 {
        self.serials = self.serials.wrapping_add(1);
        let (serial, ways) = (self.serials, [Way::default(), Way::default()]);
        let fresh = Connection { serial, ends: [from, to], open: true, cut: false, cuts: 0, delay, ways };
        if let Some(place) = self.unused.pop() {
            self.connections[place as usize] = fresh;
            return place;
        }
        self.connections.push(fresh);
        u32::try_from(self.connections.len() - 1).unwrap_or(u32::MAX)
    }

    /// Ends a connection that was closed `at`. Both ends hear of it: the one who closed it may have been told meanwhile that it is open,
    /// by a second dial, and one that died may live again.
    pub(crate) fn hang_up(&mut self, number: u32, at: u64) {
        let connection = &mut self.connections[number as usize];
        if !connection.open {
            return;
        }
        connection.open = false;
        let (ends, delay, serial) = (connection.ends, connection.delay, connection.serial);
        let ways = std::mem::take(&mut connection.ways);
        self.by_ends.remove(&(ends[0].min(ends[1]), ends[0].max(ends[1])));
        for (from, way) in ends.into_iter().zip(ways) {
            let Some(flow) = way.flow else { continue };
            if way.begun {
                self.sent_bytes[from as usize] += self.network.carried(flow, self.now);
            }
            self.network.remove(flow, self.now);
        }
        // Not before they hear that it is open.
        let heard = (at + delay).max(self.until);
        for (node, other) in [(ends[0], ends[1]), (ends[1], ends[0])] {
            self.outbox.post(node, heard, Mail::Event(Event::Unlinked { node, other, serial }));
        }
        self.unused.push(number);
    }

    /// A piece is read, and goes on its way.
    fn begin(&mut self, world: &World, number: u32, serial: u32, way: u8) {
        if !self.is_open(number, serial) {
            return;
        }
        let connection = &mut self.connections[number as usize];
        let (from, to) = (connection.ends[way as usize], connection.ends[1 - way as usize]);
        let own = &mut connection.ways[way as usize];
        own.reading = false;
        let Some(next) = own.queue.front() else { return };
        let bytes = next.bytes;
        own.begun = true;
        let (a, b) = (world.fact(from), world.fact(to));
        let flow = match own.flow {
            Some(flow) => flow,
            None => {
                let (up, down) = (self.access[from as usize].0, self.access[to as usize].1);
                let flow = self.network.flow(owner_from(number, way), up, down, a.zone, b.zone);
                own.flow = Some(flow);
                flow
            }
        };
        let held_up = connection.cut || a.stopped || b.stopped;
        self.with_due(|network, now, due| network.carry(flow, now, bytes, due));
        if held_up {
            self.network.suspend(flow, self.now);
        }
    }

    /// Does something that makes milestones, and puts those and the next setting of rates into the queue.
    fn with_due(&mut self, act: impl FnOnce(&mut Network, u64, &mut Vec<Milestone>)) {
        let mut due = std::mem::take(&mut self.due);
        let ticking = self.network.next_tick;
        act(&mut self.network, self.now, &mut due);
        if self.network.next_tick != ticking
            && let Some(at) = self.network.next_tick
        {
            self.push(at, Happening::Rebalance);
        }
        for milestone in due.drain(..) {
            self.push(milestone.at, Happening::Reached(milestone));
        }
        self.due = due;
    }

    fn rebalance(&mut self) {
        self.with_due(Network::rebalance);
    }

    /// A flow has carried its piece, or part of it.
    fn reached(&mut self, milestone: Milestone) {
        let Some(owner) = self.network.owner(milestone.flow, milestone.serial) else { return };
        let (number, way) = way_of(owner);
        let connection = &mut self.connections[number as usize];
        let (from, to) = (connection.ends[way as usize], connection.ends[1 - way as usize]);
        let (serial, there) = (connection.serial, self.now + connection.delay);
        let own = &mut connection.ways[way as usize];
        let Some(Sending { channel, piece, bytes, blob }) = own.queue.front().copied() else { return };
        let since_first = self.network.since_first(milestone.flow, self.now);
        let coming = Coming { node: to, from, serial, channel, piece, bytes, since_first };
        if !milestone.whole {
            let bytes = self.network.tell(milestone.flow, self.now);
            if bytes > 0 {
                self.outbox.post(to, there, Mail::Event(Event::Progress(Coming { bytes, ..coming })));
            }
            return;
        }
        own.queue.pop_front();
        own.begun = false;
        let more = !own.queue.is_empty();
        self.sent_bytes[from as usize] += u64::from(bytes);
        self.outbox.post(to, there, Mail::Event(Event::Arrived(coming)));
        let event = Event::Sent { node: from, to, serial, blob, piece, bytes };
        self.outbox.post(from, self.now, Mail::Event(event));
        if more {
            self.go_on(number, way, milestone.flow);
        } else {
            self.network.suspend(milestone.flow, self.now);
        }
    }

    /// The next piece of a flow, which was read meanwhile.
    fn go_on(&mut self, number: u32, way: u8, flow: FlowId) {
        let own = &mut self.connections[number as usize].ways[way as usize];
        let Some(next) = own.queue.front() else { return };
        let bytes = next.bytes;
        own.begun = true;
        self.with_due(|network, now, due| network.carry(flow, now, bytes, due));
    }

    /// Takes a piece back that has not begun.
    fn cancel(&mut self, number: u32, node: u32, blob: u32, piece: u32, at: u64) {
        let connection = &mut self.connections[number as usize];
        let way = connection.way_from(node) as usize;
        let (to, serial) = (connection.ends[1 - way], connection.serial);
        let own = &mut connection.ways[way];
        let first = usize::from(own.begun || own.reading);
        let waiting = |sending: &Sending| sending.blob == blob && sending.piece == piece;
        if let Some(place) = own.queue.iter().skip(first).position(waiting) {
            own.queue.remove(place + first);
            let event = Event::Sent { node, to, serial, blob, piece, bytes: 0 };
            self.outbox.post(node, at, Mail::Event(event));
        }
    }

    /// Cuts a connection, or mends it. One that stays cut until `silence` ends.
    pub(crate) fn set_cut(&mut self, number: u32, cut: bool, silence: u64) {
        let connection = &mut self.connections[number as usize];
        connection.cut = cut;
        connection.cuts = connection.cuts.wrapping_add(u32::from(cut));
        let (serial, cuts) = (connection.serial, connection.cuts);
        if cut {
            self.push(silence, Happening::Silence { connection: number, serial, cuts });
        }
    }

    /// Lets a connection's flows go on, or holds them, as its ends and the network allow.
    pub(crate) fn hold(&mut self, world: &World, number: u32, serial: u32) {
        if !self.is_open(number, serial) {
            return;
        }
        let connection = &self.connections[number as usize];
        let held = connection.cut || connection.ends.iter().any(|end| world.fact(*end).stopped);
        let flows: Vec<_> =
            connection.ways.iter().filter(|way| way.begun).filter_map(|way| way.flow).collect();
        for flow in flows {
            if held && self.network.is_active(flow) {
                self.network.suspend(flow, self.now);
            } else if !held && !self.network.is_active(flow) {
                self.with_due(|network, now, due| network.resume(flow, now, due));
            }
        }
    }
}
