//! A whole mesh of real processes in a temporary directory.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::future::{join_all, try_join_all};
use http::StatusCode;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::contract::{self, Ready, Sources, SwarmRow};
use crate::metrics::Metrics;
use crate::process::{Process, run_program};
use crate::registry::Registry;
use crate::wait::{PATIENCE, wait_until};
use crate::{http as client, ports, system};

/// Meshes at the same time, whatever number of threads the test runner uses.
const MESHES_MAX: u32 = 2;

static MESHES: Semaphore = Semaphore::const_new(MESHES_MAX as usize);

/// The zone of every process that is not told otherwise.
pub const ZONE: &str = "home";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bootstrap,
    Origin,
    Gateway,
}

impl Kind {
    fn subcommand(self) -> &'static str {
        match self {
            Self::Bootstrap => "bootstrap",
            Self::Origin => "node",
            Self::Gateway => "gateway",
        }
    }

    fn roles(self) -> &'static str {
        match self {
            Self::Bootstrap => "bootstrap",
            Self::Origin => "node,origin",
            Self::Gateway => "node,gateway",
        }
    }
}

/// Describes one process of a mesh.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    name: String,
    kind: Kind,
    zone: String,
    flags: Vec<String>,
    env: Vec<(String, String)>,
    credential: Vec<String>,
    join: Option<PathBuf>,
    data_dir: Option<PathBuf>,
    backend: Option<String>,
}

impl NodeSpec {
    fn new(name: &str, kind: Kind) -> Self {
        let zone = ZONE.to_owned();
        let (flags, env) = (Vec::new(), Vec::new());
        let credential = Vec::new();
        let name = name.to_owned();
        Self { name, kind, zone, flags, env, credential, join: None, data_dir: None, backend: None }
    }

    /// A bootstrap peer.
    pub fn bootstrap(name: &str) -> Self {
        Self::new(name, Kind::Bootstrap)
    }

    /// An origin with a directory as its backend.
    pub fn origin(name: &str) -> Self {
        Self::new(name, Kind::Origin)
    }

    /// A gateway.
    pub fn gateway(name: &str) -> Self {
        Self::new(name, Kind::Gateway)
    }

    /// In another zone.
    pub fn zone(mut self, zone: &str) -> Self {
        zone.clone_into(&mut self.zone);
        self
    }

