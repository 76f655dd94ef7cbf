//! A report as text.

use std::fmt;

use super::{Percentiles, Report};

/// Bytes for people.
pub(super) fn bytes(bytes: u64) -> String {
    let value = bytes as f64;
    match value {
        _ if value >= 1e12 => format!("{:.2} TB", value / 1e12),
        _ if value >= 1e9 => format!("{:.2} GB", value / 1e9),
        _ if value >= 1e6 => format!("{:.1} MB", value / 1e6),
        _ => format!("{:.1} kB", value / 1e3),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} hosts, {} downloads by {} of them, {} in all, seed {}",
            self.scenario,
            self.hosts,
            self.pulls,
            self.pullers,
            bytes(self.bytes),
            self.seed
        )?;
        writeln!(f, "{:<22}{:>10}{:>10}{:>10}{:>10}{:>10}", "seconds", "p50", "p90", "p99", "p99.9", "last")?;
        let mut row = |name: &str, times: &Percentiles| {
            let Percentiles { p50, p90, p99, p99_9, last } = times;
            writeln!(f, "{name:<22}{p50:>10.3}{p90:>10.3}{p99:>10.3}{p99_9:>10.3}{last:>10.3}")
        };
        row("host complete", &self.hosts_done)?;
        row("download complete", &self.pulls_done)?;
        row("first byte", &self.first_byte)?;
        writeln!(
            f,
            "bound {:.3} s, p99.9 at {:.3} of it",
            self.bound,
            self.hosts_done.p99_9 / self.bound.max(1e-9)
        )?;
        writeln!(f, "origins sent {} ({:.3} copies)", bytes(self.origin_bytes), self.origin_copies)?;
        if self.backend_pieces > 0 {
            writeln!(f, "backends gave {} pieces", self.backend_pieces)?;
        }
        for link in &self.links {
            writeln!(
                f,
                "link {} -> {}: {} ({:.3} copies)",
                link.from,
                link.to,
                bytes(link.bytes),
                link.copies
            )?;
        }
        writeln!(
            f,
            "lookups: {} of owners, {} in the DHT; {} messages of {}; {} thrown away; {} retries",
            self.owner_lookups,
            self.dht_lookups,
            self.messages,
            bytes(self.control_bytes),
            bytes(self.wasted_bytes),
            self.retries
        )?;
        for target in &self.targets {
            let verdict = if target.is_met() { "met" } else { "MISSED" };
            writeln!(
                f,
                "target {}: at most {:.3}, is {:.3}: {verdict}",
                target.name, target.wanted, target.reached
            )?;
        }
        if self.incomplete_count > 0 {
            writeln!(
                f,
                "INCOMPLETE: {} downloads, among them (host, blob) {:?}",
                self.incomplete_count, self.incomplete
            )?;
        }
        if let Some(violation) = &self.violation {
            writeln!(f, "VIOLATION {violation}")?;
        }
        write!(f, "{} events, trace {}", self.events, self.trace_hash)
    }
}
