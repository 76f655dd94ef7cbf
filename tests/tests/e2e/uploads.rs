//! Uploads behind a load balancer without stickiness.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures::future::join;
use http::{Method, Request, StatusCode};
use shoal_tests::clients::Docker;
use shoal_tests::http::{Answer, call, full, send};
use shoal_tests::image::{Blob, noise};
use shoal_tests::registry::location_of;
use shoal_tests::{ImageBuilder, Mesh, wait_until};
use tokio::net::{TcpListener, TcpStream};

use crate::MIB;

async fn begin(gateway: SocketAddr) -> Result<String> {
    let begun =
        call(gateway, Method::POST, "/v2/app/blobs/uploads/").await?.expect(StatusCode::ACCEPTED).await?;
    location_of(&begun)
}

async fn patch(gateway: SocketAddr, location: &str, start: usize, bytes: Bytes) -> Result<Answer> {
    let range = format!("{start}-{}", start + bytes.len() - 1);
    let request = Request::builder()
        .method(Method::PATCH)
        .uri(location)
        .header("content-type", "application/octet-stream")
        .header("content-range", range)
        .body(full(bytes))?;
    send(gateway, request).await
}

async fn put(gateway: SocketAddr, location: &str, digest: &str, bytes: Bytes) -> Result<Answer> {
    let request = Request::builder()
        .method(Method::PUT)
        .uri(format!("{location}?digest={digest}"))
        .body(full(bytes))?;
    send(gateway, request).await
}

