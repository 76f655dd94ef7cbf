//! Drivers of real container clients. Each has its own directories and touches nothing of the machine's own.

mod containerd;
mod docker;
mod podman;
mod skopeo;

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tokio::process::{Child, Command};

pub use containerd::Containerd;
pub use docker::Docker;
pub use podman::{Buildah, Podman};
pub use skopeo::Skopeo;

use crate::system;

const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// How long an engine may take until it answers.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A container engine's daemon.
#[derive(Debug)]
struct Engine {
    name: &'static str,
    child: Child,
    pid: u32,
    log: PathBuf,
}

impl Engine {
    fn spawn(name: &'static str, command: &mut Command, dir: &Path) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let out = OpenOptions::new().create(true).append(true).open(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{name} is missing: run scripts/setup.sh"))?;
        let pid = child.id().context("a process without an id")?;
        Ok(Self { name, child, pid, log })
    }

    fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended ({status}):\n{}", self.name, system::tail(&self.log, 40));
        }
        Ok(())
    }

    async fn stop(mut self) -> Result<()> {
        self.check()?;
        system::signal(self.pid, Signal::TERM)?;
        match tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await {
            Ok(_status) => Ok(()),
            Err(_) => bail!("{} did not end:\n{}", self.name, system::tail(&self.log, 40)),
        }
    }
}
