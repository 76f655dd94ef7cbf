//! RocksDB: what describes the blobs, and small tables for other crates.

use std::path::Path;
use std::sync::Arc;

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, IteratorMode,
    LogLevel, Options, ReadOptions, WriteBatch, WriteOptions,
};
use shoal_types::Digest;

use crate::error::{OpenError, StoreError};
use crate::format::{BlobRecord, FormatError, MetainfoRecord, PiecesRecord, Stored};

/// The format of the whole store: tables, keys and files. Single values have versions of their own.
const FORMAT: u8 = 1;
const FORMAT_KEY: &[u8] = b"format";

const BLOBS: &str = "blobs";
const METAINFO: &str = "metainfo";
const PIECES: &str = "pieces";

/// Block cache for all tables together. The hot data (records, bitfields) is a few hundred bytes a blob.
const BLOCK_CACHE_BYTES: usize = 8 << 20;
/// All memtables together; the oldest is flushed beyond. With the block cache this is what RocksDB may take.
const MEMTABLES_BYTES: usize = 16 << 20;
/// One memtable: small, so that one busy table does not hold all of `MEMTABLES_BYTES`.
const MEMTABLE_BYTES: usize = 4 << 20;
/// The log is kept until its tables are flushed; this bounds it, and so the time of a recovery.
const WAL_BYTES_MAX: u64 = 64 << 20;
/// Table files held open (each also holds its index in the block cache).
const TABLE_FILES_MAX: i32 = 64;

/// A table for another crate's small records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Provider records this process holds as a DHT server.
    ProviderRecords,
    /// Peers and their addresses, remembered across restarts.
    KnownPeers,
    /// Tags, manifests and blob links of the repositories this process owns.
    Records,
    /// What this process provides, and when it did last.
    Provided,
    /// What an origin has yet to write to its backend.
    Queue,
    /// Anything else; keys begin with the user's name.
    Misc,
}

impl Table {
    const ALL: [Self; 6] =
        [Self::ProviderRecords, Self::KnownPeers, Self::Records, Self::Provided, Self::Queue, Self::Misc];

    fn name(self) -> &'static str {
        match self {
            Self::ProviderRecords => "provider_records",
            Self::KnownPeers => "known_peers",
            Self::Records => "records",
            Self::Provided => "provided",
            Self::Queue => "queue",
            Self::Misc => "misc",
        }
    }
}

/// A key and its value.
pub type KvRow = (Vec<u8>, Vec<u8>);

/// A change to a [`KvTable`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvOp {
    /// Set a key.
    Put(Vec<u8>, Vec<u8>),
    /// Remove a key.
    Delete(Vec<u8>),
}

pub(crate) struct Db {
    db: DB,
    sync: WriteOptions,
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Db").field("path", &self.db.path()).finish()
    }
}

impl Db {
    pub(crate) fn open(path: &Path, root: &Path) -> Result<Self, OpenError> {
        let options = options();
        let tables = [BLOBS, METAINFO, PIECES].into_iter().chain(Table::ALL.map(Table::name));
        let families = tables
            .chain([rocksdb::DEFAULT_COLUMN_FAMILY_NAME])
            .map(|name| ColumnFamilyDescriptor::new(name, options.clone()));
        let db = DB::open_cf_descriptors(&options, path, families).map_err(StoreError::db("open"))?;
        let mut sync = WriteOptions::default();
        sync.set_sync(true);
        let own = Self { db, sync };
        own.migrate(root)?;
        Ok(own)
    }

    /// Brings an older store to [`FORMAT`], step by step. There is no older one yet.
    fn migrate(&self, root: &Path) -> Result<(), OpenError> {
        let found = self.db.get(FORMAT_KEY).map_err(StoreError::db("read its format"))?;
        match found.as_deref() {
            Some([FORMAT]) => Ok(()),
            None => Ok(self
                .db
                .put_opt(FORMAT_KEY, [FORMAT], &self.sync)
                .map_err(StoreError::db("write its format"))?),
            Some(other) => Err(OpenError::Newer {
                path: root.to_owned(),
                found: other.first().copied().unwrap_or_default(),
                known: FORMAT,
            }),
        }
    }

