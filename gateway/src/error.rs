//! Error answers, as the specification's "Error Codes" section has them.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_RANGE, CONTENT_TYPE, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Value, json};
use shoal_types::Digest;

use crate::access::AccessError;
use crate::body::Payload;
use crate::port::{DeleteError, ListError, PullError, PushError};

/// The specification's codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    SizeInvalid,
    Unauthorized,
    Denied,
    Unsupported,
    TooManyRequests,
    /// Not of the specification, which has no code for a registry's own faults. Clients take codes they do not know
    /// for this one, as docker's registry sends it.
    Unknown,
    /// As above: docker's registry's code for what may work later.
    Unavailable,
}

impl Code {
    fn name(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Self::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::SizeInvalid => "SIZE_INVALID",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Denied => "DENIED",
            Self::Unsupported => "UNSUPPORTED",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::Unknown => "UNKNOWN",
            Self::Unavailable => "UNAVAILABLE",
        }
    }

    /// The specification's words for the code.
    fn message(self) -> &'static str {
        match self {
            Self::BlobUnknown => "blob unknown to registry",
            Self::BlobUploadInvalid => "blob upload invalid",
            Self::BlobUploadUnknown => "blob upload unknown to registry",
            Self::DigestInvalid => "provided digest did not match uploaded content",
            Self::ManifestBlobUnknown => "manifest references a manifest or blob unknown to registry",
            Self::ManifestInvalid => "manifest invalid",
            Self::ManifestUnknown => "manifest unknown to registry",
            Self::NameInvalid => "invalid repository name",
            Self::NameUnknown => "repository name not known to registry",
            Self::SizeInvalid => "provided length did not match content length",
            Self::Unauthorized => "authentication required",
            Self::Denied => "requested access to the resource is denied",
            Self::Unsupported => "the operation is unsupported",
            Self::TooManyRequests => "too many requests",
            Self::Unknown => "internal error",
            Self::Unavailable => "service unavailable",
        }
    }
}

/// An error answer.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    /// Code and detail of each error. Docker prints nothing but the code's words when there is no detail.
    errors: Vec<(Code, Value)>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: Code, reason: impl Into<String>) -> Self {
        Self::with_detail(status, code, json!({ "reason": reason.into() }))
    }

    pub(crate) fn with_detail(status: StatusCode, code: Code, detail: Value) -> Self {
        Self { status, errors: vec![(code, detail)], headers: Vec::new() }
    }

    pub(crate) fn bad_request(code: Code, reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, reason)
    }

    /// One error for each blob or manifest a pushed manifest refers to in vain.
    pub(crate) fn references_unknown(digests: &[Digest]) -> Self {
        let errors = digests
            .iter()
            .map(|digest| (Code::ManifestBlobUnknown, json!({ "digest": digest.to_string() })))
            .collect();
        Self { status: StatusCode::NOT_FOUND, errors, headers: Vec::new() }
    }

    pub(crate) fn too_large(limit: u64) -> Self {
        Self::with_detail(
            StatusCode::PAYLOAD_TOO_LARGE,
            Code::SizeInvalid,
            json!({ "reason": "over the limit", "limit_bytes": limit }),
        )
    }

    pub(crate) fn method_not_allowed(allow: &'static str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, Code::Unsupported, format!("this resource takes {allow}"))
            .header(ALLOW, HeaderValue::from_static(allow))
    }

    pub(crate) fn range_not_satisfiable(size: u64) -> Self {
        Self::new(
            StatusCode::RANGE_NOT_SATISFIABLE,
            Code::Unsupported,
            format!("the range cannot be served: the content has {size} bytes"),
        )
        .header(CONTENT_RANGE, value(&format!("bytes */{size}")))
    }

    pub(crate) fn overloaded(retry_after: Duration) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, Code::TooManyRequests, "try again in a moment")
            .retry_after(retry_after)
    }

    fn unavailable(retry_after: Duration, reason: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, reason).retry_after(retry_after)
    }

    fn internal(reason: &str) -> Self {
        tracing::error!(reason, "request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Code::Unknown, "see the gateway's log")
    }

    #[must_use]
    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Seconds, rounded up, at least one: zero would make a client that obeys spin.
    fn retry_after(self, after: Duration) -> Self {
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        self.header(RETRY_AFTER, HeaderValue::from(seconds.max(1)))
    }

    pub(crate) fn into_response(self) -> Response<Payload> {
        let errors: Vec<Value> = self
            .errors
            .iter()
            .map(|(code, detail)| json!({"code": code.name(), "message": code.message(), "detail": detail}))
            .collect();
        let body = Bytes::from(json!({ "errors": errors }).to_string());
        let mut response = Response::new(Payload::Full(body));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().extend(self.headers);
        response
    }

    /// What a failed read of a blob is answered with.
    pub(crate) fn pull_blob(error: PullError, digest: &Digest) -> Self {
        let unknown = Self::with_detail(
            StatusCode::NOT_FOUND,
            Code::BlobUnknown,
            json!({ "digest": digest.to_string() }),
        );
        Self::pull(error, unknown)
    }

    /// What a failed read of a manifest is answered with.
    pub(crate) fn pull_manifest(error: PullError, reference: &str) -> Self {
        let unknown = Self::with_detail(
            StatusCode::NOT_FOUND,
            Code::ManifestUnknown,
            json!({ "reference": reference }),
        );
        Self::pull(error, unknown)
    }

    fn pull(error: PullError, unknown: Self) -> Self {
        match error {
            PullError::NotFound => unknown,
            PullError::RepositoryUnknown => Self::repository_unknown(),
            PullError::Denied(reason) => Self::new(StatusCode::FORBIDDEN, Code::Denied, reason),
            PullError::Unavailable { retry_after } => {
                Self::unavailable(retry_after, "those who may have it cannot be reached")
            }
            PullError::Busy { retry_after } => Self::overloaded(retry_after),
            PullError::Range { size } => Self::range_not_satisfiable(size),
            PullError::Internal(reason) => Self::internal(&reason),
        }
    }

    pub(crate) fn repository_unknown() -> Self {
        Self::new(StatusCode::NOT_FOUND, Code::NameUnknown, "nothing was ever pushed under this name")
    }

    /// What a failed delete is answered with; `unknown` when there is no such thing.
    pub(crate) fn delete(error: DeleteError, unknown: Code) -> Self {
        match error {
            DeleteError::NotFound => Self::new(StatusCode::NOT_FOUND, unknown, "nothing to delete"),
            DeleteError::RepositoryUnknown => Self::repository_unknown(),
            DeleteError::Denied(reason) => Self::new(StatusCode::FORBIDDEN, Code::Denied, reason),
            DeleteError::Unavailable { retry_after } => {
                Self::unavailable(retry_after, "not enough owners of the repository can be reached")
            }
            DeleteError::Internal(reason) => Self::internal(&reason),
        }
    }
}

