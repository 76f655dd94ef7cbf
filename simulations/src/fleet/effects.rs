//! Carrying out the engines' wishes.

use shoal_engine::io::{Effect, Event as Told, Input, LocalBlob, LookupSource, Opened, ReaderId};
use shoal_engine::message::PeerHint;
use shoal_types::{Digest, PeerId, rendezvous};

use super::node::Held;
use super::{Event, Fleet};
use crate::network::nanos;

impl Fleet {
    pub(super) fn effect(&mut self, node: u32, effect: Effect) {
        match effect {
            Effect::Send { peer, message } => self.send(node, peer, message),
            Effect::Expect { peer, channel, piece, .. } => {
                self.expect(node, &peer, (channel, piece.get()), true)
            }
            Effect::Unexpect { peer, channel, piece } => self.expect(node, &peer, (channel, piece), false),
            Effect::SendPiece { peer, to, digest, piece } => self.send_piece(node, peer, to, digest, piece),
            Effect::CancelSend { peer, digest, piece } => self.cancel_send(node, peer, digest, piece),
            Effect::VerifyPiece { digest, piece, buffer, from } => {
                self.verify(node, digest, piece, buffer, from);
            }
            Effect::DropBuffer { buffer } => self.drop_buffer(node, buffer),
            Effect::Connect { peer, .. } => self.connect(node, peer),
            Effect::Disconnect { peer, ban, .. } => {
                let Some(other) = self.id_of(&peer) else { return };
                if ban.is_some() {
                    self.bans.insert((node, other));
                }
                if let Some(number) = self.nodes[node as usize].link(other) {
                    self.hang_up(number, Some(node));
                }
            }
            Effect::OpenBlob { digest } => {
                let opened = self.look_into_store(node, &digest);
                let at = self.now + nanos(self.nodes[node as usize].spec.disk.delay);
                self.answer(node, at, Input::BlobOpened { digest, opened });
            }
            Effect::CreateBlob { metainfo, vouched } => {
                let Some(blob) = self.by_digest.get(&metainfo.digest()).copied() else { return };
                let pieces = metainfo.empty_bitfield();
                // The description is the same for all: one copy of it is enough.
                let metainfo = self.blobs[blob as usize].metainfo.clone();
                let vouched = vouched.map(|_| self.blobs[blob as usize].vouched.clone());
                let held = Held { pieces, metainfo, vouched, complete: false, hashed: 0 };
                self.nodes[node as usize].disk.entry(blob).or_insert(held);
            }
            Effect::Lookup { digest, source } => self.look_up(node, digest, source),
            Effect::Provide { digest } => {
                let Some(blob) = self.by_digest.get(&digest).copied() else { return };
                let wait = self.draw(nanos(self.config.lookup.provide_delay));
                self.queue.push(self.now + wait, Event::Provided { node, blob });
            }
            Effect::FetchFromBackend { digest, piece } => self.fetch(node, digest, piece),
            Effect::FinishBlob { digest } => self.finish(node, digest),
            Effect::ReaderStarted { reader, .. } => {
                if let Some(opened) = self.nodes[node as usize].readers.get_mut(reader.0 as usize) {
                    opened.outcome.started = true;
                }
            }
            Effect::ReaderAdvance { reader, until } => self.advance(node, reader, until),
            Effect::ReaderDone { reader } => self.reader_done(node, reader),
            Effect::ReaderFailed { reader, why } => {
                if let Some(opened) = self.nodes[node as usize].readers.get_mut(reader.0 as usize) {
                    let was_open = opened.live && !opened.outcome.is_over();
                    opened.outcome.failed = Some(why);
                    self.open_readers -= usize::from(was_open);
                }
            }
            Effect::Report(report) => {
                if let Told::PieceReceived { bytes, .. } = report.event {
                    self.nodes[node as usize].tally.verified_bytes += u64::from(bytes);
                    self.timeline.add(self.now, bytes.into());
                }
            }
        }
    }

    fn expect(&mut self, node: u32, peer: &PeerId, what: (u32, u32), wanted: bool) {
        let Some(from) = self.id_of(peer) else { return };
        let Some(number) = self.nodes[node as usize].link(from) else { return };
        let connection = &mut self.connections[number as usize];
        let way = connection.way(from);
        let expected = &mut connection.ways[way as usize].expected;
        if wanted {
            expected.push(what);
        } else if let Some(at) = expected.iter().position(|known| *known == what) {
            expected.swap_remove(at);
        }
    }

