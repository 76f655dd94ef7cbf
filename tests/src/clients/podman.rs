//! podman and buildah, which share a storage layout and its settings.

use std::path::{Path, PathBuf};

use anyhow::Result;
use tokio::process::Command;

use crate::system;

/// Where one of them keeps its things.
#[derive(Clone, Debug)]
struct Storage {
    dir: PathBuf,
}

impl Storage {
    fn new(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir.join("tmp"))?;
        // Without lower limits containers do not start where the machine's own are low; crun refuses cgroup v1 hybrids.
        let conf = r#"[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
"#;
        std::fs::write(dir.join("containers.conf"), conf)?;
        std::fs::write(dir.join("registries.conf"), "unqualified-search-registries = []\n")?;
        // podman fails when the file that it is told of is not there.
        std::fs::write(dir.join("auth.json"), "{}")?;
        std::fs::write(dir.join("policy.json"), r#"{"default": [{"type": "insecureAcceptAnything"}]}"#)?;
        Ok(Self { dir: dir.to_owned() })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("CONTAINERS_CONF", self.dir.join("containers.conf"))
            .env("CONTAINERS_REGISTRIES_CONF", self.dir.join("registries.conf"))
            .env("TMPDIR", self.dir.join("tmp"))
            .env("REGISTRY_AUTH_FILE", self.dir.join("auth.json"))
            .arg("--root")
            .arg(self.dir.join("root"))
            .arg("--runroot")
            .arg(self.dir.join("run"))
            .args(["--storage-driver", "overlay"]);
        command
    }

    fn policy(&self) -> String {
        format!("--signature-policy={}", self.dir.join("policy.json").display())
    }
}

/// podman with a storage of its own.
#[derive(Debug)]
pub struct Podman {
    storage: Storage,
}

impl Podman {
    /// Keeps everything below `dir`.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn new(dir: &Path) -> Result<Self> {
        Ok(Self { storage: Storage::new(dir)? })
    }

    fn command(&self) -> Command {
        let mut command = self.storage.command("podman");
        command.arg("--tmpdir").arg(self.storage.dir.join("libpod"));
        command
    }

    /// Logs in, as `podman login` does.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn login(&self, registry: &str, user: &str, password: &str) -> Result<()> {
        let login = ["login", "--tls-verify=false", "--username", user, "--password", password, registry];
        system::run(self.command().args(login)).await?;
        Ok(())
    }

    /// Loads an archive that names `reference` and pushes it there.
    ///
    /// # Errors
    /// When `podman` fails.
    pub async fn push(&self, archive: &Path, reference: &str) -> Result<()> {
        let policy = self.storage.policy();
        system::run(self.command().args(["load", "--quiet", &policy, "--input"]).arg(archive)).await?;
        system::run(self.command().args(["push", "--quiet", "--tls-verify=false", &policy, reference]))
            .await?;
        self.forget().await
    }

    /// Pulls an image.
    ///
    /// # Errors
    /// When `podman` fails.
    pub async fn pull(&self, reference: &str) -> Result<()> {
        let policy = self.storage.policy();
        system::run(self.command().args(["pull", "--quiet", "--tls-verify=false", &policy, reference]))
            .await?;
        Ok(())
    }

    /// Runs a pulled image; gives what it prints.
    ///
    /// # Errors
    /// When `podman` or the container fails.
    pub async fn run(&self, reference: &str) -> Result<String> {
        system::run(self.command().args(["run", "--rm", "--network=none", "--pull=never", reference])).await
    }

    /// Removes every image.
    ///
    /// # Errors
    /// When `podman` fails.
    pub async fn forget(&self) -> Result<()> {
        system::run(self.command().args(["rmi", "--all", "--force"])).await?;
        Ok(())
    }

    /// Takes down what it keeps mounted.
    ///
    /// # Errors
    /// When it cannot be listed.
    pub async fn stop(self) -> Result<()> {
        system::unmount_below(&self.storage.dir).await
    }
}

/// buildah with a storage of its own.
#[derive(Debug)]
pub struct Buildah {
    storage: Storage,
}

impl Buildah {
    /// Keeps everything below `dir`.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn new(dir: &Path) -> Result<Self> {
        Ok(Self { storage: Storage::new(dir)? })
    }

    /// Runs `buildah` with these arguments; gives what it prints, without the line's end.
    ///
    /// # Errors
    /// When it fails.
    pub async fn run(&self, args: &[&str]) -> Result<String> {
        let output = system::run(self.storage.command("buildah").args(args)).await?;
        Ok(output.trim_end().to_owned())
    }

    /// Builds an image from nothing but one file, under a name of its own.
    ///
    /// # Errors
    /// When `buildah` fails.
    pub async fn build(&self, name: &str, file: &Path, as_path: &str) -> Result<()> {
        let container = self.run(&["from", "scratch"]).await?;
        self.run(&["copy", "--quiet", &container, &file.to_string_lossy(), as_path]).await?;
        self.run(&["config", "--created-by", "shoal-tests", &container]).await?;
        let policy = self.storage.policy();
        self.run(&["commit", "--quiet", "--rm", &policy, &container, name]).await?;
        Ok(())
    }

    /// Pushes an image of its storage.
    ///
    /// # Errors
    /// When `buildah` fails.
    pub async fn push(&self, name: &str, reference: &str) -> Result<()> {
        let policy = self.storage.policy();
        let to = format!("docker://{reference}");
        self.run(&["push", "--quiet", "--tls-verify=false", &policy, name, &to]).await?;
        Ok(())
    }

    /// Pulls an image.
    ///
    /// # Errors
    /// When `buildah` fails.
    pub async fn pull(&self, reference: &str) -> Result<()> {
        let policy = self.storage.policy();
        self.run(&["pull", "--quiet", "--tls-verify=false", &policy, reference]).await?;
        Ok(())
    }

    /// Reads a file of a pulled image, by mounting it.
    ///
    /// # Errors
    /// When `buildah` fails or the file is not there.
    pub async fn read(&self, reference: &str, path: &str) -> Result<Vec<u8>> {
        let container = self.run(&["from", "--pull-never", &self.storage.policy(), reference]).await?;
        let root = self.run(&["mount", &container]).await?;
        let content = std::fs::read(Path::new(&root).join(path.trim_start_matches('/')))?;
        self.run(&["rm", &container]).await?;
        Ok(content)
    }

    /// Removes every image.
    ///
    /// # Errors
    /// When `buildah` fails.
    pub async fn forget(&self) -> Result<()> {
        self.run(&["rmi", "--all", "--force"]).await?;
        Ok(())
    }

    /// Takes down what it keeps mounted.
    ///
    /// # Errors
    /// When it cannot be listed.
    pub async fn stop(self) -> Result<()> {
        system::unmount_below(&self.storage.dir).await
    }
}
