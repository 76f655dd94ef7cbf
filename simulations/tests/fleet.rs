//! Many engines in one process: what must hold whatever the network does.

use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use shoal_engine::io::{ReadError, ReaderWant};
use shoal_simulations::{Cut, Fleet, FleetConfig, NetworkConfig, NodeSpec, Truth};
use shoal_types::Zone;

const MIB: u64 = 1 << 20;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn origin() -> NodeSpec {
    NodeSpec { origin: true, ..NodeSpec::default() }
}

fn everything() -> ReaderWant {
    ReaderWant::Range(0..u64::MAX)
}

#[test]
fn two_nodes_and_an_origin() {
    let mut fleet = Fleet::new(FleetConfig::default(), 1);
    let truth = Truth::new(1, 10 * MIB);
    let source = fleet.add(origin());
    fleet.store(source, &truth);
    let node = fleet.add(NodeSpec::default());
    let reader = fleet.read(node, truth.metainfo.digest(), everything());
    assert!(fleet.run_readers(secs(10)), "{:#?}", fleet.engine_of(node).swarms().collect::<Vec<_>>());
    let outcome = fleet.outcome(node, reader);
    assert_eq!(outcome.until, 10 * MIB);
    let first = outcome.first_byte.unwrap().since_start();
    // Dial (4 delays), join, request, one piece: no timer stands in between.
    assert!(first < Duration::from_millis(60), "{first:?}");
    println!("first byte {first:?}, done {:?}", outcome.done.unwrap().since_start());
}

/// Ten empty nodes ask at once; returns the origin's copies, and the last node's time over the bound.
fn flash_crowd(seed: u64, nodes: usize, size: u64, want: &ReaderWant) -> (f64, f64) {
    let mut fleet = Fleet::new(FleetConfig::default(), seed);
    let truth = Truth::new(seed, size);
    let source = fleet.add(origin());
    fleet.store(source, &truth);
    let digest = truth.metainfo.digest();
    for _ in 0..nodes {
        let node = fleet.add(NodeSpec::default());
        fleet.read(node, digest, want.clone());
    }
    assert!(fleet.run_readers(secs(300)), "seed {seed}: not complete");
    let copies = fleet.tally(source).sent_bytes as f64 / size as f64;
    let bound = size as f64 / 12_500_000.0;
    (copies, fleet.now().since_start().as_secs_f64() / bound)
}

#[test]
fn a_flash_crowd_costs_the_origin_little_more_than_one_copy() {
    for (name, want) in [("whole", ReaderWant::Whole), ("in order", everything())] {
        for (nodes, size) in [(10, 100 * MIB), (8, 50 * MIB), (16, 50 * MIB)] {
            let (copies, time) = flash_crowd(7, nodes, size, &want);
            println!(
                "{name}: {nodes} nodes, {} MiB: origin sent {copies:.2} copies, last / bound {time:.2}",
                size / MIB
            );
            assert!(copies < 1.5 && time < 1.5, "{name}: {copies} copies, {time} of the bound");
        }
    }
}

#[test]
fn two_zones_share_one_copy_over_the_link() {
    for (name, want) in [("whole", ReaderWant::Whole), ("in order", everything())] {
        let size = 50 * MIB;
        let network = NetworkConfig { zone_rate_bytes_per_sec: Some(6_250_000), ..NetworkConfig::default() };
        let mut fleet = Fleet::new(FleetConfig { network, ..FleetConfig::default() }, 3);
        let truth = Truth::new(3, size);
        let source = fleet.add(origin());
        fleet.store(source, &truth);
        let east: Zone = "east".parse().unwrap();
        for number in 0..16 {
            let zone = if number < 8 { Zone::default() } else { east.clone() };
            let node = fleet.add(NodeSpec { zone, ..NodeSpec::default() });
            fleet.read(node, truth.metainfo.digest(), want.clone());
        }
        assert!(fleet.run_readers(secs(300)), "{name}");
        let link = fleet.crossed_bytes() as f64 / size as f64;
        let time = fleet.now().since_start().as_secs_f64() / (size as f64 / 6_250_000.0);
        println!("{name}: link {link:.2} copies, last / bound {time:.2}");
        assert!(link < 1.2 && time < 1.5, "{name}: {link} copies, {time} of the bound");
    }
}

