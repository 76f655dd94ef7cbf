//! How far something has got: a bar on a terminal, a plain line now and then elsewhere, nothing with `--json`.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Bytes.
    Bytes,
    /// Downloads of a simulation, or fleets.
    Things(&'static str),
}

/// A bar, or the lines that stand in for it. Clones are the same.
#[derive(Clone)]
pub(crate) struct Progress {
    bar: ProgressBar,
    lines: Option<Arc<Lines>>,
}

struct Lines {
    what: String,
    unit: Unit,
    began: Instant,
    next: std::sync::Mutex<Instant>,
}

impl Progress {
    /// One of `total` units, 0 when that is not known yet; `what` is what plain lines begin with.
    pub(crate) fn new(what: &str, total: u64, unit: Unit, quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target =
            if quiet || !terminal { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let template = match unit {
            Unit::Bytes => "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}".to_owned(),
            Unit::Things(things) => format!("{{wide_bar}} {{pos}}/{{len}} {things} {{msg}}"),
        };
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(total), target).with_style(style);
        // Seen from the start, also while nothing is known yet.
        bar.tick();
        let now = Instant::now();
        let lines = (!quiet && !terminal).then(|| {
            Arc::new(Lines {
                what: what.to_owned(),
                unit,
                began: now,
                next: std::sync::Mutex::new(now + LINE_INTERVAL),
            })
        });
        Self { bar, lines }
    }

    /// So much more is to be done.
    pub(crate) fn inc_length(&self, more: u64) {
        self.bar.inc_length(more);
    }

    /// So much is to be done.
    pub(crate) fn set_length(&self, total: u64) {
        self.bar.set_length(total);
    }

    /// So much more is done.
    pub(crate) fn inc(&self, more: u64) {
        self.bar.inc(more);
        self.line();
    }

    /// So much is done.
    pub(crate) fn set_position(&self, done: u64) {
        self.bar.set_position(done);
        self.line();
    }

    /// What stands beside the bar.
    pub(crate) fn set_message(&self, text: String) {
        self.bar.set_message(text);
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn line(&self) {
        let Some(lines) = &self.lines else { return };
        let now = Instant::now();
        let Ok(mut next) = lines.next.lock() else { return };
        if now < *next {
            return;
        }
        *next = now + LINE_INTERVAL;
        let text = lines.text(self.bar.position(), self.bar.length(), now.duration_since(lines.began));
        eprintln!("{}", format!("{text} {}", self.bar.message()).trim_end());
    }
}

impl Lines {
    fn text(&self, done: u64, total: Option<u64>, since: Duration) -> String {
        let show = |count: u64| match self.unit {
            Unit::Bytes => bytesize::ByteSize::b(count).to_string(),
            Unit::Things(things) => format!("{count} {things}"),
        };
        let what = &self.what;
        match total.filter(|total| *total > 0) {
            Some(total) => {
                let percent = done.saturating_mul(100) / total;
                format!("{what}: {percent} %, {} of {} after {} s", show(done), show(total), since.as_secs())
            }
            None => format!("{what}: {} after {} s", show(done), since.as_secs()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_how_far_it_got() {
        let now = Instant::now();
        let lines = |unit| Lines { what: "get x".into(), unit, began: now, next: std::sync::Mutex::new(now) };
        let bytes = lines(Unit::Bytes).text(512, Some(2048), Duration::from_secs(7));
        assert_eq!(bytes, "get x: 25 %, 512 B of 2.0 KiB after 7 s");
        let things = lines(Unit::Things("downloads")).text(3, None, Duration::from_secs(1));
        assert_eq!(things, "get x: 3 downloads after 1 s");
    }
}
