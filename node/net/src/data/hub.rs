//! Which connections there are: at most one a peer, each decision about them under one lock.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shoal_types::PeerId;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::config::DataConfig;
use super::event::{ConnectError, DataEvent, DisconnectReason};
use super::link::{Link, Remote};
use super::pool::Pool;
use super::protocol::{Frame, Hello, VERSION, VERSION_MIN};
use super::stats::DataStats;
use crate::budget::{Arrivals, Budget, place};
use crate::handshakes::Handshakes;
use crate::tls::TlsSetup;

/// Everything the parts of a data plane share.
pub(crate) struct Hub {
    pub(crate) config: DataConfig,
    pub(crate) setup: TlsSetup,
    pub(crate) server: Arc<rustls::ServerConfig>,
    pub(crate) instance: u64,
    pub(crate) stats: DataStats,
    pub(crate) pool: Pool,
    pub(crate) events: mpsc::Sender<DataEvent>,
    /// Places for connections of both directions.
    pub(crate) places: Arc<Semaphore>,
    pub(crate) handshakes: Handshakes,
    pub(crate) arrivals: Arrivals,
    /// Connections that peers ended by breaking the protocol.
    pub(crate) offences: Mutex<Budget<PeerId>>,
    /// Pieces in memory for sending.
    pub(crate) sending: Arc<Semaphore>,
    pub(crate) stopping: CancellationToken,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    links: HashMap<PeerId, Arc<Link>>,
    /// Dials under way; cancelled when the other side's connection is taken instead.
    dials: HashMap<PeerId, Dial>,
    next_dial: u64,
    bans: HashMap<PeerId, Instant>,
    inbound: HashMap<IpAddr, usize>,
}

/// A connection in place, and the one it replaced, whose last event must come first.
pub(crate) type Registered = (Arc<Link>, Option<Arc<Link>>);

/// What becomes of a connection that a peer dialled.
pub(crate) enum Verdict {
    /// It is in place.
    Taken(Registered),
    /// Refuse it: ours stays.
    Refuse,
    /// Refuse it: the peer is banned.
    Banned,
    /// This side's own dial has said Hello and goes first: ask again when the token is cancelled.
    Wait(CancellationToken),
}

/// Why a connection that this side dialled is not put in place.
pub(crate) enum Refusal {
    /// The other direction's stays.
    Replaced,
    /// The peer was banned meanwhile.
    Banned,
}

/// A dial under way.
#[derive(Clone)]
pub(crate) struct Dial {
    /// Counts the process's dials.
    pub(crate) number: u64,
    /// Cancelled when it is over, or given up.
    pub(crate) token: CancellationToken,
    /// Its Hello may be out: the peer may have taken it.
    spoken: bool,
}