    fn reader_done(&mut self, node: u32, reader: ReaderId) {
        let now = self.time();
        let own = &mut self.nodes[node as usize];
        let Some(opened) = own.readers.get_mut(reader.0 as usize) else { return };
        if opened.outcome.is_over() {
            return self.violate(|| format!("node {node} ends {reader:?} twice"));
        }
        opened.outcome.done = Some(now);
        opened.outcome.first_byte.get_or_insert(now);
        self.open_readers -= usize::from(opened.live);
    }

    /// What a reader is told it can read must be on the disk; the last piece only of a checked blob.
    fn advance(&mut self, node: u32, reader: ReaderId, until: u64) {
        let now = self.time();
        let life = self.lives[node as usize];
        let own = &mut self.nodes[node as usize];
        let Some(opened) = own.readers.get_mut(reader.0 as usize).filter(|opened| opened.live) else {
            return;
        };
        let blob = self.by_digest.get(&opened.digest);
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
        let at = self.now + nanos(self.config.reader_delay);
        let reader = reader.0 as u32;
        self.queue.push(at, Event::ReaderMoved { node, life, reader, offset: until });
    }

    fn look_into_store(&self, node: u32, digest: &Digest) -> Opened {
        let own = &self.nodes[node as usize];
        let held = self.by_digest.get(digest).and_then(|blob| Some((blob, own.disk.get(blob)?)));
        match held {
            Some((blob, held)) => Opened::Here(LocalBlob {
                metainfo: held.metainfo.clone(),
                vouched: held.vouched.clone(),
                pieces: held.pieces.clone(),
                complete: held.complete,
                in_backend: own.backend.contains(blob) && !own.backend_down,
            }),
            None => Opened::Absent { owner: own.spec.origin, backend_down: own.backend_down },
        }
    }

    fn look_up(&mut self, node: u32, digest: Digest, source: LookupSource) {
        let kind = usize::from(source == LookupSource::Dht);
        self.nodes[node as usize].tally.lookups[kind] += 1;
        let (peers, found, over, answered) = match source {
            LookupSource::Owners => {
                let at = self.now + nanos(self.config.lookup.owners_delay);
                let owners = self.owners(node, &digest);
                let answered = !owners.is_empty();
                (owners, at, at, answered)
            }
            LookupSource::Dht => {
                let Some(blob) = self.by_digest.get(&digest).copied() else {
                    let at = self.now + nanos(self.config.lookup.dht_hop_delay);
                    let input = Input::LookupFinished { digest, source, answered: true };
                    return self.answer(node, at, input);
                };
                let looked = self.dht.look_up(blob, node, self.now, &mut self.random);
                (looked.providers, looked.found, looked.over, true)
            }
        };
        let peers: Vec<PeerHint> = peers.into_iter().map(|other| self.hint(other)).collect();
        if !peers.is_empty() {
            self.answer(node, found, Input::PeersFound { digest, source, peers });
        }
        self.answer(node, over, Input::LookupFinished { digest, source, answered });
    }

    /// The owners of a blob as a node knows them: those of its zone first, then zone by zone.
    fn owners(&self, node: u32, digest: &Digest) -> Vec<u32> {
        let key = digest.multihash().to_bytes();
        let own = &self.nodes[node as usize].spec.zone;
        let forgotten = nanos(self.dht.config().owner_forgotten_after);
        let known = |origin: &&u32| {
            let other = &self.nodes[**origin as usize];
            let cut_off = !self.reaches(node, **origin);
            **origin != node && !cut_off && (other.alive || self.now < other.died.saturating_add(forgotten))
        };
        let mut zones: Vec<_> = self
            .origins
            .iter()
            .filter(known)
            .map(|origin| {
                let zone = &self.nodes[*origin as usize].spec.zone;
                (zone != own, zone, *origin)
            })
            .collect();
        zones.sort();
        let mut owners = Vec::new();
        for part in zones.chunk_by(|a, b| a.1 == b.1) {
            let peers = part.iter().map(|(.., origin)| self.nodes[*origin as usize].peer);
            owners.extend(rendezvous::rank(&key, peers).iter().filter_map(|peer| self.id_of(peer)));
            if owners.len() >= self.dht.config().owners_asked {
                break;
            }
        }
        owners.truncate(self.dht.config().owners_asked);
        owners
    }
}
