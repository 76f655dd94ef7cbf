//! Other registries as users name them: `HOST[=registry://…]`.

use std::fmt;
use std::str::FromStr;

use shoal_types::RepositoryName;

use crate::url::{BackendRule, BackendUrl, BackendUrlError, Scheme};

/// Docker Hub's name in references, and where it answers.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// A registry whose images the mesh pulls through. They are kept apart under its name: `library/nginx` of `docker.io` is
/// `docker.io/library/nginx` in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamRule {
    host: String,
    prefix: RepositoryName,
    url: BackendUrl,
}

/// Why a text names no registry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamRuleError {
    /// It is no host.
    #[error("{0:?} is no registry: expected HOST, HOST:PORT or HOST=registry://…, as in docker.io")]
    Host(String),
    /// It is to be asked somewhere else than at a registry.
    #[error("{host} is to be asked at {url}, which is no registry: expected registry://HOST")]
    Scheme {
        /// The registry.
        host: String,
        /// Where.
        url: String,
    },
    /// The URL is wrong.
    #[error(transparent)]
    Url(#[from] BackendUrlError),
}

impl UpstreamRule {
    /// The registry's name in references, and in `?ns=`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// What the names of its repositories begin with in the mesh, before a slash: its name, with `_` for the colon
    /// before a port.
    pub fn prefix(&self) -> &str {
        self.prefix.as_str()
    }

    /// Whether a repository of the mesh is one of its.
    pub fn owns(&self, repository: &RepositoryName) -> bool {
        repository.as_str().strip_prefix(self.prefix()).is_some_and(|rest| rest.starts_with('/'))
    }

    /// The backend of its repositories.
    pub fn backend(&self) -> BackendRule {
        BackendRule { pattern: format!("{}/.*", regex::escape(self.prefix())), url: self.url.clone() }
    }
}

impl FromStr for UpstreamRule {
    type Err = UpstreamRuleError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, url) = text.split_once('=').map_or((text, None), |(host, url)| (host, Some(url)));
        let host = host.trim().to_ascii_lowercase();
        let bad = || UpstreamRuleError::Host(host.clone());
        let (name, port) =
            host.split_once(':').map_or((host.as_str(), None), |(name, port)| (name, Some(port)));
        let named = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte));
        if !named || port.is_some_and(|port| port.parse::<u16>().is_err()) {
            return Err(bad());
        }
        let prefix: RepositoryName = host.replace(':', "_").parse().map_err(|_| bad())?;
        let default = if host == DOCKER_HUB.0 { DOCKER_HUB.1 } else { &host };
        let mut url: BackendUrl = match url {
            Some(url) => url.parse()?,
            None => format!("registry://{default}").parse()?,
        };
        if url.scheme != Scheme::Registry {
            return Err(UpstreamRuleError::Scheme { host, url: url.to_string() });
        }
        url.options.entry("strip".to_owned()).or_insert_with(|| prefix.as_str().to_owned());
        Ok(Self { host, prefix, url })
    }
}

impl fmt::Display for UpstreamRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.host, self.url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> UpstreamRule {
        text.parse().unwrap()
    }

    #[test]
    fn hosts_become_prefixes() {
        let hub = parse("docker.io");
        assert_eq!(
            (hub.host(), hub.prefix(), hub.url.place.as_str()),
            ("docker.io", "docker.io", "registry-1.docker.io")
        );
        let local = parse("Registry.Example:5000=registry://10.0.0.1:5000/team?plain-http&max-age=5m");
        assert_eq!((local.host(), local.prefix()), ("registry.example:5000", "registry.example_5000"));
        assert_eq!(local.url.option("strip"), Some("registry.example_5000"));
        assert_eq!(local.url.max_age().unwrap().as_secs(), 300);
        let owns = |name: &str| hub.owns(&name.parse().unwrap());
        assert!(owns("docker.io/library/nginx") && owns("docker.io/x"));
        assert!(!owns("docker.io") && !owns("docker.iox/y") && !owns("library/nginx"));
        let rule = local.backend();
        assert_eq!(rule.pattern, "registry\\.example_5000/.*");
    }

    #[test]
    fn what_is_no_registry_is_refused() {
        for text in
            ["", "a b", "a/b", "a:port", "-", "a=fs:/x", "a=registry://", "a=registry://b?strop=x", "a:1:2"]
        {
            assert!(text.parse::<UpstreamRule>().is_err(), "{text}");
        }
        let error = "a=s3://bucket".parse::<UpstreamRule>().unwrap_err().to_string();
        assert!(error.contains("registry://"), "{error}");
    }
}
