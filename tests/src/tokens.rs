//! A token server of the distribution project's protocol, issuing real JWTs ("Token Authentication Specification").
//!
//! Users `NAME`/`NAME-password` may do everything in `NAME/…`; everybody, nobody included, may pull from `public/…`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bytes::Bytes;
use data_encoding::{BASE64, BASE64URL_NOPAD};
use http::header::AUTHORIZATION;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The `iss` of its tokens.
pub const ISSUER: &str = "https://tokens.test";
/// The `aud` of its tokens, and the `service` that clients ask for.
pub const SERVICE: &str = "shoal.test";

/// Signs tokens.
pub struct Signer {
    key: EncodingKey,
    jwk: Value,
}

impl Signer {
    /// One with a new Ed25519 key.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn new() -> Result<Self> {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
        let x = BASE64URL_NOPAD.encode(pair.public_key_raw());
        let jwk =
            json!({"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": "test", "x": x});
        Ok(Self { key: EncodingKey::from_ed_der(&pair.serialize_der()), jwk })
    }

    /// The key set that verifies its tokens.
    pub fn jwks(&self) -> String {
        json!({ "keys": [self.jwk] }).to_string()
    }

    /// A token with these claims, to which issuer, audience and times are added.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn token(&self, mut claims: Value) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        claims["iss"] = json!(ISSUER);
        claims["aud"] = json!(SERVICE);
        claims["nbf"] = json!((now - Duration::from_secs(5)).as_secs());
        claims["exp"] = json!((now + Duration::from_secs(300)).as_secs());
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some("test".to_owned());
        Ok(encode(&header, &claims, &self.key)?)
    }
}

/// A running token server; it ends when it is dropped.
pub struct TokenServer {
    /// Where it listens.
    pub addr: SocketAddr,
    /// What signs its tokens.
    pub signer: Arc<Signer>,
    issued: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl TokenServer {
    /// Starts one on loopback.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let signer = Arc::new(Signer::new()?);
        let issued = Arc::new(AtomicUsize::new(0));
        let (own, counter) = (signer.clone(), issued.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (signer, counter) = (own.clone(), counter.clone());
                let service = service_fn(move |request| {
                    let answer = answer(&signer, &counter, &request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Ok(Self { addr, signer, issued, task })
    }

    /// Where clients get tokens.
    pub fn realm(&self) -> String {
        format!("http://{}/token", self.addr)
    }

    /// Tokens given out so far.
    pub fn issued(&self) -> usize {
        self.issued.load(Ordering::SeqCst)
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn answer(signer: &Signer, issued: &AtomicUsize, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let plain = |status: StatusCode| {
        let mut response = Response::new(Full::default());
        *response.status_mut() = status;
        response
    };
    if request.method() != Method::GET || request.uri().path() != "/token" {
        return plain(StatusCode::NOT_FOUND);
    }
    let Ok(user) = user_of(request) else { return plain(StatusCode::UNAUTHORIZED) };
    let query = request.uri().query().unwrap_or_default();
    let scopes = query.split('&').filter_map(|pair| pair.strip_prefix("scope=")).map(decode);
    let access: Vec<Value> = scopes
        .flat_map(|scope| scope.split(' ').map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|scope| granted(user.as_deref(), &scope))
        .collect();
    let subject = user.unwrap_or_default();
    match signer.token(json!({ "sub": subject, "access": access })) {
        Ok(token) => {
            issued.fetch_add(1, Ordering::SeqCst);
            let body = json!({ "token": token, "expires_in": 300 }).to_string();
            Response::new(Full::from(body))
        }
        Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

/// Who asks: nobody without a password.
fn user_of(request: &Request<Incoming>) -> Result<Option<String>> {
    let Some(header) = request.headers().get(AUTHORIZATION) else { return Ok(None) };
    let coded = header.to_str()?.strip_prefix("Basic ").context("not Basic")?;
    let text = String::from_utf8(BASE64.decode(coded.as_bytes())?)?;
    let (user, password) = text.split_once(':').context("no password")?;
    anyhow::ensure!(password == format!("{user}-password"), "wrong password");
    Ok(Some(user.to_owned()))
}

fn granted(user: Option<&str>, scope: &str) -> Option<Value> {
    let mut parts = scope.splitn(3, ':');
    let (kind, name, actions) = (parts.next()?, parts.next()?, parts.next()?);
    let own = user.is_some_and(|user| name.starts_with(&format!("{user}/")));
    let allowed = |action: &&str| own || (name.starts_with("public/") && *action == "pull");
    let actions: Vec<&str> = actions.split(',').filter(allowed).collect();
    (!actions.is_empty()).then(|| json!({"type": kind, "name": name, "actions": actions}))
}

fn decode(text: &str) -> String {
    text.replace("%3A", ":")
        .replace("%3a", ":")
        .replace("%2F", "/")
        .replace("%2C", ",")
        .replace(['+'], " ")
        .replace("%20", " ")
}
