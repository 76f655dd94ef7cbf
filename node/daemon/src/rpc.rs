//! Questions members ask each other over the data plane: the bodies of its calls.
//!
//! CBOR, like every control message. A body is decoded from a slice whose length the data plane has bounded;
//! answers repeat nothing of a question.

use minicbor::bytes::{ByteArray, ByteVec};
use shoal_types::record::SignedRecord;
use shoal_types::{
    Digest, Endpoint, Metainfo, PeerId, RecordKey, RecordKind, RecordValue, RecordVersion, RepositoryName,
    SignedCredential, VouchedMetainfo, WallTime,
};

/// Most records in one page.
pub const PAGE_MAX: u32 = 1000;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub enum Request {
    /// "Fetch this blob from me and keep it." Asked of an origin by who pushes; the answer comes when the blob is on
    /// stable storage there.
    #[n(0)]
    Anchor {
        /// The blob as the asker cut and hashed it. The origin checks every piece and the whole digest.
        #[n(0)]
        metainfo: Box<Metainfo>,
        /// The repository it is pushed to, for backends chosen by repository.
        #[n(1)]
        repository: Option<RepositoryName>,
    },
    /// "Do you have this blob, and how large is it?" An origin looks into its backend too.
    #[n(1)]
    Stat {
        /// The blob.
        #[n(0)]
        digest: Digest,
        /// The repository it is asked for.
        #[n(1)]
        repository: Option<RepositoryName>,
    },
    /// "Give this register a new value." Asked of an owner of the repository by a pusher; the owner picks the
    /// version, signs, and answers when a majority of the owners have it.
    #[n(2)]
    WriteRecord {
        /// Which register.
        #[n(0)]
        key: RecordKey,
        /// Its new value; `None` deletes.
        #[n(1)]
        value: Option<RecordValue>,
        /// The place of the write among all of this register, picked by who asks: whoever of the owners carries it out,
        /// and however often, it is one write.
        #[n(2)]
        stamp: Option<Stamp>,
    },
    /// "Keep this record." Asked of an owner by another owner.
    #[n(3)]
    PutRecord {
        /// The record.
        #[n(0)]
        record: SignedRecord,
    },
    /// "What is the newest record of this key that you know?" Anybody may be asked; owners know best.
    #[n(4)]
    GetRecord {
        /// Which register.
        #[n(0)]
        key: RecordKey,
    },
    /// A page of a repository's records of one kind, tombstones included, in key order.
    #[n(5)]
    ListRecords {
        /// The repository.
        #[n(0)]
        repository: RepositoryName,
        /// What to list.
        #[n(1)]
        what: Listing,
        /// Only keys after this one.
        #[n(2)]
        after: Option<RecordKind>,
        /// Most records wanted, at most [`PAGE_MAX`].
        #[n(3)]
        limit: u32,
    },
    /// A page of the names of repositories that hold anything, in order.
    #[n(6)]
    ListRepositories {
        /// Only names after this one.
        #[n(0)]
        after: Option<RepositoryName>,
        /// Most names wanted, at most [`PAGE_MAX`].
        #[n(1)]
        limit: u32,
    },
    /// "What is the newest record of this key that you yourself keep?" Asked of an origin by one that has become an
    /// owner; who is asked asks nobody else.
    #[n(7)]
    PeekRecord {
        /// Which register.
        #[n(0)]
        key: RecordKey,
    },
    /// As `ListRepositories`, with those of which only tombstones are left: for who copies them.
    #[n(8)]
    ListAllRepositories {
        /// Only names after this one.
        #[n(0)]
        after: Option<RepositoryName>,
        /// Most names wanted, at most [`PAGE_MAX`].
        #[n(1)]
        limit: u32,
    },
    /// "My credential is about to expire: issue the next one." Asked of an origin that keeps an issuing key.
    #[n(9)]
    Renew,
    /// "What is the credential of this author of records?" Asked of a member that passed on a record of an origin that
    /// is gone.
    #[n(10)]
    GetCredential {
        /// The author.
        #[n(0)]
        peer: PeerId,
    },
    /// "What does the registry that this repository is pulled through from name by this tag or digest?" Asked of an owner
    /// of the repository; it asks the registry unless it has just done so.
    #[n(11)]
    ResolveUpstream {
        /// The tag or manifest.
        #[n(0)]
        key: RecordKey,
    },
    /// "Have this blob of a repository that is pulled through." Asked of an owner of the blob, again and again while it is
    /// under way.
    #[n(12)]
    FetchUpstream {
        /// The blob.
        #[n(0)]
        digest: Digest,
        /// The repository it is of.
        #[n(1)]
        repository: RepositoryName,
        /// It is a manifest: registries keep the two apart.
        #[n(2)]
        manifest: bool,
        /// Only say whether it is here.
        #[n(3)]
        look: bool,
    },
    /// "Do this with an upload that began at you." Asked by a gateway of another one, for a client whose requests a load
    /// balancer spreads.
    #[n(13)]
    Upload {
        /// The upload.
        #[n(0)]
        id: ByteArray<16>,
        /// The repository it is to.
        #[n(1)]
        repository: RepositoryName,
        /// What to do.
        #[n(2)]
        step: UploadStep,
    },
    /// "Delete what no tag reaches." Asked of an origin by another, on behalf of whoever runs both.
    #[n(16)]
    Collect {
        /// How.
        #[n(0)]
        options: crate::gc::Options,
    },
    /// "Whoever pushes is about to need these: forget that nothing reached them." Asked of all origins.
    #[n(17)]
    Retain {
        /// Blobs and manifests.
        #[n(0)]
        digests: Vec<Digest>,
    },
    /// "Do you know every record that your backends have?" Asked of an origin by another, before it marks.
    #[n(18)]
    ReadyToMark,
    /// "Keep this record of my zone, as it is." Asked of an owner by an origin of another zone, once it has all that the
    /// record reaches.
    #[n(19)]
    Import {
        /// The record.
        #[n(0)]
        record: SignedRecord,
    },
    /// "I have made this copy: you need not." Asked of the other owners of the own zone.
    #[n(20)]
    Replicated {
        /// What was copied, and where to.
        #[n(0)]
        job: crate::replicate::Job,
        /// The version that is there now.
        #[n(1)]
        version: RecordVersion,
    },
    /// "What have you received, from which zone?" Asked by a member that shows the mesh to somebody.
    #[n(21)]
    Traffic,
    /// "Fetch this image, or say how far you are with it." Asked of a gateway, again and again while it is under way.
    #[n(22)]
    Preheat {
        /// The image.
        #[n(0)]
        job: crate::preheat::Job,
    },
    /// "What time is it?" For comparing clocks (`shoal doctor`).
    #[n(24)]
    Time,
    /// "Dial me where you have heard that I am, and look for a probe that I provide." (`shoal doctor`)
    #[n(25)]
    Examine {
        /// The digest of nothing, provided by the asker.
        #[n(0)]
        probe: Digest,
    },
    /// "Is this blob in your backend, or on its way there?" A copy in the store that may be evicted does not count. The answer
    /// is that to [`Self::Stat`].
    #[n(26)]
    IsKept {
        /// The blob.
        #[n(0)]
        digest: Digest,
        /// The repository it is asked for.
        #[n(1)]
        repository: Option<RepositoryName>,
    },
}

