//! Images of other registries, at an origin: an owner asks the registry what a tag names, and fetches a blob from it once
//! for all who want it.
//!
//! What came from there is a cache: no backend keeps it, and it is evicted like any other. A mark in the store tells it
//! from what was pushed, so that nobody is told that a pushed image is safe whose layers are only cached.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shoal_origin::UpstreamRule;
use shoal_store::KvTable;
use shoal_types::{Digest, RecordKey};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::driver::blocking;
use crate::locks::KeyedLocks;
use crate::rpc::{Failure, Fetched};

mod fetch;
mod resolve;

/// Answers of registries remembered; past it any is forgotten, and asked for again.
const CHECKED_MAX: usize = 65_536;
/// How long a registry is taken to lack what it lacked, unless tags live shorter: a crowd asks for a wrong name at once.
const ABSENT_AGE_MAX: Duration = Duration::from_secs(5);
/// How long a registry that did not answer is left alone: a crowd is not to wait for its time-out one after the other.
const DOWN_PAUSE: Duration = Duration::from_secs(5);
/// Blobs fetched from registries at once; further ones wait.
const FETCHES_AT_ONCE: usize = 16;
/// The annotation of a tag's or manifest's record that says from where it was pulled through.
pub(crate) const SOURCE_ANNOTATION: &str = "dev.shoal.source";

/// Why a registry's answer cannot be had.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// The repository is none that is pulled through, as far as can be told.
    #[error("it is not pulled through from another registry")]
    NoSource,
    /// The registry refuses.
    #[error("{0}")]
    Denied(String),
    /// The registry, or who would ask it, does not answer.
    #[error("{0}")]
    Unavailable(String),
}

impl SourceError {
    fn failure(&self) -> Failure {
        match self {
            Self::NoSource => Failure::Refused,
            Self::Denied(_) => Failure::Denied,
            Self::Unavailable(_) => Failure::Unavailable,
        }
    }
}

/// What became of a fetch, once it is over.
type Outcome = watch::Receiver<Option<Result<Fetched, SourceError>>>;

/// What a process knows of the registries that are pulled through.
pub(crate) struct Upstreams {
    rules: Vec<UpstreamRule>,
    /// Marks of blobs that are only cached.
    table: KvTable,
    /// When a registry last said what, and whether it had it.
    checked: Mutex<BTreeMap<RecordKey, (Instant, bool)>>,
    /// Registries that did not answer, and until when they are left alone.
    down: Mutex<BTreeMap<String, Instant>>,
    asking: KeyedLocks<RecordKey>,
    fetches: Mutex<HashMap<Digest, Outcome>>,
    slots: Arc<Semaphore>,
}

impl Upstreams {
    /// Nothing is known yet; `table` has the marks.
    pub(crate) fn new(rules: Vec<UpstreamRule>, table: KvTable) -> Self {
        Self {
            rules,
            table,
            checked: Mutex::default(),
            down: Mutex::default(),
            asking: KeyedLocks::default(),
            fetches: Mutex::default(),
            slots: Arc::new(Semaphore::new(FETCHES_AT_ONCE)),
        }
    }

    pub(crate) fn rules(&self) -> &[UpstreamRule] {
        &self.rules
    }

    /// Marks a blob as one that is only cached.
    pub(crate) async fn note_cached(&self, digest: Digest) {
        let table = self.table.clone();
        if let Err(why) = blocking(move || table.put(&cached_key(&digest), &[])).await {
            tracing::warn!(%digest, %why, "a blob of another registry is not marked as one");
        }
    }

    /// The blob was pushed, or is gone.
    pub(crate) async fn forget_cached(&self, digest: Digest) {
        let table = self.table.clone();
        let forgotten = blocking(move || match table.get(&cached_key(&digest))? {
            Some(_) => table.delete(&cached_key(&digest)),
            None => Ok(()),
        });
        if let Err(why) = forgotten.await {
            tracing::warn!(%digest, %why, "a blob stays marked as another registry's");
        }
    }

    /// Whether a blob is only cached.
    pub(crate) async fn is_cached(&self, digest: Digest) -> bool {
        let table = self.table.clone();
        blocking(move || table.get(&cached_key(&digest))).await.ok().flatten().is_some()
    }

    fn note_checked(&self, key: &RecordKey, found: bool) {
        let mut checked = self.checked.lock();
        if checked.len() >= CHECKED_MAX {
            checked.pop_first();
        }
        checked.insert(key.clone(), (Instant::now(), found));
    }

    /// Whether the registry had `key` when it was asked, if that was not long ago.
    fn just_checked(&self, key: &RecordKey, max_age: Duration) -> Option<bool> {
        let (at, found) = *self.checked.lock().get(key)?;
        let age = if found { max_age } else { max_age.min(ABSENT_AGE_MAX) };
        (at.elapsed() < age).then_some(found)
    }

    fn is_down(&self, backend: &str) -> bool {
        self.down.lock().get(backend).is_some_and(|until| *until > Instant::now())
    }

    fn note_down(&self, backend: String) {
        self.down.lock().insert(backend, Instant::now() + DOWN_PAUSE);
    }

    fn note_up(&self, backend: &str) {
        self.down.lock().remove(backend);
    }
}

fn cached_key(digest: &Digest) -> Vec<u8> {
    [b"cached/".as_slice(), &digest.multihash().to_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_store::{Store, StoreConfig, Table};
    use shoal_types::{RecordKind, WallTime};

    fn open(dir: &std::path::Path) -> Upstreams {
        let (store, _) = Store::open(StoreConfig::new(dir), WallTime::default()).unwrap();
        Upstreams::new(Vec::new(), store.table(Table::Misc))
    }

    #[tokio::test(start_paused = true)]
    async fn answers_age_and_absence_sooner() {
        let dir = tempfile::tempdir().unwrap();
        let upstreams = open(dir.path());
        let key = |tag: &str| RecordKey {
            repository: "docker.io/a".parse().unwrap(),
            kind: RecordKind::Tag(tag.parse().unwrap()),
        };
        let max_age = Duration::from_secs(60);
        upstreams.note_checked(&key("here"), true);
        upstreams.note_checked(&key("gone"), false);
        assert_eq!(upstreams.just_checked(&key("here"), max_age), Some(true));
        assert_eq!(upstreams.just_checked(&key("gone"), max_age), Some(false));
        assert_eq!(upstreams.just_checked(&key("other"), max_age), None);
        tokio::time::advance(ABSENT_AGE_MAX).await;
        assert_eq!(upstreams.just_checked(&key("here"), max_age), Some(true));
        assert_eq!(upstreams.just_checked(&key("gone"), max_age), None);
        tokio::time::advance(max_age).await;
        assert_eq!(upstreams.just_checked(&key("here"), max_age), None);
        upstreams.note_down("x".to_owned());
        assert!(upstreams.is_down("x") && !upstreams.is_down("y"));
        tokio::time::advance(DOWN_PAUSE).await;
        assert!(!upstreams.is_down("x"));
    }

    #[tokio::test]
    async fn marks_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let upstreams = open(dir.path());
        let digest = Digest::sha256(b"x");
        upstreams.note_cached(digest).await;
        assert!(upstreams.is_cached(digest).await);
        assert!(!upstreams.is_cached(Digest::sha256(b"y")).await);
        upstreams.forget_cached(digest).await;
        assert!(!upstreams.is_cached(digest).await);
    }
}
