//! Runs scenarios, and gathers what they give.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use shoal_tests::image::noise;

use crate::args::{Args, System};
use crate::client::{self, Read};
use crate::lab::{self, Lab};
use crate::measure::Meter;
use crate::mesh::{self, Builder, Daemon, Kind};
use crate::report::{Figures, Results};
use crate::rivals::{self, Torrent};
use crate::scenario::{self, Scenario};
use crate::{micro, plot};

/// Time between the last preparation and the start, so that what was started last is quiet.
const SETTLE: Duration = Duration::from_secs(2);
/// A formed mesh sends less than [`QUIET_BYTES`] over links and the source's wire in this time.
const QUIET_TIME: Duration = Duration::from_secs(2);
const QUIET_BYTES: u64 = 400_000;
/// A mesh that has not formed after this is broken.
const QUIET_MAX: Duration = Duration::from_secs(60);
/// How often the bound a rival may take before it is given up.
const PATIENCE: f64 = 60.0;
/// The blob's seed; every run has its own content.
const SEED: u64 = 0x0051_10a1;

/// Everything the command line asks for.
pub(crate) fn all(args: &Args) -> Result<()> {
    let known = scenario::all();
    if args.list {
        known.iter().map(|scenario| scenario.name).chain([micro::NAME]).for_each(|name| println!("{name}"));
        return Ok(());
    }
    for name in &args.scenarios {
        ensure!(
            name == micro::NAME || known.iter().any(|scenario| scenario.name == name),
            "there is no scenario {name}: `--list` shows all"
        );
    }
    let wanted = |name: &str| args.scenarios.is_empty() || args.scenarios.iter().any(|other| other == name);
    let program = mesh::program(args.shoal.as_ref())?;
    std::fs::create_dir_all(&args.out)?;
    let mut results = Results::new(args, &program)?;
    for scenario in known.iter().filter(|scenario| wanted(scenario.name)) {
        for system in &args.systems {
            // What takes eight times as long and never differs is run once.
            let runs = if *system == System::Registry { 1 } else { args.runs };
            for number in 0..runs {
                eprintln!("{} {} run {} of {runs}", scenario.name, system.name(), number + 1);
                match once(args, &program, scenario, *system, number) {
                    Ok(figures) => {
                        eprintln!("  {}", figures.line());
                        results.add(scenario, *system, figures);
                    }
                    Err(error) => results.failed(scenario, *system, &error),
                }
            }
        }
    }
    if wanted(micro::NAME) && args.systems.contains(&System::Shoal) {
        results.micro = Some(micro::run(args, &program)?);
    }
    let text = results.table();
    println!("{text}");
    std::fs::write(args.out.join("results.txt"), &text)?;
    std::fs::write(args.out.join("results.json"), serde_json::to_string_pretty(&results.json())?)?;
    plot::draw(&results, &args.out.join("results.svg"))?;
    ensure!(results.failures.is_empty(), "{} runs failed", results.failures.len());
    Ok(())
}

fn once(args: &Args, program: &Path, scenario: &Scenario, system: System, number: usize) -> Result<Figures> {
    let dir = tempfile::Builder::new().prefix("shoal-bench-").tempdir_in(&args.data)?;
    let lab = Lab::build(scenario, args.congestion.as_deref())?;
    let size = usize::try_from(scenario.blob_bytes)?;
    let bytes = noise(SEED + number as u64, size);
    let result = match system {
        System::Shoal => pull_mesh(args, program, scenario, &lab, dir.path(), bytes),
        System::Registry => pull_registry(scenario, &lab, dir.path(), bytes),
        System::Aria2 => pull_torrent(scenario, &lab, dir.path(), &bytes),
    };
    if args.keep_logs || result.is_err() {
        keep_logs(dir.path(), &args.out.join(format!("logs-{}-{}-{number}", scenario.name, system.name())))?;
    }
    result
}

