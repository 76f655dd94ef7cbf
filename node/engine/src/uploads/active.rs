//! Sends under way, and what the wire carries meanwhile.

use std::collections::VecDeque;
use std::time::Duration;

use shoal_types::Timestamp;

use crate::prefetch::prefetch_list;

/// How much more of the wire the sends beside one may have had than it.
const UNEVEN_MAX: f64 = 2.0;

/// Cache lines of moments in which sends began that are prefetched.
const BEGUN_LINES: usize = 6;

/// A send under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sending {
    pub(super) since: Timestamp,
    bytes: u32,
    /// [`Active::load`] when it began.
    load: f64,
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
    /// Seconds that all sends have taken so far, those that were beside each other counted each.
    load: f64,
    at: Timestamp,
    /// Bytes of all sends that were carried whole.
    ended_bytes: u64,
}

impl Active {
    /// Prefetches when sends began.
    pub(super) fn prefetch(&self) {
        let (before, behind) = self.begun.as_slices();
        prefetch_list(before, BEGUN_LINES);
        prefetch_list(behind, BEGUN_LINES);
    }

    fn advance(&mut self, now: Timestamp) {
        let count = f64::from(u32::try_from(self.count).unwrap_or(u32::MAX));
        self.load += count * now.saturating_since(self.at).as_secs_f64();
        self.at = now;
    }

    pub(super) fn begin(&mut self, now: Timestamp, bytes: u32) -> Sending {
        self.advance(now);
        if self.begun.back().is_none_or(|(last, _)| *last < now) {
            self.begun.push_back((now, Begun::default()));
        }
        if let Some((_, beside)) = self.begun.back_mut() {
            beside.count = beside.count.saturating_add(1);
            beside.bytes = beside.bytes.saturating_add(bytes.into());
        }
        self.count = self.count.saturating_add(1);
        Sending { since: now, bytes, load: self.load, ended_bytes: self.ended_bytes }
    }

    /// Returns what the wire carried while the send was under way, in bytes per second: what was sent of the sends that ended meanwhile,
    /// but no more than if those beside it had twice as much of the wire as this one: of a short one beside long ones, which began
    /// long before, the former says next to nothing. `None` when it was given up, or took no time that could be measured.
    pub(super) fn end(&mut self, now: Timestamp, sending: &Sending, whole: bool) -> Option<f64> {
        self.advance(now);
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
        let ended = self.ended_bytes.saturating_sub(sending.ended_bytes) as f64;
        let beside = ((self.load - sending.load) / secs).max(1.0);
        (secs > 0.0).then(|| ended.min(f64::from(sending.bytes) * beside * UNEVEN_MAX) / secs)
    }

    /// Those that began less than `time` ago.
    pub(super) fn younger_than(&self, time: Duration, now: Timestamp) -> usize {
        // Nearly all did: those that did not are counted.
        let old = |(since, _): &&(Timestamp, Begun)| now.saturating_since(*since) >= time;
        let old: usize = self.begun.iter().take_while(old).map(|(_, begun)| begun.count).sum();
        debug_assert_eq!(self.begun.iter().map(|(_, begun)| begun.count).sum::<usize>(), self.count);
        self.count.saturating_sub(old)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sends_are_young_until_their_time_is_over() {
        let at = |millis| Timestamp::from_start(Duration::from_millis(millis));
        let mut active = Active::default();
        let first = active.begin(at(0), 1000);
        let others = [0, 5, 10].map(|millis| active.begin(at(millis), 1000));
        let young = |active: &Active, millis| active.younger_than(Duration::from_millis(10), at(millis));
        assert_eq!([9, 10, 14, 15, 19, 20].map(|millis| young(&active, millis)), [4, 2, 2, 1, 1, 0]);
        active.end(at(9), &first, true);
        assert_eq!((young(&active, 9), active.count), (3, others.len()));
    }
}
