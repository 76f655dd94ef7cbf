//! What makes a process an origin: blobs pushed to it are fetched, checked, put on stable storage and vouched for.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use shoal_engine::io::{Input, LocalBlob, LookupSource, Opened, ReadError, ReaderWant};
use shoal_engine::message::PeerHint;
use shoal_net::identity::Identity;
use shoal_origin::{Backend, BackendError};
use shoal_store::Store;
use shoal_types::{
    Digest, GossipMessage, Metainfo, MetainfoBuilder, PieceIndex, PieceLayout, Signed, SignedMetainfo,
    VouchedMetainfo,
};

use crate::driver::{DriverHandle, blocking};

/// Bytes read from a backend at a time while a metainfo is made anew: a piece of the largest size.
const SCAN_BYTES: u64 = 4 * 1024 * 1024;

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
}

/// Whether a file has another name as well, such as the one in a backend that linked it.
pub(crate) fn is_shared(path: &std::path::Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).is_ok_and(|meta| meta.nlink() > 1)
}

/// The durable side of an origin.
pub struct Vault {
    backend: Arc<dyn Backend>,
    store: Store,
    identity: Identity,
    /// One anchoring at a time a blob: the second asker waits and finds it done.
    busy: Mutex<BTreeMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
    news: Box<dyn Fn(GossipMessage) + Send + Sync>,
}

impl Vault {
    /// An origin's vault over `backend`; `news` publishes to the mesh.
    pub fn new(
        backend: Arc<dyn Backend>,
        store: Store,
        identity: Identity,
        news: Box<dyn Fn(GossipMessage) + Send + Sync>,
    ) -> Self {
        Self { backend, store, identity, busy: Mutex::default(), news }
    }

    /// Vouches for a metainfo.
    pub fn vouch(&self, metainfo: Metainfo) -> VouchedMetainfo {
        VouchedMetainfo {
            metainfo: Signed::sign(metainfo, &self.identity.keypair),
            credential: self.identity.credential.clone(),
        }
    }

    /// Whether the backend has the blob; `false` also when it does not answer.
    pub async fn holds(&self, digest: &Digest) -> bool {
        matches!(self.backend.stat(digest).await, Ok(Some(_)))
    }

    /// Size of a blob in the backend, `None` when it has none.
    ///
    /// # Errors
    /// [`BackendError`]: it does not answer.
    pub async fn stat(&self, digest: &Digest) -> Result<Option<u64>, BackendError> {
        self.backend.stat(digest).await
    }

    /// What the backend has of a blob the store does not have.
    pub async fn open(&self, digest: Digest) -> Opened {
        match self.metainfo(digest).await {
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

    /// A piece of a blob in the backend, unverified.
    ///
    /// # Errors
    /// A text for logs.
    pub async fn read_piece(&self, digest: &Digest, piece: PieceIndex) -> Result<Vec<u8>, String> {
        let (store, wanted) = (self.store.clone(), *digest);
        let entry = blocking(move || store.lookup(&wanted)).await?;
        let metainfo = entry.ok_or("the blob is not in the store's books")?.metainfo;
        let range = metainfo.layout().range_of(piece);
        let bytes = self.backend.read_range(digest, range).await.map_err(|error| error.to_string())?;
        Ok(bytes.to_vec())
    }

    /// The metainfo stored beside a blob, vouched for by this origin; made anew when it is missing or damaged.
    async fn metainfo(&self, digest: Digest) -> Result<Option<VouchedMetainfo>, BackendError> {
        let Some(size) = self.backend.stat(&digest).await? else { return Ok(None) };
        if let Some(bytes) = self.backend.metainfo(&digest).await? {
            match SignedMetainfo::from_bytes(&bytes) {
                Ok(signed) if signed.value().digest() == digest && signed.value().size() == size => {
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
        let made = self.scan(digest, size).await?;
        Ok(made.map(|metainfo| self.vouch(metainfo)))
    }

    /// Reads a blob in the backend once to make its metainfo; `None` when its bytes do not have its digest.
    async fn scan(&self, digest: Digest, size: u64) -> Result<Option<Metainfo>, BackendError> {
        let Ok(layout) = PieceLayout::for_size(size) else { return Ok(None) };
        let mut builder = MetainfoBuilder::new(digest.algorithm(), layout);
        let mut next = 0;
        while next < size {
            let until = size.min(next + SCAN_BYTES);
            let bytes = self.backend.read_range(&digest, next..until).await?;
            builder.update(&bytes);
            next = until;
        }
        match builder.finish() {
            Some(metainfo) if metainfo.digest() == digest => Ok(Some(metainfo)),
            _ => {
                tracing::error!(%digest, "a blob in the backend does not have its digest: it is not served");
                Ok(None)
            }
        }
    }

    /// Fetches a blob from who pushes it (unless it is here), checks it, and puts it on stable storage.
    ///
    /// # Errors
    /// [`AnchorError`]: nothing may be acknowledged.
    pub async fn anchor(
        &self,
        metainfo: Metainfo,
        pusher: Option<PeerHint>,
        driver: &DriverHandle,
    ) -> Result<VouchedMetainfo, AnchorError> {
        let digest = metainfo.digest();
        let lock = Arc::clone(self.busy.lock().entry(digest).or_default());
        let result = {
            let _one_at_a_time = lock.lock().await;
            self.anchor_alone(metainfo, pusher, driver).await
        };
        let mut busy = self.busy.lock();
        // Two owners: the map and this call. Nobody waits any more.
        if Arc::strong_count(&lock) <= 2 {
            busy.remove(&digest);
        }
        result
    }

    async fn anchor_alone(
        &self,
        metainfo: Metainfo,
        pusher: Option<PeerHint>,
        driver: &DriverHandle,
    ) -> Result<VouchedMetainfo, AnchorError> {
        let digest = metainfo.digest();
        if self.backend.stat(&digest).await? == Some(metainfo.size())
            && let Some(vouched) = self.metainfo(digest).await?
        {
            return Ok(vouched);
        }
        self.fetch(&metainfo, pusher, driver).await?;
        let store = self.store.clone();
        blocking(move || store.commit(&digest)).await.map_err(AnchorError::Store)?;
        let vouched = self.vouch(metainfo);
        let _pin = self.store.pin(&digest);
        let path =
            self.store.path(&digest).ok_or_else(|| AnchorError::Store("the blob vanished".to_owned()))?;
        self.backend.put(&digest, &path, vouched.value().size(), &vouched.metainfo.to_bytes()).await?;
        let (store, proof) = (self.store.clone(), Arc::new(vouched.clone()));
        blocking(move || store.set_vouched(proof)).await.map_err(AnchorError::Store)?;
        // A backend that shares the file with the store keeps its bytes anyway: evicting it would free nothing.
        let (store, evictable) = (self.store.clone(), !is_shared(&path));
        blocking(move || store.set_anchored(&digest, evictable)).await.map_err(AnchorError::Store)?;
        let metainfo = Arc::new(vouched.value().clone());
        driver.tell(Input::MetainfoLearned { metainfo, vouched: Some(Arc::new(vouched.clone())) }).await;
        (self.news)(GossipMessage::BlobAdded { digest, size: vouched.value().size() });
        Ok(vouched)
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
