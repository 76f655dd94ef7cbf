//! One `shoal` process.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::oneshot;

use crate::contract::Ready;
use crate::system;

/// How long a process may take to print its ready line, on a busy machine in a debug build.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// How long draining may take.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);

const LOG_LINES_SHOWN: usize = 60;

/// The program under test: `$SHOAL_BIN`, or what `cargo build -p shoal` left beside this test.
///
/// # Errors
/// When it is missing, or older than the sources it is made of.
pub fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SHOAL_BIN") {
        return Ok(path.into());
    }
    // Looked at once: whoever edits a source while tests run does not fail them.
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = PROGRAM.get_or_init(|| {
        let test = std::env::current_exe().map_err(|error| error.to_string())?;
        let dir = test.parent().ok_or("a test outside a target directory")?;
        beside(dir).map_err(|error| format!("{error:#}"))
    });
    found.clone().map_err(anyhow::Error::msg)
}

/// The program that was built into the same target directory as `file`, one of its own programs.
///
/// # Errors
/// When it is missing, or older than the sources it is made of.
pub fn beside(file: &Path) -> Result<PathBuf> {
    let path = file.parent().context("a program without a directory")?.join("shoal");
    let Ok(built) = path.metadata().and_then(|meta| meta.modified()) else {
        bail!("{} is missing: run `cargo build -p shoal` (or `make test`) first", path.display());
    };
    if let Some(newer) = newest_source()?.filter(|(_, changed)| *changed > built) {
        bail!("{} is older than {}: run `cargo build -p shoal`", path.display(), newer.0.display());
    }
    Ok(path)
}

fn newest_source() -> Result<Option<(PathBuf, SystemTime)>> {
    let mut sources = Vec::new();
    for part in ["node", "gateway", "bootstrap", "simulations", "cli"] {
        for (path, _) in system::files_below(&system::project(part)) {
            let in_src = path.components().any(|component| component.as_os_str() == "src");
            if in_src && path.extension().is_some_and(|extension| extension == "rs") {
                let changed = path.metadata()?.modified()?;
                sources.push((path, changed));
            }
        }
    }
    Ok(sources.into_iter().max_by_key(|(_, changed)| *changed))
}

/// Runs the program to its end.
///
/// # Errors
/// As [`system::run`].
pub async fn run_program(args: &[String]) -> Result<String> {
    system::run(Command::new(program()?).args(args)).await
}

/// A running daemon.
#[derive(Debug)]
pub struct Process {
    /// What it is called here.
    pub name: String,
    /// What it said when it was ready.
    pub ready: Ready,
    /// Its process id.
    pub pid: u32,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts one and waits until it is ready. What it prints is appended to `log`.
    ///
    /// # Errors
    /// When it ends or is silent instead: with the end of its log.
    pub async fn start(name: &str, args: &[String], env: &[(String, String)], log: &Path) -> Result<Self> {
        let mut out = OpenOptions::new().create(true).append(true).open(log)?;
        writeln!(out, "--- shoal {}", args.join(" "))?;
        let mut child = Command::new(program()?)
            .args(args)
            .envs(env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(out.try_clone()?)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().context("a process without an id")?;
        let stdout = child.stdout.take().context("no standard output")?;
        let (said, heard) = oneshot::channel();
        tokio::spawn(copy_output(stdout, out, said));
        let ready = match tokio::time::timeout(READY_TIMEOUT, heard).await {
            Ok(Ok(line)) => Ready::parse(&line)?.context("no ready line")?,
            Ok(Err(_)) => {
                let status = child.wait().await?;
                bail!("{name} ended ({status}) before it was ready:\n{}", system::tail(log, LOG_LINES_SHOWN))
            }
            Err(_) => {
                bail!("{name} was not ready after {READY_TIMEOUT:?}:\n{}", system::tail(log, LOG_LINES_SHOWN))
            }
        };
        Ok(Self { name: name.to_owned(), ready, pid, child, log: log.to_owned() })
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        system::signal(self.pid, signal).with_context(|| self.name.clone())
    }

    /// Kills it (`kill -9`) and waits until it is gone.
    ///
    /// # Errors
    /// When it had ended before by itself.
    pub async fn kill(mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} had ended by itself: {status}\n{}", self.name, self.log_tail());
        }
        self.child.kill().await?;
        Ok(())
    }

    /// Waits for its end after it was killed by its id.
    ///
    /// # Errors
    /// When it is still alive after a while.
    pub async fn reap(mut self) -> Result<()> {
        self.wait().await?;
        Ok(())
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    ///
    /// # Errors
    /// When it had ended before, does not end in time, or not with 0.
    pub async fn stop(mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} had ended by itself: {status}\n{}", self.name, self.log_tail());
        }
        // It may have been stopped by a test that failed.
        self.signal(Signal::CONT)?;
        self.signal(Signal::TERM)?;
        let status = self.wait().await?;
        if !status.success() {
            bail!("{} ended with {status} after SIGTERM\n{}", self.name, self.log_tail());
        }
        Ok(())
    }

    async fn wait(&mut self) -> Result<ExitStatus> {
        match tokio::time::timeout(DRAIN_TIMEOUT, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!("{} did not end in {DRAIN_TIMEOUT:?}\n{}", self.name, self.log_tail()),
        }
    }

    /// Whether it is still running.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        system::tail(&self.log, LOG_LINES_SHOWN)
    }
}

/// Hands over the ready line and appends the rest to the log, so that the process never blocks on its output.
async fn copy_output(stdout: ChildStdout, mut log: std::fs::File, said: oneshot::Sender<String>) {
    let mut said = Some(said);
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if line.starts_with("ready ")
            && let Some(said) = said.take()
        {
            // Nobody listens any more when the wait was given up.
            let _ = said.send(line.clone());
        }
        if writeln!(log, "{line}").is_err() {
            return;
        }
    }
}
