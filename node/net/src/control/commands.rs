//! What the daemon asks for.

use std::time::{Duration, Instant};

use libp2p::gossipsub::{IdentTopic, PublishError as GossipError};
use shoal_types::gossip::GOSSIP_BYTES_MAX;
use shoal_types::{Digest, GossipMessage, PeerId};
use tokio::sync::mpsc;

use super::handle::{Command, ControlStatus, Found, PeerStatus, PublishError};
use super::persist::{Change, StoredProvided};
use super::service::Service;
use super::{addr, gossip, records};

/// Peers banned at once at most; the ban that ends first gives way.
const BANS_MAX: usize = 1024;

impl Service {
    pub(super) fn on_command(&mut self, command: Command) {
        match command {
            Command::Provide(digest) => self.provide(digest),
            Command::Unprovide(digest) => self.unprovide(digest),
            Command::Find { digest, found } => self.find(digest, found),
            Command::Publish { message, done } => {
                let published =
                    if self.is_origin() { self.publish(&message) } else { Err(PublishError::NotOrigin) };
                let _ = done.send(published);
            }
            #[cfg(any(test, feature = "hostile"))]
            Command::PublishUnchecked { message, done } => {
                let _ = done.send(self.publish(&message));
            }
            Command::Heartbeat(beating) => self.set_beating(beating),
            Command::DataEndpoints(endpoints) => {
                self.config.data_endpoints = endpoints;
                self.refresh_endpoints();
            }
            Command::Dial(door) => self.dial_door(&door),
            Command::Ban { peer, lasting } => self.ban(peer, lasting),
            Command::Revoke { list, done } => {
                let _ = done.send(self.revoke(&list, None));
            }
            Command::Status(done) => {
                let _ = done.send(self.status());
            }
            // The loop ends with it and never passes it on.
            Command::Shutdown(_) => {}
        }
    }

    fn provide(&mut self, digest: Digest) {
        if self.reprovider.contains(&digest) {
            return;
        }
        if !self.reprovider.add(digest, None, self.setup.now()) {
            self.stats.provide_refused.count();
            return;
        }
        let own = StoredProvided { digest, announced: None };
        self.saver.provided(digest, Change::PutProvided(own));
    }

    fn unprovide(&mut self, digest: Digest) {
        if self.reprovider.remove(&digest) {
            self.host.behaviour_mut().kad.stop_providing(&records::key_of(&digest));
            self.saver.provided(digest, Change::DeleteProvided { digest });
        }
    }

    fn find(&mut self, digest: Digest, found: mpsc::Sender<Found>) {
        if !self.lookups.has_room() {
            self.stats.lookups_refused.count();
            let _ = found.try_send(Found::End { answered: false });
            return;
        }
        self.stats.lookups.count();
        let query = self.host.behaviour_mut().kad.get_providers(records::key_of(&digest));
        self.lookups.begin(digest, query, found, Instant::now());
    }

    pub(super) fn publish(&mut self, message: &GossipMessage) -> Result<(), PublishError> {
        let bytes = message.to_bytes();
        if bytes.len() > GOSSIP_BYTES_MAX {
            return Err(PublishError::TooLarge);
        }
        let sent = match self.host.behaviour_mut().gossip.publish(IdentTopic::new(gossip::TOPIC), bytes) {
            // Said a moment ago, so it is under way.
            Ok(_) | Err(GossipError::Duplicate) => Ok(()),
            Err(GossipError::MessageTooLarge) => Err(PublishError::TooLarge),
            Err(GossipError::AllQueuesFull(_)) => Err(PublishError::Overloaded),
            Err(GossipError::NoPeersSubscribedToTopic) => Err(PublishError::NobodyListens),
            Err(error) => {
                tracing::warn!(%error, "gossip cannot be published");
                Err(PublishError::NobodyListens)
            }
        };
        if sent.is_ok() {
            self.stats.gossip_published.count()
        } else {
            self.stats.gossip_unsent.count()
        }
        sent
    }

    fn set_beating(&mut self, beating: bool) {
        if beating && !self.is_origin() {
            tracing::warn!("no heartbeat: this process's credential does not make it an origin");
            return;
        }
        if self.beating && !beating {
            self.beat(true);
        }
        if !self.beating && beating {
            self.next_beat = Instant::now();
        }
        self.beating = beating;
    }

    pub(super) fn ban(&mut self, peer: PeerId, lasting: Duration) {
        if self.bans.len() >= BANS_MAX && !self.bans.contains_key(&peer) {
            let soonest =
                self.bans.iter().min_by_key(|(peer, until)| (**until, **peer)).map(|(peer, _)| *peer);
            if let Some(soonest) = soonest {
                self.bans.remove(&soonest);
                self.host.behaviour_mut().banned.unblock_peer(addr::to_libp2p(soonest));
            }
        }
        self.bans.insert(peer, Instant::now() + lasting);
        let peer_id = addr::to_libp2p(peer);
        self.host.behaviour_mut().banned.block_peer(peer_id);
        let _ = self.host.disconnect_peer_id(peer_id);
        if self.origins.remove(&peer) {
            self.origins_changed();
        }
    }

    fn status(&mut self) -> ControlStatus {
        let wall = self.setup.now();
        let records = self.store().len();
        let listening = self.host.listeners().map(ToString::to_string).collect();
        let behaviour = self.host.behaviour_mut();
        let routing_peers = behaviour.kad.kbuckets().map(|bucket| bucket.num_entries()).sum();
        let mesh: std::collections::HashSet<_> = behaviour.gossip.all_mesh_peers().copied().collect();
        let topics = behaviour.gossip.topics().map(ToString::to_string).collect();
        let peers = self.members.iter().map(|(peer, member)| PeerStatus {
            peer: *peer,
            zone: member.zone.clone(),
            roles: member.roles,
            endpoints: member.endpoints.clone().unwrap_or_default(),
            address: member.address.to_string(),
            connected_for: member.since.elapsed(),
            in_gossip_mesh: mesh.contains(&addr::to_libp2p(*peer)),
        });
        ControlStatus {
            peer: self.local,
            listening,
            data_endpoints: self.endpoints().to_vec(),
            peers: peers.collect(),
            routing_peers,
            topics,
            origins: self.origins.alive(),
            records,
            provided: self.reprovider.len(),
            provided_overdue: self.reprovider.overdue(wall),
            known_peers: self.known.len(),
        }
    }
}
