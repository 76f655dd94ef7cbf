//! One engine against arbitrary inputs and a naive model of what it may do.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "an overflow in a test is a failure, which is what it should be"
)]

mod crowd;
mod downloader;
mod introductions;
mod late;
mod live;
mod named;
mod readers;
mod room;
mod shares;
mod silent;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use shoal_types::{
    Bitfield, Credential, Digest, Endpoint, Keypair, MeshKey, Metainfo, PeerId, PieceHash, PieceIndex,
    PieceLayout, Role, Roles, SignedMetainfo, Timestamp, VouchedMetainfo, WallTime, Zone,
};

use crate::config::EngineConfig;
use crate::engine::Engine;
use crate::io::{
    BufferId, DropReason, Effect, Event, Input, LocalBlob, LookupSource, Opened, ReadError, ReaderId,
    ReaderWant,
};
use crate::message::{Absence, Message, PeerHint};

const PIECES: u32 = 12;
const PIECE_BYTES: u64 = 256 * 1024;
const PEERS: u8 = 5;

/// What an engine wishes.
fn effects(engine: &mut Engine) -> Vec<Effect> {
    std::iter::from_fn(|| engine.poll_effect()).collect()
}

fn metainfo(seed: u8, size: u64) -> Metainfo {
    let layout = PieceLayout::for_size(size).unwrap();
    let hashes = layout.pieces().map(|piece| PieceHash::of(&[seed, piece.get() as u8])).collect();
    Metainfo::new(Digest::sha256(&[seed]), layout, hashes).unwrap()
}

fn vouched(seed: u8) -> Arc<VouchedMetainfo> {
    let metainfo = metainfo(seed, u64::from(PIECES) * PIECE_BYTES - 17);
    let signer = Keypair::from_secret(&[9; 32]);
    let credential = Credential {
        peer: signer.peer_id(),
        roles: Roles::NONE.with(Role::Origin),
        zone: Zone::default(),
        namespaces: Vec::new(),
        not_before: WallTime::from_unix_millis(0),
        not_after: WallTime::from_unix_millis(u64::MAX),
        issuer: None,
    };
    let credential = MeshKey::from_secret(&[8; 32]).issue(credential);
    Arc::new(VouchedMetainfo { metainfo: SignedMetainfo::sign(metainfo, &signer), credential })
}

fn peer(n: u8) -> PeerId {
    PeerId::from_public_key([n + 1; 32])
}

fn hint(n: u8) -> PeerHint {
    let ip = std::net::IpAddr::from([10, 0, 0, n]);
    PeerHint { peer: peer(n), zone: zone(n), endpoints: vec![Endpoint::from_ip(ip, 4002)], complete: false }
}

fn zone(n: u8) -> Zone {
    if n < 3 { Zone::default() } else { "far".parse().unwrap() }
}

/// What the world may do to an engine.
#[derive(Clone, Debug)]
enum Op {
    Connect(u8),
    Disconnect(u8),
    ConnectFailed(u8),
    Join(u8, bool, bool),
    Metainfo(u8),
    MetainfoRefused(u8),
    Bitfield(u8, u16),
    Have(u8, u8, u8),
    Deliver(u8, bool),
    Progress(u8),
    Verify(bool),
    Busy(u8),
    Absent(u8, u8),
    Leave(u8),
    Request(u8, u8),
    Cancel(u8, u8),
    Stray(u8, u8, u8),
    Wait(u16),
    Read(u8),
    Move(u8, u32),
    Close(u8),
    Opened(u8, u16),
    Found(u8, bool),
    LookupEnds(bool),
    Sent(bool),
    Finish(bool),
    WriteFails,
    BackendFails,
    Removed,
}

