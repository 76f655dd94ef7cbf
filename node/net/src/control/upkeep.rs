//! What the control plane does of its own accord: heartbeats, dialling again, pruning, forgetting.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::swarm::dial_opts::DialOpts;
use shoal_types::gossip::ENDPOINTS_MAX;
use shoal_types::{Endpoint, GossipMessage, Heartbeat, PeerId, Role, Signed};

use super::addr::{self, BootstrapPeer};
use super::handle::{ControlEvent, random_part};
use super::introduce::{BEATS_MAX, encode};
use super::pruner::{self, Candidate};
use super::service::Service;

/// Records that lapse in one go at most; the host stands still meanwhile.
const LAPSE_MAX: usize = 2000;

impl Service {
    /// What has no deadline: lapsed records, silent origins, expired members, bans that are over, gauges.
    pub(super) fn tidy(&mut self, now: Instant) {
        self.store().lapse(now, LAPSE_MAX);
        self.expel();
        if self.origins.expire(now, self.setup.now()) {
            self.origins_changed();
        }
        let over: Vec<PeerId> =
            self.bans.iter().filter(|(_, until)| **until <= now).map(|(p, _)| *p).collect();
        for peer in over {
            self.bans.remove(&peer);
            self.host.behaviour_mut().banned.unblock_peer(addr::to_libp2p(peer));
        }
        let (records, counters) = (self.store().len(), self.store().counters());
        let routing: usize =
            self.host.behaviour_mut().kad.kbuckets().map(|bucket| bucket.num_entries()).sum();
        let gauge = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        self.stats.peers.set(gauge(self.members.len()));
        self.stats.routing_peers.set(gauge(routing));
        self.stats.records.set(gauge(records));
        self.stats.provided.set(gauge(self.reprovider.len()));
        self.stats.records_refused.set(counters.refused);
        self.stats.records_displaced.set(counters.displaced);
        self.stats.records_lapsed.set(counters.lapsed);
    }

