//! Answering a registry's 401: basic credentials, or a bearer token from the realm it names (distribution's "Token
//! Authentication Specification").

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use parking_lot::Mutex;
use reqwest::{Client, RequestBuilder, Response};
use serde::Deserialize;

use super::credentials::{Credentials, Source};
use crate::backend::BackendError;
use crate::text::told_text;
use crate::url::BackendUrl;
use crate::web;

/// Repositories whose tokens are kept; past it the oldest go.
const TOKENS_MAX: usize = 1024;
/// How long a token is good when its answer does not say (the same specification: 60 seconds).
const TOKEN_LIFETIME: Duration = Duration::from_secs(60);
/// A token is not used in its last moments: the request that carries it takes a while.
const TOKEN_MARGIN: Duration = Duration::from_secs(10);
/// Largest answer of a realm.
const TOKEN_BYTES_MAX: u64 = 1 << 20;

/// Keeps what a registry was answered.
#[derive(Debug)]
pub(super) struct Authenticator {
    client: Client,
    source: Source,
    known: Mutex<BTreeMap<String, Known>>,
}

struct Known {
    header: String,
    until: Instant,
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Known(…)")
    }
}

/// The request with an `Authorization` header.
pub(super) fn authorized(request: RequestBuilder, header: Option<&str>) -> RequestBuilder {
    match header {
        Some(header) => request.header(AUTHORIZATION, header),
        None => request,
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Authenticator {
    pub(super) fn new(client: Client, host: &str, url: &BackendUrl) -> Self {
        Self { client, source: Source::new(host, url.option("docker-config")), known: Mutex::default() }
    }

    /// The header that was good for a repository, while it is.
    pub(super) fn known(&self, name: &str) -> Option<String> {
        let known = self.known.lock();
        known.get(name).filter(|known| known.until > Instant::now()).map(|known| known.header.clone())
    }

    /// The header that a challenge asks for.
    ///
    /// # Errors
    /// [`BackendError::Denied`] when there are no credentials, or none that are taken.
    pub(super) async fn answer_challenge(
        &self,
        name: &str,
        answer: &Response,
    ) -> Result<String, BackendError> {
        let challenges = answer.headers().get_all(WWW_AUTHENTICATE).iter();
        let challenges: Vec<Challenge> =
            challenges.filter_map(|value| Challenge::parse(value.to_str().ok()?)).collect();
        let what = format!("pull {name} from {}", self.source.host());
        let credentials = self.source.get().await?;
        let (header, lifetime) = if let Some(bearer) = challenges.iter().find(|one| one.scheme == "bearer") {
            self.fetch_token(&what, name, bearer, credentials.as_ref()).await?
        } else {
            match credentials {
                Some(credentials @ Credentials::Password { .. }) => {
                    (credentials.basic(), TOKEN_LIFETIME * 10)
                }
                _ => {
                    return Err(BackendError::denied(
                        what,
                        told_text("it wants credentials, and there are none for it"),
                    ));
                }
            }
        };
        let now = Instant::now();
        let mut known = self.known.lock();
        known.retain(|_, known| known.until > now);
        while known.len() >= TOKENS_MAX {
            known.pop_first();
        }
        let until = now + lifetime.saturating_sub(TOKEN_MARGIN);
        known.insert(name.to_owned(), Known { header: header.clone(), until });
        Ok(header)
    }

    async fn fetch_token(
        &self,
        what: &str,
        name: &str,
        challenge: &Challenge,
        credentials: Option<&Credentials>,
    ) -> Result<(String, Duration), BackendError> {
        let denied = |why: &str| BackendError::denied(what, told_text(why));
        let realm =
            challenge.parameters.get("realm").ok_or_else(|| denied("its challenge names no realm"))?;
        let scope =
            challenge.parameters.get("scope").cloned().unwrap_or_else(|| format!("repository:{name}:pull"));
        let service = challenge.parameters.get("service").map_or("", String::as_str);
        let mut url: reqwest::Url =
            realm.parse().map_err(|_| denied("the realm of its challenge is no URL"))?;
        let request = match credentials {
            Some(Credentials::IdentityToken(token)) => {
                let form = [
                    ("grant_type", "refresh_token"),
                    ("service", service),
                    ("client_id", "shoal"),
                    ("scope", &scope),
                    ("refresh_token", token),
                ];
                let body =
                    form.iter().map(|(key, value)| format!("{key}={}", encode(value))).collect::<Vec<_>>();
                let request = self.client.post(url.clone()).body(body.join("&"));
                request.header(http::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            }
            other => {
                url.query_pairs_mut().append_pair("service", service).append_pair("scope", &scope);
                let request = self.client.get(url.clone());
                match other {
                    Some(password) => request.header(AUTHORIZATION, password.basic()),
                    None => request,
                }
            }
        };
        let answer = web::send(what, request).await?;
        if !answer.status().is_success() {
            return Err(web::refused(&format!("{what}: get a token from {realm}"), answer.status()));
        }
        let body = web::ranged_body(what, answer, &(0..TOKEN_BYTES_MAX)).await?;
        let token: Token =
            serde_json::from_slice(&body).map_err(|_| denied("its realm's answer is no token"))?;
        let lifetime = token.expires_in.map_or(TOKEN_LIFETIME, Duration::from_secs);
        let token =
            token.token.or(token.access_token).ok_or_else(|| denied("its realm's answer has no token"))?;
        Ok((format!("Bearer {token}"), lifetime))
    }
}

fn encode(value: &str) -> String {
    let mut text = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// One challenge of a `WWW-Authenticate` header (RFC 9110, section 11.6.1), its scheme in lower case.
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    scheme: String,
    parameters: BTreeMap<String, String>,
}

impl Challenge {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let mut parameters = BTreeMap::new();
        while let Some((key, value)) = rest.split_once('=') {
            let value = value.trim_start();
            let (value, after) = match value.strip_prefix('"') {
                // Values with commas in them, such as scopes, are quoted.
                Some(quoted) => quoted.split_once('"')?,
                None => value.split_once(',').unwrap_or((value, "")),
            };
            parameters.insert(key.trim_matches([' ', ',']).to_lowercase(), value.to_owned());
            rest = after.trim_start_matches([' ', ',']);
        }
        (!scheme.is_empty()).then(|| Self { scheme: scheme.to_lowercase(), parameters })
    }
}

#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz_challenge(text: &str) {
    if let Some(challenge) = Challenge::parse(text) {
        assert!(!challenge.scheme.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let text = r#"Bearer realm="https://auth.example/token",service="reg, istry",scope="repository:a/b:pull,push",x=y"#;
        let challenge = Challenge::parse(text).unwrap();
        let get = |key: &str| challenge.parameters.get(key).map(String::as_str);
        assert_eq!(challenge.scheme, "bearer");
        assert_eq!(get("realm"), Some("https://auth.example/token"));
        assert_eq!(get("service"), Some("reg, istry"));
        assert_eq!(get("scope"), Some("repository:a/b:pull,push"));
        assert_eq!(get("x"), Some("y"));
        assert_eq!(Challenge::parse("Basic realm=\"x\"").unwrap().scheme, "basic");
        assert_eq!(Challenge::parse("BASIC").unwrap().scheme, "basic");
        assert_eq!(Challenge::parse(""), None);
        assert_eq!(Challenge::parse("Bearer realm=\"unclosed"), None);
    }

    #[test]
    fn forms_are_encoded() {
        assert_eq!(encode("a b/c:d=é"), "a%20b%2Fc%3Ad%3D%C3%A9");
    }
}
