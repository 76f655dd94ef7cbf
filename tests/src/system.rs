//! What the tests ask of the machine: processes, mounts, memory.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

/// Sends a signal to one process.
///
/// # Errors
/// When there is no such process.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    let raw = Pid::from_raw(i32::try_from(pid)?).context("process 0")?;
    kill_process(raw, signal).with_context(|| format!("signalling process {pid}"))
}

/// The command lines, by pid, of all processes that mention `dir`, zombies aside.
pub fn processes_mentioning(dir: &Path) -> Vec<(u32, String)> {
    let wanted = dir.to_string_lossy().into_owned();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            (pid != std::process::id() && line.contains(&wanted)).then_some((pid, line))
        })
        .collect()
}

/// A field of `/proc/PID/status` in bytes, such as `VmRSS` or `VmHWM` (the highest `VmRSS` so far).
///
/// # Errors
/// When the process is gone.
pub fn memory_bytes(pid: u32, field: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib: u64 = line.context("no such field")?.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

/// Bytes that a process has read from files, from the page cache or not, as the kernel counts them (`rchar` of
/// `/proc/PID/io`). What it receives from sockets is not in it.
///
/// # Errors
/// When the process is gone.
pub fn bytes_read(pid: u32) -> Result<f64> {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io"))?;
    let line = io.lines().find_map(|line| line.strip_prefix("rchar: "));
    Ok(line.context("no rchar")?.parse()?)
}

/// Processor seconds a process has used, in user and kernel mode, all its threads together.
///
/// # Errors
/// When the process is gone.
pub fn cpu_secs(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The program's name may hold anything; what follows its bracket does not.
    let rest = stat.rsplit_once(')').context("no name in stat")?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| -> Result<u64> { Ok(fields.get(at).context("a short stat")?.parse()?) };
    let ticks = ticks(11)? + ticks(12)?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// A program that `scripts/tools.sh` installs.
///
/// # Errors
/// When it is not there.
pub fn tool(name: &str) -> Result<PathBuf> {
    let tools = std::env::var_os("SHOAL_TOOLS").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/shoal-tools")
    });
    let path = tools.join("bin").join(name);
    if !path.exists() {
        bail!("{} is missing: run scripts/tools.sh", path.display());
    }
    Ok(path)
}

/// A file or directory of the project.
pub fn project(path: &str) -> PathBuf {
    // Where the tests run, not where they were built: results of builds are shared between checkouts.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&package).join("..").join(path)
}

/// A network namespace with a loopback, gone when it is dropped.
#[derive(Debug)]
pub struct Namespace(String);

impl Namespace {
    /// Makes one.
    ///
    /// # Errors
    /// When it cannot be made: root and `iproute2` are needed.
    pub async fn new(name: &str) -> Result<Self> {
        let name = format!("{name}{}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name])).await?;
        let made = Self(name);
        run(Command::new("ip").args(["-n", &made.0, "link", "set", "lo", "up"])).await?;
        Ok(made)
    }

    /// A program that has this network, and all else of the machine.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.0)).arg("--").arg(program);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

/// The documents of a YAML text, by Debian's `python3-yaml`.
///
/// # Errors
/// When it is not YAML.
pub async fn yaml(text: &str) -> Result<Vec<serde_json::Value>> {
    use tokio::io::AsyncWriteExt as _;
    let script = "import sys, json, yaml; json.dump(list(yaml.safe_load_all(sys.stdin)), sys.stdout)";
    let mut child = Command::new("python3")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all(text.as_bytes()).await?;
    drop(stdin);
    let output = child.wait_with_output().await?;
    if !output.status.success() {
        bail!("not YAML (or python3-yaml is missing): {}", String::from_utf8_lossy(&output.stderr));
    }
    let all: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout)?;
    Ok(all.into_iter().filter(|document| !document.is_null()).collect())
}

/// Runs a program to its end; gives its standard output.
///
/// # Errors
/// When it cannot be run, or fails: with all that it printed.
pub async fn run(command: &mut Command) -> Result<String> {
    let shown = format!("{:?}", command.as_std());
    let output =
        command.stdin(Stdio::null()).kill_on_drop(true).output().await.with_context(|| {
            format!("{shown} cannot be run (scripts/setup.sh installs what the tests need)")
        })?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{shown}: {}\n{stdout}\n{stderr}", output.status);
    }
    Ok(stdout)
}

/// Unmounts everything below `dir`, the deepest first; container engines leave such mounts when they are stopped.
///
/// # Errors
/// When the list of mounts cannot be read. A mount that stays is found by the removal of its directory.
pub async fn unmount_below(dir: &Path) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    let mut below: Vec<_> = points.filter(|point| point.starts_with(dir) && point != dir).collect();
    below.sort();
    for point in below.iter().rev() {
        if let Err(error) = run(Command::new("umount").arg("-l").arg(point)).await {
            eprintln!("{error:#}");
        }
    }
    Ok(())
}

/// Takes down what a failed test leaves below a directory of its own: kills the processes that run there, and
/// unmounts what is mounted there.
pub fn take_down(dir: &Path) {
    for (pid, line) in processes_mentioning(dir) {
        if let Err(error) = signal(pid, Signal::KILL) {
            eprintln!("{line}: {error:#}");
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
    let mut below: Vec<_> = points.filter(|point| point.starts_with(dir)).collect();
    below.sort();
    for point in below.iter().rev() {
        if let Err(error) = std::process::Command::new("umount").arg("-l").arg(point).status() {
            eprintln!("{}: {error}", point.display());
        }
    }
}

/// A small file system in memory, for filling it up; unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one of so many bytes at `path`, which it creates. Only root can.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub async fn mount(path: &Path, bytes: u64) -> Result<Self> {
        std::fs::create_dir_all(path)?;
        let options = format!("size={bytes},mode=0755");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "shoal-test"]).arg(path)).await?;
        Ok(Self { path: path.to_owned() })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, for after a failure a process may still be dying in it.
        let unmounted = std::process::Command::new("umount").arg("-l").arg(&self.path).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.path.display());
        }
    }
}

/// All regular files below `dir` with their sizes. Files that vanish meanwhile are left out.
pub fn files_below(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut queue = vec![dir.to_owned()];
    while let Some(dir) = queue.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => queue.push(entry.path()),
                Ok(meta) if meta.is_file() => found.push((entry.path(), meta.len())),
                _ => {}
            }
        }
    }
    found
}

/// The last lines of a file, for messages.
pub fn tail(path: &Path, lines: usize) -> String {
    let text =
        std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
