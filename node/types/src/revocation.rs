//! Revocations: whose credentials are worth nothing any more, as the mesh's root key says.

use crate::credential::{MeshKey, MeshPublicKey};
use crate::peer::PeerId;
use crate::signed::{Document, Signed, SignedError};
use crate::time::WallTime;

/// Most entries of a list. An entry is needed until the last credential of its key has expired.
pub const REVOKED_MAX: usize = 4096;

/// One key that is not to be believed: a process's identity, or an intermediate's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, minicbor::Encode, minicbor::Decode)]
pub struct Revoked {
    /// Whose.
    #[n(0)]
    pub key: PeerId,
    /// When the last of its credentials expires: the entry may be dropped from later lists.
    #[n(1)]
    pub until: WallTime,
}

/// The whole list of a mesh. A list replaces every older one.
#[derive(Clone, Debug, Default, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct RevocationList {
    /// Greater than that of every list before.
    #[n(0)]
    pub version: u64,
    /// When it was made.
    #[n(1)]
    pub issued: WallTime,
    /// The keys, in ascending order, each once.
    #[n(2)]
    pub revoked: Vec<Revoked>,
}

impl Document for RevocationList {
    const DOMAIN: &'static str = "shoal/revocations/1";
    /// [`REVOKED_MAX`] entries of 45 bytes, and a little.
    const PAYLOAD_BYTES_MAX: usize = 192 * 1024;
}

/// A list with the root key's signature.
pub type SignedRevocations = Signed<RevocationList>;

/// Most bytes of a signed list.
pub const REVOCATIONS_BYTES_MAX: usize = RevocationList::PAYLOAD_BYTES_MAX + 128;

/// Why a list is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevocationError {
    /// It is malformed or its signature does not verify.
    #[error(transparent)]
    Document(#[from] SignedError),
    /// Another key than this mesh's root key signed it.
    #[error("the list of revocations is of another mesh")]
    OtherMesh,
    /// Its entries are out of order or too many.
    #[error("the list of revocations is malformed")]
    Malformed,
    /// A newer one is known.
    #[error("the list of revocations has version {offered}, but version {known} is in force")]
    Old {
        /// The version of the list in force.
        known: u64,
        /// The version of the list that was offered.
        offered: u64,
    },
    /// It would have more than [`REVOKED_MAX`] entries.
    #[error("the list of revocations is full: {REVOKED_MAX} keys")]
    Full,
}

impl RevocationList {
    /// The list after this one, with more keys in it and without those whose time is over.
    ///
    /// # Errors
    /// [`RevocationError::Full`].
    pub fn with(&self, keys: &[Revoked], now: WallTime) -> Result<Self, RevocationError> {
        let mut revoked: Vec<Revoked> =
            self.revoked.iter().chain(keys).filter(|entry| entry.until >= now).copied().collect();
        // The latest end of each key first, so that it is the one that stays.
        revoked.sort_by(|one, other| one.key.cmp(&other.key).then(other.until.cmp(&one.until)));
        revoked.dedup_by_key(|entry| entry.key);
        if revoked.len() > REVOKED_MAX {
            return Err(RevocationError::Full);
        }
        Ok(Self { version: self.version.saturating_add(1), issued: now, revoked })
    }
}

impl MeshKey {
    /// Signs a list.
    pub fn revoke(&self, list: RevocationList) -> SignedRevocations {
        self.sign(list)
    }
}

impl MeshPublicKey {
    /// Checks a list that somebody passed on.
    ///
    /// # Errors
    /// [`RevocationError`]: whoever sent it is broken or hostile.
    pub fn check_revocations(&self, list: &SignedRevocations) -> Result<(), RevocationError> {
        if list.signer().public_key() != self.key() {
            return Err(RevocationError::OtherMesh);
        }
        let revoked = &list.value().revoked;
        let ordered = revoked.windows(2).all(|pair| matches!(pair, [one, other] if one.key < other.key));
        if revoked.len() > REVOKED_MAX || !ordered {
            return Err(RevocationError::Malformed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::Keypair;

    fn entry(n: u8, until: u64) -> Revoked {
        Revoked { key: PeerId::from_public_key([n; 32]), until: WallTime::from_unix_millis(until) }
    }

    #[test]
    fn lists_grow_and_forget_what_has_expired() {
        let now = WallTime::from_unix_millis(100);
        let one = RevocationList::default().with(&[entry(3, 200), entry(1, 150)], now).unwrap();
        assert_eq!((one.version, &one.revoked), (1, &vec![entry(1, 150), entry(3, 200)]));
        let later = WallTime::from_unix_millis(160);
        let two = one.with(&[entry(3, 180), entry(2, 300)], later).unwrap();
        assert_eq!((two.version, &two.revoked), (2, &vec![entry(2, 300), entry(3, 200)]));
    }

    #[test]
    fn only_the_root_key_s_well_formed_list_is_believed() {
        let mesh = MeshKey::from_secret(&[1; 32]);
        let list =
            RevocationList::default().with(&[entry(3, 200), entry(1, 150)], WallTime::default()).unwrap();
        let signed = mesh.revoke(list.clone());
        let read = SignedRevocations::from_bytes(&signed.to_bytes()).unwrap();
        assert_eq!(mesh.public().check_revocations(&read), Ok(()));
        let forged = Signed::sign(list.clone(), &Keypair::from_secret(&[2; 32]));
        assert_eq!(mesh.public().check_revocations(&forged), Err(RevocationError::OtherMesh));
        let twice = RevocationList { revoked: vec![entry(1, 1), entry(1, 2)], ..list };
        assert_eq!(mesh.public().check_revocations(&mesh.revoke(twice)), Err(RevocationError::Malformed));
    }

    #[test]
    fn bounded() {
        let many: Vec<Revoked> = (0..=u32::try_from(REVOKED_MAX).unwrap())
            .map(|n| {
                let mut key = [0; 32];
                key[..4].copy_from_slice(&n.to_be_bytes());
                Revoked { key: PeerId::from_public_key(key), until: WallTime::from_unix_millis(u64::MAX) }
            })
            .collect();
        let list = RevocationList::default();
        assert_eq!(list.with(&many, WallTime::default()), Err(RevocationError::Full));
        let full = list.with(&many[1..], WallTime::default()).unwrap();
        let signed = MeshKey::from_secret(&[1; 32]).revoke(full);
        assert!(signed.to_bytes().len() <= REVOCATIONS_BYTES_MAX);
        assert!(SignedRevocations::from_bytes(&signed.to_bytes()).is_ok());
    }
}