/// A fleet of two zones with a link of `rate` bytes a second; the first has an origin that holds `size` bytes.
fn two_zones(seed: u64, rate: u64, size: u64) -> (Fleet, Truth) {
    let network = NetworkConfig { zone_rate_bytes_per_sec: Some(rate), ..NetworkConfig::default() };
    let mut fleet = Fleet::new(FleetConfig { network, ..FleetConfig::default() }, seed);
    let truth = Truth::new(seed, size);
    let source = fleet.add(origin());
    fleet.store(source, &truth);
    (fleet, truth)
}

#[test]
fn a_zones_origin_imports_for_all_its_hosts() {
    let (rate, size) = (6_250_000, 50 * MIB);
    for (name, want) in [("whole", ReaderWant::Whole), ("in order", everything())] {
        let (mut fleet, truth) = two_zones(4, rate, size);
        let east: Zone = "east".parse().unwrap();
        let spec = NodeSpec { origin: true, ..NodeSpec::with_rate(50_000_000) };
        let importer = fleet.add(NodeSpec { zone: east.clone(), ..spec });
        // More than the origin has room for: most have to leave imports to somebody they are not connected to.
        for _ in 0..60 {
            let node = fleet.add(NodeSpec { zone: east.clone(), ..NodeSpec::default() });
            fleet.read(node, truth.metainfo.digest(), want.clone());
        }
        assert!(fleet.run_readers(secs(300)), "{name}");
        let link = fleet.crossed_bytes() as f64 / size as f64;
        let time = fleet.now().since_start().as_secs_f64() / (size as f64 / rate as f64);
        println!("{name}: link {link:.2} copies, last / bound {time:.2}");
        assert!(link < 1.05 && time < 1.5, "{name}: {link} copies, {time} of the bound");
        assert_eq!(fleet.pieces_of(importer, &truth.metainfo.digest()), 200);
    }
}

#[test]
fn two_owners_of_a_zone_share_one_copy_over_the_link() {
    let (rate, size) = (6_250_000, 50 * MIB);
    let (mut fleet, truth) = two_zones(5, rate, size);
    let east: Zone = "east".parse().unwrap();
    for _ in 0..2 {
        let owner = fleet.add(NodeSpec { zone: east.clone(), ..origin() });
        fleet.read(owner, truth.metainfo.digest(), ReaderWant::Whole);
    }
    assert!(fleet.run_readers(secs(300)));
    let link = fleet.crossed_bytes() as f64 / size as f64;
    let time = fleet.now().since_start().as_secs_f64() / (size as f64 / rate as f64);
    println!("link {link:.2} copies, last / bound {time:.2}");
    assert!(link < 1.05 && time < 1.3, "{link} copies, {time} of the bound");
}

#[test]
fn what_an_origin_fetches_is_fetched_by_no_other_origin() {
    let (mut fleet, truth) = two_zones(6, 6_250_000, 50 * MIB);
    let east: Zone = "east".parse().unwrap();
    let others = [fleet.add(origin()), fleet.add(NodeSpec { zone: east, ..origin() })];
    let keeper = fleet.add(origin());
    let digest = truth.metainfo.digest();
    fleet.read(keeper, digest, ReaderWant::Whole);
    assert!(fleet.run_readers(secs(300)));
    assert_eq!(fleet.pieces_of(keeper, &digest), 200);
    assert_eq!(others.map(|other| fleet.pieces_of(other, &digest)), [0, 0]);
    assert_eq!(fleet.crossed_bytes(), 0);
}

