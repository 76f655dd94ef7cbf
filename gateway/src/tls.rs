//! TLS at the gateway: a certificate that is read again when its files change, and client certificates.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_rustls::ConfigBuilderExt as _;
use parking_lot::RwLock;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_util::sync::CancellationToken;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::access::ClientCertificate;

/// Between two looks at the files.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(2);
/// Longest certificate, key or CA file in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Most names read out of a client's certificate.
const NAMES_MAX: usize = 64;

/// Where the certificate, its key and the clients' CA are, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate chain, the server's own first.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The CA whose certificates clients may show; without it none is asked for.
    pub client_ca: Option<PathBuf>,
}

/// Why TLS cannot be served. Each text is one line that names the file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path}: {why}")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Others than its owner can read the key.
    #[error("{path} can be read by others (mode {mode:03o}): run chmod 600 on it")]
    Permissions {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The parts do not go together: the key is another certificate's, for instance.
    #[error("{path}: {source}")]
    Setup {
        /// The certificate's file.
        path: PathBuf,
        /// What the TLS library says.
        source: rustls::Error,
    },
}

/// What a server needs, from files that are followed.
pub struct ServerTls {
    files: TlsFiles,
    current: RwLock<Current>,
}

struct Current {
    config: Arc<ServerConfig>,
    fingerprint: blake3::Hash,
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`], whose text says what to do.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let current = RwLock::new(load(&files)?);
        Ok(Self { files, current })
    }

    /// The configuration for a new connection.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.current.read().config.clone()
    }

    /// Reads the files again whenever they change, until `shutdown`. Files that are wrong, as while they are being
    /// replaced, change nothing. Connections that are open keep the certificate they began with.
    pub async fn follow(self: Arc<Self>, shutdown: CancellationToken) {
        let mut warned = None;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(FOLLOW_INTERVAL) => {}
            }
            let own = self.clone();
            let looked = tokio::task::spawn_blocking(move || {
                let fingerprint = fingerprint(&own.files).ok();
                (fingerprint != Some(own.current.read().fingerprint)).then(|| load(&own.files))
            });
            match looked.await {
                Ok(Some(Ok(current))) => {
                    *self.current.write() = current;
                    warned = None;
                    tracing::info!(path = %self.files.certificate.display(), "a new certificate is in use");
                }
                Ok(Some(Err(error))) => {
                    let text = error.to_string();
                    if warned.as_ref() != Some(&text) {
                        tracing::warn!(%error, "the certificate's files have changed but are wrong; the last ones stay in use");
                        warned = Some(text);
                    }
                }
                Ok(None) | Err(_) => {}
            }
        }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn load(files: &TlsFiles) -> Result<Current, TlsError> {
    let fingerprint = fingerprint(files)?;
    let chain = certificates(&files.certificate)?;
    let key_pem = read(&files.key)?;
    check_mode(&files.key)?;
    let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|_| TlsError::Content {
        path: files.key.clone(),
        // The library's own words could repeat parts of the file.
        why: "no private key in PEM".to_owned(),
    })?;
    let setup = |source| TlsError::Setup { path: files.certificate.clone(), source };
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(setup)?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(roots(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                // Whether a request may do without one, the access rules say.
                .allow_unauthenticated()
                .build()
                .map_err(|error| TlsError::Content { path: path.clone(), why: error.to_string() })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(setup)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A resumed session would not show its certificate again.
    if files.client_ca.is_some() {
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    }
    Ok(Current { config: Arc::new(config), fingerprint })
}

/// For fetching keys from issuers. `ca` has the only certificates that servers are believed by.
pub(crate) fn client_config(ca: Option<&Path>) -> Result<rustls::ClientConfig, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let builder =
        rustls::ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| text(&error))?;
    let builder = match ca {
        Some(path) => builder.with_root_certificates(roots(path).map_err(|error| text(&error))?),
        None => builder.with_native_roots().map_err(|error| text(&error))?,
    };
    Ok(builder.with_no_client_auth())
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|error| TlsError::Content { path: path.to_owned(), why: error.to_string() })?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let content = |why: String| TlsError::Content { path: path.to_owned(), why };
    let pem = read(path)?;
    let all: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| content(error.to_string()))?;
    if all.is_empty() { Err(content("no certificate in PEM".to_owned())) } else { Ok(all) }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(failed)?.len() > FILE_BYTES_MAX {
        return Err(TlsError::Content { path: path.to_owned(), why: "too long".to_owned() });
    }
    std::fs::read(path).map_err(failed)
}

/// Group-readable is what Kubernetes makes of a secret with `fsGroup`; world-readable is nobody's intention.
fn check_mode(path: &Path) -> Result<(), TlsError> {
    use std::os::unix::fs::PermissionsExt as _;
    let meta = std::fs::metadata(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })?;
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o007 != 0 { Err(TlsError::Permissions { path: path.to_owned(), mode }) } else { Ok(()) }
}

fn fingerprint(files: &TlsFiles) -> Result<blake3::Hash, TlsError> {
    let mut hasher = blake3::Hasher::new();
    for path in [Some(&files.certificate), Some(&files.key), files.client_ca.as_ref()].into_iter().flatten() {
        let content = read(path)?;
        hasher.update(&(content.len() as u64).to_le_bytes());
        hasher.update(&content);
    }
    Ok(hasher.finalize())
}

/// The names in a certificate whose chain has been verified; `None` when it cannot be read after all.
pub(crate) fn client_names(certificate: &CertificateDer<'_>) -> Option<ClientCertificate> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let common = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok()).map(str::to_owned);
    let mut names: Vec<String> = common.collect();
    if let Ok(Some(alternatives)) = parsed.subject_alternative_name() {
        names.extend(alternatives.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(text) | GeneralName::URI(text) => Some((*text).to_owned()),
            _ => None,
        }));
    }
    names.truncate(NAMES_MAX);
    Some(ClientCertificate { names })
}
