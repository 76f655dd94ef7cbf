//! `shoal push`: images out of files, and what is said of files that are none.

use anyhow::{Result, ensure};
use serde_json::Value;
use shoal_tests::process::run_program;
use shoal_tests::{ImageBuilder, Mesh, system};
use tokio::process::Command;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_every_form_are_pushed() -> Result<()> {
    let mesh = Mesh::with_gateways(2).start().await?;
    let dir = mesh.scratch("files")?;
    let image = ImageBuilder::new(560).payload(3_000_000).payload(10).build()?;
    let docker = dir.join("docker.tar");
    image.save_docker_archive(&docker, "thing:1")?;
    let (layout, layout_tar) = (dir.join("layout"), dir.join("layout.tar"));
    let from = format!("docker-archive:{}", docker.display());
    for to in [format!("oci:{}:1", layout.display()), format!("oci-archive:{}:1", layout_tar.display())] {
        system::run(Command::new("skopeo").args(["--insecure-policy", "copy", "--quiet", &from, &to]))
            .await?;
    }
    let gateway = mesh.node("g0")?.gateway()?.to_string();
    let push = async |file: &std::path::Path, reference: &str| {
        let words =
            ["push", "--json", "--gateway", &gateway, &file.to_string_lossy(), reference].map(str::to_owned);
        run_program(&words).await
    };
    for (name, file) in [("from-docker", &docker), ("from-layout", &layout), ("from-tar", &layout_tar)] {
        let said: Value = serde_json::from_str(&push(file, &format!("{name}:1")).await?)?;
        // Every blob is there and has its digest, from another gateway.
        let registry = mesh.registry("g1", name)?;
        ensure!(registry.pull("1").await? > 3_000_000 || name != "from-docker", "{name} lacks its layers");
        let answer = registry.manifest("1").await?;
        ensure!(answer.header("docker-content-digest") == said["digest"], "{name}: {said}");
        // Once more, when all is there.
        ensure!(serde_json::from_str::<Value>(&push(file, &format!("{name}:1")).await?)? == said, "{name}");
    }

    let wrong = dir.join("wrong.tar");
    std::fs::write(&wrong, "no archive at all")?;
    for (file, reference, why) in [
        (&wrong, "x:1", "tar file"),
        (&dir.join("nothing"), "x:1", "nothing"),
        (&docker, &format!("x@{}", image.manifest.digest)[..], "tag"),
    ] {
        let error = format!("{:#}", push(file, reference).await.err().unwrap_or(anyhow::anyhow!("pushed")));
        ensure!(error.contains(why), "{error}");
    }
    mesh.finish().await
}
