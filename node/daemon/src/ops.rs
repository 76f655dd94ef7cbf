//! The ops listener: health, metrics, status, and blobs for the command line. On loopback by default; it has no
//! authentication, so keep it there.

mod blobs;
mod browse;
mod console;
mod limited;
mod live;
mod preheat;
mod why;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use shoal_engine::{SwarmPeerStatus, SwarmStatus};
use shoal_net::control::ControlHandle;
use shoal_types::{
    Digest, ImageReference, PeerId, RecordKey, RecordKind, Reference, RevocationError, SignedRevocations,
    Zone,
};
use tokio::net::TcpListener;

use self::limited::Limited;
use crate::doctor;
use crate::node::{ManifestError, Node};
use crate::pulls::Pull;
use crate::replicate::Job;

/// How long a backend may take to answer the question whether it is ready: a probe from outside waits no longer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Starts the listener; it serves until the node stops.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve(node: Node, address: SocketAddr) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let local = listener.local_addr()?;
    let stopping = node.clone();
    let router = router(node);
    tokio::spawn(async move {
        let served = axum::serve(Limited::new(listener), router)
            .with_graceful_shutdown(async move { stopping.stopping().await });
        if let Err(error) = served.await {
            tracing::error!(%error, "the ops listener failed");
        }
    });
    Ok(local)
}

/// Starts the listener of a bootstrap peer, which has health and metrics and nothing else; it serves until the process
/// ends.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve_door(control: ControlHandle, address: SocketAddr) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let local = listener.local_addr()?;
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(|| async { "ready\n" }))
        .route("/metrics", get(door_metrics))
        .route("/api/v1/revocations", put(|State(control): State<ControlHandle>, body| revoke(control, body)))
        .with_state(control);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(Limited::new(listener), router).await {
            tracing::error!(%error, "the ops listener failed");
        }
    });
    Ok(local)
}

async fn door_metrics(State(control): State<ControlHandle>, headers: HeaderMap) -> Response {
    crate::metrics::door(&control, &headers)
}

fn router(node: Node) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/api/v1/status", get(status))
        .route("/api/v1/peers", get(peers))
        .route("/api/v1/swarms", get(swarms))
        .route("/api/v1/pulls", get(pulls))
        .route("/api/v1/why/{*what}", get(why::explain))
        .route("/api/v1/live", get(live::follow))
        .route("/api/v1/repositories", get(browse::repositories))
        .route("/api/v1/tags", get(browse::tags))
        .route("/api/v1/image", get(browse::image))
        .route("/", get(console::page))
        .route("/console.css", get(console::style))
        .route("/console.js", get(console::script))
        .route("/api/v1/blobs/{digest}", get(blobs::read))
        .route("/api/v1/blobs/{digest}", put(blobs::write))
        .route("/api/v1/manifests/{*image}", get(blobs::manifest))
        .route(
            "/api/v1/doctor",
            post(|State(node): State<Node>| async move { Json(doctor::examine(&node).await) }),
        )
        .route("/api/v1/gc", get(collection).post(collect))
        .route("/api/v1/preheats", post(preheat::order))
        .route("/api/v1/replications", get(replications).post(replicate))
        .route("/api/v1/revocations", get(revocations))
        .route(
            "/api/v1/revocations",
            put(|State(node): State<Node>, body| async move { revoke(node.control().clone(), body).await }),
        )
        .with_state(node)
}

/// Ready: the store is open (or the node would not run) and the mesh is joined, or there is none to join.
async fn ready(State(node): State<Node>) -> Response {
    match node.control().status().await {
        None => (StatusCode::SERVICE_UNAVAILABLE, "the control plane has stopped\n").into_response(),
        Some(status) if status.peers.is_empty() && !node.config().bootstrap.is_empty() => {
            (StatusCode::SERVICE_UNAVAILABLE, "no member of the mesh is connected\n").into_response()
        }
        Some(_) => match unready_backend(&node).await {
            Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
            None => "ready\n".into_response(),
        },
    }
}

/// Why a backend that must be ready is not.
async fn unready_backend(node: &Node) -> Option<String> {
    for member in node.vault()?.backends().all().iter().filter(|member| member.must_be_ready) {
        let why = match tokio::time::timeout(PROBE_TIMEOUT, member.backend.probe()).await {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer in {} s", PROBE_TIMEOUT.as_secs()),
        };
        return Some(format!("the backend {} is not ready: {why}", member.backend.describe()));
    }
    None
}

async fn metrics(State(node): State<Node>, headers: HeaderMap) -> Response {
    crate::metrics::node(&node, &headers).await
}

#[derive(Serialize)]
struct Status {
    version: &'static str,
    peer: PeerId,
    zone: String,
    roles: String,
    listening: Vec<String>,
    data_endpoints: Vec<String>,
    uptime_ms: u64,
    members_connected: usize,
    members_known: usize,
    data_connections: usize,
    routing_peers: usize,
    provider_records: usize,
    provided: usize,
    origins: Vec<OriginStatus>,
    store: StoreStatus,
    swarms: usize,
    backends: Vec<BackendStatus>,
    queue: Option<crate::queue::QueueStatus>,
    replication: Option<crate::replicate::ReplicationStatus>,
}

