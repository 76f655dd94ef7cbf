//! Many empty machines ask for the same blob at once.

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use shoal_tests::contract::metric;
use shoal_tests::{Mesh, system};

use crate::{MIB, pushed_blob};

const GATEWAYS: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_empty_nodes_cost_the_origin_less_than_three_copies() -> Result<()> {
    const SIZE: usize = 32 * MIB;
    let mut mesh = Mesh::with_gateways(GATEWAYS + 1).exclusive().start().await?;
    // `g0` is pushed to and then gone: only the origin has the blob.
    let blob = pushed_blob(&mesh, "g0", 401, SIZE).await?;
    mesh.kill("g0").await?;

    let origin = mesh.node("o0")?;
    let sent = origin.counted(metric::SENT_BYTES).await?;
    let read = system::bytes_read(origin.pid()?)?;
    let fetched = origin.metrics().await?.sum_where(metric::RECEIVED_BYTES, &[metric::FROM_BACKEND]);
    let registries: Vec<_> = (1..=GATEWAYS)
        .map(|number| mesh.registry(&format!("g{number}"), "e2e/blob"))
        .collect::<Result<_>>()?;
    try_join_all(registries.iter().map(|registry| registry.pull_blob(&blob.digest))).await?;

    let copies = |now: f64, before: f64| (now - before) / SIZE as f64;
    let sent = copies(origin.counted(metric::SENT_BYTES).await?, sent);
    let read = copies(system::bytes_read(origin.pid()?)?, read);
    let now = origin.metrics().await?.sum_where(metric::RECEIVED_BYTES, &[metric::FROM_BACKEND]);
    let fetched = copies(now, fetched);
    println!("the origin sent {sent:.2} copies, read {read:.2} from disk and {fetched:.2} from its backend");
    ensure!(sent >= 1.0, "the count is wrong: nobody else had it");
    ensure!(sent < 3.0, "the origin sent {sent:.2} copies");
    // Each piece is read to be sent; a little more describes them.
    ensure!(read < 3.1, "the origin read {read:.2} copies from its disk");
    ensure!(fetched <= 1.0, "the origin read {fetched:.2} copies from its backend");

    for number in 1..=GATEWAYS {
        let node = mesh.node(&format!("g{number}"))?;
        let sources = node.sources(&blob.digest).await?.context("the pull is not listed")?;
        let total: u64 = sources.peers.values().sum();
        ensure!(total == SIZE as u64, "{}: the shares sum up to {total}: {sources:?}", node.name());
    }
    mesh.finish().await
}
