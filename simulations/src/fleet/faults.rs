//! What goes wrong: processes that die or hang, networks that are cut.

use std::time::Duration;

use super::{Event, Fleet, NodeId};
use crate::network::nanos;

/// How a cut shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Connections end at once, as when a firewall resets them.
    Reset,
    /// Packets vanish; connections end when they have been silent for too long.
    Silent,
}

impl Fleet {
    /// Kills a process: its connections and readers end, its disk stays.
    pub fn kill(&mut self, node: NodeId) {
        if !self.nodes[node].alive {
            return;
        }
        self.die(node);
        let links: Vec<u32> = self.nodes[node].links.iter().map(|(_, connection)| *connection).collect();
        for connection in links {
            self.hang_up(connection, None);
        }
    }

    /// A machine vanishes: its peers notice only its silence.
    pub fn vanish(&mut self, node: NodeId) {
        if !self.nodes[node].alive {
            return;
        }
        self.die(node);
        self.parts_made += 1;
        self.parts[node] = self.parts_made;
        self.recut(Cut::Silent);
    }

    fn die(&mut self, node: NodeId) {
        for reader in 0..self.nodes[node].readers.len() {
            self.end_reader(node as u32, shoal_engine::io::ReaderId(reader as u64));
        }
        self.lives[node] = self.lives[node].wrapping_add(1);
        let now = self.now;
        let own = &mut self.nodes[node];
        own.alive = false;
        own.stopped = false;
        own.died = now;
        own.buffers.clear();
        let missed = std::mem::take(&mut own.missed);
        for event in missed {
            self.lost(event);
        }
    }

    /// Starts a killed node again with what its disk holds.
    pub fn restart(&mut self, node: NodeId) {
        let links: Vec<u32> = self.nodes[node].links.iter().map(|(_, connection)| *connection).collect();
        for connection in links {
            self.hang_up(connection, None);
        }
        if !self.nodes[node].alive && self.parts[node] != 0 {
            self.parts[node] = 0;
            self.recut(Cut::Silent);
        }
        let engine = self.engine(node as u32, self.nodes[node].peer, &self.nodes[node].spec);
        let now = self.now;
        let own = &mut self.nodes[node];
        own.engine = engine;
        own.alive = true;
        own.wake = u64::MAX;
        own.accept_free = now;
        own.disk_free = now;
        own.backend_free = now;
        // The running digest is not kept over a restart.
        own.disk.values_mut().filter(|held| !held.complete).for_each(|held| held.hashed = 0);
    }

    /// Stops a process as SIGSTOP does.
    pub fn stop(&mut self, node: NodeId) {
        self.nodes[node].stopped = true;
        self.hold_flows(node as u32);
    }

    /// Continues a stopped process: what it missed reaches it now.
    pub fn resume(&mut self, node: NodeId) {
        self.nodes[node].stopped = false;
        for missed in std::mem::take(&mut self.nodes[node].missed) {
            self.queue.push(self.now, missed);
        }
        self.queue.push(self.now, Event::Wake { node: node as u32 });
        self.hold_flows(node as u32);
    }

    /// Cuts the network: nodes in `part` reach only each other.
    pub fn partition(&mut self, part: &[NodeId], how: Cut) {
        self.parts_made += 1;
        for node in part {
            self.parts[*node] = self.parts_made;
        }
        self.recut(how);
    }

    /// Cuts two zones off each other, or mends that.
    pub fn cut_zones(&mut self, one: &shoal_types::Zone, other: &shoal_types::Zone, cut: Option<Cut>) {
        let (a, b) = (self.network.zone(one), self.network.zone(other));
        let pair = (a.min(b), a.max(b));
        if cut.is_some() {
            self.cut_zones.insert(pair);
        } else {
            self.cut_zones.remove(&pair);
        }
        self.recut(cut.unwrap_or(Cut::Silent));
    }

    /// Mends the network.
    pub fn heal(&mut self) {
        self.parts.fill(0);
        self.cut_zones.clear();
        self.recut(Cut::Silent);
    }

    /// Looks anew at which connections carry.
    fn recut(&mut self, how: Cut) {
        for number in 0..self.connections.len() {
            let connection = &self.connections[number];
            let [a, b] = connection.ends;
            if !connection.open {
                continue;
            }
            let cut = !self.reaches(a, b);
            let number = number as u32;
            if cut && how == Cut::Reset {
                self.hang_up(number, None);
            } else if cut != self.connections[number as usize].cut {
                self.set_cut(number, cut);
            }
        }
    }

    fn set_cut(&mut self, number: u32, cut: bool) {
        let silence = self.now + nanos(self.config.silence_max);
        let connection = &mut self.connections[number as usize];
        connection.cut = cut;
        let serial = connection.serial;
        if cut {
            self.queue.push(silence, Event::Silence { connection: number, serial });
        } else {
            // TCP sends again what was lost, after a while.
            let at = self.now + connection.delay + nanos(Duration::from_millis(200));
            for event in std::mem::take(&mut connection.delayed) {
                self.queue.push(at, event);
            }
        }
        self.hold_connection(number);
    }

    /// A connection may have been silent for too long.
    pub(super) fn silence_over(&mut self, number: u32, serial: u32) {
        let connection = &self.connections[number as usize];
        if connection.serial == serial && connection.cut {
            self.hang_up(number, None);
        }
    }

    fn hold_flows(&mut self, node: u32) {
        let links: Vec<u32> = self.nodes[node as usize].links.iter().map(|(_, number)| *number).collect();
        for number in links {
            self.hold_connection(number);
        }
    }

    /// Lets a connection's flows go on, or holds them, as its ends and the network allow.
    fn hold_connection(&mut self, number: u32) {
        let connection = &self.connections[number as usize];
        let [a, b] = connection.ends;
        let held = connection.cut || self.nodes[a as usize].stopped || self.nodes[b as usize].stopped;
        let flows: Vec<_> =
            connection.ways.iter().filter(|way| way.begun).filter_map(|way| way.flow).collect();
        for flow in flows {
            if held && self.network.is_active(flow) {
                self.network.suspend(flow, self.now);
            } else if !held && !self.network.is_active(flow) {
                let mut due = std::mem::take(&mut self.due);
                let ticking = self.network.next_tick.is_some();
                self.network.resume(flow, self.now, &mut due);
                self.arrange(&mut due, ticking);
                self.due = due;
            }
        }
    }
}
