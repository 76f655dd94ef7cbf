//! Manifests: "Pulling manifests", "Pushing Manifests", "Deleting tags" and "manifests" (end-3, end-7, end-9).

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, future, stream};
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderValue, Method, Response, StatusCode};
use shoal_types::{Digest, DigestHasher, Reference, RepositoryName};

use super::content::Content;
use super::{Answer, check_delete, created, empty, with_timing};
use crate::body::{BodyFault, BodyLimits, Payload, drain, request_stream};
use crate::error::{ApiError, Code, value};
use crate::manifest::{Manifest, Target};
use crate::port::{ManifestInfo, ManifestPut, PullError};
use crate::range::Plan;
use crate::service::Call;

const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
/// The tag could not be asked for at its owners: this is the newest that was known here.
const STALE: HeaderName = HeaderName::from_static("shoal-stale");
/// How many of a manifest's references are looked up at once.
const LOOKUPS_MAX: usize = 16;

/// What the times of a manifest are spent on.
const RESOLVED: &str = "until it was known what the tag or digest names";
const READ: &str = "until the manifest's bytes were here";

/// GET and HEAD, by tag or digest. What was pushed is served whatever `Accept` says: there is nothing to choose from.
pub(super) async fn get(call: &Call, repository: &RepositoryName, reference: &str) -> Answer {
    let mesh = &call.gateway.mesh;
    let failed = |error| ApiError::pull_manifest(error, reference);
    // No manifest can have a name that is none: it is unknown rather than wrong.
    let parsed: Reference = match reference.parse() {
        Ok(parsed) => parsed,
        Err(_) if reference.contains(':') => {
            return Err(ApiError::bad_request(Code::DigestInvalid, format!("{reference:.80}")));
        }
        Err(_) => return Err(failed(PullError::NotFound)),
    };
    let immutable = matches!(parsed, Reference::Digest(_));
    if let (Reference::Digest(digest), &Method::GET) = (&parsed, &call.method) {
        let since = Instant::now();
        let (info, bytes) = mesh.read_manifest(repository, digest).await.map_err(failed)?;
        let response = serve(call, &content(&info, true), &info, bytes)?;
        return Ok(with_timing(response, "read", READ, since.elapsed()));
    }
    let since = Instant::now();
    let info = mesh.resolve(repository, &parsed).await.map_err(failed)?;
    let resolved = since.elapsed();
    let content = content(&info, immutable);
    if let Some(response) = content.not_modified(call) {
        return Ok(with_stale(call, response, &info));
    }
    if call.method == Method::HEAD {
        let response = with_stale(call, content.head(info.size), &info);
        return Ok(with_timing(response, "resolve", RESOLVED, resolved));
    }
    let since = Instant::now();
    let (_, bytes) = mesh.read_manifest(repository, &info.digest).await.map_err(failed)?;
    let read = since.elapsed();
    let response = with_timing(serve(call, &content, &info, bytes)?, "resolve", RESOLVED, resolved);
    Ok(with_timing(response, "read", READ, read))
}

fn content(info: &ManifestInfo, immutable: bool) -> Content {
    Content { digest: info.digest, media_type: info.media_type.clone(), immutable }
}

fn serve(call: &Call, content: &Content, info: &ManifestInfo, bytes: Bytes) -> Answer {
    if let Some(response) = content.not_modified(call) {
        return Ok(with_stale(call, response, info));
    }
    let size = bytes.len() as u64;
    let cut = |bytes: &Bytes, range: std::ops::Range<u64>| {
        // The plan lies inside `bytes`, whose length fits.
        let part = bytes.slice(range.start as usize..range.end as usize);
        stream::iter([Ok(part)]).boxed()
    };
    let response = match content.plan(call, size) {
        Plan::Unsatisfiable => return Err(ApiError::range_not_satisfiable(size)),
        Plan::Single(range) => content.partial(&range, size, cut(&bytes, range.clone())),
        Plan::Multi(ranges) => {
            content.multipart(ranges, size, call.request_id, move |range| future::ok(cut(&bytes, range)))
        }
        Plan::Whole => {
            let mut response = content.response(StatusCode::OK);
            *response.body_mut() = Payload::Full(bytes);
            response
        }
    };
    Ok(with_stale(call, response, info))
}

fn with_stale(call: &Call, mut response: Response<Payload>, info: &ManifestInfo) -> Response<Payload> {
    if info.stale {
        call.gateway.metrics.stale.inc();
        response.headers_mut().insert(STALE, HeaderValue::from_static("true"));
    }
    response
}