    fn family(&self, name: &str) -> &ColumnFamily {
        #[expect(clippy::expect_used, reason = "all tables are opened with the database")]
        self.db.cf_handle(name).expect("every table exists")
    }

    /// Every blob's record, in key order; a value that does not decode comes as an error beside its key.
    pub(crate) fn records(&self) -> impl Iterator<Item = Result<RecordRow, StoreError>> {
        self.db.iterator_cf(self.family(BLOBS), IteratorMode::Start).map(|row| {
            let (key, value) = row.map_err(StoreError::db("list the blobs"))?;
            Ok((key.to_vec(), BlobRecord::from_bytes(&value)))
        })
    }

    pub(crate) fn put_record(&self, digest: &Digest, record: &BlobRecord) -> Result<(), StoreError> {
        self.db
            .put_cf(self.family(BLOBS), key(digest), record.to_bytes())
            .map_err(StoreError::db("write a record"))
    }

    pub(crate) fn metainfo(&self, digest: &Digest) -> Result<MetainfoRecord, StoreError> {
        let value = self
            .db
            .get_pinned_cf(self.family(METAINFO), key(digest))
            .map_err(StoreError::db("read a metainfo"))?;
        MetainfoRecord::from_bytes(value.as_deref().unwrap_or_default())
            .map_err(|source| StoreError::Format { what: "metainfo", digest: *digest, source })
    }

    pub(crate) fn put_metainfo(&self, digest: &Digest, metainfo: &MetainfoRecord) -> Result<(), StoreError> {
        self.db
            .put_cf(self.family(METAINFO), key(digest), metainfo.to_bytes())
            .map_err(StoreError::db("write a metainfo"))
    }

    pub(crate) fn pieces(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        let value = self
            .db
            .get_pinned_cf(self.family(PIECES), key(digest))
            .map_err(StoreError::db("read a bitfield"))?;
        match PiecesRecord::from_bytes(value.as_deref().unwrap_or_default()) {
            Ok(record) => Ok(record.pieces.into()),
            // None was written yet.
            Err(FormatError::Missing) => Ok(Vec::new()),
            Err(source) => Err(StoreError::Format { what: "bitfield", digest: *digest, source }),
        }
    }

    pub(crate) fn put_pieces(&self, digest: &Digest, pieces: Vec<u8>) -> Result<(), StoreError> {
        let record = PiecesRecord { pieces: pieces.into() };
        self.db
            .put_cf(self.family(PIECES), key(digest), record.to_bytes())
            .map_err(StoreError::db("write a bitfield"))
    }

    /// A blob appears, with everything known of it, in one step. Bits of an older life go.
    pub(crate) fn put_blob(
        &self,
        digest: &Digest,
        record: &BlobRecord,
        metainfo: &MetainfoRecord,
    ) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        batch.put_cf(self.family(BLOBS), key(digest), record.to_bytes());
        batch.put_cf(self.family(METAINFO), key(digest), metainfo.to_bytes());
        batch.delete_cf(self.family(PIECES), key(digest));
        self.db.write(batch).map_err(StoreError::db("write a blob's records"))
    }

    /// A blob is complete: its record says so and its bits are not needed any more.
    pub(crate) fn put_complete(&self, digest: &Digest, record: &BlobRecord) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        batch.put_cf(self.family(BLOBS), key(digest), record.to_bytes());
        batch.delete_cf(self.family(PIECES), key(digest));
        self.db.write(batch).map_err(StoreError::db("write a blob's records"))
    }

    pub(crate) fn delete_blob(&self, key: &[u8]) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        for table in [BLOBS, METAINFO, PIECES] {
            batch.delete_cf(self.family(table), key);
        }
        self.db.write(batch).map_err(StoreError::db("delete a blob's records"))
    }

    #[cfg(test)]
    pub(crate) fn put_raw_record(&self, digest: &Digest, bytes: &[u8]) {
        self.db.put_cf(self.family(BLOBS), key(digest), bytes).unwrap();
    }

    /// Makes every write so far durable.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        self.db.flush_wal(true).map_err(StoreError::db("sync its log"))
    }
}

/// A row of the blobs table: the key, and the record when it can be read.
pub(crate) type RecordRow = (Vec<u8>, Result<BlobRecord, FormatError>);

