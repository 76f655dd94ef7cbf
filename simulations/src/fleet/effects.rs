//! Carrying out the engines' wishes.

use rand_core::Rng as _;
use shoal_engine::io::{Effect, Event as Told, Input, LocalBlob, LookupSource, Opened, ReaderId};
use shoal_engine::message::{Channel, PeerHint};
use shoal_types::{Digest, PeerId, PieceIndex};

use super::mail::{Event, Op, Sending};
use super::node::time_of;
use super::shard::Shard;
use super::store::Held;
use super::world::World;
use crate::network::nanos;

impl Shard {
    pub(super) fn effect(&mut self, world: &World, node: u32, effect: &mut Effect) {
        match effect {
            Effect::Send { peer, message } => self.send(world, node, peer, message),
            Effect::Expect { peer, channel, piece, .. } => {
                self.expect(world, node, peer, (*channel, piece.get()), true);
            }
            Effect::Unexpect { peer, channel, piece } => {
                self.expect(world, node, peer, (*channel, *piece), false);
            }
            Effect::SendPiece { peer, to, digest, piece } => {
                self.send_piece(world, node, peer, *to, digest, *piece);
            }
            Effect::CancelSend { peer, digest, piece } => {
                self.cancel_send(world, node, peer, digest, *piece);
            }
            Effect::VerifyPiece { digest, piece, buffer, from } => {
                self.verify(world, node, digest, *piece, *buffer, from);
            }
            Effect::DropBuffer { buffer } => self.drop_buffer(node, *buffer),
            Effect::Connect { peer, .. } => self.connect(world, node, *peer),
            Effect::Disconnect { peer, ban, .. } => {
                let Some(other) = world.id_of(peer) else { return };
                if ban.is_some() {
                    self.own(node).bans.insert(other);
                }
                self.hang_up(world, node, other);
            }
            Effect::OpenBlob { digest } => {
                let (digest, opened) = (*digest, self.look_into_store(world, node, digest));
                let at = self.now + nanos(self.node(node).spec.disk.delay);
                self.answer(world, node, at, Input::BlobOpened { digest, opened });
            }
            Effect::CreateBlob { metainfo, vouched } => {
                let Some(blob) = world.blob_of(&metainfo.digest()) else { return };
                let pieces = metainfo.empty_bitfield();
                // The description is the same for all: one copy of it is enough.
                let truth = &world.blobs[blob as usize];
                let vouched = vouched.as_ref().map(|_| truth.vouched.clone());
                let held =
                    Held { pieces, metainfo: truth.metainfo.clone(), vouched, complete: false, hashed: 0 };
                let disk = &mut self.own(node).disk;
                if disk.get(blob).is_none() {
                    disk.insert(blob, held);
                }
            }
            Effect::Lookup { digest, source } => self.look_up(world, node, *digest, *source),
            Effect::Provide { digest } => {
                let Some(blob) = world.blob_of(digest) else { return };
                let wait = nanos(world.config.lookup.provide_delay).max(1);
                let at = self.now + self.own(node).random.next_u64() % wait;
                self.ops.push(Op::Provide { node, blob, at });
            }
            Effect::FetchFromBackend { digest, piece } => self.fetch(world, node, *digest, *piece),
            Effect::FinishBlob { digest } => self.finish(world, node, *digest),
            Effect::ReaderStarted { reader, .. } => {
                if let Some(opened) = self.own(node).readers.get_mut(reader.0 as usize) {
                    opened.outcome.started = true;
                }
            }
            Effect::ReaderAdvance { reader, until } => self.advance(world, node, *reader, *until),
            Effect::ReaderDone { reader } => self.reader_done(node, *reader),
            Effect::ReaderFailed { reader, why } => {
                if let Some(opened) = self.own(node).readers.get_mut(reader.0 as usize) {
                    let was_open = opened.live && !opened.outcome.is_over();
                    opened.outcome.failed = Some(why.clone());
                    self.open_readers -= usize::from(was_open);
                }
            }
            Effect::Report(report) => {
                if let Told::PieceReceived { bytes, .. } = report.event {
                    self.own(node).tally.verified_bytes += u64::from(bytes);
                    self.timeline.add(self.now, bytes.into());
                }
            }
        }
    }

    fn expect(&mut self, world: &World, node: u32, peer: &PeerId, what: (u32, u32), wanted: bool) {
        let Some(from) = world.id_of(peer) else { return };
        let Some(link) = self.own(node).any_link_mut(from) else { return };
        if wanted {
            link.expected.push(what);
        } else if let Some(at) = link.expected.iter().position(|known| *known == what) {
            link.expected.swap_remove(at);
        }
    }

