//! A running node: what a gateway, the command line and the status pages work with.

mod blobs;
mod images;
mod start;
mod uploads;
mod upstream;

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use shoal_net::control::ControlHandle;
use shoal_net::data::DataHandle;
use shoal_net::identity::Identity;
use shoal_net::tls::TlsSetup;
use shoal_store::{KvTable, Store, UploadId};
use shoal_types::{IssuingKey, PeerId, Zone};
use tokio::sync::watch;

pub use blobs::{OpenError, StatError};
pub(crate) use images::MANIFEST_BYTES_MAX;
pub use images::{ManifestError, Resolved};
pub use start::StartError;
pub use uploads::{AppendError, BeginError, FinishError, UploadName, UploadNameParseError};

use crate::clock::Clock;
use crate::config::Config;
use crate::directory::Directory;
use crate::discovery::Discovery;
use crate::driver::DriverHandle;
use crate::hot::HotManifests;
use crate::links::Links;
use crate::metrics::Metrics;
use crate::preheat::{Here, Orders};
use crate::pulls::Pulls;
use crate::records::service::Records;
use crate::replicate::Replication;
use crate::traces::Traces;
use crate::upstream::Upstreams;
use crate::vault::Vault;

/// A running node. Cheap to clone; clones are the same node.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    config: Config,
    tls: TlsSetup,
    /// The key with which it renews others' credentials.
    renewer: Option<IssuingKey>,
    clock: Clock,
    store: Store,
    hot_manifests: HotManifests,
    uploads: KvTable,
    /// Uploads some request is writing to.
    writing: Mutex<HashSet<UploadId>>,
    data: DataHandle,
    control: ControlHandle,
    driver: DriverHandle,
    links: Arc<Links>,
    directory: Arc<Directory>,
    discovery: Arc<Discovery>,
    records: Arc<Records>,
    vault: Option<Arc<Vault>>,
    replication: Option<Arc<Replication>>,
    upstreams: Upstreams,
    preheating: Here,
    preheat_orders: Orders,
    pulls: Arc<Pulls>,
    traces: Arc<Traces>,
    metrics: Arc<Metrics>,
    registry: Mutex<Registry>,
    /// Becomes true when the node is to stop.
    stopping: watch::Sender<bool>,
}

impl Node {
    /// Who this process is.
    pub fn peer_id(&self) -> PeerId {
        self.0.control.local_peer()
    }

    /// Its zone.
    pub fn zone(&self) -> Zone {
        self.identity().credential.value().zone.clone()
    }

    /// Its identity, with its credential of the moment.
    pub fn identity(&self) -> Arc<Identity> {
        self.0.tls.identity()
    }

    /// The key with which it renews others' credentials, if it does.
    pub fn renewer(&self) -> Option<&IssuingKey> {
        self.0.renewer.as_ref()
    }

    /// Its TLS identity, and the count of those it turned away.
    pub fn tls(&self) -> &TlsSetup {
        &self.0.tls
    }

    /// Its settings.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// Its clocks.
    pub fn clock(&self) -> Clock {
        self.0.clock
    }

    /// Manifests that are asked for again and again.
    pub(crate) fn hot_manifests(&self) -> &HotManifests {
        &self.0.hot_manifests
    }

    /// Its store.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Its control plane.
    pub fn control(&self) -> &ControlHandle {
        &self.0.control
    }

    /// Its data plane.
    pub fn data(&self) -> &DataHandle {
        &self.0.data
    }

    /// The driver of its engine.
    pub fn driver(&self) -> &DriverHandle {
        &self.0.driver
    }

    /// Its connections, for asking peers.
    pub fn links(&self) -> &Links {
        &self.0.links
    }

    /// The members it has heard of.
    pub fn directory(&self) -> &Directory {
        &self.0.directory
    }

    /// How it finds who has what.
    pub fn discovery(&self) -> &Discovery {
        &self.0.discovery
    }

    /// The registers of repositories.
    pub fn records(&self) -> &Records {
        &self.0.records
    }

    /// Its durable side, if it is an origin.
    pub fn vault(&self) -> Option<&Arc<Vault>> {
        self.0.vault.as_ref()
    }

    /// What it copies to other zones, if it is an origin.
    pub fn replication(&self) -> Option<&Arc<Replication>> {
        self.0.replication.as_ref()
    }

    /// What is known of the registries that are pulled through.
    pub(crate) fn upstreams(&self) -> &Upstreams {
        &self.0.upstreams
    }

    /// The images that it fetches because it was asked to.
    pub(crate) fn preheating(&self) -> &Here {
        &self.0.preheating
    }

    /// The images that it has others fetch.
    pub(crate) fn preheat_orders(&self) -> &Orders {
        &self.0.preheat_orders
    }

    /// Where the bytes of recent blobs came from.
    pub fn pulls(&self) -> &Pulls {
        &self.0.pulls
    }

    /// Its metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// The registry of all metrics of this process, for adding to it and for scraping.
    pub fn registry(&self) -> &Mutex<Registry> {
        &self.0.registry
    }

    /// Resolves when the node is to stop.
    pub async fn stopping(&self) {
        let mut stopping = self.0.stopping.subscribe();
        let _ = stopping.wait_for(|stopping| *stopping).await;
    }

    /// Stops the node: says good-bye to the mesh, writes out what is not saved, closes every connection.
    pub async fn stop(&self) {
        self.0.stopping.send_replace(true);
        self.0.control.shutdown().await;
        self.0.driver.stop().await;
        self.0.data.shutdown().await;
        self.0.traces.end();
        let store = self.0.store.clone();
        if let Err(why) = crate::driver::blocking(move || store.flush()).await {
            tracing::warn!(%why, "the store could not be flushed");
        }
    }
}
