//! The disk and the backends.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use shoal_origin::{BackendError, Member};
use shoal_types::{Algorithm, Metainfo};

use super::Finding;
use crate::driver::blocking;
use crate::node::Node;
use crate::vault::Vault;

/// Bytes written to tell how fast the disk is.
const SPEED_BYTES: u64 = 64 << 20;
/// Bytes written at a time.
const WRITE_BYTES: usize = 4 << 20;
/// No longer than that: a disk that slow is known by then.
const SPEED_TIME_MAX: Duration = Duration::from_secs(5);
/// Slower disks hold up pulls over a network of 1 Gbit/s.
const SPEED_MIN_BYTES_PER_SEC: f64 = 50e6;
/// Less space than one large layer.
const SPACE_FAIL_BYTES: u64 = 1 << 30;
/// The part of the file system that should be free.
const SPACE_WARN_PART: u64 = 20;
/// Bytes of the blob that is written to a backend.
const PROBE_BYTES: usize = 64 << 10;
/// How long a backend may take for all of it.
const BACKEND_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) async fn examine(node: &Node) -> Vec<Finding> {
    let dir = node.config().data_dir.clone();
    let capacity = node.config().capacity.map(|size| size.as_u64());
    let used = node.store().usage().used_bytes;
    let disk = blocking(move || Ok::<_, std::io::Error>(disk(&dir, capacity, used)));
    let mut findings = match disk.await {
        Ok(findings) => findings,
        Err(why) => vec![Finding::fail("disk", why, "see that data-dir is there and can be written")],
    };
    if let Some(vault) = node.vault() {
        for member in vault.backends().all() {
            findings.push(backend(node, vault, member).await);
        }
    }
    findings
}

/// Space and speed of the disk that `dir` is on.
pub fn disk(dir: &Path, capacity: Option<u64>, used: u64) -> Vec<Finding> {
    let remedy = format!("make room on the disk of {}, or name another data-dir", dir.display());
    let space = match rustix::fs::statvfs(dir) {
        Err(error) => {
            return vec![Finding::fail(
                "disk-space",
                format!("{} cannot be looked at: {error}", dir.display()),
                "see that data-dir is there and that the daemon's user may use it",
            )];
        }
        Ok(space) => space,
    };
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let all = space.f_blocks.saturating_mul(space.f_frsize);
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
    let detail = format!("{} of {} free at {}", gib(free), gib(all), dir.display());
    let files_left = space.f_files == 0 || space.f_favail > space.f_files / 100;
    let finding = if free < SPACE_FAIL_BYTES {
        Finding::fail("disk-space", detail, remedy)
    } else if !files_left {
        Finding::warn("disk-space", format!("{detail}, but hardly any inodes"), remedy)
    } else if capacity.is_some_and(|capacity| used.saturating_add(free) < capacity) {
        let detail = format!("{detail}: less than capacity promises ({})", gib(capacity.unwrap_or_default()));
        Finding::warn("disk-space", detail, format!("{remedy}, or lower capacity"))
    } else if free < all / SPACE_WARN_PART {
        Finding::warn("disk-space", detail, remedy)
    } else {
        Finding::ok("disk-space", detail)
    };
    let speed = match speed(dir, SPEED_BYTES.min(free / 4)) {
        Err(error) => Finding::fail(
            "disk-speed",
            format!("{} cannot be written: {error}", dir.display()),
            "see that the disk is neither full nor read-only, and that the daemon's user may write there",
        ),
        Ok(rate) => {
            let detail = format!("{:.0} MB/s written and flushed", rate / 1e6);
            if rate < SPEED_MIN_BYTES_PER_SEC {
                let remedy = "put data-dir on a faster disk: pulls wait for this one";
                Finding::warn("disk-speed", detail, remedy)
            } else {
                Finding::ok("disk-speed", detail)
            }
        }
    };
    vec![finding, speed]
}

/// Bytes a second that the disk takes, flushed.
fn speed(dir: &Path, bytes: u64) -> std::io::Result<f64> {
    let scratch = Scratch::new(dir);
    let mut file = std::fs::File::create_new(&scratch.0)?;
    // Not zeros, which some disks do not write.
    let mut part = vec![0_u8; WRITE_BYTES];
    getrandom::fill(&mut part).map_err(std::io::Error::other)?;
    let began = Instant::now();
    let mut written = 0_u64;
    while written < bytes.max(1) && began.elapsed() < SPEED_TIME_MAX {
        file.write_all(&part)?;
        file.sync_data()?;
        written += part.len() as u64;
    }
    Ok(written as f64 / began.elapsed().as_secs_f64().max(1e-9))
}

/// A file that is removed whatever happens.
struct Scratch(PathBuf);

impl Scratch {
    fn new(dir: &Path) -> Self {
        let unique = getrandom::u64().unwrap_or_else(|_| std::process::id().into());
        Self(dir.join(format!("doctor-{unique:016x}")))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn backend(node: &Node, vault: &Vault, member: &Member) -> Finding {
    const CHECK: &str = "backend";
    let name = member.backend.describe();
    let began = Instant::now();
    let tried = tokio::time::timeout(BACKEND_TIMEOUT, async {
        if member.backend.is_writable() {
            round_trip(node, vault, member).await.map(|()| "written, read and deleted")
        } else {
            member.backend.probe().await.map(|()| "can be read").map_err(|error| error.to_string())
        }
    });
    let remedy = "see that it runs, that its URL is right (docs/STORAGE.md), and that this process may write, read and \
                  delete there";
    match tried.await {
        Ok(Ok(what)) => Finding::ok(CHECK, format!("{name}: {what} in {} ms", began.elapsed().as_millis())),
        Ok(Err(why)) => Finding::fail(CHECK, format!("{name}: {why}"), remedy),
        Err(_) => {
            Finding::fail(CHECK, format!("{name}: no answer in {} s", BACKEND_TIMEOUT.as_secs()), remedy)
        }
    }
}

/// Puts a small blob, looks at it, and deletes it.
async fn round_trip(node: &Node, vault: &Vault, member: &Member) -> Result<(), String> {
    let mut bytes = vec![0_u8; PROBE_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| error.to_string())?;
    let bytes = Bytes::from(bytes);
    let metainfo = Metainfo::of_bytes(Algorithm::Sha256, &bytes).map_err(|error| error.to_string())?;
    let (digest, size) = (metainfo.digest(), metainfo.size());
    let scratch = Scratch::new(&node.config().data_dir);
    let (path, content) = (scratch.0.clone(), bytes.clone());
    blocking(move || std::fs::write(path, content)).await?;
    let vouched = vault.vouch(metainfo).metainfo.to_bytes();
    let backend = &member.backend;
    let step = |what: &'static str| move |error: BackendError| format!("{what}: {error}");
    backend.put(&digest, &scratch.0, size, &vouched).await.map_err(step("writing"))?;
    let read = backend.read_range(&digest, None, 0..size).await.map_err(step("reading"));
    // Deleted also when it cannot be read.
    let deleted = backend.delete(&digest).await.map_err(step("deleting"));
    if read? != bytes {
        return Err("reading: other bytes came back than were written".to_owned());
    }
    if !deleted? {
        return Err("deleting: it was not there any more".to_owned());
    }
    match backend.stat(&digest, None).await.map_err(step("looking after deletion"))? {
        None => Ok(()),
        Some(_) => Err("deleting: it is still there".to_owned()),
    }
}
