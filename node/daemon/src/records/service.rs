//! Writing and reading registers among the owners of a repository.
//!
//! The owners of a repository are the first [`OWNERS`] of its ranking over the live origins of one zone. A write goes
//! asks what a majority knows, picks the next version, has one of them sign it, and has a majority keep it. A read asks
//! them all and takes the newest of a majority's answers, and has a majority keep that before it is given out: the
//! register of Attiya, Bar-Noy and Dolev ("Sharing Memory Robustly in Message-Passing Systems", 1995) with many
//! writers (Lynch and Shvartsman, 1997). It is who asks that counts majorities, and that picks versions, so that a write
//! that was tried at one owner and then at another is still one write, and an owner that was cut off decides nothing
//! by itself. When fewer answer, the newest known is returned and marked stale. A zone whose owners know nothing of a
//! key asks the next zone's.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use regex::Regex;
use shoal_net::control::{ControlHandle, Origin};
use shoal_net::identity::Identity;
use shoal_net::revocation::Revocations;
use shoal_types::record::SignedRecord;
use shoal_types::{
    Endpoint, GossipMessage, PeerId, Record, RecordKey, RecordKind, RecordValue, RecordVersion,
    RepositoryName, Role, Roles, Signed, SignedCredential,
};

use super::ledger::{Applied, Ledger, LedgerError};
use crate::archive::Archive;
use crate::clock::wall_now;
use crate::directory::Directory;
use crate::discovery::{Discovery, rank_by_zone};
use crate::links::{AskError, Links};
use crate::locks::KeyedLocks;
use crate::rpc::{Answer, Failure, Listing, PAGE_MAX, Request, Stamp};

mod quorum;
mod survey;
mod sync;

use quorum::{Expected, ZoneRead};
pub use survey::{Entry, SURVEY_RECORDS_MAX, Survey};

/// Owners of a repository in one zone: a majority survives the loss of one.
pub const OWNERS: usize = 3;
/// How long an owner may take to answer a read. A live one takes a round trip and a table look-up.
const READ_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an owner may take to carry out a write: a round trip to the other owners and a synced write.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a write is tried again while too few owners answer: what a restart takes.
const WRITE_PATIENCE: Duration = Duration::from_secs(20);
/// Pause before a write is tried again.
const WRITE_RETRY: Duration = Duration::from_millis(250);
/// How far ahead of what an owner knows the version of a write may be: it may have missed writes, and who asks must not
/// use up the numbers there are.
const COUNTER_STEP_MAX: u64 = 1 << 32;
/// Members asked for what they remember when no owner can be reached.
const NEIGHBOURS_ASKED: usize = 12;

/// Why a register cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// No origin is known, or too few of a repository's owners answer.
    #[error("too few owners of the repository answer: {0}")]
    Unavailable(String),
    /// The local table failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// This process may not write there.
    #[error("{0}")]
    Denied(String),
}

/// A register as it was read.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The newest record, tombstones included; `None` when nobody knows one.
    pub record: Option<SignedRecord>,
    /// No majority of owners answered: there may be a newer one.
    pub stale: bool,
}

impl Seen {
    /// The value, unless there is none or it was deleted.
    pub fn value(&self) -> Option<&RecordValue> {
        self.record.as_ref().and_then(|record| record.value().value.as_ref())
    }

    /// Whether it is known to have been deleted.
    pub fn is_deleted(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.value().value.is_none())
    }
}

/// Registers, for readers and writers anywhere in the mesh.
pub struct Records {
    ledger: Ledger,
    identity: Identity,
    discovery: Arc<Discovery>,
    directory: Arc<Directory>,
    links: Arc<Links>,
    control: ControlHandle,
    /// What the backend has of them, at an origin.
    archive: Option<Arc<Archive>>,
    /// Whether this process keeps all that it owns.
    settled: AtomicBool,
    /// Origins that were there before this process started and have not been heard of since, until when they count.
    expected: Expected,
    revocations: Revocations,
    /// Told of every record that this process keeps as an owner.
    listener: OnceLock<Listener>,
    /// Tags, as `REPOSITORY:TAG`, that this process as an owner lets nobody move.
    immutable: Vec<Regex>,
    /// One write at a time a key, so that this author never uses a version twice.
    writing: KeyedLocks<RecordKey>,
}

/// Who wants to hear of records.
type Listener = Box<dyn Fn(&SignedRecord) + Send + Sync>;

