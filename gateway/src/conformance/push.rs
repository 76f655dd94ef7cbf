//! "Pushing blobs" monolithically and "Mounting a blob from another repository".

use shoal_types::Digest;

use super::client::with_query;
use super::{Outcome, Registry, check};

async fn absent(registry: &Registry, repository: &str, digest: &Digest) -> Outcome {
    registry.send("HEAD", &format!("/v2/{repository}/blobs/{digest}"), &[], "").await?.expect_status(404)?;
    Ok(())
}

/// "POST then PUT": 202 with Location, 201 with a pullable Location; a HEAD right after is 200 (docker relies on it).
pub(super) async fn spec_push_blob_post_then_put(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let location = registry.begin(&repository).await?;
    let digest = Digest::sha256(b"monolith");
    let path = with_query(&location, &format!("digest={digest}"));
    let headers = [("content-type", "application/octet-stream")];
    let reply = registry.send("PUT", &path, &headers, "monolith").await?.expect_status(201)?;
    check!(reply.header("docker-content-digest") == digest.to_string(), "{reply:?}");
    let head = registry.send("HEAD", reply.header("location"), &[], "").await?.expect_status(200)?;
    check!(head.header("content-length") == "8", "{head:?}");
    let pulled = registry.get(reply.header("location")).await?.expect_status(200)?;
    check!(pulled.body == "monolith", "{pulled:?}");
    // The session is closed.
    registry.get(&location).await?.expect_error(404, "BLOB_UPLOAD_UNKNOWN")?;
    Ok(())
}

/// "Single POST": 201 with a pullable Location.
pub(super) async fn spec_push_blob_single_post(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let digest = Digest::sha256(b"at once");
    let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
    let reply = registry.send("POST", &path, &[], "at once").await?.expect_status(201)?;
    let pulled = registry.get(reply.header("location")).await?.expect_status(200)?;
    check!(pulled.body == "at once", "{pulled:?}");
    Ok(())
}

/// "Single POST": "the digest MUST match the blob's digest".
pub(super) async fn spec_push_blob_single_post_with_wrong_digest_is_400(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let digest = Digest::sha256(b"something else");
    let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
    registry.send("POST", &path, &[], "at once").await?.expect_error(400, "DIGEST_INVALID")?;
    absent(&registry, &repository, &digest).await?;
    let path = format!("/v2/{repository}/blobs/uploads/?digest=rubbish");
    registry.send("POST", &path, &[], "at once").await?.expect_error(400, "DIGEST_INVALID")?;
    Ok(())
}

/// "POST then PUT": nothing is kept of a blob with another digest, under either of them.
pub(super) async fn spec_push_blob_put_with_wrong_digest_is_400(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let location = registry.begin(&repository).await?;
    let digest = Digest::sha256(b"something else");
    let path = with_query(&location, &format!("digest={digest}"));
    registry.send("PUT", &path, &[], "content").await?.expect_error(400, "DIGEST_INVALID")?;
    absent(&registry, &repository, &digest).await?;
    absent(&registry, &repository, &Digest::sha256(b"content")).await
}

/// "The closing PUT request MUST include the digest of the whole blob".
pub(super) async fn spec_push_blob_put_without_digest_is_400(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let location = registry.begin(&repository).await?;
    registry.send("PUT", &location, &[], "content").await?.expect_error(400, "DIGEST_INVALID")?;
    Ok(())
}

/// docker escapes the colon of a digest parameter, containerd does not escape the slash of a mount's `from`.
pub(super) async fn spec_push_blob_percent_encoded_digest(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let location = registry.begin(&repository).await?;
    let digest = Digest::sha256(b"escaped").to_string().replace(':', "%3A");
    let path = with_query(&location, &format!("digest={digest}"));
    registry.send("PUT", &path, &[], "escaped").await?.expect_status(201)?;
    registry.get(&format!("/v2/{repository}/blobs/{digest}")).await?.expect_status(200)?;
    Ok(())
}

/// A blob without bytes is one.
pub(super) async fn spec_push_blob_empty(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let digest = registry.push_blob(&repository, b"").await?;
    let path = format!("/v2/{repository}/blobs/{digest}");
    let reply = registry.get(&path).await?.expect_status(200)?;
    check!(reply.body.is_empty() && reply.header("content-length") == "0", "{reply:?}");
    // There are clients that put a range on every request.
    registry.send("GET", &path, &[("range", "bytes=0-")], "").await?.expect_status(200)?;
    Ok(())
}

