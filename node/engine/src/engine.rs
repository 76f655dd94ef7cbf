//! The engine: one owner of every swarm, peer and budget of a process.

pub mod ahead;
mod asking;
mod connections;
mod downloads;
pub mod inspect;
mod joining;
mod picking;
mod reading;
mod searching;
mod serving;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use shoal_types::{Digest, Endpoint, PeerId, Roles, Timestamp, Zone};

use crate::budget::Bucket;
use crate::config::EngineConfig;
use crate::flow::Flow;
use crate::io::{Effect, Event, Input, ReaderId, Report};
use crate::keyed::{Map, Sorted};
use crate::message::{Channel, Message};
use crate::names::{BlobName, Named, Names};
use crate::random::Random;
use crate::swarm::Swarm;
use crate::timers::{Timer, Timers};
use crate::uploads::Uploads;

/// A connected peer.
///
/// What most inputs look at stands at the end, before the key it is kept with.
#[derive(Debug)]
// In the order of use: docs/adr/0018.
#[repr(C)]
struct Peer {
    zone: Zone,
    roles: Roles,
    endpoints: Vec<Endpoint>,
    idle_since: Timestamp,
    flow: Flow,
    /// When it is looked whether it has stalled.
    stall_at: Option<Timestamp>,
    messages: Bucket,
    /// The swarms shared on this connection, by our channel.
    channels: Sorted<Shared, Channel, SHARED_INLINE>,
    next_channel: Channel,
    /// It is being disconnected.
    dropped: bool,
}

impl Peer {
    /// The blobs shared with it, in the order of our channels.
    fn blobs(&self) -> impl Iterator<Item = BlobName> {
        self.channels.values().map(|shared| shared.name)
    }
}

/// A swarm shared with a peer.
#[derive(Clone, Copy, Debug)]
struct Shared {
    name: BlobName,
    /// Where the peer was among the swarm's members when it was last looked for.
    place: u32,
}

/// Swarms shared with a peer that stand in place: few peers share more.
const SHARED_INLINE: usize = 2;

/// Wishes on their way out.
#[derive(Debug)]
struct Out {
    now: Timestamp,
    effects: VecDeque<Effect>,
}

impl Out {
    fn push(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }

    fn send(&mut self, peer: PeerId, message: Message) {
        self.push(Effect::Send { peer, message });
    }

    fn report(&mut self, event: Event) {
        let at = self.now;
        self.push(Effect::Report(Report { at, event }));
    }
}

/// The swarm engine of one process. See the crate's documentation.
///
/// A driver feeds it facts, carries out the wishes it polls, and calls [`Self::handle_timeout`] when
/// [`Self::poll_timeout`] has come. Every method takes the driver's monotonic time, which must not go back.
///
/// What every input looks at stands at the beginning, in few cache lines: one process may have thousands of engines.
#[derive(Debug)]
// In the order of use: docs/adr/0018.
#[repr(C, align(64))]
pub struct Engine {
    peers: Map<PeerId, Peer>,
    swarms: Named<Swarm>,
    now: Timestamp,
    /// Payload bytes requested and being verified.
    buffered_bytes: u64,
    /// Shared where one process has many engines.
    config: Arc<EngineConfig>,
    /// Swarms that have requests in flight inside the zone.
    fetching: usize,
    out: Out,
    /// Swarms that wait for buffer room, and how many bytes of it.
    hungry: BTreeMap<BlobName, u32>,
    /// `false` when certainly no peer is stalled.
    stalls: bool,
    /// Pieces being verified or fetched, and the bytes they hold; they outlive their swarm.
    verifying: Sorted<u32, (BlobName, u32)>,
    readers: Sorted<BlobName, ReaderId>,
    timers: Timers,
    /// What blobs are called in here.
    names: Names,
    uploads: Uploads,
    local: PeerId,
    /// Its own roles.
    roles: Roles,
    zone: Zone,
    random: Random,
    /// Decides this process's order of pieces that are as rare.
    order: u32,
    /// Peers being dialled, and the swarms they are dialled for.
    dialing: Map<PeerId, BTreeSet<BlobName>>,
    /// What comes from each other zone, all peers together: requests in flight are sized to the link as to a peer.
    links: BTreeMap<Zone, Flow>,
    /// The one of them that went on last.
    fed: Option<BlobName>,
    rate_in: Bucket,
    rate_out: Bucket,
    zone_rate_in: Bucket,
    zone_rate_out: Bucket,
    /// Signers whose metainfo of a blob proved wrong.
    bad_signers: BTreeSet<(Digest, PeerId)>,
}

