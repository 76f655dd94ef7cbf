//! Strangers that flood: connections that bring garbage, and slow-lorises, which send a byte at a time and connect again
//! when they are hung up on. They stand for other machines, and so run on a thread of their own that takes what processors
//! others leave: neither the clients of a test nor the members share their time with them more than their packets ask.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use rand_core::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// How long a connection is held that the other side does not close.
const HOLD: Duration = Duration::from_secs(2);
/// Pause of a slow-loris between two bytes, and before it connects again.
const LORIS_PAUSE: Duration = Duration::from_millis(500);
/// How long to wait for a connection, and before the next one after a failure.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const FAILED_PAUSE: Duration = Duration::from_millis(20);
/// The longest garbage in bytes; a request's head without end is that long.
const GARBAGE_BYTES_MAX: usize = 60 << 10;
/// The seed of a request's head without end.
const MUCH: u64 = 7;

/// What a flood is like, at each port.
#[derive(Clone, Debug)]
pub struct Flood {
    /// Addresses of the loopback network that it comes from, in turn.
    pub sources: Vec<Ipv4Addr>,
    /// Connections that bring garbage.
    pub garbage: usize,
    /// Of these open at once.
    pub at_once: usize,
    /// Slow-lorises at once.
    pub lorises: usize,
    /// Decides what the garbage is.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Tally {
    /// Connections that were opened.
    pub opened: AtomicUsize,
    /// Connections that could not be opened.
    pub failed: AtomicUsize,
    /// Connections of slow-lorises.
    pub lorises: AtomicUsize,
    /// The most bytes that a connection with garbage heard.
    pub heard_most: AtomicUsize,
}

/// A flood under way. Its slow-lorises go on until it is dropped.
#[derive(Debug)]
pub struct Running {
    /// What came of it so far.
    pub tally: Arc<Tally>,
    garbage: JoinSet<()>,
    _lorises: JoinSet<()>,
    runtime: Option<Runtime>,
}

/// The least priority that is not idle.
const NICE_MAX: i32 = 19;

impl Drop for Running {
    fn drop(&mut self) {
        // Its tasks end with the sets; waiting for its thread is not for a test's.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The first `count` addresses of 127.77.0.0/16.
pub fn sources(count: u8) -> Vec<Ipv4Addr> {
    (1..=count).map(|n| Ipv4Addr::new(127, 77, 0, n)).collect()
}

impl Flood {
    /// Begins it.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub fn start(&self, ports: &[SocketAddr]) -> Result<Running> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .on_thread_start(|| {
                // Of this thread alone, on Linux.
                let _ = rustix::process::setpriority_process(None, NICE_MAX);
            })
            .build()?;
        let tally = Arc::new(Tally::default());
        let (mut garbage, mut lorises) = (JoinSet::new(), JoinSet::new());
        for (number, port) in ports.iter().copied().enumerate() {
            let next = Arc::new(AtomicUsize::new(0));
            for _ in 0..self.at_once.min(self.garbage) {
                let (flood, tally, next) = (self.clone(), tally.clone(), next.clone());
                garbage.spawn_on(
                    async move { flood.worker(port, number, &next, &tally).await },
                    runtime.handle(),
                );
            }
            for loris in 0..self.lorises {
                let source = self.source(loris);
                let tally = tally.clone();
                lorises
                    .spawn_on(async move { slow_loris(port, source, loris, &tally).await }, runtime.handle());
            }
        }
        Ok(Running { tally, garbage, _lorises: lorises, runtime: Some(runtime) })
    }

    fn source(&self, number: usize) -> Ipv4Addr {
        self.sources.get(number % self.sources.len().max(1)).copied().unwrap_or(Ipv4Addr::LOCALHOST)
    }

    async fn worker(&self, port: SocketAddr, port_number: usize, next: &AtomicUsize, tally: &Tally) {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= self.garbage {
                return;
            }
            let seed = self.seed ^ (port_number as u64) << 32 ^ number as u64;
            let garbage = garbage(seed);
            match open(port, self.source(number)).await {
                Ok(stream) => {
                    tally.opened.fetch_add(1, Ordering::Relaxed);
                    let heard = throw(stream, &garbage).await;
                    tally.heard_most.fetch_max(heard, Ordering::Relaxed);
                }
                Err(_) => {
                    tally.failed.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(FAILED_PAUSE).await;
                }
            }
        }
    }
}

