//! A part of the nodes, which runs by itself for a step.

use std::cell::Cell;
use std::collections::VecDeque;

use shoal_engine::engine::ahead::{self, Ahead, STAGES};
use shoal_engine::io::{Effect, Input, ReaderId};
use shoal_engine::message::Message;
use shoal_engine::prefetch::{prefetch, prefetch_ends, prefetch_list};
use shoal_types::{PeerId, Timestamp};

use super::mail::{Coming, Event, ForNode, Mail, Op, Outbox, Posted};
use super::node::{self, Link, Node};
use super::world::World;
use crate::network::nanos;
use crate::queue::Queue;
use crate::slab::Slab;
use crate::timeline::Timeline;
use crate::trace::Trace;

/// What TCP sends again after a cut arrives so long after the mending, in nanoseconds.
const RESENT_AFTER: u64 = 200_000_000;
/// Events from one stage of prefetching to the next: enough for memory to answer.
const STAGE_EVENTS: usize = 2;
/// Events ahead of the present one at which prefetching begins.
const PREFETCHED_EVENTS: usize = STAGE_EVENTS * (STAGES - 1);

/// Planned events whose trails are kept: no fewer than are being prefetched for, and a power of two.
const TRAILS: usize = (PREFETCHED_EVENTS + 1).next_power_of_two();

/// What was found when an event was prefetched for.
#[derive(Clone, Copy, Debug, Default)]
struct Trail {
    /// The event's.
    number: usize,
    /// Where the node's connection is.
    link: Option<usize>,
    engine: ahead::Trail,
}

/// Nodes, and what happens at them. Node `n` is with shard `n % shards`, at place `n / shards`.
#[derive(Debug)]
pub(crate) struct Shard {
    /// Binary logarithm of the number of shards.
    bits: u32,
    pub(crate) nodes: Vec<Node>,
    queue: Queue<Event>,
    trails: [Cell<Trail>; TRAILS],
    inputs: Slab<Input>,
    /// Wishes being carried out; empty in between.
    effects: VecDeque<Effect>,
    messages: Slab<Box<Message>>,
    /// When the last event happened.
    pub(crate) now: u64,
    pub(crate) events: u64,
    /// Mail from every part, by its number.
    pub(crate) inbox: Vec<Vec<Posted>>,
    pub(crate) outbox: Outbox,
    pub(crate) ops: Vec<Op>,
    /// Readers of living nodes that are neither done nor failed.
    pub(crate) open_readers: usize,
    pub(crate) timeline: Timeline,
    pub(crate) trace: Trace,
    /// What must never happen and did, and when.
    pub(crate) violation: Option<(u64, String)>,
}

impl Shard {
    /// One of `2^bits` shards that exchange mail with each other and the network.
    pub(crate) fn new(bits: u32) -> Self {
        let shards = 1 << bits;
        Self {
            bits,
            nodes: Vec::new(),
            queue: Queue::new(),
            trails: Default::default(),
            inputs: Slab::new(),
            effects: VecDeque::new(),
            messages: Slab::new(),
            now: 0,
            events: 0,
            inbox: std::iter::repeat_with(Vec::new).take(shards + 1).collect(),
            outbox: Outbox::new(shards),
            ops: Vec::new(),
            open_readers: 0,
            timeline: Timeline::default(),
            trace: Trace::default(),
            violation: None,
        }
    }

    pub(crate) fn own(&mut self, node: u32) -> &mut Node {
        &mut self.nodes[(node >> self.bits) as usize]
    }

    pub(crate) fn node(&self, node: u32) -> &Node {
        &self.nodes[(node >> self.bits) as usize]
    }

    /// When something is to happen next, as far as this shard knows; `u64::MAX` when nothing is.
    pub(crate) fn next_at(&mut self) -> u64 {
        self.queue.next_at().unwrap_or(u64::MAX)
    }

