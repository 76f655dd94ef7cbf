//! What outlives its swarm is still known by its blob, however many others come and go.

use super::downloader::Downloader;
use super::*;

/// Many blobs of which nothing is here, each named once.
fn others() -> impl Iterator<Item = Input> {
    (0..1000_u32).map(|n| Input::BlobRemoved { digest: Digest::sha256(&n.to_le_bytes()) })
}

#[test]
fn a_piece_that_is_verified_after_its_swarm_frees_its_buffer() {
    let mut own = Downloader::new();
    own.connect(0);
    own.read(&vouched(1), 0, &[0]);
    let (from, digest, piece) = own.asked[0];
    let (buffer, since_first) = (BufferId(1), Duration::ZERO);
    own.input(Input::PieceArrived { peer: from, channel: 0, piece: piece.get(), buffer, since_first });
    own.input(Input::BlobRemoved { digest });
    assert!(own.engine.buffered_bytes() > 0);
    others().for_each(|input| own.input(input));
    own.input(Input::PieceVerified { digest, piece });
    assert_eq!(own.engine.buffered_bytes(), 0);
}

#[test]
fn a_piece_that_is_sent_after_its_swarm_is_served() {
    let mut own = Downloader::new();
    own.connect(0);
    let blob = vouched(1);
    let (digest, metainfo) = (blob.value().digest(), Arc::new(blob.value().clone()));
    let piece = metainfo.layout().piece(2).unwrap();
    own.say(0, Message::Join { channel: 7, digest, wants_metainfo: false, probe: false, trace: None });
    let pieces = Bitfield::full(PIECES);
    let (vouched, complete, in_backend) = (Some(blob), true, false);
    let local = LocalBlob { metainfo, vouched, pieces, complete, in_backend };
    own.input(Input::BlobOpened { digest, opened: Opened::Here(local) });
    own.say(0, Message::Request { to: 0, piece: piece.get() });
    own.input(Input::BlobRemoved { digest });
    others().for_each(|input| own.input(input));
    own.engine.handle_input(own.now, Input::PieceSent { peer: peer(0), digest, piece, bytes: 1000 });
    let served = |effect: Effect| match effect {
        Effect::Report(report) => match report.event {
            Event::PieceServed { digest, piece, .. } => Some((digest, piece)),
            _ => None,
        },
        _ => None,
    };
    let served: Vec<_> = std::iter::from_fn(|| own.engine.poll_effect()).filter_map(served).collect();
    assert_eq!(served, [(digest, piece)]);
}
