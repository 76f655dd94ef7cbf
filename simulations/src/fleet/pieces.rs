//! Pieces: from the sender's disk over a flow to the receiver's disk.

use shoal_engine::io::{BufferId, Input};
use shoal_engine::message::Channel;
use shoal_types::{Digest, PeerId, PieceIndex};

use super::links::Sending;
use super::node::time_of;
use super::{Event, Fleet};
use crate::network::{Milestone, nanos};

impl Fleet {
    pub(super) fn send_piece(
        &mut self,
        node: u32,
        peer: PeerId,
        channel: Channel,
        digest: Digest,
        piece: PieceIndex,
    ) {
        let Some(number) = self.id_of(&peer).and_then(|to| self.nodes[node as usize].link(to)) else {
            return;
        };
        let Some(blob) = self.by_digest.get(&digest).copied() else { return };
        let held = self.nodes[node as usize].disk.get(&blob);
        if !held.is_some_and(|held| held.pieces.contains(piece)) {
            return self
                .violate(|| format!("node {node} serves piece {} that it has not verified", piece.get()));
        }
        let bytes = held.map_or(0, |held| held.metainfo.layout().len_of(piece));
        let connection = &mut self.connections[number as usize];
        let way = connection.way(node);
        connection.ways[way as usize].queue.push_back(Sending { channel, blob, piece: piece.get(), bytes });
        self.read_ahead(number, way, false);
    }

    /// Begins the next piece of an idle way: it is read first. Behind another piece it is read meanwhile.
    fn read_ahead(&mut self, number: u32, way: u8, read: bool) {
        let connection = &mut self.connections[number as usize];
        let (serial, from) = (connection.serial, connection.ends[way as usize]);
        let own = &mut connection.ways[way as usize];
        let Some(next) = own.queue.front() else { return };
        if own.reading || own.begun {
            return;
        }
        own.reading = true;
        let disk = &self.nodes[from as usize].spec.disk;
        let time = nanos(disk.delay) + time_of(next.bytes.into(), disk.read_bytes_per_sec);
        if read {
            self.begin(number, serial, way);
        } else {
            self.queue.push(self.now + time, Event::Begin { connection: number, serial, way });
        }
    }

    /// A piece is read, and goes on its way.
    pub(super) fn begin(&mut self, number: u32, serial: u32, way: u8) {
        let connection = &mut self.connections[number as usize];
        if connection.serial != serial {
            return;
        }
        let (from, to) = (connection.ends[way as usize], connection.ends[1 - way as usize]);
        let own = &mut connection.ways[way as usize];
        own.reading = false;
        let Some(next) = own.queue.front() else { return };
        let bytes = next.bytes;
        own.begun = true;
        let flow = match own.flow {
            Some(flow) => flow,
            None => {
                let (a, b) = (&self.nodes[from as usize], &self.nodes[to as usize]);
                let flow = self.network.flow(number << 1 | u32::from(way), a.up, b.down, a.zone, b.zone);
                own.flow = Some(flow);
                flow
            }
        };
        let held_up = connection.cut || self.nodes[from as usize].stopped || self.nodes[to as usize].stopped;
        let mut due = std::mem::take(&mut self.due);
        let ticking = self.network.next_tick.is_some();
        self.network.carry(flow, self.now, bytes, &mut due);
        self.arrange(&mut due, ticking);
        self.due = due;
        if held_up {
            self.network.suspend(flow, self.now);
        }
    }

    /// Puts milestones, and the next setting of rates, into the queue.
    pub(super) fn arrange(&mut self, due: &mut Vec<Milestone>, ticking: bool) {
        if !ticking && let Some(at) = self.network.next_tick {
            self.queue.push(at, Event::Rebalance);
        }
        for milestone in due.drain(..) {
            self.queue.push(milestone.at, Event::Reached(milestone));
        }
    }

    pub(super) fn rebalance(&mut self) {
        let mut due = std::mem::take(&mut self.due);
        self.network.rebalance(self.now, &mut due);
        self.arrange(&mut due, false);
        self.due = due;
    }