/// What [`Records`] work with.
pub struct Surroundings {
    /// What this process keeps itself.
    pub ledger: Ledger,
    /// Who this process is.
    pub identity: Identity,
    /// Who owns what.
    pub discovery: Arc<Discovery>,
    /// Members that can be asked when no owner answers.
    pub directory: Arc<Directory>,
    /// Ways to them.
    pub links: Arc<Links>,
    /// Where changes are gossiped.
    pub control: ControlHandle,
    /// What the backend has of the records, at an origin.
    pub archive: Option<Arc<Archive>>,
    /// Whose records do not count any more.
    pub revocations: Revocations,
    /// How long an origin counts after its last heartbeat.
    pub heartbeat_lifetime: Duration,
    /// Tags, as `REPOSITORY:TAG`, that nobody moves.
    pub immutable: Vec<Regex>,
}

impl Records {
    /// The registers as this process sees them.
    pub fn new(all: Surroundings) -> Self {
        let expected = Expected::read(&all.ledger, &all.identity, &all.revocations, all.heartbeat_lifetime);
        Self {
            ledger: all.ledger,
            identity: all.identity,
            discovery: all.discovery,
            directory: all.directory,
            links: all.links,
            control: all.control,
            archive: all.archive,
            settled: AtomicBool::new(false),
            expected,
            immutable: all.immutable,
            revocations: all.revocations,
            listener: OnceLock::new(),
            writing: KeyedLocks::default(),
        }
    }

    /// Has `listener` told of every record that this process keeps as an owner, before it is acknowledged.
    pub(crate) fn on_keep(&self, listener: impl Fn(&SignedRecord) + Send + Sync + 'static) {
        if self.listener.set(Box::new(listener)).is_err() {
            tracing::error!("two parts want to hear of records: only the first does");
        }
    }

    /// Gives a register a new value; `None` deletes. Returns when a majority of the owners keep it.
    ///
    /// # Errors
    /// [`RecordError::Unavailable`] and [`RecordError::Denied`]: nothing was acknowledged; a write that was under
    /// way may still come to be seen.
    pub async fn write(
        &self,
        key: RecordKey,
        value: Option<RecordValue>,
    ) -> Result<SignedRecord, RecordError> {
        let deadline = tokio::time::Instant::now() + WRITE_PATIENCE;
        let mut stamp = None;
        loop {
            let result = self.try_write(&key, &value, &mut stamp).await;
            let again = matches!(result, Err(RecordError::Unavailable(_)));
            if !again || tokio::time::Instant::now() >= deadline {
                return result;
            }
            tokio::time::sleep(WRITE_RETRY).await;
        }
    }

    async fn try_write(
        &self,
        key: &RecordKey,
        value: &Option<RecordValue>,
        stamp: &mut Option<Stamp>,
    ) -> Result<SignedRecord, RecordError> {
        let owners = self.zone_owners(&key.repository);
        let picked = match *stamp {
            Some(stamp) => stamp,
            None => *stamp.insert(self.pick_stamp(key, &owners).await?),
        };
        let request = Request::WriteRecord { key: key.clone(), value: value.clone(), stamp: Some(picked) };
        let mut why = "no origin is known".to_owned();
        for owner in &owners {
            let asked = match owner.peer == self.identity.peer_id() {
                true => self.coordinate(key.clone(), value.clone(), Some(picked)).await.map(Some),
                false => match self.links.ask(owner.peer, &owner.endpoints, &request, WRITE_TIMEOUT).await {
                    Ok(Answer::Record(record)) => Ok(record),
                    Ok(_) => Ok(None),
                    Err(AskError::Failed { kind: Failure::Denied, message, .. }) => {
                        Err(RecordError::Denied(message))
                    }
                    Err(error) => Err(RecordError::Unavailable(error.to_string())),
                },
            };
            match asked {
                Ok(Some(record)) if record.value().value == *value => {
                    self.spread(&record, &owners).await?;
                    self.remember(&record);
                    return Ok(record);
                }
                Ok(_) => why = format!("{} keeps another record of the same version", owner.peer),
                Err(RecordError::Unavailable(error)) => why = error,
                Err(error) => return Err(error),
            }
        }
        Err(RecordError::Unavailable(why))
    }

    /// The place of a new write of `key`: after all that a majority of its owners knows.
    async fn pick_stamp(&self, key: &RecordKey, owners: &[Origin]) -> Result<Stamp, RecordError> {
        let read = self.read_zone(key, owners).await;
        read.majority(owners)?;
        let known = newer(read.newest, self.ledger.get(key)?);
        let counter = known.map_or(0, |record| record.value().version.counter).saturating_add(1);
        Ok(Stamp { counter, written: wall_now() })
    }

