//! What a scrape copies from the parts of a daemon.

use axum::http::HeaderMap;
use axum::response::Response;
use prometheus_client::registry::Registry;
use shoal_net::control::ControlHandle;

use super::samples::Samples;
use super::{process, table, text};
use crate::node::Node;

/// A node's metrics.
pub(crate) async fn node(node: &Node, headers: &HeaderMap) -> Response {
    let mut samples = Samples::default();
    identity(node, &mut samples);
    transfer(node, &mut samples).await;
    store(node, &mut samples);
    origin(node, &mut samples);
    control(node.control(), &mut samples);
    for (name, help, value) in node.data().stats().iter() {
        samples.one(&table::data_row(name, help), value as f64);
    }
    for (reason, value) in node.tls().rejections().iter() {
        samples.labelled(&table::HANDSHAKES_REJECTED, &[("rejection", reason.name())], value as f64);
    }
    process::sample(&mut samples);
    let copied = samples.into_registry();
    text::answer(headers, &[&node.registry().lock(), &copied])
}

/// The metrics of a bootstrap peer.
pub(crate) fn door(handle: &ControlHandle, headers: &HeaderMap) -> Response {
    let mut samples = Samples::default();
    control(handle, &mut samples);
    process::sample(&mut samples);
    let copied: Registry = samples.into_registry();
    text::answer(headers, &[&copied])
}

fn control(handle: &ControlHandle, samples: &mut Samples) {
    for (name, help, value) in handle.stats().iter() {
        samples.one(&table::control_row(name, help), value as f64);
    }
}

fn identity(node: &Node, samples: &mut Samples) {
    let identity = node.identity();
    let credential = identity.credential.value();
    let (peer, zone, roles) =
        (node.peer_id().to_string(), credential.zone.to_string(), credential.roles.to_string());
    samples.labelled(&table::NODE_INFO, &[("peer", &peer), ("zone", &zone), ("roles", &roles)], 1.0);
    samples.one(&table::CREDENTIAL_EXPIRY, credential.not_after.unix_millis() as f64 / 1000.0);
}

async fn transfer(node: &Node, samples: &mut Samples) {
    samples.one(&table::CONNECTIONS, node.links().connected().len() as f64);
    samples.one(&table::ORIGINS, node.control().origins().len() as f64);
    samples.one(&table::PREHEATING, node.preheating().active() as f64);
    samples.one(&table::MEMBERS, node.directory().len() as f64);
    for (phase, time) in node.pulls().spent() {
        samples.labelled(&table::PHASES, &[("phase", phase.name())], time.as_secs_f64());
    }
    let config = node.config();
    samples.one(&table::BUFFER_LIMIT, config.buffer_memory.as_u64() as f64);
    if let Some(buffered) = node.driver().look(|engine| engine.buffered_bytes()).await {
        samples.one(&table::BUFFER, buffered as f64);
    }
    for (direction, scope, limit) in [
        ("in", "node", config.rate_in),
        ("out", "node", config.rate_out),
        ("in", "zone", config.zone_rate_in),
        ("out", "zone", config.zone_rate_out),
    ] {
        let limit = limit.map_or(f64::INFINITY, |limit| limit.as_u64() as f64);
        samples.labelled(&table::RATE_LIMIT, &[("direction", direction), ("scope", scope)], limit);
    }
}

fn store(node: &Node, samples: &mut Samples) {
    let usage = node.store().usage();
    samples.one(&table::STORE_BYTES, usage.used_bytes as f64);
    samples.one(&table::STORE_CAPACITY, usage.capacity_bytes as f64);
    samples.one(&table::STORE_BLOBS, usage.blobs as f64);
    samples.one(&table::STORE_UPLOADS, usage.uploads as f64);
    samples.one(&table::EVICTED_BYTES, usage.evicted_bytes as f64);
    samples.labelled(&table::STORE_REFUSED, &[("want", "space")], usage.refused_no_space as f64);
    samples.labelled(&table::STORE_REFUSED, &[("want", "uploads")], usage.refused_uploads as f64);
    samples.one(&table::PIECES_LOST, usage.pieces_lost as f64);
}

fn origin(node: &Node, samples: &mut Samples) {
    samples.one(&table::RECORDS_SETTLED, f64::from(u8::from(node.records().is_settled())));
    let recovered = node.records().archive().map_or(0, |archive| archive.recovered());
    samples.one(&table::RECORDS_RECOVERED, recovered as f64);
    let Some(vault) = node.vault() else { return };
    let queue = vault.queue().status(node.clock().wall());
    samples.labelled(&table::QUEUE, &[("kind", "blob")], queue.blobs as f64);
    samples.labelled(&table::QUEUE, &[("kind", "record")], queue.records as f64);
    samples.one(&table::QUEUE_AGE, queue.oldest_ms as f64 / 1000.0);
    samples.one(&table::QUEUE_RETRIES, queue.retries as f64);
    if let Some(replication) = node.replication() {
        let status = replication.status();
        samples.one(&table::REPLICATION_WAITING, status.waiting as f64);
        samples.one(&table::REPLICATION_AGE, status.oldest_ms as f64 / 1000.0);
        samples.one(&table::REPLICATION_COPIED, status.copied as f64);
        samples.one(&table::REPLICATION_BYTES, status.bytes as f64);
        samples.one(&table::REPLICATION_RETRIES, status.retries as f64);
    }
    for member in vault.backends().all() {
        let (traffic, name) = (&member.traffic, member.backend.describe());
        let labels = [("backend", name.as_str())];
        samples.labelled(&table::BACKEND_READ, &labels, traffic.read_bytes() as f64);
        samples.labelled(&table::BACKEND_WRITTEN, &labels, traffic.written_bytes() as f64);
        samples.labelled(&table::BACKEND_FAILURES, &labels, traffic.failures() as f64);
    }
}