    /// With a flag more.
    pub fn flag(mut self, flag: &str, value: &str) -> Self {
        self.flags.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    /// With variables in its environment.
    pub fn envs(self, variables: &[(&str, &str)]) -> Self {
        variables.iter().fold(self, |spec, (name, value)| spec.env(name, value))
    }

    /// With a flag more on the command that issues its credential; the last of a flag counts.
    pub fn credential(mut self, flag: &str, value: &str) -> Self {
        self.credential.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    /// With a join token out of this file instead of a credential.
    pub fn join(mut self, token: &Path) -> Self {
        self.join = Some(token.to_owned());
        self
    }

    /// With a variable in its environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With its data somewhere else than in the mesh's own directory.
    pub fn data_dir(mut self, dir: &Path) -> Self {
        self.data_dir = Some(dir.to_owned());
        self
    }

    /// With another backend than a directory of the mesh's own.
    pub fn backend(mut self, url: &str) -> Self {
        self.backend = Some(url.to_owned());
        self
    }
}

/// Describes a mesh.
#[derive(Debug, Default)]
pub struct MeshBuilder {
    specs: Vec<NodeSpec>,
    exclusive: bool,
    strangers: Option<Vec<String>>,
}

impl MeshBuilder {
    /// With one process more.
    pub fn node(mut self, spec: NodeSpec) -> Self {
        self.specs.push(spec);
        self
    }

    /// With a flag more on every process that has a data plane.
    pub fn flag(mut self, flag: &str, value: &str) -> Self {
        for spec in self.specs.iter_mut().filter(|spec| spec.kind != Kind::Bootstrap) {
            spec.flags.extend([flag.to_owned(), value.to_owned()]);
        }
        self
    }

    /// With no other mesh at the same time.
    pub fn exclusive(mut self) -> Self {
        self.exclusive = true;
        self
    }

    /// At the same time as another mesh, whose bootstrap peers its processes also try, as strangers.
    pub fn beside(mut self, other: &Mesh) -> Self {
        self.strangers = Some(other.bootstrap_peers());
        self
    }

    /// Starts it and waits until every gateway knows every origin.
    ///
    /// # Errors
    /// When a process does not start, or they do not find each other.
    pub async fn start(self) -> Result<Mesh> {
        // A test that has one mesh and waits for its second could wait for itself.
        let permit = match self.strangers {
            Some(_) => None,
            None => Some(MESHES.acquire_many(if self.exclusive { MESHES_MAX } else { 1 }).await?),
        };
        let root = tempfile::Builder::new().prefix("shoal-e2e-").tempdir()?;
        std::fs::create_dir(root.path().join("log"))?;
        let key_dir = root.path().join("mesh");
        run_program(&contract::mesh_init(&key_dir.to_string_lossy())).await?;
        let strangers = self.strangers.unwrap_or_default();
        let mut mesh = Mesh { root: Some(root), nodes: Vec::new(), strangers, _permit: permit };
        // Whoever is started must find those it bootstraps from.
        for kind in [Kind::Bootstrap, Kind::Origin, Kind::Gateway] {
            let specs: Vec<_> = self.specs.iter().filter(|spec| spec.kind == kind).cloned().collect();
            let started = try_join_all(specs.into_iter().map(|spec| mesh.launch(spec))).await?;
            mesh.nodes.extend(started);
        }
        mesh.wait_joined().await?;
        Ok(mesh)
    }
}

/// One process of a mesh, which may be down at the moment.
#[derive(Debug)]
pub struct Node {
    spec: NodeSpec,
    args: Vec<String>,
    ready: Ready,
    data_dir: PathBuf,
    process: Option<Process>,
}

impl Node {
    /// Its name here.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Its peer id.
    pub fn peer(&self) -> &str {
        &self.ready.peer
    }

    /// Its addresses.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Where its data is.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Its process id.
    ///
    /// # Errors
    /// When it is down.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.process.as_ref().with_context(|| format!("{} is down", self.spec.name))?.pid)
    }

    /// Its OCI API.
    ///
    /// # Errors
    /// When it has none.
    pub fn gateway(&self) -> Result<SocketAddr> {
        self.ready.gateway.with_context(|| format!("{} is no gateway", self.spec.name))
    }

    /// Its ops API.
    ///
    /// # Errors
    /// When it has none.
    pub fn ops(&self) -> Result<SocketAddr> {
        self.ready.ops.with_context(|| format!("{} has no ops API", self.spec.name))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it is down.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        system::signal(self.pid()?, signal)
    }

    /// Its metrics now.
    ///
    /// # Errors
    /// When it does not give them.
    pub async fn metrics(&self) -> Result<Metrics> {
        let answer = client::get(self.ops()?, "/metrics").await?.expect(StatusCode::OK).await?;
        Ok(Metrics::parse(&answer.text().await?))
    }

    /// A counter now. Absent counts as zero, for a counter may show up with its first count.
    ///
    /// # Errors
    /// When there are no metrics.
    pub async fn count(&self, metric: &str) -> Result<f64> {
        Ok(self.metrics().await?.sum(metric))
    }

    /// A counter now that must be there.
    ///
    /// # Errors
    /// When it is not, with the names that are.
    pub async fn counted(&self, metric: &str) -> Result<f64> {
        let metrics = self.metrics().await?;
        ensure!(
            metrics.has(metric),
            "{} has no metric {metric}; it has {:?}",
            self.spec.name,
            metrics.names()
        );
        Ok(metrics.sum(metric))
    }

    /// An answer of the ops API.
    ///
    /// # Errors
    /// When it is not 200 and JSON.
    pub async fn api(&self, path: &str) -> Result<Value> {
        client::get(self.ops()?, path).await?.expect(StatusCode::OK).await?.json().await
    }

    /// A blob's swarm here; `None` when there is none.
    ///
    /// # Errors
    /// As [`Node::api`].
    pub async fn swarm(&self, digest: &str) -> Result<Option<SwarmRow>> {
        Ok(contract::swarm_of(&self.api("/api/v1/swarms").await?, digest))
    }

    /// Where a blob's bytes came from; `None` when it was not pulled here.
    ///
    /// # Errors
    /// As [`Node::api`].
    pub async fn sources(&self, digest: &str) -> Result<Option<Sources>> {
        Ok(contract::sources_of(&self.api("/api/v1/pulls").await?, digest))
    }

    async fn wait_joined(&self, origins: usize) -> Result<()> {
        // A bootstrap peer has no ops API: its ready line is all that it says.
        if self.spec.kind == Kind::Bootstrap {
            return Ok(());
        }
        let what = format!("{} is ready and knows {origins} origins", self.spec.name);
        wait_until(&what, PATIENCE, async || {
            let ready = client::get(self.ops()?, "/readyz").await?;
            ready.expect(StatusCode::OK).await?;
            if self.spec.kind == Kind::Gateway {
                let known = self.count(contract::metric::ORIGINS).await?;
                ensure!(known >= origins as f64, "it knows {known}");
            }
            Ok(Some(()))
        })
        .await
    }
}

/// A running mesh. A test ends with [`Mesh::finish`]; when it is dropped instead, logs are shown.
#[derive(Debug)]
pub struct Mesh {
    root: Option<TempDir>,
    nodes: Vec<Node>,
    strangers: Vec<String>,
    _permit: Option<SemaphorePermit<'static>>,
}

impl Mesh {
    /// One with nobody in it.
    pub fn empty() -> MeshBuilder {
        MeshBuilder::default()
    }

