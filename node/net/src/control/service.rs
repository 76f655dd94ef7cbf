//! The task that owns the host.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use libp2p::kad::QueryId;
use libp2p::kad::store::RecordStore as _;
use libp2p::{Multiaddr, Swarm};
use shoal_types::{Digest, Endpoint, PeerId, Timestamp, WallTime};
use tokio::sync::{mpsc, oneshot, watch};

use super::addr;
use super::conduct::Conduct;
use super::config::ControlConfig;
use super::handle::{Command, ControlEvent, ControlHandle};
use super::host::{self, Behaviour, MemberTransport};
use super::inbound::Guarded;
use super::known::KnownPeers;
use super::lookup::Lookups;
use super::members::{Members, Reachable};
use super::origins::{Origin, Origins};
use super::persist::{Change, ControlPersistence, Remembered, StoredProvided};
use super::records::{self, Records};
use super::reprovide::Reprovider;
use super::saver::{BATCH_MAX, Saver};
use super::stats::ControlStats;
use super::upgrade::{Admitted, Upgrade};
use crate::tls::{SetupError, TlsSetup};

/// Commands waiting at most; callers wait for room.
const COMMANDS_MAX: usize = 1024;
/// Events waiting at most; more are dropped and counted.
const EVENTS_MAX: usize = 1024;
/// The longest sleep: what has no deadline of its own (lapsing, expiring, gauges) happens this often.
const TICK: Duration = records::SAVE_INTERVAL;
/// On shutdown, the host goes on for this long so that the last heartbeat gets out.
const FAREWELL: Duration = Duration::from_millis(200);
/// Known peers are written at most this often.
const PEERS_SAVE_INTERVAL: Duration = Duration::from_secs(5);

/// Why a control plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The TLS set-up failed.
    #[error(transparent)]
    Tls(#[from] SetupError),
    /// libp2p refuses the configuration.
    #[error("cannot set up the libp2p host: {0}")]
    Host(String),
    /// It cannot listen there: the port is taken, or the address is not of this machine.
    #[error("cannot listen on {address}: {why}")]
    Listen {
        /// Where.
        address: Multiaddr,
        /// What the system says.
        why: String,
    },
}

/// Starts control planes.
#[derive(Debug)]
pub struct Control;

impl Control {
    /// Starts a control plane on the current tokio runtime: listens, dials bootstrap and known peers, and goes on
    /// announcing what it announced before. Dropping all handles stops it, [`ControlHandle::shutdown`] does so in
    /// good order.
    ///
    /// # Errors
    /// [`StartError`]. That nobody answers is no error: dialling goes on.
    pub async fn start(
        config: ControlConfig,
        setup: TlsSetup,
        persistence: Arc<dyn ControlPersistence>,
    ) -> Result<(ControlHandle, mpsc::Receiver<ControlEvent>), StartError> {
        let admitted = Admitted::default();
        let transport = host::tcp_transport(Upgrade::new(&setup, admitted.clone())?);
        Self::start_over(transport, admitted, config, setup, persistence).await
    }

