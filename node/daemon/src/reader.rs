//! Reading a blob while it arrives.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use shoal_engine::io::{ReadError, ReaderId};
use shoal_store::Store;
use shoal_types::{Digest, Metainfo};
use tokio::sync::watch;

use crate::driver::DriverHandle;

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

/// A read of a range of a blob, in order, as the bytes become available.
pub struct BlobReader {
    store: Store,
    digest: Digest,
    size: u64,
    next: u64,
    end: u64,
    readable: u64,
    source: Source,
    /// Keeps the blob from being evicted under the read.
    _pin: shoal_store::Pin,
}

impl BlobReader {
    pub(crate) fn local(store: Store, digest: Digest, size: u64, range: Range<u64>) -> Self {
        let pin = store.pin(&digest);
        let (next, end) = (range.start, range.end.min(size));
        Self { store, digest, size, next, end, readable: size, source: Source::Local, _pin: pin }
    }

    pub(crate) fn arriving(
        store: Store,
        digest: Digest,
        size: u64,
        range: Range<u64>,
        reader: Reader,
    ) -> Self {
        let pin = store.pin(&digest);
        let (next, end) = (range.start, range.end.min(size));
        Self { store, digest, size, next, end, readable: next, source: Source::Arriving(reader), _pin: pin }
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
        if self.next >= self.readable {
            if let Source::Arriving(reader) = &mut self.source {
                self.readable = reader.beyond(self.next).await.map_err(io::Error::other)?;
            }
        }
        let until = self.readable.min(self.end).min(self.next + READ_BYTES);
        let (store, digest, range) = (self.store.clone(), self.digest, self.next..until);
        let read = move || {
            let mut bytes = Vec::new();
            store.read(&digest, range, &mut bytes).map(|()| bytes)
        };
        let bytes =
            tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?.map_err(io::Error::other)?;
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
