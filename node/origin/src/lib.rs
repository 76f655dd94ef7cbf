//! Storage backends: where the mesh's blobs are anchored.
//!
//! [`Backend`] is the port; [`FsBackend`] is the first adapter, a directory. `docs/STORAGE.md` has the layout of the
//! objects, from which a mesh can be rebuilt. Every adapter passes the `conformance` suite.

mod backend;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod fs;
pub mod layout;
mod set;

pub use backend::{Backend, BackendError, BlobFile, LIST_MAX, READ_BYTES_MAX, TAG_OBJECT_BYTES_MAX};
pub use fs::FsBackend;
pub use set::{BackendRule, BackendSet, BackendSetError, BackendUrl, BackendUrlError, Found};
