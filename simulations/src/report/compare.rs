//! Two reports side by side.

use std::fmt::Write as _;

use super::Report;

/// One figure of a report.
type Figure = fn(&Report) -> f64;

/// A table of two reports and the change from the first to the second.
pub fn compare(one: &Report, other: &Report) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{:<24}{:>14}{:>14}{:>10}", "", one.scenario, other.scenario, "change");
    let rows: [(&str, Figure); 12] = [
        ("host p50, s", |report| report.hosts_done.p50),
        ("host p90, s", |report| report.hosts_done.p90),
        ("host p99, s", |report| report.hosts_done.p99),
        ("host p99.9, s", |report| report.hosts_done.p99_9),
        ("host last, s", |report| report.hosts_done.last),
        ("first byte p50, s", |report| report.first_byte.p50),
        ("bound, s", |report| report.bound),
        ("origin copies", |report| report.origin_copies),
        ("bytes between zones", |report| report.links.iter().map(|link| link.bytes as f64).sum()),
        ("lookups", |report| (report.owner_lookups + report.dht_lookups) as f64),
        ("control bytes", |report| report.control_bytes as f64),
        ("bytes thrown away", |report| report.wasted_bytes as f64),
    ];
    for (name, value) in rows {
        let (from, to) = (value(one), value(other));
        let change = if from == 0.0 { 0.0 } else { (to / from - 1.0) * 100.0 };
        let _ = writeln!(text, "{name:<24}{from:>14.3}{to:>14.3}{change:>+9.1}%");
    }
    text
}
