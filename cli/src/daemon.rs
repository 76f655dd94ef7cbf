//! Running a daemon until it is told to stop.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use shoal_bootstrap::{Bootstrap, BootstrapConfig, DoorMemory};
use shoal_daemon::clock::wall_now;
use shoal_daemon::config::{Config, DOCKER_HUB, LogFormat, UpstreamRule};
use shoal_daemon::keys;
use shoal_daemon::membership::CredentialFile;
use shoal_daemon::node::Node;
use shoal_gateway::auth::Guard;
use shoal_gateway::{Gateway, GatewayConfig, GatewayMetrics, Mirrors, NodeMesh, ServerTls, TlsFiles};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::otlp::Exporting;

/// Between two looks at a bootstrap peer's credential file.
const CREDENTIAL_INTERVAL: Duration = Duration::from_secs(1);

/// This process's identity: what is there, or what a join token makes. The token's doors stand in for `bootstrap`.
fn enter(config: &mut Config) -> anyhow::Result<shoal_net::identity::Identity> {
    let Some(text) = config.join.take() else {
        return Ok(keys::read_identity(&config.identity, &config.mesh_pub, wall_now())?);
    };
    let token = keys::read_join_token(&text)?;
    if config.bootstrap.is_empty() {
        config.bootstrap = token.bootstrap().to_vec();
    }
    Ok(keys::join(&token, &config.identity, &config.mesh_pub, wall_now())?)
}

/// The runtime of a daemon.
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")
}

/// The runtime of a command that asks a daemon something.
pub(crate) fn small_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}

/// Sends logs to standard error.
pub(crate) fn start_logging(config: &Config) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log)
        .with_context(|| format!("log: {:?} is not a filter", config.log))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match config.log_format {
        LogFormat::Human => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}

/// A gateway that serves.
pub(crate) struct Serving {
    pub(crate) address: std::net::SocketAddr,
    shutdown: CancellationToken,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Serving {
    /// Takes no more connections and waits for the responses under way.
    pub(crate) async fn drain(self) {
        self.shutdown.cancel();
        for task in self.tasks {
            let _ = task.await;
        }
    }
}

/// Serves the registry API of `node`.
pub(crate) async fn serve_gateway(node: &Node) -> anyhow::Result<Serving> {
    let address = node.config().gateway;
    let (guard, tls) = protection(node.config())?;
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("gateway: cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    let settings = GatewayConfig {
        delete_enabled: node.config().deletes.0,
        drain_timeout: node.config().drain_timeout,
        preheat_enabled: node.config().preheat.is_some(),
        ..GatewayConfig::default()
    };
    let metrics = GatewayMetrics::new(&mut node.registry().lock());
    let shutdown = CancellationToken::new();
    let mesh = if guard.is_some() { NodeMesh::confined(node.clone()) } else { NodeMesh::new(node.clone()) };
    let mesh = Arc::new(mesh);
    let make = |mirrors| {
        let mut gateway = Gateway::new(mesh.clone(), settings.clone(), metrics.clone()).with_mirrors(mirrors);
        if let Some(guard) = &guard {
            gateway = gateway.with_access(guard.clone());
        }
        match &tls {
            Some(tls) => gateway.with_tls(tls.clone()),
            None => gateway,
        }
    };
    let upstreams = node.config().upstreams();
    let name = |rule: &UpstreamRule| (rule.host().to_owned(), rule.prefix().to_owned());
    let mut serving = vec![(listener, make(Mirrors::new(upstreams.iter().map(name))))];
    if let Some(address) = node.config().hub_mirror {
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("hub-mirror: cannot listen on {address}"))?;
        tracing::info!(address = %listener.local_addr()?, "a mirror of Docker Hub listens");
        serving.push((listener, make(Mirrors::of(DOCKER_HUB))));
    }
    if let Some(guard) = guard {
        tokio::spawn(guard.follow(shutdown.clone()));
    }
    if let Some(tls) = tls {
        tokio::spawn(tls.follow(shutdown.clone()));
    }
    let serve = |(listener, gateway)| {
        tokio::spawn(shoal_gateway::serve(listener, Arc::new(gateway), shutdown.clone()))
    };
    let tasks = serving.into_iter().map(serve).collect();
    Ok(Serving { address, shutdown, tasks })
}

/// Who may do what at the registry API, and its TLS.
type Protection = (Option<Arc<Guard>>, Option<Arc<ServerTls>>);

