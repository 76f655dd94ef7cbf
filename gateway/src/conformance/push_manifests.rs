//! "Pushing Manifests" (end-7).

use serde_json::json;
use shoal_types::Digest;

use super::client::{OCI_INDEX, OCI_MANIFEST, descriptor};
use super::{Outcome, Registry, check};

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// 201 with a pullable Location.
pub(super) async fn spec_push_manifest_by_tag_is_201(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let manifest = registry.image(&repository, "v1").await?.to_string();
    let reply =
        registry.put_manifest(&repository, "v1", OCI_MANIFEST, manifest.clone()).await?.expect_status(201)?;
    check!(
        reply.header("docker-content-digest") == Digest::sha256(manifest.as_bytes()).to_string(),
        "{reply:?}"
    );
    check!(reply.header("oci-subject").is_empty(), "{reply:?}");
    let pulled = registry.get(reply.header("location")).await?.expect_status(200)?;
    check!(pulled.body == manifest, "{pulled:?}");
    Ok(())
}

/// The same by digest; no tag comes of it.
pub(super) async fn spec_push_manifest_by_digest_is_201(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let manifest = registry.image(&repository, "v1").await?.to_string();
    let digest = Digest::sha256(manifest.as_bytes()).to_string();
    let reply =
        registry.put_manifest(&repository, &digest, OCI_MANIFEST, manifest).await?.expect_status(201)?;
    check!(reply.header("docker-content-digest") == digest, "{reply:?}");
    let tags = registry.get(&format!("/v2/{repository}/tags/list")).await?.expect_status(200)?;
    check!(tags.json()["tags"] == json!([]), "{tags:?}");
    Ok(())
}

/// "Error Codes": DIGEST_INVALID; nothing is kept.
pub(super) async fn spec_push_manifest_by_wrong_digest_is_400(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let manifest = registry.image(&repository, "v1").await?.to_string();
    let digest = Digest::sha256(b"another").to_string();
    let reply = registry.put_manifest(&repository, &digest, OCI_MANIFEST, manifest).await?;
    reply.expect_error(400, "DIGEST_INVALID")?;
    registry.get(&format!("/v2/{repository}/manifests/{digest}")).await?.expect_status(404)?;
    Ok(())
}

/// "The registry MUST store the manifest in the exact byte representation provided by the client."
pub(super) async fn spec_push_manifest_keeps_the_exact_bytes(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let manifest = registry.image(&repository, "v1").await?;
    let odd =
        format!("\n  {}\t\n", serde_json::to_string_pretty(&manifest).map_err(|error| error.to_string())?);
    registry.put_manifest(&repository, "v1", OCI_MANIFEST, odd.clone()).await?.expect_status(201)?;
    let pulled = registry.get(&format!("/v2/{repository}/manifests/v1")).await?.expect_status(200)?;
    check!(pulled.body == odd, "{pulled:?}");
    Ok(())
}

/// A tag names what was pushed last; the other stays by digest.
pub(super) async fn spec_push_manifest_moves_a_tag(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let first = registry.push_image(&repository, "latest").await?;
    let second = registry.image(&repository, "second").await?.to_string();
    registry.put_manifest(&repository, "latest", OCI_MANIFEST, second.clone()).await?.expect_status(201)?;
    let pulled = registry.get(&format!("/v2/{repository}/manifests/latest")).await?.expect_status(200)?;
    check!(pulled.body == second, "{pulled:?}");
    let digest = Digest::sha256(first.as_bytes());
    registry.get(&format!("/v2/{repository}/manifests/{digest}")).await?.expect_status(200)?;
    Ok(())
}

/// "When a manifest is rejected for this reason, it MUST result in one or more MANIFEST_BLOB_UNKNOWN errors."
pub(super) async fn spec_push_manifest_unknown_blob_is_manifest_blob_unknown(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let mut manifest = registry.image(&repository, "v1").await?;
    manifest["layers"] =
        json!([descriptor("application/x", b"gone 1"), descriptor("application/x", b"gone 2")]);
    let reply = registry.put_manifest(&repository, "v1", OCI_MANIFEST, manifest.to_string()).await?;
    let reply = reply.expect_error(404, "MANIFEST_BLOB_UNKNOWN")?;
    let errors = reply.json()["errors"].clone();
    let missing: Vec<_> =
        errors.as_array().into_iter().flatten().map(|e| e["detail"]["digest"].clone()).collect();
    check!(missing == [json!(Digest::sha256(b"gone 1")), json!(Digest::sha256(b"gone 2"))], "{errors}");
    registry.get(&format!("/v2/{repository}/manifests/v1")).await?.expect_status(404)?;
    Ok(())
}

