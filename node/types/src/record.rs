//! Records: the registers that say what a repository holds.
//!
//! A repository's owners (rendezvous over the zone's origins) keep one record for each tag, manifest and blob link.
//! A record with no value is a tombstone. The record with the greatest [`RecordVersion`] wins, everywhere.

use std::collections::BTreeMap;
use std::fmt;

use crate::digest::Digest;
use crate::peer::PeerId;
use crate::reference::{RepositoryName, TagName};
use crate::signed::{Document, Signed};
use crate::time::WallTime;

/// What a record is about, inside its repository.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, minicbor::Encode, minicbor::Decode)]
pub enum RecordKind {
    /// A tag: which manifest it names.
    #[n(0)]
    Tag(#[n(0)] TagName),
    /// A manifest the repository holds: its media type and what it refers to.
    #[n(1)]
    Manifest(#[n(0)] Digest),
    /// A blob pushed or mounted into the repository.
    #[n(2)]
    Blob(#[n(0)] Digest),
}

/// Names a record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, minicbor::Encode, minicbor::Decode)]
pub struct RecordKey {
    /// The repository; its owners keep the record.
    #[n(0)]
    pub repository: RepositoryName,
    /// What in the repository.
    #[n(1)]
    pub kind: RecordKind,
}

impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            RecordKind::Tag(tag) => write!(f, "{}:{tag}", self.repository),
            RecordKind::Manifest(digest) | RecordKind::Blob(digest) => {
                write!(f, "{}@{digest}", self.repository)
            }
        }
    }
}

/// What a record says of the content it points at.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct RecordValue {
    /// The content.
    #[n(0)]
    pub digest: Digest,
    /// Media type of a manifest; `application/octet-stream` of a blob.
    #[n(1)]
    pub media_type: String,
    /// Size in bytes.
    #[n(2)]
    pub size: u64,
    /// The manifest's `subject`, which makes it a referrer.
    #[n(3)]
    pub subject: Option<Digest>,
    /// What a referrers list calls `artifactType`.
    #[n(4)]
    pub artifact_type: Option<String>,
    /// The manifest's annotations, repeated in referrers lists.
    #[n(5)]
    pub annotations: BTreeMap<String, String>,
}

/// Orders the records of one key: by counter, then time, then author, so that all members agree on the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, minicbor::Encode, minicbor::Decode)]
pub struct RecordVersion {
    /// One above the greatest counter the writer knew of.
    #[n(0)]
    pub counter: u64,
    /// When it was written, by the author's clock.
    #[n(1)]
    pub written: WallTime,
    /// Who wrote it.
    #[n(2)]
    pub author: PeerId,
}

/// One state of one register.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Record {
    /// Which register.
    #[n(0)]
    pub key: RecordKey,
    /// Which state of it.
    #[n(1)]
    pub version: RecordVersion,
    /// The value, or `None` for a tombstone.
    #[n(2)]
    pub value: Option<RecordValue>,
}

impl Document for Record {
    const DOMAIN: &'static str = "shoal/record/1";
    /// Annotations are the long part; the distribution specification lets a manifest have 4 MiB of them, but a
    /// record only keeps those of referrers.
    const PAYLOAD_BYTES_MAX: usize = 64 * 1024;
}

/// A record its author vouches for.
pub type SignedRecord = Signed<Record>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::Keypair;

    fn version(counter: u64, millis: u64, author: u8) -> RecordVersion {
        let author = PeerId::from_public_key([author; 32]);
        RecordVersion { counter, written: WallTime::from_unix_millis(millis), author }
    }

    #[test]
    fn versions_are_totally_ordered() {
        assert!(version(2, 0, 0) > version(1, 9, 9));
        assert!(version(1, 2, 0) > version(1, 1, 9));
        assert!(version(1, 1, 2) > version(1, 1, 1));
    }

    #[test]
    fn a_tombstone_round_trips() {
        let key =
            RecordKey { repository: "a/b".parse().unwrap(), kind: RecordKind::Tag("v1".parse().unwrap()) };
        let record = Record { key, version: version(1, 2, 3), value: None };
        let signed = Signed::sign(record, &Keypair::from_secret(&[4; 32]));
        assert_eq!(SignedRecord::from_bytes(&signed.to_bytes()).unwrap(), signed);
    }
}
