//! The only place of the daemon that reads clocks.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use shoal_types::{Timestamp, WallTime};

/// Both clocks of a process. Copies agree with each other.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock whose monotonic time starts now.
    #[expect(clippy::new_without_default, reason = "making one reads the clock, which a default should not")]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }

    /// Monotonic time, for the engine.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_start(self.start.elapsed())
    }

    /// The instant of a timestamp, for timers.
    pub fn instant(&self, at: Timestamp) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.start + at.since_start())
    }

    /// Civil time.
    pub fn wall(&self) -> WallTime {
        wall_now()
    }
}

/// Civil time now. A clock before 1970 reads as 1970.
pub fn wall_now() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime::default().saturating_add(since)
}
