//! Docker.

use anyhow::{Result, ensure};
use shoal_tests::clients::Docker;
use shoal_tests::{Dialect, ImageBuilder};

use super::{Gateways, hundred_mib, many_layers, platforms, tiny};
use crate::MIB;

async fn push_then_run(gateways: &Gateways, docker: &Docker, name: &str, image: &ImageBuilder) -> Result<()> {
    let image = image.build()?;
    let archive = gateways.archive(&image, name)?;
    docker.push(&archive, &gateways.registry(0, name).reference("1")).await?;
    std::fs::remove_file(archive)?;
    for gateway in [1, 2] {
        run_from(gateways, docker, gateway, name, &image.output).await?;
    }
    Ok(())
}

async fn run_from(g: &Gateways, docker: &Docker, gateway: usize, name: &str, output: &str) -> Result<()> {
    let reference = g.registry(gateway, name).reference("1");
    docker.pull(&reference).await?;
    let printed = docker.run(&reference).await?;
    ensure!(printed == output, "{reference} printed {printed:?} instead of {output:?}");
    docker.forget().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_pushes_to_one_gateway_and_runs_from_the_others() -> Result<()> {
    let gateways = Gateways::start().await?;
    let docker = Docker::start(&gateways.dir("docker")).await?;

    push_then_run(&gateways, &docker, "docker-tiny", &tiny(1)).await?;
    push_then_run(&gateways, &docker, "docker-100mib", &hundred_mib(2)).await?;
    push_then_run(&gateways, &docker, "docker-layers", &many_layers(3)).await?;

    // Indexes in both vocabularies: docker itself only pushes what it has, which is one platform.
    for (name, dialect) in [("docker-index", Dialect::Oci), ("docker-list", Dialect::Docker)] {
        let images = platforms(4)?;
        gateways.registry(0, name).push_index("1", &images, dialect).await?;
        run_from(&gateways, &docker, 1, name, &images[0].output).await?;
        run_from(&gateways, &docker, 2, name, &images[0].output).await?;
    }

    // It asks for `Docker-Distribution-Api-Version` on `/v2/` or fails.
    let reference = gateways.registry(1, "docker-list").reference("1");
    let list = docker.run_docker(&["manifest", "inspect", "--insecure", &reference]).await?;
    ensure!(list.contains(&platforms(4)?[1].manifest.digest), "{list}");

    docker.stop().await?;
    gateways.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "1 GiB: `make test-large`"]
async fn large_docker_image_of_1_gib() -> Result<()> {
    let gateways = Gateways::start().await?;
    let docker = Docker::start(&gateways.dir("docker")).await?;
    let image = ImageBuilder::new(5).runnable().payload(640 * MIB).payload(256 * MIB).payload(128 * MIB);
    push_then_run(&gateways, &docker, "docker-1gib", &image).await?;
    docker.stop().await?;
    gateways.finish().await
}
