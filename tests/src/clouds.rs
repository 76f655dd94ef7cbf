//! Clouds: network namespaces with a loopback and a WireGuard interface and nothing else. The tunnels' own packets go by a
//! namespace that stands for the internet, in which the userspace implementation was started before its interface was
//! moved (wireguard.com, "The New Namespace Solution").

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::contract::Ready;
use crate::process::program;
use crate::system;
use crate::wait::{PATIENCE, wait_until};

/// The interface's name inside of a cloud, as the example's firewall has it.
const INTERFACE: &str = "wg0";

/// Some clouds and what runs in them; all of it ends when this is dropped.
#[derive(Debug)]
pub struct Clouds {
    dir: PathBuf,
    prefix: String,
    names: Vec<String>,
    tunnels: Vec<Child>,
    daemons: Vec<Child>,
}

/// The keys of a tunnel's end.
struct Keys {
    private: String,
    public: String,
}

impl Clouds {
    /// Makes one cloud for each name, with the `wg0.conf` in `examples/NAME`. Keys and ends take the places that the
    /// example leaves; everything else is as it stands there.
    ///
    /// # Errors
    /// When a namespace or a tunnel cannot be made: root, `iproute2`, `wireguard-tools` and `wireguard-go` are needed.
    pub async fn start(dir: &Path, examples: &Path, names: &[&str]) -> Result<Self> {
        let prefix = format!("shwg{}", std::process::id());
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut clouds =
            Self { dir: dir.to_owned(), prefix, names, tunnels: Vec::new(), daemons: Vec::new() };
        ip(&["netns", "add", &clouds.internet()]).await?;
        ip(&["-n", &clouds.internet(), "link", "set", "lo", "up"]).await?;
        let mut keys = Vec::new();
        for _ in &clouds.names {
            let private = system::run(Command::new("wg").arg("genkey")).await?.trim().to_owned();
            let public = fed("wg", &["pubkey"], &private).await?.trim().to_owned();
            keys.push(Keys { private, public });
        }
        for number in 0..clouds.names.len() {
            clouds.add(number, examples, &keys).await?;
        }
        Ok(clouds)
    }

    async fn add(&mut self, number: usize, examples: &Path, keys: &[Keys]) -> Result<()> {
        let (space, internet) = (self.space(number), self.internet());
        let name = self.names.get(number).context("no such cloud")?.clone();
        let example = std::fs::read_to_string(examples.join(&name).join("wg0.conf"))?;
        // Interfaces are named in one place for all namespaces: their control sockets.
        let tunnel = format!("shw{number}x{}", std::process::id());
        let log = std::fs::File::create(self.dir.join(format!("wireguard-{name}.log")))?;
        let child = Command::new("ip")
            .args(["netns", "exec", &internet, "wireguard-go", "--foreground", &tunnel])
            .env("LOG_LEVEL", "error")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        self.tunnels.push(child);
        wait_until("wireguard-go has its interface", PATIENCE, async || {
            system::run(Command::new("wg").args(["show", &tunnel])).await.map(Some)
        })
        .await?;
        let conf = self.dir.join(format!("wg-{name}.conf"));
        std::fs::write(&conf, self.settings(&example, keys)?)?;
        system::run(Command::new("wg").args(["setconf", &tunnel]).arg(&conf)).await?;
        ip(&["netns", "add", &space]).await?;
        ip(&["-n", &space, "link", "set", "lo", "up"]).await?;
        ip(&["-n", &internet, "link", "set", &tunnel, "netns", &space, "name", INTERFACE]).await?;
        let mtu = line(&example, "MTU").context("the example has no MTU")?;
        ip(&["-n", &space, "link", "set", INTERFACE, "mtu", &mtu, "up"]).await?;
        let address = line(&example, "Address").context("the example has no Address")?;
        ip(&["-n", &space, "addr", "add", &address, "dev", INTERFACE]).await?;
        // The cloud's other machines, which are this one here.
        let (network, _) = address.rsplit_once('.').context("no IPv4 address")?;
        for host in [2, 3] {
            ip(&["-n", &space, "addr", "add", &format!("{network}.{host}/32"), "dev", INTERFACE]).await?;
        }
        let links = system::run(Command::new("ip").args(["-n", &space, "-o", "link"])).await?;
        ensure!(links.lines().count() == 2, "{name} has other interfaces: {links}");
        Ok(())
    }

