//! The newest known record of each register, in an ordered table, with an index of referrers.
//!
//! Table keys: `r/<repository>\0<kind>` for records (see [`kind_key`]), `s/<repository>\0<subject>\0<kind>` for the
//! index of referrers, `n/<repository>` for the names of repositories, `a/<peer>` for the credentials of authors. `\0` cannot occur in a name, so that a prefix
//! scan of one repository never meets another's.

use std::num::NonZeroUsize;

use lru::LruCache;
use parking_lot::Mutex;
use shoal_types::record::SignedRecord;
use shoal_types::{Digest, PeerId, RecordKey, RecordKind, RepositoryName, SignedCredential};

use crate::rpc::{Listing, PAGE_MAX};

/// Records kept in memory (some 600 bytes each).
const RECENT_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// Version byte before each stored record.
const FORMAT: u8 = 1;
/// What the keys of authors' credentials begin with.
const AUTHORS: &[u8] = b"a/";

/// The ordered table a ledger is kept in.
pub trait LedgerTable: Send + Sync {
    /// The value of `key`.
    ///
    /// # Errors
    /// The table cannot be read.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, LedgerError>;

    /// Applies all writes (`None` deletes) at once; they are on stable storage when it returns.
    ///
    /// # Errors
    /// The table cannot be written; nothing was.
    fn write(&self, writes: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<(), LedgerError>;

    /// At most `limit` entries whose keys start with `prefix` and are greater than `after`, in key order.
    ///
    /// # Errors
    /// The table cannot be read.
    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Entries, LedgerError>;
}

/// Keys and values, in key order.
pub type Entries = Vec<(Vec<u8>, Vec<u8>)>;

/// The table failed.
#[derive(Debug, thiserror::Error)]
#[error("the table of records failed: {0}")]
pub struct LedgerError(pub String);

/// What became of an offered record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It is the newest and is kept; `fresh` when it was not known already.
    Kept {
        /// It replaced an older record or is the first.
        fresh: bool,
    },
    /// This newer one is kept instead.
    Superseded(Box<SignedRecord>),
}

struct Recent {
    records: LruCache<RecordKey, SignedRecord>,
    /// How many records have been written.
    changes: u64,
}

/// The records this process keeps.
pub struct Ledger {
    table: Box<dyn LedgerTable>,
    /// Those used last, as they are in the table: reading one again verifies its signature again.
    recent: Mutex<Recent>,
    /// Makes read-compare-write one step.
    write: Mutex<()>,
}

impl Ledger {
    /// The ledger in `table`.
    pub fn new(table: Box<dyn LedgerTable>) -> Self {
        Self {
            table,
            recent: Mutex::new(Recent { records: LruCache::new(RECENT_MAX), changes: 0 }),
            write: Mutex::new(()),
        }
    }

