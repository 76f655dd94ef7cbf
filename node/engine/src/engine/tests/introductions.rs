//! Who is told of whom when two peers begin to share a blob.

use super::*;

/// A process that downloads, with a peer that came to it and one that it asked itself.
fn engine_with_two(zone_of_asked: &Zone) -> (Engine, Vec<Effect>) {
    let mut engine = Engine::new(EngineConfig::default(), peer(99), Zone::default(), 1, Timestamp::ZERO);
    let digest = vouched(1).value().digest();
    let metainfo = Arc::new(vouched(1).value().clone());
    let opened = Opened::Absent { owner: false, backend_down: false };
    let mut input = |input| engine.handle_input(Timestamp::ZERO, input);
    input(Input::ReaderOpened { reader: ReaderId(0), digest, want: ReaderWant::Whole });
    input(Input::BlobOpened { digest, opened });
    input(Input::MetainfoLearned { metainfo, vouched: Some(vouched(1)) });
    input(connected(1, &Zone::default()));
    input(joins(1));
    input(Input::PeersFound {
        digest,
        source: LookupSource::Dht,
        peers: vec![PeerHint { zone: zone_of_asked.clone(), ..hint(2) }],
    });
    input(connected(2, zone_of_asked));
    let before = effects(&mut engine);
    let asked = |effect: &Effect| matches!(effect, Effect::Send { peer: to, message: Message::Join { .. } } if *to == peer(2));
    assert!(before.iter().any(asked), "{before:?}");
    engine.handle_input(Timestamp::ZERO, joins(2));
    let after = effects(&mut engine);
    (engine, after)
}

fn connected(n: u8, zone: &Zone) -> Input {
    let (roles, endpoints) = (Roles::NONE.with(Role::Node), hint(n).endpoints);
    Input::PeerConnected { peer: peer(n), zone: zone.clone(), roles, endpoints }
}

fn joins(n: u8) -> Input {
    let digest = vouched(1).value().digest();
    let message = Message::Join { channel: 7, digest, wants_metainfo: false, probe: false, trace: None };
    Input::Message { peer: peer(n), message }
}

/// Who was told of whom, in order of the former.
fn told(effects: &[Effect]) -> BTreeMap<PeerId, BTreeSet<PeerId>> {
    let mut told = BTreeMap::<PeerId, BTreeSet<PeerId>>::new();
    for effect in effects {
        if let Effect::Send { peer, message: Message::Peers { peers, .. } } = effect {
            told.entry(*peer).or_default().extend(peers.iter().map(|hint| hint.peer));
        }
    }
    told
}

#[test]
fn who_was_asked_introduces_who_came() {
    let (mut engine, _) = engine_with_two(&Zone::default());
    engine.handle_input(Timestamp::ZERO, connected(3, &Zone::default()));
    engine.handle_input(Timestamp::ZERO, joins(3));
    let expected = [(1, vec![3]), (2, vec![3]), (3, vec![1, 2])];
    let expected = expected.map(|(to, of)| (peer(to), of.into_iter().map(peer).collect()));
    assert_eq!(told(&effects(&mut engine)), BTreeMap::from(expected));
}

#[test]
fn who_asks_introduces_nobody_but_where_there_are_other_zones() {
    let (_, answered) = engine_with_two(&Zone::default());
    assert_eq!(told(&answered), BTreeMap::new());
    let (_, answered) = engine_with_two(&zone(3));
    let expected = [(1, 2), (2, 1)].map(|(to, of)| (peer(to), BTreeSet::from([peer(of)])));
    assert_eq!(told(&answered), BTreeMap::from(expected));
}

#[test]
fn who_is_of_no_use_makes_room_for_others() {
    let config = EngineConfig { candidates_per_swarm_max: 2, ..EngineConfig::default() };
    let useless: [&[Op]; 4] = [
        &[Op::ConnectFailed(0)],
        &[Op::Connect(0), Op::Absent(0, 0)],
        &[Op::Connect(0), Op::Join(0, true, false), Op::Leave(0)],
        &[Op::Connect(0), Op::Join(0, true, false), Op::Disconnect(0)],
    ];
    for ops in useless {
        let mut world = World::new(config.clone(), 1);
        let known = [Op::Read(1), Op::Opened(0, 1), Op::Found(0, false), Op::Found(1, false)];
        // The second time it is known that there is no room.
        let apply = |world: &mut World, ops: &[Op]| ops.iter().for_each(|op| world.apply(op.clone()));
        apply(&mut world, &known);
        apply(&mut world, &[Op::Found(2, false), Op::Found(2, false)]);
        assert_eq!(world.dialed, [peer(0), peer(1)]);
        apply(&mut world, ops);
        world.apply(Op::Found(2, false));
        assert_eq!(world.dialed.last(), Some(&peer(2)), "{ops:?}");
    }
}
