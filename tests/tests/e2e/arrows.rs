//! The arrows between the crates, read from `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::process::Command;

use shoal_tests::system;

/// Who may use whom among the crates of this workspace. What is reached over another crate counts as used.
const ARROWS: &[(&str, &[&str])] = &[
    ("shoal-types", &[]),
    ("shoal-engine", &["shoal-types"]),
    ("shoal-simulations", &["shoal-types", "shoal-engine"]),
    ("shoal-store", &["shoal-types"]),
    ("shoal-origin", &["shoal-types"]),
    ("shoal-net", &["shoal-types", "shoal-engine"]),
    ("shoal-bootstrap", &["shoal-types", "shoal-engine", "shoal-net"]),
    ("shoal-daemon", &["shoal-types", "shoal-engine", "shoal-net", "shoal-store", "shoal-origin"]),
    (
        "shoal-gateway",
        &["shoal-types", "shoal-engine", "shoal-net", "shoal-store", "shoal-origin", "shoal-daemon"],
    ),
    (
        "shoal",
        &[
            "shoal-types",
            "shoal-engine",
            "shoal-net",
            "shoal-store",
            "shoal-origin",
            "shoal-daemon",
            "shoal-gateway",
            "shoal-bootstrap",
            "shoal-simulations",
        ],
    ),
    (
        "shoal-tests",
        &[
            "shoal-types",
            "shoal-engine",
            "shoal-store",
            "shoal-net",
            "shoal-origin",
            "shoal-daemon",
            "shoal-gateway",
        ],
    ),
    (
        "shoal-fuzz",
        &[
            "shoal-types",
            "shoal-engine",
            "shoal-store",
            "shoal-net",
            "shoal-origin",
            "shoal-daemon",
            "shoal-gateway",
        ],
    ),
];

/// The crates that do no I/O.
const PURE: [&str; 3] = ["shoal-types", "shoal-engine", "shoal-simulations"];

/// What a crate without I/O reaches over nothing: runtimes, networks, files, clocks, ambient randomness.
const IMPURE: &[&str] = &[
    "tokio",
    "async-std",
    "smol",
    "mio",
    "socket2",
    "hyper",
    "libp2p",
    "rustls",
    "rocksdb",
    "tempfile",
    "rustix",
    "nix",
    "rand",
    "getrandom",
    "chrono",
    "time",
    "parking_lot",
];

struct Graph {
    names: BTreeMap<String, String>,
    uses: BTreeMap<String, Vec<String>>,
}

impl Graph {
    async fn read() -> Result<Self> {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        let mut command = Command::new(cargo);
        // Without a network and without touching the lock file; for this platform, or Windows' crates would count.
        command
            .args(["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform"])
            .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
            .current_dir(system::project("tests"));
        let metadata: Value = serde_json::from_str(&system::run(&mut command).await?)?;
        let packages = metadata["packages"].as_array().context("no packages")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let names = packages.iter().map(|package| (text(&package["id"]), text(&package["name"]))).collect();
        let nodes = metadata["resolve"]["nodes"].as_array().context("no graph")?;
        let uses = nodes.iter().map(|node| (text(&node["id"]), normal_dependencies(node))).collect();
        Ok(Self { names, uses })
    }

    /// Names of all crates that one reaches, itself aside.
    fn reaches(&self, name: &str) -> Result<BTreeSet<String>> {
        let start =
            self.names.iter().find(|(_, other)| *other == name).with_context(|| format!("no {name}"))?;
        let mut seen = BTreeSet::new();
        let mut queue = vec![start.0.clone()];
        while let Some(id) = queue.pop() {
            for next in self.uses.get(&id).into_iter().flatten() {
                if seen.insert(next.clone()) {
                    queue.push(next.clone());
                }
            }
        }
        Ok(seen.iter().filter_map(|id| self.names.get(id).cloned()).collect())
    }
}

/// What a crate is built from: neither its tests' nor its build script's dependencies.
fn normal_dependencies(node: &Value) -> Vec<String> {
    let dependencies = node["deps"].as_array().into_iter().flatten();
    let normal = dependencies.filter(|dependency| {
        let kinds = dependency["dep_kinds"].as_array().into_iter().flatten();
        kinds.into_iter().any(|kind| kind["kind"].is_null())
    });
    normal.filter_map(|dependency| dependency["pkg"].as_str().map(str::to_owned)).collect()
}

#[tokio::test]
async fn crates_use_only_what_the_design_allows() -> Result<()> {
    let graph = Graph::read().await?;
    let ours: BTreeSet<_> =
        graph.names.values().filter(|name| name.as_str() == "shoal" || name.starts_with("shoal-")).collect();
    let listed: BTreeSet<_> = ARROWS.iter().map(|(name, _)| (*name).to_owned()).collect();
    ensure!(ours.iter().copied().eq(&listed), "the list of crates here is not the workspace's: {ours:?}");
    for (name, allowed) in ARROWS {
        for used in graph.reaches(name)?.iter().filter(|used| listed.contains(*used)) {
            ensure!(allowed.contains(&used.as_str()), "{name} must not use {used}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn crates_without_io_reach_no_io() -> Result<()> {
    let graph = Graph::read().await?;
    for name in PURE {
        for used in graph.reaches(name)? {
            let forbidden = IMPURE.iter().any(|bad| used == *bad || used.starts_with(&format!("{bad}-")));
            ensure!(!forbidden, "{name} must not reach {used}");
        }
    }
    // The same question asked of a crate with I/O has another answer: the test can fail.
    ensure!(graph.reaches("shoal-net")?.contains("libp2p"), "shoal-net does not use libp2p?");
    Ok(())
}
