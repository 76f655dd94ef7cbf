//! When owners change: records move to the new ones, and until they have, the new ones ask.
//!
//! An origin that has just become an owner of a repository does not know what its predecessors keep. Were it to answer a
//! read with "nothing", it and another owner that missed the last write would be a majority that knows less than what was
//! acknowledged. So from the moment the set of origins changes until it has copied what it now owns, an origin is
//! *unsettled*: before it answers for a key it asks the other origins of its zone what they keep.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use shoal_net::control::Origin;
use shoal_types::record::SignedRecord;
use shoal_types::{PeerId, RecordKey, RepositoryName};

use super::{OWNERS, READ_TIMEOUT, RecordError, Records, by_zone, newer};
use crate::rpc::{Answer, Listing, PAGE_MAX, Request};

/// Pause between two pages that are copied, so that a large registry does not crowd out pulls: 1,000 records each.
const PAGE_PAUSE: Duration = Duration::from_millis(20);
/// Origins asked before an unsettled one answers for a key.
const ASKED_MAX: usize = 16;

impl Records {
    /// Takes note that the origins have changed: what this process keeps may not be all that it owns now.
    pub(crate) fn unsettle(&self) {
        self.settled.store(false, Ordering::Release);
    }

    /// Whether this process keeps all that it owns.
    pub fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// The other origins of this zone that are alive.
    pub(crate) fn others(&self) -> Vec<Origin> {
        let own = &self.identity.credential.value().zone;
        let local = self.identity.peer_id();
        self.discovery.owners(b"").into_iter().filter(|one| one.zone == *own && one.peer != local).collect()
    }

    /// Copies the records of the repositories this process owns from the other origins of its zone; from then on it is
    /// settled, unless the origins changed meanwhile.
    ///
    /// # Errors
    /// [`RecordError`] when one of them does not answer: it is to be done again.
    pub(crate) async fn settle(&self) -> Result<u64, RecordError> {
        let others = self.others();
        let mut copied = 0;
        for other in &others {
            copied += self.copy_from(other).await?;
        }
        let peers = |origins: &[Origin]| origins.iter().map(|one| one.peer).collect::<BTreeSet<PeerId>>();
        if peers(&self.others()) == peers(&others) {
            self.settled.store(true, Ordering::Release);
        }
        Ok(copied)
    }

    async fn copy_from(&self, other: &Origin) -> Result<u64, RecordError> {
        let mut copied = 0;
        let mut after: Option<RepositoryName> = None;
        loop {
            let request = Request::ListAllRepositories { after: after.clone(), limit: PAGE_MAX };
            let Answer::Repositories { names, more } = self.ask(other, &request).await? else {
                return Err(unexpected(other));
            };
            for repository in names.iter().filter(|repository| self.owns(repository)) {
                copied += self.copy_repository(other, repository).await?;
            }
            after = names.last().cloned();
            if !more || after.is_none() {
                return Ok(copied);
            }
            tokio::time::sleep(PAGE_PAUSE).await;
        }
    }

    async fn copy_repository(&self, other: &Origin, repository: &RepositoryName) -> Result<u64, RecordError> {
        let mut copied = 0;
        let mut after = None;
        loop {
            let request = Request::ListRecords {
                repository: repository.clone(),
                what: Listing::All,
                after: after.clone(),
                limit: PAGE_MAX,
            };
            let Answer::Records { records, more } = self.ask(other, &request).await? else {
                return Err(unexpected(other));
            };
            after = records.last().map(|record| record.value().key.kind.clone());
            for record in records.iter().filter(|record| record.value().key.repository == *repository) {
                copied += u64::from(self.take(record)?);
            }
            if !more || after.is_none() {
                return Ok(copied);
            }
            tokio::time::sleep(PAGE_PAUSE).await;
        }
    }

    /// Keeps a record unless one as new is known; returns whether it was news.
    fn take(&self, record: &SignedRecord) -> Result<bool, RecordError> {
        let applied = self.ledger.apply(record)?;
        Ok(applied == super::Applied::Kept { fresh: true })
    }

    fn owns(&self, repository: &RepositoryName) -> bool {
        let owners = self.owners(repository);
        let own = by_zone(&owners).next().unwrap_or_default();
        own.iter().take(OWNERS).any(|owner| owner.peer == self.identity.peer_id())
    }

    async fn ask(&self, other: &Origin, request: &Request) -> Result<Answer, RecordError> {
        let answer = self.links.ask(other.peer, &other.endpoints, request, READ_TIMEOUT).await;
        answer.map_err(|error| RecordError::Unavailable(error.to_string()))
    }

    /// What this process and, unless it is settled, the other origins keep of a key.
    pub(super) async fn known_here(&self, key: &RecordKey) -> Result<Option<SignedRecord>, RecordError> {
        let known = self.ledger.get(key)?;
        if self.is_settled() || self.archive.is_none() {
            return Ok(known);
        }
        let request = Request::PeekRecord { key: key.clone() };
        let others = self.others();
        let mut asked: FuturesUnordered<_> =
            others.iter().take(ASKED_MAX).map(|other| self.ask(other, &request)).collect();
        let mut newest = known.clone();
        while let Some(answer) = asked.next().await {
            // One that does not answer is going, or not yet here; the copying hears of it again.
            if let Ok(Answer::Record(record)) = answer {
                newest = newer(newest, record.filter(|record| record.value().key == *key));
            }
        }
        if let Some(record) = newest.as_ref().filter(|newest| known.as_ref() != Some(*newest)) {
            self.take(record)?;
        }
        Ok(newest)
    }
}

fn unexpected(other: &Origin) -> RecordError {
    RecordError::Unavailable(format!("{} gave an answer to another question", other.peer))
}
