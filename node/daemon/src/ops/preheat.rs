//! Having gateways fetch an image, for the command line.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use shoal_types::ImageReference;
use tokio::sync::watch;

use super::refusal;
use crate::node::Node;
use crate::preheat::{NodeReport, Order, Platforms, Report, Scope, named};

/// Between two lines.
const INTERVAL: Duration = Duration::from_millis(500);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    image: String,
    #[serde(default)]
    scope: Scope,
    #[serde(default)]
    platforms: Vec<String>,
}

/// Has gateways fetch an image. The answer is a JSON object a line ([`Report`]): the first as it begins, then one whenever
/// something has changed, with the nodes that changed alone, and the last with `finished`. The work goes on when nobody
/// reads.
pub(super) async fn order(State(node): State<Node>, Json(wanted): Json<Wanted>) -> Response {
    let image = match wanted.image.parse::<ImageReference>() {
        Ok(image) => image,
        Err(error) => return refusal(StatusCode::BAD_REQUEST, error),
    };
    if let Err(error) = Platforms::parse(&wanted.platforms) {
        return refusal(StatusCode::BAD_REQUEST, error);
    }
    let repositories = named(&node, &image);
    let order =
        Order { repositories, reference: image.reference, scope: wanted.scope, platforms: wanted.platforms };
    let told = match node.preheat(order) {
        Ok(told) => told,
        Err(error) => return refusal(StatusCode::SERVICE_UNAVAILABLE, error),
    };
    let lines = futures::stream::unfold((told, None, false), |(mut told, sent, finished)| async move {
        if finished || (sent.is_some() && !more(&mut told).await) {
            return None;
        }
        let report = told.borrow_and_update().clone();
        let finished = report.finished;
        let mut sent = sent.unwrap_or_default();
        let line = line(report, &mut sent);
        Some((Ok::<_, Infallible>(line), (told, Some(sent), finished)))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

/// Waits for news, and a moment more, so that they come together.
async fn more(told: &mut watch::Receiver<Report>) -> bool {
    if told.changed().await.is_err() {
        return false;
    }
    let _ = tokio::time::timeout(INTERVAL, told.wait_for(|report| report.finished)).await;
    true
}

/// The report without the nodes of which `sent` says the same.
fn line(report: Report, sent: &mut Vec<NodeReport>) -> Bytes {
    let fresh = report.nodes.iter().enumerate();
    let fresh: Vec<NodeReport> =
        fresh.filter(|(at, node)| sent.get(*at) != Some(node)).map(|(_, node)| node.clone()).collect();
    *sent = report.nodes;
    let mut line = serde_json::to_vec(&Report { nodes: fresh, ..report }).unwrap_or_default();
    line.push(b'\n');
    Bytes::from(line)
}
