//! One connection a peer, whoever dials.

use super::*;
use bytes::Bytes;
use protocol::ByeReason;
use shoal_engine::io::DropReason;

/// Hears both nodes until `until` holds.
async fn hear(one: &mut Node, two: &mut Node, until: impl Fn(&Node, &Node) -> bool) {
    while !until(one, two) {
        tokio::select! {
            event = one.next() => assert!(!matches!(event, DataEvent::ConnectFailed { .. }), "{event:?}"),
            event = two.next() => assert!(!matches!(event, DataEvent::ConnectFailed { .. }), "{event:?}"),
        }
    }
}

/// A question from `asker` and its answer, or `None` when the connection was not the last one.
async fn ask(asker: &mut Node, other: &mut Node) -> Option<()> {
    let (handle, peer) = (asker.handle.clone(), other.peer);
    let mut call = tokio::spawn(async move { handle.call(peer, Bytes::from_static(b"?"), PATIENCE).await });
    loop {
        tokio::select! {
            result = &mut call => return result.unwrap().ok().map(|_| ()),
            _ = asker.next() => {}
            event = other.next() => {
                if let DataEvent::Call { body, answer, .. } = event {
                    answer.answer(body);
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_simultaneous_dials_one_connection_stays() {
    let (mut one, mut two) = (node(2).await, node(3).await);
    for round in 0..100u32 {
        if round % 2 == 0 {
            one.dial(&two);
            two.dial(&one);
        } else {
            two.dial(&one);
            one.dial(&two);
        }
        loop {
            hear(&mut one, &mut two, |one, two| one.connected.len() + two.connected.len() == 2).await;
            if ask(&mut one, &mut two).await.is_some() && ask(&mut two, &mut one).await.is_some() {
                break;
            }
        }
        let (at_one, at_two) = (one.handle.connections(), two.handle.connections());
        assert_eq!((at_one.len(), at_two.len()), (1, 1), "round {round}");
        assert_ne!(at_one[0].outbound, at_two[0].outbound, "round {round}: two ends of one connection");
        one.handle.send(two.peer, leave(round)).unwrap();
        two.handle.send(one.peer, leave(round)).unwrap();
        assert_eq!(one.until_message().await, leave(round));
        assert_eq!(two.until_message().await, leave(round));
        one.handle.disconnect(two.peer, DropReason::Idle);
        hear(&mut one, &mut two, |one, two| one.connected.is_empty() && two.connected.is_empty()).await;
    }
    assert!(one.handle.connections().is_empty() && two.handle.connections().is_empty());
}

/// The restarted process has the smaller peer id in one case and the larger one in the other.
#[tokio::test]
async fn a_restarted_peer_replaces_its_old_connection() {
    for (ours, theirs) in [(2, 3), (3, 2)] {
        for we_dialled in [true, false] {
            let (mut one, mut old) = (node(ours).await, node(theirs).await);
            if we_dialled {
                (one, old) = pair(one, old).await;
            } else {
                (old, one) = pair(old, one).await;
            }
            let mut restarted = node(theirs).await;
            restarted.dial(&one);
            let replaced = DropReason::Replaced;
            assert_eq!(one.until_disconnected().await, DisconnectReason::Dropped(replaced));
            assert_eq!(old.until_disconnected().await, DisconnectReason::Bye(ByeReason::Dropped(replaced)));
            one.until_connected().await;
            restarted.until_connected().await;
            one.handle.send(restarted.peer, leave(1)).unwrap();
            assert_eq!(restarted.until_message().await, leave(1));
            assert_eq!(one.handle.stats().superseded.get(), 1);
        }
    }
}

#[tokio::test]
async fn what_is_said_before_a_replacement_is_heard_of_does_not_reach_it() {
    let (mut one, old) = pair(node(2).await, node(3).await).await;
    let mut restarted = node(3).await;
    restarted.dial(&one);
    eventually("it is replaced", || one.handle.stats().superseded.get() == 1).await;
    let stale = || PieceSource::Bytes(Bytes::from_static(b"for the old one"));
    let told = one.next().await;
    assert!(matches!(told, DataEvent::Disconnected { .. }), "{told:?}");
    for _ in 0..100 {
        tokio::task::yield_now().await;
        assert_eq!(one.handle.send(old.peer, leave(1)), Err(SendError::NotConnected));
        assert_eq!(one.handle.send_piece(old.peer, 1, 1, stale()), Err(SendError::NotConnected));
    }
    drop(told);
    one.until_connected().await;
    one.handle.send(old.peer, leave(2)).unwrap();
    restarted.until_connected().await;
    assert_eq!(restarted.until_message().await, leave(2));
}

#[tokio::test]
async fn a_second_dial_of_the_same_process_replaces_the_connection_that_it_lost() {
    let mut one = node(2).await;
    let mut first = Raw::connected(3, &mut one).await;
    let mut second = Raw::dial(3, 3, &one).await;
    let replaced = DropReason::Replaced;
    assert_eq!(one.until_disconnected().await, DisconnectReason::Dropped(replaced));
    assert_eq!(first.read().await, Some(Frame::Bye(ByeReason::Dropped(replaced))));
    one.until_connected().await;
    assert!(matches!(second.read().await, Some(Frame::Hello(_))));
    second.frame(&Frame::Swarm(leave(4))).await;
    assert_eq!(one.until_message().await, leave(4));
}

#[tokio::test]
async fn what_the_smaller_peer_dialled_stays_against_a_dial_of_the_same_process() {
    let (small, large) = if keypair(2).peer_id() < keypair(3).peer_id() { (2, 3) } else { (3, 2) };
    let (mut one, mut two) = pair(node(small).await, node(large).await).await;
    let instance = two.handle.hub.instance;
    let mut late = Raw::dial(large, instance, &one).await;
    assert_eq!(late.read().await, Some(Frame::Bye(ByeReason::Dropped(DropReason::Replaced))));
    one.handle.send(two.peer, leave(1)).unwrap();
    assert_eq!(two.until_message().await, leave(1));
    two.handle.send(one.peer, leave(2)).unwrap();
    assert_eq!(one.until_message().await, leave(2));
}

#[tokio::test]
async fn a_failed_dial_says_why() {
    let (mut one, two, three) = (node(2).await, node(3).await, node(4).await);
    one.handle.connect(two.peer, vec![]);
    assert_eq!(one.until_failed().await, ConnectError::NoAddress);
    one.handle.connect(one.peer, one.endpoints());
    assert_eq!(one.until_failed().await, ConnectError::NoAddress);
    // Somebody else listens there.
    one.handle.connect(three.peer, two.endpoints());
    let other = tls::Rejection::OtherPeer { expected: three.peer, found: two.peer };
    assert_eq!(one.until_failed().await, ConnectError::Rejected(other));
    // Nobody does.
    let free = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = free.local_addr().unwrap();
    drop(free);
    let nobody = Endpoint::from_ip(addr.ip(), addr.port());
    one.handle.connect(two.peer, vec![nobody.clone()]);
    assert!(matches!(one.until_failed().await, ConnectError::Io(_)));
    // One good address is enough, even behind one that accepts and is silent.
    let silent = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = silent.local_addr().unwrap();
    let silent_endpoint = Endpoint::from_ip(addr.ip(), addr.port());
    one.handle.connect(two.peer, [vec![silent_endpoint, nobody], two.endpoints()].concat());
    assert_eq!(one.until_connected().await, two.peer);
}

#[tokio::test]
async fn a_process_that_ends_says_so() {
    let (one, mut two) = pair(node(2).await, node(3).await).await;
    one.handle.shutdown().await;
    assert_eq!(two.until_disconnected().await, DisconnectReason::Bye(ByeReason::Shutdown));
    let addr = one.handle.local_addr();
    let listening = async { while TcpStream::connect(addr).await.is_ok() {} };
    assert!(tokio::time::timeout(PATIENCE, listening).await.is_ok(), "it still listens");
}
