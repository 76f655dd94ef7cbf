//! Running a daemon until it is told to stop.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use shoal_bootstrap::{Bootstrap, BootstrapConfig};
use shoal_daemon::clock::wall_now;
use shoal_daemon::config::{Config, LogFormat};
use shoal_daemon::keys;
use shoal_daemon::node::Node;
use shoal_gateway::{Gateway, GatewayConfig, GatewayMetrics, NodeMesh};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

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
    task: tokio::task::JoinHandle<()>,
}

impl Serving {
    /// Takes no more connections and waits for the responses under way.
    pub(crate) async fn drain(self) {
        self.shutdown.cancel();
        let _ = self.task.await;
    }
}

/// Serves the registry API of `node`.
pub(crate) async fn serve_gateway(node: &Node) -> anyhow::Result<Serving> {
    let address = node.config().gateway;
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("gateway: cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    let settings = GatewayConfig {
        delete_enabled: node.config().deletes.0,
        drain_timeout: node.config().drain_timeout,
        ..GatewayConfig::default()
    };
    let metrics = GatewayMetrics::new(&mut node.registry().lock());
    let gateway = Gateway::new(Arc::new(NodeMesh::new(node.clone())), settings, metrics);
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(shoal_gateway::serve(listener, Arc::new(gateway), shutdown.clone()));
    Ok(Serving { address, shutdown, task })
}

/// Runs a node, with the registry API if it is a gateway.
pub(crate) async fn run_node(config: Config, gateway: bool) -> anyhow::Result<()> {
    let mut signals = Signals::catch()?;
    let identity = keys::read_identity(&config.identity, &config.mesh_pub, wall_now())?;
    let ops = config.ops;
    let drain = config.drain_timeout;
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
    Ok(())
}

/// Runs a bootstrap peer.
pub(crate) async fn run_bootstrap(config: Config) -> anyhow::Result<()> {
    let mut signals = Signals::catch()?;
    let identity = keys::read_identity(&config.identity, &config.mesh_pub, wall_now())?;
    let peer = identity.peer_id();
    let (door, address) = start_bootstrap(&config, identity).await?;
    let ops = shoal_daemon::ops::serve_door(door.control().clone(), config.ops)
        .await
        .with_context(|| format!("ops: cannot listen on {}", config.ops))?;
    println!("ready peer={peer} listen={address} data=- gateway=- ops={ops}");
    door.run_until(signals.came()).await;
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
    let mut door =
        Bootstrap::start(settings, identity, None).await.context("cannot start the bootstrap peer")?;
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
