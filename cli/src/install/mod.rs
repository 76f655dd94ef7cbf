//! `shoal install`: settings of container engines and units of systemd, written and taken back.

pub(crate) mod containerd;
mod containers;
pub(crate) mod docker;
mod json;
mod plan;
mod systemd;

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, Subcommand};

use plan::Plan;

/// Where it is remembered what was installed, a file for each target.
const STATE_DIR: &str = "/etc/shoal/install";

/// Flags of `shoal install`.
#[derive(Args)]
pub(crate) struct InstallArgs {
    #[command(subcommand)]
    target: Target,
}

#[derive(Subcommand)]
enum Target {
    /// Let containerd, and by it the kubelet, ask the gateway first: hosts.toml for each registry, and config_path.
    Containerd(containerd::ContainerdArgs),
    /// Let dockerd ask the gateway first for images of Docker Hub: registry-mirrors in daemon.json.
    Docker(docker::DockerArgs),
    /// Let podman, buildah and skopeo ask the gateway first: a file in registries.conf.d.
    Podman(containers::ContainersArgs),
    /// Let CRI-O ask the gateway first: the same file as podman's.
    Crio(containers::ContainersArgs),
    /// A unit of systemd that runs the daemon.
    Systemd(systemd::SystemdArgs),
}

/// Flags of every target.
#[derive(Args)]
pub(crate) struct Common {
    /// Say what would change, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Take back what was installed: files get their former content, or lose what was put into them if they were
    /// changed meanwhile.
    #[arg(long)]
    revert: bool,
    /// Directory that remembers what was installed.
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    state_dir: PathBuf,
}

impl Common {
    /// Takes back what was installed before and, unless that is all that is wanted, puts in what `edit` says.
    fn carry_out(
        &self,
        target: &str,
        edit: impl FnOnce(&mut Plan) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut plan = Plan::open(&self.state_dir.join(format!("{target}.json")))?;
        if self.revert {
            if plan.is_new() {
                bail!(
                    "nothing is installed for {target}: there is no {}",
                    self.state_dir.join(format!("{target}.json")).display()
                );
            }
        } else {
            edit(&mut plan)?;
        }
        plan.finish(self.dry_run)
    }
}

/// Carries it out.
pub(crate) fn run(args: &InstallArgs) -> anyhow::Result<()> {
    match &args.target {
        Target::Containerd(args) => containerd::run(args),
        Target::Docker(args) => docker::run(args),
        Target::Podman(args) => containers::run(args, "reads the file at the next pull: nothing to restart"),
        Target::Crio(args) => containers::run(args, "CRI-O reads it at: systemctl reload crio"),
        Target::Systemd(args) => systemd::run(args),
    }
}

/// A gateway's URL, from a URL or `HOST:PORT`.
///
/// # Errors
/// A text for people: it has a path or no port, or is not HTTP.
fn gateway_url(text: &str) -> Result<String, String> {
    let (scheme, address) = match text.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => (scheme, rest),
        Some((other, _)) => return Err(format!("{other}:// is neither http:// nor https://")),
        None => ("http", text),
    };
    let wrong = || format!("{text:?} is not HOST:PORT, http://HOST:PORT or https://HOST:PORT");
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    let is_host = |host: &str| {
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        match inner {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-".contains(c)),
        }
    };
    if port == 0 || !is_host(host) {
        return Err(wrong());
    }
    Ok(format!("{scheme}://{host}:{port}"))
}

/// A registry's name as references have it: a host, with a port or without, in lower case.
///
/// # Errors
/// A text for people.
fn registry_name(text: &str) -> Result<String, String> {
    let (host, port) = text.rsplit_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let is_port = |port: &str| port.parse::<u16>().is_ok();
    let is_host = !host.is_empty()
        && !host.starts_with(['.', '-'])
        && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-".contains(c));
    if is_host && port.is_none_or(is_port) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(format!("{text:?} is no registry's name, such as docker.io or registry.example.com:5000"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_and_registries() {
        assert_eq!(gateway_url("127.0.0.1:5000").unwrap(), "http://127.0.0.1:5000");
        assert_eq!(gateway_url("https://gw.example:443").unwrap(), "https://gw.example:443");
        assert_eq!(gateway_url("http://[::1]:5000").unwrap(), "http://[::1]:5000");
        for wrong in ["127.0.0.1", "ftp://a:1", "http://a:1/v2", "a:0", ":5000", "a b:1", "\"x:1", "[x]:1"] {
            assert!(gateway_url(wrong).is_err(), "{wrong}");
        }
        assert_eq!(registry_name("Docker.io").unwrap(), "docker.io");
        assert_eq!(registry_name("r.example:5000").unwrap(), "r.example:5000");
        for wrong in ["", "a/b", "../x", "r:x", "https://a", ".", "_default"] {
            assert!(registry_name(wrong).is_err(), "{wrong}");
        }
    }
}
