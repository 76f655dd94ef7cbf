//! What many peers, or few, make a download do.

use super::*;

/// Whether all that is asked of peer 0, with these pieces, by a download in no order lies within so many pieces of the first missing one.
fn stays_near_the_front(bits: u16, others: &[Op], width: u32, seed: u64) -> bool {
    let config = EngineConfig { ahead_pieces: 3, ahead_pieces_lone: 4, ..EngineConfig::default() };
    let mut world = World::new(config, seed);
    for op in [Op::Connect(0), Op::Read(1), Op::Opened(0, 1), Op::Found(0, true)] {
        world.apply(op);
    }
    for op in others.iter().cloned() {
        world.apply(op);
    }
    for op in [Op::Join(0, false, false), Op::Metainfo(0), Op::Bitfield(0, bits)] {
        world.apply(op);
    }
    let mut near = true;
    while let Some(open) = world.requested.get(&peer(0)).filter(|open| !open.is_empty()) {
        let front = (0..PIECES).find(|number| !world.stored.contains(number)).unwrap();
        near &= open.keys().all(|number| *number < front + width);
        world.apply(Op::Deliver(0, true));
        world.apply(Op::Verify(true));
    }
    assert_eq!(world.stored.len(), bits.count_ones().min(PIECES) as usize, "it has all there is");
    near
}

#[test]
fn peers_and_a_lone_seeder_are_asked_near_the_front() {
    let (most, all) = (0x7ff, u16::MAX);
    let far = [Op::Found(3, false)];
    for seed in 0..20 {
        assert!(stays_near_the_front(most, &[], 3, seed), "a peer, seed {seed}");
        assert!(stays_near_the_front(all, &[], 4, seed), "a lone seeder, seed {seed}");
    }
    let always =
        |width, bits, others: &[Op]| (0..20).all(|seed| stays_near_the_front(bits, others, width, seed));
    assert!(!always(2, most, &[]), "a peer is asked for the rarest of three");
    assert!(!always(3, all, &[]), "a lone seeder for that of four");
    // The rarest of all of few pieces that are as rare: in their order.
    assert!(always(3, all, &far), "as before where another zone is known of");
}

#[test]
fn another_zone_is_known_of_while_somebody_there_is_connected_or_was_named() {
    let mut world = downloading();
    assert!(world.engine.uploads.one_zone);
    world.apply(Op::Connect(3));
    assert!(!world.engine.uploads.one_zone, "connected");
    world.apply(Op::Disconnect(3));
    assert!(world.engine.uploads.one_zone);
    world.apply(Op::Found(4, false));
    assert!(!world.engine.uploads.one_zone, "named");
    world.apply(Op::Connect(1));
    assert!(!world.engine.uploads.one_zone, "still");
}

#[test]
fn who_has_enough_to_ask_for_hears_of_more_a_little_later() {
    let config = EngineConfig { have_enough_pieces: 2, ..EngineConfig::default() };
    let (soon, late) = (config.have_delay, config.have_delay_enough);
    let mut world = downloading_with(config);
    for op in [Op::Connect(1), Op::Join(1, false, false), Op::Bitfield(1, 0)] {
        world.apply(op);
    }
    let next = |world: &mut World, wait: Duration| {
        world.apply(Op::Deliver(0, true));
        world.apply(Op::Verify(true));
        world.wait(wait);
    };
    next(&mut world, soon);
    next(&mut world, soon);
    assert_eq!(world.told[&peer(1)], [BTreeSet::from([0]), BTreeSet::from([1])], "it has nothing to ask for");
    next(&mut world, soon);
    assert_eq!(world.told[&peer(1)].len(), 2, "it has two");
    assert_eq!(world.told[&peer(0)].len(), 3, "a seeder is told at once");
    next(&mut world, late);
    assert_eq!(world.told[&peer(1)][2..], [BTreeSet::from([2, 3])], "both at once, and not never");
}

