//! Frames out: control first, then one part of a call or answer, then one frame of payload, and again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::AbortOnDropHandle;

use super::event::{DataEvent, PieceSource};
use super::hub::Hub;
use super::link::Link;
use super::outbox::{Body, QueuedPiece};
use super::protocol::{Kind, PART_BYTES_MAX, PAYLOAD_BYTES_MAX, encode_with_subhead};

/// Largest piece that is sent; more from a source is a fault of this process.
const PIECE_BYTES_MAX: usize = shoal_types::layout::PIECE_BYTES_MAX as usize;

/// A piece on its way out.
struct Sending {
    to_channel: u32,
    piece: u32,
    bytes: Bytes,
    sent: usize,
    /// Its place among the pieces in memory.
    _place: OwnedSemaphorePermit,
}

/// A piece that is being read: its channel and number, and its bytes when they are there.
type Reading = (u32, u32, AbortOnDropHandle<io::Result<(Bytes, OwnedSemaphorePermit)>>);

struct Writer<'a, W> {
    hub: &'a Arc<Hub>,
    link: &'a Arc<Link>,
    write: W,
    control: Vec<u8>,
    body: Option<(Body, usize)>,
    sending: Option<Sending>,
    reading: Option<Reading>,
}

/// Writes what is queued until the link is closed, and then gives `write` back, which is between two frames; or until
/// the connection breaks.
pub(crate) async fn run<W: AsyncWrite + Unpin>(hub: &Arc<Hub>, link: &Arc<Link>, write: W) -> io::Result<W> {
    let mut writer =
        Writer { hub, link, write, control: Vec::new(), body: None, sending: None, reading: None };
    while !link.is_closed() {
        writer.step().await?;
    }
    Ok(writer.write)
}

