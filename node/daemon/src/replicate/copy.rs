//! Copying one image to one zone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use shoal_engine::io::ReaderWant;
use shoal_net::control::Origin;
use shoal_types::record::SignedRecord;
use shoal_types::{Digest, Metainfo, RecordKey, RecordKind, RecordVersion, RepositoryName, Zone};

use super::{Job, Replication};
use crate::manifests::Contents;
use crate::node::Node;
use crate::rpc::{Answer, Listing, PAGE_MAX, Request};

/// Blobs of one image on their way side by side. Each is a swarm of its own, with its own queues.
const BLOBS: usize = 4;
/// Manifests and blobs of one image: more are an attack, or not one image.
const REACHED_MAX: usize = 100_000;
/// How long an origin may take to keep a record.
const RECORD_TIMEOUT: Duration = Duration::from_secs(15);
/// How long an origin may take to fetch a blob, beyond [`BLOB_SECONDS_PER_GIB`]: links between zones are slow, and what
/// has arrived when time is out is not sent again.
const BLOB_TIMEOUT: Duration = Duration::from_secs(120);
/// What a gibibyte may take: a link of 20 Mbit/s.
const BLOB_SECONDS_PER_GIB: u64 = 450;

/// An image, in the order in which it is copied.
#[derive(Debug, Default)]
struct Image {
    blobs: Vec<Digest>,
    /// From the bottom up: what names another comes after it.
    manifests: Vec<Digest>,
}

/// Copies what a job names, and gives the version that the zone has from then on; `None` when there is nothing to copy.
/// What is there already costs a question a blob.
///
/// # Errors
/// A text for the log and the status: it is to be tried again.
pub(super) async fn copy(
    node: &Node,
    replication: &Replication,
    job: &Job,
) -> Result<Option<RecordVersion>, String> {
    let Some(record) = newest(node, &job.key).await? else { return Ok(None) };
    if let Some(value) = &record.value().value {
        let repository = &job.key.repository;
        let image = look_through(node, repository, value.digest).await?;
        let total = (image.blobs.len() + image.manifests.len()) as u64;
        replication.update(job, |progress| (progress.done, progress.total) = (0, total));
        let blobs = image.blobs.iter().map(|digest| copy_blob(node, replication, job, *digest));
        let mut blobs = futures::stream::iter(blobs.collect::<Vec<_>>()).buffer_unordered(BLOBS);
        while let Some(()) = blobs.try_next().await? {}
        drop(blobs);
        for digest in &image.manifests {
            copy_blob(node, replication, job, *digest).await?;
            let key = RecordKey { repository: repository.clone(), kind: RecordKind::Manifest(*digest) };
            // A child of an index may have been deleted by itself: then only its bytes are the index's.
            if let Some(manifest) = newest(node, &key).await? {
                hand_over(node, manifest, &job.zone).await?;
            }
        }
    }
    let version = record.value().version;
    hand_over(node, record, &job.zone).await?;
    Ok(Some(version))
}

/// The newest record of a key, as this zone knows it.
async fn newest(node: &Node, key: &RecordKey) -> Result<Option<SignedRecord>, String> {
    node.records().read(key).await.map(|seen| seen.record).map_err(|error| error.to_string())
}

fn owners(node: &Node, repository: &RepositoryName, zone: &Zone) -> Result<Vec<Origin>, String> {
    let all = node.discovery().repository_owners(repository);
    let owners: Vec<Origin> = all.into_iter().filter(|origin| origin.zone == *zone).collect();
    if owners.is_empty() { Err(format!("no origin of zone {zone} is known")) } else { Ok(owners) }
}

