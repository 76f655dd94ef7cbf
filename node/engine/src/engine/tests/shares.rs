//! What each of several owners is asked for first.

use super::*;
use crate::swarm::shares::Share;

/// Whether peer 0, an owner with the whole blob, is asked for its share beside peer `other` before anything else, by a download in no order.
fn its_share_comes_first(other: u8, others: &[Op], seed: u64) -> bool {
    let config = EngineConfig {
        pipeline_pieces_start: 1,
        pipeline_pieces_max: 1,
        ahead_pieces_lone: 2,
        ..EngineConfig::default()
    };
    let mut world = World::new(config, seed);
    for op in [Op::Connect(0), Op::Read(1), Op::Opened(0, 1), Op::Found(0, true)] {
        world.apply(op);
    }
    for op in others.iter().cloned() {
        world.apply(op);
    }
    for op in [Op::Join(0, false, false), Op::Metainfo(0), Op::Bitfield(0, u16::MAX)] {
        world.apply(op);
    }
    let share = Share::new(&world.digest(), &peer(0), [&peer(other)]);
    let mut asked = Vec::new();
    while let Some((number, _)) = world.first_request(0) {
        assert_eq!(world.requested[&peer(0)].len(), 1, "one after the other");
        asked.push(share.has(number));
        world.apply(Op::Deliver(0, true));
        world.apply(Op::Verify(true));
    }
    assert_eq!(asked.len(), PIECES as usize, "and then for the rest");
    assert!((1..PIECES as usize).contains(&asked.iter().filter(|own| **own).count()));
    asked.is_sorted_by(|a, b| a >= b)
}

#[test]
fn owners_are_asked_for_their_shares_first() {
    let always = |others: &[Op]| (0..20).all(|seed| its_share_comes_first(1, others, seed));
    let other = [Op::Found(1, true), Op::Connect(1)];
    let with = |more: &[Op]| [&other[..], more].concat();
    assert!(always(&other), "the other may have it");
    assert!(always(&with(&[Op::Absent(1, 3)])), "the other is full");
    assert!(always(&[Op::Found(1, true), Op::Found(2, false), Op::Connect(2)]), "whoever else is there");
    assert!(!always(&[]), "there is no other");
    assert!(!always(&[Op::Found(1, false)]), "the other is no owner");
    assert!(always(&[Op::Found(1, false), Op::Found(1, true)]), "as is known later");
    assert!(!always(&with(&[Op::Absent(1, 0)])), "the other does not have it");
    assert!(!always(&[Op::Found(1, true), Op::ConnectFailed(1)]), "the other is gone");
    let without = [Op::Join(1, false, false), Op::Metainfo(1), Op::Bitfield(1, 0)];
    assert!(!always(&with(&without)), "the other fetches it too");
    assert!(!always(&with(&[Op::Join(1, true, false)])), "the other searches too");
    let far = [Op::Found(3, true), Op::Connect(3)];
    assert!(!(0..20).all(|seed| its_share_comes_first(3, &far, seed)), "the other is far away");
    let own = [Op::Found(1, true), Op::Found(2, true)];
    assert!(
        !(0..20).all(|seed| its_share_comes_first(1, &own, seed)),
        "what there is of it beside two is less"
    );
}

#[test]
fn a_seeder_that_is_no_owner_has_no_share() {
    let asked_first = |owner: bool, seed| {
        let config =
            EngineConfig { pipeline_pieces_start: 2, pipeline_pieces_max: 2, ..EngineConfig::default() };
        let mut world = World::new(config, seed);
        let found = [Op::Connect(2), Op::Read(1), Op::Opened(0, 1), Op::Found(0, true), Op::Found(1, true)];
        for op in found.into_iter().chain([Op::Found(2, owner), Op::Join(2, false, false)]) {
            world.apply(op);
        }
        world.apply(Op::Metainfo(2));
        world.apply(Op::Bitfield(2, u16::MAX));
        let share = Share::new(&world.digest(), &peer(2), [&peer(0), &peer(1)]);
        let asked = &world.requested[&peer(2)];
        assert_eq!(asked.len(), 2);
        asked.keys().all(|number| share.has(*number))
    };
    assert!((0..20).all(|seed| asked_first(true, seed)), "an owner");
    assert!(!(0..20).all(|seed| asked_first(false, seed)), "anybody else");
}

#[test]
fn of_its_share_a_lone_seeder_is_asked_near_the_front_as_far_as_several_would_be() {
    // Two owners and two pieces ahead: those of its share among the first four come before those behind.
    let mut spread = false;
    for seed in 0..40 {
        let config = EngineConfig {
            pipeline_pieces_start: 1,
            pipeline_pieces_max: 1,
            ahead_pieces_lone: 2,
            ..EngineConfig::default()
        };
        let mut world = World::new(config, seed);
        for op in [Op::Connect(0), Op::Read(1), Op::Opened(0, 1), Op::Found(0, true), Op::Found(1, true)] {
            world.apply(op);
        }
        for op in [Op::Join(0, false, false), Op::Metainfo(0), Op::Bitfield(0, u16::MAX)] {
            world.apply(op);
        }
        let share = Share::new(&world.digest(), &peer(0), [&peer(1)]);
        let (number, _) = world.first_request(0).unwrap();
        if (0..4).any(|near| share.has(near)) {
            assert!(number < 4 && share.has(number), "{number}, seed {seed}");
            spread |= number >= 2;
        }
    }
    assert!(spread, "further than alone");
}

#[test]
fn two_owners_with_all_of_a_blob_are_asked_for_their_own_shares() {
    for (seed, order) in (0..20).zip([[0, 1], [1, 0]].into_iter().cycle()) {
        let config =
            EngineConfig { pipeline_pieces_start: 2, pipeline_pieces_max: 2, ..EngineConfig::default() };
        let mut world = World::new(config, seed);
        let found = [Op::Connect(0), Op::Connect(1), Op::Read(1), Op::Opened(0, 1)];
        for op in found.into_iter().chain([Op::Found(0, true), Op::Found(1, true)]) {
            world.apply(op);
        }
        for n in order {
            for op in [Op::Join(n, false, false), Op::Metainfo(n), Op::Bitfield(n, u16::MAX)] {
                world.apply(op);
            }
        }
        for (own, other) in [(0, 1), (1, 0)] {
            let share = Share::new(&world.digest(), &peer(own), [&peer(other)]);
            let asked: Vec<u32> = world.requested[&peer(own)].keys().copied().collect();
            assert!(!asked.is_empty() && asked.iter().all(|number| share.has(*number)), "{asked:?}");
        }
    }
}