/// A try to connect.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Dialled {
    /// Where.
    #[n(0)]
    pub endpoint: Endpoint,
    /// Why it failed; `None` when it did not.
    #[n(1)]
    pub error: Option<String>,
}

/// The part of a record's version that the asker picks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Stamp {
    /// One above the greatest counter that a majority of the owners knew of.
    #[n(0)]
    pub counter: u64,
    /// When the asker began, by its clock.
    #[n(1)]
    pub written: WallTime,
}

/// What is done with an upload. Each may be asked twice.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub enum UploadStep {
    /// Say where it stands.
    #[n(0)]
    Status,
    /// Add bytes.
    #[n(1)]
    Append {
        /// Where they begin.
        #[n(0)]
        offset: u64,
        /// The bytes.
        #[n(1)]
        bytes: ByteVec,
    },
    /// Make it a blob.
    #[n(2)]
    Finish {
        /// The blob.
        #[n(0)]
        digest: Digest,
    },
    /// Throw it away.
    #[n(3)]
    Cancel,
}

/// What became of an upload.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub enum UploadState {
    /// It stands at so many bytes.
    #[n(0)]
    At {
        /// Bytes.
        #[n(0)]
        offset: u64,
    },
    /// It is a blob now, or thrown away.
    #[n(1)]
    Done,
    /// There is none.
    #[n(2)]
    Unknown,
    /// Another request is writing to it.
    #[n(3)]
    Busy,
    /// The bytes begin elsewhere than where it stands.
    #[n(4)]
    Elsewhere {
        /// Where the next byte belongs.
        #[n(0)]
        expected: u64,
    },
    /// Its bytes have another digest; it is gone.
    #[n(5)]
    Digest {
        /// The one they have.
        #[n(0)]
        got: Digest,
    },
    /// No room on a disk.
    #[n(6)]
    NoSpace {
        /// What happened.
        #[n(0)]
        why: String,
    },
    /// It is over the largest blob.
    #[n(7)]
    TooLarge {
        /// What happened.
        #[n(0)]
        why: String,
    },
    /// Too few origins have it: finish again.
    #[n(8)]
    Unsafe {
        /// What happened.
        #[n(0)]
        why: String,
    },
    /// The process may not push there.
    #[n(9)]
    Denied {
        /// What happened.
        #[n(0)]
        why: String,
    },
    /// Its store failed.
    #[n(10)]
    Failed {
        /// What happened.
        #[n(0)]
        why: String,
    },
}

