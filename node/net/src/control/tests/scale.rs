//! Many real hosts in one process, over loopback TCP and real handshakes: how many lookups succeed and what they take, also
//! when a quarter of the hosts that hold nothing has just died, and when all ask for one key in the same moment.

use std::sync::atomic::{AtomicUsize, Ordering};

use rand_core::{Rng as _, SeedableRng as _};

use super::*;
use crate::control::config::{ConnectionsConfig, KadConfig};

/// Doors that everybody knows.
const DOORS: usize = 3;
/// Hosts that have a key of their own each.
const HOLDERS: usize = 40;
/// Lookups of a round.
const LOOKUPS: usize = 200;
/// Lookups under way at a time.
const AT_A_TIME: usize = 8;
/// A lookup that takes longer has failed.
const LOOKUP_MAX: Duration = Duration::from_secs(10);

fn keypair_of(number: usize) -> Keypair {
    let mut secret = [7; 32];
    secret[..8].copy_from_slice(&(number as u64).to_le_bytes());
    Keypair::from_secret(&secret)
}

fn digest_of(holder: usize) -> Digest {
    Digest::sha256(&(holder as u64).to_le_bytes())
}

async fn start_host(number: usize, doors: &[Node], prune_age_min: Duration) -> Node {
    let keypair = keypair_of(number);
    let role = if number < DOORS { Role::Bootstrap } else { Role::Node };
    let credential = mesh().issue(Credential {
        peer: keypair.peer_id(),
        roles: Roles::NONE.with(role),
        zone: "zone-a".parse().unwrap(),
        namespaces: vec![],
        not_before: WallTime::default(),
        not_after: system_clock()().saturating_add(Duration::from_secs(3600)),
        issuer: None,
    });
    let port = u16::try_from(20_000 + number).unwrap();
    let mut config = ControlConfig {
        listen: vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()],
        data_endpoints: vec![format!("127.0.0.1:{port}").parse().unwrap()],
        bootstrap: doors.iter().map(|door| door.address.to_string().parse().unwrap()).collect(),
        ..ControlConfig::default()
    };
    // Both ends of every connection are in this process, which may have some 20,000 files open. A fleet's hosts know
    // few of the others directly, too.
    config.connections.prune_target = 24;
    config.connections.prune_age_min = prune_age_min;
    config.connections.prune_interval = Duration::from_secs(1);
    let own = Identity { keypair, credential, mesh: mesh().public() };
    start_as(config, own, MemoryPersistence::shared()).await
}

/// What a round of lookups came to.
struct Round {
    name: &'static str,
    wanted: usize,
    found: usize,
    requests: u64,
    millis: Vec<u128>,
}

impl Round {
    fn success(&self) -> f64 {
        self.found as f64 / self.wanted as f64
    }
}

impl std::fmt::Display for Round {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = |part: f64| self.millis[((self.millis.len() - 1) as f64 * part) as usize];
        let (name, found, wanted) = (self.name, self.found, self.wanted);
        let requests = self.requests as f64 / wanted as f64;
        write!(f, "{name}: {found} of {wanted} found, {requests:.1} hosts asked a lookup, ")?;
        write!(f, "p50 {} ms, p99 {} ms, last {} ms", at(0.5), at(0.99), at(1.0))
    }
}

/// Looks `wanted` up, each from the host beside it, `at_a_time` of them together.
async fn round(
    name: &'static str,
    hosts: &[Node],
    wanted: &[(usize, Digest, PeerId)],
    at_a_time: usize,
) -> Round {
    let requests = || hosts.iter().map(|host| host.handle.stats().lookup_requests.get()).sum::<u64>();
    let before = requests();
    let next = AtomicUsize::new(0);
    let worker = async || {
        let mut times = Vec::new();
        while let Some((from, digest, holder)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
            let start = Instant::now();
            let mut lookup = hosts[*from].handle.find_providers(*digest);
            let found = tokio::time::timeout(LOOKUP_MAX, async {
                while let Some(provider) = lookup.next().await {
                    if provider.peer == *holder {
                        return true;
                    }
                }
                false
            });
            if found.await == Ok(true) {
                times.push(start.elapsed().as_millis());
            }
        }
        times
    };
    let workers = (0..at_a_time.min(wanted.len())).map(|_| worker());
    let mut millis: Vec<u128> = futures::future::join_all(workers).await.concat();
    millis.sort_unstable();
    assert!(!millis.is_empty(), "{name}: nothing was found");
    Round { name, wanted: wanted.len(), found: millis.len(), requests: requests() - before, millis }
}

