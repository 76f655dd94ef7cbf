//! Fetching an image as an OCI layout in a tar file (OCI image specification, "Image Layout").

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, bail};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use shoal_types::{Digest, DigestHasher, ImageReference, Reference, RepositoryName};

use crate::client;
use crate::progress::Progress;

/// Most manifests in one image: an index of many platforms, and indexes of indexes.
const MANIFESTS_MAX: usize = 1000;

/// A manifest as it was fetched.
struct Manifest {
    digest: Digest,
    media_type: String,
    bytes: Vec<u8>,
}

/// Writes the image with all its platforms to `output`; returns its digest and the bytes of its blobs.
pub(crate) async fn get(
    ops: SocketAddr,
    image: &ImageReference,
    output: &Path,
    bar: &Progress,
) -> anyhow::Result<(Digest, u64)> {
    let file = File::create(output).with_context(|| format!("cannot write {}", output.display()))?;
    let mut tar = tar::Builder::new(file);
    let root = manifest(ops, &image.repository, &image.reference).await?;
    let root_digest = root.digest;
    add(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add(&mut tar, "index.json", &serde_json::to_vec(&index(&root, image))?)?;
    let mut total = 0;
    let mut seen = BTreeSet::from([root.digest]);
    let mut queue = VecDeque::from([root]);
    while let Some(next) = queue.pop_front() {
        add(&mut tar, &blob_path(&next.digest), &next.bytes)?;
        total += next.bytes.len() as u64;
        let value: Value = serde_json::from_slice(&next.bytes).context("a manifest is not JSON")?;
        for (digest, size, is_manifest) in children(&value)? {
            if !seen.insert(digest) {
                continue;
            }
            if seen.len() > MANIFESTS_MAX * 128 || queue.len() >= MANIFESTS_MAX {
                bail!("the image refers to too many manifests and blobs");
            }
            if is_manifest {
                queue.push_back(manifest(ops, &image.repository, &Reference::Digest(digest)).await?);
            } else {
                bar.inc_length(size);
                add_blob(ops, &mut tar, digest, size, bar).await?;
                total += size;
            }
        }
    }
    bar.finish();
    tar.into_inner()
        .and_then(|mut file| {
            file.flush()?;
            // A device or a pipe cannot.
            if file.metadata()?.is_file() { file.sync_all() } else { Ok(()) }
        })
        .context("cannot finish the file")?;
    Ok((root_digest, total))
}

async fn manifest(
    ops: SocketAddr,
    repository: &RepositoryName,
    reference: &Reference,
) -> anyhow::Result<Manifest> {
    let path = match reference {
        Reference::Tag(tag) => format!("/api/v1/manifests/{repository}:{tag}"),
        Reference::Digest(digest) => format!("/api/v1/manifests/{repository}@{digest}"),
    };
    let response = client::get(ops, &path).await?;
    let header = |name: &str| {
        response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let digest: Digest = header("docker-content-digest").parse().context("the daemon names no digest")?;
    let media_type = header("content-type");
    let bytes = response.into_body().collect().await.context("the download broke off")?.to_bytes().to_vec();
    let mut hasher = DigestHasher::new(digest.algorithm());
    hasher.update(&bytes);
    if hasher.finish() != digest {
        bail!("the manifest {digest} came with other content");
    }
    Ok(Manifest { digest, media_type, bytes })
}

fn index(root: &Manifest, image: &ImageReference) -> Value {
    let mut descriptor =
        json!({ "mediaType": root.media_type, "digest": root.digest, "size": root.bytes.len() });
    if let Reference::Tag(tag) = &image.reference
        && let Some(object) = descriptor.as_object_mut()
    {
        object.insert("annotations".to_owned(), json!({ "org.opencontainers.image.ref.name": tag }));
    }
    json!({ "schemaVersion": 2, "manifests": [descriptor] })
}

/// What a manifest or index refers to: digest, size, and whether it is a manifest itself.
fn children(value: &Value) -> anyhow::Result<Vec<(Digest, u64, bool)>> {
    let list = |key: &str| value.get(key).and_then(Value::as_array).into_iter().flatten();
    let config = value.get("config").into_iter();
    let manifests = list("manifests").map(|descriptor| (descriptor, true));
    let blobs = config.chain(list("layers")).map(|descriptor| (descriptor, false));
    let read = |(descriptor, is_manifest): (&Value, bool)| {
        let digest =
            descriptor.get("digest").and_then(Value::as_str).context("a descriptor has no digest")?;
        let size = descriptor.get("size").and_then(Value::as_u64).context("a descriptor has no size")?;
        Ok((digest.parse()?, size, is_manifest))
    };
    manifests.chain(blobs).map(read).collect()
}

async fn add_blob(
    ops: SocketAddr,
    tar: &mut tar::Builder<File>,
    digest: Digest,
    size: u64,
    bar: &Progress,
) -> anyhow::Result<()> {
    let response = client::get(ops, &format!("/api/v1/blobs/{digest}")).await?;
    let mut header = header(size);
    let mut hasher = DigestHasher::new(digest.algorithm());
    let mut entry = tar.append_writer(&mut header, blob_path(&digest))?;
    let mut body = response.into_body();
    let mut written = 0;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.context("the download broke off")?.into_data() {
            written += data.len() as u64;
            hasher.update(&data);
            entry.write_all(&data)?;
            bar.inc(data.len() as u64);
        }
    }
    entry.finish()?;
    if written != size || hasher.finish() != digest {
        bail!("the blob {digest} came with other content");
    }
    Ok(())
}

fn add(tar: &mut tar::Builder<File>, path: &str, bytes: &[u8]) -> anyhow::Result<()> {
    tar.append_data(&mut header(bytes.len() as u64), path, bytes)
        .with_context(|| format!("cannot write {path}"))
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_entry_type(tar::EntryType::Regular);
    header
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}
