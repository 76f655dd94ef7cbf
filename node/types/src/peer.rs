//! Who a process is: an Ed25519 key, spelled the way libp2p spells peer ids.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};

use crate::cbor::{cbor_bytes, text_forms};

/// What precedes the 32 key bytes in a libp2p peer id: identity multihash (`00 24`) of the protobuf
/// `PublicKey{type: Ed25519, data: 32 bytes}` (`08 01 12 20`). Source: libp2p specification "Peer IDs".
const LIBP2P_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// The identity of a process: its Ed25519 public key. Its text form is libp2p's, `12D3KooW…`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerId([u8; 32]);

/// By the bytes of the key. Keys are spread evenly, so that the first eight bytes nearly always decide; every map of
/// peers compares them all the time.
impl Ord for PeerId {
    #[inline]
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let head = |key: &[u8; 32]| key.first_chunk::<8>().map_or(0, |head| u64::from_be_bytes(*head));
        head(&self.0).cmp(&head(&other.0)).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for PeerId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The text is not a libp2p peer id of an Ed25519 key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a peer id: expected the base58 form of an Ed25519 libp2p peer id, like 12D3KooW…")]
pub struct PeerIdParseError;

impl PeerId {
    /// The peer with this Ed25519 public key. Whether the bytes are a point on the curve shows when a signature
    /// is verified.
    pub const fn from_public_key(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// The first eight bytes of the key, little-endian: what tables look a peer up by.
    #[inline]
    pub fn head(&self) -> u64 {
        self.0.first_chunk().map_or(0, |head| u64::from_le_bytes(*head))
    }

    /// The Ed25519 public key.
    pub const fn public_key(&self) -> &[u8; 32] {
        &self.0
    }

    /// The binary libp2p peer id (a multihash), 38 bytes.
    pub fn to_libp2p_bytes(&self) -> [u8; 38] {
        let mut bytes = [0; 38];
        bytes[..6].copy_from_slice(&LIBP2P_PREFIX);
        bytes[6..].copy_from_slice(&self.0);
        bytes
    }

    /// Reads a binary libp2p peer id; `None` for anything but an Ed25519 identity multihash.
    pub fn from_libp2p_bytes(bytes: &[u8]) -> Option<Self> {
        let key = bytes.strip_prefix(&LIBP2P_PREFIX)?;
        Some(Self(key.try_into().ok()?))
    }

    /// Whether `signature` is this peer's over `message` (strict Ed25519 verification).
    pub fn verify(&self, message: &[u8], signature: &Signature) -> bool {
        let Ok(key) = VerifyingKey::from_bytes(&self.0) else { return false };
        key.verify_strict(message, &ed25519_dalek::Signature::from_bytes(&signature.0)).is_ok()
    }

    /// The last characters of the text form: enough to tell peers apart in a log or table.
    pub fn short(&self) -> String {
        let text = self.to_string();
        text.get(text.len().saturating_sub(8)..).unwrap_or(&text).to_owned()
    }
}

cbor_bytes!(PeerId, 32);

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bs58::encode(self.to_libp2p_bytes()).into_string())
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PeerId {
    type Err = PeerIdParseError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // 38 bytes are 52 characters; anything much longer is not worth decoding.
        if text.len() > 64 {
            return Err(PeerIdParseError);
        }
        let bytes = bs58::decode(text).into_vec().map_err(|_| PeerIdParseError)?;
        Self::from_libp2p_bytes(&bytes).ok_or(PeerIdParseError)
    }
}

impl serde::Serialize for PeerId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for PeerId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// An Ed25519 signature (RFC 8032).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature([u8; 64]);

cbor_bytes!(Signature, 64);

impl Signature {
    /// The 64 signature bytes.
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

/// A secret Ed25519 key: the identity of a process, or a mesh's root key. Its memory is wiped on drop and its
/// `Debug` form shows the public half only.
#[derive(Clone)]
pub struct Keypair(SigningKey);

impl Keypair {
    /// The key made from 32 secret bytes, which the caller draws from the operating system (or, in a simulation,
    /// from its seed).
    pub fn from_secret(secret: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(secret))
    }

    /// The 32 secret bytes, for writing a key file.
    pub fn secret(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The public half.
    pub fn peer_id(&self) -> PeerId {
        PeerId(self.0.verifying_key().to_bytes())
    }

    /// Signs `message`.
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.0.sign(message).to_bytes())
    }
}

impl fmt::Debug for Keypair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keypair({})", self.peer_id())
    }
}

/// The public half of a mesh's root key. Text form: `shoal1` and the key in lower-case base32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct KeyText(pub(crate) [u8; 32]);

const KEY_TEXT_PREFIX: &str = "shoal1";

impl fmt::Display for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{KEY_TEXT_PREFIX}{}", data_encoding::BASE32_NOPAD.encode(&self.0).to_lowercase())
    }
}

impl FromStr for KeyText {
    type Err = PeerIdParseError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let encoded = text.strip_prefix(KEY_TEXT_PREFIX).ok_or(PeerIdParseError)?.to_uppercase();
        let bytes = data_encoding::BASE32_NOPAD.decode(encoded.as_bytes()).map_err(|_| PeerIdParseError)?;
        Ok(Self(bytes.try_into().map_err(|_| PeerIdParseError)?))
    }
}

text_forms!(KeyText);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spelled_like_libp2p() {
        // From the libp2p specification "Peer IDs", test vector of the Ed25519 key.
        let secret = data_encoding::HEXLOWER
            .decode(b"7e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d")
            .unwrap();
        let keypair = Keypair::from_secret(secret.as_slice().try_into().unwrap());
        let public = data_encoding::HEXLOWER.encode(keypair.peer_id().public_key());
        assert_eq!(public, "1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e");
        let text = keypair.peer_id().to_string();
        assert!(text.starts_with("12D3KooW"), "{text}");
        assert_eq!(text.parse::<PeerId>().unwrap(), keypair.peer_id());
        assert!("12D3Koo".parse::<PeerId>().is_err());
    }

    #[test]
    fn signatures_bind_key_and_message() {
        let one = Keypair::from_secret(&[1; 32]);
        let two = Keypair::from_secret(&[2; 32]);
        let signature = one.sign(b"a");
        assert!(one.peer_id().verify(b"a", &signature));
        assert!(!one.peer_id().verify(b"b", &signature));
        assert!(!two.peer_id().verify(b"a", &signature));
        assert!(!format!("{one:?}").contains(&data_encoding::HEXLOWER.encode(&[1; 32])));
    }
}
