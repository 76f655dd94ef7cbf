//! The OCI distribution API (v1.1) over the mesh.

pub mod port;