pub(crate) fn key(digest: &Digest) -> Vec<u8> {
    digest.multihash().to_bytes()
}

fn options() -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(BLOCK_CACHE_BYTES));
    // Indexes and filters count against the cache's bound instead of growing with the data.
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    // Most lookups are for blobs that are not here: the filter saves the read.
    table.set_bloom_filter(10.0, false);

    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(MEMTABLE_BYTES);
    options.set_db_write_buffer_size(MEMTABLES_BYTES);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    options.set_max_open_files(TABLE_FILES_MAX);
    // Hashes do not compress, addresses and names do; lz4 costs next to nothing.
    options.set_compression_type(DBCompressionType::Lz4);
    // One flush and one compaction: this is a side show on a machine that runs other people's containers.
    options.set_max_background_jobs(2);
    // RocksDB's own log: two small files rather than a thousand.
    options.set_log_level(LogLevel::Warn);
    options.set_max_log_file_size(1 << 20);
    options.set_keep_log_file_num(2);
    options.set_max_manifest_file_size(4 << 20);
    options.set_manifest_preallocation_size(64 << 10);
    // No statistics thread waking an idle machine.
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options
}

/// A table of small records of another crate. Values carry their own version; keys sort bytewise. Cheap to clone.
#[derive(Clone, Debug)]
pub struct KvTable {
    db: Arc<Db>,
    table: Table,
}

impl KvTable {
    pub(crate) fn new(db: Arc<Db>, table: Table) -> Self {
        Self { db, table }
    }

    fn family(&self) -> &ColumnFamily {
        self.db.family(self.table.name())
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// [`StoreError`] when the database fails.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.db.db.get_cf(self.family(), key).map_err(StoreError::db("read"))
    }

    /// Sets `key`. Survives a crash of the process, not of the machine; see [`Self::write_batch`].
    ///
    /// # Errors
    /// [`StoreError`] when the database fails.
    pub fn put(&self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.db.db.put_cf(self.family(), key, value).map_err(StoreError::db("write"))
    }

    /// Removes `key`, if it is there. As durable as [`Self::put`].
    ///
    /// # Errors
    /// [`StoreError`] when the database fails.
    pub fn delete(&self, key: &[u8]) -> Result<(), StoreError> {
        self.db.db.delete_cf(self.family(), key).map_err(StoreError::db("delete"))
    }

    /// Makes all changes or none. With `sync` they are on stable storage when this returns.
    ///
    /// # Errors
    /// [`StoreError`] when the database fails; then none was made.
    pub fn write_batch(&self, ops: &[KvOp], sync: bool) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        for op in ops {
            match op {
                KvOp::Put(key, value) => batch.put_cf(self.family(), key, value),
                KvOp::Delete(key) => batch.delete_cf(self.family(), key),
            }
        }
        let written = if sync { self.db.db.write_opt(batch, &self.db.sync) } else { self.db.db.write(batch) };
        written.map_err(StoreError::db("write"))
    }

    /// Up to `limit` rows whose key begins with `prefix`, in key order, those up to and including `after` left out:
    /// the last key of a page is the next page's `after`.
    ///
    /// # Errors
    /// [`StoreError`] when the database fails.
    pub fn scan_prefix(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<KvRow>, StoreError> {
        let start = after.filter(|after| *after >= prefix).unwrap_or(prefix);
        let mut read = ReadOptions::default();
        read.set_iterate_lower_bound(start);
        let mut rows = Vec::new();
        for row in self.db.db.iterator_cf_opt(self.family(), read, IteratorMode::Start) {
            if rows.len() == limit {
                break;
            }
            let (key, value) = row.map_err(StoreError::db("list"))?;
            if !key.starts_with(prefix) {
                break;
            }
            if after != Some(&*key) {
                rows.push((key.into_vec(), value.into_vec()));
            }
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_format_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Db::open(&dir.path().join("db"), dir.path());
        let db = open().unwrap();
        drop(db);
        let db = open().unwrap();
        db.db.put(FORMAT_KEY, [9]).unwrap();
        drop(db);
        for _ in 0..2 {
            match open() {
                Err(OpenError::Newer { found, known, .. }) => assert_eq!((found, known), (9, FORMAT)),
                other => panic!("{other:?}"),
            }
        }
    }
}
