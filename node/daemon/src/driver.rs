//! The driver: moves bytes for the engine and decides nothing.
//!
//! One task owns the engine. Facts come in over one channel and from the data plane; wishes are carried out at once
//! when they are quick, and in tasks of their own when they wait for a disk or the network.

mod act;

pub(crate) use act::{blocking, open};

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::{BoxFuture, Shared};
use shoal_engine::engine::Engine;
use shoal_engine::io::{BufferId, Input, ReaderId, ReaderWant};
use shoal_engine::message::{Channel, Message};
use shoal_net::data::{DataEvent, DataHandle, PieceBuf};
use shoal_net::revocation::Revocations;
use shoal_store::Store;
use shoal_types::{Digest, PeerId, PieceIndex};
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::directory::{Directory, Member};
use crate::discovery::Discovery;
use crate::links::Links;
use crate::metrics::Metrics;
use crate::pulls::{Moment, Pulls};
use crate::reader::{Progress, Reader};
use crate::traces::Traces;
use crate::vault::Vault;
use crate::vouchers;

/// Facts and questions waiting for the engine; senders wait when it is full.
const INBOX: usize = 4096;
/// Facts taken before the wishes are looked at again.
const BATCH: usize = 256;

/// What the driver's task is told.
pub(crate) enum Note {
    Fact(Input),
    Open { reader: ReaderId, digest: Digest, want: ReaderWant, progress: watch::Sender<Progress> },
    Look(Box<dyn FnOnce(&Engine) + Send>),
    Stop(oneshot::Sender<()>),
}

/// A handle on the driver's task. Cheap to clone.
#[derive(Clone)]
pub struct DriverHandle {
    notes: mpsc::Sender<Note>,
    next_reader: Arc<AtomicU64>,
}

impl DriverHandle {
    /// Asks the engine for a blob.
    pub async fn open(&self, digest: Digest, want: ReaderWant) -> Reader {
        let id = ReaderId(self.next_reader.fetch_add(1, Ordering::Relaxed));
        let (progress, seen) = watch::channel(Progress::default());
        let reader = Reader::new(id, self.clone(), seen);
        // When the driver is gone the sender drops with the note, and the reader hears of it.
        let _ = self.notes.send(Note::Open { reader: id, digest, want, progress }).await;
        reader
    }

    /// Tells the engine a fact.
    pub async fn tell(&self, fact: Input) {
        let _ = self.notes.send(Note::Fact(fact)).await;
    }

    /// Looks at the engine; `None` when the driver has stopped.
    pub async fn look<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Engine) -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, wait) = oneshot::channel();
        let look = Box::new(move |engine: &Engine| {
            let _ = answer.send(question(engine));
        });
        self.notes.send(Note::Look(look)).await.ok()?;
        wait.await.ok()
    }

    /// Stops the driver's task and waits for it.
    pub async fn stop(&self) {
        let (done, wait) = oneshot::channel();
        if self.notes.send(Note::Stop(done)).await.is_ok() {
            let _ = wait.await;
        }
    }

    pub(crate) fn reader_moved(&self, reader: ReaderId, offset: u64) {
        // A lost move costs a little read-ahead and is made good by the next one.
        let _ = self.notes.try_send(Note::Fact(Input::ReaderMoved { reader, offset }));
    }

    pub(crate) fn reader_closed(&self, reader: ReaderId) {
        let closed = Note::Fact(Input::ReaderClosed { reader });
        if let Err(mpsc::error::TrySendError::Full(closed)) = self.notes.try_send(closed) {
            // A close must not be lost: the blob would be downloaded for nobody.
            let notes = self.notes.clone();
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(async move { notes.send(closed).await });
            }
        }
    }
}

/// What the driver works with.
pub(crate) struct Parts {
    pub(crate) engine: Engine,
    pub(crate) clock: Clock,
    pub(crate) store: Store,
    pub(crate) data: DataHandle,
    pub(crate) links: Arc<Links>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) discovery: Arc<Discovery>,
    pub(crate) vault: Option<Arc<Vault>>,
    pub(crate) pulls: Arc<Pulls>,
    pub(crate) traces: Arc<Traces>,
    pub(crate) metrics: Arc<Metrics>,
    /// Whose metainfo is not taken.
    pub(crate) revocations: Revocations,
    /// Blobs whose place in the store is being made: what needs it waits.
    pub(crate) creating: HashMap<Digest, Shared<BoxFuture<'static, ()>>>,
    /// Keeps partial blobs from being evicted while they arrive.
    pub(crate) pins: Pins,
    /// Where questions from peers go.
    pub(crate) calls: mpsc::Sender<IncomingCall>,
}

/// The pins of partial blobs, one a swarm that downloads.
pub(crate) type Pins = Arc<parking_lot::Mutex<HashMap<Digest, shoal_store::Pin>>>;

/// A question from a peer.
pub(crate) struct IncomingCall {
    pub(crate) peer: PeerId,
    pub(crate) body: bytes::Bytes,
    pub(crate) answer: shoal_net::data::AnswerHandle,
}

pub(crate) struct Driver {
    parts: Parts,
    handle: DriverHandle,
    readers: HashMap<ReaderId, watch::Sender<Progress>>,
    buffers: HashMap<BufferId, PieceBuf>,
    next_buffer: u64,
    /// Pieces given to the data plane to send, by peer, its channel and the piece's number.
    sending: HashMap<(PeerId, Channel, u32), (Digest, PieceIndex)>,
}

