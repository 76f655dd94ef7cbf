//! What a node does by itself: news from the mesh, eviction, expiry, and restoring copies when origins come and go.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use shoal_engine::io::Input;
use shoal_net::control::ControlEvent;
use shoal_store::RemovalReason;
use shoal_types::{Digest, GossipMessage, PeerId};
use tokio::sync::{Semaphore, mpsc};

use crate::directory::Member;
use crate::driver::blocking;
use crate::node::Node;
use crate::queue::Item;
use crate::rpc::{Answer, Found, Request};

/// Between two rounds of writing out, evicting and expiring.
const ROUND: Duration = Duration::from_secs(30);
/// How long the set of origins must stand still before copies are restored: joins and leaves come in bursts.
const SETTLE: Duration = Duration::from_secs(3);
/// Between two blobs whose owners are asked, so that restoring thousands does not crowd out pulls.
const RESTORE_PAUSE: Duration = Duration::from_millis(20);
/// Items of the queue written side by side; a large blob goes up in parts besides.
const WRITES: usize = 4;
/// How long another origin may take to say whether it has a blob.
const STAT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long another origin may take to fetch a blob it lacks.
const ANCHOR_TIMEOUT: Duration = Duration::from_secs(3600);

/// Takes in the control plane's events until it stops.
pub(crate) async fn listen(node: Node, mut events: mpsc::Receiver<ControlEvent>) {
    while let Some(event) = events.recv().await {
        match event {
            ControlEvent::Listening { address } => tracing::info!(%address, "the control plane listens"),
            ControlEvent::PeerSeen { peer, zone, roles, endpoints } => {
                if !endpoints.is_empty() {
                    node.directory().note(peer, Member { zone, roles, endpoints });
                }
            }
            ControlEvent::Gossip { message: GossipMessage::RecordChanged(record), .. } => {
                let node = node.clone();
                let noted = tokio::task::spawn_blocking(move || node.records().note_change(&record)).await;
                if let Err(error) = noted {
                    tracing::warn!(%error, "news of a record is lost");
                }
            }
            ControlEvent::OriginsChanged => {
                let node = node.clone();
                let noted = tokio::task::spawn_blocking(move || {
                    for origin in node.control().origins().iter() {
                        node.records().note_author(&origin.credential);
                    }
                });
                if let Err(error) = noted.await {
                    tracing::warn!(%error, "origins are not remembered");
                }
            }
            ControlEvent::Gossip { .. } | ControlEvent::PeerGone { .. } => {}
        }
    }
}

/// Tells the engine and the DHT what the store removed.
pub(crate) async fn follow_removals(
    node: Node,
    mut removed: mpsc::UnboundedReceiver<(Digest, RemovalReason)>,
) {
    while let Some((digest, reason)) = removed.recv().await {
        if reason == RemovalReason::Evicted {
            node.metrics().evicted.inc();
        }
        tracing::debug!(%digest, ?reason, "a blob left the store");
        node.upstreams().forget_cached(digest).await;
        node.control().unprovide(digest).await;
        node.driver().tell(Input::BlobRemoved { digest }).await;
    }
}

/// Writes out, evicts and expires until the node stops.
pub(crate) async fn keep_house(node: Node) {
    loop {
        tokio::select! {
            () = node.stopping() => return,
            () = tokio::time::sleep(ROUND) => {}
        }
        let (store, now) = (node.store().clone(), node.clock().wall());
        let round = blocking(move || {
            store.flush()?;
            store.upload_expire(now)?;
            store.evict(now)
        });
        if let Err(why) = round.await {
            tracing::warn!(%why, "the store's upkeep failed; it is tried again");
        }
    }
}