    /// The newest known record of `key`, tombstones included.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn get(&self, key: &RecordKey) -> Result<Option<SignedRecord>, LedgerError> {
        let before = {
            let mut recent = self.recent.lock();
            if let Some(record) = recent.records.get(key) {
                return Ok(Some(record.clone()));
            }
            recent.changes
        };
        let Some(bytes) = self.table.get(&record_key(key))? else { return Ok(None) };
        let record = decode(&bytes)?;
        let mut recent = self.recent.lock();
        // What was read may be an older one by now.
        if recent.changes == before {
            recent.records.put(key.clone(), record.clone());
        }
        Ok(Some(record))
    }

    /// Keeps `record` if it is newer than what is known.
    ///
    /// # Errors
    /// [`LedgerError`]: nothing was kept.
    pub fn apply(&self, record: &SignedRecord) -> Result<Applied, LedgerError> {
        let value = record.value();
        let _one_at_a_time = self.write.lock();
        let known = self.get(&value.key)?;
        if let Some(known) = &known {
            if known.value().version > value.version {
                return Ok(Applied::Superseded(Box::new(known.clone())));
            }
            if known.value().version == value.version {
                // Two writers picked the same version: the first one's stands.
                return Ok(match known.value().value == value.value {
                    true => Applied::Kept { fresh: false },
                    false => Applied::Superseded(Box::new(known.clone())),
                });
            }
        }
        let mut stored = vec![FORMAT];
        stored.extend(record.to_bytes());
        let mut writes = vec![
            (record_key(&value.key), Some(stored)),
            (repository_key(&value.key.repository), Some(vec![FORMAT])),
        ];
        let subject_of =
            |record: &SignedRecord| record.value().value.as_ref().and_then(|value| value.subject);
        if let Some(old) = known.as_ref().and_then(subject_of) {
            writes.push((referrer_key(&value.key, &old), None));
        }
        if let Some(new) = subject_of(record) {
            writes.push((referrer_key(&value.key, &new), Some(vec![FORMAT])));
        }
        self.table.write(writes)?;
        let mut recent = self.recent.lock();
        recent.changes = recent.changes.wrapping_add(1);
        recent.records.put(value.key.clone(), record.clone());
        Ok(Applied::Kept { fresh: true })
    }

    /// The credential of an origin that writes records, if it is known.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn author(&self, peer: &PeerId) -> Result<Option<SignedCredential>, LedgerError> {
        let Some(bytes) = self.table.get(&author_key(peer))? else { return Ok(None) };
        let stored = bytes.split_first().filter(|(format, _)| **format == FORMAT).map(|(_, rest)| rest);
        Ok(stored.and_then(|rest| SignedCredential::from_bytes(rest).ok()))
    }

    /// The credentials of all origins that are known, alive or not.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn authors(&self) -> Result<Vec<SignedCredential>, LedgerError> {
        let mut authors = Vec::new();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = self.table.scan(AUTHORS, after.as_deref(), PAGE_MAX as usize)?;
            for (_, bytes) in &page {
                let stored =
                    bytes.split_first().filter(|(format, _)| **format == FORMAT).map(|(_, rest)| rest);
                let credential = stored.and_then(|rest| SignedCredential::from_bytes(rest).ok());
                authors.push(credential.ok_or_else(|| {
                    LedgerError("an origin's credential is of an unknown format".to_owned())
                })?);
            }
            match page.last() {
                Some((last, _)) if page.len() == PAGE_MAX as usize => after = Some(last.clone()),
                _ => return Ok(authors),
            }
        }
    }

    /// Remembers an origin's credential.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn note_author(&self, credential: &SignedCredential) -> Result<(), LedgerError> {
        let peer = credential.value().peer;
        if self.author(&peer)?.as_ref() == Some(credential) {
            return Ok(());
        }
        let stored = [&[FORMAT], credential.to_bytes().as_slice()].concat();
        self.table.write(vec![(author_key(&peer), Some(stored))])
    }

    /// A page of records, tombstones included, and whether there are more.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn list(
        &self,
        repository: &RepositoryName,
        what: &Listing,
        after: Option<&RecordKind>,
        limit: u32,
    ) -> Result<(Vec<SignedRecord>, bool), LedgerError> {
        let limit = limit.clamp(1, PAGE_MAX) as usize;
        let first = match what {
            Listing::Tags => Some(b't'),
            Listing::Manifests => Some(b'm'),
            Listing::All => None,
            Listing::Referrers(subject) => return self.list_referrers(repository, subject, after, limit),
        };
        let mut prefix = repository_prefix(b"r/", repository);
        prefix.extend(first);
        let after =
            after.map(|kind| record_key(&RecordKey { repository: repository.clone(), kind: kind.clone() }));
        let mut found = self.table.scan(&prefix, after.as_deref(), limit + 1)?;
        let more = found.len() > limit;
        found.truncate(limit);
        let records = found.iter().map(|(_, bytes)| decode(bytes)).collect::<Result<_, _>>()?;
        Ok((records, more))
    }

    fn list_referrers(
        &self,
        repository: &RepositoryName,
        subject: &Digest,
        after: Option<&RecordKind>,
        limit: usize,
    ) -> Result<(Vec<SignedRecord>, bool), LedgerError> {
        let prefix = referrer_prefix(repository, subject);
        let after = after.map(|kind| [prefix.as_slice(), &kind_key(kind)].concat());
        let mut found = self.table.scan(&prefix, after.as_deref(), limit + 1)?;
        let more = found.len() > limit;
        found.truncate(limit);
        let mut records = Vec::with_capacity(found.len());
        for (key, _) in found {
            let kind = key.get(prefix.len()..).unwrap_or_default();
            let record = [repository_prefix(b"r/", repository).as_slice(), kind].concat();
            if let Some(bytes) = self.table.get(&record)? {
                records.push(decode(&bytes)?);
            }
        }
        Ok((records, more))
    }

    /// A page of the names of repositories with any record, and whether there are more.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn all_repositories(
        &self,
        after: Option<&RepositoryName>,
        limit: u32,
    ) -> Result<(Vec<RepositoryName>, bool), LedgerError> {
        let limit = limit.clamp(1, PAGE_MAX) as usize;
        let page = self.table.scan(b"n/", after.map(repository_key).as_deref(), limit)?;
        let more = page.len() == limit;
        let name = |key: &[u8]| std::str::from_utf8(key.get(2..)?).ok()?.parse().ok();
        Ok((page.iter().filter_map(|(key, _)| name(key)).collect(), more))
    }

    /// A page of the names of repositories with at least one record that is not a tombstone, and whether there may
    /// be more.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn repositories(
        &self,
        after: Option<&RepositoryName>,
        limit: u32,
    ) -> Result<(Vec<RepositoryName>, bool), LedgerError> {
        let limit = limit.clamp(1, PAGE_MAX) as usize;
        let mut names = Vec::new();
        let mut after = after.map(repository_key);
        loop {
            let page = self.table.scan(b"n/", after.as_deref(), limit + 1)?;
            let Some((last, _)) = page.last() else { return Ok((names, false)) };
            after = Some(last.clone());
            for (key, _) in &page {
                let text = key.get(2..).and_then(|name| std::str::from_utf8(name).ok()).unwrap_or_default();
                let Ok(name) = text.parse::<RepositoryName>() else { continue };
                if self.is_alive(&name)? {
                    names.push(name);
                }
                if names.len() > limit {
                    names.truncate(limit);
                    return Ok((names, true));
                }
            }
            if page.len() <= limit {
                return Ok((names, false));
            }
        }
    }

    /// Whether the repository has a tag or manifest that is not deleted.
    fn is_alive(&self, repository: &RepositoryName) -> Result<bool, LedgerError> {
        for kind in [b't', b'm'] {
            let mut prefix = repository_prefix(b"r/", repository);
            prefix.push(kind);
            let mut after: Option<Vec<u8>> = None;
            loop {
                let page = self.table.scan(&prefix, after.as_deref(), PAGE_MAX as usize)?;
                for (_, bytes) in &page {
                    if decode(bytes)?.value().value.is_some() {
                        return Ok(true);
                    }
                }
                match page.last() {
                    Some((last, _)) if page.len() == PAGE_MAX as usize => after = Some(last.clone()),
                    _ => break,
                }
            }
        }
        Ok(false)
    }
}

