//! The registers of repositories: what tags name, which manifests and blobs a repository holds.
//!
//! [`ledger`] keeps the newest record of each key in a table; [`service`] writes and reads registers among the
//! owners of a repository.

pub mod ledger;
pub mod service;