/// PUT.
pub(super) async fn put(call: &mut Call, repository: &RepositoryName, reference: &str) -> Answer {
    let reference: Reference = reference.parse().map_err(|error| {
        let code = if reference.contains(':') { Code::DigestInvalid } else { Code::ManifestInvalid };
        ApiError::bad_request(code, format!("{error}"))
    })?;
    let bytes = read_body(call).await?;
    let digest = match &reference {
        Reference::Tag(_) => Digest::sha256(&bytes),
        Reference::Digest(wanted) => {
            let mut hasher = DigestHasher::new(wanted.algorithm());
            hasher.update(&bytes);
            let digest = hasher.finish();
            if digest != *wanted {
                return Err(ApiError::bad_request(
                    Code::DigestInvalid,
                    format!("the manifest has the digest {digest}"),
                ));
            }
            digest
        }
    };
    let content_type = call.header(&CONTENT_TYPE).map(str::to_owned);
    let manifest = Manifest::parse(&bytes, content_type.as_deref())
        .map_err(|error| ApiError::bad_request(Code::ManifestInvalid, error.to_string()))?;
    check_references(call, repository, &manifest).await?;

    let subject = manifest.subject;
    let references = manifest.references.iter().map(|target| *target.digest()).collect();
    let value_put = manifest.into_record(digest, bytes.len() as u64);
    call.gateway
        .mesh
        .put_manifest(repository, &reference, ManifestPut { value: value_put, bytes, references })
        .await?;
    let mut response = created(&format!("/v2/{repository}/manifests/{digest}"), &digest);
    if let Some(subject) = subject {
        response.headers_mut().insert(SUBJECT, value(&subject.to_string()));
    }
    Ok(response)
}

/// The manifest's bytes. One that is too long is read on within bounds, so that its sender gets to read the answer.
async fn read_body(call: &mut Call) -> Result<Bytes, ApiError> {
    let config = call.gateway.config.clone();
    let limit = config.manifest_bytes_max as u64;
    let too_large = || {
        ApiError::with_detail(
            StatusCode::PAYLOAD_TOO_LARGE,
            Code::ManifestInvalid,
            serde_json::json!({ "reason": "the manifest is over the limit", "limit_bytes": limit }),
        )
    };
    if call.content_length().is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let Some(body) = call.body.take() else { return Ok(Bytes::new()) };
    let limits = BodyLimits { bytes_max: None, exact: None, silence_max: config.body_timeout };
    let (mut body, fault) = request_stream(body, limits, call.gateway.metrics.bytes_in.clone());
    let mut bytes = BytesMut::new();
    loop {
        match body.try_next().await {
            Ok(None) => return Ok(bytes.freeze()),
            Ok(Some(more)) if (bytes.len() + more.len()) as u64 > limit => {
                drain(body).await;
                return Err(too_large());
            }
            Ok(Some(more)) => bytes.extend_from_slice(&more),
            Err(_) if fault.get() == Some(&BodyFault::Timeout) => {
                let reason = "the client went silent";
                return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, Code::ManifestInvalid, reason));
            }
            Err(error) => {
                let reason = format!("the request's body broke off: {error}");
                return Err(ApiError::bad_request(Code::ManifestInvalid, reason));
            }
        }
    }
}

/// Refuses a manifest that refers to what the repository does not have; all that is missing is named.
async fn check_references(
    call: &Call,
    repository: &RepositoryName,
    manifest: &Manifest,
) -> Result<(), ApiError> {
    let mesh = &call.gateway.mesh;
    let lookups = manifest.references.iter().map(|target| async move {
        let found = match target {
            Target::Blob(digest) => mesh.stat_blob(repository, digest).await.map(|_| ()),
            Target::Manifest(digest) => {
                mesh.resolve(repository, &Reference::Digest(*digest)).await.map(|_| ())
            }
        };
        match found {
            Ok(()) => Ok(None),
            Err(PullError::NotFound | PullError::RepositoryUnknown) => Ok(Some(*target.digest())),
            Err(error) => Err(ApiError::pull_blob(error, target.digest())),
        }
    });
    let missing: Vec<Option<Digest>> =
        stream::iter(lookups.collect::<Vec<_>>()).buffered(LOOKUPS_MAX).try_collect().await?;
    let missing: Vec<Digest> = missing.into_iter().flatten().collect();
    if missing.is_empty() { Ok(()) } else { Err(ApiError::references_unknown(&missing)) }
}

/// DELETE: a tag alone, or a manifest with its tags.
pub(super) async fn delete(call: &Call, repository: &RepositoryName, reference: &str) -> Answer {
    check_delete(call, "GET, HEAD, PUT")?;
    let mesh = &call.gateway.mesh;
    let deleted = match reference.parse() {
        Ok(Reference::Tag(tag)) => mesh.delete_tag(repository, &tag).await,
        Ok(Reference::Digest(digest)) => mesh.delete_manifest(repository, &digest).await,
        Err(_) if reference.contains(':') => {
            return Err(ApiError::bad_request(Code::DigestInvalid, format!("{reference:.80}")));
        }
        Err(_) => return Err(ApiError::pull_manifest(PullError::NotFound, reference)),
    };
    deleted.map_err(|error| ApiError::delete(error, Code::ManifestUnknown))?;
    Ok(empty(StatusCode::ACCEPTED))
}
