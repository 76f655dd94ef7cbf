//! Frames in.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::Instant;

use super::event::{AnswerHandle, CallError, DataEvent, DisconnectReason};
use super::expected::{Begun, Ended, Key};
use super::hub::Hub;
use super::link::Link;
use super::pool::PieceBuf;
use super::protocol::{
    CallRefusal, Frame, HEAD_BYTES, Head, Kind, PART_BYTES_MAX, ProtocolError, SUBHEAD_BYTES, check_metainfo,
    decode_subhead,
};

/// Progress inside a frame is told this often: a slow link must not look like a stalled peer.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);
/// Bytes passed over at a time.
const DISCARD_BYTES: usize = 16 * 1024;

/// A call or answer of which parts have come.
struct Assembly {
    kind: Kind,
    id: u32,
    len: usize,
    /// `None` for one that is passed over.
    bytes: Option<Vec<u8>>,
    seen: usize,
}

struct Reader<'a, R> {
    hub: &'a Arc<Hub>,
    link: &'a Arc<Link>,
    read: R,
    assembly: Option<Assembly>,
}

/// Reads frames until the connection ends, and says why it did.
pub(crate) async fn run<R: AsyncRead + Unpin>(hub: &Arc<Hub>, link: &Arc<Link>, read: R) -> DisconnectReason {
    let mut reader = Reader { hub, link, read, assembly: None };
    loop {
        if let Err(reason) = reader.frame().await {
            return reason;
        }
    }
}

