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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_floods_the_dht_displaces_nobody_but_itself() {
    const RECORDS_MAX: usize = 100;
    let small = |n, doors: &[&Node]| {
        let mut small = config(n, doors);
        small.records.records_max = RECORDS_MAX;
        small
    };
    let blobs = |whose: u8, from: u8| (from..from + 10).map(move |n| Digest::sha256(&[whose, n]));
    let door =
        start_as(small(101, &[]), identity(101, Role::Bootstrap, &mesh()), MemoryPersistence::shared()).await;
    let (honest, flooder) = (start(102, Role::Node, &[&door]).await, start(103, Role::Node, &[&door]).await);
    until_connected(&honest, 2).await;
    until_connected(&flooder, 2).await;
    for digest in blobs(102, 0) {
        honest.handle.provide(digest).await;
    }
    let kept = async || door.handle.status().await.unwrap().records;
    until("the door keeps the honest ones", async || kept().await == 10).await;

    let flood: Vec<Digest> = (0..600u16).map(|n| Digest::sha256(&n.to_be_bytes())).collect();
    for digest in &flood {
        flooder.handle.provide(*digest).await;
    }
    let stats = door.handle.stats();
    until("the flood is refused", async || stats.records_refused.get() >= 400).await;
    assert!(kept().await <= RECORDS_MAX);
    // Whoever comes after the flood gets its place from the flooder.
    for digest in blobs(102, 10) {
        honest.handle.provide(digest).await;
    }
    until("the later ones displace the flood", async || stats.records_displaced.get() >= 10).await;
    assert!(kept().await <= RECORDS_MAX);

    // Nobody but the door is left to ask.
    honest.handle.shutdown().await;
    flooder.handle.shutdown().await;
    let seeker = start(104, Role::Node, &[&door]).await;
    until_connected(&seeker, 1).await;
    for digest in blobs(102, 0).chain(blobs(102, 10)) {
        assert_eq!(find(&seeker, digest, peer(102)).await.endpoints, [endpoint(102)]);
    }
}
