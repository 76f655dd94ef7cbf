//! Gossip: its settings, and what of it is believed and passed on.

use std::time::Instant;

use blake3::Hasher;
use libp2p::gossipsub::{
    self, ConfigBuilder, IdentTopic, MessageAcceptance, MessageAuthenticity, MessageId, ValidationMode,
};
use shoal_types::gossip::GOSSIP_BYTES_MAX;
use shoal_types::{GossipMessage, PeerId, WallTime};

use super::config::GossipConfig;
use super::origins::Origins;

/// The one topic. All members read all of it: it is a few messages a second in a large mesh.
pub(crate) const TOPIC: &str = "/shoal/news/1";
/// Prefix of gossipsub's protocol names, so that no other gossipsub is ever talked to.
const PROTOCOL_PREFIX: &str = "/shoal/gossip";
/// What gossipsub's envelope adds to a message at most: source, sequence number, topic, signature, key, heads.
const ENVELOPE_BYTES_MAX: usize = 512;

/// Builds the behaviour, subscribed.
pub(crate) fn behaviour(
    config: &GossipConfig,
    keypair: libp2p::identity::Keypair,
) -> Result<gossipsub::Behaviour, String> {
    let built = ConfigBuilder::default()
        .protocol_id_prefix(PROTOCOL_PREFIX)
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        .message_id_fn(message_id)
        .mesh_n(config.mesh)
        .mesh_n_low(config.mesh_low)
        .mesh_n_high(config.mesh_high)
        .mesh_outbound_min(config.mesh_low / 3)
        .flood_publish(false)
        .max_transmit_size(GOSSIP_BYTES_MAX + ENVELOPE_BYTES_MAX)
        .connection_handler_queue_len(config.queue)
        .duplicate_cache_time(config.duplicate_cache)
        .heartbeat_interval(config.heartbeat_interval)
        .build()
        .map_err(|error| error.to_string())?;
    let mut behaviour = gossipsub::Behaviour::new(MessageAuthenticity::Signed(keypair), built)?;
    behaviour.subscribe(&IdentTopic::new(TOPIC)).map_err(|error| error.to_string())?;
    Ok(behaviour)
}

/// Content and publisher: a message published again within the duplicate cache's time is one message, and nobody
/// can use up somebody else's by publishing the same words first.
fn message_id(message: &gossipsub::Message) -> MessageId {
    let mut hasher = Hasher::new();
    hasher.update(&message.source.map(|source| source.to_bytes()).unwrap_or_default());
    hasher.update(&message.data);
    MessageId::new(&hasher.finalize().as_bytes()[..20])
}

/// What becomes of a message.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// What gossipsub is told: pass it on, punish whoever passed it on, or neither.
    pub(crate) acceptance: MessageAcceptance,
    /// What to tell the daemon.
    pub(crate) message: Option<GossipMessage>,
    /// The set of origins changed.
    pub(crate) origins_changed: bool,
}

impl Verdict {
    pub(super) fn no(acceptance: MessageAcceptance) -> Self {
        Self { acceptance, message: None, origins_changed: false }
    }
}

/// Judges a message that gossipsub says `source` published and signed.
///
/// Heartbeats prove themselves by the credential inside. Everything else is for origins to say, and who is one is
/// known from their heartbeats: what others publish is neither believed nor passed on.
pub(crate) fn judge(
    source: PeerId,
    data: &[u8],
    origins: &mut Origins,
    now: Instant,
    wall: WallTime,
) -> Verdict {
    let Ok(message) = GossipMessage::from_bytes(data) else { return Verdict::no(MessageAcceptance::Reject) };
    let GossipMessage::Heartbeat(beat) = &message else {
        return if origins.contains(&source) {
            Verdict { acceptance: MessageAcceptance::Accept, message: Some(message), origins_changed: false }
        } else {
            Verdict::no(MessageAcceptance::Ignore)
        };
    };
    if beat.value().peer() != source {
        return Verdict::no(MessageAcceptance::Reject);
    }
    match origins.observe(beat.clone(), std::time::Duration::ZERO, now, wall) {
        Ok(origins_changed) => {
            Verdict { acceptance: MessageAcceptance::Accept, message: Some(message), origins_changed }
        }
        Err(error) if error.is_hostile() => Verdict::no(MessageAcceptance::Reject),
        Err(error) => {
            tracing::debug!(%source, %error, "heartbeat ignored");
            Verdict::no(MessageAcceptance::Ignore)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::HeartbeatConfig;
    use super::*;
    use shoal_types::{Credential, Digest, Heartbeat, Keypair, MeshKey, Role, Roles, Signed, Zone};

    fn heartbeat(keypair: &Keypair, role: Role) -> GossipMessage {
        let credential = MeshKey::from_secret(&[1; 32]).issue(Credential {
            peer: keypair.peer_id(),
            roles: Roles::NONE.with(role),
            zone: Zone::default(),
            namespaces: vec![],
            not_before: WallTime::default(),
            not_after: WallTime::from_unix_millis(2_000_000),
            issuer: None,
        });
        let sent = WallTime::from_unix_millis(1_000_000);
        GossipMessage::Heartbeat(Signed::sign(
            Heartbeat { credential, endpoints: vec![], sent, leaving: false },
            keypair,
        ))
    }

    #[test]
    fn news_is_for_origins_to_tell() {
        let (origin, other) = (Keypair::from_secret(&[2; 32]), Keypair::from_secret(&[3; 32]));
        let mut origins = Origins::new(MeshKey::from_secret(&[1; 32]).public(), HeartbeatConfig::default());
        let (now, wall) = (Instant::now(), WallTime::from_unix_millis(1_000_000));
        let mut judge =
            |source: &Keypair, data: &[u8]| judge(source.peer_id(), data, &mut origins, now, wall);
        let news = GossipMessage::BlobAdded { digest: Digest::sha256(b"x"), size: 1 }.to_bytes();
        assert!(matches!(judge(&origin, &news).acceptance, MessageAcceptance::Ignore));
        let beat = heartbeat(&origin, Role::Origin).to_bytes();
        assert!(matches!(judge(&other, &beat).acceptance, MessageAcceptance::Reject), "somebody else's");
        let verdict = judge(&origin, &beat);
        assert!(matches!(verdict.acceptance, MessageAcceptance::Accept) && verdict.origins_changed);
        assert!(matches!(judge(&origin, &beat).acceptance, MessageAcceptance::Ignore), "not twice");
        assert!(judge(&origin, &news).message.is_some());
        assert!(matches!(judge(&other, &news).acceptance, MessageAcceptance::Ignore));
        let pretender = heartbeat(&other, Role::Gateway).to_bytes();
        assert!(matches!(judge(&other, &pretender).acceptance, MessageAcceptance::Reject));
        assert!(matches!(judge(&origin, b"garbage").acceptance, MessageAcceptance::Reject));
    }

    #[test]
    fn ids_depend_on_publisher_and_content() {
        let message = |source: u8, data: &[u8]| gossipsub::Message {
            source: Some(super::super::addr::to_libp2p(Keypair::from_secret(&[source; 32]).peer_id())),
            data: data.to_vec(),
            sequence_number: Some(1),
            topic: IdentTopic::new(TOPIC).hash(),
        };
        assert_eq!(message_id(&message(1, b"a")), message_id(&message(1, b"a")));
        assert_ne!(message_id(&message(1, b"a")), message_id(&message(2, b"a")));
        assert_ne!(message_id(&message(1, b"a")), message_id(&message(1, b"b")));
    }
}
