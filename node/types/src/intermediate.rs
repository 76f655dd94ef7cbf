//! Intermediates: keys that issue credentials in the mesh's name, so that its root key can stay in a safe.

use crate::credential::{Credential, MeshKey, Roles, SignedCredential};
use crate::peer::{Keypair, PeerId};
use crate::signed::{Document, Signed};
use crate::time::WallTime;
use crate::zone::Zone;

/// What an issuing key may do. The mesh's root key signs it; there are no intermediates of intermediates.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Intermediate {
    /// The issuing key's public half, in the form of a peer id. No process runs under it.
    #[n(0)]
    pub key: PeerId,
    /// The roles it may give.
    #[n(1)]
    pub roles: Roles,
    /// The zones it may put processes in; empty for all.
    #[n(2)]
    pub zones: Vec<Zone>,
    /// The repository prefixes it may let processes push to; empty for all.
    #[n(3)]
    pub namespaces: Vec<String>,
    /// Its credentials are not valid before.
    #[n(4)]
    pub not_before: WallTime,
    /// Its credentials are not valid after: the key is of no use to a thief from then on.
    #[n(5)]
    pub not_after: WallTime,
}

impl Document for Intermediate {
    const DOMAIN: &'static str = "shoal/intermediate/1";
    const PAYLOAD_BYTES_MAX: usize = 768;
}

/// An intermediate with the root key's signature.
pub type SignedIntermediate = Signed<Intermediate>;

/// Why an issuing key may not issue a credential.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    /// It may not give these roles.
    #[error("the issuing key may give the roles {allowed}, not {wanted}")]
    Roles {
        /// What it may give.
        allowed: Roles,
        /// What was asked for.
        wanted: Roles,
    },
    /// It may not put processes there.
    #[error("the issuing key is not for the zone {0}")]
    Zone(Zone),
    /// It may not let processes push there.
    #[error("the issuing key may not allow pushes to {0}")]
    Namespace(String),
    /// The credential would be valid when the key is not.
    #[error(
        "the issuing key is valid from {not_before} to {not_after} (unix seconds): issue for a shorter time"
    )]
    Time {
        /// Start of its validity.
        not_before: WallTime,
        /// End of its validity.
        not_after: WallTime,
    },
    /// Another key signed the credential.
    #[error("the credential is not signed by its issuing key")]
    Signer,
}

impl Intermediate {
    /// Whether this key may issue `credential`.
    ///
    /// # Errors
    /// [`ScopeError`] says what is beyond it.
    pub fn check(&self, credential: &Credential) -> Result<(), ScopeError> {
        if !self.roles.contains_all(credential.roles) {
            return Err(ScopeError::Roles { allowed: self.roles, wanted: credential.roles });
        }
        if !self.zones.is_empty() && !self.zones.contains(&credential.zone) {
            return Err(ScopeError::Zone(credential.zone.clone()));
        }
        if !self.namespaces.is_empty() {
            if credential.namespaces.is_empty() {
                return Err(ScopeError::Namespace("all repositories".to_owned()));
            }
            let beyond = |wanted: &&String| !self.namespaces.iter().any(|own| is_within(wanted, own));
            if let Some(wanted) = credential.namespaces.iter().find(beyond) {
                return Err(ScopeError::Namespace(wanted.clone()));
            }
        }
        if credential.not_before < self.not_before || credential.not_after > self.not_after {
            let (not_before, not_after) = (self.not_before, self.not_after);
            return Err(ScopeError::Time { not_before, not_after });
        }
        Ok(())
    }
}

