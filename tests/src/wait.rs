//! Waiting for conditions instead of for time.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long a condition may take on a noisy machine before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How long a whole transfer may take on a noisy machine.
pub const TRANSFER: Duration = Duration::from_secs(240);

const POLL_INTERVAL_MIN: Duration = Duration::from_millis(10);
const POLL_INTERVAL_MAX: Duration = Duration::from_millis(200);

/// Polls `probe` until it yields a value.
///
/// # Errors
/// After `timeout`, with `what` and the probe's last error. An error of the probe alone only means "not yet".
pub async fn wait_until<T, F, P>(what: &str, timeout: Duration, mut probe: F) -> Result<T>
where
    F: FnMut() -> P,
    P: Future<Output = Result<Option<T>>>,
{
    let started = Instant::now();
    let mut pause = POLL_INTERVAL_MIN;
    loop {
        let last_error = match tokio::time::timeout(timeout, probe()).await {
            Ok(Ok(Some(value))) => return Ok(value),
            Ok(Ok(None)) => None,
            Ok(Err(error)) => Some(error),
            Err(_) => Some(anyhow::anyhow!("the probe itself hung")),
        };
        if started.elapsed() >= timeout {
            match last_error {
                Some(error) => bail!("gave up after {timeout:?} waiting until {what}: {error:#}"),
                None => bail!("gave up after {timeout:?} waiting until {what}"),
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(POLL_INTERVAL_MAX);
    }
}
