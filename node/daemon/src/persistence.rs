//! Where the control plane's memory and the ledger of records are kept: tables of the store.

use shoal_net::control::persist::{
    Change, ControlPersistence, KnownPeer, PersistError, Remembered, StoredProvided, StoredProvider,
};
use shoal_store::{KvOp, KvTable, Store, StoreError, Table};
use shoal_types::{Digest, PeerId, SignedRevocations};

use crate::records::ledger::{Entries, LedgerError, LedgerTable};

/// Version byte before each stored value.
const FORMAT: u8 = 1;
/// Entries read at a time.
const PAGE: usize = 1000;
/// The one key of the list of known peers.
const PEERS_KEY: &[u8] = b"peers";
/// The key of the list of revocations, in the same table.
const REVOCATIONS_KEY: &[u8] = b"revocations";

/// The control plane's memory.
pub(crate) struct Memory {
    providers: KvTable,
    provided: KvTable,
    peers: KvTable,
}

impl Memory {
    pub(crate) fn new(store: &Store) -> Self {
        Self {
            providers: store.table(Table::ProviderRecords),
            provided: store.table(Table::Provided),
            peers: store.table(Table::KnownPeers),
        }
    }
}

impl Memory {
    /// The list of revocations that was in force.
    pub(crate) fn revocations(&self) -> Result<Option<SignedRevocations>, PersistError> {
        let bytes = self.peers.get(REVOCATIONS_KEY).map_err(persist_error)?;
        Ok(bytes.and_then(|bytes| SignedRevocations::from_bytes(&bytes).ok()))
    }
}

impl ControlPersistence for Memory {
    fn load(&self) -> Result<Remembered, PersistError> {
        let providers = load_all::<StoredProvider>(&self.providers)?;
        let provided = load_all::<StoredProvided>(&self.provided)?;
        let peers = match self.peers.get(PEERS_KEY).map_err(persist_error)? {
            Some(bytes) => decode::<Vec<KnownPeer>>(&bytes).unwrap_or_default(),
            None => Vec::new(),
        };
        Ok(Remembered { providers, provided, peers, revocations: self.revocations()? })
    }

    fn apply(&self, changes: Vec<Change>) -> Result<(), PersistError> {
        let (mut providers, mut provided, mut peers) = (Vec::new(), Vec::new(), None);
        let mut revocations = None;
        for change in changes {
            match change {
                Change::PutProvider(record) => {
                    let key = provider_key(&record.digest, &record.provider);
                    providers.push(KvOp::Put(key, encode(&record)));
                }
                Change::DeleteProvider { digest, provider } => {
                    providers.push(KvOp::Delete(provider_key(&digest, &provider)));
                }
                Change::PutProvided(own) => provided.push(KvOp::Put(digest_key(&own.digest), encode(&own))),
                Change::DeleteProvided { digest } => provided.push(KvOp::Delete(digest_key(&digest))),
                Change::SetPeers(list) => peers = Some(encode(&list)),
                Change::SetRevocations(list) => revocations = Some(list.to_bytes()),
            }
        }
        // All of this can be learned again, so none of it waits for the disk.
        self.providers.write_batch(&providers, false).map_err(persist_error)?;
        self.provided.write_batch(&provided, false).map_err(persist_error)?;
        if let Some(list) = peers {
            self.peers.put(PEERS_KEY, &list).map_err(persist_error)?;
        }
        if let Some(list) = revocations {
            // This one waits.
            self.peers
                .write_batch(&[KvOp::Put(REVOCATIONS_KEY.to_vec(), list)], true)
                .map_err(persist_error)?;
        }
        Ok(())
    }
}

