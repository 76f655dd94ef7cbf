//! Why handshakes are refused, and how often.

use std::sync::atomic::{AtomicU64, Ordering};

use shoal_types::{CredentialError, PeerId, SignedError};

/// Why the policy beyond the credential refuses a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It misbehaved lately.
    #[error("the peer is banned for now")]
    Banned,
    /// Its credential was revoked.
    #[error("the credential was revoked")]
    Revoked,
}

/// Why one handshake was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The certificate is not one of ours in form.
    #[error("malformed certificate: {0}")]
    Malformed(&'static str),
    /// The certificate is not within its time.
    #[error("the certificate is not valid now")]
    CertificateTime,
    /// A signature in the certificate does not verify.
    #[error("a signature of the certificate does not verify")]
    Signature,
    /// There is no credential in the certificate: a stranger.
    #[error("the certificate carries no credential of a mesh")]
    NoCredential,
    /// The credential does not decode or its signature does not verify.
    #[error("malformed credential")]
    CredentialMalformed(#[source] SignedError),
    /// The credential does not admit the peer.
    #[error("{peer} is not admitted: {why}")]
    Credential {
        /// Who showed it.
        peer: PeerId,
        /// What is wrong with it.
        #[source]
        why: CredentialError,
    },
    /// Somebody else than the peer dialled.
    #[error("dialled {expected}, but {found} answered")]
    OtherPeer {
        /// Who was dialled.
        expected: PeerId,
        /// Who answered.
        found: PeerId,
    },
    /// The handshake was for something else than this plane.
    #[error("the connection is not for this plane")]
    Plane,
    /// The policy refuses the peer.
    #[error("{peer} is refused: {why}")]
    Refused {
        /// Who.
        peer: PeerId,
        /// Why.
        #[source]
        why: Refusal,
    },
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident => $name:literal),* $(,)?) => {
        /// Kinds of [`Rejection`], for counting.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum RejectReason { $($(#[$doc])* $variant),* }

        impl RejectReason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name in metrics.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    };
}

reasons! {
    /// Not a certificate of ours in form.
    Malformed => "malformed",
    /// The certificate is outside its time.
    CertificateTime => "certificate_time",
    /// A signature does not verify.
    Signature => "signature",
    /// A stranger without credential.
    NoCredential => "no_credential",
    /// A credential that does not decode.
    CredentialMalformed => "credential_malformed",
    /// A credential of another mesh.
    OtherMesh => "other_mesh",
    /// A credential beyond what its intermediate may issue.
    Scope => "scope",
    /// Somebody else's credential.
    OtherHolder => "other_holder",
    /// The credential is not valid yet.
    NotYetValid => "not_yet_valid",
    /// The credential has expired.
    Expired => "expired",
    /// Another peer than the one dialled.
    OtherPeer => "other_peer",
    /// Not for this plane.
    Plane => "plane",
    /// Banned.
    Banned => "banned",
    /// Revoked.
    Revoked => "revoked",
}

impl Rejection {
    /// Its kind.
    pub fn reason(&self) -> RejectReason {
        match self {
            Self::Malformed(_) => RejectReason::Malformed,
            Self::CertificateTime => RejectReason::CertificateTime,
            Self::Signature => RejectReason::Signature,
            Self::NoCredential => RejectReason::NoCredential,
            Self::CredentialMalformed(_) => RejectReason::CredentialMalformed,
            Self::Credential { why, .. } => match why {
                CredentialError::Document(_) => RejectReason::CredentialMalformed,
                CredentialError::OtherMesh => RejectReason::OtherMesh,
                CredentialError::Scope(_) => RejectReason::Scope,
                CredentialError::OtherHolder { .. } => RejectReason::OtherHolder,
                CredentialError::NotYetValid { .. } => RejectReason::NotYetValid,
                CredentialError::Expired { .. } => RejectReason::Expired,
            },
            Self::OtherPeer { .. } => RejectReason::OtherPeer,
            Self::Plane => RejectReason::Plane,
            Self::Refused { why: Refusal::Banned, .. } => RejectReason::Banned,
            Self::Refused { why: Refusal::Revoked, .. } => RejectReason::Revoked,
        }
    }
}

/// How many handshakes were refused, by reason, since the start.
#[derive(Debug, Default)]
pub struct Rejections([AtomicU64; RejectReason::ALL.len()]);

impl Rejections {
    /// Counts one.
    pub fn count(&self, reason: RejectReason) {
        if let Some(counter) = self.0.get(reason as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many there were for `reason`.
    pub fn get(&self, reason: RejectReason) -> u64 {
        self.0.get(reason as usize).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// All counters.
    pub fn iter(&self) -> impl Iterator<Item = (RejectReason, u64)> + '_ {
        RejectReason::ALL.iter().map(|reason| (*reason, self.get(*reason)))
    }
}

/// The rejection behind a failed handshake's I/O error, when this side's verifier was what refused.
pub fn rejection_of(error: &std::io::Error) -> Option<&Rejection> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => {
            other.0.downcast_ref::<Rejection>()
        }
        _ => None,
    }
}
