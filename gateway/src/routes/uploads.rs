//! Uploads: "Pushing blobs", "Mounting a blob from another repository" (end-4a, end-4b, end-5, end-6, end-11, end-13).

use futures::StreamExt;
use http::header::{CONTENT_RANGE, HeaderName, LOCATION, RANGE};
use http::{Response, StatusCode};
use hyper::body::Body;
use shoal_types::{Digest, RepositoryName};

use super::{Answer, created, empty};
use crate::body::{BodyFault, BodyLimits, FaultCell, Payload, request_stream};
use crate::error::{ApiError, Code, value};
use crate::port::{ByteStream, PushError, UploadId};
use crate::range::parse_content_range;
use crate::service::Call;

const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// POST: a mount, a whole blob at once, or the beginning of an upload.
pub(super) async fn start(call: &mut Call, repository: &RepositoryName) -> Answer {
    let mesh = call.gateway.mesh.clone();
    // What cannot be mounted, be it for malformed arguments, is to be uploaded.
    if let Some(Ok(digest)) = call.query.get("mount").map(str::parse::<Digest>)
        && !call.mount_forbidden
    {
        let from = call.query.get("from").map(str::parse::<RepositoryName>).transpose();
        if let Ok(from) = from
            && mesh.mount_blob(repository, from.as_ref(), &digest).await?
        {
            return Ok(created(&blob_location(repository, &digest), &digest));
        }
    } else if call.query.get("mount").is_none() && call.query.get("digest").is_some() {
        return monolithic(call, repository).await;
    }
    let upload = mesh.begin_upload(repository).await?;
    Ok(progress(StatusCode::ACCEPTED, repository, &upload, 0))
}

/// POST with a digest: all in one request.
async fn monolithic(call: &mut Call, repository: &RepositoryName) -> Answer {
    let mesh = call.gateway.mesh.clone();
    let digest = digest_parameter(call)?;
    check_length(call)?;
    let upload = mesh.begin_upload(repository).await?;
    let result = match append_body(call, repository, &upload, Some(0), None).await {
        Ok(_) => mesh.finish_upload(repository, &upload, &digest).await.map_err(ApiError::from),
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        // Nobody was told its id. That it may be gone already (a wrong digest) is no matter.
        let _ = mesh.cancel_upload(repository, &upload).await;
        return Err(error);
    }
    Ok(created(&blob_location(repository, &digest), &digest))
}

/// GET: how far an upload is.
pub(super) async fn status(call: &Call, repository: &RepositoryName, upload: &UploadId) -> Answer {
    let offset = call.gateway.mesh.upload_offset(repository, upload).await?;
    Ok(progress(StatusCode::NO_CONTENT, repository, upload, offset))
}

/// PATCH: the next bytes.
pub(super) async fn append(call: &mut Call, repository: &RepositoryName, upload: &UploadId) -> Answer {
    match append_range(call, repository, upload).await? {
        Appended::To(offset) => Ok(progress(StatusCode::ACCEPTED, repository, upload, offset)),
        Appended::OutOfOrder { expected } => Ok(out_of_order(repository, upload, expected)),
    }
}

/// PUT: the last bytes, if any, and the digest of all.
pub(super) async fn finish(call: &mut Call, repository: &RepositoryName, upload: &UploadId) -> Answer {
    let digest = digest_parameter(call)?;
    let has_body = call.body.as_ref().is_some_and(|body| !body.is_end_stream());
    if has_body && let Appended::OutOfOrder { expected } = append_range(call, repository, upload).await? {
        return Ok(out_of_order(repository, upload, expected));
    }
    call.gateway.mesh.finish_upload(repository, upload, &digest).await?;
    Ok(created(&blob_location(repository, &digest), &digest))
}

