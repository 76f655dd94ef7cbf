//! The network: the only crate that opens sockets between members and the only one that names libp2p.
//!
//! Two planes share one identity (see [`identity`]) and one TLS setup (see [`tls`]): whoever comes through a
//! handshake of either is a member of the mesh. Bulk goes over [`data`], on a port of its own.

pub mod budget;
pub mod control;
pub mod data;
#[cfg(feature = "hostile")]
#[doc(hidden)]
pub mod fuzzing;
mod handshakes;
pub mod identity;
pub mod revocation;
pub mod tls;
