//! The daemon: puts the engine, the store, both planes and the backends together.
//!
//! The engine decides, the [`driver`] moves bytes, [`node::Node`] is what gateways and the command line work with.
//! Nothing here speaks the OCI API; that is the gateway's.

pub mod archive;
pub mod calls;
pub mod clock;
pub mod config;
pub mod directory;
pub mod discovery;
pub mod doctor;
pub mod driver;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod gc;
mod hot;
pub mod keys;
pub mod links;
mod locks;
pub mod manifests;
pub mod membership;
pub mod metrics;
pub mod node;
pub mod ops;
mod persistence;
mod pieces;
pub mod preheat;
pub mod pulls;
pub mod push;
pub mod queue;
pub mod reader;
pub mod records;
pub mod replicate;
pub mod rpc;
pub mod traces;
mod upkeep;
mod upstream;
pub mod vault;
mod vouchers;
