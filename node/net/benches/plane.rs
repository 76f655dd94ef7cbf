//! The data plane between two processes on loopback: TLS, frames, buffers, and the way to the daemon and back. What is not in
//! it: the engine, hashes and disks.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "a benchmark, and what it tells its parent")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, Throughput};
use shoal_engine::message::Message;
use shoal_net::data::{DataConfig, DataEvent, DataHandle, DataPlane, PieceSource};
use shoal_net::identity::Identity;
use shoal_net::tls::{TlsSetup, system_clock};
use shoal_types::{Credential, Digest, Endpoint, Keypair, MeshKey, PeerId, Role, Roles, WallTime, Zone};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

/// Set in the process that gives.
const GIVER: &str = "SHOAL_BENCH_GIVER";
const CHANNEL: u32 = 7;
/// Pieces asked for at once.
const WINDOW: u32 = 16;
/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

fn setup(seed: u8) -> TlsSetup {
    let (mesh, keypair) = (MeshKey::from_secret(&[1; 32]), Keypair::from_secret(&[seed; 32]));
    let credential = mesh.issue(Credential {
        peer: keypair.peer_id(),
        roles: Roles::NONE.with(Role::Node),
        zone: Zone::default(),
        namespaces: vec![],
        not_before: WallTime::default(),
        not_after: system_clock()().saturating_add(Duration::from_secs(3600)),
        issuer: None,
    });
    let identity = Identity { keypair, credential, mesh: mesh.public() };
    TlsSetup::new(identity, system_clock(), TlsSetup::admit_members()).expect("a set-up")
}

async fn bind(seed: u8) -> (DataHandle, mpsc::Receiver<DataEvent>) {
    let config = DataConfig { listen: (Ipv4Addr::LOCALHOST, 0).into(), ..DataConfig::default() };
    DataPlane::bind(config, setup(seed)).await.expect("a port")
}

/// Gives pieces of as many bytes as the number of the piece says, in KiB above the lowest sixteen bits, and answers
/// questions with themselves, until its input ends.
fn give() {
    let runtime = Runtime::new().expect("a runtime");
    runtime.spawn(async {
        let (handle, mut events) = bind(2).await;
        println!("{}", handle.local_addr());
        std::io::stdout().flush().expect("a reader");
        let most = Bytes::from(vec![0x5a; 4 << 20]);
        while let Some(event) = events.recv().await {
            match event {
                DataEvent::Message { peer, message: Message::Request { to, piece } } => {
                    let source = PieceSource::Bytes(most.slice(..bytes_of(piece)));
                    handle.send_piece(peer, to, piece, source).expect("room for it");
                }
                DataEvent::Call { body, answer, .. } => answer.answer(body),
                _ => {}
            }
        }
    });
    let _ = std::io::stdin().lines().count();
}

fn bytes_of(piece: u32) -> usize {
    ((piece >> 16) as usize) << 10
}

struct Taker {
    runtime: Runtime,
    handle: DataHandle,
    events: mpsc::Receiver<DataEvent>,
    giver: PeerId,
    process: Child,
    next: u32,
}

impl Taker {
    fn start() -> Self {
        let program = std::env::current_exe().expect("a path");
        let mut process = Command::new(program)
            .env(GIVER, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("another process");
        let mut line = String::new();
        let said = process.stdout.take().expect("piped");
        BufReader::new(said).read_line(&mut line).expect("its address");
        let address: SocketAddr = line.trim().parse().expect("an address");
        let runtime = Runtime::new().expect("a runtime");
        let giver = Keypair::from_secret(&[2; 32]).peer_id();
        let (handle, events) = runtime.block_on(async {
            let (handle, mut events) = bind(3).await;
            handle.connect(giver, vec![Endpoint::from_ip(address.ip(), address.port())]);
            match events.recv().await {
                Some(DataEvent::Connected { .. }) => (handle, events),
                other => panic!("{other:?}"),
            }
        });
        Self { runtime, handle, events, giver, process, next: 0 }
    }

    /// Asks for `count` pieces of `kib` KiB, [`WINDOW`] at a time, and waits for all.
    fn take(&mut self, count: u32, kib: u32) {
        let (handle, giver) = (self.handle.clone(), self.giver);
        let digest = Digest::sha256(b"bench");
        let mut ask = || {
            self.next = (self.next + 1) & 0xffff;
            let piece = kib << 16 | self.next;
            handle.expect(giver, CHANNEL, digest, piece, kib << 10);
            handle.send(giver, Message::Request { to: CHANNEL, piece }).expect("connected");
        };
        let mut asked = WINDOW.min(count);
        (0..asked).for_each(|_| ask());
        let events = &mut self.events;
        self.runtime.block_on(async {
            let mut arrived = 0;
            while arrived < count {
                let event = tokio::time::timeout(PATIENCE, events.recv()).await.expect("it goes on");
                if let Some(DataEvent::PieceArrived { buffer, .. }) = event {
                    assert_eq!(buffer.len(), (kib << 10) as usize);
                    arrived += 1;
                    if asked < count {
                        asked += 1;
                        ask();
                    }
                }
            }
        });
    }

    fn question(&self) {
        let asked = self.handle.call(self.giver, Bytes::from_static(&[1; 200]), PATIENCE);
        let answer = self.runtime.block_on(asked).expect("an answer");
        assert_eq!(answer.len(), 200);
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

fn plane(c: &mut Criterion) {
    let mut taker = Taker::start();
    let mut group = c.benchmark_group("data plane between two processes");
    group.sample_size(20);
    for kib in [256, 1024, 4096] {
        group.throughput(Throughput::Bytes(u64::from(kib) << 10));
        group.bench_function(format!("pieces of {kib} KiB"), |bench| {
            bench.iter_custom(|count| {
                let begun = Instant::now();
                taker.take(u32::try_from(count).expect("not that many"), kib);
                begun.elapsed()
            });
        });
    }
    group.throughput(Throughput::Elements(1));
    group.bench_function("a question and its answer", |bench| bench.iter(|| taker.question()));
    group.finish();
}

fn main() {
    if std::env::var_os(GIVER).is_some() {
        return give();
    }
    let mut criterion = Criterion::default().configure_from_args();
    plane(&mut criterion);
    criterion.final_summary();
}
