//! Finding who has a blob: owners by rendezvous hashing over the origins alive, and providers in the DHT.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_engine::io::{Input, LookupSource};
use shoal_engine::message::PeerHint;
use shoal_net::control::{ControlHandle, Origin};
use shoal_types::{Digest, PeerId, RepositoryName, Zone, rendezvous};

use crate::directory::Directory;
use crate::driver::DriverHandle;

/// Owners asked side by side: the one that should have a blob and those it falls to when that one is down.
const OWNERS_ASKED: usize = 3;

/// Where to look.
pub struct Discovery {
    control: ControlHandle,
    directory: Arc<Directory>,
    local: PeerId,
    zone: Zone,
}

impl Discovery {
    /// Looks on behalf of the process `local` in `zone`.
    pub fn new(control: ControlHandle, directory: Arc<Directory>, local: PeerId, zone: Zone) -> Self {
        Self { control, directory, local, zone }
    }

    /// The origins alive, this process among them if it is one, from the most to the least responsible for `key`:
    /// those of this zone first, then zone by zone.
    pub fn owners(&self, key: &[u8]) -> Vec<Origin> {
        rank_by_zone(key, &self.zone, self.control.origins().iter().cloned())
    }

    /// [`Self::owners`] of a blob.
    pub fn blob_owners(&self, digest: &Digest) -> Vec<Origin> {
        self.owners(&digest.multihash().to_bytes())
    }

    /// [`Self::owners`] of a repository's records.
    pub fn repository_owners(&self, repository: &RepositoryName) -> Vec<Origin> {
        self.owners(repository.as_str().as_bytes())
    }

    /// Carries out a lookup and tells the engine what it finds.
    pub(crate) async fn look_up(&self, digest: Digest, source: LookupSource, driver: &DriverHandle) {
        let answered = match source {
            LookupSource::Owners => self.look_up_owners(digest, driver).await,
            LookupSource::Dht => self.look_up_providers(digest, driver).await,
        };
        driver.tell(Input::LookupFinished { digest, source, answered }).await;
    }

    /// Announces a blob in the DHT, and keeps it announced.
    pub async fn provide(&self, digest: Digest) {
        self.control.provide(digest).await;
    }

    async fn look_up_owners(&self, digest: Digest, driver: &DriverHandle) -> bool {
        let peers: Vec<PeerHint> = self
            .blob_owners(&digest)
            .into_iter()
            .filter(|origin| origin.peer != self.local)
            .take(OWNERS_ASKED)
            .map(|origin| PeerHint {
                peer: origin.peer,
                zone: origin.zone,
                endpoints: origin.endpoints,
                complete: false,
            })
            .collect();
        let any = !peers.is_empty();
        if any {
            driver.tell(Input::PeersFound { digest, source: LookupSource::Owners, peers }).await;
        }
        any
    }

    async fn look_up_providers(&self, digest: Digest, driver: &DriverHandle) -> bool {
        let mut lookup = self.control.find_providers(digest);
        while let Some(provider) = lookup.next().await {
            if provider.peer == self.local {
                continue;
            }
            let known = self.directory.get(&provider.peer).map(|member| member.zone);
            let zone = known.or(provider.zone).unwrap_or_default();
            let hint = PeerHint { peer: provider.peer, zone, endpoints: provider.endpoints, complete: false };
            driver.tell(Input::PeersFound { digest, source: LookupSource::Dht, peers: vec![hint] }).await;
        }
        lookup.answered()
    }
}

pub(crate) fn rank_by_zone(key: &[u8], own: &Zone, origins: impl Iterator<Item = Origin>) -> Vec<Origin> {
    let mut zones: BTreeMap<(bool, Zone), BTreeMap<PeerId, Origin>> = BTreeMap::new();
    for origin in origins {
        let foreign = origin.zone != *own;
        zones.entry((foreign, origin.zone.clone())).or_default().insert(origin.peer, origin);
    }
    let mut ranked = Vec::new();
    for mut members in zones.into_values() {
        let order = rendezvous::rank(key, members.keys().copied());
        ranked.extend(order.into_iter().filter_map(|peer| members.remove(&peer)));
    }
    ranked
}
