//! What makes a process an origin: blobs pushed to it are fetched, checked, put on stable storage and vouched for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use parking_lot::Mutex;
use shoal_engine::io::{Input, LocalBlob, LookupSource, Opened, ReadError, ReaderWant};
use shoal_engine::message::PeerHint;
use shoal_net::identity::Identity;
use shoal_origin::{BackendError, BackendSet, Content, Member, WriteMode};
use shoal_store::{Pin, Store};
use shoal_types::{
    Digest, GossipMessage, Metainfo, MetainfoBuilder, PieceIndex, PieceLayout, RepositoryName, Signed,
    SignedMetainfo, VouchedMetainfo,
};
use tokio::sync::{RwLock, RwLockReadGuard};

use crate::clock::wall_now;
use crate::driver::{DriverHandle, blocking};
use crate::gc::condemned::Condemned;
use crate::locks::KeyedLocks;
use crate::queue::{Item, SharedQueue};

pub(crate) mod live;

/// Bytes read from a backend at a time while a metainfo is made anew: a piece of the largest size.
const SCAN_BYTES: u64 = 4 * 1024 * 1024;
/// Such reads side by side: one alone would wait for each answer.
const SCAN_AHEAD: usize = 4;

/// Why a blob is not anchored.
#[derive(Debug, thiserror::Error)]
pub enum AnchorError {
    /// The pusher's bytes do not have the digest it claimed.
    #[error("the content does not have the digest {0}")]
    Corrupt(Digest),
    /// The pusher cannot be reached, or went away.
    #[error("the blob could not be fetched from who pushes it: {0}")]
    Fetch(ReadError),
    /// The local disk failed or is full.
    #[error("the local store failed: {0}")]
    Store(String),
    /// The backend did not take it.
    #[error("the backend did not take the blob: {0}")]
    Backend(#[from] BackendError),
    /// No backend keeps what is pushed to this repository.
    #[error("no backend keeps what is pushed to {0}: see the origin's setting `backend`")]
    Nowhere(String),
}

/// Whether a file has another name as well, such as the one in a backend that linked it.
pub(crate) fn is_shared(path: &std::path::Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).is_ok_and(|meta| meta.nlink() > 1)
}

/// The durable side of an origin.
pub struct Vault {
    backends: BackendSet,
    queue: SharedQueue,
    store: Store,
    identity: Identity,
    /// One anchoring at a time a blob: the second asker waits and finds it done.
    busy: KeyedLocks<Digest>,
    /// Blobs that are read for the first time, and passed on meanwhile.
    reading: Mutex<BTreeMap<Digest, live::Reading>>,
    /// One at a time begins to read a blob.
    beginning: KeyedLocks<Digest>,
    /// Who has blobs that are being read, so that not every piece asks all backends.
    holders: Mutex<BTreeMap<Digest, Member>>,
    /// What nothing reaches, and since when.
    condemned: Condemned,
    /// Held for reading while something is deleted, for writing while it is made sure that it is not.
    sweeping: RwLock<()>,
    /// One collection at a time.
    collecting: tokio::sync::Mutex<()>,
    collection: Mutex<crate::gc::Progress>,
    /// Blobs of the queue: pinned, the store does not evict them whatever else it believes of them.
    queued: Mutex<BTreeMap<Digest, Pin>>,
    news: Box<dyn Fn(GossipMessage) + Send + Sync>,
}

/// How long a push with `write=back` looks whether the backend has the blob already.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
/// Blobs whose holder is remembered; past it any is forgotten and asked for again.
const HOLDERS_MAX: usize = 4096;

impl Vault {
    /// An origin's vault over `backends`; what is written back waits in `queue`; `news` publishes to the mesh.
    pub fn new(
        backends: BackendSet,
        queue: SharedQueue,
        condemned: Condemned,
        store: Store,
        identity: Identity,
        news: Box<dyn Fn(GossipMessage) + Send + Sync>,
    ) -> Self {
        let (busy, holders) = (KeyedLocks::default(), Mutex::default());
        let queued = queue.blobs().into_iter().map(|digest| (digest, store.pin(&digest))).collect();
        let (sweeping, collecting) = (RwLock::default(), tokio::sync::Mutex::default());
        let (reading, beginning) = (Mutex::default(), KeyedLocks::default());
        Self {
            backends,
            queue,
            store,
            identity,
            busy,
            reading,
            beginning,
            holders,
            condemned,
            sweeping,
            collecting,
            collection: Mutex::default(),
            queued: Mutex::new(queued),
            news,
        }
    }

