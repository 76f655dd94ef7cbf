//! The `shoal` program: one binary, a subcommand for every part a machine can play.

#![expect(clippy::print_stdout, reason = "what a command finds out goes to standard output")]

mod client;
mod daemon;
mod dev;
mod doctor;
mod flags;
mod gc;
mod images;
mod install;
mod keys;
mod otlp;
mod pages;
mod preheat;
mod progress;
mod push;
mod reference;
mod replicate;
mod show;
mod simulate;
mod transfer;
mod why;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::flags::DaemonFlags;

/// One that can be told to ask for huge pages: see [`pages`]. On arm64 it would work with one size of pages only, that of the
/// kernel it was built on.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Peer-to-peer distribution of container images.
#[derive(Parser)]
#[command(name = "shoal", version, max_term_width = 110)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a whole mesh in this process: a bootstrap peer, an origin and gateways.
    Dev(dev::DevArgs),
    /// Run a bootstrap peer: a door into the mesh and nothing else.
    Bootstrap(DaemonFlags),
    /// Run a node: it caches and seeds. With --origin it stores durably too.
    Node(DaemonFlags),
    /// Run a gateway: a node that serves the OCI registry API.
    Gateway(DaemonFlags),
    /// Fetch a blob by digest, or an image by reference as an OCI layout in a tar file, through the local daemon.
    Get(transfer::GetArgs),
    /// Put a file into the mesh, and print its digest.
    Put(transfer::PutArgs),
    /// Push an image out of a file, as docker save writes it or as an OCI layout, through a gateway.
    Push(push::PushArgs),
    /// Show what a daemon is and has.
    Status(show::ShowArgs),
    /// Show the members a daemon has heard of.
    Peers(show::ShowArgs),
    /// Show the swarms a daemon takes part in.
    Swarms(show::ShowArgs),
    /// Show where the bytes of a daemon's recent blobs came from.
    Pulls(show::ShowArgs),
    /// Find out what is wrong with this machine's part of the mesh, and what to do about it.
    Doctor(doctor::DoctorArgs),
    /// Write, or take back, settings of container engines and units of systemd.
    Install(install::InstallArgs),
    /// Copy an image to the origins of another zone, and wait until it is there.
    Replicate(replicate::ReplicateArgs),
    /// Have gateways fetch an image before anybody pulls it, and wait until they have it.
    Preheat(preheat::PreheatArgs),
    /// Delete what no tag reaches from the backends of all origins, or say what would be.
    Gc(gc::GcArgs),
    /// Explain a recent pull: where its bytes came from and what it waited for.
    Why(why::WhyArgs),
    /// Try a fleet out in virtual time: the shipping engine on a simulated network.
    Simulate(simulate::SimulateArgs),
    /// Make and keep a mesh's keys.
    #[command(subcommand)]
    Mesh(MeshCommand),
    /// Issue and show credentials of processes.
    #[command(subcommand)]
    Credential(CredentialCommand),
    /// Look at configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the completions of a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write the pages of all commands.
    Man {
        /// Directory for the pages, such as /usr/local/share/man/man1.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
enum MeshCommand {
    /// Make a new mesh: a secret root key and its public half.
    Init {
        /// Directory for mesh.key and mesh.pub.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Make an issuing key that can issue some credentials for a while, so that the root key can stay in a safe.
    Intermediate(keys::IntermediateArgs),
    /// Make a token with which machines become members by one command: shoal node --join TOKEN.
    JoinToken(keys::JoinTokenArgs),
}

#[derive(Subcommand)]
enum CredentialCommand {
    /// Make a process's identity and credential.
    Issue(keys::IssueArgs),
    /// Show what a credential says.
    Show {
        /// Directory with credential.cbor.
        #[arg(long, value_name = "DIR")]
        identity: PathBuf,
    },
    /// Make credentials worth nothing, and tell the mesh.
    Revoke(keys::RevokeArgs),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Check a configuration, and say what is wrong with it.
    Check(DaemonFlags),
    /// Print the configuration as it would be used.
    Show(DaemonFlags),
    /// Print the reference of all settings.
    Reference,
    /// Print the reference of all metrics.
    Metrics,
}

fn main() -> ExitCode {
    match run(Program::parse().command) {
        Ok(code) => code,
        Err(error) => {
            // One line, with its causes.
            let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
            eprintln!("shoal: {}", causes.join(": "));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let done = match command {
        Command::Dev(args) => daemon::runtime()?.block_on(dev::run(args)),
        Command::Bootstrap(flags) => {
            let config = flags.load()?;
            daemon::start_logging(&config)?;
            daemon::runtime()?.block_on(daemon::run_bootstrap(config))
        }
        Command::Node(flags) => run_daemon(flags, false),
        Command::Gateway(flags) => run_daemon(flags, true),
        Command::Get(args) => daemon::small_runtime()?.block_on(transfer::get(args)),
        Command::Put(args) => daemon::small_runtime()?.block_on(transfer::put(args)),
        Command::Push(args) => daemon::small_runtime()?.block_on(push::push(args)),
        Command::Status(args) => daemon::small_runtime()?.block_on(show::status(args)),
        Command::Peers(args) => daemon::small_runtime()?.block_on(show::peers(args)),
        Command::Swarms(args) => daemon::small_runtime()?.block_on(show::swarms(args)),
        Command::Pulls(args) => daemon::small_runtime()?.block_on(show::pulls(args)),
        Command::Doctor(args) => return doctor::run(&args),
        Command::Install(args) => install::run(&args),
        Command::Completions { shell } => reference::completions(shell),
        Command::Man { dir } => reference::man(dir.as_deref()),
        Command::Replicate(args) => daemon::small_runtime()?.block_on(replicate::run(args)),
        Command::Preheat(args) => daemon::small_runtime()?.block_on(preheat::run(args)),
        Command::Gc(args) => daemon::small_runtime()?.block_on(gc::run(args)),
        Command::Why(args) => daemon::small_runtime()?.block_on(why::run(args)),
        Command::Simulate(args) => simulate::run(&args),
        Command::Mesh(MeshCommand::Init { dir }) => keys::init(&dir),
        Command::Mesh(MeshCommand::Intermediate(args)) => keys::intermediate(&args),
        Command::Mesh(MeshCommand::JoinToken(args)) => keys::join_token(&args),
        Command::Credential(CredentialCommand::Revoke(args)) => {
            daemon::small_runtime()?.block_on(keys::revoke(&args))
        }
        Command::Credential(CredentialCommand::Issue(args)) => keys::issue(&args),
        Command::Credential(CredentialCommand::Show { identity }) => keys::show(&identity),
        Command::Config(ConfigCommand::Check(flags)) => {
            flags.load().map(|_| println!("the configuration is valid"))
        }
        Command::Config(ConfigCommand::Show(flags)) => {
            print!("{}", toml::to_string_pretty(&flags.load()?)?);
            Ok(())
        }
        Command::Config(ConfigCommand::Metrics) => {
            print!("{}", shoal_daemon::metrics::table::reference());
            Ok(())
        }
        Command::Config(ConfigCommand::Reference) => {
            print!("{}", shoal_daemon::config::Config::reference());
            Ok(())
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn run_daemon(flags: DaemonFlags, gateway: bool) -> anyhow::Result<()> {
    let config = flags.load()?;
    daemon::start_logging(&config)?;
    daemon::runtime()?.block_on(daemon::run_node(config, gateway))
}
