//! End to end: real processes, real clients. The harness is this crate's library.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests tell what they see, and may panic"
)]

mod access;
mod arrows;
mod backends;
mod bad_input;
mod chaos;
mod clients;
mod config;
mod conformance;
mod console;
mod corrupt;
mod credentials;
mod deploy;
mod disk;
mod docs;
mod doctor;
mod flash;
mod flood;
mod gc;
mod hostile;
mod install;
mod live;
mod mirrors;
mod monitoring;
mod owners;
mod preheat;
mod progress;
mod push;
mod recovery;
mod replicate;
mod strangers;
mod stream;
mod survive;
mod tags;
mod traces;
mod uploads;
mod why;
mod wire;
mod wireguard;
mod write_back;

use anyhow::Result;
use shoal_tests::image::Blob;
use shoal_tests::{Mesh, image};

const MIB: usize = 1 << 20;

/// A blob of noise, pushed through a gateway.
async fn pushed_blob(mesh: &Mesh, gateway: &str, seed: u64, bytes: usize) -> Result<Blob> {
    let blob = Blob::new("application/octet-stream", image::noise(seed, bytes));
    mesh.registry(gateway, "e2e/blob")?.push_blob(&blob).await?;
    Ok(blob)
}
