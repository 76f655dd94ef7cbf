//! What the gateway counts.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use shoal_daemon::metrics::table;

use crate::seats::Busy;

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
struct RefusalLabels {
    refusal: &'static str,
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
    rejected: Family<RefusalLabels, Counter>,
    first_byte: Family<RouteLabels, Histogram, fn() -> Histogram>,
}

impl GatewayMetrics {
    /// Counters registered in `registry`.
    pub fn new(registry: &mut Registry) -> Self {
        let own = Self::default();
        table::GATEWAY_REQUESTS.register(registry, own.requests.clone());
        table::GATEWAY_IN_FLIGHT.register(registry, own.in_flight.clone());
        table::GATEWAY_CONNECTIONS.register(registry, own.connections.clone());
        table::GATEWAY_RECEIVED.register(registry, own.bytes_in.clone());
        table::GATEWAY_SENT.register(registry, own.bytes_out.clone());
        table::GATEWAY_BROKEN.register(registry, own.broken.clone());
        table::GATEWAY_STALE.register(registry, own.stale.clone());
        table::GATEWAY_REJECTED.register(registry, own.rejected.clone());
        table::GATEWAY_FIRST_BYTE.register(registry, own.first_byte.clone());
        own
    }

    pub(crate) fn begin(&self, busy: Busy) -> InFlight {
        self.in_flight.inc();
        InFlight { metrics: Arc::new(self.clone()), _busy: busy }
    }

    pub(crate) fn answered(&self, route: Route, method: &'static str, code: u16) {
        self.requests.get_or_create(&RequestLabels { route, method, code }).inc();
    }

    pub(crate) fn first_byte(&self, route: Route, waited: Duration) {
        self.first_byte.get_or_create(&RouteLabels { route }).observe(waited.as_secs_f64());
    }

    pub(crate) fn rejected(&self, refusal: &'static str) {
        self.rejected.get_or_create(&RefusalLabels { refusal }).inc();
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
    /// Its connection does not give way.
    _busy: Busy,
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
