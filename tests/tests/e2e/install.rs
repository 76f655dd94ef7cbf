//! `shoal install` on real container engines and systemd: what it writes does what it should, and comes off again.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use shoal_tests::clients::{Containerd, Docker};
use shoal_tests::process::{program, run_program};
use shoal_tests::{ImageBuilder, Mesh, NodeSpec, Server, ports, system};
use tokio::process::Command;

use super::mirrors;

/// A directory that is taken down whatever happens.
pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(tempfile::Builder::new().prefix("shoal-install-").tempdir()?))
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        system::take_down(self.0.path());
    }
}

/// Runs `shoal install`, which remembers what it did in `state`.
async fn install(state: &Path, words: &[&str]) -> Result<String> {
    let mut all: Vec<String> = vec!["install".to_owned()];
    all.extend(words.iter().map(|word| (*word).to_owned()));
    all.extend(["--state-dir".to_owned(), state.display().to_string()]);
    run_program(&all).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containerd_is_installed_pulls_through_the_mesh_and_is_reverted() -> Result<()> {
    const REGISTRY: &str = "registry.shoal.test";
    let mesh = Mesh::with_gateways(2).start().await?;
    for (seed, name) in (510..).zip(["one", "two"]) {
        let image = ImageBuilder::new(seed).runnable().payload(3_000_000).build()?;
        mesh.registry("g0", name)?.push_image("1", &image).await?;
    }
    let scratch = Scratch::new()?;
    let (dir, config) = (scratch.join("containerd"), scratch.join("etc/config.toml"));
    let (certs, state) = (scratch.join("etc/certs.d"), scratch.join("state"));
    std::fs::create_dir_all(config.parent().unwrap())?;
    std::fs::create_dir_all(&dir)?;
    let theirs = format!("# the administrator's\n{}\n# and the end\n", Containerd::config(&dir, true));
    std::fs::write(&config, &theirs)?;
    let gateway = format!("http://{}", mesh.node("g1")?.gateway()?);
    let (config_text, certs_text) = (config.display().to_string(), certs.display().to_string());
    let words = [
        "containerd",
        "--registry",
        REGISTRY,
        "--gateway",
        &gateway,
        "--config",
        &config_text,
        "--certs-dir",
        &certs_text,
    ];

    let said = install(&state, &[&words[..], &["--dry-run"]].concat()).await?;
    ensure!(said.contains("would create") && said.contains("+ config_path = "), "{said}");
    ensure!(std::fs::read_to_string(&config)? == theirs && !certs.exists(), "a dry run changed something");

    let said = install(&state, &words).await?;
    ensure!(said.contains("systemctl restart containerd"), "{said}");
    let containerd = Containerd::start_with(&dir, &config).await?;
    containerd.pull_by(&certs, "shoal", &format!("{REGISTRY}/one:1")).await?;
    // The way of the kubelet, which finds the directory by the configuration.
    containerd.pull_by_cri(&format!("{REGISTRY}/two:1")).await?;
    containerd.stop().await?;
    let manifests = mesh.node("g1")?.count("shoal_pulls_total").await?;
    ensure!(manifests > 0.0, "the gateway that was installed saw no pull");

    install(&state, &["containerd", "--revert"]).await?;
    ensure!(std::fs::read_to_string(&config)? == theirs, "the configuration is not as it was");
    ensure!(!certs.exists() && !state.join("containerd.json").exists(), "something is left");
    let containerd = Containerd::start_with(&dir, &config).await?;
    let pulled = containerd.pull_by_cri(&format!("{REGISTRY}/one:1")).await;
    ensure!(pulled.is_err(), "a pull still goes through the mesh");
    containerd.stop().await?;
    ensure!(install(&state, &["containerd", "--revert"]).await.is_err(), "there was nothing to revert");
    mesh.finish().await
}

/// Nobody here reaches Docker Hub: what is pulled came through the mesh.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_of_docker_hub_come_through_the_mesh() -> Result<()> {
    let server = Server::registry(false).await;
    let image = ImageBuilder::new(515).runnable().payload(100_000).build()?;
    mirrors::upstream(&server, "library/tool").push_image("1", &image).await?;
    let hub = ports::reserve()?.to_string();
    let gateway = NodeSpec::gateway("hub").flag("--upstream", "docker.io").flag("--hub-mirror", &hub);
    let mesh =
        mirrors::mesh_of(&[("docker.io", mirrors::url(&server, ""))], 1, 0).node(gateway).start().await?;
    let gateway = mesh.node("hub")?.gateway()?.to_string();
    let scratch = Scratch::new()?;
    let state = scratch.join("state");

    let (dir, config, certs) =
        (scratch.join("containerd"), scratch.join("config.toml"), scratch.join("certs.d"));
    std::fs::create_dir_all(&dir)?;
    std::fs::write(&config, Containerd::config(&dir, true))?;
    let (config_text, certs_text) = (config.display().to_string(), certs.display().to_string());
    let words = ["containerd", "--gateway", &gateway, "--config", &config_text, "--certs-dir", &certs_text];
    install(&state, &words).await?;
    let containerd = Containerd::start_with(&dir, &config).await?;
    containerd.pull_by_cri("docker.io/library/tool:1").await?;
    containerd.stop().await?;

    let daemon = scratch.join("daemon.json");
    install(&state, &["docker", "--mirror", &hub, "--config", &daemon.display().to_string()]).await?;
    let docker = Docker::start_with(&scratch.join("docker"), &std::fs::read_to_string(&daemon)?).await?;
    docker.pull("tool:1").await?;
    let printed = docker.run("tool:1").await?;
    ensure!(printed == image.output, "it printed {printed:?}");
    docker.stop().await?;
    install(&state, &["docker", "--revert"]).await?;
    ensure!(!daemon.exists(), "daemon.json was not there before");
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_takes_what_is_installed() -> Result<()> {
    let scratch = Scratch::new()?;
    let (config, state) = (scratch.join("daemon.json"), scratch.join("state"));
    let theirs = "{\n  \"registry-mirrors\": [\"https://mirror.shoal.test\"],\n  \"debug\": true\n}\n";
    std::fs::write(&config, theirs)?;
    let config_text = config.display().to_string();
    install(&state, &["docker", "--mirror", "127.0.0.1:5001", "--config", &config_text]).await?;
    let docker = Docker::start_with(&scratch.join("docker"), &std::fs::read_to_string(&config)?).await?;
    let mirrors = docker.run_docker(&["info", "--format", "{{json .RegistryConfig.Mirrors}}"]).await?;
    docker.stop().await?;
    let wanted = "[\"http://127.0.0.1:5001/\",\"https://mirror.shoal.test/\"]";
    ensure!(mirrors.trim() == wanted, "dockerd has the mirrors {mirrors}");
    install(&state, &["docker", "--revert"]).await?;
    ensure!(std::fs::read_to_string(&config)? == theirs, "daemon.json is not as it was");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn podman_and_skopeo_take_what_is_installed() -> Result<()> {
    let mesh = Mesh::with_gateways(1).start().await?;
    let image = ImageBuilder::new(520).payload(1_000_000).build()?;
    mesh.registry("g0", "docker.io/library/thing")?.push_image("1", &image).await?;
    let scratch = Scratch::new()?;
    let (etc, state) = (scratch.join("containers"), scratch.join("state"));
    std::fs::create_dir_all(etc.join("registries.conf.d"))?;
    std::fs::write(etc.join("registries.conf"), "unqualified-search-registries = []\n")?;
    std::fs::write(etc.join("policy.json"), r#"{"default": [{"type": "insecureAcceptAnything"}]}"#)?;
    let gateway = mesh.node("g0")?.gateway()?.to_string();
    let config = etc.join("registries.conf").display().to_string();
    let words = ["podman", "--gateway", &gateway, "--config", &config];
    install(&state, &words).await?;

    // The engines' own directory, for one process.
    let inspect = async || {
        let script = format!(
            "mount --make-rprivate / && mkdir -p /etc/containers && mount --bind {} /etc/containers && exec skopeo \
             inspect --raw docker://docker.io/library/thing:1",
            etc.display()
        );
        system::run(Command::new("unshare").args(["--mount", "sh", "-c", &script])).await
    };
    let manifest = inspect().await?;
    ensure!(manifest.as_bytes() == &image.manifest.bytes[..], "another manifest: {manifest}");

    install(&state, &["crio", "--revert"]).await?;
    ensure!(inspect().await.is_err(), "it still goes through the mesh");
    // What others have said of a registry would be replaced as a whole: nothing is written.
    std::fs::write(
        etc.join("registries.conf.d/10-theirs.conf"),
        "[[registry]]\nprefix = \"docker.io\"\nlocation = \"docker.io\"\n",
    )?;
    let refused = install(&state, &words).await.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(refused.contains("10-theirs.conf") && refused.contains("[[registry.mirror]]"), "{refused}");
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn systemd_accepts_the_units() -> Result<()> {
    let scratch = Scratch::new()?;
    // A path that may stand in a unit, whatever the target directory is called.
    let copy = scratch.join("shoal");
    std::os::unix::fs::symlink(program()?, &copy)?;
    let (units, config) = (scratch.join("units"), scratch.join("shoal.toml"));
    for part in ["gateway", "origin", "bootstrap"] {
        let (units_text, config, copy) =
            (units.display().to_string(), config.display().to_string(), copy.display().to_string());
        let words =
            ["systemd", "--part", part, "--units", &units_text, "--config", &config, "--program", &copy];
        install(&scratch.join("state"), &words).await?;
        let unit = units.join(format!("shoal-{part}.service"));
        let mut verify = Command::new("systemd-analyze");
        let output = verify.args(["verify", "--man=no"]).arg(&unit).output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && !said.contains("shoal-"), "{said}");
        // 0 is perfect, 10 is none; an unhardened service has 9.6.
        let mut security = Command::new("systemd-analyze");
        security.args(["security", "--offline=true", "--threshold=15"]).arg(&unit);
        system::run(&mut security).await?;
        install(&scratch.join("state"), &["systemd", "--part", part, "--revert"]).await?;
        ensure!(!unit.exists(), "the unit of {part} is left");
    }
    Ok(())
}
