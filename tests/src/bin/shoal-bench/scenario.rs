//! What is measured: fleets, wires and blobs.

use std::time::Duration;

/// Bytes in a megabyte as networks count it.
const MB: u64 = 1_000_000;

/// A fleet that pulls one blob.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// Hosts that pull, over all zones; one more has the blob.
    pub(crate) hosts: usize,
    /// Zones the hosts are spread over in turn. The blob's source is in the first.
    pub(crate) zones: usize,
    pub(crate) blob_bytes: u64,
    /// Rate of every host's wire, each way, in bits per second; `None` leaves the wires as fast as the machine.
    pub(crate) wire: Option<u64>,
    /// The links between the zones.
    pub(crate) link: Link,
}

/// A link between two zones, each way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    /// Bits per second; `None` for unlimited.
    pub(crate) rate: Option<u64>,
    /// One-way delay.
    pub(crate) delay: Duration,
}

impl Scenario {
    /// The least time in which the last host can have the blob's bytes, headers aside: they must come through its own
    /// wire, and over the links into its zone, which share them between three zones.
    pub(crate) fn bound(&self) -> Option<Duration> {
        let into_zone = self.link.rate.filter(|_| self.zones > 1).map(|rate| rate * (self.zones as u64 - 1));
        let slowest = into_zone.into_iter().chain(self.wire).min();
        slowest.map(|rate| Duration::from_secs_f64(self.blob_bytes as f64 * 8.0 / rate as f64))
    }

    /// The zone of host `number`.
    pub(crate) fn zone_of(&self, number: usize) -> usize {
        number % self.zones
    }
}

/// Every scenario of `make bench`.
pub(crate) fn all() -> Vec<Scenario> {
    let lan = |name, hosts, megabytes: u64, megabits: u64| Scenario {
        name,
        hosts,
        zones: 1,
        blob_bytes: megabytes * MB,
        wire: Some(megabits * MB),
        link: Link { rate: None, delay: Duration::ZERO },
    };
    let zoned = |name, zones, hosts, megabytes: u64, megabits: u64| Scenario {
        zones,
        link: Link { rate: Some(megabits * MB / 2), delay: Duration::from_millis(20) },
        ..lan(name, hosts, megabytes, megabits)
    };
    vec![
        lan("hosts-8", 8, 100, 100),
        lan("hosts-16", 16, 100, 50),
        lan("hosts-32", 32, 100, 25),
        lan("hosts-8-large", 8, 500, 100),
        zoned("zones-2", 2, 16, 50, 50),
        zoned("zones-3", 3, 15, 50, 50),
        Scenario { wire: None, ..lan("unshaped-4", 4, 400, 1) },
        // The data plane between two processes, with a store at either end.
        Scenario { wire: None, ..lan("unshaped-1", 1, 1000, 1) },
    ]
}
