//! What one gateway costs and how quick it is: first bytes, manifests, memory at rest.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use shoal_tests::Registry;
use shoal_tests::image::{ImageBuilder, noise};

use crate::args::Args;
use crate::client;
use crate::lab::{self, Lab};
use crate::measure;
use crate::mesh;
use crate::report::median;
use crate::run::{Fleet, start_mesh};
use crate::scenario::{Link, Scenario};

pub(crate) const NAME: &str = "gateway";
/// Blobs read, each for the first time.
const BLOBS: usize = 20;
const BLOB_BYTES: usize = 20_000_000;
/// How long a gateway rests before its memory is looked at.
const REST: Duration = Duration::from_secs(10);
const WRK_SECS: u64 = 5;

/// Figures of one gateway and one origin, a host each, wires as fast as the machine.
pub(crate) struct Micro {
    idle_anonymous_mb: f64,
    first_byte_ms: Vec<f64>,
    manifests_per_sec: f64,
    manifest_latency: String,
}

impl Micro {
    pub(crate) fn table(&self) -> String {
        format!(
            "\none gateway, one origin, unshaped\n  anonymous memory of the gateway at rest: {:.1} MB\n  first byte of a blob that is not here, {} blobs: median {:.1} ms, worst {:.1} ms\n  manifest GET by digest (wrk, 1 thread, 32 connections, {WRK_SECS} s, same machine): {:.0}/s, {}\n",
            self.idle_anonymous_mb,
            self.first_byte_ms.len(),
            median(&self.first_byte_ms),
            self.first_byte_ms.iter().copied().fold(0.0, f64::max),
            self.manifests_per_sec,
            self.manifest_latency,
        )
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "idle_anonymous_mb": self.idle_anonymous_mb,
            "first_byte_ms": self.first_byte_ms,
            "first_byte_median_ms": median(&self.first_byte_ms),
            "manifests_per_sec": self.manifests_per_sec,
        })
    }
}

pub(crate) fn run(args: &Args, program: &Path) -> Result<Micro> {
    let scenario = Scenario {
        name: NAME,
        hosts: 2,
        zones: 1,
        blob_bytes: BLOB_BYTES as u64,
        wire: None,
        link: Link { rate: None, delay: Duration::ZERO },
    };
    let dir = tempfile::Builder::new().prefix("shoal-bench-").tempdir_in(&args.data)?;
    let lab = Lab::build(&scenario, None)?;
    let fleet = start_mesh(args, program, &lab, dir.path(), noise(0, BLOB_BYTES))?;
    std::thread::sleep(REST);
    let reader = fleet.gateways.first().context("no gateway")?;
    let idle_anonymous_mb = measure::anonymous_bytes(reader.pid())? as f64 / 1e6;
    eprintln!("{NAME}: {idle_anonymous_mb:.1} MB at rest");
    let first_byte_ms = first_bytes(&lab, &fleet)?;
    let (manifests_per_sec, manifest_latency) = manifests(&lab, &fleet)?;
    let micro = Micro { idle_anonymous_mb, first_byte_ms, manifests_per_sec, manifest_latency };
    eprintln!("{}", micro.table());
    Ok(micro)
}

/// Blobs pushed through the second gateway and read through the first.
fn first_bytes(lab: &Lab, fleet: &Fleet) -> Result<Vec<f64>> {
    let gateway: SocketAddr = mesh::GATEWAY.parse()?;
    let pusher = fleet.gateways.get(1).context("no second gateway")?;
    let mut all = Vec::new();
    for number in 1..=BLOBS {
        let digest = mesh::push(&pusher.namespace, gateway, noise(number as u64, BLOB_BYTES))?;
        let path = format!("/v2/{}/blobs/{digest}", mesh::REPOSITORY);
        let namespace = &lab.hosts[0].namespace;
        let read = lab::inside(namespace, || client::read(gateway, &path, BLOB_BYTES as u64))?;
        all.push(read.first_byte.as_secs_f64() * 1000.0);
    }
    Ok(all)
}

fn manifests(lab: &Lab, fleet: &Fleet) -> Result<(f64, String)> {
    let gateway: SocketAddr = mesh::GATEWAY.parse()?;
    let image = ImageBuilder::new(7).payload(1000).build()?;
    let namespace = &fleet.gateways.first().context("no gateway")?.namespace;
    let registry = Registry::new(gateway, mesh::REPOSITORY);
    lab::inside(namespace, || mesh::block_on(registry.push_image("1", &image)))?;
    let url = format!("http://{gateway}/v2/{}/manifests/{}", mesh::REPOSITORY, image.manifest.digest);
    let warm = Instant::now();
    while warm.elapsed() < Duration::from_secs(1) {
        lab::inside(namespace, || mesh::block_on(registry.manifest(&image.manifest.digest)))?;
    }
    let duration = format!("-d{WRK_SECS}s");
    let words = ["wrk", "-t1", "-c32", &duration, "--latency", &url];
    let text = lab::output_in(&lab.hosts[0].namespace, &words)?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
        line.map(|rest| rest.trim().to_owned()).with_context(|| format!("no {name} in:\n{text}"))
    };
    anyhow::ensure!(!text.contains("Non-2xx"), "not every answer was good:\n{text}");
    Ok((field("Requests/sec:")?.parse()?, format!("p50 {}, p99 {}", field("50%")?, field("99%")?)))
}
