//! Asking for pieces.

use std::time::Duration;

use shoal_types::{PeerId, Zone};
use smallvec::smallvec;

use super::Engine;
use super::connections::TICK_MIN;
use super::picking::Picked;
use crate::flow::Flow;
use crate::io::Effect;
use crate::message::Message;
use crate::names::BlobName;
use crate::swarm::member::{Member, Outstanding};
use crate::swarm::{Pending, Swarm};
use crate::timers::Timer;

/// How often pieces held back for somebody else, and peers without room, are looked at again.
pub(super) const HELD_BACK_TICK: Duration = Duration::from_millis(50);

impl Engine {
    /// Asks for as much as is allowed, one piece a peer in turn, so that the first pieces come from everybody.
    pub(super) fn fill_swarm(&mut self, name: BlobName) {
        if !self.may_fill(name) {
            return;
        }
        let Some(swarm) = self.swarms.get(name) else { return };
        let piece_bytes = swarm.blob.as_ref().map_or(0, |blob| blob.layout.piece_bytes());
        let interests =
            |member: &Member| swarm.blob.as_ref().is_some_and(|blob| member.has_interesting(&blob.have, 1));
        let has_room = |peer: &PeerId| {
            self.peers.get(peer).is_some_and(|known| known.flow.has_room(&self.config, piece_bytes))
        };
        let interesting =
            || swarm.members.iter().filter(|(_, member)| member.is_joined() && interests(member));
        let mut order: Vec<(bool, bool, PeerId)> = interesting()
            .filter(|(_, member)| member.full_until <= self.now)
            .map(|(peer, member)| (!member.same_zone, member.is_complete(), *peer))
            .collect();
        // Whatever woke the swarm before that time has used its timer up.
        let full = interesting().filter(|(_, member)| member.full_until > self.now);
        let again = full.filter(|(peer, _)| has_room(peer)).map(|(_, member)| member.full_until).min();
        self.random.shuffle(&mut order);
        // A lone seeder first, while it has what nobody else has.
        let lone = swarm.lone_seeder();
        order.sort_by_key(|(foreign, seeder, _)| (*foreign, *seeder != lone));
        if let Some(at) = again {
            self.timers.set_earlier(Timer::Fill(name), at);
        }
        // What waits for room in the buffer gets none from the next peer either.
        self.hungry.remove(&name);
        while !order.is_empty() {
            order.retain(|(foreign, seeder, peer)| {
                !self.hungry.contains_key(&name)
                    && (*foreign || !self.turns_all_down(name, *seeder))
                    && self.request_one(name, *peer)
            });
        }
        self.fetch_from_backend(name);
        self.check_starved(name);
    }

    /// Whether a member of the own zone, a `seeder` or not, would be turned down for what is the same for all such.
    fn turns_all_down(&self, name: BlobName, seeder: bool) -> bool {
        let Some(swarm) = self.swarms.get(name) else { return true };
        let Some(blob) = &swarm.blob else { return true };
        // Without room in the buffer the first that could be asked has the swarm wait for some.
        self.buffer_has_room(blob.layout.piece_bytes()) && self.has_enough_in_flight(swarm, seeder)
    }

    /// Whether a swarm is to ask no member of the own zone, a `seeder` or not, for more than it has asked for.
    fn has_enough_in_flight(&self, swarm: &Swarm, seeder: bool) -> bool {
        let lone_seeder = swarm.lone_seeder();
        let excepted = lone_seeder && seeder;
        !(excepted || self.may_be_in_flight(swarm, swarm.in_flight(lone_seeder)))
    }

    pub(super) fn buffer_has_room(&self, bytes: u32) -> bool {
        self.buffered_bytes.saturating_add(bytes.into()) <= self.config.buffer_bytes_max
    }

    /// A download is over: the others have its part of what may be in flight.
    pub(super) fn fill_fetching(&mut self) {
        let fetching = self.swarms.values().filter(|swarm| swarm.is_fetching());
        let fetching: Vec<BlobName> = fetching.map(|swarm| swarm.name).collect();
        fetching.into_iter().for_each(|name| self.fill_swarm(name));
    }

    /// Asks one peer for as much as is allowed.
    pub(super) fn fill_member(&mut self, name: BlobName, peer: PeerId) {
        if !self.may_fill(name) {
            return;
        }
        while self.request_one(name, peer) {}
        self.check_starved(name);
    }

    /// Whether a swarm is to ask for anything now.
    pub(super) fn may_fill(&self, name: BlobName) -> bool {
        self.swarms
            .get(name)
            .is_some_and(|swarm| !swarm.opening && swarm.wants_payload(self.now, self.config.linger))
    }

