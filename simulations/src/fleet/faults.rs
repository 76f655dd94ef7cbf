//! What goes wrong: processes that die or hang, networks that are cut. All of it happens between two strides.

use shoal_engine::io::ReaderId;
use shoal_types::Zone;

use super::mail::Event;
use super::{Fleet, NodeId};
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
        if !self.is_dead(node) {
            self.die(node);
            self.hang_up_all(node);
        }
    }

    /// A machine vanishes: its peers notice only its silence.
    pub fn vanish(&mut self, node: NodeId) {
        if !self.is_dead(node) {
            self.die(node);
            self.parts_made += 1;
            self.world.fact_mut(node as u32).part = self.parts_made;
            self.recut(Cut::Silent);
        }
    }

    /// Ends every connection of a node that does not run. The others hear of it.
    fn hang_up_all(&mut self, node: NodeId) {
        let (now, id) = (self.now, node as u32);
        self.node_mut(node).always_look();
        for (other, _, serial) in self.node(node).connections() {
            self.shard_mut(node).unlink(id, other, serial, now);
        }
        // The network may know of some that the node had not heard of yet.
        for number in 0..self.wire.connections.len() {
            if self.wire.connections[number].ends.contains(&id) {
                self.wire.hang_up(number as u32, now);
            }
        }
    }

    fn die(&mut self, node: NodeId) {
        for reader in 0..self.node(node).readers.len() {
            self.end_reader(node, ReaderId(reader as u64));
        }
        let now = self.now;
        let fact = self.world.fact_mut(node as u32);
        fact.life = fact.life.wrapping_add(1);
        fact.alive = false;
        fact.stopped = false;
        fact.died = now;
        let own = self.node_mut(node);
        own.buffers.clear();
        let missed = std::mem::take(&mut own.missed);
        let shard = self.shard_mut(node);
        missed.into_iter().for_each(|event| shard.lost(event));
    }

    /// Starts a killed node again with what its disk holds.
    pub fn restart(&mut self, node: NodeId) {
        self.hang_up_all(node);
        if self.is_dead(node) && self.world.fact(node as u32).part != 0 {
            self.world.fact_mut(node as u32).part = 0;
            self.recut(Cut::Silent);
        }
        let engine = self.engine(node as u32, &self.node(node).spec);
        let now = self.now;
        self.world.fact_mut(node as u32).alive = true;
        let own = self.node_mut(node);
        own.engine = engine;
        own.wake = u64::MAX;
        own.accept_free = now;
        own.disk_free = now;
        own.backend_free = now;
        // The running digest is not kept over a restart.
        own.disk.values_mut().filter(|held| !held.complete).for_each(|held| held.hashed = 0);
    }

    /// Stops a process as SIGSTOP does.
    pub fn stop(&mut self, node: NodeId) {
        self.world.fact_mut(node as u32).stopped = true;
        self.hold_flows(node);
    }

    /// Continues a stopped process: what it missed reaches it now.
    pub fn resume(&mut self, node: NodeId) {
        let now = self.now;
        self.world.fact_mut(node as u32).stopped = false;
        let own = self.node_mut(node);
        own.always_look();
        let missed = std::mem::take(&mut own.missed);
        let shard = self.shard_mut(node);
        missed.into_iter().for_each(|event| shard.arrange(now, event));
        shard.arrange(now, Event::Wake { node: node as u32 });
        self.hold_flows(node);
    }

    fn hold_flows(&mut self, node: NodeId) {
        for (_, connection, serial) in self.node(node).connections() {
            self.wire.hold(&self.world, connection, serial);
        }
    }

    /// Cuts the network: nodes in `part` reach only each other.
    pub fn partition(&mut self, part: &[NodeId], how: Cut) {
        self.parts_made += 1;
        for node in part {
            self.world.fact_mut(*node as u32).part = self.parts_made;
        }
        self.recut(how);
    }

    /// Cuts two zones off each other, or mends that.
    pub fn cut_zones(&mut self, one: &Zone, other: &Zone, cut: Option<Cut>) {
        let (a, b) = (self.zone(one), self.zone(other));
        let pair = (a.min(b), a.max(b));
        if cut.is_some() {
            self.world.cut_zones.insert(pair);
        } else {
            self.world.cut_zones.remove(&pair);
        }
        self.recut(cut.unwrap_or(Cut::Silent));
    }

    /// Mends the network.
    pub fn heal(&mut self) {
        self.world.facts.iter_mut().for_each(|fact| fact.part = 0);
        self.world.cut_zones.clear();
        self.recut(Cut::Silent);
    }

    /// Looks anew at which connections carry.
    fn recut(&mut self, how: Cut) {
        let silence = self.now + nanos(self.world.config.silence_max);
        for number in 0..self.wire.connections.len() {
            let connection = &self.wire.connections[number];
            let ([a, b], serial) = (connection.ends, connection.serial);
            let cut = !self.world.reaches(a, b);
            if !connection.open || cut == connection.cut && how == Cut::Silent {
                continue;
            }
            let number = number as u32;
            if cut && how == Cut::Reset {
                self.wire.hang_up(number, self.now);
            } else if cut != self.wire.connections[number as usize].cut {
                self.wire.set_cut(number, cut, silence);
                for (node, other) in [(a, b), (b, a)] {
                    let now = self.now;
                    self.shard_mut(node as NodeId).set_cut(now, node, other, serial, cut);
                }
                self.wire.hold(&self.world, number, serial);
            }
        }
    }
}
