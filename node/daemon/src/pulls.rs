//! Where the bytes of recent blobs came from: what `/api/v1/pulls` and the demo show.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use parking_lot::Mutex;
use serde::Serialize;
use shoal_engine::io::{Event, Report};
use shoal_types::{Digest, PeerId, Zone};

/// Most blobs remembered.
pub const PULLS_MAX: usize = 512;
/// Most peers told apart for one blob; bytes of further ones are added up under `others`.
pub const SOURCES_MAX: usize = 64;

/// What a peer gave of a blob.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Share {
    /// The peer's zone.
    pub zone: Option<Zone>,
    /// Payload bytes.
    pub bytes: u64,
    /// Pieces.
    pub pieces: u64,
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
    pub peers: BTreeMap<String, Share>,
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
}

/// The recent blobs, oldest first.
#[derive(Debug, Default)]
pub struct Pulls(Mutex<IndexMap<Digest, Pull>>);

impl Pulls {
    /// Takes note of an engine's report.
    pub fn note(&self, report: &Report) {
        let at = millis(report);
        let mut pulls = self.0.lock();
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
            Event::RequestTimedOut { digest, .. } => entry(&mut pulls, digest, at).timeouts += 1,
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
        let mut pulls = self.0.lock();
        let pull = entry(&mut pulls, digest, at_ms);
        pull.size = Some(size);
        pull.local_bytes += bytes;
    }

    /// The recent blobs, newest first.
    pub fn recent(&self) -> Vec<(Digest, Pull)> {
        self.0.lock().iter().rev().map(|(digest, pull)| (*digest, pull.clone())).collect()
    }
}

fn note_piece(pull: &mut Pull, from: Option<&PeerId>, zone: Option<Zone>, bytes: u64) {
    let Some(peer) = from else {
        pull.backend_bytes += bytes;
        return;
    };
    let name = peer.to_string();
    if pull.peers.len() >= SOURCES_MAX && !pull.peers.contains_key(&name) {
        pull.others_bytes += bytes;
        return;
    }
    let share = pull.peers.entry(name).or_default();
    share.zone = zone;
    share.bytes += bytes;
    share.pieces += 1;
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
    })
}

fn millis(report: &Report) -> u64 {
    u64::try_from(report.at.since_start().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_types::{PieceLayout, Timestamp};
    use std::time::Duration;

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
        assert_eq!(pull.peers[&PeerId::from_public_key([1; 32]).to_string()].bytes, 20);
        for n in 0..PULLS_MAX as u64 {
            pulls.note_local(&Digest::sha256(&n.to_le_bytes()), 1, 1, 0);
        }
        assert!(pulls.recent().iter().all(|(known, _)| *known != digest));
    }
}
