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
use super::event::{DataEvent, DisconnectReason};
use super::link::{Link, Remote};
use super::pool::Pool;
use super::protocol::{Hello, VERSION, VERSION_MIN};
use super::stats::DataStats;
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
    pub(crate) handshakes: Arc<Semaphore>,
    /// Pieces in memory for sending.
    pub(crate) sending: Arc<Semaphore>,
    pub(crate) stopping: CancellationToken,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    links: HashMap<PeerId, Arc<Link>>,
    /// Dials under way; cancelled when the other side's connection is taken instead.
    dials: HashMap<PeerId, CancellationToken>,
    bans: HashMap<PeerId, Instant>,
    inbound: HashMap<IpAddr, usize>,
}

/// What to do about a peer's Hello on a connection it dialled.
pub(crate) enum Verdict {
    /// Take it.
    Take,
    /// Refuse it: ours stays.
    Refuse,
    /// This side is dialling too, and its dial goes first: ask again when the token is cancelled.
    Wait(CancellationToken),
}

/// A dial that may begin.
pub(crate) struct Dial {
    pub(crate) token: CancellationToken,
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
            handshakes: permits(config.handshakes_max),
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

    pub(crate) fn hello(&self) -> Hello {
        Hello {
            version: VERSION,
            version_min: VERSION_MIN,
            instance: self.instance,
            endpoints: self.config.announce.clone(),
        }
    }

    /// The open connection with `peer`.
    pub(crate) fn link(&self, peer: &PeerId) -> Option<Arc<Link>> {
        self.state.lock().links.get(peer).filter(|link| !link.is_closed()).cloned()
    }

    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        self.state.lock().links.values().filter(|link| !link.is_closed()).cloned().collect()
    }

    /// Begins a dial, unless there is a connection, another dial, or a ban.
    pub(crate) fn begin_dial(&self, peer: PeerId) -> Option<Dial> {
        let mut state = self.state.lock();
        let connected = state.links.get(&peer).is_some_and(|link| !link.is_closed());
        if connected || state.dials.contains_key(&peer) {
            return None;
        }
        let token = CancellationToken::new();
        state.dials.insert(peer, token.clone());
        Some(Dial { token })
    }

    /// A dial is over, whatever came of it: whoever waits for it looks again.
    pub(crate) fn end_dial(&self, peer: &PeerId) {
        if let Some(token) = self.state.lock().dials.remove(peer) {
            token.cancel();
        }
    }

    /// Whether a connection that `peer` dialled is to be taken. Rule: of two, the one dialled by the smaller peer id
    /// stays; a process that restarted, or lost its end, replaces the old one.
    pub(crate) fn judge_inbound(&self, peer: &PeerId, instance: u64) -> Verdict {
        let state = self.state.lock();
        let ours_first = self.local() < *peer;
        if let Some(link) = state.links.get(peer).filter(|link| !link.is_closed()) {
            let stays = link.remote.outbound && link.remote.instance == instance && ours_first;
            return if stays { Verdict::Refuse } else { Verdict::Take };
        }
        match state.dials.get(peer) {
            Some(token) if ours_first => Verdict::Wait(token.clone()),
            _ => Verdict::Take,
        }
    }

    /// Puts a connection in place. Returns it and the one it replaces, whose last event must come first; `None`
    /// when the one in place stays.
    pub(crate) fn register(&self, remote: Remote) -> Option<(Arc<Link>, Option<Arc<Link>>)> {
        let peer = remote.peer;
        let mut state = self.state.lock();
        if let Some(old) = state.links.get(&peer).filter(|link| !link.is_closed()) {
            let same_process = old.remote.instance == remote.instance;
            let old_stays = same_process
                && old.remote.outbound != remote.outbound
                && (self.local() < peer) == old.remote.outbound;
            if old_stays {
                return None;
            }
        }
        if !remote.outbound
            && let Some(token) = state.dials.get(&peer)
        {
            token.cancel();
        }
        let link = Arc::new(Link::new(remote, &self.config));
        let old = state.links.insert(peer, link.clone());
        drop(state);
        if let Some(old) = &old {
            self.stats.superseded.inc();
            old.close(DisconnectReason::Dropped(shoal_engine::io::DropReason::Replaced));
        }
        Some((link, old))
    }

    /// A connection has had its last event.
    pub(crate) fn unregister(&self, link: &Arc<Link>) {
        let mut state = self.state.lock();
        if state.links.get(&link.remote.peer).is_some_and(|known| Arc::ptr_eq(known, link)) {
            state.links.remove(&link.remote.peer);
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
        let mut state = self.state.lock();
        match state.bans.get(peer) {
            Some(until) if *until > Instant::now() => true,
            Some(_) => {
                state.bans.remove(peer);
                false
            }
            None => false,
        }
    }

    /// Counts an inbound connection of an address; `None` when it has too many.
    pub(crate) fn admit_ip(self: &Arc<Self>, ip: IpAddr) -> Option<IpPlace> {
        let mut state = self.state.lock();
        let count = state.inbound.entry(ip).or_default();
        if *count >= self.config.connections_per_ip_max {
            return None;
        }
        *count += 1;
        Some(IpPlace { hub: self.clone(), ip })
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
