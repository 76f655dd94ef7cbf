//! A peer whose disk rots: it serves pieces that do not have their hashes.

use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use shoal_tests::contract::metric;
use shoal_tests::image::digest_of;
use shoal_tests::wait::{PATIENCE, wait_until};
use shoal_tests::{Mesh, system};

use crate::{MIB, pushed_blob};

/// Smaller than any piece, so that none stays whole.
const ROT_EVERY_BYTES: usize = 128 << 10;

/// The first, and those that were being hashed beside it.
const CORRUPT_MAX: f64 = 4.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_serves_corrupt_pieces_is_dropped_at_the_first() -> Result<()> {
    const SIZE: usize = 24 * MIB;
    // The origin alone would be too quick for anybody else to be asked.
    let mut mesh = Mesh::with_gateways(3).flag("--rate-out", "4MiB").start().await?;
    let blob = pushed_blob(&mesh, "g0", 301, SIZE).await?;
    mesh.registry("g1", "e2e/blob")?.pull_blob(&blob.digest).await?;
    mesh.kill("g0").await?;
    // The client has its bytes before the file is in its last place: until then its path may change.
    let file = wait_until("the blob's file stays where it is", PATIENCE, async || {
        let path = file_of(&mesh, "g1", &blob.digest, SIZE).ok();
        Ok(path.and_then(|path| std::fs::OpenOptions::new().read(true).write(true).open(path).ok()))
    })
    .await?;
    rot(&file, SIZE)?;

    let size = mesh.registry("g2", "e2e/blob")?.pull_blob(&blob.digest).await?;
    ensure!(size == SIZE as u64);
    let metrics = mesh.node("g2")?.metrics().await?;
    let dropped = metrics.sum_where(metric::PEERS_DROPPED, &[metric::DROPPED_WHY]);
    ensure!(
        dropped == 1.0,
        "{dropped} peers were dropped for corrupt pieces; metrics: {:?}",
        metrics.names()
    );
    let corrupt = metrics.sum(metric::PIECES_CORRUPT);
    ensure!(
        (1.0..=CORRUPT_MAX).contains(&corrupt),
        "it was dropped after {corrupt} corrupt pieces; metrics: {:?}",
        metrics.names()
    );
    let sources = mesh.node("g2")?.sources(&blob.digest).await?.context("the pull is not listed")?;
    let from_rotten = sources.peers.get(mesh.node("g1")?.peer()).copied().unwrap_or_default();
    ensure!(from_rotten == 0, "{from_rotten} bytes count as got from the peer that has none");
    mesh.finish().await
}

/// The file that holds a blob's payload, wherever the store keeps it.
fn file_of(mesh: &Mesh, node: &str, digest: &str, size: usize) -> Result<PathBuf> {
    let files = system::files_below(mesh.node(node)?.data_dir());
    let same_size = files.into_iter().filter(|(_, bytes)| *bytes == size as u64);
    let mut same =
        same_size.filter(|(path, _)| std::fs::read(path).is_ok_and(|all| digest_of(&all) == digest));
    Ok(same.next().with_context(|| format!("{node} has no file with exactly this blob"))?.0)
}

fn rot(file: &std::fs::File, size: usize) -> Result<()> {
    for at in (0..size).step_by(ROT_EVERY_BYTES) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at as u64)?;
        file.write_all_at(&[!byte[0]], at as u64)?;
    }
    Ok(())
}
