//! `shoal why`: a pull is explained by what really bounded it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::StatusCode;
use serde_json::Value;
use shoal_tests::contract;
use shoal_tests::image::{Blob, noise};
use shoal_tests::process::run_program;
use shoal_tests::wait::PATIENCE;
use shoal_tests::{ImageBuilder, Mesh, NodeSpec, wait_until};

use crate::{MIB, pushed_blob};

/// The explanation of one blob's pull, as `shoal why --json` prints it.
async fn why(mesh: &Mesh, name: &str, digest: &str) -> Result<Value> {
    let ops = mesh.node(name)?.ops()?;
    let answer: Value = serde_json::from_str(&run_program(&contract::why(digest, ops, true)).await?)?;
    answer.get(0).cloned().context("no blob is explained")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_throttled_peer_is_named_and_so_are_its_phase_and_share() -> Result<()> {
    const SIZE: usize = 6 * MIB;
    let mut mesh = Mesh::empty()
        .node(NodeSpec::bootstrap("b0"))
        .node(NodeSpec::origin("o0"))
        .node(NodeSpec::gateway("g0"))
        .node(NodeSpec::gateway("slow").flag("--rate-out", "1MiB"))
        .node(NodeSpec::gateway("g1"))
        .start()
        .await?;
    // Only the throttled gateway can give the blob: those that had it before are gone.
    let blob = pushed_blob(&mesh, "g0", 1701, SIZE).await?;
    mesh.registry("slow", "e2e/blob")?.pull_blob(&blob.digest).await?;
    mesh.kill("g0").await?;
    mesh.kill("o0").await?;
    let mut answer =
        mesh.registry("g1", "e2e/blob")?.blob(&blob.digest).await?.expect(StatusCode::OK).await?;
    ensure!(answer.header("shoal-source") == "mesh", "the source is {}", answer.header("shoal-source"));
    ensure!(answer.header("server-timing").starts_with("open;"), "{}", answer.header("server-timing"));
    while answer.part().await?.is_some() {}

    let slow = mesh.node("slow")?.peer().to_owned();
    let explained = why(&mesh, "g1", &blob.digest).await?;
    ensure!(explained["verdict"]["phase"] == "seeder", "{explained}");
    ensure!(explained["verdict"]["peer"] == slow.as_str(), "{explained}");
    ensure!(explained["peers"][&slow]["bytes"] == SIZE, "{explained}");
    // The bound: all but the burst at a mebibyte a second; the rest of the time is small against it.
    let waited = explained["peers"][&slow]["waited_ms"].as_f64().context("no time")?;
    ensure!(waited > 3_000.0, "it was waited for {waited} ms: {explained}");
    let phases = explained["phases"].as_object().context("no phases")?;
    let total: f64 = phases.values().filter_map(Value::as_f64).sum();
    let (started, ended) = (explained["started_ms"].as_f64(), explained["completed_ms"].as_f64());
    let took = ended.context("not complete")? - started.context("not begun")?;
    ensure!((total - took).abs() < 0.1 * took + 50.0, "phases add up to {total} of {took} ms: {explained}");

    let told = run_program(&contract::why(&blob.digest, mesh.node("g1")?.ops()?, false)).await?;
    for part in ["bound by   waiting for a seeder", slow.as_str(), "100 %"] {
        ensure!(told.contains(part), "{part:?} is not in:\n{told}");
    }
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_own_limit_and_a_slow_client_are_told_apart_from_peers() -> Result<()> {
    let mesh = Mesh::empty()
        .node(NodeSpec::bootstrap("b0"))
        .node(NodeSpec::origin("o0"))
        .node(NodeSpec::gateway("g0"))
        .node(NodeSpec::gateway("g1").flag("--rate-in", "1MiB"))
        .start()
        .await?;
    let blob = pushed_blob(&mesh, "g0", 1702, 6 * MIB).await?;
    mesh.registry("g1", "e2e/blob")?.pull_blob(&blob.digest).await?;
    let explained = why(&mesh, "g1", &blob.digest).await?;
    ensure!(explained["verdict"]["phase"] == "own_link", "{explained}");

    // The blob is at `g0`; the client takes a part, and lets it wait for the rest.
    let large = Blob::new("application/octet-stream", noise(1703, 32 * MIB));
    mesh.registry("g0", "e2e/blob")?.push_blob(&large).await?;
    let mut answer = mesh.registry("g0", "e2e/blob")?.blob(&large.digest).await?;
    ensure!(answer.header("shoal-source") == "local");
    answer.part().await?.context("an empty body")?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    while answer.part().await?.is_some() {}
    wait_until("the read is over", PATIENCE, async || {
        let explained = why(&mesh, "g0", &large.digest).await?;
        ensure!(explained["verdict"]["phase"] == "client", "{explained}");
        ensure!(explained["read"]["client_ms"].as_f64() > Some(1_000.0), "{explained}");
        Ok(Some(()))
    })
    .await?;
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_explained_part_by_part_and_what_was_not_pulled_is_said() -> Result<()> {
    let mesh = Mesh::with_gateways(2).start().await?;
    let image = ImageBuilder::new(1704).payload(2 * MIB).build()?;
    mesh.registry("g0", "app")?.push_image("1", &image).await?;
    mesh.registry("g1", "app")?.pull("1").await?;
    let ops = mesh.node("g1")?.ops()?;
    let parts: Value = serde_json::from_str(&run_program(&contract::why("app:1", ops, true)).await?)?;
    let names: Vec<&str> =
        parts.as_array().context("no list")?.iter().filter_map(|part| part["part"].as_str()).collect();
    ensure!(names.first() == Some(&"manifest") && names.contains(&"config") && names.contains(&"layer"));
    ensure!(parts.as_array().is_some_and(|parts| parts.iter().all(|part| !part["verdict"].is_null())));
    let unknown = format!("sha256:{}", "0".repeat(64));
    let refused = run_program(&contract::why(&unknown, ops, false)).await;
    let text = refused.err().context("an unknown blob is explained")?.to_string();
    ensure!(text.contains("was not pulled through this daemon lately"), "{text}");
    mesh.finish().await
}