    /// Has a majority of `owners` keep a record, or one newer. The rest hear of it in their own time.
    async fn spread(&self, record: &SignedRecord, owners: &[Origin]) -> Result<(), RecordError> {
        let request = Request::PutRecord { record: record.clone() };
        let mut puts: FuturesUnordered<_> =
            owners.iter().map(|owner| self.put_question(owner, &request)).collect();
        let (mut kept, mut why) = (0, String::new());
        while let Some(answer) = puts.next().await {
            match answer {
                Ok(Answer::Record(_)) => kept += 1,
                Ok(_) => {}
                Err(error) => why = error.to_string(),
            }
            // Waiting for a dead owner would cost every write its timeout.
            if kept > owners.len() / 2 {
                return Ok(());
            }
        }
        tracing::warn!(key = %record.value().key, kept, owners = owners.len(), why, "too few owners keep a record");
        let majority = owners.len() / 2 + 1;
        Err(RecordError::Unavailable(format!(
            "{kept} of {} owners kept the record, {majority} are needed: {why}",
            owners.len()
        )))
    }

    /// Reads a register.
    ///
    /// # Errors
    /// [`RecordError::Ledger`] only: that nobody answers makes the result stale.
    pub async fn read(&self, key: &RecordKey) -> Result<Seen, RecordError> {
        let local = self.ledger.get(key)?;
        let owners = self.owners(&key.repository);
        if owners.is_empty() {
            return Ok(Seen { record: self.ask_neighbours(key, local).await, stale: true });
        }
        let mut stale = false;
        let mut newest = None;
        for zone in by_zone(&owners) {
            let read = self.read_zone(key, zone).await;
            let answered = read.majority(zone).is_ok();
            stale |= !answered || !self.settle_on(&read, zone).await;
            newest = newer(newest, read.newest);
            // A zone that knows the key answers for it; only one that does not asks further.
            if newest.is_some() && answered {
                break;
            }
        }
        if stale {
            let known = newer(newest.clone(), local.clone());
            newest = if known.is_some() { known } else { self.ask_neighbours(key, local).await };
        }
        if let Some(record) = &newest {
            self.remember(record);
        }
        Ok(Seen { record: newest, stale })
    }

