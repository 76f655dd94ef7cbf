//! How two peers come to share a blob: join, metainfo, bitfield, leave.

use std::sync::Arc;

use shoal_types::{Bitfield, Metainfo, PeerId, Role, Roles, VouchedMetainfo};

use super::{Engine, Shared};
use crate::io::{DropReason, Effect, Event, LocalBlob, Opened, ReadError};
use crate::message::{Absence, Channel, Message};
use crate::names::BlobName;
use crate::swarm::member::Member;
use crate::swarm::search::Standing;
use crate::swarm::{Blob, Swarm};
use crate::timers::Timer;

impl Engine {
    pub(super) fn message(&mut self, peer: PeerId, message: Message) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        if known.dropped {
            return;
        }
        if known.messages.wait(self.now).is_some() {
            return self.drop_peer(peer, DropReason::Protocol, None);
        }
        known.messages.take(1);
        known.flow.heard = self.now;
        let next_channel = known.next_channel;
        if let Message::Join { channel, digest, wants_metainfo, probe, .. } = &message {
            let (channel, digest, wants_metainfo, probe) = (*channel, *digest, *wants_metainfo, *probe);
            let name = self.name(digest);
            return self.join(peer, channel, name, wants_metainfo, probe);
        }
        let Some(to) = message.to() else { return };
        let Some((name, answered)) = self.shared_on(&peer, to) else {
            // We left and the message crossed that. A channel we never gave out is a lie.
            if to >= next_channel {
                self.drop_peer(peer, DropReason::Protocol, None);
            }
            return;
        };
        // The answer to `Join` is `Join` or `Absent`; nothing can come before it.
        if !answered && !matches!(message, Message::Absent { .. }) {
            return self.drop_peer(peer, DropReason::Protocol, None);
        }
        match message {
            Message::Join { .. } => {}
            Message::Absent { why, peers, .. } => {
                self.remove_member(name, peer, Standing::Absent(why));
                self.peers_found(name, None, peers);
                self.fill_swarm(name);
                self.judge(name);
            }
            Message::Metainfo { metainfo, .. } => self.metainfo_received(name, peer, *metainfo),
            Message::Bitfield { pieces, .. } => self.bitfield(name, peer, &pieces),
            Message::Have { runs, .. } => self.have(name, peer, &runs),
            Message::Request { piece, .. } => self.requested(name, peer, piece),
            Message::Cancel { piece, .. } => self.cancelled(name, peer, piece),
            Message::Busy { piece, peers, again_millis, .. } => {
                self.refused(name, peer, piece, peers, again_millis);
            }
            Message::Peers { peers, .. } => self.peers_found(name, None, peers),
            Message::Leave { .. } => {
                self.remove_member(name, peer, Standing::Gone);
                self.gone(name);
            }
        }
    }

    /// The driver does not believe the metainfo a peer sent.
    pub(super) fn metainfo_refused(&mut self, peer: PeerId, channel: Channel) {
        let Some(name) = self.blob_on(&peer, channel) else { return };
        self.leave_member(name, peer, Standing::Gone);
        self.gone(name);
    }

    /// A member less: others are looked for.
    fn gone(&mut self, name: BlobName) {
        self.fill_swarm(name);
        self.dial(name);
        self.judge(name);
        self.check_use(name);
    }

    fn join(&mut self, peer: PeerId, channel: Channel, name: BlobName, wants_metainfo: bool, probe: bool) {
        let known = self.swarms.get(name);
        let member = known.and_then(|swarm| swarm.members.get(&peer));
        if member.is_none() {
            let crowded =
                !probe && known.is_some_and(|swarm| swarm.members.len() >= self.room_for(swarm, &peer));
            let full = known.is_none() && self.swarms.len() >= self.config.swarms_max;
            let room = !crowded && !full;
            if room {
                self.open(name);
            }
            if !room || !self.add_member(name, peer) {
                let peers = self.hints_for(name, peer);
                if crowded {
                    self.remember(name, peer);
                }
                self.out.send(peer, Message::Absent { to: channel, why: Absence::Full, peers });
                return;
            }
        } else if member.is_some_and(|member| member.their_channel.is_some()) {
            // It left and came back, or is confused: what was agreed before is void. Our own view of it too.
            self.remove_member(name, peer, Standing::Asked);
            if !self.add_member(name, peer) {
                return;
            }
        }
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        let Some(member) = swarm.members.get_mut(&peer) else { return };
        member.their_channel = Some(channel);
        member.wants_metainfo = wants_metainfo;
        member.knows_metainfo = !wants_metainfo;
        member.hashes_known = (!wants_metainfo).then_some(u32::MAX);
        member.probe = probe;
        if swarm.opening {
            return;
        }
        self.welcome(name, peer);
        self.fill_swarm(name);
        self.judge(name);
    }

    /// Members at which a peer that comes is sent away. An origin comes for its whole zone, and late if the link is long.
    fn room_for(&self, swarm: &Swarm, peer: &PeerId) -> usize {
        let room = if swarm.is_complete() {
            self.uploads.seed_room(&self.config)
        } else {
            self.config.peers_per_swarm_inbound_max
        };
        if self.roles_of(peer).contains(Role::Origin) { room.saturating_mul(2) } else { room }
    }

    /// Opens a swarm unless it is there; returns whether it is new.
    pub(super) fn open(&mut self, name: BlobName) -> bool {
        let Some(digest) = self.names.digest(name).filter(|_| !self.swarms.contains(name)) else {
            return false;
        };
        self.swarms.insert(name, Swarm::new(name, digest, self.now));
        self.out.push(Effect::OpenBlob { digest });
        true
    }

    /// Answers a peer's `Join` once the local store has answered. Who was asked names others to who came, and who came to
    /// others. The other way round as well, most in one zone would hear of the same ones twice; where there are other zones, and few of
    /// each know of few of the others, it is done. Where both asked, neither counts as asked.
    fn welcome(&mut self, name: BlobName, peer: PeerId) {
        let introduces = self.swarms.get(name).is_some_and(|swarm| {
            let member = swarm.members.get(&peer);
            member.is_some_and(|member| !member.probe && (!member.join_sent || swarm.spans_zones()))
        });
        self.send_join(name, peer);
        if introduces {
            let peers = self.hints_for(name, peer);
            if let (false, Some(to)) = (peers.is_empty(), self.their_channel(name, &peer)) {
                self.out.send(peer, Message::Peers { to, peers });
            }
            self.introduce(name, peer);
        }
        self.share(name, peer);
    }

    /// Says `Join` unless it was said.
    pub(super) fn send_join(&mut self, name: BlobName, peer: PeerId) {
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        let (digest, probe) = (swarm.digest, swarm.is_probe());
        // Of a live one more is wanted.
        let wants_metainfo = swarm.blob.as_ref().is_none_or(|blob| !blob.metainfo.is_whole());
        let Some(member) = swarm.members.get_mut(&peer) else { return };
        if !member.join_sent {
            member.join_sent = true;
            let channel = member.our_channel;
            self.out.send(peer, Message::Join { channel, digest, wants_metainfo, probe, trace: None });
        }
    }

    /// Sends metainfo and bitfield where they are due.
    fn share(&mut self, name: BlobName, peer: PeerId) {
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        let (Some(blob), Some(member)) = (&swarm.blob, swarm.members.get_mut(&peer)) else { return };
        let Some(to) = member.their_channel.filter(|_| member.join_sent) else { return };
        let ours = blob.metainfo.known_pieces();
        if member.hashes_known.map_or(member.wants_metainfo, |known| known < ours)
            && let Some(vouched) = &blob.vouched
        {
            member.metainfo_sent = true;
            member.hashes_known = Some(ours);
            let metainfo = Box::new(VouchedMetainfo::clone(vouched));
            self.out.send(peer, Message::Metainfo { to, metainfo });
        }
        if (member.knows_metainfo || member.metainfo_sent) && !member.bitfield_sent && !member.probe {
            member.bitfield_sent = true;
            let same_zone = member.same_zone;
            if let Some(place) = swarm.members.place(&peer) {
                swarm.news.begin(place, same_zone);
            }
            let pieces = blob.have.to_bytes().into();
            self.out.send(peer, Message::Bitfield { to, pieces });
        }
    }

    fn share_with_all(&mut self, name: BlobName) {
        let Some(swarm) = self.swarms.get(name) else { return };
        let members: Vec<PeerId> = swarm.members.keys().copied().collect();
        for peer in members {
            self.share(name, peer);
        }
    }

    pub(super) fn blob_opened(&mut self, name: BlobName, opened: Opened) {
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        if !swarm.opening {
            return;
        }
        swarm.opening = false;
        let digest = swarm.digest;
        self.out.report(Event::SwarmStarted { digest });
        match opened {
            Opened::Here(local) => self.opened_here(name, local),
            Opened::Absent { owner, backend_down } => {
                swarm.owner = owner;
                swarm.backend_down = backend_down;
                if swarm.readers.is_empty() && !owner && swarm.blob.is_none() {
                    return self.end_swarm(name, Some(Absence::NotHere));
                }
                if let Some(blob) = &swarm.blob {
                    // The metainfo came while the store was looking.
                    let (metainfo, vouched) = (blob.metainfo.clone(), blob.vouched.clone());
                    self.out.push(Effect::CreateBlob { metainfo, vouched });
                    self.finish_if_whole(name);
                }
            }
        }
        let Some(swarm) = self.swarms.get(name) else { return };
        let askers: Vec<PeerId> = swarm
            .members
            .iter()
            .filter(|(_, member)| member.their_channel.is_some())
            .map(|(peer, _)| *peer)
            .collect();
        for peer in askers {
            self.welcome(name, peer);
        }
        self.start_readers(name);
        if self.swarms.get(name).is_some_and(|swarm| {
            swarm.blob.is_none() || swarm.wants_payload(self.now, self.config.linger) && !swarm.in_backend
        }) {
            self.search(name);
        }
        self.fill_swarm(name);
        self.check_use(name);
    }

    fn opened_here(&mut self, name: BlobName, local: LocalBlob) {
        let LocalBlob { metainfo, vouched, mut pieces, complete, in_backend } = local;
        if self.names.digest(name) != Some(metainfo.digest())
            || pieces.len() != metainfo.layout().piece_count()
        {
            return;
        }
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        // Pieces may have been verified since the store looked: nothing would tell of them again.
        if let Some(blob) = swarm.blob.as_ref().filter(|blob| blob.layout == metainfo.layout()) {
            pieces.union_with(&blob.have);
        }
        // What came while the store was looking may be longer.
        let longer =
            swarm.blob.as_ref().filter(|blob| blob.metainfo != metainfo && blob.metainfo.extends(&metainfo));
        let (metainfo, vouched) = match longer {
            Some(blob) => {
                let (metainfo, vouched) = (blob.metainfo.clone(), blob.vouched.clone());
                self.out.push(Effect::CreateBlob { metainfo: metainfo.clone(), vouched: vouched.clone() });
                (metainfo, vouched)
            }
            None => (metainfo, vouched.or_else(|| swarm.blob.as_ref().and_then(|blob| blob.vouched.clone()))),
        };
        let held = pieces.count() > 0;
        swarm.in_backend = in_backend;
        swarm.blob = Some(Blob::new(metainfo, vouched, pieces, complete, &mut self.random, self.now));
        if (held || in_backend) && !swarm.provided {
            swarm.provided = true;
            self.wish(name, |digest| Effect::Provide { digest });
        }
        self.finish_if_whole(name);
    }

    fn metainfo_received(&mut self, name: BlobName, peer: PeerId, vouched: VouchedMetainfo) {
        let digest = vouched.value().digest();
        if self.names.digest(name) != Some(digest) {
            return self.drop_peer(peer, DropReason::Protocol, None);
        }
        if self.bad_signers.contains(&(digest, vouched.metainfo.signer())) {
            return self.leave_member(name, peer, Standing::Gone);
        }
        if let Some(member) = self.member_mut(name, &peer) {
            member.knows_metainfo = true;
            member.hashes_known = member.hashes_known.max(Some(vouched.value().known_pieces()));
        }
        let metainfo = Arc::new(vouched.value().clone());
        self.metainfo_learned(name, metainfo, Some(Arc::new(vouched)), Some(peer));
    }

    /// Metainfo from a peer or the driver. One that contradicts what we work with is not followed.
    pub(super) fn metainfo_learned(
        &mut self,
        name: BlobName,
        metainfo: Arc<Metainfo>,
        vouched: Option<Arc<VouchedMetainfo>>,
        from: Option<PeerId>,
    ) {
        let digest = metainfo.digest();
        if vouched.as_ref().is_some_and(|v| self.bad_signers.contains(&(digest, v.metainfo.signer()))) {
            return;
        }
        if from.is_none() && !self.swarms.contains(name) {
            if self.swarms.len() >= self.config.swarms_max {
                return;
            }
            self.open(name);
        }
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        if let Some(blob) = &mut swarm.blob {
            if blob.metainfo == metainfo {
                // The driver's own word replaces what a peer said: that signer may have been revoked meanwhile.
                if blob.vouched.is_none() || (from.is_none() && vouched.is_some()) {
                    blob.vouched = vouched;
                }
            } else if vouched.is_some() && metainfo.extends(&blob.metainfo) {
                // A live one has grown. Whoever we tell of a piece has to know its hash first.
                blob.metainfo = metainfo.clone();
                blob.vouched.clone_from(&vouched);
                if !swarm.opening {
                    self.out.push(Effect::CreateBlob { metainfo, vouched });
                }
            } else if !blob.metainfo.extends(&metainfo) {
                if let Some(peer) = from {
                    self.leave_member(name, peer, Standing::Gone);
                }
                return;
            }
        } else {
            let have = metainfo.empty_bitfield();
            let size = metainfo.size();
            if !swarm.opening {
                self.out.push(Effect::CreateBlob { metainfo: metainfo.clone(), vouched: vouched.clone() });
            }
            swarm.blob = Some(Blob::new(metainfo, vouched, have, false, &mut self.random, self.now));
            self.report(name, |digest| Event::MetainfoReceived { digest, size });
        }
        if self.swarms.get(name).is_some_and(|swarm| swarm.opening) {
            return;
        }
        self.refresh_zone(name);
        self.share_with_all(name);
        self.start_readers(name);
        self.finish_if_whole(name);
        self.fill_swarm(name);
        self.judge(name);
        self.check_use(name);
    }

    fn bitfield(&mut self, name: BlobName, peer: PeerId, bytes: &[u8]) {
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        let (Some(blob), Some(member)) = (&mut swarm.blob, swarm.members.get_mut(&peer)) else {
            // Only a peer whose metainfo we are told to have may send one.
            return self.drop_peer(peer, DropReason::Protocol, None);
        };
        let Some(pieces) = Bitfield::from_bytes(blob.layout.piece_count(), bytes) else {
            return self.drop_peer(peer, DropReason::Protocol, None);
        };
        forget_pieces(blob, member);
        member.knows_metainfo = true;
        member.uncounted = pieces.is_full();
        if !member.uncounted {
            for piece in pieces.iter(&blob.layout) {
                blob.picker.gained(piece.get());
            }
        }
        member.set_pieces(pieces, &blob.have);
        if let Some(place) = swarm.members.place(&peer) {
            swarm.news.heard_anew(place);
        }
        swarm.pieces_changed();
        swarm.search.set_standing(&peer, Standing::Asked);
        self.share(name, peer);
        self.refresh_zone(name);
        self.part_seeders(name, peer);
        self.fill_swarm(name);
        self.judge(name);
    }

    fn have(&mut self, name: BlobName, peer: PeerId, runs: &[(u32, u32)]) {
        let now = self.now;
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        let (Some(blob), Some(member)) = (&mut swarm.blob, swarm.members.get_mut(&peer)) else { return };
        let Some(pieces) = &mut member.pieces else {
            return self.drop_peer(peer, DropReason::Protocol, None);
        };
        let count = blob.layout.piece_count();
        let (mut good, mut fresh, mut lacking) = (true, 0_u32, 0_u32);
        for (first, len) in runs {
            let end = first.checked_add(*len).filter(|end| *end <= count && *len > 0);
            good &= end.is_some();
            for number in *first..end.unwrap_or(*first) {
                let Some(piece) = blob.layout.piece(number) else { continue };
                if !pieces.insert(piece) {
                    continue;
                }
                fresh = fresh.saturating_add(1);
                if !member.uncounted {
                    blob.picker.gained(number);
                }
                if !blob.have.contains(piece) {
                    lacking = lacking.saturating_add(1);
                    if member.same_zone {
                        blob.zone_progress = now;
                    }
                }
                member.refused.remove(number);
            }
        }
        member.got_interesting(lacking);
        let complete = member.is_complete();
        if let Some(place) = swarm.members.place(&peer) {
            if complete {
                swarm.news.heard_anew(place);
            } else {
                swarm.news.heard(place, fresh);
            }
        }
        if complete {
            swarm.pieces_changed();
        }
        if !good {
            return self.drop_peer(peer, DropReason::Protocol, None);
        }
        if complete {
            if let Some(candidate) = swarm.search.candidates.get_mut(&peer) {
                candidate.hint.complete = true;
            }
            self.refresh_zone(name);
            self.part_seeders(name, peer);
        }
        self.fill_member(name, peer);
        self.judge(name);
    }

    /// Two seeders have nothing to say to each other.
    pub(super) fn part_seeders(&mut self, name: BlobName, peer: PeerId) {
        let Some(swarm) = self.swarms.get(name) else { return };
        let both = swarm.is_complete()
            && swarm.members.get(&peer).is_some_and(|member| member.is_joined() && member.is_complete());
        if both {
            self.leave_member(name, peer, Standing::Gone);
            self.check_use(name);
        }
    }

    /// Gives a connected peer a channel; `false` when it has too many.
    pub(super) fn add_member(&mut self, name: BlobName, peer: PeerId) -> bool {
        let Some(known) = self.peers.get_mut(&peer) else { return false };
        let Some(swarm) = self.swarms.get_mut(name) else { return false };
        if known.dropped || known.channels.len() >= self.config.channels_per_peer_max {
            return false;
        }
        let Some(next) = known.next_channel.checked_add(1) else { return false };
        let channel = std::mem::replace(&mut known.next_channel, next);
        let place = u32::try_from(swarm.members.len()).unwrap_or(u32::MAX);
        known.channels.insert(channel, Shared { name, place });
        self.timers.cancel(Timer::Idle(peer));
        let same_zone = known.zone == self.zone;
        let origin = known.roles.contains(Role::Origin);
        swarm.add_member(peer, Member::new(channel, same_zone, origin, self.now));
        true
    }

    /// Says `Leave` and forgets a member.
    pub(super) fn leave_member(&mut self, name: BlobName, peer: PeerId, standing: Standing) {
        if let Some(to) = self.their_channel(name, &peer) {
            self.out.send(peer, Message::Leave { to });
        }
        self.remove_member(name, peer, standing);
    }

    /// Forgets a member: what was asked of it is wanted again.
    pub(super) fn remove_member(&mut self, name: BlobName, peer: PeerId, standing: Standing) {
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        swarm.search.set_standing(&peer, standing);
        let fetching = swarm.is_fetching();
        let Some(mut member) = swarm.take_member(&peer) else { return };
        self.fetching = self.fetching.saturating_sub(usize::from(fetching && !swarm.is_fetching()));
        let channel = member.our_channel;
        if let Some(blob) = &mut swarm.blob {
            forget_pieces(blob, &mut member);
        }
        for (piece, outstanding) in std::mem::take(&mut member.outstanding).into_iter() {
            self.request_ended(name, peer, channel, piece, &outstanding);
        }
        self.uploads.leave(&peer, name);
        if let Some(known) = self.peers.get_mut(&peer) {
            known.channels.remove(channel);
        }
        self.refresh_zone(name);
        self.note_idle(peer);
    }

    /// Ends a swarm. Peers that asked are told why when there is a reason, and that we leave otherwise.
    pub(super) fn end_swarm(&mut self, name: BlobName, why: Option<Absence>) {
        let Some(swarm) = self.swarms.get(name) else { return };
        let members: Vec<PeerId> = swarm.members.keys().copied().collect();
        let fetching = self.fetching;
        for peer in members {
            let to = self.their_channel(name, &peer);
            self.remove_member(name, peer, Standing::Gone);
            match (to, why) {
                (Some(to), Some(why)) => {
                    self.out.send(peer, Message::Absent { to, why, peers: Vec::new() });
                }
                (Some(to), None) => self.out.send(peer, Message::Leave { to }),
                (None, _) => {}
            }
        }
        self.fail_readers(name, &ReadError::Unavailable);
        self.swarms.remove(name);
        for waiting in self.dialing.values_mut() {
            waiting.remove(&name);
        }
        self.hungry.remove(&name);
        for timer in [
            Timer::Haves(name),
            Timer::FarHaves(name),
            Timer::Search(name),
            Timer::Fill(name),
            Timer::Linger(name),
        ] {
            self.timers.cancel(timer);
        }
        self.report(name, |digest| Event::SwarmEnded { digest });
        if self.fetching < fetching {
            self.fill_fetching();
        }
    }

    pub(super) fn member_mut(&mut self, name: BlobName, peer: &PeerId) -> Option<&mut Member> {
        self.swarms.get_mut(name)?.members.get_mut(peer)
    }

    pub(super) fn blob_mut(&mut self, name: BlobName) -> Option<&mut Blob> {
        self.swarms.get_mut(name)?.blob.as_mut()
    }

    pub(super) fn their_channel(&self, name: BlobName, peer: &PeerId) -> Option<Channel> {
        self.swarms.get(name)?.members.get(peer)?.their_channel
    }

    /// The roles in a connected peer's credential.
    pub(super) fn roles_of(&self, peer: &PeerId) -> Roles {
        self.peers.get(peer).map_or(Roles::NONE, |known| known.roles)
    }
}

/// Takes a member's pieces out of the availability.
fn forget_pieces(blob: &mut Blob, member: &mut Member) {
    let Some(pieces) = member.take_pieces() else { return };
    if !member.uncounted {
        for piece in pieces.iter(&blob.layout) {
            blob.picker.lost(piece.get());
        }
    }
    member.uncounted = false;
}
