//! Having memory fetched that an input will look at.
//!
//! For a process of so many engines that little of one is in the processor's caches when something happens to it. An input finds most
//! of what it looks at by way of something else, and waits for one after the other. Who knows a few inputs ahead what comes has
//! each of these fetched in time, while other inputs are dealt with.

use shoal_types::{Digest, PeerId};

use super::{Engine, Shared};
use crate::message::{Channel, Message};
use crate::names::BlobName;
use crate::prefetch::{prefetch, prefetch_ends};
use crate::swarm::Swarm;
use crate::timers::Timer;

/// Stages of [`Engine::prefetch`].
pub const STAGES: usize = 7;
/// Runs of pieces of one message that are looked at.
const PIECES_MAX: usize = 8;
/// Cache lines of pieces being verified.
const VERIFYING_LINES: usize = 1;

/// What will come, as far as it matters for what will be looked at.
#[derive(Clone, Copy, Debug)]
pub enum Ahead<'a> {
    /// A request of a peer; the message itself once it has been fetched.
    Request(&'a PeerId, Option<&'a Message>),
    /// Another message of a peer.
    Message(&'a PeerId, Option<&'a Message>),
    /// [`crate::io::Input::PieceArrived`] or [`crate::io::Input::PieceProgress`].
    Arrived(&'a PeerId, Channel, u32),
    /// [`crate::io::Input::PieceSent`].
    Sent(&'a PeerId, &'a Digest),
    /// [`crate::io::Input::PieceVerified`].
    Verified(&'a Digest, u32),
    /// [`Engine::handle_timeout`].
    Timeout,
}

impl<'a> Ahead<'a> {
    fn peer(&self) -> Option<&'a PeerId> {
        match self {
            Self::Request(peer, _)
            | Self::Message(peer, _)
            | Self::Arrived(peer, ..)
            | Self::Sent(peer, _) => Some(peer),
            Self::Verified(..) | Self::Timeout => None,
        }
    }

    /// Whether it names a blob.
    fn names_blob(&self) -> bool {
        matches!(self, Self::Sent(..) | Self::Verified(..))
    }

    fn channel(&self) -> Option<Channel> {
        match self {
            Self::Arrived(_, channel, _) => Some(*channel),
            Self::Request(_, Some(message)) | Self::Message(_, Some(message)) => message.to(),
            _ => None,
        }
    }

    /// Whether others are served for it.
    fn serves(&self) -> bool {
        matches!(self, Self::Sent(..) | Self::Request(..))
    }

    /// The pieces it is about; of a run the first.
    fn pieces(&self) -> impl Iterator<Item = u32> {
        let runs = match self {
            Self::Message(_, Some(Message::Have { runs, .. })) => runs.as_slice(),
            _ => &[],
        };
        let one = match self {
            Self::Request(_, Some(Message::Request { piece, .. }))
            | Self::Message(_, Some(Message::Busy { piece, .. })) => Some(*piece),
            Self::Arrived(_, _, piece) => Some(*piece),
            Self::Verified(_, piece) => Some(*piece),
            _ => None,
        };
        one.into_iter().chain(runs.iter().map(|(first, _)| *first)).take(PIECES_MAX)
    }
}

/// What the stages before found, for one input.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trail {
    /// Where the peer is among the peers.
    peer: Option<usize>,
    swarm: Option<BlobName>,
    /// Where the peer is among the swarm's members.
    member: Option<u32>,
}

impl Engine {
    /// Has a part of what an input will look at fetched into the processor's caches. To be called for each stage below [`STAGES`], one or
    /// two other inputs apart, so that each finds what the one before had fetched, with a trail that is new at the first. Changes
    /// nothing that decides anything.
    #[inline]
    pub fn prefetch(&self, stage: usize, ahead: &Ahead<'_>, trail: &mut Trail) {
        match stage {
            0 => self.prefetch_head(ahead),
            1 => self.prefetch_tables(ahead),
            2 => self.prefetch_peer(ahead, trail),
            3 => self.prefetch_swarm(ahead, trail),
            4 => self.prefetch_member(ahead, *trail),
            5 => self.prefetch_pieces(ahead, *trail),
            _ => self.prefetch_buckets(ahead, *trail),
        }
    }

