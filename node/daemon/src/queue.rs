//! Durable queues: what an origin has yet to write to its backend (blobs of `write=back`, and records), and what it has
//! yet to copy to other zones. An item is on the disk before a push is acknowledged, survives `kill -9`, and is tried
//! again until it is done.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shoal_store::{KvOp, KvTable, StoreError};
use shoal_types::{Digest, RecordKey, RepositoryName, WallTime};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Version byte before each stored value.
const FORMAT: u8 = 1;
/// Items read at a time.
const PAGE: usize = 1000;
/// The first pause after a failure; each further one doubles it.
const RETRY_DELAY_MIN: Duration = Duration::from_millis(500);
/// The longest pause: when a backend comes back, its queue is taken up within this.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(30);

/// One thing to write.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, minicbor::Encode, minicbor::Decode)]
pub enum Item {
    /// A blob that is complete in the store.
    #[n(0)]
    Blob(#[n(0)] Digest),
    /// A record: whatever is the newest of this key when it is written.
    #[n(1)]
    Record(#[n(0)] RecordKey),
}

impl std::fmt::Display for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Blob(digest) => digest.fmt(f),
            Self::Record(key) => key.fmt(f),
        }
    }
}

/// What is kept of an item on the disk.
#[derive(Clone, Debug, minicbor::Encode, minicbor::Decode)]
struct Row {
    /// The repository, which chooses the backend.
    #[n(0)]
    repository: Option<RepositoryName>,
    /// When it was first queued.
    #[n(1)]
    queued: WallTime,
}

#[derive(Clone, Debug)]
struct Waiting {
    row: Row,
    failures: u32,
    due: Instant,
    /// Somebody is at it.
    taken: bool,
    /// It was queued again meanwhile: what is being written may be an older one.
    again: bool,
}

/// The queue as it is told in metrics and `shoal status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct QueueStatus {
    /// Blobs waiting.
    pub blobs: usize,
    /// Records waiting.
    pub records: usize,
    /// Milliseconds that the oldest has been waiting.
    pub oldest_ms: u64,
    /// Writes that failed and were put off, since the process started.
    pub retries: u64,
    /// Why the last one failed; `None` when the last one did not.
    pub last_error: Option<String>,
}

/// What can be queued: its encoding is its key in the table.
pub trait Queued: Clone + Ord + minicbor::Encode<()> + for<'b> minicbor::Decode<'b, ()> {}

impl<T: Clone + Ord + minicbor::Encode<()> + for<'b> minicbor::Decode<'b, ()>> Queued for T {}

/// The queue.
pub struct Queue<I = Item> {
    table: KvTable,
    /// Beginning of its keys.
    prefix: &'static [u8],
    waiting: Mutex<BTreeMap<I, Waiting>>,
    told: Mutex<(u64, Option<String>)>,
    changed: Notify,
}

