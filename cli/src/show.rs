//! `shoal status`, `peers`, `swarms` and `pulls`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde_json::Value;

use crate::client;

/// Flags of what is shown.
#[derive(clap::Args)]
pub(crate) struct ShowArgs {
    /// The daemon's ops listener.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7070", env = "SHOAL_OPS")]
    ops: SocketAddr,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn status(args: ShowArgs) -> anyhow::Result<()> {
    let status: Value = client::get_json(args.ops, "/api/v1/status").await?;
    if args.json {
        return print_json(&status);
    }
    for (label, path) in [
        ("peer", "/peer"),
        ("version", "/version"),
        ("zone", "/zone"),
        ("roles", "/roles"),
        ("listening", "/listening"),
        ("data plane", "/data_endpoints"),
        ("members connected", "/members_connected"),
        ("members known", "/members_known"),
        ("data connections", "/data_connections"),
        ("routing table", "/routing_peers"),
        ("records for others", "/provider_records"),
        ("blobs announced", "/provided"),
        ("swarms", "/swarms"),
        ("blobs stored", "/store/blobs"),
    ] {
        println!("{label:<20}{}", text(status.pointer(path)));
    }
    let number = |path: &str| status.pointer(path).and_then(Value::as_u64).unwrap_or_default();
    println!(
        "{:<20}{} of {}",
        "store",
        size(number("/store/used_bytes")),
        size(number("/store/capacity_bytes"))
    );
    for backend in status.get("backends").and_then(Value::as_array).into_iter().flatten() {
        let bytes = |key: &str| size(backend.get(key).and_then(Value::as_u64).unwrap_or_default());
        let back = backend.get("write_back").and_then(Value::as_bool).unwrap_or_default();
        println!(
            "{:<20}{}{}  read {}  written {}  failures {}",
            "backend",
            text(backend.get("backend")),
            if back { "  write back" } else { "" },
            bytes("read_bytes"),
            bytes("written_bytes"),
            text(backend.get("failures"))
        );
    }
    if let Some(queue) = status.get("queue").filter(|queue| !queue.is_null()) {
        println!(
            "{:<20}{} blobs, {} records, the oldest for {} s",
            "waiting for backend",
            text(queue.get("blobs")),
            text(queue.get("records")),
            queue.get("oldest_ms").and_then(Value::as_u64).unwrap_or_default() / 1000
        );
        if let Some(why) = queue.get("last_error").and_then(Value::as_str) {
            println!("{:<20}{why}", "last failure");
        }
    }
    if let Some(replication) = status.get("replication").filter(|status| !status.is_null()) {
        let number = |key: &str| replication.get(key).and_then(Value::as_u64).unwrap_or_default();
        println!(
            "{:<20}{} waiting, {} copied ({})",
            "replication",
            number("waiting"),
            number("copied"),
            size(number("bytes"))
        );
        for job in replication.get("jobs").and_then(Value::as_array).into_iter().flatten().take(20) {
            println!(
                "{:<20}{} to {}: {} of {}",
                "",
                text(job.get("image")),
                text(job.get("to")),
                text(job.get("done")),
                text(job.get("total"))
            );
        }
        if let Some(why) = replication.get("last_error").and_then(Value::as_str) {
            println!("{:<20}{why}", "last failure");
        }
    }
    for origin in status.get("origins").and_then(Value::as_array).into_iter().flatten() {
        println!("{:<20}{}  zone {}", "origin", text(origin.get("peer")), text(origin.get("zone")));
    }
    let peers: Vec<Value> = client::get_json(args.ops, "/api/v1/peers").await?;
    let origins = status.get("origins").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for (zone, members) in zones(text(status.get("peer")), &peers, origins) {
        println!(
            "{:<20}{zone}  {} members known, {} connected for data",
            "zone", members.known, members.connected
        );
    }
    Ok(())
}

/// Members of a zone.
#[derive(Debug, Default, PartialEq)]
struct Members {
    known: usize,
    connected: usize,
}

/// The members of each zone, the process `own` aside: those connected with at some time, and origins, which are heard of
/// before.
fn zones(own: String, peers: &[Value], origins: &[Value]) -> BTreeMap<String, Members> {
    let mut zones: BTreeMap<String, Members> = BTreeMap::new();
    let mut seen = BTreeSet::from([own]);
    for peer in peers.iter().chain(origins) {
        if !seen.insert(text(peer.get("peer"))) {
            continue;
        }
        let members = zones.entry(text(peer.get("zone"))).or_default();
        members.known += 1;
        members.connected +=
            usize::from(peer.get("data_connected").and_then(Value::as_bool).unwrap_or_default());
    }
    zones
}

pub(crate) async fn peers(args: ShowArgs) -> anyhow::Result<()> {
    let columns = [
        ("PEER", "peer"),
        ("ZONE", "zone"),
        ("ROLES", "roles"),
        ("ENDPOINTS", "endpoints"),
        ("CONNECTED", "data_connected"),
    ];
    table(&args, "/api/v1/peers", &columns).await
}

pub(crate) async fn swarms(args: ShowArgs) -> anyhow::Result<()> {
    let columns = [
        ("BLOB", "digest"),
        ("SIZE", "size"),
        ("HAVE", "pieces_have"),
        ("OF", "pieces_total"),
        ("PEERS", "peers"),
        ("READERS", "readers"),
    ];
    table(&args, "/api/v1/swarms", &columns).await
}

pub(crate) async fn pulls(args: ShowArgs) -> anyhow::Result<()> {
    let rows: Vec<Value> = client::get_json(args.ops, "/api/v1/pulls").await?;
    if args.json {
        return print_json(&Value::Array(rows));
    }
    for row in &rows {
        let number = |key: &str| row.get(key).and_then(Value::as_u64).unwrap_or_default();
        let took = match (
            row.get("started_ms").and_then(Value::as_u64),
            row.get("completed_ms").and_then(Value::as_u64),
        ) {
            (Some(start), Some(end)) => format!("in {:.2} s", end.saturating_sub(start) as f64 / 1000.0),
            _ => String::new(),
        };
        println!("{}  {} {took}", text(row.get("digest")), size(number("size")));
        for (peer, share) in row.get("peers").and_then(Value::as_object).into_iter().flatten() {
            let bytes = share.get("bytes").and_then(Value::as_u64).unwrap_or_default();
            println!("    {:>10}  from {peer}  zone {}", size(bytes), text(share.get("zone")));
        }
        for (label, key) in [
            ("from other peers", "others_bytes"),
            ("from the backend", "backend_bytes"),
            ("read here by clients", "local_bytes"),
            ("sent to peers", "served_bytes"),
        ] {
            if number(key) > 0 {
                println!("    {:>10}  {label}", size(number(key)));
            }
        }
        if let Some(why) = row.get("failed").and_then(Value::as_str) {
            println!("    failed: {why}");
        }
    }
    Ok(())
}

async fn table(args: &ShowArgs, path: &str, columns: &[(&str, &str)]) -> anyhow::Result<()> {
    let rows: Vec<Value> = client::get_json(args.ops, path).await?;
    if args.json {
        return print_json(&Value::Array(rows));
    }
    let mut lines = vec![columns.iter().map(|(title, _)| (*title).to_owned()).collect::<Vec<_>>()];
    lines.extend(rows.iter().map(|row| columns.iter().map(|(_, key)| text(row.get(*key))).collect()));
    let widths: Vec<usize> = (0..columns.len())
        .map(|column| lines.iter().filter_map(|line| line.get(column)).map(String::len).max().unwrap_or(0))
        .collect();
    for line in &lines {
        let cells: Vec<String> =
            line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        println!("{}", cells.join("  ").trim_end());
    }
    Ok(())
}

pub(crate) fn print_json(value: &Value) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

pub(crate) fn text(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => items.iter().map(|item| text(Some(item))).collect::<Vec<_>>().join(" "),
        Some(other) => other.to_string(),
    }
}

pub(crate) fn size(bytes: u64) -> String {
    bytesize::ByteSize::b(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_counted_by_zone() {
        let peer = |id: &str, zone: &str, connected: bool| serde_json::json!({ "peer": id, "zone": zone, "data_connected": connected });
        let peers = [peer("1", "b", true), peer("2", "a", false), peer("3", "b", false)];
        let origins = ["0", "1", "4"].map(|id| serde_json::json!({ "peer": id, "zone": "b" }));
        let zones = zones("0".to_owned(), &peers, &origins);
        let expected = [("a", 1, 0), ("b", 3, 1)];
        let expected =
            expected.map(|(zone, known, connected)| (zone.to_owned(), Members { known, connected }));
        assert_eq!(zones, BTreeMap::from(expected));
    }
}
