//! The distribution specification's requirements, one case each (the gateway's own suite), against a real mesh: pushes
//! go to an origin, and everything the gateway knows it learned from others.

use anyhow::{Result, ensure};
use futures::StreamExt as _;
use shoal_gateway::conformance::{Registry, cases};
use shoal_tests::Mesh;

/// Cases at a time; each has a repository of its own.
const AT_ONCE: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_requirement_holds_on_a_real_mesh() -> Result<()> {
    let mesh = Mesh::with_gateways(1).start().await?;
    let registry = Registry::new(&mesh.node("g0")?.gateway()?.to_string());
    let run = |case: shoal_gateway::conformance::Case| {
        let outcome = (case.run)(registry.clone());
        async move { (case.name, outcome.await) }
    };
    let outcomes: Vec<_> = futures::stream::iter(cases()).map(run).buffer_unordered(AT_ONCE).collect().await;
    let mut failures = Vec::new();
    for (name, outcome) in &outcomes {
        println!("{name}: {}", if outcome.is_ok() { "ok" } else { "FAILED" });
        failures.extend(outcome.as_ref().err().map(|why| format!("{name}: {why}")));
    }
    ensure!(!outcomes.is_empty(), "no cases");
    ensure!(
        failures.is_empty(),
        "{} of {} cases failed:\n{}",
        failures.len(),
        outcomes.len(),
        failures.join("\n")
    );
    mesh.finish().await
}