/// Wrong metainfo remembered at most. More means a broken origin, and then each is found out anew.
const BAD_SIGNERS_MAX: usize = 1024;

impl Engine {
    /// An engine without swarms or peers. `config` has been validated; `seed` decides every tie.
    pub fn new(
        config: impl Into<Arc<EngineConfig>>,
        local: PeerId,
        zone: Zone,
        seed: u64,
        now: Timestamp,
    ) -> Self {
        let config = config.into();
        let mut random = Random::new(seed);
        let order = u32::try_from(random.below(u32::MAX as usize)).unwrap_or_default();
        Self {
            rate_in: Bucket::new(config.rate_in_bytes_per_sec, now),
            rate_out: Bucket::new(config.rate_out_bytes_per_sec, now),
            zone_rate_in: Bucket::new(config.zone_rate_in_bytes_per_sec, now),
            zone_rate_out: Bucket::new(config.zone_rate_out_bytes_per_sec, now),
            config,
            local,
            roles: Roles::NONE,
            zone,
            now,
            random,
            order,
            peers: Map::default(),
            dialing: Map::default(),
            names: Names::default(),
            swarms: Named::default(),
            readers: Sorted::default(),
            links: BTreeMap::new(),
            stalls: false,
            uploads: Uploads::default(),
            timers: Timers::default(),
            out: Out { now, effects: VecDeque::new() },
            buffered_bytes: 0,
            fetching: 0,
            verifying: Sorted::default(),
            hungry: BTreeMap::new(),
            fed: None,
            bad_signers: BTreeSet::new(),
        }
    }

    /// The same engine in a process with these roles: those its credential shows to peers. An origin imports for its zone.
    #[must_use]
    pub fn with_roles(self, roles: Roles) -> Self {
        Self { roles, ..self }
    }

    /// Takes in a fact. What follows from it is polled with [`Self::poll_effect`].
    pub fn handle_input(&mut self, now: Timestamp, input: Input) {
        self.advance_clock(now);
        match input {
            Input::PeerConnected { peer, zone, roles, endpoints } => {
                self.peer_connected(peer, zone, roles, endpoints);
            }
            Input::PeerDisconnected { peer } => self.peer_disconnected(peer),
            Input::ConnectFailed { peer } => self.connect_failed(peer),
            Input::Message { peer, message } => self.message(peer, message),
            Input::PieceProgress { peer, channel, piece, bytes, since_first } => {
                self.piece_progress(peer, channel, piece, bytes, since_first);
            }
            Input::PieceArrived { peer, channel, piece, buffer, since_first } => {
                self.piece_arrived(peer, channel, piece, buffer, since_first);
            }
            Input::PieceSent { peer, digest, piece, bytes } => {
                let name = self.name(digest);
                self.piece_sent(peer, name, piece, bytes);
            }
            Input::ReaderOpened { reader, digest, want } => {
                let name = self.name(digest);
                self.reader_opened(reader, name, want);
            }
            Input::ReaderMoved { reader, offset } => self.reader_moved(reader, offset),
            Input::ReaderClosed { reader } => self.reader_closed(reader),
            Input::BlobOpened { digest, opened } => {
                let name = self.name(digest);
                self.blob_opened(name, opened);
            }
            Input::MetainfoLearned { metainfo, vouched } => {
                let name = self.name(metainfo.digest());
                self.metainfo_learned(name, metainfo, vouched, None);
            }
            Input::MetainfoRefused { peer, channel } => self.metainfo_refused(peer, channel),
            Input::PeersFound { digest, source, peers } => {
                let name = self.name(digest);
                self.peers_found(name, Some(source), peers);
            }
            Input::LookupFinished { digest, source, answered: _ } => {
                let name = self.name(digest);
                self.lookup_finished(name, source);
            }
            Input::PieceVerified { digest, piece } => {
                let name = self.name(digest);
                self.piece_verified(name, piece);
            }
            Input::PieceCorrupt { digest, piece, from } => {
                let name = self.name(digest);
                self.piece_corrupt(name, piece, from);
            }
            Input::WriteFailed { digest, piece, why } => {
                let name = self.name(digest);
                self.write_failed(name, piece, why);
            }
            Input::BackendFailed { digest, piece } => {
                let name = self.name(digest);
                self.backend_failed(name, piece);
            }
            Input::BlobFinished { digest } => {
                let name = self.name(digest);
                self.blob_finished(name);
            }
            Input::BlobCorrupt { digest } => {
                let name = self.name(digest);
                self.blob_corrupt(name);
            }
            Input::BlobRemoved { digest } => {
                let name = self.name(digest);
                self.blob_removed(name);
            }
        }
        self.feed_hungry();
    }

