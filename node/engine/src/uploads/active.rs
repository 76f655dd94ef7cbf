//! Sends under way, and what the wire carries meanwhile.

use std::collections::VecDeque;
use std::time::Duration;

use shoal_types::Timestamp;

/// A send under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sending {
    pub(super) since: Timestamp,
    bytes: u32,
    /// [`Active::ended_bytes`] when it began.
    ended_bytes: u64,
}

/// Sends that began in the same moment.
#[derive(Clone, Copy, Debug, Default)]
struct Begun {
    count: usize,
    bytes: u64,
}

/// How many sends are under way, by when they began.
#[derive(Debug, Default)]
pub(super) struct Active {
    /// In order of time.
    begun: VecDeque<(Timestamp, Begun)>,
    pub(super) count: usize,
    /// Bytes of all sends that were carried whole.
    ended_bytes: u64,
}

impl Active {
    pub(super) fn begin(&mut self, now: Timestamp, bytes: u32) -> Sending {
        if self.begun.back().is_none_or(|(last, _)| *last < now) {
            self.begun.push_back((now, Begun::default()));
        }
        if let Some((_, beside)) = self.begun.back_mut() {
            beside.count = beside.count.saturating_add(1);
            beside.bytes = beside.bytes.saturating_add(bytes.into());
        }
        self.count = self.count.saturating_add(1);
        Sending { since: now, bytes, ended_bytes: self.ended_bytes }
    }

    /// Returns what the wire carried while the send was under way, in bytes per second: the sends that ended meanwhile. That
    /// those beside it had as much of the wire as this one would be a guess, and too high for one that was lucky. `None` when it
    /// was given up, or took no time that could be measured.
    pub(super) fn end(&mut self, now: Timestamp, sending: &Sending, whole: bool) -> Option<f64> {
        let place = self.begun.binary_search_by_key(&sending.since, |(since, _)| *since);
        if let Ok(place) = place
            && let Some((_, beside)) = self.begun.get_mut(place)
        {
            beside.count = beside.count.saturating_sub(1);
            beside.bytes = beside.bytes.saturating_sub(sending.bytes.into());
            if beside.count == 0 {
                self.begun.remove(place);
            }
            self.count = self.count.saturating_sub(1);
        }
        if !whole {
            return None;
        }
        self.ended_bytes = self.ended_bytes.saturating_add(sending.bytes.into());
        let secs = now.saturating_since(sending.since).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "bytes sent in the time of a piece")]
        let carried = self.ended_bytes.saturating_sub(sending.ended_bytes) as f64;
        (secs > 0.0).then(|| carried / secs)
    }

    /// Those that began less than `time` ago.
    pub(super) fn younger_than(&self, time: Duration, now: Timestamp) -> usize {
        let young = |(since, _): &&(Timestamp, Begun)| now.saturating_since(*since) < time;
        self.begun.iter().rev().take_while(young).map(|(_, begun)| begun.count).sum()
    }

    /// When the last `count` or a few more began, and their bytes; `None` when there are not so many.
    pub(super) fn last(&self, count: usize) -> Option<(Timestamp, u64)> {
        let (mut seen, mut bytes) = (0_usize, 0_u64);
        self.begun.iter().rev().find_map(|(since, begun)| {
            seen = seen.saturating_add(begun.count);
            bytes = bytes.saturating_add(begun.bytes);
            (seen >= count).then_some((*since, bytes))
        })
    }
}
