//! Which backend keeps what.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use regex::Regex;
use shoal_types::{Digest, RepositoryName};

use crate::backend::{Backend, BackendError};
use crate::dal::DalStore;
use crate::fs::FsBackend;
use crate::http::HttpBackend;
use crate::limited::{Limited, Traffic};
use crate::objects::ObjectBackend;
use crate::registry::RegistryBackend;
use crate::s3::S3Store;
use crate::throttle::Throttle;
use crate::url::{BackendRule, BackendUrl, Scheme, WriteMode};

/// A backend of a set, and how it is used.
#[derive(Clone, Debug)]
pub struct Member {
    /// The backend.
    pub backend: Arc<dyn Backend>,
    /// When a push has reached it.
    pub write: WriteMode,
    /// Whether the process is not ready while it does not answer.
    pub must_be_ready: bool,
    /// How long a tag is taken to name what it named before this source is asked again.
    pub max_age: Duration,
    /// What went to and from it.
    pub traffic: Arc<Traffic>,
}

impl BackendUrl {
    /// Opens the backend and has it answer once.
    ///
    /// # Errors
    /// [`BackendError`], with what to put right. `Unavailable` says that it may answer later.
    pub async fn open(&self) -> Result<Arc<dyn Backend>, BackendError> {
        let member = self.member().await?;
        member.backend.probe().await?;
        Ok(member.backend)
    }

    /// The backend without asking anything of its server: it may be down.
    ///
    /// # Errors
    /// [`BackendError`], with what to put right.
    async fn member(&self) -> Result<Member, BackendError> {
        let invalid = |error: crate::url::BackendUrlError| BackendError::invalid(self, error);
        let rate_in = Throttle::new(self.size("rate-in").map_err(invalid)?);
        let rate_out = Throttle::new(self.size("rate-out").map_err(invalid)?);
        let backend: Arc<dyn Backend> = match self.scheme {
            Scheme::Fs => Arc::new(FsBackend::open(&self.path()).await?),
            Scheme::S3 => Arc::new(ObjectBackend::new(S3Store::open(self).await?, rate_out)),
            Scheme::Azblob | Scheme::Gcs | Scheme::Webhdfs => {
                Arc::new(ObjectBackend::new(DalStore::open(self).await?, rate_out))
            }
            Scheme::Registry => Arc::new(RegistryBackend::open(self).await?),
            Scheme::Http | Scheme::Https => Arc::new(HttpBackend::open(self).await?),
        };
        let traffic = Arc::new(Traffic::default());
        Ok(Member {
            backend: Arc::new(Limited::new(backend, rate_in, Arc::clone(&traffic))),
            write: self.write_mode().map_err(invalid)?,
            must_be_ready: self.must_be_ready(),
            max_age: self.max_age().map_err(invalid)?,
            traffic,
        })
    }
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
    /// Patterns, and places in `members`.
    rules: Arc<[(Regex, usize)]>,
    /// Each backend once, in the order of the rules.
    members: Arc<[Member]>,
}

/// A blob that a backend has.
#[derive(Clone, Debug)]
pub struct Found {
    /// Who has it.
    pub member: Member,
    /// Size in bytes.
    pub size: u64,
}

impl BackendSet {
    /// Makes the backends of `rules`; a URL in several is made once. One that does not answer now is no error: it may
    /// answer later, and until then the others do.
    ///
    /// # Errors
    /// [`BackendSetError`]: what trying again does not put right.
    pub async fn open(rules: &[BackendRule]) -> Result<Self, BackendSetError> {
        let mut known: BTreeMap<&BackendUrl, usize> = BTreeMap::new();
        let (mut compiled, mut members) = (Vec::new(), Vec::new());
        for rule in rules {
            let place = match known.get(&rule.url) {
                Some(place) => *place,
                None => {
                    let failed = |source| BackendSetError::Open { url: rule.url.clone(), source };
                    let member = rule.url.member().await.map_err(failed)?;
                    match member.backend.probe().await {
                        Err(error) if error.is_retryable() => {
                            let backend = member.backend.describe();
                            tracing::warn!(backend, %error, "a backend does not answer; it is asked again when it is needed");
                        }
                        other => other.map_err(failed)?,
                    }
                    members.push(member);
                    known.insert(&rule.url, members.len() - 1);
                    members.len() - 1
                }
            };
            compiled.push((pattern(&rule.pattern)?, place));
        }
        Ok(Self { rules: compiled.into(), members: members.into() })
    }