/// Starts the driver's task.
pub(crate) fn spawn(
    make: impl FnOnce(DriverHandle) -> Parts,
    events: mpsc::Receiver<DataEvent>,
) -> (DriverHandle, tokio::task::JoinHandle<()>) {
    let (notes, inbox) = mpsc::channel(INBOX);
    let handle = DriverHandle { notes, next_reader: Arc::new(AtomicU64::new(1)) };
    let driver = Driver {
        parts: make(handle.clone()),
        handle: handle.clone(),
        readers: HashMap::new(),
        buffers: HashMap::new(),
        next_buffer: 1,
        sending: HashMap::new(),
    };
    (handle, tokio::spawn(driver.run(inbox, events)))
}

impl Driver {
    async fn run(mut self, mut inbox: mpsc::Receiver<Note>, mut events: mpsc::Receiver<DataEvent>) {
        loop {
            let timer = self.parts.engine.poll_timeout().map(|at| self.parts.clock.instant(at));
            tokio::select! {
                note = inbox.recv() => match note {
                    Some(note) => if self.take(note).is_break() { return },
                    None => return,
                },
                event = events.recv() => match event {
                    Some(event) => self.hear(event),
                    None => return,
                },
                () = sleep_until(timer) => self.parts.engine.handle_timeout(self.parts.clock.now()),
            }
            for _ in 0..BATCH {
                if let Ok(note) = inbox.try_recv() {
                    if self.take(note).is_break() {
                        return;
                    }
                } else if let Ok(event) = events.try_recv() {
                    self.hear(event);
                } else {
                    break;
                }
            }
            self.act_on_wishes();
        }
    }

    fn act_on_wishes(&mut self) {
        while let Some(effect) = self.parts.engine.poll_effect() {
            self.act(effect);
        }
    }

    fn take(&mut self, note: Note) -> ControlFlow<()> {
        match note {
            Note::Fact(fact) => {
                if let Input::ReaderClosed { reader } = &fact {
                    self.readers.remove(reader);
                }
                self.fact(fact);
            }
            Note::Open { reader, digest, want, progress } => {
                self.readers.insert(reader, progress);
                self.fact(Input::ReaderOpened { reader, digest, want });
            }
            Note::Look(look) => look(&self.parts.engine),
            Note::Stop(done) => {
                let _ = done.send(());
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    fn fact(&mut self, fact: Input) {
        if let Input::LookupFinished { digest, source, answered } = &fact {
            self.parts.traces.searched(digest, *source, *answered);
        }
        self.parts.metrics.note_fact(&fact);
        self.watch(Moment::Fact(&fact));
        self.parts.engine.handle_input(self.parts.clock.now(), fact);
    }

    /// Has the accounts of pulls take note.
    fn watch(&self, moment: Moment<'_>) {
        let limited = self.parts.engine.waits_for_budget();
        self.parts.pulls.watch(self.parts.clock.now(), limited, moment);
    }

    /// Turns what the data plane reports into facts.
    fn hear(&mut self, event: DataEvent) {
        match event {
            DataEvent::Connected { peer, credential, endpoints, .. } => {
                let credential = credential.value();
                let (zone, roles) = (credential.zone.clone(), credential.roles);
                // A peer that announces nothing is dialled where the control plane saw it.
                let known =
                    || self.parts.directory.get(&peer).map(|member| member.endpoints).unwrap_or_default();
                let endpoints = if endpoints.is_empty() { known() } else { endpoints };
                if !endpoints.is_empty() {
                    let member = Member { zone: zone.clone(), roles, endpoints: endpoints.clone() };
                    self.parts.directory.note(peer, member);
                }
                self.parts.links.opened(peer);
                self.fact(Input::PeerConnected { peer, zone, roles, endpoints });
            }
            DataEvent::Disconnected { peer, taken, .. } => {
                // Wishes for the old connection must not reach the next one, which begins when `taken` is dropped.
                self.act_on_wishes();
                drop(taken);
                self.parts.links.closed(peer);
                self.sending.retain(|(to, _, _), _| *to != peer);
                self.fact(Input::PeerDisconnected { peer });
            }
            DataEvent::ConnectFailed { peer, .. } => {
                self.parts.links.failed(peer);
                self.fact(Input::ConnectFailed { peer });
            }
            DataEvent::Message { peer, message: Message::Metainfo { to, metainfo } }
                if vouchers::is_revoked(&self.parts.revocations, &metainfo) =>
            {
                self.parts.metrics.metainfo_revoked.inc();
                self.fact(Input::MetainfoRefused { peer, channel: to });
            }
            DataEvent::Message { peer, message } => {
                if let Message::Join { digest, trace: Some(trace), .. } = &message {
                    let zone = self.parts.directory.get(&peer).map(|member| member.zone);
                    self.parts.traces.joined(digest, &peer, zone, trace);
                }
                self.fact(Input::Message { peer, message });
            }
            DataEvent::PieceProgress { peer, channel, piece, bytes } => {
                self.fact(Input::PieceProgress { peer, channel, piece, bytes, since_first: Duration::ZERO });
            }
            DataEvent::PieceArrived { peer, channel, piece, buffer, .. } => {
                let id = BufferId(self.next_buffer);
                self.next_buffer += 1;
                self.buffers.insert(id, buffer);
                // Its progress was told on the way.
                let since_first = Duration::ZERO;
                self.fact(Input::PieceArrived { peer, channel, piece, buffer: id, since_first });
            }
            DataEvent::PieceSent { peer, to_channel, piece, bytes } => {
                if let Some((digest, piece)) = self.sending.remove(&(peer, to_channel, piece)) {
                    self.fact(Input::PieceSent { peer, digest, piece, bytes });
                }
            }
            DataEvent::Call { peer, body, answer } => {
                // A full queue answers by dropping the handle: the asker hears of a failure and goes elsewhere.
                if self.parts.calls.try_send(IncomingCall { peer, body, answer }).is_err() {
                    self.parts.metrics.calls_shed.inc();
                }
            }
        }
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
