//! `shoal why`: explains a recent pull.

use std::net::SocketAddr;

use serde_json::Value;

use crate::client;
use crate::show::{print_json, size, text};

/// Flags of `shoal why`.
#[derive(clap::Args)]
pub(crate) struct WhyArgs {
    /// The blob's digest, or the image's reference (REPOSITORY:TAG).
    #[arg(value_name = "DIGEST|REFERENCE")]
    what: String,
    /// The daemon's ops listener: of the machine that pulled.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7070", env = "SHOAL_OPS")]
    ops: SocketAddr,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The phases of a download as people call them.
const PHASES: [(&str, &str); 5] = [
    ("lookup", "lookup"),
    ("seeder", "seeder"),
    ("own_link", "own link"),
    ("backend", "own backend"),
    ("disk", "disk"),
];

pub(crate) async fn run(args: WhyArgs) -> anyhow::Result<()> {
    let blobs: Vec<Value> = client::get_json(args.ops, &format!("/api/v1/why/{}", args.what)).await?;
    if args.json {
        return print_json(&Value::Array(blobs));
    }
    for blob in &blobs {
        explain(blob);
    }
    Ok(())
}

fn explain(blob: &Value) {
    let number = |path: &str| blob.pointer(path).and_then(Value::as_f64).unwrap_or_default();
    let bytes = |path: &str| size(number(path) as u64);
    let Some(verdict) = blob.get("verdict").and_then(|verdict| verdict.get("text")).and_then(Value::as_str)
    else {
        println!("{}  {}  not pulled lately", text(blob.get("digest")), text(blob.get("part")));
        return;
    };
    let ended = blob.get("completed_ms").and_then(Value::as_f64);
    let took = ended.map_or_else(
        || "not complete".to_owned(),
        |ended| format!("in {:.2} s", (ended - number("/started_ms")).max(0.0) / 1000.0),
    );
    println!("{}  {}  {} {took}", text(blob.get("digest")), text(blob.get("part")), bytes("/size"));
    println!("    bound by   {verdict}");
    if let Some(why) = blob.get("failed").and_then(Value::as_str) {
        println!("    failed     {why}");
    }
    shares(blob);
    let phases: Vec<String> = PHASES
        .iter()
        .map(|(key, name)| (name, number(&format!("/phases/{key}"))))
        .filter(|(_, millis)| *millis > 0.0)
        .map(|(name, millis)| format!("{name} {:.2} s", millis / 1000.0))
        .collect();
    if !phases.is_empty() {
        println!("    waited for {}", phases.join(", "));
    }
    if blob.get("read").is_some_and(|read| !read.is_null()) {
        println!(
            "    last read  opened in {:.2} s, {:.2} s for bytes to arrive, {:.2} s reading the disk, {:.2} s for the client",
            number("/read/opened_ms") / 1000.0,
            number("/read/arriving_ms") / 1000.0,
            number("/read/disk_ms") / 1000.0,
            number("/read/client_ms") / 1000.0
        );
    }
}

/// A line for each source of bytes, the largest first.
fn shares(blob: &Value) {
    let number = |value: Option<&Value>| value.and_then(Value::as_f64).unwrap_or_default();
    let mut lines: Vec<(f64, String)> = Vec::new();
    for (peer, share) in blob.get("peers").and_then(Value::as_object).into_iter().flatten() {
        let mut line = format!("{peer}  zone {}", text(share.get("zone")));
        let waited = number(share.get("waited_ms"));
        if waited > 0.0 {
            line += &format!(", waited for {:.2} s", waited / 1000.0);
        }
        let timeouts = number(share.get("timeouts"));
        if timeouts > 0.0 {
            line += &format!(", {timeouts} requests not answered in time");
        }
        lines.push((number(share.get("bytes")), line));
    }
    for (key, name) in [
        ("others_bytes", "other peers"),
        ("backend_bytes", "this process's backend"),
        ("local_bytes", "the local store: it was here already"),
    ] {
        let bytes = number(blob.get(key));
        if bytes > 0.0 {
            lines.push((bytes, name.to_owned()));
        }
    }
    let total: f64 = lines.iter().map(|(bytes, _)| bytes).sum();
    lines.sort_by(|one, two| two.0.total_cmp(&one.0));
    for (at, (bytes, line)) in lines.iter().enumerate() {
        let label = if at == 0 { "from" } else { "" };
        let share = 100.0 * bytes / total.max(1.0);
        println!("    {label:<10} {:>10} {share:>3.0} %  {line}", size(*bytes as u64));
    }
}