impl<W: AsyncWrite + Unpin> Writer<'_, W> {
    /// Writes at most one frame of each kind, or waits for something to write.
    async fn step(&mut self) -> io::Result<()> {
        self.report_cancelled().await;
        let mut busy = self.write_control().await?;
        if !self.link.is_closed() {
            busy |= self.write_part().await?;
        }
        self.read_ahead();
        if !self.link.is_closed() {
            busy |= self.write_payload().await?;
        }
        if !busy {
            self.link.note_writing();
            self.write.flush().await?;
            self.link.note_written();
            self.wait().await;
        }
        Ok(())
    }

    async fn wait(&mut self) {
        match &mut self.reading {
            Some((to_channel, piece, read)) if self.sending.is_none() => {
                let (to_channel, piece) = (*to_channel, *piece);
                tokio::select! {
                    () = self.link.outbox.woken() => {}
                    _ = self.link.closed() => {}
                    result = read => {
                        self.reading = None;
                        let result = result.unwrap_or_else(|error| Err(io::Error::other(error)));
                        self.begin_sending(to_channel, piece, result).await;
                    }
                }
            }
            _ => tokio::select! {
                () = self.link.outbox.woken() => {}
                _ = self.link.closed() => {}
            },
        }
    }

    async fn report_cancelled(&mut self) {
        for (to_channel, piece) in self.link.outbox.take_cancelled() {
            self.report(to_channel, piece, 0).await;
        }
    }

    async fn write_control(&mut self) -> io::Result<bool> {
        self.control.clear();
        let frames = self.link.outbox.take_control(&mut self.control);
        if frames == 0 {
            return Ok(false);
        }
        self.hub.stats.control_frames_out.add(frames);
        put(&mut self.write, self.link, &self.control).await?;
        self.note(self.control.len());
        // A metainfo may have made it large; that room is not kept.
        if self.control.capacity() > PAYLOAD_BYTES_MAX {
            self.control = Vec::new();
        }
        Ok(true)
    }

    async fn write_part(&mut self) -> io::Result<bool> {
        if self.body.is_none() {
            self.body = self.link.outbox.take_body().map(|body| (body, 0));
        }
        let Some((body, offset)) = &mut self.body else { return Ok(false) };
        let len = (body.bytes.len() - *offset).min(PART_BYTES_MAX);
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let subhead = [body.id, number(body.bytes.len()), number(*offset)];
        let head = encode_with_subhead(body.kind, subhead, len);
        put(&mut self.write, self.link, &head).await?;
        let part = body.bytes.get(*offset..*offset + len).unwrap_or_default();
        put(&mut self.write, self.link, part).await?;
        *offset += len;
        let ended = *offset == body.bytes.len();
        let answered = ended && body.kind == Kind::Answer;
        self.note(head.len() + len);
        if ended {
            self.body = None;
        }
        if answered {
            self.link.answered();
        }
        Ok(true)
    }

    /// Begins to read the next piece, at most one ahead of the one being sent.
    fn read_ahead(&mut self) {
        let places = self.hub.sending.clone();
        // While places are scarce nobody takes a second one.
        let scarce = places.available_permits() <= self.hub.config.pieces_in_memory_max / 2;
        if self.reading.is_some() || (self.sending.is_some() && scarce) {
            return;
        }
        let Some(QueuedPiece { to_channel, piece, source }) = self.link.outbox.take_piece() else { return };
        let read = AbortOnDropHandle::new(tokio::spawn(async move {
            let place = places.acquire_owned().await.map_err(io::Error::other)?;
            let bytes = match source {
                PieceSource::Bytes(bytes) => bytes,
                PieceSource::Read(read) => read().await?,
            };
            Ok((bytes, place))
        }));
        self.reading = Some((to_channel, piece, read));
    }

    async fn begin_sending(
        &mut self,
        to_channel: u32,
        piece: u32,
        result: io::Result<(Bytes, OwnedSemaphorePermit)>,
    ) {
        match result {
            Ok((bytes, place)) if !bytes.is_empty() && bytes.len() <= PIECE_BYTES_MAX => {
                self.sending = Some(Sending { to_channel, piece, bytes, sent: 0, _place: place });
            }
            result => {
                let why =
                    result.err().map_or_else(|| "its length is wrong".to_owned(), |error| error.to_string());
                tracing::warn!(piece, %why, "a piece cannot be sent");
                self.hub.stats.reads_failed.inc();
                self.report(to_channel, piece, 0).await;
            }
        }
    }

    async fn write_payload(&mut self) -> io::Result<bool> {
        if self.sending.is_none()
            && let Some((to_channel, piece, read)) = self.reading.take_if(|(_, _, read)| read.is_finished())
        {
            let result = read.await.unwrap_or_else(|error| Err(io::Error::other(error)));
            self.begin_sending(to_channel, piece, result).await;
        }
        let Some(sending) = &mut self.sending else { return Ok(false) };
        let len = (sending.bytes.len() - sending.sent).min(PAYLOAD_BYTES_MAX);
        let offset = u32::try_from(sending.sent).unwrap_or(u32::MAX);
        let head = encode_with_subhead(Kind::Payload, [sending.to_channel, sending.piece, offset], len);
        put(&mut self.write, self.link, &head).await?;
        let part = sending.bytes.get(sending.sent..sending.sent + len).unwrap_or_default();
        put(&mut self.write, self.link, part).await?;
        sending.sent += len;
        self.hub.stats.payload_bytes_out.add(len as u64);
        let whole = sending.sent == sending.bytes.len();
        self.note(head.len() + len);
        if whole && let Some(done) = self.sending.take() {
            self.hub.stats.pieces_out.inc();
            let bytes = u32::try_from(done.bytes.len()).unwrap_or(u32::MAX);
            self.report(done.to_channel, done.piece, bytes).await;
        }
        Ok(true)
    }

    async fn report(&self, to_channel: u32, piece: u32, bytes: u32) {
        if self.link.is_closed() {
            // Given up with the connection.
            return;
        }
        let event = DataEvent::PieceSent { peer: self.link.remote.peer, to_channel, piece, bytes };
        let _ = self.hub.events.send(event).await;
    }

    fn note(&self, bytes: usize) {
        self.link.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Writes all of `bytes`, and notes when the peer takes some of them.
async fn put<W: AsyncWrite + Unpin>(write: &mut W, link: &Link, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        link.note_writing();
        let count = write.write(bytes).await?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = bytes.get(count..).unwrap_or_default();
    }
    link.note_written();
    Ok(())
}
