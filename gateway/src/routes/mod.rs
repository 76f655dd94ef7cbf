//! One module for each kind of resource.

pub(crate) mod blobs;
mod content;
mod lists;
mod manifests;
pub(crate) mod preheat;
pub(crate) mod token;
mod uploads;

use http::header::{HeaderName, LOCATION};
use http::{Method, Response, StatusCode};

use crate::body::Payload;
use crate::error::{ApiError, value};
use crate::route::Target;
use crate::service::Call;

/// `Docker-Content-Digest`.
pub(crate) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// `Server-Timing` (W3C): where the time until the response's head went.
pub(crate) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Adds an entry to [`SERVER_TIMING`]: a name, what it is, and how long it took.
pub(crate) fn with_timing(
    mut response: Response<Payload>,
    name: &'static str,
    what: &'static str,
    took: std::time::Duration,
) -> Response<Payload> {
    let entry = format!("{name};desc=\"{what}\";dur={:.1}", took.as_secs_f64() * 1000.0);
    response.headers_mut().append(SERVER_TIMING, value(&entry));
    response
}

/// What a route returns.
pub(crate) type Answer = Result<Response<Payload>, ApiError>;

/// Carries a request out.
pub(crate) async fn run(call: &mut Call, target: Target) -> Answer {
    let method = call.method.clone();
    match target {
        Target::Base => match method {
            Method::GET | Method::HEAD => Ok(lists::json(StatusCode::OK, &serde_json::json!({}))),
            _ => Err(ApiError::method_not_allowed("GET, HEAD")),
        },
        // Answered before access is asked for.
        Target::Token | Target::Health => Err(ApiError::method_not_allowed("GET")),
        Target::Notifications => Err(ApiError::method_not_allowed("POST")),
        Target::Catalog => match method {
            Method::GET | Method::HEAD => lists::catalog(call).await,
            _ => Err(ApiError::method_not_allowed("GET, HEAD")),
        },
        Target::Tags(repository) => match method {
            Method::GET | Method::HEAD => lists::tags(call, &repository).await,
            _ => Err(ApiError::method_not_allowed("GET, HEAD")),
        },
        Target::Referrers(repository, subject) => match method {
            Method::GET | Method::HEAD => lists::referrers(call, &repository, &subject).await,
            _ => Err(ApiError::method_not_allowed("GET, HEAD")),
        },
        Target::Blob(repository, digest) => match method {
            Method::GET | Method::HEAD => blobs::get(call, &repository, &digest).await,
            Method::DELETE => blobs::delete(call, &repository, &digest).await,
            _ => Err(ApiError::method_not_allowed("GET, HEAD, DELETE")),
        },
        Target::Manifest(repository, reference) => match method {
            Method::GET | Method::HEAD => manifests::get(call, &repository, &reference).await,
            Method::PUT => manifests::put(call, &repository, &reference).await,
            Method::DELETE => manifests::delete(call, &repository, &reference).await,
            _ => Err(ApiError::method_not_allowed("GET, HEAD, PUT, DELETE")),
        },
        Target::Uploads(repository) => match method {
            Method::POST => uploads::start(call, &repository).await,
            _ => Err(ApiError::method_not_allowed("POST")),
        },
        Target::Upload(repository, upload) => match method {
            Method::GET | Method::HEAD => uploads::status(call, &repository, &upload).await,
            Method::PATCH => uploads::append(call, &repository, &upload).await,
            Method::PUT => uploads::finish(call, &repository, &upload).await,
            Method::DELETE => uploads::cancel(call, &repository, &upload).await,
            _ => Err(ApiError::method_not_allowed("GET, HEAD, PATCH, PUT, DELETE")),
        },
    }
}

/// An answer without a body.
pub(crate) fn empty(status: StatusCode) -> Response<Payload> {
    let mut response = Response::new(Payload::Empty);
    *response.status_mut() = status;
    response
}

/// 201, and where what was created can be pulled.
pub(crate) fn created(location: &str, digest: &shoal_types::Digest) -> Response<Payload> {
    let mut response = empty(StatusCode::CREATED);
    response.headers_mut().insert(LOCATION, value(location));
    response.headers_mut().insert(CONTENT_DIGEST, value(&digest.to_string()));
    response
}

/// Whether deleting is switched on.
pub(crate) fn check_delete(call: &Call, allow: &'static str) -> Result<(), ApiError> {
    if call.gateway.config.delete_enabled { Ok(()) } else { Err(ApiError::method_not_allowed(allow)) }
}