    /// One bootstrap peer `b0`, one origin `o0`, and gateways `g0`, `g1`, …
    pub fn with_gateways(gateways: usize) -> MeshBuilder {
        let mesh = Self::empty().node(NodeSpec::bootstrap("b0")).node(NodeSpec::origin("o0"));
        (0..gateways).fold(mesh, |mesh, number| mesh.node(NodeSpec::gateway(&format!("g{number}"))))
    }

    /// A process by its name.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.spec.name == name).with_context(|| format!("no {name}"))
    }

    fn node_mut(&mut self, name: &str) -> Result<&mut Node> {
        self.nodes.iter_mut().find(|node| node.spec.name == name).with_context(|| format!("no {name}"))
    }

    /// A repository behind a gateway.
    ///
    /// # Errors
    /// When there is no such gateway.
    pub fn registry(&self, gateway: &str, repository: &str) -> Result<Registry> {
        Ok(Registry::new(self.node(gateway)?.gateway()?, repository))
    }

    /// A directory of the test's own, removed at the end.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn scratch(&self, name: &str) -> Result<PathBuf> {
        let path = self.root()?.join(name);
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// The mesh's public key file.
    ///
    /// # Errors
    /// When the mesh is finished.
    pub fn public_key(&self) -> Result<PathBuf> {
        Ok(self.root()?.join("mesh/mesh.pub"))
    }

    /// The mesh's secret root key file.
    ///
    /// # Errors
    /// When the mesh is finished.
    pub fn mesh_key(&self) -> Result<PathBuf> {
        Ok(self.root()?.join("mesh/mesh.key"))
    }

    /// The directory of a process's identity.
    ///
    /// # Errors
    /// When the mesh is finished.
    pub fn identity_dir(&self, name: &str) -> Result<PathBuf> {
        Ok(self.root()?.join("identity").join(name))
    }

