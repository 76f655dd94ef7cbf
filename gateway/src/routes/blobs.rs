//! Blobs: "Pulling blobs", "Checking if content exists", "Deleting Blobs" (end-2, end-10).

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use http::header::{HeaderName, IF_NONE_MATCH, RANGE};
use http::{HeaderValue, Method, Response, StatusCode};
use shoal_types::{Digest, RepositoryName};

use super::content::Content;
use super::{Answer, check_delete, empty, with_timing};
use crate::body::Payload;
use crate::error::{ApiError, Code};
use crate::port::{BlobRead, BlobSource, ByteStream, Mesh};
use crate::range::Plan;
use crate::service::Call;

pub(crate) const SOURCE: HeaderName = HeaderName::from_static("shoal-source");

/// What the time of opening a blob was spent on.
const OPENED: &str = "until the blob was found and its size known";

/// GET and HEAD. HEAD never downloads; the size is asked for first only where the answer depends on it.
pub(super) async fn get(call: &Call, repository: &RepositoryName, digest: &Digest) -> Answer {
    let content =
        Content { digest: *digest, media_type: "application/octet-stream".to_owned(), immutable: true };
    let mesh = call.gateway.mesh.clone();
    let headers = &call.head.headers;
    let head = call.method == Method::HEAD;
    if !head && !headers.contains_key(RANGE) && !headers.contains_key(IF_NONE_MATCH) {
        return whole(&content, mesh, repository, digest).await;
    }
    let size =
        mesh.stat_blob(repository, digest).await.map_err(|error| ApiError::pull_blob(error, digest))?;
    if let Some(response) = content.not_modified(call) {
        return Ok(response);
    }
    if head {
        return Ok(content.head(size));
    }
    match content.plan(call, size) {
        Plan::Whole => whole(&content, mesh, repository, digest).await,
        Plan::Unsatisfiable => Err(ApiError::range_not_satisfiable(size)),
        Plan::Single(range) => {
            let since = Instant::now();
            let read = open(mesh.as_ref(), repository, digest, Some(range.clone())).await?;
            let took = since.elapsed();
            check_range(&read, &range).map_err(|_| ApiError::range_not_satisfiable(read.size))?;
            let source = read.source;
            let response = with_source(content.partial(&range, size, read.stream), source);
            Ok(with_timing(response, "open", OPENED, took))
        }
        Plan::Multi(ranges) => {
            let (repository, digest) = (repository.clone(), *digest);
            Ok(content.multipart(ranges, size, call.request_id, move |range| {
                part(mesh.clone(), repository.clone(), digest, range)
            }))
        }
    }
}

async fn whole(
    content: &Content,
    mesh: Arc<dyn Mesh>,
    repository: &RepositoryName,
    digest: &Digest,
) -> Answer {
    let since = Instant::now();
    let read = open(mesh.as_ref(), repository, digest, None).await?;
    let took = since.elapsed();
    let mut response = content.response(StatusCode::OK);
    *response.body_mut() = Payload::Stream { length: read.size, stream: read.stream };
    Ok(with_timing(with_source(response, read.source), "open", OPENED, took))
}

async fn open(
    mesh: &dyn Mesh,
    repository: &RepositoryName,
    digest: &Digest,
    range: Option<Range<u64>>,
) -> Result<BlobRead, ApiError> {
    mesh.read_blob(repository, digest, range).await.map_err(|error| ApiError::pull_blob(error, digest))
}

/// One range of several, opened when the ones before it are sent. By then the only way to fail is to break off.
async fn part(
    mesh: Arc<dyn Mesh>,
    repository: RepositoryName,
    digest: Digest,
    range: Range<u64>,
) -> io::Result<ByteStream> {
    let read = mesh.read_blob(&repository, &digest, Some(range.clone())).await.map_err(io::Error::other)?;
    check_range(&read, &range)?;
    Ok(read.stream)
}

/// The blob's size cannot have changed since it was planned for, unless the mesh is wrong about one of them.
fn check_range(read: &BlobRead, wanted: &Range<u64>) -> io::Result<()> {
    if read.range == *wanted {
        return Ok(());
    }
    tracing::error!(wanted = ?wanted, got = ?read.range, "the mesh serves another range than it was asked for");
    Err(io::Error::new(io::ErrorKind::InvalidData, "another range than asked for"))
}

fn with_source(mut response: Response<Payload>, source: Option<BlobSource>) -> Response<Payload> {
    if let Some(source) = source {
        response.headers_mut().insert(SOURCE, HeaderValue::from_static(source.name()));
    }
    response
}

/// DELETE.
pub(super) async fn delete(call: &Call, repository: &RepositoryName, digest: &Digest) -> Answer {
    check_delete(call, "GET, HEAD")?;
    let deleted = call.gateway.mesh.delete_blob(repository, digest).await;
    deleted.map_err(|error| ApiError::delete(error, Code::BlobUnknown))?;
    Ok(empty(StatusCode::ACCEPTED))
}
