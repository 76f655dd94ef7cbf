//! Replays the corpora, and varies the seeds a little: a small, deterministic part of what `make fuzz` does.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use rand_core::Rng as _;
use rand_pcg::Pcg64Mcg;
use shoal_fuzz::{TARGETS, Target};

/// Variations of each target's seeds.
const VARIATIONS: usize = 3000;
/// The corpora are to stay small.
const CORPUS_BYTES_MAX: u64 = 512 << 10;

fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new("corpus").join(target.name);
    let mut all: Vec<_> =
        (target.seeds)().into_iter().enumerate().map(|(n, seed)| (format!("seed {n}"), seed)).collect();
    let mut files: Vec<_> =
        std::fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    all.extend(files.iter().map(|path| (path.display().to_string(), std::fs::read(path).unwrap())));
    all
}

struct Replaying<'a>(&'a str, &'a str, &'a [u8]);

impl Drop for Replaying<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("target {}, {}: {:02x?}", self.0, self.1, self.2);
        }
    }
}

fn feed(target: &Target, what: &str, input: &[u8]) {
    let _on_panic = Replaying(target.name, what, input);
    (target.run)(input);
}

fn below(random: &mut Pcg64Mcg, bound: usize) -> usize {
    usize::try_from(random.next_u64() % (bound.max(1) as u64)).unwrap()
}

fn vary(random: &mut Pcg64Mcg, all: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut input = all[below(random, all.len())].1.clone();
    for _ in 0..=below(random, 4) {
        let at = below(random, input.len());
        match below(random, 6) {
            0 => input.truncate(at),
            1 => input.insert(at, random.next_u64() as u8),
            2 if !input.is_empty() => input[at] = random.next_u64() as u8,
            3 if !input.is_empty() => input[at] ^= 1 << below(random, 8),
            4 if !input.is_empty() => drop(input.remove(at)),
            _ => {
                let other = &all[below(random, all.len())].1;
                let tail = other.get(below(random, other.len())..).unwrap_or_default();
                input.truncate(at);
                input.extend_from_slice(tail);
            }
        }
    }
    input
}

#[test]
fn corpora_and_variations_of_them_break_nothing() {
    for (number, target) in TARGETS.iter().enumerate() {
        let all = corpus(target);
        assert!(!all.is_empty(), "{} has no seeds", target.name);
        for (what, input) in &all {
            feed(target, what, input);
        }
        let mut random = Pcg64Mcg::new(number as u128 + 1);
        for n in 0..VARIATIONS {
            feed(target, &format!("variation {n}"), &vary(&mut random, &all));
        }
    }
}

#[test]
fn the_corpora_are_small() {
    fn size(dir: &Path) -> u64 {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .map(|entry| match entry.metadata() {
                Ok(meta) if meta.is_dir() => size(&entry.path()),
                Ok(meta) => meta.len(),
                Err(_) => 0,
            })
            .sum()
    }
    let bytes = size(Path::new("corpus"));
    assert!(bytes <= CORPUS_BYTES_MAX, "{bytes} bytes: minimise with scripts/fuzz.sh --merge");
}

#[test]
fn every_corpus_directory_is_a_targets() {
    for target in TARGETS {
        let corpus = Path::new("corpus").join(target.name);
        let inputs = std::fs::read_dir(&corpus).into_iter().flatten().count();
        assert!(inputs > 0, "{} is empty: fill it with scripts/fuzz.sh --merge", corpus.display());
    }
    for entry in std::fs::read_dir("corpus").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        assert!(TARGETS.iter().any(|target| target.name == name), "corpus/{name} is no target's");
    }
}
