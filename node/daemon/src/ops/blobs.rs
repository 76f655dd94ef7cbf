//! Blobs and manifests for the command line.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt as _, TryStreamExt as _};
use shoal_engine::io::ReadError;
use shoal_types::{Digest, ImageReference, RepositoryName};

use super::refusal;
use crate::gc::PUT_REPOSITORY;
use crate::node::{AppendError, FinishError, ManifestError, Node};

pub(super) async fn read(State(node): State<Node>, Path(digest): Path<String>) -> Response {
    let digest = match digest.parse::<Digest>() {
        Ok(digest) => digest,
        Err(error) => return refusal(StatusCode::BAD_REQUEST, error),
    };
    match node.open(digest, None).await {
        Err(ReadError::NotFound) => refusal(StatusCode::NOT_FOUND, ReadError::NotFound),
        Err(error) => refusal(StatusCode::SERVICE_UNAVAILABLE, error),
        Ok(reader) => {
            let size = reader.size();
            let local = reader.is_local();
            let metrics = node.clone();
            let at = u64::try_from(node.clock().now().since_start().as_millis()).unwrap_or(u64::MAX);
            let stream = reader.into_stream(move |bytes| {
                metrics.metrics().note_read(local, bytes as u64);
                if local {
                    metrics.pulls().note_local(&digest, size, bytes as u64, at);
                }
            });
            ([(header::CONTENT_LENGTH, size)], Body::from_stream(stream)).into_response()
        }
    }
}

pub(super) async fn write(State(node): State<Node>, Path(digest): Path<String>, body: Body) -> Response {
    let digest = match digest.parse::<Digest>() {
        Ok(digest) => digest,
        Err(error) => return refusal(StatusCode::BAD_REQUEST, error),
    };
    let Ok(repository) = PUT_REPOSITORY.parse::<RepositoryName>() else {
        return refusal(StatusCode::INTERNAL_SERVER_ERROR, "the spool's name is not one");
    };
    let upload = match node.begin_upload(&repository).await {
        Ok(upload) => upload,
        Err(error) => return refusal(StatusCode::SERVICE_UNAVAILABLE, error),
    };
    let body = body.into_data_stream().map_err(std::io::Error::other).boxed();
    if let Err(error) = node.append_upload(&repository, upload, None, body).await {
        node.cancel_upload(&repository, upload).await;
        let status = match error {
            AppendError::NoSpace(_) => StatusCode::INSUFFICIENT_STORAGE,
            AppendError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        return refusal(status, error);
    }
    let finished = match node.finish_upload(&repository, upload, digest).await {
        // No manifest names it: it is this record that garbage collection keeps it for.
        Ok(()) => node.record_blob(&repository, digest).await,
        failed => failed,
    };
    match finished {
        Ok(()) => StatusCode::CREATED.into_response(),
        Err(error @ FinishError::Digest(_)) => refusal(StatusCode::BAD_REQUEST, error),
        Err(error @ FinishError::NoSpace(_)) => refusal(StatusCode::INSUFFICIENT_STORAGE, error),
        Err(error @ FinishError::Denied(_)) => refusal(StatusCode::FORBIDDEN, error),
        Err(error) => refusal(StatusCode::SERVICE_UNAVAILABLE, error),
    }
}

pub(super) async fn manifest(State(node): State<Node>, Path(image): Path<String>) -> Response {
    let image = match image.parse::<ImageReference>() {
        Ok(image) => image,
        Err(error) => return refusal(StatusCode::BAD_REQUEST, error),
    };
    let found = match node.resolve(&image.repository, &image.reference).await {
        Ok(resolved) => node
            .read_manifest_of(&image.repository, resolved.value.digest)
            .await
            .map(|bytes| (resolved.value, bytes)),
        Err(error) => Err(error),
    };
    match found {
        Ok((value, bytes)) => {
            let digest = HeaderName::from_static("docker-content-digest");
            let headers = [(header::CONTENT_TYPE, value.media_type), (digest, value.digest.to_string())];
            (headers, bytes).into_response()
        }
        Err(error @ ManifestError::NotFound) => refusal(StatusCode::NOT_FOUND, format!("{image}: {error}")),
        Err(error) => refusal(StatusCode::SERVICE_UNAVAILABLE, error),
    }
}