/// Entries of another format are passed over: they are only a cache.
fn load_all<T: for<'b> minicbor::Decode<'b, ()>>(table: &KvTable) -> Result<Vec<T>, PersistError> {
    let mut all = Vec::new();
    let mut after: Option<Vec<u8>> = None;
    loop {
        let page = table.scan_prefix(b"", after.as_deref(), PAGE).map_err(persist_error)?;
        all.extend(page.iter().filter_map(|(_, value)| decode(value)));
        match page.last() {
            Some((last, _)) if page.len() == PAGE => after = Some(last.clone()),
            _ => return Ok(all),
        }
    }
}

fn encode<T: minicbor::Encode<()>>(value: &T) -> Vec<u8> {
    [&[FORMAT], crate::rpc::encode(value).as_slice()].concat()
}

fn decode<T: for<'b> minicbor::Decode<'b, ()>>(bytes: &[u8]) -> Option<T> {
    match bytes.split_first() {
        Some((&FORMAT, rest)) => minicbor::decode(rest).ok(),
        _ => None,
    }
}

#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz(bytes: &[u8]) {
    let _ = decode::<StoredProvider>(bytes);
    let _ = decode::<StoredProvided>(bytes);
    let _ = decode::<Vec<KnownPeer>>(bytes);
    let _ = shoal_types::SignedRevocations::from_bytes(bytes);
}

fn digest_key(digest: &Digest) -> Vec<u8> {
    digest.multihash().to_bytes()
}

fn provider_key(digest: &Digest, provider: &PeerId) -> Vec<u8> {
    [digest_key(digest).as_slice(), provider.public_key()].concat()
}

fn persist_error(error: StoreError) -> PersistError {
    PersistError(error.to_string())
}

/// The ledger's table in the store.
pub(crate) struct RecordTable(pub(crate) KvTable);

impl LedgerTable for RecordTable {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, LedgerError> {
        self.0.get(key).map_err(ledger_error)
    }

    fn write(&self, writes: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<(), LedgerError> {
        let ops: Vec<KvOp> = writes
            .into_iter()
            .map(|(key, value)| match value {
                Some(value) => KvOp::Put(key, value),
                None => KvOp::Delete(key),
            })
            .collect();
        // Acknowledged tags live here: they are on the disk before anybody hears of them.
        self.0.write_batch(&ops, true).map_err(ledger_error)
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Entries, LedgerError> {
        self.0.scan_prefix(prefix, after, limit).map_err(ledger_error)
    }
}

fn ledger_error(error: StoreError) -> LedgerError {
    LedgerError(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use minicbor::bytes::ByteVec;
    use shoal_store::StoreConfig;
    use shoal_types::{MeshKey, RevocationList, WallTime};

    #[test]
    fn what_the_control_plane_remembers_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Store::open(StoreConfig::new(dir.path()), WallTime::default()).unwrap().0;
        let provider = |n: u8| StoredProvider {
            digest: Digest::sha256(&[n]),
            provider: PeerId::from_public_key([n; 32]),
            addresses: vec![ByteVec::from(vec![4, 127, 0, 0, 1])],
            expires: WallTime::from_unix_millis(7),
        };
        let own = StoredProvided { digest: Digest::sha256(b"own"), announced: None };
        let peer = KnownPeer {
            peer: PeerId::from_public_key([9; 32]),
            addresses: vec![],
            seen: WallTime::default(),
        };
        let list = MeshKey::from_secret(&[1; 32]).revoke(RevocationList::default());
        Memory::new(&open())
            .apply(vec![
                Change::PutProvider(provider(1)),
                Change::PutProvider(provider(2)),
                Change::PutProvided(own),
                Change::SetPeers(vec![peer.clone()]),
                Change::SetRevocations(list.clone()),
                Change::DeleteProvider { digest: provider(1).digest, provider: provider(1).provider },
            ])
            .unwrap();
        let remembered = Memory::new(&open()).load().unwrap();
        assert_eq!(
            remembered,
            Remembered {
                providers: vec![provider(2)],
                provided: vec![own],
                peers: vec![peer],
                revocations: Some(list)
            }
        );
    }
}
