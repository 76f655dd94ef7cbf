//! Signed documents: one envelope for everything members vouch for.
//!
//! The signature covers a domain (the document's type and version) and the exact bytes of the payload, which are
//! kept as they came, so that a document is passed on bit for bit. A payload that is not the canonical encoding of
//! its value is refused: one value has one encoding, hence one signature input.

use std::sync::Arc;

use minicbor::bytes::ByteVec;

use crate::peer::{Keypair, PeerId, Signature};

/// A value that members sign.
pub trait Document: Sized + minicbor::Encode<()> + for<'b> minicbor::Decode<'b, ()> {
    /// Separates signatures of different document types and versions, such as `shoal/metainfo/1`.
    const DOMAIN: &'static str;
    /// Largest accepted payload in bytes.
    const PAYLOAD_BYTES_MAX: usize;
}

/// Why an envelope is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignedError {
    /// The bytes are not an envelope.
    #[error("malformed signed document: {0}")]
    Envelope(String),
    /// The payload is over the document type's limit.
    #[error("signed document of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// Bytes claimed or found.
        bytes: usize,
        /// The document type's limit.
        limit: usize,
    },
    /// The payload does not decode, or is not canonical.
    #[error("malformed payload of a signed document: {0}")]
    Payload(String),
    /// The signature is not the stated signer's over this payload.
    #[error("the signature of {0} does not verify")]
    Signature(PeerId),
}

/// A document with its signer and a signature that has been verified.
#[derive(Clone)]
pub struct Signed<T> {
    value: Arc<T>,
    payload: Arc<[u8]>,
    signer: PeerId,
    signature: Signature,
}

#[derive(minicbor::Encode, minicbor::Decode)]
struct Envelope {
    #[n(0)]
    payload: ByteVec,
    #[n(1)]
    signer: PeerId,
    #[n(2)]
    signature: Signature,
}

impl<T: Document> Signed<T> {
    /// Bytes an envelope adds to its payload at most (array head, byte-string heads, key, signature).
    const ENVELOPE_BYTES_MAX: usize = 128;

    /// Encodes and signs `value`.
    pub fn sign(value: T, keypair: &Keypair) -> Self {
        let payload = encode_value(&value);
        let signature = keypair.sign(&signing_input(T::DOMAIN, &payload));
        Self { value: Arc::new(value), payload: payload.into(), signer: keypair.peer_id(), signature }
    }

    /// The document.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// Who signed it. That the signer may is the caller's to check.
    pub fn signer(&self) -> PeerId {
        self.signer
    }

    /// The envelope's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        encode_value(&Envelope {
            payload: ByteVec::from(self.payload.to_vec()),
            signer: self.signer,
            signature: self.signature,
        })
    }

    /// Decodes an envelope and verifies its signature.
    ///
    /// # Errors
    /// [`SignedError`]; every variant means that whoever sent it is broken or hostile.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SignedError> {
        let limit = T::PAYLOAD_BYTES_MAX;
        if bytes.len() > limit + Self::ENVELOPE_BYTES_MAX {
            return Err(SignedError::TooLarge { bytes: bytes.len(), limit });
        }
        let envelope: Envelope = decode_exact(bytes).map_err(SignedError::Envelope)?;
        let payload: &[u8] = &envelope.payload;
        if payload.len() > limit {
            return Err(SignedError::TooLarge { bytes: payload.len(), limit });
        }
        // The signature first: it is cheaper than a decoder is safe.
        if !envelope.signer.verify(&signing_input(T::DOMAIN, payload), &envelope.signature) {
            return Err(SignedError::Signature(envelope.signer));
        }
        let value: T = decode_exact(payload).map_err(SignedError::Payload)?;
        Ok(Self {
            value: Arc::new(value),
            payload: payload.into(),
            signer: envelope.signer,
            signature: envelope.signature,
        })
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for Signed<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signed").field("value", &self.value).field("signer", &self.signer).finish()
    }
}

