//! `/shoal/origins/1`: who connects is told at once which origins are alive, and everybody again and again.
//!
//! Gossip alone would let a newcomer wait for the next heartbeat, and loses messages while its mesh forms. Both sides of a
//! new connection push the last heartbeats they heard, and each process does so to a member chosen by chance every
//! [`super::config::HeartbeatConfig::introduce_interval`], or soon after it was told of a change itself; these are signed by the origins and carry their credentials, so it does not matter who
//! passes them on. Each comes with its age, so that passing it on does not keep a dead origin alive.
//!
//! On the wire: one stream, one message, no answer; the CBOR array of `[age in milliseconds, signed heartbeat]`.

use std::time::Duration;

use libp2p::StreamProtocol;
use shoal_types::{Heartbeat, Signed};

use super::push;

/// Heartbeats in one message at most.
pub(crate) const BEATS_MAX: usize = 32;
/// A message's bytes at most: [`BEATS_MAX`] heartbeats of the largest size with their heads.
const MESSAGE_BYTES_MAX: u64 = 64 << 10;
/// Heartbeats and how long ago they were heard.
pub(crate) type Beats = Vec<(Duration, Signed<Heartbeat>)>;

#[derive(minicbor::Encode, minicbor::Decode)]
struct Aged {
    #[n(0)]
    age_millis: u64,
    #[n(1)]
    beat: Signed<Heartbeat>,
}

pub(crate) fn encode(beats: &[(Duration, Signed<Heartbeat>)]) -> Vec<u8> {
    let aged = beats.iter().take(BEATS_MAX).map(|(age, beat)| Aged {
        age_millis: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
        beat: beat.clone(),
    });
    minicbor::to_vec(aged.collect::<Vec<_>>()).unwrap_or_default()
}

/// Decodes a message. Signatures are verified, [`BEATS_MAX`] of them at most.
fn decode(bytes: &[u8]) -> Result<Beats, minicbor::decode::Error> {
    let mut decoder = minicbor::Decoder::new(bytes);
    let count = decoder.array()?.unwrap_or(u64::MAX);
    if count > BEATS_MAX as u64 {
        return Err(minicbor::decode::Error::message("too many heartbeats"));
    }
    (0..count)
        .map(|_| decoder.decode::<Aged>().map(|aged| (Duration::from_millis(aged.age_millis), aged.beat)))
        .collect()
}

/// What `/shoal/origins/1` carries.
#[derive(Debug)]
pub(crate) struct Introduction(pub(crate) Beats);

impl push::Payload for Introduction {
    const PROTOCOL: StreamProtocol = StreamProtocol::new("/shoal/origins/1");
    const BYTES_MAX: u64 = MESSAGE_BYTES_MAX;

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        decode(bytes).map(Self).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shoal_types::{Credential, Keypair, MeshKey, Roles, WallTime, Zone};

    fn beats(count: usize) -> Beats {
        let keypair = Keypair::from_secret(&[2; 32]);
        let credential = MeshKey::from_secret(&[1; 32]).issue(Credential {
            peer: keypair.peer_id(),
            roles: Roles::NONE,
            zone: Zone::default(),
            namespaces: vec![],
            not_before: WallTime::default(),
            not_after: WallTime::default(),
            issuer: None,
        });
        let beat = Heartbeat { credential, endpoints: vec![], sent: WallTime::default(), leaving: false };
        vec![(Duration::from_millis(1234), Signed::sign(beat, &keypair)); count]
    }

    #[test]
    fn messages_round_trip_within_their_bounds() {
        for count in [0, 1, BEATS_MAX] {
            let bytes = encode(&beats(count));
            assert!((bytes.len() as u64) < MESSAGE_BYTES_MAX);
            assert_eq!(decode(&bytes).unwrap(), beats(count));
        }
        assert_eq!(decode(&encode(&beats(BEATS_MAX + 1))).unwrap().len(), BEATS_MAX);
        // An indefinite array, and one that claims more than it may.
        assert!(decode(&[0x9f, 0xff]).is_err());
        assert!(decode(&[0x9a, 0xff, 0xff, 0xff, 0xff]).is_err());
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes: Vec<u8>) { let _ = decode(&bytes); }
    }
}
