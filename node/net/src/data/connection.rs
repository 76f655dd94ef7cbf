//! One connection, from its first event to its last.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use shoal_types::PeerId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::OwnedSemaphorePermit;

use super::event::{DataEvent, DisconnectReason, Taken};
use super::greet::Stream;
use super::hub::{Hub, IpPlace, Registered};
use super::link::Link;
use super::protocol::Frame;
use super::{reader, writer};

/// The places a connection takes up, given back at its end.
pub(crate) type Place = (OwnedSemaphorePermit, Option<IpPlace>);

/// How long the frame being written may take to its end, and then a last word to the peer.
const LAST_WORD_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes passed over at a time while the peer hears our last word.
const DRAIN_BYTES: usize = 16 * 1024;

/// Runs a connection that is in place until it ends.
pub(crate) async fn run(hub: Arc<Hub>, stream: Stream, (link, old): Registered, place: Place) {
    if let Some(old) = old {
        // The peer's events come in order: first the old connection's last one, and the daemon has handled it.
        old.done.cancelled().await;
    }
    hub.stats.connected.inc();
    let remote = link.remote.clone();
    let peer = remote.peer;
    link.show();
    let connected = DataEvent::Connected {
        peer,
        credential: remote.credential,
        endpoints: remote.endpoints,
        remote: remote.addr,
        outbound: remote.outbound,
    };
    let _ = hub.events.send(connected).await;
    suit_to_pieces(&stream);
    let (reason, ends) = exchange(&hub, &link, stream).await;
    count(&hub, peer, &reason);
    tracing::debug!(%peer, %reason, "a data-plane connection ended");
    link.clear();
    let bye = reason.bye();
    let taken = Taken(link.done.clone());
    let _ = hub.events.send(DataEvent::Disconnected { peer, reason, taken }).await;
    if let (Some(why), Some((read, write))) = (bye, ends) {
        let _ = tokio::time::timeout(LAST_WORD_TIMEOUT, say_bye(read, write, &Frame::Bye(why))).await;
    }
    drop(place);
    link.done.cancelled().await;
    hub.forget(&peer);
}

/// Congestion control of the data plane. A piece is a burst on one of many connections that share a wire: BBR paces it by
/// what that connection last had, and leaves the wire idle (last of 8 hosts at 1.21 of the bound with BBR, 1.15 with
/// CUBIC, in one run of `make bench`, 2026-11-25). Connections to other zones have the longer round trip, and beside
/// CUBIC on the same wire BBR starves there, so they have CUBIC too (ADR 5).
const CONGESTION: &[u8] = b"cubic";

/// Sets a connection up for what it carries. A system that does not allow it has its own way.
fn suit_to_pieces(stream: &Stream) {
    let _ = socket2::SockRef::from(stream.get_ref().0.get_ref()).set_tcp_congestion(CONGESTION);
}

/// Both directions of a connection between two frames.
type Ends = (ReadHalf<Stream>, WriteHalf<Stream>);

/// Reads and writes side by side, in one task, until either ends or somebody closes the connection. The ends are
/// returned when there may be another word on them.
async fn exchange(hub: &Arc<Hub>, link: &Arc<Link>, stream: Stream) -> (DisconnectReason, Option<Ends>) {
    let (mut read, write) = tokio::io::split(stream);
    let mut writer = pin!(writer::run(hub, link, write));
    let mut written = None;
    let reason = tokio::select! {
        reason = link.closed() => reason,
        () = hub.stopping.cancelled() => DisconnectReason::Shutdown,
        reason = reader::run(hub, link, &mut read) => reason,
        result = &mut writer => {
            let reason = result.as_ref().err().map(|error| DisconnectReason::Lost(error.to_string()));
            written = Some(result);
            // Without an error the writer ends because the link is closed.
            reason.unwrap_or(DisconnectReason::Shutdown)
        }
        reason = watch(hub, link) => reason,
    };
    link.close(reason);
    // The first reason counts.
    let reason = link.closed().await;
    if reason.bye().is_none() {
        return (reason, None);
    }
    if written.is_none() {
        // To the end of its frame: in the middle of one the peer would take the last word for payload.
        written = tokio::time::timeout(LAST_WORD_TIMEOUT, writer).await.ok();
    }
    let ends = written.and_then(Result::ok).map(|write| (read, write));
    (reason, ends)
}

/// Says the last word, and waits for the peer to close: with unread bytes in its buffer our system would reset the
/// connection, and the word would be lost.
async fn say_bye(mut read: ReadHalf<Stream>, mut write: WriteHalf<Stream>, bye: &Frame) {
    let mut bytes = Vec::new();
    bye.encode(&mut bytes);
    if write.write_all(&bytes).await.is_err() || write.shutdown().await.is_err() {
        return;
    }
    let mut scratch = vec![0; DRAIN_BYTES];
    while read.read(&mut scratch).await.is_ok_and(|count| count > 0) {}
}

/// Pings, and ends the connection when the peer has been silent for too long, or has not read.
async fn watch(hub: &Hub, link: &Link) -> DisconnectReason {
    let mut ticks = tokio::time::interval(hub.config.ping_interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if link.silent_for() > hub.config.silence_max {
            return DisconnectReason::Silent;
        }
        if link.stalled_for() > hub.config.silence_max {
            return DisconnectReason::Overflow;
        }
        // When the queue is full the connection is closed already.
        let _ = link.send(&Frame::Ping(link.ping_number()));
    }
}

fn count(hub: &Hub, peer: PeerId, reason: &DisconnectReason) {
    match reason {
        DisconnectReason::Protocol(_) => {
            hub.stats.protocol_errors.inc();
            let excused = hub.offences.lock().take(peer, std::time::Instant::now());
            if !excused {
                hub.stats.banned.inc();
                tracing::warn!(%peer, "a member that keeps breaking the protocol is banned");
                hub.ban(peer, hub.config.offence_ban);
            }
        }
        DisconnectReason::Silent => hub.stats.timeouts.inc(),
        DisconnectReason::Overflow => hub.stats.overflows.inc(),
        _ => {}
    }
}