fn op() -> impl Strategy<Value = Op> {
    let peer = 0..PEERS;
    let piece = 0..PIECES as u8;
    prop_oneof![
        4 => peer.clone().prop_map(Op::Connect),
        1 => peer.clone().prop_map(Op::Disconnect),
        1 => peer.clone().prop_map(Op::ConnectFailed),
        4 => (peer.clone(), any::<bool>(), any::<bool>()).prop_map(|(p, w, b)| Op::Join(p, w, b)),
        3 => peer.clone().prop_map(Op::Metainfo),
        1 => peer.clone().prop_map(Op::MetainfoRefused),
        4 => (peer.clone(), any::<u16>()).prop_map(|(p, b)| Op::Bitfield(p, b)),
        4 => (peer.clone(), 0..14u8, 0..4u8).prop_map(|(p, f, c)| Op::Have(p, f, c)),
        12 => (peer.clone(), any::<bool>()).prop_map(|(p, g)| Op::Deliver(p, g)),
        4 => peer.clone().prop_map(Op::Progress),
        10 => prop::bool::weighted(0.9).prop_map(Op::Verify),
        2 => peer.clone().prop_map(Op::Busy),
        1 => (peer.clone(), 0..4u8).prop_map(|(p, w)| Op::Absent(p, w)),
        1 => peer.clone().prop_map(Op::Leave),
        4 => (peer.clone(), piece.clone()).prop_map(|(p, i)| Op::Request(p, i)),
        2 => (peer.clone(), piece).prop_map(|(p, i)| Op::Cancel(p, i)),
        1 => (peer.clone(), 0..4u8, 0..9u8).prop_map(|(p, c, k)| Op::Stray(p, c, k)),
        6 => (0..4000u16).prop_map(Op::Wait),
        3 => (0..4u8).prop_map(Op::Read),
        2 => (0..4u8, any::<u32>()).prop_map(|(r, o)| Op::Move(r, o)),
        1 => (0..4u8).prop_map(Op::Close),
        4 => (0..4u8, any::<u16>()).prop_map(|(k, b)| Op::Opened(k, b)),
        3 => (peer, any::<bool>()).prop_map(|(p, o)| Op::Found(p, o)),
        2 => any::<bool>().prop_map(Op::LookupEnds),
        4 => any::<bool>().prop_map(Op::Sent),
        3 => prop::bool::weighted(0.8).prop_map(Op::Finish),
        1 => Just(Op::WriteFails),
        1 => Just(Op::BackendFails),
        1 => Just(Op::Removed),
    ]
}

#[derive(Debug, Default)]
struct ReaderModel {
    want: Option<ReaderWant>,
    until: u64,
    over: bool,
}

/// The naive model: sets, looked through from end to end.
struct World {
    engine: Engine,
    config: EngineConfig,
    now: Timestamp,
    vouched: Arc<VouchedMetainfo>,
    connected: BTreeSet<PeerId>,
    dialed: Vec<PeerId>,
    /// Channels the engine told each peer, newest last, and what each peer advertised.
    channels: BTreeMap<PeerId, u32>,
    advertised: BTreeMap<PeerId, BTreeSet<u32>>,
    requested: BTreeMap<PeerId, BTreeMap<u32, u32>>,
    /// The news each peer was told, a message each.
    told: BTreeMap<PeerId, Vec<BTreeSet<u32>>>,
    expecting: Option<(PeerId, u32)>,
    verifying: Vec<(u32, BufferId, Option<PeerId>)>,
    fetching: Vec<u32>,
    stored: BTreeSet<u32>,
    finished: bool,
    finishing: bool,
    opening: bool,
    sending: Vec<(PeerId, PieceIndex)>,
    readers: BTreeMap<ReaderId, ReaderModel>,
    readers_made: u64,
    buffers: u64,
}

impl World {
    fn new(config: EngineConfig, seed: u64) -> Self {
        let local = PeerId::from_public_key([0xaa; 32]);
        Self {
            engine: Engine::new(config.clone(), local, Zone::default(), seed, Timestamp::ZERO),
            config,
            now: Timestamp::ZERO,
            vouched: vouched(1),
            connected: BTreeSet::new(),
            dialed: Vec::new(),
            channels: BTreeMap::new(),
            advertised: BTreeMap::new(),
            requested: BTreeMap::new(),
            told: BTreeMap::new(),
            expecting: None,
            verifying: Vec::new(),
            fetching: Vec::new(),
            stored: BTreeSet::new(),
            finished: false,
            finishing: false,
            opening: false,
            sending: Vec::new(),
            readers: BTreeMap::new(),
            readers_made: 0,
            buffers: 0,
        }
    }

