//! The same workload through what people use today: one registry, and BitTorrent.

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;

use crate::lab::{self, Host, Lab};
use crate::{mesh, tracker};

const REGISTRY_PORT: u16 = 5000;
const TRACKER_PORT: u16 = 6969;
const TORRENT_PORT: u16 = 6881;
const START_MAX: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);
/// A torrent's piece size as a power of two: 256 KiB, as Shoal's at these sizes.
const TORRENT_PIECE_LOG2: &str = "18";

/// A process of a rival; killed when dropped.
pub(crate) struct Rival(Child);

impl Rival {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        // It may have ended by itself; then the run has failed anyhow.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Debian's docker-registry on the source host with the blob in it, and the blob's digest.
pub(crate) fn registry(lab: &Lab, dir: &Path, bytes: Bytes) -> Result<(Rival, SocketAddr, String)> {
    let address = SocketAddr::from((lab.source.address, REGISTRY_PORT));
    let config = dir.join("registry.yml");
    let text = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{address}'}}\n",
        dir.join("registry").display()
    );
    std::fs::write(&config, text)?;
    let mut command = lab::command_in(&lab.source.namespace, "docker-registry");
    command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(File::create(dir.join("registry.log"))?);
    let rival = Rival(command.spawn()?);
    wait_listening(&lab.source.namespace, address)?;
    let digest = mesh::push(&lab.source.namespace, address, bytes)?;
    Ok((rival, address, digest))
}

fn wait_listening(namespace: &str, address: SocketAddr) -> Result<()> {
    lab::inside(namespace, || {
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            ensure!(start.elapsed() < START_MAX, "nobody listens on {address}");
            std::thread::sleep(POLL);
        }
        Ok(())
    })
}

/// A torrent of the blob, with its tracker running and an aria2 that has it.
pub(crate) struct Torrent {
    file: std::path::PathBuf,
    pub(crate) seeder: Rival,
}

impl Torrent {
    pub(crate) fn start(lab: &Lab, dir: &Path, bytes: &Bytes) -> Result<Self> {
        let seed = dir.join("seed");
        std::fs::create_dir_all(&seed)?;
        std::fs::write(seed.join("blob"), bytes)?;
        let file = dir.join("blob.torrent");
        let announce = format!("http://{}:{TRACKER_PORT}/announce", lab.door.address);
        let made = std::process::Command::new("mktorrent")
            .args(["-l", TORRENT_PIECE_LOG2, "-a", &announce, "-o"])
            .arg(&file)
            .arg(seed.join("blob"))
            .output()
            .context("mktorrent cannot be run (scripts/setup.sh bench installs it)")?;
        ensure!(made.status.success(), "mktorrent: {}", String::from_utf8_lossy(&made.stderr));
        let listener =
            lab::inside(&lab.door.namespace, || Ok(TcpListener::bind((lab.door.address, TRACKER_PORT))?))?;
        let peers: Vec<_> = std::iter::once(&lab.source).chain(&lab.hosts).map(|host| host.address).collect();
        std::thread::spawn(move || tracker::serve(&listener, &peers, TORRENT_PORT));
        let seeder = aria2(&lab.source, &file, &seed, dir, None)?;
        wait_listening(&lab.source.namespace, SocketAddr::from((lab.source.address, TORRENT_PORT)))?;
        Ok(Self { file, seeder })
    }

    /// Starts a host that pulls; `done` appears when it has everything.
    pub(crate) fn pull(&self, host: &Host, dir: &Path, done: &Path) -> Result<Rival> {
        let place = dir.join(format!("data-{}", host.namespace));
        std::fs::create_dir_all(&place)?;
        aria2(host, &self.file, &place, dir, Some(done))
    }
}

fn aria2(host: &Host, torrent: &Path, place: &Path, dir: &Path, done: Option<&Path>) -> Result<Rival> {
    let mut command = lab::command_in(&host.namespace, "aria2c");
    command.arg("--dir").arg(place).arg(format!("--listen-port={TORRENT_PORT}")).args([
        "--seed-ratio=0",
        "--enable-dht=false",
        "--enable-dht6=false",
        "--enable-peer-exchange=true",
        "--bt-enable-lpd=false",
        "--bt-max-peers=0",
        "--bt-request-peer-speed-limit=1000M",
        "--file-allocation=none",
        "--disable-ipv6=true",
        "--summary-interval=0",
        "--console-log-level=error",
        "--allow-overwrite=true",
        "--no-conf=true",
    ]);
    match done {
        Some(done) => {
            let hook = dir.join(format!("done-{}.sh", host.namespace));
            std::fs::write(&hook, format!("#!/bin/sh\n: >{}\n", done.display()))?;
            std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
            command.arg("--on-bt-download-complete").arg(&hook);
        }
        None => drop(command.args(["--check-integrity=true", "--bt-seed-unverified=false"])),
    }
    let log = File::create(dir.join(format!("aria2-{}.log", host.namespace)))?;
    command.arg(torrent).stdout(log.try_clone()?).stderr(log);
    Ok(Rival(command.spawn().context("aria2c cannot be run (scripts/setup.sh bench installs it)")?))
}

/// Waits until `path` appears; returns the time since `start`.
pub(crate) fn wait_for_file(path: &Path, start: Instant, patience: Duration) -> Result<Duration> {
    while !path.exists() {
        ensure!(start.elapsed() < patience, "{} did not appear within {patience:?}", path.display());
        std::thread::sleep(POLL);
    }
    Ok(start.elapsed())
}
