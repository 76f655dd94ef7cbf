//! What each of several owners is asked for first.

use super::*;
use crate::swarm::shares::Share;

/// A download in no order that has been told so much; a peer is asked for `pipeline` pieces at once, and a lone seeder without a
/// share for the first two missing.
fn told(pipeline: u32, ops: &[Op], seed: u64) -> World {
    let config = EngineConfig {
        pipeline_pieces_start: pipeline,
        pipeline_pieces_max: pipeline,
        ahead_pieces_lone: 2,
        ..EngineConfig::default()
    };
    let mut world = World::new(config, seed);
    for op in [Op::Read(1), Op::Opened(0, 1)].iter().chain(ops).cloned() {
        world.apply(op);
    }
    world
}

/// A peer that is connected has the whole blob.
fn seeds(n: u8) -> [Op; 3] {
    [Op::Join(n, false, false), Op::Metainfo(n), Op::Bitfield(n, u16::MAX)]
}

/// Whether peer 0, an owner with the whole blob, is asked for its share beside peer `other` before anything else, by a download in no order.
fn its_share_comes_first(other: u8, others: &[Op], seed: u64) -> bool {
    let found = [Op::Connect(0), Op::Found(0, true)];
    let mut world = told(1, &[&found, others, &seeds(0)].concat(), seed);
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
        let found = [Op::Connect(2), Op::Found(0, true), Op::Found(1, true), Op::Found(2, owner)];
        let world = told(2, &[&found[..], &seeds(2)].concat(), seed);
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
        let found = [Op::Connect(0), Op::Found(0, true), Op::Found(1, true)];
        let world = told(1, &[&found[..], &seeds(0)].concat(), seed);
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
        let found = [Op::Connect(0), Op::Connect(1), Op::Found(0, true), Op::Found(1, true)];
        let world = told(2, &[&found[..], &seeds(order[0]), &seeds(order[1])].concat(), seed);
        for (own, other) in [(0, 1), (1, 0)] {
            let share = Share::new(&world.digest(), &peer(own), [&peer(other)]);
            let asked: Vec<u32> = world.requested[&peer(own)].keys().copied().collect();
            assert!(!asked.is_empty() && asked.iter().all(|number| share.has(*number)), "{asked:?}");
        }
    }
}