#[test]
fn an_owner_next_door_is_heard_before_anything_is_imported() {
    // The other zone is as near, and there is a connection already; to the owner next door there is none yet.
    let near = NetworkConfig::default().delay;
    let network = NetworkConfig { zone_delay: near, ..NetworkConfig::default() };
    let mut fleet = Fleet::new(FleetConfig { network, ..FleetConfig::default() }, 7);
    let (first, second) = (Truth::new(7, MIB), Truth::new(8, 50 * MIB));
    let far = fleet.add(origin());
    let east: Zone = "east".parse().unwrap();
    let reader = fleet.add(NodeSpec { zone: east.clone(), ..origin() });
    fleet.store(far, &first);
    fleet.store(far, &second);
    fleet.read(reader, first.metainfo.digest(), ReaderWant::Whole);
    assert!(fleet.run_readers(secs(60)));
    let crossed = fleet.crossed_bytes();
    assert_eq!(crossed, MIB);
    let owner = fleet.add(NodeSpec { zone: east, ..origin() });
    fleet.store(owner, &second);
    fleet.read(reader, second.metainfo.digest(), ReaderWant::Whole);
    assert!(fleet.run_readers(secs(60)));
    assert_eq!(fleet.crossed_bytes(), crossed);
}

#[test]
fn a_stopped_peer_is_overcome_quickly() {
    let mut fleet = Fleet::new(FleetConfig::default(), 5);
    let truth = Truth::new(5, 40 * MIB);
    let digest = truth.metainfo.digest();
    let sources: Vec<_> = (0..2)
        .map(|_| {
            let source = fleet.add(origin());
            fleet.store(source, &truth);
            source
        })
        .collect();
    let node = fleet.add(NodeSpec::default());
    let reader = fleet.read(node, digest, everything());
    fleet.run_for(secs(1));
    assert!(fleet.outcome(node, reader).until > 0);
    fleet.stop(sources[0]);
    assert!(fleet.run_readers(secs(8)), "stalled for too long");
    // 40 MiB at 12.5 MB/s are 3.4 s; the stall may cost three more.
    assert!(fleet.now().since_start() < Duration::from_millis(6500), "{:?}", fleet.now());
}

#[test]
fn a_sole_slow_peer_is_not_given_up() {
    let mut fleet = Fleet::new(FleetConfig::default(), 6);
    let truth = Truth::new(6, 2 * MIB);
    let slow = fleet.add(NodeSpec { origin: true, ..NodeSpec::with_rate(20_000) });
    fleet.store(slow, &truth);
    let node = fleet.add(NodeSpec::default());
    let reader = fleet.read(node, truth.metainfo.digest(), everything());
    assert!(fleet.run_readers(secs(150)));
    assert_eq!(fleet.outcome(node, reader).until, 2 * MIB);
    let sent = fleet.tally(slow).sent_bytes;
    assert!(sent < 2 * MIB + MIB / 2, "pieces were sent again: {sent}");
}

#[test]
fn corrupt_peers_are_dropped_and_the_rest_suffices() {
    let mut fleet = Fleet::new(FleetConfig::default(), 8);
    let truth = Truth::new(8, 20 * MIB);
    let digest = truth.metainfo.digest();
    let source = fleet.add(origin());
    fleet.store(source, &truth);
    let liar = fleet.add(NodeSpec { corrupt: true, ..NodeSpec::default() });
    fleet.store(liar, &truth);
    let node = fleet.add(NodeSpec::default());
    fleet.read(node, digest, everything());
    assert!(fleet.run_readers(secs(30)));
    assert!(fleet.is_complete(node, &digest));
    // What was in flight when the first piece was found out, and no more.
    assert!(fleet.tally(liar).sent_bytes < 4 * MIB, "{:?}", fleet.tally(liar));
}

