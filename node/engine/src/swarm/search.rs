//! Finding who has a blob, and knowing when nobody does.

use shoal_types::{PeerId, Timestamp};

use crate::io::LookupSource;
use crate::keyed::Map;
use crate::message::{Absence, PeerHint};

/// How one lookup stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Lookup {
    #[default]
    Idle,
    Running,
    Ended,
}

/// What is known of a peer that may have the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Not asked yet.
    Fresh,
    /// The driver is connecting.
    Dialing,
    /// It was asked, or is a member.
    Asked,
    /// It answered that it does not take part.
    Absent(Absence),
    /// It could not be reached, or left.
    Gone,
}

impl Standing {
    /// Whether it turned out not to have the blob, or not to be there.
    pub(crate) fn is_useless(self) -> bool {
        matches!(self, Self::Absent(_) | Self::Gone)
    }
}

/// A peer that may have the blob.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) hint: PeerHint,
    /// Rendezvous hashing named it an owner.
    pub(crate) owner: bool,
    pub(crate) standing: Standing,
    /// It is a member of the swarm.
    pub(crate) member: bool,
    pub(crate) heard: Timestamp,
    /// When it was dialled or, being connected, asked.
    pub(crate) tried: Timestamp,
}

impl Candidate {
    pub(crate) fn new(hint: PeerHint, owner: bool, standing: Standing, now: Timestamp) -> Self {
        Self { hint, owner, standing, member: false, heard: now, tried: now }
    }

    /// Whether it has not been found to be gone or without the blob.
    pub(crate) fn may_have(&self) -> bool {
        match self.standing {
            Standing::Fresh | Standing::Dialing | Standing::Asked | Standing::Absent(Absence::Full) => true,
            Standing::Absent(_) | Standing::Gone => false,
        }
    }
}

/// Lookups and candidates of one swarm.
#[derive(Debug, Default)]
pub(crate) struct Search {
    /// Since when nobody to ask is known; `None` while the swarm gets on.
    pub(crate) since: Option<Timestamp>,
    pub(crate) round: u32,
    pub(crate) next_round: Timestamp,
    pub(crate) owners: Lookup,
    pub(crate) dht: Lookup,
    pub(crate) candidates: Map<PeerId, Candidate>,
    /// Those of them in the own zone that are owners.
    pub(crate) near_owners: Vec<PeerId>,
    /// Peers of another zone were named.
    pub(crate) foreign: bool,
    /// No candidate that is neither member nor owner is useless; `false` where that is not known.
    pub(crate) all_useful: bool,
}

/// What a finished round of search means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Owners answered, and nobody has it.
    NotFound,
    /// It may exist, and nobody who has it can be asked.
    Unavailable,
}

impl Search {
    pub(crate) fn lookup_mut(&mut self, source: LookupSource) -> &mut Lookup {
        match source {
            LookupSource::Owners => &mut self.owners,
            LookupSource::Dht => &mut self.dht,
        }
    }

    pub(crate) fn is_looking(&self) -> bool {
        self.owners == Lookup::Running || self.dht == Lookup::Running
    }

    /// Notes that a peer has become a member, or is none any more.
    pub(crate) fn note_member(&mut self, peer: &PeerId, member: bool) {
        if let Some(candidate) = self.candidates.get_mut(peer) {
            candidate.member = member;
            self.all_useful &= member;
        }
    }

    /// Nothing else makes a candidate useless.
    pub(crate) fn set_standing(&mut self, peer: &PeerId, standing: Standing) {
        if let Some(candidate) = self.candidates.get_mut(peer) {
            candidate.standing = standing;
            self.all_useful &= !standing.is_useless();
        }
    }

    /// Whether somebody has still to be dialled or heard. `pending` decides about those that were asked.
    pub(crate) fn is_open(&self, mut pending: impl FnMut(&PeerId, &Candidate) -> bool) -> bool {
        self.is_looking()
            || self.candidates.iter().any(|(peer, candidate)| match candidate.standing {
                Standing::Fresh | Standing::Dialing => true,
                Standing::Asked => pending(peer, candidate),
                Standing::Absent(_) | Standing::Gone => false,
            })
    }

    /// The verdict once nothing is open. `own` is this process's own word as an owner, `None` when it is not one.
    pub(crate) fn verdict(&self, own: Option<Absence>) -> Verdict {
        let absences = || {
            self.candidates.values().filter_map(|candidate| match candidate.standing {
                Standing::Absent(why) => Some((candidate.owner, why)),
                _ => None,
            })
        };
        let denied = own == Some(Absence::Unknown)
            || absences().any(|(owner, why)| owner && matches!(why, Absence::Unknown | Absence::NotHere));
        let doubtful = own == Some(Absence::BackendDown)
            || absences().any(|(owner, why)| why == Absence::Full || (owner && why == Absence::BackendDown));
        if denied && !doubtful { Verdict::NotFound } else { Verdict::Unavailable }
    }

    /// Everybody may be asked again.
    pub(crate) fn forgive(&mut self) {
        for candidate in self.candidates.values_mut() {
            if candidate.standing.is_useless() {
                candidate.standing = Standing::Fresh;
            }
        }
    }
}
