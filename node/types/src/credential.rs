//! Credentials: what makes a process a member of a mesh.
//!
//! The mesh's root key signs one for each process; it travels inside the process's TLS certificate and is checked
//! while a connection opens, before any protocol runs.

use std::fmt;
use std::str::FromStr;

use crate::cbor::text_forms;
use crate::intermediate::{Intermediate, ScopeError, SignedIntermediate};
use crate::peer::{KeyText, Keypair, PeerId, PeerIdParseError};
use crate::signed::{Document, Signed, SignedError};
use crate::time::WallTime;
use crate::zone::Zone;

/// What a process may be in its mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A door: DHT and gossip entry point.
    Bootstrap,
    /// Caches and seeds.
    Node,
    /// Serves the OCI API and may push.
    Gateway,
    /// Vouches for metainfo and tags; durable storage.
    Origin,
}

impl Role {
    /// All roles, in the order of their bits.
    pub const ALL: [Self; 4] = [Self::Bootstrap, Self::Node, Self::Gateway, Self::Origin];

    /// The name in configuration and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bootstrap => "bootstrap",
            Self::Node => "node",
            Self::Gateway => "gateway",
            Self::Origin => "origin",
        }
    }

    fn bit(self) -> u8 {
        match self {
            Self::Bootstrap => 1,
            Self::Node => 2,
            Self::Gateway => 4,
            Self::Origin => 8,
        }
    }
}

/// A set of roles. Text form: names joined by commas.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, minicbor::Encode, minicbor::Decode,
)]
#[cbor(transparent)]
pub struct Roles(#[n(0)] u8);

impl Roles {
    /// No roles.
    pub const NONE: Self = Self(0);

    /// This set with `role` added.
    #[must_use]
    pub fn with(self, role: Role) -> Self {
        Self(self.0 | role.bit())
    }

    /// Whether `role` is in the set.
    pub fn contains(self, role: Role) -> bool {
        self.0 & role.bit() != 0
    }

    /// Whether every role of `other` is in the set.
    pub fn contains_all(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The roles in the set.
    pub fn iter(self) -> impl Iterator<Item = Role> {
        Role::ALL.into_iter().filter(move |role| self.contains(*role))
    }
}

impl FromIterator<Role> for Roles {
    fn from_iter<I: IntoIterator<Item = Role>>(roles: I) -> Self {
        roles.into_iter().fold(Self::NONE, Self::with)
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(Role::name).collect();
        f.write_str(&names.join(","))
    }
}

/// The text names something that is not a role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a role: {0:?}; roles are bootstrap, node, gateway and origin")]
pub struct RoleParseError(String);

impl FromStr for Roles {
    type Err = RoleParseError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split(',')
            .map(|name| {
                let name = name.trim();
                Role::ALL
                    .into_iter()
                    .find(|role| role.name() == name)
                    .ok_or_else(|| RoleParseError(name.chars().take(40).collect()))
            })
            .collect()
    }
}

/// What the mesh's root key says of one process.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Credential {
    /// Whose credential it is.
    #[n(0)]
    pub peer: PeerId,
    /// What it may be.
    #[n(1)]
    pub roles: Roles,
    /// Where it is.
    #[n(2)]
    pub zone: Zone,
    /// Repository prefixes it may push to; empty for all.
    #[n(3)]
    pub namespaces: Vec<String>,
    /// Not valid before.
    #[n(4)]
    pub not_before: WallTime,
    /// Not valid after.
    #[n(5)]
    pub not_after: WallTime,
    /// The intermediate that signed it; `None` when the root key did.
    #[n(6)]
    pub issuer: Option<SignedIntermediate>,
}

impl Document for Credential {
    const DOMAIN: &'static str = "shoal/credential/1";
    const PAYLOAD_BYTES_MAX: usize = 2048;
}

/// A credential with its issuer's signature.
pub type SignedCredential = Signed<Credential>;

/// Why a credential does not admit its holder.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// It is malformed or its signature does not verify.
    #[error(transparent)]
    Document(#[from] SignedError),
    /// Another mesh's key signed it.
    #[error("the credential is of another mesh")]
    OtherMesh,
    /// An intermediate of this mesh signed what it may not.
    #[error("the credential is worth nothing: {0}")]
    Scope(ScopeError),
    /// It was issued to another key than its holder's.
    #[error("the credential was issued to {issued_to}, but {holder} shows it")]
    OtherHolder {
        /// The peer in the credential.
        issued_to: PeerId,
        /// The peer that shows it.
        holder: PeerId,
    },
    /// It is not valid yet: issued just now by a machine whose clock is ahead, or this clock is behind.
    #[error(
        "the credential is not valid before {not_before} (unix seconds), now is {now}: check both clocks"
    )]
    NotYetValid {
        /// Start of its validity.
        not_before: WallTime,
        /// The verifier's time.
        now: WallTime,
    },
    /// It has expired.
    #[error("the credential expired at {not_after} (unix seconds), now is {now}: issue a new one")]
    Expired {
        /// End of its validity.
        not_after: WallTime,
        /// The verifier's time.
        now: WallTime,
    },
}

/// The secret root key of a mesh.
#[derive(Clone, Debug)]
pub struct MeshKey(Keypair);

