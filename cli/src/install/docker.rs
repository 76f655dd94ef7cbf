//! Docker: the gateway's mirror of Docker Hub before all other `registry-mirrors`.

use std::path::PathBuf;

use anyhow::{Context as _, bail};

use super::plan::{Plan, Undo, refuse_directory};
use super::{Common, gateway_url, json};

/// The setting of dockerd.
pub(crate) const KEY: &str = "registry-mirrors";

/// Flags of `shoal install docker`.
#[derive(clap::Args)]
pub(crate) struct DockerArgs {
    /// The gateway's listener for Docker Hub's images (its setting hub-mirror).
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:5001", value_parser = gateway_url)]
    mirror: String,
    /// dockerd's configuration file.
    #[arg(long, value_name = "FILE", default_value = "/etc/docker/daemon.json")]
    config: PathBuf,
    #[command(flatten)]
    common: Common,
}

/// Writes or reverts.
pub(super) fn run(args: &DockerArgs) -> anyhow::Result<()> {
    args.common.carry_out("docker", |plan| edit(args, plan))
}

fn edit(args: &DockerArgs, plan: &mut Plan) -> anyhow::Result<()> {
    refuse_directory(&args.config)?;
    if let Some(address) = args.mirror.strip_prefix("http://")
        && !is_loopback(address)
    {
        bail!("dockerd takes plain HTTP from 127.0.0.0/8 only: name a listener there, or an https:// URL");
    }
    let text = plan.text(&args.config)?.unwrap_or_default();
    let changed =
        json::add_first(&text, KEY, &args.mirror).with_context(|| args.config.display().to_string())?;
    match changed {
        Some(changed) => {
            let undo = Undo::Json { key: KEY.to_owned(), value: args.mirror.clone() };
            plan.write(&args.config, changed, undo)?;
        }
        None => plan.note(format!("{} has {} already", args.config.display(), args.mirror)),
    }
    plan.note("next: systemctl reload docker (running containers go on)".to_owned());
    Ok(())
}

fn is_loopback(address: &str) -> bool {
    address.parse::<std::net::SocketAddr>().is_ok_and(|address| address.ip().is_loopback())
        || address.starts_with("localhost:")
}