    fn digest(&self) -> Digest {
        self.vouched.value().digest()
    }

    fn piece(&self, number: u32) -> PieceIndex {
        self.vouched.value().layout().piece(number).unwrap()
    }

    fn input(&mut self, input: Input) {
        self.engine.handle_input(self.now, input);
        self.check();
    }

    fn say(&mut self, n: u8, message: Message) {
        if self.connected.contains(&peer(n)) {
            self.input(Input::Message { peer: peer(n), message });
        }
    }

    fn to(&self, n: u8) -> u32 {
        self.channels.get(&peer(n)).copied().unwrap_or(0)
    }

    fn reader(&self, n: u8) -> ReaderId {
        ReaderId(self.readers_made.saturating_sub(u64::from(n)))
    }

    fn gone(&mut self, who: PeerId) {
        self.connected.remove(&who);
        self.channels.remove(&who);
        self.advertised.remove(&who);
        self.requested.remove(&who);
        self.sending.retain(|(to, _)| *to != who);
    }

    fn apply(&mut self, op: Op) {
        let digest = self.digest();
        match op {
            Op::Connect(n) => {
                self.connected.insert(peer(n));
                let endpoints = hint(n).endpoints;
                let roles = Roles::NONE.with(Role::Node);
                self.input(Input::PeerConnected { peer: peer(n), zone: zone(n), roles, endpoints });
            }
            Op::Disconnect(n) => {
                self.gone(peer(n));
                self.input(Input::PeerDisconnected { peer: peer(n) });
            }
            Op::ConnectFailed(n) if !self.connected.contains(&peer(n)) => {
                self.input(Input::ConnectFailed { peer: peer(n) });
            }
            Op::ConnectFailed(_) => {}
            Op::Join(n, wants_metainfo, probe) => {
                self.advertised.remove(&peer(n));
                self.say(
                    n,
                    Message::Join {
                        channel: 7,
                        digest,
                        wants_metainfo,
                        probe: probe && wants_metainfo,
                        trace: None,
                    },
                );
            }
            Op::Metainfo(n) => {
                let metainfo = Box::new(VouchedMetainfo::clone(&self.vouched));
                self.say(n, Message::Metainfo { to: self.to(n), metainfo });
            }
            Op::MetainfoRefused(n) if self.connected.contains(&peer(n)) => {
                let channel = self.to(n);
                self.input(Input::MetainfoRefused { peer: peer(n), channel });
            }
            Op::MetainfoRefused(_) => {}
            Op::Bitfield(n, bits) => {
                let set: BTreeSet<u32> = (0..PIECES).filter(|p| bits >> p & 1 == 1).collect();
                self.advertised.entry(peer(n)).or_default().extend(&set);
                let pieces = self.field(&set).to_bytes().into();
                self.say(n, Message::Bitfield { to: self.to(n), pieces });
            }
            Op::Have(n, first, count) => {
                let (first, count) = (u32::from(first), u32::from(count));
                self.advertised.entry(peer(n)).or_default().extend(first..first + count);
                self.say(n, Message::Have { to: self.to(n), runs: vec![(first, count)] });
            }
            Op::Deliver(n, known) => self.deliver(n, known),
            Op::Progress(n) => {
                let Some((number, channel)) = self.first_request(n) else { return };
                self.input(Input::PieceProgress {
                    peer: peer(n),
                    channel,
                    piece: number,
                    bytes: 1000,
                    since_first: Duration::ZERO,
                });
            }
            Op::Verify(good) => self.verify(good),
            Op::Busy(n) => {
                let Some((number, _)) = self.first_request(n) else { return };
                self.requested.get_mut(&peer(n)).unwrap().remove(&number);
                // The engine will say `Unexpect` for what it takes back.
                self.requested.entry(peer(n)).or_default();
                let peers = vec![hint((n + 1) % PEERS)];
                self.say(n, Message::Busy { to: self.to(n), piece: number, peers, again_millis: 0 });
            }
            Op::Absent(n, why) => {
                let why = [Absence::NotHere, Absence::Unknown, Absence::BackendDown, Absence::Full]
                    [usize::from(why)];
                self.say(n, Message::Absent { to: self.to(n), why, peers: vec![hint((n + 2) % PEERS)] });
            }
            Op::Leave(n) => self.say(n, Message::Leave { to: self.to(n) }),
            Op::Request(n, piece) => self.say(n, Message::Request { to: self.to(n), piece: piece.into() }),
            Op::Cancel(n, piece) => self.say(n, Message::Cancel { to: self.to(n), piece: piece.into() }),
            Op::Stray(n, to, kind) => self.stray(n, to.into(), kind),
            Op::Wait(millis) => self.wait(Duration::from_millis(millis.into())),
            Op::Read(want) => self.read(want),
            Op::Move(n, offset) => {
                let reader = self.reader(n);
                let Some(model) = self.readers.get(&reader) else { return };
                // A reader reads on from where it is, as far as it was told.
                let ReaderWant::Range(range) = model.want.clone().unwrap() else { return };
                let span = model.until.saturating_sub(range.start);
                let offset = range.start + u64::from(offset) % (span + 1);
                self.input(Input::ReaderMoved { reader, offset });
            }
            Op::Close(n) => {
                let reader = self.reader(n);
                self.readers.remove(&reader);
                self.input(Input::ReaderClosed { reader });
            }
            Op::Opened(kind, bits) => self.opened(kind, bits),
            Op::Found(n, owners) => {
                let source = if owners { LookupSource::Owners } else { LookupSource::Dht };
                self.input(Input::PeersFound { digest, source, peers: vec![hint(n)] });
            }
            Op::LookupEnds(owners) => {
                let source = if owners { LookupSource::Owners } else { LookupSource::Dht };
                self.input(Input::LookupFinished { digest, source, answered: true });
            }
            Op::Sent(whole) => {
                let Some((peer, piece)) = self.sending.pop() else { return };
                self.input(Input::PieceSent { peer, digest, piece, bytes: if whole { 1000 } else { 0 } });
            }
            Op::Finish(good) => {
                if std::mem::take(&mut self.finishing) {
                    if good {
                        self.finished = true;
                        self.input(Input::BlobFinished { digest });
                    } else {
                        self.forget();
                        self.input(Input::BlobCorrupt { digest });
                    }
                }
            }
            Op::WriteFails => {
                let Some((number, ..)) = self.verifying.pop() else { return };
                let why = "disk full".to_owned();
                self.input(Input::WriteFailed { digest, piece: self.piece(number), why });
            }
            Op::BackendFails => {
                let Some(number) = self.fetching.pop() else { return };
                self.input(Input::BackendFailed { digest, piece: self.piece(number) });
            }
            Op::Removed => {
                self.forget();
                self.input(Input::BlobRemoved { digest });
            }
        }
    }

