//! Images made of nothing but a seed: real layers that unpack and run, or that only have a size.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context, Result};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use rand_core::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::tar::Tar;

/// Media type of an OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of an OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of a Docker schema 2 manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of a Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Media type and content of the empty descriptor (OCI image specification 1.1).
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// The static busybox that runnable images contain (Debian's `busybox-static`).
const BUSYBOX: &str = "/bin/busybox";

/// The `sha256:` digest of some bytes.
pub fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", data_encoding::HEXLOWER.encode(&Sha256::digest(bytes)))
}

/// Bytes that nothing compresses, the same for the same seed.
pub fn noise(seed: u64, size: usize) -> Bytes {
    let mut bytes = vec![0; size];
    Pcg64Mcg::seed_from_u64(seed).fill_bytes(&mut bytes);
    Bytes::from(bytes)
}

/// Something to upload: bytes, what they are, and their digest.
#[derive(Clone, Debug)]
pub struct Blob {
    /// What it is.
    pub media_type: String,
    /// Its content.
    pub bytes: Bytes,
    /// The content's digest.
    pub digest: String,
}

impl Blob {
    /// Names some bytes.
    pub fn new(media_type: &str, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { media_type: media_type.to_owned(), digest: digest_of(&bytes), bytes }
    }

    /// Its descriptor (OCI image specification, "Content Descriptors").
    pub fn descriptor(&self) -> serde_json::Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

/// Which of the two vocabularies of media types an image speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `application/vnd.oci.…`
    Oci,
    /// `application/vnd.docker.…`, schema 2.
    Docker,
}

/// One layer in both its forms.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The archive itself.
    pub tar: Bytes,
    /// What is uploaded: the archive, perhaps compressed.
    pub blob: Blob,
}

/// An image of one platform.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its architecture in Go's words.
    pub arch: String,
    /// Its config.
    pub config: Blob,
    /// Its layers, lowest first.
    pub layers: Vec<Layer>,
    /// Its manifest.
    pub manifest: Blob,
    /// What a container of it prints, when it is runnable.
    pub output: String,
}

/// Describes an [`Image`].
#[derive(Clone, Debug)]
pub struct ImageBuilder {
    seed: u64,
    arch: String,
    dialect: Dialect,
    gzip: bool,
    runnable: bool,
    payloads: Vec<usize>,
}

impl ImageBuilder {
    /// An image of no layers for this machine.
    pub fn new(seed: u64) -> Self {
        let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        Self {
            seed,
            arch: arch.to_owned(),
            dialect: Dialect::Oci,
            gzip: true,
            runnable: false,
            payloads: Vec::new(),
        }
    }

    /// For another architecture.
    pub fn arch(mut self, arch: &str) -> Self {
        arch.clone_into(&mut self.arch);
        self
    }

    /// In which media types.
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// Whether layers are gzipped.
    pub fn gzip(mut self, gzip: bool) -> Self {
        self.gzip = gzip;
        self
    }

    /// With busybox in it and a command that prints its payloads' SHA-256.
    pub fn runnable(mut self) -> Self {
        self.runnable = true;
        self
    }

    /// One more layer, with one file of so many bytes.
    pub fn payload(mut self, bytes: usize) -> Self {
        self.payloads.push(bytes);
        self
    }

    /// Makes it.
    ///
    /// # Errors
    /// When it shall be runnable and there is no static busybox here.
    pub fn build(&self) -> Result<Image> {
        let mut layers = Vec::new();
        let mut output = String::new();
        let mut command = vec!["/bin/busybox".to_owned()];
        if self.runnable {
            layers.push(self.layer(self.busybox()?)?);
        }
        if self.payloads.is_empty() {
            command.extend(["echo".to_owned(), format!("seed {}", self.seed)]);
            output = format!("seed {}\n", self.seed);
        } else {
            command.push("sha256sum".to_owned());
        }
        for (number, size) in self.payloads.iter().enumerate() {
            let content = noise(self.seed.wrapping_add(1_000_003 * (number as u64 + 1)), *size);
            let sum = digest_of(&content);
            output += &format!("{}  /payload-{number}\n", sum.trim_start_matches("sha256:"));
            command.push(format!("/payload-{number}"));
            let mut tar = Tar::new(Vec::with_capacity(size + 2048));
            tar.file(&format!("payload-{number}"), 0o644, &content)?;
            layers.push(self.layer(tar.finish()?)?);
        }
        let config = self.config(&layers, &command);
        let manifest = self.manifest(&config, &layers);
        Ok(Image { arch: self.arch.clone(), config, layers, manifest, output })
    }

