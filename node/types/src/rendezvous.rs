//! Rendezvous hashing (Thaler and Ravishankar 1998): who of a set is responsible for a key.
//!
//! Every member computes the same ranking from the same set with no coordination, and when one of the set comes
//! or goes only the keys it is ranked for move.

use crate::peer::PeerId;

/// `candidates` from the most to the least responsible for `key`. Duplicates in `candidates` are kept.
pub fn rank(key: &[u8], candidates: impl IntoIterator<Item = PeerId>) -> Vec<PeerId> {
    let mut scored: Vec<([u8; 16], PeerId)> =
        candidates.into_iter().map(|peer| (score(key, &peer), peer)).collect();
    scored.sort_unstable_by(|one, two| two.cmp(one));
    scored.into_iter().map(|(_, peer)| peer).collect()
}

/// The one of `candidates` most responsible for `key`, or `None` of an empty set.
pub fn first(key: &[u8], candidates: impl IntoIterator<Item = PeerId>) -> Option<PeerId> {
    candidates.into_iter().max_by_key(|peer| (score(key, peer), *peer))
}

fn score(key: &[u8], peer: &PeerId) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(peer.public_key());
    hasher.update(key);
    let mut score = [0; 16];
    hasher.finalize_xof().fill(&mut score);
    score
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(count: u8) -> Vec<PeerId> {
        (0..count).map(|n| PeerId::from_public_key([n; 32])).collect()
    }

    #[test]
    fn order_of_candidates_does_not_matter_and_loads_are_even() {
        let mut reversed = peers(5);
        reversed.reverse();
        let mut load = [0u32; 5];
        for key in 0u32..5000 {
            let key = key.to_le_bytes();
            let ranking = rank(&key, peers(5));
            assert_eq!(ranking, rank(&key, reversed.clone()));
            assert_eq!(first(&key, peers(5)), ranking.first().copied());
            load[usize::from(ranking[0].public_key()[0])] += 1;
        }
        // 1,000 each expected, standard deviation 28: five of those either way.
        assert!(load.iter().all(|count| (860..1140).contains(count)), "{load:?}");
    }

    #[test]
    fn a_departure_moves_only_its_own_keys() {
        for key in 0u32..500 {
            let key = key.to_le_bytes();
            let before = rank(&key, peers(6));
            let after = rank(&key, peers(5));
            let gone = PeerId::from_public_key([5; 32]);
            assert_eq!(before.into_iter().filter(|p| *p != gone).collect::<Vec<_>>(), after);
        }
    }
}