impl From<PushError> for ApiError {
    fn from(error: PushError) -> Self {
        match error {
            PushError::DigestMismatch { actual } => Self::with_detail(
                StatusCode::BAD_REQUEST,
                Code::DigestInvalid,
                json!({ "reason": "the content has another digest", "digest": actual.to_string() }),
            ),
            PushError::OffsetMismatch { expected } => Self::with_detail(
                StatusCode::RANGE_NOT_SATISFIABLE,
                Code::BlobUploadInvalid,
                json!({ "reason": "out of order", "offset": expected }),
            ),
            PushError::UploadUnknown => Self::new(
                StatusCode::NOT_FOUND,
                Code::BlobUploadUnknown,
                "it was finished, cancelled or has expired",
            ),
            PushError::UploadBusy => Self::new(
                StatusCode::CONFLICT,
                Code::BlobUploadInvalid,
                "another request is writing to this upload",
            ),
            PushError::Interrupted(error) => {
                Self::bad_request(Code::BlobUploadInvalid, format!("the request's body broke off: {error}"))
            }
            PushError::NoSpace => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, Code::Unavailable, "no space left")
            }
            PushError::TooLarge { limit } => Self::too_large(limit),
            PushError::Denied(reason) => Self::new(StatusCode::FORBIDDEN, Code::Denied, reason),
            PushError::Unavailable { retry_after } => {
                Self::unavailable(retry_after, "not enough owners can be reached to keep it safe")
            }
            PushError::Busy { retry_after } => Self::overloaded(retry_after),
            PushError::Internal(reason) => Self::internal(&reason),
        }
    }
}

impl From<ListError> for ApiError {
    fn from(error: ListError) -> Self {
        match error {
            ListError::RepositoryUnknown => Self::repository_unknown(),
            ListError::Unavailable { retry_after } => {
                Self::unavailable(retry_after, "the repository's owners cannot be reached")
            }
            ListError::Internal(reason) => Self::internal(&reason),
        }
    }
}

impl From<AccessError> for ApiError {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::Unauthorized { challenge, reason } => {
                Self::new(StatusCode::UNAUTHORIZED, Code::Unauthorized, reason)
                    .header(WWW_AUTHENTICATE, value(&challenge))
            }
            AccessError::TooMany { retry_after } => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                Code::TooManyRequests,
                "too many wrong passwords came from this address",
            )
            .retry_after(retry_after),
            AccessError::Unavailable { retry_after, reason } => Self::unavailable(retry_after, &reason),
            AccessError::Denied(reason) => Self::new(StatusCode::FORBIDDEN, Code::Denied, reason),
        }
    }
}

/// A header value of text that is ASCII by construction; empty should it not be.
pub(crate) fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}
