//! The harness of the end-to-end tests: real `shoal` processes, real container clients, and what both need.
//!
//! What the harness assumes about the program (arguments, the ready line, the ops API's JSON, metric names) is in
//! [`contract`] and nowhere else.

pub mod capture;
pub mod clients;
pub mod clouds;
pub mod collector;
pub mod contract;
pub mod flood;
pub mod http;
pub mod image;
pub mod linear;
pub mod mesh;
pub mod metrics;
pub mod ports;
pub mod process;
pub mod reader;
pub mod registry;
pub mod system;
pub mod tar;
pub mod tokens;
pub mod wait;

pub use image::{Dialect, Image, ImageBuilder};
pub use mesh::{Mesh, MeshBuilder, NodeSpec};
pub use registry::Registry;
pub use shoal_origin::conformance::servers::Server;
pub use wait::wait_until;
