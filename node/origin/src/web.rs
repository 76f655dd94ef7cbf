//! What the backends over plain HTTP share: the client with its TLS options, and ranges of servers that may not know
//! them.

use std::ops::Range;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use reqwest::{Client, RequestBuilder, Response};

use crate::backend::{BackendError, BlobStream};
use crate::text::told;
use crate::url::BackendUrl;

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server may be silent in the middle of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// The file of an option that holds certificates or keys.
pub(crate) async fn read_pem(url: &BackendUrl, option: &str, file: &str) -> Result<Vec<u8>, BackendError> {
    let read = tokio::fs::read(file).await;
    read.map_err(|error| BackendError::invalid(url, format!("{option}: cannot read {file}: {error}")))
}

/// A client by the options `ca` and `client-cert`.
pub(crate) async fn client(url: &BackendUrl) -> Result<Client, BackendError> {
    let mut builder = Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .user_agent(concat!("shoal/", env!("CARGO_PKG_VERSION")));
    let bad = |option: &str, error: reqwest::Error| {
        BackendError::invalid(url, format!("{option}: {}", told(&error)))
    };
    if let Some(file) = url.option("ca") {
        let pem = read_pem(url, "ca", file).await?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| bad("ca", error))?;
        if certificates.is_empty() {
            return Err(BackendError::invalid(url, format!("ca: there is no certificate in {file}")));
        }
        builder = builder.tls_certs_only(certificates);
    }
    if let Some(file) = url.option("client-cert") {
        let pem = read_pem(url, "client-cert", file).await?;
        let identity = reqwest::Identity::from_pem(&pem).map_err(|error| bad("client-cert", error))?;
        builder = builder.identity(identity);
    }
    builder.build().map_err(|error| bad("TLS", error))
}

/// Sends a request.
pub(crate) async fn send(what: &str, request: RequestBuilder) -> Result<Response, BackendError> {
    request.send().await.map_err(|error| BackendError::unavailable(what, told(&error)))
}

/// The error of an answer that is neither success nor absence.
pub(crate) fn refused(what: &str, status: StatusCode) -> BackendError {
    let why = crate::text::told_text(&status.to_string());
    match status.as_u16() {
        401 | 403 => BackendError::denied(what, why),
        408 | 429 | 500.. => BackendError::unavailable(what, why),
        _ => BackendError::invalid(what, why),
    }
}

/// The size an answer to a HEAD tells.
pub(crate) fn size_of(what: &str, answer: &Response) -> Result<u64, BackendError> {
    let size = answer.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    size.ok_or_else(|| BackendError::invalid(what, "the server tells no size (Content-Length)"))
}

/// Asks for a range, which is not empty.
pub(crate) fn with_range(request: RequestBuilder, range: &Range<u64>) -> RequestBuilder {
    // A body in another coding would have other bytes.
    let request = request.header(http::header::ACCEPT_ENCODING, "identity");
    let end = if range.end == u64::MAX { String::new() } else { range.end.saturating_sub(1).to_string() };
    request.header(RANGE, format!("bytes={}-{end}", range.start))
}

/// Where the range of a partial answer begins, and the size of the whole where it is told.
fn content_range(answer: &Response) -> Option<(u64, Option<u64>)> {
    let range = answer.headers().get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, size) = range.split_once('/')?;
    Some((range.split('-').next()?.trim().parse().ok()?, size.trim().parse().ok()))
}

/// The bytes of an answer to a request for all from `offset` on.
pub(crate) fn stream_from(
    what: &str,
    answer: Response,
    offset: u64,
) -> Result<BlobStream<'static>, BackendError> {
    let (size, mut skip) = match answer.status() {
        StatusCode::PARTIAL_CONTENT => match content_range(&answer) {
            Some((start, Some(size))) if start == offset => (size, 0),
            _ => {
                return Err(BackendError::invalid(
                    what,
                    "the server sends another range than it was asked for",
                ));
            }
        },
        StatusCode::OK => (size_of(what, &answer)?, offset),
        // Nothing is left.
        StatusCode::RANGE_NOT_SATISFIABLE => {
            return Ok(BlobStream { size: offset, bytes: futures::stream::empty().boxed() });
        }
        status => return Err(refused(what, status)),
    };
    let what = what.to_owned();
    let bytes = answer.bytes_stream().map(move |part| {
        let mut part = part.map_err(|error| BackendError::unavailable(&what, told(&error)))?;
        let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(part.len());
        skip -= skipped as u64;
        Ok(part.split_off(skipped))
    });
    Ok(BlobStream { size, bytes: bytes.boxed() })
}

/// The bytes of `range` out of an answer to [`with_range`]; fewer when the body ends before. A server that knows no
/// ranges sends the whole: what comes before is skipped, and what comes after is not read.
pub(crate) async fn ranged_body(
    what: &str,
    answer: Response,
    range: &Range<u64>,
) -> Result<Bytes, BackendError> {
    let mut skip = match answer.status() {
        StatusCode::PARTIAL_CONTENT => {
            if content_range(&answer).map(|(start, _)| start) != Some(range.start) {
                return Err(BackendError::invalid(
                    what,
                    "the server sends another range than it was asked for",
                ));
            }
            0
        }
        StatusCode::OK => range.start,
        StatusCode::RANGE_NOT_SATISFIABLE => return Ok(Bytes::new()),
        status => return Err(refused(what, status)),
    };
    let wanted = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
    let mut bytes = BytesMut::new();
    let mut body = answer.bytes_stream();
    while bytes.len() < wanted {
        let Some(part) = body.next().await else { break };
        let mut part = part.map_err(|error| BackendError::unavailable(what, told(&error)))?;
        let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(part.len());
        skip -= skipped as u64;
        let part = part.split_off(skipped);
        bytes.extend_from_slice(&part[..part.len().min(wanted - bytes.len())]);
    }
    Ok(bytes.freeze())
}
