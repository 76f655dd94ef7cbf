//! Blobs whose pieces nobody knows are passed on while an origin reads them for the first time, and are read once.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use http::StatusCode;
use shoal_tests::contract::metric;
use shoal_tests::image::{Blob, noise};
use shoal_tests::{Mesh, NodeSpec, Registry, Server, system};

use crate::MIB;

const SIZE: usize = 32 * MIB;
/// Slow enough that whoever waits for the whole blob is seen to.
const RATE: &str = "rate-in=8MiB";
const GATEWAYS: usize = 4;

async fn read_by_origin(mesh: &Mesh) -> Result<f64> {
    Ok(mesh.node("o0")?.metrics().await?.sum(metric::BACKEND_READ))
}

/// All gateways ask at once; the first bytes come while the origin reads the last ones, and it reads each once.
async fn comes_while_it_is_read(mesh: &Mesh, registries: &[Registry], blob: &Blob) -> Result<()> {
    let before = read_by_origin(mesh).await?;
    let first_bytes = async {
        let mut answer = registries[0].blob(&blob.digest).await?.expect(StatusCode::OK).await?;
        answer.part().await?.context("an empty body")?;
        let read = read_by_origin(mesh).await? - before;
        while answer.part().await?.is_some() {}
        anyhow::Ok(read)
    };
    let others = try_join_all(registries[1..].iter().map(|registry| registry.pull_blob(&blob.digest)));
    let (read_at_first, _) = futures::future::try_join(first_bytes, others).await?;
    registries[0].pull_blob(&blob.digest).await?;
    let read = read_by_origin(mesh).await? - before;
    println!("{read_at_first} bytes were read when the first came, {read} in the end, of {SIZE}");
    ensure!(
        read_at_first < 0.75 * SIZE as f64,
        "{read_at_first} bytes were read before the first was passed on"
    );
    ensure!(read >= SIZE as f64 && read <= 1.05 * SIZE as f64, "{read} bytes were read of {SIZE}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_s_blob_is_passed_on_while_it_is_read() -> Result<()> {
    let server = Server::registry(false).await;
    let blob = Blob::new("application/octet-stream", noise(1201, SIZE));
    Registry::new(([127, 0, 0, 1], server.port()).into(), "app").push_blob(&blob).await?;
    let url = format!("registry.example=registry://127.0.0.1:{}?plain-http&{RATE}", server.port());
    let origin = NodeSpec::origin("o0").flag("--upstream", &url);
    let mesh =
        (0..GATEWAYS).fold(Mesh::empty().node(NodeSpec::bootstrap("b0")).node(origin), |mesh, number| {
            mesh.node(NodeSpec::gateway(&format!("g{number}")).flag("--upstream", "registry.example"))
        });
    let mesh = mesh.exclusive().start().await?;
    let registries: Vec<_> = (0..GATEWAYS)
        .map(|number| Ok(mesh.registry(&format!("g{number}"), "app")?.of("registry.example")))
        .collect::<Result<_>>()?;
    comes_while_it_is_read(&mesh, &registries, &blob).await?;
    mesh.finish().await
}

fn remove_metainfo(dir: &Path) -> Result<usize> {
    let files = system::files_below(dir);
    let found: Vec<_> =
        files.iter().filter(|(path, _)| path.extension().is_some_and(|end| end == "metainfo")).collect();
    for (path, _) in &found {
        std::fs::remove_file(path)?;
    }
    Ok(found.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_without_metainfo_is_passed_on_while_it_is_read() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let backend = dir.path().join("backend");
    std::fs::create_dir(&backend)?;
    let origin = NodeSpec::origin("o0").backend(&format!("fs:{}?{RATE}", backend.display()));
    let mesh = Mesh::empty().node(NodeSpec::bootstrap("b0")).node(origin);
    let mesh = (0..=GATEWAYS).fold(mesh, |mesh, number| mesh.node(NodeSpec::gateway(&format!("g{number}"))));
    let mut mesh = mesh.exclusive().start().await?;
    let blob = Blob::new("application/octet-stream", noise(1202, SIZE));
    let pusher = format!("g{GATEWAYS}");
    mesh.registry(&pusher, "app")?.push_blob(&blob).await?;
    for name in [pusher.as_str(), "o0"] {
        mesh.kill(name).await?;
        mesh.wipe(name)?;
    }
    ensure!(remove_metainfo(&backend)? > 0, "no metainfo was beside the blob");
    mesh.restart("o0").await?;
    mesh.wait_joined().await?;
    let registries: Vec<_> =
        (0..GATEWAYS).map(|number| mesh.registry(&format!("g{number}"), "app")).collect::<Result<_>>()?;
    comes_while_it_is_read(&mesh, &registries, &blob).await?;
    mesh.finish().await
}
