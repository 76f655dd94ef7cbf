//! Marking: what tags reach. No I/O: who owns a [`Marker`] reads the manifests it asks for.
//!
//! A manifest is reached when a tag names it, an index that is reached names it, something reached is a referrer of it,
//! or it is a referrer of something reached. A blob is reached when a manifest that is reached names it. Repositories
//! are not told apart: what any of them reaches is kept everywhere.

use std::collections::{BTreeMap, BTreeSet};

use shoal_types::Digest;

use crate::manifests::Contents;

/// What marking begins with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roots {
    /// Manifests that tags name.
    pub tagged: BTreeSet<Digest>,
    /// Blobs that are kept without a manifest, such as files put from a command line.
    pub kept: BTreeSet<Digest>,
    /// Every manifest that a repository holds, with its subject.
    pub manifests: BTreeMap<Digest, Option<Digest>>,
}

/// Why marking cannot go on: something reached is not understood, so that what it reaches is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the manifest {digest} cannot be read: {why}")]
pub struct Unreadable {
    /// Which manifest.
    pub digest: Digest,
    /// Why.
    pub why: String,
}

/// Follows references from roots. Ask [`Marker::next`] for a manifest, read it, tell [`Marker::read`] or
/// [`Marker::unread`], until there is none.
#[derive(Debug)]
pub struct Marker {
    reached: BTreeSet<Digest>,
    todo: Vec<Digest>,
    /// Manifests that were, or are, to be read.
    asked: BTreeSet<Digest>,
    /// Manifests that must be readable: a repository says that it holds them, or a tag names them.
    known: BTreeSet<Digest>,
    referrers: BTreeMap<Digest, Vec<Digest>>,
}

impl Marker {
    /// Begins at `roots`; with `keep_untagged` every manifest that a repository holds is one.
    pub fn new(roots: &Roots, keep_untagged: bool) -> Self {
        let mut referrers: BTreeMap<Digest, Vec<Digest>> = BTreeMap::new();
        for (manifest, subject) in &roots.manifests {
            if let Some(subject) = subject {
                referrers.entry(*subject).or_default().push(*manifest);
            }
        }
        let known = roots.manifests.keys().chain(&roots.tagged).copied().collect();
        let (reached, asked, todo) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        let mut marker = Self { reached, todo, asked, known, referrers };
        for blob in &roots.kept {
            marker.reach(*blob, false);
        }
        for manifest in &roots.tagged {
            marker.reach(*manifest, true);
        }
        if keep_untagged {
            for manifest in roots.manifests.keys() {
                marker.reach(*manifest, true);
            }
        }
        marker
    }

    /// A manifest to be read, each once.
    pub fn pop(&mut self) -> Option<Digest> {
        self.todo.pop()
    }

    /// A manifest's bytes.
    ///
    /// # Errors
    /// [`Unreadable`]: nothing may be deleted.
    pub fn read(&mut self, digest: Digest, bytes: &[u8]) -> Result<(), Unreadable> {
        let contents = Contents::parse(bytes).map_err(|why| Unreadable { digest, why })?;
        for child in &contents.manifests {
            self.reach(*child, true);
        }
        for blob in contents.blobs.iter().chain(&contents.elsewhere) {
            let is_manifest = self.known.contains(blob);
            self.reach(*blob, is_manifest);
        }
        if let Some(subject) = contents.subject {
            self.reach(subject, true);
        }
        Ok(())
    }

    /// A manifest is nowhere to be found. An index may name platforms that were never pushed, and a referrer may come
    /// before its subject; but what a repository says it holds must be there.
    ///
    /// # Errors
    /// [`Unreadable`]: nothing may be deleted.
    pub fn unread(&mut self, digest: Digest) -> Result<(), Unreadable> {
        if self.known.contains(&digest) {
            return Err(Unreadable {
                digest,
                why: "a repository holds it, but its bytes are lost".to_owned(),
            });
        }
        Ok(())
    }

    /// What is reached, once there is nothing more to read.
    pub fn finish(self) -> BTreeSet<Digest> {
        self.reached
    }

    /// How much is reached so far.
    pub fn len(&self) -> usize {
        self.reached.len()
    }

    /// Whether nothing is reached so far.
    pub fn is_empty(&self) -> bool {
        self.reached.is_empty()
    }

    fn reach(&mut self, digest: Digest, is_manifest: bool) {
        // A list of its own rather than recursion: referrers of referrers can make a long chain.
        let mut met = vec![(digest, is_manifest)];
        while let Some((digest, is_manifest)) = met.pop() {
            // What was first met as a blob may be named as a manifest later; then it is read too.
            if is_manifest && self.asked.insert(digest) {
                self.todo.push(digest);
            }
            if self.reached.insert(digest) {
                let referrers = self.referrers.remove(&digest).unwrap_or_default();
                met.extend(referrers.into_iter().map(|referrer| (referrer, true)));
            }
        }
    }
}

#[cfg(test)]
#[path = "mark_tests.rs"]
mod tests;
