//! `shoal doctor`: says that a sound mesh is sound, and of each thing that is broken what it is and what to do.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shoal_tests::process::program;
use shoal_tests::wait::{PATIENCE, wait_until};
use shoal_tests::{Mesh, NodeSpec, ports, system};
use tokio::process::Command;

/// What it says, and whether it is content.
struct Said {
    content: bool,
    findings: Vec<Value>,
}

impl Said {
    /// The worst finding of a check.
    fn of(&self, check: &str) -> Result<&Value> {
        let rank =
            |finding: &&Value| ["skip", "ok", "warn", "fail"].iter().position(|v| finding["verdict"] == *v);
        let found = self.findings.iter().filter(|finding| finding["check"] == check).max_by_key(rank);
        found.with_context(|| format!("no {check} in {:?}", self.findings))
    }

    fn expect(&self, check: &str, verdict: &str, detail: &str) -> Result<()> {
        let finding = self.of(check)?;
        ensure!(
            finding["verdict"] == verdict
                && finding["detail"].as_str().is_some_and(|text| text.contains(detail)),
            "{check} should be {verdict} and say {detail:?}: {finding}"
        );
        let remedy = finding["remedy"].as_str();
        ensure!(remedy.is_some() == (verdict == "warn" || verdict == "fail"), "remedy of {finding}");
        Ok(())
    }
}

/// Runs it against no engine's configuration but those in `engines`.
async fn doctor(engines: &Path, args: &[&str]) -> Result<Said> {
    let mut command = Command::new(program()?);
    command.args(["doctor", "--json", "--containerd-config"]).arg(engines.join("config.toml"));
    command.arg("--docker-config").arg(engines.join("daemon.json")).args(args);
    let output = command.output().await?;
    let text = String::from_utf8_lossy(&output.stdout);
    let answer: Value = serde_json::from_str(&text)
        .with_context(|| format!("{text}{}", String::from_utf8_lossy(&output.stderr)))?;
    let findings = answer["findings"].as_array().context("no findings")?.clone();
    Ok(Said { content: output.status.success(), findings })
}

