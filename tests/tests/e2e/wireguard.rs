//! Three clouds that reach each other by WireGuard alone: the example of `deploy/wireguard`, as it stands there.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shoal_tests::clouds::Clouds;
use shoal_tests::process::run_program;
use shoal_tests::wait::{PATIENCE, wait_until};
use shoal_tests::{ImageBuilder, contract, system};

const CLOUDS: [&str; 3] = ["aws-eu", "gcp-us", "onprem"];
/// Each part with its command, its roles, and the ops listener that its file names.
const PARTS: [(&str, &str, &str, &str); 3] = [
    ("bootstrap", "bootstrap", "bootstrap", "127.0.0.1:7070"),
    ("origin", "node", "node,origin", "127.0.0.1:7071"),
    ("gateway", "gateway", "node,gateway", "127.0.0.1:7072"),
];
const GATEWAY_OPS: &str = PARTS[2].3;

struct Example {
    root: PathBuf,
    examples: PathBuf,
}

impl Example {
    async fn start_parts(&self, clouds: &mut Clouds) -> Result<()> {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        run_program(&contract::mesh_init(&text(self.root.join("mesh")))).await?;
        let (key, public) = (text(self.root.join("mesh/mesh.key")), text(self.root.join("mesh/mesh.pub")));
        for cloud in CLOUDS {
            for (part, command, roles, _) in PARTS {
                let home = self.root.join(cloud).join(part);
                let identity = text(home.join("identity"));
                run_program(&contract::credential_issue(&key, roles, cloud, &identity)).await?;
                let (config, data) =
                    (text(self.examples.join(cloud).join(format!("{part}.toml"))), text(home));
                let mut args = vec![command, "--config", &config, "--data-dir", &data];
                args.extend(["--identity", &identity, "--mesh-pub", &public]);
                // The example's is a directory of the machine's own.
                let backend = format!("fs:{data}/blobs");
                if part == "origin" {
                    args.extend(["--backend", &backend]);
                }
                clouds.spawn(cloud, part, &args).await?;
            }
        }
        Ok(())
    }
}

async fn wait_until_joined(clouds: &Clouds, cloud: &str) -> Result<()> {
    wait_until(&format!("the gateway of {cloud} knows the origins"), PATIENCE, async || {
        let status: Value =
            serde_json::from_str(&clouds.run(cloud, &["status", "--json", "--ops", GATEWAY_OPS]).await?)?;
        let origins = status["origins"].as_array().map_or(0, Vec::len);
        ensure!(origins == 3, "it knows {origins} origins");
        Ok(Some(()))
    })
    .await
}

fn blobs_of(dir: &Path) -> Vec<(String, u64)> {
    let files = system::files_below(dir);
    let mut blobs: Vec<_> = files
        .into_iter()
        .map(|(path, size)| (path.file_name().unwrap_or_default().to_string_lossy().into_owned(), size))
        .filter(|(name, _)| name != "version")
        .collect();
    blobs.sort();
    blobs
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_clouds_are_one_mesh() -> Result<()> {
    let dir = tempfile::Builder::new().prefix("shoal-clouds-").tempdir()?;
    let examples = system::project("deploy/wireguard");
    let mut clouds = Clouds::start(dir.path(), &examples, &CLOUDS).await?;
    let example = Example { root: dir.path().to_owned(), examples };
    example.start_parts(&mut clouds).await?;
    for cloud in CLOUDS {
        wait_until_joined(&clouds, cloud).await?;
    }

    // Pushed in one cloud, pulled in the others.
    let image = ImageBuilder::new(530).payload(12_000_000).build()?;
    let archive = dir.path().join("image.tar");
    image.save_docker_archive(&archive, "app:1")?;
    let copy = ["--insecure-policy", "copy", "--quiet", "--format", "oci"];
    let from = format!("docker-archive:{}", archive.display());
    let mut push = clouds.command("aws-eu", "skopeo")?;
    push.args(copy).args(["--dest-tls-verify=false", &from, "docker://127.0.0.1:5000/app:1"]);
    system::run(&mut push).await?;
    let mut pulled = Vec::new();
    for cloud in CLOUDS {
        let to = dir.path().join(format!("pulled-{cloud}"));
        let mut pull = clouds.command(cloud, "skopeo")?;
        pull.args(["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]);
        pull.arg("docker://127.0.0.1:5000/app:1").arg(format!("dir:{}", to.display()));
        system::run(&mut pull).await.with_context(|| format!("pulling in {cloud}"))?;
        pulled.push(blobs_of(&to));
    }
    ensure!(pulled.iter().all(|blobs| *blobs == pulled[0] && blobs.len() >= 3), "{pulled:?}");

    // Where the bytes came from, and who is where.
    let pulls = clouds.run("onprem", &["pulls", "--ops", GATEWAY_OPS]).await?;
    ensure!(pulls.contains("zone "), "{pulls}");
    for cloud in CLOUDS {
        let status = clouds.run(cloud, &["status", "--ops", GATEWAY_OPS]).await?;
        for zone in CLOUDS {
            ensure!(
                status.lines().any(|line| line.starts_with("zone ") && line.contains(zone)),
                "{cloud} does not show {zone}: {status}"
            );
        }
        let said = clouds.run(cloud, &["doctor", "--json", "--ops", GATEWAY_OPS]).await?;
        let said: Value = serde_json::from_str(&said)?;
        let findings = said["findings"].as_array().context("no findings")?;
        let of = |check: &str| findings.iter().find(|finding| finding["check"] == check);
        for check in ["dht", "reachable", "data-plane", "clock", "bootstrap"] {
            ensure!(
                of(check).is_some_and(|finding| finding["verdict"] == "ok"),
                "{check} in {cloud}: {said}"
            );
        }
    }
    clouds.finish().await
}