    fn send_piece(
        &mut self,
        world: &World,
        node: u32,
        peer: &PeerId,
        channel: Channel,
        digest: &Digest,
        piece: PieceIndex,
    ) {
        let (Some(to), Some(blob)) = (world.id_of(peer), world.blob_of(digest)) else { return };
        let now = self.now;
        let own = self.node(node);
        let Some(link) = own.link(to) else { return };
        let held = own.disk.get(blob).filter(|held| held.pieces.contains(piece));
        let Some(held) = held else {
            return self
                .violate(|| format!("node {node} serves piece {} that it has not verified", piece.get()));
        };
        let bytes = held.metainfo.layout().len_of(piece);
        let disk = &own.spec.disk;
        let read = now + nanos(disk.delay) + time_of(bytes.into(), disk.read_bytes_per_sec);
        let sending = Sending { channel, blob, piece: piece.get(), bytes };
        let (connection, serial) = (link.connection, link.serial);
        self.ops.push(Op::Send { connection, serial, node, sending, read });
    }

    /// Takes a piece back that has not begun.
    fn cancel_send(&mut self, world: &World, node: u32, peer: &PeerId, digest: &Digest, piece: PieceIndex) {
        let (Some(to), Some(blob)) = (world.id_of(peer), world.blob_of(digest)) else { return };
        let (at, piece) = (self.now, piece.get());
        let Some(link) = self.node(node).link(to) else { return };
        let (connection, serial) = (link.connection, link.serial);
        self.ops.push(Op::Cancel { connection, serial, node, blob, piece, at });
    }

    fn reader_done(&mut self, node: u32, reader: ReaderId) {
        let now = self.time();
        let own = self.own(node);
        let Some(opened) = own.readers.get_mut(reader.0 as usize) else { return };
        if opened.outcome.is_over() {
            return self.violate(|| format!("node {node} ends {reader:?} twice"));
        }
        opened.outcome.done = Some(now);
        opened.outcome.first_byte.get_or_insert(now);
        let live = opened.live;
        self.open_readers -= usize::from(live);
    }

    /// What a reader is told it can read must be on the disk; the last piece only of a checked blob.
    fn advance(&mut self, world: &World, node: u32, reader: ReaderId, until: u64) {
        let now = self.time();
        let life = world.fact(node).life;
        let own = self.own(node);
        let Some(opened) = own.readers.get_mut(reader.0 as usize).filter(|opened| opened.live) else {
            return;
        };
        let blob = world.blob_of(&opened.digest);
        let Some(held) = blob.and_then(|blob| own.disk.get(blob)) else { return };
        let outcome = &mut opened.outcome;
        let mut pieces = held.metainfo.layout().pieces_in(outcome.until..until);
        let good = until > outcome.until
            && pieces.all(|piece| held.pieces.contains(piece))
            && (until < held.metainfo.size() || held.complete);
        if !good {
            let from = outcome.until;
            return self.violate(|| format!("node {node} lets {reader:?} read {from} to {until} too early"));
        }
        outcome.until = until;
        outcome.first_byte.get_or_insert(now);
        let at = self.now + nanos(world.config.reader_delay);
        let reader = reader.0 as u32;
        self.arrange(at, Event::ReaderMoved { node, life, reader, offset: until });
    }

    fn look_into_store(&self, world: &World, node: u32, digest: &Digest) -> Opened {
        let own = self.node(node);
        let held = world.blob_of(digest).and_then(|blob| Some((blob, own.disk.get(blob)?)));
        match held {
            Some((blob, held)) => Opened::Here(LocalBlob {
                metainfo: held.metainfo.clone(),
                vouched: held.vouched.clone(),
                pieces: held.pieces.clone(),
                complete: held.complete,
                in_backend: own.backend.contains(&blob) && !own.backend_down,
            }),
            None => Opened::Absent { owner: own.spec.origin, backend_down: own.backend_down },
        }
    }

    fn look_up(&mut self, world: &World, node: u32, digest: Digest, source: LookupSource) {
        let now = self.now;
        let kind = usize::from(source == LookupSource::Dht);
        self.own(node).tally.lookups[kind] += 1;
        let lookup = &world.config.lookup;
        match source {
            LookupSource::Owners => {
                let owners = world.owners(node, &digest, now);
                let (answered, at) = (!owners.is_empty(), now + nanos(lookup.owners_delay));
                let peers: Vec<PeerHint> = owners.into_iter().map(|other| world.hint(other)).collect();
                if answered {
                    self.answer(world, node, at, Input::PeersFound { digest, source, peers });
                }
                self.answer(world, node, at, Input::LookupFinished { digest, source, answered });
            }
            LookupSource::Dht => match world.blob_of(&digest) {
                Some(blob) => {
                    let life = world.fact(node).life;
                    self.ops.push(Op::LookUp { node, life, blob, at: now });
                }
                None => {
                    let at = now + nanos(lookup.dht_hop_delay);
                    self.answer(world, node, at, Input::LookupFinished { digest, source, answered: true });
                }
            },
        }
    }
}
