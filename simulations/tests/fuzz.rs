//! Random faults, replayable by seed.

use shoal_simulations::{TraceFilter, fuzz};

/// Set to a seed to run that one alone.
const SEED_VARIABLE: &str = "SHOAL_SEED";
const SEEDS: u64 = 3000;
/// Seeds that once found something, and what it was.
const REGRESSIONS: [(u64, &str); 0] = [];

#[expect(clippy::print_stdout, reason = "shown only when the run panics before it has an outcome")]
fn check(seed: u64) {
    println!("seed {seed}; replay: shoal simulate --fuzz 1 --seed {seed}");
    let trouble = fuzz::run(seed).trouble();
    assert_eq!(trouble, None, "seed {seed}; replay: shoal simulate --fuzz 1 --seed {seed}");
}

#[test]
fn every_surviving_engine_ends_complete() {
    if let Ok(seed) = std::env::var(SEED_VARIABLE) {
        let seed = seed.parse().expect("SHOAL_SEED is a number");
        let host = std::env::var("SHOAL_HOST").ok().map(|host| host.parse().expect("SHOAL_HOST is a number"));
        let filter = TraceFilter { host, piece: None };
        let (outcome, lines) = fuzz::run_traced(seed, Some(filter));
        lines.iter().for_each(|line| println!("{line}"));
        assert_eq!(outcome.trouble(), None);
        return;
    }
    for (seed, _) in REGRESSIONS {
        check(seed);
    }
    // The machine's processors share them.
    let parts = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    std::thread::scope(|scope| {
        for part in 0..parts {
            scope.spawn(move || (part..SEEDS).step_by(parts as usize).for_each(check));
        }
    });
}

#[test]
fn equal_seeds_give_equal_traces() {
    let hashes: Vec<u64> = (1000..1005).map(|seed| fuzz::run(seed).trace_hash).collect();
    let again: Vec<u64> = (1000..1005).map(|seed| fuzz::run(seed).trace_hash).collect();
    assert_eq!(hashes, again);
    assert!(hashes.windows(2).all(|pair| pair[0] != pair[1]));
}
