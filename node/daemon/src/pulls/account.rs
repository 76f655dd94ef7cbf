//! What bounded a download, moment by moment: a clock that runs under exactly one phase at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;
use shoal_types::{PeerId, Timestamp};

/// What a download waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// For somebody to say what the blob is and who has it.
    Lookup,
    /// For peers to give what they were asked for, or for anybody to have what is still lacking.
    Seeder,
    /// For this machine's link: its configured rate is used up, or several peers deliver as fast as it ever received.
    OwnLink,
    /// For this process's backend alone.
    Backend,
    /// For pieces to be checked and written, or for the whole digest.
    Disk,
    /// For the client to read what is here. Not a phase of the download, which goes on meanwhile.
    Client,
}

impl Phase {
    /// All of them, in the order a pull goes through them.
    pub const ALL: [Self; 6] =
        [Self::Lookup, Self::Seeder, Self::OwnLink, Self::Backend, Self::Disk, Self::Client];

    /// Its name in metrics and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Seeder => "seeder",
            Self::OwnLink => "own_link",
            Self::Backend => "backend",
            Self::Disk => "disk",
            Self::Client => "client",
        }
    }
}

/// A share of the best rate seen from which the link counts as full.
const FULL_SHARE: f64 = 0.8;
/// Over how long a rate is measured.
const WINDOW: Duration = Duration::from_millis(200);

/// How fast payload comes in, all peers together.
#[derive(Debug, Default)]
pub(crate) struct Link {
    since: Timestamp,
    bytes: u64,
    rate: f64,
    best: f64,
    /// The configured rate is used up at the moment.
    limited: bool,
}

impl Link {
    /// Takes note of the time, of bytes that came, and of the configured rate.
    pub(crate) fn note(&mut self, now: Timestamp, bytes: u64, limited: bool) {
        self.limited = limited;
        let window = now.saturating_since(self.since);
        if window >= WINDOW {
            self.rate = self.bytes as f64 / window.as_secs_f64();
            self.best = self.best.max(self.rate);
            (self.since, self.bytes) = (now, 0);
        }
        self.bytes = self.bytes.saturating_add(bytes);
    }

    fn is_full(&self) -> bool {
        self.rate > 0.0 && self.rate >= self.best * FULL_SHARE
    }
}

/// A stretch of time, what it was spent on, and the peers waited for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stretch<'a> {
    pub(crate) phase: Phase,
    pub(crate) time: Duration,
    pub(crate) peers: Vec<&'a PeerId>,
}

/// The account of one download under way.
#[derive(Debug)]
pub(crate) struct Account {
    last: Timestamp,
    /// Local readers that want payload.
    pub(crate) readers: usize,
    /// The metainfo has come.
    pub(crate) known: bool,
    /// Pieces asked of each peer and not received.
    asked: BTreeMap<PeerId, BTreeSet<u32>>,
    backend: BTreeSet<u32>,
    verifying: BTreeSet<u32>,
    /// Pieces of the blob; `None` until known. A live metainfo may say it more than once.
    pieces: Option<u32>,
    /// Those of them that are verified.
    verified: u32,
}

impl Account {
    pub(crate) fn new(now: Timestamp) -> Self {
        Self {
            last: now,
            readers: 0,
            known: false,
            asked: BTreeMap::new(),
            backend: BTreeSet::new(),
            verifying: BTreeSet::new(),
            pieces: None,
            verified: 0,
        }
    }

