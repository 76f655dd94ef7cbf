//! Bans, limits, silence, and what breaks the protocol.

use super::*;
use protocol::{ByeReason, ProtocolError};
use shoal_engine::io::DropReason;
use shoal_types::{Algorithm, Metainfo, Signed, VouchError, VouchedMetainfo};

#[tokio::test]
async fn a_banned_peer_is_dropped_and_refused_until_the_ban_ends() {
    let (mut one, mut two) = pair(node(2).await, node(3).await).await;
    one.handle.ban(two.peer, Duration::from_secs(3600));
    assert_eq!(one.until_disconnected().await, DisconnectReason::Banned);
    assert_eq!(two.until_disconnected().await, DisconnectReason::Bye(ByeReason::Banned));
    two.dial(&one);
    assert_eq!(two.until_failed().await, ConnectError::Refused(ByeReason::Banned));
    assert_eq!(one.handle.stats().refused_banned.get(), 1);
    one.dial(&two);
    assert_eq!(one.until_failed().await, ConnectError::Banned);
    one.handle.ban(two.peer, Duration::ZERO);
    two.dial(&one);
    assert_eq!(one.until_connected().await, two.peer);
    two.until_connected().await;
}

#[tokio::test]
async fn connections_have_a_limit() {
    let one = node_with(2, |config| config.connections_max = 1).await;
    let (mut one, two) = pair(one, node(3).await).await;
    let mut three = node(4).await;
    three.dial(&one);
    assert!(matches!(three.until_failed().await, ConnectError::Io(_)));
    assert_eq!(one.handle.stats().refused_full.get(), 1);
    one.dial(&three);
    assert_eq!(one.until_failed().await, ConnectError::Full);
    // An end makes room.
    one.handle.disconnect(two.peer, DropReason::Idle);
    one.until_disconnected().await;
    loop {
        three.dial(&one);
        let connected = three
            .until(|event| match event {
                DataEvent::Connected { .. } => Some(true),
                DataEvent::ConnectFailed { .. } => Some(false),
                _ => None,
            })
            .await;
        if connected {
            break;
        }
    }
}

#[tokio::test]
async fn an_address_has_a_limit() {
    let one = node_with(2, |config| config.connections_per_ip_max = 1).await;
    let (_two, one) = pair(node(3).await, one).await;
    let mut three = node(4).await;
    three.dial(&one);
    assert!(matches!(three.until_failed().await, ConnectError::Io(_)));
    assert_eq!(one.handle.stats().refused_per_ip.get(), 1);
    // What this side dials does not count.
    one.dial(&three);
    assert_eq!(three.until_connected().await, one.peer);
}

#[tokio::test]
async fn metainfo_without_a_good_voucher_drops_the_peer() {
    let signed = |seed, mesh_seed, role| {
        let keypair = keypair(seed);
        let metainfo = Metainfo::of_bytes(Algorithm::Sha256, b"a blob").unwrap();
        let metainfo = Signed::sign(metainfo, &keypair);
        VouchedMetainfo { metainfo, credential: credential(&mesh(mesh_seed), &keypair, role) }
    };
    let mut elses = signed(3, 1, Role::Origin);
    elses.credential = credential(&mesh(1), &keypair(4), Role::Origin);
    let signer = keypair(3).peer_id();
    let wrong = [
        (signed(3, 1, Role::Node), VouchError::NotAnOrigin(signer)),
        (signed(3, 9, Role::Origin), VouchError::OtherMesh),
        (elses, VouchError::OtherSigner(signer)),
    ];
    let (mut one, mut two) = (node(2).await, node(3).await);
    let good = Message::Metainfo { to: 1, metainfo: Box::new(signed(3, 1, Role::Origin)) };
    for (metainfo, why) in wrong {
        (one, two) = pair(one, two).await;
        two.handle.send(one.peer, good.clone()).unwrap();
        two.handle.send(one.peer, Message::Metainfo { to: 1, metainfo: Box::new(metainfo) }).unwrap();
        assert_eq!(one.until_message().await, good);
        let reason = DisconnectReason::Protocol(ProtocolError::Vouch(why));
        assert_eq!(one.next_is_disconnected().await, reason);
        let bye = ByeReason::Dropped(DropReason::Protocol);
        assert_eq!(two.until_disconnected().await, DisconnectReason::Bye(bye));
    }
    assert_eq!(one.handle.stats().protocol_errors.get(), 3);
}

impl Node {
    /// The next event ends the connection: nothing came before.
    async fn next_is_disconnected(&mut self) -> DisconnectReason {
        match self.next().await {
            DataEvent::Disconnected { reason, .. } => reason,
            event => panic!("{event:?}"),
        }
    }
}

