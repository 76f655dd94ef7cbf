//! What the system and the runtime know of this process.

use std::collections::BTreeMap;

use rustix::process::{Resource, getrlimit};

use super::samples::Samples;
use super::table;

/// Adds the figures of the process, of the runtime it is called in, and what program it is. What cannot be read from
/// `/proc` is left out.
pub(crate) fn sample(samples: &mut Samples) {
    samples.labelled(&table::BUILD_INFO, &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        let metrics = runtime.metrics();
        let workers = metrics.num_workers();
        samples.one(&table::RUNTIME_WORKERS, workers as f64);
        samples.one(&table::RUNTIME_TASKS, metrics.num_alive_tasks() as f64);
        samples.one(&table::RUNTIME_QUEUE, metrics.global_queue_depth() as f64);
        let busy: f64 = (0..workers).map(|at| metrics.worker_total_busy_duration(at).as_secs_f64()).sum();
        samples.one(&table::RUNTIME_BUSY, busy);
    }
    stat(samples);
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        samples.one(&table::PROCESS_FDS, open.count() as f64);
    }
    let allowed = getrlimit(Resource::Nofile).current;
    samples.one(&table::PROCESS_FDS_MAX, allowed.map_or(f64::INFINITY, |allowed| allowed as f64));
}

/// `/proc/self/stat` (proc(5)): the fields after the command's name, which may hold spaces itself.
fn stat(samples: &mut Samples) {
    let Ok(text) = std::fs::read_to_string("/proc/self/stat") else { return };
    let Some((_, rest)) = text.rsplit_once(") ") else { return };
    // Field 3, the state, is the first here.
    let fields: BTreeMap<usize, f64> = rest
        .split_whitespace()
        .enumerate()
        .filter_map(|(at, field)| Some((at + 3, field.parse().ok()?)))
        .collect();
    let field = |number: usize| fields.get(&number).copied();
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    if let (Some(user), Some(system)) = (field(14), field(15)) {
        samples.one(&table::PROCESS_CPU, (user + system) / ticks);
    }
    if let Some(threads) = field(20) {
        samples.one(&table::PROCESS_THREADS, threads);
    }
    if let Some(pages) = field(24) {
        samples.one(&table::PROCESS_MEMORY, pages * rustix::param::page_size() as f64);
    }
    let booted = std::fs::read_to_string("/proc/stat").ok().and_then(|text| {
        text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok())
    });
    if let (Some(start), Some(booted)) = (field(22), booted) {
        samples.one(&table::PROCESS_START, booted + start / ticks);
    }
}
