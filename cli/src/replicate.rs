//! `shoal replicate`.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use shoal_daemon::replicate::ReplicationStatus;
use shoal_types::{ImageReference, Zone};

use crate::client;
use crate::progress::{Progress, Unit};

/// How often progress is asked for.
const POLL: Duration = Duration::from_millis(250);

/// Flags of `shoal replicate`.
#[derive(clap::Args)]
pub(crate) struct ReplicateArgs {
    /// The image, such as team/app:1.
    #[arg(value_name = "REFERENCE")]
    image: ImageReference,
    /// The zone to copy it to.
    #[arg(long, value_name = "ZONE")]
    to: Zone,
    /// Return when it is queued: it is on the origin's disk then, and is tried until it is done.
    #[arg(long)]
    no_wait: bool,
    /// The ops listener of an origin that is in another zone.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7070", env = "SHOAL_OPS")]
    ops: SocketAddr,
    /// Print one JSON line at the end, and no progress.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: ReplicateArgs) -> anyhow::Result<()> {
    let question = json!({"image": args.image.to_string(), "to": args.to});
    client::post(args.ops, "/api/v1/replications", &question).await?;
    let what = format!("replicate {}", args.image);
    let bar = Progress::new(&what, 0, Unit::Things("blobs and manifests"), args.json || args.no_wait);
    // A job names its record without a host.
    let image = ImageReference { host: None, ..args.image.clone() }.to_string();
    if !args.no_wait {
        follow(args.ops, &image, &args.to, &bar).await?;
    }
    bar.finish();
    let state = if args.no_wait { "queued" } else { "replicated" };
    if args.json {
        println!("{}", json!({"image": image, "to": args.to, "state": state}));
    } else {
        println!("{image} {state} to {}", args.to);
    }
    Ok(())
}

/// Shows how far a job is until it is done.
async fn follow(ops: SocketAddr, image: &str, to: &Zone, bar: &Progress) -> anyhow::Result<()> {
    loop {
        let status: ReplicationStatus = client::get_json(ops, "/api/v1/replications").await?;
        let Some(job) = status.jobs.into_iter().find(|job| job.image == image && job.to == *to) else {
            return Ok(());
        };
        bar.set_length(job.total);
        bar.set_message(job.last_error.unwrap_or_default());
        bar.set_position(job.done);
        tokio::time::sleep(POLL).await;
    }
}
