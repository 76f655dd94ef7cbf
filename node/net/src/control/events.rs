//! What the host reports.

use std::time::{Duration, Instant};

use libp2p::core::{ConnectedPoint, Endpoint as ConnectionRole};
use libp2p::kad::{self, GetProvidersOk, QueryId, QueryResult, QueryStats};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, NetworkBehaviour as _, SwarmEvent};
use libp2p::{Multiaddr, gossipsub, identify, ping};
use shoal_types::gossip::ENDPOINTS_MAX;
use shoal_types::{Endpoint, Role, Zone};

use super::handle::{ControlEvent, Provider};
use super::host::{BehaviourEvent, IDENTIFY_PROTOCOL};
use super::introduce::Introduction;
use super::members::ip_of;
use super::persist::{Change, StoredProvided};
use super::push::Pushed;
use super::reprovide::Outcome;
use super::service::Service;
use super::{addr, gossip};

/// Control-plane addresses of a peer that go into the routing table at most.
const ADDRESSES_MAX: usize = 8;
/// A peer may tell of origins this often.
const INTRODUCTION_INTERVAL: Duration = Duration::from_secs(1);

impl Service {
    pub(super) fn on_host_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour_event(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_connected(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established, .. } => {
                self.stats.connections_closed.count();
                if num_established == 0 {
                    self.on_gone(&peer_id);
                }
            }
            SwarmEvent::IncomingConnectionError { error, .. } => {
                self.stats.inbound_failed.count();
                tracing::debug!(%error, "inbound connection failed");
            }
            SwarmEvent::OutgoingConnectionError { peer_id, connection_id, error } => {
                self.stats.outbound_failed.count();
                self.dialling.remove(&connection_id);
                tracing::debug!(?peer_id, %error, "dial failed");
                if let Some(peer) = peer_id.as_ref().and_then(addr::from_libp2p)
                    && self.members.get(&peer).is_none()
                {
                    self.lookups.told(peer, None, Instant::now());
                }
            }
            SwarmEvent::NewListenAddr { address, .. } => {
                self.reachable.listens(&address);
                self.refresh_endpoints();
                self.tell(ControlEvent::Listening { address });
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.reachable.listens_no_more(&address);
                self.refresh_endpoints();
            }
            SwarmEvent::ListenerClosed { addresses, reason, .. } => {
                tracing::warn!(?addresses, ?reason, "a listener of the control plane closed");
            }
            SwarmEvent::ListenerError { error, .. } => {
                tracing::warn!(%error, "a listener of the control plane failed");
            }
            _ => {}
        }
    }

    fn on_behaviour_event(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Kad(kad::Event::OutboundQueryProgressed { id, result, stats, .. }) => {
                self.on_query(id, result, &stats);
            }
            BehaviourEvent::Gossip(gossipsub::Event::Message { propagation_source, message_id, message }) => {
                self.on_gossip(propagation_source, &message_id, &message);
            }
            BehaviourEvent::Gossip(gossipsub::Event::Subscribed { .. }) => self.beat_soon(),
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                self.on_identified(&peer_id, info);
            }
            BehaviourEvent::Ping(ping::Event { peer, connection, result: Err(error) }) => {
                self.on_silence(&peer, connection, &error);
            }
            BehaviourEvent::Introduce(introduced) => self.on_introduced(introduced),
            BehaviourEvent::Revoke(pushed) => self.on_revocations(pushed),
            _ => {}
        }
    }

    fn on_connected(&mut self, peer_id: libp2p::PeerId, connection: ConnectionId, endpoint: &ConnectedPoint) {
        self.stats.connections_opened.count();
        let Some(peer) = addr::from_libp2p(&peer_id) else {
            // TLS admits Ed25519 identities only.
            let _ = self.host.disconnect_peer_id(peer_id);
            return;
        };
        let credential = self.admitted.take(&peer);
        let mut bootstrap = self.config.bootstrap.iter().any(|door| door.peer() == Some(peer));
        if self.dialling.remove(&connection)
            && let ConnectedPoint::Dialer { address, .. } = endpoint
        {
            bootstrap = true;
            let door = without_peer(address);
            if self.config.bootstrap.iter().any(|configured| configured.address() == &door) {
                self.doors.insert(door, peer);
            }
        }
        bootstrap &= credential.as_ref().is_none_or(|own| own.value().roles.contains(Role::Bootstrap));
        let address = match endpoint {
            ConnectedPoint::Dialer { address, .. } => address.clone(),
            ConnectedPoint::Listener { send_back_addr, local_addr } => {
                self.reachable.is_used(local_addr);
                self.refresh_endpoints();
                send_back_addr.clone()
            }
        };
        let now = Instant::now();
        if self.members.connected(peer, credential.as_ref(), address, bootstrap, now) {
            self.introduce_to(peer_id, now);
            self.introduce_revocations(peer_id);
        }
    }

    /// The second ping in a row was not answered.
    fn on_silence(&mut self, peer: &libp2p::PeerId, connection: ConnectionId, error: &ping::Failure) {
        if !matches!(error, ping::Failure::Unsupported) && self.host.close_connection(connection) {
            self.stats.connections_silent.count();
            tracing::debug!(%peer, %error, "a silent connection is closed");
        }
    }

    fn on_gone(&mut self, peer_id: &libp2p::PeerId) {
        let Some(peer) = addr::from_libp2p(peer_id) else { return };
        if self.members.gone(&peer) {
            self.lookups.told(peer, None, Instant::now());
            self.tell(ControlEvent::PeerGone { peer });
        }
        if self.members.len() == 0 {
            self.redial_delay = self.config.connections.redial_delay_min;
            self.next_redial = Instant::now() + self.redial_delay;
        }
    }

    fn on_identified(&mut self, peer_id: &libp2p::PeerId, info: identify::Info) {
        let Some(peer) = addr::from_libp2p(peer_id) else { return };
        if info.protocol_version != IDENTIFY_PROTOCOL {
            tracing::warn!(%peer, theirs = %info.protocol_version, "a member speaks another protocol version");
            return;
        }
        self.reachable.is_used(&info.observed_addr);
        self.refresh_endpoints();
        let Some(member) = self.members.get_mut(&peer) else { return };
        // A peer elsewhere lists its loopback addresses too; here they would lead to this machine.
        let near = ip_of(&member.address).is_some_and(|ip| ip.is_loopback());
        let useful = |address: &&Multiaddr| near || ip_of(address).is_none_or(|ip| !ip.is_loopback());
        let (endpoints, _) = data_endpoints(info.listen_addrs.iter().filter(useful));
        let control =
            info.listen_addrs.iter().filter(useful).filter(|address| addr::is_control_address(address));
        let control: Vec<Multiaddr> = control.take(ADDRESSES_MAX).cloned().collect();
        let (zone, roles) = (member.zone.clone(), member.roles);
        let news = member.endpoints.as_ref() != Some(&endpoints);
        member.endpoints = Some(endpoints.clone());
        for address in &control {
            self.host.behaviour_mut().kad.add_address(peer_id, address.clone());
        }
        self.known.saw(peer, control, self.setup.now());
        let provider = Provider { peer, zone: Some(zone.clone()), endpoints: endpoints.clone() };
        let known = (!endpoints.is_empty()).then_some(&provider);
        let yielded = self.lookups.told(peer, known, Instant::now());
        self.stats.providers_found.add(yielded);
        if news {
            self.tell(ControlEvent::PeerSeen { peer, zone, roles, endpoints });
        }
    }

    fn on_introduced(&mut self, introduced: Pushed<Introduction>) {
        let now = Instant::now();
        let peer = addr::from_libp2p(&introduced.peer);
        let Some(member) = peer.and_then(|peer| self.members.get_mut(&peer)) else { return };
        let too_soon = member.introduced.is_some_and(|last| now < last + INTRODUCTION_INTERVAL);
        if too_soon {
            self.stats.introductions_refused.count();
            return;
        }
        member.introduced = Some(now);
        let mut changed = false;
        for (age, beat) in introduced.message.0 {
            match self.origins.observe(beat, age, now, self.setup.now()) {
                Ok(news) => {
                    self.stats.introduced.count();
                    changed |= news;
                }
                Err(error) if error.is_hostile() => self.stats.introductions_refused.count(),
                // Known already, or late.
                Err(_) => {}
            }
        }
        if changed {
            self.origins_changed();
            // Somebody else may not have heard of it either.
            self.next_introduction = now;
        }
    }

    fn on_gossip(&mut self, from: libp2p::PeerId, id: &gossipsub::MessageId, message: &gossipsub::Message) {
        let source = message.source.as_ref().and_then(addr::from_libp2p);
        let now = Instant::now();
        let verdict = match source {
            Some(source) if self.origins.contains(&source) && !self.conduct.may_tell(source, now) => {
                self.stats.gossip_damped.count();
                // Not held against whoever passes it on, who may have heard less of it.
                self.host.behaviour_mut().gossip.report_message_validation_result(
                    id,
                    &from,
                    gossipsub::MessageAcceptance::Ignore,
                );
                return;
            }
            Some(source) => gossip::judge(source, &message.data, &mut self.origins, now, self.setup.now()),
            // Signed by something that cannot be a member.
            None => gossip::Verdict::no(gossipsub::MessageAcceptance::Reject),
        };
        self.judge_conduct(&from, &verdict.acceptance, now);
        match verdict.acceptance {
            gossipsub::MessageAcceptance::Accept => self.stats.gossip_accepted.count(),
            gossipsub::MessageAcceptance::Reject => self.stats.gossip_rejected.count(),
            gossipsub::MessageAcceptance::Ignore => self.stats.gossip_ignored.count(),
        }
        self.host.behaviour_mut().gossip.report_message_validation_result(id, &from, verdict.acceptance);
        if verdict.origins_changed {
            self.origins_changed();
        }
        if let (Some(source), Some(message)) = (source, verdict.message) {
            self.tell(ControlEvent::Gossip { source, message });
        }
    }

    /// Bans who passes on what honest members do not.
    fn judge_conduct(
        &mut self,
        from: &libp2p::PeerId,
        acceptance: &gossipsub::MessageAcceptance,
        now: Instant,
    ) {
        let Some(peer) = addr::from_libp2p(from) else { return };
        let ban = match acceptance {
            gossipsub::MessageAcceptance::Accept => None,
            gossipsub::MessageAcceptance::Ignore => self.conduct.ignored(peer, now),
            gossipsub::MessageAcceptance::Reject => self.conduct.offended(peer, now),
        };
        if let Some(lasting) = ban {
            self.stats.gossip_banned.count();
            tracing::warn!(%peer, ?lasting, "a member is banned for its gossip");
            self.ban(peer, lasting);
        }
    }

    fn on_query(&mut self, query: QueryId, result: QueryResult, stats: &QueryStats) {
        match result {
            QueryResult::StartProviding(outcome) => {
                let Some(digest) = self.announcing.remove(&query) else { return };
                let outcome = if outcome.is_ok() && stats.num_successes() > 0 {
                    Outcome::Announced
                } else {
                    Outcome::Failed
                };
                match outcome {
                    Outcome::Announced => self.stats.announcements.count(),
                    Outcome::Failed => self.stats.announcements_failed.count(),
                }
                if let Some(announced) = self.reprovider.finished(&digest, outcome, self.setup.now()) {
                    let own = StoredProvided { digest, announced: Some(announced) };
                    self.saver.provided(digest, Change::PutProvided(own));
                }
            }
            QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { providers, .. })) => {
                self.lookups.answered(query);
                for provider in providers {
                    self.on_provider(query, provider);
                }
            }
            QueryResult::GetProviders(_) => {
                self.stats.lookup_requests.add(stats.num_requests().into());
                if stats.num_successes() > 0 {
                    self.lookups.answered(query);
                }
                self.lookups.finished(query);
            }
            _ => {}
        }
    }

    fn on_provider(&mut self, query: QueryId, peer_id: libp2p::PeerId) {
        let Some(peer) = addr::from_libp2p(&peer_id).filter(|peer| *peer != self.local) else { return };
        if !self.lookups.saw(query, peer) {
            return;
        }
        let addresses = self.provider_addresses(query, &peer_id);
        let (mut endpoints, mut zone) = data_endpoints(addresses.iter());
        if let Some(member) = self.members.get(&peer) {
            zone = Some(member.zone.clone());
            if let Some(told) = member.endpoints.as_ref().filter(|told| !told.is_empty()) {
                endpoints.clone_from(told);
            }
        }
        if !endpoints.is_empty() {
            self.stats.providers_found.count();
            let provider = Provider { peer, zone, endpoints };
            self.lookups.yield_to(query, provider, Instant::now());
            return;
        }
        self.stats.providers_asked.count();
        let control: Vec<Multiaddr> = addresses.into_iter().filter(addr::is_control_address).collect();
        let options = DialOpts::peer_id(peer_id)
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(control)
            .extend_addresses_through_behaviour()
            .build();
        let connected = self.members.get(&peer).is_some();
        // Connected but not identified yet: the answer is under way.
        if connected || self.host.dial(options).is_ok() {
            self.lookups.ask(query, peer);
        }
    }

    /// The addresses of a provider that a lookup has just found. Kademlia names only its id, but hands the addresses
    /// of the answer to whoever is about to dial: they live as long as the query, which has just reported.
    fn provider_addresses(&mut self, query: QueryId, peer: &libp2p::PeerId) -> Vec<Multiaddr> {
        let mut addresses = match self.lookups.digest(query) {
            Some(digest) => self.store().addresses(&digest, peer).to_vec(),
            None => Vec::new(),
        };
        let nameless = ConnectionId::new_unchecked(0);
        let kad = &mut self.host.behaviour_mut().kad;
        let dialled =
            kad.handle_pending_outbound_connection(nameless, Some(*peer), &[], ConnectionRole::Dialer);
        addresses.extend(dialled.unwrap_or_default());
        addresses
    }
}

fn without_peer(address: &Multiaddr) -> Multiaddr {
    address.iter().filter(|part| !matches!(part, Protocol::P2p(_))).collect()
}

/// The data endpoints among `addresses`, and the zone they are said to be in.
fn data_endpoints<'a>(addresses: impl Iterator<Item = &'a Multiaddr>) -> (Vec<Endpoint>, Option<Zone>) {
    let (mut endpoints, mut zone) = (Vec::new(), None);
    for (endpoint, at) in addresses.filter_map(addr::parse_data_address) {
        if endpoints.len() < ENDPOINTS_MAX && !endpoints.contains(&endpoint) {
            endpoints.push(endpoint);
        }
        zone = zone.or(at);
    }
    (endpoints, zone)
}
