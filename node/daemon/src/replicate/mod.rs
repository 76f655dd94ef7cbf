//! Replication between zones: what is pushed to a repository that a rule matches is copied, whole, to the origins of other
//! zones, without anybody pulling it there.
//!
//! Every owner of a repository queues a change on its disk when it keeps the change's record, so that the copy is made
//! whichever of them is left. The first owner that is alive makes it; the others look whether it has arrived, and take
//! over when it does not. Blobs come first, then manifests from the bottom up, and the tag last, with the version that it
//! has here: the newest wins in every zone, so that rules both ways converge and do not chase each other.

mod copy;
mod work;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use regex::Regex;
use serde::{Deserialize, Serialize};
use shoal_types::record::SignedRecord;
use shoal_types::{RecordKey, RecordKind, Zone};

use crate::clock::wall_now;
use crate::queue::Queue;
use crate::upstream::SOURCE_ANNOTATION;

pub(crate) use work::run;

/// Jobs that a status shows.
const SHOWN: usize = 1000;
/// Beginning of the queue's keys in its table.
pub(crate) const PREFIX: &[u8] = b"replicate/";

/// What is copied where: `[[replicate]]` in a file, `PATTERN=ZONE+ZONE` as a flag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written")]
pub struct Rule {
    /// A regular expression of whole repository names.
    #[serde(rename = "match")]
    pub pattern: String,
    /// The zones to copy to.
    pub to: Vec<Zone>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected { match = \"PATTERN\", to = [\"ZONE\"] } or \"PATTERN=ZONE+ZONE\"")]
enum Written {
    Text(String),
    Table(Table),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(rename = "match")]
    pattern: String,
    to: Vec<Zone>,
}

impl TryFrom<Written> for Rule {
    type Error = String;
    fn try_from(written: Written) -> Result<Self, String> {
        let rule = match written {
            Written::Table(Table { pattern, to }) => Self { pattern, to },
            Written::Text(text) => {
                let wrong = || format!("{text:?} is not PATTERN=ZONE or PATTERN=ZONE+ZONE");
                let (pattern, zones) = text.rsplit_once('=').ok_or_else(wrong)?;
                let to: Result<Vec<Zone>, _> = zones.split('+').map(str::parse).collect();
                Self { pattern: pattern.to_owned(), to: to.map_err(|error| format!("{text:?}: {error}"))? }
            }
        };
        if rule.to.is_empty() {
            return Err(format!("the rule for {:?} names no zone to replicate to", rule.pattern));
        }
        compile(&rule.pattern)?;
        Ok(rule)
    }
}

/// Anchored: `prod/.*` is not meant to match `preprod/x`.
fn compile(pattern: &str) -> Result<Regex, String> {
    Regex::new(&format!("^(?:{pattern})$")).map_err(|error| {
        let why = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        format!("the repository pattern {pattern:?} is not a regular expression: {why}")
    })
}

/// One record to be copied to one zone, with all that it reaches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, minicbor::Encode, minicbor::Decode)]
pub struct Job {
    /// A tag, or a manifest.
    #[n(0)]
    pub key: RecordKey,
    /// Where to.
    #[n(1)]
    pub zone: Zone,
}

/// How far a job is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// What, as `repository:tag` or `repository@digest`.
    pub image: String,
    /// Where to.
    pub to: Zone,
    /// Whether it is being copied from here now.
    pub active: bool,
    /// Blobs and manifests that are there.
    pub done: u64,
    /// Blobs and manifests in all; 0 until the image has been looked through.
    pub total: u64,
    /// Why it was put off the last time.
    pub last_error: Option<String>,
}

/// Replication as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicationStatus {
    /// Records waiting to be copied or being copied, per zone.
    pub waiting: usize,
    /// Milliseconds that the oldest has been waiting.
    pub oldest_ms: u64,
    /// Copied since the process started.
    pub copied: u64,
    /// Blobs and manifests copied since the process started.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Times that something was put off because it failed.
    pub retries: u64,
    /// Why, the last time; `None` when something was copied since.
    pub last_error: Option<String>,
    /// The first of those that wait.
    pub jobs: Vec<JobStatus>,
}

#[derive(Clone, Debug, Default)]
struct Progress {
    active: bool,
    /// Asked for by hand at this process: it does not wait for its turn.
    by_hand: bool,
    done: u64,
    total: u64,
    last_error: Option<String>,
}

/// What an origin copies to other zones.
pub struct Replication {
    rules: Vec<(Regex, Vec<Zone>)>,
    own: Zone,
    queue: Queue<Job>,
    progress: Mutex<BTreeMap<Job, Progress>>,
    copied: AtomicU64,
    blobs: AtomicU64,
    bytes: AtomicU64,
}

impl Replication {
    /// Replication by `rules` from the zone `own`, with what an earlier process left in `queue`.
    ///
    /// # Errors
    /// A pattern is not a regular expression.
    pub fn new(rules: &[Rule], own: Zone, queue: Queue<Job>) -> Result<Arc<Self>, String> {
        let rules = rules.iter().map(|rule| Ok((compile(&rule.pattern)?, rule.to.clone())));
        Ok(Arc::new(Self {
            rules: rules.collect::<Result<_, String>>()?,
            own,
            queue,
            progress: Mutex::default(),
            copied: AtomicU64::new(0),
            blobs: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }))
    }

