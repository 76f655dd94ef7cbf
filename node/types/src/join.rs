//! Join tokens: all that a machine needs to become a member with one command.
//!
//! A token holds the secret key of an intermediate that may issue credentials of one kind for a while. The machine
//! makes its own identity key, which never leaves it, and issues its own credential. So a token can be put into the
//! image of a fleet; whoever steals it can make members of that kind until it ends, and it can be revoked like any key.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::credential::{Credential, MeshPublicKey, Roles, SignedCredential};
use crate::intermediate::{IssuingKey, ScopeError, SignedIntermediate};
use crate::peer::{Keypair, PeerId};
use crate::signed::{decode_exact, encode_value};
use crate::time::WallTime;
use crate::zone::Zone;

/// How a token begins.
const PREFIX: &str = "shoaljoin1-";
/// Longest token in characters.
const TEXT_BYTES_MAX: usize = 8192;
/// Most doors a token names.
pub const DOORS_MAX: usize = 16;

#[derive(Clone, minicbor::Encode, minicbor::Decode)]
struct Body {
    #[n(0)]
    mesh: MeshPublicKey,
    #[n(1)]
    secret: minicbor::bytes::ByteArray<32>,
    #[n(2)]
    intermediate: SignedIntermediate,
    #[n(3)]
    roles: Roles,
    #[n(4)]
    zone: Zone,
    #[n(5)]
    namespaces: Vec<String>,
    #[n(6)]
    bootstrap: Vec<String>,
    #[n(7)]
    lifetime_millis: u64,
}

/// A join token. Its text form is a secret.
#[derive(Clone)]
pub struct JoinToken {
    body: Body,
}

