//! One collection, at one origin and at all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use shoal_types::{Digest, PeerId, RecordKey, RecordKind, RepositoryName};

use super::mark::{Marker, Roots};
use super::{Amount, Options, Progress, Report, SAMPLE};
use crate::driver::blocking;
use crate::links::AskError;
use crate::node::{ManifestError, Node};
use crate::records::service::{Entry, Survey};
use crate::rpc::{Answer, Request};
use crate::vault::Vault;

/// Manifests read side by side.
const READS: usize = 16;
/// Blobs deleted side by side.
const DELETIONS: usize = 8;
/// How long another origin may take to look through its records.
const READY_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a collection at another origin may take.
const COLLECT_TIMEOUT: Duration = Duration::from_secs(6 * 3600);
/// How long an origin may take to forget that something was unreached. One that is cut off must not stop pushes.
const RETAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Digests in one `Retain`: well under the size of a call.
const RETAIN_MAX: usize = 500;
/// The repository of what is put from a command line: its blobs need no manifest.
pub(crate) const PUT_REPOSITORY: &str = "shoal/put";

impl Node {
    /// Collects at every origin of the mesh, one after the other.
    pub async fn collect_everywhere(&self, options: &Options) -> Vec<Report> {
        let mut reports = Vec::new();
        let origins = self.discovery().owners(b"");
        let total = origins.len() as u64;
        for origin in origins {
            let (origins_done, step) = (reports.len() as u64, format!("collecting at {}", origin.peer));
            self.tell_gc(|progress| *progress = Progress { origins_done, origins: total, step, done: 0 });
            if origin.peer == self.peer_id() {
                reports.push(self.collect_here(options).await);
                continue;
            }
            let request = Request::Collect { options: options.clone() };
            let failed = |why: String| Report {
                origin: origin.peer.to_string(),
                zone: origin.zone.to_string(),
                incomplete: Some(why),
                ..Report::default()
            };
            let asked = self.links().ask(origin.peer, &origin.endpoints, &request, COLLECT_TIMEOUT).await;
            reports.push(match asked {
                Ok(Answer::Collected(report)) => *report,
                Ok(_) => failed("it gave an answer to another question".to_owned()),
                Err(error) => failed(error.to_string()),
            });
        }
        self.tell_gc(|progress| {
            *progress = Progress { origins_done: total, origins: total, ..Progress::default() }
        });
        reports
    }

    /// Changes what this origin tells of a collection.
    fn tell_gc(&self, change: impl FnOnce(&mut Progress)) {
        if let Some(vault) = self.vault() {
            change(&mut vault.collection().lock());
        }
    }

    fn begin_step(&self, step: &str) {
        self.tell_gc(|progress| {
            step.clone_into(&mut progress.step);
            progress.done = 0;
        });
    }

    fn count_step(&self) {
        self.tell_gc(|progress| progress.done += 1);
    }

    /// Collects at this origin.
    pub async fn collect_here(&self, options: &Options) -> Report {
        let started = Instant::now();
        let mut report =
            Report { origin: self.peer_id().to_string(), zone: self.zone().to_string(), ..Report::default() };
        if let Err(why) = self.collect(options, &mut report).await {
            tracing::warn!(%why, "garbage collection deletes nothing");
            report.incomplete = Some(why);
        } else {
            tracing::info!(?report.unreached, ?report.deleted, dry_run = options.dry_run, "garbage collection is done");
        }
        self.begin_step("");
        report.took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        report
    }

