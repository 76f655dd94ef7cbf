//! Lists: "Listing Tags", "Listing Referrers" (end-8a, end-8b, end-12a, end-12b) and the catalog.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, LINK};
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Value, json};
use shoal_types::{Digest, RecordValue, RepositoryName};

use super::Answer;
use crate::body::Payload;
use crate::error::{ApiError, Code, value};
use crate::manifest::MEDIA_TYPE_OCI_INDEX;
use crate::route::percent_encode;
use crate::service::Call;

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
/// Bytes of descriptors after which a page of referrers ends: what a client is ready to read as one manifest.
const REFERRERS_PAGE_BYTES: usize = 4 << 20;

/// An answer in JSON.
pub(super) fn json(status: StatusCode, body: &Value) -> Response<Payload> {
    let mut response = Response::new(Payload::Full(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// `GET /v2/<name>/tags/list`.
pub(super) async fn tags(call: &Call, repository: &RepositoryName) -> Answer {
    let page = Page::parse(call)?;
    let after = parse_last(call)?;
    // Also for an empty page: an unknown repository is a 404 all the same.
    let found = call.gateway.mesh.list_tags(repository, after.as_ref(), page.limit + 1).await?;
    let (tags, more) = page.cut(found);
    let mut response = json(StatusCode::OK, &json!({ "name": repository, "tags": tags }));
    if let (true, Some(last)) = (more, tags.last()) {
        page.link(&mut response, &format!("/v2/{repository}/tags/list"), last.as_str());
    }
    Ok(response)
}

/// `GET /v2/_catalog`.
pub(super) async fn catalog(call: &Call) -> Answer {
    let page = Page::parse(call)?;
    let after = parse_last(call)?;
    let found = call.gateway.mesh.list_repositories(after.as_ref(), page.limit + 1).await?;
    let (repositories, more) = page.cut(found);
    let mut response = json(StatusCode::OK, &json!({ "repositories": repositories }));
    if let (true, Some(last)) = (more, repositories.last()) {
        page.link(&mut response, "/v2/_catalog", last.as_str());
    }
    Ok(response)
}

/// `GET /v2/<name>/referrers/<digest>`.
pub(super) async fn referrers(call: &Call, repository: &RepositoryName, subject: &Digest) -> Answer {
    let wanted = call.query.get("artifactType").filter(|wanted| !wanted.is_empty());
    let after: Option<Digest> = parse_last(call)?;
    let limit = call.gateway.config.page_max;
    let found = call.gateway.mesh.referrers(repository, subject, after.as_ref(), limit + 1).await?;
    let mut descriptors = Vec::new();
    let mut bytes = 0;
    let mut last = None;
    let mut more = false;
    for (number, record) in found.iter().enumerate() {
        if number == limit || bytes >= REFERRERS_PAGE_BYTES {
            more = true;
            break;
        }
        last = Some(record.digest);
        if wanted.is_some_and(|wanted| record.artifact_type.as_deref() != Some(wanted)) {
            continue;
        }
        let descriptor = descriptor(record);
        bytes += descriptor.to_string().len();
        descriptors.push(descriptor);
    }
    let index = json!({"schemaVersion": 2, "mediaType": MEDIA_TYPE_OCI_INDEX, "manifests": descriptors});
    let mut response = json(StatusCode::OK, &index);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE_OCI_INDEX));
    if wanted.is_some() {
        headers.insert(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    if let (true, Some(last)) = (more, last) {
        let filter =
            wanted.map(|wanted| format!("artifactType={}&", percent_encode(wanted))).unwrap_or_default();
        let next = format!(
            "/v2/{repository}/referrers/{subject}?{filter}last={}",
            percent_encode(&last.to_string())
        );
        headers.insert(LINK, value(&format!("<{next}>; rel=\"next\"")));
    }
    Ok(response)
}

fn descriptor(record: &RecordValue) -> Value {
    let mut descriptor = json!({
        "mediaType": record.media_type,
        "digest": record.digest,
        "size": record.size,
    });
    if let Some(artifact_type) = &record.artifact_type {
        descriptor["artifactType"] = json!(artifact_type);
    }
    if !record.annotations.is_empty() {
        descriptor["annotations"] = json!(record.annotations);
    }
    descriptor
}

/// How long a page is.
struct Page {
    /// What the client asked for; repeated in the link.
    asked: Option<usize>,
    limit: usize,
}

impl Page {
    fn parse(call: &Call) -> Result<Self, ApiError> {
        let page_max = call.gateway.config.page_max;
        let Some(text) = call.query.get("n") else { return Ok(Self { asked: None, limit: page_max }) };
        let asked = text
            .parse::<usize>()
            .map_err(|_| ApiError::bad_request(Code::Unsupported, "n must be a number of entries"))?;
        Ok(Self { asked: Some(asked), limit: asked.min(page_max) })
    }

    /// The page, and whether there is more. An empty page has no next one.
    fn cut<T>(&self, mut found: Vec<T>) -> (Vec<T>, bool) {
        let more = found.len() > self.limit && self.limit > 0;
        found.truncate(self.limit);
        (found, more)
    }

    fn link(&self, response: &mut Response<Payload>, path: &str, last: &str) {
        let n = self.asked.map(|n| format!("n={n}&")).unwrap_or_default();
        let link = format!("<{path}?{n}last={}>; rel=\"next\"", percent_encode(last));
        response.headers_mut().insert(LINK, value(&link));
    }
}

/// The entry that a page begins after.
fn parse_last<T: std::str::FromStr>(call: &Call) -> Result<Option<T>, ApiError>
where
    T::Err: std::fmt::Display,
{
    let last = call.query.get("last").filter(|last| !last.is_empty()).map(str::parse).transpose();
    last.map_err(|error: T::Err| ApiError::bad_request(Code::Unsupported, format!("last: {error}")))
}
