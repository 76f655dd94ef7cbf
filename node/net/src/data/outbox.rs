//! What waits to be sent on a connection.

use std::collections::VecDeque;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::event::{PieceSource, SendError};
use super::protocol::{Frame, Kind};

/// The queues of one connection. Any thread adds; the connection's writer takes.
#[derive(Debug)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    wake: Notify,
    control_bytes_max: usize,
    pieces_max: usize,
}

#[derive(Debug, Default)]
struct State {
    /// Encoded control frames, ready for the socket.
    control: Vec<u8>,
    control_frames: u64,
    bodies: VecDeque<Body>,
    pieces: VecDeque<QueuedPiece>,
    /// Cancelled before they began: channel and piece. Count as queued until they are reported.
    cancelled: Vec<(u32, u32)>,
    closed: bool,
}

/// A call or answer.
#[derive(Clone, Debug)]
pub(crate) struct Body {
    pub(crate) kind: Kind,
    pub(crate) id: u32,
    pub(crate) bytes: Bytes,
}

/// A piece that waits for its turn.
#[derive(Debug)]
pub(crate) struct QueuedPiece {
    pub(crate) to_channel: u32,
    pub(crate) piece: u32,
    pub(crate) source: PieceSource,
}

impl Outbox {
    pub(crate) fn new(control_bytes_max: usize, pieces_max: usize) -> Self {
        Self { state: Mutex::default(), wake: Notify::new(), control_bytes_max, pieces_max }
    }

    /// Queues a control frame; `Full` when over the limit.
    pub(crate) fn push_frame(&self, frame: &Frame) -> Result<(), SendError> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(SendError::NotConnected);
        }
        if state.control.len() > self.control_bytes_max {
            return Err(SendError::Full);
        }
        frame.encode(&mut state.control);
        state.control_frames += 1;
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    /// Queues a call or answer. Their number is bounded by the open calls.
    pub(crate) fn push_body(&self, body: Body) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        state.bodies.push_back(body);
        drop(state);
        self.wake.notify_one();
    }

    /// Takes back a call that has not begun.
    pub(crate) fn cancel_call(&self, id: u32) {
        self.state.lock().bodies.retain(|body| body.kind != Kind::Call || body.id != id);
    }

    /// Queues a piece.
    pub(crate) fn push_piece(&self, piece: QueuedPiece) -> Result<(), SendError> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(SendError::NotConnected);
        }
        if state.pieces.len() + state.cancelled.len() >= self.pieces_max {
            return Err(SendError::Full);
        }
        state.pieces.push_back(piece);
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    /// Takes back a piece that has not begun.
    pub(crate) fn cancel_piece(&self, to_channel: u32, piece: u32) {
        let mut state = self.state.lock();
        let queued =
            state.pieces.iter().position(|queued| (queued.to_channel, queued.piece) == (to_channel, piece));
        if let Some(at) = queued {
            state.pieces.remove(at);
            state.cancelled.push((to_channel, piece));
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Swaps all control frames for the empty `into`, and returns their number.
    pub(crate) fn take_control(&self, into: &mut Vec<u8>) -> u64 {
        let mut state = self.state.lock();
        std::mem::swap(&mut state.control, into);
        std::mem::take(&mut state.control_frames)
    }

    /// The next call or answer.
    pub(crate) fn take_body(&self) -> Option<Body> {
        self.state.lock().bodies.pop_front()
    }

    /// The next piece.
    pub(crate) fn take_piece(&self) -> Option<QueuedPiece> {
        self.state.lock().pieces.pop_front()
    }

    /// Forgets everything, for good.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        let queued = std::mem::take(&mut *state);
        state.closed = true;
        drop(state);
        // A source's own drop may take its time.
        drop(queued);
    }

    /// The pieces cancelled since the last call.
    pub(crate) fn take_cancelled(&self) -> Vec<(u32, u32)> {
        std::mem::take(&mut self.state.lock().cancelled)
    }

    /// Waits until something was added since this was last awaited.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }
}