#[derive(Serialize)]
struct BackendStatus {
    backend: String,
    keeps_pushes: bool,
    write_back: bool,
    must_be_ready: bool,
    read_bytes: u64,
    written_bytes: u64,
    failures: u64,
}

fn backend_status(member: &shoal_origin::Member) -> BackendStatus {
    BackendStatus {
        backend: member.backend.describe(),
        keeps_pushes: member.backend.is_writable(),
        write_back: member.write == shoal_origin::WriteMode::Back,
        must_be_ready: member.must_be_ready,
        read_bytes: member.traffic.read_bytes(),
        written_bytes: member.traffic.written_bytes(),
        failures: member.traffic.failures(),
    }
}

#[derive(Serialize)]
struct OriginStatus {
    peer: PeerId,
    zone: String,
    endpoints: Vec<String>,
}

#[derive(Serialize)]
struct StoreStatus {
    capacity_bytes: u64,
    used_bytes: u64,
    blobs: u64,
    uploads: u64,
    evicted_bytes: u64,
}

async fn status(State(node): State<Node>) -> Response {
    match status_of(&node).await {
        Some(status) => Json(status).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the control plane has stopped\n").into_response(),
    }
}

/// What a node is and has; `None` when it is stopping.
async fn status_of(node: &Node) -> Option<Status> {
    let control = node.control().status().await?;
    let usage = node.store().usage();
    let swarms = node.driver().look(|engine| engine.swarms().count()).await.unwrap_or_default();
    let texts = |list: &[shoal_types::Endpoint]| list.iter().map(ToString::to_string).collect();
    Some(Status {
        version: env!("CARGO_PKG_VERSION"),
        peer: node.peer_id(),
        zone: node.zone().to_string(),
        roles: node.identity().credential.value().roles.to_string(),
        listening: control.listening,
        data_endpoints: texts(&control.data_endpoints),
        uptime_ms: u64::try_from(node.clock().now().since_start().as_millis()).unwrap_or(u64::MAX),
        members_connected: control.peers.len(),
        members_known: node.directory().len(),
        data_connections: node.links().connected().len(),
        routing_peers: control.routing_peers,
        provider_records: control.records,
        provided: control.provided,
        origins: control
            .origins
            .iter()
            .map(|origin| OriginStatus {
                peer: origin.peer,
                zone: origin.zone.to_string(),
                endpoints: texts(&origin.endpoints),
            })
            .collect(),
        store: StoreStatus {
            capacity_bytes: usage.capacity_bytes,
            used_bytes: usage.used_bytes,
            blobs: usage.blobs,
            uploads: usage.uploads,
            evicted_bytes: usage.evicted_bytes,
        },
        swarms,
        backends: node
            .vault()
            .map(|vault| vault.backends().all().iter().map(backend_status).collect())
            .unwrap_or_default(),
        queue: node.vault().map(|vault| vault.queue().status(node.clock().wall())),
        replication: node.replication().map(|replication| replication.status()),
    })
}

#[derive(Serialize)]
struct PeerRow {
    peer: PeerId,
    zone: String,
    roles: String,
    endpoints: Vec<String>,
    data_connected: bool,
}

async fn peers(State(node): State<Node>) -> Json<Vec<PeerRow>> {
    let connected: std::collections::BTreeSet<PeerId> = node.links().connected().into_iter().collect();
    let rows = node.directory().recent(crate::directory::MEMBERS_MAX);
    let row = |(peer, member): (PeerId, crate::directory::Member)| PeerRow {
        peer,
        zone: member.zone.to_string(),
        roles: member.roles.to_string(),
        endpoints: member.endpoints.iter().map(ToString::to_string).collect(),
        data_connected: connected.contains(&peer),
    };
    Json(rows.into_iter().map(row).collect())
}

#[derive(Serialize)]
struct SwarmRow {
    digest: Digest,
    size: Option<u64>,
    pieces_total: u32,
    pieces_have: u32,
    complete: bool,
    searching: bool,
    readers: usize,
    candidates: usize,
    peers: Vec<SwarmPeerRow>,
}

#[derive(Serialize)]
struct SwarmPeerRow {
    peer: PeerId,
    pieces_have: u32,
    requested: usize,
}

async fn swarms(State(node): State<Node>) -> Json<Vec<SwarmRow>> {
    let peer_row = |peer: &SwarmPeerStatus| SwarmPeerRow {
        peer: peer.peer,
        pieces_have: peer.pieces,
        requested: peer.requested,
    };
    let row = move |swarm: SwarmStatus| SwarmRow {
        digest: swarm.digest,
        size: swarm.size,
        pieces_total: swarm.pieces,
        pieces_have: swarm.have.count(),
        complete: swarm.complete,
        searching: swarm.searching,
        readers: swarm.readers,
        candidates: swarm.candidates,
        peers: swarm.peers.iter().map(peer_row).collect(),
    };
    let rows = node.driver().look(move |engine| engine.swarms().map(row).collect::<Vec<_>>());
    Json(rows.await.unwrap_or_default())
}