/// As an origin: whenever origins come or go, sees to it that each blob's owners have it.
pub(crate) async fn restore_copies(node: Node) {
    let mut changes = node.control().watch_origins();
    let mut known: BTreeSet<PeerId> = BTreeSet::new();
    loop {
        let now: BTreeSet<PeerId> = changes.borrow_and_update().iter().map(|origin| origin.peer).collect();
        if now != known {
            // Wait until it stands still; each change starts the wait again.
            if tokio::time::timeout(SETTLE, changes.changed()).await.is_ok_and(|changed| changed.is_ok()) {
                continue;
            }
            known = now;
            restore_all(&node).await;
        }
        tokio::select! {
            () = node.stopping() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

/// As an origin: whenever origins come or go, copies the records of the repositories it owns from then on.
pub(crate) async fn settle_records(node: Node) {
    let mut changes = node.control().watch_origins();
    let others =
        |node: &Node| node.records().others().iter().map(|one| one.peer).collect::<BTreeSet<PeerId>>();
    let mut known = others(&node);
    loop {
        if node.records().is_settled() {
            tokio::select! {
                () = node.stopping() => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
        } else {
            // Joins and leaves come in bursts: copying begins when they are over.
            tokio::select! {
                () = node.stopping() => return,
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(SETTLE) => match node.records().settle().await {
                    Ok(0) => {}
                    Ok(records) => tracing::info!(records, "records of repositories owned here are copied"),
                    Err(error) => tracing::warn!(%error, "records cannot be copied yet; it is tried again"),
                },
            }
        }
        let now = others(&node);
        if now != known {
            known = now;
            node.records().unsettle();
        }
    }
}

/// As an origin: writes what waits for the backend, a few at a time, until the node stops.
pub(crate) async fn write_back(node: Node) {
    let Some(vault) = node.vault().cloned() else { return };
    let slots = Arc::new(Semaphore::new(WRITES));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let (item, repository) = tokio::select! {
            () = node.stopping() => return,
            next = vault.queue().next() => next,
        };
        let (node, vault) = (node.clone(), Arc::clone(&vault));
        tokio::spawn(async move {
            let written = match &item {
                Item::Blob(digest) => {
                    vault.write_back(*digest, repository.as_ref()).await.map_err(|error| error.to_string())
                }
                Item::Record(key) => node.records().write_back(key).await,
            };
            match written {
                Ok(()) => {
                    tracing::debug!(%item, "written to the backend");
                    let queue = Arc::clone(vault.queue());
                    let done = item.clone();
                    if let Err(why) = blocking(move || queue.done(&done)).await {
                        tracing::warn!(%why, "the queue of writes cannot be updated: one is written again after a restart");
                    }
                    if let Item::Blob(digest) = &item {
                        vault.release(digest);
                    }
                }
                Err(why) => {
                    tracing::warn!(%item, %why, "not written to the backend yet; it is tried again");
                    let random = crate::keys::random_secret().first().copied().unwrap_or_default();
                    vault.queue().failed(&item, &why, f64::from(random) / 255.0);
                }
            }
            drop(slot);
        });
    }
}

async fn restore_all(node: &Node) {
    let blobs = node.store().blobs();
    for blob in blobs.into_iter().filter(|blob| blob.complete) {
        restore(node, blob.digest).await;
        tokio::time::sleep(RESTORE_PAUSE).await;
    }
}

/// Has the other owners of one blob fetch it if they lack it.
async fn restore(node: &Node, digest: Digest) {
    let store = node.store().clone();
    let Ok(Some(entry)) = blocking(move || store.lookup(&digest)).await else { return };
    // Somebody else's image: whoever needs it fetches it anew.
    if node.upstreams().is_cached(digest).await {
        return;
    }
    let local = node.peer_id();
    for owner in node.discovery().blob_owners(&digest).iter().take(node.config().replicas) {
        if owner.peer == local {
            continue;
        }
        let stat = Request::IsKept { digest, repository: None };
        let lacks = matches!(
            node.links().ask(owner.peer, &owner.endpoints, &stat, STAT_TIMEOUT).await,
            Ok(Answer::Stat(Found::Absent))
        );
        if !lacks {
            continue;
        }
        // What is not in the backend yet is to go to the one it was pushed for.
        let repository = node.vault().and_then(|vault| vault.queue().repository_of(&Item::Blob(digest)));
        let anchor = Request::Anchor { metainfo: Box::new(entry.metainfo.as_ref().clone()), repository };
        match node.links().ask(owner.peer, &owner.endpoints, &anchor, ANCHOR_TIMEOUT).await {
            Ok(_) => tracing::info!(%digest, origin = %owner.peer, "a copy was restored"),
            Err(error) => tracing::warn!(%digest, %error, "a copy cannot be restored"),
        }
    }
}
