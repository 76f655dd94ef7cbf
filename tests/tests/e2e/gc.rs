//! Online garbage collection: what no tag reaches leaves the backends, what one reaches stays.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use http::StatusCode;
use serde_json::Value;
use shoal_tests::image::artifact_of;
use shoal_tests::process::run_program;
use shoal_tests::wait::TRANSFER;
use shoal_tests::{Dialect, Image, ImageBuilder, Mesh, NodeSpec, http as client, image, wait_until};

use crate::MIB;

/// Runs `shoal gc` at the first origin.
async fn gc(mesh: &Mesh, flags: &[&str]) -> Result<Vec<Value>> {
    let ops = mesh.node("o0")?.ops()?.to_string();
    let fixed = ["gc", "--json", "--ops", &ops];
    let args: Vec<String> = fixed.iter().chain(flags).map(|word| (*word).to_owned()).collect();
    Ok(serde_json::from_str(&run_program(&args).await?)?)
}

fn sum(reports: &[Value], path: &str) -> u64 {
    reports.iter().filter_map(|report| report.pointer(path).and_then(Value::as_u64)).sum()
}

/// Whether any backend directory has a blob.
fn is_stored(backends: &[PathBuf], digest: &str) -> bool {
    let hex = digest.trim_start_matches("sha256:");
    let path = |backend: &Path| backend.join("blobs/sha256").join(&hex[..2]).join(hex);
    backends.iter().any(|backend| path(backend).is_file())
}

fn check(backends: &[PathBuf], image: &Image, stored: bool) -> Result<()> {
    for blob in image.blobs().chain([&image.manifest]) {
        ensure!(is_stored(backends, &blob.digest) == stored, "{} stored: {}", blob.digest, !stored);
    }
    Ok(())
}

