//! What nobody sane sends.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use futures::future::join_all;
use http::{Method, StatusCode};
use shoal_tests::contract::metric;
use shoal_tests::http::call;
use shoal_tests::image::{digest_of, noise};
use shoal_tests::wait::PATIENCE;
use shoal_tests::{ImageBuilder, Mesh, Registry, system, wait_until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::{MIB, pushed_blob};

/// What a process may grow by under all the rubbish of a test, in bytes.
const GROWTH_BYTES_MAX: u64 = 200 << 20;

async fn refused(registry: &Registry, path: &str, status: StatusCode, code: &str) -> Result<()> {
    let path = format!("/v2/{}/{path}", registry.repository);
    let answer = call(registry.addr, Method::GET, &path).await?.expect(status).await?;
    ensure!(answer.header("content-type").starts_with("application/json"), "{path}: not JSON");
    let body = answer.json().await?;
    ensure!(body["errors"][0]["code"] == code, "{path}: {body} instead of {code}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_told_as_the_specification_says() -> Result<()> {
    let mesh = Mesh::with_gateways(1).start().await?;
    let registry = mesh.registry("g0", "none")?;
    let digest = digest_of(b"nobody has ever pushed this");
    refused(&registry, &format!("blobs/{digest}"), StatusCode::NOT_FOUND, "BLOB_UNKNOWN").await?;
    refused(&registry, &format!("manifests/{digest}"), StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN").await?;
    refused(&registry, "manifests/nothing", StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN").await?;
    refused(&registry, "tags/list", StatusCode::NOT_FOUND, "NAME_UNKNOWN").await?;
    refused(&registry, "blobs/sha256:zz", StatusCode::BAD_REQUEST, "DIGEST_INVALID").await?;
    let upper = Registry::new(registry.addr, "UPPER");
    refused(&upper, "manifests/x", StatusCode::BAD_REQUEST, "NAME_INVALID").await?;
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_under_a_wrong_digest_is_refused_and_nothing_kept() -> Result<()> {
    const SIZE: usize = 6 * MIB;
    let mesh = Mesh::with_gateways(2).start().await?;
    let registry = mesh.registry("g0", "wrong")?;
    let content = noise(701, SIZE);
    let claimed = digest_of(b"something else");
    let answer = registry.try_push_blob(&claimed, content.clone()).await?;
    let body = answer.expect(StatusCode::BAD_REQUEST).await?.json().await?;
    ensure!(body["errors"][0]["code"] == "DIGEST_INVALID", "{body}");
    for digest in [claimed, digest_of(&content)] {
        for gateway in ["g0", "g1"] {
            let registry = mesh.registry(gateway, "wrong")?;
            refused(&registry, &format!("blobs/{digest}"), StatusCode::NOT_FOUND, "BLOB_UNKNOWN").await?;
        }
    }
    wait_until("no disk has anything of that size", PATIENCE, async || {
        for node in ["g0", "g1", "o0"] {
            let files = system::files_below(mesh.node(node)?.data_dir());
            let kept: Vec<_> = files.iter().filter(|(_, bytes)| *bytes == SIZE as u64).collect();
            ensure!(kept.is_empty(), "{node} keeps {kept:?}");
        }
        Ok(Some(()))
    })
    .await?;
    mesh.finish().await
}

/// Everything that may be sent to a port by mistake or in malice, and what each tries.
fn rubbish() -> Vec<(&'static str, Vec<u8>)> {
    let mut hello = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    hello.extend(noise(801, 300));
    let mut headers = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n".to_vec();
    (0..20_000).for_each(|number| headers.extend(format!("x-{number}: {number}\r\n").bytes()));
    vec![
        ("noise", noise(802, 64 << 10).to_vec()),
        ("zeros", vec![0; 1 << 20]),
        ("half a TLS hello", hello),
        ("a TLS record that claims 64 KiB", vec![0x16, 3, 3, 0xff, 0xff]),
        ("headers without end", headers),
        ("a line without end", vec![b'A'; 4 << 20]),
        ("a negative length", b"PUT /v2/a/blobs/uploads/x HTTP/1.1\r\nContent-Length: -1\r\n\r\n".to_vec()),
        (
            "a huge length",
            b"PUT /v2/a/manifests/x HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n".to_vec(),
        ),
        ("multistream", b"\x13/multistream/1.0.0\n\x07/noise\n".to_vec()),
        ("a length of 2^63", vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]),
        ("nothing", Vec::new()),
    ]
}

/// Sends one piece of rubbish, says that this is all, and reads what comes until the other side closes.
async fn throw(addr: SocketAddr, what: &[u8]) -> Result<()> {
    let mut stream = TcpStream::connect(addr).await?;
    // Being cut off in the middle of it is the right answer.
    if stream.write_all(what).await.is_ok() && stream.shutdown().await.is_ok() {
        let mut answer = vec![0; 64 << 10];
        let all = async { while stream.read(&mut answer).await.is_ok_and(|bytes| bytes > 0) {} };
        tokio::time::timeout(PATIENCE, all).await.context("a connection whose client is gone stays open")?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rubbish_on_every_port_is_counted_and_survived() -> Result<()> {
    let mut mesh = Mesh::with_gateways(2).start().await?;
    let image = ImageBuilder::new(803).payload(2 * MIB).build()?;
    mesh.registry("g0", "app")?.push_image("1", &image).await?;
    for name in ["g0", "o0", "b0"] {
        let node = mesh.node(name)?;
        let memory = system::memory_bytes(node.pid()?, "VmRSS")?;
        for (plane, addr) in node.ready().ports()? {
            let strangers =
                metric::STRANGERS.iter().find(|(port, _)| *port == plane).map(|(_, count)| *count);
            let before = match strangers {
                Some(count) => node.counted(count).await?,
                None => 0.0,
            };
            // Connections that say nothing and stay must not keep the others out.
            let silent = join_all((0..50).map(|_| TcpStream::connect(addr))).await;
            for (what, bytes) in rubbish() {
                for result in join_all((0..5).map(|_| throw(addr, &bytes))).await {
                    result.map_err(|error| error.context(format!("{what} at {plane} of {name}")))?;
                }
            }
            drop(silent);
            if let Some(count) = strangers {
                let what = format!("{name} counts strangers on its {plane} port");
                wait_until(&what, PATIENCE, async || {
                    let now = node.counted(count).await?;
                    Ok((now > before).then_some(()))
                })
                .await?;
            }
        }
        let highest = system::memory_bytes(node.pid()?, "VmHWM")?;
        ensure!(highest < memory + GROWTH_BYTES_MAX, "{name} grew from {memory} to {highest} bytes");
    }
    mesh.check_running()?;
    mesh.registry("g1", "app")?.pull("1").await?;
    let blob = pushed_blob(&mesh, "g0", 804, MIB).await?;
    mesh.registry("g1", "e2e/blob")?.pull_blob(&blob.digest).await?;
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tls_hello_on_the_plain_port_is_answered() -> Result<()> {
    let mesh = Mesh::with_gateways(1).start().await?;
    let mut stream = TcpStream::connect(mesh.node("g0")?.gateway()?).await?;
    // A client that waits for an answer keeps the connection open: dockerd does for 10 s.
    let mut hello = vec![0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3];
    hello.extend(noise(805, 194));
    stream.write_all(&hello).await?;
    let mut answer = [0; 64];
    let read = tokio::time::timeout(std::time::Duration::from_secs(5), stream.read(&mut answer)).await;
    ensure!(read.is_ok(), "it is left waiting");
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_gets_nothing() -> Result<()> {
    let mesh = Mesh::with_gateways(1).start().await?;
    let blob = pushed_blob(&mesh, "g0", 806, MIB).await?;
    // Another mesh that bootstraps from this one's peers as well: its credentials are by another key.
    let stranger = Mesh::with_gateways(1).beside(&mesh).start().await?;
    let registry = stranger.registry("g0", "e2e/blob")?;
    refused(&registry, &format!("blobs/{}", blob.digest), StatusCode::NOT_FOUND, "BLOB_UNKNOWN").await?;
    let peers = stranger.node("g0")?.api("/api/v1/peers").await?.to_string();
    for name in ["b0", "o0", "g0"] {
        ensure!(!peers.contains(mesh.node(name)?.peer()), "a stranger is connected to {name}");
    }
    stranger.finish().await?;
    mesh.finish().await
}