    async fn collect(&self, options: &Options, report: &mut Report) -> Result<(), String> {
        let Some(vault) = self.vault() else {
            return Err("this process is no origin: ask an origin's ops listener".to_owned());
        };
        let _one_at_a_time = vault.collecting().try_lock().map_err(|_| "a collection is running already")?;
        let started = self.clock().wall();
        self.begin_step("asking origins whether they know all records");
        self.all_ready(&options.without).await?;
        self.begin_step("collecting the records of all origins");
        let survey = self.records().survey(&options.without).await?;
        let roots = roots(&survey);
        report.tags = roots.tagged.len() as u64;
        self.begin_step("manifests followed");
        let reached = self.mark(&roots, options.keep_untagged).await?;
        self.begin_step("listing what backends hold");
        report.reached = reached.len() as u64;
        let held = held(vault).await?;
        let unreached: BTreeMap<Digest, u64> = held
            .iter()
            .filter(|(digest, _)| !reached.contains(digest))
            .map(|(digest, size)| (*digest, *size))
            .collect();
        let amount = |map: &BTreeMap<Digest, u64>| {
            let mut amount = Amount::default();
            map.values().for_each(|size| amount.add(*size));
            amount
        };
        report.held = amount(&held);
        report.unreached = amount(&unreached);
        let buried = self.unreached_manifests(&survey, &reached);
        let due = |digest: &Digest| {
            // Two collections must have found it so: what was pushed while the first was marking may look unreached.
            let since = vault.condemned().since(digest).filter(|since| *since < started);
            since.is_some_and(|since| {
                started.saturating_since(since).as_millis() >= u128::from(options.grace_ms)
            })
        };
        let due_blobs: Vec<(Digest, u64)> = unreached
            .iter()
            .filter(|(digest, _)| due(digest))
            .map(|(digest, size)| (*digest, *size))
            .collect();
        due_blobs.iter().for_each(|(_, size)| report.due.add(*size));
        report.digests = due_blobs.iter().take(SAMPLE).map(|(digest, _)| *digest).collect();
        if options.dry_run {
            return Ok(());
        }
        let due_manifests: Vec<(RecordKey, Entry)> =
            buried.iter().filter(|(key, _)| due(&digest_of(key))).cloned().collect();
        let all: BTreeSet<Digest> =
            unreached.keys().copied().chain(buried.iter().map(|(key, _)| digest_of(key))).collect();
        let (keeper, now) = (vault.clone(), self.clock().wall());
        blocking(move || keeper.condemned().update(&all, now)).await?;
        // Whoever went away meanwhile, or came, may know of tags that were not followed.
        self.all_ready(&options.without).await?;
        self.begin_step("blobs deleted");
        self.sweep(vault, due_manifests, due_blobs, options.grace_ms, report).await;
        Ok(())
    }

    /// Fails unless every origin knows all that its backends have.
    async fn all_ready(&self, without: &[PeerId]) -> Result<(), String> {
        self.records().check_all_here(without)?;
        for origin in self.discovery().owners(b"") {
            let ready = if origin.peer == self.peer_id() {
                self.records().ready_to_mark().await
            } else {
                let asked =
                    self.links().ask(origin.peer, &origin.endpoints, &Request::ReadyToMark, READY_TIMEOUT);
                match asked.await {
                    Ok(Answer::Ready) => Ok(()),
                    Ok(_) => Err("it gave an answer to another question".to_owned()),
                    Err(AskError::Failed { message, .. }) => Err(message),
                    Err(error) => Err(error.to_string()),
                }
            };
            ready.map_err(|why| format!("the origin {} is not ready: {why}", origin.peer))?;
        }
        Ok(())
    }

    async fn mark(&self, roots: &Roots, keep_untagged: bool) -> Result<BTreeSet<Digest>, String> {
        let mut marker = Marker::new(roots, keep_untagged);
        loop {
            let batch: Vec<Digest> = std::iter::from_fn(|| marker.pop()).take(READS).collect();
            if batch.is_empty() {
                return Ok(marker.finish());
            }
            let reads = batch
                .into_iter()
                .map(|digest| async move { (digest, self.read_manifest_bytes(digest).await) });
            let mut reads = futures::stream::iter(reads.collect::<Vec<_>>()).buffer_unordered(READS);
            while let Some((digest, read)) = reads.next().await {
                self.count_step();
                let marked = match read {
                    Ok(bytes) => marker.read(digest, &bytes),
                    Err(ManifestError::NotFound) => marker.unread(digest),
                    Err(error) => return Err(format!("the manifest {digest} cannot be read: {error}")),
                };
                marked.map_err(|error| error.to_string())?;
            }
        }
    }

    /// The manifests that nothing reaches, of repositories for which this origin answers.
    fn unreached_manifests(&self, survey: &Survey, reached: &BTreeSet<Digest>) -> Vec<(RecordKey, Entry)> {
        let Some(own) = survey.zones.get(&self.zone()) else { return Vec::new() };
        let mut answers: Option<(RepositoryName, bool)> = None;
        let mut found = Vec::new();
        for (key, entry) in own.iter().filter(|(_, entry)| entry.value.is_some()) {
            let RecordKind::Manifest(digest) = &key.kind else { continue };
            if reached.contains(digest) {
                continue;
            }
            if answers.as_ref().is_none_or(|(repository, _)| *repository != key.repository) {
                let first = self.discovery().repository_owners(&key.repository).into_iter().next();
                let own = first.is_some_and(|first| first.peer == self.peer_id());
                answers = Some((key.repository.clone(), own));
            }
            if answers.as_ref().is_some_and(|(_, own)| *own) {
                found.push((key.clone(), *entry));
            }
        }
        found
    }