/// Origins have copied what they own: before that collections say that they are incomplete.
async fn wait_settled(mesh: &Mesh) -> Result<()> {
    wait_until("a collection is complete", shoal_tests::wait::PATIENCE, async || {
        gc(mesh, &["--dry-run"]).await.map(|_| Some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_tag_reaches_leaves_the_backends_and_nothing_else() -> Result<()> {
    let origins = ["o0", "o1"];
    let mesh = Mesh::empty().node(NodeSpec::bootstrap("b0"));
    let mesh = origins.iter().fold(mesh, |mesh, name| mesh.node(NodeSpec::origin(name)));
    let mut mesh = mesh.node(NodeSpec::gateway("g0")).start().await?;
    let backends: Vec<PathBuf> =
        origins.iter().map(|name| mesh.scratch(&format!("backend/{name}"))).collect::<Result<_>>()?;
    let app = mesh.registry("g0", "team/app")?;
    let image = |seed| ImageBuilder::new(seed).gzip(false).payload(MIB).payload(1000).build();
    let (old, new, gone) = (image(901)?, image(902)?, image(903)?);
    let platforms = [image(904)?, ImageBuilder::new(905).arch("riscv64").payload(50_000).build()?];
    app.push_image("1", &old).await?;
    app.push_image("1", &new).await?;
    app.push_image("gone", &gone).await?;
    let path = "/v2/team/app/manifests/gone";
    client::call(app.addr, http::Method::DELETE, path).await?.expect(StatusCode::ACCEPTED).await?;
    let index = mesh.registry("g0", "team/multi")?.push_index("m", &platforms, Dialect::Oci).await?;
    // A signature of what a tag names, and one of what none does.
    let mut signatures = Vec::new();
    for subject in [&new, &old] {
        let content = image::Blob::new("application/octet-stream", image::noise(906, 100));
        let (config, artifact) = artifact_of(&subject.manifest, "application/vnd.example.sig", &content);
        for blob in [&config, &content] {
            app.push_blob(blob).await?;
        }
        app.push_manifest(&artifact.digest, &artifact).await?;
        signatures.push(artifact);
    }
    let file = mesh.scratch("files")?.join("file");
    std::fs::write(&file, image::noise(907, 70_000))?;
    let ops = mesh.node("g0")?.ops()?.to_string();
    let put = ["put", "--ops", &ops, &file.to_string_lossy()].map(str::to_owned);
    let put = run_program(&put).await?;
    let put =
        put.split_whitespace().find(|word| word.starts_with("sha256:")).context("no digest")?.to_owned();

    wait_settled(&mesh).await?;
    let dry = gc(&mesh, &["--dry-run", "--grace", "0s"]).await?;
    ensure!(dry.len() == 2 && sum(&dry, "/unreached/count") >= 9, "{dry:?}");
    // The first one only takes note.
    let first = gc(&mesh, &["--grace", "0s"]).await?;
    ensure!(sum(&first, "/deleted/count") == 0, "{first:?}");
    for image in [&old, &new, &gone] {
        check(&backends, image, true)?;
    }
    let patient = gc(&mesh, &["--grace", "1h"]).await?;
    ensure!(sum(&patient, "/deleted/count") == 0 && sum(&patient, "/due/count") == 0, "{patient:?}");
    let dry = gc(&mesh, &["--dry-run", "--grace", "0s"]).await?;
    let second = gc(&mesh, &["--grace", "0s"]).await?;
    ensure!(sum(&dry, "/due/count") == sum(&second, "/deleted/count"), "{dry:?} {second:?}");
    ensure!(sum(&second, "/deleted/count") == sum(&first, "/unreached/count"), "{second:?}");
    let told = mesh.node("o0")?.api("/api/v1/gc").await?;
    ensure!(told["origins"] == 2 && told["origins_done"] == 2 && told["step"] == "", "{told}");
    for image in [&old, &gone] {
        check(&backends, image, false)?;
    }
    ensure!(!is_stored(&backends, &signatures[1].digest), "a signature of nothing is left");
    for image in [&new, &platforms[0], &platforms[1]] {
        check(&backends, image, true)?;
    }
    for digest in [&index.digest, &signatures[0].digest, &put] {
        ensure!(is_stored(&backends, digest), "{digest} is gone");
    }

    // A gateway that has nothing pulls all that is left, and nothing that is not.
    mesh.add(NodeSpec::gateway("g1")).await?;
    let fresh = mesh.registry("g1", "team/app")?;
    fresh.pull("1").await?;
    mesh.registry("g1", "team/multi")?.pull("m").await?;
    ensure!(fresh.referrers(&new.manifest.digest, "").await?.len() == 1, "the referrer is lost");
    fresh.pull(&signatures[0].digest).await?;
    let answer = fresh.manifest(&old.manifest.digest).await?;
    ensure!(answer.status == StatusCode::NOT_FOUND, "{} for a deleted manifest", answer.status);

    // The first gateway has its copies still, so that a client pushes no blob again; the origins must have them all the same.
    app.blob(&old.config.digest).await?.expect(StatusCode::OK).await?;
    app.push_manifest("again", &old.manifest).await?;
    // They write back after they have answered.
    wait_until("all of it is in the backends again", shoal_tests::wait::PATIENCE, async || {
        check(&backends, &old, true).map(Some)
    })
    .await?;
    fresh.pull("again").await?;
    gc(&mesh, &["--grace", "0s"]).await?;
    gc(&mesh, &["--grace", "0s"]).await?;
    check(&backends, &old, true)?;
    mesh.finish().await
}

/// A client that finds a blob pushes none. Whoever takes the manifest that names it sees to it that an origin keeps it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_in_an_origins_store_is_not_taken_for_one_that_is_kept() -> Result<()> {
    let mesh = Mesh::empty().node(NodeSpec::bootstrap("b0")).node(NodeSpec::origin("o0"));
    let mut mesh = mesh.node(NodeSpec::gateway("g0")).start().await?;
    let backends = [mesh.scratch("backend/o0")?];
    let image = ImageBuilder::new(921).gzip(false).payload(100_000).build()?;
    mesh.registry("g0", "app")?.push_image("1", &image).await?;
    let written = async || {
        let stored = async || Ok(check(&backends, &image, true).ok());
        wait_until("all of it is in the backend", shoal_tests::wait::PATIENCE, stored).await
    };
    written().await?;
    // One gateway has no copies, the other has.
    mesh.add(NodeSpec::gateway("g1")).await?;
    for (gateway, tag) in [("g1", "2"), ("g0", "3")] {
        // What is left of it at the origin is the copy in its store, which may be evicted.
        for blob in image.blobs() {
            let hex = blob.digest.trim_start_matches("sha256:");
            std::fs::remove_file(backends[0].join("blobs/sha256").join(&hex[..2]).join(hex))?;
        }
        let app = mesh.registry(gateway, "app")?;
        for blob in image.blobs() {
            let path = format!("/v2/app/blobs/{}", blob.digest);
            client::call(app.addr, http::Method::HEAD, &path).await?.expect(StatusCode::OK).await?;
        }
        app.push_manifest(tag, &image.manifest).await?.expect(StatusCode::CREATED).await?;
        written().await?;
    }
    mesh.finish().await
}

/// Runs `shoal gc` until it says that it deletes nothing because of `why`; it must never do anything else.
async fn refused(mesh: &Mesh, why: &str) -> Result<()> {
    let what = format!("a collection is refused because of {why:?}");
    let went_on = wait_until(&what, TRANSFER, async || match gc(mesh, &["--grace", "0s"]).await {
        Ok(reports) => Ok(Some(Some(reports))),
        Err(error) => {
            let said = format!("{error:#}");
            ensure!(said.contains(why), "{said}");
            Ok(Some(None))
        }
    });
    match went_on.await? {
        Some(reports) => bail!("it went on: {reports:?}"),
        None => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_deleted_while_an_origin_is_away_or_a_manifest_is_lost() -> Result<()> {
    let mesh = Mesh::empty().node(NodeSpec::bootstrap("b0"));
    let mesh = mesh.node(NodeSpec::origin("o0")).node(NodeSpec::origin("o1")).node(NodeSpec::gateway("g0"));
    let mut mesh = mesh.flag("--heartbeat-interval", "500ms").start().await?;
    let backends = [mesh.scratch("backend/o0")?, mesh.scratch("backend/o1")?];
    let app = mesh.registry("g0", "app")?;
    let image = |seed| ImageBuilder::new(seed).gzip(false).payload(100_000).build();
    let (old, new) = (image(911)?, image(912)?);
    app.push_image("1", &old).await?;
    app.push_image("1", &new).await?;
    wait_settled(&mesh).await?;
    gc(&mesh, &["--grace", "0s"]).await?;
    let away = mesh.node("o1")?.peer().to_owned();
    mesh.kill("o1").await?;
    // At once, while it still seems to be alive, and when everybody has noticed.
    refused(&mesh, "").await?;
    wait_until("the origin is missed", shoal_tests::wait::PATIENCE, async || {
        let known = mesh.node("o0")?.count(shoal_tests::contract::metric::ORIGINS).await?;
        Ok((known == 1.0).then_some(()))
    })
    .await?;
    refused(&mesh, &away).await?;
    // One that is given up is not waited for.
    wait_until("a collection goes on without it", TRANSFER, async || {
        gc(&mesh, &["--dry-run", "--grace", "0s", "--without", &away]).await.map(|_| Some(()))
    })
    .await?;
    check(&backends, &old, true)?;
    // Back again, it deletes; but not with a manifest that a tag names lost.
    mesh.restart("o1").await?;
    wait_settled(&mesh).await?;
    let hex = new.manifest.digest.trim_start_matches("sha256:").to_owned();
    for name in ["o0", "o1"] {
        mesh.kill(name).await?;
        mesh.wipe(name)?;
        let _ = std::fs::remove_file(
            mesh.scratch(&format!("backend/{name}"))?.join("blobs/sha256").join(&hex[..2]).join(&hex),
        );
    }
    mesh.kill("g0").await?;
    mesh.wipe("g0")?;
    mesh.restart("o0").await?;
    mesh.restart("o1").await?;
    for _ in 0..2 {
        refused(&mesh, "bytes are lost").await?;
    }
    for blob in old.blobs() {
        ensure!(is_stored(&backends, &blob.digest), "{} is gone", blob.digest);
    }
    mesh.finish().await
}