/// Everything that a manifest reaches, its referrers and theirs included.
async fn look_through(node: &Node, repository: &RepositoryName, digest: Digest) -> Result<Image, String> {
    let mut image = Image::default();
    let (mut seen, mut blobs) = (BTreeSet::from([digest]), BTreeSet::new());
    let mut todo = vec![digest];
    // Parents before children, and turned around at the end.
    while let Some(manifest) = todo.pop() {
        let bytes = node.read_manifest_bytes(manifest).await;
        let bytes = bytes.map_err(|error| format!("the manifest {manifest} cannot be read: {error}"))?;
        let contents = Contents::parse(&bytes)
            .map_err(|why| format!("the manifest {manifest} cannot be read: {why}"))?;
        image.manifests.push(manifest);
        blobs.extend(contents.blobs);
        for layer in contents.elsewhere {
            // It need not be here; if it is, it is part of the image.
            if node.stat(layer, Some(repository)).await.is_ok() {
                blobs.insert(layer);
            }
        }
        let referrers = referrers(node, repository, manifest).await?;
        todo.extend(contents.manifests.into_iter().chain(referrers).filter(|child| seen.insert(*child)));
        if seen.len() + blobs.len() > REACHED_MAX {
            return Err(format!("{digest} reaches more than {REACHED_MAX} manifests and blobs"));
        }
    }
    image.manifests.reverse();
    image.blobs = blobs.into_iter().filter(|blob| !seen.contains(blob)).collect();
    Ok(image)
}

async fn referrers(node: &Node, repository: &RepositoryName, subject: Digest) -> Result<Vec<Digest>, String> {
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let what = Listing::Referrers(subject);
        let page = node.records().list(repository, &what, after, PAGE_MAX as usize).await;
        let page = page.map_err(|error| error.to_string())?;
        found
            .extend(page.iter().filter_map(|record| record.value().value.as_ref()).map(|value| value.digest));
        match page.last() {
            Some(last) if page.len() == PAGE_MAX as usize => after = Some(last.value().key.kind.clone()),
            _ => return Ok(found),
        }
    }
}

/// Has the owners of a blob in a zone keep it. The first fetches it over the link; further ones find it in their own zone.
async fn copy_blob(node: &Node, replication: &Replication, job: &Job, digest: Digest) -> Result<(), String> {
    let metainfo = metainfo(node, digest).await?;
    let all = node.discovery().blob_owners(&digest);
    let owners = all.into_iter().filter(|origin| origin.zone == job.zone);
    let gib = metainfo.size() >> 30;
    let timeout = BLOB_TIMEOUT + Duration::from_secs(gib.saturating_mul(BLOB_SECONDS_PER_GIB));
    let request = Request::Anchor {
        metainfo: Box::new(metainfo.as_ref().clone()),
        repository: Some(job.key.repository.clone()),
    };
    let mut kept = 0;
    let mut why = format!("no origin of zone {} is known", job.zone);
    for owner in owners {
        match node.links().ask(owner.peer, &owner.endpoints, &request, timeout).await {
            Ok(Answer::Anchored(_)) => kept += 1,
            Ok(_) => why = format!("{} gave an answer to another question", owner.peer),
            Err(error) => why = error.to_string(),
        }
        if kept == node.config().replicas {
            break;
        }
    }
    // A zone with fewer origins than this one asks of its own keeps as many copies as it can.
    if kept == 0 {
        return Err(format!("{digest}: {why}"));
    }
    replication.blobs.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    replication.bytes.fetch_add(metainfo.size(), std::sync::atomic::Ordering::Relaxed);
    replication.update(job, |progress| progress.done += 1);
    Ok(())
}

/// A blob's pieces and hashes. Nothing is downloaded.
async fn metainfo(node: &Node, digest: Digest) -> Result<Arc<Metainfo>, String> {
    let store = node.store().clone();
    let entry = crate::driver::blocking(move || store.lookup(&digest)).await?;
    if let Some(entry) = entry.filter(|entry| entry.complete) {
        return Ok(entry.metainfo);
    }
    let mut reader = node.driver().open(digest, ReaderWant::Metainfo).await;
    reader.metainfo().await.map_err(|error| format!("the blob {digest} cannot be read: {error}"))
}

/// Has a zone keep a record as it is.
async fn hand_over(node: &Node, record: SignedRecord, zone: &Zone) -> Result<(), String> {
    let owners = owners(node, &record.value().key.repository, zone)?;
    let mut why = String::new();
    for owner in owners {
        let request = Request::Import { record: record.clone() };
        match node.links().ask(owner.peer, &owner.endpoints, &request, RECORD_TIMEOUT).await {
            Ok(Answer::Record(Some(_))) => return Ok(()),
            Ok(_) => why = format!("{} gave an answer to another question", owner.peer),
            Err(error) => why = error.to_string(),
        }
    }
    Err(format!("no origin of zone {zone} takes the record: {why}"))
}