    pub(super) fn request_one(&mut self, name: BlobName, peer: PeerId) -> bool {
        let Some(swarm) = self.swarms.get(name) else { return false };
        let (Some(blob), Some(member)) = (&swarm.blob, swarm.members.get(&peer)) else { return false };
        let Some(known) = self.peers.get(&peer) else { return false };
        let piece_bytes = blob.layout.piece_bytes();
        if known.dropped
            || !member.has_interesting(&blob.have, 1)
            || !member.is_joined()
            || !known.flow.has_room(&self.config, piece_bytes)
            || !member.same_zone && !self.link_has_room(&known.zone, piece_bytes)
        {
            return false;
        }
        if member.full_until > self.now {
            // Whatever woke the swarm before that time has used its timer up.
            self.timers.set_earlier(Timer::Fill(name), member.full_until);
            return false;
        }
        if !self.buffer_has_room(piece_bytes) {
            self.hungry.insert(name, piece_bytes);
            return false;
        }
        if member.same_zone && self.has_enough_in_flight(swarm, member.is_complete()) {
            return false;
        }
        let same_zone = member.same_zone;
        let picked = self.pick(swarm, blob, &peer, member);
        let number = match picked {
            Picked::Piece(number) | Picked::Stolen(number) => number,
            Picked::HeldBack => {
                self.timers.set_earlier(Timer::Fill(name), self.now + HELD_BACK_TICK);
                return false;
            }
            Picked::Nothing => return false,
        };
        let link = if same_zone { None } else { self.zone_rate_in.wait(self.now) };
        if let Some(later) = self.rate_in.wait(self.now).max(link) {
            self.timers.set_earlier(Timer::Fill(name), later.max(self.now + TICK_MIN));
            return false;
        }
        if matches!(picked, Picked::Stolen(_)) {
            self.withdraw_others(name, number, None);
        }
        self.request(name, peer, number, same_zone);
        true
    }

    fn request(&mut self, name: BlobName, peer: PeerId, number: u32, same_zone: bool) {
        let now = self.now;
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        let (Some(blob), Some(member)) = (&mut swarm.blob, swarm.members.get_mut(&peer)) else { return };
        let (Some(piece), Some(to)) = (blob.layout.piece(number), member.their_channel) else { return };
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let bytes = blob.layout.len_of(piece);
        blob.picker.unwant(number);
        match blob.pending.get_mut(number) {
            Some(Pending::Requested(asked)) => asked.push(peer),
            Some(Pending::Verifying { .. } | Pending::Backend { .. }) => return,
            None => drop(blob.pending.insert(number, Pending::Requested(smallvec![peer]))),
        }
        let link = (!same_zone).then(|| known.zone.clone());
        if let Some(zone) = &link {
            let fresh = || Flow::new(&self.config, now).over_link();
            self.links.entry(zone.clone()).or_insert_with(fresh).requested(now, bytes);
        }
        let channel = member.our_channel;
        let fetching = swarm.is_fetching();
        swarm.asked(&peer, number, Outstanding { at: now, bytes, arrived_bytes: 0, link });
        self.fetching = self.fetching.saturating_add(usize::from(swarm.is_fetching() && !fetching));
        known.flow.requested(now, bytes);
        self.buffered_bytes = self.buffered_bytes.saturating_add(bytes.into());
        self.rate_in.take(bytes);
        if !same_zone {
            self.zone_rate_in.take(bytes);
        }
        self.wish(name, |digest| Effect::Expect { peer, channel, digest, piece, bytes });
        self.out.send(peer, Message::Request { to, piece: number });
        self.arm_stall(peer);
    }

    /// Whether a swarm may have one more than so many requests in flight inside the zone, those at a lone seeder aside. What is asked
    /// of all peers together beyond what they send at once waits in their queues or is refused: swarms share it.
    fn may_be_in_flight(&self, swarm: &Swarm, in_flight: usize) -> bool {
        debug_assert_eq!(self.fetching, self.swarms.values().filter(|swarm| swarm.is_fetching()).count());
        let in_flight = u32::try_from(in_flight).unwrap_or(u32::MAX);
        let sharing = self.fetching.saturating_add(usize::from(!swarm.is_fetching()));
        let sharing = u32::try_from(sharing).unwrap_or(u32::MAX);
        // A pipeline as long as a new peer's comes with each.
        let more = self.config.pipeline_pieces_start.saturating_mul(sharing.saturating_sub(1));
        let spread = self.config.pipeline_pieces_spread.saturating_add(more);
        let share = spread.checked_div(sharing).unwrap_or_default();
        // Windows are looked at only where they matter.
        let Some(beyond) = in_flight.checked_sub(share) else { return true };
        let longest = || {
            let window = |peer| self.peers.get(peer).map_or(0, |known| known.flow.window);
            swarm.members.keys().map(window).max().unwrap_or(0)
        };
        let window_max = swarm.window_max.get().unwrap_or_else(longest);
        debug_assert_eq!(window_max, longest());
        swarm.window_max.set(Some(window_max));
        window_max > beyond
    }

    /// The window of a peer has changed, from `before` to `after`.
    pub(super) fn window_changed(&self, peer: PeerId, before: u32, after: u32) {
        let Some(known) = self.peers.get(&peer).filter(|_| before != after) else { return };
        for swarm in known.blobs().filter_map(|name| self.swarms.get(name)) {
            swarm.note_window(before, after);
        }
    }

    fn link_has_room(&self, zone: &Zone, bytes: u32) -> bool {
        self.links.get(zone).is_none_or(|link| link.has_room(&self.config, bytes))
    }
}
