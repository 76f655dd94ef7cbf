//! The scenario files: all can be read, the small ones run, the same seed gives the same trace.

use shoal_simulations::report::{Report, compare, plot};
use shoal_simulations::scenario::{Scenario, Simulation};

const FILES: [(&str, &str); 14] = [
    ("kraken-benchmark", include_str!("../scenarios/kraken-benchmark.toml")),
    ("uber-peak", include_str!("../scenarios/uber-peak.toml")),
    ("flash-crowd-15k", include_str!("../scenarios/flash-crowd-15k.toml")),
    ("hundred-gigabytes", include_str!("../scenarios/hundred-gigabytes.toml")),
    ("three-clouds", include_str!("../scenarios/three-clouds.toml")),
    ("origin-lost", include_str!("../scenarios/origin-lost.toml")),
    ("zone-cut", include_str!("../scenarios/zone-cut.toml")),
    ("rolling-restart", include_str!("../scenarios/rolling-restart.toml")),
    ("slow-tail", include_str!("../scenarios/slow-tail.toml")),
    ("poisoners", include_str!("../scenarios/poisoners.toml")),
    ("no-origin", include_str!("../scenarios/no-origin.toml")),
    ("bench-hosts-8", include_str!("../scenarios/bench-hosts-8.toml")),
    ("bench-hosts-16", include_str!("../scenarios/bench-hosts-16.toml")),
    ("bench-zones-2", include_str!("../scenarios/bench-zones-2.toml")),
];

fn file(name: &str) -> &'static str {
    FILES.iter().find(|(known, _)| *known == name).map_or("", |(_, text)| text)
}

#[expect(clippy::unwrap_used, reason = "part of tests")]
fn run(text: &str, seed: Option<u64>) -> Report {
    Simulation::new(&Scenario::parse(text).unwrap(), seed).unwrap().run(|_| {})
}

#[test]
fn every_file_is_a_scenario_of_its_name() {
    for (name, text) in FILES {
        let scenario = Scenario::parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(scenario.name, name);
        Simulation::new(&Scenario { hosts: Vec::new(), blobs: Vec::new(), ..scenario }, None).unwrap();
    }
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_one_another() {
    let text = file("bench-zones-2");
    let (one, again, other) = (run(text, Some(7)), run(text, Some(7)), run(text, Some(8)));
    assert_eq!(one, again);
    assert_ne!(one.trace_hash, other.trace_hash);
    assert!(one.is_sound(), "{one}");
    // On every machine, in every build: a change of the engine or the model changes it, and nothing else may.
    println!("trace {}", one.trace_hash);
}

/// 1.36 to 1.43 copies; 1.87 when the source gave second copies as soon as each piece had left it once.
#[test]
fn a_lone_seeder_keeps_its_wire_for_what_nobody_else_has() {
    for seed in 1..=5 {
        let report = run(file("bench-zones-2"), Some(seed));
        assert!(report.is_sound(), "{report}");
        assert!(report.origin_copies < 1.5, "{report}");
    }
}

#[test]
fn a_report_survives_json_and_can_be_shown() {
    let report = run(file("bench-hosts-16"), None);
    assert!(report.is_sound(), "{report}");
    assert_eq!(Report::from_json(&report.to_json()).unwrap(), report);
    let picture = plot(&report);
    assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
    assert!(compare(&report, &report).contains("+0.0%"));
    assert!(report.hosts_done.p50 >= report.bound, "quicker than physics: {report}");
    let bytes: u64 = report.timeline.iter().sum();
    assert_eq!(bytes, report.bytes);
}

#[test]
fn mistakes_are_named_with_their_place() {
    let good = file("bench-hosts-16");
    let error = |from: &str, to: &str| Scenario::parse(&good.replace(from, to)).unwrap_err().to_string();
    assert!(error("rate = \"50Mbit/s\"", "rate = \"fast\"").contains("\"fast\" is not a rate such as"));
    assert!(error("by = [\"hosts\"]", "by = [\"host\"]").contains("pulls 1: there is no group \"host\""));
    assert!(error("size = \"100MB\"", "").contains("blobs \"image\": give either size or sizes"));
    assert!(error("count = 16", "cuont = 16").contains("cuont"));
    assert!(error("zone = \"a\"", "zone = \"A B\"").contains("not a zone"));
    assert!(
        error("[[pulls]]", "[[faults]]\nkind = \"crash\"\nat = \"1s\"\n[[pulls]]")
            .contains("faults 1: a cut needs")
    );
}