#[test]
fn other_zones_hear_of_the_first_few_pieces_at_once_and_of_the_others_in_time() {
    let mut world = downloading();
    for n in [1, 3] {
        for op in [Op::Connect(n), Op::Join(n, false, false), Op::Bitfield(n, 0)] {
            world.apply(op);
        }
    }
    for _ in 0..6 {
        world.apply(Op::Deliver(0, true));
        world.apply(Op::Verify(true));
    }
    let single = |pieces: std::ops::Range<u32>| pieces.map(|n| BTreeSet::from([n])).collect::<Vec<_>>();
    assert_eq!(world.told[&peer(1)], single(0..6));
    assert_eq!(world.told[&peer(3)], single(0..4));
    let delay = world.config.have_delay_far;
    world.wait(delay);
    assert_eq!(world.told[&peer(3)][4..], [BTreeSet::from([4, 5])]);
}

/// A seeder that turned two of three away and has sent a piece to the first, in so many milliseconds.
fn seeder_with_a_crowd(millis: u16, bytes: bool) -> World {
    let config = EngineConfig {
        peers_per_swarm_max: 1,
        peers_per_swarm_inbound_max: 1,
        peers_per_swarm_seed_max: 3,
        seed_time: Duration::from_millis(300),
        ..EngineConfig::default()
    };
    let mut world = World::new(config, 1);
    (world.stored, world.finished) = ((0..PIECES).collect(), true);
    for op in [Op::Connect(0), Op::Join(0, false, false), Op::Opened(2, 1), Op::Bitfield(0, 0)] {
        world.apply(op);
    }
    for n in 1..3 {
        world.apply(Op::Connect(n));
        world.apply(Op::Join(n, false, false));
    }
    assert_eq!(world.channels.keys().collect::<Vec<_>>(), [&peer(0)], "the others were turned away");
    for op in [Op::Request(0, 0), Op::Wait(millis), Op::Sent(bytes)] {
        world.apply(op);
    }
    world
}

/// How many of two that it turned away a seeder asks once a piece was sent in so many milliseconds.
fn invited_after(millis: u16, bytes: bool) -> usize {
    seeder_with_a_crowd(millis, bytes).channels.len() - 1
}

#[test]
fn what_one_of_a_crowd_has_from_elsewhere_is_not_given_again() {
    let config = EngineConfig::default();
    let served = |held: u16, both: bool, patience: Duration| {
        let mut world = seeder_with_a_crowd(90, true);
        world.sending.clear();
        if both {
            world.apply(Op::Have(0, 5, 1));
        }
        for op in
            [Op::Join(1, false, false), Op::Join(2, false, false), Op::Bitfield(1, held), Op::Bitfield(2, 0)]
        {
            world.apply(op);
        }
        world.apply(Op::Request(2, 5));
        world.wait(patience);
        world.apply(Op::Request(2, 5));
        world.sending.iter().any(|(to, piece)| (*to, piece.get()) == (peer(2), 5))
    };
    let sent = |held, patience| served(held, false, patience);
    assert!(sent(0, Duration::ZERO), "nobody has it");
    assert!(!served(1 << 5, true, Duration::from_secs(3)), "two have it, and one of them will");
    assert!(!sent(1 << 5, Duration::ZERO), "one of them has it, who passes it on");
    let passing_on = Duration::from_millis(90) * 3 * 2;
    assert!(!sent(1 << 5, passing_on - Duration::from_millis(1)), "to one after the other");
    assert!(sent(1 << 5, passing_on), "but does not, it seems");
    // With few peers every source gives what it is asked for.
    let mut world = World::new(config, 1);
    (world.stored, world.finished) = ((0..PIECES).collect(), true);
    for op in [Op::Connect(1), Op::Join(1, false, false), Op::Opened(2, 1), Op::Bitfield(1, 1 << 5)] {
        world.apply(op);
    }
    for op in [Op::Connect(2), Op::Join(2, false, false), Op::Bitfield(2, 0), Op::Request(2, 5)] {
        world.apply(op);
    }
    assert_eq!(world.sending.len(), 1);
}

