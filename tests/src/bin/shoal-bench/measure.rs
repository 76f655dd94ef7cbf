//! Processor time and memory of processes, while something runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use shoal_tests::system::cpu_secs;

/// How often memory is looked at.
const SAMPLE: Duration = Duration::from_millis(100);

/// Anonymous resident bytes of a process: its own memory, file maps aside.
pub(crate) fn anonymous_bytes(pid: u32) -> Result<u64> {
    shoal_tests::system::memory_bytes(pid, "RssAnon")
}

/// Share of all processors' time that was used since the machine started: busy and total.
fn machine() -> Result<(f64, f64)> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("no /proc/stat")?;
    let ticks: Vec<f64> =
        line.split_whitespace().skip(1).take(8).filter_map(|word| word.parse().ok()).collect();
    let total: f64 = ticks.iter().sum();
    let idle = ticks.get(3).copied().unwrap_or(0.0) + ticks.get(4).copied().unwrap_or(0.0);
    Ok((total - idle, total))
}

/// What some processes used between start and end of a measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) cpu_secs: f64,
    /// Largest anonymous memory of one process.
    pub(crate) anonymous_peak_bytes: u64,
    /// Share of the machine's processors in use, everything on it included.
    pub(crate) machine_busy: f64,
}

/// A measurement under way.
pub(crate) struct Meter {
    pids: Vec<u32>,
    cpu_start: f64,
    machine_start: (f64, f64),
    peak: Arc<Mutex<u64>>,
    ended: Arc<AtomicBool>,
    sampler: JoinHandle<()>,
}

impl Meter {
    /// Starts to measure `pids`; the memory of `watched` of them is sampled.
    pub(crate) fn start(pids: Vec<u32>, watched: Vec<u32>) -> Result<Self> {
        let (peak, ended) = (Arc::new(Mutex::new(0)), Arc::new(AtomicBool::new(false)));
        let (seen, stop) = (Arc::clone(&peak), Arc::clone(&ended));
        let sampler = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let most = watched.iter().filter_map(|pid| anonymous_bytes(*pid).ok()).max().unwrap_or(0);
                let mut peak = seen.lock().unwrap_or_else(PoisonError::into_inner);
                *peak = most.max(*peak);
                drop(peak);
                std::thread::sleep(SAMPLE);
            }
        });
        Ok(Self { cpu_start: total(&pids)?, machine_start: machine()?, pids, peak, ended, sampler })
    }

    pub(crate) fn end(self) -> Result<Usage> {
        let cpu_secs = total(&self.pids)? - self.cpu_start;
        let (busy, all) = machine()?;
        self.ended.store(true, Ordering::Relaxed);
        // A sampler that panicked leaves what it saw.
        let _ = self.sampler.join();
        let anonymous_peak_bytes = *self.peak.lock().unwrap_or_else(PoisonError::into_inner);
        let machine_busy = (busy - self.machine_start.0) / (all - self.machine_start.1).max(1.0);
        Ok(Usage { cpu_secs, anonymous_peak_bytes, machine_busy })
    }
}

fn total(pids: &[u32]) -> Result<f64> {
    pids.iter().map(|pid| cpu_secs(*pid)).sum()
}
