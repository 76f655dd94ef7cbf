//! Where the bytes of recent blobs came from, and what each pull waited for: what `/api/v1/pulls` and `shoal why` show.

mod account;
mod verdict;
mod watch;

use std::collections::BTreeMap;
use std::time::Duration;

use indexmap::IndexMap;
use parking_lot::Mutex;
use serde::Serialize;
use shoal_engine::io::{Event, Report};
use shoal_types::{Digest, PeerId, Timestamp, Zone};

pub use account::Phase;
use account::Stretch;
pub use verdict::Verdict;
pub(crate) use watch::Moment;
use watch::Watch;

/// Most blobs remembered.
pub const PULLS_MAX: usize = 512;
/// Most peers told apart for one blob; bytes of further ones are added up under `others`.
pub const SOURCES_MAX: usize = 64;

/// What a peer gave of a blob.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Share {
    /// The peer's zone.
    pub zone: Option<Zone>,
    /// Payload bytes.
    pub bytes: u64,
    /// Pieces.
    pub pieces: u64,
    /// Time in which the download waited for this peer, shared out when it waited for several, in milliseconds.
    pub waited_ms: f64,
    /// Requests that it did not answer in time.
    pub timeouts: u64,
}

/// How the newest local read of a blob went, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Read {
    /// Payload bytes that the client has taken.
    pub bytes: u64,
    /// Until the blob's size was known and the first byte could be waited for.
    pub opened_ms: f64,
    /// Waiting for bytes that were not here yet.
    pub arriving_ms: f64,
    /// Reading from the local disk.
    pub disk_ms: f64,
    /// Waiting for the client to take more.
    pub client_ms: f64,
}

/// One recent blob.
#[derive(Clone, Debug, Serialize)]
pub struct Pull {
    /// Blob size in bytes, once known.
    pub size: Option<u64>,
    /// When it was first wanted, milliseconds since the process started.
    pub started_ms: u64,
    /// When its first piece was verified, milliseconds since the process started.
    pub first_piece_ms: Option<u64>,
    /// When its whole digest was right, milliseconds since the process started.
    pub completed_ms: Option<u64>,
    /// What peers gave.
    pub peers: BTreeMap<PeerId, Share>,
    /// Bytes from peers beyond those told apart.
    pub others_bytes: u64,
    /// Bytes from this process's backend.
    pub backend_bytes: u64,
    /// Bytes read by local clients that were here already.
    pub local_bytes: u64,
    /// Bytes sent to peers.
    pub served_bytes: u64,
    /// Requests that were given to another peer because the first one did not deliver.
    pub timeouts: u64,
    /// Why it failed, if it did.
    pub failed: Option<String>,
    /// What the download waited for, in milliseconds.
    pub phases: BTreeMap<Phase, f64>,
    /// The newest read by a local client.
    pub read: Option<Read>,
}

/// The recent blobs, oldest first.
#[derive(Debug, Default)]
pub struct Pulls {
    recent: Mutex<IndexMap<Digest, Pull>>,
    watch: Mutex<Watch>,
    /// Time spent in each phase by all pulls since the start.
    spent: Mutex<BTreeMap<Phase, Duration>>,
}

impl Pulls {
    /// Takes note of an engine's report.
    pub fn note(&self, report: &Report) {
        let at = millis(report);
        let mut pulls = self.recent.lock();
        match &report.event {
            Event::SwarmStarted { digest } => {
                entry(&mut pulls, digest, at);
            }
            Event::MetainfoReceived { digest, size } => entry(&mut pulls, digest, at).size = Some(*size),
            Event::PieceReceived { digest, bytes, from, zone, .. } => {
                let pull = entry(&mut pulls, digest, at);
                pull.first_piece_ms.get_or_insert(at);
                note_piece(pull, from.as_ref(), zone.clone(), u64::from(*bytes));
            }
            Event::PieceServed { digest, bytes, .. } => {
                entry(&mut pulls, digest, at).served_bytes += u64::from(*bytes);
            }
            Event::RequestTimedOut { digest, peer, .. } => {
                let pull = entry(&mut pulls, digest, at);
                pull.timeouts += 1;
                if let Some(share) = share(pull, peer) {
                    share.timeouts += 1;
                }
            }
            Event::BlobCompleted { digest, size, .. } => {
                let pull = entry(&mut pulls, digest, at);
                pull.size = Some(*size);
                pull.completed_ms = Some(at);
            }
            Event::BlobFailed { digest, why } => entry(&mut pulls, digest, at).failed = Some(why.to_string()),
            _ => {}
        }
    }

    /// Takes note of bytes a local client read of a blob that was complete here.
    pub fn note_local(&self, digest: &Digest, size: u64, bytes: u64, at_ms: u64) {
        let mut pulls = self.recent.lock();
        let pull = entry(&mut pulls, digest, at_ms);
        pull.size = Some(size);
        pull.local_bytes += bytes;
    }