    fn forget(&mut self) {
        self.stored.clear();
        self.finished = false;
        self.finishing = false;
        // What the store was doing is void with the blob.
        self.verifying.clear();
        self.fetching.clear();
    }

    fn field(&self, set: &BTreeSet<u32>) -> Bitfield {
        let mut field = Bitfield::new(PIECES);
        for number in set {
            field.insert(self.piece(*number));
        }
        field
    }

    fn first_request(&self, n: u8) -> Option<(u32, u32)> {
        self.requested.get(&peer(n))?.first_key_value().map(|(number, channel)| (*number, *channel))
    }

    fn deliver(&mut self, n: u8, known: bool) {
        let request = self.first_request(n);
        let (number, channel) = match request {
            Some(request) if known => request,
            // Payload nobody waits for.
            _ if self.connected.contains(&peer(n)) => (3, 99),
            _ => return,
        };
        if known && let Some(open) = self.requested.get_mut(&peer(n)) {
            open.remove(&number);
        }
        self.buffers += 1;
        let buffer = BufferId(self.buffers);
        self.input(Input::PieceArrived {
            peer: peer(n),
            channel,
            piece: number,
            buffer,
            since_first: Duration::ZERO,
        });
    }

    fn verify(&mut self, good: bool) {
        let digest = self.digest();
        if let Some((number, _, from)) = self.verifying.pop() {
            let piece = self.piece(number);
            if good {
                self.stored.insert(number);
                self.input(Input::PieceVerified { digest, piece });
            } else {
                self.input(Input::PieceCorrupt { digest, piece, from });
                assert!(from.is_none_or(|peer| !self.connected.contains(&peer)), "a liar stays connected");
            }
        } else if let Some(number) = self.fetching.pop() {
            self.stored.insert(number);
            self.input(Input::PieceVerified { digest, piece: self.piece(number) });
        }
    }

