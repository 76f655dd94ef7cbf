//! A link between two zones: packets come out of one TUN device and go into the other after the link's delay. The
//! rate is the kernel's (`tbf` on each device), before a packet comes here.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tun_rs::SyncDevice;

/// Largest packet a TUN device gives: its MTU, with room.
const PACKET_BYTES_MAX: usize = 2048;
/// Packets under way in one direction at most: 100 ms at 1 Gbit/s. Beyond it they are dropped, and counted.
const PACKETS_MAX: usize = 8192;
/// An Ethernet header's bytes, counted with every packet as on a host's wire.
const ETHERNET_HEAD_BYTES: u64 = 14;
/// How often a reader looks whether it is to end.
const END_POLL: Duration = Duration::from_millis(100);

/// What crossed a link.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl Counters {
    /// Bytes of all packets, both ways, an Ethernet header each included.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Packets dropped here.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
struct Pipe {
    packets: Mutex<VecDeque<(Instant, Vec<u8>)>>,
    come: Condvar,
}

/// A running link; it ends when it is dropped.
pub(crate) struct Relay {
    counters: Arc<Counters>,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    pub(crate) fn start(one: Arc<SyncDevice>, other: Arc<SyncDevice>, delay: Duration) -> Self {
        let counters = Arc::new(Counters::default());
        let ended = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (from, to) in [(Arc::clone(&one), Arc::clone(&other)), (other, one)] {
            let pipe = Arc::new(Pipe::default());
            let (inner, ending, counting) = (Arc::clone(&pipe), Arc::clone(&ended), Arc::clone(&counters));
            threads.push(std::thread::spawn(move || take_in(&from, &inner, delay, &ending, &counting)));
            let ending = Arc::clone(&ended);
            threads.push(std::thread::spawn(move || give_out(&to, &pipe, &ending)));
        }
        Self { counters, ended, threads }
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A relay that panicked has shown itself in the figures.
            let _ = thread.join();
        }
    }
}

fn take_in(from: &SyncDevice, pipe: &Pipe, delay: Duration, ended: &AtomicBool, counters: &Counters) {
    let mut buffer = [0; PACKET_BYTES_MAX];
    while !ended.load(Ordering::Relaxed) {
        let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: END_POLL.subsec_nanos().into() };
        let mut polled = [rustix::event::PollFd::new(from, rustix::event::PollFlags::IN)];
        if !matches!(rustix::event::poll(&mut polled, Some(&wait)), Ok(1..)) {
            continue;
        }
        let Ok(len) = from.recv(&mut buffer) else { continue };
        counters.bytes.fetch_add(len as u64 + ETHERNET_HEAD_BYTES, Ordering::Relaxed);
        let mut packets = pipe.packets.lock().unwrap_or_else(PoisonError::into_inner);
        if packets.len() >= PACKETS_MAX {
            counters.dropped.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        packets.push_back((Instant::now() + delay, buffer[..len].to_vec()));
        drop(packets);
        pipe.come.notify_one();
    }
}

fn give_out(to: &SyncDevice, pipe: &Pipe, ended: &AtomicBool) {
    loop {
        let mut packets = pipe.packets.lock().unwrap_or_else(PoisonError::into_inner);
        while packets.is_empty() {
            if ended.load(Ordering::Relaxed) {
                return;
            }
            let waited = pipe.come.wait_timeout(packets, END_POLL).unwrap_or_else(PoisonError::into_inner);
            packets = waited.0;
        }
        let next = packets.pop_front();
        drop(packets);
        let Some((due, packet)) = next else { continue };
        let early = due.saturating_duration_since(Instant::now());
        if !early.is_zero() {
            std::thread::sleep(early);
        }
        // A device that is gone takes nothing: the lab is being taken down.
        let _ = to.send(&packet);
    }
}