/// A round of lookups of what the hosts of `holders` hold, by others drawn at random.
async fn random_round(name: &'static str, hosts: &[Node], holders: &[usize], seed: u64) -> Round {
    let mut random = rand_pcg::Pcg64::seed_from_u64(seed);
    let mut draw = |bound: usize| usize::try_from(random.next_u64() % bound as u64).unwrap();
    let wanted: Vec<(usize, Digest, PeerId)> = std::iter::repeat_with(|| {
        let holder = holders[draw(holders.len())];
        (draw(hosts.len()), digest_of(holder), keypair_of(holder).peer_id())
    })
    .filter(|(from, _, holder)| hosts[*from].keypair.peer_id() != *holder)
    .take(LOOKUPS)
    .collect();
    round(name, hosts, &wanted, AT_A_TIME).await
}

/// Rounds of lookups among `count` hosts that close connections when they are `prune_age_min` old; and which share of the
/// copies of all records had arrived before.
async fn lookups_among(count: usize, prune_age_min: Duration) -> (f64, Vec<Round>) {
    let mut hosts = Vec::new();
    for number in 0..count {
        let doors = if number < DOORS { &hosts[..number] } else { &hosts[..DOORS] };
        hosts.push(start_host(number, doors, prune_age_min).await);
    }
    for host in &hosts {
        until("a routing table", async || host.handle.stats().routing_peers.get() >= 8).await;
    }
    let holders: Vec<usize> = (DOORS..count).step_by((count - DOORS) / HOLDERS).take(HOLDERS).collect();
    for holder in &holders {
        hosts[*holder].handle.provide(digest_of(*holder)).await;
    }
    for holder in &holders {
        until("an announcement", async || hosts[*holder].handle.stats().announcements.get() > 0).await;
    }
    let copies = copies(&hosts, holders.len()).await;
    let mut rounds = vec![random_round("everybody there", &hosts, &holders, 1).await];

    let hot = holders[0];
    let flash: Vec<_> = (0..hosts.len())
        .filter(|from| *from != hot)
        .map(|from| (from, digest_of(hot), keypair_of(hot).peer_id()))
        .collect();
    rounds.push(round("all at once for one key", &hosts, &flash, flash.len()).await);

    // Every fourth dies without a word, doors too; whoever holds something stays, for what the dead hold is lost.
    let mut number = 0;
    hosts.retain(|_| {
        number += 1;
        holders.contains(&(number - 1)) || number % 4 != 0
    });
    rounds.push(random_round("a quarter of the others just died", &hosts, &holders, 2).await);
    (copies, rounds)
}

/// The share of the copies of `announced` records that are where they should be. Kademlia says that something is announced
/// before anything has arrived, so this takes a moment; what it was to tell a peer whose connection was closed
/// meanwhile it forgets.
async fn copies(hosts: &[Node], announced: usize) -> f64 {
    let wanted = announced * KadConfig::default().replication.get();
    let mut kept = 0;
    for _ in 0..50 {
        let statuses = futures::future::join_all(hosts.iter().map(|host| host.handle.status())).await;
        kept = statuses.into_iter().map(|status| status.unwrap().records).sum();
        if kept >= wanted {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("{announced} announced: {kept} copies of {wanted} kept");
    kept as f64 / wanted as f64
}

fn check(rounds: &[Round]) {
    for round in rounds {
        println!("{round}");
    }
    let [healthy, flash, dying] = rounds else { panic!("three rounds") };
    assert!(healthy.success() >= 0.99, "{healthy}");
    assert!(flash.success() >= 0.99, "{flash}");
    assert!(dying.success() >= 0.95, "{dying}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lookups_among_sixty_hosts_succeed_also_when_many_have_just_died() {
    let (copies, rounds) = lookups_among(60, ConnectionsConfig::default().prune_age_min).await;
    check(&rounds);
    assert!(copies >= 0.75, "{copies}");
}

/// `cargo test -p shoal-net -- --ignored --nocapture three_hundred` prints what a larger mesh comes to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes of handshakes"]
async fn lookups_among_three_hundred_hosts() {
    // Otherwise there are more connections than a process may have.
    check(&lookups_among(300, Duration::from_secs(5)).await.1);
}