    /// Runs what happens before `until`.
    pub(crate) fn run(&mut self, world: &World, until: u64) {
        self.outbox.not_before = until;
        for part in 0..self.inbox.len() {
            let mut inbox = std::mem::take(&mut self.inbox[part]);
            inbox.drain(..).for_each(|posted| self.accept(posted));
            self.inbox[part] = inbox;
        }
        self.queue.plan(until);
        for place in 0..PREFETCHED_EVENTS {
            self.prefetch(world, place);
        }
        while self.violation.is_none() {
            let Some((at, event, planned)) = self.queue.pop_before(until) else { break };
            if planned {
                // It was the last of the plan: its number is how many are left.
                self.prefetch_event::<{ STAGES - 1 }>(world, &event, self.queue.planned());
                self.prefetch(world, PREFETCHED_EVENTS - 1);
            }
            self.now = at;
            self.events += 1;
            self.happen(world, event);
        }
        self.queue.unplan();
    }

    /// Prefetches for the planned event at `place` and those before it, at distances of [`STAGE_EVENTS`], each its next stage.
    fn prefetch(&self, world: &World, place: usize) {
        // The last stage is for the event that happens next.
        const { assert!(STAGES == 7, "all stages but the last stand here") }
        self.prefetch_stage::<0>(world, place);
        self.prefetch_stage::<1>(world, place);
        self.prefetch_stage::<2>(world, place);
        self.prefetch_stage::<3>(world, place);
        self.prefetch_stage::<4>(world, place);
        self.prefetch_stage::<5>(world, place);
    }

    #[inline(always)]
    fn prefetch_stage<const STAGE: usize>(&self, world: &World, place: usize) {
        if let Some(place) = place.checked_sub(STAGE * STAGE_EVENTS)
            && let Some(event) = self.queue.ahead(place)
        {
            self.prefetch_event::<STAGE>(world, event, self.queue.planned() - 1 - place);
        }
    }

    /// Prefetches a part of what an event will look at, which is the `number`th of those that are planned, from the last on.
    #[inline]
    fn prefetch_event<const STAGE: usize>(&self, world: &World, event: &Event, number: usize) {
        let peer = |other: &u32| {
            let peer = &world.fact(*other).peer;
            if STAGE == 0 {
                prefetch(peer);
            }
            peer
        };
        let (ahead, uses) = match event {
            Event::Message { from, message, request, .. } => {
                let message = self.prefetch_message(STAGE, *message);
                if *request {
                    let piece = match message {
                        Some(Message::Request { piece, .. }) => Some(*piece),
                        _ => None,
                    };
                    let uses = node::Uses { other: Some(*from), stored: true, piece, ..Default::default() };
                    (Ahead::Request(peer(from), message), uses)
                } else {
                    (Ahead::Message(peer(from), message), node::Uses::default())
                }
            }
            Event::Sent { to, blob, .. } => {
                let digest = &world.digests[*blob as usize];
                let uses = node::Uses { other: Some(*to), stored: true, ..Default::default() };
                (Ahead::Sent(peer(to), digest), uses)
            }
            Event::Arrived(Coming { from, channel, piece, .. })
            | Event::Progress(Coming { from, channel, piece, .. }) => {
                let uses = node::Uses { other: Some(*from), arrives: true, stored: true, piece: None };
                (Ahead::Arrived(peer(from), *channel, *piece), uses)
            }
            Event::Verified { blob, piece, .. } => {
                let digest = &world.digests[*blob as usize];
                let uses = node::Uses { stored: true, piece: Some(*piece), ..Default::default() };
                (Ahead::Verified(digest, *piece), uses)
            }
            Event::Wake { .. } => (Ahead::Timeout, node::Uses::default()),
            Event::Input { .. }
            | Event::Dialed { .. }
            | Event::Linked { .. }
            | Event::Unlinked { .. }
            | Event::ReaderMoved { .. } => return,
        };
        if STAGE == 0 {
            prefetch(world.fact(event.node()));
        }
        let node = self.node(event.node());
        let place = &self.trails[number % TRAILS];
        let mut trail = if STAGE == 0 { Trail { number, ..Trail::default() } } else { place.get() };
        debug_assert_eq!(trail.number, number);
        node.prefetch(STAGE, &uses, &mut trail.link);
        node.engine.prefetch(STAGE, &ahead, &mut trail.engine);
        place.set(trail);
    }