/// Which records of a repository are listed.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub enum Listing {
    /// All tags.
    #[n(0)]
    Tags,
    /// The manifests whose subject is this one.
    #[n(1)]
    Referrers(#[n(0)] Digest),
    /// All manifests.
    #[n(2)]
    Manifests,
    /// Records of every kind, in the order of the ledger's keys: for who copies them.
    #[n(3)]
    All,
}

/// What an owner found of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub enum Found {
    /// It has the blob, of this many bytes.
    #[n(0)]
    Size(#[n(0)] u64),
    /// It does not have the blob, and its backend does not either.
    #[n(1)]
    Absent,
    /// It does not have the blob, and its backend does not answer.
    #[n(2)]
    Unsure,
}

/// What a member has received and given, in payload bytes since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Traffic {
    /// Received from peers and origins, by their zone: at most 65 entries.
    #[n(0)]
    pub received: Vec<(String, u64)>,
    /// Read from its own backend.
    #[n(1)]
    pub backend: u64,
    /// Sent to peers.
    #[n(2)]
    pub served: u64,
    /// Swarms it takes part in.
    #[n(3)]
    pub swarms: u64,
}

/// How far a blob of an upstream registry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub enum Fetched {
    /// All of its bytes, so many, can be had from this process or another origin.
    #[n(0)]
    Here(#[n(0)] u64),
    /// It is being fetched: ask again.
    #[n(1)]
    Underway,
    /// The registry does not have it.
    #[n(2)]
    Absent,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub enum Answer {
    /// To `Anchor`: it is kept, and this is the metainfo the origin vouches for.
    #[n(0)]
    Anchored(#[n(0)] Box<VouchedMetainfo>),
    /// To `Stat`.
    #[n(1)]
    Stat(#[n(0)] Found),
    /// To `WriteRecord`, `PutRecord` and `Import`: it is kept; to `GetRecord`: the newest known. For a `PutRecord` of an older
    /// version the newer one that is kept instead.
    #[n(2)]
    Record(#[n(0)] Option<SignedRecord>),
    /// To `ListRecords`.
    #[n(3)]
    Records {
        /// The records, in key order.
        #[n(0)]
        records: Vec<SignedRecord>,
        /// There are more behind the last one.
        #[n(1)]
        more: bool,
    },
    /// To `ListRepositories`.
    #[n(4)]
    Repositories {
        /// The names, in order.
        #[n(0)]
        names: Vec<RepositoryName>,
        /// There are more behind the last one.
        #[n(1)]
        more: bool,
    },
    /// To `Renew`: the next credential; to `GetCredential`: the author's, if it is known.
    #[n(6)]
    Credential(#[n(0)] Option<SignedCredential>),
    /// To `ResolveUpstream`.
    #[n(7)]
    Upstream {
        /// The manifest; `None`: the registry has none.
        #[n(0)]
        value: Option<RecordValue>,
        /// The registry does not answer now; this is what it said last.
        #[n(1)]
        stale: bool,
        /// What is recorded of it, for the asker to remember: it may be all that is left to ask one day.
        #[n(2)]
        record: Option<Box<SignedRecord>>,
    },
    /// To `FetchUpstream`.
    #[n(8)]
    Fetched(#[n(0)] Fetched),
    /// To `Upload`.
    #[n(9)]
    Upload(#[n(0)] UploadState),
    /// To `Time`.
    #[n(18)]
    Time(#[n(0)] WallTime),
    /// To `Examine`.
    #[n(19)]
    Examined {
        /// The asker's endpoints as far as they are known.
        #[n(0)]
        dialled: Vec<Dialled>,
        /// Whether a lookup in the DHT said that the asker provides the probe.
        #[n(1)]
        found: bool,
    },
    /// To `Collect`.
    #[n(11)]
    Collected(#[n(0)] Box<crate::gc::Report>),
    /// To `Retain`, `ReadyToMark` and `Replicated`.
    #[n(12)]
    Ready,
    /// To `Preheat`.
    #[n(16)]
    Preheat(#[n(0)] crate::preheat::State),
    /// To `Traffic`: counts since the process started.
    #[n(15)]
    Traffic(#[n(0)] Traffic),
    /// It could not be done.
    #[n(5)]
    Failed {
        /// What kind of failure.
        #[n(0)]
        kind: Failure,
        /// What happened, for logs and people.
        #[n(1)]
        message: String,
    },
}

/// Kinds of failure a caller can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(index_only)]
pub enum Failure {
    /// The asker may not do this.
    #[n(0)]
    Denied,
    /// The question does not make sense to this process: it is not an origin, or the body is malformed.
    #[n(1)]
    Refused,
    /// Try another owner, or later.
    #[n(2)]
    Unavailable,
    /// No room on disk.
    #[n(3)]
    NoSpace,
    /// What was to be anchored does not have its digest.
    #[n(4)]
    Corrupt,
}

/// Encodes a body.
pub fn encode<T: minicbor::Encode<()>>(body: &T) -> Vec<u8> {
    #[expect(
        clippy::expect_used,
        reason = "writing to a Vec cannot fail and our encoders have no errors of their own"
    )]
    minicbor::to_vec(body).expect("encoding to memory cannot fail")
}

/// Decodes a body.
///
/// # Errors
/// A text for logs: whoever sent it is broken or hostile.
pub fn decode<T: for<'b> minicbor::Decode<'b, ()>>(bytes: &[u8]) -> Result<T, String> {
    minicbor::decode(bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preheat::State;
    use proptest::prelude::*;
    use shoal_types::{Algorithm, Keypair, Record, Signed};

    #[test]
    fn bodies_round_trip() {
        let metainfo = Metainfo::of_bytes(Algorithm::Sha256, b"x").unwrap();
        let digest = metainfo.digest();
        let repository: RepositoryName = "a/b".parse().unwrap();
        let author = Keypair::from_secret(&[7; 32]);
        let key = RecordKey { repository: repository.clone(), kind: RecordKind::Tag("1".parse().unwrap()) };
        let version = RecordVersion { counter: 3, written: WallTime::default(), author: author.peer_id() };
        let record: SignedRecord = Signed::sign(Record { key, version, value: None }, &author);
        let requests = [
            Request::Anchor { metainfo: Box::new(metainfo), repository: Some(repository.clone()) },
            Request::Stat { digest, repository: None },
            Request::IsKept { digest, repository: Some(repository.clone()) },
            Request::ListRecords {
                repository: repository.clone(),
                what: Listing::Referrers(digest),
                after: Some(RecordKind::Manifest(digest)),
                limit: 7,
            },
            Request::ListRepositories { after: Some(repository.clone()), limit: 1 },
            Request::ListAllRepositories { after: Some(repository.clone()), limit: 1 },
            Request::Traffic,
            Request::PeekRecord {
                key: RecordKey { repository: repository.clone(), kind: RecordKind::Blob(digest) },
            },
            Request::ResolveUpstream {
                key: RecordKey { repository: repository.clone(), kind: RecordKind::Manifest(digest) },
            },
            Request::FetchUpstream { digest, repository: repository.clone(), manifest: true, look: false },
            Request::Upload {
                id: [7; 16].into(),
                repository: repository.clone(),
                step: UploadStep::Append { offset: 3, bytes: vec![1, 2].into() },
            },
            Request::Collect {
                options: crate::gc::Options {
                    dry_run: true,
                    grace_ms: 5,
                    keep_untagged: true,
                    without: vec![author.peer_id()],
                },
            },
            Request::Retain { digests: vec![digest, digest] },
            Request::ReadyToMark,
            Request::Import { record: record.clone() },
            Request::Replicated {
                job: crate::replicate::Job { key: record.value().key.clone(), zone: "eu".parse().unwrap() },
                version: record.value().version,
            },
            Request::Preheat {
                job: crate::preheat::Job { repository, digest, platforms: vec!["linux/arm64".into()] },
            },
        ];
        for request in requests {
            assert_eq!(decode::<Request>(&encode(&request)).unwrap(), request);
        }
        let traffic = Traffic { received: vec![("eu".into(), 7)], backend: 1, served: 2, swarms: 3 };
        for answer in [
            Answer::Traffic(traffic),
            Answer::Failed { kind: Failure::NoSpace, message: "full".into() },
            Answer::Upstream { value: None, stale: true, record: None },
            Answer::Fetched(Fetched::Here(7)),
            Answer::Upload(UploadState::Digest { got: digest }),
            Answer::Collected(Box::new(crate::gc::Report { tags: 3, ..Default::default() })),
            Answer::Ready,
            Answer::Preheat(State::Fetching { done_bytes: 1, total_bytes: 2 }),
            Answer::Preheat(State::Failed { why: "no".into() }),
        ] {
            assert_eq!(decode::<Answer>(&encode(&answer)).unwrap(), answer);
        }
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes: Vec<u8>) {
            let _ = decode::<Request>(&bytes);
            let _ = decode::<Answer>(&bytes);
        }
    }
}
