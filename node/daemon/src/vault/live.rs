//! Blobs that are passed on while they are read for the first time: out of a backend that has no metainfo beside them, or from
//! another registry.
//!
//! One task a blob reads it once, from its beginning to its end, and makes the metainfo as it goes. Pieces go into the
//! store, and to whoever waits for them, as soon as a live metainfo with their hash is out; the last piece and its hash
//! are held back until the digest is right, so that nobody has a whole blob that is not what it is called.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use shoal_engine::io::Input;
use shoal_origin::{BackendError, Content, Member};
use shoal_store::Store;
use shoal_types::{
    Digest, Metainfo, MetainfoBuilder, PieceIndex, PieceLayout, RepositoryName, VouchedMetainfo,
};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::Vault;
use crate::driver::{DriverHandle, blocking};

/// Times that a read goes on after it broke off without a byte having come in between.
const RESUMES_MAX: u32 = 4;
/// Pause before the first of these; it doubles.
const RESUME_PAUSE: Duration = Duration::from_millis(250);
/// Pieces of news gathered before they are told: this part of what is known already, for each time all hashes are sent
/// again. So a peer is sent some seventeen times as many hashes as there are, 0.2 % of the blob.
const GATHERED_PART: u32 = 16;
/// But news is never older than this.
const GATHERED_AGE_MAX: Duration = Duration::from_millis(300);

/// Where a blob is read from.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) member: Member,
    /// The repository it is asked for in, for backends that keep blobs by repository.
    pub(crate) repository: Option<RepositoryName>,
    pub(crate) content: Content,
}

/// How far a read is: pieces that are in the store, from the first on.
pub(super) type Reading = watch::Receiver<u32>;

enum Failure {
    Source(BackendError),
    /// The content has another digest.
    Corrupt,
    Store(String),
}

impl Vault {
    /// Whether a blob is being read.
    pub(crate) fn is_read_live(&self, digest: &Digest) -> bool {
        self.reading.lock().contains_key(digest)
    }

    /// Begins to read a blob from `source`, unless that is under way. Returns its size once it is known and the blob has its
    /// place in the store; `None` when the source does not have it.
    ///
    /// # Errors
    /// [`BackendError`].
    pub(crate) async fn read_live(
        self: &Arc<Self>,
        digest: Digest,
        source: Source,
        driver: DriverHandle,
    ) -> Result<Option<u64>, BackendError> {
        self.beginning.alone(&digest, self.begin(digest, source, driver)).await
    }

    async fn begin(
        self: &Arc<Self>,
        digest: Digest,
        source: Source,
        driver: DriverHandle,
    ) -> Result<Option<u64>, BackendError> {
        if self.is_read_live(&digest) {
            let store = self.store.clone();
            let entry = blocking(move || store.lookup(&digest)).await.ok().flatten();
            if let Some(entry) = entry {
                return Ok(Some(entry.metainfo.size()));
            }
        }
        let (began, begun) = oneshot::channel();
        let (progress, reading) = watch::channel(0);
        self.reading.lock().insert(digest, reading);
        let vault = Arc::clone(self);
        tokio::spawn(async move {
            let _pin = vault.store.pin(&digest);
            let mut read = Read {
                vault: &vault,
                digest,
                driver: &driver,
                began: Some(began),
                progress,
                at: 0,
                piece: BytesMut::new(),
                pieces: None,
            };
            let result = read.run(&source).await;
            let began = read.began.take();
            vault.reading.lock().remove(&digest);
            if let Err(failure) = result {
                vault.read_failed(digest, failure, began, &driver).await;
            }
        });
        begun.await.unwrap_or_else(|_| Err(BackendError::unavailable(digest, "the read was given up")))
    }

    async fn read_failed(
        &self,
        digest: Digest,
        failure: Failure,
        began: Option<Began>,
        driver: &DriverHandle,
    ) {
        let error = match failure {
            Failure::Source(error) => error,
            Failure::Store(why) => BackendError::unavailable(digest, why),
            Failure::Corrupt => {
                let store = self.store.clone();
                if let Err(why) = blocking(move || store.remove(&digest)).await {
                    tracing::error!(%digest, why, "a blob with wrong content cannot be removed");
                }
                driver.tell(Input::BlobCorrupt { digest }).await;
                BackendError::invalid(digest, "the content has another digest")
            }
        };
        tracing::warn!(%digest, %error, "a blob cannot be read to its end");
        if let Some(began) = began {
            let _ = began.send(Err(error));
        }
    }

    /// Waits until a piece of a blob that is being read is in the store; `false` when the read ended without it.
    pub(crate) async fn wait_for_piece(&self, digest: &Digest, piece: PieceIndex) -> bool {
        let Some(mut reading) = self.reading.lock().get(digest).cloned() else { return false };
        reading.wait_for(|pieces| *pieces > piece.get()).await.is_ok()
    }
}