    /// The time since the last call, and what it was spent on; `None` while nobody wants anything.
    pub(crate) fn advance(&mut self, now: Timestamp, link: &Link) -> Option<Stretch<'_>> {
        let time = now.saturating_since(self.last);
        self.last = now;
        let phase = self.phase(link)?;
        let peers = if phase == Phase::Seeder { self.asked.keys().collect() } else { Vec::new() };
        (!time.is_zero()).then_some(Stretch { phase, time, peers })
    }

    fn phase(&self, link: &Link) -> Option<Phase> {
        let idle = self.asked.is_empty() && self.backend.is_empty() && self.verifying.is_empty();
        if self.readers == 0 && idle {
            return None;
        }
        Some(if !self.known {
            Phase::Lookup
        } else if link.limited || self.asked.len() > 1 && link.is_full() {
            Phase::OwnLink
        } else if !self.asked.is_empty() {
            Phase::Seeder
        } else if !self.backend.is_empty() {
            Phase::Backend
        } else if !self.verifying.is_empty() || self.pieces == Some(self.verified) {
            Phase::Disk
        } else {
            Phase::Seeder
        })
    }

    /// The blob has so many pieces, of which so many were here from the start.
    pub(crate) fn opened(&mut self, pieces: u32, here: u32) {
        self.known = true;
        self.pieces = Some(pieces);
        self.verified = self.verified.max(here);
    }

    pub(crate) fn asked(&mut self, peer: PeerId, piece: u32) {
        self.asked.entry(peer).or_default().insert(piece);
    }

    /// A piece is not asked of a peer any more: it came, or was taken back.
    pub(crate) fn unasked(&mut self, peer: &PeerId, piece: u32) {
        if let Some(pieces) = self.asked.get_mut(peer) {
            pieces.remove(&piece);
            if pieces.is_empty() {
                self.asked.remove(peer);
            }
        }
    }

    pub(crate) fn peer_gone(&mut self, peer: &PeerId) {
        self.asked.remove(peer);
    }

    pub(crate) fn note_backend(&mut self, piece: u32) {
        self.backend.insert(piece);
    }

    pub(crate) fn verifying(&mut self, piece: u32) {
        self.verifying.insert(piece);
    }

    pub(crate) fn settled(&mut self, piece: u32, verified: bool) {
        self.backend.remove(&piece);
        self.verifying.remove(&piece);
        self.verified = self.verified.saturating_add(u32::from(verified));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_start(Duration::from_millis(millis))
    }

    fn spent(account: &mut Account, millis: u64, link: &Link) -> (Phase, u64, usize) {
        let stretch = account.advance(at(millis), link).expect("the clock runs");
        (stretch.phase, u64::try_from(stretch.time.as_millis()).unwrap(), stretch.peers.len())
    }

    #[test]
    fn every_moment_has_one_phase() {
        let peer = |n| PeerId::from_public_key([n; 32]);
        let mut link = Link::default();
        let mut account = Account::new(at(0));
        assert_eq!(account.advance(at(5), &link), None, "nobody wants it");
        account.readers = 1;
        assert_eq!(spent(&mut account, 10, &link), (Phase::Lookup, 5, 0));
        account.opened(4, 1);
        assert_eq!(spent(&mut account, 30, &link), (Phase::Seeder, 20, 0), "nobody is asked yet");
        account.asked(peer(1), 0);
        assert_eq!(spent(&mut account, 60, &link), (Phase::Seeder, 30, 1));
        link.note(at(60), 0, true);
        assert_eq!(spent(&mut account, 70, &link), (Phase::OwnLink, 10, 0), "the rate is used up");
        link.note(at(70), 0, false);
        account.unasked(&peer(1), 0);
        account.verifying(0);
        assert_eq!(spent(&mut account, 75, &link), (Phase::Disk, 5, 0));
        account.settled(0, true);
        account.note_backend(1);
        assert_eq!(spent(&mut account, 80, &link), (Phase::Backend, 5, 0));
        account.settled(1, false);
        account.settled(1, true);
        account.settled(2, true);
        assert_eq!(spent(&mut account, 90, &link), (Phase::Disk, 10, 0), "the whole digest is checked");
        account.readers = 0;
        account.opened(5, 0);
        assert_eq!(account.advance(at(95), &link), None);
    }

    #[test]
    fn several_peers_at_the_best_rate_fill_the_link_and_a_straggler_does_not() {
        let peer = |n| PeerId::from_public_key([n; 32]);
        let mut link = Link::default();
        let mut account = Account::new(at(0));
        account.readers = 1;
        account.opened(9, 0);
        account.asked(peer(1), 0);
        account.asked(peer(2), 1);
        link.note(at(0), 1_000_000, false);
        link.note(at(200), 1_000_000, false);
        assert_eq!(spent(&mut account, 200, &link), (Phase::OwnLink, 200, 0));
        // One of them becomes slow: together they are far from the best.
        link.note(at(400), 100_000, false);
        link.note(at(600), 100_000, false);
        assert_eq!(spent(&mut account, 600, &link), (Phase::Seeder, 400, 2));
        account.unasked(&peer(1), 0);
        let stretch = account.advance(at(700), &link).unwrap();
        assert_eq!((stretch.phase, stretch.peers), (Phase::Seeder, vec![&peer(2)]));
    }
}