    /// Its backends.
    pub fn backends(&self) -> &BackendSet {
        &self.backends
    }

    /// What waits to be written.
    pub fn queue(&self) -> &SharedQueue {
        &self.queue
    }

    /// The backend that keeps what is pushed to `repository`; of blobs of no repository, the last that keeps anything.
    ///
    /// # Errors
    /// [`AnchorError::Nowhere`].
    pub fn keeper(&self, repository: Option<&RepositoryName>) -> Result<&Member, AnchorError> {
        let nowhere =
            || AnchorError::Nowhere(repository.map_or_else(|| "the mesh".to_owned(), ToString::to_string));
        let chosen = match repository {
            Some(repository) => self.backends.of(repository),
            // The catch-all rule is the last one.
            None => self.backends.all().iter().rev().find(|member| member.backend.is_writable()),
        };
        chosen.filter(|member| member.backend.is_writable()).ok_or_else(nowhere)
    }

    /// The backend that has a blob, and its size.
    async fn find(&self, digest: &Digest) -> Result<Option<(Member, u64)>, BackendError> {
        let Some(found) = self.backends.find(digest, None).await? else { return Ok(None) };
        let mut holders = self.holders.lock();
        if holders.len() >= HOLDERS_MAX {
            holders.pop_first();
        }
        holders.insert(*digest, found.member.clone());
        Ok(Some((found.member, found.size)))
    }

    /// Vouches for a metainfo.
    pub fn vouch(&self, metainfo: Metainfo) -> VouchedMetainfo {
        VouchedMetainfo {
            metainfo: Signed::sign(metainfo, &self.identity.keypair),
            credential: self.identity.credential.clone(),
        }
    }

    /// Size of a blob in the backends, `None` when they have none. A source of other people's images is only asked for
    /// a blob of its own repositories.
    ///
    /// # Errors
    /// [`BackendError`]: one does not answer.
    pub async fn stat(
        &self,
        digest: &Digest,
        repository: Option<&RepositoryName>,
    ) -> Result<Option<u64>, BackendError> {
        Ok(self.backends.find(digest, repository).await?.map(|found| found.size))
    }

    /// Size of a blob that is in a backend, or waits on the disk to be written to one; `None` when this origin keeps no copy for good.
    ///
    /// # Errors
    /// [`BackendError`]: one does not answer.
    pub(crate) async fn kept(
        &self,
        digest: &Digest,
        repository: Option<&RepositoryName>,
    ) -> Result<Option<u64>, BackendError> {
        if self.queue.contains(&Item::Blob(*digest)) {
            let (store, wanted) = (self.store.clone(), *digest);
            if let Ok(Some(entry)) = blocking(move || store.lookup(&wanted)).await
                && entry.complete
            {
                return Ok(Some(entry.metainfo.size()));
            }
        }
        self.stat(digest, repository).await
    }

    /// The source that the images of `repository` are pulled through from, if it is such a repository.
    pub fn source(&self, repository: &RepositoryName) -> Option<&Member> {
        self.backends.of(repository).filter(|member| !member.backend.is_writable())
    }

