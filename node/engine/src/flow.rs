//! What a peer delivers: how much to keep in flight at it, and when its silence is a stall.

use std::time::Duration;

use shoal_types::Timestamp;

use crate::config::EngineConfig;
use crate::prefetch::prefetch;

/// Growth of throughput that makes a longer pipeline worth while.
const GROWTH: f64 = 1.15;
/// Weight of a new sample in moving means: 1/8, as TCP's smoothed round trip (RFC 6298).
const GAIN: f64 = 0.125;
/// Deviations above the mean gap that make a stall: TCP's retransmission timer uses 4 (RFC 6298).
const DEVIATIONS: f64 = 4.0;
/// Round trips that a pipeline over a link between zones holds: a request also waits for its turn at the sender, which serves its
/// own zone first, and an empty pipeline leaves the link idle. BBR's window has the same gain for like reasons.
const LINK_GAIN: f64 = 2.0;

/// One peer's delivery, all swarms together.
#[derive(Debug)]
// In the order of use: docs/adr/0018.
#[repr(C)]
pub(crate) struct Flow {
    /// Round trips that the window holds.
    gain: f64,
    pub(crate) received_bytes: u64,
    /// Shortest time from a request to its first byte.
    delay_min: Option<Duration>,
    gap_mean: Option<f64>,
    gap_deviation: f64,
    epoch_started: Timestamp,
    epoch_bytes: u64,
    epoch_pieces: u32,
    /// Pieces that may be in flight.
    pub(crate) window: u32,
    pub(crate) in_flight: u32,
    pub(crate) in_flight_bytes: u64,
    /// Payload bytes per second, smoothed over epochs; zero while unknown.
    pub(crate) rate: f64,
    /// Last payload, or the request that ended a time without any.
    pub(crate) life: Timestamp,
    /// Stalls since the last life sign.
    pub(crate) stalls: u32,
    pub(crate) stalled: bool,
    /// Last message of any kind: whoever talks is slow, not gone.
    pub(crate) heard: Timestamp,
}

impl Flow {
    /// Prefetches what a message changes, and with `asks` what it is looked at for whether to ask for more.
    pub(crate) fn prefetch(&self, asks: bool) {
        prefetch(&self.heard);
        if asks {
            prefetch(&self.window);
        }
    }

    pub(crate) fn new(config: &EngineConfig, now: Timestamp) -> Self {
        Self {
            window: config.pipeline_pieces_start,
            gain: 1.0,
            in_flight: 0,
            in_flight_bytes: 0,
            rate: 0.0,
            received_bytes: 0,
            delay_min: None,
            life: now,
            heard: now,
            gap_mean: None,
            gap_deviation: 0.0,
            stalls: 0,
            stalled: false,
            epoch_started: now,
            epoch_bytes: 0,
            epoch_pieces: 0,
        }
    }

    /// The same for what crosses a link between zones.
    pub(crate) fn over_link(self) -> Self {
        Self { gain: LINK_GAIN, ..self }
    }

    /// Whether a piece of `bytes` may be requested as far as this peer is concerned.
    pub(crate) fn has_room(&self, config: &EngineConfig, bytes: u32) -> bool {
        !self.stalled
            && self.in_flight < self.window
            && (self.in_flight == 0
                || self.in_flight_bytes.saturating_add(bytes.into()) <= config.pipeline_bytes_max)
    }

    pub(crate) fn requested(&mut self, now: Timestamp, bytes: u32) {
        if self.in_flight == 0 {
            self.life = now;
            self.epoch_started = now;
            self.epoch_bytes = 0;
            self.epoch_pieces = 0;
        }
        self.in_flight = self.in_flight.saturating_add(1);
        self.in_flight_bytes = self.in_flight_bytes.saturating_add(bytes.into());
    }