    fn prefetch_head(&self, ahead: &Ahead<'_>) {
        prefetch(&self.peers);
        prefetch(&self.swarms);
        prefetch(&self.out);
        prefetch(&self.stalls);
        self.timers.prefetch_head();
        if ahead.serves() {
            self.uploads.prefetch_head();
        }
        if !matches!(ahead, Ahead::Timeout) {
            self.names.prefetch_head(ahead.names_blob());
        }
    }

    fn prefetch_tables(&self, ahead: &Ahead<'_>) {
        self.swarms.prefetch();
        if ahead.peer().is_some() {
            self.peers.prefetch_keys();
        }
        if ahead.serves() {
            self.uploads.prefetch_tables();
        }
        if ahead.names_blob() {
            self.names.prefetch_tables();
        }
        match ahead {
            Ahead::Timeout => self.timers.prefetch_next(),
            Ahead::Arrived(..) | Ahead::Verified(..) => self.verifying.prefetch(VERIFYING_LINES),
            _ => {}
        }
    }

    fn prefetch_peer(&self, ahead: &Ahead<'_>, trail: &mut Trail) {
        if let Some(peer) = ahead.peer() {
            let place = self.peers.likely_place(peer);
            if let Some((key, known)) = place.and_then(|place| self.peers.entry_at(place)) {
                prefetch_ends(key);
                prefetch(&known.channels);
                known.flow.prefetch(!matches!(ahead, Ahead::Request(..)));
            }
            if ahead.serves() {
                self.uploads.prefetch_queue(peer);
            }
            trail.peer = place;
        } else {
            trail.swarm = match ahead {
                Ahead::Verified(digest, _) => self.names.get(digest),
                _ => match self.timers.next_timer() {
                    Some(Timer::Haves(name)) => Some(name),
                    _ => None,
                },
            };
            if let Some(swarm) = self.swarm_of(*trail) {
                swarm.prefetch();
            }
        }
    }

    fn prefetch_swarm(&self, ahead: &Ahead<'_>, trail: &mut Trail) {
        if let Some(peer) = ahead.peer()
            && let Some(channel) = ahead.channel()
            && let Some(place) = self.peers.recall(peer, trail.peer.unwrap_or(usize::MAX))
            && let Some(known) = self.peers.at(place)
            && let Some(Shared { name, place }) = known.channels.get(channel)
        {
            (trail.swarm, trail.member) = (Some(*name), Some(*place));
        }
        let Some(swarm) = self.swarm_of(*trail) else { return };
        match ahead {
            Ahead::Verified(..) => swarm.prefetch_pieces(ahead.pieces()),
            Ahead::Timeout => swarm.news.prefetch(),
            _ => swarm.prefetch(),
        }
    }

    fn prefetch_member(&self, ahead: &Ahead<'_>, trail: Trail) {
        let Some(swarm) = self.swarm_of(trail) else { return };
        if let Some(place) = trail.member {
            swarm.prefetch_member(place as usize);
            swarm.news.prefetch_owed(place as usize);
            swarm.prefetch_pieces(ahead.pieces());
            self.names.prefetch_digest(swarm.name);
        } else if matches!(ahead, Ahead::Timeout) {
            self.due(swarm).for_each(|place| swarm.prefetch_member(place));
            swarm.prefetch_have();
        }
    }

    fn prefetch_pieces(&self, ahead: &Ahead<'_>, trail: Trail) {
        let Some(swarm) = self.swarm_of(trail) else { return };
        if let Some(place) = trail.member {
            swarm.prefetch_pieces_of(place as usize, ahead.pieces().next().unwrap_or(0));
            if let (Some(blob), Ahead::Message(_, Some(Message::Have { .. }))) = (&swarm.blob, ahead) {
                ahead.pieces().for_each(|piece| blob.picker.prefetch_bucket(piece));
            }
        } else if matches!(ahead, Ahead::Timeout) {
            self.due(swarm).for_each(|place| swarm.prefetch_all_pieces_of(place));
        }
    }

    fn prefetch_buckets(&self, ahead: &Ahead<'_>, trail: Trail) {
        if let Ahead::Message(_, Some(Message::Have { .. })) = ahead
            && let Some(blob) = self.swarm_of(trail).and_then(|swarm| swarm.blob.as_ref())
        {
            ahead.pieces().for_each(|piece| blob.picker.prefetch_moves(piece));
        }
    }