impl<I: Queued> Queue<I> {
    /// The queue in `table` under keys that begin with `prefix`, with what an earlier process left.
    ///
    /// # Errors
    /// The table cannot be read, or a later program wrote it.
    pub fn open(table: KvTable, prefix: &'static [u8]) -> Result<Self, String> {
        let mut waiting = BTreeMap::new();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page =
                table.scan_prefix(prefix, after.as_deref(), PAGE).map_err(|error| error.to_string())?;
            for (key, value) in &page {
                let unknown = || {
                    "the queue of writes has an entry of an unknown format: a newer version wrote it"
                        .to_owned()
                };
                let item = key
                    .get(prefix.len()..)
                    .and_then(|key| minicbor::decode::<I>(key).ok())
                    .ok_or_else(unknown)?;
                let row = value.split_first().filter(|(format, _)| **format == FORMAT).ok_or_else(unknown)?.1;
                let row = minicbor::decode::<Row>(row).map_err(|_| unknown())?;
                waiting.insert(item, Waiting::new(row));
            }
            match page.last() {
                Some((last, _)) if page.len() == PAGE => after = Some(last.clone()),
                _ => break,
            }
        }
        Ok(Self {
            table,
            prefix,
            waiting: Mutex::new(waiting),
            told: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Queues an item; it is on stable storage when this returns. Blocks on the disk.
    ///
    /// # Errors
    /// The table cannot be written; nothing is queued.
    pub fn push(&self, item: I, repository: Option<RepositoryName>, now: WallTime) -> Result<(), StoreError> {
        let mut waiting = self.waiting.lock();
        if let Some(known) = waiting.get_mut(&item) {
            known.again = known.taken;
            return Ok(());
        }
        let row = Row { repository, queued: now };
        let value = [&[FORMAT], crate::rpc::encode(&row).as_slice()].concat();
        // Under the lock: what is taken is on the disk, and one that is done is gone from it.
        self.table.write_batch(&[KvOp::Put(self.key(&item), value)], true)?;
        waiting.insert(item, Waiting::new(row));
        drop(waiting);
        self.changed.notify_waiters();
        Ok(())
    }

    /// Whether an item is waiting.
    pub fn contains(&self, item: &I) -> bool {
        self.waiting.lock().contains_key(item)
    }

    /// Number of items waiting.
    pub fn len(&self) -> usize {
        self.waiting.lock().len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// At most `limit` items waiting, in order.
    pub fn items(&self, limit: usize) -> Vec<I> {
        self.waiting.lock().keys().take(limit).cloned().collect()
    }

    /// When an item was first queued.
    pub fn queued(&self, item: &I) -> Option<WallTime> {
        self.waiting.lock().get(item).map(|waiting| waiting.row.queued)
    }

    /// How long the oldest has been waiting.
    pub fn oldest(&self, now: WallTime) -> Duration {
        let oldest = self.waiting.lock().values().map(|waiting| waiting.row.queued).min();
        oldest.map_or(Duration::ZERO, |oldest| now.saturating_since(oldest))
    }

    /// Failures since the process started, and the last one's reason unless something was done since.
    pub fn told(&self) -> (u64, Option<String>) {
        self.told.lock().clone()
    }

    fn key(&self, item: &I) -> Vec<u8> {
        [self.prefix, crate::rpc::encode(item).as_slice()].concat()
    }

    /// The next item that is due, with its repository; waits for one. [`Self::done`] or [`Self::failed`] gives it back.
    pub async fn next(&self) -> (I, Option<RepositoryName>) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let due = {
                let mut waiting = self.waiting.lock();
                let free = waiting.iter_mut().filter(|(_, waiting)| !waiting.taken);
                match free.min_by_key(|(_, waiting)| waiting.due) {
                    Some((item, next)) if next.due <= Instant::now() => {
                        next.taken = true;
                        next.again = false;
                        return (item.clone(), next.row.repository.clone());
                    }
                    other => other.map(|(_, next)| next.due),
                }
            };
            match due {
                Some(due) => tokio::select! {
                    () = tokio::time::sleep_until(due) => {}
                    () = &mut changed => {}
                },
                None => changed.await,
            }
        }
    }

    /// An item is written. Blocks on the disk; a crash just before costs writing it once more.
    ///
    /// # Errors
    /// The table cannot be written: it is written once more after a restart.
    pub fn done(&self, item: &I) -> Result<(), StoreError> {
        self.told.lock().1 = None;
        let mut waiting = self.waiting.lock();
        if let Some(known) = waiting.get_mut(item)
            && known.again
        {
            (known.taken, known.again, known.due) = (false, false, Instant::now());
            drop(waiting);
            self.changed.notify_waiters();
            return Ok(());
        }
        waiting.remove(item);
        self.table.delete(&self.key(item))
    }

    /// An item could not be written: it is tried again after a while, longer each time. `random` is of 0 to 1.
    pub fn failed(&self, item: &I, why: &str, random: f64) {
        {
            let mut told = self.told.lock();
            told.0 += 1;
            told.1 = Some(why.to_owned());
        }
        let mut waiting = self.waiting.lock();
        if let Some(known) = waiting.get_mut(item) {
            known.taken = false;
            known.failures = known.failures.saturating_add(1);
            known.due = Instant::now() + delay(known.failures, random);
        }
        drop(waiting);
        self.changed.notify_waiters();
    }

    /// Makes an item that waits due at once.
    pub fn hurry(&self, item: &I) {
        if let Some(known) = self.waiting.lock().get_mut(item) {
            known.due = Instant::now();
        }
        self.changed.notify_waiters();
    }

    /// It is not this process's turn with an item: it is looked at again after `pause`.
    pub fn put_off(&self, item: &I, pause: Duration) {
        if let Some(known) = self.waiting.lock().get_mut(item) {
            known.taken = false;
            known.due = Instant::now() + if known.again { Duration::ZERO } else { pause };
        }
        self.changed.notify_waiters();
    }
}

impl Queue {
    /// The blobs waiting.
    pub fn blobs(&self) -> Vec<Digest> {
        let blob = |item: &Item| match item {
            Item::Blob(digest) => Some(*digest),
            Item::Record(_) => None,
        };
        self.waiting.lock().keys().filter_map(blob).collect()
    }

    /// The repository an item is waiting for; `None` when it does not wait, or is of none.
    pub fn repository_of(&self, item: &Item) -> Option<RepositoryName> {
        self.waiting.lock().get(item).and_then(|waiting| waiting.row.repository.clone())
    }

