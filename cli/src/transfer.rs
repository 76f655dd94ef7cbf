//! `shoal get` and `shoal put`.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use futures::TryStreamExt as _;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::Method;
use hyper::body::Frame;
use shoal_types::{Algorithm, Digest, DigestHasher, ImageReference};
use tokio::io::AsyncReadExt as _;

use crate::progress::{Progress, Unit};
use crate::{client, images};

/// Bytes read from a file at a time.
const READ_BYTES: usize = 256 * 1024;

/// Flags of `shoal get`.
#[derive(clap::Args)]
pub(crate) struct GetArgs {
    /// A digest, such as sha256:…, or an image, such as team/app:1.
    #[arg(value_name = "DIGEST|REFERENCE")]
    what: String,
    /// Where to write it.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// The daemon's ops listener.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7070", env = "SHOAL_OPS")]
    ops: SocketAddr,
    /// Print one JSON line at the end, and no progress.
    #[arg(long)]
    json: bool,
}

/// Flags of `shoal put`.
#[derive(clap::Args)]
pub(crate) struct PutArgs {
    /// The file.
    file: PathBuf,
    /// The daemon's ops listener.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7070", env = "SHOAL_OPS")]
    ops: SocketAddr,
    /// Print one JSON line at the end, and no progress.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn get(args: GetArgs) -> anyhow::Result<()> {
    // A device or a pipe, such as /dev/null, takes the bytes itself: it must not be replaced by a file.
    let special = std::fs::metadata(&args.output).is_ok_and(|meta| !meta.is_file());
    let partial = if special { args.output.clone() } else { partial_path(&args.output) };
    let fetched = match args.what.parse::<Digest>() {
        Ok(digest) => get_blob(&args, digest, &partial).await.map(|bytes| (digest, bytes)),
        Err(_) => match args.what.parse::<ImageReference>() {
            Ok(image) => images::get(args.ops, &image, &partial, &bar("get", &args.what, 0, args.json)).await,
            Err(error) => bail!("{:?} is neither a digest nor an image: {error}", args.what),
        },
    };
    let (digest, bytes) = match fetched {
        Ok(fetched) => fetched,
        Err(error) => {
            if !special {
                let _ = std::fs::remove_file(&partial);
            }
            return Err(error);
        }
    };
    if !special {
        std::fs::rename(&partial, &args.output)
            .with_context(|| format!("cannot rename {} to {}", partial.display(), args.output.display()))?;
    }
    if args.json {
        println!("{}", serde_json::json!({ "digest": digest, "bytes": bytes, "file": args.output }));
    } else {
        println!("{digest}  {bytes} bytes  {}", args.output.display());
    }
    Ok(())
}

/// Written beside the output, so that nobody takes half a file for a whole one.
fn partial_path(output: &Path) -> PathBuf {
    let mut name = output.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    output.with_file_name(name)
}

async fn get_blob(args: &GetArgs, digest: Digest, partial: &Path) -> anyhow::Result<u64> {
    let response = client::get(args.ops, &format!("/api/v1/blobs/{digest}")).await?;
    let size = response.headers().get("content-length").and_then(|size| size.to_str().ok()?.parse().ok());
    let mut file =
        std::fs::File::create(partial).with_context(|| format!("cannot write {}", partial.display()))?;
    let bar = bar("get", &args.what, size.unwrap_or(0), args.json);
    let mut hasher = DigestHasher::new(digest.algorithm());
    let mut bytes = 0;
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.context("the download broke off")?.into_data() {
            hasher.update(&data);
            file.write_all(&data).with_context(|| format!("cannot write {}", partial.display()))?;
            bytes += data.len() as u64;
            bar.set_position(bytes);
        }
    }
    bar.finish();
    let got = hasher.finish();
    if got != digest {
        bail!("what came has the digest {got}");
    }
    if file.metadata().is_ok_and(|meta| meta.is_file()) {
        file.sync_all().with_context(|| format!("cannot write {}", partial.display()))?;
    }
    Ok(bytes)
}

pub(crate) async fn put(args: PutArgs) -> anyhow::Result<()> {
    let (digest, size) = hash_file(&args.file)?;
    let file = tokio::fs::File::open(&args.file)
        .await
        .with_context(|| format!("cannot read {}", args.file.display()))?;
    let bar = bar("put", &args.file.to_string_lossy(), size, args.json);
    let progress = bar.clone();
    let parts = futures::stream::try_unfold(file, |mut file| async move {
        let mut part = Vec::with_capacity(READ_BYTES);
        let read = (&mut file).take(READ_BYTES as u64).read_to_end(&mut part).await?;
        Ok::<_, std::io::Error>((read > 0).then_some((bytes::Bytes::from(part), file)))
    });
    let frames = parts.map_ok(move |part| {
        progress.inc(part.len() as u64);
        Frame::data(part)
    });
    let body = StreamBody::new(frames).boxed();
    client::request(args.ops, Method::PUT, &format!("/api/v1/blobs/{digest}"), Some(size), body).await?;
    bar.finish();
    if args.json {
        println!("{}", serde_json::json!({ "digest": digest, "bytes": size }));
    } else {
        println!("{digest}");
    }
    Ok(())
}

fn hash_file(path: &Path) -> anyhow::Result<(Digest, u64)> {
    use std::io::Read as _;
    let mut file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut hasher = DigestHasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; READ_BYTES];
    let mut size = 0;
    loop {
        let read = file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))?;
        if read == 0 {
            return Ok((hasher.finish(), size));
        }
        hasher.update(buffer.get(..read).unwrap_or_default());
        size += read as u64;
    }
}

fn bar(verb: &str, what: &str, size: u64, quiet: bool) -> Progress {
    Progress::new(&format!("{verb} {what}"), size, Unit::Bytes, quiet)
}