    /// What the backend has of a blob the store does not have.
    pub(crate) async fn open(self: &Arc<Self>, digest: Digest, driver: &DriverHandle) -> Opened {
        let found = match self.find(&digest).await {
            Ok(Some((holder, size))) => match self.stored_metainfo(&holder, digest, size).await {
                // It has to be read to know its pieces. It is passed on meanwhile.
                Ok(None) => return self.open_live(holder, digest, driver).await,
                found => found,
            },
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        match found {
            Ok(Some(vouched)) => {
                let metainfo = Arc::new(vouched.value().clone());
                let pieces = metainfo.empty_bitfield();
                Opened::Here(LocalBlob {
                    metainfo,
                    vouched: Some(Arc::new(vouched)),
                    pieces,
                    complete: false,
                    in_backend: true,
                })
            }
            Ok(None) => Opened::Absent { owner: true, backend_down: false },
            Err(error) => {
                tracing::warn!(%digest, %error, "the backend cannot be asked for a blob");
                Opened::Absent { owner: true, backend_down: true }
            }
        }
    }

    async fn open_live(self: &Arc<Self>, holder: Member, digest: Digest, driver: &DriverHandle) -> Opened {
        let source = live::Source { member: holder, repository: None, content: Content::Blob };
        match self.read_live(digest, source, driver.clone()).await {
            Ok(Some(_)) => {}
            Ok(None) => return Opened::Absent { owner: true, backend_down: false },
            Err(error) => {
                tracing::warn!(%digest, %error, "the backend does not give a blob");
                return Opened::Absent { owner: true, backend_down: error.is_retryable() };
            }
        }
        let store = self.store.clone();
        match blocking(move || store.lookup(&digest)).await {
            Ok(Some(entry)) => Opened::Here(LocalBlob {
                in_backend: !entry.complete,
                metainfo: entry.metainfo,
                vouched: entry.vouched,
                pieces: entry.pieces,
                complete: entry.complete,
            }),
            _ => Opened::Absent { owner: true, backend_down: true },
        }
    }

    /// Whether what the store lacks of a blob comes from a backend or a source; begins to read it where its pieces are not
    /// known.
    pub(crate) async fn supplies(self: &Arc<Self>, metainfo: &Metainfo, driver: &DriverHandle) -> bool {
        let digest = metainfo.digest();
        if self.is_read_live(&digest) {
            return true;
        }
        match self.find(&digest).await {
            Ok(Some((holder, _))) if !metainfo.is_whole() => {
                let source = live::Source { member: holder, repository: None, content: Content::Blob };
                matches!(self.read_live(digest, source, driver.clone()).await, Ok(Some(_)))
            }
            Ok(found) => found.is_some(),
            Err(_) => false,
        }
    }

    /// A piece of a blob in the backend, unverified.
    ///
    /// # Errors
    /// A text for logs.
    pub async fn read_piece(&self, digest: &Digest, piece: PieceIndex) -> Result<Vec<u8>, String> {
        let (store, wanted) = (self.store.clone(), *digest);
        let entry = blocking(move || store.lookup(&wanted)).await?;
        let metainfo = entry.ok_or("the blob is not in the store's books")?.metainfo;
        let range = metainfo.layout().range_of(piece);
        let known = self.holders.lock().get(digest).cloned();
        let holder = match known {
            Some(holder) => holder,
            None => {
                let found = self.find(digest).await.map_err(|error| error.to_string())?;
                found.ok_or("no backend has the blob any more")?.0
            }
        };
        let bytes =
            holder.backend.read_range(digest, None, range).await.map_err(|error| error.to_string())?;
        Ok(bytes.to_vec())
    }

    /// The metainfo stored beside a blob, vouched for by this origin; made anew when it is missing or damaged.
    async fn metainfo(&self, digest: Digest) -> Result<Option<VouchedMetainfo>, BackendError> {
        let Some((holder, size)) = self.find(&digest).await? else { return Ok(None) };
        if let Some(stored) = self.stored_metainfo(&holder, digest, size).await? {
            return Ok(Some(stored));
        }
        let made = scan(&holder, digest, size).await?;
        Ok(made.map(|metainfo| self.vouch(metainfo)))
    }

    /// The metainfo beside a blob in a backend, unless it is missing or damaged.
    async fn stored_metainfo(
        &self,
        holder: &Member,
        digest: Digest,
        size: u64,
    ) -> Result<Option<VouchedMetainfo>, BackendError> {
        if let Some(bytes) = holder.backend.metainfo(&digest).await? {
            match SignedMetainfo::from_bytes(&bytes) {
                Ok(signed)
                    if signed.value().digest() == digest
                        && signed.value().size() == size
                        && signed.value().is_whole() =>
                {
                    return Ok(Some(self.vouch(signed.value().clone())));
                }
                Ok(_) => {
                    tracing::warn!(%digest, "the metainfo beside a blob is another blob's: it is made anew")
                }
                Err(error) => {
                    tracing::warn!(%digest, %error, "the metainfo beside a blob is damaged: it is made anew")
                }
            }
        }
        Ok(None)
    }

    /// What nothing reaches.
    pub(crate) fn condemned(&self) -> &Condemned {
        &self.condemned
    }

    /// How far the collection is that this origin was asked for last.
    pub(crate) fn collection(&self) -> &Mutex<crate::gc::Progress> {
        &self.collection
    }

    /// Held while a collection runs.
    pub(crate) fn collecting(&self) -> &tokio::sync::Mutex<()> {
        &self.collecting
    }

    /// Forgets that these were unreached: when it returns they are deleted, or are not going to be.
    ///
    /// # Errors
    /// A text: the disk failed.
    pub(crate) async fn absolve(&self, digests: &[Digest]) -> Result<(), String> {
        let _no_deletion = self.sweeping.write().await;
        if digests.iter().all(|digest| self.condemned.since(digest).is_none()) {
            return Ok(());
        }
        tokio::task::block_in_place(|| self.condemned.absolve(digests))
    }

    /// While what it returns lives, nobody can come to need `digest`; `None` when somebody did, or it has not been
    /// unreached for as long as `grace`.
    pub(crate) async fn doomed(&self, digest: &Digest, grace: Duration) -> Option<RwLockReadGuard<'_, ()>> {
        let held = self.sweeping.read().await;
        let since = self.condemned.since(digest)?;
        (wall_now().saturating_since(since) >= grace).then_some(held)
    }