    /// What is waiting, as of `now`.
    pub fn status(&self, now: WallTime) -> QueueStatus {
        let waiting = self.waiting.lock();
        let blobs = waiting.keys().filter(|item| matches!(item, Item::Blob(_))).count();
        let records = waiting.len() - blobs;
        drop(waiting);
        let oldest_ms = u64::try_from(self.oldest(now).as_millis()).unwrap_or(u64::MAX);
        let (retries, last_error) = self.told();
        QueueStatus { blobs, records, oldest_ms, retries, last_error }
    }
}

impl Waiting {
    fn new(row: Row) -> Self {
        Self { row, failures: 0, due: Instant::now(), taken: false, again: false }
    }
}

/// The pause after so many failures: doubled each time, and drawn from its upper half so that what failed together is
/// not tried together.
fn delay(failures: u32, random: f64) -> Duration {
    let doubled = RETRY_DELAY_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(RETRY_DELAY_MAX).mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
}

/// Counts and names for logs.
impl<I> std::fmt::Debug for Queue<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("waiting", &self.waiting.lock().len()).finish_non_exhaustive()
    }
}

/// The queue, shared.
pub type SharedQueue = Arc<Queue>;

#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz(bytes: &[u8]) {
    if let Ok(item) = minicbor::decode::<Item>(bytes) {
        assert!(minicbor::decode::<Item>(&crate::rpc::encode(&item)).is_ok_and(|again| again == item));
    }
    let _ = minicbor::decode::<Row>(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_store::{Store, StoreConfig, Table};
    use shoal_types::RecordKind;

    fn open(dir: &std::path::Path) -> (Store, Queue) {
        let (store, _) = Store::open(StoreConfig::new(dir), WallTime::default()).unwrap();
        let queue = Queue::open(store.table(Table::Queue), b"").unwrap();
        (store, queue)
    }

    fn blob(content: &[u8]) -> Item {
        Item::Blob(Digest::sha256(content))
    }

    fn at(millis: u64) -> WallTime {
        WallTime::from_unix_millis(millis)
    }

    #[tokio::test]
    async fn what_is_queued_survives_a_restart_until_it_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let record = Item::Record(RecordKey {
            repository: "a/b".parse().unwrap(),
            kind: RecordKind::Tag("v".parse().unwrap()),
        });
        {
            let (_store, queue) = open(dir.path());
            queue.push(blob(b"x"), Some("a".parse().unwrap()), at(1000)).unwrap();
            queue.push(blob(b"y"), None, at(2000)).unwrap();
            queue.push(record.clone(), Some("a/b".parse().unwrap()), at(3000)).unwrap();
            // Taken but not done: after a crash it is there again.
            queue.next().await;
        }
        let (_store, queue) = open(dir.path());
        let status = queue.status(at(5000));
        assert_eq!((status.blobs, status.records, status.oldest_ms), (2, 1, 4000));
        let mut seen = Vec::new();
        for _ in 0..3 {
            let (item, repository) = queue.next().await;
            queue.done(&item).unwrap();
            seen.push((item, repository.map(|name| name.to_string())));
        }
        seen.sort();
        let mut expected =
            vec![(blob(b"x"), Some("a".to_owned())), (blob(b"y"), None), (record, Some("a/b".to_owned()))];
        expected.sort();
        assert_eq!(seen, expected);
        drop((_store, queue));
        let (_store, queue) = open(dir.path());
        assert_eq!(queue.status(at(9000)), QueueStatus::default());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_put_off_longer_and_longer_and_others_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let (_store, queue) = open(dir.path());
        queue.push(blob(b"x"), None, at(0)).unwrap();
        let mut pauses = Vec::new();
        for _ in 0..10 {
            let started = Instant::now();
            let (item, _) = queue.next().await;
            pauses.push(started.elapsed());
            queue.failed(&item, "down", 1.0);
        }
        assert!(pauses[1] >= RETRY_DELAY_MIN && pauses[2] >= 2 * RETRY_DELAY_MIN, "{pauses:?}");
        assert!(pauses[9] <= RETRY_DELAY_MAX + Duration::from_millis(10), "{pauses:?}");
        assert_eq!(queue.status(at(0)).last_error.as_deref(), Some("down"));
        let started = Instant::now();
        queue.push(blob(b"y"), None, at(0)).unwrap();
        assert_eq!(queue.next().await.0, blob(b"y"));
        assert_eq!(started.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn what_changes_while_it_is_written_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let (_store, queue) = open(dir.path());
        queue.push(blob(b"x"), None, at(0)).unwrap();
        let (item, _) = queue.next().await;
        queue.push(item.clone(), None, at(1)).unwrap();
        queue.done(&item).unwrap();
        assert_eq!(queue.next().await.0, item);
        queue.done(&item).unwrap();
        assert!(!queue.contains(&item));
    }

    #[test]
    fn pauses_are_spread() {
        assert_eq!(delay(1, 0.0), RETRY_DELAY_MIN / 2);
        assert_eq!(delay(1, 1.0), RETRY_DELAY_MIN);
        assert_eq!(delay(u32::MAX, 1.0), RETRY_DELAY_MAX);
    }
}
