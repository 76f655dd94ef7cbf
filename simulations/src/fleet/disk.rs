//! What a node's disk and processor do with pieces.

use shoal_engine::io::{BufferId, Input};
use shoal_types::{Digest, PeerId, PieceIndex};

use super::mail::{Coming, Event};
use super::node::time_of;
use super::shard::Shard;
use super::world::World;
use crate::network::nanos;

impl Shard {
    /// The last byte of a piece is there.
    pub(super) fn arrived(&mut self, world: &World, coming: Coming) {
        let Coming { node, from, serial, channel, piece, bytes, .. } = coming;
        let own = self.own(node);
        let Some(link) = own.link_mut(from, serial) else { return };
        if link.cut {
            return link.delayed.push(Event::Arrived(coming));
        }
        let Some(at) = link.expected.iter().position(|known| *known == (channel, piece)) else {
            own.tally.wasted_bytes += u64::from(bytes);
            return;
        };
        link.expected.swap_remove(at);
        let fact = world.fact(from);
        own.buffers_made += 1;
        let buffer = own.buffers_made;
        own.buffers.push((buffer, !fact.corrupt));
        let (peer, buffer) = (fact.peer, BufferId(buffer));
        let since_first = coming.since_first();
        self.deliver(world, node, Input::PieceArrived { peer, channel, piece, buffer, since_first });
    }

    fn take_buffer(&mut self, node: u32, buffer: BufferId) -> Option<bool> {
        let buffers = &mut self.own(node).buffers;
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
        world: &World,
        node: u32,
        digest: &Digest,
        piece: PieceIndex,
        buffer: BufferId,
        from: &PeerId,
    ) {
        let Some(good) = self.take_buffer(node, buffer) else {
            return self.violate(|| format!("node {node} uses a buffer twice"));
        };
        let Some(blob) = world.blob_of(digest) else { return };
        let (now, life) = (self.now, world.fact(node).life);
        let own = self.own(node);
        let Some(held) = own.disk.get(blob) else {
            return self
                .violate(|| format!("node {node} verifies a piece before it makes room for its blob"));
        };
        let bytes = u64::from(held.metainfo.layout().len_of(piece));
        let disk = own.spec.disk;
        let hashed = now + time_of(bytes, disk.verify_bytes_per_sec);
        if !good {
            let input = Input::PieceCorrupt { digest: *digest, piece, from: Some(*from) };
            return self.answer(world, node, hashed, input);
        }
        let at = own.disk_work(hashed, time_of(bytes, disk.write_bytes_per_sec)) + nanos(disk.delay);
        self.arrange(at, Event::Verified { node, life, blob, piece: piece.get() });
    }

    /// A right piece is on the disk.
    pub(super) fn verified(&mut self, world: &World, node: u32, blob: u32, piece: u32) {
        let digest = world.digests[blob as usize];
        let Some(held) = self.own(node).disk.get_mut(blob) else { return };
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
        self.deliver(world, node, Input::PieceVerified { digest, piece });
    }

    /// The whole digest: what did not run along is hashed now.
    pub(super) fn finish(&mut self, world: &World, node: u32, digest: Digest) {
        let Some(blob) = world.blob_of(&digest) else { return };
        let now = self.now;
        let own = self.own(node);
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
        let at = now + nanos(disk.delay) + time_of(left, disk.digest_bytes_per_sec);
        self.answer(world, node, at, Input::BlobFinished { digest });
    }

    /// Fetches a piece from the backend: its requests share the backend's rate, one after the other.
    pub(super) fn fetch(&mut self, world: &World, node: u32, digest: Digest, piece: PieceIndex) {
        let first_byte = nanos(world.config.backend_delay);
        let Some(blob) = world.blob_of(&digest) else { return };
        let (now, life) = (self.now, world.fact(node).life);
        let own = self.own(node);
        let held = own.disk.get(blob).filter(|_| !own.backend_down && own.backend.contains(&blob));
        let Some(held) = held else {
            return self.answer(world, node, now + first_byte, Input::BackendFailed { digest, piece });
        };
        let bytes = u64::from(held.metainfo.layout().len_of(piece));
        own.tally.backend_pieces += 1;
        let time = time_of(bytes, own.spec.backend_bytes_per_sec);
        own.backend_free = own.backend_free.max(now + first_byte) + time;
        let ready = own.backend_free;
        let at = own.disk_work(ready, time_of(bytes, own.spec.disk.write_bytes_per_sec));
        self.arrange(at, Event::Verified { node, life, blob, piece: piece.get() });
    }
}

/// Pieces the store hashes at most for the running digest when it writes one.
const CATCH_UP_PIECES: usize = 5;
