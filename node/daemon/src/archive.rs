//! The records of repositories in the backend: written as they change, and read back by an origin that has none.
//!
//! A tag is in `tags/<repository>/_tags/<tag>` as a signed record, so a mesh can be rebuilt from the bucket alone. An
//! origin reads all of them once, at the first start on its disk; until that is done it looks into the backend for each
//! key it does not know, so that nobody is told "not found" of what is only not read yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::TryStreamExt as _;
use shoal_origin::{Backend, BackendError, Member, WriteMode};
use shoal_store::KvTable;
use shoal_types::RecordKey;
use shoal_types::record::SignedRecord;

use crate::clock::wall_now;
use crate::queue::Item;
use crate::records::ledger::Ledger;
use crate::vault::Vault;

/// Version byte before each record's bytes.
const FORMAT: u8 = 1;
/// Times that one write is begun anew because somebody else wrote in between.
const RACES_MAX: usize = 16;
/// Records read at once.
const READS: usize = 16;
/// Between two tries to read a backend that does not answer.
const RETRY: Duration = Duration::from_secs(2);
/// Beginning of the keys under which it is remembered that a backend has been read.
const READ_KEY: &str = "archive-read/";

/// Why a record is not in the backend, or cannot be read from it.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The backend failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// What is stored there is no record of this key.
    #[error("{key} in the backend is not understood: {why}")]
    Damaged {
        /// Which record.
        key: Box<RecordKey>,
        /// What is wrong.
        why: String,
    },
    /// Others write it all the time.
    #[error("{0} changes in the backend all the time")]
    Contended(Box<RecordKey>),
    /// The local disk failed.
    #[error("the local store failed: {0}")]
    Store(String),
}

/// The backend's side of the records.
pub struct Archive {
    vault: Arc<Vault>,
    /// Remembers what has been read.
    table: KvTable,
    complete: AtomicBool,
    recovered: AtomicU64,
}

impl Archive {
    /// The archive behind `vault`; `table` is where it remembers what it has read.
    pub fn new(vault: Arc<Vault>, table: KvTable) -> Self {
        Self { vault, table, complete: AtomicBool::new(false), recovered: AtomicU64::new(0) }
    }