    /// A set of one backend, for all repositories.
    pub fn of_one(backend: Arc<dyn Backend>) -> Self {
        let member = Member {
            backend,
            write: WriteMode::Through,
            must_be_ready: false,
            max_age: Duration::ZERO,
            traffic: Arc::default(),
        };
        let all = pattern(".*").map(|regex| (regex, 0)).ok();
        Self { rules: all.into_iter().collect(), members: Arc::from([member]) }
    }

    /// The backend that keeps `repository`; `None` when no rule matches.
    pub fn of(&self, repository: &RepositoryName) -> Option<&Member> {
        let rule = self.rules.iter().find(|(regex, _)| regex.is_match(repository.as_str()));
        rule.and_then(|(_, place)| self.members.get(*place))
    }

    /// Each backend once.
    pub fn all(&self) -> &[Member] {
        &self.members
    }

    /// Whether there is no backend at all.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Who has a blob, whatever repository it is of: the repository's own backend is asked first, then the others that
    /// keep what is pushed. `None` says that every one of them answered that it has not.
    ///
    /// # Errors
    /// The last backend's error, when none that answered has the blob and not all did.
    pub async fn find(
        &self,
        digest: &Digest,
        repository: Option<&RepositoryName>,
    ) -> Result<Option<Found>, BackendError> {
        let own = repository.and_then(|repository| self.of(repository));
        let is_own = |member: &Member| own.is_some_and(|own| Arc::ptr_eq(&own.backend, &member.backend));
        // A source of other people's images is only asked for the repositories that are its own.
        let others = self.all().iter().filter(|member| !is_own(member) && member.backend.is_writable());
        let mut failed = None;
        for member in own.into_iter().chain(others) {
            let asked_for = if is_own(member) { repository } else { None };
            match member.backend.stat(digest, asked_for).await {
                Ok(Some(size)) => return Ok(Some(Found { member: member.clone(), size })),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%digest, backend = member.backend.describe(), %error, "a backend was passed over");
                    failed = Some(error);
                }
            }
        }
        failed.map_or(Ok(None), Err)
    }
}

/// Anchored: `prod/.*` is not meant to match `preprod/x`.
fn pattern(pattern: &str) -> Result<Regex, BackendSetError> {
    Regex::new(&format!("^(?:{pattern})$"))
        .map_err(|source| BackendSetError::Pattern { pattern: pattern.to_owned(), source: Box::new(source) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_match_wins() {
        let dir = tempfile::tempdir().unwrap();
        let url = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            BackendUrl::fs(&path)
        };
        let rule = |pattern: &str, name: &str| BackendRule { pattern: pattern.to_owned(), url: url(name) };
        let rules = [rule("prod/.*", "a"), rule("prod/app|dev", "b"), rule("x|y", "a")];
        let set = BackendSet::open(&rules).await.unwrap();
        let of = |name: &str| set.of(&name.parse().unwrap()).map(|member| member.backend.describe());
        assert_eq!(of("prod/app"), Some(rules[0].url.to_string()));
        assert_eq!(of("dev"), Some(rules[1].url.to_string()));
        assert_eq!(of("y"), Some(rules[0].url.to_string()));
        assert_eq!(of("preprod/app"), None);
        assert_eq!(of("prod/app/x/y").as_deref(), Some(rules[0].url.to_string().as_str()));
        assert_eq!(of("yy"), None);
        assert_eq!(set.all().len(), 2);
        assert!(matches!(BackendSet::open(&[rule("(", "a")]).await, Err(BackendSetError::Pattern { .. })));
        let missing = BackendRule { pattern: ".*".into(), url: BackendUrl::fs(&dir.path().join("missing")) };
        assert!(matches!(BackendSet::open(&[missing]).await, Err(BackendSetError::Open { .. })));
    }

    #[tokio::test]
    async fn a_blob_is_unknown_only_when_all_backends_say_so() {
        let dir = tempfile::tempdir().unwrap();
        let (good, bad) = (dir.path().join("good"), dir.path().join("bad"));
        for path in [&good, &bad] {
            std::fs::create_dir(path).unwrap();
        }
        let rule =
            |pattern: &str, path| BackendRule { pattern: pattern.to_owned(), url: BackendUrl::fs(path) };
        let set = BackendSet::open(&[rule("a", &bad), rule("b", &good)]).await.unwrap();
        let digest = Digest::sha256(b"hello");
        assert!(set.find(&digest, None).await.unwrap().is_none());
        // One is unmounted.
        std::fs::remove_dir_all(&bad).unwrap();
        assert!(set.find(&digest, None).await.unwrap_err().is_retryable());
        let source = dir.path().join("source");
        std::fs::write(&source, b"hello").unwrap();
        set.all()[1].backend.put(&digest, &source, 5, b"m").await.unwrap();
        assert_eq!(set.find(&digest, None).await.unwrap().unwrap().size, 5);
    }
}
