//! podman and buildah.

use anyhow::{Result, ensure};
use shoal_tests::Dialect;
use shoal_tests::clients::{Buildah, Podman, Skopeo};
use shoal_tests::image::noise;

use super::{Gateways, hundred_mib, many_layers, platforms, tiny};
use crate::MIB;

async fn run_everywhere(gateways: &Gateways, podman: &Podman, name: &str, output: &str) -> Result<()> {
    for gateway in [1, 2] {
        let reference = gateways.registry(gateway, name).reference("1");
        podman.pull(&reference).await?;
        let printed = podman.run(&reference).await?;
        ensure!(printed == output, "{reference} printed {printed:?} instead of {output:?}");
        podman.forget().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn podman_pushes_to_one_gateway_and_runs_from_the_others() -> Result<()> {
    let gateways = Gateways::start().await?;
    let podman = Podman::new(&gateways.dir("podman"))?;

    for (name, image) in
        [("podman-tiny", tiny(21)), ("podman-100mib", hundred_mib(22)), ("podman-layers", many_layers(23))]
    {
        let image = image.build()?;
        let archive = gateways.archive(&image, name)?;
        podman.push(&archive, &gateways.registry(0, name).reference("1")).await?;
        std::fs::remove_file(archive)?;
        run_everywhere(&gateways, &podman, name, &image.output).await?;
    }
    let images = platforms(24)?;
    gateways.registry(0, "podman-index").push_index("1", &images, Dialect::Oci).await?;
    run_everywhere(&gateways, &podman, "podman-index", &images[0].output).await?;

    // Layers compressed with zstd, which podman itself of this age cannot push.
    let image = tiny(25).payload(3 * MIB).build()?;
    let archive = gateways.archive(&image, "podman-zstd")?;
    let skopeo = Skopeo::new(&gateways.dir("skopeo"))?;
    let to = format!("docker://{}", gateways.registry(0, "podman-zstd").reference("1"));
    let zstd = ["--format=oci", "--dest-compress-format=zstd"];
    skopeo.copy(&zstd, &format!("docker-archive:{}", archive.display()), &to).await?;
    run_everywhere(&gateways, &podman, "podman-zstd", &image.output).await?;

    podman.stop().await?;
    gateways.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buildah_builds_pushes_and_pulls() -> Result<()> {
    let gateways = Gateways::start().await?;
    let buildah = Buildah::new(&gateways.dir("buildah"))?;
    let content = noise(31, 100 * MIB);
    let file = gateways.dir("payload");
    std::fs::write(&file, &content)?;
    let built = "localhost/built:1";
    buildah.build(built, &file, "/payload").await?;
    buildah.push(built, &gateways.registry(0, "buildah").reference("1")).await?;
    for gateway in [1, 2] {
        buildah.forget().await?;
        let reference = gateways.registry(gateway, "buildah").reference("1");
        buildah.pull(&reference).await?;
        ensure!(buildah.read(&reference, "/payload").await? == content, "{reference} has another payload");
    }
    buildah.stop().await?;
    gateways.finish().await
}
