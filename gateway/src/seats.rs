//! Places for connections. When all are taken, the connection that has waited longest for a request gives way to a new
//! one: clients that connect and say nothing, or say it a byte at a time, keep nobody out.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// How long a connection is left alone after a response: its last bytes may still be on their way to the client.
const REST: Duration = Duration::from_secs(1);

/// All places. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Seats(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    places: Arc<Semaphore>,
    per_address_max: usize,
    state: Mutex<State>,
    /// A connection began to wait for a request.
    waiting: Notify,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// Connections without a request under way, by when they may be closed.
    waiting: BTreeMap<(Instant, u64), CancellationToken>,
    addresses: HashMap<IpAddr, usize>,
}

/// A connection's place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Seats,
    number: u64,
    address: Option<IpAddr>,
    token: CancellationToken,
    /// Requests under way, and where it stands among those that wait.
    state: Mutex<(usize, Option<Instant>)>,
    _place: OwnedSemaphorePermit,
}

/// A request under way: the connection stays until it is dropped.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Seat>);

impl Seats {
    /// `max` places, of which an address other than a loopback one has at most `per_address_max`.
    pub(crate) fn new(max: usize, per_address_max: usize) -> Self {
        Self(Arc::new(Inner {
            places: Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS))),
            per_address_max,
            state: Mutex::default(),
            waiting: Notify::new(),
        }))
    }

    /// A place for a connection, once there is one. The second value tells whether another one gives way.
    pub(crate) async fn take(&self) -> (OwnedSemaphorePermit, bool) {
        let mut evicted = false;
        loop {
            let waiting = self.0.waiting.notified();
            if let Ok(place) = self.0.places.clone().try_acquire_owned() {
                return (place, evicted);
            }
            let rest = match self.evict(Instant::now()) {
                Ok(()) => {
                    evicted = true;
                    // Its task ends and gives the place back.
                    REST
                }
                Err(rest) => rest.unwrap_or(Duration::from_secs(3600)),
            };
            tokio::select! {
                place = self.0.places.clone().acquire_owned() => if let Ok(place) = place { return (place, evicted) },
                () = waiting => {}
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    /// Closes the connection that has waited longest; otherwise says when there will be one, if any waits.
    fn evict(&self, now: Instant) -> Result<(), Option<Duration>> {
        let mut state = self.0.state.lock();
        let first = state.waiting.first_key_value().map(|(key, _)| *key);
        match first {
            Some((since, _)) if since <= now => {
                if let Some((_, token)) = state.waiting.pop_first() {
                    token.cancel();
                }
                Ok(())
            }
            Some((since, _)) => Err(Some(since.saturating_duration_since(now))),
            None => Err(None),
        }
    }

    /// Seats a connection; `None` when its address has as many as it may have.
    pub(crate) fn seat(
        &self,
        place: OwnedSemaphorePermit,
        address: IpAddr,
        now: Instant,
    ) -> Option<Arc<Seat>> {
        let mut state = self.0.state.lock();
        // What connects from here is this machine's own, or a proxy's in front.
        let address = (!address.is_loopback()).then_some(address);
        if let Some(address) = address {
            let count = state.addresses.entry(address).or_default();
            if *count >= self.0.per_address_max {
                return None;
            }
            *count += 1;
        }
        let number = state.next;
        state.next += 1;
        let token = CancellationToken::new();
        state.waiting.insert((now, number), token.clone());
        drop(state);
        self.0.waiting.notify_waiters();
        let state = Mutex::new((0, Some(now)));
        Some(Arc::new(Seat { seats: self.clone(), number, address, token, state, _place: place }))
    }
}

impl Seat {
    /// Waits until the connection has to give way.
    pub(crate) async fn evicted(&self) {
        self.token.cancelled().await;
    }

    /// A request begins.
    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        let mut state = self.state.lock();
        state.0 += 1;
        if let Some(since) = state.1.take() {
            self.seats.0.state.lock().waiting.remove(&(since, self.number));
        }
        Busy(self.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let seat = &self.0;
        let mut state = seat.state.lock();
        state.0 -= 1;
        if state.0 == 0 {
            let since = Instant::now() + REST;
            state.1 = Some(since);
            seat.seats.0.state.lock().waiting.insert((since, seat.number), seat.token.clone());
            seat.seats.0.waiting.notify_waiters();
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.seats.0.state.lock();
        if let Some(since) = self.state.get_mut().1 {
            state.waiting.remove(&(since, self.number));
        }
        if let Some(address) = self.address
            && let Some(count) = state.addresses.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                state.addresses.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    async fn seated(seats: &Seats, now: Instant) -> Arc<Seat> {
        let (place, _) = seats.take().await;
        seats.seat(place, HERE, now).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_longest_gives_way_and_a_request_never_does() {
        let (seats, start) = (Seats::new(3, 1), Instant::now());
        let one = seated(&seats, start).await;
        let two = seated(&seats, start + Duration::from_nanos(1)).await;
        let _three = seated(&seats, start + Duration::from_nanos(2)).await;
        let request = one.busy();
        let newcomer = tokio::spawn({
            let seats = seats.clone();
            async move { seats.take().await }
        });
        two.evicted().await;
        assert!(!one.token.is_cancelled());
        drop(two);
        let (place, evicted) = newcomer.await.unwrap();
        assert!(evicted);
        drop((place, request));
        assert!(!one.token.is_cancelled());
        assert_eq!(seats.0.state.lock().waiting.len(), 2);
        drop((one, _three));
        assert!(seats.0.state.lock().waiting.is_empty());
        assert_eq!(seats.0.places.available_permits(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn all_busy_a_newcomer_waits_for_the_first_to_end() {
        let seats = Seats::new(1, 1);
        let one = seated(&seats, Instant::now()).await;
        let request = one.busy();
        let mut newcomer = Box::pin(seats.take());
        assert!(futures::poll!(&mut newcomer).is_pending());
        assert!(!one.token.is_cancelled());
        drop((request, one));
        let (_, evicted) = newcomer.await;
        assert!(!evicted);
    }

    #[tokio::test]
    async fn an_address_has_its_share_and_loopback_all() {
        let (seats, now) = (Seats::new(10, 2), Instant::now());
        let at = |ip: &str| ip.parse::<IpAddr>().unwrap();
        let mut kept = Vec::new();
        for (ip, welcome) in [
            ("10.0.0.1", true),
            ("10.0.0.1", true),
            ("10.0.0.1", false),
            ("10.0.0.2", true),
            ("127.0.0.1", true),
        ] {
            let (place, _) = seats.take().await;
            let seat = seats.seat(place, at(ip), now);
            assert_eq!(seat.is_some(), welcome, "{ip}");
            kept.extend(seat);
        }
        drop(kept);
        assert!(seats.0.state.lock().addresses.is_empty());
    }
}
