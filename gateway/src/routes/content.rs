//! What pulls of blobs and of manifests have in common: validators and ranges.

use std::ops::Range;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
};
use http::header::{IF_RANGE, RANGE};
use http::{HeaderValue, Method, Response, StatusCode};
use shoal_types::Digest;

use super::{CONTENT_DIGEST, empty};
use crate::body::Payload;
use crate::error::value;
use crate::port::ByteStream;
use crate::range::{Plan, plan};
use crate::service::Call;

/// A content's headers, the same whether it is served whole, in part or not at all.
pub(crate) struct Content {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    /// Served by digest: it never changes.
    pub(crate) immutable: bool,
}

impl Content {
    fn etag(&self) -> String {
        format!("\"{}\"", self.digest)
    }

    /// An answer with this content's headers.
    pub(crate) fn response(&self, status: StatusCode) -> Response<Payload> {
        let mut response = empty(status);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, value(&self.media_type));
        headers.insert(CONTENT_DIGEST, value(&self.digest.to_string()));
        headers.insert(ETAG, value(&self.etag()));
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        let caching = if self.immutable { "max-age=31536000, immutable" } else { "no-cache" };
        headers.insert(CACHE_CONTROL, HeaderValue::from_static(caching));
        response
    }

    /// An answer to HEAD for `size` bytes.
    pub(crate) fn head(&self, size: u64) -> Response<Payload> {
        let mut response = self.response(StatusCode::OK);
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(size));
        response
    }

    /// The answer "you have it already", when `If-None-Match` says so (RFC 9110, 13.1.2: weak comparison).
    pub(crate) fn not_modified(&self, call: &Call) -> Option<Response<Payload>> {
        let etag = self.etag();
        let known = call
            .header(&IF_NONE_MATCH)?
            .split(',')
            .map(str::trim)
            .any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == etag);
        if !known {
            return None;
        }
        let mut response = self.response(StatusCode::NOT_MODIFIED);
        response.headers_mut().remove(CONTENT_TYPE);
        Some(response)
    }

    /// What of `size` bytes the request wants.
    pub(crate) fn plan(&self, call: &Call, size: u64) -> Plan {
        // Range is for GET only (RFC 9110, 14.2), and If-Range with another validator voids it (13.1.5).
        let void = call.header(&IF_RANGE).is_some_and(|validator| validator.trim() != self.etag());
        if call.method != Method::GET || void {
            return Plan::Whole;
        }
        plan(call.header(&RANGE), size, call.gateway.config.ranges_max)
    }

    /// 206 with one range.
    pub(crate) fn partial(&self, range: &Range<u64>, size: u64, body: ByteStream) -> Response<Payload> {
        let mut response = self.response(StatusCode::PARTIAL_CONTENT);
        response.headers_mut().insert(CONTENT_RANGE, value(&content_range(range, size)));
        *response.body_mut() = Payload::Stream { length: range.end - range.start, stream: body };
        response
    }

    /// 206 with several ranges as `multipart/byteranges` (RFC 9110, 14.6). `open` is called for each range when its
    /// turn comes.
    pub(crate) fn multipart<F, O>(
        &self,
        ranges: Vec<Range<u64>>,
        size: u64,
        request_id: u64,
        mut open: O,
    ) -> Response<Payload>
    where
        O: FnMut(Range<u64>) -> F + Send + 'static,
        F: Future<Output = std::io::Result<ByteStream>> + Send + 'static,
    {
        // A boundary that is in the content by accident is as likely as a collision of the digest.
        let boundary = format!("shoal-{request_id:x}-{}", &self.digest.hex()[..40]);
        let heads: Vec<(Bytes, Range<u64>)> = ranges
            .into_iter()
            .map(|range| {
                let head = format!(
                    "\r\n--{boundary}\r\nContent-Type: {}\r\nContent-Range: {}\r\n\r\n",
                    self.media_type,
                    content_range(&range, size)
                );
                (Bytes::from(head), range)
            })
            .collect();
        let tail = Bytes::from(format!("\r\n--{boundary}--\r\n"));
        let parts: u64 = heads.iter().map(|(head, range)| head.len() as u64 + range.end - range.start).sum();
        let length = parts + tail.len() as u64;
        let parts = stream::iter(heads).then(move |(head, range)| {
            let body = open(range);
            async move { std::io::Result::Ok(stream::iter([Ok(head)]).chain(body.await?)) }
        });
        let body = parts.try_flatten().chain(stream::iter([Ok(tail)])).boxed();
        let mut response = self.response(StatusCode::PARTIAL_CONTENT);
        let content_type = format!("multipart/byteranges; boundary={boundary}");
        response.headers_mut().insert(CONTENT_TYPE, value(&content_type));
        *response.body_mut() = Payload::Stream { length, stream: body };
        response
    }
}

fn content_range(range: &Range<u64>, size: u64) -> String {
    format!("bytes {}-{}/{size}", range.start, range.end - 1)
}
