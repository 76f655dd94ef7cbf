//! Inbound handshakes under way. When there are too many, one of the address with the most gives way, the one that has
//! lasted longest: an honest one takes milliseconds, so those that only hold their place are the first to go, and a flood
//! from a few addresses does not displace the handshakes of others however fast it is.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::budget::place;

/// A bounded set of handshakes, in the order they began.
#[derive(Clone, Debug)]
pub(crate) struct Handshakes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// The oldest first.
    open: VecDeque<Open>,
}

#[derive(Debug)]
struct Open {
    number: u64,
    from: Option<IpAddr>,
    token: CancellationToken,
}

impl State {
    /// Takes out the oldest of the address with the most; of addresses with equally many, the oldest of all.
    fn take_crowded(&mut self) -> Option<Open> {
        let mut counts = HashMap::new();
        for open in &self.open {
            *counts.entry(open.from).or_insert(0) += 1;
        }
        let crowded = |(at, open): &(usize, &Open)| (counts.get(&open.from).copied(), Reverse(*at));
        let (at, _) = self.open.iter().enumerate().max_by_key(crowded)?;
        self.open.remove(at)
    }
}

/// One handshake, until it is dropped.
pub(crate) struct Handshake {
    set: Handshakes,
    number: u64,
    token: CancellationToken,
}

impl Handshakes {
    /// A set of at most `max` handshakes (at least one).
    pub(crate) fn new(max: usize) -> Self {
        Self(Arc::new(Inner { max: max.max(1), state: Mutex::default() }))
    }

    /// Begins one from an address, `None` for one within this process; the second value tells whether another one had to
    /// give way.
    pub(crate) fn begin(&self, from: Option<IpAddr>) -> (Handshake, bool) {
        let mut state = self.0.state.lock();
        let displaced = if state.open.len() >= self.0.max { state.take_crowded() } else { None };
        let number = state.next;
        state.next += 1;
        let token = CancellationToken::new();
        state.open.push_back(Open { number, from: from.map(place), token: token.clone() });
        drop(state);
        let evicted = displaced.is_some();
        if let Some(displaced) = displaced {
            displaced.token.cancel();
        }
        (Handshake { set: self.clone(), number, token }, evicted)
    }
}

impl Handshake {
    /// Waits until this one has to give way.
    pub(crate) async fn evicted(&self) {
        self.token.cancelled().await;
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut state = self.set.0.state.lock();
        let at = state.open.iter().position(|open| open.number == self.number);
        if let Some(at) = at {
            state.open.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_gives_way() {
        let set = Handshakes::new(2);
        let (first, _) = set.begin(None);
        let (second, _) = set.begin(None);
        assert!(!first.token.is_cancelled() && !second.token.is_cancelled());
        let (third, evicted) = set.begin(None);
        assert!(evicted && first.token.is_cancelled() && !second.token.is_cancelled());
        drop((first, second));
        assert!(!set.begin(None).1);
        drop(third);
        assert_eq!(set.0.state.lock().open.len(), 0);
    }

    #[test]
    fn a_flood_of_few_addresses_displaces_itself() {
        let set = Handshakes::new(8);
        let at = |n: u8| Some(IpAddr::from([192, 0, 2, n]));
        let (slow, _) = set.begin(at(1));
        let flood: Vec<_> = (0..200).map(|n| set.begin(at(2 + n % 3)).0).collect();
        assert!(!slow.token.is_cancelled());
        assert_eq!(flood.iter().filter(|one| !one.token.is_cancelled()).count(), 7);
        // With more addresses than places nobody has more than others, and the oldest goes.
        let crowd: Vec<_> = (10..18).map(|n| set.begin(at(n)).0).collect();
        assert!(slow.token.is_cancelled());
        assert_eq!(crowd.iter().filter(|one| !one.token.is_cancelled()).count(), 8);
    }

    #[test]
    fn one_customer_is_one_address() {
        let set = Handshakes::new(3);
        let at = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        let (member, _) = set.begin(at("192.0.2.1"));
        let held = [set.begin(at("2001:db8::1")).0, set.begin(at("2001:db8::2")).0];
        assert!(set.begin(at("2001:db8::3")).1);
        assert!(held[0].token.is_cancelled() && !member.token.is_cancelled());
    }
}
