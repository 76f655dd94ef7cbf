//! An engine that downloads, and what it was seen to ask for.

use super::*;

pub(super) struct Downloader {
    pub(super) engine: Engine,
    pub(super) now: Timestamp,
    /// Whom it asked for which piece, in order.
    pub(super) asked: Vec<(PeerId, Digest, PieceIndex)>,
}

impl Downloader {
    pub(super) fn new() -> Self {
        let engine = Engine::new(EngineConfig::default(), peer(99), Zone::default(), 1, Timestamp::ZERO);
        Self { engine, now: Timestamp::ZERO, asked: Vec::new() }
    }

    pub(super) fn input(&mut self, input: Input) {
        self.engine.handle_input(self.now, input);
        self.note_effects();
    }

    pub(super) fn say(&mut self, n: u8, message: Message) {
        self.input(Input::Message { peer: peer(n), message });
    }

    /// Lets time pass.
    pub(super) fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.engine.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.engine.handle_timeout(self.now);
            self.note_effects();
        }
        self.now = end;
    }

    pub(super) fn connect(&mut self, n: u8) {
        let (roles, endpoints) = (Roles::NONE, Vec::new());
        self.input(Input::PeerConnected { peer: peer(n), zone: Zone::default(), roles, endpoints });
    }

    /// A blob is read, as the `number`th on each connection, of which connected peers have all.
    pub(super) fn read(&mut self, blob: &Arc<VouchedMetainfo>, number: u32, seeders: &[u8]) {
        let (digest, size) = (blob.value().digest(), blob.value().size());
        let (reader, want) = (ReaderId(number.into()), ReaderWant::Range(0..size));
        self.input(Input::ReaderOpened { reader, digest, want });
        let opened = Opened::Absent { owner: false, backend_down: false };
        self.input(Input::BlobOpened { digest, opened });
        let metainfo = Arc::new(blob.value().clone());
        self.input(Input::MetainfoLearned { metainfo, vouched: Some(blob.clone()) });
        for n in seeders {
            self.input(Input::PeersFound { digest, source: LookupSource::Dht, peers: vec![hint(*n)] });
            let (wants_metainfo, probe) = (false, false);
            self.say(*n, Message::Join { channel: number + 7, digest, wants_metainfo, probe, trace: None });
            self.say(*n, Message::Bitfield { to: number, pieces: Bitfield::full(PIECES).to_bytes().into() });
        }
    }

    fn note_effects(&mut self) {
        while let Some(effect) = self.engine.poll_effect() {
            if let Effect::Expect { peer, digest, piece, .. } = effect {
                self.asked.push((peer, digest, piece));
            }
        }
    }
}
