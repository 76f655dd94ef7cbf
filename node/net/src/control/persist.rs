//! What the control plane remembers across restarts, and the port to whatever keeps it.
//!
//! All of it is a cache of what the mesh would teach again: losing it costs time, never correctness. Writes are
//! therefore behind, batched, and never waited for.

use std::collections::BTreeMap;
use std::sync::Arc;

use minicbor::bytes::ByteVec;
use parking_lot::Mutex;
use shoal_types::{Digest, PeerId, SignedRevocations, WallTime};

/// A provider record another member left with this one.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct StoredProvider {
    /// The blob.
    #[n(0)]
    pub digest: Digest,
    /// Who has it.
    #[n(1)]
    pub provider: PeerId,
    /// Its addresses, as binary multiaddrs.
    #[n(2)]
    pub addresses: Vec<ByteVec>,
    /// When the record lapses.
    #[n(3)]
    pub expires: WallTime,
}

/// A peer worth dialling at the next start.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct KnownPeer {
    /// Who.
    #[n(0)]
    pub peer: PeerId,
    /// Its control-plane addresses, as binary multiaddrs.
    #[n(1)]
    pub addresses: Vec<ByteVec>,
    /// When it was last connected.
    #[n(2)]
    pub seen: WallTime,
}

/// A blob this process announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct StoredProvided {
    /// The blob.
    #[n(0)]
    pub digest: Digest,
    /// When it was last announced; `None` if never.
    #[n(1)]
    pub announced: Option<WallTime>,
}

/// All that was remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// Provider records of others.
    pub providers: Vec<StoredProvider>,
    /// Own blobs.
    pub provided: Vec<StoredProvided>,
    /// Peers, most recently seen first.
    pub peers: Vec<KnownPeer>,
    /// The list of revocations in force.
    pub revocations: Option<SignedRevocations>,
}

/// One change to what is remembered. Applying one twice is applying it once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Insert or replace the record of its digest and provider.
    PutProvider(StoredProvider),
    /// Remove a record.
    DeleteProvider {
        /// The blob.
        digest: Digest,
        /// Who had it.
        provider: PeerId,
    },
    /// Insert or replace an own blob.
    PutProvided(StoredProvided),
    /// Remove an own blob.
    DeleteProvided {
        /// The blob.
        digest: Digest,
    },
    /// Replace the whole list of peers.
    SetPeers(Vec<KnownPeer>),
    /// Replace the list of revocations. Unlike the rest it is no mere cache: until it is learned again, who is on it
    /// could come in.
    SetRevocations(SignedRevocations),
}

/// What is remembered could not be read or written.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot keep what the control plane remembers: {0}")]
pub struct PersistError(pub String);

/// Where it is kept. Called on threads that may block, one call at a time.
pub trait ControlPersistence: Send + Sync + 'static {
    /// Reads everything, once, at start.
    ///
    /// # Errors
    /// [`PersistError`]: the control plane starts with nothing remembered, and says so.
    fn load(&self) -> Result<Remembered, PersistError>;

    /// Applies changes in order. Need not be atomic or synced.
    ///
    /// # Errors
    /// [`PersistError`]: the changes are lost, and counted.
    fn apply(&self, changes: Vec<Change>) -> Result<(), PersistError>;
}

/// Remembers in memory: for a bootstrap peer without a disk, and for tests that restart a host.
#[derive(Debug, Default)]
pub struct MemoryPersistence(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    providers: BTreeMap<(Digest, PeerId), StoredProvider>,
    provided: BTreeMap<Digest, StoredProvided>,
    peers: Vec<KnownPeer>,
    revocations: Option<SignedRevocations>,
}

impl MemoryPersistence {
    /// Nothing remembered yet.
    pub fn shared() -> Arc<Self> {
        Arc::default()
    }
}

impl ControlPersistence for MemoryPersistence {
    fn load(&self) -> Result<Remembered, PersistError> {
        let memory = self.0.lock();
        Ok(Remembered {
            providers: memory.providers.values().cloned().collect(),
            provided: memory.provided.values().copied().collect(),
            peers: memory.peers.clone(),
            revocations: memory.revocations.clone(),
        })
    }

    fn apply(&self, changes: Vec<Change>) -> Result<(), PersistError> {
        let mut memory = self.0.lock();
        for change in changes {
            match change {
                Change::PutProvider(record) => {
                    memory.providers.insert((record.digest, record.provider), record);
                }
                Change::DeleteProvider { digest, provider } => {
                    memory.providers.remove(&(digest, provider));
                }
                Change::PutProvided(own) => {
                    memory.provided.insert(own.digest, own);
                }
                Change::DeleteProvided { digest } => {
                    memory.provided.remove(&digest);
                }
                Change::SetPeers(peers) => memory.peers = peers,
                Change::SetRevocations(list) => memory.revocations = Some(list),
            }
        }
        Ok(())
    }
}
