//! Members that flood and forge, and strangers that hold the door.

use super::*;
use crate::budget::Allowance;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_keeps_forging_is_banned_and_one_slip_is_forgiven() {
    let mut strict = config(91, &[]);
    strict.conduct.offences = Allowance { burst: 3, per_second: 0.001 };
    let door = start_as(strict, identity(91, Role::Bootstrap, &mesh()), MemoryPersistence::shared()).await;
    let forger = start(92, Role::Gateway, &[&door]).await;
    until_connected(&forger, 1).await;
    let credential = forger.setup.identity().credential.clone();
    let forge = async |n: u64| {
        let sent = system_clock()().saturating_add(Duration::from_millis(n));
        let beat = Heartbeat { credential: credential.clone(), endpoints: vec![], sent, leaving: false };
        let beat = GossipMessage::Heartbeat(Signed::sign(beat, &forger.keypair));
        forger.handle.publish_unchecked(beat).await.is_ok()
    };
    until("one is out", async || forge(0).await).await;
    until("it is rejected", async || door.handle.stats().gossip_rejected.get() == 1).await;
    assert_eq!(door.handle.stats().gossip_banned.get(), 0);
    let mut n = 1;
    until("banned", async || {
        n += 1;
        let _ = forge(n).await;
        door.handle.stats().gossip_banned.get() == 1
    })
    .await;
    until("cut off", async || door.handle.status().await.unwrap().peers.is_empty()).await;
    assert!(door.handle.stats().gossip_rejected.get() >= 4, "three are forgiven");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_an_origin_is_damped_where_it_is_heard_first() {
    const BURST: u32 = 20;
    let mut damping = config(93, &[]);
    damping.conduct.news = Allowance { burst: BURST, per_second: 0.001 };
    let door = start_as(damping, identity(93, Role::Bootstrap, &mesh()), MemoryPersistence::shared()).await;
    let origin = start(94, Role::Origin, &[&door]).await;
    until_connected(&origin, 1).await;
    origin.handle.set_heartbeat(true).await;
    until("the door knows the origin", async || !door.handle.origins().is_empty()).await;
    let stats = door.handle.stats();
    let mut size = 0;
    until("damped", async || {
        size += 1;
        let news = GossipMessage::BlobAdded { digest: Digest::sha256(b"flood"), size };
        let _ = origin.handle.publish(news).await;
        stats.gossip_damped.get() > 0
    })
    .await;
    // The heartbeat that made it known came before it was counted.
    assert!(stats.gossip_accepted.get() <= u64::from(BURST) + 1, "{}", stats.gossip_accepted.get());
    assert_eq!(stats.gossip_banned.get(), 0, "an origin's news is never an offence");
    assert_eq!(door.handle.status().await.unwrap().peers.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_strangers_give_way_to_members() {
    let mut small = config(95, &[]);
    small.connections.handshakes_max = 4;
    let door = start_as(small, identity(95, Role::Bootstrap, &mesh()), MemoryPersistence::shared()).await;
    let port = door.address.to_string().rsplit('/').next().unwrap().parse::<u16>().unwrap();
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap());
    }
    until("most gave way", async || door.handle.stats().handshakes_evicted.get() >= 60).await;
    let member = start(96, Role::Node, &[&door]).await;
    until_connected(&member, 1).await;
    assert_eq!(member.handle.stats().outbound_failed.get(), 0, "it did not have to try twice");
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_connects_too_often_is_hung_up_on() {
    let mut slow = config(97, &[]);
    slow.connections.arrivals = Allowance { burst: 10, per_second: 0.001 };
    let door = start_as(slow, identity(97, Role::Bootstrap, &mesh()), MemoryPersistence::shared()).await;
    let port = door.address.to_string().rsplit('/').next().unwrap().parse::<u16>().unwrap();
    for _ in 0..15 {
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    }
    until("refused", async || door.handle.stats().inbound_too_often.get() == 5).await;
}