    /// Whether all records that were in the backends when this origin was new are known here.
    pub fn is_read(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// Records read from backends since the process started.
    pub fn recovered(&self) -> u64 {
        self.recovered.load(Ordering::Relaxed)
    }

    /// Makes a record that a majority of owners keeps durable in the backend: at once, or with `write=back` in the
    /// queue. Of a repository without a backend nothing is written.
    ///
    /// # Errors
    /// [`ArchiveError`]; with `write=back` only of the local disk.
    pub async fn keep(&self, record: &SignedRecord) -> Result<(), ArchiveError> {
        let key = &record.value().key;
        let Ok(keeper) = self.vault.keeper(Some(&key.repository)) else { return Ok(()) };
        if keeper.write == WriteMode::Through {
            return write(&*keeper.backend, record).await;
        }
        let (queue, key) = (Arc::clone(self.vault.queue()), key.clone());
        let repository = key.repository.clone();
        let queued =
            crate::driver::blocking(move || queue.push(Item::Record(key), Some(repository), wall_now()));
        queued.await.map_err(ArchiveError::Store)
    }

    /// Writes the newest record of a queued key.
    pub(crate) async fn write_back(&self, ledger: &Ledger, key: &RecordKey) -> Result<(), ArchiveError> {
        let Ok(keeper) = self.vault.keeper(Some(&key.repository)) else { return Ok(()) };
        let newest = ledger.get(key).map_err(|error| ArchiveError::Store(error.to_string()))?;
        match newest {
            Some(newest) => write(&*keeper.backend, &newest).await,
            None => Ok(()),
        }
    }

    /// A record that is not known here, while not all of them are read. Says nothing of a repository without a backend.
    ///
    /// # Errors
    /// [`ArchiveError`]: there may be one.
    pub async fn fetch(&self, key: &RecordKey) -> Result<Option<SignedRecord>, ArchiveError> {
        let Ok(keeper) = self.vault.keeper(Some(&key.repository)) else { return Ok(None) };
        Ok(read(&*keeper.backend, key).await?.map(|(record, _)| record))
    }

    /// Reads all records of backends that this origin has not read yet into `ledger`; tries again until it is done.
    pub(crate) async fn read_all(&self, ledger: &Ledger) {
        for member in self.vault.backends().all().iter().filter(|member| member.backend.is_writable()) {
            let key = format!("{READ_KEY}{}", member.backend.describe()).into_bytes();
            while !matches!(self.table.get(&key), Ok(Some(_))) {
                match self.read_from(member, ledger).await {
                    Ok(records) => {
                        tracing::info!(
                            backend = member.backend.describe(),
                            records,
                            "the backend's records are read"
                        );
                        if let Err(error) = self.table.put(&key, &[FORMAT]) {
                            tracing::warn!(%error, "it cannot be remembered that the backend has been read");
                            break;
                        }
                    }
                    Err(error) => {
                        tracing::warn!(backend = member.backend.describe(), %error, "the backend's records cannot be read yet");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        }
        self.complete.store(true, Ordering::Release);
    }

    /// Reads the records in the backends that `ledger` knows nothing of: there are none but after a failure, or when
    /// somebody else has put them there.
    ///
    /// # Errors
    /// [`ArchiveError`], also of one that is damaged.
    pub(crate) async fn read_missing(&self, ledger: &Ledger) -> Result<(), ArchiveError> {
        let store = |error: crate::records::ledger::LedgerError| ArchiveError::Store(error.to_string());
        for member in self.vault.backends().all().iter().filter(|member| member.backend.is_writable()) {
            let mut keys = member.backend.list_records();
            while let Some(key) = keys.try_next().await? {
                if tokio::task::block_in_place(|| ledger.get(&key)).map_err(store)?.is_some() {
                    continue;
                }
                if let Some((record, _)) = read(&*member.backend, &key).await? {
                    tokio::task::block_in_place(|| ledger.apply(&record)).map_err(store)?;
                }
            }
        }
        Ok(())
    }

    async fn read_from(&self, member: &Member, ledger: &Ledger) -> Result<u64, ArchiveError> {
        let backend = &*member.backend;
        // Manifests before the tags that name them is not needed: whoever asks for what is not read yet is looked up.
        let keys = backend.list_records().map_err(ArchiveError::from);
        let records = keys.map_ok(|key| async move {
            match read(backend, &key).await {
                Ok(found) => Ok(found.map(|(record, _)| record)),
                Err(error @ ArchiveError::Damaged { .. }) => {
                    tracing::error!(%error, "a record is passed over");
                    Ok(None)
                }
                Err(error) => Err(error),
            }
        });
        let mut records = std::pin::pin!(records.try_buffer_unordered(READS));
        let mut count = 0;
        while let Some(record) = records.try_next().await? {
            if let Some(record) = record {
                tokio::task::block_in_place(|| ledger.apply(&record))
                    .map_err(|error| ArchiveError::Store(error.to_string()))?;
                count += 1;
                self.recovered.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(count)
    }
}

/// A record in a backend, with the mark of its state.
async fn read(
    backend: &dyn Backend,
    key: &RecordKey,
) -> Result<Option<(SignedRecord, shoal_origin::Mark)>, ArchiveError> {
    let Some(stored) = backend.get_record(key).await? else { return Ok(None) };
    let damaged = |why: String| ArchiveError::Damaged { key: Box::new(key.clone()), why };
    let Some((&FORMAT, bytes)) = stored.object.split_first() else {
        return Err(damaged("it is of a format that a newer version wrote".to_owned()));
    };
    // Its signature holds together; that its author was of a mesh that is gone does not matter: whoever may write into
    // the bucket may say what is in it.
    let record = SignedRecord::from_bytes(bytes).map_err(|error| damaged(error.to_string()))?;
    if record.value().key != *key {
        return Err(damaged(format!("it is the record of {}", record.value().key)));
    }
    Ok(Some((record, stored.mark)))
}

/// Replaces what the backend has by a newer record; does nothing when it has one as new.
async fn write(backend: &dyn Backend, record: &SignedRecord) -> Result<(), ArchiveError> {
    let key = &record.value().key;
    let object = [&[FORMAT], record.to_bytes().as_slice()].concat();
    for _ in 0..RACES_MAX {
        let mark = match read(backend, key).await {
            Ok(Some((known, _))) if known.value().version >= record.value().version => return Ok(()),
            Ok(known) => known.map(|(_, mark)| mark),
            Err(ArchiveError::Damaged { key, why }) => {
                tracing::error!(%key, why, "a damaged record in the backend is replaced");
                backend.get_record(&key).await?.map(|stored| stored.mark)
            }
            Err(error) => return Err(error),
        };
        if backend.put_record(key, &object, mark.as_ref()).await? {
            return Ok(());
        }
    }
    Err(ArchiveError::Contended(Box::new(key.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_origin::FsBackend;
    use shoal_types::{Keypair, Record, RecordKind, RecordVersion, Signed, WallTime};

    fn record(counter: u64) -> SignedRecord {
        let keypair = Keypair::from_secret(&[1; 32]);
        let version = RecordVersion { counter, written: WallTime::default(), author: keypair.peer_id() };
        let key = RecordKey { repository: "a".parse().unwrap(), kind: RecordKind::Tag("v".parse().unwrap()) };
        Signed::sign(Record { key, version, value: None }, &keypair)
    }

    #[tokio::test]
    async fn only_a_newer_record_replaces_one() {
        let dir = tempfile::tempdir().unwrap();
        let backend = FsBackend::create(&dir.path().join("backend")).await.unwrap();
        let key = record(1).value().key.clone();
        for (written, then) in [(2, 2), (1, 2), (2, 2), (5, 5), (4, 5)] {
            write(&backend, &record(written)).await.unwrap();
            let (now, _) = read(&backend, &key).await.unwrap().unwrap();
            assert_eq!(now, record(then), "after {written}");
        }
    }

    #[tokio::test]
    async fn many_writers_leave_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let backend = Arc::new(FsBackend::create(&dir.path().join("backend")).await.unwrap());
        let writes = (1..=12).map(|counter| {
            let backend = Arc::clone(&backend);
            tokio::spawn(async move { write(&*backend, &record(counter)).await })
        });
        for write in writes.collect::<Vec<_>>() {
            write.await.unwrap().unwrap();
        }
        let key = record(1).value().key.clone();
        assert_eq!(read(&*backend, &key).await.unwrap().unwrap().0, record(12));
    }

    #[tokio::test]
    async fn damage_is_told_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let backend = FsBackend::create(&dir.path().join("backend")).await.unwrap();
        let key = record(1).value().key.clone();
        assert!(backend.put_record(&key, b"\x01nonsense", None).await.unwrap());
        assert!(matches!(read(&backend, &key).await, Err(ArchiveError::Damaged { .. })));
        write(&backend, &record(1)).await.unwrap();
        assert_eq!(read(&backend, &key).await.unwrap().unwrap().0, record(1));
    }
}
