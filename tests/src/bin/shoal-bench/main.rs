//! `shoal-bench`: a fleet of network namespaces on one machine, behind emulated wires, that pulls one blob at the same
//! instant; and the same workload through a plain registry and BitTorrent. See `docs/BENCHMARKS.md`.

#![expect(clippy::print_stdout, reason = "the table goes to standard output")]

mod args;
mod client;
mod lab;
mod measure;
mod mesh;
mod micro;
mod plot;
mod relay;
mod report;
mod rivals;
mod run;
mod scenario;
mod tracker;

use clap::Parser as _;

fn main() -> anyhow::Result<()> {
    run::all(&args::Args::parse())
}