fn decode(bytes: &[u8]) -> Result<SignedRecord, LedgerError> {
    match bytes.split_first() {
        Some((&FORMAT, rest)) => {
            SignedRecord::from_bytes(rest).map_err(|error| LedgerError(format!("a stored record: {error}")))
        }
        _ => Err(LedgerError("a stored record has an unknown format: a newer version wrote it".to_owned())),
    }
}

#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz(bytes: &[u8]) {
    if let Ok(record) = decode(bytes) {
        let _ = record_key(&record.value().key);
    }
}

fn author_key(peer: &PeerId) -> Vec<u8> {
    [AUTHORS, peer.public_key()].concat()
}

fn repository_prefix(table: &[u8], repository: &RepositoryName) -> Vec<u8> {
    let mut key = table.to_vec();
    key.extend_from_slice(repository.as_str().as_bytes());
    key.push(0);
    key
}

fn repository_key(repository: &RepositoryName) -> Vec<u8> {
    [b"n/", repository.as_str().as_bytes()].concat()
}

/// Orders the records of a repository: tags by name, then manifests, then blobs.
fn kind_key(kind: &RecordKind) -> Vec<u8> {
    match kind {
        RecordKind::Tag(tag) => [b"t", tag.as_str().as_bytes()].concat(),
        RecordKind::Manifest(digest) => [b"m".as_slice(), &digest.multihash().to_bytes()].concat(),
        RecordKind::Blob(digest) => [b"b".as_slice(), &digest.multihash().to_bytes()].concat(),
    }
}