#[test]
fn nobody_has_it_is_said_at_once_and_nobody_there_after_patience() {
    let truth = Truth::new(9, MIB);
    let digest = truth.metainfo.digest();
    // Three origins that lack it answer with authority, none waiting for another.
    let mut fleet = Fleet::new(FleetConfig::default(), 9);
    for _ in 0..3 {
        fleet.add(origin());
    }
    let node = fleet.add(NodeSpec::default());
    let reader = fleet.read(node, digest, everything());
    assert!(fleet.run_readers(secs(20)));
    assert_eq!(fleet.outcome(node, reader).failed, Some(ReadError::NotFound));
    assert!(fleet.now().since_start() < secs(1), "{:?}", fleet.now());
    // No origin at all.
    let mut fleet = Fleet::new(FleetConfig::default(), 9);
    let node = fleet.add(NodeSpec::default());
    let reader = fleet.read(node, digest, everything());
    assert!(fleet.run_readers(secs(20)));
    assert_eq!(fleet.outcome(node, reader).failed, Some(ReadError::Unavailable));
    let took = fleet.now().since_start();
    assert!((secs(9)..secs(12)).contains(&took), "{took:?}");
}

#[test]
fn a_pull_waits_for_an_origin_that_comes_back() {
    let mut fleet = Fleet::new(FleetConfig::default(), 10);
    let truth = Truth::new(10, 5 * MIB);
    let source = fleet.add(origin());
    fleet.store(source, &truth);
    fleet.kill(source);
    let node = fleet.add(NodeSpec::default());
    let reader = fleet.read(node, truth.metainfo.digest(), everything());
    fleet.run_for(secs(2));
    assert_eq!(fleet.outcome(node, reader).failed, None);
    fleet.restart(source);
    assert!(fleet.run_readers(secs(5)));
    assert_eq!(fleet.outcome(node, reader).until, 5 * MIB);
}

#[test]
fn peers_that_vanish_in_mid_download_are_searched_again() {
    let mut fleet = Fleet::new(FleetConfig::default(), 11);
    let truth = Truth::new(11, 40 * MIB);
    let source = fleet.add(origin());
    fleet.store(source, &truth);
    let node = fleet.add(NodeSpec::default());
    let reader = fleet.read(node, truth.metainfo.digest(), everything());
    fleet.run_for(secs(1));
    fleet.kill(source);
    fleet.run_for(secs(4));
    let before = fleet.outcome(node, reader);
    assert!(before.failed.is_none() && before.done.is_none() && before.until > 0, "{before:?}");
    fleet.restart(source);
    assert!(fleet.run_readers(secs(10)));
    assert_eq!(fleet.outcome(node, reader).until, 40 * MIB);
}

#[test]
fn a_backend_is_read_once_for_a_whole_crowd() {
    let mut fleet = Fleet::new(FleetConfig::default(), 12);
    let truth = Truth::new(12, 20 * MIB);
    let source = fleet.add(origin());
    fleet.store_in_backend(source, &truth);
    for _ in 0..5 {
        let node = fleet.add(NodeSpec::default());
        fleet.read(node, truth.metainfo.digest(), everything());
    }
    assert!(fleet.run_readers(secs(30)));
    let pieces = u64::from(truth.metainfo.layout().piece_count());
    assert_eq!(fleet.tally(source).backend_pieces, pieces);
}

#[test]
fn an_owner_that_lacks_a_blob_finds_it_for_who_asks() {
    let mut fleet = Fleet::new(FleetConfig::default(), 13);
    let truth = Truth::new(13, 5 * MIB);
    let digest = truth.metainfo.digest();
    let holder = fleet.add(NodeSpec::default());
    fleet.store(holder, &truth);
    let owners = [fleet.add(origin()), fleet.add(origin())];
    let node = fleet.add(NodeSpec::default());
    fleet.read(node, digest, everything());
    assert!(fleet.run_readers(secs(10)));
    assert!(owners.iter().any(|owner| fleet.pieces_of(*owner, &digest) > 0));
}

#[test]
fn blobs_from_one_peer_come_side_by_side() {
    let mut fleet = Fleet::new(FleetConfig::default(), 14);
    let source = fleet.add(origin());
    let node = fleet.add(NodeSpec::default());
    let readers: Vec<_> = (0..5)
        .map(|number| {
            let truth = Truth::new(100 + number, 20 * MIB);
            fleet.store(source, &truth);
            fleet.read(node, truth.metainfo.digest(), everything())
        })
        .collect();
    assert!(fleet.run_readers(secs(30)));
    let outcomes: Vec<_> = readers.iter().map(|reader| fleet.outcome(node, *reader)).collect();
    let first_done = outcomes.iter().filter_map(|outcome| outcome.done).min().unwrap();
    for outcome in &outcomes {
        assert!(outcome.first_byte.unwrap() < first_done - secs(1), "{outcomes:?}");
    }
}

