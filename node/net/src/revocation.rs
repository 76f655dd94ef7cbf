//! The list of revocations in force, shared by everything that admits members.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::RwLock;
use shoal_types::{MeshPublicKey, PeerId, RevocationError, SignedCredential, SignedRevocations};

/// The newest list known. Cheap to clone; clones are the same list.
#[derive(Clone, Debug)]
pub struct Revocations(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    mesh: MeshPublicKey,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    list: Option<SignedRevocations>,
    keys: BTreeSet<PeerId>,
}

impl Revocations {
    /// No list yet, of the mesh `mesh`.
    pub fn new(mesh: MeshPublicKey) -> Self {
        Self(Arc::new(Inner { mesh, state: RwLock::default() }))
    }

    /// Takes in a list. Returns whether it is newer than the one in force, and therefore in force from now on.
    ///
    /// # Errors
    /// [`RevocationError`]: nothing changed. [`RevocationError::Old`] when a newer one is in force.
    pub fn offer(&self, list: &SignedRevocations) -> Result<bool, RevocationError> {
        self.0.mesh.check_revocations(list)?;
        let mut state = self.0.state.write();
        let known = state.list.as_ref().map_or(0, |known| known.value().version);
        let offered = list.value().version;
        if offered < known {
            return Err(RevocationError::Old { known, offered });
        }
        if state.list.is_some() && offered == known {
            return Ok(false);
        }
        state.keys = list.value().revoked.iter().map(|entry| entry.key).collect();
        state.list = Some(list.clone());
        Ok(true)
    }

    /// The list in force.
    pub fn current(&self) -> Option<SignedRevocations> {
        self.0.state.read().list.clone()
    }

    /// The version of the list in force; zero without one.
    pub fn version(&self) -> u64 {
        self.0.state.read().list.as_ref().map_or(0, |list| list.value().version)
    }

    /// Whether a credential is revoked: its holder's key, or the intermediate's that issued it.
    pub fn is_revoked(&self, peer: &PeerId, credential: &SignedCredential) -> bool {
        let state = self.0.state.read();
        state.keys.contains(peer) || state.keys.contains(&credential.signer())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_types::{MeshKey, RevocationList, Revoked, WallTime};

    #[test]
    fn the_newest_list_of_the_mesh_is_in_force() {
        let mesh = MeshKey::from_secret(&[1; 32]);
        let own = Revocations::new(mesh.public());
        let entry = |n: u8| Revoked {
            key: PeerId::from_public_key([n; 32]),
            until: WallTime::from_unix_millis(u64::MAX),
        };
        let one = RevocationList::default().with(&[entry(2)], WallTime::default()).unwrap();
        let two = one.with(&[entry(3)], WallTime::default()).unwrap();
        let (one, two) = (mesh.revoke(one), mesh.revoke(two));
        assert_eq!(own.offer(&two), Ok(true));
        assert_eq!(own.offer(&two), Ok(false));
        assert_eq!(own.offer(&one), Err(RevocationError::Old { known: 2, offered: 1 }));
        assert_eq!(own.current(), Some(two.clone()));
        let foreign = MeshKey::from_secret(&[9; 32]).revoke(two.value().clone());
        assert_eq!(own.offer(&foreign), Err(RevocationError::OtherMesh));
    }
}
