//! Everything that all origins know: what garbage collection marks from. Either all of it, or an error.

use std::collections::{BTreeMap, BTreeSet};

use shoal_net::control::Origin;
use shoal_types::record::SignedRecord;
use shoal_types::{Digest, PeerId, RecordKey, RecordVersion, RepositoryName, Zone};

use super::{RecordError, Records};
use crate::rpc::{Answer, Listing, PAGE_MAX, Request};
use crate::upstream::SOURCE_ANNOTATION;

/// Most records in a survey, about 300 bytes each. A mesh that has more cannot collect garbage.
pub const SURVEY_RECORDS_MAX: usize = 8_000_000;

/// What a survey remembers of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which state of it.
    pub version: RecordVersion,
    /// What it names and that manifest's subject; `None` when it was deleted, or is of another registry.
    pub value: Option<(Digest, Option<Digest>)>,
}

/// The newest record of each key, zone by zone: until zones have heard of each other's writes, each serves its own.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// The records that origins of a zone know.
    pub zones: BTreeMap<Zone, BTreeMap<RecordKey, Entry>>,
}

impl Survey {
    fn take(&mut self, zone: &Zone, record: &SignedRecord) {
        let value = record.value();
        // What is pulled through from another registry is that registry's: it is only cached here.
        let own = value.value.as_ref().filter(|value| !value.annotations.contains_key(SOURCE_ANNOTATION));
        let entry = Entry { version: value.version, value: own.map(|value| (value.digest, value.subject)) };
        let records = self.zones.entry(zone.clone()).or_default();
        let known = records.entry(value.key.clone()).or_insert(entry);
        if known.version < entry.version {
            *known = entry;
        }
    }

    fn len(&self) -> usize {
        self.zones.values().map(BTreeMap::len).sum()
    }
}

impl Records {
    /// All records of all origins alive; of `without` nothing is expected.
    ///
    /// # Errors
    /// A text: one of them did not answer, or one that has written records is not there.
    pub async fn survey(&self, without: &[PeerId]) -> Result<Survey, String> {
        self.check_all_here(without)?;
        let mut survey = Survey::default();
        for origin in self.discovery.owners(b"") {
            let read = self.survey_one(&origin, &mut survey).await;
            read.map_err(|error| {
                format!("the records of the origin {} cannot be read: {error}", origin.peer)
            })?;
        }
        Ok(survey)
    }

    /// Fails when an origin that this process has ever heard of is not there.
    ///
    /// # Errors
    /// A text that names it and says what to do.
    pub(crate) fn check_all_here(&self, without: &[PeerId]) -> Result<(), String> {
        let here: BTreeSet<PeerId> =
            self.discovery.owners(b"").into_iter().map(|origin| origin.peer).collect();
        if here.is_empty() {
            return Err("no origin is known".to_owned());
        }
        let authors = self.ledger.authors().map_err(|error| error.to_string())?;
        for credential in authors {
            let author = credential.value();
            let gone = here.contains(&author.peer) || without.contains(&author.peer);
            if gone || self.revocations.is_revoked(&author.peer, &credential) {
                continue;
            }
            return Err(format!(
                "the origin {} of zone {} is not there, and may know of tags that nobody else knows: start it, or if it \
                 is gone for good revoke its credential or name it with --without",
                author.peer, author.zone
            ));
        }
        Ok(())
    }

    /// As an origin: fails unless this process knows every record that its backends have.
    ///
    /// # Errors
    /// A text that says what is in the way.
    pub(crate) async fn ready_to_mark(&self) -> Result<(), String> {
        let Some(archive) = &self.archive else { return Err("it is no origin".to_owned()) };
        if !archive.is_read() {
            return Err("it has not read its backend's records yet".to_owned());
        }
        if !self.is_settled() {
            return Err("it is still copying records, because origins came or went".to_owned());
        }
        archive.read_missing(&self.ledger).await.map_err(|error| error.to_string())
    }

    /// As an owner: deletes a register if it is still as it was seen.
    ///
    /// # Errors
    /// [`RecordError`].
    pub(crate) async fn bury(&self, key: RecordKey, seen: RecordVersion) -> Result<bool, RecordError> {
        self.writing
            .alone(&key, async {
                let known = self.read(&key).await?;
                let is_same = known.record.as_ref().is_some_and(|record| record.value().version == seen);
                if known.stale || !is_same {
                    return Ok(false);
                }
                self.coordinate_alone(key.clone(), None, None).await.map(|_| true)
            })
            .await
    }

    async fn survey_one(&self, origin: &Origin, survey: &mut Survey) -> Result<(), RecordError> {
        let mut after: Option<RepositoryName> = None;
        loop {
            let request = Request::ListAllRepositories { after: after.clone(), limit: PAGE_MAX };
            let Answer::Repositories { names, more } = self.question(origin, &request).await? else {
                return Err(RecordError::Unavailable("it gave an answer to another question".to_owned()));
            };
            for repository in &names {
                self.survey_repository(origin, repository, survey).await?;
            }
            after = names.last().cloned();
            if !more || after.is_none() {
                return Ok(());
            }
        }
    }

    async fn survey_repository(
        &self,
        origin: &Origin,
        repository: &RepositoryName,
        survey: &mut Survey,
    ) -> Result<(), RecordError> {
        let mut after = None;
        loop {
            let (repository, what) = (repository.clone(), Listing::All);
            let request = Request::ListRecords { repository, what, after, limit: PAGE_MAX };
            let Answer::Records { records, more } = self.question(origin, &request).await? else {
                return Err(RecordError::Unavailable("it gave an answer to another question".to_owned()));
            };
            after = records.last().map(|record| record.value().key.kind.clone());
            records.iter().for_each(|record| survey.take(&origin.zone, record));
            if survey.len() > SURVEY_RECORDS_MAX {
                let why = format!("there are more than {SURVEY_RECORDS_MAX} records");
                return Err(RecordError::Unavailable(why));
            }
            if !more || after.is_none() {
                return Ok(());
            }
        }
    }

    async fn question(&self, origin: &Origin, request: &Request) -> Result<Answer, RecordError> {
        let answer = self.put_question(origin, request).await;
        answer.map_err(|error| RecordError::Unavailable(error.to_string()))
    }
}
