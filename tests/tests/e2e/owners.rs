//! The set of origins changes, and nothing is lost.

use anyhow::{Result, ensure};
use http::StatusCode;
use shoal_tests::contract::metric;
use shoal_tests::wait::{PATIENCE, TRANSFER};
use shoal_tests::{ImageBuilder, Mesh, NodeSpec, wait_until};

use crate::MIB;

/// Waits until an origin has copied the records it owns, and as many blobs as another has.
async fn wait_settled(mesh: &Mesh, name: &str, blobs: f64) -> Result<()> {
    wait_until(&format!("{name} has taken over"), TRANSFER, async || {
        let metrics = mesh.node(name)?.metrics().await?;
        let settled = metrics.sum(metric::SETTLED);
        let stored = metrics.sum("shoal_store_blobs");
        ensure!(settled == 1.0 && stored >= blobs, "settled: {settled}, blobs: {stored}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn origins_are_replaced_one_by_one_by_empty_ones() -> Result<()> {
    // Each has a backend of its own, so that nothing can come from there.
    let mut mesh = Mesh::empty()
        .node(NodeSpec::bootstrap("b0"))
        .node(NodeSpec::origin("o0"))
        .node(NodeSpec::origin("o1"))
        .node(NodeSpec::gateway("g0"))
        .flag("--replicas", "2")
        .start()
        .await?;
    let registry = mesh.registry("g0", "team/app")?;
    let older = ImageBuilder::new(901).gzip(false).payload(2 * MIB).build()?;
    let image = ImageBuilder::new(902).gzip(false).payload(2 * MIB).payload(100).build()?;
    registry.push_image("1", &older).await?;
    registry.push_image("1", &image).await?;
    registry.push_image("gone", &older).await?;
    let gone = "/v2/team/app/manifests/gone";
    shoal_tests::http::call(registry.addr, http::Method::DELETE, gone)
        .await?
        .expect(StatusCode::ACCEPTED)
        .await?;
    let blobs = mesh.node("o0")?.counted("shoal_store_blobs").await?;
    ensure!(blobs >= 6.0, "the origin has {blobs} blobs: {registry:?}");

    for (leaving, coming) in [("o0", "o2"), ("o1", "o3")] {
        mesh.kill(leaving).await?;
        mesh.add(NodeSpec::origin(coming).flag("--replicas", "2")).await?;
        wait_until(&format!("everybody knows that {leaving} is gone"), PATIENCE, async || {
            let known = mesh.node("g0")?.count(metric::ORIGINS).await?;
            ensure!(known == 2.0, "it knows {known} origins");
            Ok(Some(()))
        })
        .await?;
        wait_settled(&mesh, coming, blobs).await?;
    }
    // A gateway that remembers nothing, and only origins that saw none of the pushes.
    mesh.kill("g0").await?;
    mesh.add(NodeSpec::gateway("g1")).await?;
    let registry = mesh.registry("g1", "team/app")?;
    registry.pull("1").await?;
    let answer = registry.manifest("1").await?.expect(StatusCode::OK).await?;
    ensure!(answer.header("docker-content-digest") == image.manifest.digest, "the tag went back");
    ensure!(registry.manifest("gone").await?.status == StatusCode::NOT_FOUND, "a deleted tag came back");
    mesh.finish().await
}
