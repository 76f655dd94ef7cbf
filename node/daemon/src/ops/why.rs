//! `/api/v1/why`: the explanation of a blob's pull, or of all blobs of an image.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use shoal_types::{Digest, ImageReference};

use super::refusal;
use crate::driver::blocking;
use crate::node::{ManifestError, Node};
use crate::pulls::{Pull, Verdict};

/// Most blobs explained at once; an image of more layers is cut off there.
const BLOBS_MAX: usize = 512;

#[derive(Serialize)]
struct Explanation {
    digest: Digest,
    /// `blob`, `manifest`, `config` or `layer`.
    part: &'static str,
    /// What bounded the pull; without one there was no pull lately.
    verdict: Option<Verdict>,
    #[serde(flatten)]
    pull: Option<Pull>,
}

/// Answers for a digest, or for what an image's name refers to.
pub(super) async fn explain(State(node): State<Node>, Path(what): Path<String>) -> Response {
    if let Ok(digest) = what.parse::<Digest>() {
        let explained = explain_blob(&node, digest, "blob");
        if explained.pull.is_none() {
            let why = format!(
                "{digest} was not pulled through this daemon lately: ask the daemon of the machine that pulled it"
            );
            return refusal(StatusCode::NOT_FOUND, why);
        }
        return Json(vec![explained]).into_response();
    }
    let image = match what.parse::<ImageReference>() {
        Ok(image) => image,
        Err(error) => return refusal(StatusCode::BAD_REQUEST, error),
    };
    match node.resolve(&image.repository, &image.reference).await {
        Ok(resolved) => Json(explain_image(&node, resolved.value.digest).await).into_response(),
        Err(ManifestError::NotFound) => refusal(StatusCode::NOT_FOUND, format!("{image}: not found")),
        Err(error) => refusal(StatusCode::SERVICE_UNAVAILABLE, error),
    }
}

fn explain_blob(node: &Node, digest: Digest, part: &'static str) -> Explanation {
    let pull = node.pulls().get(&digest);
    Explanation { digest, part, verdict: pull.as_ref().map(Pull::verdict), pull }
}

/// A manifest and what it names. Of an index's manifests only those that are here: others were not pulled.
async fn explain_image(node: &Node, root: Digest) -> Vec<Explanation> {
    let mut explained = Vec::new();
    let mut manifests = vec![root];
    while let Some(digest) = manifests.pop() {
        if explained.len() >= BLOBS_MAX || explained.iter().any(|known: &Explanation| known.digest == digest)
        {
            continue;
        }
        explained.push(explain_blob(node, digest, "manifest"));
        let Some(manifest) = manifest_here(node, digest).await else { continue };
        let named = |value: &serde_json::Value| value.get("digest")?.as_str()?.parse::<Digest>().ok();
        let list =
            |key: &str| manifest.get(key).and_then(|list| list.as_array()).cloned().unwrap_or_default();
        manifests.extend(list("manifests").iter().filter_map(named));
        let config = manifest.get("config").and_then(named).map(|digest| (digest, "config"));
        let layers = list("layers");
        let layers = layers.iter().filter_map(named).map(|digest| (digest, "layer"));
        for (digest, part) in config.into_iter().chain(layers).take(BLOBS_MAX) {
            explained.push(explain_blob(node, digest, part));
        }
    }
    // Platforms that nobody asked for say nothing.
    explained.retain(|one| one.digest == root || one.part != "manifest" || one.pull.is_some());
    explained
}

/// A manifest that is complete in the local store. Nothing is fetched: asking for an explanation must not be a pull.
async fn manifest_here(node: &Node, digest: Digest) -> Option<serde_json::Value> {
    let store = node.store().clone();
    let bytes = blocking(move || {
        let entry = store.lookup(&digest).map_err(|error| error.to_string())?;
        let size = entry.filter(|entry| entry.complete).map(|entry| entry.metainfo.size());
        let Some(size) = size.filter(|size| *size <= crate::node::MANIFEST_BYTES_MAX) else {
            return Ok::<_, String>(Vec::new());
        };
        let mut bytes = Vec::new();
        store.read(&digest, 0..size, &mut bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    });
    serde_json::from_slice(&bytes.await.ok()?).ok()
}
