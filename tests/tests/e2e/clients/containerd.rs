//! containerd.

use anyhow::{Result, ensure};
use shoal_tests::Dialect;
use shoal_tests::clients::Containerd;

use super::{Gateways, hundred_mib, many_layers, platforms, tiny};

/// A registry that exists only as a directory of `hosts.toml`: the way a mirror is configured. containerd then appends
/// `?ns=` to what it asks.
const MIRRORED: &str = "registry.shoal.test";

async fn run_everywhere(
    gateways: &Gateways,
    containerd: &Containerd,
    name: &str,
    output: &str,
) -> Result<()> {
    containerd.send_to(MIRRORED, gateways.addrs[2])?;
    let direct = gateways.registry(1, name).reference("1");
    let mirrored = format!("{MIRRORED}/{name}:1");
    for (namespace, reference) in [("direct", direct), ("mirrored", mirrored)] {
        let namespace = format!("{name}-{namespace}");
        containerd.pull(&namespace, &reference).await?;
        let printed = containerd.run(&namespace, &reference, &format!("run-{namespace}")).await?;
        ensure!(printed == output, "{reference} printed {printed:?} instead of {output:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containerd_pushes_to_one_gateway_and_runs_from_the_others() -> Result<()> {
    let gateways = Gateways::start().await?;
    let containerd = Containerd::start(&gateways.dir("containerd")).await?;
    for addr in gateways.addrs {
        containerd.send_to(&addr.to_string(), addr)?;
    }

    for (name, image) in
        [("ctr-tiny", tiny(11)), ("ctr-100mib", hundred_mib(12)), ("ctr-layers", many_layers(13))]
    {
        let image = image.build()?;
        let archive = gateways.archive(&image, name)?;
        containerd.push("push", &archive, &gateways.registry(0, name).reference("1")).await?;
        std::fs::remove_file(archive)?;
        run_everywhere(&gateways, &containerd, name, &image.output).await?;
    }
    for (name, dialect) in [("ctr-index", Dialect::Oci), ("ctr-list", Dialect::Docker)] {
        let images = platforms(14)?;
        gateways.registry(0, name).push_index("1", &images, dialect).await?;
        run_everywhere(&gateways, &containerd, name, &images[0].output).await?;
    }

    containerd.stop().await?;
    gateways.finish().await
}