    /// What this process itself remembers of a register, without asking anybody.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn remembered(&self, key: &RecordKey) -> Result<Option<SignedRecord>, LedgerError> {
        self.ledger.get(key)
    }

    /// A page of a repository's live records, in key order.
    ///
    /// # Errors
    /// [`RecordError::Unavailable`].
    pub async fn list(
        &self,
        repository: &RepositoryName,
        what: &Listing,
        after: Option<RecordKind>,
        limit: usize,
    ) -> Result<Vec<SignedRecord>, RecordError> {
        let mut live = Vec::new();
        let mut after = after;
        loop {
            let wanted =
                u32::try_from(limit.saturating_sub(live.len()).max(1)).unwrap_or(PAGE_MAX).min(PAGE_MAX);
            let request = Request::ListRecords {
                repository: repository.clone(),
                what: what.clone(),
                after: after.clone(),
                limit: wanted,
            };
            let pages = self.ask_all_zones(repository, &request).await?;
            let (merged, more) = merge_pages(pages);
            after = merged.last_key_value().map(|(kind, _)| kind.clone());
            live.extend(merged.into_values().filter(|record| record.value().value.is_some()));
            if live.len() >= limit || !more || after.is_none() {
                live.truncate(limit);
                return Ok(live);
            }
        }
    }

    /// Whether a repository holds any manifest.
    ///
    /// # Errors
    /// [`RecordError::Unavailable`].
    pub async fn is_repository(&self, repository: &RepositoryName) -> Result<bool, RecordError> {
        Ok(!self.list(repository, &Listing::Manifests, None, 1).await?.is_empty())
    }

    /// A page of repository names, from all origins of the mesh.
    ///
    /// # Errors
    /// [`RecordError::Unavailable`] when no origin answers.
    pub async fn repositories(
        &self,
        after: Option<&RepositoryName>,
        limit: usize,
    ) -> Result<Vec<RepositoryName>, RecordError> {
        let wanted = u32::try_from(limit).unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX);
        let request = Request::ListRepositories { after: after.cloned(), limit: wanted };
        let origins = self.discovery.owners(b"");
        let asked = origins.len();
        let mut answers: FuturesUnordered<_> =
            origins.iter().map(|origin| self.put_question(origin, &request)).collect();
        let mut names = std::collections::BTreeSet::new();
        let mut horizon: Option<RepositoryName> = None;
        let mut heard = 0;
        while let Some(answer) = answers.next().await {
            if let Ok(Answer::Repositories { names: page, more }) = answer {
                heard += 1;
                if let (true, Some(last)) = (more, page.last()) {
                    horizon = Some(horizon.map_or_else(|| last.clone(), |known| known.min(last.clone())));
                }
                names.extend(page);
            }
        }
        if asked == 0 || heard == 0 {
            return Err(RecordError::Unavailable("no origin answers".to_owned()));
        }
        // Beyond the end of the shortest page an origin may have names it has not told.
        Ok(names
            .into_iter()
            .filter(|name| horizon.as_ref().is_none_or(|end| name <= end))
            .take(limit)
            .collect())
    }

    /// News of a record's change: if it is newer than what is remembered, remember at least what it points at.
    pub fn note_change(&self, record: &SignedRecord) {
        self.remember(record);
    }

    /// Answers a question about records. `roles` and `namespaces` are the asker's, from its credential.
    pub async fn answer(&self, request: Request, roles: Roles, namespaces: &[String]) -> Answer {
        let result = match request {
            Request::WriteRecord { key, value, stamp } => {
                if let Some(refusal) = self.refuse_write(&key.repository, roles, namespaces) {
                    return refusal;
                }
                self.coordinate(key, value, stamp).await.map(|record| Answer::Record(Some(record)))
            }
            Request::PutRecord { record } if self.is_origin() && self.may_put(&record, roles) => {
                self.keep(&record)
            }
            Request::Import { record } if roles.contains(Role::Origin) && self.is_origin() => {
                if !may_push(&record.value().key.repository, namespaces) {
                    return failed(
                        Failure::Denied,
                        "the credential does not allow pushes to this repository",
                    );
                }
                self.import(record).await.map(|record| Answer::Record(Some(record)))
            }
            Request::Import { .. } => return failed(Failure::Denied, "only origins exchange records"),
            Request::PutRecord { .. } => {
                return failed(Failure::Denied, "only origins write records, and gateways pass on theirs");
            }
            Request::GetRecord { key } => self.get_here(&key).await.map(Answer::Record),
            Request::ListRecords { repository, what, after, limit } => self
                .ledger
                .list(&repository, &what, after.as_ref(), limit)
                .map(|(records, more)| Answer::Records { records, more })
                .map_err(RecordError::from),
            Request::ListRepositories { after, limit } => self
                .ledger
                .repositories(after.as_ref(), limit)
                .map(|(names, more)| Answer::Repositories { names, more })
                .map_err(RecordError::from),
            Request::PeekRecord { key } => {
                self.ledger.get(&key).map(Answer::Record).map_err(RecordError::from)
            }
            Request::ListAllRepositories { after, limit } => self
                .ledger
                .all_repositories(after.as_ref(), limit)
                .map(|(names, more)| Answer::Repositories { names, more })
                .map_err(RecordError::from),
            Request::GetCredential { peer } => {
                self.ledger.author(&peer).map(Answer::Credential).map_err(RecordError::from)
            }
            Request::Anchor { .. }
            | Request::Stat { .. }
            | Request::IsKept { .. }
            | Request::Renew
            | Request::Time
            | Request::Examine { .. }
            | Request::Collect { .. }
            | Request::Retain { .. }
            | Request::ReadyToMark
            | Request::Replicated { .. }
            | Request::Traffic
            | Request::Preheat { .. }
            | Request::ResolveUpstream { .. }
            | Request::FetchUpstream { .. }
            | Request::Upload { .. } => {
                return failed(Failure::Refused, "not about records");
            }
        };
        result.unwrap_or_else(|error| match error {
            RecordError::Denied(why) => failed(Failure::Denied, &why),
            other => failed(Failure::Unavailable, &other.to_string()),
        })
    }

    fn refuse_write(
        &self,
        repository: &RepositoryName,
        roles: Roles,
        namespaces: &[String],
    ) -> Option<Answer> {
        if !self.is_origin() {
            return Some(failed(Failure::Refused, "this process is not an origin"));
        }
        if !roles.contains(Role::Gateway) && !roles.contains(Role::Origin) {
            return Some(failed(Failure::Denied, "only gateways and origins may push"));
        }
        if !may_push(repository, namespaces) {
            return Some(failed(Failure::Denied, "the credential does not allow pushes to this repository"));
        }
        None
    }

    fn is_origin(&self) -> bool {
        self.identity.credential.value().roles.contains(Role::Origin)
    }

    /// Whether a record may come from a member with these roles: an origin, or a gateway that passes on what an origin
    /// wrote.
    fn may_put(&self, record: &SignedRecord, roles: Roles) -> bool {
        let author = record.signer();
        roles.contains(Role::Origin)
            || (roles.contains(Role::Gateway)
                && author == record.value().version.author
                && self
                    .ledger
                    .author(&author)
                    .ok()
                    .flatten()
                    .is_some_and(|known| self.may_author(&author, &known)))
    }

    /// As an owner: signs, and has a majority of the owners keep it. Without a stamp this process picks the version.
    async fn coordinate(
        &self,
        key: RecordKey,
        value: Option<RecordValue>,
        stamp: Option<Stamp>,
    ) -> Result<SignedRecord, RecordError> {
        self.writing.alone(&key, self.coordinate_alone(key.clone(), value, stamp)).await
    }

    async fn coordinate_alone(
        &self,
        key: RecordKey,
        value: Option<RecordValue>,
        stamp: Option<Stamp>,
    ) -> Result<SignedRecord, RecordError> {
        let owners = self.zone_owners(&key.repository);
        let stamp = match stamp {
            Some(stamp) => stamp,
            None => self.pick_stamp(&key, &owners).await?,
        };
        self.check_immutable(&key, value.as_ref(), &owners).await?;
        let known = self.ledger.get(&key)?.map_or(0, |record| record.value().version.counter);
        if stamp.counter > known.saturating_add(COUNTER_STEP_MAX) {
            return Err(RecordError::Denied(format!("a version {} right after {known}", stamp.counter)));
        }
        let author = self.identity.peer_id();
        let version = RecordVersion { counter: stamp.counter, written: stamp.written, author };
        let record = Signed::sign(Record { key, version, value }, &self.identity.keypair);
        if let Answer::Record(Some(kept)) = self.keep(&record)?
            && kept.value().version == version
            && kept.value().value != record.value().value
        {
            return Ok(kept);
        }
        self.spread(&record, &owners).await?;
        self.make_durable(&record).await?;
        Ok(record)
    }

    /// Puts a record that a majority keeps into the backend, and tells the mesh.
    async fn make_durable(&self, record: &SignedRecord) -> Result<(), RecordError> {
        if let Some(archive) = &self.archive {
            // A majority keeps it, so it may come to be seen; but it is acknowledged when it is also where the
            // backend's mode says.
            let kept = archive.keep(record).await;
            kept.map_err(|error| {
                RecordError::Unavailable(format!("the record is not in the backend: {error}"))
            })?;
        }
        self.announce(record).await;
        Ok(())
    }

    /// A page of the names of repositories of which this process keeps records, and whether there are more.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub(crate) fn kept_repositories(
        &self,
        after: Option<&RepositoryName>,
        limit: u32,
    ) -> Result<(Vec<RepositoryName>, bool), LedgerError> {
        self.ledger.all_repositories(after, limit)
    }

    /// Calls `visit` with every record of a repository that this process keeps.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub(crate) fn each_kept(
        &self,
        repository: &RepositoryName,
        mut visit: impl FnMut(&SignedRecord),
    ) -> Result<(), LedgerError> {
        let mut after = None;
        loop {
            let (records, more) = self.ledger.list(repository, &Listing::All, after.as_ref(), PAGE_MAX)?;
            records.iter().for_each(&mut visit);
            after = records.last().map(|record| record.value().key.kind.clone());
            if !more || after.is_none() {
                return Ok(());
            }
        }
    }

    /// Refuses to move a tag that is immutable.
    async fn check_immutable(
        &self,
        key: &RecordKey,
        value: Option<&RecordValue>,
        owners: &[Origin],
    ) -> Result<(), RecordError> {
        let RecordKind::Tag(tag) = &key.kind else { return Ok(()) };
        let name = format!("{}:{tag}", key.repository);
        if !self.immutable.iter().any(|pattern| pattern.is_match(&name)) {
            return Ok(());
        }
        let read = self.read_zone(key, owners).await;
        read.majority(owners)?;
        let known = newer(read.newest, self.ledger.get(key)?).and_then(|record| record.value().value.clone());
        match known {
            Some(known) if value.is_none_or(|value| value.digest != known.digest) => {
                Err(RecordError::Denied(format!("the tag {name} is immutable and names {}", known.digest)))
            }
            _ => Ok(()),
        }
    }

    /// The newest record that this process knows; of an origin that has not read its backend yet, what is there.
    async fn get_here(&self, key: &RecordKey) -> Result<Option<SignedRecord>, RecordError> {
        let known = self.known_here(key).await?;
        let Some(archive) = self.archive.as_ref().filter(|archive| known.is_none() && !archive.is_read())
        else {
            return Ok(known);
        };
        let fetched = archive.fetch(key).await;
        let fetched = fetched
            .map_err(|error| RecordError::Unavailable(format!("the backend is not read yet: {error}")))?;
        if let Some(record) = &fetched {
            self.ledger.apply(record)?;
        }
        Ok(fetched)
    }

    /// As an origin: reads what a former mesh, or this one, left in the backend; returns when it is done.
    pub(crate) async fn read_archive(&self) {
        if let Some(archive) = &self.archive {
            archive.read_all(&self.ledger).await;
        }
    }

    /// As an origin: writes the newest record of a key to the backend.
    ///
    /// # Errors
    /// A text for logs: it has to be tried again.
    pub(crate) async fn write_back(&self, key: &RecordKey) -> Result<(), String> {
        match &self.archive {
            Some(archive) => archive.write_back(&self.ledger, key).await.map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }

    /// What the backend has of the records, at an origin.
    pub fn archive(&self) -> Option<&Arc<Archive>> {
        self.archive.as_ref()
    }

    /// The origins that a repository's records belong to, from the most to the least responsible, this zone's first.
    /// Among them are for a moment those that were there before this process started: it has not heard of them yet, and
    /// must not take those it has heard of for all.
    fn owners(&self, repository: &RepositoryName) -> Vec<Origin> {
        let alive = self.control.origins();
        let expected = self.expected.still(&alive);
        let zone = &self.identity.credential.value().zone;
        rank_by_zone(repository.as_str().as_bytes(), zone, alive.iter().cloned().chain(expected))
    }

    /// The owners of a repository in this process's zone, or in the first zone that has any.
    fn zone_owners(&self, repository: &RepositoryName) -> Vec<Origin> {
        let owners = self.owners(repository);
        by_zone(&owners).next().map(<[Origin]>::to_vec).unwrap_or_default()
    }

    /// Asks the owners of one zone until a majority has answered.
    async fn read_zone(&self, key: &RecordKey, owners: &[Origin]) -> ZoneRead {
        let request = Request::GetRecord { key: key.clone() };
        let mut asked: FuturesUnordered<_> =
            owners.iter().map(|owner| self.put_question(owner, &request)).collect();
        let mut read = ZoneRead::default();
        while let Some(answer) = asked.next().await {
            if let Ok(Answer::Record(record)) = answer {
                read.note(record.filter(|record| record.value().key == *key));
            }
            // A majority is enough; waiting for a dead owner would cost every read its timeout.
            if read.answers > owners.len() / 2 {
                break;
            }
        }
        read
    }

    /// Sees to it that a majority keeps what is about to be given out, so that no later read finds less. Whether it does.
    async fn settle_on(&self, read: &ZoneRead, owners: &[Origin]) -> bool {
        let Some(newest) = read.newest.as_ref().filter(|_| read.up_to_date <= owners.len() / 2) else {
            return true;
        };
        let roles = self.identity.credential.value().roles;
        // Others may not pass records on.
        let may = roles.contains(Role::Origin) || roles.contains(Role::Gateway);
        !may || self.spread(newest, owners).await.is_ok()
    }

    async fn ask_neighbours(&self, key: &RecordKey, local: Option<SignedRecord>) -> Option<SignedRecord> {
        let request = Request::GetRecord { key: key.clone() };
        let members = self.directory.recent(NEIGHBOURS_ASKED);
        let mut asked: FuturesUnordered<_> = members
            .iter()
            .map(|(peer, member)| {
                let asked = self.links.ask(*peer, &member.endpoints, &request, READ_TIMEOUT);
                async move { (*peer, member, asked.await) }
            })
            .collect();
        let mut newest = local;
        while let Some((peer, member, answer)) = asked.next().await {
            if let Ok(Answer::Record(Some(record))) = answer
                && record.value().key == *key
                && self.is_author(&record, peer, &member.endpoints).await
            {
                newest = newer(newest, Some(record));
            }
        }
        newest
    }

    /// Whether an origin of this mesh wrote a record that a member, who need not be one, passed on. Asks that member for
    /// the author's credential if it is not known here.
    async fn is_author(&self, record: &SignedRecord, by: PeerId, endpoints: &[Endpoint]) -> bool {
        let author = record.signer();
        if author != record.value().version.author {
            return false;
        }
        if let Ok(Some(known)) = self.ledger.author(&author) {
            return self.may_author(&author, &known);
        }
        let request = Request::GetCredential { peer: author };
        let told = self.links.ask(by, endpoints, &request, READ_TIMEOUT).await;
        let Ok(Answer::Credential(Some(credential))) = told else { return false };
        if !self.may_author(&author, &credential) {
            tracing::warn!(%by, %author, "a member passes on a record of somebody who is no origin");
            return false;
        }
        self.note_author(&credential);
        true
    }

    /// A record outlives its author's credential, so that it may have expired; it must have been an origin's.
    fn may_author(&self, author: &PeerId, credential: &SignedCredential) -> bool {
        let value = credential.value();
        self.identity.mesh.signed(credential)
            && value.peer == *author
            && value.roles.contains(Role::Origin)
            && !self.revocations.is_revoked(author, credential)
    }

    /// Remembers who an origin is, so that its records can be told from forged ones when it is gone.
    pub fn note_author(&self, credential: &SignedCredential) {
        if let Err(error) = self.ledger.note_author(credential) {
            tracing::warn!(%error, "an origin's credential cannot be remembered");
        }
    }

    async fn ask_all_zones(
        &self,
        repository: &RepositoryName,
        request: &Request,
    ) -> Result<Vec<(Vec<SignedRecord>, bool)>, RecordError> {
        let owners = self.owners(repository);
        let chosen: Vec<&Origin> = by_zone(&owners).flatten().collect();
        let mut asked: FuturesUnordered<_> =
            chosen.into_iter().map(|owner| self.put_question(owner, request)).collect();
        let mut pages = Vec::new();
        while let Some(answer) = asked.next().await {
            if let Ok(Answer::Records { records, more }) = answer {
                pages.push((records, more));
            }
        }
        if pages.is_empty() {
            return Err(RecordError::Unavailable("no owner of the repository answers".to_owned()));
        }
        Ok(pages)
    }

    /// Asks an owner, which may be this process itself.
    async fn put_question(&self, owner: &Origin, request: &Request) -> Result<Answer, AskError> {
        if owner.peer != self.identity.peer_id() {
            return self.links.ask(owner.peer, &owner.endpoints, request, READ_TIMEOUT).await;
        }
        let answer = match request.clone() {
            Request::PutRecord { record } => self.keep(&record),
            Request::GetRecord { key } => self.get_here(&key).await.map(Answer::Record),
            Request::ListRecords { repository, what, after, limit } => self
                .ledger
                .list(&repository, &what, after.as_ref(), limit)
                .map(|(records, more)| Answer::Records { records, more })
                .map_err(RecordError::from),
            Request::ListRepositories { after, limit } => self
                .ledger
                .repositories(after.as_ref(), limit)
                .map(|(names, more)| Answer::Repositories { names, more })
                .map_err(RecordError::from),
            Request::ListAllRepositories { after, limit } => self
                .ledger
                .all_repositories(after.as_ref(), limit)
                .map(|(names, more)| Answer::Repositories { names, more })
                .map_err(RecordError::from),
            _ => Ok(failed(Failure::Refused, "not about records")),
        };
        answer.map_err(|error| AskError::Unanswered { peer: owner.peer, why: error.to_string() })
    }

    fn keep(&self, record: &SignedRecord) -> Result<Answer, RecordError> {
        let applied = self.ledger.apply(record)?;
        if applied == (Applied::Kept { fresh: true })
            && let Some(listener) = self.listener.get()
            && self.is_of_this_zone(record)
        {
            listener(record);
        }
        Ok(match applied {
            Applied::Kept { .. } => Answer::Record(Some(record.clone())),
            Applied::Superseded(newer) => Answer::Record(Some(*newer)),
        })
    }

    /// Whether an origin of this zone wrote a record, as far as is known. What another zone wrote is that zone's to copy.
    fn is_of_this_zone(&self, record: &SignedRecord) -> bool {
        let own = &self.identity.credential.value().zone;
        let author = self.ledger.author(&record.value().version.author).ok().flatten();
        author.is_none_or(|author| author.value().zone == *own)
    }

    /// As an owner: has a majority of this zone's owners, and the backend, keep a record of another zone as it is.
    async fn import(&self, record: SignedRecord) -> Result<SignedRecord, RecordError> {
        let value = record.value();
        let work = async {
            let owners = self.zone_owners(&value.key.repository);
            self.check_immutable(&value.key, value.value.as_ref(), &owners).await?;
            let newest = match self.keep(&record)? {
                Answer::Record(Some(kept)) => kept,
                _ => record.clone(),
            };
            self.spread(&newest, &owners).await?;
            if newest == record {
                self.make_durable(&record).await?;
            }
            Ok(newest)
        };
        self.writing.alone(&value.key, work).await
    }

    fn remember(&self, record: &SignedRecord) {
        if let Err(error) = self.ledger.apply(record) {
            tracing::warn!(key = %record.value().key, %error, "a record cannot be remembered");
        }
    }

    async fn announce(&self, record: &SignedRecord) {
        let value = record.value();
        if value.value.is_none() || matches!(value.key.kind, RecordKind::Tag(_)) {
            // Caches that miss it ask the owners all the same.
            if let Err(error) = self.control.publish(GossipMessage::RecordChanged(record.clone())).await {
                tracing::debug!(key = %value.key, %error, "a change is not gossiped");
            }
        }
    }
}

