//! Blobs on disk: partial and complete ones, uploads under way, and RocksDB for what describes them.
//!
//! Everything here is synchronous: call it where blocking is allowed. A [`Store`] is a cheap handle, its blobs are
//! locked one by one, and no lock is held over a read, a write or an fsync of a blob's content.
//!
//! # What holds after a crash
//! - A file under `blobs/` is complete: its digest was checked and its bytes were fsynced before it was renamed there.
//! - What [`Store::commit`], [`Store::put_bytes`] and [`Store::upload_finish`] acknowledged is on stable storage.
//! - A bit of a partial blob is persisted after its piece was handed to the kernel, without an fsync. So every piece
//!   claimed by the database is checked against its hash again before it is first used after a restart: a bit
//!   whose bytes did not reach the disk costs a download and never a wrong byte.
//! - An upload's offset is its file's length.
//! - What a crash left half-done is repaired when the store opens, and counted in a [`RepairReport`].
//!
//! # Lock order
//! An upload, or a blob's commit; the blob's prefix hash, its state; then the index, then a cache. An eviction, which comes from
//! under any of the former, only tries for other blobs' states.

mod blob;
mod config;
mod db;
mod disk;
mod error;
mod evict;
mod finish;
mod format;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod index;
mod lru;
mod pin;
mod read;
mod repair;
mod store;
mod upload;
mod write;

#[cfg(test)]
mod tests;

pub use blob::{BlobEntry, BlobSummary, Removal};
pub use config::{ALLOCATION_BYTES, ConfigError, StoreConfig};
pub use db::{KvOp, KvRow, KvTable, Table};
pub use error::{
    CreateError, FinishError, NoSpace, OpenError, PutError, ReadError, StoreError, UploadError,
    UploadFinishError, VouchStoreError, WriteError,
};
pub use format::FormatError;
pub use pin::Pin;
pub use repair::RepairReport;
pub use store::{RemovalReason, Store, Usage};
pub use upload::{UploadId, UploadIdParseError};
