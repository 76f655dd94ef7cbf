//! The last piece, and a peer that tells of whole pieces only.

use super::downloader::Downloader;
use super::*;

/// Some time later the first piece that a peer was asked for and has not sent is here. Its first part came at once.
fn send(own: &mut Downloader, n: u8, after: Duration) {
    own.now = own.now + after;
    let place = own.asked.iter().position(|(who, ..)| *who == peer(n)).unwrap();
    let (peer, digest, piece) = own.asked.remove(place);
    let buffer = BufferId(piece.get().into());
    own.input(Input::PieceArrived { peer, channel: 0, piece: piece.get(), buffer, since_first: after });
    own.input(Input::PieceVerified { digest, piece });
}

/// What a peer was asked for and has not sent.
fn asked(own: &Downloader, n: u8) -> Vec<PieceIndex> {
    own.asked.iter().filter(|(who, ..)| *who == peer(n)).map(|(.., piece)| *piece).collect()
}

#[test]
fn a_last_piece_is_asked_for_twice_when_the_silence_is_unusual() {
    let mut own = Downloader::new();
    [0, 1].into_iter().for_each(|n| own.connect(n));
    own.read(&vouched(1), 0, &[0, 1]);
    let millis = Duration::from_millis;
    let mut gaps = [140, 60].map(millis).into_iter().cycle();
    // One of the peers is quick, and the other takes its time, now more and now less.
    while asked(&own, 0).len() > 1 || !asked(&own, 1).is_empty() {
        while !asked(&own, 1).is_empty() {
            send(&mut own, 1, Duration::ZERO);
        }
        if asked(&own, 0).len() > 1 {
            send(&mut own, 0, gaps.next().unwrap());
        }
    }
    let last = asked(&own, 0);
    assert_eq!(last.len(), 1);
    own.wait(millis(130));
    assert_eq!(asked(&own, 1), []);
    // Nothing happens, and that is noticed.
    own.wait(millis(600));
    assert_eq!(asked(&own, 1), last);
}