impl<R: AsyncRead + Unpin> Reader<'_, R> {
    async fn frame(&mut self) -> Result<(), DisconnectReason> {
        let mut head = [0; HEAD_BYTES];
        self.fill(&mut head).await?;
        let head = Head::decode(head)?;
        self.hub.stats.frames_in.inc();
        match head.kind {
            None => self.discard(head.len).await,
            Some(Kind::Payload) => self.payload(head.len).await,
            Some(kind @ (Kind::Call | Kind::Answer)) => self.part(kind, head.len).await,
            Some(Kind::Hello) => Err(ProtocolError::OutOfPlace(Kind::Hello).into()),
            Some(kind) => self.control(kind, head.len).await,
        }
    }

    async fn control(&mut self, kind: Kind, len: usize) -> Result<(), DisconnectReason> {
        // Grows with what comes, not with what is claimed: a metainfo may be large.
        let mut body = Vec::with_capacity(len.min(DISCARD_BYTES));
        while body.len() < len {
            let start = body.len();
            body.resize(len.min(start + DISCARD_BYTES), 0);
            self.fill(body.get_mut(start..).unwrap_or_default()).await?;
        }
        match Frame::decode(kind, &body)? {
            Frame::Swarm(message) => {
                check_metainfo(&message, &self.hub.setup.identity().mesh)?;
                self.tell(DataEvent::Message { peer: self.link.remote.peer, message }).await;
            }
            Frame::CallFailed { id, why } => self.link.end_call(id, Err(CallError::Refused(why))),
            Frame::Ping(number) => {
                // When the queue is full the connection is closed already.
                let _ = self.link.send(&Frame::Pong(number));
            }
            Frame::Pong(number) => self.link.note_pong(number),
            Frame::Bye(why) => return Err(DisconnectReason::Bye(why)),
            Frame::Hello(_) => return Err(ProtocolError::OutOfPlace(Kind::Hello).into()),
        }
        Ok(())
    }

    async fn payload(&mut self, len: usize) -> Result<(), DisconnectReason> {
        let [channel, piece, offset] = self.subhead().await?;
        // The head was checked: at most PAYLOAD_BYTES_MAX.
        let len = len.saturating_sub(SUBHEAD_BYTES);
        let len32 = u32::try_from(len).unwrap_or(u32::MAX);
        let key: Key = (channel, piece);
        let begun = self.link.expected.lock().begin(key, offset, len32)?;
        self.hub.stats.payload_bytes_in.add(len as u64);
        let (piece_bytes, buffer, generation) = match begun {
            Begun::Fill { piece_bytes, buffer, generation } => (piece_bytes, buffer, generation),
            Begun::Discard => {
                self.hub.stats.payload_bytes_discarded.add(len as u64);
                return self.discard(len).await;
            }
        };
        let buffer = match buffer {
            Some(buffer) => Some(buffer),
            None => self.take_buffer(key, generation, piece_bytes).await,
        };
        let Some(mut buffer) = buffer else {
            self.hub.stats.payload_bytes_discarded.add(len as u64);
            return self.discard(len).await;
        };
        self.fill_piece(key, &mut buffer, offset as usize, len).await?;
        let ended = self.link.expected.lock().end(key, generation, offset.saturating_add(len32), buffer);
        if let Ended::Whole(digest, buffer) = ended {
            self.hub.stats.pieces_in.inc();
            let peer = self.link.remote.peer;
            self.tell(DataEvent::PieceArrived { peer, channel, piece, digest, buffer }).await;
        }
        Ok(())
    }

    /// A buffer for a piece whose first payload is here; waits while the pool is exhausted. `None` when the request
    /// was taken back meanwhile.
    async fn take_buffer(&self, key: Key, generation: u64, piece_bytes: u32) -> Option<PieceBuf> {
        let mut waited = false;
        let buffer = loop {
            let freed = self.hub.pool.freed();
            let taken_back = self.link.taken_back.notified();
            if !self.link.expected.lock().stands(key, generation) {
                break None;
            }
            if let Some(buffer) = self.hub.pool.try_take(piece_bytes as usize) {
                break Some(buffer);
            }
            if !waited {
                waited = true;
                self.hub.stats.pool_waits.inc();
                self.link.reader_waits.store(true, Ordering::Relaxed);
            }
            tokio::select! {
                () = freed => {}
                () = taken_back => {}
            }
        };
        self.resume(waited);
        buffer
    }

    fn resume(&self, waited: bool) {
        if waited {
            self.link.note_heard();
            self.link.reader_waits.store(false, Ordering::Relaxed);
        }
    }

    /// Reads payload straight into the piece's buffer, telling of progress on the way and at the end.
    async fn fill_piece(
        &mut self,
        (channel, piece): Key,
        buffer: &mut PieceBuf,
        offset: usize,
        len: usize,
    ) -> Result<(), DisconnectReason> {
        let peer = self.link.remote.peer;
        let room = buffer.as_mut_slice().get_mut(offset..offset + len).unwrap_or_default();
        let (mut filled, mut told, mut last) = (0, 0, Instant::now());
        while filled < len {
            let rest = room.get_mut(filled..).unwrap_or_default();
            let read = self.read.read(rest).await.map_err(lost)?;
            if read == 0 {
                return Err(DisconnectReason::Lost("it ended in a frame".to_owned()));
            }
            filled += read;
            self.link.note_read(read);
            if filled == len || last.elapsed() >= PROGRESS_INTERVAL {
                let bytes = u32::try_from(filled - told).unwrap_or(u32::MAX);
                (told, last) = (filled, Instant::now());
                self.tell(DataEvent::PieceProgress { peer, channel, piece, bytes }).await;
            }
        }
        Ok(())
    }

    async fn part(&mut self, kind: Kind, len: usize) -> Result<(), DisconnectReason> {
        let [id, total, offset] = self.subhead().await?;
        let (len, total, offset) = (len.saturating_sub(SUBHEAD_BYTES), total as usize, offset as usize);
        let mut assembly = match self.assembly.take() {
            Some(known) if (known.kind, known.id, known.len, known.seen) == (kind, id, total, offset) => {
                known
            }
            None if offset == 0 && total <= self.hub.config.call_bytes_max => {
                self.begin_part(kind, id, total)
            }
            _ => return Err(ProtocolError::Parts.into()),
        };
        // A part that adds nothing is only right for an empty body; otherwise it could go on for ever.
        if offset.saturating_add(len) > total || (len == 0 && total > 0) || len > PART_BYTES_MAX {
            return Err(ProtocolError::Parts.into());
        }
        match &mut assembly.bytes {
            Some(bytes) => {
                let start = bytes.len();
                bytes.resize(start + len, 0);
                let room = bytes.get_mut(start..).unwrap_or_default();
                self.read.read_exact(room).await.map_err(lost)?;
                self.link.note_read(len);
            }
            None => self.discard(len).await?,
        }
        assembly.seen += len;
        if assembly.seen == total {
            self.finish_part(assembly).await;
        } else {
            self.assembly = Some(assembly);
        }
        Ok(())
    }

    fn begin_part(&self, kind: Kind, id: u32, len: usize) -> Assembly {
        // An answer nobody waits for any more is passed over.
        let wanted = if kind == Kind::Answer { self.link.is_open(id) } else { self.link.admit_call() };
        if !wanted && kind == Kind::Call {
            self.hub.stats.calls_refused.inc();
            // When the queue is full the connection is closed already.
            let _ = self.link.send(&Frame::CallFailed { id, why: CallRefusal::Busy });
        }
        Assembly { kind, id, len, bytes: wanted.then(Vec::new), seen: 0 }
    }

    async fn finish_part(&self, assembly: Assembly) {
        let Some(bytes) = assembly.bytes else { return };
        let body = Bytes::from(bytes);
        if assembly.kind == Kind::Answer {
            return self.link.end_call(assembly.id, Ok(body));
        }
        self.hub.stats.calls_in.inc();
        let bytes_max = self.hub.config.call_bytes_max;
        let answer = AnswerHandle { link: self.link.clone(), id: Some(assembly.id), bytes_max };
        self.tell(DataEvent::Call { peer: self.link.remote.peer, body, answer }).await;
    }

    async fn subhead(&mut self) -> Result<[u32; 3], DisconnectReason> {
        let mut bytes = [0; SUBHEAD_BYTES];
        self.fill(&mut bytes).await?;
        Ok(decode_subhead(bytes))
    }

    async fn fill(&mut self, buffer: &mut [u8]) -> Result<(), DisconnectReason> {
        self.read.read_exact(buffer).await.map_err(lost)?;
        self.link.note_read(buffer.len());
        Ok(())
    }

    async fn discard(&mut self, mut len: usize) -> Result<(), DisconnectReason> {
        let mut scratch = [0; DISCARD_BYTES];
        while len > 0 {
            let room = scratch.get_mut(..len.min(DISCARD_BYTES)).unwrap_or_default();
            let read = self.read.read(room).await.map_err(lost)?;
            if read == 0 {
                return Err(DisconnectReason::Lost("it ended in a frame".to_owned()));
            }
            self.link.note_read(read);
            len -= read;
        }
        Ok(())
    }

    /// Waits while the daemon is behind: then this connection reads no more, and TCP slows the peer.
    async fn tell(&self, event: DataEvent) {
        let event = match self.hub.events.try_send(event) {
            Ok(()) => return,
            Err(tokio::sync::mpsc::error::TrySendError::Closed(_)) => return,
            Err(tokio::sync::mpsc::error::TrySendError::Full(event)) => event,
        };
        self.link.reader_waits.store(true, Ordering::Relaxed);
        let _ = self.hub.events.send(event).await;
        self.resume(true);
    }
}

fn lost(error: std::io::Error) -> DisconnectReason {
    DisconnectReason::Lost(error.to_string())
}
