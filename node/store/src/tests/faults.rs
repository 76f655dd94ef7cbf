//! Faults of the disk that tests inject.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

/// What the disk is made to suffer from; nothing, to begin with.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    space_left: Mutex<Option<u64>>,
    available: Mutex<Option<u64>>,
    torn_writes: AtomicBool,
}

impl Faults {
    /// The disk turns out to be full after so many bytes, though it claims to have room.
    pub(crate) fn limit_space(&self, left: Option<u64>) {
        *self.space_left.lock() = left;
    }

    /// What the filesystem claims to have free.
    pub(crate) fn claim_available(&self, bytes: Option<u64>) {
        *self.available.lock() = bytes;
    }

    /// Every write stops half-way, as on a disk that fills up.
    pub(crate) fn tear_writes(&self, on: bool) {
        self.torn_writes.store(on, Ordering::SeqCst);
    }

    pub(crate) fn spend(&self, bytes: u64) -> io::Result<()> {
        let mut left = self.space_left.lock();
        if let Some(left) = left.as_mut() {
            *left = left.checked_sub(bytes).ok_or(io::ErrorKind::StorageFull)?;
        }
        Ok(())
    }

    pub(crate) fn available(&self, real: u64) -> u64 {
        self.available.lock().unwrap_or(real)
    }

    pub(crate) fn fail_write(&self, file: &File, data: &[u8], offset: u64) -> io::Result<()> {
        if self.torn_writes.load(Ordering::SeqCst) {
            let (half, _) = data.split_at(data.len() / 2);
            file.write_all_at(half, offset)?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}