    /// [`Self::start`] over any transport that yields members.
    async fn start_over(
        transport: MemberTransport,
        admitted: Admitted,
        config: ControlConfig,
        setup: TlsSetup,
        persistence: Arc<dyn ControlPersistence>,
    ) -> Result<(ControlHandle, mpsc::Receiver<ControlEvent>), StartError> {
        let remembered = recall(persistence.clone()).await;
        if let Some(list) = &remembered.revocations
            && let Err(error) = setup.revocations().offer(list)
        {
            tracing::warn!(%error, "the list of revocations that was remembered is not taken");
        }
        let local = setup.identity().peer_id();
        let seed = seed_of(&local);
        let (start, wall) = (Instant::now(), setup.now());
        let mut kept = Records::new(addr::to_libp2p(local), config.records.clone(), seed);
        kept.restore(remembered.providers, start, wall);
        let stats = Arc::new(ControlStats::default());
        let transport = Guarded::around(transport, &config.connections, stats.clone());
        let mut host =
            host::build(&config, &setup.identity().keypair, kept, transport).map_err(StartError::Host)?;
        for address in &config.listen {
            host.listen_on(address.clone())
                .map_err(|why| StartError::Listen { address: address.clone(), why: why.to_string() })?;
        }
        for address in &config.announce {
            host.add_external_address(address.clone());
        }
        let (commands_in, commands) = mpsc::channel(COMMANDS_MAX);
        let (events, events_out) = mpsc::channel(EVENTS_MAX);
        let (origins_in, origins_out) = watch::channel(Arc::default());
        let (endpoints_in, endpoints_out) = watch::channel(Arc::default());
        let handle = ControlHandle {
            commands: commands_in,
            origins: origins_out,
            endpoints: endpoints_out,
            stats: stats.clone(),
            lookup_jitter_max: config.lookup.start_jitter_max,
            local,
        };
        let mut service = Service {
            reprovider: Reprovider::new(config.reprovide.clone(), seed),
            lookups: Lookups::new(config.lookup.clone()),
            origins: Origins::new(setup.identity().mesh, config.heartbeat.clone()),
            conduct: Conduct::new(&config.conduct),
            known: KnownPeers::new(config.known_peers_max, remembered.peers),
            saver: Saver::new(persistence),
            redial_delay: config.connections.redial_delay_min,
            host,
            config,
            setup,
            admitted,
            local,
            start,
            commands,
            events,
            origins_in,
            endpoints_in,
            stats,
            members: Members::default(),
            reachable: Reachable::default(),
            announcing: HashMap::new(),
            doors: HashMap::new(),
            dialling: HashSet::new(),
            bans: BTreeMap::new(),
            beating: false,
            revocations_unsaved: false,
            last_beat: None,
            last_sent: WallTime::default(),
            next_beat: start,
            next_redial: start,
            next_prune: start,
            next_introduction: start,
            next_save: start,
            next_peers_save: start,
        };
        service.resume(remembered.provided, wall);
        service.refresh_endpoints();
        tokio::spawn(service.run());
        Ok((handle, events_out))
    }
}

async fn recall(persistence: Arc<dyn ControlPersistence>) -> Remembered {
    let loaded = tokio::task::spawn_blocking(move || persistence.load()).await;
    match loaded {
        Ok(Ok(remembered)) => remembered,
        Ok(Err(error)) => {
            tracing::warn!(%error, "starting with nothing remembered");
            Remembered::default()
        }
        Err(error) => {
            tracing::warn!(%error, "starting with nothing remembered");
            Remembered::default()
        }
    }
}

/// Sets this process's schedules apart from those of others.
fn seed_of(peer: &PeerId) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(peer.public_key()).as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// Everything the task owns.
pub(super) struct Service {
    pub(super) host: Swarm<Behaviour>,
    pub(super) config: ControlConfig,
    pub(super) setup: TlsSetup,
    pub(super) admitted: Admitted,
    pub(super) local: PeerId,
    start: Instant,
    commands: mpsc::Receiver<Command>,
    pub(super) events: mpsc::Sender<ControlEvent>,
    pub(super) origins_in: watch::Sender<Arc<Vec<Origin>>>,
    pub(super) endpoints_in: watch::Sender<Arc<Vec<Endpoint>>>,
    pub(super) stats: Arc<ControlStats>,
    pub(super) members: Members,
    pub(super) reachable: Reachable,
    pub(super) reprovider: Reprovider,
    /// Announcements under way.
    pub(super) announcing: HashMap<QueryId, Digest>,
    pub(super) lookups: Lookups,
    pub(super) origins: Origins,
    pub(super) conduct: Conduct,
    pub(super) known: KnownPeers,
    pub(super) saver: Saver,
    /// Who answered at which bootstrap address.
    pub(super) doors: HashMap<Multiaddr, PeerId>,
    /// Bootstrap addresses without a peer id that are being dialled.
    pub(super) dialling: HashSet<libp2p::swarm::ConnectionId>,
    pub(super) bans: BTreeMap<PeerId, Instant>,
    pub(super) beating: bool,
    /// The list of revocations in force is not yet remembered.
    pub(super) revocations_unsaved: bool,
    pub(super) last_beat: Option<Instant>,
    pub(super) last_sent: WallTime,
    pub(super) next_beat: Instant,
    pub(super) next_redial: Instant,
    pub(super) redial_delay: Duration,
    pub(super) next_prune: Instant,
    pub(super) next_introduction: Instant,
    next_save: Instant,
    next_peers_save: Instant,
}

impl Service {
    fn resume(&mut self, provided: Vec<StoredProvided>, wall: WallTime) {
        for own in provided {
            if self.reprovider.add(own.digest, own.announced, wall) {
                // So that whoever asks this process gets it as an answer from the first moment on.
                let record = libp2p::kad::ProviderRecord::new(
                    records::key_of(&own.digest),
                    addr::to_libp2p(self.local),
                    Vec::new(),
                );
                let _ = self.store().add_provider(record);
            }
        }
    }

