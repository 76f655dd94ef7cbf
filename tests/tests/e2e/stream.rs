//! Cut-through and single flight.

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use http::StatusCode;
use shoal_tests::Mesh;
use shoal_tests::contract::metric;
use shoal_tests::image::digest_of;

use crate::{MIB, pushed_blob};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_is_served_while_it_downloads() -> Result<()> {
    const SIZE: usize = 32 * MIB;
    let mut mesh = Mesh::with_gateways(2).flag("--rate-out", "2MiB").start().await?;
    let blob = pushed_blob(&mesh, "g0", 201, SIZE).await?;
    mesh.kill("g0").await?;

    let registry = mesh.registry("g1", "e2e/blob")?;
    let mut answer = registry.blob(&blob.digest).await?.expect(StatusCode::OK).await?;
    ensure!(answer.header("content-length") == SIZE.to_string(), "the size is not known from the start");
    let mut got = answer.part().await?.context("an empty body")?.to_vec();
    let swarm = mesh.node("g1")?.swarm(&blob.digest).await?.context("no swarm while it downloads")?;
    ensure!(
        swarm.pieces_have >= 1 && swarm.pieces_have < swarm.pieces_total,
        "the client's first byte came with {} of {} pieces",
        swarm.pieces_have,
        swarm.pieces_total
    );
    while let Some(part) = answer.part().await? {
        got.extend_from_slice(&part);
    }
    ensure!(digest_of(&got) == blob.digest, "wrong bytes");
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_local_readers_are_one_download() -> Result<()> {
    const SIZE: usize = 8 * MIB;
    let mesh = Mesh::with_gateways(2).start().await?;
    let blob = pushed_blob(&mesh, "g0", 202, SIZE).await?;
    let before = mesh.node("g1")?.count(metric::RECEIVED_BYTES).await?;
    let registry = mesh.registry("g1", "e2e/blob")?;
    let sizes = try_join_all((0..100).map(|_| registry.pull_blob(&blob.digest))).await?;
    ensure!(sizes.iter().all(|size| *size == SIZE as u64));
    let received = mesh.node("g1")?.counted(metric::RECEIVED_BYTES).await? - before;
    // Endgame may ask for the last pieces twice.
    ensure!(
        received >= SIZE as f64 && received <= 1.25 * SIZE as f64,
        "a hundred readers of {SIZE} bytes cost {received}"
    );
    mesh.finish().await
}