async fn offset(gateway: SocketAddr, location: &str) -> Result<usize> {
    let answer = call(gateway, Method::GET, location).await?.expect(StatusCode::NO_CONTENT).await?;
    let range = answer.header("range").to_owned();
    let end = range.strip_prefix("0-").and_then(|end| end.parse::<usize>().ok());
    // An empty upload has no last byte.
    Ok(end.map_or(0, |end| end + 1))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_goes_on_at_any_gateway() -> Result<()> {
    let mesh = Mesh::with_gateways(3).start().await?;
    let gateway = |number: usize| mesh.node(&format!("g{number}"))?.gateway();
    let blob = Blob::new("application/octet-stream", noise(1001, 7 * MIB));
    let location = begin(gateway(0)?).await?;
    let answer = patch(gateway(1)?, &location, 0, blob.bytes.slice(..3 * MIB)).await?;
    answer.expect(StatusCode::ACCEPTED).await?;
    for number in 0..3 {
        ensure!(offset(gateway(number)?, &location).await? == 3 * MIB, "g{number} says something else");
    }
    // Bytes that do not begin where it stands are refused wherever they come.
    for number in 0..3 {
        let answer = patch(gateway(number)?, &location, MIB, blob.bytes.slice(MIB..2 * MIB)).await?;
        ensure!(answer.status == StatusCode::RANGE_NOT_SATISFIABLE, "g{number}: {}", answer.status);
    }
    let answer = patch(gateway(0)?, &location, 3 * MIB, blob.bytes.slice(3 * MIB..4 * MIB)).await?;
    answer.expect(StatusCode::ACCEPTED).await?;
    // Another repository's name does not open it.
    let elsewhere = location.replace("/v2/app/", "/v2/other/");
    let answer = call(gateway(2)?, Method::GET, &elsewhere).await?;
    ensure!(answer.status == StatusCode::NOT_FOUND, "it is open to another repository: {}", answer.status);
    let answer = put(gateway(2)?, &location, &blob.digest, blob.bytes.slice(4 * MIB..)).await?;
    answer.expect(StatusCode::CREATED).await?;
    for number in 0..3 {
        ensure!(
            mesh.registry(&format!("g{number}"), "app")?.pull_blob(&blob.digest).await? == 7 * MIB as u64,
            "short"
        );
        let over = call(gateway(number)?, Method::GET, &location).await?;
        ensure!(over.status == StatusCode::NOT_FOUND, "a finished upload is {}", over.status);
    }
    // What does not have its digest is refused, and gone.
    let location = begin(gateway(1)?).await?;
    let answer = put(gateway(0)?, &location, &blob.digest, Bytes::from_static(b"something else")).await?;
    ensure!(answer.status == StatusCode::BAD_REQUEST, "wrong bytes are {}", answer.status);
    // Cancelled elsewhere than begun.
    let location = begin(gateway(2)?).await?;
    patch(gateway(2)?, &location, 0, blob.bytes.slice(..MIB)).await?.expect(StatusCode::ACCEPTED).await?;
    call(gateway(0)?, Method::DELETE, &location).await?.expect(StatusCode::NO_CONTENT).await?;
    for number in 0..3 {
        let over = call(gateway(number)?, Method::GET, &location).await?;
        ensure!(over.status == StatusCode::NOT_FOUND, "a cancelled upload is {} at g{number}", over.status);
    }
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_restarts_loses_no_upload() -> Result<()> {
    let mut mesh = Mesh::with_gateways(2).start().await?;
    let blob = Blob::new("application/octet-stream", noise(1002, 5 * MIB));
    let (home, other) = (mesh.node("g0")?.gateway()?, mesh.node("g1")?.gateway()?);
    let location = begin(home).await?;
    patch(home, &location, 0, blob.bytes.slice(..2 * MIB)).await?.expect(StatusCode::ACCEPTED).await?;
    // A client goes on at another gateway while the upload's home is down: its request waits.
    mesh.kill("g0").await?;
    let next = patch(other, &location, 2 * MIB, blob.bytes.slice(2 * MIB..4 * MIB));
    let (next, restarted) = join(next, mesh.restart("g0")).await;
    restarted?;
    next?.expect(StatusCode::ACCEPTED).await?;
    ensure!(offset(other, &location).await? == 4 * MIB, "bytes are lost");
    // And once more, in good order, with the client back at the one that restarted.
    mesh.stop("g0").await?;
    mesh.restart("g0").await?;
    let home = mesh.node("g0")?.gateway()?;
    ensure!(offset(home, &location).await? == 4 * MIB, "bytes are lost");
    patch(home, &location, 4 * MIB, blob.bytes.slice(4 * MIB..)).await?.expect(StatusCode::ACCEPTED).await?;
    put(other, &location, &blob.digest, Bytes::new()).await?.expect(StatusCode::CREATED).await?;
    mesh.registry("g1", "app")?.pull_blob(&blob.digest).await?;
    mesh.finish().await
}

/// Gives each connection to the next of several gateways.
async fn balance(listener: TcpListener, gateways: Vec<SocketAddr>, connections: &AtomicUsize) -> Result<()> {
    loop {
        let (mut client, _) = listener.accept().await?;
        let number = connections.fetch_add(1, Ordering::Relaxed);
        let gateway = gateways[number % gateways.len()];
        tokio::spawn(async move {
            let mut server = TcpStream::connect(gateway).await?;
            tokio::io::copy_bidirectional(&mut client, &mut server).await
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_pushes_through_a_balancer_without_stickiness() -> Result<()> {
    let mesh = Mesh::with_gateways(3).start().await?;
    let gateways: Vec<_> =
        (0..3).map(|number| mesh.node(&format!("g{number}"))?.gateway()).collect::<Result<_>>()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let balancer = listener.local_addr()?;
    let connections = AtomicUsize::new(0);
    let scratch = crate::clients::Scratch::new()?;
    let test = async {
        let image =
            ImageBuilder::new(1003).runnable().payload(6 * MIB).payload(3 * MIB).payload(1000).build()?;
        let archive = scratch.path().join("image.tar");
        let reference = format!("{balancer}/team/app:1");
        image.save_docker_archive(&archive, &reference)?;
        let docker = Docker::start(&scratch.path().join("docker")).await?;
        docker.push(&archive, &reference).await?;
        docker.pull(&reference).await?;
        let printed = docker.run(&reference).await?;
        ensure!(printed == image.output, "{reference} printed {printed:?} instead of {:?}", image.output);
        docker.stop().await
    };
    tokio::select! {
        done = test => done?,
        failed = balance(listener, gateways, &connections) => failed?,
    }
    let used = connections.load(Ordering::Relaxed);
    ensure!(used >= 12, "only {used} connections: the client kept its connection, and nothing was tried");
    // Wherever it went, nothing is left of its uploads.
    wait_until("no upload is open", shoal_tests::wait::PATIENCE, async || {
        for number in 0..3 {
            let open =
                mesh.node(&format!("g{number}"))?.api("/api/v1/status").await?["store"]["uploads"].clone();
            ensure!(open == 0, "g{number}: {open}");
        }
        Ok(Some(()))
    })
    .await?;
    mesh.finish().await
}