/// The text is not a join token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a join token: {0}; shoal mesh join-token makes one")]
pub struct JoinTokenError(&'static str);

impl JoinToken {
    /// A token with `key`, which may issue what the token is for, and the doors to the mesh.
    ///
    /// # Errors
    /// [`ScopeError`]: the key is beyond the intermediate's own scope.
    pub fn new(
        mesh: MeshPublicKey,
        key: &Keypair,
        intermediate: SignedIntermediate,
        zone: Zone,
        bootstrap: Vec<String>,
        lifetime: Duration,
    ) -> Result<Self, ScopeError> {
        let scope = intermediate.value();
        if scope.key != key.peer_id() {
            return Err(ScopeError::Signer);
        }
        if !scope.zones.is_empty() && !scope.zones.contains(&zone) {
            return Err(ScopeError::Zone(zone));
        }
        let (roles, namespaces) = (scope.roles, scope.namespaces.clone());
        let lifetime_millis = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
        let secret = key.secret().into();
        let body = Body { mesh, secret, intermediate, roles, zone, namespaces, bootstrap, lifetime_millis };
        Ok(Self { body })
    }

    /// The mesh it leads into.
    pub fn mesh(&self) -> MeshPublicKey {
        self.body.mesh
    }

    /// Doors to it, as `--bootstrap` takes them.
    pub fn bootstrap(&self) -> &[String] {
        &self.body.bootstrap
    }

    /// When it ends.
    pub fn not_after(&self) -> WallTime {
        self.body.intermediate.value().not_after
    }

    /// The issuing key in it.
    pub fn issuing_key(&self) -> IssuingKey {
        IssuingKey::Intermediate(Keypair::from_secret(&self.body.secret), self.body.intermediate.clone())
    }

    /// A credential for `peer`, from `now` for as long as the token says, but no longer than it lasts itself.
    ///
    /// # Errors
    /// [`ScopeError::Time`]: the token has expired, or is not valid yet.
    pub fn issue(&self, peer: PeerId, now: WallTime) -> Result<SignedCredential, ScopeError> {
        let scope = self.body.intermediate.value();
        if now > scope.not_after {
            return Err(ScopeError::Time { not_before: scope.not_before, not_after: scope.not_after });
        }
        let lifetime = Duration::from_millis(self.body.lifetime_millis);
        self.issuing_key().issue(Credential {
            peer,
            roles: self.body.roles,
            zone: self.body.zone.clone(),
            namespaces: self.body.namespaces.clone(),
            not_before: now,
            not_after: now.saturating_add(lifetime).min(scope.not_after),
            issuer: None,
        })
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", data_encoding::BASE64URL_NOPAD.encode(&encode_value(&self.body)))
    }
}

/// Nothing of the secret.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("mesh", &self.body.mesh)
            .field("roles", &self.body.roles)
            .finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = JoinTokenError;

    fn from_str(text: &str) -> Result<Self, JoinTokenError> {
        let text = text.trim();
        if text.len() > TEXT_BYTES_MAX {
            return Err(JoinTokenError("too long"));
        }
        let coded = text.strip_prefix(PREFIX).ok_or(JoinTokenError("it begins otherwise"))?;
        let bytes = data_encoding::BASE64URL_NOPAD.decode(coded.as_bytes());
        let bytes = bytes.map_err(|_| JoinTokenError("a part of it is missing"))?;
        let body: Body = decode_exact(&bytes).map_err(|_| JoinTokenError("a part of it is missing"))?;
        let own = Keypair::from_secret(&body.secret).peer_id() == body.intermediate.value().key;
        if !own || body.intermediate.signer().public_key() != body.mesh.key() {
            return Err(JoinTokenError("its parts do not belong together"));
        }
        if body.bootstrap.len() > DOORS_MAX {
            return Err(JoinTokenError("too many doors"));
        }
        Ok(Self { body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::{MeshKey, Role};
    use crate::intermediate::Intermediate;
    use proptest::prelude::*;

    fn token() -> JoinToken {
        let mesh = MeshKey::from_secret(&[1; 32]);
        let key = Keypair::from_secret(&[5; 32]);
        let zone: Zone = "eu".parse().unwrap();
        let intermediate = mesh.certify(Intermediate {
            key: key.peer_id(),
            roles: Roles::NONE.with(Role::Node),
            zones: vec![zone.clone()],
            namespaces: vec![],
            not_before: WallTime::from_unix_millis(1_000),
            not_after: WallTime::from_unix_millis(9_000),
        });
        let doors = vec!["/ip4/10.0.0.1/tcp/4001".to_owned()];
        JoinToken::new(mesh.public(), &key, intermediate, zone, doors, Duration::from_millis(5_000)).unwrap()
    }

    #[test]
    fn a_token_makes_members_while_it_lasts() {
        let text = token().to_string();
        let read: JoinToken = format!(" {text}\n").parse().unwrap();
        assert_eq!(read.bootstrap(), ["/ip4/10.0.0.1/tcp/4001"]);
        let peer = Keypair::from_secret(&[2; 32]).peer_id();
        let at = WallTime::from_unix_millis;
        let early = read.issue(peer, at(2_000)).unwrap();
        assert_eq!(early.value().not_after, at(7_000));
        assert_eq!(read.mesh().check(&early, peer, at(6_000)), Ok(()));
        assert_eq!(
            read.issue(peer, at(8_000)).unwrap().value().not_after,
            at(9_000),
            "no longer than the token"
        );
        assert!(read.issue(peer, at(9_001)).is_err() && read.issue(peer, at(999)).is_err());
        assert!(!format!("{read:?}").contains("secret"));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let text = token().to_string();
        for bad in ["", "shoaljoin1-", &text[..text.len() - 3], &text[3..]] {
            assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
        }
        let mut body = token().body;
        body.mesh = MeshKey::from_secret(&[9; 32]).public();
        assert!(JoinToken { body }.to_string().parse::<JoinToken>().is_err(), "another mesh's");
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,200}") {
            let _ = text.parse::<JoinToken>();
            let _ = format!("{PREFIX}{text}").parse::<JoinToken>();
        }
    }
}