    /// A flow has carried its piece, or part of it.
    pub(super) fn reached(&mut self, milestone: Milestone) {
        let Some(owner) = self.network.owner(milestone.flow, milestone.serial) else { return };
        let (number, way) = (owner >> 1, (owner & 1) as u8);
        let connection = &mut self.connections[number as usize];
        let (from, to, serial) =
            (connection.ends[way as usize], connection.ends[1 - way as usize], connection.serial);
        let delay = connection.delay;
        let own = &mut connection.ways[way as usize];
        let Some(Sending { channel, piece, bytes, blob }) = own.queue.front().copied() else { return };
        if !milestone.whole {
            let fresh = self.network.tell(milestone.flow, self.now);
            let expected = own.expected.contains(&(channel, piece));
            if expected && fresh > 0 && !self.nodes[to as usize].stopped {
                let peer = self.nodes[from as usize].peer;
                self.deliver(to, Input::PieceProgress { peer, channel, piece, bytes: fresh });
            }
            return;
        }
        own.queue.pop_front();
        own.begun = false;
        self.nodes[from as usize].tally.sent_bytes += u64::from(bytes);
        let arrived = Event::Arrived { connection: number, serial, way, channel, piece, bytes };
        self.queue.push(self.now + delay, arrived);
        if self.connections[number as usize].ways[way as usize].queue.is_empty() {
            self.network.suspend(milestone.flow, self.now);
        } else {
            self.read_ahead(number, way, true);
        }
        let peer = self.nodes[to as usize].peer;
        let truth = &self.blobs[blob as usize].metainfo;
        let Some(piece) = truth.layout().piece(piece) else { return };
        self.deliver(from, Input::PieceSent { peer, digest: truth.digest(), piece, bytes });
    }

    /// Takes a piece back that has not begun.
    pub(super) fn cancel_send(&mut self, node: u32, peer: PeerId, digest: Digest, piece: PieceIndex) {
        let Some(number) = self.id_of(&peer).and_then(|to| self.nodes[node as usize].link(to)) else {
            return;
        };
        let Some(blob) = self.by_digest.get(&digest).copied() else { return };
        let connection = &mut self.connections[number as usize];
        let way = connection.way(node);
        let own = &mut connection.ways[way as usize];
        let first = usize::from(own.begun || own.reading);
        let waiting = |sending: &Sending| sending.blob == blob && sending.piece == piece.get();
        if let Some(at) = own.queue.iter().skip(first).position(waiting) {
            own.queue.remove(at + first);
            self.answer(node, self.now, Input::PieceSent { peer, digest, piece, bytes: 0 });
        }
    }

    /// The last byte of a piece is there.
    pub(super) fn arrived(&mut self, number: u32, way: u8, channel: u32, piece: u32, bytes: u32) {
        let connection = &mut self.connections[number as usize];
        let (from, to) = (connection.ends[way as usize], connection.ends[1 - way as usize]);
        let expected = &mut connection.ways[way as usize].expected;
        let Some(at) = expected.iter().position(|known| *known == (channel, piece)) else {
            self.nodes[to as usize].tally.wasted_bytes += u64::from(bytes);
            return;
        };
        expected.swap_remove(at);
        let (peer, good) = (self.nodes[from as usize].peer, !self.nodes[from as usize].spec.corrupt);
        let own = &mut self.nodes[to as usize];
        own.buffers_made += 1;
        let buffer = own.buffers_made;
        own.buffers.push((buffer, good));
        self.deliver(to, Input::PieceArrived { peer, channel, piece, buffer: BufferId(buffer) });
    }

    fn take_buffer(&mut self, node: u32, buffer: BufferId) -> Option<bool> {
        let buffers = &mut self.nodes[node as usize].buffers;
        let at = buffers.iter().position(|(known, _)| *known == buffer.0)?;
        Some(buffers.swap_remove(at).1)
    }

    pub(super) fn drop_buffer(&mut self, node: u32, buffer: BufferId) {
        if self.take_buffer(node, buffer).is_none() {
            self.violate(|| format!("node {node} drops a buffer that is not there"));
        }
    }

