//! Bandwidth limits of a backend.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// What may be moved at once after a pause, in time: it smooths nothing that matters and forgives a late wake-up.
const BURST: Duration = Duration::from_millis(250);

/// Lets bytes pass at a rate, in order of asking.
#[derive(Debug)]
pub(crate) struct Throttle {
    bytes_per_sec: Option<u64>,
    /// When all that was let through will have passed at the rate.
    free_at: Mutex<Option<Instant>>,
}

impl Throttle {
    /// Lets `bytes_per_sec` (at least 1) pass; without one, everything.
    pub(crate) fn new(bytes_per_sec: Option<u64>) -> Self {
        Self { bytes_per_sec: bytes_per_sec.map(|rate| rate.max(1)), free_at: Mutex::new(None) }
    }

    /// Waits until `bytes` may pass. Cancel safe, but the bytes count as passed.
    pub(crate) async fn pass(&self, bytes: u64) {
        let Some(rate) = self.bytes_per_sec else { return };
        let takes = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let now = Instant::now();
        let start = {
            let mut free_at = self.free_at.lock();
            let earliest = now.checked_sub(BURST).unwrap_or(now);
            let start = free_at.map_or(earliest, |at| at.max(earliest));
            *free_at = Some(start + takes);
            start
        };
        tokio::time::sleep_until(start).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_pass_at_the_rate() {
        let throttle = Throttle::new(Some(1000));
        let start = Instant::now();
        for _ in 0..11 {
            throttle.pass(1000).await;
        }
        // The first is let through at once; the rest wait for those before them.
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(9700) && took <= Duration::from_millis(10_100), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_not_saved_up() {
        let throttle = Throttle::new(Some(1000));
        throttle.pass(1).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let start = Instant::now();
        for _ in 0..3 {
            throttle.pass(1000).await;
        }
        assert!(start.elapsed() >= Duration::from_millis(1700), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn no_limit_is_no_wait() {
        let start = Instant::now();
        Throttle::new(None).pass(u64::MAX).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
