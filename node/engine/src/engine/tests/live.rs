//! Metainfo that grows while an origin reads the blob.

use super::*;
use crate::message::Channel;

/// The first `known` hashes of a blob's metainfo.
fn live(known: u32) -> Arc<VouchedMetainfo> {
    let whole = vouched(1);
    let metainfo = whole.value();
    let pieces = metainfo.layout().pieces().take(known as usize);
    let hashes = pieces.filter_map(|piece| metainfo.hash_of(piece)).collect();
    let metainfo = Metainfo::live(metainfo.digest(), metainfo.layout(), hashes).unwrap();
    let signer = Keypair::from_secret(&[9; 32]);
    let credential = whole.credential.clone();
    Arc::new(VouchedMetainfo { metainfo: SignedMetainfo::sign(metainfo, &signer), credential })
}

fn learn(engine: &mut Engine, vouched: Arc<VouchedMetainfo>) {
    let metainfo = Arc::new(vouched.value().clone());
    engine.handle_input(Timestamp::ZERO, Input::MetainfoLearned { metainfo, vouched: Some(vouched) });
}

fn say(engine: &mut Engine, n: u8, message: Message) -> Vec<Effect> {
    engine.handle_input(Timestamp::ZERO, Input::Message { peer: peer(n), message });
    effects(engine)
}

/// What `n` is told, in order: `m` and how many hashes, `h` and a piece.
fn told(effects: &[Effect], n: u8) -> Vec<(char, u32)> {
    let to = peer(n);
    let told = effects.iter().filter_map(|effect| match effect {
        Effect::Send { peer, message } if *peer == to => Some(message),
        _ => None,
    });
    told.flat_map(|message| match message {
        Message::Metainfo { metainfo, .. } => vec![('m', metainfo.value().known_pieces())],
        Message::Have { runs, .. } => runs.iter().map(|(first, _)| ('h', *first)).collect(),
        _ => Vec::new(),
    })
    .collect()
}

/// An engine that has a live blob, with two peers in the swarm; the first has none of the hashes, the second all. And the
/// channel that the first was given.
fn sharing() -> (Engine, Channel) {
    let mut engine = Engine::new(EngineConfig::default(), peer(99), Zone::default(), 1, Timestamp::ZERO);
    let digest = vouched(1).value().digest();
    for n in 0..2 {
        let (peer, zone, roles, endpoints) = (peer(n), zone(n), Roles::NONE, Vec::new());
        engine.handle_input(Timestamp::ZERO, Input::PeerConnected { peer, zone, roles, endpoints });
        say(
            &mut engine,
            n,
            Message::Join { channel: 7, digest, wants_metainfo: n == 0, probe: false, trace: None },
        );
    }
    let metainfo = Arc::new(live(2).value().clone());
    let pieces = metainfo.empty_bitfield();
    let vouched = Some(live(2));
    let blob = LocalBlob { metainfo, vouched, pieces, complete: false, in_backend: true };
    engine.handle_input(Timestamp::ZERO, Input::BlobOpened { digest, opened: Opened::Here(blob) });
    let effects = effects(&mut engine);
    assert_eq!(told(&effects, 0), [('m', 2)]);
    let joined = effects.iter().find_map(|effect| match effect {
        Effect::Send { peer: to, message: Message::Join { channel, .. } } if *to == peer(0) => Some(*channel),
        _ => None,
    });
    (engine, joined.unwrap())
}

#[test]
fn hashes_go_before_the_pieces_that_have_them() {
    let (mut engine, _) = sharing();
    let digest = vouched(1).value().digest();
    let layout = vouched(1).value().layout();
    learn(&mut engine, live(4));
    let piece = layout.piece(3).unwrap();
    engine.handle_input(Timestamp::ZERO, Input::PieceVerified { digest, piece });
    let effects = effects(&mut engine);
    assert_eq!(told(&effects, 0), [('m', 4), ('h', 3)]);
    assert_eq!(told(&effects, 1), [('h', 3)], "who knows all hashes is not told them");
    let grown = effects
        .iter()
        .any(|effect| matches!(effect, Effect::CreateBlob { metainfo, .. } if metainfo.known_pieces() == 4));
    assert!(grown, "the store hears of it");
}

/// The read of a blob goes on while its swarm opens.
#[test]
fn a_piece_verified_while_the_store_looks_is_not_forgotten() {
    let mut engine = Engine::new(EngineConfig::default(), peer(99), Zone::default(), 1, Timestamp::ZERO);
    let (digest, layout) = (vouched(1).value().digest(), vouched(1).value().layout());
    let (id, zone, roles, endpoints) = (peer(0), zone(0), Roles::NONE, Vec::new());
    engine.handle_input(Timestamp::ZERO, Input::PeerConnected { peer: id, zone, roles, endpoints });
    say(
        &mut engine,
        0,
        Message::Join { channel: 7, digest, wants_metainfo: true, probe: false, trace: None },
    );
    // The store found this, and was read on before its answer came.
    let metainfo = Arc::new(live(1).value().clone());
    let pieces = metainfo.empty_bitfield();
    let vouched = Some(live(1));
    let blob = LocalBlob { metainfo, vouched, pieces, complete: false, in_backend: true };
    learn(&mut engine, live(2));
    for piece in layout.pieces().take(2) {
        engine.handle_input(Timestamp::ZERO, Input::PieceVerified { digest, piece });
    }
    engine.handle_input(Timestamp::ZERO, Input::BlobOpened { digest, opened: Opened::Here(blob) });
    let pieces = effects(&mut engine).into_iter().find_map(|effect| match effect {
        Effect::Send { message: Message::Bitfield { pieces, .. }, .. } => {
            Bitfield::from_bytes(layout.piece_count(), &pieces)
        }
        _ => None,
    });
    let pieces = pieces.expect("the peer is told what there is");
    let numbers: Vec<u32> = pieces.iter(&layout).map(|piece| piece.get()).collect();
    assert_eq!(numbers, [0, 1]);
}

#[test]
fn a_shorter_one_is_no_news() {
    let (mut engine, to) = sharing();
    learn(&mut engine, live(5));
    effects(&mut engine);
    let metainfo = Box::new(VouchedMetainfo::clone(&live(3)));
    let said = say(&mut engine, 0, Message::Metainfo { to, metainfo });
    assert!(told(&said, 0).is_empty(), "{said:?}");
    learn(&mut engine, live(6));
    assert_eq!(told(&effects(&mut engine), 0), [('m', 6)], "it is still in the swarm");
}
