//! The same pushes and pulls over each kind of backend, with its real server.

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use http::StatusCode;
use shoal_tests::contract::metric;
use shoal_tests::image::artifact_of;
use shoal_tests::{Dialect, ImageBuilder, Mesh, MeshBuilder, NodeSpec, Server, image};

use crate::MIB;

fn mesh_on(backend: &str, env: &[(&str, &str)], gateways: usize) -> MeshBuilder {
    let origin = NodeSpec::origin("o0").backend(backend).envs(env);
    let mesh = Mesh::empty().node(NodeSpec::bootstrap("b0")).node(origin);
    (0..gateways).fold(mesh, |mesh, number| mesh.node(NodeSpec::gateway(&format!("g{number}"))))
}

/// Everything that a backend has to do with: blobs large and small, an index, a referrer, a tag that moves and one that
/// is deleted, and all of it read back when the origin's disk and all caches are gone.
async fn pushes_and_pulls(mut mesh: Mesh) -> Result<()> {
    let there = mesh.registry("g0", "team/app")?;
    let here = mesh.registry("g1", "team/app")?;
    // A layer that goes up in parts, one that does not, and one of hardly anything.
    let large = ImageBuilder::new(601).gzip(false).payload(20 * MIB).payload(MIB).payload(1).build()?;
    there.push_image("1", &large).await?;
    here.pull("1").await?;
    let platforms = [
        ImageBuilder::new(602).payload(100_000).build()?,
        ImageBuilder::new(603).arch("riscv64").payload(100_000).build()?,
    ];
    there.push_index("multi", &platforms, Dialect::Oci).await?;
    let signature = image::Blob::new("application/octet-stream", image::noise(604, 1000));
    let (config, artifact) = artifact_of(&large.manifest, "application/vnd.example.signature", &signature);
    for blob in [&config, &signature] {
        there.push_blob(blob).await?;
    }
    there.push_manifest(&artifact.digest, &artifact).await?;
    // A tag that moves: the next pull anywhere sees it.
    there.push_image("latest", &platforms[0]).await?;
    here.pull("latest").await?;
    there.push_image("latest", &large).await?;
    for registry in [&there, &here] {
        let answer = registry.manifest("latest").await?.expect(StatusCode::OK).await?;
        ensure!(answer.header("docker-content-digest") == large.manifest.digest, "an overwritten tag is old");
    }

    // Every disk but the backend's is emptied.
    for name in ["g0", "g1", "o0"] {
        mesh.kill(name).await?;
        mesh.wipe(name)?;
    }
    mesh.restart("o0").await?;
    mesh.restart("g1").await?;
    let here = mesh.registry("g1", "team/app")?;
    for tag in ["1", "multi", "latest"] {
        here.pull(tag).await?;
    }
    let answer = here.manifest("latest").await?.expect(StatusCode::OK).await?;
    ensure!(
        answer.header("docker-content-digest") == large.manifest.digest,
        "the older of two tags came back"
    );
    let referrers = here.referrers(&large.manifest.digest, "").await?;
    ensure!(referrers.len() == 1, "referrers after all disks were emptied: {referrers:?}");
    here.pull(&artifact.digest).await?;
    let unknown = image::digest_of(b"never pushed");
    ensure!(here.blob(&unknown).await?.status == StatusCode::NOT_FOUND, "an unknown blob is not 404");
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushes_and_pulls_over_a_directory() -> Result<()> {
    let dir = tempfile::tempdir()?;
    pushes_and_pulls(mesh_on(&format!("fs:{}", dir.path().display()), &[], 2).start().await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushes_and_pulls_over_s3_on_garage() -> Result<()> {
    let garage = Server::garage().await;
    pushes_and_pulls(mesh_on(&garage.s3_url("mesh"), &garage.s3_env(), 2).start().await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushes_and_pulls_over_azblob_on_azurite() -> Result<()> {
    let azurite = Server::azurite().await;
    azurite.make_container().await;
    pushes_and_pulls(mesh_on(&azurite.azblob_url("mesh"), &azurite.azblob_env(), 2).start().await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_empty_gateways_read_the_bucket_once() -> Result<()> {
    const SIZE: usize = 100 * MIB;
    const GATEWAYS: usize = 16;
    let garage = Server::garage().await;
    let mesh = mesh_on(&garage.s3_url("mesh"), &garage.s3_env(), 1);
    let mesh = (1..=GATEWAYS).fold(mesh, |mesh, number| {
        let zone = if number % 2 == 0 { shoal_tests::mesh::ZONE } else { "away" };
        mesh.node(NodeSpec::gateway(&format!("g{number}")).zone(zone))
    });
    let mut mesh = mesh.exclusive().start().await?;
    let image = ImageBuilder::new(611).gzip(false).payload(SIZE).build()?;
    mesh.registry("g0", "app")?.push_image("1", &image).await?;
    // The blobs are only in the bucket.
    mesh.kill("g0").await?;
    mesh.kill("o0").await?;
    mesh.wipe("o0")?;
    mesh.restart("o0").await?;
    mesh.wait_joined().await?;
    let registries: Vec<_> =
        (1..=GATEWAYS).map(|number| mesh.registry(&format!("g{number}"), "app")).collect::<Result<_>>()?;
    let pulled = try_join_all(registries.iter().map(|registry| registry.pull("1"))).await?;
    let read = mesh.node("o0")?.metrics().await?.sum(metric::BACKEND_READ);
    let copies = read / pulled[0] as f64;
    println!(
        "{GATEWAYS} gateways in 2 zones pulled {} bytes each; {copies:.3} copies were read from S3",
        pulled[0]
    );
    ensure!(copies >= 0.99, "the count is wrong: the blobs were only there");
    ensure!(copies <= 1.05, "{copies:.3} copies were read from S3");
    mesh.finish().await
}
