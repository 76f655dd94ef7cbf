//! Reading a blob while it arrives.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use shoal_engine::io::{ReadError, ReaderId};
use shoal_store::Store;
use shoal_types::{Digest, Metainfo};
use tokio::sync::watch;

use crate::clock::Clock;
use crate::driver::DriverHandle;
use crate::pulls::{Pulls, Read};

/// Bytes read from the store at a time: a piece of the smallest size.
const READ_BYTES: u64 = 256 * 1024;

/// What the engine has told a reader so far.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The blob's metainfo, once known.
    pub metainfo: Option<Arc<Metainfo>>,
    /// Bytes up to here can be read.
    pub until: u64,
    /// There is nothing to wait for any more.
    pub done: bool,
    /// It gets nothing more.
    pub failed: Option<ReadError>,
}

/// A reader the engine knows of. Dropping it tells the engine that nobody waits any more.
pub struct Reader {
    id: ReaderId,
    driver: DriverHandle,
    progress: watch::Receiver<Progress>,
}

impl Reader {
    pub(crate) fn new(id: ReaderId, driver: DriverHandle, progress: watch::Receiver<Progress>) -> Self {
        Self { id, driver, progress }
    }

    /// Waits for the blob's metainfo.
    ///
    /// # Errors
    /// [`ReadError`]: the search is over.
    pub async fn metainfo(&mut self) -> Result<Arc<Metainfo>, ReadError> {
        let seen = self.wait(|progress| progress.metainfo.is_some()).await?;
        seen.metainfo.ok_or(ReadError::Unavailable)
    }

    /// Waits until the engine has no more to say.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn done(&mut self) -> Result<(), ReadError> {
        self.wait(|progress| progress.done).await.map(|_| ())
    }

    /// Waits until bytes beyond `offset` can be read, and says up to where.
    async fn beyond(&mut self, offset: u64) -> Result<u64, ReadError> {
        Ok(self.wait(|progress| progress.until > offset).await?.until)
    }

    async fn wait(&mut self, ready: impl Fn(&Progress) -> bool) -> Result<Progress, ReadError> {
        let seen = self.progress.wait_for(|progress| progress.failed.is_some() || ready(progress)).await;
        let Ok(seen) = seen else { return Err(ReadError::Unavailable) };
        match &seen.failed {
            // What can be read already can still be read after a failure.
            Some(why) if !ready(&seen) => Err(why.clone()),
            _ => Ok(seen.clone()),
        }
    }

    fn moved(&self, offset: u64) {
        self.driver.reader_moved(self.id, offset);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.driver.reader_closed(self.id);
    }
}

/// Where the bytes of a read come from.
enum Source {
    /// All are in the store.
    Local,
    /// They arrive.
    Arriving(Reader),
}

/// When a read was wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    at: Instant,
    /// Milliseconds since the process started.
    started_ms: u64,
}

impl Wanted {
    /// This moment.
    pub(crate) fn now(clock: &Clock) -> Self {
        let started_ms = u64::try_from(clock.now().since_start().as_millis()).unwrap_or(u64::MAX);
        Self { at: Instant::now(), started_ms }
    }
}

/// How a read goes; it is noted when the read is over.
pub(crate) struct ReadLog {
    pulls: Arc<Pulls>,
    wanted: Wanted,
    opened: Duration,
    arriving: Duration,
    disk: Duration,
    client: Duration,
    bytes: u64,
    /// When the client last got something; it has not asked for more yet.
    given: Option<Instant>,
}

impl ReadLog {
    /// The log of a read that can begin now.
    pub(crate) fn new(pulls: Arc<Pulls>, wanted: Wanted) -> Self {
        let opened = wanted.at.elapsed();
        let none = Duration::ZERO;
        Self { pulls, wanted, opened, arriving: none, disk: none, client: none, bytes: 0, given: None }
    }

    fn summary(&self) -> Read {
        let millis = |time: Duration| time.as_secs_f64() * 1000.0;
        Read {
            bytes: self.bytes,
            opened_ms: millis(self.opened),
            arriving_ms: millis(self.arriving),
            disk_ms: millis(self.disk),
            client_ms: millis(self.client),
        }
    }
}

/// A read of a range of a blob, in order, as the bytes become available.
pub struct BlobReader {
    store: Store,
    digest: Digest,
    size: u64,
    next: u64,
    end: u64,
    readable: u64,
    source: Source,
    log: ReadLog,
    /// Keeps the blob from being evicted under the read.
    _pin: shoal_store::Pin,
}

impl BlobReader {
    pub(crate) fn local(store: Store, digest: Digest, size: u64, range: Range<u64>, log: ReadLog) -> Self {
        let pin = store.pin(&digest);
        let (next, end) = (range.start, range.end.min(size));
        Self { store, digest, size, next, end, readable: size, source: Source::Local, log, _pin: pin }
    }

    pub(crate) fn arriving(
        store: Store,
        digest: Digest,
        size: u64,
        range: Range<u64>,
        reader: Reader,
        log: ReadLog,
    ) -> Self {
        let pin = store.pin(&digest);
        let (next, end) = (range.start, range.end.min(size));
        let source = Source::Arriving(reader);
        Self { store, digest, size, next, end, readable: next, source, log, _pin: pin }
    }

    /// Blob size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What is left to read.
    pub fn range(&self) -> Range<u64> {
        self.next..self.end
    }

    /// Whether all bytes were here when the read began.
    pub fn is_local(&self) -> bool {
        matches!(self.source, Source::Local)
    }

    /// The next bytes, or `None` at the end of the range. Cancel safe: a cancelled call has read nothing.
    ///
    /// # Errors
    /// When the rest cannot be had; the read is over then.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.next >= self.end {
            return Ok(None);
        }
        if let Some(given) = self.log.given.take() {
            self.log.client += given.elapsed();
        }
        if self.next >= self.readable
            && let Source::Arriving(reader) = &mut self.source
        {
            let since = Instant::now();
            self.readable = reader.beyond(self.next).await.map_err(io::Error::other)?;
            self.log.arriving += since.elapsed();
        }
        let until = self.readable.min(self.end).min(self.next + READ_BYTES);
        let (store, digest, range) = (self.store.clone(), self.digest, self.next..until);
        let read = move || {
            let mut bytes = Vec::new();
            store.read(&digest, range, &mut bytes).map(|()| bytes)
        };
        let since = Instant::now();
        let bytes =
            tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?.map_err(io::Error::other)?;
        self.log.disk += since.elapsed();
        self.log.bytes += bytes.len() as u64;
        self.log.given = Some(Instant::now());
        self.next = until;
        if let Source::Arriving(reader) = &self.source {
            reader.moved(self.next);
        }
        Ok(Some(Bytes::from(bytes)))
    }

    /// The read as a stream, with `each` called for the length of every part.
    pub fn into_stream(
        self,
        each: impl Fn(usize) + Send + 'static,
    ) -> impl futures::Stream<Item = io::Result<Bytes>> + Send + 'static {
        futures::stream::unfold(Some((self, each)), |state| async move {
            let (mut reader, each) = state?;
            match reader.next().await {
                Ok(Some(bytes)) => {
                    each(bytes.len());
                    Some((Ok(bytes), Some((reader, each))))
                }
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }
}

impl Drop for BlobReader {
    fn drop(&mut self) {
        if let Some(given) = self.log.given.take_if(|_| self.next < self.end) {
            // It left while there was more.
            self.log.client += given.elapsed();
        }
        self.log.pulls.note_read(&self.digest, self.size, self.log.wanted.started_ms, self.log.summary());
    }
}