    /// Takes note of how a local read went, when it is over.
    pub(crate) fn note_read(&self, digest: &Digest, size: u64, at_ms: u64, read: Read) {
        let mut pulls = self.recent.lock();
        let pull = entry(&mut pulls, digest, at_ms);
        pull.size = Some(size);
        self.add(Phase::Client, Duration::from_secs_f64(read.client_ms / 1000.0));
        pull.read = Some(read);
    }

    /// Takes note of what happens to downloads; `limited`: the configured rate of receiving is used up.
    pub(crate) fn watch(&self, now: Timestamp, limited: bool, moment: Moment<'_>) {
        self.watch.lock().take(now, limited, moment, |digest, stretch| self.spend(now, digest, &stretch));
    }

    fn spend(&self, now: Timestamp, digest: &Digest, stretch: &Stretch<'_>) {
        self.add(stretch.phase, stretch.time);
        let mut pulls = self.recent.lock();
        let pull = entry(&mut pulls, digest, since_start(now));
        let millis = stretch.time.as_secs_f64() * 1000.0;
        *pull.phases.entry(stretch.phase).or_default() += millis;
        for peer in &stretch.peers {
            if let Some(share) = share(pull, peer) {
                share.waited_ms += millis / stretch.peers.len() as f64;
            }
        }
    }

    fn add(&self, phase: Phase, time: Duration) {
        *self.spent.lock().entry(phase).or_default() += time;
    }

    /// Time spent in each phase by all pulls since the start.
    pub fn spent(&self) -> Vec<(Phase, Duration)> {
        let spent = self.spent.lock();
        Phase::ALL.into_iter().map(|phase| (phase, spent.get(&phase).copied().unwrap_or_default())).collect()
    }

    /// What is known of one blob's pull.
    pub fn get(&self, digest: &Digest) -> Option<Pull> {
        self.recent.lock().get(digest).cloned()
    }

    /// The recent blobs, newest first.
    pub fn recent(&self) -> Vec<(Digest, Pull)> {
        self.recent.lock().iter().rev().map(|(digest, pull)| (*digest, pull.clone())).collect()
    }
}

fn note_piece(pull: &mut Pull, from: Option<&PeerId>, zone: Option<Zone>, bytes: u64) {
    let Some(peer) = from else {
        pull.backend_bytes += bytes;
        return;
    };
    let Some(share) = share(pull, peer) else {
        pull.others_bytes += bytes;
        return;
    };
    share.zone = zone;
    share.bytes += bytes;
    share.pieces += 1;
}

/// A peer's share, while there is room to tell it apart.
fn share<'a>(pull: &'a mut Pull, peer: &PeerId) -> Option<&'a mut Share> {
    if pull.peers.len() >= SOURCES_MAX && !pull.peers.contains_key(peer) {
        return None;
    }
    Some(pull.peers.entry(*peer).or_default())
}

fn entry<'a>(pulls: &'a mut IndexMap<Digest, Pull>, digest: &Digest, at_ms: u64) -> &'a mut Pull {
    if !pulls.contains_key(digest) && pulls.len() >= PULLS_MAX {
        pulls.shift_remove_index(0);
    }
    pulls.entry(*digest).or_insert_with(|| Pull {
        size: None,
        started_ms: at_ms,
        first_piece_ms: None,
        completed_ms: None,
        peers: BTreeMap::new(),
        others_bytes: 0,
        backend_bytes: 0,
        local_bytes: 0,
        served_bytes: 0,
        timeouts: 0,
        failed: None,
        phases: BTreeMap::new(),
        read: None,
    })
}

fn millis(report: &Report) -> u64 {
    since_start(report.at)
}

fn since_start(at: Timestamp) -> u64 {
    u64::try_from(at.since_start().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_types::PieceLayout;

    #[test]
    fn shares_add_up_and_room_is_bounded() {
        let pulls = Pulls::default();
        let piece = PieceLayout::for_size(1).unwrap().piece(0).unwrap();
        let received = |digest, from: Option<u8>| Report {
            at: Timestamp::from_start(Duration::from_millis(5)),
            event: Event::PieceReceived {
                digest,
                piece,
                bytes: 10,
                from: from.map(|n| PeerId::from_public_key([n; 32])),
                zone: None,
                latency: Duration::ZERO,
            },
        };
        let digest = Digest::sha256(b"a");
        for n in 0..70 {
            pulls.note(&received(digest, Some(n)));
        }
        pulls.note(&received(digest, Some(1)));
        pulls.note(&received(digest, None));
        let (_, pull) = pulls.recent().remove(0);
        assert_eq!((pull.peers.len(), pull.others_bytes, pull.backend_bytes), (SOURCES_MAX, 60, 10));
        assert_eq!(pull.peers[&PeerId::from_public_key([1; 32])].bytes, 20);
        for n in 0..PULLS_MAX as u64 {
            pulls.note_local(&Digest::sha256(&n.to_le_bytes()), 1, 1, 0);
        }
        assert!(pulls.recent().iter().all(|(known, _)| *known != digest));
    }
}
