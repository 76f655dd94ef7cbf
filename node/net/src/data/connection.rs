//! One connection, from its first event to its last.

use std::sync::Arc;

use tokio::io::{AsyncWriteExt as _, WriteHalf};
use tokio::sync::OwnedSemaphorePermit;

use super::event::{DataEvent, DisconnectReason};
use super::greet::{Registered, Stream};
use super::hub::{Hub, IpPlace};
use super::link::Link;
use super::protocol::Frame;
use super::{reader, writer};

/// The places a connection takes up, given back at its end.
pub(crate) type Place = (OwnedSemaphorePermit, Option<IpPlace>);

/// How long a last word may take to leave.
const BYE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(1);

/// Runs a connection that is in place until it ends.
pub(crate) async fn run(hub: Arc<Hub>, stream: Stream, (link, old): Registered, place: Place) {
    if let Some(old) = old {
        // The peer's events come in order: first the old connection's last one.
        old.done.cancelled().await;
    }
    hub.stats.connected.inc();
    let remote = link.remote.clone();
    let (peer, endpoints) = (remote.peer, remote.endpoints);
    let connected = DataEvent::Connected {
        peer,
        credential: remote.credential,
        endpoints,
        remote: remote.addr,
        outbound: remote.outbound,
    };
    let _ = hub.events.send(connected).await;
    let reason = exchange(&hub, &link, stream).await;
    count(&hub, &reason);
    tracing::debug!(%peer, %reason, "a data-plane connection ended");
    link.end_all_calls();
    let _ = hub.events.send(DataEvent::Disconnected { peer, reason }).await;
    link.done.cancel();
    hub.unregister(&link);
    drop(place);
}

/// Reads and writes side by side, in one task, until either ends or somebody closes the connection.
async fn exchange(hub: &Arc<Hub>, link: &Arc<Link>, stream: Stream) -> DisconnectReason {
    let (read, mut write) = tokio::io::split(stream);
    let reason = tokio::select! {
        reason = link.closed() => reason,
        () = hub.stopping.cancelled() => DisconnectReason::Shutdown,
        reason = reader::run(hub, link, read) => reason,
        reason = writer::run(hub, link, &mut write) => reason,
        reason = watch(hub, link) => reason,
    };
    link.close(reason.clone());
    if let Some(why) = reason.bye() {
        let _ = tokio::time::timeout(BYE_TIMEOUT, say_bye(&mut write, &Frame::Bye(why))).await;
    }
    reason
}

async fn say_bye(write: &mut WriteHalf<Stream>, bye: &Frame) {
    let mut bytes = Vec::new();
    bye.encode(&mut bytes);
    // In the middle of a frame the peer takes it for something else; it is about to lose the connection anyway.
    if write.write_all(&bytes).await.is_ok() {
        let _ = write.shutdown().await;
    }
}

/// Pings, and ends the connection when the peer has been silent for too long.
async fn watch(hub: &Hub, link: &Link) -> DisconnectReason {
    let mut ticks = tokio::time::interval(hub.config.ping_interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if link.silent_for() > hub.config.silence_max {
            return DisconnectReason::Silent;
        }
        // When the queue is full the connection is closed already.
        let _ = link.send(&Frame::Ping(link.ping_number()));
    }
}

fn count(hub: &Hub, reason: &DisconnectReason) {
    match reason {
        DisconnectReason::Protocol(_) => hub.stats.protocol_errors.inc(),
        DisconnectReason::Silent => hub.stats.timeouts.inc(),
        DisconnectReason::Overflow => hub.stats.overflows.inc(),
        _ => {}
    }
}
