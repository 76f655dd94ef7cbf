//! Certificates: libp2p's, with the mesh credential in them.
//!
//! A certificate is self-signed by an ephemeral P-256 key. Two extensions say whose it is:
//!
//! | OID | critical | content |
//! |---|---|---|
//! | [`LIBP2P_OID`] | yes | libp2p's `SignedKey`: the Ed25519 identity key and its signature over `libp2p-tls-handshake:` and the certificate's public key (libp2p TLS specification) |
//! | [`CREDENTIAL_OID`] | no | `SignedCredential::to_bytes()` |
//!
//! Narrower than libp2p's specification on purpose, because only members ever connect: the identity is Ed25519, the
//! certificate key P-256 with SHA-256, so that each part has exactly one encoding.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair, PublicKeyData};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use shoal_types::{PeerId, SignedCredential, WallTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use super::Rejection;
use crate::identity::Identity;

/// libp2p's public key extension (libp2p TLS specification, "libp2p Public Key Extension").
pub const LIBP2P_OID: [u64; 9] = [1, 3, 6, 1, 4, 1, 53594, 1, 1];
/// Our credential extension. It stands in libp2p's private arc, of which libp2p uses only the branch `.1`, in a
/// branch of our own: 21320 is "SH" in ASCII. Not registered with anybody; non-critical, so that a libp2p program
/// that does not know it passes over it.
pub const CREDENTIAL_OID: [u64; 9] = [1, 3, 6, 1, 4, 1, 53594, 21320, 1];

/// Longest accepted certificate in bytes: a credential of 2 KiB and well over twice the rest (some 500 bytes).
pub const CERTIFICATE_BYTES_MAX: usize = 4096;

/// What an identity key signs, before the certificate's public key (libp2p TLS specification).
const SIGNING_PREFIX: &[u8] = b"libp2p-tls-handshake:";
/// ecdsa-with-SHA256 (RFC 5758 §3.2).
const ECDSA_WITH_SHA256: [u64; 7] = [1, 2, 840, 10045, 4, 3, 2];
/// The same as a DER `AlgorithmIdentifier`, whose parameters are absent (RFC 5758 §3.2).
const ECDSA_WITH_SHA256_DER: [u8; 12] =
    [0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
/// DER of `SignedKey` with an Ed25519 key: `SEQUENCE { OCTET STRING (36 bytes), OCTET STRING (64 bytes) }`. All
/// lengths are fixed, so all heads are.
const SEQUENCE_HEAD: [u8; 4] = [0x30, 104, 0x04, KEY_BYTES];
const SIGNATURE_HEAD: [u8; 2] = [0x04, 64];
/// Bytes of libp2p's protobuf `PublicKey` of an Ed25519 key.
const KEY_BYTES: u8 = 36;
/// What makes such a `PublicKey` a binary peer id: an identity multihash of 36 bytes.
const MULTIHASH_HEAD: [u8; 2] = [0x00, KEY_BYTES];

/// A new certificate and its secret key.
pub(super) struct Generated {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: PrivateKeyDer<'static>,
}

/// What a certificate proves: its holder has the peer's identity key. What the credential is worth is still to be
/// checked.
#[derive(Debug)]
pub struct Member {
    /// The holder.
    pub peer: PeerId,
    /// What the holder shows; its signature is verified, its signer, subject and time are not.
    pub credential: SignedCredential,
    /// The certificate key (DER of SubjectPublicKeyInfo), for checking handshake signatures.
    pub(super) public_key: Vec<u8>,
    not_before: ASN1Time,
    not_after: ASN1Time,
}

impl Member {
    /// Whether the certificate itself is within its time.
    pub(super) fn certificate_valid_at(&self, now: WallTime) -> bool {
        let seconds = i64::try_from(now.unix_millis() / 1000).unwrap_or(i64::MAX);
        ASN1Time::from_timestamp(seconds).is_ok_and(|now| self.not_before <= now && now <= self.not_after)
    }
}

/// Makes a certificate for `identity`.
pub(super) fn generate(identity: &Identity) -> Result<Generated, rcgen::Error> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let signature = identity.keypair.sign(&signing_input(&key.subject_public_key_info()));
    let peer = identity.peer_id().to_libp2p_bytes();
    let public_key = peer.strip_prefix(&MULTIHASH_HEAD).unwrap_or(&peer);
    let signed_key = [&SEQUENCE_HEAD, public_key, &SIGNATURE_HEAD, signature.as_bytes()].concat();
    let mut libp2p = CustomExtension::from_oid_content(&LIBP2P_OID, signed_key);
    libp2p.set_criticality(true);
    let credential = CustomExtension::from_oid_content(&CREDENTIAL_OID, identity.credential.to_bytes());
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![libp2p, credential];
    let certificate = params.self_signed(&key)?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    Ok(Generated { certificate: certificate.into(), key: key.into() })
}

