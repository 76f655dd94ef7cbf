//! One TLS for both planes: admission happens while a connection opens.
//!
//! - TLS 1.3 only, both sides show a certificate. Certificates are those of the libp2p TLS specification with the
//!   mesh credential in an extension of ours ([`certificate`]).
//! - Whoever has no valid credential of this mesh fails the handshake and never reaches a decoder. Each refusal is
//!   counted by its reason ([`Rejections`]).
//! - AES-128-GCM is offered first where the processor has AES: 22.7 GB/s a thread against 2.6 of ChaCha20
//!   (aws-lc-rs; measured, `docs/PROTOCOL.md`).
//! - No session is ever resumed: a resumed one would not show its certificate, so an expired or revoked credential
//!   would live on. A full handshake costs 0.6 ms of both ends together.
//!
//! A client learns of the *server's* refusal only with its first read (TLS 1.3 ends the client's handshake first),
//! so nobody may be called connected before the other side has said something.

pub mod certificate;
mod reject;
mod verify;

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::RwLock;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, IpAddr, Ipv4Addr, ServerName};
use shoal_types::{CredentialError, PeerId, SignedCredential, WallTime, Zone};

use crate::identity::Identity;
use crate::revocation::Revocations;
pub use reject::{Refusal, RejectReason, Rejection, Rejections, rejection_of};
use verify::{CertificateOfOurs, Verifier};

/// Where the current time comes from.
pub type Clock = Arc<dyn Fn() -> WallTime + Send + Sync>;

/// The policy beyond the credential itself and the list of revocations (bans). Called inside handshakes, so it must not block.
pub type Admission = Arc<dyn Fn(&PeerId, &SignedCredential) -> Result<(), Refusal> + Send + Sync>;

/// The system's clock; the epoch itself should it stand before 1970.
pub fn system_clock() -> Clock {
    Arc::new(|| {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        WallTime::from_unix_millis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
    })
}

/// Which of the two planes a connection is for. Told apart by ALPN, so that one is never mistaken for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    /// libp2p: Kademlia, gossipsub, identify, ping.
    Control,
    /// Swarms and their payload.
    Data,
}

impl Plane {
    /// The ALPN protocol name.
    pub fn alpn(self) -> &'static [u8] {
        match self {
            Self::Control => b"libp2p",
            Self::Data => b"shoal/1",
        }
    }
}

/// Why the TLS set-up cannot be made. Not caused by anything remote.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The certificate could not be generated.
    #[error("cannot generate the TLS certificate")]
    Certificate(#[from] rcgen::Error),
    /// The TLS library refused the configuration.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
}

/// Why a new credential is not taken.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// It would not admit this process.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// A process is in one zone all its life.
    #[error("the new credential is for the zone {then}, this process is in {now}: restart it to move")]
    Zone {
        /// Where it is.
        now: Zone,
        /// Where the new credential says.
        then: Zone,
    },
    /// No certificate could be made of it.
    #[error(transparent)]
    Setup(#[from] SetupError),
}

/// Everything both planes' handshakes need. A cheap clone of one shared set-up.
#[derive(Clone)]
pub struct TlsSetup(Arc<Setup>);

pub(crate) struct Setup {
    identity: RwLock<Arc<Identity>>,
    clock: Clock,
    admission: Admission,
    rejections: Rejections,
    revocations: Revocations,
    provider: Arc<CryptoProvider>,
    certificate: Arc<CertificateOfOurs>,
}

impl TlsSetup {
    /// A set-up with a fresh ephemeral certificate for `identity`, which asks `admission` about everybody whose
    /// credential is good.
    ///
    /// # Errors
    /// [`SetupError`]: the operating system or the TLS library failed; the process cannot start.
    pub fn new(identity: Identity, clock: Clock, admission: Admission) -> Result<Self, SetupError> {
        let provider = Arc::new(provider());
        let certificate = Arc::new(CertificateOfOurs::new(certify(&provider, &identity)?));
        let revocations = Revocations::new(identity.mesh);
        let identity = RwLock::new(Arc::new(identity));
        let rejections = Rejections::default();
        Ok(Self(Arc::new(Setup {
            identity,
            clock,
            admission,
            rejections,
            revocations,
            provider,
            certificate,
        })))
    }

    /// The policy that lets every holder of a good credential in.
    pub fn admit_members() -> Admission {
        Arc::new(|_, _| Ok(()))
    }

    /// Who this process is, with its credential of the moment.
    pub fn identity(&self) -> Arc<Identity> {
        self.0.identity.read().clone()
    }

    /// Shows `credential` from now on. Connections that are open keep the old one until it expires.
    ///
    /// # Errors
    /// [`RenewError`]: the old one stays.
    pub fn renew(&self, credential: SignedCredential) -> Result<(), RenewError> {
        let mut identity = self.0.identity.write();
        identity.mesh.check(&credential, identity.peer_id(), self.now())?;
        let (now, then) = (&identity.credential.value().zone, &credential.value().zone);
        if now != then {
            return Err(RenewError::Zone { now: now.clone(), then: then.clone() });
        }
        let fresh = Identity { credential, ..Identity::clone(&identity) };
        let certified = certify(&self.0.provider, &fresh)?;
        *identity = Arc::new(fresh);
        self.0.certificate.replace(certified);
        Ok(())
    }