    async fn sweep(
        &self,
        vault: &Vault,
        manifests: Vec<(RecordKey, Entry)>,
        blobs: Vec<(Digest, u64)>,
        grace_ms: u64,
        report: &mut Report,
    ) {
        report.digests.clear();
        let grace = Duration::from_millis(grace_ms);
        // Before their bytes: a repository must not name what is gone.
        for (key, entry) in manifests {
            let digest = digest_of(&key);
            let Some(_held) = vault.doomed(&digest, grace).await else { continue };
            match self.records().bury(key, entry.version).await {
                Ok(true) => report.manifests_deleted += 1,
                Ok(false) => {}
                Err(error) => {
                    report.failed += 1;
                    report.last_error = Some(error.to_string());
                }
            }
        }
        let deletions = blobs
            .into_iter()
            .map(|(digest, size)| async move { (digest, size, vault.collect(&digest, grace).await) });
        let mut deletions = futures::stream::iter(deletions.collect::<Vec<_>>()).buffer_unordered(DELETIONS);
        while let Some((digest, size, deleted)) = deletions.next().await {
            self.count_step();
            match deleted {
                Ok(true) => {
                    report.deleted.add(size);
                    self.metrics().collected.inc();
                    self.metrics().collected_bytes.inc_by(size);
                    if report.digests.len() < SAMPLE {
                        report.digests.push(digest);
                    }
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%digest, %error, "an unreached blob cannot be deleted; a later collection tries again");
                    report.failed += 1;
                    report.last_error = Some(error);
                }
            }
        }
    }

    /// Has all origins forget that these were unreached: whoever pushes is about to need them. One that cannot be reached
    /// is passed over.
    pub(crate) async fn retain(&self, digests: &[Digest]) {
        let origins = self.discovery().owners(b"");
        for part in digests.chunks(RETAIN_MAX) {
            let request = Request::Retain { digests: part.to_vec() };
            let asked = origins.iter().map(|origin| async {
                if origin.peer == self.peer_id() {
                    return self.retain_here(part).await;
                }
                let asked = self.links().ask(origin.peer, &origin.endpoints, &request, RETAIN_TIMEOUT);
                asked.await.map(drop).map_err(|error| error.to_string())
            });
            for failed in futures::future::join_all(asked).await.into_iter().filter_map(Result::err) {
                tracing::debug!(why = %failed, "an origin was not told of what a push needs");
            }
        }
    }

    pub(crate) async fn retain_here(&self, digests: &[Digest]) -> Result<(), String> {
        match self.vault() {
            Some(vault) => vault.absolve(digests).await,
            None => Ok(()),
        }
    }
}

fn digest_of(key: &RecordKey) -> Digest {
    match &key.kind {
        RecordKind::Manifest(digest) | RecordKind::Blob(digest) => *digest,
        RecordKind::Tag(_) => Digest::sha256(b""),
    }
}

/// What the backends of this origin hold. What is on the way there is looked at when it has arrived.
async fn held(vault: &Vault) -> Result<BTreeMap<Digest, u64>, String> {
    let mut held = BTreeMap::new();
    for member in vault.backends().all().iter().filter(|member| member.backend.is_writable()) {
        let mut blobs = member.backend.list_blobs();
        let failed = |error| format!("the backend {} cannot be listed: {error}", member.backend.describe());
        while let Some(blob) = blobs.try_next().await.map_err(failed)? {
            held.insert(blob.digest, blob.size);
        }
    }
    Ok(held)
}

fn roots(survey: &Survey) -> Roots {
    let mut roots = Roots::default();
    for (key, entry) in survey.zones.values().flatten() {
        let Some((digest, subject)) = entry.value else { continue };
        match &key.kind {
            RecordKind::Tag(_) => {
                roots.tagged.insert(digest);
            }
            RecordKind::Manifest(_) => {
                roots.manifests.insert(digest, subject);
            }
            RecordKind::Blob(_) if key.repository.as_str() == PUT_REPOSITORY => {
                roots.kept.insert(digest);
            }
            RecordKind::Blob(_) => {}
        }
    }
    roots
}