    /// What `wg-quick` would hand to `wg`: without addresses and MTU.
    fn settings(&self, example: &str, keys: &[Keys]) -> Result<String> {
        let mut text: String = example
            .lines()
            .filter(|line| !line.starts_with("Address") && !line.starts_with("MTU"))
            .map(|line| format!("{line}\n"))
            .collect();
        for (number, (name, keys)) in self.names.iter().zip(keys).enumerate() {
            text = text.replace(&format!("PRIVATE-KEY-OF-{name}"), &keys.private);
            // The end of this one's tunnel on the internet: a port of its loopback.
            let (before, after) = (format!("# {name}\n"), format!("{}", 51_820 + number));
            if let Some(at) = text.find(&before) {
                let (head, tail) = text.split_at(at);
                let end = line(tail, "Endpoint").context("a peer without an Endpoint")?;
                text = format!("{head}{}", tail.replacen(&end, &format!("127.0.0.1:{after}"), 1));
            } else {
                text = text.replace("ListenPort = 51820", &format!("ListenPort = {after}"));
            }
            text = text.replace(&format!("PUBLIC-KEY-OF-{name}"), &keys.public);
        }
        ensure!(!text.contains("-KEY-OF-"), "a key of the example has no cloud: {text}");
        Ok(text)
    }

    fn internet(&self) -> String {
        format!("{}net", self.prefix)
    }

    fn space(&self, number: usize) -> String {
        format!("{}c{number}", self.prefix)
    }

    /// A command that runs in a cloud.
    ///
    /// # Errors
    /// When there is no such cloud.
    pub fn command(&self, cloud: &str, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let number = self.names.iter().position(|name| name == cloud).context("no such cloud")?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space(number)]).arg(program);
        Ok(command)
    }

    /// Runs the program under test in a cloud to its end; gives what it prints.
    ///
    /// # Errors
    /// When it fails.
    pub async fn run(&self, cloud: &str, args: &[&str]) -> Result<String> {
        system::run(self.command(cloud, program()?)?.args(args)).await
    }

    /// Starts a daemon in a cloud and waits until it is ready.
    ///
    /// # Errors
    /// When it ends or is silent instead: with its log.
    pub async fn spawn(&mut self, cloud: &str, name: &str, args: &[&str]) -> Result<Ready> {
        let log = self.dir.join(format!("{cloud}-{name}.log"));
        let mut child = self
            .command(cloud, program()?)?
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log)?)
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().context("no standard output")?;
        self.daemons.push(child);
        let mut lines = BufReader::new(stdout).lines();
        let ready = async {
            while let Some(line) = lines.next_line().await? {
                if let Some(ready) = Ready::parse(&line)? {
                    return Ok(ready);
                }
            }
            anyhow::bail!("it ended")
        };
        let ready = tokio::time::timeout(PATIENCE, ready).await;
        ready
            .context("it was not ready in time")
            .flatten()
            .with_context(|| format!("{name} in {cloud}:\n{}", system::tail(&log, 40)))
    }

    /// Ends all daemons with SIGTERM and takes everything down.
    ///
    /// # Errors
    /// When a daemon does not end with 0.
    pub async fn finish(mut self) -> Result<()> {
        for mut daemon in std::mem::take(&mut self.daemons) {
            let pid = daemon.id().context("a daemon ended by itself")?;
            system::signal(pid, rustix::process::Signal::TERM)?;
            let status =
                tokio::time::timeout(PATIENCE, daemon.wait()).await.context("a daemon did not end")??;
            ensure!(status.success(), "a daemon ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Clouds {
    fn drop(&mut self) {
        for child in self.daemons.iter_mut().chain(&mut self.tunnels) {
            let _ = child.start_kill();
        }
        let spaces = (0..self.names.len()).map(|number| self.space(number)).chain([self.internet()]);
        for space in spaces {
            let _ = std::process::Command::new("ip").args(["netns", "del", &space]).status();
        }
    }
}

async fn ip(args: &[&str]) -> Result<()> {
    system::run(Command::new("ip").args(args)).await.map(drop)
}

/// The value of a line `KEY = VALUE`.
fn line(text: &str, key: &str) -> Option<String> {
    text.lines()
        .find_map(|line| Some(line.strip_prefix(key)?.trim_start().strip_prefix('=')?.trim().to_owned()))
}

async fn fed(program: &str, args: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all(input.as_bytes()).await?;
    drop(stdin);
    let output = child.wait_with_output().await?;
    ensure!(output.status.success(), "{program}: {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}
