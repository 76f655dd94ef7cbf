//! Who may do what: the layer that authentication goes into.

use async_trait::async_trait;
use http::HeaderMap;
use shoal_types::RepositoryName;

/// What a request needs to be allowed to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Ask whether this is a registry.
    Ping,
    /// List repositories.
    Catalog,
    /// Read from a repository.
    Pull(RepositoryName),
    /// Write to a repository.
    Push(RepositoryName),
    /// Delete from a repository.
    Delete(RepositoryName),
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// Nobody has logged in. Answered with 401 and this challenge in `WWW-Authenticate`.
    #[error("authentication required")]
    Unauthorized {
        /// The challenge.
        challenge: String,
    },
    /// Whoever it is may not. Answered with 403.
    #[error("denied: {0}")]
    Denied(String),
}

/// Decides on each request before anything is done for it.
#[async_trait]
pub trait AccessController: Send + Sync + 'static {
    /// Whether a request with these headers may have all of `wanted`. A mount wants two things.
    ///
    /// # Errors
    /// [`AccessError`] says how the request is refused.
    async fn check(&self, headers: &HeaderMap, wanted: &[Access]) -> Result<(), AccessError>;
}

/// Everybody may do everything: for a gateway on loopback.
#[derive(Clone, Copy, Debug, Default)]
pub struct AllowAll;

#[async_trait]
impl AccessController for AllowAll {
    async fn check(&self, _: &HeaderMap, _: &[Access]) -> Result<(), AccessError> {
        Ok(())
    }
}