    /// Deletes a blob that has been unreached for as long as `grace`, from every backend and from the store; `false` when
    /// it is not to be deleted any more.
    ///
    /// # Errors
    /// A text: some of it may be left.
    pub(crate) async fn collect(&self, digest: &Digest, grace: Duration) -> Result<bool, String> {
        let Some(_held) = self.doomed(digest, grace).await else { return Ok(false) };
        // On its way to the backend: when it is there, the next collection deletes it.
        if self.queue.contains(&Item::Blob(*digest)) {
            return Ok(false);
        }
        for member in self.backends.all().iter().filter(|member| member.backend.is_writable()) {
            member.backend.delete(digest).await.map_err(|error| error.to_string())?;
        }
        self.holders.lock().remove(digest);
        let (store, doomed) = (self.store.clone(), *digest);
        blocking(move || store.remove(&doomed)).await?;
        tokio::task::block_in_place(|| self.condemned.absolve([digest]))?;
        Ok(true)
    }

    /// Fetches a blob from who pushes it (unless it is here), checks it, and puts it on stable storage: into the
    /// repository's backend, or with `write=back` on this disk and into the queue.
    ///
    /// # Errors
    /// [`AnchorError`]: nothing may be acknowledged.
    pub async fn anchor(
        &self,
        metainfo: Metainfo,
        repository: Option<&RepositoryName>,
        pusher: Option<PeerHint>,
        driver: &DriverHandle,
    ) -> Result<VouchedMetainfo, AnchorError> {
        let digest = metainfo.digest();
        self.absolve(&[digest]).await.map_err(AnchorError::Store)?;
        self.busy.alone(&digest, self.anchor_alone(metainfo, repository, pusher, driver)).await
    }

    async fn anchor_alone(
        &self,
        metainfo: Metainfo,
        repository: Option<&RepositoryName>,
        pusher: Option<PeerHint>,
        driver: &DriverHandle,
    ) -> Result<VouchedMetainfo, AnchorError> {
        let digest = metainfo.digest();
        let keeper = self.keeper(repository)?.clone();
        // From before it arrives until it is in the backend or the queue.
        let pin = self.store.pin(&digest);
        let found = match keeper.write {
            WriteMode::Through => self.find(&digest).await,
            // A push does not wait for a backend that does not answer.
            WriteMode::Back => match tokio::time::timeout(LOOK_TIMEOUT, self.find(&digest)).await {
                Ok(found) => found,
                Err(_) => Ok(None),
            },
        };
        match found {
            Ok(Some((_, size))) if size == metainfo.size() => {
                if let Some(vouched) = self.metainfo(digest).await? {
                    return Ok(vouched);
                }
            }
            Ok(_) => {}
            // A backend that is down is what writing back is for.
            Err(error) if keeper.write == WriteMode::Back && error.is_retryable() => {}
            Err(error) => return Err(error.into()),
        }
        self.fetch(&metainfo, pusher, driver).await?;
        let store = self.store.clone();
        blocking(move || store.commit(&digest)).await.map_err(AnchorError::Store)?;
        let vouched = self.vouch(metainfo);
        let (store, proof) = (self.store.clone(), Arc::new(vouched.clone()));
        blocking(move || store.set_vouched(proof)).await.map_err(AnchorError::Store)?;
        match keeper.write {
            WriteMode::Through => self.put(&keeper, &vouched).await?,
            WriteMode::Back => {
                // Not evictable before it is written: the store evicts nothing that is not anchored.
                let (store, queue, repository) =
                    (self.store.clone(), Arc::clone(&self.queue), repository.cloned());
                let queued = blocking(move || {
                    store.set_anchored(&digest, false).map_err(|error| error.to_string())?;
                    queue.push(Item::Blob(digest), repository, wall_now()).map_err(|error| error.to_string())
                });
                // Before it is queued: who writes it lets go of it.
                self.queued.lock().insert(digest, pin);
                if let Err(why) = queued.await {
                    self.release(&digest);
                    return Err(AnchorError::Store(why));
                }
            }
        }
        let metainfo = Arc::new(vouched.value().clone());
        driver.tell(Input::MetainfoLearned { metainfo, vouched: Some(Arc::new(vouched.clone())) }).await;
        (self.news)(GossipMessage::BlobAdded { digest, size: vouched.value().size() });
        Ok(vouched)
    }

