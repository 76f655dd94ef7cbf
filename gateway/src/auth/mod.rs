//! Authentication and authorisation: the access file put to work.
//!
//! Whoever calls is found out by the first of: an `Authorization` header (user and password, or a token), a client
//! certificate. What it may do is for the rules to say, or for its token when the issuer decides. Nothing is allowed
//! that no rule allows; a wrong password or token is refused even where nobody has to log in.

mod file;
mod keys;
mod passwords;
mod rules;
mod throttle;
mod ticket;
mod tokens;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use data_encoding::BASE64;
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderMap, HeaderValue};
use parking_lot::RwLock;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use file::AccessFileError;
use file::Policy;
pub use passwords::HtpasswdError;
use rules::Caller;
pub use rules::{Action, RuleError, WhoError};
use throttle::Throttle;
use ticket::Tickets;
use tokens::TokenError;

use crate::access::{Access, AccessController, AccessError, Connection, IssuedToken};

/// Between two looks at the files.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(2);
/// Longest `Authorization` header looked at, in bytes.
const HEADER_BYTES_MAX: usize = 24 << 10;
/// What a client whose issuer's keys cannot be had is told to wait.
const KEYS_RETRY: Duration = Duration::from_secs(5);
/// Where this gateway gives out tokens itself.
pub(crate) const TOKEN_PATH: &str = "/auth/token";

#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz(text: &str) {
    file::fuzz(text);
    keys::fuzz(text.as_bytes());
    let _ = text.parse::<passwords::Passwords>();
    let _ = jsonwebtoken::decode_header(text);
}

/// 32 bytes of the operating system's randomness.
fn random_key() -> [u8; 32] {
    let mut key = [0; 32];
    #[expect(
        clippy::expect_used,
        reason = "without the operating system's randomness nothing here is secure"
    )]
    aws_lc_rs::rand::fill(&mut key).expect("the operating system has randomness");
    key
}

/// Decides by an access file, which it reads again when it changes.
pub struct Guard {
    path: PathBuf,
    policy: RwLock<Arc<Policy>>,
    throttle: Throttle,
    tickets: Tickets,
}

/// Who calls, or why that cannot be told.
enum Identified {
    Caller(Caller),
    /// What was shown is not good.
    Wrong(String),
}

impl Guard {
    /// Reads the access file at `path`.
    ///
    /// # Errors
    /// [`AccessFileError`], whose text names the file and says what to do.
    pub fn load(path: &Path) -> Result<Self, AccessFileError> {
        let policy = RwLock::new(Arc::new(Policy::load(path)?));
        Ok(Self { path: path.to_owned(), policy, throttle: Throttle::default(), tickets: Tickets::new() })
    }

    /// Whether callers prove themselves with passwords or tokens, which must not travel in the clear, and the file does
    /// not say that they may.
    pub fn wants_encryption(&self) -> bool {
        let policy = self.policy();
        (policy.passwords.is_some() || !policy.issuers.is_empty()) && !policy.in_the_clear
    }

    /// Reads the files again whenever they change, until `shutdown`. Files that are wrong change nothing.
    pub async fn follow(self: Arc<Self>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(FOLLOW_INTERVAL) => {}
            }
            let guard = self.clone();
            let looked = tokio::task::spawn_blocking(move || {
                let stale = guard.policy().is_stale(&guard.path);
                stale.then(|| Policy::load(&guard.path))
            });
            match looked.await {
                Ok(Some(Ok(policy))) => {
                    *self.policy.write() = Arc::new(policy);
                    tracing::info!(path = %self.path.display(), "the access file has changed and is in force");
                }
                Ok(Some(Err(error))) => {
                    tracing::warn!(%error, "the access file has changed but is wrong; the last good one stays in force");
                }
                Ok(None) | Err(_) => {}
            }
        }
    }

    fn policy(&self) -> Arc<Policy> {
        self.policy.read().clone()
    }

    async fn identify(
        &self,
        policy: &Policy,
        connection: &Connection,
        header: Option<&HeaderValue>,
    ) -> Result<Identified, AccessError> {
        let Some(header) = header else {
            return Ok(Identified::Caller(match &connection.certificate {
                Some(certificate) => Caller::Certificate(certificate.names.clone()),
                None => Caller::Anonymous,
            }));
        };
        let wrong = |why: &str| Ok(Identified::Wrong(why.to_owned()));
        let text = header.to_str().unwrap_or_default();
        if text.len() > HEADER_BYTES_MAX {
            return wrong("the Authorization header is too long");
        }
        let Some((scheme, value)) = text.split_once(' ') else {
            return wrong("the Authorization header is malformed");
        };
        let value = value.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return self.by_token(policy, value).await;
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return wrong("only Basic and Bearer are understood");
        }
        let decoded = BASE64.decode(value.as_bytes()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let Some((user, password)) = decoded.as_deref().and_then(|text| text.split_once(':')) else {
            return wrong("the Authorization header is malformed");
        };
        // podman and skopeo that have no password send this.
        if user.is_empty() && password.is_empty() {
            return Ok(Identified::Caller(Caller::Anonymous));
        }
        if tokens::looks_like_token(password) && !policy.issuers.is_empty() {
            return self.by_token(policy, password).await;
        }
        self.by_password(policy, connection.address, user, password).await
    }

    async fn by_password(
        &self,
        policy: &Policy,
        address: IpAddr,
        user: &str,
        password: &str,
    ) -> Result<Identified, AccessError> {
        let Some(passwords) = &policy.passwords else {
            return Ok(Identified::Wrong("passwords are not taken here".to_owned()));
        };
        if !passwords.remembers(user, password) {
            if let Some(retry_after) = self.throttle.wait(address, Instant::now()) {
                return Err(AccessError::TooMany { retry_after });
            }
            if !passwords.check(user, password).await {
                self.throttle.failed(address, Instant::now());
                tracing::info!(%address, user = user.chars().take(64).collect::<String>(), "wrong user or password");
                return Ok(Identified::Wrong("wrong user or password".to_owned()));
            }
        }
        Ok(Identified::Caller(Caller::User(user.to_owned())))
    }

    async fn by_token(&self, policy: &Policy, token: &str) -> Result<Identified, AccessError> {
        if let Some(redeemed) = self.tickets.redeem(token) {
            return Ok(match redeemed {
                Ok(caller) => Identified::Caller(caller),
                Err(why) => Identified::Wrong(why.to_owned()),
            });
        }
        match tokens::verify(&policy.issuers, token).await {
            Ok(caller) => Ok(Identified::Caller(caller)),
            Err(TokenError::Keys(error)) => {
                tracing::warn!(%error, "a token cannot be checked");
                let reason = "the keys of the token's issuer cannot be had".to_owned();
                Err(AccessError::Unavailable { retry_after: KEYS_RETRY, reason })
            }
            Err(error) => Ok(Identified::Wrong(error.to_string())),
        }
    }

    /// The `WWW-Authenticate` for a request that lacks `wanted`; `None` when nothing a client could send would help.
    ///
    /// One challenge and no more: docker gives up when it cannot meet each of several. Where nobody needs to log in for
    /// some things, it is Bearer with this gateway's own tokens, because docker without a password answers a Basic
    /// challenge by giving up.
    fn challenge(
        &self,
        policy: &Policy,
        connection: &Connection,
        headers: &HeaderMap,
        wanted: &[Access],
        error: Option<&str>,
    ) -> Option<String> {
        let outside = policy.issuers.iter().find_map(|issuer| issuer.realm.clone());
        let bearer = outside.or_else(|| {
            let own = policy.passwords.is_some() && rules::anonymous_allowed(&policy.rules);
            own.then(|| own_realm(connection, headers)).flatten()
        });
        let Some((realm, service)) = bearer else {
            let can_log_in = policy.passwords.is_some() || !policy.issuers.is_empty();
            return can_log_in.then(|| "Basic realm=\"shoal\", charset=\"UTF-8\"".to_owned());
        };
        let mut challenge = format!("Bearer realm=\"{realm}\",service=\"{service}\"");
        let scopes: Vec<String> = wanted.iter().filter_map(scope).collect();
        if !scopes.is_empty() {
            challenge.push_str(&format!(",scope=\"{}\"", scopes.join(" ")));
        }
        if let Some(error) = error {
            challenge.push_str(&format!(",error=\"{error}\""));
        }
        Some(challenge)
    }
}

