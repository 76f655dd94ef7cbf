//! Bodies on their way through: counted, limited, timed.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use prometheus_client::metrics::counter::Counter;
use shoal_daemon::traces::RequestTrace;
use tokio::sync::OwnedSemaphorePermit;

use crate::metrics::{InFlight, Route};
use crate::port::ByteStream;

/// What a route answers with.
pub(crate) enum Payload {
    Empty,
    Full(Bytes),
    /// Exactly `length` bytes, or an error.
    Stream {
        length: u64,
        stream: ByteStream,
    },
}

/// A response body: exactly the announced bytes or a broken connection, never a clean short end.
pub(crate) struct ResponseBody {
    stream: ByteStream,
    left: u64,
    started: Instant,
    first: bool,
    failed: bool,
    route: Route,
    in_flight: InFlight,
    _admission: Option<OwnedSemaphorePermit>,
    trace: RequestTrace,
}

impl ResponseBody {
    pub(crate) fn new(
        payload: Payload,
        started: Instant,
        route: Route,
        in_flight: InFlight,
        admission: Option<OwnedSemaphorePermit>,
        trace: RequestTrace,
    ) -> Self {
        let (left, stream) = match payload {
            Payload::Empty => (0, stream::empty().boxed()),
            Payload::Full(bytes) => (bytes.len() as u64, stream::iter([Ok(bytes)]).boxed()),
            Payload::Stream { length, stream } => (length, stream),
        };
        Self {
            stream,
            left,
            started,
            first: true,
            failed: false,
            route,
            in_flight,
            _admission: admission,
            trace,
        }
    }

    fn fail(&mut self, error: io::Error) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        tracing::warn!(%error, missing_bytes = self.left, "response broken off");
        self.in_flight.metrics().broken.inc();
        self.failed = true;
        self.trace.failed(&error.to_string());
        self.stream = stream::empty().boxed();
        Poll::Ready(Some(Err(error)))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.left == 0 || self.failed {
            return Poll::Ready(None);
        }
        match ready!(self.stream.poll_next_unpin(cx)) {
            None => {
                let error = io::Error::new(io::ErrorKind::UnexpectedEof, "the content ended too soon");
                self.fail(error)
            }
            Some(Err(error)) => self.fail(error),
            Some(Ok(bytes)) if bytes.len() as u64 > self.left => {
                self.fail(io::Error::new(io::ErrorKind::InvalidData, "more content than announced"))
            }
            Some(Ok(bytes)) => {
                if std::mem::take(&mut self.first) {
                    let waited = self.started.elapsed();
                    self.in_flight.metrics().first_byte(self.route, waited);
                    self.trace.first_byte();
                }
                self.left -= bytes.len() as u64;
                self.in_flight.metrics().bytes_out.inc_by(bytes.len() as u64);
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Why the gateway itself broke a request's body off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyFault {
    /// Longer than allowed, in bytes.
    TooLarge(u64),
    /// Not as long as `Content-Range` said.
    Length,
    /// Silent for too long.
    Timeout,
}

/// Learns why a body was broken off.
pub(crate) type FaultCell = Arc<OnceLock<BodyFault>>;

/// Limits on a request's body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyLimits {
    /// Most bytes.
    pub(crate) bytes_max: Option<u64>,
    /// Exactly this many bytes.
    pub(crate) exact: Option<u64>,
    /// Longest silence.
    pub(crate) silence_max: Duration,
}

/// The request's body as a bounded, timed and counted stream, and where the reason stands when the gateway ends it.
pub(crate) fn request_stream(
    body: Incoming,
    limits: BodyLimits,
    bytes_in: Counter,
) -> (ByteStream, FaultCell) {
    let fault = FaultCell::default();
    let state = Some((body, 0u64, fault.clone()));
    let stream = stream::try_unfold(state, move |state| {
        let bytes_in = bytes_in.clone();
        async move {
            let Some((mut body, seen, fault)) = state else { return Ok(None) };
            let refuse = |why, kind, text: &'static str| {
                let _ = fault.set(why);
                Err(io::Error::new(kind, text))
            };
            loop {
                let frame = match tokio::time::timeout(limits.silence_max, body.frame()).await {
                    Err(_) => {
                        return refuse(BodyFault::Timeout, io::ErrorKind::TimedOut, "the client went silent");
                    }
                    Ok(None) if limits.exact.is_some_and(|exact| exact != seen) => {
                        return refuse(
                            BodyFault::Length,
                            io::ErrorKind::InvalidData,
                            "shorter than its range",
                        );
                    }
                    Ok(None) => return Ok(None),
                    Ok(Some(frame)) => frame.map_err(io::Error::other)?,
                };
                // Trailers mean nothing here.
                let Ok(bytes) = frame.into_data() else { continue };
                if bytes.is_empty() {
                    continue;
                }
                let seen = seen + bytes.len() as u64;
                bytes_in.inc_by(bytes.len() as u64);
                if let Some(limit) = limits.bytes_max.filter(|limit| seen > *limit) {
                    return refuse(BodyFault::TooLarge(limit), io::ErrorKind::FileTooLarge, "over the limit");
                }
                if limits.exact.is_some_and(|exact| seen > exact) {
                    return refuse(BodyFault::Length, io::ErrorKind::InvalidData, "longer than its range");
                }
                return Ok(Some((bytes, Some((body, seen, fault)))));
            }
        }
    });
    (stream.boxed(), fault)
}

/// Most bytes thrown away to let a refused client finish sending and read the answer.
const DRAIN_BYTES_MAX: u64 = 16 << 20;
/// Longest time spent on it.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);

/// Throws the rest of a refused body away, within bounds: closing a socket with unread bytes resets it, and the
/// reset overtakes the answer.
pub(crate) async fn drain<S: Stream<Item = io::Result<Bytes>> + Unpin>(mut body: S) {
    let all = async {
        let mut seen = 0;
        while let Some(Ok(bytes)) = body.next().await {
            seen += bytes.len() as u64;
            if seen > DRAIN_BYTES_MAX {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN_TIME_MAX, all).await;
}