/// "Error Codes": BLOB_UPLOAD_UNKNOWN.
pub(super) async fn spec_push_blob_unknown_session_is_404(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let digest = Digest::sha256(b"x");
    let path = format!("/v2/{repository}/blobs/uploads/00000000-1111-4222-8333-444444444444");
    for (method, path) in [
        ("GET", path.clone()),
        ("PATCH", path.clone()),
        ("DELETE", path.clone()),
        ("PUT", format!("{path}?digest={digest}")),
        ("GET", format!("/v2/{repository}/blobs/uploads/not*an*id")),
    ] {
        registry.send(method, &path, &[], "x").await?.expect_error(404, "BLOB_UPLOAD_UNKNOWN")?;
    }
    Ok(())
}

/// A session is of the repository it was begun in.
pub(super) async fn spec_push_blob_sessions_belong_to_their_repository(registry: Registry) -> Outcome {
    let (repository, other) = (registry.fresh_repository(), registry.fresh_repository());
    let location = registry.begin(&repository).await?;
    let stolen = location.replace(&repository, &other);
    registry.send("PATCH", &stolen, &[], "x").await?.expect_error(404, "BLOB_UPLOAD_UNKNOWN")?;
    registry.get(&location).await?.expect_status(204)?;
    Ok(())
}

/// "Mounting a blob from another repository": 201 with a pullable Location.
pub(super) async fn spec_mount_blob_is_201(registry: Registry) -> Outcome {
    let (source, target) = (registry.fresh_repository(), registry.fresh_repository());
    let digest = registry.push_blob(&source, source.as_bytes()).await?;
    let path = format!("/v2/{target}/blobs/uploads/?mount={digest}&from={source}");
    let reply = registry.send("POST", &path, &[], "").await?.expect_status(201)?;
    check!(reply.header("docker-content-digest") == digest.to_string(), "{reply:?}");
    check!(reply.header("location").contains(&target), "{reply:?}");
    let pulled = registry.get(reply.header("location")).await?.expect_status(200)?;
    check!(pulled.body == source, "{pulled:?}");
    Ok(())
}

/// "… is unable to mount the requested blob, it SHOULD return a 202": and the upload works.
pub(super) async fn spec_mount_blob_unknown_falls_back_to_202(registry: Registry) -> Outcome {
    let (source, target) = (registry.fresh_repository(), registry.fresh_repository());
    registry.push_blob(&source, b"another").await?;
    let content = target.clone();
    let digest = Digest::sha256(content.as_bytes());
    let path = format!("/v2/{target}/blobs/uploads/?mount={digest}&from={source}");
    let reply = registry.send("POST", &path, &[], "").await?.expect_status(202)?;
    let path = with_query(reply.header("location"), &format!("digest={digest}"));
    registry.send("PUT", &path, &[], content).await?.expect_status(201)?;
    Ok(())
}

/// The same for arguments that are none.
pub(super) async fn spec_mount_blob_malformed_falls_back_to_202(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let digest = registry.push_blob(&repository, repository.as_bytes()).await?;
    for query in [format!("mount=rubbish&from={repository}"), format!("mount={digest}&from=NOT//A//NAME")] {
        let path = format!("/v2/{repository}/blobs/uploads/?{query}");
        let reply = registry.send("POST", &path, &[], "").await?.expect_status(202)?;
        check!(!reply.header("location").is_empty(), "{reply:?}");
    }
    Ok(())
}

/// "The registry MAY treat the from parameter as optional": either mounted, or an upload begins.
pub(super) async fn spec_mount_blob_from_is_optional(registry: Registry) -> Outcome {
    let (source, target) = (registry.fresh_repository(), registry.fresh_repository());
    let digest = registry.push_blob(&source, source.as_bytes()).await?;
    let path = format!("/v2/{target}/blobs/uploads/?mount={digest}");
    let reply = registry.send("POST", &path, &[], "").await?;
    check!(reply.status == 201 || reply.status == 202, "{reply:?}");
    let blob = registry.get(&format!("/v2/{target}/blobs/{digest}")).await?;
    check!((reply.status == 201) == (blob.status == 200), "{} and then {}", reply.status, blob.status);
    Ok(())
}
