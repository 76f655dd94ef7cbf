//! Replication between zones: whole images arrive at the origins of another zone without anybody pulling them there.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use http::StatusCode;
use serde_json::Value;
use shoal_tests::image::artifact_of;
use shoal_tests::process::run_program;
use shoal_tests::wait::{PATIENCE, TRANSFER};
use shoal_tests::{Dialect, Image, ImageBuilder, Mesh, NodeSpec, image, wait_until};

use crate::MIB;

fn origin(name: &str, zone: &str, rule: &str) -> NodeSpec {
    let spec = NodeSpec::origin(name).zone(zone).flag("--heartbeat-interval", "500ms");
    if rule.is_empty() { spec } else { spec.flag("--replicate", rule) }
}

fn gateway(name: &str, zone: &str) -> NodeSpec {
    NodeSpec::gateway(name).zone(zone)
}

fn is_stored(backend: &std::path::Path, digest: &str) -> bool {
    let hex = digest.trim_start_matches("sha256:");
    backend.join("blobs/sha256").join(&hex[..2]).join(hex).is_file()
}

/// Waits until one of some backends has each of these.
async fn wait_stored(mesh: &Mesh, origins: &[&str], digests: &[&str]) -> Result<()> {
    let backends: Vec<PathBuf> =
        origins.iter().map(|name| mesh.scratch(&format!("backend/{name}"))).collect::<Result<_>>()?;
    wait_until(&format!("{origins:?} have the image"), TRANSFER, async || {
        for digest in digests {
            ensure!(backends.iter().any(|backend| is_stored(backend, digest)), "{digest} is not there");
        }
        Ok(Some(()))
    })
    .await
}

fn digests(image: &Image) -> Vec<&str> {
    image.blobs().chain([&image.manifest]).map(|blob| blob.digest.as_str()).collect()
}

async fn replication(mesh: &Mesh, origin: &str) -> Result<Value> {
    mesh.node(origin)?.api("/api/v1/replications").await
}

async fn wait_done(mesh: &Mesh, origin: &str) -> Result<()> {
    wait_until(&format!("{origin} has nothing to copy any more"), TRANSFER, async || {
        let status = replication(mesh, origin).await?;
        ensure!(status["waiting"] == 0, "{status}");
        Ok(Some(()))
    })
    .await
}