    fn stray(&mut self, n: u8, to: u32, kind: u8) {
        let peers = Vec::new();
        let message = match kind {
            0 => Message::Request { to, piece: PIECES },
            1 => Message::Request { to, piece: u32::MAX },
            2 => Message::Have { to, runs: vec![(u32::MAX, 2)] },
            3 => Message::Bitfield { to, pieces: vec![0xff].into() },
            4 => Message::Cancel { to, piece: 1 },
            5 => Message::Busy { to, piece: 2, peers, again_millis: 0 },
            6 => Message::Peers { to, peers: (0..PEERS).map(hint).collect() },
            7 => Message::Metainfo { to, metainfo: Box::new(VouchedMetainfo::clone(&vouched(2))) },
            _ => Message::Leave { to },
        };
        if kind == 3 && self.channels.get(&peer(n)) == Some(&to) {
            self.advertised.remove(&peer(n));
        }
        self.say(n, message);
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..10_000 {
            let Some(at) = self.engine.poll_timeout().filter(|at| *at <= end) else { break };
            assert!(at >= self.now || at <= end);
            self.now = self.now.max(at);
            self.engine.handle_timeout(self.now);
            self.check();
        }
        assert!(self.engine.poll_timeout().is_none_or(|at| at > end), "timers never come to rest");
        self.now = end;
    }

    fn read(&mut self, want: u8) {
        let digest = self.digest();
        let want = match want {
            0 => ReaderWant::Metainfo,
            1 => ReaderWant::Whole,
            2 => ReaderWant::Range(0..u64::MAX),
            _ => ReaderWant::Range(PIECE_BYTES + 5..4 * PIECE_BYTES),
        };
        self.readers_made += 1;
        let reader = ReaderId(self.readers_made);
        let until = if let ReaderWant::Range(range) = &want { range.start } else { 0 };
        self.readers.insert(reader, ReaderModel { want: Some(want.clone()), until, over: false });
        self.input(Input::ReaderOpened { reader, digest, want });
    }

    fn opened(&mut self, kind: u8, bits: u16) {
        if !std::mem::take(&mut self.opening) {
            return;
        }
        if self.stored.is_empty() && kind == 3 {
            self.stored = (0..PIECES).filter(|p| bits >> p & 1 == 1).collect();
        }
        let opened = if self.stored.is_empty() && kind < 2 {
            Opened::Absent { owner: kind == 1, backend_down: bits.is_multiple_of(2) }
        } else {
            self.finished &= self.stored.len() == PIECES as usize;
            Opened::Here(LocalBlob {
                metainfo: Arc::new(self.vouched.value().clone()),
                vouched: (!bits.is_multiple_of(3)).then(|| self.vouched.clone()),
                pieces: self.field(&self.stored),
                complete: self.finished,
                in_backend: bits.is_multiple_of(5),
            })
        };
        self.input(Input::BlobOpened { digest: self.digest(), opened });
    }

