//! Walking the tree.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::mpsc;

use super::Inner;
use crate::backend::BackendError;

/// Entries on their way from the thread that walks to who reads the stream.
const AHEAD: usize = 1024;

/// What `pick` makes of the files under `prefix`, by their keys and sizes.
pub(super) fn stream<T: Send + 'static>(
    inner: Arc<Inner>,
    prefix: &'static str,
    pick: impl Fn(&str, u64) -> Option<T> + Send + 'static,
) -> BoxStream<'static, Result<T, BackendError>> {
    let (found, wait) = mpsc::channel(AHEAD);
    let start = async move {
        tokio::task::spawn_blocking(move || {
            let walked = inner.walk(prefix, &mut |key, size| match pick(key, size) {
                // Nobody reads on: the walk is over.
                Some(entry) => found.blocking_send(Ok(entry)).is_ok(),
                None => true,
            });
            if let Err(error) = walked {
                let _ = found.blocking_send(Err(error));
            }
        });
        futures::stream::unfold(wait, |mut wait| async move { wait.recv().await.map(|entry| (entry, wait)) })
    };
    futures::stream::once(start).flatten().boxed()
}

impl Inner {
    /// Calls `found` with the key and size of each file under `prefix` until it returns `false`; returns whether it
    /// went to the end.
    fn walk(&self, prefix: &str, found: &mut dyn FnMut(&str, u64) -> bool) -> Result<bool, BackendError> {
        let mut dirs = vec![prefix.to_owned()];
        while let Some(dir) = dirs.pop() {
            for name in self.names(&self.root.join(&dir))? {
                let key = format!("{dir}/{name}");
                let path = self.root.join(&key);
                // One that was deleted meanwhile is not there any more.
                let Some(meta) = self.optional(&path, fs::symlink_metadata(&path))? else { continue };
                if meta.is_dir() {
                    dirs.push(key);
                } else if meta.is_file() && !found(&key, meta.len()) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The names in a directory, sorted; none when it is not there.
    pub(super) fn names(&self, dir: &Path) -> Result<Vec<String>, BackendError> {
        let list = fs::read_dir(dir).and_then(|entries| {
            entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<OsString>>>()
        });
        let mut names: Vec<String> = self
            .optional(dir, list)?
            .unwrap_or_default()
            .into_iter()
            .filter_map(|name| name.into_string().ok())
            .collect();
        names.sort_unstable();
        Ok(names)
    }
}
