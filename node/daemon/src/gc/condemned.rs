//! Since when what nothing reaches has been so. It is on the disk, so that a grace period goes on over a restart.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use shoal_store::{KvOp, KvTable};
use shoal_types::{Digest, WallTime};

/// Version byte before each value.
const FORMAT: u8 = 1;
/// Beginning of the keys.
const PREFIX: &[u8] = b"gc/";
/// Rows read or written at a time.
const PAGE: usize = 1000;

/// Digests that were found unreached, and when they first were.
pub struct Condemned {
    table: KvTable,
    since: Mutex<BTreeMap<Digest, WallTime>>,
}

impl Condemned {
    /// What an earlier process found, in `table`. Blocks on the disk.
    ///
    /// # Errors
    /// The table cannot be read, or a later program wrote it.
    pub fn open(table: KvTable) -> Result<Self, String> {
        let mut since = BTreeMap::new();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page =
                table.scan_prefix(PREFIX, after.as_deref(), PAGE).map_err(|error| error.to_string())?;
            for (key, value) in &page {
                let unknown = "the list of unreached blobs has an entry of a newer version";
                let digest = key.get(PREFIX.len()..).and_then(Digest::from_multihash_bytes).ok_or(unknown)?;
                let (format, millis) = value.split_first().ok_or(unknown)?;
                let millis = <[u8; 8]>::try_from(millis).ok().filter(|_| *format == FORMAT).ok_or(unknown)?;
                since.insert(digest, WallTime::from_unix_millis(u64::from_le_bytes(millis)));
            }
            match page.last() {
                Some((last, _)) if page.len() == PAGE => after = Some(last.clone()),
                _ => return Ok(Self { table, since: Mutex::new(since) }),
            }
        }
    }

    /// Since when `digest` has been unreached.
    pub fn since(&self, digest: &Digest) -> Option<WallTime> {
        self.since.lock().get(digest).copied()
    }

    /// Takes note of what a marking found unreached at `now`, and forgets what is not unreached any more. Blocks on the
    /// disk.
    ///
    /// # Errors
    /// The table cannot be written: what was not written is not remembered either.
    pub fn update(&self, unreached: &BTreeSet<Digest>, now: WallTime) -> Result<(), String> {
        let mut since = self.since.lock();
        let gone: Vec<Digest> = since.keys().filter(|known| !unreached.contains(known)).copied().collect();
        let fresh: Vec<Digest> =
            unreached.iter().filter(|digest| !since.contains_key(digest)).copied().collect();
        for part in gone.chunks(PAGE) {
            self.write(part.iter().map(|digest| KvOp::Delete(key(digest))).collect())?;
            part.iter().for_each(|digest| {
                since.remove(digest);
            });
        }
        for part in fresh.chunks(PAGE) {
            let value = [&[FORMAT], now.unix_millis().to_le_bytes().as_slice()].concat();
            self.write(part.iter().map(|digest| KvOp::Put(key(digest), value.clone())).collect())?;
            since.extend(part.iter().map(|digest| (*digest, now)));
        }
        Ok(())
    }

    /// Forgets that these were unreached: somebody needs them, or they are deleted. Blocks on the disk.
    ///
    /// # Errors
    /// The table cannot be written, and nothing has changed.
    pub fn absolve<'a>(&self, digests: impl IntoIterator<Item = &'a Digest>) -> Result<(), String> {
        let mut since = self.since.lock();
        let known: Vec<&Digest> = digests.into_iter().filter(|digest| since.contains_key(digest)).collect();
        if known.is_empty() {
            return Ok(());
        }
        self.write(known.iter().map(|digest| KvOp::Delete(key(digest))).collect())?;
        known.into_iter().for_each(|digest| {
            since.remove(digest);
        });
        Ok(())
    }

    fn write(&self, ops: Vec<KvOp>) -> Result<(), String> {
        self.table.write_batch(&ops, true).map_err(|error| error.to_string())
    }
}

fn key(digest: &Digest) -> Vec<u8> {
    [PREFIX, digest.multihash().to_bytes().as_slice()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_store::{Store, StoreConfig, Table};

    #[test]
    fn the_first_time_counts_and_outlives_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two, three] = [b"1", b"2", b"3"].map(|content| Digest::sha256(content));
        let at = WallTime::from_unix_millis;
        {
            let (store, _) = Store::open(StoreConfig::new(dir.path()), WallTime::default()).unwrap();
            let condemned = Condemned::open(store.table(Table::Misc)).unwrap();
            condemned.update(&[one, two].into(), at(1)).unwrap();
            condemned.update(&[one, two, three].into(), at(2)).unwrap();
            condemned.absolve([&two]).unwrap();
        }
        let (store, _) = Store::open(StoreConfig::new(dir.path()), WallTime::default()).unwrap();
        let condemned = Condemned::open(store.table(Table::Misc)).unwrap();
        assert_eq!([one, two, three].map(|one| condemned.since(&one)), [Some(at(1)), None, Some(at(2))]);
        // What is reached again begins anew when it is not.
        condemned.update(&[three].into(), at(5)).unwrap();
        condemned.update(&[one, three].into(), at(7)).unwrap();
        assert_eq!([one, three].map(|one| condemned.since(&one)), [Some(at(7)), Some(at(2))]);
    }
}
