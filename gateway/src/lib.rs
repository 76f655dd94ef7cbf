//! The OCI distribution API (v1.1) over the mesh.
//!
//! [`serve`] runs the API on a listener; [`port::Mesh`] is what stands behind it. Requests go through
//! `server` (connections, limits, TLS) → `service` (admission, metrics, access) → `routes` (one module for each kind of
//! resource). Bodies stream both ways and are never recoded.

pub mod access;
pub mod auth;
mod body;
mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod holdings;
mod manifest;
#[cfg(any(test, feature = "testing", feature = "fuzzing"))]
pub mod memory;
mod metrics;
mod mirror;
mod node_mesh;
pub mod port;
mod range;
mod route;
mod routes;
mod seats;
mod server;
mod service;
mod socket;
mod tls;

pub use config::GatewayConfig;
pub use metrics::GatewayMetrics;
pub use mirror::Mirrors;
pub use node_mesh::NodeMesh;
pub use server::{Gateway, serve};
pub use tls::{ServerTls, TlsError, TlsFiles};
