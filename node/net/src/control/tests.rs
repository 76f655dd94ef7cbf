//! Real hosts over loopback TCP, on ports the system picks. Nothing waits for a fixed time: each step waits for
//! its condition, and fails when that does not come.

mod hostile;
mod silence;

use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_types::{
    Credential, Digest, Endpoint, GossipMessage, Heartbeat, Keypair, MeshKey, PeerId, Role, Roles, Signed,
    WallTime, Zone,
};
use tokio::sync::mpsc;

use super::persist::ControlPersistence;
use super::*;
use crate::identity::Identity;
use crate::tls::{TlsSetup, system_clock};

mod scale;

/// A condition that takes longer than this will not come. Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

struct Node {
    handle: ControlHandle,
    events: mpsc::Receiver<ControlEvent>,
    setup: TlsSetup,
    address: Multiaddr,
    keypair: Keypair,
}

fn keypair(n: u8) -> Keypair {
    Keypair::from_secret(&[n; 32])
}

fn peer(n: u8) -> PeerId {
    keypair(n).peer_id()
}

fn endpoint(n: u8) -> Endpoint {
    format!("127.0.0.1:{}", 20_000 + u16::from(n)).parse().unwrap()
}

fn identity(n: u8, role: Role, mesh: &MeshKey) -> Identity {
    let keypair = keypair(n);
    let now = system_clock()();
    let credential = mesh.issue(Credential {
        peer: keypair.peer_id(),
        roles: Roles::NONE.with(role),
        zone: "zone-a".parse().unwrap(),
        namespaces: vec![],
        not_before: WallTime::default(),
        not_after: now.saturating_add(Duration::from_secs(3600)),
        issuer: None,
    });
    Identity { keypair, credential, mesh: mesh.public() }
}

fn mesh() -> MeshKey {
    MeshKey::from_secret(&[200; 32])
}

fn config(n: u8, doors: &[&Node]) -> ControlConfig {
    let mut config = ControlConfig {
        listen: vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()],
        data_endpoints: vec![endpoint(n)],
        bootstrap: doors.iter().map(|door| door.address.to_string().parse().unwrap()).collect(),
        ..ControlConfig::default()
    };
    config.connections.redial_delay_min = Duration::from_millis(100);
    config.connections.redial_delay_max = Duration::from_secs(1);
    config.reprovide.retry_delay = Duration::from_millis(200);
    config.reprovide.first_delay_max = Duration::from_millis(50);
    // Nothing here may depend on waiting for the next heartbeat.
    config.heartbeat.interval = Duration::from_secs(60);
    config.gossip.heartbeat_interval = Duration::from_millis(200);
    config
}

async fn start_as(config: ControlConfig, own: Identity, kept: Arc<dyn ControlPersistence>) -> Node {
    let keypair = own.keypair.clone();
    let setup = TlsSetup::new(own, system_clock(), TlsSetup::admit_members()).unwrap();
    let (handle, mut events) = Control::start(config, setup.clone(), kept).await.unwrap();
    let address = loop {
        match events.recv().await.unwrap() {
            ControlEvent::Listening { address } => break address,
            _ => continue,
        }
    };
    Node { handle, events, setup, address, keypair }
}

async fn start(n: u8, role: Role, doors: &[&Node]) -> Node {
    start_as(config(n, doors), identity(n, role, &mesh()), MemoryPersistence::shared()).await
}

/// Waits until `condition` holds.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "never came: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn until_connected(node: &Node, peers: usize) {
    until("peers", async || {
        let status = node.handle.status().await.unwrap();
        status.peers.len() >= peers && status.routing_peers >= peers.min(2)
    })
    .await;
}

async fn find(node: &Node, digest: Digest, wanted: PeerId) -> Provider {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut lookup = node.handle.find_providers(digest);
        while let Some(provider) = lookup.next().await {
            if provider.peer == wanted {
                return provider;
            }
        }
        assert!(Instant::now() < deadline, "the provider was never found");
    }
}

