//! libFuzzer's program for the target that the environment variable `SHOAL_FUZZ` names. See `scripts/fuzz.sh`.
#![no_main]
#![allow(missing_docs, unsafe_code, reason = "the macro makes a function with the name that libFuzzer calls")]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<&shoal_fuzz::Target> = LazyLock::new(|| {
    let name = std::env::var("SHOAL_FUZZ").unwrap_or_default();
    let Some(target) = shoal_fuzz::TARGETS.iter().find(|target| target.name == name) else {
        let names: Vec<_> = shoal_fuzz::TARGETS.iter().map(|target| target.name).collect();
        eprintln!("SHOAL_FUZZ must be one of {}", names.join(", "));
        std::process::exit(2);
    };
    // Where libFuzzer is to find the seeds.
    if let Some(dir) = std::env::var_os("SHOAL_FUZZ_SEEDS").map(std::path::PathBuf::from) {
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            if let Err(error) = std::fs::write(dir.join(format!("seed-{number}")), seed) {
                eprintln!("cannot write seeds into {}: {error}", dir.display());
                std::process::exit(2);
            }
        }
    }
    target
});

fuzz_target!(|data: &[u8]| (TARGET.run)(data));
