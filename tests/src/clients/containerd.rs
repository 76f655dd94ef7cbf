//! containerd, by `ctr`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use tokio::process::Command;

use super::{Engine, START_TIMEOUT};
use crate::system;
use crate::wait::wait_until;

/// Times a container is run until it has printed something.
const RUNS_MAX: u32 = 5;

/// A containerd of the test's own.
#[derive(Debug)]
pub struct Containerd {
    engine: Engine,
    dir: PathBuf,
}

impl Containerd {
    /// Starts one below `dir`.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let config = dir.join("config.toml");
        std::fs::write(&config, Self::config(dir, false))?;
        Self::start_with(dir, &config).await
    }

    /// The configuration of one below `dir`, with the plugin that the kubelet talks to or without.
    pub fn config(dir: &Path, cri: bool) -> String {
        let at = dir.display();
        let disabled = if cri { "" } else { r#""io.containerd.grpc.v1.cri""# };
        // Isolated: with content shared between namespaces every pull after the first would ask for nothing.
        format!(
            r#"version = 2
root = "{at}/root"
state = "{at}/state"
disabled_plugins = [{disabled}]
[grpc]
address = "{at}/containerd.sock"
[ttrpc]
address = "{at}/containerd.sock.ttrpc"
[plugins."io.containerd.metadata.v1.bolt"]
content_sharing_policy = "isolated"
[plugins."io.containerd.internal.v1.opt"]
path = "{at}/opt"
"#
        )
    }

    /// Starts one below `dir` with a configuration of that kind.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_with(dir: &Path, config: &Path) -> Result<Self> {
        let mut command = Command::new("containerd");
        command.arg("--config").arg(config);
        let engine = Engine::spawn("containerd", &mut command, dir)?;
        let mut containerd = Self { engine, dir: dir.to_owned() };
        wait_until("containerd answers", START_TIMEOUT, async || {
            system::run(containerd.command("ready").arg("version")).await.map(Some)
        })
        .await
        .or_else(|error| containerd.engine.check().and(Err(error)))?;
        Ok(containerd)
    }

    /// Where clients reach it.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    /// Writes a `hosts.toml` that sends what is asked of `registry` to a gateway.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn send_to(&self, registry: &str, gateway: SocketAddr) -> Result<()> {
        let dir = self.dir.join("hosts").join(registry);
        std::fs::create_dir_all(&dir)?;
        let hosts = format!(
            "server = \"http://{gateway}\"\n[host.\"http://{gateway}\"]\ncapabilities = [\"pull\", \"resolve\", \"push\"]\n"
        );
        std::fs::write(dir.join("hosts.toml"), hosts)?;
        Ok(())
    }

    /// Loads an archive that names `reference` and pushes it there.
    ///
    /// # Errors
    /// When `ctr` fails.
    pub async fn push(&self, namespace: &str, archive: &Path, reference: &str) -> Result<()> {
        system::run(self.command(namespace).args(["images", "import"]).arg(archive)).await?;
        let hosts = self.dir.join("hosts");
        system::run(
            self.command(namespace).args(["images", "push", "--hosts-dir"]).arg(hosts).arg(reference),
        )
        .await?;
        Ok(())
    }

    /// Pulls and unpacks an image.
    ///
    /// # Errors
    /// When `ctr` fails.
    pub async fn pull(&self, namespace: &str, reference: &str) -> Result<()> {
        self.pull_by(&self.dir.join("hosts"), namespace, reference).await
    }

    /// Pulls and unpacks an image with the hosts.toml files of a directory.
    ///
    /// # Errors
    /// When `ctr` fails.
    pub async fn pull_by(&self, hosts: &Path, namespace: &str, reference: &str) -> Result<()> {
        system::run(
            self.command(namespace).args(["images", "pull", "--hosts-dir"]).arg(hosts).arg(reference),
        )
        .await?;
        Ok(())
    }

    /// Pulls an image as the kubelet does, by the CRI plugin and what its own configuration says of registries.
    ///
    /// # Errors
    /// When the plugin refuses, with what it says.
    pub async fn pull_by_cri(&self, reference: &str) -> Result<()> {
        // PullImageRequest{image: ImageSpec{image: reference}} of the CRI's api.proto, as a gRPC message.
        let field =
            |body: &[u8]| -> Result<Vec<u8>> { Ok([&[0x0a, u8::try_from(body.len())?], body].concat()) };
        let message = field(&field(reference.as_bytes())?)?;
        let length = u32::try_from(message.len())?.to_be_bytes();
        let body = self.dir.join("cri-request");
        std::fs::write(&body, [&[0][..], &length, &message].concat())?;
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--http2-prior-knowledge",
            "--max-time",
            "120",
            "--unix-socket",
        ]);
        curl.arg(self.socket()).args([
            "--header",
            "content-type: application/grpc",
            "--header",
            "te: trailers",
        ]);
        curl.arg("--data-binary").arg(format!("@{}", body.display()));
        curl.args(["--dump-header", "-", "--output"]).arg(self.dir.join("cri-answer"));
        let said = system::run(curl.arg("http://localhost/runtime.v1.ImageService/PullImage")).await?;
        ensure!(
            said.lines().any(|line| line.trim() == "grpc-status: 0"),
            "CRI did not pull {reference}: {said}"
        );
        Ok(())
    }

    /// Runs a pulled image; gives what it prints.
    ///
    /// # Errors
    /// When `ctr` or the container fails.
    pub async fn run(&self, namespace: &str, reference: &str, id: &str) -> Result<String> {
        // `ctr` sometimes ends before it has copied what a container printed that ended at once: one run in ten on a busy
        // machine. Images here always print something.
        for attempt in 0..RUNS_MAX {
            let id = format!("{id}-{attempt}");
            let printed = system::run(self.command(namespace).args(["run", "--rm", reference, &id])).await?;
            if !printed.is_empty() {
                return Ok(printed);
            }
        }
        anyhow::bail!("{reference} printed nothing in {RUNS_MAX} runs")
    }

    fn command(&self, namespace: &str) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.socket()).args(["--namespace", namespace]);
        command
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop(self) -> Result<()> {
        self.engine.stop().await?;
        system::unmount_below(&self.dir).await
    }
}
