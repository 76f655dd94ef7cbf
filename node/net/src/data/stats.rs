//! What the data plane counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that only goes up.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The count since the start.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn inc(&self) {
        self.add(1);
    }
}

macro_rules! counters {
    ($($name:ident: $help:literal),* $(,)?) => {
        /// Counters of one data plane, since its start.
        #[derive(Debug, Default)]
        pub struct DataStats { $(#[doc = $help] pub $name: Counter),* }

        impl DataStats {
            /// Name, meaning and value of every counter, for metrics.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> + '_ {
                [$((stringify!($name), $help, self.$name.get())),*].into_iter()
            }
        }
    };
}

counters! {
    accepted: "TCP connections accepted.",
    refused_full: "TCP connections closed at once: connections_max.",
    refused_per_ip: "TCP connections closed at once: connections_per_ip_max.",
    refused_too_often: "TCP connections closed at once: their address connects too often (arrivals).",
    handshakes_evicted: "Inbound handshakes that gave way to a newer one: handshakes_max.",
    refused_banned: "Members turned away: banned.",
    accept_errors: "Failures of accept(2), such as no more file descriptors.",
    handshakes_failed: "Inbound handshakes that failed or timed out: strangers and garbage.",
    connected: "Connections established, either way.",
    superseded: "Connections given up for another one with the same peer.",
    dials: "Dials begun.",
    dials_failed: "Dials that failed.",
    protocol_errors: "Connections ended because the peer broke the protocol.",
    banned: "Peers banned because they kept breaking the protocol (offences).",
    timeouts: "Connections ended because the peer was silent.",
    overflows: "Connections ended because the peer did not read what was queued for it.",
    payload_bytes_in: "Payload bytes received, wanted or not.",
    payload_bytes_out: "Payload bytes sent.",
    payload_bytes_discarded: "Payload bytes received after their request was taken back.",
    pieces_in: "Pieces received whole.",
    pieces_out: "Pieces sent whole.",
    frames_in: "Frames received.",
    control_frames_out: "Control frames sent.",
    pool_waits: "Times a connection stopped reading because the buffer pool was exhausted.",
    calls_in: "Calls received.",
    calls_out: "Calls made.",
    calls_refused: "Calls answered with busy: too many open ones.",
    reads_failed: "Pieces that could not be read for sending.",
}