/// Whether a credential with these namespaces may push to `repository`; no namespaces allow all.
pub fn may_push(repository: &RepositoryName, namespaces: &[String]) -> bool {
    namespaces.is_empty()
        || namespaces.iter().any(|namespace| {
            let prefix = namespace.trim_end_matches('/');
            repository
                .as_str()
                .strip_prefix(prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
}

/// Splits a ranking into its zones, each cut to its owners.
fn by_zone(owners: &[Origin]) -> impl Iterator<Item = &[Origin]> {
    owners.chunk_by(|one, two| one.zone == two.zone).map(|zone| zone.get(..OWNERS).unwrap_or(zone))
}

fn newer(one: Option<SignedRecord>, two: Option<SignedRecord>) -> Option<SignedRecord> {
    match (one, two) {
        (Some(one), Some(two)) => Some(if two.value().version > one.value().version { two } else { one }),
        (one, two) => one.or(two),
    }
}

/// Merges pages of several owners: the newest record of each key, up to the end of the shortest page.
fn merge_pages(pages: Vec<(Vec<SignedRecord>, bool)>) -> (BTreeMap<RecordKind, SignedRecord>, bool) {
    let mut merged: BTreeMap<RecordKind, SignedRecord> = BTreeMap::new();
    let mut horizon: Option<RecordKind> = None;
    for (records, more) in pages {
        if let (true, Some(last)) = (more, records.last()) {
            let last = last.value().key.kind.clone();
            horizon = Some(horizon.map_or(last.clone(), |known| known.min(last)));
        }
        for record in records {
            let kind = record.value().key.kind.clone();
            let known = merged.remove(&kind);
            if let Some(newest) = newer(known, Some(record)) {
                merged.insert(kind, newest);
            }
        }
    }
    let more = horizon.is_some();
    if let Some(end) = horizon {
        merged.retain(|kind, _| *kind <= end);
    }
    (merged, more)
}

fn failed(kind: Failure, message: &str) -> Answer {
    Answer::Failed { kind, message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_types::{Digest, Keypair, WallTime};

    fn record(tag: &str, counter: u64, live: bool) -> SignedRecord {
        let keypair = Keypair::from_secret(&[1; 32]);
        let version = RecordVersion { counter, written: WallTime::default(), author: keypair.peer_id() };
        let key = RecordKey { repository: "a".parse().unwrap(), kind: RecordKind::Tag(tag.parse().unwrap()) };
        let value = live.then(|| RecordValue {
            digest: Digest::sha256(b"x"),
            media_type: "m".into(),
            size: 1,
            subject: None,
            artifact_type: None,
            annotations: BTreeMap::new(),
        });
        Signed::sign(Record { key, version, value }, &keypair)
    }

    #[test]
    fn pages_of_owners_that_differ_are_merged_to_the_shortest() {
        let one = (vec![record("a", 1, true), record("b", 2, false), record("c", 1, true)], true);
        let two = (
            vec![record("a", 2, true), record("b", 1, true), record("d", 1, true), record("e", 1, true)],
            false,
        );
        let (merged, more) = merge_pages(vec![one, two]);
        assert!(more);
        let seen: Vec<_> =
            merged.values().map(|r| (r.value().version.counter, r.value().value.is_some())).collect();
        assert_eq!(seen, [(2, true), (2, false), (1, true)]);
    }

    #[test]
    fn what_a_zone_answers_is_counted() {
        let mut read = ZoneRead::default();
        read.note(None);
        assert_eq!(
            (read.answers, read.up_to_date),
            (1, 1),
            "to know nothing is to be up to date with nothing"
        );
        read.note(Some(record("a", 2, true)));
        read.note(Some(record("a", 1, true)));
        assert_eq!((read.answers, read.up_to_date), (3, 1));
        read.note(Some(record("a", 2, true)));
        assert_eq!((read.answers, read.up_to_date), (4, 2));
        assert_eq!(read.newest.unwrap().value().version.counter, 2);
    }

    #[test]
    fn namespaces_are_whole_path_components() {
        let allowed = ["team".to_owned(), "ops/".to_owned()];
        let may = |name: &str| may_push(&name.parse().unwrap(), &allowed);
        assert!(may("team") && may("team/app") && may("ops/x"));
        assert!(!may("teams/app") && !may("other"));
        assert!(may_push(&"x".parse().unwrap(), &[]));
    }
}