    fn busybox(&self) -> Result<Vec<u8>> {
        let program = std::fs::read(BUSYBOX).with_context(|| {
            format!("{BUSYBOX} is missing: run scripts/setup.sh (package busybox-static)")
        })?;
        let mut tar = Tar::new(Vec::with_capacity(program.len() + 4096));
        tar.dir("bin/")?;
        tar.file("bin/busybox", 0o755, &program)?;
        // Makes the layer, and with it the image, unlike any other seed's.
        tar.file("seed", 0o644, self.seed.to_string().as_bytes())?;
        Ok(tar.finish()?)
    }

    fn layer(&self, tar: Vec<u8>) -> Result<Layer> {
        let tar = Bytes::from(tar);
        let media_type = match (self.dialect, self.gzip) {
            (Dialect::Oci, true) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Dialect::Oci, false) => "application/vnd.oci.image.layer.v1.tar",
            (Dialect::Docker, true) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (Dialect::Docker, false) => "application/vnd.docker.image.rootfs.diff.tar",
        };
        let bytes = if self.gzip {
            let mut gzip = GzEncoder::new(Vec::with_capacity(tar.len()), Compression::fast());
            gzip.write_all(&tar)?;
            Bytes::from(gzip.finish()?)
        } else {
            tar.clone()
        };
        Ok(Layer { tar, blob: Blob::new(media_type, bytes) })
    }

    fn config(&self, layers: &[Layer], command: &[String]) -> Blob {
        let media_type = match self.dialect {
            Dialect::Oci => "application/vnd.oci.image.config.v1+json",
            Dialect::Docker => "application/vnd.docker.container.image.v1+json",
        };
        let diff_ids: Vec<_> = layers.iter().map(|layer| digest_of(&layer.tar)).collect();
        let history: Vec<_> = layers.iter().map(|_| json!({"created_by": "shoal-tests"})).collect();
        let config = json!({
            "architecture": self.arch,
            "os": "linux",
            "created": "2024-01-01T00:00:00Z",
            "author": format!("seed {}", self.seed),
            "config": {"Cmd": command, "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": history,
        });
        Blob::new(media_type, config.to_string())
    }

    fn manifest(&self, config: &Blob, layers: &[Layer]) -> Blob {
        let media_type = match self.dialect {
            Dialect::Oci => OCI_MANIFEST,
            Dialect::Docker => DOCKER_MANIFEST,
        };
        let layers: Vec<_> = layers.iter().map(|layer| layer.blob.descriptor()).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": config.descriptor(),
            "layers": layers,
        });
        Blob::new(media_type, manifest.to_string())
    }
}

impl Image {
    /// Writes the archive that `docker save` would: every client can load it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn save_docker_archive(&self, path: &Path, name: &str) -> Result<()> {
        let mut tar = Tar::new(BufWriter::new(File::create(path)?));
        let hex = |digest: &str| digest.trim_start_matches("sha256:").to_owned();
        let config_name = format!("{}.json", hex(&self.config.digest));
        tar.file(&config_name, 0o644, &self.config.bytes)?;
        let mut names = Vec::new();
        for layer in &self.layers {
            let id = hex(&digest_of(&layer.tar));
            tar.dir(&format!("{id}/"))?;
            tar.file(&format!("{id}/layer.tar"), 0o644, &layer.tar)?;
            names.push(format!("{id}/layer.tar"));
        }
        let manifest = json!([{"Config": config_name, "RepoTags": [name], "Layers": names}]);
        tar.file("manifest.json", 0o644, manifest.to_string().as_bytes())?;
        tar.finish()?;
        Ok(())
    }

    /// Every blob that its manifest names.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        std::iter::once(&self.config).chain(self.layers.iter().map(|layer| &layer.blob))
    }
}

/// An index over images of several platforms.
pub fn index_of(images: &[Image], dialect: Dialect) -> Blob {
    let media_type = match dialect {
        Dialect::Oci => OCI_INDEX,
        Dialect::Docker => DOCKER_LIST,
    };
    let manifests: Vec<_> = images
        .iter()
        .map(|image| {
            let mut descriptor = image.manifest.descriptor();
            descriptor["platform"] = json!({"architecture": image.arch, "os": "linux"});
            descriptor
        })
        .collect();
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests});
    Blob::new(media_type, index.to_string())
}

/// An artifact that refers to `subject`: one blob, the empty config, and a type.
pub fn artifact_of(subject: &Blob, artifact_type: &str, content: &Blob) -> (Blob, Blob) {
    let config = Blob::new(OCI_EMPTY, "{}");
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": config.descriptor(),
        "layers": [content.descriptor()],
        "subject": subject.descriptor(),
        "annotations": {"org.opencontainers.image.created": "2024-01-01T00:00:00Z"},
    });
    (config, Blob::new(OCI_MANIFEST, manifest.to_string()))
}
