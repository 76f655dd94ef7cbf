//! `write=back`: pushes go on while the backend is down, and reach it whatever happens in between.

use anyhow::{Result, ensure};
use http::StatusCode;
use shoal_tests::contract::metric;
use shoal_tests::wait::{PATIENCE, TRANSFER};
use shoal_tests::{ImageBuilder, Mesh, NodeSpec, Server, http as client, image, wait_until};

use crate::MIB;

async fn start(garage: &Server) -> Result<Mesh> {
    let url = garage.s3_url("mesh") + "&write=back&must-be-ready";
    let origin = NodeSpec::origin("o0").backend(&url).envs(&garage.s3_env());
    let mesh = Mesh::empty().node(NodeSpec::bootstrap("b0")).node(origin);
    mesh.node(NodeSpec::gateway("g0")).node(NodeSpec::gateway("g1")).start().await
}

async fn wait_until_written(mesh: &Mesh) -> Result<()> {
    wait_until("nothing waits for the backend any more", TRANSFER, async || {
        let left = mesh.node("o0")?.counted(metric::QUEUE).await?;
        ensure!(left == 0.0, "{left} are left");
        Ok(Some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_is_down_loses_nothing_and_pushes_go_on() -> Result<()> {
    let mut garage = Server::garage().await;
    let mut mesh = start(&garage).await?;
    let image = |seed| ImageBuilder::new(seed).gzip(false).payload(3 * MIB).payload(1000).build();
    let before = image(701)?;
    mesh.registry("g0", "app")?.push_image("before", &before).await?;
    wait_until_written(&mesh).await?;

    garage.stop().await;
    let during = image(702)?;
    mesh.registry("g0", "app")?.push_image("during", &during).await?;
    mesh.registry("g1", "app")?.pull("during").await?;
    let ops = mesh.node("o0")?.ops()?;
    wait_until("the origin is not ready without its backend", PATIENCE, async || {
        let ready = client::get(ops, "/readyz").await?;
        ensure!(ready.status == StatusCode::SERVICE_UNAVAILABLE, "it is {}", ready.status);
        Ok(ready.text().await?.contains("s3://").then_some(()))
    })
    .await?;
    let waiting = mesh.node("o0")?.api("/api/v1/status").await?["queue"].clone();
    ensure!(waiting["blobs"].as_u64() >= Some(4) && waiting["records"].as_u64() >= Some(2), "{waiting}");
    wait_until("the failure is told", PATIENCE, async || {
        let queue = mesh.node("o0")?.api("/api/v1/status").await?["queue"].clone();
        Ok((queue["last_error"].is_string() && queue["retries"].as_u64() > Some(0)).then_some(()))
    })
    .await?;

    // The machine of the origin dies with the queue full.
    mesh.kill("o0").await?;
    garage.resume().await;
    mesh.restart("o0").await?;
    wait_until_written(&mesh).await?;

    // Now the bucket is enough.
    for name in ["g0", "g1", "o0"] {
        mesh.kill(name).await?;
        mesh.wipe(name)?;
    }
    mesh.restart("o0").await?;
    mesh.restart("g1").await?;
    for tag in ["before", "during"] {
        mesh.registry("g1", "app")?.pull(tag).await?;
    }
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_the_backend_is_not_evicted() -> Result<()> {
    const CAPACITY: &str = "24MiB";
    let mut garage = Server::garage().await;
    let url = garage.s3_url("mesh") + "&write=back";
    let origin = NodeSpec::origin("o0").backend(&url).envs(&garage.s3_env()).flag("--capacity", CAPACITY);
    let mesh = Mesh::empty().node(NodeSpec::bootstrap("b0")).node(origin).node(NodeSpec::gateway("g0"));
    let mut mesh = mesh.start().await?;
    garage.stop().await;
    let registry = mesh.registry("g0", "app")?;
    // More than the origin may keep: it refuses rather than to drop what nobody else has.
    let mut acknowledged = Vec::new();
    let mut refused = 0;
    for seed in 0..8 {
        let blob = image::Blob::new("application/octet-stream", image::noise(710 + seed, 5 * MIB));
        match registry.push_blob(&blob).await {
            Ok(()) => acknowledged.push(blob),
            Err(_) => refused += 1,
        }
    }
    ensure!(acknowledged.len() >= 2 && refused >= 2, "{} kept, {refused} refused", acknowledged.len());
    mesh.kill("g0").await?;
    garage.resume().await;
    wait_until_written(&mesh).await?;
    mesh.kill("o0").await?;
    mesh.wipe("o0")?;
    mesh.restart("o0").await?;
    mesh.add(NodeSpec::gateway("g1")).await?;
    for blob in &acknowledged {
        mesh.registry("g1", "app")?.pull_blob(&blob.digest).await?;
    }
    mesh.finish().await
}
