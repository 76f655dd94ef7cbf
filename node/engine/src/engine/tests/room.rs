//! Two downloads that have one peer between them.

use super::*;

struct Sharing {
    engine: Engine,
    now: Timestamp,
    digests: [Digest; 2],
    /// Pieces asked for since last looked at, by download.
    asked: [Vec<u32>; 2],
}

impl Sharing {
    fn input(&mut self, input: Input) {
        self.engine.handle_input(self.now, input);
        self.note_effects();
    }

    fn say(&mut self, message: Message) {
        self.input(Input::Message { peer: peer(0), message });
    }

    fn note_effects(&mut self) {
        while let Some(effect) = self.engine.poll_effect() {
            if let Effect::Expect { digest, piece, .. } = effect {
                let download = self.digests.iter().position(|known| *known == digest).unwrap();
                self.asked[download].push(piece.get());
            }
        }
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.engine.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.engine.handle_timeout(self.now);
            self.note_effects();
        }
        self.now = end;
    }

    /// Two blobs are read, and a seeder of both is known. The first has all of its room.
    fn begin() -> Self {
        let blobs = [1, 2].map(vouched);
        let digests = blobs.clone().map(|blob| blob.value().digest());
        let engine = Engine::new(EngineConfig::default(), peer(99), Zone::default(), 1, Timestamp::ZERO);
        let mut own = Self { engine, now: Timestamp::ZERO, digests, asked: Default::default() };
        let (roles, endpoints) = (Roles::NONE, Vec::new());
        own.input(Input::PeerConnected { peer: peer(0), zone: Zone::default(), roles, endpoints });
        for (blob, number) in blobs.into_iter().zip(0..) {
            let digest = blob.value().digest();
            let size = blob.value().size();
            own.input(Input::ReaderOpened {
                reader: ReaderId(number.into()),
                digest,
                want: ReaderWant::Range(0..size),
            });
            let opened = Opened::Absent { owner: false, backend_down: false };
            own.input(Input::BlobOpened { digest, opened });
            let metainfo = Arc::new(blob.value().clone());
            own.input(Input::MetainfoLearned { metainfo, vouched: Some(blob) });
            own.input(Input::PeersFound { digest, source: LookupSource::Dht, peers: vec![hint(0)] });
            let (wants_metainfo, probe) = (false, false);
            own.say(Message::Join { channel: number + 7, digest, wants_metainfo, probe, trace: None });
            own.say(Message::Bitfield { to: number, pieces: Bitfield::full(PIECES).to_bytes().into() });
        }
        own
    }
}

#[test]
fn a_download_whose_peer_has_no_room_goes_on_however_the_other_ends() {
    let mut sharing = Sharing::begin();
    let [first, second] = sharing.digests;
    assert!(!sharing.asked[0].is_empty() && sharing.asked[1].is_empty(), "{:?}", sharing.asked);
    let piece = vouched(1).value().layout().piece(0).unwrap();
    let why = "full".to_owned();
    sharing.input(Input::WriteFailed { digest: first, piece, why });
    assert!(sharing.asked[1].is_empty(), "nothing came of {second} yet, or this shows nothing");
    sharing.wait(Duration::from_millis(100));
    assert!(!sharing.asked[1].is_empty());
}