    /// The next wish, in the order in which they are to be carried out.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.out.effects.pop_front()
    }

    /// Exchanges the wishes not polled yet for what is in `buffer`. Many engines can share a buffer, lent to each of them for an input
    /// and taken back with what it wishes: their own would be out of the processor's caches each time.
    pub fn exchange_effects(&mut self, buffer: &mut VecDeque<Effect>) {
        std::mem::swap(&mut self.out.effects, buffer);
    }

    /// When [`Self::handle_timeout`] is to be called next; it changes with every input.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.timers.next()
    }

    /// Does what is due at `now`. Calling it early or twice is harmless.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        self.advance_clock(now);
        for timer in self.timers.take_due(self.now) {
            match timer {
                Timer::Haves(name) => self.flush_haves(name),
                Timer::FarHaves(name) => self.flush_far_haves(name),
                Timer::Search(name) => self.search_tick(name),
                Timer::Fill(name) => self.fill_swarm(name),
                Timer::Linger(name) => self.linger_over(name),
                Timer::Stall(peer) => self.check_stall(peer),
                Timer::Idle(peer) => self.check_idle(peer),
                Timer::Uploads => self.serve(),
            }
        }
        self.feed_hungry();
    }

    fn advance_clock(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
        self.out.now = self.now;
    }

    /// What a blob is called in here.
    fn name(&mut self, digest: Digest) -> BlobName {
        if let Some(name) = self.names.get(&digest) {
            return name;
        }
        if self.names.are_many() {
            let verifying = self.verifying.iter().map(|((name, _), _)| name);
            let used: BTreeSet<BlobName> = verifying.chain(self.uploads.blobs()).collect();
            self.names.retain(|name| self.swarms.contains(name) || used.contains(&name));
        }
        self.names.add(digest)
    }

    /// Wishes something that names a blob.
    fn wish(&mut self, name: BlobName, effect: impl FnOnce(Digest) -> Effect) {
        if let Some(digest) = self.names.digest(name) {
            self.out.push(effect(digest));
        }
    }

    /// Tells of something that names a blob.
    fn report(&mut self, name: BlobName, event: impl FnOnce(Digest) -> Event) {
        if let Some(digest) = self.names.digest(name) {
            self.out.report(event(digest));
        }
    }

    /// The swarm on a peer's connection that we call `channel`, and whether the peer is a member that has joined.
    fn shared_on(&mut self, peer: &PeerId, channel: Channel) -> Option<(BlobName, bool)> {
        let Shared { name, place } = self.peers.get_mut(peer)?.channels.get_mut(channel)?;
        let members = self.swarms.get(*name).map(|swarm| &swarm.members);
        let found =
            members.and_then(|members| members.recall(peer, *place as usize).map(|found| (members, found)));
        let joined = found.is_some_and(|(members, found)| {
            *place = u32::try_from(found).unwrap_or(u32::MAX);
            members.at(found).is_some_and(|member| member.their_channel.is_some())
        });
        Some((*name, joined))
    }

    fn blob_on(&mut self, peer: &PeerId, channel: Channel) -> Option<BlobName> {
        self.shared_on(peer, channel).map(|(name, _)| name)
    }
}
