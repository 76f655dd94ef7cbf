//! Content digests: the identity of every blob.
//!
//! `sha256:<hex>` and CIDv1(raw, sha2-256) are two spellings of one value; its multihash is the blob's DHT key.

use std::fmt;
use std::str::FromStr;

use cid::Cid;
use multihash::Multihash;
use sha2::{Digest as _, Sha256, Sha512};

/// Multicodec code of raw binary content (multiformats table, `raw`).
const CODEC_RAW: u64 = 0x55;

/// The longest digest of any accepted algorithm, in bytes (SHA-512).
pub const DIGEST_BYTES_MAX: usize = 64;

/// A digest algorithm registered by the OCI image specification ("Registered algorithms").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256 (FIPS 180-4), multihash code `0x12`.
    Sha256,
    /// SHA-512 (FIPS 180-4), multihash code `0x13`.
    Sha512,
}

impl Algorithm {
    /// The name in a digest's textual form.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Digest length in bytes.
    pub fn digest_bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// The multihash code (multiformats table).
    pub fn multihash_code(self) -> u64 {
        match self {
            Self::Sha256 => 0x12,
            Self::Sha512 => 0x13,
        }
    }

    fn from_multihash_code(code: u64) -> Option<Self> {
        match code {
            0x12 => Some(Self::Sha256),
            0x13 => Some(Self::Sha512),
            _ => None,
        }
    }
}

/// The digest of a blob: an algorithm and its output.
#[derive(Clone, Copy, Eq, Hash)]
#[expect(clippy::derived_hash_with_manual_eq, reason = "all fields are compared")]
pub struct Digest {
    algorithm: Algorithm,
    /// Zero-padded behind `algorithm.digest_bytes()`.
    bytes: [u8; DIGEST_BYTES_MAX],
}

/// The first eight bytes tell nearly all apart.
impl PartialEq for Digest {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.head() == other.head() && self.algorithm == other.algorithm && self.bytes == other.bytes
    }
}

/// By algorithm and bytes. The first eight bytes nearly always decide; every map of blobs compares them all the time.
impl Ord for Digest {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let head =
            |digest: &Self| digest.bytes.first_chunk::<8>().map_or(0, |head| u64::from_be_bytes(*head));
        self.algorithm
            .cmp(&other.algorithm)
            .then_with(|| head(self).cmp(&head(other)))
            .then_with(|| self.bytes.cmp(&other.bytes))
    }
}

impl PartialOrd for Digest {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Why a text or byte string is not a digest this mesh accepts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestParseError {
    /// There is no `algorithm:hex` shape.
    #[error("not a digest: expected <algorithm>:<hex>, like sha256:e3b0…")]
    Malformed,
    /// The algorithm is well formed but not one this mesh can verify.
    #[error("digest algorithm {0:?} is not supported: use sha256 or sha512")]
    UnsupportedAlgorithm(String),
    /// The encoded part has the wrong length or characters (lower-case hex is required by the OCI specification).
    #[error("the encoded part of a {algorithm} digest must be {expected} lower-case hex characters")]
    Encoded {
        /// The digest's algorithm name.
        algorithm: &'static str,
        /// Required number of hex characters.
        expected: usize,
    },
    /// The CID is not a CIDv1 of raw content with a supported hash.
    #[error("not a CID of raw content with a sha2-256 or sha2-512 multihash: {0}")]
    Cid(String),
}

impl Digest {
    /// Builds a digest from an algorithm's raw output.
    ///
    /// # Errors
    /// [`DigestParseError::Encoded`] when `bytes` does not have the algorithm's length.
    pub fn from_bytes(algorithm: Algorithm, bytes: &[u8]) -> Result<Self, DigestParseError> {
        let wanted = algorithm.digest_bytes();
        let mut own = [0; DIGEST_BYTES_MAX];
        if bytes.len() != wanted {
            return Err(DigestParseError::Encoded { algorithm: algorithm.name(), expected: wanted * 2 });
        }
        own[..wanted].copy_from_slice(bytes);
        Ok(Self { algorithm, bytes: own })
    }

    /// The SHA-256 digest of `data`.
    pub fn sha256(data: &[u8]) -> Self {
        let mut hasher = DigestHasher::new(Algorithm::Sha256);
        hasher.update(data);
        hasher.finish()
    }

    /// The algorithm that made this digest.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The first eight bytes of the output, little-endian: what tables look a digest up by.
    #[inline]
    pub fn head(&self) -> u64 {
        self.bytes.first_chunk().map_or(0, |head| u64::from_le_bytes(*head))
    }

    /// The algorithm's raw output.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.digest_bytes()]
    }

    /// The lower-case hex of [`Self::as_bytes`].
    pub fn hex(&self) -> String {
        data_encoding::HEXLOWER.encode(self.as_bytes())
    }

    /// The digest as a multihash: the blob's key in the DHT.
    pub fn multihash(&self) -> Multihash<DIGEST_BYTES_MAX> {
        #[expect(clippy::expect_used, reason = "as_bytes is at most DIGEST_BYTES_MAX long")]
        Multihash::wrap(self.algorithm.multihash_code(), self.as_bytes())
            .expect("a digest fits its multihash")
    }

    /// The digest as a CIDv1 of raw content.
    pub fn to_cid(&self) -> Cid {
        Cid::new_v1(CODEC_RAW, self.multihash())
    }

