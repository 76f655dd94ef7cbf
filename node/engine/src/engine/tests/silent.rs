//! Peers that stop answering.

use super::downloader::Downloader;
use super::*;

#[test]
fn a_peer_that_was_looked_at_while_it_owed_nothing_is_looked_at_again() {
    let mut own = Downloader::new();
    own.connect(0);
    own.read(&vouched(1), 0, &[0]);
    let mut buffers = 0..;
    while let Some((from, digest, piece)) = own.asked.pop() {
        let (buffer, since_first) = (BufferId(buffers.next().unwrap()), Duration::ZERO);
        own.input(Input::PieceArrived { peer: from, channel: 0, piece: piece.get(), buffer, since_first });
        own.input(Input::PieceVerified { digest, piece });
    }
    let stalls = |own: &Downloader| own.engine.peers().map(|peer| peer.stalls).sum::<u32>();
    own.wait(Duration::from_secs(10));
    assert_eq!(stalls(&own), 0);
    own.read(&vouched(2), 1, &[0]);
    assert!(!own.asked.is_empty());
    own.wait(Duration::from_secs(10));
    assert!(stalls(&own) > 0);
}