/// DELETE: forget the upload.
pub(super) async fn cancel(call: &Call, repository: &RepositoryName, upload: &UploadId) -> Answer {
    call.gateway.mesh.cancel_upload(repository, upload).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

enum Appended {
    To(u64),
    OutOfOrder { expected: u64 },
}

/// Appends the request's body where `Content-Range`, if any, says. Looks before it reads, so that a request that is
/// refused anyway is answered after its body and not in the middle of it.
async fn append_range(
    call: &mut Call,
    repository: &RepositoryName,
    upload: &UploadId,
) -> Result<Appended, ApiError> {
    let range = match call.head.headers.get(CONTENT_RANGE) {
        None => None,
        Some(text) => {
            let range = text.to_str().ok().and_then(parse_content_range);
            Some(range.ok_or_else(|| {
                ApiError::bad_request(Code::BlobUploadInvalid, "Content-Range must be <first>-<last>")
            })?)
        }
    };
    check_length(call)?;
    let offset = call.gateway.mesh.upload_offset(repository, upload).await?;
    if let Some(range) = &range {
        if range.start != offset {
            call_drain(call).await;
            return Ok(Appended::OutOfOrder { expected: offset });
        }
        if call.content_length().is_some_and(|length| length != range.end - range.start) {
            return Err(ApiError::bad_request(
                Code::SizeInvalid,
                "Content-Length and Content-Range disagree",
            ));
        }
    }
    let exact = range.as_ref().map(|range| range.end - range.start);
    let start = range.map(|range| range.start);
    append_body(call, repository, upload, start, exact).await
}

async fn append_body(
    call: &mut Call,
    repository: &RepositoryName,
    upload: &UploadId,
    offset: Option<u64>,
    exact: Option<u64>,
) -> Result<Appended, ApiError> {
    let (body, fault) = take_body(call, exact);
    match call.gateway.mesh.append_upload(repository, upload, offset, body).await {
        Ok(offset) => Ok(Appended::To(offset)),
        Err(PushError::OffsetMismatch { expected }) => Ok(Appended::OutOfOrder { expected }),
        Err(PushError::Interrupted(error)) => Err(match fault.get() {
            Some(BodyFault::TooLarge(limit)) => ApiError::too_large(*limit),
            Some(BodyFault::Length) => {
                ApiError::bad_request(Code::SizeInvalid, "the body is not as long as Content-Range says")
            }
            Some(BodyFault::Timeout) => {
                ApiError::new(StatusCode::REQUEST_TIMEOUT, Code::BlobUploadInvalid, "the client went silent")
            }
            None => PushError::Interrupted(error).into(),
        }),
        Err(error) => Err(error.into()),
    }
}

fn take_body(call: &mut Call, exact: Option<u64>) -> (ByteStream, FaultCell) {
    let config = &call.gateway.config;
    let limits = BodyLimits { bytes_max: config.blob_bytes_max, exact, silence_max: config.body_timeout };
    match call.body.take() {
        Some(body) => request_stream(body, limits, call.gateway.metrics.bytes_in.clone()),
        None => (futures::stream::empty().boxed(), FaultCell::default()),
    }
}

async fn call_drain(call: &mut Call) {
    if call.head.headers.contains_key(http::header::EXPECT) {
        return;
    }
    let (body, _) = take_body(call, None);
    crate::body::drain(body).await;
}

/// Refuses a body that says beforehand that it is too long.
fn check_length(call: &Call) -> Result<(), ApiError> {
    match (call.content_length(), call.gateway.config.blob_bytes_max) {
        (Some(length), Some(limit)) if length > limit => Err(ApiError::too_large(limit)),
        _ => Ok(()),
    }
}

/// The `digest` that a finished blob is to have. Of several the first is checked, as the specification allows.
fn digest_parameter(call: &Call) -> Result<Digest, ApiError> {
    let text = call
        .query
        .get("digest")
        .ok_or_else(|| ApiError::bad_request(Code::DigestInvalid, "the digest parameter is missing"))?;
    text.parse().map_err(|error| ApiError::bad_request(Code::DigestInvalid, format!("{text:.80}: {error}")))
}

fn out_of_order(repository: &RepositoryName, upload: &UploadId, expected: u64) -> Response<Payload> {
    let mut response = ApiError::from(PushError::OffsetMismatch { expected }).into_response();
    let progress = progress(StatusCode::RANGE_NOT_SATISFIABLE, repository, upload, expected);
    response.headers_mut().extend(progress.headers().clone());
    response
}

/// Where an upload is and how far: `Range` is inclusive, so nothing yet reads `0-0`, as in docker's registry.
fn progress(
    status: StatusCode,
    repository: &RepositoryName,
    upload: &UploadId,
    offset: u64,
) -> Response<Payload> {
    let mut response = empty(status);
    let headers = response.headers_mut();
    headers.insert(LOCATION, value(&format!("/v2/{repository}/blobs/uploads/{upload}")));
    headers.insert(RANGE, value(&format!("0-{}", offset.saturating_sub(1))));
    headers.insert(UPLOAD_UUID, value(upload.as_str()));
    response
}

fn blob_location(repository: &RepositoryName, digest: &Digest) -> String {
    format!("/v2/{repository}/blobs/{digest}")
}
