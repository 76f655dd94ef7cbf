//! Putting the parts together.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use shoal_engine::config::EngineConfig;
use shoal_engine::engine::Engine;
use shoal_net::control::{Control, ControlConfig, ControlHandle};
use shoal_net::data::{DataConfig, DataEvent, DataHandle, DataPlane};
use shoal_net::identity::Identity;
use shoal_net::tls::{TlsSetup, system_clock};
use shoal_origin::{BackendRule, BackendSet, BackendUrlError};
use shoal_store::{Store, StoreConfig, Table};
use shoal_types::{Endpoint, Role, Zone};
use tokio::sync::{mpsc, watch};

use super::uploads::home_key;
use super::{Inner, Node};
use crate::archive::Archive;
use crate::clock::Clock;
use crate::config::Config;
use crate::directory::Directory;
use crate::discovery::Discovery;
use crate::driver::{self, Parts, blocking};
use crate::gc::condemned::Condemned;
use crate::hot::HotManifests;
use crate::links::Links;
use crate::metrics::Metrics;
use crate::persistence::{Memory, RecordTable};
use crate::preheat::{Here, Orders};
use crate::pulls::Pulls;
use crate::queue::Queue;
use crate::records::ledger::Ledger;
use crate::records::service::{Records, Surroundings};
use crate::replicate::{Replication, Rule};
use crate::traces::Traces;
use crate::upstream::Upstreams;
use crate::vault::Vault;
use crate::{calls, membership, replicate, upkeep};

/// Why a node does not start. The text is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Configuration and credential contradict each other.
    #[error("{0}")]
    Config(String),
    /// The store does not open.
    #[error("cannot open the store: {0}")]
    Store(String),
    /// The backend does not open.
    #[error("cannot open the backend: {0}")]
    Backend(String),
    /// A port cannot be listened on, or TLS cannot be set up.
    #[error("cannot start the {plane} plane: {why}")]
    Plane {
        /// `data` or `control`.
        plane: &'static str,
        /// What happened.
        why: String,
    },
}

impl Node {
    /// Starts a node: opens the store, listens on both planes, joins the mesh.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: Config, identity: Identity) -> Result<Self, StartError> {
        check(&config, &identity)?;
        let control_settings = control_settings(&config)?;
        let clock = Clock::new();
        let store = open_store(&config, clock).await?;
        let tls = TlsSetup::new(identity.clone(), system_clock(), TlsSetup::admit_members())
            .map_err(|error| StartError::Plane { plane: "data", why: error.to_string() })?;
        // Before anybody can connect.
        if let Some(list) =
            Memory::new(&store).revocations().map_err(|error| StartError::Store(error.to_string()))?
            && let Err(error) = tls.revocations().offer(&list)
        {
            tracing::warn!(%error, "the list of revocations that was remembered is not taken");
        }
        let (data, data_events) = bind_data(&config, &tls).await?;
        let (control, control_events) = start_control(control_settings, &config, &tls, &store, &data).await?;
        let mut registry = Registry::default();
        let (removed_sender, removed) = mpsc::unbounded_channel();
        store.on_removal(move |digest, reason| {
            let _ = removed_sender.send((digest, reason));
        });
        let (calls_sender, incoming) = mpsc::channel(calls::QUEUE);
        let inner =
            assemble(config, tls, clock, store, (data, data_events), control, calls_sender, &mut registry)
                .await?;
        let node = Self(Arc::new(Inner { registry: Mutex::new(registry), ..inner }));
        tokio::spawn(calls::serve(node.clone(), incoming));
        tokio::spawn(upkeep::listen(node.clone(), control_events));
        tokio::spawn(upkeep::follow_removals(node.clone(), removed));
        tokio::spawn(upkeep::keep_house(node.clone()));
        tokio::spawn(membership::keep_credential(node.clone()));
        let traces = Arc::clone(&node.0.traces);
        tokio::spawn(async move { traces.keep().await });
        if node.vault().is_some() {
            tokio::spawn(upkeep::restore_copies(node.clone()));
            tokio::spawn(upkeep::write_back(node.clone()));
            tokio::spawn(upkeep::settle_records(node.clone()));
            if let Some(replication) = node.replication().cloned() {
                let node = node.clone();
                tokio::spawn(async move {
                    replication.catch_up(&node).await;
                    replicate::run(node, replication).await;
                });
            }
            let reading = node.clone();
            tokio::spawn(async move { reading.records().read_archive().await });
        }
        Ok(node)
    }
}

fn check(config: &Config, identity: &Identity) -> Result<(), StartError> {
    let credential = identity.credential.value();
    if let Some(zone) = &config.zone
        && *zone != credential.zone
    {
        return Err(StartError::Config(format!(
            "zone is set to {zone}, but the credential says {}: leave zone out, or issue another credential",
            credential.zone
        )));
    }
    if config.origin && !credential.roles.contains(Role::Origin) {
        return Err(StartError::Config(format!(
            "origin is set, but the credential's roles are {}: issue one with the role origin",
            credential.roles
        )));
    }
    Ok(())
}

