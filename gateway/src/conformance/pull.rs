//! "Pull", "Determining Support" and "Error Codes".

use shoal_types::{Algorithm, Digest, DigestHasher};

use super::client::{OCI_MANIFEST, with_query};
use super::{Outcome, Registry, check};

/// "Determining Support": `GET /v2/` is 200. The header is docker's.
pub(super) async fn spec_determining_support_base_is_200(registry: Registry) -> Outcome {
    let reply = registry.get("/v2/").await?.expect_status(200)?;
    check!(reply.header("docker-distribution-api-version") == "registry/2.0", "{:?}", reply.headers);
    Ok(())
}

/// "Pulling manifests": 200, the expected manifest, its digest.
pub(super) async fn spec_pull_manifest_by_tag(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let manifest = registry.push_image(&repository, "v1").await?;
    let reply = registry.get(&format!("/v2/{repository}/manifests/v1")).await?.expect_status(200)?;
    check!(reply.body == manifest, "{:?}", reply.body);
    check!(
        reply.header("docker-content-digest") == Digest::sha256(manifest.as_bytes()).to_string(),
        "{reply:?}"
    );
    Ok(())
}

/// "Pulling manifests": the same by digest.
pub(super) async fn spec_pull_manifest_by_digest(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let manifest = registry.push_image(&repository, "v1").await?;
    let digest = Digest::sha256(manifest.as_bytes());
    let reply = registry.get(&format!("/v2/{repository}/manifests/{digest}")).await?.expect_status(200)?;
    check!(reply.body == manifest, "{:?}", reply.body);
    check!(reply.header("docker-content-digest") == digest.to_string(), "{reply:?}");
    Ok(())
}

/// "Pulling manifests": Content-Type "SHOULD match what the client pushed", without parameters, whatever Accept says.
pub(super) async fn spec_pull_manifest_content_type_is_what_was_pushed(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    registry.push_image(&repository, "v1").await?;
    for accept in [OCI_MANIFEST, "application/vnd.docker.distribution.manifest.v2+json", "*/*"] {
        let path = format!("/v2/{repository}/manifests/v1");
        let reply = registry.send("GET", &path, &[("accept", accept)], "").await?.expect_status(200)?;
        check!(reply.header("content-type") == OCI_MANIFEST, "{reply:?}");
    }
    Ok(())
}

/// "Pulling manifests": "If the manifest is not found in the repository, the response code MUST be 404".
pub(super) async fn spec_pull_manifest_unknown_is_404(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    registry.push_image(&repository, "v1").await?;
    for reference in ["v2", ".not-a-tag", &Digest::sha256(b"nothing").to_string()] {
        let reply = registry.get(&format!("/v2/{repository}/manifests/{reference}")).await?;
        reply.expect_error(404, "MANIFEST_UNKNOWN")?;
    }
    Ok(())
}

/// "Pushing Manifests": "An attempt to pull a nonexistent repository MUST return response code 404".
pub(super) async fn spec_pull_manifest_of_unknown_repository_is_404(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let reply = registry.get(&format!("/v2/{repository}/manifests/v1")).await?.expect_status(404)?;
    let code = reply.json()["errors"][0]["code"].clone();
    check!(code == "NAME_UNKNOWN" || code == "MANIFEST_UNKNOWN", "{code}");
    Ok(())
}

/// containerd puts `bytes=0-` on manifests.
pub(super) async fn spec_pull_manifest_serves_ranges(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let manifest = registry.push_image(&repository, "v1").await?;
    let path = format!("/v2/{repository}/manifests/v1");
    let reply = registry.send("GET", &path, &[("range", "bytes=0-")], "").await?.expect_status(206)?;
    check!(reply.body == manifest, "{:?}", reply.body);
    let reply = registry.send("GET", &path, &[("range", "bytes=1-3")], "").await?.expect_status(206)?;
    check!(reply.body == manifest[1..4], "{:?}", reply.body);
    check!(reply.header("content-range") == format!("bytes 1-3/{}", manifest.len()), "{reply:?}");
    Ok(())
}

/// RFC 9110, 13.1.2.
pub(super) async fn spec_pull_manifest_answers_if_none_match(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    registry.push_image(&repository, "v1").await?;
    let path = format!("/v2/{repository}/manifests/v1");
    let etag = registry.get(&path).await?.header("etag").to_owned();
    let reply = registry.send("GET", &path, &[("if-none-match", &etag)], "").await?.expect_status(304)?;
    check!(reply.body.is_empty() && reply.header("etag") == etag, "{reply:?}");
    registry.send("GET", &path, &[("if-none-match", "\"other\"")], "").await?.expect_status(200)?;
    Ok(())
}

