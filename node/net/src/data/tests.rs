//! Real data planes over loopback.

mod calls;
mod conduct;
mod dials;
mod limits;
mod pieces;
mod strangers;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use shoal_engine::message::Message;
use shoal_types::{
    Credential, Digest, Endpoint, Keypair, MeshKey, PeerId, Role, Roles, SignedCredential, WallTime, Zone,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::protocol::{Frame, HEAD_BYTES, Head, Hello, Kind, encode_with_subhead};
use super::*;
use crate::identity::Identity;
use crate::tls::{self, Plane, TlsSetup};

const NOW: WallTime = WallTime::from_unix_millis(1_800_000_000_000);
/// What would otherwise be a test that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

fn mesh(seed: u8) -> MeshKey {
    MeshKey::from_secret(&[seed; 32])
}

fn credential(mesh: &MeshKey, keypair: &Keypair, role: Role) -> SignedCredential {
    mesh.issue(Credential {
        peer: keypair.peer_id(),
        roles: Roles::NONE.with(role),
        zone: Zone::default(),
        namespaces: vec![],
        not_before: WallTime::from_unix_millis(NOW.unix_millis() - 1000),
        not_after: WallTime::from_unix_millis(NOW.unix_millis() + 1000),
        issuer: None,
    })
}

fn keypair(seed: u8) -> Keypair {
    Keypair::from_secret(&[seed; 32])
}

fn setup(mesh_seed: u8, seed: u8) -> TlsSetup {
    let (mesh, keypair) = (mesh(mesh_seed), keypair(seed));
    let credential = credential(&mesh, &keypair, Role::Node);
    let identity = Identity { credential, keypair, mesh: mesh.public() };
    TlsSetup::new(identity, Arc::new(|| NOW), TlsSetup::admit_members()).unwrap()
}

/// A data plane and what it told.
struct Node {
    handle: DataHandle,
    events: mpsc::Receiver<DataEvent>,
    setup: TlsSetup,
    peer: PeerId,
    /// Who is connected by the events so far.
    connected: BTreeSet<PeerId>,
}

async fn node(seed: u8) -> Node {
    node_with(seed, |_| ()).await
}

async fn node_with(seed: u8, change: impl FnOnce(&mut DataConfig)) -> Node {
    node_of(setup(1, seed), change).await
}

async fn node_of(setup: TlsSetup, change: impl FnOnce(&mut DataConfig)) -> Node {
    let mut config = DataConfig { listen: (Ipv4Addr::LOCALHOST, 0).into(), ..DataConfig::default() };
    change(&mut config);
    let (handle, events) = DataPlane::bind(config, setup.clone()).await.unwrap();
    let peer = setup.identity().peer_id();
    Node { handle, events, setup, peer, connected: BTreeSet::new() }
}

impl Node {
    fn endpoints(&self) -> Vec<Endpoint> {
        let addr = self.handle.local_addr();
        vec![Endpoint::from_ip(addr.ip(), addr.port())]
    }

    fn dial(&self, other: &Self) {
        self.handle.connect(other.peer, other.endpoints());
    }

    /// Checks the order of a peer's events.
    fn note(&mut self, event: &DataEvent) {
        match event {
            DataEvent::Connected { peer, .. } => assert!(self.connected.insert(*peer), "{event:?}"),
            DataEvent::Disconnected { peer, .. } => assert!(self.connected.remove(peer), "{event:?}"),
            DataEvent::ConnectFailed { peer, .. } => assert!(!self.connected.contains(peer), "{event:?}"),
            DataEvent::Message { peer, .. }
            | DataEvent::PieceProgress { peer, .. }
            | DataEvent::PieceArrived { peer, .. }
            | DataEvent::PieceSent { peer, .. }
            | DataEvent::Call { peer, .. } => assert!(self.connected.contains(peer), "{event:?}"),
        }
    }

    /// The next event. Cancel safe.
    async fn next(&mut self) -> DataEvent {
        let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
        let event = event.expect("an event in time").expect("the data plane runs");
        self.note(&event);
        event
    }

    /// Events until one is what is looked for.
    async fn until<T>(&mut self, mut wanted: impl FnMut(DataEvent) -> Option<T>) -> T {
        loop {
            let event = self.next().await;
            if let Some(found) = wanted(event) {
                return found;
            }
        }
    }

    async fn until_connected(&mut self) -> PeerId {
        self.until(|event| match event {
            DataEvent::Connected { peer, .. } => Some(peer),
            _ => None,
        })
        .await
    }

    async fn until_disconnected(&mut self) -> DisconnectReason {
        self.until(|event| match event {
            DataEvent::Disconnected { reason, .. } => Some(reason),
            _ => None,
        })
        .await
    }

    async fn until_failed(&mut self) -> ConnectError {
        self.until(|event| match event {
            DataEvent::ConnectFailed { why, .. } => Some(why),
            _ => None,
        })
        .await
    }

    async fn until_message(&mut self) -> Message {
        self.until(|event| match event {
            DataEvent::Message { message, .. } => Some(message),
            _ => None,
        })
        .await
    }

    async fn until_call(&mut self) -> (bytes::Bytes, AnswerHandle) {
        self.until(|event| match event {
            DataEvent::Call { body, answer, .. } => Some((body, answer)),
            _ => None,
        })
        .await
    }
}

/// Two nodes, the first of which has dialled the second.
async fn pair(one: Node, two: Node) -> (Node, Node) {
    let (mut one, mut two) = (one, two);
    one.dial(&two);
    assert_eq!(one.until_connected().await, two.peer);
    assert_eq!(two.until_connected().await, one.peer);
    (one, two)
}

/// Waits for something that no event tells of.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "{what}");
}