async fn open_store(config: &Config, clock: Clock) -> Result<Store, StartError> {
    let mut settings = StoreConfig::new(config.data_dir.join("store"));
    settings.capacity_bytes = config.capacity.map(|size| size.as_u64());
    let (store, report) =
        blocking(move || Store::open(settings, clock.wall())).await.map_err(StartError::Store)?;
    tracing::info!(?report, "the store is open");
    Ok(store)
}

async fn bind_data(
    config: &Config,
    tls: &TlsSetup,
) -> Result<(DataHandle, mpsc::Receiver<DataEvent>), StartError> {
    let settings = DataConfig {
        listen: config.data_listen,
        announce: config.data_announce.clone(),
        connections_max: config.connections_max,
        buffer_bytes_max: usize::try_from(config.buffer_memory.as_u64()).unwrap_or(usize::MAX),
        ..DataConfig::default()
    };
    DataPlane::bind(settings, tls.clone())
        .await
        .map_err(|error| StartError::Plane { plane: "data", why: error.to_string() })
}

/// What the configuration says of the control plane. Read before anything is opened, so that a bad address is one line.
fn control_settings(config: &Config) -> Result<ControlConfig, StartError> {
    let mut settings = ControlConfig {
        listen: parse_all(&config.listen, "listen")?,
        announce: parse_all(&config.announce, "announce")?,
        bootstrap: parse_all(&config.bootstrap, "bootstrap")?,
        ..ControlConfig::default()
    };
    settings.heartbeat.interval = config.heartbeat_interval;
    Ok(settings)
}

async fn start_control(
    mut settings: ControlConfig,
    config: &Config,
    tls: &TlsSetup,
    store: &Store,
    data: &DataHandle,
) -> Result<(ControlHandle, mpsc::Receiver<shoal_net::control::ControlEvent>), StartError> {
    let fail = |why: String| StartError::Plane { plane: "control", why };
    settings.data_endpoints = announced(config, data);
    settings.data_port = Some(data.local_addr().port());
    let memory = Arc::new(Memory::new(store));
    let (control, events) =
        Control::start(settings, tls.clone(), memory).await.map_err(|error| fail(error.to_string()))?;
    if config.origin {
        control.set_heartbeat(true).await;
    }
    if tls.identity().credential.value().roles.contains(Role::Gateway) {
        // So that other gateways find the uploads that begin here.
        control.provide(home_key(&control.local_peer())).await;
    }
    Ok((control, events))
}

/// What others should dial: what is configured, or the listener's address if it is one machine can be reached by. For a
/// listener on all addresses the control plane finds out which ones peers use.
fn announced(config: &Config, data: &DataHandle) -> Vec<Endpoint> {
    let local = data.local_addr();
    if config.data_announce.is_empty() && !local.ip().is_unspecified() {
        vec![Endpoint::from_ip(local.ip(), local.port())]
    } else {
        config.data_announce.clone()
    }
}

fn parse_all<T: std::str::FromStr>(texts: &[String], key: &str) -> Result<Vec<T>, StartError>
where
    T::Err: std::fmt::Display,
{
    let parse =
        |text: &String| text.parse().map_err(|error| StartError::Config(format!("{key}: {text:?}: {error}")));
    texts.iter().map(parse).collect()
}

