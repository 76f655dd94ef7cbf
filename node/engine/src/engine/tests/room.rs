//! Two downloads that have one peer between them.

use super::downloader::Downloader;
use super::*;

#[test]
fn a_download_whose_peer_has_no_room_goes_on_however_the_other_ends() {
    let mut own = Downloader::new();
    own.connect(0);
    let [first, second] = [1, 2].map(vouched);
    // The first has all of the peer's room.
    own.read(&first, 0, &[0]);
    own.read(&second, 1, &[0]);
    let [first, second] = [first, second].map(|blob| blob.value().digest());
    let asked = |own: &Downloader, blob| own.asked.iter().filter(|(_, digest, _)| *digest == blob).count();
    assert!(asked(&own, first) > 0 && asked(&own, second) == 0, "{:?}", own.asked);
    let piece = vouched(1).value().layout().piece(0).unwrap();
    let why = "full".to_owned();
    own.input(Input::WriteFailed { digest: first, piece, why });
    assert_eq!(asked(&own, second), 0, "nothing came of {second} yet, or this shows nothing");
    own.wait(Duration::from_millis(100));
    assert!(asked(&own, second) > 0);
}
