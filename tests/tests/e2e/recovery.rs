//! A mesh out of the bucket alone.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use http::StatusCode;
use serde_json::Value;
use shoal_tests::image::artifact_of;
use shoal_tests::{Dialect, ImageBuilder, Mesh, NodeSpec, Server, http as client, image};

use crate::MIB;

fn mesh_on(garage: &Server) -> shoal_tests::MeshBuilder {
    let origin = |name: &str| NodeSpec::origin(name).backend(&garage.s3_url("mesh")).envs(&garage.s3_env());
    let mesh = Mesh::empty().node(NodeSpec::bootstrap("b0")).node(origin("o0")).node(origin("o1"));
    mesh.node(NodeSpec::gateway("g0"))
}

async fn names(mesh: &Mesh, path: &str, list: &str) -> Result<BTreeSet<String>> {
    let answer = client::get(mesh.node("g0")?.gateway()?, path).await?.expect(StatusCode::OK).await?;
    let answer: Value = answer.json().await?;
    let names = answer[list].as_array().into_iter().flatten();
    Ok(names.filter_map(|name| name.as_str().map(str::to_owned)).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_mesh_with_new_keys_serves_every_image_of_the_bucket() -> Result<()> {
    let garage = Server::garage().await;
    let mesh = mesh_on(&garage).start().await?;
    let old_key = std::fs::read(mesh.public_key()?)?;
    let app = mesh.registry("g0", "team/app")?;
    let image = ImageBuilder::new(801).gzip(false).payload(9 * MIB).payload(10).build()?;
    let newer = ImageBuilder::new(802).payload(200_000).build()?;
    app.push_image("1", &newer).await?;
    app.push_image("1", &image).await?;
    let gone = ImageBuilder::new(803).payload(10).build()?;
    app.push_image("gone", &gone).await?;
    let path = "/v2/team/app/manifests/gone";
    client::call(app.addr, http::Method::DELETE, path).await?.expect(StatusCode::ACCEPTED).await?;
    let platforms = [newer.clone(), ImageBuilder::new(804).arch("riscv64").payload(50_000).build()?];
    mesh.registry("g0", "team")?.push_index("multi", &platforms, Dialect::Docker).await?;
    // Pushed by its digest only.
    app.push_image(&newer.manifest.digest, &newer).await?;
    let content = image::Blob::new("application/octet-stream", image::noise(805, 100));
    let (config, artifact) = artifact_of(&image.manifest, "application/vnd.example.sbom", &content);
    for blob in [&config, &content] {
        app.push_blob(blob).await?;
    }
    app.push_manifest(&artifact.digest, &artifact).await?;
    let tags = names(&mesh, "/v2/team/app/tags/list", "tags").await?;
    let catalog = names(&mesh, "/v2/_catalog", "repositories").await?;
    ensure!(tags == BTreeSet::from(["1".to_owned()]) && catalog.len() == 2, "before: {tags:?} {catalog:?}");
    // Every process ends and every disk is gone, the mesh's key with them.
    mesh.finish().await?;

    let mesh = mesh_on(&garage).start().await?;
    ensure!(std::fs::read(mesh.public_key()?)? != old_key, "it is the same mesh");
    let app = mesh.registry("g0", "team/app")?;
    app.pull("1").await?;
    let answer = app.manifest("1").await?.expect(StatusCode::OK).await?;
    ensure!(answer.header("docker-content-digest") == image.manifest.digest, "the tag is an older image");
    ensure!(app.manifest("gone").await?.status == StatusCode::NOT_FOUND, "a deleted tag came back");
    app.pull(&newer.manifest.digest).await?;
    mesh.registry("g0", "team")?.pull("multi").await?;
    ensure!(app.referrers(&image.manifest.digest, "").await?.len() == 1, "the referrer is lost");
    app.pull(&artifact.digest).await?;
    shoal_tests::wait_until("lists are as before", shoal_tests::wait::PATIENCE, async || {
        let now = names(&mesh, "/v2/team/app/tags/list", "tags").await?;
        let all = names(&mesh, "/v2/_catalog", "repositories").await?;
        ensure!(now == tags && all == catalog, "{now:?} {all:?}");
        Ok(Some(()))
    })
    .await?;
    // And goes on from there: what is written now is newer than what the old mesh wrote.
    app.push_image("1", &newer).await?;
    let answer = app.manifest("1").await?.expect(StatusCode::OK).await?;
    ensure!(
        answer.header("docker-content-digest") == newer.manifest.digest,
        "the new mesh cannot move an old tag"
    );
    mesh.finish().await
}