impl Hub {
    pub(crate) fn new(
        config: DataConfig,
        setup: TlsSetup,
        server: Arc<rustls::ServerConfig>,
        instance: u64,
        events: mpsc::Sender<DataEvent>,
    ) -> Self {
        let permits = |count: usize| Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)));
        Self {
            pool: Pool::new(config.buffer_bytes_max),
            places: permits(config.connections_max),
            handshakes: Handshakes::new(config.handshakes_max),
            arrivals: Arrivals::new(config.arrivals),
            offences: Mutex::new(Budget::new(config.offences, config.bans_max)),
            sending: permits(config.pieces_in_memory_max),
            stats: DataStats::default(),
            stopping: CancellationToken::new(),
            state: Mutex::default(),
            config,
            setup,
            server,
            instance,
            events,
        }
    }

    pub(crate) fn local(&self) -> PeerId {
        self.setup.identity().peer_id()
    }

    /// What is said first; `dial` is zero for an acceptor.
    pub(crate) fn hello(&self, dial: u64) -> Hello {
        Hello {
            version: VERSION,
            version_min: VERSION_MIN,
            instance: self.instance,
            endpoints: self.config.announce.clone(),
            dial,
        }
    }

    /// The open connection with `peer` that the daemon knows of. One that has just replaced another is not it yet:
    /// what the daemon says until it hears of the change is meant for the old one.
    pub(crate) fn link(&self, peer: &PeerId) -> Option<Arc<Link>> {
        self.state.lock().links.get(peer).filter(|link| link.is_usable()).cloned()
    }

    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        self.state.lock().links.values().filter(|link| link.is_usable()).cloned().collect()
    }

    /// Begins a dial, unless there is a connection or another dial.
    pub(crate) fn begin_dial(&self, peer: PeerId) -> Option<Dial> {
        let mut state = self.state.lock();
        if state.in_place(&peer).is_some() || state.dials.contains_key(&peer) {
            return None;
        }
        state.next_dial += 1;
        let dial = Dial { number: state.next_dial, token: CancellationToken::new(), spoken: false };
        state.dials.insert(peer, dial.clone());
        Some(dial)
    }

    /// A dial is about to say Hello. From now on the other side may take it, so whatever the peer dialled waits for
    /// it. `false` when it was given up meanwhile.
    pub(crate) fn speak(&self, peer: &PeerId, dial: &Dial) -> bool {
        let mut state = self.state.lock();
        match state.dials.get_mut(peer).filter(|known| known.number == dial.number) {
            Some(known) => {
                known.spoken = true;
                true
            }
            None => false,
        }
    }

    /// A dial is over, whatever came of it: whoever waits for it looks again.
    pub(crate) fn end_dial(&self, peer: &PeerId, dial: &Dial) {
        let mut state = self.state.lock();
        if state.dials.get(peer).is_some_and(|known| known.number == dial.number) {
            state.dials.remove(peer);
        }
        drop(state);
        dial.token.cancel();
    }

    /// Says that a dial came to nothing, unless the peer's own has been taken meanwhile. Decided under the lock that
    /// puts connections in place, so that it never comes between a peer's `Connected` and `Disconnected`, and never in
    /// addition to a `Connected`.
    pub(crate) async fn dial_failed(&self, peer: PeerId, why: ConnectError, dial: Option<&Dial>) {
        loop {
            let Ok(room) = self.events.reserve().await else { return };
            let event = DataEvent::ConnectFailed { peer, why: why.clone() };
            let Some(ending) = self.fail_unless_connected(event, &peer, dial, room) else { return };
            // Its end was told, and is about to be forgotten.
            ending.done.cancelled().await;
            self.forget(&peer);
        }
    }

    /// Returns a connection that is about to end, whose last event must come first.
    fn fail_unless_connected(
        &self,
        event: DataEvent,
        peer: &PeerId,
        dial: Option<&Dial>,
        room: mpsc::Permit<'_, DataEvent>,
    ) -> Option<Arc<Link>> {
        let mut state = self.state.lock();
        let stands = |dial: &Dial| state.dials.get(peer).is_some_and(|known| known.number == dial.number);
        if dial.is_some_and(|dial| !stands(dial)) {
            return None;
        }
        match state.links.get(peer) {
            Some(link) if link.is_closed() => return Some(link.clone()),
            Some(_) => {}
            None => room.send(event),
        }
        if let Some(dial) = dial {
            state.dials.remove(peer);
            drop(state);
            dial.token.cancel();
        }
        None
    }

    /// Puts a connection in place that `remote` dialled, or says why not. Rule: of two, the one dialled by the smaller
    /// peer id stays; a process that restarted, or lost its end, replaces the old one.
    pub(crate) fn take_inbound(&self, remote: Remote) -> Verdict {
        let peer = remote.peer;
        let ours_first = self.local() < peer;
        let mut state = self.state.lock();
        if state.is_banned(&peer) {
            return Verdict::Banned;
        }
        if let Some(link) = state.in_place(&peer) {
            let same_process = link.remote.instance == remote.instance;
            if same_process && !link.remote.outbound && link.remote.dial > remote.dial {
                // It was given up long ago, and has only now been heard.
                return Verdict::Refuse;
            }
            if same_process && link.remote.outbound && ours_first {
                // The peer would not dial had it heard of our connection, or not lost it. A word on it finds out:
                // its system answers for a connection that is gone. (Full: it ends anyhow.)
                let _ = link.send(&Frame::Ping(link.ping_number()));
                return Verdict::Refuse;
            }
        } else if let Some(dial) = state.dials.get(&peer).filter(|dial| ours_first && dial.spoken) {
            return Verdict::Wait(dial.token.clone());
        }
        if let Some(dial) = state.dials.remove(&peer) {
            dial.token.cancel();
        }
        let link = Link::new(remote, &self.config);
        // The first frame that goes out.
        let _ = link.send(&Frame::Hello(self.hello(0)));
        Verdict::Taken(self.place(&mut state, link))
    }

    /// Puts a connection in place that this side dialled.
    pub(crate) fn take_outbound(&self, remote: Remote) -> Result<Registered, Refusal> {
        let mut state = self.state.lock();
        if state.is_banned(&remote.peer) {
            return Err(Refusal::Banned);
        }
        let inbound_stays = state.in_place(&remote.peer).is_some_and(|old| {
            !old.remote.outbound && old.remote.instance == remote.instance && remote.peer < self.local()
        });
        if inbound_stays {
            return Err(Refusal::Replaced);
        }
        Ok(self.place(&mut state, Link::new(remote, &self.config)))
    }

    fn place(&self, state: &mut State, link: Link) -> Registered {
        let link = Arc::new(link);
        let old = state.links.insert(link.remote.peer, link.clone());
        if let Some(old) = old.as_ref().filter(|old| !old.is_closed()) {
            self.stats.superseded.inc();
            old.close(DisconnectReason::Dropped(shoal_engine::io::DropReason::Replaced));
        }
        (link, old)
    }

    /// Forgets the connection with `peer` if it has had its last event.
    pub(crate) fn forget(&self, peer: &PeerId) {
        let mut state = self.state.lock();
        if state.links.get(peer).is_some_and(|link| link.done.is_cancelled()) {
            state.links.remove(peer);
        }
    }

    /// Refuses `peer` for a while. When too many are banned, the ban that ends first is lifted.
    pub(crate) fn ban(&self, peer: PeerId, lasting: Duration) {
        let mut state = self.state.lock();
        if state.bans.len() >= self.config.bans_max && !state.bans.contains_key(&peer) {
            let first = state.bans.iter().min_by_key(|(_, until)| **until).map(|(peer, _)| *peer);
            if let Some(first) = first {
                state.bans.remove(&first);
            }
        }
        state.bans.insert(peer, Instant::now() + lasting);
        let link = state.links.get(&peer).cloned();
        drop(state);
        if let Some(link) = link {
            link.close(DisconnectReason::Banned);
        }
    }

    pub(crate) fn is_banned(&self, peer: &PeerId) -> bool {
        self.state.lock().is_banned(peer)
    }

    /// Counts an inbound connection of an address; `None` when it has too many.
    pub(crate) fn admit_ip(self: &Arc<Self>, ip: IpAddr) -> Option<IpPlace> {
        let (ip, mut state) = (place(ip), self.state.lock());
        let count = state.inbound.get(&ip).copied().unwrap_or_default();
        if count >= self.config.connections_per_ip_max {
            return None;
        }
        state.inbound.insert(ip, count + 1);
        Some(IpPlace { hub: self.clone(), ip })
    }
}

impl State {
    /// The connection that is open, whether or not the daemon has heard of it.
    fn in_place(&self, peer: &PeerId) -> Option<&Arc<Link>> {
        self.links.get(peer).filter(|link| !link.is_closed())
    }

    fn is_banned(&mut self, peer: &PeerId) -> bool {
        match self.bans.get(peer) {
            Some(until) if *until > Instant::now() => true,
            Some(_) => {
                self.bans.remove(peer);
                false
            }
            None => false,
        }
    }
}

/// One inbound connection of an address, for as long as it lives.
pub(crate) struct IpPlace {
    hub: Arc<Hub>,
    ip: IpAddr,
}

impl Drop for IpPlace {
    fn drop(&mut self) {
        let mut state = self.hub.state.lock();
        if let Some(count) = state.inbound.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                state.inbound.remove(&self.ip);
            }
        }
    }
}
