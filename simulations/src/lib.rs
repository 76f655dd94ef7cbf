//! Virtual fleets: many shipping engines in one process and in virtual time.
//!
//! A [`Fleet`] owns engines, a flow-level network of access links and zone links, a model of discovery, and the truth
//! about every blob. It carries out what the engines wish, answers from the truth, and checks on the way what must
//! never happen. Everything follows from the seed: equal seeds give equal [`Fleet::trace_hash`]es.

mod discovery;
mod fleet;
pub mod fuzz;
mod network;
mod queue;
pub mod report;
pub mod scenario;
mod slab;
mod timeline;
mod trace;
mod truth;

pub use discovery::LookupConfig;
pub use fleet::{Cut, DiskSpec, Fleet, FleetConfig, NodeId, NodeSpec, ReaderOutcome, Tally};
pub use network::{LinkSpec, NetworkConfig};
pub use timeline::Timeline;
pub use trace::TraceFilter;
pub use truth::Truth;
