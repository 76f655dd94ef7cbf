//! Settings of the control plane. Numbers without another source are those measured in `docs/PROTOCOL.md`,
//! "Control plane".

use std::time::Duration;

use libp2p::Multiaddr;
use shoal_types::Endpoint;

use super::addr::BootstrapPeer;
use super::conduct::ConductConfig;
use crate::budget::Allowance;

/// What a control plane needs to know besides its identity.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Where to listen.
    pub listen: Vec<Multiaddr>,
    /// Addresses others should dial instead of those listened on (NAT, VPN); empty for the latter.
    pub announce: Vec<Multiaddr>,
    /// Where others reach this process's data plane, best first. Empty: the IP addresses by which peers are seen to
    /// reach this process, with [`Self::data_port`].
    pub data_endpoints: Vec<Endpoint>,
    /// The data plane's TCP port, for when no endpoints are given; `None` for a process without a data plane.
    pub data_port: Option<u16>,
    /// Doors into the mesh.
    pub bootstrap: Vec<BootstrapPeer>,
    /// Connection limits and the pruner.
    pub connections: ConnectionsConfig,
    /// The DHT.
    pub kad: KadConfig,
    /// Provider records kept for others.
    pub records: RecordsConfig,
    /// Announcing own blobs.
    pub reprovide: ReprovideConfig,
    /// Finding providers.
    pub lookup: LookupConfig,
    /// Gossip.
    pub gossip: GossipConfig,
    /// How much gossip is too much.
    pub conduct: ConductConfig,
    /// Heartbeats of origins.
    pub heartbeat: HeartbeatConfig,
    /// Peers remembered across restarts, at most.
    pub known_peers_max: usize,
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self {
            listen: vec![
                Multiaddr::from(std::net::Ipv4Addr::UNSPECIFIED).with(libp2p::multiaddr::Protocol::Tcp(4001)),
            ],
            announce: vec![],
            data_endpoints: vec![],
            data_port: None,
            bootstrap: vec![],
            connections: ConnectionsConfig::default(),
            kad: KadConfig::default(),
            records: RecordsConfig::default(),
            reprovide: ReprovideConfig::default(),
            lookup: LookupConfig::default(),
            gossip: GossipConfig::default(),
            conduct: ConductConfig::default(),
            heartbeat: HeartbeatConfig::default(),
            known_peers_max: 256,
        }
    }
}

/// Connection limits, and the pruner, which closes what gossip's ever-open streams would keep.
#[derive(Clone, Debug)]
pub struct ConnectionsConfig {
    /// Established connections at most; more are refused.
    pub established_max: u32,
    /// Connections dialled at once at most.
    pub pending_max: u32,
    /// Inbound handshakes at once. Beyond: the longest of the address that has the most gives way.
    pub handshakes_max: usize,
    /// Inbound connections of one IPv4 address or IPv6 /64; more are refused.
    pub per_address_max: usize,
    /// Inbound connections that an IPv4 address or IPv6 /64 may try. More are closed at once.
    pub arrivals: Allowance,
    /// Connections with one peer at most (two processes that dial each other at once make two).
    pub per_peer_max: u32,
    /// The pruner closes connections above this number, down to it.
    pub prune_target: usize,
    /// Younger connections are not pruned: a query may be using them. To be longer than any query takes: what Kademlia
    /// was to tell a peer whose connection has been closed meanwhile it forgets without a word (of the copies of 40
    /// records, 51 to 72 % arrived among sixty hosts that closed connections after two seconds, 99 % after thirty).
    pub prune_age_min: Duration,
    /// Between two passes of the pruner.
    pub prune_interval: Duration,
    /// A connection no protocol uses is closed after this long.
    pub idle_timeout: Duration,
    /// Between two pings on a connection. One that is dead without anybody having said so (its machine vanished, the link
    /// was cut) is closed when two in a row stay unanswered: TCP by itself would wait for a quarter of an hour.
    pub ping_interval: Duration,
    /// How long an answer may take.
    pub ping_timeout: Duration,
    /// With fewer peers than this, bootstrap and known peers are dialled again.
    pub lonely_below: usize,
    /// Shortest and longest wait between two rounds of such dialling.
    pub redial_delay_min: Duration,
    /// See [`Self::redial_delay_min`].
    pub redial_delay_max: Duration,
    /// Known peers dialled in one round.
    pub redial_peers_max: usize,
}

impl Default for ConnectionsConfig {
    fn default() -> Self {
        Self {
            established_max: 512,
            pending_max: 128,
            handshakes_max: 64,
            per_address_max: 256,
            arrivals: Allowance { burst: 512, per_second: 64.0 },
            per_peer_max: 2,
            prune_target: 64,
            prune_age_min: Duration::from_secs(30),
            prune_interval: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(10),
            lonely_below: 4,
            redial_delay_min: Duration::from_secs(1),
            redial_delay_max: Duration::from_secs(60),
            redial_peers_max: 16,
        }
    }
}

/// Kademlia.
#[derive(Clone, Debug)]
pub struct KadConfig {
    /// How many peers keep each record, and how many providers one answer names.
    pub replication: std::num::NonZeroUsize,
    /// A query is given up after this long.
    pub query_timeout: Duration,
    /// The routing table is refreshed this often.
    pub bootstrap_interval: Duration,
    /// Largest message in bytes. Above 16 KiB, libp2p's default, because an answer names [`Self::replication`]
    /// providers and as many closer peers, each with several addresses.
    pub packet_bytes_max: usize,
}

