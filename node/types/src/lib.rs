//! The vocabulary of the mesh: digests, names, pieces, signed documents, identities and time.
//!
//! Nothing here does I/O, reads a clock or draws ambient randomness (a nested `clippy.toml` enforces it), so
//! that the swarm engine, the simulator and the fuzzers can share every type with the daemon.
//!
//! Values are checked where they are made: once a [`Digest`], a [`RepositoryName`] or a [`PieceIndex`] exists
//! it is valid, and no later code has to ask again.

pub mod bitfield;
mod cbor;
pub mod credential;
pub mod digest;
pub mod endpoint;
pub mod gossip;
pub mod intermediate;
pub mod join;
pub mod layout;
pub mod metainfo;
pub mod peer;
pub mod record;
pub mod reference;
pub mod rendezvous;
pub mod revocation;
pub mod signed;
pub mod time;
pub mod zone;

pub use bitfield::Bitfield;
pub use credential::{Credential, CredentialError, MeshKey, MeshPublicKey, Role, Roles, SignedCredential};
pub use digest::{Algorithm, Digest, DigestHasher, DigestParseError};
pub use endpoint::{Endpoint, EndpointParseError};
pub use gossip::{GossipMessage, Heartbeat};
pub use intermediate::{Intermediate, IssuingKey, ScopeError, SignedIntermediate};
pub use join::{JoinToken, JoinTokenError};
pub use layout::{LayoutError, PieceIndex, PieceLayout};
pub use metainfo::{
    Metainfo, MetainfoBuilder, MetainfoError, PieceHash, SignedMetainfo, VouchError, VouchedMetainfo,
};
pub use peer::{Keypair, PeerId, PeerIdParseError, Signature};
pub use record::{Record, RecordKey, RecordKind, RecordValue, RecordVersion};
pub use reference::{ImageReference, Reference, ReferenceParseError, RepositoryName, TagName};
pub use revocation::{RevocationError, RevocationList, Revoked, SignedRevocations};
pub use signed::{Document, Signed, SignedError};
pub use time::{Timestamp, WallTime};
pub use zone::{Zone, ZoneParseError};
