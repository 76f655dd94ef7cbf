//! Which source of a zone is asked for which piece first.

use shoal_types::{Digest, PeerId};

use super::zones::{score, seed};

/// The part of a blob that one of its owners gives a crowd, where all of them have all of it.
///
/// Rendezvous hashing, so that hosts that know the same owners agree without a word, and where one of them is gone only its own
/// share is dealt out anew.
#[derive(Debug)]
pub(crate) struct Share {
    own: u64,
    others: Vec<u64>,
}

impl Share {
    /// What of the blob `digest` is the share of `owner`, beside these others.
    pub(crate) fn new<'a>(
        digest: &Digest,
        owner: &PeerId,
        others: impl IntoIterator<Item = &'a PeerId>,
    ) -> Self {
        let others = others.into_iter().map(|other| seed(digest, other)).collect();
        Self { own: seed(digest, owner), others }
    }

    /// Whether `piece` is to be asked of this owner first.
    pub(crate) fn has(&self, piece: u32) -> bool {
        let own = score(self.own, piece);
        self.others.iter().all(|other| score(*other, piece) < own)
    }

    /// Among how many owners the blob is shared.
    pub(crate) fn owners(&self) -> usize {
        self.others.len().saturating_add(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_piece_is_in_one_share_and_stays_there_when_another_owner_is_gone() {
        let owners: Vec<PeerId> = (1..5u8).map(|n| PeerId::from_public_key([n; 32])).collect();
        let digest = Digest::sha256(b"x");
        let shares = |owners: &[PeerId]| -> Vec<Share> {
            let others = |owner| owners.iter().filter(move |other| *other != owner);
            owners.iter().map(|owner| Share::new(&digest, owner, others(owner))).collect()
        };
        let owner_of = |owners: &[PeerId], piece| -> PeerId {
            let having: Vec<usize> =
                shares(owners).iter().enumerate().filter(|(_, s)| s.has(piece)).map(|(n, _)| n).collect();
            assert_eq!(having.len(), 1, "piece {piece}");
            owners[having[0]]
        };
        let mut counts = [0; 4];
        for piece in 0..2000 {
            let owner = owner_of(&owners, piece);
            counts[owners.iter().position(|other| *other == owner).unwrap()] += 1;
            if owner != owners[3] {
                assert_eq!(owner_of(&owners[..3], piece), owner);
            }
        }
        // 500 expected, standard deviation 19.
        assert!(counts.iter().all(|count| (405..595).contains(count)), "{counts:?}");
        assert_eq!(shares(&owners)[0].owners(), 4);
    }
}