    /// Takes what the engine wishes into the model, and compares.
    fn check(&mut self) {
        while let Some(effect) = self.engine.poll_effect() {
            if let Some((peer, number)) = self.expecting.take() {
                assert!(
                    matches!(&effect, Effect::Send { peer: to, message: Message::Request { piece, .. } }
                        if *to == peer && *piece == number),
                    "Expect comes right before its Request: {effect:?}"
                );
            }
            self.effect(effect);
        }
        assert!(self.engine.buffered_bytes() <= self.config.buffer_bytes_max);
        // Two pieces open the other zone, whatever else is being sent.
        assert!(self.sending.len() <= self.config.upload_slots_max * 4 + 2);
        for open in self.requested.values() {
            assert!(open.len() <= self.config.pipeline_pieces_max as usize);
        }
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Send { peer, message } => {
                assert!(self.connected.contains(&peer), "{message:?} to a peer that is not connected");
                match message {
                    Message::Join { channel, .. } => {
                        self.channels.insert(peer, channel);
                    }
                    Message::Have { runs, .. } => {
                        let pieces = runs.into_iter().flat_map(|(first, count)| first..first + count);
                        self.told.entry(peer).or_default().push(pieces.collect());
                    }
                    _ => {}
                }
            }
            Effect::Expect { peer, channel, piece, .. } => {
                self.requests(peer, channel, piece.get());
                self.expecting = Some((peer, piece.get()));
            }
            Effect::Unexpect { peer, piece, .. } => {
                if let Some(open) = self.requested.get_mut(&peer) {
                    open.remove(&piece);
                }
            }
            Effect::Disconnect { peer, why, ban } => {
                assert_eq!(ban.is_some(), why == DropReason::CorruptPiece);
                self.gone(peer);
                self.engine.handle_input(self.now, Input::PeerDisconnected { peer });
            }
            Effect::VerifyPiece { piece, buffer, from, .. } => {
                assert!(!self.stored.contains(&piece.get()), "{piece:?} is here already");
                self.verifying.push((piece.get(), buffer, Some(from)));
            }
            Effect::FetchFromBackend { piece, .. } => {
                assert!(!self.stored.contains(&piece.get()) && !self.fetching.contains(&piece.get()));
                self.fetching.push(piece.get());
            }
            Effect::SendPiece { peer, piece, .. } => {
                assert!(self.connected.contains(&peer));
                assert!(self.stored.contains(&piece.get()), "unverified {piece:?} served");
                self.sending.push((peer, piece));
            }
            Effect::OpenBlob { .. } => self.opening = true,
            Effect::FinishBlob { .. } => {
                assert_eq!(self.stored.len(), PIECES as usize);
                self.finishing = true;
            }
            Effect::ReaderAdvance { reader, until } => self.advances(reader, until),
            Effect::ReaderDone { reader } | Effect::ReaderFailed { reader, .. } => {
                let model = self.readers.get_mut(&reader).expect("a reader of ours");
                assert!(!std::mem::replace(&mut model.over, true), "a reader ends twice");
            }
            Effect::Connect { peer, .. } => self.dialed.push(peer),
            Effect::Report(_)
            | Effect::CancelSend { .. }
            | Effect::CreateBlob { .. }
            | Effect::Lookup { .. }
            | Effect::Provide { .. }
            | Effect::DropBuffer { .. }
            | Effect::ReaderStarted { .. } => {}
        }
    }

    /// Nothing is asked for twice but at the very end, nothing that is here, nothing that was not advertised.
    fn requests(&mut self, peer: PeerId, channel: u32, number: u32) {
        assert!(self.connected.contains(&peer));
        assert!(!self.stored.contains(&number), "asks for a piece that is here");
        assert!(
            self.advertised.get(&peer).is_some_and(|set| set.contains(&number)),
            "{number} was not offered"
        );
        let taken: BTreeSet<u32> = self
            .requested
            .values()
            .flat_map(|open| open.keys().copied())
            .chain(self.verifying.iter().map(|(number, ..)| *number))
            .chain(self.fetching.iter().copied())
            .chain(self.stored.iter().copied())
            .collect();
        assert!(
            !taken.contains(&number) || taken.len() == PIECES as usize,
            "{number} is asked for twice while others are not asked for at all: {taken:?}"
        );
        let before = self.requested.entry(peer).or_default().insert(number, channel);
        assert_eq!(before, None, "the same piece twice from the same peer");
    }

    fn advances(&mut self, reader: ReaderId, until: u64) {
        let layout = self.vouched.value().layout();
        let model = self.readers.get_mut(&reader).expect("a reader of ours");
        assert!(!model.over && until > model.until && until <= layout.size());
        for piece in layout.pieces_in(model.until..until) {
            assert!(self.stored.contains(&piece.get()), "an unverified byte is released");
        }
        assert!(until < layout.size() || self.finished, "the end of an unchecked blob is released");
        model.until = until;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(800))]

    /// Whatever comes in any order, the engine does not panic and keeps its word.
    #[test]
    fn agrees_with_the_model(seed: u64, tight: bool, ops in prop::collection::vec(op(), 1..120)) {
        let mut config = EngineConfig::default();
        if tight {
            config.buffer_bytes_max = 3 * PIECE_BYTES;
            config.candidates_per_swarm_max = 2;
            config.upload_slots = 1;
            config.upload_slots_max = 1;
            config.rate_in_bytes_per_sec = Some(500_000);
            config.zone_rate_out_bytes_per_sec = Some(100_000);
        }
        let mut world = World::new(config, seed);
        for op in ops {
            world.apply(op);
        }
        // Whatever waits comes to an end: no timer spins, and readers are heard of in time.
        world.wait(Duration::from_secs(120));
    }
}

