//! Disks that are full.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::StatusCode;
use shoal_tests::image::Blob;
use shoal_tests::system::SmallDisk;
use shoal_tests::{Mesh, NodeSpec, Registry, image};

use crate::MIB;

const DISK_BYTES: u64 = 96 << 20;
const BLOB_BYTES: usize = 4 * MIB;

/// Pushes until it is refused; gives what was acknowledged.
async fn push_until_full(registry: &Registry) -> Result<Vec<Blob>> {
    let mut acknowledged = Vec::new();
    for seed in 0..2 * DISK_BYTES / BLOB_BYTES as u64 {
        let blob = Blob::new("application/octet-stream", image::noise(500 + seed, BLOB_BYTES));
        let answer = registry.try_push_blob(&blob.digest, blob.bytes.clone()).await?;
        if answer.status == StatusCode::CREATED {
            acknowledged.push(blob);
            continue;
        }
        ensure!(answer.status.is_server_error(), "a full disk is told as {}", answer.status);
        let body = answer.json().await.context("a refusal that is not the specification's JSON")?;
        let message = body["errors"][0]["message"].as_str().unwrap_or_default();
        ensure!(
            !message.is_empty() && body["errors"][0]["code"].is_string(),
            "a refusal without words: {body}"
        );
        println!("after {} blobs: {message}", acknowledged.len());
        return Ok(acknowledged);
    }
    bail!("a disk of {DISK_BYTES} bytes took twice that")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_with_a_full_disk_refuses_and_keeps_what_it_acknowledged() -> Result<()> {
    let scratch = tempfile::Builder::new().prefix("shoal-disk-").tempdir()?;
    let path = scratch.path().join("small");
    let disk = SmallDisk::mount(&path, DISK_BYTES).await?;
    // Its backend is on it as well, for an origin may not drop what its backend does not have.
    let backend = format!("fs:{}", path.join("backend").display());
    let origin = NodeSpec::origin("o0").data_dir(&path.join("data")).backend(&backend);
    let mut mesh = Mesh::empty()
        .node(NodeSpec::bootstrap("b0"))
        .node(origin)
        .node(NodeSpec::gateway("g0"))
        .start()
        .await?;
    let registry = mesh.registry("g0", "full")?;
    let acknowledged = push_until_full(&registry).await?;
    ensure!(!acknowledged.is_empty(), "nothing fitted");
    mesh.check_running()?;

    // Out of the origin alone.
    mesh.kill("g0").await?;
    mesh.add(NodeSpec::gateway("g1")).await?;
    let registry = mesh.registry("g1", "full")?;
    for blob in &acknowledged {
        registry.pull_blob(&blob.digest).await.context("an acknowledged blob is lost")?;
    }
    // And after a start on the full disk.
    mesh.kill("o0").await?;
    mesh.kill("g1").await?;
    mesh.restart("o0").await?;
    mesh.add(NodeSpec::gateway("g2")).await?;
    let registry = mesh.registry("g2", "full")?;
    for blob in &acknowledged {
        registry.pull_blob(&blob.digest).await.context("an acknowledged blob is lost by a restart")?;
    }
    mesh.finish().await?;
    drop(disk);
    scratch.close()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_with_a_full_disk_says_so_and_goes_on() -> Result<()> {
    let scratch = tempfile::Builder::new().prefix("shoal-disk-").tempdir()?;
    let path = scratch.path().join("small");
    let disk = SmallDisk::mount(&path, DISK_BYTES).await?;
    let mut mesh =
        Mesh::with_gateways(1).node(NodeSpec::gateway("small").data_dir(&path.join("data"))).start().await?;
    // Larger than its whole disk: not to be had through it, but no reason to die or to lie.
    let big = Blob::new("application/octet-stream", image::noise(600, 2 * DISK_BYTES as usize));
    mesh.registry("g0", "full")?.push_blob(&big).await?;
    let small = mesh.registry("small", "full")?;
    let pulled = small.pull_blob(&big.digest).await;
    if let Err(error) = &pulled {
        ensure!(error.downcast_ref::<shoal_tests::registry::WrongBytes>().is_none(), "{error:#}");
    }
    let pushed = small.try_push_blob(&big.digest, big.bytes.clone()).await;
    if let Ok(answer) = pushed {
        ensure!(
            answer.status == StatusCode::CREATED || answer.status.is_server_error(),
            "a push that does not fit is told as {}",
            answer.status
        );
    }
    mesh.check_running()?;
    // What does fit still works: what the failures left behind is gone.
    let fits = Blob::new("application/octet-stream", Bytes::from(vec![7; MIB]));
    small.push_blob(&fits).await?;
    mesh.registry("g0", "full")?.pull_blob(&fits.digest).await?;
    mesh.finish().await?;
    drop(disk);
    scratch.close()?;
    Ok(())
}
