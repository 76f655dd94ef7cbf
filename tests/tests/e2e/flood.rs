//! Floods of strangers: garbage and slow-lorises on every port, from several addresses and from one, while members pull.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use shoal_tests::flood::{Flood, sources};
use shoal_tests::image::{Blob, noise};
use shoal_tests::wait::PATIENCE;
use shoal_tests::{Mesh, NodeSpec, system, wait_until};

use crate::{MIB, pushed_blob};

/// Who is attacked, at all ports.
const ATTACKED: [&str; 3] = ["b0", "o0", "g0"];

/// What a process may grow by under some hundred connections to each port, in bytes.
const GROWTH_BYTES_MAX: u64 = 128 << 20;

fn ports(mesh: &Mesh) -> Result<Vec<SocketAddr>> {
    let mut all = Vec::new();
    for name in ATTACKED {
        all.extend(mesh.node(name)?.ready().ports()?.into_iter().map(|(_, addr)| addr));
    }
    Ok(all)
}

fn memory(mesh: &Mesh, field: &str) -> Result<Vec<u64>> {
    ATTACKED.iter().map(|name| system::memory_bytes(mesh.node(name)?.pid()?, field)).collect()
}

/// Waits until everybody who is attacked has counted something on both planes; a bootstrap peer has no data plane.
async fn until_counted(mesh: &Mesh, [control, data]: [&str; 2]) -> Result<()> {
    for (name, counter) in [("b0", control), ("o0", control), ("g0", control), ("o0", data), ("g0", data)] {
        wait_until(&format!("{name} counts {counter}"), PATIENCE, async || {
            let counted = mesh.node(name)?.counted(&format!("shoal_{counter}_total")).await?;
            Ok((counted > 0.0).then_some(()))
        })
        .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_are_counted_and_bounded_and_pulls_and_newcomers_get_through() -> Result<()> {
    let mut mesh = Mesh::with_gateways(2).start().await?;
    let first = pushed_blob(&mesh, "g1", 1701, 2 * MIB).await?;
    let second = pushed_blob(&mesh, "g1", 1702, 2 * MIB).await?;
    let before = memory(&mesh, "VmRSS")?;
    let ports = ports(&mesh)?;

    // From many addresses: no limit of an address is reached, those of the ports are.
    let many = Flood { sources: sources(16), garbage: 300, at_once: 60, lorises: 100, seed: 1 };
    let flood = many.start(&ports)?;
    until_counted(&mesh, ["control_handshakes_evicted", "data_handshakes_evicted"]).await?;
    mesh.registry("g0", "e2e/blob")?.pull_blob(&first.digest).await?;
    mesh.add(NodeSpec::gateway("g2")).await?;
    mesh.registry("g2", "e2e/blob")?.pull_blob(&second.digest).await?;
    let tally = flood.finish().await?;
    let heard = tally.heard_most.load(std::sync::atomic::Ordering::Relaxed);
    ensure!(heard < 1024, "a stranger heard {heard} bytes");
    for (refusal, why) in [("garbage", "a head that is none"), ("tls_on_plain_port", "a TLS hello")] {
        let metrics = mesh.node("g0")?.metrics().await?;
        let counted = metrics.sum_where("shoal_gateway_rejected_total", &[("refusal", refusal)]);
        ensure!(counted > 0.0, "g0 does not count {why}");
    }

    // From one address, that of no member: it is hung up on, and members are not. One port after the other, so that each has
    // them faster than its allowance grows, also on a machine that is busy.
    let one = Flood { sources: sources(1), garbage: 700, at_once: 100, lorises: 0, seed: 2 };
    for port in ports {
        one.start(&[port])?.finish().await?;
    }
    until_counted(&mesh, ["control_inbound_too_often", "data_refused_too_often"]).await?;
    mesh.registry("g0", "e2e/blob")?.pull_blob(&second.digest).await?;

    for ((name, before), highest) in ATTACKED.iter().zip(before).zip(memory(&mesh, "VmHWM")?) {
        ensure!(highest < before + GROWTH_BYTES_MAX, "{name} grew from {before} to {highest} bytes");
    }
    mesh.check_running()?;
    mesh.finish().await
}

/// A blob of the measured pulls in bytes, and what the gateway takes a second where it is limited.
const PULL_BYTES: usize = 16 * MIB;
const RATE: &str = "8MiB";
const RATE_BYTES: f64 = 8.0 * MIB as f64;
/// Pulls before and after an attack.
const CALM_PULLS: u64 = 4;
/// What a process may grow by under ten thousand connections to each port, in bytes.
const LARGE_GROWTH_BYTES_MAX: u64 = 512 << 20;

/// Pulls a blob that only others have; returns for how long.
async fn timed_pull(mesh: &Mesh, seed: u64) -> Result<Duration> {
    let blob = Blob::new("application/octet-stream", noise(seed, PULL_BYTES));
    mesh.registry("g1", "e2e/blob")?.push_blob(&blob).await?;
    let started = Instant::now();
    mesh.registry("g0", "e2e/blob")?.pull_blob(&blob.digest).await?;
    Ok(started.elapsed())
}

fn bytes_per_sec(pulls: &[Duration]) -> f64 {
    (pulls.len() * PULL_BYTES) as f64 / pulls.iter().sum::<Duration>().as_secs_f64()
}

/// Ten thousand connections with garbage to each port, and slow-lorises in numbers above each limit. Returns what pulls
/// kept of their speed.
async fn ten_thousand(mesh: &Mesh, addresses: u8, seed: u64) -> Result<f64> {
    let mut calm = Vec::new();
    for n in 0..CALM_PULLS {
        calm.push(timed_pull(mesh, seed + n).await?);
    }
    let (before, cpu_before) = (memory(mesh, "VmRSS")?, cpu_secs(mesh)?);
    let everywhere = Flood { sources: sources(addresses), garbage: 10_000, at_once: 250, lorises: 300, seed };
    let gateway = Flood { sources: sources(addresses), garbage: 0, at_once: 0, lorises: 4500, seed };
    let started = Instant::now();
    let clients = gateway.start(&[mesh.node("g0")?.gateway()?])?;
    let mut flood = everywhere.start(&ports(mesh)?)?;
    let mut attacked = Vec::new();
    let mut n = 100;
    loop {
        let pull = timed_pull(mesh, seed + n).await?;
        if flood.is_over() {
            break;
        }
        attacked.push(pull);
        n += 1;
    }
    let took = started.elapsed();
    let tally = flood.finish().await?;
    drop(clients);
    let cpu: f64 = cpu_secs(mesh)? - cpu_before;
    for n in 0..CALM_PULLS {
        calm.push(timed_pull(mesh, seed + 50 + n).await?);
    }
    ensure!(attacked.len() > 2, "the attack was over too soon: {} pulls", attacked.len());
    let count = |counter: &std::sync::atomic::AtomicUsize| counter.load(std::sync::atomic::Ordering::Relaxed);
    let (calm, kept) = (bytes_per_sec(&calm), bytes_per_sec(&attacked));
    println!(
        "{addresses} addresses: {} connections with garbage ({} not opened) and {} of slow-lorises in {:.0} s, {cpu:.0} s of \
         CPU; {} pulls at {:.1} MiB/s, without the flood {:.1} MiB/s: {:.0} %",
        count(&tally.opened),
        count(&tally.failed),
        count(&tally.lorises),
        took.as_secs_f64(),
        attacked.len(),
        kept / MIB as f64,
        calm / MIB as f64,
        100.0 * kept / calm,
    );
    for ((name, before), highest) in ATTACKED.iter().zip(before).zip(memory(mesh, "VmHWM")?) {
        println!("{name}: {} MiB resident before, {} MiB at most", before >> 20, highest >> 20);
        ensure!(highest < before + LARGE_GROWTH_BYTES_MAX, "{name} grew from {before} to {highest} bytes");
    }
    Ok(kept / calm)
}

/// Seconds of processor time of those who are attacked.
fn cpu_secs(mesh: &Mesh) -> Result<f64> {
    ATTACKED.iter().map(|name| system::cpu_secs(mesh.node(name)?.pid()?)).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes of attack: `make flood`"]
async fn ten_thousand_connections_to_each_port_leave_a_limited_link_its_speed() -> Result<()> {
    let mesh = Mesh::empty().node(NodeSpec::bootstrap("b0")).node(NodeSpec::origin("o0"));
    let limited = NodeSpec::gateway("g0").flag("--rate-in", RATE);
    let mesh = mesh.node(limited).node(NodeSpec::gateway("g1")).exclusive().start().await?;
    for addresses in [64, 1] {
        let kept = ten_thousand(&mesh, addresses, 1800 + 1000 * u64::from(addresses)).await?;
        ensure!(kept >= 0.8, "pulls keep {kept:.2} of their speed of at most {RATE_BYTES} bytes/s");
    }
    mesh.finish().await
}

/// Says what is left when pulls, strangers and attackers share the processors; nothing is promised for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes of attack: `make flood`"]
async fn ten_thousand_connections_to_each_port_beside_pulls_without_a_limit() -> Result<()> {
    let mesh = Mesh::with_gateways(2).exclusive().start().await?;
    ten_thousand(&mesh, 64, 99_000).await?;
    mesh.finish().await
}
