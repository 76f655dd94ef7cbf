//! Walking the tree.

use std::ffi::OsString;
use std::path::Path;
use std::{fs, io};

use shoal_types::{Algorithm, Digest, RepositoryName};

use super::Inner;
use crate::backend::{BackendError, BlobFile};
use crate::layout;

impl Inner {
    pub(super) fn list(&self, after: Option<Digest>, limit: usize) -> Result<Vec<BlobFile>, BackendError> {
        let mut found = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let dir = self.root.join(layout::BLOBS).join(algorithm.name());
            let after = after.filter(|after| after.algorithm() >= algorithm);
            if after.is_some_and(|after| after.algorithm() > algorithm) {
                continue;
            }
            let after_hex = after.map(|after| after.hex()).unwrap_or_default();
            for fan in self.names(&dir)? {
                if fan.as_str() < after_hex.get(..2).unwrap_or_default() {
                    continue;
                }
                for name in self.names(&dir.join(&fan))? {
                    let Ok(digest) = format!("{}:{name}", algorithm.name()).parse::<Digest>() else {
                        continue;
                    };
                    if after.is_some_and(|after| digest <= after) {
                        continue;
                    }
                    let path = dir.join(&fan).join(&name);
                    // One that was deleted meanwhile is not there any more.
                    let Some(meta) = self.optional(&path, fs::metadata(&path))? else { continue };
                    found.push(BlobFile { digest, size: meta.len() });
                    if found.len() >= limit {
                        return Ok(found);
                    }
                }
            }
        }
        Ok(found)
    }

    pub(super) fn list_repositories(
        &self,
        after: Option<&RepositoryName>,
        limit: usize,
    ) -> Result<Vec<RepositoryName>, BackendError> {
        let mut found = Vec::new();
        let mut prefixes = vec![String::new()];
        while let Some(prefix) = prefixes.pop() {
            let dir = self.root.join(layout::TAGS).join(&prefix);
            for name in self.names(&dir)? {
                if name != layout::TAGS_OF_REPOSITORY {
                    prefixes.push(if prefix.is_empty() { name } else { format!("{prefix}/{name}") });
                } else if let Ok(repository) = prefix.parse::<RepositoryName>()
                    && !self.names(&dir.join(name))?.is_empty()
                {
                    found.push(repository);
                }
            }
        }
        // Bytewise order of whole names is not the order of the walk: `a-b` comes before `a/b`.
        found.sort_unstable();
        found.retain(|repository| after.is_none_or(|after| repository > after));
        found.truncate(limit);
        Ok(found)
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
