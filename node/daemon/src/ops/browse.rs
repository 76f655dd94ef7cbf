//! Repositories, tags, and what an image consists of, for the console.

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use shoal_types::{Digest, RecordKind, RecordValue, RepositoryName};

use super::refusal;
use crate::node::{ManifestError, Node};
use crate::records::service::RecordError;
use crate::rpc::{Listing, PAGE_MAX};

/// Where a page of a list begins.
#[derive(Deserialize)]
pub(super) struct After {
    after: Option<String>,
}

/// The names of repositories, at most [`PAGE_MAX`] after `after`.
pub(super) async fn repositories(State(node): State<Node>, Query(page): Query<After>) -> Response {
    let after = match page.after.map(|after| after.parse::<RepositoryName>()).transpose() {
        Ok(after) => after,
        Err(error) => return refusal(StatusCode::BAD_REQUEST, error),
    };
    match node.records().repositories(after.as_ref(), PAGE_MAX as usize).await {
        Ok(names) => Json(names.iter().map(ToString::to_string).collect::<Vec<_>>()).into_response(),
        Err(error) => unlisted(&error),
    }
}

/// A repository.
#[derive(Deserialize)]
pub(super) struct Repository {
    repository: String,
    after: Option<String>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    digest: Digest,
    media_type: String,
    size: u64,
    artifact_type: Option<String>,
}

fn row(name: String, value: &RecordValue) -> Row {
    Row {
        name,
        digest: value.digest,
        media_type: value.media_type.clone(),
        size: value.size,
        artifact_type: value.artifact_type.clone(),
    }
}

/// The tags of a repository, at most [`PAGE_MAX`] after `after`.
pub(super) async fn tags(State(node): State<Node>, Query(wanted): Query<Repository>) -> Response {
    let after = match wanted.after.map(|after| after.parse()).transpose() {
        Ok(after) => after.map(RecordKind::Tag),
        Err(error) => return refusal(StatusCode::BAD_REQUEST, error),
    };
    let repository = match wanted.repository.parse::<RepositoryName>() {
        Ok(repository) => repository,
        Err(error) => return refusal(StatusCode::BAD_REQUEST, error),
    };
    match node.records().list(&repository, &Listing::Tags, after, PAGE_MAX as usize).await {
        Ok(records) => {
            let tag = |kind: &RecordKind| match kind {
                RecordKind::Tag(tag) => Some(tag.to_string()),
                _ => None,
            };
            let rows = records.iter().filter_map(|record| {
                Some(row(tag(&record.value().key.kind)?, record.value().value.as_ref()?))
            });
            Json(rows.collect::<Vec<_>>()).into_response()
        }
        Err(error) => unlisted(&error),
    }
}

/// A manifest of a repository.
#[derive(Deserialize)]
pub(super) struct Image {
    repository: String,
    digest: Digest,
}

#[derive(Serialize)]
struct Contents {
    manifest: serde_json::Value,
    referrers: Vec<Row>,
}

/// A manifest, which is fetched if it is not here, and what refers to it.
pub(super) async fn image(State(node): State<Node>, Query(wanted): Query<Image>) -> Response {
    let repository = match wanted.repository.parse::<RepositoryName>() {
        Ok(repository) => repository,
        Err(error) => return refusal(StatusCode::BAD_REQUEST, error),
    };
    let bytes = match node.read_manifest_of(&repository, wanted.digest).await {
        Ok(bytes) => bytes,
        Err(ManifestError::NotFound) => return refusal(StatusCode::NOT_FOUND, "no such manifest"),
        Err(error) => return refusal(StatusCode::SERVICE_UNAVAILABLE, error),
    };
    let Ok(manifest) = serde_json::from_slice(&bytes) else {
        return refusal(StatusCode::UNPROCESSABLE_ENTITY, "the manifest is not JSON");
    };
    let listing = Listing::Referrers(wanted.digest);
    match node.records().list(&repository, &listing, None, PAGE_MAX as usize).await {
        Ok(records) => {
            let values = records.iter().filter_map(|record| record.value().value.as_ref());
            let referrers = values.map(|value| row(value.digest.to_string(), value)).collect();
            Json(Contents { manifest, referrers }).into_response()
        }
        Err(error) => unlisted(&error),
    }
}

fn unlisted(error: &RecordError) -> Response {
    let status = match error {
        RecordError::Ledger(_) => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    refusal(status, error)
}
