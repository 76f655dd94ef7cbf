//! Random faults, replayable by seed.

use shoal_simulations::chaos;

/// Set to a seed to run that one alone.
const SEED_VARIABLE: &str = "SHOAL_SEED";
const SEEDS: u64 = 300;

#[expect(clippy::print_stdout, reason = "shown only when the run panics before it has an outcome")]
fn check(seed: u64) -> chaos::ChaosOutcome {
    println!(
        "seed {seed}; replay: {SEED_VARIABLE}={seed} cargo test -p shoal-simulations --test chaos -- --nocapture"
    );
    let outcome = chaos::run(seed);
    assert_eq!(outcome.violation, None, "seed {seed}");
    assert!(
        outcome.incomplete.is_empty(),
        "seed {seed}: nodes {:?} are not complete after {:?}; replay: {SEED_VARIABLE}={seed} cargo test -p shoal-simulations --test chaos",
        outcome.incomplete,
        outcome.took,
    );
    outcome
}

#[test]
fn every_surviving_engine_ends_complete() {
    if let Ok(seed) = std::env::var(SEED_VARIABLE) {
        check(seed.parse().expect("SHOAL_SEED is a number"));
        return;
    }
    for seed in 0..SEEDS {
        check(seed);
    }
}

#[test]
fn equal_seeds_give_equal_traces() {
    let hashes: Vec<u64> = (1000..1005).map(|seed| chaos::run(seed).trace_hash).collect();
    let again: Vec<u64> = (1000..1005).map(|seed| chaos::run(seed).trace_hash).collect();
    assert_eq!(hashes, again);
    assert!(hashes.windows(2).all(|pair| pair[0] != pair[1]));
}