/// "Pulling blobs": 200, the expected blob, a digest that matches the body.
pub(super) async fn spec_pull_blob_serves_the_bytes(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let content: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    let digest = registry.push_blob(&repository, &content).await?;
    let path = format!("/v2/{repository}/blobs/{digest}");
    // Never recoded, whatever the client would take.
    let reply = registry.send("GET", &path, &[("accept-encoding", "gzip")], "").await?.expect_status(200)?;
    check!(reply.body == content, "{} bytes", reply.body.len());
    check!(reply.header("docker-content-digest") == digest.to_string(), "{:?}", reply.headers);
    check!(reply.header("content-length") == content.len().to_string(), "{:?}", reply.headers);
    check!(reply.header("content-encoding").is_empty(), "{:?}", reply.headers);
    Ok(())
}

/// "Pulling blobs": "If the blob is not found in the repository, the response code MUST be 404".
pub(super) async fn spec_pull_blob_unknown_is_404(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    registry.push_blob(&repository, b"known here").await?;
    let digest = Digest::sha256(b"known nowhere");
    let reply = registry.get(&format!("/v2/{repository}/blobs/{digest}")).await?;
    reply.expect_error(404, "BLOB_UNKNOWN")?;
    Ok(())
}

/// "Content digests": other registered algorithms.
pub(super) async fn spec_pull_blob_by_sha512(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let mut hasher = DigestHasher::new(Algorithm::Sha512);
    hasher.update(b"long digest");
    let digest = hasher.finish();
    let location = with_query(&registry.begin(&repository).await?, &format!("digest={digest}"));
    registry.send("PUT", &location, &[], "long digest").await?.expect_status(201)?;
    let reply = registry.get(&format!("/v2/{repository}/blobs/{digest}")).await?.expect_status(200)?;
    check!(reply.body == "long digest", "{reply:?}");
    Ok(())
}

/// "Pulling blobs": "A registry SHOULD support the Range request header in accordance with RFC 9110".
pub(super) async fn spec_pull_blob_serves_single_ranges(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let digest = registry.push_blob(&repository, b"0123456789").await?;
    let path = format!("/v2/{repository}/blobs/{digest}");
    for (range, body, content_range) in [
        ("bytes=0-", "0123456789", "bytes 0-9/10"),
        ("bytes=4-", "456789", "bytes 4-9/10"),
        ("bytes=2-4", "234", "bytes 2-4/10"),
        ("bytes=8-99", "89", "bytes 8-9/10"),
        ("bytes=-3", "789", "bytes 7-9/10"),
        ("bytes=-99", "0123456789", "bytes 0-9/10"),
    ] {
        let reply = registry.send("GET", &path, &[("range", range)], "").await?.expect_status(206)?;
        check!(reply.body == body, "{range}: {reply:?}");
        check!(reply.header("content-range") == content_range, "{range}: {reply:?}");
        check!(reply.header("content-length") == body.len().to_string(), "{range}: {reply:?}");
    }
    // What is not understood is ignored (RFC 9110, 14.2), and HEAD has no ranges.
    registry.send("GET", &path, &[("range", "bytes=x-")], "").await?.expect_status(200)?;
    registry.send("HEAD", &path, &[("range", "bytes=1-2")], "").await?.expect_status(200)?;
    Ok(())
}

/// RFC 9110, 14.6: `multipart/byteranges`.
pub(super) async fn spec_pull_blob_serves_several_ranges(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let digest = registry.push_blob(&repository, b"0123456789").await?;
    let path = format!("/v2/{repository}/blobs/{digest}");
    let reply =
        registry.send("GET", &path, &[("range", "bytes=0-1, 4-5,-2")], "").await?.expect_status(206)?;
    let content_type = reply.header("content-type");
    let Some(boundary) = content_type.strip_prefix("multipart/byteranges; boundary=") else {
        return Err(format!("no boundary: {content_type}"));
    };
    let part = |range: &str, body: &str| {
        format!(
            "\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {range}/10\r\n\r\n{body}"
        )
    };
    let wanted =
        format!("{}{}{}\r\n--{boundary}--\r\n", part("0-1", "01"), part("4-5", "45"), part("8-9", "89"));
    check!(reply.body == wanted, "{:?}", reply.body);
    check!(reply.header("content-length") == wanted.len().to_string(), "{:?}", reply.headers);
    Ok(())
}

/// RFC 9110, 15.5.17.
pub(super) async fn spec_pull_blob_unsatisfiable_range_is_416(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let digest = registry.push_blob(&repository, b"0123456789").await?;
    let path = format!("/v2/{repository}/blobs/{digest}");
    let flood = format!("bytes={}", (0..500).map(|_| "0-0").collect::<Vec<_>>().join(","));
    for range in ["bytes=10-", "bytes=99-100", "bytes=-0", &flood] {
        let reply = registry.send("GET", &path, &[("range", range)], "").await?.expect_status(416)?;
        check!(reply.header("content-range") == "bytes */10", "{range:.20}: {reply:?}");
    }
    Ok(())
}

