//! `shoal simulate`: virtual fleets that run the shipping engine.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use shoal_simulations::report::{Report, compare, plot};
use shoal_simulations::scenario::{Scenario, Simulation};
use shoal_simulations::{TraceFilter, fuzz};

use crate::pages;
use crate::progress::{Progress, Unit};

/// Options of `shoal simulate`.
#[derive(clap::Args)]
pub(crate) struct SimulateArgs {
    /// The scenario, a TOML file; see docs/SIMULATION.md.
    #[arg(value_name = "SCENARIO.toml", required_unless_present_any = ["fuzz", "compare"])]
    scenario: Option<PathBuf>,
    /// The seed all randomness follows from, in place of the scenario's; with --fuzz, the first one.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Print the report as JSON; with --fuzz, what came of it.
    #[arg(long, conflicts_with = "compare")]
    json: bool,
    /// Draw the hosts' times against the bound, and the bytes over time.
    #[arg(long, value_name = "FILE.svg", conflicts_with_all = ["fuzz", "compare"])]
    plot: Option<PathBuf>,
    /// Threads to simulate on: one a processor, unless given. How many there are changes nothing but the time it takes.
    #[arg(long, value_name = "N", conflicts_with_all = ["fuzz", "compare"])]
    threads: Option<NonZero<usize>>,
    /// Tell the story of a host or a piece.
    #[arg(long, value_name = "host=N|piece=N", value_parser = filter)]
    trace: Option<TraceFilter>,
    /// Compare two reports made with --json.
    #[arg(long, num_args = 2, value_names = ["A.json", "B.json"], conflicts_with_all = ["scenario", "fuzz"])]
    compare: Option<Vec<PathBuf>>,
    /// Run so many random small fleets with random faults, and check what must always hold.
    #[arg(long, value_name = "N", conflicts_with = "scenario")]
    fuzz: Option<u64>,
}

fn filter(text: &str) -> Result<TraceFilter, String> {
    let wrong = || format!("{text:?} is neither host=N nor piece=N");
    match text.split_once('=').ok_or_else(wrong)? {
        ("host", number) => Ok(TraceFilter { host: Some(number.parse().map_err(|_| wrong())?), piece: None }),
        ("piece", number) => {
            Ok(TraceFilter { host: None, piece: Some(number.parse().map_err(|_| wrong())?) })
        }
        _ => Err(wrong()),
    }
}

/// Runs what was asked for.
pub(crate) fn run(args: &SimulateArgs) -> Result<()> {
    if let Some(files) = &args.compare {
        let reports = files.iter().map(|file| report(file)).collect::<Result<Vec<_>>>()?;
        let [one, other] = reports.as_slice() else { bail!("--compare needs two files") };
        print!("{}", compare(one, other));
        return Ok(());
    }
    if let Some(count) = args.fuzz {
        return run_fuzz(args.seed.unwrap_or(0), count, args.trace, args.json);
    }
    let Some(file) = &args.scenario else { bail!("name a scenario") };
    pages::ask_for_huge();
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let scenario = Scenario::parse(&text).with_context(|| file.display().to_string())?;
    let mut simulation = Simulation::new(&scenario, args.seed).with_context(|| file.display().to_string())?;
    if let Some(threads) = args.threads {
        simulation = simulation.with_threads(threads);
    }
    if let Some(filter) = args.trace {
        simulation.trace(filter);
    }
    let report = run_with_bar(&mut simulation, args.json);
    simulation.trace_lines().iter().for_each(|line| println!("{line}"));
    println!("{}", if args.json { report.to_json() } else { report.to_string() });
    if let Some(file) = &args.plot {
        std::fs::write(file, plot(&report)).with_context(|| format!("cannot write {}", file.display()))?;
    }
    ensure!(
        report.is_sound(),
        "something forbidden happened, or a surviving host did not get what it wanted"
    );
    ensure!(report.is_met(), "a target of the scenario was missed");
    Ok(())
}

