//! Configuration, the commands beside the daemons, and the mesh in one process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use http::StatusCode;
use rustix::process::Signal;
use shoal_tests::image::{digest_of, noise};
use shoal_tests::process::{Process, program, run_program};
use shoal_tests::wait::PATIENCE;
use shoal_tests::{ImageBuilder, Mesh, Registry, contract, http as client, ports, system, wait_until};
use tempfile::TempDir;
use tokio::process::Command;

use crate::MIB;

/// A directory with a mesh key, a node's identity, and arguments that make one start.
struct Alone {
    dir: TempDir,
}

impl Alone {
    async fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("shoal-config-").tempdir()?;
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        run_program(&contract::mesh_init(&path("mesh"))).await?;
        let issue = contract::credential_issue(&path("mesh/mesh.key"), "node", "home", &path("id"));
        run_program(&issue).await?;
        Ok(Self { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn args(&self, more: &[&str]) -> Vec<String> {
        let path = |name: &str| self.path(name).to_string_lossy().into_owned();
        let mut args = vec!["node".to_owned()];
        for (flag, value) in [
            ("--data-dir", path("data")),
            ("--identity", path("id")),
            ("--mesh-pub", path("mesh/mesh.pub")),
            ("--listen", "/ip4/127.0.0.1/tcp/0".to_owned()),
            ("--data-listen", "127.0.0.1:0".to_owned()),
        ] {
            args.extend([flag.to_owned(), value]);
        }
        args.extend(more.iter().map(|word| (*word).to_owned()));
        args
    }

    /// The ops address that a process ends up with.
    async fn ops_of(&self, args: &[&str], env: &[(&str, &str)]) -> Result<SocketAddr> {
        let env: Vec<_> = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let process = Process::start("alone", &self.args(args), &env, &self.path("log")).await?;
        let ops = process.ready.ops.context("no ops API")?;
        process.stop().await?;
        Ok(ops)
    }

    /// What a process that must not start says.
    async fn refusal(&self, args: Vec<String>) -> Result<String> {
        let mut command = Command::new(program()?);
        command.args(&args).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.output())
            .await
            .with_context(|| format!("{args:?}: it runs on with a bad config"))??;
        ensure!(!output.status.success(), "{args:?}: it exits with 0");
        Ok(String::from_utf8(output.stderr)?)
    }
}

#[tokio::test]
async fn flags_beat_variables_beat_the_file() -> Result<()> {
    let alone = Alone::new().await?;
    let [in_file, in_env, in_flag] = [ports::reserve()?, ports::reserve()?, ports::reserve()?];
    let file = alone.path("shoal.toml");
    std::fs::write(&file, format!("ops = \"{in_file}\"\n"))?;
    let config = ["--config", &file.to_string_lossy()];
    let env = in_env.to_string();
    let flag = in_flag.to_string();
    ensure!(alone.ops_of(&config, &[]).await? == in_file);
    ensure!(alone.ops_of(&config, &[("SHOAL_OPS", &env)]).await? == in_env);
    let both = [config[0], config[1], "--ops", &flag];
    ensure!(alone.ops_of(&both, &[("SHOAL_OPS", &env)]).await? == in_flag);
    // Port 0 is a free port, and the ready line says which.
    ensure!(alone.ops_of(&["--ops", "127.0.0.1:0"], &[]).await?.port() != 0);
    Ok(())
}

#[tokio::test]
async fn a_bad_config_is_one_clear_line() -> Result<()> {
    let alone = Alone::new().await?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = alone.path(name);
        std::fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    };
    let cases = [
        (alone.args(&["--config", &file("unknown.toml", "no-such-key = 1\n")?]), "no-such-key"),
        (alone.args(&["--config", &file("unit.toml", "rate-out = \"8 parsecs\"\n")?]), "rate-out"),
        (alone.args(&["--config", &file("syntax.toml", "zone = \n")?]), "syntax.toml"),
        (alone.args(&["--config", "/nowhere/shoal.toml"]), "/nowhere/shoal.toml"),
        (alone.args(&["--mesh-pub", "/nowhere/mesh.pub"]), "/nowhere/mesh.pub"),
        (alone.args(&["--ops", "not-an-address"]), "not-an-address"),
        (alone.args(&["--bootstrap", "/ip4/127.0.0.1/udp"]), "/ip4/127.0.0.1/udp"),
    ];
    for (args, named) in cases {
        // The last of a flag given twice counts, or it is an error: either way it must not start.
        let said = alone.refusal(args).await?;
        ensure!(said.contains(named), "it does not name {named}: {said}");
        ensure!(!said.contains("panicked"), "{said}");
        if !said.contains("--help") {
            ensure!(said.trim_end().lines().count() == 1, "more than one line: {said}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_taken_port_is_one_clear_line() -> Result<()> {
    let alone = Alone::new().await?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let addr = taken.local_addr()?.to_string();
    let said = alone.refusal(alone.args(&["--ops", &addr])).await?;
    ensure!(said.contains(&addr), "it does not name {addr}: {said}");
    Ok(())
}

/// Starts `shoal dev` and gives its process id with what it needs to be stopped.
async fn start_dev(dir: &Path, port: u16) -> Result<tokio::process::Child> {
    let log = std::fs::File::create(dir.join("log"))?;
    let data = dir.join("data").to_string_lossy().into_owned();
    let child = Command::new(program()?)
        .args(contract::dev(2, &data, port))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()?;
    Ok(child)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dev_is_a_whole_mesh_and_ends_with_0() -> Result<()> {
    let dir = tempfile::Builder::new().prefix("shoal-dev-").tempdir()?;
    let (first, second) = two_ports()?;
    let image = ImageBuilder::new(901).payload(2 * MIB).build()?;
    // The second time with what the first left on disk.
    for time in 0..2 {
        let mut dev = start_dev(dir.path(), first.port()).await?;
        let up = wait_until("both gateways answer", PATIENCE, async || {
            for addr in [first, second] {
                client::get(addr, "/v2/").await?.expect(StatusCode::OK).await?;
            }
            Ok(Some(()))
        });
        up.await.with_context(|| system::tail(&dir.path().join("log"), 40))?;
        if time == 0 {
            Registry::new(first, "app").push_image("1", &image).await?;
        }
        Registry::new(second, "app").pull("1").await?;
        system::signal(dev.id().context("it ended")?, Signal::TERM)?;
        let status = tokio::time::timeout(PATIENCE, dev.wait()).await.context("it does not end")??;
        ensure!(status.success(), "{status}: {}", system::tail(&dir.path().join("log"), 40));
    }
    let said = std::fs::read_to_string(dir.path().join("log"))?;
    ensure!(said.contains(&first.to_string()), "it does not say what to type next: {said}");
    Ok(())
}

/// Two free ports in a row.
fn two_ports() -> Result<(SocketAddr, SocketAddr)> {
    let mut first = ports::reserve()?;
    loop {
        let second = ports::reserve()?;
        if second.port() == first.port() + 1 {
            return Ok((first, second));
        }
        first = second;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn put_get_and_the_tables() -> Result<()> {
    let mesh = Mesh::with_gateways(2).start().await?;
    let dir = mesh.scratch("files")?;
    let (from, to) = (dir.join("from"), dir.join("to"));
    let content = noise(902, 5 * MIB);
    std::fs::write(&from, &content)?;
    let digest = digest_of(&content);
    let (g0, g1) = (mesh.node("g0")?, mesh.node("g1")?);
    let said = run_program(&contract::put(&from.to_string_lossy(), g0.ops()?)).await?;
    ensure!(said.contains(&digest), "it does not print the digest: {said}");
    run_program(&contract::get(&digest, &to.to_string_lossy(), g1.ops()?)).await?;
    ensure!(std::fs::read(&to)? == content, "another file came back");

    let ops = g1.ops()?.to_string();
    for table in ["status", "peers", "swarms"] {
        let words =
            |more: &[&str]| [table, "--ops", &ops].iter().chain(more).map(|w| (*w).to_owned()).collect();
        let args: Vec<String> = words(&["--json"]);
        let json: serde_json::Value = serde_json::from_str(&run_program(&args).await?)?;
        ensure!(json.is_object() || json.is_array(), "{table}: {json}");
        let args: Vec<String> = words(&[]);
        ensure!(!run_program(&args).await?.trim().is_empty(), "{table} prints nothing");
    }
    let sources = g1.sources(&digest).await?.context("the pull is not listed")?;
    ensure!(sources.peers.values().sum::<u64>() == content.len() as u64, "{sources:?}");
    ensure!(client::get(g1.ops()?, "/healthz").await?.status == StatusCode::OK);
    mesh.finish().await
}
