//! skopeo, which copies images between registries, directories and archives.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use crate::image::digest_of;
use crate::system;

/// skopeo with a scratch directory of its own.
#[derive(Debug)]
pub struct Skopeo {
    dir: PathBuf,
}

impl Skopeo {
    /// Keeps everything below `dir`.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn new(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir.join("tmp"))?;
        std::fs::write(dir.join("auth.json"), "{}")?;
        Ok(Self { dir: dir.to_owned() })
    }

    fn command(&self) -> Command {
        let mut command = Command::new("skopeo");
        command.env("TMPDIR", self.dir.join("tmp"));
        command.env("REGISTRY_AUTH_FILE", self.dir.join("auth.json")).arg("--insecure-policy");
        command
    }

    /// Logs in, as `skopeo login` does.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn login(&self, registry: &str, user: &str, password: &str) -> Result<()> {
        let login = ["login", "--tls-verify=false", "--username", user, "--password", password, registry];
        system::run(self.command().args(login)).await?;
        Ok(())
    }

    /// Copies with further options.
    ///
    /// # Errors
    /// When `skopeo` fails.
    pub async fn copy(&self, options: &[&str], from: &str, to: &str) -> Result<()> {
        let tls = ["--src-tls-verify=false", "--dest-tls-verify=false"];
        system::run(self.command().args(["copy", "--quiet"]).args(tls).args(options).args([from, to]))
            .await?;
        Ok(())
    }

    /// Copies out of a registry into a new directory and checks each file in it against the digest it is named by;
    /// gives the directory.
    ///
    /// # Errors
    /// When `skopeo` fails or a file is not what its name says.
    pub async fn pull_to_dir(&self, options: &[&str], reference: &str, name: &str) -> Result<PathBuf> {
        let to = self.dir.join(name);
        self.copy(options, &format!("docker://{reference}"), &format!("dir:{}", to.display())).await?;
        let mut checked = 0;
        for (path, _) in system::files_below(&to) {
            let hex = path.file_name().and_then(|name| name.to_str()).context("a name that is no text")?;
            if hex.len() == 64 {
                let digest = digest_of(&std::fs::read(&path)?);
                ensure!(digest == format!("sha256:{hex}"), "{} is {digest}", path.display());
                checked += 1;
            }
        }
        ensure!(checked > 0, "nothing in {}", to.display());
        Ok(to)
    }

    /// The manifest as it is.
    ///
    /// # Errors
    /// When `skopeo` fails.
    pub async fn inspect_raw(&self, reference: &str) -> Result<String> {
        let from = format!("docker://{reference}");
        system::run(self.command().args(["inspect", "--tls-verify=false", "--raw", &from])).await
    }

    /// The tags of a repository, sorted.
    ///
    /// # Errors
    /// When `skopeo` fails.
    pub async fn list_tags(&self, repository: &str) -> Result<Vec<String>> {
        let from = format!("docker://{repository}");
        let text = system::run(self.command().args(["list-tags", "--tls-verify=false", &from])).await?;
        let answer: serde_json::Value = serde_json::from_str(&text)?;
        let tags = answer["Tags"].as_array().context("no Tags")?;
        let mut tags: Vec<_> = tags.iter().filter_map(|tag| tag.as_str().map(str::to_owned)).collect();
        tags.sort();
        Ok(tags)
    }
}
