//! A mesh of `shoal` daemons, one a host of the lab.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use shoal_tests::contract::{self, Ready};
use shoal_tests::image::Blob;
use shoal_tests::metrics::Metrics;
use shoal_tests::{Registry, http};

use crate::lab::{self, Host};

const CONTROL_PORT: u16 = 4001;
const DATA_PORT: u16 = 4002;
/// The gateway's address inside its host's namespace.
pub(crate) const GATEWAY: &str = "127.0.0.1:5000";
const GATEWAY_PORT: u16 = 5000;
const OPS_PORT: u16 = 7070;
/// Added to every port of a second daemon on a host.
const BESIDE: u16 = 100;
/// How long a mesh may take until everybody knows the origin.
const JOIN_MAX: Duration = Duration::from_secs(90);
const JOIN_POLL: Duration = Duration::from_millis(50);
/// The repository that is pushed to and pulled from.
pub(crate) const REPOSITORY: &str = "bench/blob";

/// A daemon; killed when dropped.
pub(crate) struct Daemon {
    pub(crate) namespace: String,
    pub(crate) ready: Ready,
    child: Child,
}

impl Daemon {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The daemon's metrics now, as it gives them.
    pub(crate) fn metrics_text(&self) -> Result<String> {
        let ops = self.ready.ops.context("no ops API")?;
        lab::inside(&self.namespace, || {
            block_on(async {
                let answer = http::get(ops, "/metrics").await?.expect(::http::StatusCode::OK).await?;
                answer.text().await
            })
        })
    }

    /// The daemon's metrics now.
    pub(crate) fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics::parse(&self.metrics_text()?))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself; then the run has failed anyhow.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts daemons of one mesh.
pub(crate) struct Builder<'a> {
    pub(crate) program: &'a Path,
    pub(crate) dir: &'a Path,
    pub(crate) flags: &'a [String],
}

/// What a daemon is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Bootstrap,
    Origin,
    Gateway,
}

impl Builder<'_> {
    /// Makes the mesh's keys.
    pub(crate) fn init(&self) -> Result<()> {
        self.run(&contract::mesh_init(&self.dir.join("mesh").to_string_lossy()))
    }

    /// Starts a gateway on a host where another daemon runs already: on ports of its own.
    pub(crate) fn start_beside(&self, name: &str, host: &Host, door: &str) -> Result<Daemon> {
        self.launch(name, Kind::Gateway, host, Some(door), BESIDE)
    }

    fn run(&self, words: &[String]) -> Result<()> {
        let output = Command::new(self.program).args(words).output()?;
        ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Starts a daemon on a host and waits for its ready line.
    pub(crate) fn start(&self, name: &str, kind: Kind, host: &Host, door: Option<&str>) -> Result<Daemon> {
        self.launch(name, kind, host, door, 0)
    }

    fn launch(
        &self,
        name: &str,
        kind: Kind,
        host: &Host,
        door: Option<&str>,
        port_offset: u16,
    ) -> Result<Daemon> {
        let (subcommand, roles) = match kind {
            Kind::Bootstrap => ("bootstrap", "bootstrap"),
            Kind::Origin => ("node", "node,origin"),
            Kind::Gateway => ("gateway", "node,gateway"),
        };
        let path = |part: &str| self.dir.join(part).join(name);
        let key = self.dir.join("mesh/mesh.key").to_string_lossy().into_owned();
        let (zone, identity) = (format!("zone{}", host.zone), path("identity"));
        self.run(&contract::credential_issue(&key, roles, &zone, &identity.to_string_lossy()))?;
        let mut command = lab::command_in(&host.namespace, self.program);
        command.arg(subcommand).arg("--data-dir").arg(path("data")).arg("--identity").arg(&identity);
        command.arg("--mesh-pub").arg(self.dir.join("mesh/mesh.pub"));
        let local = |port: u16| format!("127.0.0.1:{}", port + port_offset);
        let listen = format!("/ip4/{}/tcp/{}", host.address, CONTROL_PORT + port_offset);
        command.args(["--listen", &listen, "--ops", &local(OPS_PORT)]);
        command.args(door.into_iter().flat_map(|door| ["--bootstrap", door]));
        if kind != Kind::Bootstrap {
            command
                .args(["--data-listen", &format!("{}:{}", host.address, DATA_PORT + port_offset)])
                .args(self.flags);
        }
        match kind {
            Kind::Bootstrap => {}
            Kind::Gateway => drop(command.args(["--gateway", &local(GATEWAY_PORT)])),
            Kind::Origin => {
                let backend = path("backend");
                std::fs::create_dir_all(&backend)?;
                command.arg("--origin").arg("--backend").arg(format!("fs:{}", backend.display()));
            }
        }
        spawn(name, &host.namespace, command, &self.dir.join(format!("{name}.log")))
    }
}

fn spawn(name: &str, namespace: &str, mut command: Command, log: &Path) -> Result<Daemon> {
    let mut child = command.stdout(Stdio::piped()).stderr(File::create(log)?).spawn()?;
    let stdout = child.stdout.take().context("no standard output")?;
    let mut lines = BufReader::new(stdout).lines();
    let ready = loop {
        match lines.next() {
            Some(line) => {
                if let Some(ready) = Ready::parse(&line?)? {
                    break ready;
                }
            }
            None => {
                let _ = child.kill();
                bail!("{name} did not start:\n{}", shoal_tests::system::tail(log, 20));
            }
        }
    };
    Ok(Daemon { namespace: namespace.to_owned(), ready, child })
}

/// Waits until every gateway knows `origins` origins.
pub(crate) fn wait_joined(gateways: &[Daemon], origins: usize) -> Result<()> {
    let start = Instant::now();
    for gateway in gateways {
        loop {
            let known = gateway.metrics()?.sum(contract::metric::ORIGINS);
            if known >= origins as f64 {
                break;
            }
            ensure!(
                start.elapsed() < JOIN_MAX,
                "{} knows {known} origins after {JOIN_MAX:?}",
                gateway.namespace
            );
            std::thread::sleep(JOIN_POLL);
        }
    }
    Ok(())
}

/// Pushes `bytes` as a blob through a gateway, as a client would, and returns its digest.
pub(crate) fn push(namespace: &str, gateway: SocketAddr, bytes: Bytes) -> Result<String> {
    let blob = Blob::new("application/octet-stream", bytes);
    lab::inside(namespace, || block_on(Registry::new(gateway, REPOSITORY).push_blob(&blob)))?;
    Ok(blob.digest)
}

pub(crate) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// The program to measure.
pub(crate) fn program(given: Option<&PathBuf>) -> Result<PathBuf> {
    match given {
        Some(path) => Ok(path.clone()),
        None => shoal_tests::process::beside(&std::env::current_exe()?),
    }
}
