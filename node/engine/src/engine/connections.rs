//! Connections: who comes, who goes, who is thrown out.

use std::time::Duration;

use shoal_types::{Endpoint, PeerId, Roles, Timestamp, Zone};

use super::{Engine, Peer, Shared};
use crate::budget::Bucket;
use crate::config::EngineConfig;
use crate::flow::Flow;
use crate::io::{DropReason, Effect, Event};
use crate::message::PeerHint;
use crate::names::BlobName;
use crate::swarm::search::Standing;
use crate::timers::Timer;

impl Engine {
    pub(super) fn peer_connected(
        &mut self,
        peer: PeerId,
        zone: Zone,
        roles: Roles,
        endpoints: Vec<Endpoint>,
    ) {
        if peer == self.local {
            return;
        }
        let waiting = self.dialing.swap_remove(&peer).unwrap_or_default();
        if let Some(known) = self.peers.get_mut(&peer) {
            // The driver settled a simultaneous dial; what was agreed on the connection stands.
            known.zone = zone;
            known.roles = roles;
            known.endpoints = endpoints;
        } else {
            if self.peers.len() >= self.config.connections_max && !self.make_room() {
                self.out.push(Effect::Disconnect { peer, why: DropReason::Replaced, ban: None });
                for name in waiting {
                    self.candidate_gone(name, peer);
                }
                return;
            }
            let flow = Flow::new(&self.config, self.now);
            let flow = if zone == self.zone { flow } else { flow.over_link() };
            self.peers.insert(
                peer,
                Peer {
                    zone,
                    roles,
                    endpoints,
                    channels: crate::keyed::Sorted::default(),
                    next_channel: 0,
                    flow,
                    messages: Bucket::new(Some(self.config.messages_per_sec_max), self.now),
                    idle_since: self.now,
                    stall_at: None,
                    dropped: false,
                },
            );
            self.timers.set(Timer::Idle(peer), self.now + self.config.idle_linger);
        }
        self.note_zones();
        for name in waiting {
            self.ask(name, peer);
            self.judge(name);
        }
    }

    /// Looks anew at whether anybody of another zone is connected or was heard of.
    fn note_zones(&mut self) {
        self.uploads.one_zone = self.peers.values().all(|known| known.zone == self.zone)
            && !self.swarms.values().any(|swarm| swarm.search.foreign);
    }

