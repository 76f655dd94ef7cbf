//! What does not arrive: connections that are dead without anybody having said so, and gossip that is lost.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::budget::Allowance;

/// A wire to `to`. Connections that exist when it is cut stay open, and nothing gets through them any more.
struct Wire {
    address: Multiaddr,
    cut: Arc<AtomicBool>,
}

impl Wire {
    async fn to(node: &Node) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = node.address.to_string().rsplit('/').next().unwrap().parse::<u16>().unwrap();
        let address = format!("/ip4/127.0.0.1/tcp/{}", listener.local_addr().unwrap().port());
        let cut = Arc::new(AtomicBool::new(false));
        let is_cut = Arc::clone(&cut);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                // One that comes after the cut is another wire.
                let is_cut = if is_cut.load(Ordering::SeqCst) { Arc::default() } else { Arc::clone(&is_cut) };
                tokio::spawn(carry(near, far, is_cut));
            }
        });
        Self { address: address.parse().unwrap(), cut }
    }
}

async fn carry(near: TcpStream, far: TcpStream, is_cut: Arc<AtomicBool>) {
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let one_way = async |from: tokio::net::tcp::OwnedReadHalf, to: tokio::net::tcp::OwnedWriteHalf| {
        let mut buffer = vec![0; 1 << 16];
        loop {
            from.readable().await.unwrap();
            if is_cut.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            match from.try_read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    let mut rest = &buffer[..count];
                    while !rest.is_empty() {
                        if to.writable().await.is_err() {
                            return;
                        }
                        if let Ok(written) = to.try_write(rest) {
                            rest = &rest[written..];
                        }
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    tokio::select! {
        () = one_way(near_in, far_out) => {}
        () = one_way(far_in, near_out) => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_falls_silent_is_closed_and_made_anew() {
    let door = start(111, Role::Bootstrap, &[]).await;
    let wire = Wire::to(&door).await;
    let mut quick = config(112, &[]);
    quick.bootstrap = vec![wire.address.to_string().parse().unwrap()];
    quick.connections.ping_interval = Duration::from_millis(200);
    quick.connections.ping_timeout = Duration::from_secs(1);
    let node = start_as(quick, identity(112, Role::Node, &mesh()), MemoryPersistence::shared()).await;
    until_connected(&node, 1).await;
    let opened = node.handle.stats().connections_opened.get();
    wire.cut.store(true, Ordering::SeqCst);
    until("closed", async || node.handle.stats().connections_silent.get() == 1).await;
    until("made anew", async || {
        let peers = node.handle.status().await.unwrap().peers.len();
        peers == 1 && node.handle.stats().connections_opened.get() > opened
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn origins_are_known_where_gossip_is_lost() {
    let interval = Duration::from_secs(2);
    let beating = |n: u8, doors: &[&Node]| {
        let mut config = config(n, doors);
        config.heartbeat.interval = interval;
        config.heartbeat.introduce_interval = Duration::from_millis(200);
        config
    };
    let kept = MemoryPersistence::shared;
    let door = start_as(beating(113, &[]), identity(113, Role::Bootstrap, &mesh()), kept()).await;
    let mut deaf = beating(114, &[&door]);
    // The first heartbeat makes the origin known, gossip's further ones are not listened to.
    deaf.conduct.news = Allowance { burst: 0, per_second: 0.001 };
    let node = start_as(deaf, identity(114, Role::Node, &mesh()), kept()).await;
    let origin = start_as(beating(115, &[&door]), identity(115, Role::Origin, &mesh()), kept()).await;
    origin.handle.set_heartbeat(true).await;
    until("known", async || node.handle.origins().len() == 1).await;
    until("three lifetimes' heartbeats are lost", async || {
        assert_eq!(node.handle.origins().len(), 1, "the origin is forgotten");
        node.handle.stats().gossip_damped.get() >= 9
    })
    .await;
    assert!(node.handle.stats().introduced.get() >= 3, "nobody told it of newer heartbeats");
}