fn keep_logs(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log")
            && let Some(name) = path.file_name()
        {
            std::fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

/// A mesh with the blob at its origin only.
pub(crate) struct Fleet {
    pub(crate) origin: Daemon,
    pub(crate) gateways: Vec<Daemon>,
    pub(crate) digest: String,
    _door: Daemon,
}

pub(crate) fn start_mesh(args: &Args, program: &Path, lab: &Lab, dir: &Path, bytes: Bytes) -> Result<Fleet> {
    let builder = Builder { program, dir, flags: &args.flags };
    builder.init()?;
    let door = builder.start("door", Kind::Bootstrap, &lab.door, None)?;
    let entry = door.ready.listen.clone();
    let origin = builder.start("origin", Kind::Origin, &lab.source, Some(&entry))?;
    let gateways = lab
        .hosts
        .iter()
        .enumerate()
        .map(|(number, host)| builder.start(&format!("gateway{number}"), Kind::Gateway, host, Some(&entry)))
        .collect::<Result<Vec<_>>>()?;
    mesh::wait_joined(&gateways, 1)?;
    wait_quiet(lab)?;
    let digest = push_and_forget(program, args, lab, dir, &entry, bytes)?;
    Ok(Fleet { origin, gateways, digest, _door: door })
}

/// Waits until the mesh has formed: a pull begins in a fleet that stands, not in one whose every host starts that second.
/// What the links and the source's wire carry from then on is in the figures.
fn wait_quiet(lab: &Lab) -> Result<()> {
    let carried = || anyhow::Ok(lab.link_bytes() + lab.wire_bytes(&lab.source)?);
    let start = Instant::now();
    let mut before = carried()?;
    loop {
        std::thread::sleep(QUIET_TIME);
        let now = carried()?;
        if now - before < QUIET_BYTES {
            return Ok(());
        }
        ensure!(start.elapsed() < QUIET_MAX, "{} bytes in {QUIET_TIME:?} without a pull", now - before);
        before = now;
    }
}

/// Pushes through a gateway that is gone afterwards: then only the origin has the blob. It runs beside the origin, so
/// the push does not cross a wire.
fn push_and_forget(
    program: &Path,
    args: &Args,
    lab: &Lab,
    dir: &Path,
    door: &str,
    bytes: Bytes,
) -> Result<String> {
    let pusher = dir.join("pusher");
    std::fs::create_dir_all(&pusher)?;
    std::os::unix::fs::symlink(dir.join("mesh"), pusher.join("mesh"))?;
    let flags: Vec<String> = args.flags.clone();
    let builder = Builder { program, dir: &pusher, flags: &flags };
    let gateway = builder.start_beside("pusher", &lab.source, door)?;
    mesh::wait_joined(std::slice::from_ref(&gateway), 1)?;
    let address = gateway.ready.gateway.context("no gateway")?;
    mesh::push(&lab.source.namespace, address, bytes)
}

fn pull_mesh(
    args: &Args,
    program: &Path,
    scenario: &Scenario,
    lab: &Lab,
    dir: &Path,
    bytes: Bytes,
) -> Result<Figures> {
    let fleet = start_mesh(args, program, lab, dir, bytes)?;
    let pids: Vec<u32> = fleet.gateways.iter().chain([&fleet.origin]).map(Daemon::pid).collect();
    let watched = fleet.gateways.iter().map(Daemon::pid).collect();
    let path = format!("/v2/{}/blobs/{}", mesh::REPOSITORY, fleet.digest);
    let gateway: SocketAddr = mesh::GATEWAY.parse()?;
    let figures =
        measured(scenario, lab, pids, watched, |_| client::read(gateway, &path, scenario.blob_bytes))?;
    if args.keep_logs {
        for daemon in fleet.gateways.iter().chain([&fleet.origin]) {
            std::fs::write(dir.join(format!("{}.metrics.log", daemon.namespace)), daemon.metrics_text()?)?;
        }
    }
    Ok(figures)
}

fn pull_registry(scenario: &Scenario, lab: &Lab, dir: &Path, bytes: Bytes) -> Result<Figures> {
    let (registry, address, digest) = rivals::registry(lab, dir, bytes)?;
    let path = format!("/v2/{}/blobs/{digest}", mesh::REPOSITORY);
    let pids = vec![registry.pid()];
    measured(scenario, lab, pids.clone(), pids, |_| client::read(address, &path, scenario.blob_bytes))
}

/// Lets a client on every host read at the same instant, and measures.
fn measured(
    scenario: &Scenario,
    lab: &Lab,
    pids: Vec<u32>,
    watched: Vec<u32>,
    read: impl Fn(usize) -> Result<Read> + Sync,
) -> Result<Figures> {
    std::thread::sleep(SETTLE);
    let (wire, link, drops) = (lab.wire_bytes(&lab.source)?, lab.link_bytes(), lab.link_drops());
    let start = Barrier::new(lab.hosts.len());
    let meter = Meter::start(pids, watched)?;
    let reads = std::thread::scope(|scope| {
        let threads: Vec<_> = lab
            .hosts
            .iter()
            .enumerate()
            .map(|(number, host)| {
                let (start, read) = (&start, &read);
                scope.spawn(move || {
                    let entered = lab::enter(&host.namespace);
                    start.wait();
                    entered.and_then(|()| read(number))
                })
            })
            .collect();
        let results = threads.into_iter().map(|thread| match thread.join() {
            Ok(result) => result,
            Err(_) => bail!("a client panicked"),
        });
        results.collect::<Result<Vec<Read>>>()
    })?;
    let usage = meter.end()?;
    ensure!(lab.link_drops() == drops, "the emulated link dropped packets: its figures say nothing");
    let source = lab.wire_bytes(&lab.source)? - wire;
    Ok(Figures::new(scenario, &reads, usage, source, lab.link_bytes() - link))
}

fn pull_torrent(scenario: &Scenario, lab: &Lab, dir: &Path, bytes: &Bytes) -> Result<Figures> {
    let torrent = Torrent::start(lab, dir, bytes)?;
    std::thread::sleep(SETTLE);
    let (wire, link, drops) = (lab.wire_bytes(&lab.source)?, lab.link_bytes(), lab.link_drops());
    let meter = Meter::start(vec![torrent.seeder.pid()], Vec::new())?;
    let done: Vec<PathBuf> =
        lab.hosts.iter().map(|host| dir.join(format!("done-{}", host.namespace))).collect();
    let start = Instant::now();
    let pullers = lab
        .hosts
        .iter()
        .zip(&done)
        .map(|(host, done)| torrent.pull(host, dir, done))
        .collect::<Result<Vec<_>>>()?;
    let patience = scenario.bound().unwrap_or(Duration::from_secs(10)).mul_f64(PATIENCE);
    let mut times =
        done.iter().map(|path| rivals::wait_for_file(path, start, patience)).collect::<Result<Vec<_>>>()?;
    times.sort_unstable();
    let mut usage = meter.end()?;
    for puller in &pullers {
        usage.cpu_secs += shoal_tests::system::cpu_secs(puller.pid())?;
        usage.anonymous_peak_bytes =
            usage.anonymous_peak_bytes.max(crate::measure::anonymous_bytes(puller.pid())?);
    }
    ensure!(lab.link_drops() == drops, "the emulated link dropped packets: its figures say nothing");
    let source = lab.wire_bytes(&lab.source)? - wire;
    // BitTorrent hands nothing over before the whole file is there.
    let reads: Vec<Read> =
        times.iter().map(|whole| Read { first_byte: *whole, whole: *whole, cpu: Duration::ZERO }).collect();
    Ok(Figures::new(scenario, &reads, usage, source, lab.link_bytes() - link))
}
