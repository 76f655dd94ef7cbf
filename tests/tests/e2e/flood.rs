//! Strangers by the thousand at every port of a gateway and of its origin's planes, while a member pulls: ten thousand
//! connections that say rubbish at each, and hundreds that stay and say a byte at a time.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use futures::stream;
use shoal_tests::image::{Blob, noise};
use shoal_tests::wait::PATIENCE;
use shoal_tests::{Mesh, system, wait_until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::MIB;

/// Connections that say rubbish, at each port.
const RUBBISH: usize = 10_000;
/// Of those, so many at once at each port.
const RUBBISH_AT_ONCE: usize = 32;
/// Pause between two at each of these places: together the ports get about a thousand a second, so that the strangers'
/// own work, on the same processors, is not what is measured.
const RUBBISH_PAUSE: Duration = Duration::from_millis(300);
/// Connections that say a byte at a time, at each port.
const SLOW: usize = 300;
const SLOW_PAUSE: Duration = Duration::from_secs(2);
/// Addresses that the strangers come from, so that it is not one address's limit that stops them.
const ADDRESSES: usize = 250;
const BLOB_BYTES: usize = 16 * MIB;
/// Pulls before the flood and again after it. The best of them counts: the machine has other things to do, too.
const QUIET_PULLS: usize = 5;
/// What a process may grow by, in bytes.
const GROWTH_BYTES_MAX: u64 = 128 << 20;
/// What pulls must keep of their speed.
const SPEED_KEPT_MIN: f64 = 0.8;

async fn from_somewhere(number: usize, to: SocketAddr) -> Result<TcpStream> {
    let last = u8::try_from(number % ADDRESSES)? + 1;
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::new(127, 66, 0, last), 0).into())?;
    Ok(socket.connect(to).await?)
}

/// One connection that says rubbish and waits to be hung up on.
async fn rubbish(number: usize, to: SocketAddr) -> Result<()> {
    let Ok(mut stream) = from_somewhere(number, to).await else { return Ok(()) };
    let _ = stream.write_all(&noise(number as u64, 200)).await;
    let _ = stream.shutdown().await;
    let mut answer = [0; 1024];
    let all = async { while stream.read(&mut answer).await.is_ok_and(|bytes| bytes > 0) {} };
    tokio::time::timeout(PATIENCE, all).await.with_context(|| format!("rubbish at {to} stays connected"))
}

/// Says the beginning of something sensible a byte at a time, again and again, until `over`.
async fn slow(number: usize, to: SocketAddr, over: Arc<AtomicBool>) {
    const BEGINNING: &[u8] = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow: ";
    while !over.load(Ordering::Relaxed) {
        let Ok(mut stream) = from_somewhere(number, to).await else {
            tokio::time::sleep(SLOW_PAUSE).await;
            continue;
        };
        for byte in BEGINNING.iter().chain(std::iter::repeat(&b'x')) {
            if over.load(Ordering::Relaxed) || stream.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(SLOW_PAUSE).await;
        }
    }
}

/// Pulls a blob that only others have; gives bytes a second.
async fn pull(mesh: &Mesh, seed: u64) -> Result<f64> {
    let blob = Blob::new("application/octet-stream", noise(seed, BLOB_BYTES));
    mesh.registry("g0", "e2e/blob")?.push_blob(&blob).await?;
    let start = Instant::now();
    let bytes = mesh.registry("g1", "e2e/blob")?.pull_blob(&blob.digest).await?;
    Ok(bytes as f64 / start.elapsed().as_secs_f64())
}

async fn best(mesh: &Mesh, seeds: std::ops::Range<u64>) -> Result<f64> {
    let mut best = 0f64;
    for seed in seeds {
        best = best.max(pull(mesh, seed).await?);
    }
    Ok(best)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_strangers_at_each_port_do_not_slow_members_down() -> Result<()> {
    let mut mesh = Mesh::with_gateways(2).exclusive().start().await?;
    let quiet = QUIET_PULLS as u64;
    let mut before = best(&mesh, 2000..2000 + quiet).await?;
    let mut ports = Vec::new();
    for name in ["g1", "o0", "b0"] {
        ports.extend(mesh.node(name)?.ready().ports()?.into_iter().map(|(port, addr)| (name, port, addr)));
    }
    ensure!(ports.len() >= 8, "{ports:?}");
    let memory = |field: &str| -> Result<Vec<u64>> {
        ["g1", "o0", "b0"].iter().map(|name| system::memory_bytes(mesh.node(name)?.pid()?, field)).collect()
    };
    let used = memory("VmHWM")?;

    let (over, thrown) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (mut slow_ones, mut throwers) = (JoinSet::new(), JoinSet::new());
    for (at, (_, _, to)) in ports.iter().copied().enumerate() {
        for number in 0..SLOW {
            slow_ones.spawn(slow(at + number, to, over.clone()));
        }
        let thrown = thrown.clone();
        throwers.spawn(async move {
            let one = |number: usize| {
                let thrown = thrown.clone();
                async move {
                    rubbish(at + number, to).await?;
                    thrown.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(RUBBISH_PAUSE).await;
                    anyhow::Ok(())
                }
            };
            let mut all = stream::iter(0..RUBBISH).map(one).buffer_unordered(RUBBISH_AT_ONCE);
            while let Some(done) = all.next().await {
                done?;
            }
            anyhow::Ok(())
        });
    }
    let (mut during, mut pulls) = (Vec::new(), 0);
    while thrown.load(Ordering::Relaxed) < RUBBISH * ports.len() {
        let at = thrown.load(Ordering::Relaxed);
        during.push((at, pull(&mesh, 2100 + pulls).await?));
        pulls += 1;
        // A thrower that failed says why.
        while let Some(done) = throwers.try_join_next() {
            done??;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    while let Some(done) = throwers.join_next().await {
        done??;
    }
    over.store(true, Ordering::Relaxed);
    slow_ones.join_all().await;
    before = before.max(best(&mesh, 2500..2500 + quiet).await?);
    let fastest = during.iter().map(|(_, speed)| *speed).fold(0.0, f64::max);
    eprintln!(
        "pulls: {:.0} MB/s in peace, {:.0} MB/s among {} strangers, best of {}",
        before / 1e6,
        fastest / 1e6,
        thrown.load(Ordering::Relaxed),
        during.len()
    );
    for (name, (used, now)) in ["g1", "o0", "b0"].iter().zip(used.iter().zip(memory("VmHWM")?)) {
        eprintln!("{name}: {} MiB before, {} MiB at the most", used >> 20, now >> 20);
        ensure!(now < used + GROWTH_BYTES_MAX, "{name} grew from {used} to {now} bytes");
    }
    mesh.check_running()?;
    ensure!(fastest >= SPEED_KEPT_MIN * before, "{fastest} bytes a second instead of {before}: {during:?}");
    // Nobody is left, at whatever port.
    for (name, port, to) in ports {
        wait_until(&format!("{name} answers at {port}"), PATIENCE, async || {
            Ok(TcpStream::connect(to).await.is_ok().then_some(()))
        })
        .await?;
    }
    mesh.finish().await
}
