//! `shoal push`: an image out of a file into the mesh, through a gateway, with no container engine. The file is a docker
//! archive (`docker save`) or an OCI layout (OCI image specification, "Image Layout"), in a tar file or a directory.

mod archive;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use futures::TryStreamExt as _;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::Method;
use hyper::body::Frame;
use serde_json::{Value, json};
use shoal_types::{Algorithm, Digest, DigestHasher, ImageReference, Reference};
use tokio::io::AsyncReadExt as _;

use crate::client;
use crate::progress::{Progress, Unit};
use archive::{Archive, Part};

/// Bytes read from a file at a time.
const READ_BYTES: usize = 256 * 1024;
/// Manifests of an image with all its platforms.
const MANIFESTS_MAX: usize = 1000;
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Flags of `shoal push`.
#[derive(clap::Args)]
pub(crate) struct PushArgs {
    /// The image: what docker save or skopeo copy wrote, or a directory with an OCI layout.
    file: PathBuf,
    /// Its name in the mesh, such as team/app:1.
    #[arg(value_name = "REFERENCE")]
    image: ImageReference,
    /// The gateway.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:5000")]
    gateway: SocketAddr,
    /// Print one JSON line at the end, and no progress.
    #[arg(long)]
    json: bool,
}

/// Pushes, and prints the image's digest.
pub(crate) async fn push(args: PushArgs) -> anyhow::Result<()> {
    let Reference::Tag(tag) = args.image.reference.clone() else {
        bail!("{} names a digest: an image is pushed to a tag", args.image)
    };
    let archive = Archive::open(&args.file).with_context(|| args.file.display().to_string())?;
    let bar = Progress::new(&format!("push {}", args.image), 0, Unit::Bytes, args.json);
    let push = Push { gateway: args.gateway, repository: args.image.repository.to_string(), archive, bar };
    let pushed = if push.archive.part("oci-layout").is_some() {
        push.layout(tag.as_str()).await
    } else {
        push.docker_archive(tag.as_str()).await
    };
    push.bar.finish();
    let digest = pushed?;
    if args.json {
        println!("{}", json!({ "digest": digest, "image": args.image.to_string() }));
    } else {
        println!("{digest}");
    }
    Ok(())
}

struct Push {
    gateway: SocketAddr,
    repository: String,
    archive: Archive,
    bar: Progress,
}