    /// Publishes this origin's heartbeat.
    pub(super) fn beat(&mut self, leaving: bool) {
        let now = Instant::now();
        self.last_beat = Some(now);
        self.next_beat = now + self.config.heartbeat.interval;
        // Newer replaces older, so two heartbeats never have the same time, whatever the clock does.
        let sent = self.setup.now().max(self.last_sent.saturating_add(Duration::from_millis(1)));
        self.last_sent = sent;
        let identity = self.setup.identity().clone();
        let endpoints = self.endpoints_in.borrow().iter().take(ENDPOINTS_MAX).cloned().collect();
        let beat = Heartbeat { credential: identity.credential.clone(), endpoints, sent, leaving };
        let beat = Signed::sign(beat, &identity.keypair);
        match self.origins.observe(beat.clone(), Duration::ZERO, now, self.setup.now()) {
            Ok(true) => self.origins_changed(),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "this origin's own heartbeat is not believable"),
        }
        let _ = self.publish(&GossipMessage::Heartbeat(beat));
    }

    /// Tells a member, chosen by chance, which origins are alive.
    pub(super) fn introduce_origins(&mut self, now: Instant) {
        let chosen = (random_part() * self.members.len() as f64) as usize;
        let chosen = self.host.connected_peers().nth(chosen).copied();
        if let Some(peer) = chosen {
            self.introduce_to(peer, now);
        }
    }

    /// Tells a member which origins are alive.
    pub(super) fn introduce_to(&mut self, peer: libp2p::PeerId, now: Instant) {
        let beats = self.origins.heartbeats(BEATS_MAX, now);
        if !beats.is_empty() {
            self.host.behaviour_mut().introduce.push(peer, encode(&beats));
        }
    }

    /// Somebody came who may not know this origin: the next heartbeat is sooner.
    pub(super) fn beat_soon(&mut self) {
        let earliest =
            self.last_beat.map_or_else(Instant::now, |last| last + self.config.heartbeat.interval_min);
        self.next_beat = self.next_beat.min(earliest);
    }

    pub(super) fn is_origin(&self) -> bool {
        self.setup.identity().credential.value().roles.contains(Role::Origin)
    }

    pub(super) fn origins_changed(&mut self) {
        let alive = self.origins.alive();
        self.stats.origins.set(u64::try_from(alive.len()).unwrap_or(u64::MAX));
        self.origins_in.send_replace(Arc::new(alive));
        self.tell(ControlEvent::OriginsChanged);
    }

    pub(super) fn endpoints(&self) -> Arc<Vec<Endpoint>> {
        self.endpoints_in.borrow().clone()
    }

    /// Works out where the data plane is reached, and announces it if that changed.
    pub(super) fn refresh_endpoints(&mut self) {
        let mut endpoints = self.config.data_endpoints.clone();
        if let (true, Some(port)) = (endpoints.is_empty(), self.config.data_port) {
            endpoints = self.reachable.endpoints(port);
        }
        endpoints.truncate(ENDPOINTS_MAX);
        let before = self.endpoints();
        if *before == endpoints {
            return;
        }
        let zone = self.setup.identity().credential.value().zone.clone();
        for gone in before.iter().filter(|endpoint| !endpoints.contains(endpoint)) {
            self.host.remove_external_address(&addr::data_address(gone, &zone));
        }
        for endpoint in &endpoints {
            self.host.add_external_address(addr::data_address(endpoint, &zone));
        }
        self.endpoints_in.send_replace(Arc::new(endpoints));
        let connected: Vec<_> = self.host.connected_peers().copied().collect();
        self.host.behaviour_mut().identify.push(connected);
        self.beat_soon();
    }

    /// While there are few peers: dials bootstrap peers and, most recent first, known peers.
    pub(super) fn redial(&mut self, now: Instant) {
        if self.members.len() >= self.config.connections.lonely_below {
            self.redial_delay = self.config.connections.redial_delay_min;
            self.next_redial = now + self.redial_delay;
            return;
        }
        self.stats.redials.count();
        self.next_redial = now + self.redial_delay.mul_f64(0.75 + 0.5 * random_part());
        self.redial_delay = (self.redial_delay * 2).min(self.config.connections.redial_delay_max);
        for door in self.config.bootstrap.clone() {
            self.dial_door(&door);
        }
        let known = self.known.recent();
        let absent = known.into_iter().filter(|(peer, _)| self.members.get(peer).is_none());
        let absent: Vec<_> = absent.take(self.config.connections.redial_peers_max).collect();
        for (peer, addresses) in absent {
            let _ = self.host.dial(DialOpts::peer_id(addr::to_libp2p(peer)).addresses(addresses).build());
        }
    }

    pub(super) fn dial_door(&mut self, door: &BootstrapPeer) {
        let who = door.peer().or_else(|| self.doors.get(door.address()).copied());
        if who.is_some_and(|peer| peer == self.local || self.members.get(&peer).is_some()) {
            return;
        }
        // An address without a peer id is dialled as such every time: another peer may have it by now.
        let options = match door.peer() {
            Some(peer) => {
                DialOpts::peer_id(addr::to_libp2p(peer)).addresses(vec![door.address().clone()]).build()
            }
            None => DialOpts::unknown_peer_id().address(door.address().clone()).build(),
        };
        let connection = options.connection_id();
        if let Err(error) = self.host.dial(options) {
            tracing::debug!(%door, %error, "bootstrap peer not dialled");
        } else {
            self.dialling.insert(connection);
        }
    }

    pub(super) fn prune(&mut self, now: Instant) {
        let target = self.config.connections.prune_target;
        if self.members.len() <= target {
            return;
        }
        let here = libp2p::kad::KBucketKey::from(addr::to_libp2p(self.local));
        let replication = self.config.kad.replication.get();
        let behaviour = self.host.behaviour_mut();
        let mut needed: HashSet<libp2p::PeerId> = behaviour.gossip.all_mesh_peers().copied().collect();
        let closest = behaviour.kad.get_closest_local_peers(&here).take(replication);
        needed.extend(closest.map(libp2p::kad::KBucketKey::into_preimage));
        let candidates: Vec<Candidate> = self
            .members
            .iter()
            .map(|(peer, member)| Candidate {
                peer: *peer,
                since: member.since,
                protected: member.bootstrap || needed.contains(&addr::to_libp2p(*peer)),
            })
            .collect();
        let age_min = self.config.connections.prune_age_min;
        for peer in pruner::surplus(self.local, &candidates, target, age_min, now) {
            self.stats.pruned.count();
            let _ = self.host.disconnect_peer_id(addr::to_libp2p(peer));
        }
    }
}
