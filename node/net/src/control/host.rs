//! The libp2p host: its transport and its behaviours.

use std::time::Duration;

use libp2p::allow_block_list::{self, BlockedPeers};
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::Boxed;
use libp2p::core::upgrade::Version;
use libp2p::swarm::NetworkBehaviour;
use libp2p::{PeerId, StreamProtocol, Swarm, Transport, dns, gossipsub, identify, kad, ping, tcp, yamux};
use shoal_types::Keypair;

use super::config::ControlConfig;
use super::inbound::AddressLimit;
use super::records::Records;
use super::upgrade::Upgrade;
use super::{addr, gossip, introduce, push, revoke};

/// Kademlia's private protocol name.
const KAD_PROTOCOL: StreamProtocol = StreamProtocol::new("/shoal/kad/1");
/// What identify calls this protocol family. (Its stream protocols keep libp2p's names.)
pub(crate) const IDENTIFY_PROTOCOL: &str = "/shoal/id/1";
/// A connection must be encrypted, admitted and multiplexed within this time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Inbound handshakes libp2p counts at most, far above [`super::inbound`]'s own bound, at which the oldest gives way.
const PENDING_INBOUND_MAX: u32 = 4096;

/// Everything the host does. The first three only refuse connections.
#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    pub(crate) limits: connection_limits::Behaviour,
    pub(crate) per_address: AddressLimit,
    pub(crate) banned: allow_block_list::Behaviour<BlockedPeers>,
    pub(crate) kad: kad::Behaviour<Records>,
    pub(crate) gossip: gossipsub::Behaviour,
    pub(crate) identify: identify::Behaviour,
    pub(crate) ping: ping::Behaviour,
    pub(crate) introduce: push::Behaviour<introduce::Introduction>,
    pub(crate) revoke: push::Behaviour<revoke::Revoking>,
}

/// A transport that yields members.
pub(crate) type MemberTransport = Boxed<(PeerId, StreamMuxerBox)>;

/// TCP with names resolved as the system does.
pub(crate) fn tcp_transport(upgrade: Upgrade) -> MemberTransport {
    let tcp = || tcp::tokio::Transport::new(tcp::Config::default().nodelay(true));
    match dns::tokio::Transport::system(tcp()) {
        Ok(with_dns) => secured(with_dns, upgrade),
        Err(error) => {
            tracing::warn!(%error, "no usable DNS configuration: names in addresses will not be resolved");
            secured(tcp(), upgrade)
        }
    }
}

fn secured<T>(transport: T, upgrade: Upgrade) -> MemberTransport
where
    T: Transport + Send + Unpin + 'static,
    T::Output: futures::AsyncRead + futures::AsyncWrite + Send + Unpin + 'static,
    T::Error: Send + Sync + 'static,
    T::Dial: Send + 'static,
    T::ListenerUpgrade: Send + 'static,
{
    transport
        .upgrade(Version::V1)
        .authenticate(upgrade)
        .multiplex(yamux::Config::default())
        .timeout(HANDSHAKE_TIMEOUT)
        .boxed()
}

/// Builds the host. It listens and dials nowhere yet.
pub(crate) fn build(
    config: &ControlConfig,
    keypair: &Keypair,
    records: Records,
    transport: MemberTransport,
) -> Result<Swarm<Behaviour>, String> {
    let mut secret = keypair.secret();
    let libp2p_keypair =
        libp2p::identity::Keypair::ed25519_from_bytes(&mut secret).map_err(|error| error.to_string())?;
    let local = addr::to_libp2p(keypair.peer_id());
    let identify = identify::Config::new(IDENTIFY_PROTOCOL.to_owned(), libp2p_keypair.public())
        .with_agent_version(concat!("shoal/", env!("CARGO_PKG_VERSION")).to_owned())
        .with_push_listen_addr_updates(true)
        .with_hide_listen_addrs(!config.announce.is_empty())
        .with_cache_size(config.known_peers_max);
    let behaviour = Behaviour {
        limits: connection_limits::Behaviour::new(limits(config)),
        per_address: AddressLimit::new(config.connections.per_address_max),
        banned: allow_block_list::Behaviour::default(),
        kad: kademlia(config, local, records),
        gossip: gossip::behaviour(&config.gossip, libp2p_keypair)?,
        identify: identify::Behaviour::new(identify),
        ping: ping::Behaviour::new(
            ping::Config::new()
                .with_interval(config.connections.ping_interval)
                .with_timeout(config.connections.ping_timeout),
        ),
        introduce: push::Behaviour::default(),
        revoke: push::Behaviour::default(),
    };
    let host_config = libp2p::swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(config.connections.idle_timeout);
    Ok(Swarm::new(transport, behaviour, local, host_config))
}

fn limits(config: &ControlConfig) -> ConnectionLimits {
    let connections = &config.connections;
    ConnectionLimits::default()
        .with_max_established(Some(connections.established_max))
        // Those that had to give way are still counted for a moment.
        .with_max_pending_incoming(Some(PENDING_INBOUND_MAX))
        .with_max_pending_outgoing(Some(connections.pending_max))
        .with_max_established_per_peer(Some(connections.per_peer_max))
}

fn kademlia(config: &ControlConfig, local: PeerId, records: Records) -> kad::Behaviour<Records> {
    let mut kad = kad::Config::new(KAD_PROTOCOL);
    kad.set_replication_factor(config.kad.replication)
        .set_query_timeout(config.kad.query_timeout)
        .set_periodic_bootstrap_interval(Some(config.kad.bootstrap_interval))
        .set_max_packet_size(config.kad.packet_bytes_max)
        .set_provider_record_ttl(Some(config.records.ttl))
        // Announcing again is the reprovider's; values are not kept at all.
        .set_provider_publication_interval(None)
        .set_publication_interval(None)
        .set_replication_interval(None)
        .set_record_ttl(None)
        .set_caching(kad::Caching::Disabled);
    let mut behaviour = kad::Behaviour::with_config(local, records, kad);
    // Left to itself Kademlia stays a client until an address is confirmed, and a private DHT stays empty.
    behaviour.set_mode(Some(kad::Mode::Server));
    behaviour
}