    /// Prefetches what comes with a message, and returns it once it is there.
    fn prefetch_message(&self, stage: usize, message: u32) -> Option<&Message> {
        if stage == 0 {
            self.messages.prefetch(message);
            return None;
        }
        let message: &Message = self.messages.get(message)?;
        match (stage, message) {
            (1, _) => {
                prefetch_ends(message);
                return None;
            }
            (2, Message::Have { runs, .. }) => prefetch_list(runs, 1),
            _ => {}
        }
        Some(message)
    }

    /// Takes in mail.
    pub(crate) fn accept(&mut self, posted: Posted) {
        let event = match posted.mail {
            Mail::Event(event) => event,
            Mail::Input(mail) => {
                let ForNode { node, life, input } = *mail;
                Event::Input { node, life, input: self.inputs.insert(input) }
            }
            Mail::Message { node, from, serial, request, message } => {
                Event::Message { node, from, serial, request, message: self.messages.insert(message) }
            }
        };
        self.queue.push(posted.at, event);
    }

    /// Arranges an event at one of the own nodes.
    pub(crate) fn arrange(&mut self, at: u64, event: Event) {
        self.queue.push(at, event);
    }

    /// Arranges an input of the local driver.
    pub(crate) fn answer(&mut self, world: &World, node: u32, at: u64, input: Input) {
        let input = self.inputs.insert(input);
        self.queue.push(at, Event::Input { node, life: world.fact(node).life, input });
    }

    pub(crate) fn time(&self) -> Timestamp {
        Timestamp::from_start(std::time::Duration::from_nanos(self.now))
    }

    pub(crate) fn violate(&mut self, what: impl FnOnce() -> String) {
        let now = self.now;
        self.violation.get_or_insert_with(|| (now, what()));
    }

    fn happen(&mut self, world: &World, event: Event) {
        if let Event::Dialed { node, from, life } = event {
            return self.dialed(world, node, from, life);
        }
        if !self.is_for_somebody(world, &event) {
            return self.lost(event);
        }
        let node = event.node();
        if world.fact(node).stopped {
            return self.own(node).missed.push_back(event);
        }
        match event {
            Event::Input { input, .. } => {
                if let Some(input) = self.inputs.take(input) {
                    self.deliver(world, node, input);
                }
            }
            Event::Wake { .. } => self.wake(world, node),
            Event::Message { from, serial, message, .. } => {
                let now = self.now;
                let own = self.own(node);
                if own.must_look(now) {
                    match own.link_mut(from, serial) {
                        Some(link) if link.cut => return link.delayed.push(event),
                        Some(_) => {}
                        None => return self.lost(event),
                    }
                }
                if let Some(message) = self.messages.take(message) {
                    let peer = world.fact(from).peer;
                    self.deliver(world, node, Input::Message { peer, message: *message });
                }
            }
            Event::Linked { other, connection, serial, .. } => {
                self.linked(world, node, other, connection, serial);
            }
            Event::Unlinked { other, serial, .. } => {
                if self.unlink(node, other, serial, self.now + world.in_flight_max()) {
                    self.deliver(world, node, Input::PeerDisconnected { peer: world.fact(other).peer });
                }
            }
            Event::Sent { to, serial, blob, piece, bytes, .. } => {
                let truth = &world.blobs[blob as usize].metainfo;
                if self.own(node).link_mut(to, serial).is_some()
                    && let Some(piece) = truth.layout().piece(piece)
                {
                    let (peer, digest) = (world.fact(to).peer, truth.digest());
                    self.deliver(world, node, Input::PieceSent { peer, digest, piece, bytes });
                }
            }
            Event::Progress(coming) => {
                let Coming { from, serial, channel, piece, bytes, .. } = coming;
                let link = self.own(node).link_mut(from, serial);
                if link.is_some_and(|link| link.expected.contains(&(channel, piece))) {
                    let (peer, since_first) = (world.fact(from).peer, coming.since_first());
                    let input = Input::PieceProgress { peer, channel, piece, bytes, since_first };
                    self.deliver(world, node, input);
                }
            }
            Event::Arrived(coming) => self.arrived(world, coming),
            Event::Verified { blob, piece, .. } => self.verified(world, node, blob, piece),
            Event::ReaderMoved { reader, offset, .. } => {
                self.deliver(world, node, Input::ReaderMoved { reader: ReaderId(reader.into()), offset });
            }
            Event::Dialed { .. } => {}
        }
    }