    /// Whether a member that showed `credential` may stay connected, or come in.
    ///
    /// # Errors
    /// [`Rejection`]: it expired, was revoked, or is banned.
    pub fn check_member(&self, peer: PeerId, credential: &SignedCredential) -> Result<(), Rejection> {
        let mesh = self.identity().mesh;
        mesh.check(credential, peer, self.now()).map_err(|why| Rejection::Credential { peer, why })?;
        if self.0.revocations.is_revoked(&peer, credential) {
            return Err(Rejection::Refused { peer, why: Refusal::Revoked });
        }
        (self.0.admission)(&peer, credential).map_err(|why| Rejection::Refused { peer, why })
    }

    /// The list of revocations, which both planes' handshakes look at.
    pub fn revocations(&self) -> &Revocations {
        &self.0.revocations
    }

    /// What handshakes of both planes were refused for.
    pub fn rejections(&self) -> &Rejections {
        &self.0.rejections
    }

    /// The current time by this set-up's clock.
    pub fn now(&self) -> WallTime {
        (self.0.clock)()
    }
}

impl fmt::Debug for TlsSetup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSetup").field("identity", &self.identity()).finish_non_exhaustive()
    }
}

/// A fresh ephemeral certificate for `identity`.
fn certify(provider: &CryptoProvider, identity: &Identity) -> Result<CertifiedKey, SetupError> {
    let generated = certificate::generate(identity)?;
    let key = provider.key_provider.load_private_key(generated.key)?;
    Ok(CertifiedKey::new(vec![generated.certificate], key))
}

/// The accepting side's configuration for `plane`. Make it once and share it: it is the same for every connection.
///
/// # Errors
/// [`SetupError::Tls`]: only when the library was built without TLS 1.3.
pub fn server_config(setup: &TlsSetup, plane: Plane) -> Result<Arc<rustls::ServerConfig>, SetupError> {
    let mut config = rustls::ServerConfig::builder_with_provider(setup.0.provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(Verifier::new(setup, None)))
        .with_cert_resolver(setup.0.certificate.clone());
    config.alpn_protocols = vec![plane.alpn().to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// The dialling side's configuration for `plane`; with `expected`, nobody else is accepted at the other end.
/// Costs a few allocations, so one a connection is fine.
///
/// # Errors
/// [`SetupError::Tls`]: only when the library was built without TLS 1.3.
pub fn client_config(
    setup: &TlsSetup,
    plane: Plane,
    expected: Option<PeerId>,
) -> Result<Arc<rustls::ClientConfig>, SetupError> {
    let mut config = rustls::ClientConfig::builder_with_provider(setup.0.provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier::new(setup, expected)))
        .with_client_cert_resolver(setup.0.certificate.clone());
    config.alpn_protocols = vec![plane.alpn().to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    // The libp2p TLS specification forbids SNI.
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// The name to give to a TLS connector, which insists on one: it is neither sent nor looked at.
pub fn server_name() -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0; 4])))
}

/// Who is at the other end of a finished handshake: pass `connection.peer_certificates()`.
///
/// # Errors
/// [`Rejection`]: not the certificate of a finished handshake of ours.
pub fn peer_of(certificates: Option<&[CertificateDer<'_>]>) -> Result<(PeerId, SignedCredential), Rejection> {
    let [certificate] = certificates.unwrap_or_default() else {
        return Err(Rejection::Malformed("not exactly one certificate"));
    };
    let member = certificate::parse(certificate)?;
    Ok((member.peer, member.credential))
}

/// Checks that a finished handshake agreed on `plane`: pass `connection.alpn_protocol()`. A client that offers no
/// ALPN at all would otherwise get through.
///
/// # Errors
/// [`Rejection::Plane`].
pub fn check_plane(plane: Plane, alpn: Option<&[u8]>) -> Result<(), Rejection> {
    if alpn == Some(plane.alpn()) { Ok(()) } else { Err(Rejection::Plane) }
}

/// The TLS 1.3 suites, the fast one first.
fn provider() -> CryptoProvider {
    use rustls::crypto::aws_lc_rs::cipher_suite as suite;
    let aes = [suite::TLS13_AES_128_GCM_SHA256, suite::TLS13_AES_256_GCM_SHA384];
    let chacha = [suite::TLS13_CHACHA20_POLY1305_SHA256];
    let cipher_suites = if has_aes() {
        aes.into_iter().chain(chacha).collect()
    } else {
        chacha.into_iter().chain(aes).collect()
    };
    CryptoProvider { cipher_suites, ..rustls::crypto::aws_lc_rs::default_provider() }
}

#[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes")
}

#[cfg(target_arch = "aarch64")]
fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64")))]
fn has_aes() -> bool {
    false
}

#[cfg(test)]
mod tests;