async fn next_gossip(node: &mut Node, wanted: impl Fn(&GossipMessage) -> bool) -> PeerId {
    let told = async {
        loop {
            match node.events.recv().await.expect("the control plane runs") {
                ControlEvent::Gossip { source, message } if wanted(&message) => return source,
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("gossip never came")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_hosts_join_by_one_door_and_do_without_it_afterwards() {
    let door = start(1, Role::Bootstrap, &[]).await;
    let mut nodes = Vec::new();
    for n in 2..=8 {
        nodes.push(start(n, Role::Node, &[&door]).await);
    }
    for node in &nodes {
        until_connected(node, 2).await;
    }
    let digest = Digest::sha256(b"before");
    nodes[0].handle.provide(digest).await;
    let found = find(&nodes[5], digest, peer(2)).await;
    assert_eq!(found.endpoints, [endpoint(2)]);
    assert_eq!(found.zone, Some("zone-a".parse::<Zone>().unwrap()));

    door.handle.shutdown().await;
    for node in &nodes {
        until("the door is gone", async || {
            node.handle.status().await.unwrap().peers.iter().all(|other| other.peer != peer(1))
        })
        .await;
    }
    assert_eq!(find(&nodes[6], digest, peer(2)).await.endpoints, [endpoint(2)]);
    let later = Digest::sha256(b"after");
    nodes[1].handle.provide(later).await;
    assert_eq!(find(&nodes[4], later, peer(3)).await.endpoints, [endpoint(3)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lookup_for_what_nobody_has_ends_and_says_that_it_was_answered() {
    let door = start(11, Role::Bootstrap, &[]).await;
    let node = start(12, Role::Node, &[&door]).await;
    until_connected(&node, 1).await;
    until("an answer", async || {
        let mut lookup = node.handle.find_providers(Digest::sha256(b"nobody's"));
        assert_eq!(lookup.next().await, None);
        lookup.answered()
    })
    .await;
    let alone = start(13, Role::Node, &[]).await;
    let mut lookup = alone.handle.find_providers(Digest::sha256(b"nobody's"));
    assert_eq!(lookup.next().await, None);
    assert!(!lookup.answered(), "an empty DHT answers nothing");
    assert!(node.handle.stats().lookup_misses.get() >= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_host_remembers_records_blobs_and_peers() {
    let kept = MemoryPersistence::shared();
    let door = start(21, Role::Bootstrap, &[]).await;
    let holder = start_as(config(22, &[&door]), identity(22, Role::Node, &mesh()), kept.clone()).await;
    let other = start(23, Role::Node, &[&door]).await;
    until_connected(&holder, 2).await;
    let (own, foreign) = (Digest::sha256(b"own"), Digest::sha256(b"foreign"));
    holder.handle.provide(own).await;
    other.handle.provide(foreign).await;
    until("announced", async || holder.handle.stats().announcements.get() == 1).await;
    until("a record of the other", async || holder.handle.status().await.unwrap().records == 1).await;
    holder.handle.shutdown().await;
    door.handle.shutdown().await;
    let remembered = kept.load().unwrap();
    assert_eq!(remembered.provided.len(), 1);
    assert!(remembered.provided[0].announced.is_some());
    assert_eq!(remembered.providers.len(), 1);
    assert_eq!(remembered.providers[0].provider, peer(23));

    // Without any bootstrap peer: the known peer is dialled.
    let again = start_as(config(22, &[]), identity(22, Role::Node, &mesh()), kept).await;
    let status = again.handle.status().await.unwrap();
    assert_eq!((status.records, status.provided), (1, 1));
    until_connected(&again, 1).await;
    assert_eq!(find(&other, own, peer(22)).await.endpoints, [endpoint(22)]);
    assert_eq!(find(&again, foreign, peer(23)).await.endpoints, [endpoint(23)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn news_of_an_origin_reaches_everybody_and_newcomers_know_it_at_once() {
    let door = start(31, Role::Bootstrap, &[]).await;
    let origin = start(32, Role::Origin, &[&door]).await;
    origin.handle.set_heartbeat(true).await;
    let mut nodes = Vec::new();
    for n in 33..=36 {
        nodes.push(start(n, Role::Node, &[&door]).await);
    }
    for node in &nodes {
        until("the origin is known", async || {
            node.handle.origins().iter().any(|o| o.peer == peer(32) && o.endpoints == [endpoint(32)])
        })
        .await;
    }
    for node in nodes.iter().chain([&origin]) {
        until("gossip's mesh", async || {
            node.handle.status().await.unwrap().peers.iter().any(|other| other.in_gossip_mesh)
        })
        .await;
    }
    let news = GossipMessage::BlobAdded { digest: Digest::sha256(b"new"), size: 3 };
    until("published", async || origin.handle.publish(news.clone()).await.is_ok()).await;
    for node in &mut nodes {
        assert_eq!(next_gossip(node, |message| *message == news).await, peer(32));
    }

    // The newcomer's only door knows the origin, and says so on connecting.
    until("the door knows", async || !door.handle.origins().is_empty()).await;
    let newcomer = start(37, Role::Node, &[&door]).await;
    let mut origins = newcomer.handle.watch_origins();
    let connected = Instant::now();
    tokio::time::timeout(PATIENCE, origins.wait_for(|known| !known.is_empty())).await.unwrap().unwrap();
    assert!(newcomer.handle.stats().introduced.get() >= 1, "by introduction");
    assert!(connected.elapsed() < Duration::from_secs(30), "long before the next heartbeat");

    origin.handle.shutdown().await;
    for node in &nodes {
        let mut origins = node.handle.watch_origins();
        tokio::time::timeout(PATIENCE, origins.wait_for(|known| known.is_empty())).await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_origins_are_heard() {
    let door = start(41, Role::Bootstrap, &[]).await;
    let pretender = start(42, Role::Gateway, &[&door]).await;
    until_connected(&pretender, 1).await;
    let news = GossipMessage::Preheat { image: "library/app:1".to_owned() };
    assert_eq!(pretender.handle.publish(news).await, Err(PublishError::NotOrigin));
    pretender.handle.set_heartbeat(true).await;
    assert!(pretender.handle.origins().is_empty(), "its own control plane refuses");

    // A hostile one does not ask its own control plane: the message goes out all the same.
    let credential = pretender.setup.identity().credential.clone();
    let sent = system_clock()();
    let beat = Heartbeat { credential, endpoints: vec![], sent, leaving: false };
    let beat = GossipMessage::Heartbeat(Signed::sign(beat, &pretender.keypair));
    until("it is out", async || pretender.handle.publish_unchecked(beat.clone()).await.is_ok()).await;
    until("the door rejects it", async || door.handle.stats().gossip_rejected.get() == 1).await;
    assert!(door.handle.origins().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_not_admitted_and_counted() {
    let door = start(51, Role::Bootstrap, &[]).await;
    let other_mesh = MeshKey::from_secret(&[201; 32]);
    let stranger =
        start_as(config(52, &[&door]), identity(52, Role::Origin, &other_mesh), MemoryPersistence::shared())
            .await;
    until("refused by either side", async || {
        let refused = |setup: &TlsSetup| setup.rejections().iter().map(|(_, count)| count).sum::<u64>();
        refused(&door.setup) + refused(&stranger.setup) > 0
            && stranger.handle.stats().outbound_failed.get() > 2
    })
    .await;
    assert!(door.handle.status().await.unwrap().peers.is_empty());
    assert!(stranger.handle.status().await.unwrap().peers.is_empty());

    // Garbage on the port is a failed handshake and nothing more.
    let port = door.address.to_string().rsplit('/').next().unwrap().parse::<u16>().unwrap();
    let before = door.handle.stats().inbound_failed.get();
    let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut socket, &[0xff; 4096]).await.unwrap();
    until("counted", async || door.handle.stats().inbound_failed.get() > before).await;
    let member = start(53, Role::Node, &[&door]).await;
    until_connected(&member, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_banned_peer_is_cut_off_and_comes_back_afterwards() {
    let door = start(61, Role::Bootstrap, &[]).await;
    let mut node = start(62, Role::Node, &[&door]).await;
    until_connected(&node, 1).await;
    door.handle.ban(peer(62), Duration::from_secs(2)).await;
    let gone = async {
        loop {
            if let ControlEvent::PeerGone { peer: lost } = node.events.recv().await.unwrap() {
                return lost;
            }
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, gone).await.unwrap(), peer(61));
    until("it is back", async || {
        door.handle.status().await.unwrap().peers.iter().any(|other| other.peer == peer(62))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pruner_closes_what_is_over_its_target() {
    let mut crowded = config(71, &[]);
    crowded.connections.prune_target = 3;
    crowded.connections.prune_age_min = Duration::ZERO;
    crowded.connections.prune_interval = Duration::from_millis(100);
    // Everybody would be needed by gossip and the DHT of so small a mesh.
    (crowded.gossip.mesh, crowded.gossip.mesh_low, crowded.gossip.mesh_high) = (1, 1, 2);
    crowded.kad.replication = std::num::NonZeroUsize::MIN;
    let hub = start_as(crowded, identity(71, Role::Node, &mesh()), MemoryPersistence::shared()).await;
    let mut nodes = Vec::new();
    for n in 72..=78 {
        let mut modest = config(n, &[&hub]);
        (modest.gossip.mesh, modest.gossip.mesh_low, modest.gossip.mesh_high) = (1, 1, 2);
        nodes.push(start_as(modest, identity(n, Role::Node, &mesh()), MemoryPersistence::shared()).await);
    }
    until("pruned", async || hub.handle.stats().pruned.get() > 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_is_said_at_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config(81, &[]);
    config.listen =
        vec![format!("/ip4/127.0.0.1/tcp/{}", taken.local_addr().unwrap().port()).parse().unwrap()];
    let setup =
        TlsSetup::new(identity(81, Role::Node, &mesh()), system_clock(), TlsSetup::admit_members()).unwrap();
    let refused = Control::start(config, setup, MemoryPersistence::shared()).await;
    assert!(matches!(refused, Err(StartError::Listen { .. })));
}