fn report(file: &Path) -> Result<Report> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Report::from_json(&text)
        .with_context(|| format!("{} is no report of shoal simulate --json", file.display()))
}

fn run_with_bar(simulation: &mut Simulation, quiet: bool) -> Report {
    let bar = Progress::new("simulate", 0, Unit::Things("downloads"), quiet);
    let report = simulation.run(|progress| {
        bar.set_length(progress.pulls as u64);
        bar.set_position(progress.done as u64);
        let (secs, millions) = (progress.now.as_secs_f64(), progress.events / 1_000_000);
        bar.set_message(format!("{secs:.1} s virtual, {millions} M events"));
    });
    bar.finish();
    report
}

/// What came of some random fleets.
#[derive(Debug, Default, serde::Serialize)]
struct Fuzzed {
    first_seed: u64,
    /// Those that were run: all, or up to the first with which something was wrong.
    fleets: u64,
    virtual_secs: f64,
    real_secs: f64,
    failed: Option<Failed>,
}

#[derive(Debug, serde::Serialize)]
struct Failed {
    seed: u64,
    trouble: String,
    /// The command that shows it again.
    replay: String,
}

fn run_fuzz(first: u64, count: u64, trace: Option<TraceFilter>, json: bool) -> Result<()> {
    let bar = Progress::new("simulate", count, Unit::Things("fleets"), json);
    let fuzzed = fuzz_fleets(first, count, trace, || bar.inc(1));
    bar.finish();
    if json {
        println!("{}", serde_json::to_string_pretty(&fuzzed)?);
    }
    if let Some(Failed { seed, trouble, replay }) = fuzzed.failed {
        bail!("seed {seed}: {trouble}; replay: {replay}");
    }
    if !json {
        let (virtual_secs, real_secs) = (fuzzed.virtual_secs, fuzzed.real_secs);
        println!(
            "{count} fleets from seed {first}: nothing forbidden, all complete; {virtual_secs:.0} s virtual in {real_secs:.0} s"
        );
    }
    Ok(())
}

fn fuzz_fleets(first: u64, count: u64, trace: Option<TraceFilter>, mut one_more: impl FnMut()) -> Fuzzed {
    let began = Instant::now();
    let mut fuzzed = Fuzzed { first_seed: first, ..Fuzzed::default() };
    let mut virtual_time = Duration::ZERO;
    for seed in first..first.saturating_add(count) {
        let outcome = std::panic::catch_unwind(|| fuzz::run_traced(seed, trace));
        let outcome = outcome.map(|(outcome, lines)| {
            lines.iter().for_each(|line| println!("{line}"));
            outcome
        });
        let trouble = match &outcome {
            Err(_) => Some("the engine or the simulator panicked".to_owned()),
            Ok(outcome) => outcome.trouble(),
        };
        virtual_time += outcome.map_or(Duration::ZERO, |outcome| outcome.took);
        fuzzed.fleets += 1;
        if let Some(trouble) = trouble {
            let replay = format!("shoal simulate --fuzz 1 --seed {seed}");
            fuzzed.failed = Some(Failed { seed, trouble, replay });
            break;
        }
        one_more();
    }
    fuzzed.virtual_secs = virtual_time.as_secs_f64();
    fuzzed.real_secs = began.elapsed().as_secs_f64();
    fuzzed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_of_random_fleets_is_told_as_json() {
        let mut bar = 0;
        let fuzzed = fuzz_fleets(7, 3, None, || bar += 1);
        let told = serde_json::to_value(&fuzzed).unwrap();
        assert_eq!((told["first_seed"].as_u64(), told["fleets"].as_u64(), bar), (Some(7), Some(3), 3));
        assert!(told["failed"].is_null(), "{told}");
        assert!(told["virtual_secs"].as_f64() > Some(1.0), "{told}");
    }
}
