//! Writes behind: one batch at a time on a thread that may block.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_types::Digest;
use tokio::task::JoinHandle;

use super::persist::{Change, ControlPersistence, PersistError};

/// Changes in one batch at most.
pub(crate) const BATCH_MAX: usize = 4096;

pub(crate) struct Saver {
    persistence: Arc<dyn ControlPersistence>,
    writing: Option<(usize, JoinHandle<Result<(), PersistError>>)>,
    /// Changes of own blobs, the last of each; bounded by the number of own blobs that come and go in one batch.
    provided: BTreeMap<Digest, Change>,
}

impl Saver {
    pub(crate) fn new(persistence: Arc<dyn ControlPersistence>) -> Self {
        Self { persistence, writing: None, provided: BTreeMap::new() }
    }

    /// Notes a change of an own blob.
    pub(crate) fn provided(&mut self, digest: Digest, change: Change) {
        self.provided.insert(digest, change);
    }

    /// Whether the last batch is still being written.
    pub(crate) fn is_busy(&self) -> bool {
        self.writing.as_ref().is_some_and(|(_, writing)| !writing.is_finished())
    }

    /// Starts to write `changes` and those noted. Returns how many of the batch before were lost.
    pub(crate) async fn write(&mut self, mut changes: Vec<Change>) -> u64 {
        let lost = self.finish().await;
        while changes.len() < BATCH_MAX {
            let Some((_, change)) = self.provided.pop_first() else { break };
            changes.push(change);
        }
        if !changes.is_empty() {
            let persistence = self.persistence.clone();
            let count = changes.len();
            let writing = tokio::task::spawn_blocking(move || persistence.apply(changes));
            self.writing = Some((count, writing));
        }
        lost
    }

    /// Whether changes wait for the next batch.
    pub(crate) fn has_more(&self) -> bool {
        !self.provided.is_empty()
    }

    /// Waits for the batch being written. Returns how many of its changes were lost.
    pub(crate) async fn finish(&mut self) -> u64 {
        let Some((count, writing)) = self.writing.take() else { return 0 };
        let why = match writing.await {
            Ok(Ok(())) => return 0,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::warn!(%why, count, "the control plane could not remember what changed");
        u64::try_from(count).unwrap_or(u64::MAX)
    }
}
