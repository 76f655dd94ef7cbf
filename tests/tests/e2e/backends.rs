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
async fn pushes_and_pulls_over_webhdfs_on_hadoop() -> Result<()> {
    let hdfs = Server::hdfs().await;
    pushes_and_pulls(mesh_on(&hdfs.webhdfs_url("mesh"), &[], 2).start().await?).await
}

/// Bytes that an origin has read from its backends so far.
async fn read_from_backend(mesh: &Mesh, origin: &str) -> Result<f64> {
    Ok(mesh.node(origin)?.metrics().await?.sum(metric::BACKEND_READ))
}

/// Empties the disks of these origins, so that blobs are only in their buckets.
async fn forget_all_but_the_bucket(mesh: &mut Mesh, origins: &[&str]) -> Result<()> {
    for name in origins {
        mesh.kill(name).await?;
        mesh.wipe(name)?;
    }
    for name in origins {
        mesh.restart(name).await?;
    }
    mesh.wait_joined().await
}

/// Sixteen empty gateways, every other one in the second zone.
fn crowd(mesh: MeshBuilder) -> MeshBuilder {
    (1..=CROWD).fold(mesh, |mesh, number| {
        let zone = if number % 2 == 0 { shoal_tests::mesh::ZONE } else { AWAY };
        mesh.node(NodeSpec::gateway(&format!("g{number}")).zone(zone))
    })
}

async fn all_pull(mesh: &Mesh) -> Result<f64> {
    let registries: Vec<_> =
        (1..=CROWD).map(|number| mesh.registry(&format!("g{number}"), "app")).collect::<Result<_>>()?;
    let pulled = try_join_all(registries.iter().map(|registry| registry.pull("1"))).await?;
    Ok(pulled[0] as f64)
}

const CROWD: usize = 16;
const AWAY: &str = "away";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_empty_gateways_read_the_bucket_once() -> Result<()> {
    let garage = Server::garage().await;
    let mut mesh = crowd(mesh_on(&garage.s3_url("mesh"), &garage.s3_env(), 1)).exclusive().start().await?;
    let image = ImageBuilder::new(611).gzip(false).payload(100 * MIB).build()?;
    mesh.registry("g0", "app")?.push_image("1", &image).await?;
    mesh.kill("g0").await?;
    forget_all_but_the_bucket(&mut mesh, &["o0"]).await?;
    let pulled = all_pull(&mesh).await?;
    let copies = read_from_backend(&mesh, "o0").await? / pulled;
    println!("{CROWD} gateways in 2 zones pulled {pulled} bytes each; {copies:.3} copies were read from S3");
    ensure!(copies >= 0.99, "the count is wrong: the blobs were only there");
    ensure!(copies <= 1.05, "{copies:.3} copies were read from S3");
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_zone_s_crowd_reads_its_own_bucket_once() -> Result<()> {
    let (here, there) = (Server::garage().await, Server::garage().await);
    let away = NodeSpec::origin("o1").zone(AWAY).backend(&there.s3_url("mesh")).envs(&there.s3_env());
    let mesh = mesh_on(&here.s3_url("mesh"), &here.s3_env(), 1).node(away);
    let mut mesh = crowd(mesh).exclusive().start().await?;
    let image = ImageBuilder::new(612).gzip(false).payload(50 * MIB).build()?;
    // Each zone has it in its bucket.
    for gateway in ["g0", "g1"] {
        mesh.registry(gateway, "app")?.push_image("1", &image).await?;
    }
    for gateway in ["g0", "g1"] {
        mesh.kill(gateway).await?;
        mesh.wipe(gateway)?;
    }
    mesh.restart("g1").await?;
    forget_all_but_the_bucket(&mut mesh, &["o0", "o1"]).await?;
    let pulled = all_pull(&mesh).await?;
    for origin in ["o0", "o1"] {
        let copies = read_from_backend(&mesh, origin).await? / pulled;
        println!("{} gateways of {origin}'s zone: {copies:.3} copies were read from its bucket", CROWD / 2);
        ensure!(copies <= 1.05, "{copies:.3} copies were read from {origin}'s bucket");
    }
    mesh.finish().await
}
