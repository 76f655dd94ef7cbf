//! A client in the middle of a download, whose progress a test watches while it hurts the mesh.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use http::StatusCode;
use sha2::{Digest as _, Sha256};
use tokio::task::JoinHandle;

use crate::registry::Registry;

/// Reads one blob in one single GET, in the background.
#[derive(Debug)]
pub struct BackgroundReader {
    received: Arc<AtomicU64>,
    task: JoinHandle<Result<String>>,
}

impl BackgroundReader {
    /// Starts reading.
    pub fn start(registry: &Registry, digest: &str) -> Self {
        let received = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(read(registry.clone(), digest.to_owned(), Arc::clone(&received)));
        Self { received, task }
    }

    /// Bytes that have come.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Whether it has ended, well or not.
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    /// Reads to the end; gives the digest of what came.
    ///
    /// # Errors
    /// When the client noticed anything: another status than 200, or a body that broke off.
    pub async fn finish(self) -> Result<String> {
        self.task.await.context("the reader panicked")?
    }
}

async fn read(registry: Registry, digest: String, received: Arc<AtomicU64>) -> Result<String> {
    let mut answer = registry.blob(&digest).await?.expect(StatusCode::OK).await?;
    let mut hash = Sha256::new();
    while let Some(part) = answer.part().await? {
        hash.update(&part);
        received.fetch_add(part.len() as u64, Ordering::Relaxed);
    }
    Ok(format!("sha256:{}", data_encoding::HEXLOWER.encode(&hash.finalize())))
}
