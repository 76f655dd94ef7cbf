//! Wrong passwords, counted by where they come from.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Wrong passwords from one place before it has to wait.
const FAILURES_MAX: u32 = 20;
/// The time they are counted over.
const WINDOW: Duration = Duration::from_secs(60);
/// Places remembered; the one whose window began first gives way.
const PLACES_MAX: usize = 4096;

/// Counts by IPv4 address or IPv6 /64, which is what one customer has.
#[derive(Debug, Default)]
pub(crate) struct Throttle(Mutex<BTreeMap<IpAddr, (Instant, u32)>>);

impl Throttle {
    /// How long a place has to wait before it may try a password.
    pub(crate) fn wait(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let places = self.0.lock();
        let (began, failures) = places.get(&place(address))?;
        let left = WINDOW.checked_sub(now.saturating_duration_since(*began))?;
        (*failures >= FAILURES_MAX && !left.is_zero()).then_some(left)
    }

    /// A wrong password came.
    pub(crate) fn failed(&self, address: IpAddr, now: Instant) {
        let mut places = self.0.lock();
        let place = place(address);
        if places.len() >= PLACES_MAX && !places.contains_key(&place) {
            let oldest = places.iter().min_by_key(|(_, (began, _))| *began).map(|(place, _)| *place);
            if let Some(oldest) = oldest {
                places.remove(&oldest);
            }
        }
        let entry = places.entry(place).or_insert((now, 0));
        if now.saturating_duration_since(entry.0) >= WINDOW {
            *entry = (now, 0);
        }
        entry.1 += 1;
    }
}

fn place(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_waits_and_others_do_not() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        for _ in 0..FAILURES_MAX {
            assert_eq!(throttle.wait(at("2001:db8::1"), now), None);
            throttle.failed(at("2001:db8::1"), now);
        }
        assert_eq!(throttle.wait(at("2001:db8::2"), now), Some(WINDOW), "the same /64");
        assert_eq!(throttle.wait(at("2001:db8:0:1::1"), now), None);
        let later = now + WINDOW;
        assert_eq!(throttle.wait(at("2001:db8::1"), later), None);
        throttle.failed(at("2001:db8::1"), later);
        assert_eq!(throttle.wait(at("2001:db8::1"), later), None);
    }

    #[test]
    fn bounded() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        for n in 0..2 * u32::try_from(PLACES_MAX).unwrap() {
            throttle.failed(IpAddr::from(n.to_be_bytes()), now + Duration::from_millis(n.into()));
        }
        assert_eq!(throttle.0.lock().len(), PLACES_MAX);
    }
}