async fn tag_digest(mesh: &Mesh, gateway: &str, repository: &str, tag: &str) -> Result<String> {
    let answer = mesh.registry(gateway, repository)?.manifest(tag).await?.expect(StatusCode::OK).await?;
    Ok(answer.header("docker-content-digest").to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whole_images_cross_the_link_once_and_are_served_when_their_zone_is_gone() -> Result<()> {
    let mesh = Mesh::empty().node(NodeSpec::bootstrap("b0"));
    let mesh = mesh.node(origin("o0", "eu", "prod/.*=us")).node(gateway("g0", "eu"));
    let mesh = mesh.node(origin("u0", "us", "")).node(origin("u1", "us", ""));
    // One copy a zone: which of the two owners has a blob is up to its digest.
    let mut mesh = mesh.flag("--replicas", "1").start().await?;
    let app = mesh.registry("g0", "prod/app")?;
    let build = |seed, arch: &str| ImageBuilder::new(seed).arch(arch).gzip(false).payload(3 * MIB).build();
    let platforms = [build(921, "amd64")?, build(922, "riscv64")?];
    let index = app.push_index("1", &platforms, Dialect::Oci).await?;
    // A signature of one platform, pushed after the tag.
    let content = image::Blob::new("application/octet-stream", image::noise(923, 1000));
    let (config, artifact) = artifact_of(&platforms[0].manifest, "application/vnd.example.sig", &content);
    for blob in [&config, &content] {
        app.push_blob(blob).await?;
    }
    app.push_manifest(&artifact.digest, &artifact).await?;
    let other = build(924, "amd64")?;
    mesh.registry("g0", "dev/app")?.push_image("1", &other).await?;
    let mut all: Vec<&str> = platforms.iter().flat_map(digests).collect();
    all.extend([index.digest.as_str(), &artifact.digest, &content.digest, &config.digest]);
    wait_stored(&mesh, &["u0", "u1"], &all).await?;
    wait_done(&mesh, "o0").await?;
    let size: usize =
        platforms.iter().flat_map(|image| image.blobs()).map(|blob| blob.bytes.len()).sum::<usize>() + 1000;
    let mut crossed = 0.0;
    for name in ["u0", "u1"] {
        let metrics = mesh.node(name)?.metrics().await?;
        crossed += metrics.sum_where("shoal_zone_received_bytes_total", &[("zone", "eu")]);
    }
    ensure!(crossed >= size as f64 && crossed <= 1.05 * size as f64, "{crossed} bytes crossed for {size}");
    let backends = [mesh.scratch("backend/u0")?, mesh.scratch("backend/u1")?];
    let stray = backends.iter().any(|backend| is_stored(backend, &other.manifest.digest));
    ensure!(!stray, "an image that no rule matches was copied");

    mesh.kill("o0").await?;
    mesh.kill("g0").await?;
    mesh.add(gateway("g1", "us")).await?;
    let there = mesh.registry("g1", "prod/app")?;
    there.pull("1").await?;
    ensure!(
        there.referrers(&platforms[0].manifest.digest, "").await?.len() == 1,
        "the referrer is not there"
    );
    there.pull(&artifact.digest).await?;
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pushed_while_a_zone_is_cut_off_arrives_later_whoever_of_the_source_is_left() -> Result<()> {
    let mesh = Mesh::empty().node(NodeSpec::bootstrap("b0")).node(gateway("g0", "eu"));
    let sources = ["o0", "o1", "o2"];
    let mesh = sources.iter().fold(mesh, |mesh, name| mesh.node(origin(name, "eu", ".*=us")));
    let mut mesh = mesh.node(origin("u0", "us", "")).flag("--replicas", "3").start().await?;
    mesh.kill("u0").await?;
    let app = mesh.registry("g0", "app")?;
    let build = |seed| ImageBuilder::new(seed).gzip(false).payload(2 * MIB).build();
    let (one, two) = (build(931)?, build(932)?);
    app.push_image("1", &one).await?;
    app.push_image("1", &two).await?;
    let queued = wait_until("the copy is tried again and again", PATIENCE, async || {
        // A majority of the owners queued it before the push was answered.
        let (mut waiting, mut retries) = (Vec::new(), Vec::new());
        for name in sources {
            let status = replication(&mesh, name).await?;
            waiting.extend((status["waiting"] == 1).then_some(name));
            retries.extend((status["retries"].as_u64() >= Some(3)).then_some(name));
        }
        ensure!(waiting.len() >= 2 && !retries.is_empty(), "waiting at {waiting:?}, retried at {retries:?}");
        Ok(Some((waiting, retries)))
    })
    .await?;
    // The queue is on the disks, and any of its owners is enough, also one that has not tried.
    let (waiting, retries) = queued;
    let left = *waiting.iter().find(|name| !retries.contains(name)).unwrap_or(&waiting[0]);
    for name in sources.iter().filter(|name| **name != left) {
        mesh.kill(name).await?;
    }
    mesh.kill(left).await?;
    mesh.restart(left).await?;
    mesh.restart("u0").await?;
    wait_stored(&mesh, &["u0"], &digests(&two)).await?;
    wait_done(&mesh, left).await?;
    mesh.add(gateway("g1", "us")).await?;
    mesh.kill(left).await?;
    mesh.registry("g1", "app")?.pull("1").await?;
    ensure!(tag_digest(&mesh, "g1", "app", "1").await? == two.manifest.digest, "the tag is an older image");
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_both_ways_converge_and_one_can_copy_by_hand() -> Result<()> {
    let mesh = Mesh::empty().node(NodeSpec::bootstrap("b0"));
    let mesh = mesh.node(origin("o0", "eu", "both/.*=us")).node(origin("u0", "us", "both/.*=eu"));
    let mesh = mesh.node(gateway("g0", "eu")).node(gateway("g1", "us")).start().await?;
    let build = |seed| ImageBuilder::new(seed).gzip(false).payload(MIB).build();
    let mut pushes = Vec::new();
    for round in 0..3 {
        let (one, two) = (build(941 + 2 * round)?, build(942 + 2 * round)?);
        let (eu, us) = (mesh.registry("g0", "both/app")?, mesh.registry("g1", "both/app")?);
        let (pushed, also) = tokio::join!(eu.push_image("1", &one), us.push_image("1", &two));
        pushed?;
        also?;
        pushes.extend([one, two]);
    }
    for name in ["o0", "u0"] {
        wait_done(&mesh, name).await?;
    }
    let digest = wait_until("both zones name the same image", PATIENCE, async || {
        let (eu, us) = (
            tag_digest(&mesh, "g0", "both/app", "1").await?,
            tag_digest(&mesh, "g1", "both/app", "1").await?,
        );
        ensure!(eu == us, "{eu} and {us}");
        Ok(Some(eu))
    })
    .await?;
    let last = pushes.iter().find(|image| image.manifest.digest == digest);
    let last = digests(last.unwrap_or(&pushes[0]));
    wait_stored(&mesh, &["o0"], &last).await?;
    wait_stored(&mesh, &["u0"], &last).await?;
    // They do not chase each other.
    let copied = |status: &Value| status["copied"].as_u64().unwrap_or_default();
    ensure!(copied(&replication(&mesh, "o0").await?) <= 6, "{}", replication(&mesh, "o0").await?);

    let hand = build(950)?;
    mesh.registry("g0", "hand")?.push_image("1", &hand).await?;
    let ops = mesh.node("o0")?.ops()?.to_string();
    let words = |zone: &str, image: &str| {
        ["replicate", image, "--to", zone, "--ops", &ops, "--json"].map(str::to_owned).to_vec()
    };
    let said = run_program(&words("us", "hand:1")).await?;
    ensure!(said.contains("\"replicated\""), "{said}");
    wait_stored(&mesh, &["u0"], &digests(&hand)).await?;
    for (zone, image) in [("mars", "hand:1"), ("us", "hand:none"), ("eu", "hand:1")] {
        ensure!(run_program(&words(zone, image)).await.is_err(), "{image} was copied to {zone}");
    }
    mesh.finish().await
}