    /// The digest a CIDv1 of raw content names.
    ///
    /// # Errors
    /// [`DigestParseError::Cid`] for any other version, codec or hash.
    pub fn from_cid(cid: &Cid) -> Result<Self, DigestParseError> {
        let refuse = || DigestParseError::Cid(cid.to_string());
        if cid.version() != cid::Version::V1 || cid.codec() != CODEC_RAW {
            return Err(refuse());
        }
        Self::from_multihash(cid.hash()).ok_or_else(refuse)
    }

    /// The digest a multihash names, or `None` for an algorithm this mesh does not accept or a truncated hash.
    pub fn from_multihash(hash: &Multihash<DIGEST_BYTES_MAX>) -> Option<Self> {
        let algorithm = Algorithm::from_multihash_code(hash.code())?;
        Self::from_bytes(algorithm, hash.digest()).ok()
    }

    /// The digest a binary multihash (as in the DHT) names, or `None`.
    pub fn from_multihash_bytes(bytes: &[u8]) -> Option<Self> {
        Self::from_multihash(&Multihash::from_bytes(bytes).ok()?)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Parses `algorithm:hex` as the OCI image specification spells it, or a CIDv1 of raw content.
impl FromStr for Digest {
    type Err = DigestParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((name, encoded)) = text.split_once(':') else {
            // A CIDv1 in text has a multibase prefix and no colon.
            let cid = Cid::try_from(text).map_err(|_| DigestParseError::Malformed)?;
            return Self::from_cid(&cid);
        };
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            other if is_algorithm_name(other) && !encoded.is_empty() => {
                return Err(DigestParseError::UnsupportedAlgorithm(other.to_owned()));
            }
            _ => return Err(DigestParseError::Malformed),
        };
        let expected = algorithm.digest_bytes() * 2;
        let refuse = || DigestParseError::Encoded { algorithm: algorithm.name(), expected };
        if encoded.len() != expected {
            return Err(refuse());
        }
        let bytes = data_encoding::HEXLOWER.decode(encoded.as_bytes()).map_err(|_| refuse())?;
        Self::from_bytes(algorithm, &bytes)
    }
}

/// OCI image specification, "Digests": `algorithm-component (algorithm-separator algorithm-component)*`.
fn is_algorithm_name(name: &str) -> bool {
    name.split(['+', '.', '_', '-']).all(|component| {
        !component.is_empty() && component.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    })
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// CBOR form: the binary multihash as a byte string.
impl<C> minicbor::Encode<C> for Digest {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(&self.multihash().to_bytes())?.ok()
    }
}

impl<'b, C> minicbor::Decode<'b, C> for Digest {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let at = d.position();
        Self::from_multihash_bytes(d.bytes()?)
            .ok_or_else(|| minicbor::decode::Error::message("not a supported multihash").at(at))
    }
}

/// An incremental digest computation.
#[derive(Clone, Debug)]
pub enum DigestHasher {
    /// SHA-256 under way.
    Sha256(Sha256),
    /// SHA-512 under way.
    Sha512(Sha512),
}

impl DigestHasher {
    /// A computation over no bytes yet.
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    /// Adds the next bytes.
    pub fn update(&mut self, data: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(data),
            Self::Sha512(hasher) => hasher.update(data),
        }
    }

    /// The digest of all bytes added.
    pub fn finish(self) -> Digest {
        let mut bytes = [0; DIGEST_BYTES_MAX];
        let algorithm = match self {
            Self::Sha256(hasher) => {
                bytes[..32].copy_from_slice(&hasher.finalize());
                Algorithm::Sha256
            }
            Self::Sha512(hasher) => {
                bytes.copy_from_slice(&hasher.finalize());
                Algorithm::Sha512
            }
        };
        Digest { algorithm, bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// SHA-256 of the empty string, FIPS 180-4 example.
    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn spellings_of_one_value() {
        let digest: Digest = EMPTY.parse().unwrap();
        assert_eq!(digest, Digest::sha256(b""));
        assert_eq!(digest.to_string(), EMPTY);
        // `ipfs add --raw-leaves` of an empty file, a published value.
        let cid = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
        assert_eq!(digest.to_cid().to_string(), cid);
        assert_eq!(cid.parse::<Digest>().unwrap(), digest);
    }

    #[test]
    fn refusals_name_the_reason() {
        use DigestParseError as E;
        assert_eq!("sha256".parse::<Digest>(), Err(E::Malformed));
        assert_eq!("md5:00".parse::<Digest>(), Err(E::UnsupportedAlgorithm("md5".into())));
        assert_eq!("SHA256:00".parse::<Digest>(), Err(E::Malformed));
        let upper = EMPTY.to_uppercase().replace("SHA256", "sha256");
        assert_eq!(upper.parse::<Digest>(), Err(E::Encoded { algorithm: "sha256", expected: 64 }));
        assert!(matches!("QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG".parse::<Digest>(), Err(E::Cid(_))));
    }

    proptest! {
        #[test]
        fn every_form_round_trips(data: Vec<u8>, wide: bool) {
            let algorithm = if wide { Algorithm::Sha512 } else { Algorithm::Sha256 };
            let mut hasher = DigestHasher::new(algorithm);
            for part in data.chunks(7) { hasher.update(part); }
            let digest = hasher.finish();
            prop_assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
            prop_assert_eq!(Digest::from_cid(&digest.to_cid()).unwrap(), digest);
            let bytes = minicbor::to_vec(digest).unwrap();
            prop_assert_eq!(minicbor::decode::<Digest>(&bytes).unwrap(), digest);
        }

        #[test]
        fn parsing_never_panics(text: String) { let _ = text.parse::<Digest>(); }
    }
}
