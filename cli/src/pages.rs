//! Huge pages, for a process whose memory is far larger than the processor's caches.

/// What jemalloc reads when a process starts (jemalloc(3), "TUNING"). Nothing can change these settings later.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
const SETTINGS: &str = "_RJEM_MALLOC_CONF";

/// Huge pages, and what makes memory that is used again and again, by threads that hand it on, come from where it still is in the
/// processor's caches: larger caches of each thread, behind them one arena for all, and nothing given back to the kernel.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
const WISHES: &str = "thp:always,metadata_thp:always,narenas:1,dirty_decay_ms:-1,muzzy_decay_ms:-1,\
                      tcache_nslots_small_max:1000,lg_tcache_nslots_mul:3";

/// Starts the program anew, with an allocator that asks the kernel for huge pages: with Linux's usual setting (`madvise`) it
/// gives them to nobody else. Returns when that was done before, when somebody gave the allocator settings (or none: an empty
/// variable will do), and where it cannot be done: then small pages have to do.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) fn ask_for_huge() {
    use std::os::unix::process::CommandExt as _;
    use std::path::{Path, PathBuf};

    if std::env::var_os(SETTINGS).is_some() {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    // What runs is not the program where a loader or a debugger was told to run it.
    let called = std::env::args_os().next().map(PathBuf::from);
    if called.as_deref().and_then(Path::file_name) != program.file_name() {
        return;
    }
    let mut command = std::process::Command::new(program);
    command.args(std::env::args_os().skip(1)).env(SETTINGS, WISHES);
    let why = command.exec();
    tracing::debug!(%why, "cannot start anew with huge pages");
}

/// Elsewhere the allocator is the system's, and there is nothing to be set.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub(crate) fn ask_for_huge() {}
