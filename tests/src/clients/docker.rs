//! Docker: a dockerd over a containerd of its own, without any network or with those of a namespace of its own.

use std::path::{Path, PathBuf};

use anyhow::Result;
use tokio::process::Command;

use super::{Containerd, Engine, START_TIMEOUT};
use crate::system::{self, Namespace};
use crate::wait::wait_until;

/// A dockerd of the test's own. It takes plain HTTP from 127.0.0.0/8 without being told to.
#[derive(Debug)]
pub struct Docker {
    engine: Engine,
    containerd: Containerd,
    dir: PathBuf,
}

impl Docker {
    /// Starts one below `dir`.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(dir: &Path) -> Result<Self> {
        Self::start_with(dir, "{}").await
    }

    /// The same with a `daemon.json`.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_with(dir: &Path, settings: &str) -> Result<Self> {
        Self::launch(dir, settings, None).await
    }

    /// The same inside of a network namespace, where it has bridges, names and published ports as on a machine.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_inside(dir: &Path, namespace: &Namespace) -> Result<Self> {
        Self::launch(dir, "{}", Some(namespace)).await
    }

    async fn launch(dir: &Path, settings: &str, namespace: Option<&Namespace>) -> Result<Self> {
        let containerd = Containerd::start(&dir.join("containerd")).await?;
        std::fs::create_dir_all(dir.join("config"))?;
        // Not the machine's own.
        let config = dir.join("daemon.json");
        std::fs::write(&config, settings)?;
        let mut command = match namespace {
            Some(namespace) => namespace.command("dockerd"),
            None => {
                let mut command = Command::new("dockerd");
                command.args(["--iptables=false", "--ip6tables=false", "--bridge=none"]);
                command
            }
        };
        command
            .arg("--config-file")
            .arg(config)
            .arg("--data-root")
            .arg(dir.join("data"))
            .arg("--exec-root")
            .arg(dir.join("exec"))
            .arg("--pidfile")
            .arg(dir.join("docker.pid"))
            .arg("--containerd")
            .arg(containerd.socket())
            .arg("--host")
            .arg(format!("unix://{}", dir.join("docker.sock").display()));
        let engine = Engine::spawn("dockerd", &mut command, dir)?;
        let mut docker = Self { engine, containerd, dir: dir.to_owned() };
        wait_until("dockerd answers", START_TIMEOUT, async || {
            docker.run_docker(&["version", "--format", "{{.Server.Version}}"]).await.map(Some)
        })
        .await
        .or_else(|error| docker.engine.check().and(Err(error)))?;
        Ok(docker)
    }

    /// Runs `docker` with these arguments; gives what it prints.
    ///
    /// # Errors
    /// When it fails.
    pub async fn run_docker(&self, args: &[&str]) -> Result<String> {
        system::run(self.client("docker").args(args)).await
    }

    /// A client of it, `docker` or another program that takes the same variables.
    pub fn client(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let host = format!("unix://{}", self.dir.join("docker.sock").display());
        let mut command = Command::new(program);
        command.env("DOCKER_HOST", host).env("DOCKER_CONFIG", self.dir.join("config"));
        command
    }

    /// Logs in, as `docker login` does.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn login(&self, registry: &str, user: &str, password: &str) -> Result<()> {
        self.run_docker(&["login", "--username", user, "--password", password, registry]).await?;
        Ok(())
    }

    /// Logs out.
    ///
    /// # Errors
    /// When `docker` fails.
    pub async fn logout(&self, registry: &str) -> Result<()> {
        self.run_docker(&["logout", registry]).await?;
        Ok(())
    }

    /// Loads an archive that names `reference` and pushes it there.
    ///
    /// # Errors
    /// When `docker` fails.
    pub async fn push(&self, archive: &Path, reference: &str) -> Result<()> {
        self.run_docker(&["load", "--quiet", "--input", &archive.to_string_lossy()]).await?;
        self.run_docker(&["push", "--quiet", reference]).await?;
        self.forget().await
    }

    /// Pulls an image.
    ///
    /// # Errors
    /// When `docker` fails.
    pub async fn pull(&self, reference: &str) -> Result<()> {
        self.run_docker(&["pull", "--quiet", reference]).await?;
        Ok(())
    }

    /// Runs a pulled image; gives what it prints.
    ///
    /// # Errors
    /// When `docker` or the container fails.
    pub async fn run(&self, reference: &str) -> Result<String> {
        self.run_docker(&["run", "--rm", "--network", "none", "--pull", "never", reference]).await
    }

    /// Removes every image, so that the next pull asks for every layer.
    ///
    /// # Errors
    /// When `docker` fails.
    pub async fn forget(&self) -> Result<()> {
        self.run_docker(&["image", "prune", "--all", "--force"]).await?;
        Ok(())
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop(self) -> Result<()> {
        self.engine.stop().await?;
        self.containerd.stop().await?;
        system::unmount_below(&self.dir).await
    }
}