    async fn run(mut self) {
        let stopped = loop {
            let wake = tokio::time::Instant::from_std(self.next_wake());
            tokio::select! {
                event = self.host.select_next_some() => self.on_host_event(event),
                command = self.commands.recv() => match command {
                    Some(Command::Shutdown(done)) => break Some(done),
                    Some(command) => self.on_command(command),
                    None => break None,
                },
                () = tokio::time::sleep_until(wake) => {}
            }
            self.on_time().await;
        };
        self.stop(stopped).await;
    }

    fn next_wake(&self) -> Instant {
        let now = Instant::now();
        let pace = self.reprovider.wait(self.timestamp(), self.setup.now()).map(|wait| now + wait);
        // Without peers an announcement would be in vain; it waits for the next tick.
        let pace = pace.filter(|_| self.members.len() > 0);
        let beat = self.beating.then_some(self.next_beat);
        let soonest = [pace, beat, self.lookups.deadline()].into_iter().flatten().min();
        soonest.map_or(now + TICK, |soonest| soonest.min(now + TICK))
    }

    pub(super) fn timestamp(&self) -> Timestamp {
        Timestamp::from_start(self.start.elapsed())
    }

    pub(super) fn store(&mut self) -> &mut Records {
        self.host.behaviour_mut().kad.store_mut()
    }

    /// Tells the daemon, unless it is too slow.
    pub(super) fn tell(&self, event: ControlEvent) {
        if self.events.try_send(event).is_err() {
            self.stats.events_dropped.count();
        }
    }

    async fn on_time(&mut self) {
        let now = Instant::now();
        self.announce_due();
        for ended in self.lookups.sweep(now) {
            let kad = &mut self.host.behaviour_mut().kad;
            if let Some(query) = ended.query
                && let Some(mut query) = kad.query_mut(&query)
            {
                query.finish();
            }
            if ended.hit { self.stats.lookup_hits.count() } else { self.stats.lookup_misses.count() }
        }
        if self.beating && now >= self.next_beat {
            self.beat(false);
        }
        if now >= self.next_redial {
            self.redial(now);
        }
        if now >= self.next_prune {
            self.next_prune = now + self.config.connections.prune_interval;
            self.prune(now);
        }
        if now >= self.next_introduction {
            self.next_introduction = now + self.config.heartbeat.introduce_interval;
            self.introduce_origins(now);
        }
        if now >= self.next_save && !self.saver.is_busy() {
            self.next_save = now + records::SAVE_INTERVAL;
            self.tidy(now);
            self.save(now, false).await;
        }
    }

    fn announce_due(&mut self) {
        if self.members.len() == 0 {
            return;
        }
        while let Some(digest) = self.reprovider.next(self.timestamp(), self.setup.now()) {
            // Our own store refuses nothing of ours.
            if let Ok(query) = self.host.behaviour_mut().kad.start_providing(records::key_of(&digest)) {
                self.announcing.insert(query, digest);
            }
        }
    }

    async fn save(&mut self, now: Instant, all: bool) {
        let wall = self.setup.now();
        let mut changes = self.store().take_changes(BATCH_MAX / 2, now, wall);
        if all || now >= self.next_peers_save {
            self.next_peers_save = now + PEERS_SAVE_INTERVAL;
            changes.extend(self.known.take_changed().map(Change::SetPeers));
        }
        if std::mem::take(&mut self.revocations_unsaved) {
            changes.extend(self.setup.revocations().current().map(Change::SetRevocations));
        }
        let lost = self.saver.write(changes).await;
        self.stats.unsaved.add(lost);
    }

    async fn stop(mut self, done: Option<oneshot::Sender<()>>) {
        if self.beating {
            self.beat(true);
            let until = tokio::time::Instant::now() + FAREWELL;
            while tokio::time::timeout_at(until, self.host.select_next_some()).await.is_ok() {}
        }
        let now = Instant::now();
        loop {
            self.save(now, true).await;
            let lost = self.saver.finish().await;
            self.stats.unsaved.add(lost);
            if !self.saver.has_more() && !self.store().has_changes() {
                break;
            }
        }
        drop(self);
        if let Some(done) = done {
            let _ = done.send(());
        }
    }
}
