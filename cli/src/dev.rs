//! `shoal dev`: a whole mesh in one process, nothing to install.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use shoal_daemon::clock::wall_now;
use shoal_daemon::config::Config;
use shoal_daemon::keys;
use shoal_daemon::node::Node;
use shoal_net::identity::Identity;
use shoal_types::{Credential, IssuingKey, MeshKey, Role, Roles, Zone};

use crate::daemon::{self, Serving};

/// How long a dev mesh's credentials last: it makes new ones at every start.
const CREDENTIAL_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long the parts may take to find each other.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Flags of `shoal dev`.
#[derive(clap::Args)]
pub(crate) struct DevArgs {
    /// Number of gateways.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    gateways: u16,
    /// Directory for everything; kept when the mesh stops [default: ~/.local/share/shoal/dev]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Port of the first gateway; the others listen on the ports after it. 0 takes any free ones.
    #[arg(long, value_name = "P", default_value_t = 5000)]
    port: u16,
    /// Port of the first gateway's ops listener; 0 takes any free one.
    #[arg(long, value_name = "P", default_value_t = 7070)]
    ops_port: u16,
    /// What is logged.
    #[arg(long, value_name = "FILTER", default_value = "warn")]
    log: String,
}

/// Runs the mesh until it is told to stop.
pub(crate) async fn run(args: DevArgs) -> anyhow::Result<()> {
    let dir = match &args.data_dir {
        Some(dir) => dir.clone(),
        None => default_dir()?,
    };
    daemon::start_logging(&Config { log: args.log.clone(), ..Config::default() })?;
    let mut signals = daemon::Signals::catch()?;
    let mesh = open_mesh(&dir)?;
    let bootstrap_config = part_config(&dir, "bootstrap", &[]);
    let identity = issue(&dir, "bootstrap", &mesh, Roles::NONE.with(Role::Bootstrap))?;
    let (door, address) = daemon::start_bootstrap(&bootstrap_config, identity).await?;
    let (close, closed) = tokio::sync::oneshot::channel::<()>();
    let door = tokio::spawn(door.run_until(async {
        let _ = closed.await;
    }));
    let doors = vec![address];

    let mut nodes = Vec::new();
    let blobs = dir.join("blobs");
    std::fs::create_dir_all(&blobs).with_context(|| format!("cannot make {}", blobs.display()))?;
    let origin_config = Config {
        origin: true,
        backend: vec![format!("fs:{}", blobs.display())],
        ..part_config(&dir, "origin", &doors)
    };
    let roles = Roles::NONE.with(Role::Node).with(Role::Origin);
    nodes.push(Node::start(origin_config, issue(&dir, "origin", &mesh, roles)?).await?);
    let mut serving: Vec<Serving> = Vec::new();
    let mut ops = Vec::new();
    for number in 0..args.gateways {
        let name = format!("gateway-{}", number + 1);
        let port =
            if args.port == 0 { 0 } else { args.port.checked_add(number).context("the ports run out")? };
        let config = Config { gateway: ([127, 0, 0, 1], port).into(), ..part_config(&dir, &name, &doors) };
        let roles = Roles::NONE.with(Role::Node).with(Role::Gateway);
        let node = Node::start(config, issue(&dir, &name, &mesh, roles)?).await?;
        let ops_port = if number == 0 { args.ops_port } else { 0 };
        let address = shoal_daemon::ops::serve(node.clone(), ([127, 0, 0, 1], ops_port).into());
        ops.push(address.await.with_context(|| format!("cannot listen on port {ops_port}; see --ops-port"))?);
        serving.push(daemon::serve_gateway(&node).await?);
        nodes.push(node);
    }
    wait_until_joined(&nodes).await?;
    greet(&dir, &serving, &ops);
    signals.came().await;
    for gateway in serving {
        gateway.drain().await;
    }
    for node in nodes.iter().rev() {
        node.stop().await;
    }
    drop(close);
    let _ = door.await;
    Ok(())
}

fn default_dir() -> anyhow::Result<PathBuf> {
    let home = std::env::var_os("HOME").context("HOME is not set: say where to keep data with --data-dir")?;
    Ok(PathBuf::from(home).join(".local/share/shoal/dev"))
}

/// The mesh in `dir`, made at the first start.
fn open_mesh(dir: &Path) -> anyhow::Result<MeshKey> {
    let path = dir.join("mesh").join(keys::MESH_KEY_FILE);
    let mesh = if path.exists() { keys::read_mesh_key(&path) } else { keys::init_mesh(&dir.join("mesh")) };
    Ok(mesh?)
}

fn issue(dir: &Path, name: &str, mesh: &MeshKey, roles: Roles) -> anyhow::Result<Identity> {
    let now = wall_now();
    let key = IssuingKey::Root(mesh.clone());
    let identity =
        keys::issue_identity(&dir.join(name).join("identity"), (&key, mesh.public()), |peer| Credential {
            peer,
            roles,
            zone: Zone::default(),
            namespaces: vec![],
            not_before: now,
            not_after: now.saturating_add(CREDENTIAL_LIFETIME),
            issuer: None,
        })?;
    Ok(identity)
}

/// The settings of one part: everything on loopback, on any free port.
fn part_config(dir: &Path, name: &str, bootstrap: &[String]) -> Config {
    Config {
        data_dir: dir.join(name),
        listen: vec!["/ip4/127.0.0.1/tcp/0".to_owned()],
        data_listen: ([127, 0, 0, 1], 0).into(),
        bootstrap: bootstrap.to_vec(),
        ..Config::default()
    }
}

/// Waits until every part knows the origin, so that the first push does not have to.
async fn wait_until_joined(nodes: &[Node]) -> anyhow::Result<()> {
    let joined = async {
        for node in nodes {
            let mut origins = node.control().watch_origins();
            let _ = origins.wait_for(|origins| !origins.is_empty()).await;
        }
    };
    tokio::time::timeout(JOIN_TIMEOUT, joined).await.context("the parts of the mesh did not find each other")
}

fn greet(dir: &Path, serving: &[Serving], ops: &[std::net::SocketAddr]) {
    println!(
        "A mesh of 1 bootstrap peer, 1 origin and {} gateway(s) is ready. Data: {}",
        serving.len(),
        dir.display()
    );
    for (gateway, ops) in serving.iter().zip(ops) {
        println!(
            "  gateway {}   status http://{ops}/api/v1/status   metrics http://{ops}/metrics",
            gateway.address
        );
    }
    let (Some(first), Some(last), Some(ops)) = (serving.first(), serving.last(), ops.first()) else { return };
    println!("Type next, for instance:");
    println!(
        "  docker tag alpine 127.0.0.1:{0}/alpine && docker push 127.0.0.1:{0}/alpine",
        first.address.port()
    );
    println!("  docker pull 127.0.0.1:{}/alpine", last.address.port());
    println!("  shoal pulls --ops {ops}");
    println!("Stop with Ctrl-C.");
}