impl Push {
    async fn layout(&self, tag: &str) -> anyhow::Result<Digest> {
        let index = self.archive.json("index.json")?;
        let roots = index.get("manifests").and_then(Value::as_array).cloned().unwrap_or_default();
        let name = |root: &Value| {
            root.pointer("/annotations/org.opencontainers.image.ref.name")
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        let named: Vec<&Value> = roots.iter().filter(|root| name(root).as_deref() == Some(tag)).collect();
        let root = match (roots.as_slice(), named.as_slice()) {
            ([only], _) => only,
            (_, [named]) => named,
            ([], _) => bail!("the layout has no image"),
            _ => {
                let names: Vec<_> = roots.iter().filter_map(name).collect();
                bail!(
                    "the layout has {} images, of which none is called {tag}: {}",
                    roots.len(),
                    names.join(", ")
                )
            }
        };
        // Everything that a manifest refers to goes before it.
        let mut order = vec![descriptor(root)?];
        let mut at = 0;
        while let Some((digest, _)) = order.get(at).cloned() {
            at += 1;
            ensure!(order.len() <= MANIFESTS_MAX, "the image has too many manifests");
            let manifest = self.archive.json(&blob_path(&digest))?;
            for child in manifest.get("manifests").and_then(Value::as_array).into_iter().flatten() {
                let child = descriptor(child)?;
                // An index may name platforms that were not copied with it.
                if self.archive.part(&blob_path(&child.0)).is_some() && !order.contains(&child) {
                    order.push(child);
                }
            }
        }
        for (digest, media_type) in order.iter().rev() {
            let path = blob_path(digest);
            let manifest = self.archive.json(&path)?;
            let layers = manifest.get("layers").and_then(Value::as_array).into_iter().flatten();
            for blob in manifest.get("config").into_iter().chain(layers) {
                let (blob, _) = descriptor(blob)?;
                let path = blob_path(&blob);
                let part = self.archive.part(&path).with_context(|| format!("{path} is missing"))?;
                self.blob(blob, part).await?;
            }
            let is_root = order.first().is_some_and(|(root, _)| root == digest);
            let reference = if is_root { tag.to_owned() } else { digest.to_string() };
            self.manifest(&reference, media_type, self.archive.bytes(&path)?).await?;
        }
        Ok(order.first().context("no root")?.0)
    }

    async fn docker_archive(&self, tag: &str) -> anyhow::Result<Digest> {
        let list =
            self.archive.json("manifest.json").context("neither an OCI layout nor a docker archive")?;
        let [image] = list.as_array().map(Vec::as_slice).unwrap_or_default() else {
            bail!("the archive has {} images: save one", list.as_array().map_or(0, Vec::len))
        };
        let path =
            |value: &Value| value.as_str().map(str::to_owned).context("manifest.json is not understood");
        let config = path(image.get("Config").unwrap_or(&Value::Null))?;
        let config = self.add(&config, "application/vnd.oci.image.config.v1+json").await?;
        let mut layers = Vec::new();
        for layer in image.get("Layers").and_then(Value::as_array).into_iter().flatten() {
            layers.push(self.add(&path(layer)?, "application/vnd.oci.image.layer.v1.tar").await?);
        }
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers });
        let bytes = serde_json::to_vec(&manifest)?;
        let mut hasher = DigestHasher::new(Algorithm::Sha256);
        hasher.update(&bytes);
        self.manifest(tag, OCI_MANIFEST, bytes).await?;
        Ok(hasher.finish())
    }

    /// Pushes a file of the archive; returns its descriptor.
    async fn add(&self, path: &str, media_type: &str) -> anyhow::Result<Value> {
        let part = self.archive.part(path).with_context(|| format!("{path} is missing"))?;
        let (digest, is_gzip) = part.digest().with_context(|| format!("cannot read {path}"))?;
        self.blob(digest, part.clone()).await?;
        let media_type = if is_gzip { format!("{media_type}+gzip") } else { media_type.to_owned() };
        Ok(json!({ "mediaType": media_type, "digest": digest, "size": part.size }))
    }

    async fn blob(&self, digest: Digest, part: Part) -> anyhow::Result<()> {
        self.bar.inc_length(part.size);
        let repository = &self.repository;
        let there = format!("/v2/{repository}/blobs/{digest}");
        if client::request(self.gateway, Method::HEAD, &there, None, client::empty()).await.is_ok() {
            self.bar.inc(part.size);
            return Ok(());
        }
        let path = format!("/v2/{repository}/blobs/uploads/");
        let begun = client::request(self.gateway, Method::POST, &path, Some(0), client::empty()).await?;
        let location = begun.headers().get("location").and_then(|at| at.to_str().ok());
        let location = location.context("the gateway names no place for the blob")?;
        // Relative, or with this gateway's own address before it.
        let at = location.find("/v2/").context("the gateway names a place that is not its own")?;
        let location = location.get(at..).unwrap_or_default();
        let sign = if location.contains('?') { '&' } else { '?' };
        let path = format!("{location}{sign}digest={digest}");
        let (size, bar) = (part.size, self.bar.clone());
        let parts = futures::stream::try_unfold(
            tokio::fs::File::from_std(part.open()?).take(size),
            |mut file| async {
                let mut bytes = Vec::with_capacity(READ_BYTES);
                let read = (&mut file).take(READ_BYTES as u64).read_to_end(&mut bytes).await?;
                Ok::<_, std::io::Error>((read > 0).then_some((bytes::Bytes::from(bytes), file)))
            },
        );
        let body = StreamBody::new(parts.map_ok(move |bytes| {
            bar.inc(bytes.len() as u64);
            Frame::data(bytes)
        }));
        client::request(self.gateway, Method::PUT, &path, Some(size), body.boxed())
            .await
            .with_context(|| format!("cannot push the blob {digest}"))?;
        Ok(())
    }

    async fn manifest(&self, reference: &str, media_type: &str, bytes: Vec<u8>) -> anyhow::Result<()> {
        let path = format!("/v2/{}/manifests/{reference}", self.repository);
        let length = bytes.len() as u64;
        let body = Full::new(bytes.into()).map_err(|never| match never {}).boxed();
        client::request_of(self.gateway, Method::PUT, &path, Some(length), Some(media_type), body)
            .await
            .with_context(|| format!("cannot push the manifest {reference}"))?;
        Ok(())
    }
}

fn descriptor(value: &Value) -> anyhow::Result<(Digest, String)> {
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    let digest = text("digest").context("a descriptor has no digest")?;
    Ok((digest.parse()?, text("mediaType").unwrap_or(OCI_MANIFEST).to_owned()))
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}
