//! What the control plane counts.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! stats {
    ($($(#[doc = $doc:literal])+ $field:ident),* $(,)?) => {
        /// Counters since the start, and gauges ([`ControlStats::is_gauge`]).
        #[derive(Debug, Default)]
        pub struct ControlStats { $($(#[doc = $doc])+ pub $field: Stat),* }

        impl ControlStats {
            /// Name, meaning and value of all of them, for metrics.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($field), concat!($($doc),+), self.$field.get())),*].into_iter()
            }
        }
    };
}

impl ControlStats {
    /// Whether the figure of this name goes up and down, rather than only up.
    pub fn is_gauge(name: &str) -> bool {
        ["peers", "routing_peers", "origins", "records", "provided"].contains(&name)
    }
}

/// One number.
#[derive(Debug, Default)]
pub struct Stat(AtomicU64);

impl Stat {
    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn count(&self) {
        self.add(1);
    }

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

stats! {
    /// Peers connected.
    peers,
    /// Peers in the routing table.
    routing_peers,
    /// Origins alive.
    origins,
    /// Provider records kept for others.
    records,
    /// Own blobs announced.
    provided,
    /// Records refused (no blob's key, publisher over its share).
    records_refused,
    /// Lists of revocations that were put in force.
    revocations_taken,
    /// Lists of revocations that were refused: old ones, or not of this mesh.
    revocations_refused,
    /// Members disconnected because their credential expired or was revoked.
    expelled,
    /// Records displaced by others.
    records_displaced,
    /// Records that lapsed.
    records_lapsed,
    /// Connections opened.
    connections_opened,
    /// Connections closed.
    connections_closed,
    /// Inbound connections that failed in their handshake (the TLS set-up counts them by reason) or were over a limit.
    inbound_failed,
    /// Inbound connections closed at once: their address connects too often.
    inbound_too_often,
    /// Inbound handshakes that had to give way to later ones.
    handshakes_evicted,
    /// Dials that failed.
    outbound_failed,
    /// Connections closed because pings on them stayed unanswered.
    connections_silent,
    /// Connections the pruner closed.
    pruned,
    /// Rounds of dialling bootstrap and known peers.
    redials,
    /// Lookups begun.
    lookups,
    /// Lookups that found a provider.
    lookup_hits,
    /// Lookups that found none.
    lookup_misses,
    /// Lookups refused because too many were under way.
    lookups_refused,
    /// Hosts that lookups asked, of those lookups that ended.
    lookup_requests,
    /// Providers yielded.
    providers_found,
    /// Providers whose data endpoints had to be asked of themselves.
    providers_asked,
    /// Announcements that reached peers.
    announcements,
    /// Announcements that reached nobody.
    announcements_failed,
    /// Own blobs refused because too many are announced.
    provide_refused,
    /// Messages published.
    gossip_published,
    /// Messages nobody could be sent.
    gossip_unsent,
    /// Messages believed and passed on.
    gossip_accepted,
    /// Messages held against whoever passed them on.
    gossip_rejected,
    /// Messages neither believed nor passed on.
    gossip_ignored,
    /// News of an origin that says too much: neither believed nor passed on.
    gossip_damped,
    /// Members banned for their gossip.
    gossip_banned,
    /// Heartbeats learned from introductions.
    introduced,
    /// Introductions refused (forged, or too often).
    introductions_refused,
    /// Events the daemon was too slow to take.
    events_dropped,
    /// Changes that could not be remembered.
    unsaved,
}
