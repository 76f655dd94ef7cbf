//! Which connections to close: gossipsub keeps every one open for ever (200 nodes had 209 each after ten seconds).

use std::time::{Duration, Instant};

use shoal_types::PeerId;

/// A connected peer, as the pruner sees it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Who.
    pub peer: PeerId,
    /// Since when.
    pub since: Instant,
    /// Gossip's mesh, the closest peers of the DHT, or a bootstrap peer: not to be closed.
    pub protected: bool,
}

/// The peers to disconnect so that `target` remain: of the unprotected ones older than `age_min` those whose keys
/// share the least with ours, which are the DHT's most replaceable, first.
///
/// Both ends see the same distance, so that two processes over their target agree on what to give up.
pub fn surplus(
    local: PeerId,
    peers: &[Candidate],
    target: usize,
    age_min: Duration,
    now: Instant,
) -> Vec<PeerId> {
    let excess = peers.len().saturating_sub(target);
    if excess == 0 {
        return Vec::new();
    }
    let old_enough = |peer: &&Candidate| now.saturating_duration_since(peer.since) >= age_min;
    let mut open: Vec<([u8; 32], PeerId)> = peers
        .iter()
        .filter(|peer| !peer.protected)
        .filter(old_enough)
        .map(|candidate| (distance(&local, &candidate.peer), candidate.peer))
        .collect();
    open.sort_unstable_by(|one, other| other.cmp(one));
    open.truncate(excess);
    open.into_iter().map(|(_, peer)| peer).collect()
}

fn distance(one: &PeerId, other: &PeerId) -> [u8; 32] {
    let (one, other) = (hash(one), hash(other));
    std::array::from_fn(|at| one[at] ^ other[at])
}

fn hash(peer: &PeerId) -> [u8; 32] {
    *blake3::hash(peer.public_key()).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn peer(n: u8) -> PeerId {
        PeerId::from_public_key([n; 32])
    }

    #[test]
    fn closes_the_excess_but_nothing_protected_or_young() {
        let start = Instant::now();
        let now = start + Duration::from_secs(100);
        let peers: Vec<Candidate> = (1..=100)
            .map(|n| Candidate {
                peer: peer(n),
                since: if n <= 10 { now } else { start },
                protected: (11..=30).contains(&n),
            })
            .collect();
        let prune = |target| surplus(peer(0), &peers, target, Duration::from_secs(30), now);
        assert!(prune(100).is_empty() && prune(500).is_empty());
        assert_eq!(prune(64).len(), 36);
        let most: BTreeSet<PeerId> = prune(0).into_iter().collect();
        assert_eq!(most, (31..=100).map(peer).collect());
        // The first to go is the farthest, whatever the target.
        assert_eq!(prune(99)[0], prune(64)[0]);
    }

    #[test]
    fn both_ends_agree_on_the_distance() {
        assert_eq!(distance(&peer(1), &peer(2)), distance(&peer(2), &peer(1)));
    }
}
