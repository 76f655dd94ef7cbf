//! What handle, reader and writer of one connection share.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use shoal_types::{Endpoint, PeerId, SignedCredential};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::config::DataConfig;
use super::event::{CallError, ConnectionInfo, DisconnectReason, SendError};
use super::expected::Expected;
use super::outbox::{Body, Outbox};
use super::protocol::{CallRefusal, Frame, Kind};

/// Who is at the other end, as the handshake told.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    pub(crate) peer: PeerId,
    pub(crate) credential: SignedCredential,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) instance: u64,
    /// The dialler's number of its dial; zero where this side dialled.
    pub(crate) dial: u64,
    pub(crate) addr: SocketAddr,
    pub(crate) outbound: bool,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) remote: Remote,
    pub(crate) outbox: Outbox,
    pub(crate) expected: Mutex<Expected>,
    /// Something was taken back: whoever waits for a buffer looks again.
    pub(crate) taken_back: Notify,
    calls: Mutex<Calls>,
    calls_max: usize,
    closing: CancellationToken,
    reason: Mutex<Option<DisconnectReason>>,
    /// The daemon has been told that the peer is connected, or is just being told.
    shown: AtomicBool,
    /// The daemon has handled this connection's last event.
    pub(crate) done: CancellationToken,
    opened: Instant,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    /// Microseconds plus one; zero for none yet.
    rtt: AtomicU64,
    /// Milliseconds after `opened`.
    heard: AtomicU64,
    /// Milliseconds after `opened`, plus one, when the peer last took bytes from a write that still waits; zero while
    /// none does.
    writing: AtomicU64,
    /// The reader waits for this process, not for the peer.
    pub(crate) reader_waits: AtomicBool,
}

#[derive(Debug, Default)]
struct Calls {
    next_id: u32,
    /// Ours.
    open: HashMap<u32, oneshot::Sender<Result<Bytes, CallError>>>,
    /// Theirs that were not answered yet, and answers not sent yet.
    theirs: usize,
    ended: bool,
}

impl Link {
    pub(crate) fn new(remote: Remote, config: &DataConfig) -> Self {
        Self {
            remote,
            outbox: Outbox::new(config.control_queue_bytes_max, config.piece_queue_max),
            expected: Mutex::new(Expected::new(config.partial_pieces_max, config.taken_back_max)),
            taken_back: Notify::new(),
            calls: Mutex::default(),
            calls_max: config.calls_max,
            closing: CancellationToken::new(),
            reason: Mutex::default(),
            shown: AtomicBool::new(false),
            done: CancellationToken::new(),
            opened: Instant::now(),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            rtt: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            writing: AtomicU64::new(0),
            reader_waits: AtomicBool::new(false),
        }
    }

    /// Ends the connection; the first reason counts.
    pub(crate) fn close(&self, reason: DisconnectReason) {
        self.reason.lock().get_or_insert(reason);
        self.closing.cancel();
    }

    /// Whether [`Self::close`] was called.
    pub(crate) fn is_closed(&self) -> bool {
        self.closing.is_cancelled()
    }

    /// From now on the daemon's words for the peer go here.
    pub(crate) fn show(&self) {
        self.shown.store(true, Ordering::Release);
    }

    /// Whether the daemon's words for the peer go here.
    pub(crate) fn is_usable(&self) -> bool {
        self.shown.load(Ordering::Acquire) && !self.is_closed()
    }

    /// Waits for [`Self::close`].
    pub(crate) async fn closed(&self) -> DisconnectReason {
        self.closing.cancelled().await;
        self.reason.lock().clone().unwrap_or(DisconnectReason::Shutdown)
    }

    /// Queues a control frame; ends the connection when the peer has not read for too long.
    pub(crate) fn send(&self, frame: &Frame) -> Result<(), SendError> {
        self.outbox.push_frame(frame).inspect_err(|_| self.close(DisconnectReason::Overflow))
    }

    pub(crate) fn note_read(&self, bytes: usize) {
        self.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
        self.note_heard();
    }

    pub(crate) fn note_heard(&self) {
        self.heard.store(self.millis(), Ordering::Relaxed);
    }

    /// How long the peer has been silent although this side reads.
    pub(crate) fn silent_for(&self) -> Duration {
        if self.reader_waits.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        Duration::from_millis(self.millis().saturating_sub(self.heard.load(Ordering::Relaxed)))
    }

