//! Notifications of pushes, which have images preheated: what Harbor calls when this gateway is entered there as a P2P
//! provider of the kind Kraken, and what the distribution registry sends to its endpoints.
//!
//! Harbor's bodies have the distribution's fields (distribution, "Notifications") with the names of Go's structs:
//! `Events`, `TimeStamp`, `MediaType`, `Url` and so on.

use bytes::BytesMut;
use futures::TryStreamExt as _;
use http::header::AUTHORIZATION;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use shoal_types::{Reference, RepositoryName};

use super::{Answer, lists};
use crate::access::{Access, Connection};
use crate::body::{BodyLimits, drain, request_stream};
use crate::error::{ApiError, Code};
use crate::port::PreheatError;
use crate::service::Call;

/// Largest notification: the distribution sends several events at a time, of under 1 KiB each.
const BODY_BYTES_MAX: u64 = 1 << 20;
/// Most events in one notification.
const EVENTS_MAX: usize = 1000;
/// What is pushed when an image is. Harbor calls everything the last of these.
const MANIFESTS: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

#[derive(Debug, Deserialize)]
struct Notification {
    #[serde(alias = "Events")]
    events: Vec<Event>,
}

#[derive(Debug, Deserialize)]
struct Event {
    #[serde(alias = "Action")]
    action: String,
    #[serde(alias = "Target")]
    target: Option<Target>,
}

#[derive(Debug, Deserialize)]
struct Target {
    #[serde(rename = "mediaType", alias = "MediaType", default)]
    media_type: String,
    #[serde(alias = "Digest", default)]
    digest: String,
    #[serde(alias = "Repository", default)]
    repository: String,
    #[serde(alias = "Url", default)]
    url: String,
    #[serde(alias = "Tag", default)]
    tag: String,
}

impl Target {
    /// The registry's host and port, the repository there, and what names the image: its digest, which stays what it is.
    fn image(&self) -> Result<(Option<&str>, RepositoryName, Reference), String> {
        let repository = self.repository.parse::<RepositoryName>().map_err(|error| error.to_string())?;
        let reference = if self.digest.is_empty() { &self.tag } else { &self.digest };
        let reference = reference.parse::<Reference>().map_err(|error| error.to_string())?;
        let rest = self.url.split_once("://").map_or("", |(_, rest)| rest);
        let host = rest.split('/').next().filter(|host| !host.is_empty());
        Ok((host, repository, reference))
    }
}

/// `GET /health`. Whoever shows a name is told when it is not good, so that Harbor's test of the connection says so.
pub(crate) async fn health(call: &Call, connection: &Connection) -> Answer {
    if call.method != Method::GET && call.method != Method::HEAD {
        return Err(ApiError::method_not_allowed("GET, HEAD"));
    }
    if call.head.headers.contains_key(AUTHORIZATION) {
        call.gateway.access.check(connection, &call.head.headers, &[Access::Ping]).await?;
    }
    Ok(lists::json(StatusCode::OK, &json!({ "status": "ok" })))
}

/// `POST /registry/notifications`. Answered when the work is queued.
pub(crate) async fn notify(call: &mut Call, connection: &Connection) -> Answer {
    if !call.gateway.config.preheat_enabled {
        let why = "notifications of pushes are not taken here: set preheat";
        return Err(ApiError::new(StatusCode::NOT_FOUND, Code::Unsupported, why));
    }
    if call.method != Method::POST {
        return Err(ApiError::method_not_allowed("POST"));
    }
    // Before anything is read: only who has logged in is listened to, where anybody has to.
    let access = call.gateway.access.clone();
    access.check(connection, &call.head.headers, &[Access::Ping]).await?;
    let bytes = body(call).await?;
    let bad = |why: String| ApiError::bad_request(Code::Unknown, why);
    let notification: Notification =
        serde_json::from_slice(&bytes).map_err(|error| bad(format!("no notification: {error}")))?;
    if notification.events.len() > EVENTS_MAX {
        return Err(bad(format!("more than {EVENTS_MAX} events")));
    }
    let pushed = notification.events.iter().filter(|event| event.action == "push");
    let targets = pushed.filter_map(|event| event.target.as_ref());
    let mesh = call.gateway.mesh.clone();
    let mut images = Vec::new();
    for target in targets.filter(|target| MANIFESTS.contains(&&*target.media_type)) {
        let (host, repository, reference) = target.image().map_err(bad)?;
        images.push((mesh.name_of(host, repository), reference));
    }
    let wanted: Vec<Access> = images.iter().map(|(name, _)| Access::Preheat(name.clone())).collect();
    access.check(connection, &call.head.headers, &wanted).await?;
    let queued = images.len();
    for (repository, reference) in images {
        mesh.preheat(&repository, &reference).await.map_err(|error| match error {
            PreheatError::Full { retry_after } => ApiError::overloaded(retry_after),
            PreheatError::Off => ApiError::new(StatusCode::NOT_FOUND, Code::Unsupported, error.to_string()),
        })?;
    }
    Ok(lists::json(StatusCode::OK, &json!({ "queued": queued })))
}

async fn body(call: &mut Call) -> Result<BytesMut, ApiError> {
    let Some(body) = call.body.take() else { return Ok(BytesMut::new()) };
    let silence_max = call.gateway.config.body_timeout;
    let limits = BodyLimits { bytes_max: Some(BODY_BYTES_MAX), exact: None, silence_max };
    let (mut stream, fault) = request_stream(body, limits, call.gateway.metrics.bytes_in.clone());
    let mut bytes = BytesMut::new();
    loop {
        match stream.try_next().await {
            Ok(Some(part)) => bytes.extend_from_slice(&part),
            Ok(None) => return Ok(bytes),
            Err(_) if matches!(fault.get(), Some(crate::body::BodyFault::TooLarge(_))) => {
                drain(stream).await;
                return Err(ApiError::too_large(BODY_BYTES_MAX));
            }
            Err(error) => {
                return Err(ApiError::bad_request(Code::Unknown, format!("the body broke off: {error}")));
            }
        }
    }
}
