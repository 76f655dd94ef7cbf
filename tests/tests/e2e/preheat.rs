//! Preheating: gateways have images before anybody pulls them.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use serde_json::Value;
use shoal_origin::conformance::servers::Server;
use shoal_tests::http::{full, get, send};
use shoal_tests::process::run_program;
use shoal_tests::wait::PATIENCE;
use shoal_tests::{Dialect, ImageBuilder, Mesh, NodeSpec, wait_until};

use crate::MIB;
use crate::mirrors::{mesh_of, upstream, url};

/// Runs `shoal preheat` with `--json`, through a node of the mesh.
async fn preheat(mesh: &Mesh, through: &str, words: &[&str]) -> Result<Value> {
    let ops = mesh.node(through)?.ops()?.to_string();
    let words = [&["preheat"], words, &["--json", "--ops", &ops]].concat();
    let said = run_program(&words.into_iter().map(str::to_owned).collect::<Vec<_>>()).await?;
    Ok(serde_json::from_str(said.trim())?)
}

/// What `shoal preheat` says when it fails.
async fn refused(mesh: &Mesh, through: &str, words: &[&str]) -> Result<String> {
    match preheat(mesh, through, words).await {
        Ok(report) => anyhow::bail!("{words:?} did not fail: {report}"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

/// The names of the nodes in a report that are in some state, in order.
fn names(mesh: &Mesh, report: &Value, state: &str, all: &[&str]) -> Result<Vec<String>> {
    let nodes = report["nodes"].as_array().context("no nodes")?;
    let peers: Vec<_> =
        nodes.iter().filter(|node| node["state"] == state).map(|node| &node["peer"]).collect();
    let mut found = Vec::new();
    for name in all {
        if peers.contains(&&Value::from(mesh.node(name)?.peer())) {
            found.push((*name).to_owned());
        }
    }
    ensure!(found.len() == peers.len(), "somebody else is in {report}");
    Ok(found)
}

/// Waits until a node knows all gateways of a mesh: it can only ask those.
async fn wait_known(mesh: &Mesh, through: &str, gateways: &[&str]) -> Result<()> {
    wait_until(&format!("{through} knows {gateways:?}"), PATIENCE, async || {
        let known = mesh.node(through)?.api("/api/v1/peers").await?;
        let known = known.as_array().context("no list")?;
        for name in gateways.iter().filter(|name| **name != through) {
            let peer = Value::from(mesh.node(name)?.peer());
            ensure!(known.iter().any(|row| row["peer"] == peer), "{name} is not known");
        }
        Ok(Some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_zones_gateways_have_an_image_and_serve_it_alone() -> Result<()> {
    let mesh = Mesh::empty().node(NodeSpec::bootstrap("b0")).node(NodeSpec::origin("o0"));
    let gateway = |name: &str, zone: &str| NodeSpec::gateway(name).zone(zone);
    let mesh = mesh.node(gateway("p0", "build")).node(gateway("g0", "eu")).node(gateway("g1", "eu"));
    let mut mesh = mesh.node(gateway("g2", "us")).start().await?;
    wait_known(&mesh, "g2", &["p0", "g0", "g1"]).await?;
    let app = mesh.registry("p0", "app")?;
    let image = ImageBuilder::new(961).gzip(false).payload(3 * MIB).payload(1000).build()?;
    app.push_image("1", &image).await?;
    let own = ImageBuilder::new(962).gzip(false).payload(MIB).build()?;
    let foreign = ImageBuilder::new(963).arch("riscv64").gzip(false).payload(MIB).build()?;
    let (here, elsewhere) = (own.layers[0].blob.digest.clone(), foreign.layers[0].blob.digest.clone());
    app.push_index("two", &[own, foreign], Dialect::Oci).await?;

    let report = preheat(&mesh, "g2", &["app:1", "--zone", "eu"]).await?;
    ensure!(names(&mesh, &report, "done", &["p0", "g0", "g1", "g2"])? == ["g0", "g1"], "{report}");
    ensure!(report["image"] == format!("app@{}", image.manifest.digest), "{report}");
    preheat(&mesh, "g0", &["app:two"]).await?;
    let no_such = refused(&mesh, "g0", &["app:two", "--platform", "windows/amd64"]).await?;
    ensure!(no_such.contains("0 of 2 nodes"), "{no_such}");
    for name in ["g0", "g1"] {
        let node = mesh.node(name)?;
        ensure!(node.sources(&here).await?.is_some(), "{name} has not fetched its own platform");
        ensure!(node.sources(&elsewhere).await?.is_none(), "{name} has fetched another platform");
        let counted = node.metrics().await?;
        ensure!(counted.sum_where("shoal_preheat_images_total", &[("outcome", "done")]) == 2.0, "{name}");
    }
    let elsewhere = mesh.node("g2")?.count("shoal_received_bytes_total").await?;
    ensure!(elsewhere == 0.0, "the other zone's gateway has {elsewhere} bytes");

    for name in ["o0", "p0", "g2", "g1"] {
        mesh.kill(name).await?;
    }
    mesh.registry("g0", "app")?.pull("1").await?;
    mesh.kill("g0").await?;
    mesh.restart("g1").await?;
    mesh.registry("g1", "app")?.pull("1").await?;
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn some_gateways_are_always_the_same_ones_and_what_fails_is_told() -> Result<()> {
    const ALL: [&str; 4] = ["g0", "g1", "g2", "g3"];
    let small = NodeSpec::gateway("s0").zone("small").flag("--capacity", "2MiB");
    let mut mesh = Mesh::with_gateways(4).node(small).start().await?;
    wait_known(&mesh, "o0", &ALL).await?;
    wait_known(&mesh, "o0", &["s0"]).await?;
    let image = ImageBuilder::new(971).gzip(false).payload(4 * MIB).build()?;
    mesh.registry("g0", "app")?.push_image("1", &image).await?;
    let words = ["app:1", "--count", "2"];
    let first = preheat(&mesh, "o0", &words).await?;
    let chosen = names(&mesh, &first, "done", &ALL)?;
    ensure!(chosen.len() == 2, "{first}");
    let other = ALL.iter().find(|name| !chosen.iter().any(|one| one == *name)).context("all were chosen")?;
    wait_known(&mesh, other, &ALL).await?;
    let again = preheat(&mesh, other, &words).await?;
    ensure!(names(&mesh, &again, "done", &ALL)? == chosen, "{first} {again}");
    let half = preheat(&mesh, "o0", &["app:1", "--percent", "50"]).await?;
    ensure!(names(&mesh, &half, "done", &ALL)? == chosen, "{half}");

    // For one that is gone another one has it.
    mesh.kill(&chosen[0]).await?;
    let report = preheat(&mesh, "o0", &words).await?;
    let left = names(&mesh, &report, "done", &ALL)?;
    ensure!(left.len() == 2 && left.contains(&chosen[1]) && !left.contains(&chosen[0]), "{report}");
    ensure!(names(&mesh, &report, "gone", &ALL)? == chosen[..1], "{report}");

    for (words, why) in [
        (&["app:none"][..], "no such image"),
        (&["app:1", "--zone", "mars"], "no gateway is known"),
        (&["app:1", "--zone", "small"], "1 failed"),
        (&["app:1", "--platform", "linux"], "is no platform"),
    ] {
        let told = refused(&mesh, "o0", words).await?;
        ensure!(told.contains(why), "{words:?}: {told}");
    }
    let log = mesh.log("s0")?;
    ensure!(log.contains("store may have"), "{log}");
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notification_of_harbor_preheats_an_image_of_harbor() -> Result<()> {
    const HOST: &str = "harbor.example";
    let harbor = Server::registry(false).await;
    let image = ImageBuilder::new(981).gzip(false).payload(2 * MIB).payload(1000).build()?;
    upstream(&harbor, "library/hello").push_image("1", &image).await?;
    let mesh = mesh_of(&[(HOST, url(&harbor, ""))], 1, 0);
    let gateway = |name: &str| NodeSpec::gateway(name).flag("--upstream", HOST);
    let mesh = mesh.node(gateway("g0").flag("--preheat", "all")).node(gateway("g1"));
    let mut mesh = mesh.start().await?;
    wait_known(&mesh, "g0", &["g1"]).await?;
    let digest = &image.manifest.digest;
    let body = format!(
        "{{\"Events\":[{{\"Id\":\"x\",\"TimeStamp\":\"2026-11-28T15:48:53.1Z\",\"Action\":\"push\",\"Target\":\
         {{\"MediaType\":\"application/vnd.docker.distribution.manifest.v2+json\",\"Digest\":\"{digest}\",\
         \"Repository\":\"library/hello\",\"Url\":\"https://{HOST}/v2/library/hello/manifests/1\",\"Tag\":\"1\"}},\
         \"Request\":null,\"Actor\":null}}]}}"
    );
    let notify = async |gateway: &str| {
        let request = Request::builder().method(Method::POST).uri("/registry/notifications");
        let request = request.header("content-type", "application/json");
        send(mesh.node(gateway)?.gateway()?, request.body(full(Bytes::from(body.clone())))?).await
    };
    get(mesh.node("g0")?.gateway()?, "/health").await?.expect(StatusCode::OK).await?;
    ensure!(notify("g1").await?.status == StatusCode::NOT_FOUND, "a gateway without the setting preheats");
    for _ in 0..2 {
        notify("g0").await?.expect(StatusCode::OK).await?;
    }
    for name in ["g0", "g1"] {
        wait_until(&format!("{name} has the image"), PATIENCE, async || {
            let metrics = mesh.node(name)?.metrics().await?;
            let done = metrics.sum_where("shoal_preheat_images_total", &[("outcome", "done")]);
            ensure!(done >= 1.0, "{done} images");
            Ok(Some(()))
        })
        .await?;
    }
    drop(harbor);
    mesh.kill("g0").await?;
    let received = mesh.node("g1")?.count("shoal_received_bytes_total").await?;
    mesh.registry("g1", "library/hello")?.of(HOST).pull(digest).await?;
    let after = mesh.node("g1")?.count("shoal_received_bytes_total").await?;
    ensure!(received > 0.0 && after == received, "{received} bytes before the pull, {after} after it");
    mesh.finish().await
}
