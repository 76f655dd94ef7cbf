//! systemd: a unit for the daemon, hardened, and a configuration file to begin with.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::Common;
use super::plan::{Plan, Undo};

/// Where the units of `deploy/systemd` expect the program.
const PROGRAM: &str = "/usr/bin/shoal";

/// Flags of `shoal install systemd`.
#[derive(clap::Args)]
pub(crate) struct SystemdArgs {
    /// What the machine shall be.
    #[arg(long, value_enum, default_value_t = Part::Gateway)]
    part: Part,
    /// Directory for the unit.
    #[arg(long, value_name = "DIR", default_value = "/etc/systemd/system")]
    units: PathBuf,
    /// The daemon's configuration file; made if it is not there.
    #[arg(long, value_name = "FILE", default_value = "/etc/shoal/shoal.toml")]
    config: PathBuf,
    /// The program, which has to be readable by everybody [default: this one]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// A part that a machine can play.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Caches, seeds, and serves the registry API.
    Gateway,
    /// Stores durably.
    Origin,
    /// A door into the mesh.
    Bootstrap,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Origin => "origin",
            Self::Bootstrap => "bootstrap",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Gateway => include_str!("../../../deploy/systemd/shoal-gateway.service"),
            Self::Origin => include_str!("../../../deploy/systemd/shoal-origin.service"),
            Self::Bootstrap => include_str!("../../../deploy/systemd/shoal-bootstrap.service"),
        }
    }
}

/// The configuration file to begin with.
const CONFIG: &str = "\
# Settings of the Shoal daemon: docs/CONFIGURATION.md, or `shoal config reference`.
# How this machine enters the mesh is in /etc/shoal/join.token (`shoal mesh join-token`).
";
const ORIGIN_CONFIG: &str = "origin = true\nbackend = \"fs:/var/lib/shoal/blobs\"\n";

/// Writes or reverts.
pub(super) fn run(args: &SystemdArgs) -> anyhow::Result<()> {
    args.common.carry_out(&format!("systemd-{}", args.part.name()), |plan| edit(args, plan))
}

fn edit(args: &SystemdArgs, plan: &mut Plan) -> anyhow::Result<()> {
    let own = || std::env::current_exe().context("cannot tell where this program is: use --program");
    let program = args.program.clone().map_or_else(own, Ok)?;
    let name = format!("shoal-{}.service", args.part.name());
    let path = args.units.join(&name);
    if plan.text(&path)?.is_some() {
        bail!("{} is there, and not from an installation that is remembered: move it away", path.display());
    }
    let unit = unit(args.part, &program, &args.config)?;
    plan.write(&path, unit, Undo::Whole)?;
    if plan.text(&args.config)?.is_none() {
        let origin = if args.part == Part::Origin { ORIGIN_CONFIG } else { "" };
        plan.write(&args.config, format!("{CONFIG}{origin}"), Undo::Whole)?;
    }
    plan.note(format!(
        "next: put the token into /etc/shoal/join.token (mode 0600), then systemctl daemon-reload && systemctl enable --now {name}"
    ));
    Ok(())
}

/// The unit with this program and configuration.
fn unit(part: Part, program: &Path, config: &Path) -> anyhow::Result<String> {
    let plain = |path: &Path| -> anyhow::Result<String> {
        let text = path.to_str().context("a path is not UTF-8")?;
        // systemd would take these apart (systemd.service(5), "Command lines").
        let odd = |c: char| c.is_whitespace() || c.is_control() || "%$\"'\\;".contains(c);
        if !text.starts_with('/') || text.contains(odd) {
            bail!(
                "{text:?} cannot stand in a unit: it must be absolute, without spaces and %, $, quotes or backslashes"
            );
        }
        Ok(text.to_owned())
    };
    Ok(part.unit().replace(PROGRAM, &plain(program)?).replace("/etc/shoal/shoal.toml", &plain(config)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_run_the_program_that_is_there() {
        for part in [Part::Gateway, Part::Origin, Part::Bootstrap] {
            let text = unit(part, Path::new("/opt/shoal"), Path::new("/opt/shoal.toml")).unwrap();
            assert!(
                text.contains("\nExecStart=/opt/shoal ") && text.contains("--config /opt/shoal.toml"),
                "{text}"
            );
            assert!(unit(part, Path::new("/opt/sh oal"), Path::new("/x")).is_err());
            assert!(unit(part, Path::new("shoal"), Path::new("/x")).is_err());
        }
    }
}