fn record_key(key: &RecordKey) -> Vec<u8> {
    [repository_prefix(b"r/", &key.repository), kind_key(&key.kind)].concat()
}

fn referrer_prefix(repository: &RepositoryName, subject: &Digest) -> Vec<u8> {
    let mut key = repository_prefix(b"s/", repository);
    key.extend(subject.multihash().to_bytes());
    key.push(0);
    key
}

fn referrer_key(key: &RecordKey, subject: &Digest) -> Vec<u8> {
    [referrer_prefix(&key.repository, subject), kind_key(&key.kind)].concat()
}

/// The in-memory double of a table, for tests.
#[derive(Debug, Default)]
pub struct MemoryTable(Mutex<std::collections::BTreeMap<Vec<u8>, Vec<u8>>>);

impl LedgerTable for MemoryTable {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, LedgerError> {
        Ok(self.0.lock().get(key).cloned())
    }

    fn write(&self, writes: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<(), LedgerError> {
        let mut map = self.0.lock();
        for (key, value) in writes {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        Ok(())
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Entries, LedgerError> {
        let map = self.0.lock();
        let start =
            after.map_or_else(|| prefix.to_vec(), |after| [after, &[0]].concat()).max(prefix.to_vec());
        Ok(map
            .range(start..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .take(limit)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shoal_types::{Keypair, Record, RecordValue, RecordVersion, Signed, TagName, WallTime};
    use std::collections::BTreeMap;

    fn record(repository: &str, kind: RecordKind, counter: u64, value: Option<RecordValue>) -> SignedRecord {
        let keypair = Keypair::from_secret(&[1; 32]);
        let version = RecordVersion { counter, written: WallTime::default(), author: keypair.peer_id() };
        let key = RecordKey { repository: repository.parse().unwrap(), kind };
        Signed::sign(Record { key, version, value }, &keypair)
    }

    fn value(subject: Option<Digest>) -> RecordValue {
        RecordValue {
            digest: Digest::sha256(b"x"),
            media_type: "m".into(),
            size: 1,
            subject,
            artifact_type: None,
            annotations: BTreeMap::new(),
        }
    }

    fn tag(name: &str) -> RecordKind {
        RecordKind::Tag(name.parse::<TagName>().unwrap())
    }

    #[test]
    fn the_newest_wins_in_any_order() {
        let ledger = Ledger::new(Box::<MemoryTable>::default());
        let old = record("a", tag("v"), 1, Some(value(None)));
        let new = record("a", tag("v"), 2, None);
        assert_eq!(ledger.apply(&new).unwrap(), Applied::Kept { fresh: true });
        assert_eq!(ledger.apply(&old).unwrap(), Applied::Superseded(Box::new(new.clone())));
        assert_eq!(ledger.apply(&new).unwrap(), Applied::Kept { fresh: false });
        assert_eq!(ledger.get(&new.value().key).unwrap(), Some(new));
    }

    #[test]
    fn everything_is_listed_for_a_copy() {
        let ledger = Ledger::new(Box::<MemoryTable>::default());
        let digest = Digest::sha256(b"x");
        let kinds = [tag("v"), tag("w"), RecordKind::Manifest(digest), RecordKind::Blob(digest)];
        for kind in &kinds {
            ledger.apply(&record("a", kind.clone(), 1, None)).unwrap();
            ledger.apply(&record("a/b", kind.clone(), 1, None)).unwrap();
        }
        let repository: RepositoryName = "a".parse().unwrap();
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let (page, more) = ledger.list(&repository, &Listing::All, after.as_ref(), 1).unwrap();
            seen.extend(page.iter().map(|record| record.value().key.kind.clone()));
            after = seen.last().cloned();
            if !more {
                break;
            }
        }
        seen.sort();
        let mut expected = kinds.to_vec();
        expected.sort();
        assert_eq!(seen, expected);
        // Of tombstones only, and so in no catalog.
        assert_eq!(ledger.repositories(None, 10).unwrap().0, []);
        assert_eq!(ledger.all_repositories(None, 10).unwrap().0.len(), 2);
        assert_eq!(ledger.all_repositories(Some(&repository), 10).unwrap().0.len(), 1);
    }

    #[test]
    fn referrers_follow_their_records() {
        let ledger = Ledger::new(Box::<MemoryTable>::default());
        let subject = Digest::sha256(b"subject");
        let kind = RecordKind::Manifest(Digest::sha256(b"sbom"));
        let repository: RepositoryName = "a".parse().unwrap();
        ledger.apply(&record("a", kind.clone(), 1, Some(value(Some(subject))))).unwrap();
        let list = || ledger.list(&repository, &Listing::Referrers(subject), None, 10).unwrap().0.len();
        assert_eq!(list(), 1);
        ledger.apply(&record("a", kind, 2, None)).unwrap();
        assert_eq!(list(), 0);
    }

    #[test]
    fn repositories_without_a_live_record_are_not_listed() {
        let ledger = Ledger::new(Box::<MemoryTable>::default());
        for (name, counter, live) in
            [("a", 1, true), ("a/b", 1, true), ("c", 1, true), ("c", 2, false), ("d", 1, true)]
        {
            ledger.apply(&record(name, tag("v"), counter, live.then(|| value(None)))).unwrap();
        }
        let names = |after: Option<&str>, limit| {
            let after = after.map(|name| name.parse().unwrap());
            let (names, more) = ledger.repositories(after.as_ref(), limit).unwrap();
            (names.iter().map(ToString::to_string).collect::<Vec<_>>(), more)
        };
        assert_eq!(names(None, 10), (vec!["a".into(), "a/b".into(), "d".into()], false));
        assert_eq!(names(None, 2), (vec!["a".into(), "a/b".into()], true));
        assert_eq!(names(Some("a/b"), 2), (vec!["d".into()], false));
    }

    proptest! {
        #[test]
        fn pages_add_up(tags in prop::collection::btree_set("[a-z0-9_.-]{0,3}", 0..30), limit in 1u32..7) {
            let ledger = Ledger::new(Box::<MemoryTable>::default());
            let mut names: Vec<TagName> = tags.iter().map(|t| format!("x{t}").parse().unwrap()).collect();
            names.sort();
            for name in &names {
                ledger.apply(&record("a", RecordKind::Tag(name.clone()), 1, Some(value(None)))).unwrap();
                ledger.apply(&record("a/b", RecordKind::Tag(name.clone()), 1, Some(value(None)))).unwrap();
            }
            let repository: RepositoryName = "a".parse().unwrap();
            let mut got = Vec::new();
            let mut after = None;
            loop {
                let (page, more) = ledger.list(&repository, &Listing::Tags, after.as_ref(), limit).unwrap();
                for record in &page {
                    if let RecordKind::Tag(tag) = &record.value().key.kind { got.push(tag.clone()); }
                }
                after = page.last().map(|record| record.value().key.kind.clone());
                if !more { break; }
                prop_assert_eq!(page.len(), limit as usize);
            }
            prop_assert_eq!(got, names);
        }
    }
}