    /// Whether the process that an event is meant for still lives.
    fn is_for_somebody(&self, world: &World, event: &Event) -> bool {
        let fact = world.fact(event.node());
        match *event {
            Event::Input { life, .. } | Event::Verified { life, .. } | Event::ReaderMoved { life, .. } => {
                fact.alive && fact.life == life
            }
            _ => fact.alive,
        }
    }

    /// Frees what an event that reaches nobody carried.
    pub(crate) fn lost(&mut self, event: Event) {
        match event {
            Event::Input { input, .. } => drop(self.inputs.take(input)),
            Event::Message { message, .. } => drop(self.messages.take(message)),
            _ => {}
        }
    }

    fn wake(&mut self, world: &World, node: u32) {
        let (now, time) = (self.now, self.time());
        let own = self.own(node);
        if own.wake > now {
            // It was arranged before an earlier one was, and what that one was for is done.
            debug_assert!(own.engine.poll_timeout().is_none_or(|at| at > time));
            return;
        }
        own.wake = u64::MAX;
        if own.engine.poll_timeout().is_some_and(|at| at <= time) {
            self.lend(node);
            self.own(node).engine.handle_timeout(time);
            self.carry_out(world, node);
        } else {
            self.arrange_wake(node);
        }
    }

    #[inline]
    pub(crate) fn deliver(&mut self, world: &World, node: u32, input: Input) {
        let now = self.time();
        self.lend(node);
        self.own(node).engine.handle_input(now, input);
        self.carry_out(world, node);
    }

    /// Lends an engine the buffer for wishes. All engines of the shard share one, which stays in the processor's caches.
    fn lend(&mut self, node: u32) {
        self.nodes[(node >> self.bits) as usize].engine.exchange_effects(&mut self.effects);
        debug_assert!(self.effects.is_empty(), "wishes that nobody carried out");
    }

    /// Takes the buffer back, and carries out what the engine wishes.
    fn carry_out(&mut self, world: &World, node: u32) {
        let now = self.now;
        let mut effects = std::mem::take(&mut self.effects);
        let own = self.own(node);
        own.engine.exchange_effects(&mut effects);
        let mut hash = own.trace_hash;
        // In place: they are large, and to read at once what was just written in parts is slow.
        for effect in &mut effects {
            self.trace.effect(&mut hash, now, node, effect);
            self.effect(world, node, effect);
        }
        effects.clear();
        self.effects = effects;
        let limit = world.config.engine.buffer_bytes_max;
        let own = self.own(node);
        own.trace_hash = hash;
        if own.engine.buffered_bytes() > limit {
            return self.violate(|| format!("node {node} buffers more than {limit} bytes"));
        }
        self.arrange_wake(node);
    }

    /// Arranges that the engine is woken when it wants to be.
    fn arrange_wake(&mut self, node: u32) {
        let now = self.now;
        let own = self.own(node);
        if let Some(at) = own.engine.poll_timeout() {
            let at = nanos(at.since_start()).max(now);
            if at < own.wake {
                own.wake = at;
                self.queue.push(at, Event::Wake { node });
            }
        }
    }

    /// Dials a peer. TCP's handshake takes a round trip, and the accepting process meets the dial after half of it.
    pub(crate) fn connect(&mut self, world: &World, from: u32, peer: PeerId) {
        let timeout = self.now + nanos(world.config.connect_timeout);
        let Some(to) = world.id_of(&peer).filter(|to| world.reaches(from, *to)) else {
            return self.answer(world, from, timeout, Input::ConnectFailed { peer });
        };
        let delay = world.delay(from, to);
        if self.own(from).bans.contains(&to) {
            return self.answer(world, from, self.now + 2 * delay, Input::ConnectFailed { peer });
        }
        let dialed = Event::Dialed { node: to, from, life: world.fact(from).life };
        self.outbox.post(to, self.now + delay, Mail::Event(dialed));
    }

