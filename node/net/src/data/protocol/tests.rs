use super::*;
use minicbor::bytes::ByteVec;
use proptest::prelude::*;
use shoal_types::Zone;

fn unhex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    digits
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}

fn split(bytes: &[u8]) -> (Head, &[u8]) {
    let (head, body) = bytes.split_at(HEAD_BYTES);
    let head = Head::decode(head.try_into().unwrap()).unwrap();
    assert_eq!(head.len, body.len());
    (head, body)
}

#[test]
fn vectors_decode() {
    let frames = [
        ("08 00 0000 00000008 0000000000000007", Frame::Ping(7)),
        ("0a 00 0000 00000001 06", Frame::Bye(ByeReason::Shutdown)),
        ("07 00 0000 00000005 00000001 02", Frame::CallFailed { id: 1, why: CallRefusal::Busy }),
        ("02 00 0000 00000006 82 05 82 03 18 2a", Frame::Swarm(Message::Request { to: 3, piece: 42 })),
    ];
    for (hex, frame) in frames {
        let bytes = unhex(hex);
        assert_eq!(encoded(&frame), bytes, "{frame:?}");
        let (head, body) = split(&bytes);
        assert_eq!(Frame::decode(head.kind.unwrap(), body).unwrap(), frame);
    }
    let payload = unhex("04 00 0000 0000000e 00000003 0000002a 00000000 6869");
    assert_eq!(encode_with_subhead(Kind::Payload, [3, 42, 0], 2), payload[..20]);
    let call = unhex("05 00 0000 0000000e 00000001 00000002 00000000 6869");
    assert_eq!(decode_subhead(call[8..20].try_into().unwrap()), [1, 2, 0]);
}

#[test]
fn the_documents_examples_are_right() {
    let document = include_str!("../../../../../docs/PROTOCOL.md");
    let block = document.split("```vectors\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let mut kinds = std::collections::BTreeSet::new();
    for line in block.lines() {
        let (hex, _) = line.split_once('#').unwrap();
        let bytes = unhex(hex);
        let (head, body) = split(&bytes);
        let kind = head.kind.unwrap();
        kinds.insert(kind as u8);
        match kind {
            Kind::Payload | Kind::Call | Kind::Answer => {
                let (subhead, rest) = body.split_at(SUBHEAD_BYTES);
                let subhead = decode_subhead(subhead.try_into().unwrap());
                let again = [&encode_with_subhead(kind, subhead, rest.len()), rest].concat();
                assert_eq!(again, bytes, "{line}");
            }
            _ => {
                let frame = Frame::decode(kind, body).unwrap_or_else(|error| panic!("{line}: {error}"));
                assert_eq!(encoded(&frame), bytes, "{line}: {frame:?}");
            }
        }
    }
    assert!(kinds.len() >= 8, "only kinds {kinds:?} have an example");
}

#[test]
fn heads_are_checked_before_anything_is_allocated() {
    let head = |kind: u8, flags: u8, reserved: u8, len: u32| {
        let [a, b, c, d] = len.to_be_bytes();
        Head::decode([kind, flags, reserved, 0, a, b, c, d])
    };
    assert_eq!(head(2, 0, 0, CONTROL_BYTES_MAX as u32).unwrap().len, CONTROL_BYTES_MAX);
    assert!(matches!(head(2, 0, 0, CONTROL_BYTES_MAX as u32 + 1), Err(ProtocolError::Length { .. })));
    assert!(matches!(head(4, 0, 0, u32::MAX), Err(ProtocolError::Length { .. })));
    assert!(matches!(head(4, 0, 0, SUBHEAD_BYTES as u32), Err(ProtocolError::Length { .. })));
    assert_eq!(head(99, 0, 0, 1), Err(ProtocolError::UnknownKind(99)));
    assert_eq!(head(99, 1, 0, 1).unwrap().kind, None, "optional frames of unknown kinds are passed over");
    assert_eq!(head(8, 2, 0, 8), Err(ProtocolError::UnknownBits));
    assert_eq!(head(8, 0, 1, 8), Err(ProtocolError::UnknownBits));
}

#[test]
fn lists_are_bounded() {
    let hint = PeerHint {
        peer: shoal_types::PeerId::from_public_key([1; 32]),
        zone: Zone::default(),
        endpoints: vec![],
        complete: true,
    };
    let message = |count| Message::Peers { to: 1, peers: vec![hint.clone(); count] };
    let decode = |message: &Message| {
        let bytes = encoded(&Frame::Swarm(message.clone()));
        let (head, body) = split(&bytes);
        Frame::decode(head.kind.unwrap(), body)
    };
    assert!(decode(&message(HINTS_MAX)).is_ok());
    assert_eq!(decode(&message(HINTS_MAX + 1)), Err(ProtocolError::TooMany("hints")));
    let runs = |count| Message::Have { to: 1, runs: vec![(1, 1); count] };
    assert!(decode(&runs(HAVE_RUNS_MAX)).is_ok());
    assert_eq!(decode(&runs(HAVE_RUNS_MAX + 1)), Err(ProtocolError::TooMany("runs")));
    // The largest bitfield there may be fits a control frame? It has a piece for each 4 MiB of a tebibyte.
    let bitfield = Message::Bitfield { to: 1, pieces: ByteVec::from(vec![0xff; (1 << 18) / 8]) };
    assert!(decode(&bitfield).is_ok());
}

#[test]
fn versions_overlap_or_do_not() {
    let hello =
        |version, version_min| Hello { version, version_min, instance: 0, endpoints: vec![], dial: 0 };
    assert_eq!(hello(3, 2).common_version(&hello(2, 1)), Ok(2));
    assert_eq!(hello(3, 3).common_version(&hello(2, 1)), Err(ProtocolError::Version));
}

proptest! {
    #[test]
    fn decoding_never_panics(kind in 0usize..10, body: Vec<u8>, head: [u8; HEAD_BYTES]) {
        let _ = Head::decode(head);
        let _ = Frame::decode(Kind::ALL[kind], &body);
    }
}