    /// Checks a piece and writes it: hashing and the disk's queue take their time.
    pub(super) fn verify(
        &mut self,
        node: u32,
        digest: Digest,
        piece: PieceIndex,
        buffer: BufferId,
        from: PeerId,
    ) {
        let Some(good) = self.take_buffer(node, buffer) else {
            return self.violate(|| format!("node {node} uses a buffer twice"));
        };
        let Some(blob) = self.by_digest.get(&digest).copied() else { return };
        let life = self.lives[node as usize];
        let own = &mut self.nodes[node as usize];
        let Some(held) = own.disk.get(&blob) else {
            return self
                .violate(|| format!("node {node} verifies a piece before it makes room for its blob"));
        };
        let bytes = u64::from(held.metainfo.layout().len_of(piece));
        let disk = own.spec.disk;
        let hashed = self.now + time_of(bytes, disk.verify_bytes_per_sec);
        if !good {
            return self.answer(node, hashed, Input::PieceCorrupt { digest, piece, from: Some(from) });
        }
        let at = own.disk_work(hashed, time_of(bytes, disk.write_bytes_per_sec)) + nanos(disk.delay);
        self.queue.push(at, Event::Verified { node, life, blob, piece: piece.get() });
    }

    /// A right piece is on the disk.
    pub(super) fn verified(&mut self, node: u32, blob: u32, piece: u32) {
        let digest = self.blobs[blob as usize].metainfo.digest();
        let Some(held) = self.nodes[node as usize].disk.get_mut(&blob) else { return };
        let Some(piece) = held.metainfo.layout().piece(piece) else { return };
        if !held.pieces.insert(piece) {
            return self.violate(|| format!("node {node} gets piece {} twice", piece.get()));
        }
        // The digest runs along behind the pieces, a few at a time.
        for _ in 0..CATCH_UP_PIECES {
            let next = held.metainfo.layout().piece(held.hashed);
            if !next.is_some_and(|next| held.pieces.contains(next)) {
                break;
            }
            held.hashed += 1;
        }
        self.deliver(node, Input::PieceVerified { digest, piece });
    }

    /// The whole digest: what did not run along is hashed now.
    pub(super) fn finish(&mut self, node: u32, digest: Digest) {
        let Some(blob) = self.by_digest.get(&digest) else { return };
        let own = &mut self.nodes[node as usize];
        let Some(held) = own.disk.get_mut(blob).filter(|held| held.pieces.is_full()) else {
            return self.violate(|| format!("node {node} finishes a blob that is not whole"));
        };
        let layout = held.metainfo.layout();
        let left: u64 = (held.hashed..layout.piece_count())
            .filter_map(|n| layout.piece(n))
            .map(|p| u64::from(layout.len_of(p)))
            .sum();
        held.complete = true;
        held.hashed = layout.piece_count();
        let disk = own.spec.disk;
        let at = self.now + nanos(disk.delay) + time_of(left, disk.digest_bytes_per_sec);
        self.answer(node, at, Input::BlobFinished { digest });
    }

    /// Fetches a piece from the backend: its requests share the backend's rate, one after the other.
    pub(super) fn fetch(&mut self, node: u32, digest: Digest, piece: PieceIndex) {
        let first_byte = nanos(self.config.backend_delay);
        let Some(blob) = self.by_digest.get(&digest).copied() else { return };
        let life = self.lives[node as usize];
        let own = &mut self.nodes[node as usize];
        let held = own.disk.get(&blob).filter(|_| !own.backend_down && own.backend.contains(&blob));
        let Some(held) = held else {
            return self.answer(node, self.now + first_byte, Input::BackendFailed { digest, piece });
        };
        let bytes = u64::from(held.metainfo.layout().len_of(piece));
        own.tally.backend_pieces += 1;
        let time = time_of(bytes, own.spec.backend_bytes_per_sec);
        own.backend_free = own.backend_free.max(self.now + first_byte) + time;
        let ready = own.backend_free;
        let at = own.disk_work(ready, time_of(bytes, own.spec.disk.write_bytes_per_sec));
        self.queue.push(at, Event::Verified { node, life, blob, piece: piece.get() });
    }
}

/// Pieces the store hashes at most for the running digest when it writes one.
const CATCH_UP_PIECES: usize = 5;