    /// What a process has printed and logged.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn log(&self, name: &str) -> Result<String> {
        Ok(std::fs::read_to_string(self.log_of(name)?)?)
    }

    /// Starts a process that is expected to be refused by the others: does not wait until it has joined.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn add_outcast(&mut self, spec: NodeSpec) -> Result<()> {
        let node = self.launch(spec).await?;
        self.nodes.push(node);
        Ok(())
    }

    fn root(&self) -> Result<&Path> {
        Ok(self.root.as_ref().context("the mesh is finished")?.path())
    }

    /// Adds a process to the running mesh and waits until it has joined.
    ///
    /// # Errors
    /// When it does not.
    pub async fn add(&mut self, spec: NodeSpec) -> Result<()> {
        let node = self.launch(spec).await?;
        let origins = self.origins_up();
        node.wait_joined(origins).await?;
        self.nodes.push(node);
        Ok(())
    }

    /// Kills a process with SIGKILL.
    ///
    /// # Errors
    /// When it is down, or had ended by itself.
    pub async fn kill(&mut self, name: &str) -> Result<()> {
        self.take(name)?.kill().await
    }

    /// Empties the disk of a process that is down. Its identity stays.
    ///
    /// # Errors
    /// When it is not down, or those of the file system.
    pub fn wipe(&self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        ensure!(node.process.is_none(), "{name} is not down");
        std::fs::remove_dir_all(&node.data_dir)?;
        Ok(())
    }

    /// Waits for the end of a process that was killed by its id.
    ///
    /// # Errors
    /// When it is down already.
    pub async fn reap(&mut self, name: &str) -> Result<()> {
        self.take(name)?.reap().await
    }

    /// Ends a process with SIGTERM.
    ///
    /// # Errors
    /// When it is down, had ended by itself, or does not end with 0.
    pub async fn stop(&mut self, name: &str) -> Result<()> {
        self.take(name)?.stop().await
    }

    fn take(&mut self, name: &str) -> Result<Process> {
        self.node_mut(name)?.process.take().with_context(|| format!("{name} is down"))
    }

    /// Starts a process that is down, on its own data and addresses, and waits until it has joined.
    ///
    /// # Errors
    /// When it does not.
    pub async fn restart(&mut self, name: &str) -> Result<()> {
        let log = self.log_of(name)?;
        let node = self.node_mut(name)?;
        ensure!(node.process.is_none(), "{name} is not down");
        let process = Process::start(name, &node.args, &node.spec.env, &log).await?;
        ensure!(process.ready.peer == node.ready.peer, "{name} came back with another identity");
        node.ready = process.ready.clone();
        node.process = Some(process);
        let origins = self.origins_up();
        self.node(name)?.wait_joined(origins).await
    }

    /// Fails when a process that was not killed is gone.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn check_running(&mut self) -> Result<()> {
        for process in self.nodes.iter_mut().filter_map(|node| node.process.as_mut()) {
            if !process.is_running()? {
                bail!("{} ended by itself:\n{}", process.name, process.log_tail());
            }
        }
        Ok(())
    }

    /// Waits until everybody who runs is ready and every gateway knows every running origin.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn wait_joined(&self) -> Result<()> {
        let origins = self.origins_up();
        let running = self.nodes.iter().filter(|node| node.process.is_some());
        try_join_all(running.map(|node| node.wait_joined(origins))).await?;
        Ok(())
    }

    fn origins_up(&self) -> usize {
        self.nodes.iter().filter(|node| node.spec.kind == Kind::Origin && node.process.is_some()).count()
    }

    /// Ends all processes with SIGTERM and looks for what they left behind.
    ///
    /// # Errors
    /// When one had ended before or does not end with 0, when a port is still open, or a process is left.
    pub async fn finish(mut self) -> Result<()> {
        self.check_running()?;
        let processes: Vec<_> = self.nodes.iter_mut().filter_map(|node| node.process.take()).collect();
        for stopped in join_all(processes.into_iter().map(Process::stop)).await {
            stopped?;
        }
        for node in &self.nodes {
            for (plane, addr) in node.ready.ports()? {
                ensure!(
                    TcpStream::connect(addr).await.is_err(),
                    "{}: {plane} {addr} is still open",
                    node.spec.name
                );
            }
        }
        let root = self.root()?.to_owned();
        wait_until("no process of this mesh is left", Duration::from_secs(10), async || {
            let left = system::processes_mentioning(&root);
            ensure!(left.is_empty(), "{left:?}");
            Ok(Some(()))
        })
        .await?;
        system::unmount_below(&root).await?;
        self.root.take().context("finished twice")?.close()?;
        Ok(())
    }

    /// The doors of this mesh, as `--bootstrap` takes them.
    pub fn bootstrap_peers(&self) -> Vec<String> {
        let bootstraps = self.nodes.iter().filter(|node| node.spec.kind == Kind::Bootstrap);
        bootstraps.map(|node| node.ready.listen.clone()).collect()
    }

    fn log_of(&self, name: &str) -> Result<PathBuf> {
        Ok(self.root()?.join(format!("log/{name}.log")))
    }

    async fn launch(&self, spec: NodeSpec) -> Result<Node> {
        let root = self.root()?;
        let identity = root.join("identity").join(&spec.name);
        let key = root.join("mesh/mesh.key");
        let issue = contract::credential_issue(
            &key.to_string_lossy(),
            spec.kind.roles(),
            &spec.zone,
            &identity.to_string_lossy(),
        );
        if spec.join.is_none() {
            run_program(&with_flags(issue, &spec.credential)).await?;
        }
        let data_dir = spec.data_dir.clone().unwrap_or_else(|| root.join("data").join(&spec.name));
        let args = self.args(&spec, &identity, &data_dir)?;
        let process = Process::start(&spec.name, &args, &spec.env, &self.log_of(&spec.name)?).await?;
        Ok(Node { spec, args, ready: process.ready.clone(), data_dir, process: Some(process) })
    }

    fn args(&self, spec: &NodeSpec, identity: &Path, data_dir: &Path) -> Result<Vec<String>> {
        let mut args = vec![spec.kind.subcommand().to_owned()];
        let mut flag = |name: &str, value: String| args.extend([name.to_owned(), value]);
        flag("--data-dir", data_dir.to_string_lossy().into_owned());
        flag("--identity", identity.to_string_lossy().into_owned());
        // Whoever joins gets the mesh's public key with the token.
        let public = match &spec.join {
            Some(_) => identity.with_extension("pub"),
            None => self.public_key()?,
        };
        flag("--mesh-pub", public.to_string_lossy().into_owned());
        flag("--zone", spec.zone.clone());
        flag("--listen", format!("/ip4/127.0.0.1/tcp/{}", ports::reserve()?.port()));
        flag("--ops", ports::reserve()?.to_string());
        match &spec.join {
            // The token knows the doors.
            Some(token) => flag("--join", token.to_string_lossy().into_owned()),
            None => {
                for peer in self.bootstrap_peers().into_iter().chain(self.strangers.iter().cloned()) {
                    flag("--bootstrap", peer);
                }
            }
        }
        if spec.kind != Kind::Bootstrap {
            flag("--data-listen", ports::reserve()?.to_string());
        }
        if spec.kind == Kind::Gateway {
            flag("--gateway", ports::reserve()?.to_string());
        }
        if spec.kind == Kind::Origin {
            let backend = self.root()?.join("backend").join(&spec.name);
            let url = spec.backend.clone().unwrap_or_else(|| format!("fs:{}", backend.display()));
            if let Some(dir) = url.strip_prefix("fs:") {
                std::fs::create_dir_all(dir)?;
            }
            flag("--backend", url);
            args.push("--origin".to_owned());
        }
        args.extend(spec.flags.iter().cloned());
        Ok(args)
    }
}

/// A command with other values of flags it has, and with flags it has not.
fn with_flags(mut command: Vec<String>, flags: &[String]) -> Vec<String> {
    for pair in flags.chunks(2) {
        let at = pair.first().and_then(|flag| command.iter().position(|word| word == flag));
        match (at.and_then(|at| command.get_mut(at + 1)), pair) {
            (Some(value), [_, new]) => new.clone_into(value),
            _ => command.extend_from_slice(pair),
        }
    }
    command
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let Some(root) = self.root.take() else { return };
        eprintln!("--- the test did not come to its end; the logs of its mesh:");
        for node in &self.nodes {
            let log = root.path().join(format!("log/{}.log", node.spec.name));
            eprintln!("--- {}\n{}", node.spec.name, system::tail(&log, 60));
        }
        if std::env::var_os("SHOAL_KEEP").is_some() {
            eprintln!("--- kept: {}", root.keep().display());
        } else {
            eprintln!("--- SHOAL_KEEP=1 keeps its directory");
        }
    }
}