    /// Places of members that will be looked at when what came is told next.
    fn due<'a>(&self, swarm: &'a Swarm) -> impl Iterator<Item = usize> + use<'a> {
        swarm.news.due(self.timers.next().unwrap_or(self.now))
    }

    fn swarm_of(&self, trail: Trail) -> Option<&Swarm> {
        self.swarms.get(trail.swarm?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use shoal_types::{Metainfo, Timestamp, Zone};

    use super::*;
    use crate::io::{Input, Opened, ReaderId, ReaderWant};

    /// What comes is a peer's: it may be about anything, and by the time of a stage what the one before found may be gone.
    #[test]
    fn what_is_unknown_is_passed_over() {
        let digest = Digest::sha256(b"blob");
        let peers = [1, 2].map(|n| PeerId::from_public_key([n; 32]));
        let (to, unknown) = (0, u32::MAX);
        let [request, other] = [0, unknown].map(|piece| Message::Request { to, piece });
        let [have, more] =
            [0, unknown].map(|piece| Message::Have { to, runs: vec![(piece, 1), (piece, piece)] });
        for engine in [engine(peers[0], false), engine(peers[0], true)] {
            let before = format!("{engine:?}");
            let inputs = peers.iter().flat_map(|peer| {
                let told = [&request, &other, &have, &more].map(|told| Ahead::Message(peer, Some(told)));
                let more = [
                    Ahead::Request(peer, None),
                    Ahead::Request(peer, Some(&request)),
                    Ahead::Arrived(peer, to, 0),
                    Ahead::Arrived(peer, unknown, unknown),
                    Ahead::Sent(peer, &digest),
                    Ahead::Verified(&digest, 0),
                    Ahead::Verified(&digest, unknown),
                    Ahead::Timeout,
                ];
                told.into_iter().chain(more)
            });
            for ahead in inputs {
                let (swarm, name) = (Some(BlobName::of(0)), Some(BlobName::of(unknown)));
                let trails = [
                    Trail::default(),
                    Trail { peer: Some(usize::MAX), swarm, member: Some(unknown) },
                    Trail { peer: Some(1), swarm, member: Some(1) },
                    Trail { peer: Some(0), swarm: name, member: Some(0) },
                ];
                for trail in trails {
                    (0..=STAGES).for_each(|stage| engine.prefetch(stage, &ahead, &mut trail.clone()));
                    let mut trail = trail;
                    (0..=STAGES).for_each(|stage| engine.prefetch(stage, &ahead, &mut trail));
                }
            }
            assert_eq!(format!("{engine:?}"), before);
        }
    }

    #[test]
    fn what_a_message_is_about_is_found() {
        let peer = PeerId::from_public_key([1; 32]);
        let have = Message::Have { to: 0, runs: vec![(0, 1)] };
        let engine = engine(peer, true);
        let mut trail = Trail::default();
        (0..STAGES).for_each(|stage| engine.prefetch(stage, &Ahead::Message(&peer, Some(&have)), &mut trail));
        assert_eq!((trail.peer, trail.swarm, trail.member), (Some(0), Some(BlobName::of(0)), Some(0)));
    }

    /// An engine with a peer, and one that is about to share the blob with it.
    fn engine(peer: PeerId, shares: bool) -> Engine {
        let (local, now) = (PeerId::from_public_key([9; 32]), Timestamp::ZERO);
        let mut engine = Engine::new(crate::EngineConfig::default(), local, Zone::default(), 0, now);
        let (zone, roles) = (Zone::default(), shoal_types::Roles::NONE);
        engine.handle_input(now, Input::PeerConnected { peer, zone, roles, endpoints: Vec::new() });
        if shares {
            let metainfo = Metainfo::of_bytes(shoal_types::Algorithm::Sha256, &[7; 3 << 20]).unwrap();
            let (digest, metainfo) = (metainfo.digest(), Arc::new(metainfo));
            let opened = Opened::Absent { owner: false, backend_down: false };
            engine.handle_input(
                now,
                Input::ReaderOpened { reader: ReaderId(0), digest, want: ReaderWant::Whole },
            );
            engine.handle_input(now, Input::BlobOpened { digest, opened });
            engine.handle_input(now, Input::MetainfoLearned { metainfo, vouched: None });
            let message =
                Message::Join { channel: 0, digest, wants_metainfo: false, probe: false, trace: None };
            engine.handle_input(now, Input::Message { peer, message });
        }
        engine
    }
}