    /// Somebody dials. After TCP's handshake TLS 1.3 takes another round trip, and processor time of this side.
    fn dialed(&mut self, world: &World, node: u32, from: u32, life: u32) {
        let fact = world.fact(node);
        let delay = world.delay(from, node);
        let failed = |at: u64| (at, Mail::input(from, life, Input::ConnectFailed { peer: fact.peer }));
        let (at, mail) = if !world.reaches(from, node) || fact.stopped {
            failed(self.now + nanos(world.config.connect_timeout).saturating_sub(delay))
        } else if !fact.alive || self.own(node).bans.contains(&from) {
            failed(self.now + delay)
        } else {
            let work = nanos(world.config.handshake);
            let ready = self.now + 2 * delay;
            let own = self.own(node);
            own.accept_free = own.accept_free.max(ready) + work / u64::from(own.spec.cores.max(1));
            let at = own.accept_free.max(ready + work) + delay;
            return self.ops.push(Op::Open { from, life, to: node, at });
        };
        self.outbox.post(from, at, mail);
    }

    /// A connection is open.
    fn linked(&mut self, world: &World, node: u32, other: u32, connection: u32, serial: u32) {
        let cut = !world.reaches(node, other);
        let delay = world.delay(node, other);
        let late = self.now + world.in_flight_max();
        match self.node(node).link(other) {
            Some(link) if link.serial == serial => {}
            known => {
                let before = known.map(|link| link.serial);
                if before.is_some_and(|serial| self.unlink(node, other, serial, late)) {
                    self.deliver(world, node, Input::PeerDisconnected { peer: world.fact(other).peer });
                }
                self.own(node).add_link(other, Link::new(connection, serial, delay, cut));
            }
        }
        let hint = world.hint(other);
        let roles = world.fact(other).roles;
        let input =
            Input::PeerConnected { peer: hint.peer, zone: hint.zone, roles, endpoints: hint.endpoints };
        self.deliver(world, node, input);
    }

    /// Takes a link out, if it is still that connection's, with what it would have carried later. What is on the way over it comes
    /// until `late`.
    pub(crate) fn unlink(&mut self, node: u32, other: u32, serial: u32, late: u64) -> bool {
        let Some(link) = self.own(node).remove_link(other, serial, late) else { return false };
        link.delayed.into_iter().for_each(|event| self.lost(event));
        true
    }

    /// Says something to a peer.
    pub(crate) fn send(&mut self, world: &World, node: u32, peer: &PeerId, message: &mut Message) {
        let Some(to) = world.id_of(peer) else { return };
        let now = self.now;
        let own = self.own(node);
        let Some(link) = own.link(to) else { return };
        let (serial, at) = (link.serial, now + link.delay);
        own.tally.messages += 1;
        own.tally.control_bytes += crate::trace::wire_bytes(message);
        let request = matches!(message, Message::Request { .. });
        // What is left in its place is of no use to anybody.
        let message = Box::new(std::mem::replace(message, Message::Leave { to: 0 }));
        self.outbox.post(to, at, Mail::Message { node: to, from: node, serial, request, message });
    }

    /// Closes a connection; the network tells the other end.
    pub(crate) fn hang_up(&mut self, world: &World, node: u32, other: u32) {
        let now = self.now;
        let Some(link) = self.node(node).link(other) else { return };
        let (connection, serial) = (link.connection, link.serial);
        self.unlink(node, other, serial, now + world.in_flight_max());
        self.ops.push(Op::HangUp { connection, serial, at: now });
        self.answer(world, node, now, Input::PeerDisconnected { peer: world.fact(other).peer });
    }

    /// Cuts a node's link, or mends it: then TCP sends again what was lost.
    pub(crate) fn set_cut(&mut self, now: u64, node: u32, other: u32, serial: u32, cut: bool) {
        let own = self.own(node);
        own.always_look();
        let Some(link) = own.link_mut(other, serial) else { return };
        link.cut = cut;
        let at = now + link.delay + RESENT_AFTER;
        if !cut {
            for event in std::mem::take(&mut link.delayed) {
                self.queue.push(at, event);
            }
        }
    }
}