#[tokio::test]
async fn frames_that_break_the_rules_end_the_connection() {
    let hello = Hello { version: 1, version_min: 1, instance: 0, endpoints: vec![], dial: 1 };
    let mut second_hello = vec![];
    Frame::Hello(hello).encode(&mut second_hello);
    let wrong = [
        (second_hello, ProtocolError::OutOfPlace(Kind::Hello)),
        (vec![99, 0, 0, 0, 0, 0, 0, 0], ProtocolError::UnknownKind(99)),
        (vec![8, 2, 0, 0, 0, 0, 0, 8], ProtocolError::UnknownBits),
        (
            vec![2, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
            ProtocolError::Length { kind: Kind::Swarm, bytes: u32::MAX as usize },
        ),
    ];
    let mut one = node(2).await;
    for (bytes, why) in wrong {
        let mut raw = Raw::connected(3, &mut one).await;
        // An optional frame of a later version is passed over.
        raw.bytes(&[&[99, 1, 0, 0, 0, 0, 0, 2][..], b"??"].concat()).await;
        raw.frame(&Frame::Swarm(leave(1))).await;
        assert_eq!(one.until_message().await, leave(1));
        raw.bytes(&bytes).await;
        assert_eq!(one.until_disconnected().await, DisconnectReason::Protocol(why));
        assert_eq!(raw.read().await, Some(Frame::Bye(ByeReason::Dropped(DropReason::Protocol))));
    }
}

#[tokio::test]
async fn a_peer_of_no_common_version_is_told() {
    let one = node(2).await;
    let mut raw = Raw::dial(3, 1, &one).await;
    drop(raw.stream.shutdown().await);
    let config = tls::client_config(&setup(1, 3), Plane::Data, Some(one.peer)).unwrap();
    let tcp = TcpStream::connect(one.handle.local_addr()).await.unwrap();
    let stream = tokio_rustls::TlsConnector::from(config).connect(tls::server_name(), tcp).await.unwrap();
    let mut raw = Raw { stream };
    raw.frame(&Frame::Hello(Hello { version: 9, version_min: 8, instance: 1, endpoints: vec![], dial: 1 }))
        .await;
    assert_eq!(raw.read().await, Some(Frame::Bye(ByeReason::Version)));
    assert_eq!(raw.read().await, None);
}

#[tokio::test]
async fn a_silent_peer_is_given_up() {
    let mut one = node_with(2, |config| {
        config.ping_interval = Duration::from_millis(20);
        config.silence_max = Duration::from_millis(100);
    })
    .await;
    // It is there, but answers no Ping.
    let _raw = Raw::connected(3, &mut one).await;
    assert_eq!(one.until_disconnected().await, DisconnectReason::Silent);
    assert_eq!(one.handle.stats().timeouts.get(), 1);
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_given_up() {
    let mut one = node_with(2, |config| config.control_queue_bytes_max = 64 * 1024).await;
    let raw = Raw::connected(3, &mut one).await;
    let peer = keypair(3).peer_id();
    let runs: Vec<(u32, u32)> = (0..1000).map(|number| (number * 1_000_000, 1)).collect();
    let message = Message::Have { to: 1, runs };
    let sending = async {
        while one.handle.send(peer, message.clone()).is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, sending).await.unwrap();
    assert_eq!(one.until_disconnected().await, DisconnectReason::Overflow);
    assert_eq!(one.handle.stats().overflows.get(), 1);
    drop(raw);
}

#[tokio::test]
async fn a_peer_that_talks_and_does_not_read_payload_is_given_up() {
    let mut one = node_with(2, |config| {
        config.ping_interval = Duration::from_millis(20);
        config.silence_max = Duration::from_millis(1000);
    })
    .await;
    let raw = Raw::connected(3, &mut one).await;
    let peer = keypair(3).peer_id();
    let (_, mut write) = tokio::io::split(raw.stream);
    let talking = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        let mut bytes = vec![];
        Frame::Pong(0).encode(&mut bytes);
        loop {
            ticks.tick().await;
            if write.write_all(&bytes).await.is_err() || write.flush().await.is_err() {
                return;
            }
        }
    });
    let bytes = bytes::Bytes::from(vec![7; 4 * 1024 * 1024]);
    for piece in 0..16 {
        let source = PieceSource::Bytes(bytes.clone());
        one.handle.send_piece(peer, 1, piece, source).unwrap();
    }
    let reason = one.until_disconnected().await;
    // The system's own limit (TCP_USER_TIMEOUT) is as long and may come first.
    assert!(matches!(reason, DisconnectReason::Overflow | DisconnectReason::Lost(_)), "{reason:?}");
    talking.abort();
}
