//! "Pushing a blob in chunks" (end-5, end-6, end-13).

use shoal_types::Digest;

use super::client::with_query;
use super::{Outcome, Registry, check};

/// Chunks in order: each 202 with Location and Range, 201 at the end.
pub(super) async fn spec_push_chunks_in_order(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let mut location = registry.begin(&repository).await?;
    for (range, chunk) in [("0-3", "0123"), ("4-6", "456"), ("7-9", "789")] {
        let reply = registry.patch(&location, range, chunk.as_bytes()).await?.expect_status(202)?;
        let end = range.split('-').next_back().unwrap_or_default();
        check!(reply.header("range") == format!("0-{end}"), "{reply:?}");
        location = reply.header("location").to_owned();
    }
    let digest = Digest::sha256(b"0123456789");
    let path = with_query(&location, &format!("digest={digest}"));
    let reply = registry.send("PUT", &path, &[], "").await?.expect_status(201)?;
    let pulled = registry.get(reply.header("location")).await?.expect_status(200)?;
    check!(pulled.body == "0123456789", "{pulled:?}");
    Ok(())
}

/// "The first chunk's range MUST begin with 0."
pub(super) async fn spec_push_chunks_first_begins_with_zero(registry: Registry) -> Outcome {
    let location = registry.begin(&registry.fresh_repository()).await?;
    registry.patch(&location, "1-4", b"1234").await?.expect_status(416)?;
    Ok(())
}

/// "If a chunk is uploaded out of order, the registry MUST respond with a 416": too early, or again.
pub(super) async fn spec_push_chunks_out_of_order_is_416(registry: Registry) -> Outcome {
    let location = registry.begin(&registry.fresh_repository()).await?;
    registry.patch(&location, "0-3", b"0123").await?.expect_status(202)?;
    for range in ["7-9", "0-2", "3-5"] {
        let reply = registry.patch(&location, range, b"789").await?.expect_status(416)?;
        check!(reply.header("range") == "0-3", "{range}: {reply:?}");
        check!(!reply.header("location").is_empty(), "{range}: {reply:?}");
    }
    Ok(())
}

/// "To get the current status after a 416 error, issue a GET": 204 with Location and Range, and the upload goes on.
pub(super) async fn spec_push_chunks_status_after_416(registry: Registry) -> Outcome {
    let location = registry.begin(&registry.fresh_repository()).await?;
    registry.patch(&location, "0-3", b"0123").await?.expect_status(202)?;
    registry.patch(&location, "8-9", b"89").await?.expect_status(416)?;
    let status = registry.get(&location).await?.expect_status(204)?;
    check!(status.header("range") == "0-3", "{status:?}");
    registry.patch(status.header("location"), "4-5", b"45").await?.expect_status(202)?;
    let digest = Digest::sha256(b"012345");
    registry
        .send("PUT", &with_query(&location, &format!("digest={digest}")), &[], "")
        .await?
        .expect_status(201)?;
    Ok(())
}

/// "The final chunk … MAY be uploaded in the closing PUT request."
pub(super) async fn spec_push_chunks_last_one_in_put(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let location = registry.begin(&repository).await?;
    registry.patch(&location, "0-3", b"0123").await?.expect_status(202)?;
    let digest = Digest::sha256(b"01234567");
    let path = with_query(&location, &format!("digest={digest}"));
    let headers = [("content-range", "4-7")];
    let reply = registry.send("PUT", &path, &headers, "4567").await?.expect_status(201)?;
    let pulled = registry.get(reply.header("location")).await?.expect_status(200)?;
    check!(pulled.body == "01234567", "{pulled:?}");
    Ok(())
}

/// The order also holds for the closing PUT, and the upload survives.
pub(super) async fn spec_push_chunks_put_out_of_order_is_416(registry: Registry) -> Outcome {
    let location = registry.begin(&registry.fresh_repository()).await?;
    registry.patch(&location, "0-3", b"0123").await?.expect_status(202)?;
    let path = with_query(&location, &format!("digest={}", Digest::sha256(b"0123")));
    let reply = registry.send("PUT", &path, &[("content-range", "5-6")], "56").await?.expect_status(416)?;
    check!(reply.header("range") == "0-3", "{reply:?}");
    registry.send("PUT", &path, &[], "").await?.expect_status(201)?;
    Ok(())
}

/// docker sends its chunks without a Content-Range: they follow what is there.
pub(super) async fn spec_push_chunks_without_content_range(registry: Registry) -> Outcome {
    let location = registry.begin(&registry.fresh_repository()).await?;
    let reply = registry.send("PATCH", &location, &[], "0123").await?.expect_status(202)?;
    check!(reply.header("range") == "0-3", "{reply:?}");
    let reply = registry.send("PATCH", &location, &[], "45").await?.expect_status(202)?;
    check!(reply.header("range") == "0-5", "{reply:?}");
    let digest = Digest::sha256(b"012345");
    registry
        .send("PUT", &with_query(&location, &format!("digest={digest}")), &[], "")
        .await?
        .expect_status(201)?;
    Ok(())
}

/// "Error Codes": SIZE_INVALID.
pub(super) async fn spec_push_chunks_length_must_match_range(registry: Registry) -> Outcome {
    let location = registry.begin(&registry.fresh_repository()).await?;
    registry.patch(&location, "0-9", b"0123").await?.expect_error(400, "SIZE_INVALID")?;
    registry.patch(&location, "0-1", b"0123").await?.expect_error(400, "SIZE_INVALID")?;
    Ok(())
}

/// "It MUST match the following regular expression: ^[0-9]+-[0-9]+$".
pub(super) async fn spec_push_chunks_malformed_range_is_400(registry: Registry) -> Outcome {
    let location = registry.begin(&registry.fresh_repository()).await?;
    for range in ["bytes 0-3/4", "0-", "-3", "3-0", "x"] {
        registry.patch(&location, range, b"0123").await?.expect_error(400, "BLOB_UPLOAD_INVALID")?;
    }
    Ok(())
}

/// 204 also before the first byte; docker's registry calls that `0-0`.
pub(super) async fn spec_push_chunks_status_of_new_session(registry: Registry) -> Outcome {
    let location = registry.begin(&registry.fresh_repository()).await?;
    let status = registry.get(&location).await?.expect_status(204)?;
    check!(status.header("range") == "0-0" && !status.header("location").is_empty(), "{status:?}");
    Ok(())
}

/// A cancelled session is unknown.
pub(super) async fn spec_push_chunks_cancel(registry: Registry) -> Outcome {
    let location = registry.begin(&registry.fresh_repository()).await?;
    registry.patch(&location, "0-3", b"0123").await?.expect_status(202)?;
    registry.send("DELETE", &location, &[], "").await?.expect_status(204)?;
    registry.get(&location).await?.expect_error(404, "BLOB_UPLOAD_UNKNOWN")?;
    registry.patch(&location, "4-5", b"45").await?.expect_error(404, "BLOB_UPLOAD_UNKNOWN")?;
    Ok(())
}
