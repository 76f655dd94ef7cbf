//! The public keys of token issuers: a JWKS (RFC 7517) out of a file, from a URL, or found by OpenID discovery.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use parking_lot::RwLock;
use serde::Deserialize;
use tokio::time::Instant;

/// Longest JWKS or discovery document in bytes.
const DOCUMENT_BYTES_MAX: usize = 256 << 10;
/// Most keys of one issuer; a token without a key id is tried with all of its kind.
const KEYS_MAX: usize = 32;
/// How long fetching may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// Keys are fetched again after this long, so that one taken back is not believed for ever.
const AGE_MAX: Duration = Duration::from_secs(600);
/// The same for a file, which costs next to nothing to read.
const FILE_AGE_MAX: Duration = Duration::from_secs(2);
/// An unknown key id leads to a fetch no sooner than this after the last: anybody can invent key ids.
const REFETCH_DELAY: Duration = Duration::from_secs(10);
/// When an issuer does not answer, its last keys are believed for this long.
const STALE_MAX: Duration = Duration::from_secs(24 * 3600);

/// Why keys cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("keys: {0:?} is not a URL")]
    Url(String),
    #[error("keys: {0} is http://, which anybody in between can change: use https:// (loopback is excepted)")]
    Plain(String),
    #[error("keys: set keys to a file or URL: the issuer {0:?} is not a URL at which to look for them")]
    NoDiscovery(String),
    #[error("ca: {path}: {why}")]
    Ca { path: PathBuf, why: String },
    #[error("cannot read {path}: {why}")]
    File { path: PathBuf, why: String },
    #[error("cannot fetch {url}: {why}")]
    Fetch { url: String, why: String },
    #[error("{from}: not a key set: {why}")]
    Format { from: String, why: String },
    #[error("the discovery document of {0} is of another issuer")]
    OtherIssuer(String),
}

type HttpClient = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

enum Place {
    File(PathBuf),
    Url(Uri),
    /// OpenID Connect Discovery 1.0, §4: the document beside the issuer's URL names the key set's.
    Discovery {
        issuer: String,
        document: Uri,
    },
}

/// One usable key.
pub(crate) struct Key {
    id: Option<String>,
    algorithm: Option<Algorithm>,
    pub(crate) key: DecodingKey,
}

struct Loaded {
    keys: Arc<Vec<Key>>,
    at: Instant,
}

/// An issuer's keys and where they come from.
pub(crate) struct KeySource {
    place: Place,
    client: HttpClient,
    loaded: RwLock<Option<Loaded>>,
    /// When it was last tried to load them; held while that goes on, so that one load serves all who wait.
    tried: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Deserialize)]
struct Discovered {
    issuer: String,
    jwks_uri: String,
}

impl KeySource {
    /// `keys` is a file (relative to `dir`) or URL; without it the issuer's discovery document is asked. `ca` has
    /// the only certificates, in PEM, that a server is believed by; without it the system's are.
    pub(crate) fn parse(
        keys: Option<&str>,
        issuer: &str,
        dir: &Path,
        ca: Option<&Path>,
    ) -> Result<Self, KeyError> {
        let place = match keys {
            Some(text) if text.contains("://") => Place::Url(url(text)?),
            Some(text) => Place::File(dir.join(text)),
            None if issuer.starts_with("https://") || issuer.starts_with("http://") => {
                let text = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
                Place::Discovery { issuer: issuer.to_owned(), document: url(&text)? }
            }
            None => return Err(KeyError::NoDiscovery(issuer.to_owned())),
        };
        let tls = crate::tls::client_config(ca).map_err(|why| KeyError::Ca {
            path: ca.unwrap_or(Path::new("the system's certificates")).to_owned(),
            why,
        })?;
        let connector =
            hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
        let client = Client::builder(TokioExecutor::new()).build(connector.build());
        Ok(Self { place, client, loaded: RwLock::new(None), tried: tokio::sync::Mutex::new(None) })
    }