/// A member that speaks frames by hand.
struct Raw {
    stream: tokio_rustls::client::TlsStream<TcpStream>,
}

impl Raw {
    /// Dials `node`, and says Hello; the node's Hello is still to be read.
    async fn dial(seed: u8, instance: u64, node: &Node) -> Self {
        let config = tls::client_config(&setup(1, seed), Plane::Data, Some(node.peer)).unwrap();
        let tcp = TcpStream::connect(node.handle.local_addr()).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(config);
        let stream = connector.connect(tls::server_name(), tcp).await.unwrap();
        let mut raw = Self { stream };
        raw.frame(&Frame::Hello(Hello { version: 1, version_min: 1, instance, endpoints: vec![], dial: 1 }))
            .await;
        raw
    }

    /// A connection that both sides call open.
    async fn connected(seed: u8, node: &mut Node) -> Self {
        let mut raw = Self::dial(seed, u64::from(seed), node).await;
        assert_eq!(node.until_connected().await, keypair(seed).peer_id());
        assert!(matches!(raw.read().await, Some(Frame::Hello(_))));
        raw
    }

    async fn bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    async fn frame(&mut self, frame: &Frame) {
        let mut bytes = vec![];
        frame.encode(&mut bytes);
        self.bytes(&bytes).await;
    }

    async fn payload(&mut self, channel: u32, piece: u32, offset: u32, bytes: &[u8]) {
        let head = encode_with_subhead(Kind::Payload, [channel, piece, offset], bytes.len());
        self.bytes(&[&head, bytes].concat()).await;
    }

    /// The next frame but Ping; `None` at the connection's end.
    async fn read(&mut self) -> Option<Frame> {
        let reading = async {
            loop {
                let mut head = [0; HEAD_BYTES];
                self.stream.read_exact(&mut head).await.ok()?;
                let head = Head::decode(head).unwrap();
                let mut body = vec![0; head.len];
                self.stream.read_exact(&mut body).await.ok()?;
                match Frame::decode(head.kind.unwrap(), &body).unwrap() {
                    Frame::Ping(_) => {}
                    frame => return Some(frame),
                }
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("a frame in time")
    }
}

fn leave(to: u32) -> Message {
    Message::Leave { to }
}

fn blob() -> Digest {
    Digest::sha256(b"any blob")
}

/// Bytes of a piece, different for each.
fn piece_bytes(piece: u32, len: usize) -> bytes::Bytes {
    (0..len).map(|at| (at.wrapping_mul(31) >> 3) as u8 ^ piece as u8).collect()
}
