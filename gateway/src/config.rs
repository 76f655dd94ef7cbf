//! What can be set.

use std::time::Duration;

/// Limits and switches of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayConfig {
    /// Most connections at once. Beyond: the one that has waited longest for a request gives way; while none waits,
    /// further ones wait in the listener's backlog.
    pub connections_max: usize,
    /// Most connections of one address, loopback addresses aside. Further ones are closed at once.
    pub connections_per_address_max: usize,
    /// Most requests at once, their response bodies included. Further ones are answered with 429.
    pub requests_max: usize,
    /// Longest wait for a whole request head, from the connection's opening or the last response on: also how long a
    /// connection may be idle.
    pub header_timeout: Duration,
    /// Longest time a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// Longest silence of a client inside its request's body.
    pub body_timeout: Duration,
    /// Longest time a client may take none of a response's bytes.
    pub write_timeout: Duration,
    /// After the shutdown signal: how long responses under way may take.
    pub drain_timeout: Duration,
    /// Largest manifest in bytes. The specification asks for at least 4 MiB ("Pushing Manifests").
    pub manifest_bytes_max: usize,
    /// Largest blob in bytes that may be pushed; `None` leaves it to the mesh.
    pub blob_bytes_max: Option<u64>,
    /// Most ranges in one request. More are answered with 416.
    pub ranges_max: usize,
    /// Most entries of a page of tags, repositories or referrers.
    pub page_max: usize,
    /// Whether tags, manifests and blobs can be deleted; 405 otherwise.
    pub delete_enabled: bool,
    /// Whether notifications of pushes are taken; 404 otherwise.
    pub preheat_enabled: bool,
    /// What `Retry-After` says on a 429 of the gateway's own.
    pub retry_after: Duration,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            connections_per_address_max: 1024,
            requests_max: 1024,
            header_timeout: Duration::from_secs(60),
            handshake_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(120),
            drain_timeout: Duration::from_secs(30),
            manifest_bytes_max: 4 << 20,
            blob_bytes_max: None,
            ranges_max: 16,
            page_max: 1000,
            delete_enabled: true,
            preheat_enabled: false,
            retry_after: Duration::from_secs(1),
        }
    }
}
