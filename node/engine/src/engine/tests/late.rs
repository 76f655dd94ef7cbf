//! The last piece, and a peer that tells of whole pieces only.

use super::*;

struct Download {
    engine: Engine,
    now: Timestamp,
    digest: Digest,
    /// What each peer was asked for and has not sent.
    asked: [Vec<PieceIndex>; 2],
    buffers: u64,
}

impl Download {
    fn input(&mut self, input: Input) {
        self.engine.handle_input(self.now, input);
        self.note_effects();
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

    fn note_effects(&mut self) {
        while let Some(effect) = self.engine.poll_effect() {
            if let Effect::Expect { peer: who, piece, .. } = effect {
                self.asked[usize::from(who == peer(1))].push(piece);
            }
        }
    }

    fn say(&mut self, n: u8, message: Message) {
        self.input(Input::Message { peer: peer(n), message });
    }

    /// A blob is read, of which two peers have all.
    fn begin() -> Self {
        let blob = vouched(1);
        let (digest, size) = (blob.value().digest(), blob.value().size());
        let engine = Engine::new(EngineConfig::default(), peer(99), Zone::default(), 1, Timestamp::ZERO);
        let mut own = Self { engine, now: Timestamp::ZERO, digest, asked: Default::default(), buffers: 0 };
        let want = ReaderWant::Range(0..size);
        own.input(Input::ReaderOpened { reader: ReaderId(0), digest, want });
        own.input(Input::BlobOpened { digest, opened: Opened::Absent { owner: false, backend_down: false } });
        let metainfo = Arc::new(blob.value().clone());
        own.input(Input::MetainfoLearned { metainfo, vouched: Some(blob) });
        for n in [0, 1] {
            let (roles, endpoints) = (Roles::NONE, Vec::new());
            own.input(Input::PeerConnected { peer: peer(n), zone: Zone::default(), roles, endpoints });
            own.input(Input::PeersFound { digest, source: LookupSource::Dht, peers: vec![hint(n)] });
            let (wants_metainfo, probe) = (false, false);
            own.say(n, Message::Join { channel: 7, digest, wants_metainfo, probe, trace: None });
            own.say(n, Message::Bitfield { to: 0, pieces: Bitfield::full(PIECES).to_bytes().into() });
        }
        own
    }

    /// Some time later the first piece that a peer was asked for is here, whose first part came at once.
    fn send(&mut self, n: u8, after: Duration) {
        self.now = self.now + after;
        let piece = self.asked[usize::from(n)].remove(0);
        self.buffers += 1;
        let buffer = BufferId(self.buffers);
        let (peer, channel) = (peer(n), 0);
        self.input(Input::PieceArrived { peer, channel, piece: piece.get(), buffer, since_first: after });
        self.input(Input::PieceVerified { digest: self.digest, piece });
    }
}

#[test]
fn a_last_piece_is_asked_for_twice_when_the_silence_is_unusual() {
    let mut download = Download::begin();
    let millis = Duration::from_millis;
    let mut gaps = [140, 60].map(millis).into_iter().cycle();
    // One of the peers is quick, and the other takes its time, now less and now more.
    while download.asked[0].len() > 1 || !download.asked[1].is_empty() {
        while !download.asked[1].is_empty() {
            download.send(1, Duration::ZERO);
        }
        if download.asked[0].len() > 1 {
            download.send(0, gaps.next().unwrap());
        }
    }
    assert_eq!(download.asked.clone().map(|asked| asked.len()), [1, 0]);
    download.wait(millis(130));
    assert_eq!(download.asked[1], []);
    // Nothing happens, and that is noticed.
    download.wait(millis(600));
    assert_eq!(download.asked[1], download.asked[0]);
}