    /// A write has begun, or the peer has taken some of it.
    pub(crate) fn note_writing(&self) {
        self.writing.store(self.millis().saturating_add(1), Ordering::Relaxed);
    }

    /// A write is done.
    pub(crate) fn note_written(&self) {
        self.writing.store(0, Ordering::Relaxed);
    }

    /// How long the peer has taken nothing of what is being written.
    pub(crate) fn stalled_for(&self) -> Duration {
        match self.writing.load(Ordering::Relaxed).checked_sub(1) {
            Some(since) => Duration::from_millis(self.millis().saturating_sub(since)),
            None => Duration::ZERO,
        }
    }

    /// Gives back everything that was held for the peer. Answers to its calls may keep the link itself for longer.
    pub(crate) fn clear(&self) {
        self.expected.lock().clear();
        self.outbox.close();
        self.end_all_calls();
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The number a Ping carries: the time, so that nothing is to be remembered.
    pub(crate) fn ping_number(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub(crate) fn note_pong(&self, number: u64) {
        // A number from the future is the peer's invention and of no consequence.
        if let Some(micros) = self.ping_number().checked_sub(number) {
            self.rtt.store(micros.saturating_add(1), Ordering::Relaxed);
        }
    }

    /// Opens a call.
    pub(crate) fn open_call(
        &self,
        body: Bytes,
    ) -> Result<(u32, oneshot::Receiver<Result<Bytes, CallError>>), CallError> {
        let (sender, receiver) = oneshot::channel();
        let mut calls = self.calls.lock();
        if calls.ended {
            return Err(CallError::NotConnected);
        }
        if calls.open.len() >= self.calls_max {
            return Err(CallError::TooMany);
        }
        let mut id = calls.next_id;
        while calls.open.contains_key(&id) {
            id = id.wrapping_add(1);
        }
        calls.next_id = id.wrapping_add(1);
        calls.open.insert(id, sender);
        drop(calls);
        self.outbox.push_body(Body { kind: Kind::Call, id, bytes: body });
        Ok((id, receiver))
    }

    /// The caller does not wait any more.
    pub(crate) fn abandon_call(&self, id: u32) {
        self.calls.lock().open.remove(&id);
        self.outbox.cancel_call(id);
    }

    /// An answer came, or a refusal. That of an abandoned call is of no interest.
    pub(crate) fn end_call(&self, id: u32, answer: Result<Bytes, CallError>) {
        let caller = self.calls.lock().open.remove(&id);
        if let Some(caller) = caller {
            // The caller may have gone meanwhile.
            let _ = caller.send(answer);
        }
    }

    /// Whether somebody waits for the answer of a call.
    pub(crate) fn is_open(&self, id: u32) -> bool {
        self.calls.lock().open.contains_key(&id)
    }

    /// No call will be answered any more.
    fn end_all_calls(&self) {
        let mut calls = self.calls.lock();
        calls.ended = true;
        let open = std::mem::take(&mut calls.open);
        drop(calls);
        for caller in open.into_values() {
            let _ = caller.send(Err(CallError::NotConnected));
        }
    }

    /// Whether the peer may have one more call open.
    pub(crate) fn admit_call(&self) -> bool {
        let mut calls = self.calls.lock();
        let room = calls.theirs < self.calls_max;
        calls.theirs += usize::from(room);
        room
    }

    /// An answer is in the socket.
    pub(crate) fn answered(&self) {
        let mut calls = self.calls.lock();
        calls.theirs = calls.theirs.saturating_sub(1);
    }

    /// Answers one of the peer's calls.
    pub(crate) fn answer(&self, id: u32, answer: Result<Bytes, CallRefusal>) {
        match answer {
            Ok(bytes) => self.outbox.push_body(Body { kind: Kind::Answer, id, bytes }),
            Err(why) => {
                self.answered();
                // Full: the connection ends, and the call with it.
                let _ = self.send(&Frame::CallFailed { id, why });
            }
        }
    }

    pub(crate) fn info(&self) -> ConnectionInfo {
        let rtt = self.rtt.load(Ordering::Relaxed);
        ConnectionInfo {
            peer: self.remote.peer,
            credential: self.remote.credential.clone(),
            remote: self.remote.addr,
            outbound: self.remote.outbound,
            open_for: self.opened.elapsed(),
            rtt: rtt.checked_sub(1).map(Duration::from_micros),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
        }
    }
}
