//! Connections: how they begin, carry and end.

use std::collections::VecDeque;

use shoal_engine::io::Input;
use shoal_engine::message::{Message, PeerHint};
use shoal_types::{Endpoint, PeerId};

use super::{Event, Fleet};
use crate::network::{FlowId, nanos};
use crate::trace::wire_bytes;

/// A piece on its way out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sending {
    pub(crate) channel: u32,
    pub(crate) blob: u32,
    pub(crate) piece: u32,
    pub(crate) bytes: u32,
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub(crate) struct Way {
    /// Pieces to send, the first of which is being sent once the flow is active.
    pub(crate) queue: VecDeque<Sending>,
    /// A piece is read from the disk before it is sent.
    pub(crate) reading: bool,
    /// A piece has begun and not ended.
    pub(crate) begun: bool,
    pub(crate) flow: Option<FlowId>,
    /// What the receiver expects: its channel and the piece.
    pub(crate) expected: Vec<(u32, u32)>,
}

#[derive(Debug)]
pub(crate) struct Connection {
    /// Changes when the place is used again or the connection ends.
    pub(crate) serial: u32,
    pub(crate) ends: [u32; 2],
    pub(crate) open: bool,
    /// The network between the ends is cut.
    pub(crate) cut: bool,
    /// What was under way when the network was cut, and TCP sends again.
    pub(crate) delayed: Vec<Event>,
    /// One-way delay in nanoseconds.
    pub(crate) delay: u64,
    /// Way `i` is from end `i`.
    pub(crate) ways: [Way; 2],
}

impl Connection {
    pub(crate) fn other(&self, node: u32) -> u32 {
        if self.ends[0] == node { self.ends[1] } else { self.ends[0] }
    }

    /// The way out of `node`.
    pub(crate) fn way(&self, node: u32) -> u8 {
        u8::from(self.ends[0] != node)
    }
}

impl Fleet {
    /// Whether packets get from one node to the other.
    pub(super) fn reaches(&self, a: u32, b: u32) -> bool {
        let (one, other) = (self.nodes[a as usize].zone, self.nodes[b as usize].zone);
        self.parts[a as usize] == self.parts[b as usize]
            && !self.cut_zones.contains(&(one.min(other), one.max(other)))
    }

    fn delay(&mut self, a: u32, b: u32) -> u64 {
        let (from, to) = (self.nodes[a as usize].zone, self.nodes[b as usize].zone);
        self.network.delay(from, to)
    }

    pub(super) fn connect(&mut self, from: u32, peer: PeerId) {
        let timeout = self.now + nanos(self.config.connect_timeout);
        let Some(to) = self.id_of(&peer).filter(|to| self.reaches(from, *to)) else {
            return self.answer(from, timeout, Input::ConnectFailed { peer });
        };
        // TCP's handshake: a round trip. The accepting process meets the dial after that.
        let delay = self.delay(from, to);
        self.queue.push(self.now + 2 * delay, Event::Dialed { from, to });
    }

    /// TCP's handshake is over; TLS 1.3 takes another round trip and processor time of the accepting side.
    pub(super) fn dialed(&mut self, from: u32, to: u32) {
        let peer = self.nodes[to as usize].peer;
        let delay = self.delay(from, to);
        let timeout = self.now + nanos(self.config.connect_timeout);
        let refused = !self.nodes[to as usize].alive
            || self.bans.contains(&(from, to))
            || self.bans.contains(&(to, from));
        if !self.reaches(from, to) || self.nodes[to as usize].stopped {
            return self.answer(from, timeout, Input::ConnectFailed { peer });
        }
        if refused {
            return self.answer(from, self.now, Input::ConnectFailed { peer });
        }
        let work = nanos(self.config.handshake);
        let own = &mut self.nodes[to as usize];
        own.accept_free = own.accept_free.max(self.now + delay) + work / u64::from(own.spec.cores.max(1));
        let at = own.accept_free.max(self.now + delay + work) + delay;
        self.queue.push(at, Event::Connected { from, to });
    }

    pub(super) fn connected(&mut self, from: u32, to: u32) {
        let life = &self.nodes[to as usize];
        if !life.alive || life.stopped || !self.reaches(from, to) {
            let peer = life.peer;
            return self.deliver(from, Input::ConnectFailed { peer });
        }
        if self.nodes[from as usize].link(to).is_none() {
            self.open(from, to);
        }
        for (own, other) in [(from, to), (to, from)] {
            let hint = self.hint(other);
            let roles = self.nodes[other as usize].spec.roles();
            let peer = hint.peer;
            let input = Input::PeerConnected { peer, zone: hint.zone, roles, endpoints: hint.endpoints };
            self.deliver(own, input);
        }
    }

    fn open(&mut self, a: u32, b: u32) {
        let delay = self.delay(a, b);
        let place = self.unused.pop();
        let serial = place.map_or(0, |place| self.connections[place as usize].serial);
        let fresh = Connection {
            serial,
            ends: [a, b],
            open: true,
            cut: false,
            delayed: Vec::new(),
            delay,
            ways: [Way::default(), Way::default()],
        };
        let number = match place {
            Some(place) => {
                self.connections[place as usize] = fresh;
                place
            }
            None => {
                self.connections.push(fresh);
                u32::try_from(self.connections.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.nodes[a as usize].add_link(b, number);
        self.nodes[b as usize].add_link(a, number);
    }

    /// Ends a connection. An end that lives and can be reached hears of it: `first` at once, the other later.
    pub(super) fn hang_up(&mut self, number: u32, first: Option<u32>) {
        let connection = &mut self.connections[number as usize];
        if !connection.open {
            return;
        }
        connection.open = false;
        connection.serial = connection.serial.wrapping_add(1);
        let (ends, delay) = (connection.ends, connection.delay);
        let delayed = std::mem::take(&mut connection.delayed);
        let ways = std::mem::take(&mut connection.ways);
        for (from, way) in ends.into_iter().zip(ways) {
            let Some(flow) = way.flow else { continue };
            if way.begun {
                self.nodes[from as usize].tally.sent_bytes += self.network.carried(flow, self.now);
            }
            self.network.remove(flow, self.now);
        }
        for event in delayed {
            self.lost(event);
        }
        for (own, other) in [(ends[0], ends[1]), (ends[1], ends[0])] {
            self.nodes[own as usize].remove_link(other);
            if self.nodes[own as usize].alive {
                let peer = self.nodes[other as usize].peer;
                let wait = if first == Some(own) { 0 } else { delay };
                self.answer(own, self.now + wait, Input::PeerDisconnected { peer });
            }
        }
        self.unused.push(number);
    }

    pub(super) fn send(&mut self, from: u32, peer: PeerId, message: Message) {
        let Some(to) = self.id_of(&peer) else { return };
        let own = &mut self.nodes[from as usize];
        let Some(number) = own.link(to) else { return };
        own.tally.messages += 1;
        own.tally.control_bytes += wire_bytes(&message);
        let connection = &self.connections[number as usize];
        let (serial, at) = (connection.serial, self.now + connection.delay);
        let message = self.messages.insert(message);
        self.queue.push(at, Event::Message { to, connection: number, serial, message });
    }

    pub(super) fn hint(&self, node: u32) -> PeerHint {
        let own = &self.nodes[node as usize];
        let ip = std::net::IpAddr::from(node.to_be_bytes());
        PeerHint {
            peer: own.peer,
            zone: own.spec.zone.clone(),
            endpoints: vec![Endpoint::from_ip(ip, 4002)],
            complete: false,
        }
    }
}
