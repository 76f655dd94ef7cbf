//! How often somebody may do something: so often at once, so often for long.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A rate and a burst.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    /// What may be done at once after a long rest.
    pub burst: u32,
    /// What may be done a second in the long run.
    pub per_second: f64,
}

impl Allowance {
    fn cost(self) -> Duration {
        Duration::from_secs_f64(1.0 / self.per_second)
    }
}

/// What one party has used up (the generic cell rate algorithm, ITU-T I.371 annex A.1: one instant for its state).
#[derive(Clone, Copy, Debug)]
struct Used {
    /// When all that was done would have been done at the steady rate.
    until: Instant,
}

/// What many parties have used up. Bounded: beyond `parties_max` the one closest to a clean slate is forgotten.
#[derive(Debug)]
pub(crate) struct Budget<K> {
    allowance: Allowance,
    parties_max: usize,
    used: HashMap<K, Used>,
}

impl<K: Copy + Eq + Hash + Ord> Budget<K> {
    pub(crate) fn new(allowance: Allowance, parties_max: usize) -> Self {
        Self { allowance, parties_max, used: HashMap::new() }
    }

    /// Whether `party` may do it once more; if so, it has.
    pub(crate) fn take(&mut self, party: K, now: Instant) -> bool {
        if self.used.len() >= self.parties_max && !self.used.contains_key(&party) {
            self.make_room(now);
        }
        let cost = self.allowance.cost();
        let used = self.used.entry(party).or_insert(Used { until: now });
        let until = used.until.max(now) + cost;
        let fits = until.saturating_duration_since(now) <= cost * self.allowance.burst;
        if fits {
            used.until = until;
        }
        fits
    }

    fn make_room(&mut self, now: Instant) {
        self.used.retain(|_, used| used.until > now);
        if self.used.len() >= self.parties_max {
            let least = self.used.iter().min_by_key(|(party, used)| (used.until, **party));
            if let Some(least) = least.map(|(party, _)| *party) {
                self.used.remove(&least);
            }
        }
    }
}

/// Addresses remembered.
const ADDRESSES_MAX: usize = 16_384;

/// Inbound connections, by where they come from.
#[derive(Debug)]
pub(crate) struct Arrivals(Mutex<Budget<IpAddr>>);

impl Arrivals {
    pub(crate) fn new(allowance: Allowance) -> Self {
        Self(Mutex::new(Budget::new(allowance, ADDRESSES_MAX)))
    }

    /// Whether one more may come from `address` now.
    pub(crate) fn admit(&self, address: IpAddr, now: Instant) -> bool {
        self.0.lock().take(place(address), now)
    }
}

/// An IPv4 address, or the /64 of an IPv6 address, which is what one customer has.
pub(crate) fn place(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN: Allowance = Allowance { burst: 10, per_second: 2.0 };

    fn many(budget: &mut Budget<u32>, party: u32, now: Instant) -> usize {
        (0..100).filter(|_| budget.take(party, now)).count()
    }

    #[test]
    fn so_much_at_once_and_then_at_the_rate() {
        let (mut budget, start) = (Budget::new(TEN, 100), Instant::now());
        assert_eq!(many(&mut budget, 1, start), 10);
        assert_eq!(many(&mut budget, 2, start), 10, "each has its own");
        assert_eq!(many(&mut budget, 1, start + Duration::from_secs(2)), 4);
        assert_eq!(many(&mut budget, 1, start + Duration::from_secs(3600)), 10, "rest is not saved up");
    }

    #[test]
    fn bounded_and_whoever_used_most_is_remembered() {
        let (mut budget, now) = (Budget::new(TEN, 100), Instant::now());
        assert_eq!(many(&mut budget, 0, now), 10);
        for party in 1..1000 {
            budget.take(party, now);
        }
        assert_eq!(budget.used.len(), 100);
        assert!(!budget.take(0, now));
    }

    #[test]
    fn one_customer_is_one_place() {
        let arrivals = Arrivals::new(Allowance { burst: 1, per_second: 1.0 });
        let (at, now) = (|text: &str| text.parse::<IpAddr>().unwrap(), Instant::now());
        assert!(arrivals.admit(at("2001:db8::1"), now));
        assert!(!arrivals.admit(at("2001:db8::2"), now));
        assert!(arrivals.admit(at("2001:db8:0:1::1"), now));
        assert!(arrivals.admit(at("192.0.2.1"), now));
        assert!(!arrivals.admit(at("::ffff:192.0.2.1"), now));
    }
}
