//! Peers that keep breaking the protocol, and addresses that keep connecting.

use super::*;
use crate::budget::Allowance;

#[tokio::test]
async fn who_keeps_breaking_the_protocol_is_banned() {
    let one = node_with(2, |config| config.offences = Allowance { burst: 2, per_second: 0.001 }).await;
    let (mut one, mut two) = pair(one, node(3).await).await;
    for offence in 1..=3 {
        let metainfo = forged();
        two.handle.send(one.peer, Message::Metainfo { to: 1, metainfo: Box::new(metainfo) }).unwrap();
        let reason = one.until_disconnected().await;
        assert!(matches!(reason, DisconnectReason::Protocol(_)), "{offence}: {reason}");
        two.until_disconnected().await;
        assert_eq!(one.handle.stats().banned.get(), u64::from(offence == 3));
        if offence < 3 {
            (one, two) = pair(one, two).await;
        }
    }
    two.dial(&one);
    let refused = two.until_failed().await;
    assert_eq!(refused, ConnectError::Refused(super::protocol::ByeReason::Banned));
}

/// Metainfo that no origin signed.
fn forged() -> shoal_types::VouchedMetainfo {
    let keypair = keypair(3);
    let metainfo = shoal_types::Metainfo::of_bytes(shoal_types::Algorithm::Sha256, b"a blob").unwrap();
    let metainfo = shoal_types::Signed::sign(metainfo, &keypair);
    shoal_types::VouchedMetainfo { metainfo, credential: credential(&mesh(1), &keypair, Role::Node) }
}

#[tokio::test]
async fn an_address_that_connects_too_often_is_hung_up_on() {
    let one = node_with(2, |config| config.arrivals = Allowance { burst: 3, per_second: 0.001 }).await;
    for _ in 0..5 {
        let mut stream = TcpStream::connect(one.handle.local_addr()).await.unwrap();
        let _ = stream.write_all(b"garbage that is no TLS record").await;
        let _ = stream.read(&mut [0; 64]).await;
    }
    assert_eq!(one.handle.stats().refused_too_often.get(), 2);
}