/// The same, as configured.
fn protection(config: &Config) -> anyhow::Result<Protection> {
    let guard = config.gateway_access.as_deref().map(Guard::load).transpose().context("gateway-access")?;
    let files = config.gateway_tls_cert.clone().zip(config.gateway_tls_key.clone());
    let client_ca = config.gateway_tls_client_ca.clone();
    let files = files.map(|(certificate, key)| TlsFiles { certificate, key, client_ca });
    let tls = files.map(ServerTls::load).transpose().context("gateway-tls-cert")?;
    let outside = !config.gateway.ip().is_loopback();
    if outside && tls.is_none() && guard.as_ref().is_some_and(Guard::wants_encryption) {
        anyhow::bail!(
            "gateway: {} is reached from other machines in plain HTTP, and passwords or tokens would be sent over it: \
             set gateway-tls-cert, or passwords-in-the-clear = true in the access file behind something that encrypts",
            config.gateway
        );
    }
    if outside && guard.is_none() {
        tracing::warn!(
            address = %config.gateway,
            "the registry API is reached from other machines and everybody may push and delete: set gateway-access"
        );
    }
    Ok((guard.map(Arc::new), tls.map(Arc::new)))
}

/// Runs a node, with the registry API if it is a gateway.
pub(crate) async fn run_node(mut config: Config, gateway: bool) -> anyhow::Result<()> {
    let mut signals = Signals::catch()?;
    let identity = enter(&mut config)?;
    let ops = config.ops;
    let drain = config.drain_timeout;
    let exporting = Exporting::start(&config, &identity)?;
    let node = Node::start(config, identity).await?;
    let ops = shoal_daemon::ops::serve(node.clone(), ops)
        .await
        .with_context(|| format!("ops: cannot listen on {ops}"))?;
    let serving = if gateway { Some(serve_gateway(&node).await?) } else { None };
    let listen = first_listen_address(&node).await;
    println!(
        "ready peer={} listen={listen} data={} gateway={} ops={ops}",
        node.peer_id(),
        node.data().local_addr(),
        serving.as_ref().map_or_else(|| "-".to_owned(), |serving| serving.address.to_string()),
    );
    signals.came().await;
    tracing::info!("stopping: no new requests, those under way are finished");
    if let Some(serving) = serving {
        let _ = tokio::time::timeout(drain, serving.drain()).await;
    }
    let _ = tokio::time::timeout(drain, node.stop()).await;
    exporting.stop().await;
    Ok(())
}

/// Runs a bootstrap peer.
pub(crate) async fn run_bootstrap(mut config: Config) -> anyhow::Result<()> {
    let mut signals = Signals::catch()?;
    let identity = enter(&mut config)?;
    let peer = identity.peer_id();
    let (door, address) = start_bootstrap(&config, identity).await?;
    let ops = shoal_daemon::ops::serve_door(door.control().clone(), config.ops)
        .await
        .with_context(|| format!("ops: cannot listen on {}", config.ops))?;
    println!("ready peer={peer} listen={address} data=- gateway=- ops={ops}");
    let (tls, own) = (door.tls().clone(), config.identity.clone());
    let following = tokio::spawn(async move {
        let mut file = CredentialFile::default();
        loop {
            tokio::time::sleep(CREDENTIAL_INTERVAL).await;
            file.follow(&own, &tls);
        }
    });
    door.run_until(signals.came()).await;
    following.abort();
    Ok(())
}

/// Starts a bootstrap peer and waits until it listens; also returns its address for `--bootstrap`.
pub(crate) async fn start_bootstrap(
    config: &Config,
    identity: shoal_net::identity::Identity,
) -> anyhow::Result<(Bootstrap, String)> {
    let peer = identity.peer_id();
    let settings = BootstrapConfig {
        listen: parse_all(&config.listen).context("listen")?,
        announce: parse_all(&config.announce).context("announce")?,
        bootstrap: parse_all(&config.bootstrap).context("bootstrap")?,
    };
    let memory = Arc::new(DoorMemory::new(&config.data_dir));
    let mut door = Bootstrap::start(settings, identity, Some(memory))
        .await
        .context("cannot start the bootstrap peer")?;
    let address = door.listening().await.context("the bootstrap peer stopped before it listened")?;
    Ok((door, with_peer(&address.to_string(), &peer)))
}

fn parse_all<T: std::str::FromStr>(texts: &[String]) -> anyhow::Result<Vec<T>>
where
    T::Err: std::fmt::Display,
{
    texts.iter().map(|text| text.parse().map_err(|error| anyhow::anyhow!("{text:?}: {error}"))).collect()
}

fn with_peer(address: &str, peer: &shoal_types::PeerId) -> String {
    let suffix = format!("/p2p/{peer}");
    if address.ends_with(&suffix) { address.to_owned() } else { format!("{address}{suffix}") }
}

/// The address to give to others as `--bootstrap`, once there is one.
pub(crate) async fn first_listen_address(node: &Node) -> String {
    loop {
        if let Some(status) = node.control().status().await
            && let Some(address) = status.listening.first()
        {
            return with_peer(address, &node.peer_id());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// SIGTERM and SIGINT, caught from the moment this is made.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Catches them. Made before anybody is told that this process is ready.
    pub(crate) fn catch() -> anyhow::Result<Self> {
        let terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
        let interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
        Ok(Self { terminate, interrupt })
    }

    /// Resolves when one came.
    pub(crate) async fn came(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