/// RFC 9110, 13.1.2.
pub(super) async fn spec_pull_blob_answers_if_none_match(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let digest = registry.push_blob(&repository, b"cached").await?;
    let path = format!("/v2/{repository}/blobs/{digest}");
    let etag = registry.get(&path).await?.header("etag").to_owned();
    let weak = format!("\"x\", W/{etag}");
    for (method, value) in [("GET", etag.as_str()), ("HEAD", &etag), ("GET", &weak), ("GET", "*")] {
        let reply =
            registry.send(method, &path, &[("if-none-match", value)], "").await?.expect_status(304)?;
        check!(reply.body.is_empty(), "{reply:?}");
    }
    registry.send("GET", &path, &[("if-none-match", "\"x\"")], "").await?.expect_status(200)?;
    Ok(())
}

/// RFC 9110, 13.1.5.
pub(super) async fn spec_pull_blob_if_range_with_another_validator_is_whole(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let digest = registry.push_blob(&repository, b"0123456789").await?;
    let path = format!("/v2/{repository}/blobs/{digest}");
    let etag = registry.get(&path).await?.header("etag").to_owned();
    let headers = [("range", "bytes=1-"), ("if-range", &etag)];
    registry.send("GET", &path, &headers, "").await?.expect_status(206)?;
    let headers = [("range", "bytes=1-"), ("if-range", "\"other\"")];
    registry.send("GET", &path, &headers, "").await?.expect_status(200)?;
    Ok(())
}

/// "Checking if content exists in the registry".
pub(super) async fn spec_check_blob_head_is_200_with_length_and_digest(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let digest = registry.push_blob(&repository, b"seven b").await?;
    let reply = registry
        .send("HEAD", &format!("/v2/{repository}/blobs/{digest}"), &[], "")
        .await?
        .expect_status(200)?;
    check!(reply.header("content-length") == "7" && reply.body.is_empty(), "{reply:?}");
    check!(reply.header("docker-content-digest") == digest.to_string(), "{reply:?}");
    Ok(())
}

/// "Checking if content exists in the registry": docker and containerd need all three headers.
pub(super) async fn spec_check_manifest_head_is_200_with_length_and_digest(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let manifest = registry.push_image(&repository, "v1").await?;
    let digest = Digest::sha256(manifest.as_bytes()).to_string();
    for reference in ["v1", &digest] {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let reply = registry.send("HEAD", &path, &[], "").await?.expect_status(200)?;
        check!(reply.header("content-length") == manifest.len().to_string(), "{reply:?}");
        check!(reply.header("docker-content-digest") == digest, "{reply:?}");
        check!(reply.header("content-type") == OCI_MANIFEST && reply.body.is_empty(), "{reply:?}");
    }
    Ok(())
}

/// "Checking if content exists in the registry": "If … not found …, the response code MUST be 404".
pub(super) async fn spec_check_unknown_head_is_404(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let digest = Digest::sha256(b"nothing");
    for path in [format!("blobs/{digest}"), format!("manifests/{digest}"), "manifests/v1".to_owned()] {
        let reply =
            registry.send("HEAD", &format!("/v2/{repository}/{path}"), &[], "").await?.expect_status(404)?;
        check!(reply.body.is_empty(), "{path}: {reply:?}");
    }
    Ok(())
}

/// "Error Codes": `errors`, each with a code, a message and a detail.
pub(super) async fn spec_errors_have_the_specified_body(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let reply =
        registry.get(&format!("/v2/{repository}/tags/list")).await?.expect_error(404, "NAME_UNKNOWN")?;
    let error = reply.json()["errors"][0].clone();
    check!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
    // Docker prints no more than the code's words when there is no detail.
    check!(!error["detail"].is_null(), "{error}");
    Ok(())
}

/// "Error Codes": NAME_INVALID.
pub(super) async fn spec_errors_name_invalid(registry: Registry) -> Outcome {
    let long = "a".repeat(256);
    for name in ["Upper", "a//b", "-a", "a..b", "a___b", &long] {
        registry.get(&format!("/v2/{name}/tags/list")).await?.expect_error(400, "NAME_INVALID")?;
        let path = format!("/v2/{name}/blobs/uploads/");
        registry.send("POST", &path, &[], "").await?.expect_error(400, "NAME_INVALID")?;
    }
    Ok(())
}

/// "Error Codes": DIGEST_INVALID.
pub(super) async fn spec_errors_digest_invalid(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    for digest in ["sha256:12", "sha256:xyz", "md5:d41d8cd98f00b204e9800998ecf8427e", "nothing"] {
        registry
            .get(&format!("/v2/{repository}/blobs/{digest}"))
            .await?
            .expect_error(400, "DIGEST_INVALID")?;
    }
    Ok(())
}

/// RFC 9110, 15.5.6: 405 says what is allowed.
pub(super) async fn spec_errors_method_not_allowed(registry: Registry) -> Outcome {
    let reply = registry.send("POST", "/v2/", &[], "").await?.expect_error(405, "UNSUPPORTED")?;
    check!(reply.header("allow") == "GET, HEAD", "{reply:?}");
    registry.get("/v2/no/such/endpoint").await?.expect_status(404)?;
    Ok(())
}
