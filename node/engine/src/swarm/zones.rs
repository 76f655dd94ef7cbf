//! Who of a zone fetches which piece across the link.

use shoal_types::{Digest, PeerId};

/// Somebody of the zone who lacks pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Importer {
    /// Origins come before all others: every host of a zone knows its origins, and hardly any knows all hosts.
    pub(crate) origin: bool,
    pub(crate) peer: PeerId,
}

/// The zone's members of one swarm, and this process's rank among them for each piece.
///
/// The ranking is rendezvous hashing with a mixing function in place of a cryptographic hash: it is computed for
/// every piece and member whenever one comes or goes, and nobody gains by bending it.
#[derive(Debug, Default)]
pub(crate) struct ZoneRanks {
    members: Vec<Importer>,
    ranks: Vec<u8>,
    local_origin: bool,
    /// Who comes first for each piece: a place in `members`, or [`OWN`].
    importers: Vec<u8>,
}

/// This process itself, among the importers.
const OWN: u8 = u8::MAX;

impl ZoneRanks {
    /// Computes the ranks anew when `members` (others of the zone that still lack pieces) differ from before.
    pub(crate) fn update(&mut self, digest: &Digest, local: Importer, members: Vec<Importer>, pieces: u32) {
        if self.members == members && self.ranks.len() == pieces as usize {
            return;
        }
        let seed = |importer: &Importer| (importer.origin, seed(digest, &importer.peer));
        let own = seed(&local);
        let others: Vec<(bool, u64)> = members.iter().map(seed).collect();
        let ranked = (0..pieces).map(|piece| {
            let score = |(origin, seed)| (origin, score(seed, piece));
            let mine = score(own);
            let (mut above, mut first) = (0u8, (mine, OWN));
            for (other, place) in others.iter().zip(0u8..) {
                let theirs = score(*other);
                above = above.saturating_add(u8::from(theirs > mine));
                first = first.max((theirs, place));
            }
            (above, first.1)
        });
        (self.ranks, self.importers) = ranked.unzip();
        self.members = members;
        self.local_origin = local.origin;
    }

    /// How many of the zone come before this process for `piece`; zero makes it the importer.
    pub(crate) fn rank(&self, piece: u32) -> u8 {
        self.ranks.get(piece as usize).copied().unwrap_or(0)
    }

    /// Who is to import `piece`; this process itself has no place among the members.
    pub(crate) fn importer(&self, piece: u32) -> Option<usize> {
        self.importers.get(piece as usize).filter(|place| **place != OWN).map(|place| usize::from(*place))
    }

    /// How many others there are.
    pub(crate) fn others(&self) -> usize {
        self.members.len()
    }

    /// How many others are importers of anything: only the origins, where there are some.
    pub(crate) fn other_importers(&self) -> usize {
        let origin = self.local_origin || self.members.iter().any(|member| member.origin);
        self.members.iter().filter(|member| member.origin == origin).count()
    }
}

/// What a peer's scores for the pieces of a blob are made of.
pub(super) fn seed(digest: &Digest, peer: &PeerId) -> u64 {
    mix(word(peer.public_key()) ^ word(digest.as_bytes()))
}

/// Whose score is the greatest comes first for a piece.
pub(super) fn score(seed: u64, piece: u32) -> u64 {
    mix(seed ^ u64::from(piece).rotate_left(32))
}

fn word(bytes: &[u8]) -> u64 {
    bytes.first_chunk::<8>().map_or(0, |head| u64::from_le_bytes(*head))
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(peer: PeerId) -> Importer {
        Importer { origin: false, peer }
    }

    #[test]
    fn origins_come_before_all_others() {
        let [a, b, c] = [1u8, 2, 3].map(|n| host(PeerId::from_public_key([n; 32])));
        let [a, b] = [a, b].map(|host| Importer { origin: true, ..host });
        let digest = Digest::sha256(b"x");
        let (mut of_a, mut of_c) = (ZoneRanks::default(), ZoneRanks::default());
        of_a.update(&digest, a, vec![b, c], 400);
        of_c.update(&digest, c, vec![a, b], 400);
        assert!((0..400).all(|piece| of_a.rank(piece) <= 1 && of_c.rank(piece) == 2));
        let share = (0..400).filter(|piece| of_a.rank(*piece) == 0).count();
        // 200 expected, standard deviation 10.
        assert!((150..250).contains(&share), "{share}");
    }

    #[test]
    fn each_piece_has_one_importer_and_loads_are_even() {
        let peers: Vec<PeerId> = (0..8u8).map(|n| PeerId::from_public_key([n + 1; 32])).collect();
        let digest = Digest::sha256(b"x");
        let ranks: Vec<ZoneRanks> = peers
            .iter()
            .map(|local| {
                let others = peers.iter().filter(|peer| *peer != local).map(|peer| host(*peer)).collect();
                let mut ranks = ZoneRanks::default();
                ranks.update(&digest, host(*local), others, 4000);
                ranks
            })
            .collect();
        for piece in 0..4000 {
            let mut all: Vec<u8> = ranks.iter().map(|own| own.rank(piece)).collect();
            all.sort_unstable();
            assert_eq!(all, [0, 1, 2, 3, 4, 5, 6, 7]);
            let first = peers.iter().zip(&ranks).find(|(_, own)| own.rank(piece) == 0).map(|(peer, _)| peer);
            for (local, own) in peers.iter().zip(&ranks) {
                let importer = own.importer(piece).map_or(local, |place| &own.members[place].peer);
                assert_eq!(Some(importer), first);
            }
        }
        for own in &ranks {
            let load = (0..4000).filter(|piece| own.rank(*piece) == 0).count();
            // 500 expected, standard deviation 21.
            assert!((395..605).contains(&load), "{load}");
        }
    }
}