/// A world with a reader and a connected peer that has the whole blob.
fn downloading() -> World {
    downloading_with(EngineConfig::default())
}

fn downloading_with(config: EngineConfig) -> World {
    let mut world = World::new(config, 1);
    for op in [
        Op::Connect(0),
        Op::Read(2),
        Op::Opened(0, 1),
        Op::Found(0, true),
        Op::Join(0, false, false),
        Op::Metainfo(0),
        Op::Bitfield(0, u16::MAX),
    ] {
        world.apply(op);
    }
    world
}

#[test]
fn pieces_come_in_a_readers_order_and_the_last_waits_for_the_digest() {
    let mut world = downloading();
    assert_eq!(world.first_request(0).unwrap().0, 0);
    for _ in 0..PIECES {
        world.apply(Op::Deliver(0, true));
        world.apply(Op::Verify(true));
    }
    let layout = world.vouched.value().layout();
    let last = layout.range_of(world.piece(PIECES - 1)).start;
    assert_eq!(world.readers[&ReaderId(1)].until, last);
    world.apply(Op::Finish(true));
    assert_eq!(world.readers[&ReaderId(1)].until, layout.size());
    assert!(world.readers[&ReaderId(1)].over);
}

#[test]
fn nobody_is_bothered_with_news_of_what_he_has_before_there_is_other_news() {
    let mut world = downloading();
    for op in [Op::Connect(1), Op::Join(1, false, false), Op::Bitfield(1, 0b1)] {
        world.apply(op);
    }
    let next = |world: &mut World| {
        // From the seeder, in order.
        world.apply(Op::Deliver(0, true));
        world.apply(Op::Verify(true));
        world.wait(Duration::from_millis(100));
    };
    next(&mut world);
    assert_eq!(world.told.get(&peer(1)), None, "it has that piece itself");
    assert_eq!(world.told[&peer(0)], [BTreeSet::from([0])], "a seeder wants to know who has what");
    next(&mut world);
    assert_eq!(world.told[&peer(1)], [BTreeSet::from([0, 1])], "both at once");
    while world.stored.len() < PIECES as usize {
        next(&mut world);
    }
    world.apply(Op::Finish(true));
    let all: BTreeSet<u32> = world.told[&peer(1)].iter().flatten().copied().collect();
    assert_eq!(all, (0..PIECES).collect(), "in the end it knows everything");
}

#[test]
fn a_corrupt_piece_ends_the_connection_with_a_ban() {
    let mut world = downloading();
    world.apply(Op::Deliver(0, true));
    world.apply(Op::Verify(false));
    assert!(!world.connected.contains(&peer(0)));
    assert_eq!(world.engine.buffered_bytes(), 0);
}

#[test]
fn metainfo_that_is_refused_leaves_the_peer_without_blame_and_others_are_used() {
    let mut world = World::new(EngineConfig::default(), 7);
    for op in [
        Op::Connect(0),
        Op::Connect(1),
        Op::Read(2),
        Op::Opened(0, 1),
        Op::Found(0, true),
        Op::Found(1, true),
    ] {
        world.apply(op);
    }
    for n in 0..2 {
        world.apply(Op::Join(n, false, false));
    }
    world.apply(Op::MetainfoRefused(0));
    assert!(world.connected.contains(&peer(0)));
    // What the peer had sent before it heard of it is passed over.
    world.apply(Op::Bitfield(0, u16::MAX));
    assert!(world.connected.contains(&peer(0)));
    world.apply(Op::Metainfo(1));
    world.apply(Op::Bitfield(1, u16::MAX));
    assert!(world.first_request(1).is_some());
}

