//! The swarm engine: who to ask for which piece, when. Sans-IO.
//!
//! One [`Engine`](engine::Engine) a process owns every swarm and the node-wide budgets. Facts go in
//! ([`io::Input`]), wishes come out ([`io::Effect`]); payload bytes, sockets, disks, clocks and ambient randomness
//! never enter it.

mod budget;
pub mod config;
pub mod engine;
mod flow;
pub mod io;
mod keyed;
pub mod message;
mod names;
pub mod prefetch;
mod random;
mod swarm;
mod timers;
mod uploads;

pub use config::{ConfigError, EngineConfig};
pub use engine::Engine;
pub use engine::inspect::{PeerStatus, SwarmPeerStatus, SwarmStatus};
