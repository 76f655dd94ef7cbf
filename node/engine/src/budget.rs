//! Bytes per second.

use std::time::Duration;

use shoal_types::Timestamp;

/// Tokens gathered while idle, in seconds of the rate: enough that a budget is used up in spite of the driver's
/// timer granularity.
const BURST_SECS: f64 = 0.1;

/// A token bucket that may go into debt by one taking, so that a piece larger than the burst passes.
#[derive(Debug)]
pub(crate) struct Bucket {
    rate_per_sec: Option<f64>,
    tokens: f64,
    at: Timestamp,
}

impl Bucket {
    /// A full bucket; `None` is unlimited.
    #[expect(clippy::cast_precision_loss, reason = "rates are far below 2^52")]
    pub(crate) fn new(rate_per_sec: Option<u64>, now: Timestamp) -> Self {
        let rate = rate_per_sec.map(|rate| rate as f64);
        Self { rate_per_sec: rate, tokens: rate.unwrap_or(0.0) * BURST_SECS, at: now }
    }

    /// When the next taking is allowed; `None` for now.
    pub(crate) fn wait(&mut self, now: Timestamp) -> Option<Timestamp> {
        let rate = self.rate_per_sec?;
        let gained = now.saturating_since(self.at).as_secs_f64() * rate;
        self.tokens = (self.tokens + gained).min((rate * BURST_SECS).max(1.0));
        self.at = now;
        if self.tokens > 0.0 {
            return None;
        }
        // A microsecond on top, so that rounding cannot make the deadline come a moment too early for ever.
        Some(now + Duration::from_secs_f64(-self.tokens / rate) + Duration::from_micros(1))
    }

    /// Whether the last takings have used it up, as of the last [`Self::wait`].
    pub(crate) fn is_empty(&self) -> bool {
        self.rate_per_sec.is_some() && self.tokens <= 0.0
    }

    /// Takes `bytes`. The caller has asked [`Self::wait`].
    pub(crate) fn take(&mut self, bytes: u32) {
        if self.rate_per_sec.is_some() {
            self.tokens -= f64::from(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_and_used() {
        let mut now = Timestamp::ZERO;
        let mut bucket = Bucket::new(Some(1_000_000), now);
        let mut sent = 0u64;
        while now < Timestamp::from_start(Duration::from_secs(10)) {
            match bucket.wait(now) {
                None => {
                    bucket.take(262_144);
                    sent += 262_144;
                }
                Some(later) => {
                    assert!(later > now);
                    now = later;
                }
            }
        }
        assert!((9_900_000..10_500_000).contains(&sent), "{sent}");
    }

    #[test]
    fn none_is_unlimited() {
        let mut bucket = Bucket::new(None, Timestamp::ZERO);
        for _ in 0..1000 {
            assert_eq!(bucket.wait(Timestamp::ZERO), None);
            bucket.take(u32::MAX);
        }
    }
}