/// This gateway's token endpoint as the client addresses the gateway.
fn own_realm(connection: &Connection, headers: &HeaderMap) -> Option<(String, String)> {
    let host = headers.get(HOST)?.to_str().ok()?;
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']' | '_');
    if host.is_empty() || !host.chars().all(good) {
        return None;
    }
    let scheme = if connection.tls { "https" } else { "http" };
    Some((format!("{scheme}://{host}{TOKEN_PATH}"), host.to_owned()))
}

/// What a token for `wanted` has to allow (distribution, "Token Scope Documentation").
fn scope(wanted: &Access) -> Option<String> {
    match wanted {
        Access::Ping => None,
        Access::Catalog => Some("registry:catalog:*".to_owned()),
        Access::Pull(name) => Some(format!("repository:{name}:pull")),
        Access::Push(name) => Some(format!("repository:{name}:pull,push")),
        Access::Delete(name) => Some(format!("repository:{name}:delete")),
        Access::Preheat(name) => Some(format!("repository:{name}:preheat")),
    }
}

#[async_trait]
impl AccessController for Guard {
    async fn check(
        &self,
        connection: &Connection,
        headers: &HeaderMap,
        wanted: &[Access],
    ) -> Result<(), AccessError> {
        let policy = self.policy();
        let unauthorized = |error: Option<&str>, reason: String| match self
            .challenge(&policy, connection, headers, wanted, error)
        {
            Some(challenge) => AccessError::Unauthorized { challenge, reason },
            None => AccessError::Denied(format!("{reason}: show a client certificate")),
        };
        let caller = match self.identify(&policy, connection, headers.get(AUTHORIZATION)).await? {
            Identified::Caller(caller) => caller,
            Identified::Wrong(why) => return Err(unauthorized(Some("invalid_token"), why)),
        };
        if wanted.iter().all(|wanted| rules::allowed(&policy.rules, &caller, wanted)) {
            return Ok(());
        }
        match &caller {
            Caller::Anonymous => Err(unauthorized(None, "log in first".to_owned())),
            // Another token may allow it: the client is told which to get.
            Caller::Granted { .. } => {
                Err(unauthorized(Some("insufficient_scope"), "the token does not allow it".to_owned()))
            }
            _ => Err(AccessError::Denied(format!("no rule allows it to {}", caller.describe()))),
        }
    }

    async fn issue_token(
        &self,
        connection: &Connection,
        authorization: Option<&HeaderValue>,
    ) -> Result<Option<IssuedToken>, AccessError> {
        let policy = self.policy();
        if policy.passwords.is_none() {
            return Ok(None);
        }
        let caller = match self.identify(&policy, connection, authorization).await? {
            Identified::Caller(caller) => caller,
            Identified::Wrong(reason) => {
                let challenge = "Basic realm=\"shoal\", charset=\"UTF-8\"".to_owned();
                return Err(AccessError::Unauthorized { challenge, reason });
            }
        };
        Ok(self.tickets.issue(&caller))
    }
}

#[cfg(test)]
mod tests;