impl Running {
    /// Whether all garbage has been thrown.
    pub fn is_over(&mut self) -> bool {
        while self.garbage.try_join_next().is_some() {}
        self.garbage.is_empty()
    }

    /// Waits until all garbage has been thrown; the slow-lorises end.
    ///
    /// # Errors
    /// When one of its tasks panicked.
    pub async fn finish(mut self) -> Result<Arc<Tally>> {
        while let Some(done) = self.garbage.join_next().await {
            ensure!(done.is_ok(), "a task of the flood panicked");
        }
        Ok(self.tally.clone())
    }
}

async fn open(port: SocketAddr, source: Ipv4Addr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    // Closed with a reset: ten thousand that wait for their last packet would use up the ports.
    socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
    socket.bind(SocketAddr::from((IpAddr::V4(source), 0)))?;
    Ok(tokio::time::timeout(CONNECT_TIMEOUT, socket.connect(port)).await??)
}

/// What a stranger may send, by a seed.
fn garbage(seed: u64) -> Vec<u8> {
    let mut random = Pcg64Mcg::seed_from_u64(seed);
    let mut noise = |most: usize| {
        let mut bytes = vec![0; random.next_u32() as usize % most + 1];
        random.fill_bytes(&mut bytes);
        bytes
    };
    let after = |start: &[u8], rest: Vec<u8>| [start, &rest].concat();
    match seed % 8 {
        0 => Vec::new(),
        1 => noise(64),
        2 => noise(16 << 10),
        // A TLS record of a client hello that is none; then the same after the control plane's first words.
        3 => after(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3], noise(1 << 10)),
        4 => after(b"\x13/multistream/1.0.0\n\x0b/tls/1.0.0\n\x16\x03\x01\x02\x00\x01", noise(1 << 10)),
        5 => after(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n", noise(1 << 10)),
        6 => b"PUT /v2/a/manifests/x HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n{".to_vec(),
        // A head that is nearly as long as one may be, and has no end.
        _ => after(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Much: ", vec![b'a'; GARBAGE_BYTES_MAX]),
    }
}

/// Sends it, and listens until the other side closes, or for [`HOLD`]. Returns how much was heard, in bytes.
async fn throw(mut stream: TcpStream, garbage: &[u8]) -> usize {
    let mut heard = 0;
    // Being cut off in the middle of it is the right answer.
    let exchange = async {
        if stream.write_all(garbage).await.is_err() {
            return;
        }
        let mut part = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut part).await {
            heard += read;
        }
    };
    let _ = tokio::time::timeout(HOLD, exchange).await;
    heard
}

/// Says what each protocol begins with, a byte at a time, over and over.
async fn slow_loris(port: SocketAddr, source: Ipv4Addr, number: usize, tally: &Tally) {
    const BEGINNINGS: [&[u8]; 4] = [
        b"GET /v2/ HTTP/1.1\r\nHost: registry\r\nX-Slow: ",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x13/multistream/1.0.0\n\x0b/tls/1.0.0\n\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"",
    ];
    let beginning = BEGINNINGS.get(number % BEGINNINGS.len()).copied().unwrap_or_default();
    loop {
        let Ok(mut stream) = open(port, source).await else {
            tokio::time::sleep(LORIS_PAUSE).await;
            continue;
        };
        tally.lorises.fetch_add(1, Ordering::Relaxed);
        // Some bring much to begin with, for who would keep it.
        let much = if beginning.is_empty() { garbage(MUCH) } else { Vec::new() };
        // Whoever has hung up refuses the next byte.
        let _ = stream.write_all(&much).await;
        for byte in beginning.iter().chain(std::iter::repeat(&b'a')) {
            if stream.write_all(&[*byte]).await.is_err() {
                break;
            }
            let mut part = [0; 512];
            match tokio::time::timeout(LORIS_PAUSE, stream.read(&mut part)).await {
                Err(_) | Ok(Ok(1..)) => {}
                Ok(Ok(0) | Err(_)) => break,
            }
        }
        tokio::time::sleep(LORIS_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_is_of_every_kind_and_the_same_for_a_seed() {
        let lengths: Vec<_> = (0..8).map(|seed| garbage(seed).len()).collect();
        assert!(lengths[0] == 0 && lengths[7] > GARBAGE_BYTES_MAX);
        assert_eq!(garbage(3), garbage(3));
        assert_ne!(garbage(3), garbage(11));
    }
}
