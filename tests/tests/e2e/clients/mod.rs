//! Real clients: push through one gateway, pull and run through the others.

mod containerd;
mod docker;
mod podman;
mod skopeo;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use shoal_tests::{Image, ImageBuilder, Mesh, Registry};

use crate::MIB;

/// More than the hundred that is asked for, and fewer than overlayfs takes (Docker allows 125).
const MANY_LAYERS: usize = 110;

/// Three gateways: those of a mesh, or any other registry's addresses out of `SHOAL_TEST_REGISTRIES` (three,
/// separated by commas), which tells a fault of a client's driver from one of ours.
struct Gateways {
    mesh: Option<Mesh>,
    addrs: [SocketAddr; 3],
    scratch: Scratch,
}

/// A directory that is taken down whatever happens: clients leave mounts in theirs.
pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(tempfile::Builder::new().prefix("shoal-client-").tempdir()?))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        shoal_tests::system::take_down(self.path());
    }
}

impl Gateways {
    async fn start() -> Result<Self> {
        let scratch = Scratch::new()?;
        if let Ok(others) = std::env::var("SHOAL_TEST_REGISTRIES") {
            let addrs: Vec<SocketAddr> = others.split(',').map(str::parse).collect::<Result<_, _>>()?;
            let addrs = addrs.try_into().ok().context("SHOAL_TEST_REGISTRIES needs three addresses")?;
            return Ok(Self { mesh: None, addrs, scratch });
        }
        let mesh = Mesh::with_gateways(3).start().await?;
        let addr = |name: &str| mesh.node(name)?.gateway();
        let addrs = [addr("g0")?, addr("g1")?, addr("g2")?];
        Ok(Self { mesh: Some(mesh), addrs, scratch })
    }

    fn registry(&self, gateway: usize, repository: &str) -> Registry {
        Registry::new(self.addrs[gateway], repository)
    }

    /// Writes an image as an archive that names it as the first gateway's.
    fn archive(&self, image: &Image, repository: &str) -> Result<PathBuf> {
        let path = self.scratch.path().join(format!("{repository}.tar"));
        image.save_docker_archive(&path, &self.registry(0, repository).reference("1"))?;
        Ok(path)
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    async fn finish(self) -> Result<()> {
        let left = shoal_tests::system::processes_mentioning(self.scratch.path());
        ensure!(left.is_empty(), "the client left processes: {left:?}");
        match self.mesh {
            Some(mesh) => mesh.finish().await,
            None => Ok(()),
        }
    }
}

fn tiny(seed: u64) -> ImageBuilder {
    ImageBuilder::new(seed).runnable()
}

fn hundred_mib(seed: u64) -> ImageBuilder {
    ImageBuilder::new(seed).runnable().payload(60 * MIB).payload(40 * MIB)
}

fn many_layers(seed: u64) -> ImageBuilder {
    (1..MANY_LAYERS).fold(ImageBuilder::new(seed).runnable(), |image, _| image.payload(3000))
}

/// This machine's image and another architecture's, whose busybox nobody will run.
fn platforms(seed: u64) -> Result<[Image; 2]> {
    let other = if cfg!(target_arch = "aarch64") { "amd64" } else { "arm64" };
    Ok([tiny(seed).payload(MIB).build()?, ImageBuilder::new(seed + 1).arch(other).payload(MIB).build()?])
}
