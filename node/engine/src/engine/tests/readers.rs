//! Several local readers.

use super::*;

#[test]
fn those_that_fail_are_forgotten_and_no_others() {
    let mut engine = Engine::new(EngineConfig::default(), peer(99), Zone::default(), 1, Timestamp::ZERO);
    let mut input = |input| {
        engine.handle_input(Timestamp::ZERO, input);
        effects(&mut engine)
    };
    let (digest, size) = (vouched(1).value().digest(), vouched(1).value().size());
    let elsewhere = |number: u8| Digest::sha256(&[number]);
    let opened = |number, digest, want| Input::ReaderOpened { reader: ReaderId(number), digest, want };
    let beyond = || ReaderWant::Range(size..size + 1);
    for (number, digest, want) in [
        (0, digest, beyond()),
        (1, digest, ReaderWant::Whole),
        (2, elsewhere(9), ReaderWant::Whole),
        (3, digest, beyond()),
        (4, digest, ReaderWant::Whole),
    ] {
        input(opened(number, digest, want));
    }
    let failed = |effects: &[Effect]| -> Vec<(u64, ReadError)> {
        let failed = |effect: &Effect| match effect {
            Effect::ReaderFailed { reader, why } => Some((reader.0, why.clone())),
            _ => None,
        };
        effects.iter().filter_map(failed).collect()
    };
    input(Input::BlobOpened { digest, opened: Opened::Absent { owner: false, backend_down: false } });
    let metainfo = Arc::new(vouched(1).value().clone());
    let piece = metainfo.layout().piece(0).unwrap();
    let started = input(Input::MetainfoLearned { metainfo, vouched: Some(vouched(1)) });
    let range = ReadError::Range { size };
    assert_eq!(failed(&started), [(0, range.clone()), (3, range)]);
    // Whoever is known is not opened again.
    assert!(!input(opened(0, elsewhere(8), ReaderWant::Whole)).is_empty());
    let why = String::from("the disk is full");
    let store = ReadError::Store(why.clone());
    assert_eq!(failed(&input(Input::WriteFailed { digest, piece, why })), [(1, store.clone()), (4, store)]);
    for number in 0..5 {
        let effects = input(opened(number.into(), elsewhere(10 + number), ReaderWant::Whole));
        assert_eq!(effects.is_empty(), [0, 2].contains(&number), "{number}: {effects:?}");
    }
}