#[test]
fn legal_races_are_not_punished() {
    let mut world = downloading();
    // Payload that crossed a cancel, a cancel of what was never asked, and messages after we left.
    for op in [Op::Deliver(0, false), Op::Cancel(0, 3), Op::Leave(0), Op::Request(0, 3), Op::Have(0, 1, 2)] {
        world.apply(op);
    }
    assert!(world.connected.contains(&peer(0)));
    // A request outside the blob is.
    let mut world = downloading();
    let to = world.to(0);
    world.say(0, Message::Request { to, piece: PIECES });
    assert!(!world.connected.contains(&peer(0)));
}

#[test]
fn a_hundred_readers_are_one_download() {
    let mut world = downloading();
    let before: usize = world.requested.values().map(BTreeMap::len).sum();
    for _ in 0..100 {
        world.apply(Op::Read(2));
    }
    assert_eq!(world.requested.values().map(BTreeMap::len).sum::<usize>(), before);
    assert_eq!(world.engine.swarms().count(), 1);
    assert_eq!(world.engine.swarms().next().unwrap().readers, 101);
}

#[test]
fn a_failed_disk_fails_the_readers() {
    let mut world = downloading();
    world.apply(Op::Deliver(0, true));
    world.apply(Op::WriteFails);
    assert!(world.readers[&ReaderId(1)].over);
    assert_eq!(world.engine.swarms().count(), 0);
    assert_eq!(world.engine.buffered_bytes(), 0, "what was asked for is given up");
}

#[test]
fn metainfo_that_proved_wrong_is_not_believed_again() {
    let mut world = downloading();
    for _ in 0..PIECES {
        world.apply(Op::Deliver(0, true));
        world.apply(Op::Verify(true));
    }
    world.apply(Op::Finish(false));
    for op in [Op::Read(2), Op::Opened(0, 1), Op::Found(0, true), Op::Join(0, false, false), Op::Metainfo(0)]
    {
        world.apply(op);
    }
    assert_eq!(world.engine.swarms().next().unwrap().size, None);
}

#[test]
fn too_many_swarms_are_refused() {
    let config = EngineConfig { swarms_max: 1, ..EngineConfig::default() };
    let mut engine = Engine::new(config, peer(99), Zone::default(), 1, Timestamp::ZERO);
    for number in 0..2u8 {
        let input = Input::ReaderOpened {
            reader: ReaderId(number.into()),
            digest: Digest::sha256(&[number]),
            want: ReaderWant::Whole,
        };
        engine.handle_input(Timestamp::ZERO, input);
    }
    let effects = effects(&mut engine);
    let refused = effects
        .iter()
        .any(|effect| matches!(effect, Effect::ReaderFailed { reader: ReaderId(1), why: ReadError::Busy }));
    assert!(refused, "{effects:?}");
}

#[test]
fn what_nobody_uses_is_forgotten() {
    let mut world = downloading();
    world.apply(Op::Close(0));
    world.apply(Op::Disconnect(0));
    world.wait(world.config.linger * 3);
    assert_eq!(world.engine.swarms().count(), 0);
    assert_eq!(world.engine.peers().count(), 0);
    assert_eq!(world.engine.poll_timeout(), None, "nothing is left to do");
}

#[test]
fn reports_name_the_sender() {
    let mut world = downloading();
    world.apply(Op::Deliver(0, true));
    let (number, ..) = world.verifying.pop().unwrap();
    let input = Input::PieceVerified { digest: world.digest(), piece: world.piece(number) };
    world.engine.handle_input(world.now, input);
    let mut events = std::iter::from_fn(|| world.engine.poll_effect());
    assert!(events.any(|effect| {
        matches!(effect, Effect::Report(report)
            if matches!(report.event, Event::PieceReceived { from: Some(from), .. } if from == peer(0)))
    }));
}
