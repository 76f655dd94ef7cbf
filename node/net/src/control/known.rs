//! Peers remembered for the next start: with them a mesh comes up again though every bootstrap peer is dead.

use std::collections::BTreeMap;

use libp2p::Multiaddr;
use minicbor::bytes::ByteVec;
use shoal_types::{PeerId, WallTime};

use super::addr;
use super::persist::KnownPeer;

/// Addresses remembered of one peer at most.
const ADDRESSES_MAX: usize = 8;

/// A bounded table, which forgets the peer seen longest ago.
#[derive(Debug)]
pub(crate) struct KnownPeers {
    most: usize,
    peers: BTreeMap<PeerId, (WallTime, Vec<Multiaddr>)>,
    changed: bool,
}

impl KnownPeers {
    pub(crate) fn new(most: usize, stored: Vec<KnownPeer>) -> Self {
        let mut own = Self { most, peers: BTreeMap::new(), changed: false };
        for known in stored.into_iter().take(most) {
            let addresses = known.addresses.iter().filter_map(|a| Multiaddr::try_from(a.to_vec()).ok());
            own.saw(known.peer, addresses.collect(), known.seen);
        }
        own.changed = false;
        own
    }

    /// Number of peers.
    pub(crate) fn len(&self) -> usize {
        self.peers.len()
    }

    /// A peer is connected and can be dialled at `addresses`; what is not for the control plane is left out.
    pub(crate) fn saw(&mut self, peer: PeerId, mut addresses: Vec<Multiaddr>, wall: WallTime) {
        addresses.retain(addr::is_control_address);
        addresses.truncate(ADDRESSES_MAX);
        if addresses.is_empty() || self.most == 0 {
            return;
        }
        self.peers.insert(peer, (wall, addresses));
        self.changed = true;
        if self.peers.len() > self.most {
            let oldest = self.peers.iter().min_by_key(|(peer, (seen, _))| (*seen, **peer));
            if let Some(oldest) = oldest.map(|(peer, _)| *peer) {
                self.peers.remove(&oldest);
            }
        }
    }

    /// All peers, most recently seen first.
    pub(crate) fn recent(&self) -> Vec<(PeerId, Vec<Multiaddr>)> {
        let mut peers: Vec<_> = self.peers.iter().collect();
        peers.sort_by_key(|(peer, (seen, _))| (std::cmp::Reverse(*seen), **peer));
        peers.into_iter().map(|(peer, (_, addresses))| (*peer, addresses.clone())).collect()
    }

    /// The list to be remembered, if it changed since last asked.
    pub(crate) fn take_changed(&mut self) -> Option<Vec<KnownPeer>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let stored = self.recent().into_iter().map(|(peer, addresses)| KnownPeer {
            peer,
            addresses: addresses.iter().map(|a| ByteVec::from(a.to_vec())).collect(),
            seen: self.peers.get(&peer).map(|(seen, _)| *seen).unwrap_or_default(),
        });
        Some(stored.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_most_recent_and_round_trips() {
        let at: Multiaddr = "/ip4/10.0.0.1/tcp/4001".parse().unwrap();
        let data: Multiaddr = "/ip4/10.0.0.1/tcp/4002/tls".parse().unwrap();
        let peer = |n| PeerId::from_public_key([n; 32]);
        let mut known = KnownPeers::new(3, vec![]);
        assert_eq!(known.take_changed(), None);
        for n in 1..=5u8 {
            known.saw(peer(n), vec![data.clone(), at.clone()], WallTime::from_unix_millis(u64::from(n)));
        }
        known.saw(peer(9), vec![data], WallTime::from_unix_millis(99));
        let recent: Vec<_> = known.recent().into_iter().map(|(peer, _)| peer).collect();
        assert_eq!(
            recent,
            [peer(5), peer(4), peer(3)],
            "the bound holds and a peer without address is left out"
        );
        let stored = known.take_changed().unwrap();
        assert_eq!(known.take_changed(), None);
        let again = KnownPeers::new(3, stored);
        assert_eq!(again.recent(), known.recent());
        assert_eq!(again.recent()[0].1, [at]);
    }
}
