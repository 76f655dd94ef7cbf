//! `shoal gc`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::bail;
use bytesize::ByteSize;
use shoal_daemon::gc::{Options, Progress as Told, Report};
use shoal_types::PeerId;

use crate::client;
use crate::progress::{Progress, Unit};

/// How often progress is asked for.
const POLL: Duration = Duration::from_millis(500);

/// Flags of `shoal gc`.
#[derive(clap::Args)]
pub(crate) struct GcArgs {
    /// Only say what would be deleted.
    #[arg(long)]
    dry_run: bool,
    /// How long something must have been unreached before it is deleted, as earlier collections saw it: at the least what
    /// the longest push takes.
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    grace: humantime::Duration,
    /// Keep manifests that no tag reaches, and what they reach: for a registry whose images are pulled by digest.
    #[arg(long)]
    keep_untagged: bool,
    /// An origin that is gone for good: collect although it cannot be asked. Repeatable.
    #[arg(long, value_name = "PEER")]
    without: Vec<PeerId>,
    /// The ops listener of an origin.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7070", env = "SHOAL_OPS")]
    ops: SocketAddr,
    /// Print JSON at the end, and no progress.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: GcArgs) -> anyhow::Result<()> {
    let options = Options {
        dry_run: args.dry_run,
        grace_ms: u64::try_from(Duration::from(args.grace).as_millis())?,
        keep_untagged: args.keep_untagged,
        without: args.without,
    };
    let bar = Progress::new("gc", 0, Unit::Things("origins"), args.json);
    let reports: anyhow::Result<Vec<Report>> = tokio::select! {
        reports = client::post_json(args.ops, "/api/v1/gc", &options) => reports,
        never = follow(args.ops, &bar) => match never {},
    };
    bar.finish();
    let reports = reports?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
    } else {
        reports.iter().for_each(|report| show(report, args.dry_run, args.grace));
    }
    let incomplete = reports.iter().filter(|report| report.incomplete.is_some()).count();
    let failed: u64 = reports.iter().map(|report| report.failed).sum();
    if incomplete > 0 {
        bail!("{incomplete} of {} origins deleted nothing: see above for why", reports.len());
    }
    if failed > 0 {
        bail!("{failed} deletions failed: run it again");
    }
    Ok(())
}

/// Shows how far the collection is, for as long as it is polled. An origin that does not say is no failure.
async fn follow(ops: SocketAddr, bar: &Progress) -> Infallible {
    loop {
        tokio::time::sleep(POLL).await;
        let Ok(told) = client::get_json::<Told>(ops, "/api/v1/gc").await else { continue };
        bar.set_length(told.origins);
        bar.set_message(match told.done {
            0 => told.step,
            done => format!("{}: {done}", told.step),
        });
        bar.set_position(told.origins_done);
    }
}

fn show(report: &Report, dry_run: bool, grace: humantime::Duration) {
    println!("origin {}  zone {}", report.origin, report.zone);
    if let Some(why) = &report.incomplete {
        println!("    nothing deleted: {why}");
        return;
    }
    let line = |label: &str, amount: shoal_daemon::gc::Amount| {
        println!("    {label:<34}{:>9} blobs  {}", amount.count, ByteSize::b(amount.bytes));
    };
    println!("    {:<34}{:>9}", "images with a tag", report.tags);
    println!("    {:<34}{:>9}", "manifests and blobs they reach", report.reached);
    line("held in its backends", report.held);
    line("of that unreached", report.unreached);
    if dry_run {
        line(&format!("would be deleted (over {grace})"), report.due);
        report.digests.iter().for_each(|digest| println!("        {digest}"));
        let more = report.due.count.saturating_sub(report.digests.len() as u64);
        if more > 0 {
            println!("        and {more} more");
        }
        return;
    }
    line("deleted", report.deleted);
    println!("    {:<34}{:>9}", "manifests taken out of repositories", report.manifests_deleted);
    let waiting = report.unreached.count.saturating_sub(report.deleted.count);
    if waiting > 0 {
        println!("    {waiting} wait for a collection that finds them unreached for {grace}");
    }
    if let Some(why) = &report.last_error {
        println!("    {} deletions failed, the last because {why}", report.failed);
    }
}
