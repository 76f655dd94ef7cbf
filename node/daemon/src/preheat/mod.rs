//! Preheating: chosen gateways fetch a whole image before anybody pulls it.
//!
//! The node that is asked (`order`) resolves the tag once, chooses gateways, and has each of them fetch what the digest
//! names (`here`). They fetch as a pull does, through the swarms of their zone, so that each byte crosses a link between
//! zones about once; but in no order and without a reader's window, so that what clients pull meanwhile comes first.
//! Everything may be asked for twice: what is there is not fetched again.

mod here;
mod order;
mod platform;
mod scope;

use serde::{Deserialize, Serialize};
use shoal_types::{Digest, PeerId, RepositoryName, Zone};

pub(crate) use here::Here;
pub use order::{Full, Order};
pub(crate) use order::{Orders, named, too_busy};
pub use platform::{PLATFORMS_MAX, Platform, PlatformParseError, Platforms};
pub use scope::{Scope, ScopeParseError, Take, Zones};

/// Longest reason that is passed on, in characters.
const WHY_CHARS_MAX: usize = 300;

/// An image that a node is to fetch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, minicbor::Encode, minicbor::Decode)]
pub struct Job {
    /// The repository it is of.
    #[n(0)]
    pub repository: RepositoryName,
    /// Its manifest or index.
    #[n(1)]
    pub digest: Digest,
    /// For which platforms, as [`Platforms::parse`] reads them.
    #[n(2)]
    pub platforms: Vec<String>,
}

/// How far a node is with an image.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// Others come first, or it has not been asked yet.
    #[n(0)]
    Waiting,
    /// It fetches.
    #[n(1)]
    Fetching {
        /// Bytes that are there.
        #[n(0)]
        done_bytes: u64,
        /// Bytes in all, as far as the manifests that have been read say.
        #[n(1)]
        total_bytes: u64,
    },
    /// All of it is there.
    #[n(2)]
    Done {
        /// Bytes of the image's blobs.
        #[n(0)]
        total_bytes: u64,
    },
    /// It cannot be had there.
    #[n(3)]
    Failed {
        /// Why.
        #[n(0)]
        why: String,
    },
    /// The node does not answer (any more). Only said by who asks.
    #[n(4)]
    Gone {
        /// What happened.
        #[n(0)]
        why: String,
    },
}

impl State {
    /// The same with a reason of bounded length: it may be a peer's.
    fn clipped(self) -> Self {
        match self {
            Self::Failed { why } => Self::Failed { why: why.chars().take(WHY_CHARS_MAX).collect() },
            other => other,
        }
    }

    /// Whether nothing more comes.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Waiting | Self::Fetching { .. })
    }

    /// Bytes that are there, and bytes in all.
    pub fn bytes(&self) -> (u64, u64) {
        match self {
            Self::Fetching { done_bytes, total_bytes } => (*done_bytes, *total_bytes),
            Self::Done { total_bytes } => (*total_bytes, *total_bytes),
            Self::Waiting | Self::Failed { .. } | Self::Gone { .. } => (0, 0),
        }
    }
}

/// A node that is to fetch an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Who.
    pub peer: PeerId,
    /// Its zone.
    pub zone: Zone,
    /// How far it is.
    #[serde(flatten)]
    pub state: State,
}

/// How far a preheat is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The image, by its digest once that is known.
    pub image: String,
    /// The nodes chosen so far.
    pub nodes: Vec<NodeReport>,
    /// Nothing more comes.
    pub finished: bool,
    /// Why nobody fetches it.
    pub error: Option<String>,
}
