//! The command line.

use std::path::PathBuf;

/// Measures how a fleet pulls a blob, in network namespaces on this machine. Needs root.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "shoal-bench", max_term_width = 110)]
pub(crate) struct Args {
    /// The `shoal` program to measure; without it, the one beside this program.
    #[arg(long, value_name = "FILE")]
    pub(crate) shoal: Option<PathBuf>,
    /// Scenarios to run, by name (see `--list`); without any, all of them.
    #[arg(value_name = "SCENARIO")]
    pub(crate) scenarios: Vec<String>,
    /// Runs of each scenario; the median of each figure is shown.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) runs: usize,
    /// What pulls: `shoal`, `registry` (Debian's docker-registry, everybody pulls from one), `aria2` (BitTorrent).
    #[arg(long, value_name = "SYSTEM", value_delimiter = ',', default_value = "shoal,aria2,registry")]
    pub(crate) systems: Vec<System>,
    /// TCP's congestion control in the namespaces; without it, the kernel's default.
    #[arg(long, value_name = "NAME")]
    pub(crate) congestion: Option<String>,
    /// Directory for `results.json`, `results.txt` and `results.svg`.
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub(crate) out: PathBuf,
    /// Directory for the fleet's data; it should be in memory, or the disk is measured.
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    pub(crate) data: PathBuf,
    /// A flag more for every `shoal` daemon, as `--name=value`.
    #[arg(long = "flag", value_name = "FLAG", allow_hyphen_values = true)]
    pub(crate) flags: Vec<String>,
    /// Keep the fleet's logs, and its metrics at the end of each run, in the output directory.
    #[arg(long)]
    pub(crate) keep_logs: bool,
    /// Lists the scenarios and ends.
    #[arg(long)]
    pub(crate) list: bool,
}

/// What pulls the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum System {
    /// A mesh: one origin, a gateway on every other host.
    Shoal,
    /// One Debian docker-registry, from which every host pulls.
    Registry,
    /// One aria2 with the whole blob, and one on every other host.
    Aria2,
}

impl System {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Shoal => "shoal",
            Self::Registry => "registry",
            Self::Aria2 => "aria2",
        }
    }
}
