//! What the gateway counts.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// A route's template, such as `/v2/<name>/blobs/<digest>`.
pub(crate) type Route = &'static str;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: Route,
    method: &'static str,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: Route,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// Counters of a gateway. Clones share them.
#[derive(Clone)]
pub struct GatewayMetrics {
    requests: Family<RequestLabels, Counter>,
    in_flight: Gauge,
    pub(crate) connections: Gauge,
    pub(crate) bytes_in: Counter,
    pub(crate) bytes_out: Counter,
    pub(crate) broken: Counter,
    /// Answers marked stale.
    pub(crate) stale: Counter,
    rejected: Family<ReasonLabels, Counter>,
    first_byte: Family<RouteLabels, Histogram, fn() -> Histogram>,
}

impl GatewayMetrics {
    /// Counters registered in `registry`.
    pub fn new(registry: &mut Registry) -> Self {
        let own = Self::default();
        let registry = registry.sub_registry_with_prefix("gateway");
        registry.register("requests", "Requests answered", own.requests.clone());
        registry.register(
            "requests_in_flight",
            "Requests not yet answered to the end",
            own.in_flight.clone(),
        );
        registry.register("connections", "Connections open", own.connections.clone());
        registry.register_with_unit("received", "Body bytes from clients", Unit::Bytes, own.bytes_in.clone());
        registry.register_with_unit("sent", "Body bytes to clients", Unit::Bytes, own.bytes_out.clone());
        registry.register("responses_broken", "Responses broken off in mid-stream", own.broken.clone());
        registry.register(
            "stale",
            "Manifests answered with the newest known, their owners or registry being out of reach",
            own.stale.clone(),
        );
        registry.register("rejected", "Connections and requests turned away", own.rejected.clone());
        registry.register_with_unit(
            "first_byte",
            "Time from a request to the first byte of its response's body",
            Unit::Seconds,
            own.first_byte.clone(),
        );
        own
    }

    pub(crate) fn begin(&self) -> InFlight {
        self.in_flight.inc();
        InFlight { metrics: Arc::new(self.clone()) }
    }

    pub(crate) fn answered(&self, route: Route, method: &'static str, code: u16) {
        self.requests.get_or_create(&RequestLabels { route, method, code }).inc();
    }

    pub(crate) fn first_byte(&self, route: Route, waited: Duration) {
        self.first_byte.get_or_create(&RouteLabels { route }).observe(waited.as_secs_f64());
    }

    pub(crate) fn rejected(&self, reason: &'static str) {
        self.rejected.get_or_create(&ReasonLabels { reason }).inc();
    }
}

/// Counters that no registry shows.
impl Default for GatewayMetrics {
    fn default() -> Self {
        // 1 ms to 524 s.
        let histogram: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 20));
        Self {
            requests: Family::default(),
            in_flight: Gauge::default(),
            connections: Gauge::default(),
            bytes_in: Counter::default(),
            bytes_out: Counter::default(),
            broken: Counter::default(),
            stale: Counter::default(),
            rejected: Family::default(),
            first_byte: Family::new_with_constructor(histogram),
        }
    }
}

/// A request under way, until it is dropped.
pub(crate) struct InFlight {
    metrics: Arc<GatewayMetrics>,
}

impl InFlight {
    pub(crate) fn metrics(&self) -> &GatewayMetrics {
        &self.metrics
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.metrics.in_flight.dec();
    }
}
