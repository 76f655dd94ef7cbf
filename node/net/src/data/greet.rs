//! The first words on a connection.

use std::net::SocketAddr;

use shoal_engine::io::DropReason;
use shoal_types::{PeerId, SignedCredential};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use super::event::ConnectError;
use super::hub::{Dial, Hub, Refusal, Registered, Verdict};
use super::link::Remote;
use super::protocol::{ByeReason, Frame, HEAD_BYTES, Head, Hello, Kind, ProtocolError};
use crate::tls::{self, Plane, Rejection};

/// A TLS connection over a buffered socket: TLS asks for small reads, which the buffer answers.
pub(crate) type Stream = TlsStream<BufReader<TcpStream>>;

/// Bytes read from a socket at a time.
pub(crate) const READ_BYTES: usize = 64 * 1024;

/// Who finished a handshake.
pub(crate) fn identify(stream: &Stream) -> Result<(PeerId, SignedCredential), Rejection> {
    let (_, connection) = stream.get_ref();
    tls::check_plane(Plane::Data, connection.alpn_protocol())?;
    tls::peer_of(connection.peer_certificates())
}

/// The dialler's side: speaks first, and puts the connection in place when the other agrees. `None` when the other
/// direction's connection is taken instead.
pub(crate) async fn as_dialler(
    hub: &Hub,
    dial: &Dial,
    stream: &mut Stream,
    addr: SocketAddr,
) -> Result<Option<Registered>, ConnectError> {
    let (peer, credential) = identify(stream)?;
    if !hub.speak(&peer, dial) {
        return Ok(None);
    }
    let own = hub.hello(dial.number);
    write_frame(stream, &Frame::Hello(own.clone())).await?;
    let hello = read_hello(stream).await?;
    hello.common_version(&own)?;
    // Nothing may be awaited from here on: a connection in place must be run.
    match hub.take_outbound(remote(peer, credential, hello, addr, true)) {
        Ok(registered) => Ok(Some(registered)),
        Err(Refusal::Replaced) => Ok(None),
        Err(Refusal::Banned) => Err(ConnectError::Banned),
    }
}

/// The acceptor's side: listens first. When it takes the connection its own Hello is the first frame in the outbox.
pub(crate) async fn as_acceptor(
    hub: &Hub,
    stream: &mut Stream,
    addr: SocketAddr,
) -> Result<Option<Registered>, ConnectError> {
    let (peer, credential) = identify(stream)?;
    let hello = read_hello(stream).await?;
    if hello.common_version(&hub.hello(0)).is_err() {
        return refuse(stream, ByeReason::Version).await;
    }
    let remote = remote(peer, credential, hello, addr, false);
    loop {
        match hub.take_inbound(remote.clone()) {
            // Nothing may be awaited from here on: a connection in place must be run.
            Verdict::Taken(registered) => return Ok(Some(registered)),
            Verdict::Refuse => return refuse(stream, ByeReason::Dropped(DropReason::Replaced)).await,
            Verdict::Banned => {
                hub.stats.refused_banned.inc();
                return refuse(stream, ByeReason::Banned).await;
            }
            Verdict::Wait(over) => tokio::select! {
                biased;
                // Nothing is to come before our Hello: this is its end.
                read = stream.read_u8() => {
                    read.map_err(io_error)?;
                    return Err(ProtocolError::UnknownBits.into());
                }
                () = over.cancelled() => {}
            },
        }
    }
}

fn remote(
    peer: PeerId,
    credential: SignedCredential,
    hello: Hello,
    addr: SocketAddr,
    outbound: bool,
) -> Remote {
    let Hello { instance, endpoints, dial, .. } = hello;
    Remote { peer, credential, endpoints, instance, dial, addr, outbound }
}

async fn refuse(stream: &mut Stream, why: ByeReason) -> Result<Option<Registered>, ConnectError> {
    write_frame(stream, &Frame::Bye(why)).await?;
    let _ = stream.shutdown().await;
    Ok(None)
}

async fn write_frame(stream: &mut Stream, frame: &Frame) -> Result<(), ConnectError> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    stream.write_all(&bytes).await.map_err(io_error)?;
    stream.flush().await.map_err(io_error)
}

async fn read_hello(stream: &mut Stream) -> Result<Hello, ConnectError> {
    let mut head = [0; HEAD_BYTES];
    stream.read_exact(&mut head).await.map_err(io_error)?;
    let head = Head::decode(head)?;
    let Some(kind @ (Kind::Hello | Kind::Bye)) = head.kind else {
        return Err(head.kind.map_or(ProtocolError::UnknownKind(0), ProtocolError::OutOfPlace).into());
    };
    // At most HELLO_BYTES_MAX: the head is checked.
    let mut body = vec![0; head.len];
    stream.read_exact(&mut body).await.map_err(io_error)?;
    match Frame::decode(kind, &body)? {
        Frame::Hello(hello) => Ok(hello),
        Frame::Bye(why) => Err(ConnectError::Refused(why)),
        _ => Err(ProtocolError::OutOfPlace(kind).into()),
    }
}

/// In TLS 1.3 a dialler learns of its rejection with its first read.
pub(crate) fn io_error(error: std::io::Error) -> ConnectError {
    match tls::rejection_of(&error) {
        Some(rejection) => ConnectError::Rejected(rejection.clone()),
        None => ConnectError::Io(error.to_string()),
    }
}