    /// A request is not in flight any more, whatever came of it.
    pub(crate) fn settled(&mut self, bytes: u32) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(bytes.into());
    }

    /// Payload arrived. `waited` is the time since its request when these are its first bytes.
    pub(crate) fn progressed(&mut self, now: Timestamp, bytes: u32, waited: Option<Duration>) {
        let gap = now.saturating_since(self.life).as_secs_f64();
        let mean = self.gap_mean.unwrap_or(gap);
        self.gap_deviation += ((gap - mean).abs() - self.gap_deviation) * GAIN;
        self.gap_mean = Some(mean + (gap - mean) * GAIN);
        self.revive(now);
        self.epoch_bytes = self.epoch_bytes.saturating_add(bytes.into());
        self.received_bytes = self.received_bytes.saturating_add(bytes.into());
        if let Some(waited) = waited {
            self.delay_min = Some(self.delay_min.map_or(waited, |least| least.min(waited)));
        }
    }

    /// The peer's queue is full: it takes no more than what it has taken.
    pub(crate) fn refused(&mut self) {
        self.window = self.in_flight.saturating_sub(1).clamp(1, self.window.max(1));
    }

    /// The peer lives.
    pub(crate) fn revive(&mut self, now: Timestamp) {
        self.life = now;
        self.stalls = 0;
        self.stalled = false;
    }

    /// A whole piece arrived: at the end of an epoch (as many pieces as the window holds) the window is set anew.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "float to integer casts saturate, and the result is clamped"
    )]
    pub(crate) fn piece_arrived(&mut self, config: &EngineConfig, now: Timestamp, piece_bytes: u32) {
        self.epoch_pieces = self.epoch_pieces.saturating_add(1);
        let elapsed = now.saturating_since(self.epoch_started).as_secs_f64();
        if self.epoch_pieces < self.window || elapsed <= 0.0 {
            return;
        }
        let rate = self.epoch_bytes as f64 / elapsed;
        let grown = rate > self.rate * GROWTH;
        self.rate = if grown { rate } else { self.rate + (rate - self.rate) * GAIN };
        // What is on the way in one delay or two, and one piece being sent while the next is asked for.
        let delay = self.delay_min.unwrap_or_default().as_secs_f64();
        let needed = (self.gain * self.rate * delay / f64::from(piece_bytes.max(1))).ceil() as u32;
        let needed = needed.saturating_add(config.pipeline_pieces_start);
        let grown_to = self.window.saturating_add((self.window / 2).max(1));
        self.window = needed.min(grown_to).clamp(1, config.pipeline_pieces_max);
        self.epoch_started = now;
        self.epoch_bytes = 0;
        self.epoch_pieces = 0;
    }

    /// The silence that counts as a stall, from this peer's own history.
    pub(crate) fn stall_after(&self, config: &EngineConfig) -> Duration {
        match self.usual_silence() {
            None => config.stall_initial,
            Some(usual) => usual.clamp(config.stall_min, config.stall_max),
        }
    }

    /// The silence that nearly all life signs of this peer ended; `None` before the first.
    pub(crate) fn usual_silence(&self) -> Option<Duration> {
        let secs = self.gap_mean? + DEVIATIONS * self.gap_deviation;
        Some(Duration::try_from_secs_f64(secs).unwrap_or(Duration::MAX))
    }

    /// Time a piece of `bytes` is expected to take, for comparing peers.
    pub(crate) fn expected(&self, bytes: u32) -> Duration {
        if self.rate <= 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(f64::from(bytes) / self.rate)
            .unwrap_or(Duration::MAX)
            .saturating_add(self.delay_min.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u32 = 256 * 1024;

    /// A peer that sends `rate` bytes a second after `delay`, always kept as busy as the window allows.
    fn window_after(rate: f64, delay: Duration, pieces: u32, over_link: bool) -> u32 {
        let config = EngineConfig::default();
        let mut now = Timestamp::ZERO;
        let mut flow = Flow::new(&config, now);
        if over_link {
            flow = flow.over_link();
        }
        let piece_time = Duration::from_secs_f64(f64::from(PIECE) / rate);
        let mut asked = std::collections::VecDeque::new();
        let mut link_free = now;
        for _ in 0..pieces {
            while flow.has_room(&config, PIECE) {
                flow.requested(now, PIECE);
                let start = link_free.max(now + delay);
                link_free = start + piece_time;
                asked.push_back((now, link_free));
            }
            let (at, arrives) = asked.pop_front().unwrap();
            now = arrives;
            flow.progressed(now, PIECE, Some((arrives - piece_time).saturating_since(at)));
            flow.settled(PIECE);
            flow.piece_arrived(&config, now, PIECE);
        }
        flow.window
    }

    #[test]
    fn the_window_is_bandwidth_times_delay() {
        // 125 MB/s x 1 ms is half a piece; x 100 ms is 48 pieces.
        assert!((2..=4).contains(&window_after(125e6, Duration::from_millis(1), 400, false)));
        let long = window_after(125e6, Duration::from_millis(100), 4000, false);
        assert!((40..=64).contains(&long), "{long}");
        // 20 ms are 10 pieces, and over a link 20.
        let [near, far] = [false, true].map(|far| window_after(125e6, Duration::from_millis(20), 4000, far));
        assert!((10..=14).contains(&near) && (20..=26).contains(&far), "{near} and {far}");
    }

    #[test]
    fn silence_is_measured_by_the_peers_own_history() {
        let config = EngineConfig::default();
        let mut now = Timestamp::ZERO;
        let mut flow = Flow::new(&config, now);
        assert_eq!(flow.stall_after(&config), config.stall_initial);
        flow.requested(now, PIECE);
        for _ in 0..50 {
            now = now + Duration::from_millis(10);
            flow.progressed(now, 1000, None);
        }
        assert_eq!(flow.stall_after(&config), config.stall_min);
        for _ in 0..50 {
            now = now + Duration::from_secs(3);
            flow.progressed(now, 1000, None);
        }
        assert!(flow.stall_after(&config) > Duration::from_secs(3));
    }
}
