//! The accept loop: connections, their limits and their end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::access::{AccessController, AllowAll, Connection};
use crate::config::GatewayConfig;
use crate::metrics::GatewayMetrics;
use crate::mirror::Mirrors;
use crate::port::Mesh;
use crate::seats::{Seat, Seats};
use crate::service;
use crate::socket::{Greeting, PatientStream, refuse, speaks_tls};
use crate::tls::{ServerTls, client_names};

/// Most bytes of a request head, and of a connection's read buffer. Strangers can make a gateway keep so much for each of
/// [`GatewayConfig::connections_max`]: 256 MiB. Tokens take some KiB; nginx allows 32 KiB.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Most header lines of a request; docker sends about a dozen.
const HEADERS_MAX: usize = 100;
/// Pause after a failed `accept` (usually: no file descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What serves requests: a mesh, limits, counters, and who may do what.
pub struct Gateway {
    pub(crate) mesh: Arc<dyn Mesh>,
    pub(crate) config: GatewayConfig,
    pub(crate) metrics: GatewayMetrics,
    pub(crate) access: Arc<dyn AccessController>,
    pub(crate) requests: Arc<Semaphore>,
    pub(crate) mirrors: Mirrors,
    tls: Option<Arc<ServerTls>>,
}

impl Gateway {
    /// A gateway to `mesh` that lets everybody do everything.
    pub fn new(mesh: Arc<dyn Mesh>, config: GatewayConfig, metrics: GatewayMetrics) -> Self {
        let requests = Arc::new(Semaphore::new(config.requests_max.min(Semaphore::MAX_PERMITS)));
        let mirrors = Mirrors::default();
        Self { mesh, config, metrics, access: Arc::new(AllowAll), requests, mirrors, tls: None }
    }

    /// The same with another say in who may do what.
    #[must_use]
    pub fn with_access(self, access: Arc<dyn AccessController>) -> Self {
        Self { access, ..self }
    }

    /// The same as a mirror of other registries.
    #[must_use]
    pub fn with_mirrors(self, mirrors: Mirrors) -> Self {
        Self { mirrors, ..self }
    }

    /// The same over TLS.
    #[must_use]
    pub fn with_tls(self, tls: Arc<ServerTls>) -> Self {
        Self { tls: Some(tls), ..self }
    }
}

/// Serves the API on `listener`, in plain HTTP or over TLS, until `shutdown` is cancelled; then accepts no more, lets responses under
/// way end for up to [`GatewayConfig::drain_timeout`], and returns.
pub async fn serve(listener: TcpListener, gateway: Arc<Gateway>, shutdown: CancellationToken) {
    let seats = Seats::new(gateway.config.connections_max, gateway.config.connections_per_address_max);
    let mut connections = JoinSet::new();
    // Accepted, and waiting for a place.
    let mut newcomer = None;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if newcomer.is_none() => match accepted {
                Ok((stream, from)) => newcomer = Some((stream, from.ip().to_canonical())),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    gateway.metrics.rejected("accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            (place, evicted) = seats.take(), if newcomer.is_some() => {
                let Some((stream, address)) = newcomer.take() else { continue };
                if evicted {
                    gateway.metrics.rejected("idle");
                }
                let Some(seat) = seats.seat(place, address, Instant::now()) else {
                    gateway.metrics.rejected("address");
                    continue;
                };
                connections.spawn(seated(stream, gateway.clone(), seat, shutdown.clone()));
            }
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(gateway.config.drain_timeout, drained).await.is_err() {
        tracing::warn!(connections = connections.len(), "responses cut off at shutdown");
        connections.shutdown().await;
    }
}

/// Serves the API on one connection that is open.
#[cfg(feature = "fuzzing")]
pub(crate) async fn serve_stream<S: AsyncRead + AsyncWrite + Unpin>(stream: S, gateway: Arc<Gateway>) {
    let about = Connection::default();
    let seats = Seats::new(1, 1);
    let (place, _) = seats.take().await;
    if let Some(seat) = seats.seat(place, about.address, Instant::now()) {
        http(stream, &gateway, &seat, about, CancellationToken::new()).await;
    }
}

/// A connection, until it ends or has to give way.
async fn seated(stream: TcpStream, gateway: Arc<Gateway>, seat: Arc<Seat>, shutdown: CancellationToken) {
    gateway.metrics.connections.inc();
    tokio::select! {
        () = connection(stream, &gateway, &seat, shutdown) => {}
        () = seat.evicted() => {}
    }
    gateway.metrics.connections.dec();
}

async fn connection(
    stream: TcpStream,
    gateway: &Arc<Gateway>,
    seat: &Arc<Seat>,
    shutdown: CancellationToken,
) {
    // Answers are written whole; waiting for more to send only delays them.
    let _ = stream.set_nodelay(true);
    let mut about = Connection::default();
    if let Ok(peer) = stream.peer_addr() {
        about.address = peer.ip().to_canonical();
    }
    let hello = tokio::select! {
        () = shutdown.cancelled() => return,
        hello = speaks_tls(&stream, gateway.config.header_timeout) => hello,
    };
    match (hello, &gateway.tls) {
        (Ok(true), Some(tls)) => encrypted(stream, gateway, seat, tls, about, shutdown).await,
        (Ok(true), None) => {
            gateway.metrics.rejected("tls_on_plain_port");
            refuse(stream, Greeting::Tls).await;
        }
        (Ok(false), Some(_)) => {
            gateway.metrics.rejected("plain_on_tls_port");
            refuse(stream, Greeting::Plain).await;
        }
        (Ok(false), None) => http(stream, gateway, seat, about, shutdown).await,
        (Err(error), _) => tracing::debug!(%error, "connection without a request"),
    }
}

async fn encrypted(
    stream: TcpStream,
    gateway: &Arc<Gateway>,
    seat: &Arc<Seat>,
    tls: &ServerTls,
    mut about: Connection,
    shutdown: CancellationToken,
) {
    let handshake = TlsAcceptor::from(tls.config()).accept(stream);
    let shaken = tokio::select! {
        () = shutdown.cancelled() => return,
        shaken = tokio::time::timeout(gateway.config.handshake_timeout, handshake) => shaken,
    };
    let stream = match shaken {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            gateway.metrics.rejected("handshake");
            tracing::debug!(%error, address = %about.address, "a TLS handshake failed");
            return;
        }
        Err(_) => return gateway.metrics.rejected("handshake"),
    };
    about.tls = true;
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    about.certificate = shown.and_then(client_names).map(Arc::new);
    http(stream, gateway, seat, about, shutdown).await;
}

async fn http<S>(
    stream: S,
    gateway: &Arc<Gateway>,
    seat: &Arc<Seat>,
    about: Connection,
    shutdown: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let about = Arc::new(about);
    let service = service_fn(|request| service::handle(gateway.clone(), about.clone(), seat.busy(), request));
    let io = TokioIo::new(PatientStream::new(stream, gateway.config.write_timeout));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(gateway.config.header_timeout)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(io, service);
    tokio::pin!(connection);
    let mut draining = false;
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            () = shutdown.cancelled(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    };
    if let Err(error) = ended {
        if error.is_parse() || error.is_timeout() {
            gateway.metrics.rejected(if error.is_parse() { "garbage" } else { "timeout" });
        }
        tracing::debug!(%error, "connection ended");
    }
}
