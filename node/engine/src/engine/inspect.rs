//! What status pages show.

use shoal_types::{Bitfield, Digest, PeerId, Roles, Zone};

use super::Engine;

/// A peer as one swarm sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwarmPeerStatus {
    /// Who.
    pub peer: PeerId,
    /// Pieces it has.
    pub pieces: u32,
    /// Pieces asked of it and not received.
    pub requested: usize,
}

/// One swarm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwarmStatus {
    /// The blob.
    pub digest: Digest,
    /// Blob size in bytes, once the metainfo is known.
    pub size: Option<u64>,
    /// Pieces of the blob, once the metainfo is known.
    pub pieces: u32,
    /// The verified pieces; empty until the metainfo is known.
    pub have: Bitfield,
    /// Whether the whole digest has been checked.
    pub complete: bool,
    /// Whether peers are being searched.
    pub searching: bool,
    /// Local readers.
    pub readers: usize,
    /// Peers that share it.
    pub peers: Vec<SwarmPeerStatus>,
    /// Peers known and not connected.
    pub candidates: usize,
}

/// One connected peer.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerStatus {
    /// Who.
    pub peer: PeerId,
    /// Its zone.
    pub zone: Zone,
    /// Its roles.
    pub roles: Roles,
    /// Swarms shared with it.
    pub swarms: usize,
    /// Payload bytes per second it delivers, smoothed; zero while unknown.
    pub rate_in_bytes_per_sec: f64,
    /// Payload bytes received from it.
    pub received_bytes: u64,
    /// Pieces asked of it and not received.
    pub in_flight: u32,
    /// Pieces that may be asked of it at once.
    pub window: u32,
    /// Stalls since its last life sign; zero is good.
    pub stalls: u32,
}

impl Engine {
    /// Every swarm.
    pub fn swarms(&self) -> impl Iterator<Item = SwarmStatus> + '_ {
        self.swarms.values().map(|swarm| {
            let blob = swarm.blob.as_ref();
            SwarmStatus {
                digest: swarm.digest,
                size: blob.map(|blob| blob.layout.size()),
                pieces: blob.map_or(0, |blob| blob.layout.piece_count()),
                have: blob.map_or_else(|| Bitfield::new(0), |blob| blob.have.clone()),
                complete: swarm.is_complete(),
                searching: swarm.search.since.is_some(),
                readers: swarm.readers.len(),
                peers: swarm
                    .members
                    .iter()
                    .filter(|(_, member)| member.is_joined())
                    .map(|(peer, member)| SwarmPeerStatus {
                        peer: *peer,
                        pieces: member.pieces.as_ref().map_or(0, Bitfield::count),
                        requested: member.outstanding.len(),
                    })
                    .collect(),
                candidates: swarm.search.candidates.len(),
            }
        })
    }

    /// Every connected peer.
    pub fn peers(&self) -> impl Iterator<Item = PeerStatus> + '_ {
        self.peers.iter().map(|(peer, known)| PeerStatus {
            peer: *peer,
            zone: known.zone.clone(),
            roles: known.roles,
            swarms: known.channels.len(),
            rate_in_bytes_per_sec: known.flow.rate,
            received_bytes: known.flow.received_bytes,
            in_flight: known.flow.in_flight,
            window: known.flow.window,
            stalls: known.flow.stalls,
        })
    }

    /// Whether requests wait because a configured rate of receiving is used up.
    pub fn waits_for_budget(&self) -> bool {
        self.rate_in.is_empty() || self.zone_rate_in.is_empty()
    }

    /// Payload bytes requested and being verified now; never above `buffer_bytes_max`.
    pub fn buffered_bytes(&self) -> u64 {
        self.buffered_bytes
    }
}
