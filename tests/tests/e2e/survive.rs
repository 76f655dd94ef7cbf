//! Processes that die, or stop, while others pull.

use anyhow::{Result, bail, ensure};
use rustix::process::Signal;
use shoal_tests::contract::metric;
use shoal_tests::reader::BackgroundReader;
use shoal_tests::wait::TRANSFER;
use shoal_tests::{ImageBuilder, Mesh, NodeSpec, wait_until};

use crate::{MIB, pushed_blob};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn origin_and_bootstrap_dead_another_gateway_still_pulls() -> Result<()> {
    let mut mesh = Mesh::with_gateways(4).start().await?;
    let image = ImageBuilder::new(101).payload(12 * MIB).payload(5 * MIB).payload(10).build()?;
    mesh.registry("g0", "app")?.push_image("1", &image).await?;
    mesh.registry("g1", "app")?.pull("1").await?;

    mesh.kill("o0").await?;
    mesh.kill("b0").await?;
    // By its tag: gossip has told every gateway, and who heard nothing can ask one that did.
    mesh.registry("g2", "app")?.pull("1").await?;

    // The one that was pushed to and so had everything from the start is gone as well.
    mesh.kill("g0").await?;
    mesh.registry("g3", "app")?.pull(&image.manifest.digest).await?;
    mesh.finish().await
}

/// What is done to a peer in the middle of a blob.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Harm {
    Kill,
    Stall,
}

/// A client reads through `g2` what `g1` and the origin have; once `g1` has given some of it, it is harmed.
async fn peer_harmed_in_mid_blob(harm: Harm) -> Result<()> {
    const SIZE: usize = 48 * MIB;
    // Slow enough that the middle of the blob is not over before it is noticed.
    let mut mesh = Mesh::with_gateways(3).flag("--rate-out", "4MiB").start().await?;
    let blob = pushed_blob(&mesh, "g0", 102, SIZE).await?;
    mesh.registry("g1", "e2e/blob")?.pull_blob(&blob.digest).await?;
    mesh.kill("g0").await?;

    let before = mesh.node("g1")?.counted(metric::SENT_BYTES).await?;
    let reader = BackgroundReader::start(&mesh.registry("g2", "e2e/blob")?, &blob.digest);
    wait_until("g1 has given a part and the client has got one", TRANSFER, async || {
        if reader.is_finished() {
            bail!("the client is through already");
        }
        let given = mesh.node("g1")?.count(metric::SENT_BYTES).await? - before;
        Ok((given >= MIB as f64 && reader.received() >= MIB as u64).then_some(()))
    })
    .await?;
    match harm {
        Harm::Kill => mesh.kill("g1").await?,
        Harm::Stall => mesh.node("g1")?.signal(Signal::STOP)?,
    }
    ensure!(reader.received() < SIZE as u64, "the client had all of it before the harm was done");
    ensure!(reader.finish().await? == blob.digest, "wrong bytes");

    if harm == Harm::Stall {
        mesh.node("g1")?.signal(Signal::CONT)?;
    }
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_killed_in_mid_blob_the_client_does_not_notice() -> Result<()> {
    peer_harmed_in_mid_blob(Harm::Kill).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_stalled_in_mid_blob_the_client_does_not_notice() -> Result<()> {
    peer_harmed_in_mid_blob(Harm::Stall).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pushed_blob_survives_the_gateway_it_was_pushed_to() -> Result<()> {
    let mut mesh = Mesh::empty()
        .node(NodeSpec::bootstrap("b0"))
        .node(NodeSpec::origin("o0").flag("--replicas", "2"))
        .node(NodeSpec::origin("o1").flag("--replicas", "2"))
        .node(NodeSpec::gateway("g0").flag("--replicas", "2"))
        .node(NodeSpec::gateway("g1").flag("--replicas", "2"))
        .start()
        .await?;
    let image = ImageBuilder::new(103).payload(3 * MIB).build()?;
    mesh.registry("g0", "app")?.push_image("1", &image).await?;
    // Acknowledged with two replicas: any one origin is enough.
    mesh.kill("g0").await?;
    mesh.kill("o0").await?;
    mesh.registry("g1", "app")?.pull(&image.manifest.digest).await?;
    mesh.restart("o0").await?;
    mesh.kill("o1").await?;
    mesh.add(NodeSpec::gateway("g2")).await?;
    mesh.kill("g1").await?;
    mesh.registry("g2", "app")?.pull(&image.manifest.digest).await?;
    mesh.finish().await
}