    /// The keys that a token with this header may be signed by. Loads them when they are old, or when the id is
    /// unknown.
    pub(crate) async fn find(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<(Arc<Vec<Key>>, Vec<usize>), KeyError> {
        let age_max = if matches!(self.place, Place::File(_)) { FILE_AGE_MAX } else { AGE_MAX };
        if let Some(keys) = self.fresh(age_max) {
            let matching = matching(&keys, id, algorithm);
            if !matching.is_empty() {
                return Ok((keys, matching));
            }
        }
        let keys = self.load(age_max).await?;
        let matching = matching(&keys, id, algorithm);
        Ok((keys, matching))
    }

    fn fresh(&self, age_max: Duration) -> Option<Arc<Vec<Key>>> {
        let loaded = self.loaded.read();
        loaded.as_ref().filter(|loaded| loaded.at.elapsed() <= age_max).map(|loaded| loaded.keys.clone())
    }

    async fn load(&self, age_max: Duration) -> Result<Arc<Vec<Key>>, KeyError> {
        let mut tried = self.tried.lock().await;
        let pause = REFETCH_DELAY.min(age_max);
        if tried.is_some_and(|at| at.elapsed() < pause)
            && let Some(keys) = self.fresh(STALE_MAX)
        {
            return Ok(keys);
        }
        *tried = Some(Instant::now());
        match self.fetch_all().await {
            Ok(keys) => {
                let keys = Arc::new(keys);
                *self.loaded.write() = Some(Loaded { keys: keys.clone(), at: Instant::now() });
                Ok(keys)
            }
            Err(error) => match self.fresh(STALE_MAX) {
                Some(keys) => {
                    tracing::warn!(%error, "the last keys of a token issuer are believed a while longer");
                    Ok(keys)
                }
                None => Err(error),
            },
        }
    }

    async fn fetch_all(&self) -> Result<Vec<Key>, KeyError> {
        match &self.place {
            Place::File(path) => {
                let text = tokio::fs::read(path)
                    .await
                    .map_err(|error| KeyError::File { path: path.clone(), why: error.to_string() })?;
                parse(&text, &path.display().to_string())
            }
            Place::Url(url) => parse(&self.fetch(url).await?, &url.to_string()),
            Place::Discovery { issuer, document } => {
                let from = document.to_string();
                let found: Discovered = serde_json::from_slice(&self.fetch(document).await?)
                    .map_err(|error| KeyError::Format { from, why: error.to_string() })?;
                if found.issuer != *issuer {
                    return Err(KeyError::OtherIssuer(issuer.clone()));
                }
                let keys = url(&found.jwks_uri)?;
                parse(&self.fetch(&keys).await?, &found.jwks_uri)
            }
        }
    }

    async fn fetch(&self, url: &Uri) -> Result<Bytes, KeyError> {
        let failed = |why: String| KeyError::Fetch { url: url.to_string(), why };
        let fetch = async {
            let answer = self.client.get(url.clone()).await.map_err(|error| failed(causes(&error)))?;
            if !answer.status().is_success() {
                return Err(failed(format!("the answer is {}", answer.status())));
            }
            let body = Limited::new(answer.into_body(), DOCUMENT_BYTES_MAX).collect().await;
            body.map(|body| body.to_bytes()).map_err(|error| failed(error.to_string()))
        };
        tokio::time::timeout(FETCH_TIMEOUT, fetch)
            .await
            .unwrap_or_else(|_| Err(failed(format!("no answer in {FETCH_TIMEOUT:?}"))))
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn url(text: &str) -> Result<Uri, KeyError> {
    let bad = || KeyError::Url(text.to_owned());
    let url: Uri = text.parse().map_err(|_| bad())?;
    let host = url.host().ok_or_else(bad)?;
    match url.scheme_str() {
        Some("https") => Ok(url),
        Some("http") if is_loopback(host) => Ok(url),
        Some("http") => Err(KeyError::Plain(text.to_owned())),
        _ => Err(bad()),
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The usable keys of a JWKS. Secret (symmetric) keys are never usable: whoever can check such a token can make it.
fn parse(document: &[u8], from: &str) -> Result<Vec<Key>, KeyError> {
    if document.len() > DOCUMENT_BYTES_MAX {
        return Err(KeyError::Format { from: from.to_owned(), why: "too long".to_owned() });
    }
    let set: JwkSet = serde_json::from_slice(document)
        .map_err(|error| KeyError::Format { from: from.to_owned(), why: error.to_string() })?;
    Ok(set.keys.iter().take(KEYS_MAX).filter_map(usable).collect())
}

#[cfg(feature = "fuzzing")]
pub(super) fn fuzz(document: &[u8]) {
    let keys = parse(document, "here").unwrap_or_default();
    assert!(keys.len() <= KEYS_MAX);
    let _ = url(&String::from_utf8_lossy(document));
}

fn usable(jwk: &Jwk) -> Option<Key> {
    let public = !matches!(jwk.algorithm, AlgorithmParameters::OctetKey(_));
    let signs = jwk.common.public_key_use.as_ref().is_none_or(|usage| *usage == PublicKeyUse::Signature);
    let algorithm = match jwk.common.key_algorithm {
        Some(algorithm) => Some(algorithm.to_string().parse::<Algorithm>().ok()?),
        None => None,
    };
    let key = DecodingKey::from_jwk(jwk).ok().filter(|_| public && signs)?;
    Some(Key { id: jwk.common.key_id.clone(), algorithm, key })
}

/// Positions of the keys that fit a token's header.
fn matching(keys: &[Key], id: Option<&str>, algorithm: Algorithm) -> Vec<usize> {
    let fits = |key: &Key| {
        key.key.family() == algorithm.family()
            && key.algorithm.is_none_or(|own| own == algorithm)
            && id.is_none_or(|id| key.id.as_deref().is_none_or(|own| own == id))
    };
    keys.iter().enumerate().filter(|(_, key)| fits(key)).map(|(at, _)| at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_and_foreign_keys_are_not_used() {
        let document = br#"{"keys":[
            {"kty":"oct","kid":"s","k":"c2VjcmV0"},
            {"kty":"OKP","crv":"Ed25519","kid":"e","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
            {"kty":"OKP","crv":"Ed25519","kid":"n","use":"enc","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
        ]}"#;
        let keys = parse(document, "here").unwrap();
        assert_eq!(keys.iter().map(|key| key.id.as_deref().unwrap()).collect::<Vec<_>>(), ["e"]);
        assert_eq!(matching(&keys, Some("e"), Algorithm::EdDSA), [0]);
        assert_eq!(matching(&keys, None, Algorithm::EdDSA), [0]);
        assert!(matching(&keys, Some("x"), Algorithm::EdDSA).is_empty());
        assert!(matching(&keys, Some("e"), Algorithm::RS256).is_empty());
        assert!(parse(b"[]", "here").is_err() && parse(b"{}", "here").is_err());
    }

    #[test]
    fn keys_are_not_fetched_in_the_clear() {
        assert!(matches!(url("http://keys.example/jwks"), Err(KeyError::Plain(_))));
        for good in
            ["https://keys.example/jwks", "http://127.0.0.1:1/jwks", "http://[::1]:1/", "http://localhost/x"]
        {
            assert!(url(good).is_ok(), "{good}");
        }
        for bad in ["ftp://x/", "https://", "x"] {
            assert!(url(bad).is_err(), "{bad}");
        }
    }
}
