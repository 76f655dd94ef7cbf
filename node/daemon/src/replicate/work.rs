//! Working off what is queued.

use std::sync::Arc;
use std::time::Duration;

use shoal_store::Table;
use shoal_types::{RecordVersion, RepositoryName};
use tokio::sync::Semaphore;

use super::copy::copy;
use super::{Job, Replication};
use crate::clock::wall_now;
use crate::driver::blocking;
use crate::node::Node;
use crate::records::service::OWNERS;
use crate::rpc::{PAGE_MAX, Request};

/// Images copied side by side.
const JOBS: usize = 3;
/// How much longer than the owner before it an owner waits before it makes a copy itself.
const TURN: Duration = Duration::from_secs(120);
/// How often an owner whose turn it is not looks whether it is, and how much less often for each job that waits.
const LOOK: Duration = Duration::from_secs(2);
const LOOK_EACH: Duration = Duration::from_millis(5);
/// How long another owner may take to note that a copy is made.
const TELL_TIMEOUT: Duration = Duration::from_secs(5);
/// Beginning of the keys under which it is remembered that what was there before a rule is queued.
const CAUGHT_UP: &str = "replicate-caught-up/";

/// As an origin: copies what is queued, a few at a time, until the node stops.
pub(crate) async fn run(node: Node, replication: Arc<Replication>) {
    let slots = Arc::new(Semaphore::new(JOBS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let (job, _) = tokio::select! {
            () = node.stopping() => return,
            next = replication.queue.next() => next,
        };
        if !is_turn(&node, &replication, &job) {
            let waiting = u32::try_from(replication.queue.len()).unwrap_or(u32::MAX);
            replication.queue.put_off(&job, LOOK + LOOK_EACH.saturating_mul(waiting));
            continue;
        }
        let (node, replication) = (node.clone(), Arc::clone(&replication));
        tokio::spawn(async move {
            replication.update(&job, |progress| progress.active = true);
            let copied = copy(&node, &replication, &job).await;
            replication.update(&job, |progress| progress.active = false);
            match copied {
                Ok(version) => {
                    tracing::info!(image = %job.key, zone = %job.zone, "replicated");
                    replication.copied.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    replication.finish(&job).await;
                    if let Some(version) = version {
                        tell_others(&node, &job, version).await;
                    }
                }
                Err(why) => {
                    tracing::warn!(image = %job.key, zone = %job.zone, %why, "not replicated yet; it is tried again");
                    replication.update(&job, |progress| progress.last_error = Some(why.clone()));
                    let random = crate::keys::random_secret().first().copied().unwrap_or_default();
                    replication.queue.failed(&job, &why, f64::from(random) / 255.0);
                }
            }
            drop(slot);
        });
    }
}

/// Whether this process is to make a copy now: as the first owner that is alive, because it was asked to, or because those
/// before it had their time.
fn is_turn(node: &Node, replication: &Replication, job: &Job) -> bool {
    if replication.progress.lock().get(job).is_some_and(|progress| progress.by_hand) {
        return true;
    }
    let zone = node.zone();
    let owners = node.discovery().repository_owners(&job.key.repository);
    let mut own = owners.iter().filter(|origin| origin.zone == zone).take(OWNERS);
    // One that is no owner any more queued it all the same: the last in the row.
    let rank = own.position(|owner| owner.peer == node.peer_id()).unwrap_or(OWNERS);
    let since = replication.queue.queued(job).unwrap_or_default();
    wall_now().saturating_since(since) >= TURN.saturating_mul(u32::try_from(rank).unwrap_or(u32::MAX))
}

async fn tell_others(node: &Node, job: &Job, version: RecordVersion) {
    let zone = node.zone();
    let owners = node.discovery().repository_owners(&job.key.repository);
    for owner in owners.iter().filter(|owner| owner.zone == zone && owner.peer != node.peer_id()) {
        let request = Request::Replicated { job: job.clone(), version };
        if let Err(error) = node.links().ask(owner.peer, &owner.endpoints, &request, TELL_TIMEOUT).await {
            // It will look for itself when its turn comes.
            tracing::debug!(%error, "an owner was not told that a copy is made");
        }
    }
}

impl Replication {
    async fn finish(self: &Arc<Self>, job: &Job) {
        let (replication, done) = (Arc::clone(self), job.clone());
        if let Err(why) = blocking(move || replication.queue.done(&done)).await {
            tracing::warn!(%why, "the queue of copies cannot be updated: one is made again after a restart");
        }
        if !self.queue.contains(job) {
            self.progress.lock().remove(job);
        }
    }

    /// Another owner has made a copy. One that is newer here stays queued.
    pub(crate) async fn made(self: &Arc<Self>, node: &Node, job: &Job, version: RecordVersion) {
        let known = node.records().remembered(&job.key).ok().flatten();
        if known.is_none_or(|known| known.value().version <= version) && !self.is_active(job) {
            self.finish(job).await;
        }
    }

    fn is_active(&self, job: &Job) -> bool {
        self.progress.lock().get(job).is_some_and(|progress| progress.active)
    }

    /// Queues what was there before there was a rule for it, once a rule and zone.
    pub(crate) async fn catch_up(self: &Arc<Self>, node: &Node) {
        let table = node.store().table(Table::Misc);
        for (pattern, zones) in &self.rules {
            for zone in zones {
                let key = format!("{CAUGHT_UP}{zone}/{pattern}").into_bytes();
                if matches!(table.get(&key), Ok(Some(_))) {
                    continue;
                }
                let (replication, node, wanted) = (Arc::clone(self), node.clone(), pattern.clone());
                let queued = blocking(move || {
                    replication.queue_all(&node, &wanted).map_err(|error| error.to_string())
                });
                match queued.await {
                    Ok(()) => {
                        if let Err(error) = table.put(&key, &[1]) {
                            tracing::warn!(%error, "it cannot be remembered that a rule has been caught up with");
                        }
                    }
                    Err(why) => {
                        tracing::warn!(%why, "what was there before a rule cannot be queued; it is tried at the next start")
                    }
                }
            }
        }
    }

    fn queue_all(
        &self,
        node: &Node,
        pattern: &regex::Regex,
    ) -> Result<(), crate::records::ledger::LedgerError> {
        let mut after: Option<RepositoryName> = None;
        loop {
            let (names, more) = node.records().kept_repositories(after.as_ref(), PAGE_MAX)?;
            for name in names.iter().filter(|name| pattern.is_match(name.as_str())) {
                node.records().each_kept(name, |record| self.note(record))?;
            }
            after = names.last().cloned();
            if !more || after.is_none() {
                return Ok(());
            }
        }
    }
}
