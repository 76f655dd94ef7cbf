//! Which backend keeps what.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use regex::Regex;
use shoal_types::{Digest, RepositoryName};

use crate::backend::{Backend, BackendError};
use crate::fs::FsBackend;

/// Where a backend is, as users write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendUrl {
    /// `fs:/path` or `fs:///path`: a directory.
    Fs(PathBuf),
}

/// Why a text is not a backend's URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackendUrlError {
    /// It has no scheme, or one that is not known.
    #[error("{0:?} is not a backend: expected fs:/absolute/path")]
    Scheme(String),
    /// The path is not absolute.
    #[error("the path of {0:?} must be absolute, as in fs:/srv/shoal")]
    Path(String),
}

impl FromStr for BackendUrl {
    type Err = BackendUrlError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let path = text.strip_prefix("fs:").ok_or_else(|| BackendUrlError::Scheme(text.to_owned()))?;
        // With two slashes a host would follow, so only an empty one will do.
        let path = match path.strip_prefix("//") {
            Some(after_host) => after_host,
            None => path,
        };
        if !path.starts_with('/') {
            return Err(BackendUrlError::Path(text.to_owned()));
        }
        Ok(Self::Fs(PathBuf::from(path)))
    }
}

impl fmt::Display for BackendUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fs(path) => write!(f, "fs:{}", path.display()),
        }
    }
}

impl BackendUrl {
    /// Opens the backend.
    ///
    /// # Errors
    /// [`BackendError`], with what to put right.
    pub async fn open(&self) -> Result<Arc<dyn Backend>, BackendError> {
        match self {
            Self::Fs(path) => Ok(Arc::new(FsBackend::open(path).await?)),
        }
    }
}

/// Repositories and the backend that keeps them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendRule {
    /// A regular expression that the whole of a repository's name must match.
    pub pattern: String,
    /// Their backend.
    pub url: BackendUrl,
}

/// Why backends do not make a set.
#[derive(Debug, thiserror::Error)]
pub enum BackendSetError {
    /// A pattern is not a regular expression.
    #[error("the repository pattern {pattern:?} is not a regular expression: {source}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// Why.
        source: Box<regex::Error>,
    },
    /// A backend cannot be opened.
    #[error("the backend {url} cannot be opened: {source}")]
    Open {
        /// Where.
        url: BackendUrl,
        /// Why.
        source: BackendError,
    },
}

/// The backends of an origin. Of the rules that match a repository, the first one wins. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct BackendSet {
    rules: Arc<[(Regex, Arc<dyn Backend>)]>,
    /// Each backend once, in the order of the rules.
    distinct: Arc<[Arc<dyn Backend>]>,
}

/// A blob that a backend has.
#[derive(Clone, Debug)]
pub struct Found {
    /// Who has it.
    pub backend: Arc<dyn Backend>,
    /// Size in bytes.
    pub size: u64,
}

impl BackendSet {
    /// Opens the backends of `rules`; a URL in several is opened once.
    ///
    /// # Errors
    /// [`BackendSetError`].
    pub async fn open(rules: &[BackendRule]) -> Result<Self, BackendSetError> {
        let mut opened: Vec<(&BackendUrl, Arc<dyn Backend>)> = Vec::new();
        let mut wanted = Vec::new();
        for rule in rules {
            let known = opened.iter().find(|(url, _)| **url == rule.url).map(|(_, backend)| backend.clone());
            let backend = match known {
                Some(backend) => backend,
                None => {
                    let backend = rule.url.open().await;
                    let backend =
                        backend.map_err(|source| BackendSetError::Open { url: rule.url.clone(), source })?;
                    opened.push((&rule.url, backend.clone()));
                    backend
                }
            };
            wanted.push((rule.pattern.clone(), backend));
        }
        Self::new(wanted)
    }

    /// A set of opened backends and the patterns of their repositories.
    ///
    /// # Errors
    /// [`BackendSetError::Pattern`].
    pub fn new(rules: impl IntoIterator<Item = (String, Arc<dyn Backend>)>) -> Result<Self, BackendSetError> {
        let mut distinct: Vec<Arc<dyn Backend>> = Vec::new();
        let mut compiled = Vec::new();
        for (pattern, backend) in rules {
            // Anchored: `prod/.*` is not meant to match `preprod/x`.
            let regex = Regex::new(&format!("^(?:{pattern})$"))
                .map_err(|source| BackendSetError::Pattern { pattern, source: Box::new(source) })?;
            if !distinct.iter().any(|known| Arc::ptr_eq(known, &backend)) {
                distinct.push(backend.clone());
            }
            compiled.push((regex, backend));
        }
        Ok(Self { rules: compiled.into(), distinct: distinct.into() })
    }