#[expect(clippy::too_many_arguments, reason = "the one place where all parts meet")]
async fn assemble(
    config: Config,
    tls: TlsSetup,
    clock: Clock,
    store: Store,
    (data, data_events): (DataHandle, mpsc::Receiver<DataEvent>),
    control: ControlHandle,
    calls: mpsc::Sender<driver::IncomingCall>,
    registry: &mut Registry,
) -> Result<Inner, StartError> {
    let identity = tls.identity().clone();
    let credential = identity.credential.value();
    let (local, roles, zone) = (identity.peer_id(), credential.roles, credential.zone.clone());
    let metrics = Arc::new(Metrics::new(registry, zone.clone()));
    let pulls = Arc::new(Pulls::default());
    let traces = Arc::new(Traces::default());
    let directory = Arc::new(Directory::default());
    let links = Links::new(data.clone());
    let discovery = Arc::new(Discovery::new(control.clone(), Arc::clone(&directory), local, zone.clone()));
    let vault = match config.origin {
        true => Some(open_vault(&config, &store, &identity, &control).await?),
        false => None,
    };
    let seed = u64::from_le_bytes(crate::keys::random_secret()[..8].try_into().unwrap_or_default());
    let engine_config = engine_config(&config)?;
    let engine_zone = zone.clone();
    let (driver, _task) = {
        let parts =
            (store.clone(), data.clone(), Arc::clone(&links), Arc::clone(&directory), Arc::clone(&discovery));
        let (vault, pulls, metrics) = (vault.clone(), Arc::clone(&pulls), Arc::clone(&metrics));
        let traces = Arc::clone(&traces);
        let revocations = tls.revocations().clone();
        let (store, data, links, directory, discovery) = parts;
        driver::spawn(
            move |_| Parts {
                engine: Engine::new(engine_config, local, engine_zone, seed, clock.now()).with_roles(roles),
                clock,
                store,
                data,
                links,
                directory,
                discovery,
                vault,
                pulls,
                traces,
                metrics,
                revocations,
                creating: HashMap::new(),
                pins: Arc::default(),
                calls,
            },
            data_events,
        )
    };
    let heartbeat_lifetime = config.heartbeat_interval * ControlConfig::default().heartbeat.missed_max;
    let ledger = Ledger::new(Box::new(RecordTable(store.table(Table::Records))));
    let records = Arc::new(Records::new(Surroundings {
        ledger,
        identity: Identity::clone(&identity),
        discovery: Arc::clone(&discovery),
        directory: Arc::clone(&directory),
        links: Arc::clone(&links),
        control: control.clone(),
        archive: vault.clone().map(|vault| Arc::new(Archive::new(vault, store.table(Table::Misc)))),
        revocations: tls.revocations().clone(),
        heartbeat_lifetime,
        immutable: config.immutable_tags(),
    }));
    let replication = match config.origin {
        true => Some(open_replication(&config.replicate, &zone, &store, &records).await?),
        false => None,
    };
    let renewer = config.renewal_key.as_deref().map(crate::keys::read_issuing_key).transpose();
    let renewer = renewer.map_err(|error| StartError::Config(format!("renewal-key: {error}")))?;
    Ok(Inner {
        renewer,
        uploads: store.table(Table::Misc),
        upstreams: Upstreams::new(config.upstreams(), store.table(Table::Misc)),
        preheating: Here::default(),
        preheat_orders: Orders::default(),
        writing: Mutex::new(HashSet::new()),
        registry: Mutex::default(),
        stopping: watch::channel(false).0,
        config,
        tls,
        clock,
        store,
        hot_manifests: HotManifests::default(),
        data,
        control,
        driver,
        links,
        directory,
        discovery,
        records,
        vault,
        replication,
        pulls,
        traces,
        metrics,
    })
}

async fn open_replication(
    rules: &[Rule],
    zone: &Zone,
    store: &Store,
    records: &Records,
) -> Result<Arc<Replication>, StartError> {
    let table = store.table(Table::Misc);
    let queue = blocking(move || Queue::open(table, replicate::PREFIX)).await.map_err(StartError::Store)?;
    let replication = Replication::new(rules, zone.clone(), queue)
        .map_err(|error| StartError::Config(format!("replicate: {error}")))?;
    let told = Arc::clone(&replication);
    records.on_keep(move |record| told.note(record));
    Ok(replication)
}

async fn open_vault(
    config: &Config,
    store: &Store,
    identity: &Identity,
    control: &ControlHandle,
) -> Result<Arc<Vault>, StartError> {
    let rules: Result<Vec<BackendRule>, _> = config.backend.iter().map(|rule| rule.parse()).collect();
    let rules = rules.map_err(|error: BackendUrlError| StartError::Config(error.to_string()))?;
    // One that is missing may be a mount that is gone, but not below the directory that this process makes itself.
    let own =
        rules.iter().filter_map(|rule| rule.url.directory()).filter(|dir| dir.starts_with(&config.data_dir));
    for dir in own {
        let made = std::fs::create_dir_all(&dir);
        made.map_err(|error| StartError::Backend(format!("cannot make {}: {error}", dir.display())))?;
    }
    // Whatever the patterns say: nothing is kept under the name of somebody else's registry.
    let sources = config.upstreams();
    let rules: Vec<_> = sources.iter().map(shoal_origin::UpstreamRule::backend).chain(rules).collect();
    let backends = BackendSet::open(&rules).await.map_err(|error| StartError::Backend(error.to_string()))?;
    let table = store.table(Table::Queue);
    let queue = blocking(move || Queue::open(table, b"")).await.map_err(StartError::Store)?;
    let control = control.clone();
    let news = move |message| {
        let control = control.clone();
        tokio::spawn(async move {
            if let Err(error) = control.publish(message).await {
                tracing::debug!(%error, "news are not published");
            }
        });
    };
    let table = store.table(Table::Misc);
    let condemned = blocking(move || Condemned::open(table)).await.map_err(StartError::Store)?;
    Ok(Arc::new(Vault::new(
        backends,
        Arc::new(queue),
        condemned,
        store.clone(),
        identity.clone(),
        Box::new(news),
    )))
}

fn engine_config(config: &Config) -> Result<EngineConfig, StartError> {
    let rate = |size: Option<bytesize::ByteSize>| size.map(|size| size.as_u64());
    let settings = EngineConfig {
        rate_in_bytes_per_sec: rate(config.rate_in),
        rate_out_bytes_per_sec: rate(config.rate_out),
        zone_rate_in_bytes_per_sec: rate(config.zone_rate_in),
        zone_rate_out_bytes_per_sec: rate(config.zone_rate_out),
        buffer_bytes_max: config.buffer_memory.as_u64(),
        search_patience: config.search_patience,
        ..EngineConfig::default()
    };
    settings.validate().map_err(|error| StartError::Config(error.to_string()))?;
    Ok(settings)
}