impl MeshKey {
    /// The key made from 32 secret bytes of the operating system's randomness.
    pub fn from_secret(secret: &[u8; 32]) -> Self {
        Self(Keypair::from_secret(secret))
    }

    /// The 32 secret bytes, for writing the key file.
    pub fn secret(&self) -> [u8; 32] {
        self.0.secret()
    }

    /// The public half, which every member holds.
    pub fn public(&self) -> MeshPublicKey {
        MeshPublicKey(*self.0.peer_id().public_key())
    }

    /// Signs what an issuing key may do.
    pub fn certify(&self, intermediate: Intermediate) -> SignedIntermediate {
        self.sign(intermediate)
    }

    pub(crate) fn sign<T: Document>(&self, document: T) -> Signed<T> {
        Signed::sign(document, &self.0)
    }

    /// Issues a credential.
    pub fn issue(&self, credential: Credential) -> SignedCredential {
        Signed::sign(credential, &self.0)
    }
}

/// The public root key of a mesh. Text form: `shoal1` and lower-case base32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeshPublicKey([u8; 32]);

impl MeshPublicKey {
    /// The mesh whose root key signed something, such as an intermediate.
    pub fn of_signer(signer: PeerId) -> Self {
        Self(*signer.public_key())
    }

    pub(crate) fn key(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether this mesh's root key, or an intermediate of it within its scope, signed `credential`, whoever shows it
    /// and whenever.
    pub fn signed(&self, credential: &SignedCredential) -> bool {
        self.check_issuer(credential).is_ok()
    }

    fn check_issuer(&self, credential: &SignedCredential) -> Result<(), CredentialError> {
        let root = match &credential.value().issuer {
            None => credential.signer(),
            Some(intermediate) => intermediate.signer(),
        };
        if root.public_key() != &self.0 {
            return Err(CredentialError::OtherMesh);
        }
        match &credential.value().issuer {
            None => Ok(()),
            Some(intermediate) => intermediate.vouches_for(credential).map_err(CredentialError::Scope),
        }
    }

    /// Checks that `credential` is of this mesh, issued to `holder`, and valid at `now`.
    ///
    /// # Errors
    /// [`CredentialError`]: the holder is not admitted.
    pub fn check(
        &self,
        credential: &SignedCredential,
        holder: PeerId,
        now: WallTime,
    ) -> Result<(), CredentialError> {
        self.check_issuer(credential)?;
        let inner = credential.value();
        if inner.peer != holder {
            return Err(CredentialError::OtherHolder { issued_to: inner.peer, holder });
        }
        if now < inner.not_before {
            return Err(CredentialError::NotYetValid { not_before: inner.not_before, now });
        }
        if now > inner.not_after {
            return Err(CredentialError::Expired { not_after: inner.not_after, now });
        }
        Ok(())
    }
}

impl fmt::Display for MeshPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&KeyText(self.0), f)
    }
}

impl fmt::Debug for MeshPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MeshPublicKey {
    type Err = PeerIdParseError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<KeyText>().map(|key| Self(key.0))
    }
}

text_forms!(MeshPublicKey);

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: WallTime = WallTime::from_unix_millis(1_000_000);

    fn credential(peer: PeerId) -> Credential {
        Credential {
            peer,
            roles: [Role::Node, Role::Gateway].into_iter().collect(),
            zone: Zone::default(),
            namespaces: vec![],
            not_before: WallTime::from_unix_millis(500_000),
            not_after: WallTime::from_unix_millis(2_000_000),
            issuer: None,
        }
    }

    #[test]
    fn admits_its_holder_only_within_its_time() {
        let mesh = MeshKey::from_secret(&[1; 32]);
        let holder = Keypair::from_secret(&[2; 32]).peer_id();
        let other = Keypair::from_secret(&[3; 32]).peer_id();
        let signed = mesh.issue(credential(holder));
        let signed = SignedCredential::from_bytes(&signed.to_bytes()).unwrap();
        let public = mesh.public();
        assert_eq!(public.check(&signed, holder, NOW), Ok(()));
        assert!(matches!(public.check(&signed, other, NOW), Err(CredentialError::OtherHolder { .. })));
        let early = WallTime::from_unix_millis(499_999);
        assert!(matches!(public.check(&signed, holder, early), Err(CredentialError::NotYetValid { .. })));
        let late = WallTime::from_unix_millis(2_000_001);
        assert!(matches!(public.check(&signed, holder, late), Err(CredentialError::Expired { .. })));
        let stranger = MeshKey::from_secret(&[9; 32]);
        assert_eq!(stranger.public().check(&signed, holder, NOW), Err(CredentialError::OtherMesh));
    }

    #[test]
    fn text_forms_round_trip() {
        let public = MeshKey::from_secret(&[1; 32]).public();
        assert_eq!(public.to_string().parse::<MeshPublicKey>().unwrap(), public);
        let roles: Roles = "node,origin".parse().unwrap();
        assert_eq!(roles.to_string(), "node,origin");
        assert!(roles.contains(Role::Origin) && !roles.contains(Role::Gateway));
        assert!("node,king".parse::<Roles>().is_err());
    }
}