    /// Closes the connection that no swarm has needed for the longest; `false` when all are in use.
    fn make_room(&mut self) -> bool {
        let idle = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.channels.is_empty() && !peer.dropped)
            .min_by_key(|(id, peer)| (peer.idle_since, **id))
            .map(|(id, _)| *id);
        let Some(peer) = idle else { return false };
        self.drop_peer(peer, DropReason::Replaced, None);
        self.peer_disconnected(peer);
        true
    }

    pub(super) fn connect_failed(&mut self, peer: PeerId) {
        for name in self.dialing.swap_remove(&peer).unwrap_or_default() {
            self.candidate_gone(name, peer);
        }
    }

    fn candidate_gone(&mut self, name: BlobName, peer: PeerId) {
        if let Some(swarm) = self.swarms.get_mut(name) {
            swarm.search.set_standing(&peer, Standing::Gone);
        }
        self.refresh_zone(name);
        self.dial(name);
        self.judge(name);
    }

    pub(super) fn peer_disconnected(&mut self, peer: PeerId) {
        // Whatever is filled meanwhile does not count on it.
        let window = self.peers.get(&peer).map_or(0, |known| known.flow.window);
        self.window_changed(peer, window, 0);
        let Some(gone) = self.peers.swap_remove(&peer) else { return };
        self.note_zones();
        self.uploads.remove(self.now, &peer);
        self.timers.cancel(Timer::Stall(peer));
        self.timers.cancel(Timer::Idle(peer));
        // A dial under way is answered by itself; only what was agreed on this connection ends.
        for (_, Shared { name, .. }) in gone.channels.into_iter() {
            self.remove_member(name, peer, Standing::Gone);
            self.fill_swarm(name);
            self.dial(name);
            self.judge(name);
            self.check_use(name);
        }
        self.serve();
    }

    /// Disconnects a peer. Its memberships end at once, so that nothing more is asked of it or sent to it.
    pub(super) fn drop_peer(&mut self, peer: PeerId, why: DropReason, ban: Option<Duration>) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        if known.dropped {
            return;
        }
        known.dropped = true;
        known.stall_at = None;
        let channels = std::mem::take(&mut known.channels);
        self.out.push(Effect::Disconnect { peer, why, ban });
        self.out.report(Event::PeerDropped { peer, why });
        self.uploads.remove(self.now, &peer);
        self.timers.cancel(Timer::Stall(peer));
        self.timers.cancel(Timer::Idle(peer));
        for (_, Shared { name, .. }) in channels.into_iter() {
            self.remove_member(name, peer, Standing::Gone);
            self.fill_swarm(name);
            self.dial(name);
            self.judge(name);
            self.check_use(name);
        }
        self.serve();
    }

    /// A connection that no swarm uses any more starts to age.
    pub(super) fn note_idle(&mut self, peer: PeerId) {
        if let Some(known) = self.peers.get_mut(&peer)
            && known.channels.is_empty()
            && !known.dropped
        {
            known.idle_since = self.now;
            self.timers.set(Timer::Idle(peer), self.now + self.config.idle_linger);
        }
    }

    pub(super) fn check_idle(&mut self, peer: PeerId) {
        let Some(known) = self.peers.get(&peer) else { return };
        if known.channels.is_empty() && !known.dropped {
            self.drop_peer(peer, DropReason::Idle, None);
        }
    }

    /// How others can be told of a connected peer.
    pub(super) fn hint_of(&self, peer: &PeerId, complete: bool) -> Option<PeerHint> {
        let known = self.peers.get(peer)?;
        if known.endpoints.is_empty() || known.dropped {
            return None;
        }
        let endpoints = known.endpoints.iter().take(ENDPOINTS_IN_HINT_MAX).cloned().collect();
        Some(PeerHint { peer: *peer, zone: known.zone.clone(), endpoints, complete })
    }

    /// Looks whether a peer's silence is a stall, and moves its requests to others if it is.
    pub(super) fn check_stall(&mut self, peer: PeerId) {
        self.stalls = self.stalls && self.peers.values().any(|known| known.flow.stalled);
        let Some(known) = self.peers.get_mut(&peer) else { return };
        known.stall_at = None;
        if known.dropped {
            return;
        }
        let flow = &mut known.flow;
        if flow.in_flight == 0 && !flow.stalled {
            return;
        }
        let silence = self.now.saturating_since(flow.life);
        if flow.in_flight == 0 {
            // All of its requests were moved: one more chance, with a single piece.
            flow.stalled = false;
            let window = std::mem::replace(&mut flow.window, 1);
            let names: Vec<_> = known.blobs().collect();
            self.window_changed(peer, window, 1);
            for name in names {
                self.fill_member(name, peer);
            }
            return;
        }
        let gone = self.now.saturating_since(flow.life.max(flow.heard)) >= self.config.silence_max;
        if silence >= self.config.silence_max && gone {
            return self.drop_peer(peer, DropReason::Stalled, None);
        }
        let due = flow.life + stall_after(&self.config, flow, self.links.get(&known.zone));
        if !flow.stalled && due > self.now {
            return self.set_stall(peer, due);
        }
        if !flow.stalled {
            flow.stalled = true;
            self.stalls = true;
            flow.stalls = flow.stalls.saturating_add(1);
        }
        if flow.stalls >= self.config.stalls_max && gone {
            return self.drop_peer(peer, DropReason::Stalled, None);
        }
        let names: Vec<_> = known.blobs().collect();
        for name in names {
            self.move_requests(name, peer);
        }
        self.arm_stalled(peer);
    }

    /// When a stalled peer is looked at again.
    fn arm_stalled(&mut self, peer: PeerId) {
        let Some(known) = self.peers.get(&peer) else { return };
        let at = if known.flow.in_flight == 0 {
            let pause = known.flow.stall_after(&self.config);
            self.now + pause.saturating_mul(1 << known.flow.stalls.min(4))
        } else {
            (known.flow.life + self.config.silence_max).min(self.now + self.config.stall_max)
        };
        self.set_stall(peer, at.max(self.now + TICK_MIN));
    }

    pub(super) fn arm_stall(&mut self, peer: PeerId) {
        let Some(known) = self.peers.get(&peer) else { return };
        let at: Timestamp =
            known.flow.life + stall_after(&self.config, &known.flow, self.links.get(&known.zone));
        let at = at.max(self.now + TICK_MIN);
        // Nearly every request finds an earlier deadline.
        if known.stall_at.is_none_or(|standing| at < standing) {
            self.set_stall(peer, at);
        }
    }

    fn set_stall(&mut self, peer: PeerId, at: Timestamp) {
        if let Some(known) = self.peers.get_mut(&peer) {
            known.stall_at = Some(at);
            self.timers.set(Timer::Stall(peer), at);
        }
    }
}

/// The silence of a peer that counts as a stall. Beyond a link a peer may be silent because the others use the link:
/// it gets the time in which all that is on its way could come. Asking again would only put more on the link.
fn stall_after(config: &EngineConfig, flow: &Flow, link: Option<&Flow>) -> Duration {
    let crossing = link.map_or(Duration::ZERO, |link| {
        let bytes = u32::try_from(link.in_flight_bytes).unwrap_or(u32::MAX);
        link.expected(bytes).saturating_mul(2).min(config.stall_max)
    });
    flow.stall_after(config).max(crossing)
}

/// No deadline is set closer than this, so that time always gets on.
pub(super) const TICK_MIN: Duration = Duration::from_millis(1);
/// Addresses told of one peer at most.
const ENDPOINTS_IN_HINT_MAX: usize = 4;
