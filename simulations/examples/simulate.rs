//! Runs a scenario file without the rest of the program: `cargo run --example simulate -- FILE [SEED]`, with
//! `_RJEM_MALLOC_CONF=thp:always,metadata_thp:always` for huge pages: what `shoal simulate` asks for by itself, with what else helps, is
//! in ADR 23.
#![expect(clippy::print_stdout, clippy::disallowed_methods, reason = "a program for people, with a clock")]

use shoal_simulations::scenario::{Scenario, Simulation};

/// That of the program.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let file = args.next().ok_or("usage: simulate SCENARIO.toml [SEED]")?;
    let seed = args.next().map(|seed| seed.parse()).transpose()?;
    let scenario = Scenario::parse(&std::fs::read_to_string(file)?)?;
    let mut simulation = Simulation::new(&scenario, seed)?;
    // SHOAL_THREADS=N in place of one a processor.
    if let Ok(threads) = std::env::var("SHOAL_THREADS") {
        simulation = simulation.with_threads(threads.parse()?);
    }
    // SHOAL_TRACE_HOST=N tells the story of one host.
    if let Ok(host) = std::env::var("SHOAL_TRACE_HOST") {
        simulation.trace(shoal_simulations::TraceFilter { host: host.parse().ok(), piece: None });
    }
    let began = std::time::Instant::now();
    let report = simulation.run(|progress| {
        eprint!(
            "\r{:.1} s virtual, {:.0} s real, {}/{} downloads, {} M events ",
            progress.now.as_secs_f64(),
            began.elapsed().as_secs_f64(),
            progress.done,
            progress.pulls,
            progress.events / 1_000_000
        );
    });
    eprintln!();
    simulation.trace_lines().iter().for_each(|line| println!("{line}"));
    println!("{report}\n{:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}
