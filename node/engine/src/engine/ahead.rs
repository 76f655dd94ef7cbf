//! Having memory fetched that an input will look at.
//!
//! For a process of so many engines that little of one is in the processor's caches when something happens to it. An input finds most
//! of what it looks at by way of something else, and waits for one after the other. Who knows a few inputs ahead what comes has
//! each of these fetched in time, while other inputs are dealt with.

use shoal_types::{Digest, PeerId};

use super::{Engine, Shared};
use crate::message::{Channel, Message};
use crate::prefetch::{prefetch, prefetch_ends};
use crate::swarm::Swarm;
use crate::timers::Timer;

/// Stages of [`Engine::prefetch`].
pub const STAGES: usize = 6;
/// Runs of pieces of one message that are looked at.
const PIECES_MAX: usize = 8;

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
    Sent(&'a PeerId, Digest),
    /// [`crate::io::Input::PieceVerified`].
    Verified(Digest, u32),
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

impl Engine {
    /// Has a part of what an input will look at fetched into the processor's caches. To be called for each stage below [`STAGES`], one or
    /// two other inputs apart, so that each finds what the one before had fetched. Changes nothing that decides anything.
    #[inline]
    pub fn prefetch(&self, stage: usize, ahead: &Ahead<'_>) {
        match stage {
            0 => self.prefetch_head(ahead),
            1 => self.prefetch_tables(ahead),
            2 => self.prefetch_peer(ahead),
            3 => self.prefetch_swarm(ahead),
            4 => self.prefetch_member(ahead),
            _ => self.prefetch_pieces(ahead),
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
        if ahead.names_blob() {
            self.names.prefetch_head();
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
        if matches!(ahead, Ahead::Timeout) {
            self.timers.prefetch_next();
        }
    }

    fn prefetch_peer(&self, ahead: &Ahead<'_>) {
        if let Some(peer) = ahead.peer() {
            if let Some((key, known)) = self.peers.likely(peer) {
                prefetch_ends(key);
                prefetch(&known.channels);
                known.flow.prefetch(!matches!(ahead, Ahead::Request(..)));
            }
            if ahead.serves() {
                self.uploads.prefetch_queue(peer);
            }
        } else if let Some((swarm, _)) = self.swarm_ahead(ahead) {
            swarm.prefetch();
        }
    }

    fn prefetch_swarm(&self, ahead: &Ahead<'_>) {
        let Some((swarm, _)) = self.swarm_ahead(ahead) else { return };
        match ahead {
            Ahead::Verified(..) => swarm.prefetch_pieces(ahead.pieces()),
            Ahead::Timeout => swarm.news.prefetch(),
            _ => swarm.prefetch(),
        }
    }

    fn prefetch_member(&self, ahead: &Ahead<'_>) {
        let Some((swarm, place)) = self.swarm_ahead(ahead) else { return };
        if let Some(place) = place {
            swarm.prefetch_member(place);
            swarm.news.prefetch_owed(place);
            swarm.prefetch_pieces(ahead.pieces());
        } else if matches!(ahead, Ahead::Timeout) {
            self.due(swarm).for_each(|place| swarm.prefetch_member(place));
        }
    }

    fn prefetch_pieces(&self, ahead: &Ahead<'_>) {
        let Some((swarm, place)) = self.swarm_ahead(ahead) else { return };
        if let Some(place) = place {
            swarm.prefetch_pieces_of(place, ahead.pieces().next().unwrap_or(0));
            if let (Some(blob), Ahead::Message(_, Some(Message::Have { .. }))) = (&swarm.blob, ahead) {
                ahead.pieces().for_each(|piece| blob.picker.prefetch_bucket(piece));
            }
        } else if matches!(ahead, Ahead::Timeout) {
            self.due(swarm).for_each(|place| swarm.prefetch_pieces_of(place, 0));
        }
    }

    /// Places of members that will be looked at when what came is told next.
    fn due<'a>(&self, swarm: &'a Swarm) -> impl Iterator<Item = usize> + use<'a> {
        swarm.news.due(self.timers.next().unwrap_or(self.now))
    }

    /// The swarm that an input is about, and the place among its members of the peer that it comes from.
    fn swarm_ahead(&self, ahead: &Ahead<'_>) -> Option<(&Swarm, Option<usize>)> {
        let (name, place) = match ahead {
            Ahead::Verified(digest, _) => (self.names.get(digest)?, None),
            Ahead::Timeout => match self.timers.next_timer()? {
                Timer::Haves(name) => (name, None),
                _ => return None,
            },
            _ => {
                let channel = ahead.channel()?;
                let Shared { name, place } = *self.peers.get(ahead.peer()?)?.channels.get(channel)?;
                (name, Some(place as usize))
            }
        };
        Some((self.swarms.get(name)?, place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_types::{Timestamp, Zone};

    /// What comes is a peer's: it may be about anything. What engines have is prefetched in all of the simulator's tests.
    #[test]
    fn what_is_unknown_is_passed_over() {
        let peer = PeerId::from_public_key([1; 32]);
        let engine = Engine::new(crate::EngineConfig::default(), peer, Zone::default(), 0, Timestamp::ZERO);
        let (digest, to, piece) = (Digest::sha256(b"blob"), 7, u32::MAX);
        let request = Message::Request { to, piece };
        let have = Message::Have { to, runs: vec![(piece, piece)] };
        let inputs = [
            Ahead::Request(&peer, None),
            Ahead::Request(&peer, Some(&request)),
            Ahead::Message(&peer, Some(&have)),
            Ahead::Arrived(&peer, to, piece),
            Ahead::Sent(&peer, digest),
            Ahead::Verified(digest, piece),
            Ahead::Timeout,
        ];
        let before = format!("{engine:?}");
        for stage in 0..=STAGES {
            inputs.iter().for_each(|ahead| engine.prefetch(stage, ahead));
        }
        assert_eq!(format!("{engine:?}"), before);
    }
}