    /// The backend that keeps `repository`; `None` when no rule matches.
    pub fn of(&self, repository: &RepositoryName) -> Option<&Arc<dyn Backend>> {
        self.rules.iter().find(|(regex, _)| regex.is_match(repository.as_str())).map(|(_, backend)| backend)
    }

    /// Each backend once.
    pub fn all(&self) -> &[Arc<dyn Backend>] {
        &self.distinct
    }

    /// Whether there is no backend at all.
    pub fn is_empty(&self) -> bool {
        self.distinct.is_empty()
    }

    /// Who has a blob, whatever repository it is of. `None` says that every backend answered that it has not.
    ///
    /// # Errors
    /// The last backend's error, when none that answered has the blob and not all did.
    pub async fn find(&self, digest: &Digest) -> Result<Option<Found>, BackendError> {
        let mut failed = None;
        for backend in self.all() {
            match backend.stat(digest).await {
                Ok(Some(size)) => return Ok(Some(Found { backend: backend.clone(), size })),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%digest, backend = backend.describe(), %error, "a backend was passed over");
                    failed = Some(error);
                }
            }
        }
        failed.map_or(Ok(None), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let fs = |path: &str| Ok(BackendUrl::Fs(PathBuf::from(path)));
        assert_eq!("fs:/srv/x".parse(), fs("/srv/x"));
        assert_eq!("fs:///srv/x".parse(), fs("/srv/x"));
        for text in ["fs:/srv/x", "fs:/"] {
            assert_eq!(text.parse::<BackendUrl>().unwrap().to_string(), text);
        }
        for bad in ["fs:srv", "fs:", "fs://host/x", "fs:./x"] {
            assert_eq!(bad.parse::<BackendUrl>(), Err(BackendUrlError::Path(bad.to_owned())));
        }
        for bad in ["", "/srv", "ftp:/x", "s3"] {
            assert_eq!(bad.parse::<BackendUrl>(), Err(BackendUrlError::Scheme(bad.to_owned())));
        }
    }

    #[tokio::test]
    async fn the_first_match_wins() {
        let dir = tempfile::tempdir().unwrap();
        let url = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            BackendUrl::Fs(path)
        };
        let rule = |pattern: &str, name: &str| BackendRule { pattern: pattern.to_owned(), url: url(name) };
        let rules = [rule("prod/.*", "a"), rule("prod/app|dev", "b"), rule("x|y", "a")];
        let set = BackendSet::open(&rules).await.unwrap();
        let of = |name: &str| set.of(&name.parse().unwrap()).map(|backend| backend.describe());
        assert_eq!(of("prod/app"), Some(rules[0].url.to_string()));
        assert_eq!(of("dev"), Some(rules[1].url.to_string()));
        assert_eq!(of("y"), Some(rules[0].url.to_string()));
        assert_eq!(of("preprod/app"), None);
        assert_eq!(of("prod/app/x/y").as_deref(), Some(rules[0].url.to_string().as_str()));
        assert_eq!(of("yy"), None);
        assert_eq!(set.all().len(), 2);
        assert!(matches!(BackendSet::open(&[rule("(", "a")]).await, Err(BackendSetError::Pattern { .. })));
        let missing = BackendRule { pattern: ".*".into(), url: BackendUrl::Fs(dir.path().join("missing")) };
        assert!(matches!(BackendSet::open(&[missing]).await, Err(BackendSetError::Open { .. })));
    }

    #[tokio::test]
    async fn a_blob_is_unknown_only_when_all_backends_say_so() {
        let dir = tempfile::tempdir().unwrap();
        let (good, bad) = (dir.path().join("good"), dir.path().join("bad"));
        let set = BackendSet::new([
            ("a".to_owned(), Arc::new(FsBackend::create(&bad).await.unwrap()) as Arc<dyn Backend>),
            ("b".to_owned(), Arc::new(FsBackend::create(&good).await.unwrap())),
        ])
        .unwrap();
        let digest = Digest::sha256(b"hello");
        assert!(set.find(&digest).await.unwrap().is_none());
        // One is unmounted.
        std::fs::remove_dir_all(&bad).unwrap();
        assert!(set.find(&digest).await.unwrap_err().is_retryable());
        let source = dir.path().join("source");
        std::fs::write(&source, b"hello").unwrap();
        set.all()[1].put(&digest, &source, 5, b"m").await.unwrap();
        assert_eq!(set.find(&digest).await.unwrap().unwrap().size, 5);
    }
}
