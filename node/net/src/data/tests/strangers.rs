//! Who is no member.

use super::*;
use crate::tls::{RejectReason, Rejection};
use shoal_types::CredentialError;

#[tokio::test]
async fn a_member_of_another_mesh_is_refused_and_counted() {
    let mut one = node(2).await;
    let mut stranger = node_of(setup(9, 3), |_| ()).await;
    let refused =
        |peer| ConnectError::Rejected(Rejection::Credential { peer, why: CredentialError::OtherMesh });
    one.dial(&stranger);
    assert_eq!(one.until_failed().await, refused(stranger.peer));
    assert_eq!(one.setup.rejections().get(RejectReason::OtherMesh), 1);
    stranger.dial(&one);
    assert_eq!(stranger.until_failed().await, refused(one.peer));
    eventually("it is counted", || one.handle.stats().handshakes_failed.get() == 1).await;
    assert!(one.handle.connections().is_empty() && stranger.handle.connections().is_empty());
}

#[tokio::test]
async fn a_member_whose_credential_the_acceptor_refuses_learns_that_there_is_no_connection() {
    let banned = keypair(3).peer_id();
    let identity = Identity::clone(&setup(1, 2).identity());
    let admission: tls::Admission =
        Arc::new(move |peer, _| if *peer == banned { Err(tls::Refusal::Revoked) } else { Ok(()) });
    let one = node_of(TlsSetup::new(identity, Arc::new(|| NOW), admission).unwrap(), |_| ()).await;
    let mut two = node(3).await;
    two.dial(&one);
    // The handshake is over for the dialler when the refusal comes (TLS 1.3).
    assert!(matches!(two.until_failed().await, ConnectError::Io(_)));
    eventually("it is counted", || one.handle.stats().handshakes_failed.get() == 1).await;
    assert_eq!(one.setup.rejections().get(RejectReason::Revoked), 1);
}

#[tokio::test]
async fn garbage_and_slow_handshakes_do_not_keep_members_out() {
    let one = node_with(2, |config| config.handshakes_max = 8).await;
    let mut slow = vec![];
    for number in 0..40 {
        let mut tcp = TcpStream::connect(one.handle.local_addr()).await.unwrap();
        if number % 2 == 0 {
            tcp.write_all(b"GET / HTTP/1.1\r\nhost: example.org\r\n\r\n").await.unwrap();
        }
        slow.push(tcp);
    }
    let (mut one, two) = pair(node(3).await, one).await;
    let stats = two.handle.stats();
    // All but those that still hold a place.
    eventually("they are counted", || stats.handshakes_failed.get() >= 40 - 8).await;
    assert!(stats.handshakes_evicted.get() > 0);
    assert_eq!(stats.accepted.get(), 41);
    two.handle.send(one.peer, leave(1)).unwrap();
    assert_eq!(one.until_message().await, leave(1));
}

#[tokio::test]
async fn a_slow_handshake_ends() {
    let one = node_with(2, |config| config.handshake_timeout = Duration::from_millis(50)).await;
    let mut tcp = TcpStream::connect(one.handle.local_addr()).await.unwrap();
    let mut byte = [0];
    let ended = tokio::time::timeout(PATIENCE, tcp.read(&mut byte)).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)));
    // A member who does not say Hello is no better.
    let config = tls::client_config(&setup(1, 3), Plane::Data, Some(one.peer)).unwrap();
    let tcp = TcpStream::connect(one.handle.local_addr()).await.unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(config).connect(tls::server_name(), tcp).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, stream.read(&mut byte)).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)));
    eventually("both are counted", || one.handle.stats().handshakes_failed.get() == 2).await;
}
