//! The console in a real browser: a swarm fills, every view is reached by keyboard, and nothing goes wrong.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use http::StatusCode;
use serde_json::Value;
use shoal_tests::wait::{PATIENCE, TRANSFER};
use shoal_tests::{ImageBuilder, Mesh, NodeSpec, http as client, system, wait_until};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::{MIB, pushed_blob};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swarm_fills_before_a_browsers_eyes() -> Result<()> {
    const SIZE: usize = 100_000_000;
    let mesh = Mesh::empty()
        .node(NodeSpec::bootstrap("b0"))
        .node(NodeSpec::origin("o0"))
        .node(NodeSpec::gateway("g0"))
        .node(NodeSpec::gateway("g1").flag("--rate-in", "10MiB"))
        .node(NodeSpec::gateway("g2").zone("away"))
        .exclusive()
        .start()
        .await?;
    let image = ImageBuilder::new(1802).payload(2 * MIB).build()?;
    mesh.registry("g0", "shop/app")?.push_image("1.0", &image).await?;
    mesh.registry("g2", "shop/app")?.pull("1.0").await?;
    let blob = pushed_blob(&mesh, "g0", 1801, SIZE).await?;

    let shots = match std::env::var_os("SHOAL_SCREENSHOTS") {
        Some(dir) => dir.into(),
        None => mesh.scratch("screenshots")?,
    };
    std::fs::create_dir_all(&shots)?;
    let script = system::project("tests/browser/console.mjs");
    let mut browser = Command::new("node")
        .arg(script)
        .arg(format!("http://{}", mesh.node("g1")?.ops()?))
        .arg(&blob.digest)
        .arg(&shots)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("node cannot be started: scripts/setup.sh installs it and chromium")?;
    let mut said = BufReader::new(browser.stdout.take().context("no output")?).lines();
    let first = tokio::time::timeout(PATIENCE, said.next_line()).await??;
    ensure!(first.as_deref() == Some("watching"), "the page does not come up: {first:?}");
    mesh.registry("g1", "e2e/blob")?.pull_blob(&blob.digest).await?;
    let last = tokio::time::timeout(TRANSFER, said.next_line()).await??.context("the browser gave up")?;
    ensure!(browser.wait().await?.success());
    let seen: Value = serde_json::from_str(&last)?;

    ensure!(seen["errors"] == serde_json::json!([]), "the browser complains: {}", seen["errors"]);
    ensure!(seen["outside"] == serde_json::json!([]), "the page asks elsewhere: {}", seen["outside"]);
    ensure!(seen["views"].as_array().is_some_and(|views| views.len() == 5), "{}", seen["views"]);
    ensure!(seen["why"].as_str().is_some_and(|why| why.contains("this machine's link")), "{}", seen["why"]);
    let filled: Vec<(f64, f64)> = seen["filled"]
        .as_array()
        .context("no map")?
        .iter()
        .filter_map(|seen| {
            Some((seen["have"].as_f64()? / seen["total"].as_f64()?, seen["painted"].as_f64()?))
        })
        .collect();
    ensure!(filled.len() >= 5, "the map was seen in {} states: {filled:?}", filled.len());
    ensure!(filled.is_sorted_by(|one, two| one.0 <= two.0), "the map went back: {filled:?}");
    ensure!(filled.first().is_some_and(|first| first.0 < 0.5), "it was first seen late: {filled:?}");
    // The first look may come between the page's choosing a blob and its painting it.
    for (have, painted) in filled.iter().skip(1) {
        // Cells have gaps between them, and hold several pieces each.
        ensure!(
            (have - painted).abs() < 0.3,
            "{have} of the pieces are here, {painted} is painted: {filled:?}"
        );
    }
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_is_confined_and_watchers_are_bounded() -> Result<()> {
    let mesh = Mesh::with_gateways(1).start().await?;
    let ops = mesh.node("g0")?.ops()?;
    let page = client::get(ops, "/").await?.expect(StatusCode::OK).await?;
    ensure!(page.header("content-security-policy").contains("default-src 'none'"));
    let text = page.text().await?;
    ensure!(!text.contains("http://") && !text.contains("https://"), "the page names another place");
    let mut watching = Vec::new();
    for _ in 0..16 {
        let mut answer = client::get(ops, "/api/v1/live").await?.expect(StatusCode::OK).await?;
        let part = answer.part().await?.context("no picture")?;
        ensure!(part.starts_with(b"event: picture\ndata: {"), "{part:?}");
        watching.push(answer);
    }
    let refused = client::get(ops, "/api/v1/live").await?;
    refused.expect(StatusCode::SERVICE_UNAVAILABLE).await?;
    drop(watching);
    wait_until("there is room again", PATIENCE, async || {
        client::get(ops, "/api/v1/live").await?.expect(StatusCode::OK).await?;
        Ok(Some(()))
    })
    .await?;
    mesh.finish().await
}