type Began = oneshot::Sender<Result<Option<u64>, BackendError>>;

/// A read under way.
struct Read<'a> {
    vault: &'a Arc<Vault>,
    digest: Digest,
    driver: &'a DriverHandle,
    began: Option<Began>,
    progress: watch::Sender<u32>,
    /// Bytes read.
    at: u64,
    /// Bytes of the piece that is not whole yet.
    piece: BytesMut,
    /// Once the size is known.
    pieces: Option<Pieces>,
}

struct Pieces {
    layout: PieceLayout,
    builder: MetainfoBuilder,
    /// Pieces in the store.
    stored: u32,
    /// Of these, how many others know of.
    told: u32,
    told_at: Instant,
}

impl Read<'_> {
    /// Reads to the end, going on where it broke off.
    async fn run(&mut self, source: &Source) -> Result<(), Failure> {
        let mut resumes = 0;
        loop {
            let before = self.at;
            let error = match self.read_on(source).await {
                Ok(()) => return Ok(()),
                Err(Failure::Source(error)) => error,
                Err(other) => return Err(other),
            };
            // What came is passed on although the source makes a pause.
            self.tell().await?;
            resumes = if self.at > before { 1 } else { resumes + 1 };
            let hopeless = self.pieces.is_none() || !error.is_retryable() || resumes > RESUMES_MAX;
            if hopeless {
                return Err(Failure::Source(error));
            }
            tracing::info!(digest = %self.digest, at = self.at, %error, "a read broke off; it goes on");
            tokio::time::sleep(RESUME_PAUSE * (1 << (resumes - 1))).await;
        }
    }

    async fn read_on(&mut self, source: &Source) -> Result<(), Failure> {
        let (backend, repository) = (&source.member.backend, source.repository.as_ref());
        let opened = backend.open_blob(&self.digest, repository, source.content, self.at).await;
        let Some(mut blob) = opened.map_err(Failure::Source)? else {
            let Some(began) = self.began.take() else {
                return Err(Failure::Source(BackendError::invalid(
                    self.digest,
                    "it is gone from its source",
                )));
            };
            let _ = began.send(Ok(None));
            return Ok(());
        };
        if self.pieces.is_none() {
            self.make_room(blob.size).await?;
        }
        loop {
            let Some(pieces) = &self.pieces else { return Ok(()) };
            if self.at == pieces.layout.size() {
                return self.finish().await;
            }
            let due = pieces.told_at + GATHERED_AGE_MAX;
            let Ok(part) = tokio::time::timeout_at(due, blob.bytes.next()).await else {
                self.tell().await?;
                continue;
            };
            match part {
                Some(Ok(bytes)) => self.take(bytes).await?,
                Some(Err(error)) => return Err(Failure::Source(error)),
                None => {
                    let why = format!("it ended after {} of {} bytes", self.at, blob.size);
                    return Err(Failure::Source(BackendError::unavailable(self.digest, why)));
                }
            }
        }
    }

    /// Gives the blob its place in the store.
    async fn make_room(&mut self, size: u64) -> Result<(), Failure> {
        let invalid = |why: String| Failure::Source(BackendError::invalid(self.digest, why));
        let layout = PieceLayout::for_size(size).map_err(|error| invalid(error.to_string()))?;
        let builder = MetainfoBuilder::new(self.digest.algorithm(), layout);
        self.pieces = Some(Pieces { layout, builder, stored: 0, told: 0, told_at: Instant::now() });
        let vouched = self.vouch(0)?;
        self.extend(vouched).await?;
        if let Some(began) = self.began.take() {
            let _ = began.send(Ok(Some(size)));
        }
        Ok(())
    }

    /// The metainfo with the hashes of the first `known` pieces.
    fn vouch(&self, known: u32) -> Result<Arc<VouchedMetainfo>, Failure> {
        let pieces =
            self.pieces.as_ref().ok_or_else(|| Failure::Store("its size is not known".to_owned()))?;
        let hashes = pieces.builder.hashes().iter().take(known as usize).copied().collect();
        let metainfo = Metainfo::live(self.digest, pieces.layout, hashes);
        let metainfo = metainfo.map_err(|error| Failure::Store(error.to_string()))?;
        Ok(Arc::new(self.vault.vouch(metainfo)))
    }

    /// Puts a longer metainfo in the place of the one in the store.
    async fn extend(&self, vouched: Arc<VouchedMetainfo>) -> Result<(), Failure> {
        let store = self.vault.store.clone();
        let made = blocking(move || store.create(Arc::new(vouched.value().clone()), Some(vouched)));
        made.await.map_err(Failure::Store)
    }

    async fn take(&mut self, mut bytes: Bytes) -> Result<(), Failure> {
        while !bytes.is_empty() {
            let Some(pieces) = &self.pieces else { return Ok(()) };
            let left = pieces.layout.size() - self.at;
            let room = (u64::from(pieces.layout.piece_bytes()) - self.piece.len() as u64).min(left);
            if room == 0 {
                let why = format!("more than its {} bytes came", pieces.layout.size());
                return Err(Failure::Source(BackendError::invalid(self.digest, why)));
            }
            let part = bytes.split_to(usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len()));
            self.piece.extend_from_slice(&part);
            self.at += part.len() as u64;
            if part.len() as u64 == room {
                self.end_piece().await?;
            }
        }
        Ok(())
    }

    async fn end_piece(&mut self) -> Result<(), Failure> {
        let Some(mut pieces) = self.pieces.take() else { return Ok(()) };
        let data = std::mem::take(&mut self.piece).freeze();
        let last = pieces.stored + 1 == pieces.layout.piece_count();
        let (store, digest) = (self.vault.store.clone(), self.digest);
        let (pieces, written) = tokio::task::spawn_blocking(move || {
            pieces.builder.update(&data);
            let written = match last {
                true => Ok(()),
                false => write(&store, &digest, &mut pieces, &data),
            };
            // The last one waits for the digest.
            (pieces, written.map(|()| data))
        })
        .await
        .map_err(|error| Failure::Store(error.to_string()))?;
        let due = pieces.stored - pieces.told > pieces.stored / GATHERED_PART;
        self.pieces = Some(pieces);
        let data = written.map_err(Failure::Store)?;
        if last {
            self.piece = BytesMut::from(data.as_ref());
            return Ok(());
        }
        if due { self.tell().await } else { Ok(()) }
    }

    /// Tells of the pieces that came since it was last told: first their hashes, then the pieces.
    async fn tell(&mut self) -> Result<(), Failure> {
        let Some(pieces) = &mut self.pieces else { return Ok(()) };
        pieces.told_at = Instant::now();
        let (from, to) = (pieces.told, pieces.stored);
        if from == to {
            return Ok(());
        }
        let vouched = self.vouch(to)?;
        self.tell_of(vouched, from..to).await
    }

    async fn tell_of(
        &mut self,
        vouched: Arc<VouchedMetainfo>,
        numbers: std::ops::Range<u32>,
    ) -> Result<(), Failure> {
        self.extend(Arc::clone(&vouched)).await?;
        let digest = self.digest;
        let (metainfo, layout) = (Arc::new(vouched.value().clone()), vouched.value().layout());
        self.driver.tell(Input::MetainfoLearned { metainfo, vouched: Some(vouched) }).await;
        if let Some(pieces) = &mut self.pieces {
            pieces.told = numbers.end;
        }
        self.progress.send_replace(numbers.end);
        for piece in numbers.filter_map(|number| layout.piece(number)) {
            self.driver.tell(Input::PieceVerified { digest, piece }).await;
        }
        Ok(())
    }

    /// All bytes are here: checks the digest, and only then lets the last piece out.
    async fn finish(&mut self) -> Result<(), Failure> {
        self.tell().await?;
        let Some(pieces) = self.pieces.take() else { return Ok(()) };
        let Pieces { layout, builder, stored, told, told_at } = pieces;
        let known = builder.hashes().len();
        let right = builder.finish().filter(|metainfo| metainfo.digest() == self.digest);
        let Some(metainfo) = right else {
            tracing::error!(digest = %self.digest, known, "what was read does not have its digest: it is thrown away");
            return Err(Failure::Corrupt);
        };
        let vouched = Arc::new(self.vault.vouch(metainfo));
        let (store, digest) = (self.vault.store.clone(), self.digest);
        let data = std::mem::take(&mut self.piece).freeze();
        self.extend(Arc::clone(&vouched)).await?;
        if let Some(piece) = layout.piece(stored) {
            let store = store.clone();
            let written = blocking(move || store.write_piece(&digest, piece, &data));
            written.await.map_err(Failure::Store)?;
        }
        let count = layout.piece_count();
        self.pieces = Some(Pieces {
            layout,
            builder: MetainfoBuilder::new(digest.algorithm(), layout),
            stored: count,
            told,
            told_at,
        });
        self.tell_of(vouched, told..count).await?;
        // Also when no swarm is there that would finish it.
        let done = blocking(move || {
            store.check_digest(&digest)?;
            store.commit(&digest)
        });
        if let Err(why) = done.await {
            tracing::debug!(%digest, why, "a blob that was read is not put in its place here: its swarm does that");
        }
        Ok(())
    }
}

fn write(store: &Store, digest: &Digest, pieces: &mut Pieces, data: &[u8]) -> Result<(), String> {
    let piece = pieces.layout.piece(pieces.stored).ok_or("more pieces than the blob has")?;
    store.write_piece(digest, piece, data).map_err(|error| error.to_string())?;
    pieces.stored += 1;
    Ok(())
}