/// Reads a certificate and checks its self-signature and the identity key's signature.
///
/// # Errors
/// [`Rejection`]: whoever showed it is no member, or not this one.
pub fn parse(der: &CertificateDer<'_>) -> Result<Member, Rejection> {
    if der.len() > CERTIFICATE_BYTES_MAX {
        return Err(Rejection::Malformed("the certificate is too long"));
    }
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|_| Rejection::Malformed("the certificate is not X.509"))?;
    if !rest.is_empty() {
        return Err(Rejection::Malformed("bytes follow the certificate"));
    }
    if !is_canonical(der, &certificate) {
        return Err(Rejection::Malformed("the certificate is not canonical DER"));
    }
    let (libp2p, credential) = extensions(&certificate)?;
    check_self_signature(&certificate)?;
    let public_key = certificate.tbs_certificate.subject_pki.raw;
    let peer = check_identity(libp2p, public_key)?;
    let credential = SignedCredential::from_bytes(credential.ok_or(Rejection::NoCredential)?)
        .map_err(Rejection::CredentialMalformed)?;
    let validity = certificate.validity();
    let (not_before, not_after) = (validity.not_before, validity.not_after);
    Ok(Member { peer, credential, public_key: public_key.to_vec(), not_before, not_after })
}

/// Whether what encloses the signed part is the one right encoding: the signature does not cover it, and the parser
/// takes, for instance, a SEQUENCE without its "constructed" bit.
fn is_canonical(der: &[u8], certificate: &X509Certificate<'_>) -> bool {
    let (signed, signature) = (certificate.tbs_certificate.as_ref(), certificate.signature_value.as_ref());
    let Ok(bits) = u8::try_from(signature.len() + 1) else { return false };
    let tail = [&ECDSA_WITH_SHA256_DER[..], &[0x03, bits, 0x00], signature].concat();
    let inner = der.strip_prefix(&[0x30, 0x82]).and_then(|rest| rest.get(2..));
    inner.and_then(|inner| inner.strip_prefix(signed)) == Some(&tail)
}

/// The contents of libp2p's extension and of ours.
fn extensions<'a>(certificate: &'a X509Certificate<'_>) -> Result<(&'a [u8], Option<&'a [u8]>), Rejection> {
    let mut libp2p = None;
    let mut credential = None;
    for extension in certificate.extensions() {
        let is = |oid: &[u64]| extension.oid.iter().is_some_and(|arcs| arcs.eq(oid.iter().copied()));
        let seen = if is(&LIBP2P_OID) {
            libp2p.replace(extension.value)
        } else if is(&CREDENTIAL_OID) {
            credential.replace(extension.value)
        } else if extension.critical {
            return Err(Rejection::Malformed("an unknown critical extension"));
        } else {
            None
        };
        if seen.is_some() {
            return Err(Rejection::Malformed("an extension twice"));
        }
    }
    Ok((libp2p.ok_or(Rejection::Malformed("no libp2p extension"))?, credential))
}

fn check_self_signature(certificate: &X509Certificate<'_>) -> Result<(), Rejection> {
    let algorithm = &certificate.signature_algorithm.algorithm;
    if !algorithm.iter().is_some_and(|arcs| arcs.eq(ECDSA_WITH_SHA256)) {
        return Err(Rejection::Malformed("the certificate is not signed with ECDSA and SHA-256"));
    }
    let tbs = &certificate.tbs_certificate;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, tbs.subject_pki.subject_public_key.as_ref())
        .verify(tbs.as_ref(), certificate.signature_value.as_ref())
        .map_err(|_| Rejection::Signature)
}

/// The peer whose key signed the certificate's.
fn check_identity(signed_key: &[u8], certificate_key: &[u8]) -> Result<PeerId, Rejection> {
    let split = || {
        let rest = signed_key.strip_prefix(&SEQUENCE_HEAD)?;
        let (key, rest) = rest.split_at_checked(usize::from(KEY_BYTES))?;
        let signature: [u8; 64] = rest.strip_prefix(&SIGNATURE_HEAD)?.try_into().ok()?;
        let peer = PeerId::from_libp2p_bytes(&[&MULTIHASH_HEAD, key].concat())?;
        Some((peer, signature))
    };
    let (peer, signature) = split().ok_or(Rejection::Malformed("not a signed Ed25519 key"))?;
    let key = UnparsedPublicKey::new(&aws_lc_rs::signature::ED25519, peer.public_key());
    key.verify(&signing_input(certificate_key), &signature).map_err(|_| Rejection::Signature)?;
    Ok(peer)
}

fn signing_input(certificate_key: &[u8]) -> Vec<u8> {
    [SIGNING_PREFIX, certificate_key].concat()
}
