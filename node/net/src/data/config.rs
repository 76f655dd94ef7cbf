//! What can be set on a data plane.

use std::net::SocketAddr;
use std::time::Duration;

use shoal_types::Endpoint;

use super::protocol::METAINFO_BYTES_MAX;
use crate::budget::Allowance;
use crate::tls::SetupError;

/// The data plane's configuration. Every limit is one of this process unless it says "a connection".
#[derive(Clone, Debug)]
pub struct DataConfig {
    /// Where to listen. Port 0 takes a free one (see `DataHandle::local_addr`).
    pub listen: SocketAddr,
    /// Where others dial this process, best first, at most `protocol::ENDPOINTS_MAX`; told to every peer.
    pub announce: Vec<Endpoint>,
    /// From TCP's connect or accept to the other's Hello. Ends slow handshakes.
    pub handshake_timeout: Duration,
    /// How long one address is tried alone before the next one joins (RFC 8305 §5 recommends 250 ms).
    pub dial_stagger: Duration,
    /// Connections of both directions, handshakes included. Beyond: inbound ones are closed, dials fail.
    pub connections_max: usize,
    /// Inbound connections of one IPv4 address or IPv6 /64, handshakes included. Beyond: closed.
    pub connections_per_ip_max: usize,
    /// Inbound connections that an IPv4 address or IPv6 /64 may try. More are closed at once.
    pub arrivals: Allowance,
    /// Inbound handshakes at once. Beyond: the longest of the address that has the most gives way.
    pub handshakes_max: usize,
    /// Between pings.
    pub ping_interval: Duration,
    /// A peer silent for so long while this side reads, or that takes no byte for so long while this side writes, is
    /// gone. Also TCP's user timeout.
    pub silence_max: Duration,
    /// Events waiting for the daemon. Beyond: connections stop reading.
    pub events_max: usize,
    /// Bytes of control frames waiting on a connection. Beyond: the peer is dropped.
    pub control_queue_bytes_max: usize,
    /// Pieces waiting to be sent on a connection. Beyond: `send_piece` fails.
    pub piece_queue_max: usize,
    /// Bytes of piece buffers for receiving.
    pub buffer_bytes_max: usize,
    /// Pieces in memory for sending. Beyond: sends wait.
    pub pieces_in_memory_max: usize,
    /// Pieces a peer may have begun at once on a connection. Beyond: protocol error.
    pub partial_pieces_max: usize,
    /// Requests taken back whose payload may still come, remembered on a connection. Beyond: the oldest are
    /// forgotten, and their payload would be a protocol error.
    pub taken_back_max: usize,
    /// Open calls of each direction on a connection. Beyond: busy.
    pub calls_max: usize,
    /// Bytes of a call or an answer. The default holds the largest metainfo.
    pub call_bytes_max: usize,
    /// How often a peer may break the protocol, which ends its connection each time. Beyond: it is banned.
    pub offences: Allowance,
    /// For how long.
    pub offence_ban: Duration,
    /// Banned peers remembered. Beyond: the ban that ends first is lifted.
    pub bans_max: usize,
    /// Unsent bytes in a socket's buffer before it counts as full (`TCP_NOTSENT_LOWAT`): what a control frame waits
    /// behind in the kernel.
    pub notsent_bytes_max: u32,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 4002)),
            announce: vec![],
            handshake_timeout: Duration::from_secs(10),
            dial_stagger: Duration::from_millis(250),
            connections_max: 512,
            connections_per_ip_max: 64,
            arrivals: Allowance { burst: 512, per_second: 64.0 },
            handshakes_max: 64,
            ping_interval: Duration::from_secs(15),
            silence_max: Duration::from_secs(60),
            events_max: 1024,
            control_queue_bytes_max: 16 * 1024 * 1024 + METAINFO_BYTES_MAX,
            piece_queue_max: 256,
            buffer_bytes_max: 256 * 1024 * 1024,
            pieces_in_memory_max: 32,
            partial_pieces_max: 4,
            taken_back_max: 4096,
            calls_max: 64,
            call_bytes_max: METAINFO_BYTES_MAX + 64 * 1024,
            offences: Allowance { burst: 5, per_second: 1.0 / 60.0 },
            offence_ban: Duration::from_secs(300),
            bans_max: 4096,
            notsent_bytes_max: 128 * 1024,
        }
    }
}

/// Why a data plane cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address cannot be listened on.
    #[error("cannot listen on {addr}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] SetupError),
    /// No randomness for the process's instance number.
    #[error("the operating system gives no randomness")]
    Randomness,
}
