//! Where members can be reached, as far as this process has heard.

use indexmap::IndexMap;
use parking_lot::Mutex;
use shoal_types::{Endpoint, PeerId, Roles, Zone};

/// Most members remembered (about 200 bytes each).
pub const MEMBERS_MAX: usize = 20_000;

/// What is known of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its zone.
    pub zone: Zone,
    /// Its roles.
    pub roles: Roles,
    /// Where its data plane is dialled.
    pub endpoints: Vec<Endpoint>,
}

/// The members heard of, oldest news first.
#[derive(Debug, Default)]
pub struct Directory(Mutex<IndexMap<PeerId, Member>>);

impl Directory {
    /// Remembers a member; the one not heard of for the longest time makes room.
    pub fn note(&self, peer: PeerId, member: Member) {
        let mut members = self.0.lock();
        members.shift_remove(&peer);
        if members.len() >= MEMBERS_MAX {
            members.shift_remove_index(0);
        }
        members.insert(peer, member);
    }

    /// What is known of `peer`.
    pub fn get(&self, peer: &PeerId) -> Option<Member> {
        self.0.lock().get(peer).cloned()
    }

    /// The most recently heard of members, at most `limit`.
    pub fn recent(&self, limit: usize) -> Vec<(PeerId, Member)> {
        self.0.lock().iter().rev().take(limit).map(|(peer, member)| (*peer, member.clone())).collect()
    }

    /// Number of members remembered.
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// Whether no member is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_news_comes_first_and_room_is_bounded() {
        let directory = Directory::default();
        let member = Member { zone: Zone::default(), roles: Roles::NONE, endpoints: vec![] };
        let peer = |n: u32| {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&n.to_le_bytes());
            PeerId::from_public_key(key)
        };
        for n in 0..=MEMBERS_MAX as u32 {
            directory.note(peer(n), member.clone());
        }
        assert_eq!(directory.len(), MEMBERS_MAX);
        assert_eq!(directory.get(&peer(0)), None);
        directory.note(peer(5), member);
        assert_eq!(directory.recent(1)[0].0, peer(5));
    }
}
