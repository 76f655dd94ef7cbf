//! Storage backends: where the mesh's blobs are anchored.
//!
//! [`Backend`] is the port; its adapters are a directory (`fs:`), object stores (`s3://` by Amazon's SDK, `azblob://`,
//! `gcs://` and `webhdfs://` by OpenDAL), and two that only read: another registry (`registry://`) and any web server.
//! `docs/STORAGE.md` has the layout of the objects, from which a mesh can be rebuilt. Every adapter passes the
//! `conformance` suite against a real server.

mod backend;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod dal;
mod fs;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod http;
pub mod layout;
mod limited;
mod objects;
mod registry;
mod s3;
mod set;
mod text;
mod throttle;
mod upstream;
mod url;
mod web;

pub use backend::{
    Backend, BackendError, BlobFile, BlobStream, Content, Mark, READ_BYTES_MAX, RECORD_OBJECT_BYTES_MAX,
    StoredRecord, UpstreamManifest,
};
pub use fs::FsBackend;
pub use limited::Traffic;
pub use set::{BackendSet, BackendSetError, Found, Member};
pub use upstream::{UpstreamRule, UpstreamRuleError};
pub use url::{
    BackendRule, BackendUrl, BackendUrlError, COMMON_OPTIONS, OptionHelp, Scheme, WRITE_OPTIONS, WriteMode,
};
