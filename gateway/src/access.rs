//! Who may do what: the layer that authentication goes into.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{HeaderMap, HeaderValue};
use shoal_types::RepositoryName;

/// What a request needs to be allowed to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Ask whether this is a registry, and whether one is logged in.
    Ping,
    /// List repositories.
    Catalog,
    /// Read from a repository.
    Pull(RepositoryName),
    /// Write to a repository.
    Push(RepositoryName),
    /// Delete from a repository.
    Delete(RepositoryName),
    /// Have gateways fetch an image of a repository.
    Preheat(RepositoryName),
}

/// The names in a client's certificate, whose chain the TLS layer has verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The subject's common name, and the DNS and URI names of the subject's alternatives (SPIFFE ids are URIs).
    pub names: Vec<String>,
}

/// What is known of the other end of a connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Where it comes from.
    pub address: IpAddr,
    /// It is encrypted.
    pub tls: bool,
    /// The client's certificate, if it showed one.
    pub certificate: Option<Arc<ClientCertificate>>,
}

impl Default for Connection {
    fn default() -> Self {
        Self { address: Ipv4Addr::UNSPECIFIED.into(), tls: false, certificate: None }
    }
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// Nobody has logged in, or not with what it takes. Answered with 401 and this challenge in `WWW-Authenticate`.
    #[error("authentication required: {reason}")]
    Unauthorized {
        /// The challenge.
        challenge: String,
        /// What is wrong with what was shown, for people.
        reason: String,
    },
    /// Whoever it is may not. Answered with 403.
    #[error("denied: {0}")]
    Denied(String),
    /// Too many wrong passwords came from there. Answered with 429.
    #[error("too many failed attempts")]
    TooMany {
        /// When to try again.
        retry_after: Duration,
    },
    /// It cannot be told who it is: the keys of a token's issuer cannot be had. Answered with 503.
    #[error("{reason}")]
    Unavailable {
        /// When to try again.
        retry_after: Duration,
        /// What is missing.
        reason: String,
    },
}

/// A token of the gateway's own, for clients that speak the distribution's token protocol only.
#[derive(Clone, Debug)]
pub struct IssuedToken {
    /// The token, opaque to the client.
    pub token: String,
    /// How long it lasts.
    pub lifetime: Duration,
}

/// Decides on each request before anything is done for it.
#[async_trait]
pub trait AccessController: Send + Sync + 'static {
    /// Whether a request with these headers may have all of `wanted`. A mount wants two things.
    ///
    /// # Errors
    /// [`AccessError`] says how the request is refused.
    async fn check(
        &self,
        connection: &Connection,
        headers: &HeaderMap,
        wanted: &[Access],
    ) -> Result<(), AccessError>;

    /// A token for whoever shows these headers; `None` when tokens come from elsewhere.
    ///
    /// # Errors
    /// [`AccessError`]: the password is wrong.
    async fn issue_token(
        &self,
        _: &Connection,
        _: Option<&HeaderValue>,
    ) -> Result<Option<IssuedToken>, AccessError> {
        Ok(None)
    }
}

/// Everybody may do everything: for a gateway on loopback.
#[derive(Clone, Copy, Debug, Default)]
pub struct AllowAll;

#[async_trait]
impl AccessController for AllowAll {
    async fn check(&self, _: &Connection, _: &HeaderMap, _: &[Access]) -> Result<(), AccessError> {
        Ok(())
    }
}