async fn pulls(State(node): State<Node>) -> Json<Vec<PullRow>> {
    let rows = node.pulls().recent();
    Json(rows.into_iter().map(|(digest, pull)| PullRow { digest, pull }).collect())
}

#[derive(Serialize)]
struct PullRow {
    digest: Digest,
    #[serde(flatten)]
    pull: Pull,
}

const NO_ORIGIN: &str = "this daemon is no origin: name an origin's ops listener with --ops";

/// What waits to be copied to other zones.
async fn replications(State(node): State<Node>) -> Response {
    match node.replication() {
        Some(replication) => Json(replication.status()).into_response(),
        None => refusal(StatusCode::CONFLICT, NO_ORIGIN),
    }
}

#[derive(Deserialize)]
struct Replicate {
    image: String,
    to: Zone,
}

/// Queues a copy; answers when it is queued.
async fn replicate(State(node): State<Node>, Json(wanted): Json<Replicate>) -> Response {
    let Some(replication) = node.replication().cloned() else {
        return refusal(StatusCode::CONFLICT, NO_ORIGIN);
    };
    let image = match wanted.image.parse::<ImageReference>() {
        Ok(image) => image,
        Err(error) => return refusal(StatusCode::BAD_REQUEST, error),
    };
    if wanted.to == node.zone() {
        return refusal(StatusCode::BAD_REQUEST, format!("this origin is in the zone {} itself", wanted.to));
    }
    if node.control().origins().iter().all(|origin| origin.zone != wanted.to) {
        return refusal(StatusCode::NOT_FOUND, format!("no origin of zone {} is known", wanted.to));
    }
    match node.resolve(&image.repository, &image.reference).await {
        Ok(_) => {}
        Err(error @ ManifestError::NotFound) => {
            return refusal(StatusCode::NOT_FOUND, format!("{image}: {error}"));
        }
        Err(error) => return refusal(StatusCode::SERVICE_UNAVAILABLE, error),
    }
    let kind = match image.reference {
        Reference::Tag(tag) => RecordKind::Tag(tag),
        Reference::Digest(digest) => RecordKind::Manifest(digest),
    };
    let job = Job { key: RecordKey { repository: image.repository, kind }, zone: wanted.to };
    match crate::driver::blocking(move || replication.ask(job)).await {
        Ok(()) => StatusCode::ACCEPTED.into_response(),
        Err(why) => refusal(StatusCode::INTERNAL_SERVER_ERROR, why),
    }
}

/// Collects garbage at every origin; answers when it is done.
async fn collect(State(node): State<Node>, Json(options): Json<crate::gc::Options>) -> Response {
    if node.vault().is_none() {
        return refusal(StatusCode::CONFLICT, NO_ORIGIN);
    }
    Json(node.collect_everywhere(&options).await).into_response()
}

/// How far a collection is that this origin was asked for.
async fn collection(State(node): State<Node>) -> Response {
    match node.vault() {
        Some(vault) => Json(vault.collection().lock().clone()).into_response(),
        None => refusal(StatusCode::CONFLICT, NO_ORIGIN),
    }
}

#[derive(Serialize)]
struct RevocationsRow {
    version: u64,
    revoked: Vec<PeerId>,
}

/// The list of revocations in force; version 0 when there is none.
async fn revocations(State(node): State<Node>) -> Json<RevocationsRow> {
    let list = node.tls().revocations().current();
    let list = list.as_ref().map(|list| list.value());
    Json(RevocationsRow {
        version: list.map_or(0, |list| list.version),
        revoked: list.map(|list| list.revoked.iter().map(|entry| entry.key).collect()).unwrap_or_default(),
    })
}

/// Puts a signed list in force in the whole mesh. Its signature says whether that is wanted, so whoever reaches this
/// listener may hand one in.
async fn revoke(control: ControlHandle, body: Bytes) -> Response {
    let list = match SignedRevocations::from_bytes(&body) {
        Ok(list) => list,
        Err(error) => return refusal(StatusCode::BAD_REQUEST, error),
    };
    match control.revoke(list).await {
        Some(Ok(_)) => StatusCode::NO_CONTENT.into_response(),
        Some(Err(error @ RevocationError::Old { .. })) => refusal(StatusCode::CONFLICT, error),
        Some(Err(error)) => refusal(StatusCode::BAD_REQUEST, error),
        None => refusal(StatusCode::SERVICE_UNAVAILABLE, "the control plane has stopped"),
    }
}

/// An error body of the ops API: a JSON object with one line that says what to do.
pub(crate) fn refusal(status: StatusCode, why: impl std::fmt::Display) -> Response {
    let body: BTreeMap<&str, String> = BTreeMap::from([("error", why.to_string())]);
    (status, Json(body)).into_response()
}