/// "However, the list of blobs MAY be empty."
pub(super) async fn spec_push_manifest_with_no_layers(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let mut manifest = registry.image(&repository, "v1").await?;
    manifest["layers"] = json!([]);
    registry.put_manifest(&repository, "v1", OCI_MANIFEST, manifest.to_string()).await?.expect_status(201)?;
    Ok(())
}

/// "The registry SHOULD ignore parameters on the Content-Type header", and not repeat them.
pub(super) async fn spec_push_manifest_ignores_content_type_parameters(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let manifest = registry.image(&repository, "v1").await?.to_string();
    let media_type = format!("{OCI_MANIFEST}; charset=utf-8");
    registry.put_manifest(&repository, "v1", &media_type, manifest).await?.expect_status(201)?;
    let pulled = registry.get(&format!("/v2/{repository}/manifests/v1")).await?.expect_status(200)?;
    check!(pulled.header("content-type") == OCI_MANIFEST, "{pulled:?}");
    Ok(())
}

/// "clients MUST set the Content-Type header to the value specified by the mediaType field".
pub(super) async fn spec_push_manifest_media_type_must_agree(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let manifest = registry.image(&repository, "v1").await?.to_string();
    for media_type in [DOCKER_MANIFEST, OCI_INDEX] {
        let reply = registry.put_manifest(&repository, "v1", media_type, manifest.clone()).await?;
        reply.expect_error(400, "MANIFEST_INVALID")?;
    }
    Ok(())
}

/// "Error Codes": MANIFEST_INVALID.
pub(super) async fn spec_push_manifest_malformed_is_400(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    for body in
        ["", "{", "[]", "null", "{\"schemaVersion\":2}", "{\"schemaVersion\":2,\"config\":7}", "\u{0}"]
    {
        let reply = registry.put_manifest(&repository, "v1", OCI_MANIFEST, body).await?;
        reply.expect_error(400, "MANIFEST_INVALID")?;
    }
    let deep = format!("{{\"schemaVersion\":2,\"config\":{}", "[".repeat(100_000));
    let reply = registry.put_manifest(&repository, "v1", OCI_MANIFEST, deep).await?;
    reply.expect_error(400, "MANIFEST_INVALID")?;
    Ok(())
}

/// Schema 1 is refused in words that say what to do.
pub(super) async fn spec_push_manifest_schema_1_is_refused(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let body = json!({"schemaVersion": 1, "name": repository, "tag": "v1", "fsLayers": [], "history": []});
    let media_type = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let reply = registry.put_manifest(&repository, "v1", media_type, body.to_string()).await?;
    let reply = reply.expect_error(400, "MANIFEST_INVALID")?;
    check!(String::from_utf8_lossy(&reply.body).contains("schema 1"), "{reply:?}");
    Ok(())
}

/// docker's manifest and list.
pub(super) async fn spec_push_manifest_of_docker(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let mut image = registry.image(&repository, "v1").await?;
    image["mediaType"] = json!(DOCKER_MANIFEST);
    let image = image.to_string();
    registry.put_manifest(&repository, "amd64", DOCKER_MANIFEST, image.clone()).await?.expect_status(201)?;
    let list = json!({
        "schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [descriptor(DOCKER_MANIFEST, image.as_bytes())],
    });
    registry.put_manifest(&repository, "v1", DOCKER_LIST, list.to_string()).await?.expect_status(201)?;
    let pulled = registry.get(&format!("/v2/{repository}/manifests/v1")).await?.expect_status(200)?;
    check!(pulled.header("content-type") == DOCKER_LIST, "{pulled:?}");
    Ok(())
}