#[test]
fn a_seeder_with_room_asks_those_that_it_turned_away() {
    assert_eq!(invited_after(90, true), 2, "three pieces in the time");
    assert_eq!(invited_after(150, true), 1);
    assert_eq!(invited_after(301, true), 0, "its wire is busy with the one it has");
    assert_eq!(invited_after(100, false), 0, "nothing was sent");
}

#[test]
fn a_send_that_is_held_back_begins_in_time() {
    let config = EngineConfig { upload_burst: 1, ..EngineConfig::default() };
    let mut world = World::new(config, 1);
    (world.stored, world.finished) = ((0..PIECES).collect(), true);
    for op in [Op::Connect(0), Op::Join(0, false, false), Op::Opened(2, 1), Op::Bitfield(0, 0)] {
        world.apply(op);
    }
    world.apply(Op::Request(0, 3));
    world.apply(Op::Request(0, 5));
    assert_eq!(world.sending.len(), 1);
    world.wait(Duration::from_millis(49));
    assert_eq!(world.sending.len(), 1, "nothing is known of the wire");
    world.wait(Duration::from_millis(1));
    assert_eq!(world.sending.len(), 2);
}

#[test]
fn who_is_behind_its_peers_looks_for_more() {
    let start = |bits| {
        let config =
            EngineConfig { peers_per_swarm_max: 1, peers_per_swarm_behind_max: 4, ..EngineConfig::default() };
        let mut world = World::new(config, 1);
        let known = [Op::Connect(0), Op::Connect(1), Op::Read(2), Op::Opened(0, 1), Op::Found(0, true)];
        for op in known.into_iter().chain([Op::Join(0, false, false), Op::Metainfo(0), Op::Bitfield(0, bits)])
        {
            world.apply(op);
        }
        world
    };
    let asks = |world: &World| world.channels.contains_key(&peer(1));
    let mut world = start(0x3ff);
    world.apply(Op::Found(1, false));
    assert!(asks(&world), "ten pieces behind");
    let mut world = start(0x3ff);
    world.apply(Op::Found(3, false));
    world.apply(Op::Found(1, false));
    assert!(!asks(&world), "another zone is known of");
    let mut world = start(0);
    world.apply(Op::Found(1, false));
    assert!(!asks(&world), "level");
    for first in [0, 3, 6, 7] {
        world.apply(Op::Have(0, first, 3));
    }
    for _ in 0..8 {
        assert!(!asks(&world), "not looked at for every piece");
        world.apply(Op::Deliver(0, true));
        world.apply(Op::Verify(true));
    }
    assert!(asks(&world), "two behind");
}

#[test]
fn a_seeder_that_refuses_and_refuses_is_left_alone_where_there_are_others() {
    let refused = |others: &[Op]| {
        let mut world = downloading();
        for op in others.iter().cloned().chain([Op::Busy(0), Op::Busy(0), Op::Busy(0)]) {
            world.apply(op);
        }
        world
    };
    let open = |world: &World| world.requested.get(&peer(0)).map_or(0, BTreeMap::len);
    let other = [Op::Connect(1), Op::Join(1, false, false), Op::Bitfield(1, u16::MAX)];
    let mut world = refused(&other);
    assert_eq!(open(&world), 0);
    world.apply(Op::Wait(20));
    assert!(open(&world) > 0, "it is asked again");
    assert!(open(&refused(&[])) > 0, "a lone seeder is asked for something else");
    let far = [Op::Found(3, false)];
    assert!(open(&refused(&[&other[..], &far].concat())) > 0, "so it is where zones are far");
}

#[test]
fn a_lone_seeder_that_refuses_many_in_a_row_is_left_alone_for_a_short_while() {
    rests_after_many_refusals(&[]);
}