#[test]
fn downloads_that_share_a_small_buffer_all_end() {
    let mut config = FleetConfig::default();
    Arc::make_mut(&mut config.engine).buffer_bytes_max = MIB;
    let mut fleet = Fleet::new(config, 15);
    let node = fleet.add(NodeSpec::default());
    for number in 0..8 {
        let truth = Truth::new(200 + number, 5 * MIB);
        let source = fleet.add(origin());
        fleet.store(source, &truth);
        fleet.read(node, truth.metainfo.digest(), everything());
    }
    // The fleet checks the limit after every step.
    assert!(fleet.run_readers(secs(60)), "{:#?}", fleet.engine_of(node).swarms().collect::<Vec<_>>());
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let hash = |threads: usize| {
        let mut fleet = Fleet::new(FleetConfig::default(), 16);
        let truth = Truth::new(16, 20 * MIB);
        let source = fleet.add(origin());
        fleet.store(source, &truth);
        for _ in 0..250 {
            let node = fleet.add(NodeSpec::with_rate(125_000_000));
            fleet.read(node, truth.metainfo.digest(), everything());
        }
        let mut fleet = fleet.with_threads(NonZero::new(threads).unwrap());
        assert!(fleet.run_readers(secs(100)), "{threads} threads");
        (fleet.trace_hash(), fleet.events(), fleet.now())
    };
    let alone = hash(1);
    for threads in [2, 5] {
        assert_eq!(hash(threads), alone, "{threads} threads");
    }
}

#[test]
fn what_stood_still_goes_on_from_when_it_is_let_go() {
    let mut fleet = Fleet::new(FleetConfig::default(), 17);
    let truth = Truth::new(17, 10 * MIB);
    let source = fleet.add(origin());
    fleet.store(source, &truth);
    let node = fleet.add(NodeSpec::default());
    let reader = fleet.read(node, truth.metainfo.digest(), everything());
    fleet.run_for(Duration::from_millis(200));
    [source, node].into_iter().for_each(|node| fleet.stop(node));
    fleet.run_for(secs(5));
    assert_eq!(fleet.now().since_start(), Duration::from_millis(5200));
    [source, node].into_iter().for_each(|node| fleet.resume(node));
    assert!(fleet.run_readers(secs(10)));
    // 0.84 s of transfer, less than a quarter of which was over.
    let done = fleet.outcome(node, reader).done.unwrap().since_start();
    assert!(done > Duration::from_millis(5800), "{done:?}");
}

#[test]
fn what_is_said_while_the_network_is_cut_is_heard_when_it_is_not() {
    let mut fleet = Fleet::new(FleetConfig::default(), 18);
    let [first, second] = [18, 19].map(|seed| Truth::new(seed, MIB));
    let source = fleet.add(origin());
    let node = fleet.add(NodeSpec::default());
    [&first, &second].into_iter().for_each(|truth| fleet.store(source, truth));
    fleet.read(node, first.metainfo.digest(), everything());
    assert!(fleet.run_readers(secs(10)));
    fleet.partition(&[node], Cut::Silent);
    let said = fleet.tally(node).messages;
    let reader = fleet.read(node, second.metainfo.digest(), everything());
    fleet.run_for(Duration::from_millis(10));
    let answered = fleet.tally(source).messages;
    fleet.run_for(secs(1));
    // What was under way when it was cut came before that, and what the node says does not.
    assert_eq!(fleet.tally(source).messages, answered);
    assert!(fleet.tally(node).messages > said && fleet.outcome(node, reader).until == 0);
    fleet.heal();
    assert!(fleet.run_readers(secs(10)));
    assert_eq!(fleet.outcome(node, reader).until, MIB);
}