impl<T> PartialEq for Signed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.payload == other.payload && self.signer == other.signer && self.signature == other.signature
    }
}

impl<T> Eq for Signed<T> {}

/// As a field of another CBOR document: a byte string of the envelope, verified as it is decoded.
impl<C, T: Document> minicbor::Encode<C> for Signed<T> {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(&self.to_bytes())?.ok()
    }
}

impl<'b, C, T: Document> minicbor::Decode<'b, C> for Signed<T> {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let at = d.position();
        let bytes = d.bytes()?;
        Self::from_bytes(bytes).map_err(|error| minicbor::decode::Error::message(error.to_string()).at(at))
    }
}

fn signing_input(domain: &str, payload: &[u8]) -> Vec<u8> {
    let mut input = Vec::with_capacity(domain.len() + 1 + payload.len());
    input.extend_from_slice(domain.as_bytes());
    input.push(0);
    input.extend_from_slice(payload);
    input
}

/// Encodes any value of ours to CBOR.
pub(crate) fn encode_value<T: minicbor::Encode<()>>(value: &T) -> Vec<u8> {
    #[expect(
        clippy::expect_used,
        reason = "writing to a Vec cannot fail and our encoders have no errors of their own"
    )]
    minicbor::to_vec(value).expect("encoding to memory cannot fail")
}

/// Decodes a value that takes up all of `bytes` in its canonical encoding.
pub(crate) fn decode_exact<T>(bytes: &[u8]) -> Result<T, String>
where
    T: for<'b> minicbor::Decode<'b, ()> + minicbor::Encode<()>,
{
    let value: T = minicbor::decode(bytes).map_err(|error| error.to_string())?;
    if encode_value(&value) != bytes {
        return Err("not the canonical encoding".to_owned());
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, PartialEq, minicbor::Encode, minicbor::Decode)]
    struct Note {
        #[n(0)]
        text: String,
    }
    impl Document for Note {
        const DOMAIN: &'static str = "test/note/1";
        const PAYLOAD_BYTES_MAX: usize = 64;
    }
    #[derive(Debug, minicbor::Encode, minicbor::Decode)]
    struct Other {
        #[n(0)]
        text: String,
    }
    impl Document for Other {
        const DOMAIN: &'static str = "test/other/1";
        const PAYLOAD_BYTES_MAX: usize = 64;
    }

    #[test]
    fn a_signature_is_for_one_type_of_document() {
        let signed = Signed::sign(Note { text: "x".into() }, &Keypair::from_secret(&[7; 32]));
        let bytes = signed.to_bytes();
        assert_eq!(Signed::<Note>::from_bytes(&bytes).unwrap(), signed);
        assert!(matches!(Signed::<Other>::from_bytes(&bytes), Err(SignedError::Signature(_))));
    }

    #[test]
    fn payloads_are_bounded_and_canonical() {
        let keypair = Keypair::from_secret(&[7; 32]);
        let long = Signed::sign(Note { text: "x".repeat(65) }, &keypair).to_bytes();
        assert!(matches!(Signed::<Note>::from_bytes(&long), Err(SignedError::TooLarge { .. })));
        // The same value with an over-long length head: 0x78 0x01 instead of 0x61.
        let payload = [0x81, 0x78, 0x01, b'x'];
        let signature = keypair.sign(&signing_input(Note::DOMAIN, &payload));
        let bytes = encode_value(&Envelope {
            payload: payload.to_vec().into(),
            signer: keypair.peer_id(),
            signature,
        });
        assert!(matches!(Signed::<Note>::from_bytes(&bytes), Err(SignedError::Payload(_))));
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_refused(text in ".{0,10}", at: prop::sample::Index, bit in 0u8..8) {
            let signed = Signed::sign(Note { text }, &Keypair::from_secret(&[7; 32]));
            let mut bytes = signed.to_bytes();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(Signed::<Note>::from_bytes(&bytes).is_err());
        }
    }
}
