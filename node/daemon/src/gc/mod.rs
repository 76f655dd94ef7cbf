//! Garbage collection: deletes from an origin's backends what no tag reaches, while pushes and pulls go on.
//!
//! Each origin marks for itself, over the records of *all* origins of the mesh: it lists them, follows tags through
//! indexes, manifests and referrers ([`mark`]), and compares with what its backends hold. What is unreached is written
//! down ([`condemned`]), and deleted by a later collection that still finds it unreached once the grace period is over.
//!
//! Nothing is deleted when marking is incomplete: when an origin that has ever written a record cannot be asked, when one
//! has not read its backend yet, or when something reached cannot be read.
//!
//! A push can use a blob that is there already and condemned. Therefore every push of a blob or manifest first has all
//! origins forget that what it needs was unreached ([`crate::rpc::Request::Retain`]), and only then looks whether it is
//! there. An origin deletes each blob under a lock that `Retain` takes too.

pub mod condemned;
pub mod mark;
mod run;

pub(crate) use run::PUT_REPOSITORY;

use serde::{Deserialize, Serialize};
use shoal_types::{Digest, PeerId};

/// Digests named in a report; the counts are of all.
pub const SAMPLE: usize = 500;

/// What a collection is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode)]
pub struct Options {
    /// Delete nothing and remember nothing.
    #[n(0)]
    pub dry_run: bool,
    /// Milliseconds that something must have been unreached, as earlier collections saw it.
    #[n(1)]
    pub grace_ms: u64,
    /// Keep every manifest that a repository holds, with a tag or without.
    #[n(2)]
    pub keep_untagged: bool,
    /// Origins that are gone for good: what only they knew is given up.
    #[n(3)]
    pub without: Vec<PeerId>,
}

/// How far a collection at all origins is, at the one that was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Origins that have collected.
    pub origins_done: u64,
    /// Origins in all; 0 when no collection has been asked of this origin.
    pub origins: u64,
    /// What is being done at present; empty when nothing is.
    pub step: String,
    /// How often, or to how many things, the step has been done.
    pub done: u64,
}

/// A number of things, and their bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
pub struct Amount {
    /// How many.
    #[n(0)]
    pub count: u64,
    /// Bytes of all of them.
    #[n(1)]
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// What a collection at one origin found and did.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
pub struct Report {
    /// The origin.
    #[n(0)]
    pub origin: String,
    /// Its zone.
    #[n(1)]
    pub zone: String,
    /// Why nothing was deleted: the marking is incomplete, or it could not be done.
    #[n(2)]
    pub incomplete: Option<String>,
    /// Tags that were followed.
    #[n(3)]
    pub tags: u64,
    /// Manifests and blobs that are reached, anywhere in the mesh.
    #[n(4)]
    pub reached: u64,
    /// What this origin's backends hold.
    #[n(5)]
    pub held: Amount,
    /// What of it nothing reaches.
    #[n(6)]
    pub unreached: Amount,
    /// What of that has been unreached for longer than the grace period: it is deleted now, unless this is a dry run.
    #[n(7)]
    pub due: Amount,
    /// What was deleted.
    #[n(8)]
    pub deleted: Amount,
    /// Manifests that were taken out of repositories for which this origin answers.
    #[n(9)]
    pub manifests_deleted: u64,
    /// Deletions that failed; a later collection tries again.
    #[n(10)]
    pub failed: u64,
    /// Why the last of them did.
    #[n(11)]
    pub last_error: Option<String>,
    /// Some of what is due (of a dry run), or was deleted.
    #[n(12)]
    pub digests: Vec<Digest>,
    /// How long it took, in milliseconds.
    #[n(13)]
    pub took_ms: u64,
}