    /// The zones that a repository is copied to.
    pub fn zones_of(&self, repository: &str) -> Vec<Zone> {
        let matching = self.rules.iter().filter(|(pattern, _)| pattern.is_match(repository));
        let mut zones: Vec<Zone> =
            matching.flat_map(|(_, zones)| zones).filter(|zone| **zone != self.own).cloned().collect();
        zones.sort();
        zones.dedup();
        zones
    }

    /// Takes note of a record that this owner keeps from now on; what is to be copied is on the disk when this returns.
    /// Blocks on the disk.
    pub(crate) fn note(&self, record: &SignedRecord) {
        let value = record.value();
        let is_copied = match &value.key.kind {
            RecordKind::Tag(_) => true,
            // Other manifests go with what names them. One that nothing names may have been pushed for its tag, which
            // comes next; a referrer comes after what it refers to.
            RecordKind::Manifest(_) => value.value.as_ref().is_none_or(|value| value.subject.is_some()),
            RecordKind::Blob(_) => false,
        };
        // Every zone pulls through other registries by itself.
        let is_copied = is_copied
            && value.value.as_ref().is_none_or(|value| !value.annotations.contains_key(SOURCE_ANNOTATION));
        if !is_copied {
            return;
        }
        for zone in self.zones_of(value.key.repository.as_str()) {
            let job = Job { key: value.key.clone(), zone };
            if let Err(error) = self.queue.push(job, None, wall_now()) {
                tracing::error!(key = %value.key, %error, "what is to be replicated cannot be queued: replicate it by hand");
            }
        }
    }

    /// Queues a copy that somebody asks for, whatever the rules say; this process makes it. Blocks on the disk.
    ///
    /// # Errors
    /// A text: the disk failed.
    pub(crate) fn ask(&self, job: Job) -> Result<(), String> {
        self.progress.lock().entry(job.clone()).or_default().by_hand = true;
        self.queue.push(job.clone(), None, wall_now()).map_err(|error| error.to_string())?;
        self.queue.hurry(&job);
        Ok(())
    }

    /// What waits and what was done.
    pub fn status(&self) -> ReplicationStatus {
        let (retries, last_error) = self.queue.told();
        let progress = self.progress.lock();
        let job = |job: Job| {
            let progress = progress.get(&job).cloned().unwrap_or_default();
            JobStatus {
                image: job.key.to_string(),
                to: job.zone,
                active: progress.active,
                done: progress.done,
                total: progress.total,
                last_error: progress.last_error,
            }
        };
        ReplicationStatus {
            waiting: self.queue.len(),
            oldest_ms: u64::try_from(self.queue.oldest(wall_now()).as_millis()).unwrap_or(u64::MAX),
            copied: self.copied.load(Ordering::Relaxed),
            blobs: self.blobs.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            retries,
            last_error,
            jobs: self.queue.items(SHOWN).into_iter().map(job).collect(),
        }
    }

    fn update(&self, job: &Job, change: impl FnOnce(&mut Progress)) {
        change(self.progress.lock().entry(job.clone()).or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Config {
        replicate: Vec<Rule>,
    }

    #[test]
    fn rules_are_tables_or_texts_and_mistakes_are_told() {
        let rules = |text: &str| toml::from_str::<Config>(text).map(|config| config.replicate);
        let table = rules("[[replicate]]\nmatch = \"prod/.*\"\nto = [\"eu\", \"us\"]").unwrap();
        assert_eq!(rules("replicate = [\"prod/.*=eu+us\"]").unwrap(), table);
        for wrong in [
            "[[replicate]]\nmatch = \"(\"\nto = [\"eu\"]",
            "[[replicate]]\nmatch = \"a\"\nto = []",
            "[[replicate]]\nmatch = \"a\"\nto = [\"EU!\"]",
            "[[replicate]]\nmatch = \"a\"",
            "replicate = [\"a\"]",
        ] {
            assert!(rules(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn whole_names_match_and_the_own_zone_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let config = shoal_store::StoreConfig::new(dir.path());
        let (store, _) = shoal_store::Store::open(config, shoal_types::WallTime::default()).unwrap();
        let queue = Queue::open(store.table(shoal_store::Table::Misc), PREFIX).unwrap();
        let zone = |name: &str| name.parse::<Zone>().unwrap();
        let rules = [
            Rule { pattern: "prod/.*".into(), to: vec![zone("us"), zone("eu")] },
            Rule { pattern: "prod/app".into(), to: vec![zone("us"), zone("ap")] },
        ];
        let replication = Replication::new(&rules, zone("eu"), queue).unwrap();
        assert_eq!(replication.zones_of("prod/app"), [zone("ap"), zone("us")]);
        assert_eq!(replication.zones_of("prod/x"), [zone("us")]);
        assert_eq!(replication.zones_of("preprod/app"), []);
    }
}