/// An index of an index of an image.
pub(super) async fn spec_push_manifest_nested_index(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let image = registry.push_image(&repository, "image").await?;
    let inner = index(&image, OCI_MANIFEST);
    registry.put_manifest(&repository, "inner", OCI_INDEX, inner.clone()).await?.expect_status(201)?;
    let outer = index(&inner, OCI_INDEX);
    registry.put_manifest(&repository, "outer", OCI_INDEX, outer.clone()).await?.expect_status(201)?;
    let pulled = registry.get(&format!("/v2/{repository}/manifests/outer")).await?.expect_status(200)?;
    check!(pulled.body == outer, "{pulled:?}");
    Ok(())
}

fn index(child: &str, media_type: &str) -> String {
    let manifests = [descriptor(media_type, child.as_bytes())];
    json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}).to_string()
}

/// As for blobs: MANIFEST_BLOB_UNKNOWN.
pub(super) async fn spec_push_manifest_index_of_unknown_manifest(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    // A blob of that digest does not make it a manifest.
    registry.push_blob(&repository, b"no manifest").await?;
    let body = index("no manifest", OCI_MANIFEST);
    let reply = registry.put_manifest(&repository, "v1", OCI_INDEX, body).await?;
    reply.expect_error(404, "MANIFEST_BLOB_UNKNOWN")?;
    Ok(())
}

/// Layers that may not be distributed are elsewhere.
pub(super) async fn spec_push_manifest_foreign_layers(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let mut manifest = registry.image(&repository, "v1").await?;
    let mut layer = descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", b"far away");
    layer["urls"] = json!(["https://example.com/layer"]);
    manifest["layers"] = json!([layer]);
    registry.put_manifest(&repository, "v1", OCI_MANIFEST, manifest.to_string()).await?.expect_status(201)?;
    Ok(())
}

/// "… manifest pushes of at least 4 megabytes."
pub(super) async fn spec_push_manifest_of_4_megabytes(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let mut manifest = registry.image(&repository, "v1").await?;
    manifest["annotations"] = json!({"long": "x".repeat(4_000_000)});
    let manifest = manifest.to_string();
    registry.put_manifest(&repository, "v1", OCI_MANIFEST, manifest.clone()).await?.expect_status(201)?;
    let pulled = registry.get(&format!("/v2/{repository}/manifests/v1")).await?.expect_status(200)?;
    check!(pulled.body == manifest, "{} bytes", pulled.body.len());
    Ok(())
}

/// "A registry that enforces this limit SHOULD respond … with a response code 413 Payload Too Large."
pub(super) async fn spec_push_manifest_too_large_is_413(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let mut manifest = registry.image(&repository, "v1").await?;
    manifest["annotations"] = json!({"long": "x".repeat(5 << 20)});
    let reply = registry.put_manifest(&repository, "v1", OCI_MANIFEST, manifest.to_string()).await?;
    reply.expect_error(413, "MANIFEST_INVALID")?;
    Ok(())
}

/// "A registry MUST initially accept an otherwise valid manifest with a subject field that references a manifest that
/// does not exist", "MUST respond with the response header OCI-Subject".
pub(super) async fn spec_push_manifest_with_unknown_subject(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let mut manifest = registry.image(&repository, "v1").await?;
    let subject = descriptor(OCI_MANIFEST, b"not there yet");
    manifest["subject"] = subject.clone();
    let reply = registry
        .put_manifest(&repository, "v1", OCI_MANIFEST, manifest.to_string())
        .await?
        .expect_status(201)?;
    check!(Some(reply.header("oci-subject")) == subject["digest"].as_str(), "{reply:?}");
    Ok(())
}

/// "the reference MUST be either a) a digest or b) a tag".
pub(super) async fn spec_push_manifest_with_bad_tag_is_400(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let manifest = registry.image(&repository, "v1").await?.to_string();
    let long = "a".repeat(129);
    for tag in [".v1", "-v1", "v%201", &long] {
        let reply = registry.put_manifest(&repository, tag, OCI_MANIFEST, manifest.clone()).await?;
        reply.expect_error(400, "MANIFEST_INVALID")?;
    }
    let reply = registry.put_manifest(&repository, "sha256:12", OCI_MANIFEST, manifest).await?;
    reply.expect_error(400, "DIGEST_INVALID")?;
    Ok(())
}
