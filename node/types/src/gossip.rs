//! What gossip carries: news for all members, never anything per piece or per pull.

use crate::credential::SignedCredential;
use crate::digest::Digest;
use crate::endpoint::Endpoint;
use crate::peer::PeerId;
use crate::record::{RecordKind, SignedRecord};
use crate::reference::ImageReference;
use crate::signed::{Document, Signed, SignedError};
use crate::time::WallTime;

/// Largest gossip message in bytes (1,000 × 8 connections relay it: `docs/PROTOCOL.md`, "Gossip").
pub const GOSSIP_BYTES_MAX: usize = 2048;
/// Most endpoints a heartbeat may name.
pub const ENDPOINTS_MAX: usize = 8;

/// An origin's sign of life, signed by the origin. It carries the origin's credential, so that members who never
/// met it can check that it may vouch.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Heartbeat {
    /// The origin's credential, which names its peer id, zone and roles.
    #[n(0)]
    pub credential: SignedCredential,
    /// Where its data plane is dialled, best first.
    #[n(1)]
    pub endpoints: Vec<Endpoint>,
    /// When it was sent; newer replaces older.
    #[n(2)]
    pub sent: WallTime,
    /// The origin is leaving: it is to be forgotten at once.
    #[n(3)]
    pub leaving: bool,
}

impl Heartbeat {
    /// The origin it is of.
    pub fn peer(&self) -> PeerId {
        self.credential.value().peer
    }
}

impl Document for Heartbeat {
    const DOMAIN: &'static str = "shoal/heartbeat/1";
    const PAYLOAD_BYTES_MAX: usize = 1536;
}

/// One gossip message. Its publisher is authenticated by gossipsub's own signature.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub enum GossipMessage {
    /// An origin is alive.
    #[n(0)]
    Heartbeat(#[n(0)] Signed<Heartbeat>),
    /// A tag moved, or something was deleted: what is cached of it is stale. Values of manifests and blobs are not
    /// gossiped, so that annotations do not make messages long.
    #[n(1)]
    RecordChanged(#[n(0)] SignedRecord),
    /// An origin has a blob it did not have before.
    #[n(2)]
    BlobAdded {
        /// The blob.
        #[n(0)]
        digest: Digest,
        /// Its size in bytes.
        #[n(1)]
        size: u64,
    },
    /// Every member that can is to fetch an image now.
    #[n(3)]
    Preheat {
        /// The image, as users write it.
        #[n(0)]
        image: String,
    },
}

impl GossipMessage {
    /// The message's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        crate::signed::encode_value(self)
    }

    /// Decodes a message.
    ///
    /// # Errors
    /// [`SignedError::TooLarge`] or [`SignedError::Envelope`]: whoever sent it is broken or hostile.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SignedError> {
        if bytes.len() > GOSSIP_BYTES_MAX {
            return Err(SignedError::TooLarge { bytes: bytes.len(), limit: GOSSIP_BYTES_MAX });
        }
        let message: Self = crate::signed::decode_exact(bytes).map_err(SignedError::Envelope)?;
        match &message {
            Self::Heartbeat(beat) if beat.value().endpoints.len() > ENDPOINTS_MAX => {
                Err(SignedError::Envelope("a heartbeat names too many endpoints".to_owned()))
            }
            Self::Heartbeat(beat) if beat.signer() != beat.value().peer() => {
                Err(SignedError::Envelope("a heartbeat is signed by another than its origin".to_owned()))
            }
            Self::RecordChanged(record)
                if record.value().value.is_some()
                    && !matches!(record.value().key.kind, RecordKind::Tag(_)) =>
            {
                Err(SignedError::Envelope("a changed record is neither a tag nor a deletion".to_owned()))
            }
            Self::Preheat { image } if image.parse::<ImageReference>().is_err() => {
                Err(SignedError::Envelope("a preheat command names no image".to_owned()))
            }
            _ => Ok(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::{Credential, MeshKey, Role, Roles};
    use crate::peer::Keypair;
    use crate::zone::Zone;
    use proptest::prelude::*;

    fn heartbeat(signer: &Keypair, of: PeerId) -> GossipMessage {
        let credential = MeshKey::from_secret(&[1; 32]).issue(Credential {
            peer: of,
            roles: Roles::NONE.with(Role::Origin),
            zone: Zone::default(),
            namespaces: vec![],
            not_before: WallTime::default(),
            not_after: WallTime::default(),
            issuer: None,
        });
        let endpoints = vec!["10.0.0.1:4002".parse().unwrap()];
        GossipMessage::Heartbeat(Signed::sign(
            Heartbeat { credential, endpoints, sent: WallTime::from_unix_millis(5), leaving: false },
            signer,
        ))
    }

    #[test]
    fn heartbeats_are_only_an_origin_s_own() {
        let keypair = Keypair::from_secret(&[2; 32]);
        let good = heartbeat(&keypair, keypair.peer_id());
        let bytes = good.to_bytes();
        assert!(bytes.len() <= 1024, "a heartbeat is {} bytes", bytes.len());
        assert_eq!(GossipMessage::from_bytes(&bytes).unwrap(), good);
        let forged = heartbeat(&Keypair::from_secret(&[3; 32]), keypair.peer_id());
        assert!(GossipMessage::from_bytes(&forged.to_bytes()).is_err());
    }

    #[test]
    fn only_tags_and_deletions_are_news() {
        use crate::record::{Record, RecordKey, RecordValue, RecordVersion};
        let keypair = Keypair::from_secret(&[2; 32]);
        let digest = Digest::sha256(b"m");
        let change = |kind, live: bool| {
            let value = live.then(|| RecordValue {
                digest,
                media_type: "application/vnd.oci.image.manifest.v1+json".into(),
                size: 1,
                subject: None,
                artifact_type: None,
                annotations: Default::default(),
            });
            let version =
                RecordVersion { counter: 1, written: WallTime::default(), author: keypair.peer_id() };
            let key = RecordKey { repository: "a".parse().unwrap(), kind };
            GossipMessage::RecordChanged(Signed::sign(Record { key, version, value }, &keypair))
        };
        let tag = change(RecordKind::Tag("v1".parse().unwrap()), true);
        assert_eq!(GossipMessage::from_bytes(&tag.to_bytes()).unwrap(), tag);
        assert!(GossipMessage::from_bytes(&change(RecordKind::Manifest(digest), false).to_bytes()).is_ok());
        assert!(GossipMessage::from_bytes(&change(RecordKind::Manifest(digest), true).to_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes: Vec<u8>) { let _ = GossipMessage::from_bytes(&bytes); }
    }
}