#[test]
fn so_is_anybody_where_there_are_other_zones() {
    // Peer 1 has all of it too, and is busy with one piece.
    let other = [Op::Connect(1), Op::Join(1, false, false), Op::Bitfield(1, u16::MAX), Op::Found(3, false)];
    rests_after_many_refusals(&other);
}

fn rests_after_many_refusals(others: &[Op]) {
    let config = EngineConfig {
        busy_retry: Duration::from_millis(1),
        pipeline_pieces_start: 1,
        pipeline_pieces_max: 1,
        ..EngineConfig::default()
    };
    let mut world = downloading_with(config);
    for op in others.iter().cloned() {
        world.apply(op);
    }
    // Milliseconds until it is asked again after it has refused.
    let refuse = |world: &mut World| {
        world.apply(Op::Busy(0));
        let open = |world: &World| world.requested.get(&peer(0)).is_some_and(|open| !open.is_empty());
        let waits = std::iter::from_fn(|| (!open(world)).then(|| world.apply(Op::Wait(1))));
        waits.take(1000).count()
    };
    let first: Vec<usize> = (0..15).map(|_| refuse(&mut world)).collect();
    assert!(first.iter().all(|wait| *wait < 10), "other pieces, or those that it refused first: {first:?}");
    let rests: Vec<usize> = (0..8).map(|_| refuse(&mut world)).skip(4).collect();
    assert!(rests.iter().all(|wait| (20..70).contains(wait)), "no more than 40 ms, more or less: {rests:?}");
    world.apply(Op::Deliver(0, true));
    world.apply(Op::Verify(true));
    assert!(refuse(&mut world) < 10, "it has sent one");
}

#[test]
fn what_was_given_away_before_the_blob_was_whole_is_given_freely() {
    let mut world = downloading();
    for op in [Op::Connect(1), Op::Join(1, false, false), Op::Bitfield(1, 0)] {
        world.apply(op);
    }
    for number in 0..PIECES {
        world.apply(Op::Deliver(0, true));
        world.apply(Op::Verify(true));
        // The second is asked for and not sent.
        if number < 2 {
            world.apply(Op::Request(1, number as u8));
            world.apply(Op::Sent(number == 0));
        }
    }
    assert_eq!(world.stored.len(), PIECES as usize);
    world.apply(Op::Finish(true));
    for op in [Op::Connect(2), Op::Join(2, false, false), Op::Bitfield(2, 0)] {
        world.apply(op);
    }
    for (n, number) in [(1, 1), (2, 0), (2, 1), (1, 0)] {
        world.apply(Op::Request(n, number));
    }
    let sent: Vec<_> = world.sending.iter().map(|(to, piece)| (*to, piece.get())).collect();
    assert_eq!(
        sent,
        [(peer(1), 1), (peer(2), 0), (peer(1), 0)],
        "the other one is to be had from who got it"
    );
}

#[test]
fn the_first_pieces_go_to_one_of_each_other_zone_at_once() {
    let config = EngineConfig { upload_slots: 1, upload_slots_max: 1, ..EngineConfig::default() };
    let mut world = World::new(config, 1);
    (world.stored, world.finished) = ((0..PIECES).collect(), true);
    for op in [Op::Connect(0), Op::Join(0, false, false), Op::Opened(2, 1)] {
        world.apply(op);
    }
    for n in 1..PEERS {
        world.apply(Op::Connect(n));
        world.apply(Op::Join(n, false, false));
    }
    (0..PEERS).for_each(|n| world.apply(Op::Bitfield(n, 0)));
    let asked = |world: &mut World, n, number| {
        let before = world.sending.len();
        world.apply(Op::Request(n, number));
        world.sending[before..].to_vec() == [(peer(n), world.piece(u32::from(number)))]
    };
    assert!(asked(&mut world, 0, 0), "the first copy");
    assert!(!asked(&mut world, 1, 0), "it is to be had from who got that");
    assert!(asked(&mut world, 3, 0), "another zone waits for it; the only slot is taken");
    assert!(!asked(&mut world, 4, 0), "it is there");
    assert!(!asked(&mut world, 4, 2), "no reader begins with it");
    assert!(!asked(&mut world, 1, 1), "the own zone has its turns");
    assert!(asked(&mut world, 4, 1));
    assert!(!asked(&mut world, 3, 1), "whoever asks first");
    world.apply(Op::Disconnect(3));
    assert!(asked(&mut world, 4, 0), "it is not there any more");
}