/// Runs it until it says what it should: members hear of each other one after the other.
async fn eventually(engines: &Path, ops: &str, right: impl Fn(&Said) -> Result<()>) -> Result<Said> {
    wait_until("the doctor says what it should", PATIENCE * 2, async || {
        let said = doctor(engines, &["--ops", ops]).await?;
        right(&said)?;
        Ok(Some(said))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sound_mesh_is_sound() -> Result<()> {
    let mesh = Mesh::with_gateways(2).start().await?;
    let engines = mesh.scratch("engines")?;
    for (node, more) in [("g0", "gateway"), ("o0", "backend")] {
        let ops = mesh.node(node)?.ops()?.to_string();
        eventually(&engines, &ops, |said| {
            ensure!(said.content, "{node}: {:?}", said.findings);
            let all = [
                "daemon",
                "credential",
                "clock",
                "bootstrap",
                "origins",
                "dht",
                "data-plane",
                "reachable",
                more,
            ];
            all.into_iter().try_for_each(|check| said.expect(check, "ok", ""))
        })
        .await?;
        // What it tried out is gone.
        let left: Vec<_> = system::files_below(mesh.node(node)?.data_dir())
            .into_iter()
            .filter(|(path, _)| {
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("doctor-"))
            })
            .collect();
        ensure!(left.is_empty(), "{left:?}");
    }
    let blobs = system::files_below(&mesh.scratch("backend")?.join("o0/blobs"));
    ensure!(blobs.is_empty(), "the backend keeps {blobs:?}");

    // A backend whose directory goes away under it, as a mount may.
    let backend = mesh.scratch("backend")?.join("o0");
    std::fs::rename(&backend, backend.with_extension("gone"))?;
    let ops = mesh.node("o0")?.ops()?.to_string();
    let said = doctor(&engines, &["--ops", &ops]).await?;
    ensure!(!said.content, "it is content without a backend");
    said.expect("backend", "fail", "")?;
    std::fs::rename(backend.with_extension("gone"), &backend)?;
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_members_are_found() -> Result<()> {
    let closed = ports::reserve()?;
    let mut mesh = Mesh::with_gateways(1)
        // Announces a port at which nobody listens.
        .node(NodeSpec::gateway("hidden").flag("--data-announce", &closed.to_string()))
        // Its second door is not there.
        .node(NodeSpec::gateway("lost").flag("--bootstrap", &format!("/ip4/127.0.0.1/tcp/{}", closed.port())))
        .start()
        .await?;
    let engines = mesh.scratch("engines")?;
    let ops = |mesh: &Mesh, name: &str| anyhow::Ok(mesh.node(name)?.ops()?.to_string());

    let said = eventually(&engines, &ops(&mesh, "hidden")?, |said| {
        said.expect("reachable", "fail", &closed.to_string())?;
        said.expect("dht", "ok", "")
    })
    .await?;
    ensure!(!said.content, "nobody can dial it");

    let said = doctor(&engines, &["--ops", &ops(&mesh, "lost")?]).await?;
    said.expect("bootstrap", "warn", &closed.port().to_string())?;

    // Without its origin, and then without anybody.
    mesh.kill("o0").await?;
    mesh.kill("b0").await?;
    let seen = eventually(&engines, &ops(&mesh, "g0")?, |said| said.expect("origins", "fail", "")).await?;
    ensure!(!seen.content, "{:?}", seen.findings);
    seen.expect("bootstrap", "warn", "cannot be reached")?;
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_clock_is_found() -> Result<()> {
    let libraries = [
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
        "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    ];
    let library = libraries.into_iter().find(|path| Path::new(path).exists());
    let library = library.context("libfaketime is missing: run scripts/setup.sh")?;
    let clock = [
        ("LD_PRELOAD", library),
        ("FAKETIME", "+90s"),
        ("DONT_FAKE_MONOTONIC", "1"),
        ("FAKETIME_NO_CACHE", "1"),
    ];
    let mesh = Mesh::with_gateways(2).node(NodeSpec::gateway("ahead").envs(&clock)).start().await?;
    let engines = mesh.scratch("engines")?;
    let ops = mesh.node("ahead")?.ops()?.to_string();
    let said = eventually(&engines, &ops, |said| said.expect("clock", "fail", "ahead")).await?;
    ensure!(!said.content, "it is content with its clock");
    let ops = mesh.node("g0")?.ops()?.to_string();
    eventually(&engines, &ops, |said| said.expect("clock", "ok", "")).await?;
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_does_not_run_is_examined_all_the_same() -> Result<()> {
    let dir = tempfile::Builder::new().prefix("shoal-doctor-").tempdir()?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let small = dir.path().join("small");
    let disk = system::SmallDisk::mount(&small, 16 << 20).await?;
    let config = dir.path().join("shoal.toml");
    let write = |more: &str| {
        let free = ports::reserve()?;
        let text = format!(
            "identity = \"{0}/identity\"\nmesh-pub = \"{0}/mesh.pub\"\ndata-dir = \"{1}\"\nops = \"{free}\"\n\
             data-listen = \"{address}\"\ngateway = \"127.0.0.1:0\"\nlisten = [\"/ip4/127.0.0.1/tcp/0\"]\n{more}",
            dir.path().display(),
            small.display()
        );
        anyhow::Ok(std::fs::write(&config, text)?)
    };
    write("")?;
    let config_text = config.display().to_string();
    let said = doctor(dir.path(), &["--config", &config_text]).await?;
    ensure!(!said.content, "{:?}", said.findings);
    said.expect("daemon", "fail", "no daemon answers")?;
    said.expect("credential", "fail", "mesh.pub")?;
    said.expect("ports", "fail", &address)?;
    said.expect("disk-space", "fail", "free")?;
    said.expect("containerd", "skip", "")?;
    write("replica = 3\n")?;
    doctor(dir.path(), &["--config", &config_text]).await?.expect("configuration", "fail", "replica")?;
    drop(disk);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engines_that_are_set_up_wrongly_are_found() -> Result<()> {
    let mesh = Mesh::with_gateways(1).start().await?;
    let engines = mesh.scratch("engines")?;
    let (ops, gateway) = (mesh.node("g0")?.ops()?.to_string(), mesh.node("g0")?.gateway()?.to_string());
    let closed = ports::reserve()?;
    let flags = ["--ops", &ops, "--gateway", &gateway];
    let certs = engines.join("certs.d/docker.io");
    std::fs::create_dir_all(&certs)?;
    let config = |path: &str| {
        format!("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"{path}\"\n")
    };
    let certs_dir = engines.join("certs.d").display().to_string();
    std::fs::write(engines.join("config.toml"), config(&certs_dir))?;
    doctor(&engines, &flags).await?.expect("containerd", "warn", "names")?;

    std::fs::write(certs.join("hosts.toml"), format!("[host.\"http://{gateway}\"]\n"))?;
    doctor(&engines, &flags).await?.expect("containerd", "ok", "answers")?;

    std::fs::write(certs.join("hosts.toml"), format!("[host.\"http://{closed}\"]\n"))?;
    std::fs::write(engines.join("daemon.json"), format!("{{\"registry-mirrors\": [\"http://{closed}\"]}}"))?;
    let said = doctor(&engines, &flags).await?;
    said.expect("containerd", "fail", &closed.to_string())?;
    said.expect("docker", "fail", &closed.to_string())?;

    std::fs::write(certs.join("hosts.toml"), "[host\n")?;
    std::fs::write(engines.join("daemon.json"), "{,}")?;
    let said = doctor(&engines, &flags).await?;
    said.expect("containerd", "fail", "hosts.toml")?;
    said.expect("docker", "fail", "daemon.json")?;
    ensure!(!said.content, "it is content with files that cannot be read");
    mesh.finish().await
}
