//! What decisions cost in a large swarm: 10,000 pieces, 200 peers.

#![expect(clippy::expect_used, clippy::arithmetic_side_effects, reason = "a benchmark")]

use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use shoal_engine::io::{BufferId, Effect, Input, LocalBlob, Opened, ReaderId, ReaderWant};
use shoal_engine::message::Message;
use shoal_engine::{Engine, EngineConfig};
use shoal_types::{Bitfield, Digest, Metainfo, PeerId, PieceHash, PieceLayout, Role, Roles, Timestamp, Zone};

const PIECES: u32 = 10_000;
const PEERS: u32 = 200;
const PIECE_BYTES: u32 = 256 * 1024;

struct Swarm {
    engine: Engine,
    metainfo: Arc<Metainfo>,
    now: Timestamp,
    buffers: u64,
}

fn peer(number: u32) -> PeerId {
    let mut key = [1; 32];
    key[..4].copy_from_slice(&number.to_le_bytes());
    PeerId::from_public_key(key)
}

impl Swarm {
    /// A swarm of this engine and `PEERS` peers, each of which has the pieces that `has` says.
    fn new(complete: bool, has: impl Fn(u32, u32) -> bool) -> Self {
        let config = EngineConfig {
            peers_per_swarm_max: PEERS as usize,
            peers_per_swarm_inbound_max: PEERS as usize,
            upload_slots: 1 << 20,
            upload_burst: 1 << 20,
            upload_queue_min: 1 << 12,
            messages_per_sec_max: u64::MAX >> 1,
            ..EngineConfig::default()
        };
        let size = u64::from(PIECES) * u64::from(PIECE_BYTES);
        let layout = PieceLayout::new(size, PIECE_BYTES).expect("a power of two");
        let hashes = layout.pieces().map(|piece| PieceHash::of(&piece.get().to_le_bytes())).collect();
        let metainfo =
            Arc::new(Metainfo::new(Digest::sha256(b"bench"), layout, hashes).expect("a hash a piece"));
        let now = Timestamp::ZERO;
        let engine = Engine::new(config, peer(u32::MAX), Zone::default(), 1, now);
        let mut swarm = Self { engine, metainfo, now, buffers: 0 };
        let digest = swarm.metainfo.digest();
        let whole = ReaderWant::Whole;
        swarm.tell(Input::ReaderOpened { reader: ReaderId(1), digest, want: whole });
        let pieces = if complete { Bitfield::full(PIECES) } else { Bitfield::new(PIECES) };
        let blob = LocalBlob {
            metainfo: swarm.metainfo.clone(),
            vouched: None,
            pieces,
            complete,
            in_backend: false,
        };
        swarm.tell(Input::BlobOpened { digest, opened: Opened::Here(blob) });
        for number in 0..PEERS {
            let roles = Roles::NONE.with(Role::Node);
            let zone = Zone::default();
            swarm.tell(Input::PeerConnected { peer: peer(number), zone, roles, endpoints: Vec::new() });
            swarm.say(
                number,
                Message::Join { channel: 0, digest, wants_metainfo: false, probe: false, trace: None },
            );
            let mut pieces = Bitfield::new(PIECES);
            for piece in layout.pieces().filter(|piece| has(number, piece.get())) {
                pieces.insert(piece);
            }
            swarm.say(number, Message::Bitfield { to: 0, pieces: pieces.to_bytes().into() });
        }
        swarm
    }

    fn tell(&mut self, input: Input) {
        self.engine.handle_input(self.now, input);
    }

    fn say(&mut self, number: u32, message: Message) {
        self.tell(Input::Message { peer: peer(number), message });
    }

    /// Delivers what is asked for until nothing is; returns the pieces delivered.
    fn download(&mut self) -> u32 {
        let digest = self.metainfo.digest();
        let mut delivered = 0;
        while let Some(effect) = self.engine.poll_effect() {
            match effect {
                Effect::Expect { peer, channel, piece, .. } => {
                    self.buffers += 1;
                    let buffer = BufferId(self.buffers);
                    self.now = self.now + Duration::from_micros(10);
                    self.tell(Input::PieceArrived {
                        peer,
                        channel,
                        piece: piece.get(),
                        buffer,
                        since_first: Duration::ZERO,
                    });
                    self.tell(Input::PieceVerified { digest, piece });
                    delivered += 1;
                }
                Effect::SendPiece { peer, piece, .. } => {
                    self.now = self.now + Duration::from_micros(10);
                    self.tell(Input::PieceSent { peer, digest, piece, bytes: PIECE_BYTES });
                    delivered += 1;
                }
                _ => {}
            }
        }
        delivered
    }
}

fn engine(c: &mut Criterion) {
    let mut group = c.benchmark_group("engine, 10,000 pieces, 200 peers");
    group.sample_size(10).throughput(Throughput::Elements(PIECES.into()));
    group.bench_function("a piece asked for, received and told", |bench| {
        let swarm = || Swarm::new(false, |number, piece| (number + piece) % 3 != 0);
        bench.iter_batched_ref(
            swarm,
            |swarm| {
                // The last pieces may be asked of a second peer.
                let received = swarm.download();
                assert!((PIECES..PIECES + PIECES / 100).contains(&received), "{received} pieces received");
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("a have", |bench| {
        bench.iter_batched_ref(
            || Swarm::new(true, |_, _| false),
            |swarm| {
                for number in 0..PIECES {
                    swarm.say(number % PEERS, Message::Have { to: 0, runs: vec![(number, 1)] });
                }
                while swarm.engine.poll_effect().is_some() {}
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("a request served", |bench| {
        bench.iter_batched_ref(
            || Swarm::new(true, |_, _| false),
            |swarm| {
                let mut served = 0;
                for number in 0..PIECES {
                    swarm.say(number % PEERS, Message::Request { to: 0, piece: number });
                    served += swarm.download();
                }
                assert_eq!(served, PIECES, "everything is served");
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, engine);
criterion_main!(benches);