/// Somebody who looks for a blob and has heard of three owners here, 0 to 2, and one elsewhere, 3.
fn searching(before: &[Op]) -> World {
    let mut world = World::new(EngineConfig::default(), 1);
    let found = [Op::Read(1), Op::Opened(0, 1)].into_iter().chain((0..4).map(|n| Op::Found(n, true)));
    for op in before.iter().cloned().chain(found) {
        world.apply(op);
    }
    world
}

#[test]
fn two_owners_of_a_zone_are_dialled_and_the_next_when_they_are_silent() {
    let mut world = searching(&[]);
    assert_eq!(world.dialed, [peer(0), peer(1), peer(3)], "two here and one there");
    world.apply(Op::Wait(249));
    assert_eq!(world.dialed.len(), 3);
    world.apply(Op::Wait(60));
    assert_eq!(world.dialed[3..], [peer(2)], "at the next tick");
    let world = searching(&[Op::Connect(2)]);
    assert!(world.channels.contains_key(&peer(2)), "who is connected is asked");
    assert_eq!(world.dialed, [peer(0), peer(1), peer(3)], "as well");
}

#[test]
fn the_next_owner_is_dialled_at_once_when_one_is_of_no_help() {
    let dialed_after = |answer: &[Op]| {
        let mut world = searching(&[]);
        answer.iter().cloned().for_each(|op| world.apply(op));
        world.dialed.contains(&peer(2))
    };
    assert!(dialed_after(&[Op::ConnectFailed(0)]));
    for why in 0..4 {
        assert!(dialed_after(&[Op::Connect(0), Op::Absent(0, why)]), "it does not take part, {why}");
    }
    let joined = |searches| [Op::Connect(0), Op::Join(0, searches, false), Op::Wait(100)];
    assert!(dialed_after(&joined(true)), "it searches too");
    assert!(!dialed_after(&joined(false)), "its metainfo is on its way");
}

#[test]
fn owners_are_dialled_last_once_the_metainfo_is_here() {
    let dialed = |others: &[Op], seed| {
        let config = EngineConfig { peers_per_swarm_max: 1, ..EngineConfig::default() };
        let mut world = World::new(config, seed);
        let here = [Op::Connect(0), Op::Read(1), Op::Opened(0, 1), Op::Found(0, true)];
        let known = [Op::Join(0, false, false), Op::Metainfo(0), Op::Found(1, true)];
        for op in here.into_iter().chain(known).chain(others.iter().cloned()).chain([Op::Leave(0)]) {
            world.apply(op);
        }
        world.dialed
    };
    for seed in 0..8 {
        assert_eq!(dialed(&[], seed), [peer(1)], "there is nobody else");
        assert_eq!(dialed(&[Op::Found(2, false)], seed), [peer(2)]);
    }
}

/// An engine that twenty peers are connected to, and what it has in flight of each blob: the peer, our channel, the piece.
struct Crowd {
    engine: Engine,
    in_flight: BTreeMap<Digest, Vec<(PeerId, u32, PieceIndex)>>,
    buffers: u64,
}

impl Crowd {
    const PEERS: u8 = 20;

