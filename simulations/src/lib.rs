//! Virtual fleets: many real engines in one process and in virtual time.
//!
//! A [`Fleet`] owns engines, a network of access links and zone links, and the truth about
//! every blob. It carries out what the engines wish, answers from the truth, and checks on the way what must never
//! happen. Everything follows from the seed: equal seeds give equal [`Fleet::trace_hash`]es.

pub mod chaos;
mod fleet;
mod network;
mod truth;

pub use fleet::{Fleet, FleetConfig, NodeId, NodeSpec, ReaderOutcome, Tally};
pub use network::{Link, NetworkConfig};
pub use truth::Truth;
