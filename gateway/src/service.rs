//! A request's way through the layers: admission, access, route, metrics.

use std::convert::Infallible;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use http::header::{CONTENT_LENGTH, HeaderName};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use shoal_daemon::traces::RequestTrace;
use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument;

use crate::access::{Access, AccessError, Connection};
use crate::body::{BodyLimits, Payload, ResponseBody, drain, request_stream};
use crate::error::{ApiError, value};
use crate::route::{Query, ROUTE_NONE, Target, parse};
use crate::routes;
use crate::routes::blobs::SOURCE;
use crate::seats::Busy;
use crate::server::Gateway;

/// "Determining Support": `docker manifest` fails without it.
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Counts requests up from anywhere, so that the ids of two gateways, or of two runs of one, are not the same.
static REQUESTS: LazyLock<AtomicU64> = LazyLock::new(|| AtomicU64::new(RandomState::new().hash_one(0)));

/// A request whose path is understood.
pub(crate) struct Call {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) method: Method,
    pub(crate) head: Parts,
    pub(crate) query: Query,
    pub(crate) body: Option<Incoming>,
    pub(crate) request_id: u64,
    /// A mount's source may not be read: the client uploads instead.
    pub(crate) mount_forbidden: bool,
}

impl Call {
    /// A header's value when it is there and is text.
    pub(crate) fn header(&self, name: &HeaderName) -> Option<&str> {
        self.head.headers.get(name)?.to_str().ok()
    }

    /// The announced length of the body.
    pub(crate) fn content_length(&self) -> Option<u64> {
        self.header(&CONTENT_LENGTH)?.parse().ok()
    }

    /// Reads what is left of a refused body. A client that waits for `100 Continue` has sent none and must not be
    /// told to.
    async fn drain(&mut self) {
        if self.head.headers.contains_key(http::header::EXPECT) {
            return;
        }
        if let Some(body) = self.body.take() {
            let silence_max = self.gateway.config.body_timeout;
            let limits = BodyLimits { bytes_max: None, exact: None, silence_max };
            let (stream, _) = request_stream(body, limits, self.gateway.metrics.bytes_in.clone());
            drain(stream).await;
        }
    }
}

/// Answers one request.
pub(crate) async fn handle(
    gateway: Arc<Gateway>,
    connection: Arc<Connection>,
    busy: Busy,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let request_id = REQUESTS.fetch_add(1, Ordering::Relaxed);
    let started = Instant::now();
    let in_flight = gateway.metrics.begin(busy);
    let (head, body) = request.into_parts();
    let method = head.method.clone();
    let id = format!("{request_id:016x}");
    let query = Query::parse(head.uri.query());
    let target = parse(head.uri.path());
    let route = target.as_ref().map_or(ROUTE_NONE, Target::route);
    let trace = RequestTrace::begin(&head.headers, method_label(&method), route, head.uri.path());
    let span =
        tracing::info_span!("request", id, method = %method, path = head.uri.path(), trace = trace.id());
    let target = target.and_then(|target| gateway.mirrors.target(target, &method, &query));
    let mut call = Call {
        gateway: gateway.clone(),
        method: method.clone(),
        head,
        query,
        body: Some(body),
        request_id,
        mount_forbidden: false,
    };

    let (answer, admission) = match target {
        Ok(target) => trace.run(dispatch(&mut call, &connection, target).instrument(span.clone())).await,
        Err(error) => (Err(error), None),
    };
    let mut response = match answer {
        Ok(response) => response,
        Err(error) => {
            call.drain().await;
            error.into_response()
        }
    };
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    response.headers_mut().insert(REQUEST_ID, value(&id));
    let status = response.status();
    gateway.metrics.answered(route, method_label(&method), status.as_u16());
    trace.answered(status.as_u16(), response.headers().get(&SOURCE).and_then(|source| source.to_str().ok()));
    span.in_scope(|| tracing::debug!(status = status.as_u16(), waited = ?started.elapsed(), "answered"));
    if method == Method::HEAD {
        strip_body(&mut response);
    }
    Ok(response.map(|payload| ResponseBody::new(payload, started, route, in_flight, admission, trace)))
}

type Admitted = (Result<Response<Payload>, ApiError>, Option<OwnedSemaphorePermit>);

/// Admits a request and carries it out. The permit lasts as long as the response's body.
async fn dispatch(call: &mut Call, connection: &Connection, target: Target) -> Admitted {
    let gateway = call.gateway.clone();
    let admission = match &target {
        // Cheap, and the first thing that clients and health checks ask.
        Target::Base | Target::Health => None,
        _ => match gateway.requests.clone().try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) => {
                gateway.metrics.rejected("overload");
                return (Err(ApiError::overloaded(gateway.config.retry_after)), None);
            }
        },
    };
    if target == Target::Token {
        return (routes::token::get(call, connection).await, admission);
    }
    match &target {
        Target::Health => return (routes::preheat::health(call, connection).await, admission),
        // Which repositories it is about stands in its body.
        Target::Notifications => return (routes::preheat::notify(call, connection).await, admission),
        _ => {}
    }
    let wanted = wanted(call, &target);
    let mut checked = gateway.access.check(connection, &call.head.headers, &wanted).await;
    if let (Err(AccessError::Denied(_) | AccessError::Unauthorized { .. }), [first, _]) = (&checked, &*wanted)
    {
        // A mount from where the client may not read becomes an upload (specification, end-11: 202).
        if gateway.access.check(connection, &call.head.headers, std::slice::from_ref(first)).await.is_ok() {
            call.mount_forbidden = true;
            checked = Ok(());
        }
    }
    if let Err(error) = checked {
        gateway.metrics.rejected("access");
        return (Err(error.into()), admission);
    }
    (routes::run(call, target).await, admission)
}

/// What a request needs to be allowed to do.
fn wanted(call: &Call, target: &Target) -> Vec<Access> {
    let reads = call.method == Method::GET || call.method == Method::HEAD;
    match target {
        // Tokens are for whoever asks: the password is checked where they are made.
        Target::Base | Target::Token | Target::Health | Target::Notifications => vec![Access::Ping],
        Target::Catalog => vec![Access::Catalog],
        Target::Uploads(repository) => {
            // A mount reads from the other repository as well.
            let from = call.query.get("from").and_then(|from| from.parse().ok()).map(Access::Pull);
            std::iter::once(Access::Push(repository.clone())).chain(from).collect()
        }
        Target::Upload(repository, _) => vec![Access::Push(repository.clone())],
        Target::Tags(repository) | Target::Referrers(repository, _) => vec![Access::Pull(repository.clone())],
        Target::Blob(repository, _) | Target::Manifest(repository, _) => {
            vec![if reads {
                Access::Pull(repository.clone())
            } else if call.method == Method::DELETE {
                Access::Delete(repository.clone())
            } else {
                Access::Push(repository.clone())
            }]
        }
    }
}

/// The answer to HEAD: the headers of GET, its length among them, and no body.
fn strip_body(response: &mut Response<Payload>) {
    let length = match response.body() {
        Payload::Full(bytes) => bytes.len() as u64,
        Payload::Stream { length, .. } => *length,
        Payload::Empty => 0,
    };
    *response.body_mut() = Payload::Empty;
    let stateless = [StatusCode::NOT_MODIFIED, StatusCode::NO_CONTENT].contains(&response.status());
    if !stateless && !response.headers().contains_key(CONTENT_LENGTH) {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
}

/// Methods as metrics name them; clients can invent others without bound.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}