    /// Puts a blob of the store into a backend; from then on the store may evict it.
    async fn put(&self, keeper: &Member, vouched: &VouchedMetainfo) -> Result<(), AnchorError> {
        let digest = vouched.value().digest();
        let _pin = self.store.pin(&digest);
        let path =
            self.store.path(&digest).ok_or_else(|| AnchorError::Store("the blob vanished".to_owned()))?;
        let (size, metainfo) = (vouched.value().size(), vouched.metainfo.to_bytes());
        keeper.backend.put(&digest, &path, size, &metainfo).await?;
        // A backend that shares the file with the store keeps its bytes anyway: evicting it would free nothing.
        let (store, evictable) = (self.store.clone(), !is_shared(&path));
        blocking(move || store.set_anchored(&digest, evictable)).await.map_err(AnchorError::Store)?;
        Ok(())
    }

    /// A blob has left the queue: from now on the store may evict it.
    pub(crate) fn release(&self, digest: &Digest) {
        if !self.queue.contains(&Item::Blob(*digest)) {
            self.queued.lock().remove(digest);
        }
    }

    /// Writes a blob of the queue to its backend.
    ///
    /// # Errors
    /// [`AnchorError`]: it stays in the queue, unless the blob is not in the store any more, of which the log tells.
    pub(crate) async fn write_back(
        &self,
        digest: Digest,
        repository: Option<&RepositoryName>,
    ) -> Result<(), AnchorError> {
        let store = self.store.clone();
        let entry = blocking(move || store.lookup(&digest)).await.map_err(AnchorError::Store)?;
        let Some(entry) = entry.filter(|entry| entry.complete) else {
            tracing::error!(%digest, "a blob that waited to be written to the backend was deleted from the store");
            return Ok(());
        };
        let keeper = self.keeper(repository)?.clone();
        self.put(&keeper, &self.vouch(entry.metainfo.as_ref().clone())).await
    }

    async fn fetch(
        &self,
        metainfo: &Metainfo,
        pusher: Option<PeerHint>,
        driver: &DriverHandle,
    ) -> Result<(), AnchorError> {
        let digest = metainfo.digest();
        let (store, wanted) = (self.store.clone(), digest);
        let here = blocking(move || store.lookup(&wanted)).await.map_err(AnchorError::Store)?;
        if here.is_some_and(|entry| entry.complete) {
            return Ok(());
        }
        let mut reader = driver.open(digest, ReaderWant::Whole).await;
        driver.tell(Input::MetainfoLearned { metainfo: Arc::new(metainfo.clone()), vouched: None }).await;
        if let Some(pusher) = pusher {
            driver
                .tell(Input::PeersFound { digest, source: LookupSource::Owners, peers: vec![pusher] })
                .await;
        }
        reader.done().await.map_err(|error| match error {
            ReadError::Corrupt => AnchorError::Corrupt(digest),
            ReadError::Store(why) => AnchorError::Store(why),
            other => AnchorError::Fetch(other),
        })
    }
}

/// Reads a blob in a backend once to make its metainfo; `None` when its bytes do not have its digest.
async fn scan(holder: &Member, digest: Digest, size: u64) -> Result<Option<Metainfo>, BackendError> {
    let Ok(layout) = PieceLayout::for_size(size) else { return Ok(None) };
    let mut builder = MetainfoBuilder::new(digest.algorithm(), layout);
    let ranges = (0..size.div_ceil(SCAN_BYTES)).map(|number| {
        let start = number * SCAN_BYTES;
        holder.backend.read_range(&digest, None, start..size.min(start + SCAN_BYTES))
    });
    let mut parts = futures::stream::iter(ranges).buffered(SCAN_AHEAD);
    while let Some(bytes) = parts.next().await {
        builder.update(&bytes?);
    }
    match builder.finish() {
        Some(metainfo) if metainfo.digest() == digest => Ok(Some(metainfo)),
        _ => {
            tracing::error!(%digest, "a blob in the backend does not have its digest: it is not served");
            Ok(None)
        }
    }
}