    fn new() -> Self {
        let local = PeerId::from_public_key([0xaa; 32]);
        let config = EngineConfig::default();
        let mut engine = Engine::new(config, local, Zone::default(), 1, Timestamp::ZERO);
        for n in 0..Self::PEERS {
            let (peer, zone, roles, endpoints) = (peer(n), Zone::default(), Roles::NONE, Vec::new());
            engine.handle_input(Timestamp::ZERO, Input::PeerConnected { peer, zone, roles, endpoints });
        }
        Self { engine, in_flight: BTreeMap::new(), buffers: 0 }
    }

    fn input(&mut self, input: Input) {
        self.engine.handle_input(Timestamp::ZERO, input);
        while let Some(effect) = self.engine.poll_effect() {
            if let Effect::Expect { peer, channel, digest, piece, .. } = effect {
                self.in_flight.entry(digest).or_default().push((peer, channel, piece));
            }
        }
    }

    /// Downloads a blob of a hundred pieces that every peer has.
    fn download(&mut self, seed: u8) -> Digest {
        let metainfo = Arc::new(metainfo(seed, 100 * PIECE_BYTES));
        let (digest, pieces) = (metainfo.digest(), metainfo.layout().piece_count());
        self.input(Input::ReaderOpened { reader: ReaderId(seed.into()), digest, want: ReaderWant::Whole });
        self.input(Input::BlobOpened {
            digest,
            opened: Opened::Absent { owner: false, backend_down: false },
        });
        self.input(Input::MetainfoLearned { metainfo, vouched: None });
        for n in 0..Self::PEERS {
            let join = Message::Join {
                channel: seed.into(),
                digest,
                wants_metainfo: false,
                probe: false,
                trace: None,
            };
            self.input(Input::Message { peer: peer(n), message: join });
            let to = self
                .engine
                .swarms
                .get(self.engine.names.get(&digest).unwrap())
                .unwrap()
                .members
                .get(&peer(n))
                .unwrap()
                .our_channel;
            let pieces = Bitfield::full(pieces).to_bytes().into();
            self.input(Input::Message { peer: peer(n), message: Message::Bitfield { to, pieces } });
        }
        digest
    }

    fn deliver(&mut self, digest: Digest) -> PieceIndex {
        let (peer, channel, index) = self.in_flight.get_mut(&digest).unwrap().remove(0);
        self.buffers += 1;
        let (piece, buffer) = (index.get(), BufferId(self.buffers));
        self.input(Input::PieceArrived { peer, channel, piece, buffer, since_first: Duration::ZERO });
        index
    }

    fn count(&self, digest: Digest) -> usize {
        self.in_flight.get(&digest).map_or(0, Vec::len)
    }
}

#[test]
fn downloads_at_the_same_time_share_what_may_be_in_flight() {
    let mut crowd = Crowd::new();
    let first = crowd.download(1);
    assert_eq!(crowd.count(first), 20, "eighteen, and a pipeline of two");
    crowd.deliver(first);
    assert_eq!(crowd.count(first), 20, "alone it goes on");
    let second = crowd.download(2);
    assert_eq!(crowd.count(second), 12, "half of eighteen and two, and a pipeline");
    for _ in 0..30 {
        crowd.deliver(first);
        assert_eq!(crowd.count(second), 12);
    }
    assert_eq!(crowd.count(first), 12, "the first has come down to its part");
    while crowd.count(second) > 0 {
        let piece = crowd.deliver(second);
        crowd.input(Input::PieceVerified { digest: second, piece });
    }
    assert!(crowd.count(first) < 20, "who sent the last piece was asked for more, and nobody else");
    crowd.input(Input::BlobFinished { digest: second });
    assert_eq!(crowd.count(first), 20, "alone again");
    let third = crowd.download(3);
    for _ in 0..8 {
        crowd.deliver(first);
    }
    assert_eq!((crowd.count(first), crowd.count(third)), (12, 12));
    crowd.in_flight.remove(&third);
    crowd.input(Input::BlobRemoved { digest: third });
    assert_eq!(crowd.count(first), 20, "the other is given up");
}