/// Whether a repository, or a prefix of repositories, lies within the prefix `outer`. Prefixes are whole path
/// components.
pub fn is_within(inner: &str, outer: &str) -> bool {
    let (inner, outer) = (inner.trim_end_matches('/'), outer.trim_end_matches('/'));
    inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl SignedIntermediate {
    /// Whether this key, within what it may do, signed `credential`.
    ///
    /// # Errors
    /// [`ScopeError`].
    pub fn vouches_for(&self, credential: &SignedCredential) -> Result<(), ScopeError> {
        if credential.signer() != self.value().key {
            return Err(ScopeError::Signer);
        }
        self.value().check(credential.value())
    }
}

/// A key that can issue credentials: the mesh's root key, or an intermediate's.
#[derive(Clone, Debug)]
pub enum IssuingKey {
    /// The root key.
    Root(MeshKey),
    /// An intermediate: its secret key and what the root key says of it.
    Intermediate(Keypair, SignedIntermediate),
}

impl IssuingKey {
    /// The id by which the key can be revoked; the root key cannot.
    pub fn id(&self) -> Option<PeerId> {
        match self {
            Self::Root(_) => None,
            Self::Intermediate(keypair, _) => Some(keypair.peer_id()),
        }
    }

    /// When its credentials end at the latest.
    pub fn not_after(&self) -> WallTime {
        match self {
            Self::Root(_) => WallTime::from_unix_millis(u64::MAX),
            Self::Intermediate(_, document) => document.value().not_after,
        }
    }

    /// Issues a credential; its `issuer` is filled in.
    ///
    /// # Errors
    /// [`ScopeError`]: the key may not.
    pub fn issue(&self, mut credential: Credential) -> Result<SignedCredential, ScopeError> {
        match self {
            Self::Root(key) => {
                credential.issuer = None;
                Ok(key.issue(credential))
            }
            Self::Intermediate(keypair, document) => {
                document.value().check(&credential)?;
                credential.issuer = Some(document.clone());
                Ok(Signed::sign(credential, keypair))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::{CredentialError, Role};

    fn millis(millis: u64) -> WallTime {
        WallTime::from_unix_millis(millis)
    }

    fn mesh() -> MeshKey {
        MeshKey::from_secret(&[1; 32])
    }

    fn intermediate(change: impl FnOnce(&mut Intermediate)) -> IssuingKey {
        let keypair = Keypair::from_secret(&[5; 32]);
        let mut document = Intermediate {
            key: keypair.peer_id(),
            roles: Roles::NONE.with(Role::Node).with(Role::Gateway),
            zones: vec!["eu".parse().unwrap()],
            namespaces: vec!["team/".to_owned()],
            not_before: millis(1_000),
            not_after: millis(9_000),
        };
        change(&mut document);
        IssuingKey::Intermediate(keypair, mesh().certify(document))
    }

    fn credential(change: impl FnOnce(&mut Credential)) -> Credential {
        let mut credential = Credential {
            peer: Keypair::from_secret(&[2; 32]).peer_id(),
            roles: Roles::NONE.with(Role::Node),
            zone: "eu".parse().unwrap(),
            namespaces: vec!["team/app".to_owned()],
            not_before: millis(2_000),
            not_after: millis(8_000),
            issuer: None,
        };
        change(&mut credential);
        credential
    }

    #[test]
    fn an_intermediate_s_credential_is_the_mesh_s() {
        let signed = intermediate(|_| ()).issue(credential(|_| ())).unwrap();
        let read = SignedCredential::from_bytes(&signed.to_bytes()).unwrap();
        assert_eq!(read, signed);
        let peer = signed.value().peer;
        assert_eq!(mesh().public().check(&read, peer, millis(5_000)), Ok(()));
        let other = MeshKey::from_secret(&[9; 32]).public();
        assert_eq!(other.check(&read, peer, millis(5_000)), Err(CredentialError::OtherMesh));
        assert!(signed.to_bytes().len() < 1024, "it fits a heartbeat: {} bytes", signed.to_bytes().len());
    }

    #[test]
    fn nothing_beyond_its_scope_is_issued_or_believed() {
        type Change = fn(&mut Credential);
        let cases: [(&str, Change); 6] = [
            ("roles", |credential| credential.roles = Roles::NONE.with(Role::Origin)),
            ("zone", |credential| credential.zone = "us".parse().unwrap()),
            ("namespace", |credential| credential.namespaces = vec!["teams".to_owned()]),
            ("all namespaces", |credential| credential.namespaces.clear()),
            ("too early", |credential| credential.not_before = millis(999)),
            ("too long", |credential| credential.not_after = millis(9_001)),
        ];
        let key = intermediate(|_| ());
        let IssuingKey::Intermediate(keypair, document) = &key else { unreachable!() };
        for (what, change) in cases {
            assert!(key.issue(credential(change)).is_err(), "{what}");
            // A thief of the key does not ask it.
            let mut beyond = credential(change);
            beyond.issuer = Some(document.clone());
            let forged = Signed::sign(beyond, keypair);
            let peer = forged.value().peer;
            let refused = mesh().public().check(&forged, peer, millis(5_000));
            assert!(matches!(refused, Err(CredentialError::Scope(_))), "{what}: {refused:?}");
            assert!(!mesh().public().signed(&forged), "{what}");
        }
        // Signed by another than the intermediate names, and an intermediate that no root key signed.
        let mut own = credential(|_| ());
        own.issuer = Some(document.clone());
        let stranger = Keypair::from_secret(&[7; 32]);
        assert!(!mesh().public().signed(&Signed::sign(own.clone(), &stranger)));
        own.issuer = Some(Signed::sign(document.value().clone(), &stranger));
        assert!(!mesh().public().signed(&Signed::sign(own, keypair)));
    }

    #[test]
    fn prefixes_are_whole_components() {
        assert!(is_within("team", "team") && is_within("team/app", "team/") && is_within("team/", "team"));
        assert!(!is_within("teams", "team") && !is_within("tea", "team"));
    }
}