impl Default for KadConfig {
    fn default() -> Self {
        Self {
            replication: std::num::NonZeroUsize::new(10).unwrap_or(std::num::NonZeroUsize::MIN),
            query_timeout: Duration::from_secs(20),
            bootstrap_interval: Duration::from_secs(300),
            packet_bytes_max: 128 << 10,
        }
    }
}

/// Provider records kept for others.
#[derive(Clone, Debug)]
pub struct RecordsConfig {
    /// Records at most.
    pub records_max: usize,
    /// Records of one publisher at most.
    pub per_publisher_max: usize,
    /// Providers of one blob at most; another takes the place of the one that expires first.
    pub per_key_max: usize,
    /// Addresses of one record at most; the rest is cut off.
    pub addresses_max: usize,
    /// Bytes of one address at most; longer ones are cut out.
    pub address_bytes_max: usize,
    /// Providers handed out at once: a random sample.
    pub sample: usize,
    /// A record lives this long unless renewed. Two and a quarter renewal intervals, so that one may be missed.
    pub ttl: Duration,
    /// Changes waiting to be persisted at most; more are not persisted, and counted.
    pub unsaved_max: usize,
}

impl Default for RecordsConfig {
    fn default() -> Self {
        Self {
            records_max: 500_000,
            per_publisher_max: 150_000,
            per_key_max: 256,
            addresses_max: 8,
            address_bytes_max: 160,
            sample: 16,
            ttl: Duration::from_secs(45 * 60),
            unsaved_max: 100_000,
        }
    }
}

/// Announcing own blobs.
#[derive(Clone, Debug)]
pub struct ReprovideConfig {
    /// Each blob is announced again once in this time.
    pub interval: Duration,
    /// The first announcement of a blob waits a random time below this.
    pub first_delay_max: Duration,
    /// An announcement that failed is repeated after this long.
    pub retry_delay: Duration,
    /// Announcements under way at most.
    pub in_flight_max: usize,
    /// Shortest time between the starts of two announcements.
    pub gap_min: Duration,
    /// Own blobs announced at most; more are refused, and counted.
    pub keys_max: usize,
}

impl Default for ReprovideConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(20 * 60),
            first_delay_max: Duration::from_millis(500),
            retry_delay: Duration::from_secs(10),
            in_flight_max: 16,
            gap_min: Duration::from_millis(2),
            keys_max: 200_000,
        }
    }
}

/// Finding providers.
#[derive(Clone, Debug)]
pub struct LookupConfig {
    /// A lookup starts after a random time below this, so that a flash crowd does not ask the node nearest to the
    /// key all at once (it served 302 of 399 lookups).
    pub start_jitter_max: Duration,
    /// After the first provider, a lookup goes on for this long.
    pub linger: Duration,
    /// A lookup ends after this long whatever it found.
    pub timeout: Duration,
    /// Lookups at once at most; more end at once with nothing, and are counted.
    pub concurrent_max: usize,
    /// Providers one lookup yields at most.
    pub providers_max: usize,
}

impl Default for LookupConfig {
    fn default() -> Self {
        Self {
            start_jitter_max: Duration::from_millis(50),
            linger: Duration::from_millis(200),
            timeout: Duration::from_secs(10),
            concurrent_max: 256,
            providers_max: 32,
        }
    }
}

/// Gossipsub.
#[derive(Clone, Debug)]
pub struct GossipConfig {
    /// Peers of the mesh of a topic: wanted.
    pub mesh: usize,
    /// At least.
    pub mesh_low: usize,
    /// At most.
    pub mesh_high: usize,
    /// Messages queued for one peer at most; more are dropped by gossipsub.
    pub queue: usize,
    /// A message is known as a duplicate for this long.
    pub duplicate_cache: Duration,
    /// Between two looks at the mesh.
    pub heartbeat_interval: Duration,
}

impl Default for GossipConfig {
    fn default() -> Self {
        Self {
            mesh: 8,
            mesh_low: 6,
            mesh_high: 12,
            queue: 500,
            duplicate_cache: Duration::from_secs(180),
            heartbeat_interval: Duration::from_secs(1),
        }
    }
}

/// Heartbeats of origins.
#[derive(Clone, Debug)]
pub struct HeartbeatConfig {
    /// Between two heartbeats of an origin.
    pub interval: Duration,
    /// How often a member, chosen by chance, is told which origins are alive. Gossip loses messages while its mesh forms.
    pub introduce_interval: Duration,
    /// Shortest time between two heartbeats: a new subscriber is answered with one.
    pub interval_min: Duration,
    /// An origin is forgotten after this many intervals without a heartbeat.
    pub missed_max: u32,
    /// Clocks of members may differ by this much.
    pub clock_skew_max: Duration,
    /// Origins known at most; more are ignored.
    pub origins_max: usize,
}

impl Default for HeartbeatConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(5),
            introduce_interval: Duration::from_secs(5),
            interval_min: Duration::from_millis(500),
            missed_max: 3,
            clock_skew_max: Duration::from_secs(120),
            origins_max: 256,
        }
    }
}
