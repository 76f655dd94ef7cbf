//! "Content Management" (end-9, end-10).

use serde_json::json;
use shoal_types::Digest;

use super::client::{OCI_MANIFEST, descriptor};
use super::{Outcome, Registry, check};

/// "Deleting tags": 202; "Once deleted, a GET … will return a 404". The manifest stays.
pub(super) async fn spec_delete_tag_is_202_then_404(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let manifest = registry.push_image(&repository, "v1").await?;
    registry.put_manifest(&repository, "v2", OCI_MANIFEST, manifest.clone()).await?.expect_status(201)?;
    let path = format!("/v2/{repository}/manifests/v1");
    registry.send("DELETE", &path, &[], "").await?.expect_status(202)?;
    registry.get(&path).await?.expect_error(404, "MANIFEST_UNKNOWN")?;
    registry.send("DELETE", &path, &[], "").await?.expect_error(404, "MANIFEST_UNKNOWN")?;
    let digest = Digest::sha256(manifest.as_bytes());
    for reference in [digest.to_string(), "v2".to_owned()] {
        registry.get(&format!("/v2/{repository}/manifests/{reference}")).await?.expect_status(200)?;
    }
    Ok(())
}

/// "Deleting Manifests": 202; "Once deleted, a GET to [it] and any tag pointing to that digest will return a 404."
pub(super) async fn spec_delete_manifest_takes_its_tags_along(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let manifest = registry.push_image(&repository, "v1").await?;
    registry.push_image(&repository, "other").await?;
    let digest = Digest::sha256(manifest.as_bytes()).to_string();
    registry
        .send("DELETE", &format!("/v2/{repository}/manifests/{digest}"), &[], "")
        .await?
        .expect_status(202)?;
    for reference in [digest.as_str(), "v1"] {
        registry.get(&format!("/v2/{repository}/manifests/{reference}")).await?.expect_status(404)?;
    }
    let tags = registry.get(&format!("/v2/{repository}/tags/list")).await?.expect_status(200)?;
    check!(tags.json()["tags"] == json!(["other"]), "{tags:?}");
    Ok(())
}

/// What is not there cannot be deleted.
pub(super) async fn spec_delete_unknown_manifest_is_404(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    registry.push_image(&repository, "v1").await?;
    for reference in ["v2", ".none", &Digest::sha256(b"nothing").to_string()] {
        let path = format!("/v2/{repository}/manifests/{reference}");
        registry.send("DELETE", &path, &[], "").await?.expect_error(404, "MANIFEST_UNKNOWN")?;
    }
    Ok(())
}

/// "If the repository does not exist, the response MUST return 404 Not Found."
pub(super) async fn spec_delete_in_unknown_repository_is_404(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let digest = Digest::sha256(b"nothing");
    for path in [format!("manifests/{digest}"), "manifests/v1".to_owned(), format!("blobs/{digest}")] {
        registry.send("DELETE", &format!("/v2/{repository}/{path}"), &[], "").await?.expect_status(404)?;
    }
    Ok(())
}

/// "Deleting Blobs": 202, then unknown; other repositories keep theirs.
pub(super) async fn spec_delete_blob_is_202_then_404(registry: Registry) -> Outcome {
    let (repository, other) = (registry.fresh_repository(), registry.fresh_repository());
    let digest = registry.push_blob(&repository, repository.as_bytes()).await?;
    registry.push_blob(&other, repository.as_bytes()).await?;
    let path = format!("/v2/{repository}/blobs/{digest}");
    registry.send("DELETE", &path, &[], "").await?.expect_status(202)?;
    registry.get(&path).await?.expect_error(404, "BLOB_UNKNOWN")?;
    registry.get(&format!("/v2/{other}/blobs/{digest}")).await?.expect_status(200)?;
    Ok(())
}

/// "If the blob is not found, a 404 Not Found code MUST be returned."
pub(super) async fn spec_delete_unknown_blob_is_404(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    registry.push_blob(&repository, b"known").await?;
    let path = format!("/v2/{repository}/blobs/{}", Digest::sha256(b"nothing"));
    registry.send("DELETE", &path, &[], "").await?.expect_error(404, "BLOB_UNKNOWN")?;
    Ok(())
}

/// A deleted referrer refers to nothing.
pub(super) async fn spec_delete_referrer_leaves_the_list(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let subject = descriptor(OCI_MANIFEST, repository.as_bytes());
    let mut manifest = registry.image(&repository, "referrer").await?;
    manifest["subject"] = subject.clone();
    let manifest = manifest.to_string();
    registry.put_manifest(&repository, "r", OCI_MANIFEST, manifest.clone()).await?.expect_status(201)?;
    let list = format!("/v2/{repository}/referrers/{}", subject["digest"].as_str().unwrap_or_default());
    let before = registry.get(&list).await?.expect_status(200)?;
    check!(before.json()["manifests"].as_array().map(Vec::len) == Some(1), "{before:?}");
    let digest = Digest::sha256(manifest.as_bytes());
    registry
        .send("DELETE", &format!("/v2/{repository}/manifests/{digest}"), &[], "")
        .await?
        .expect_status(202)?;
    let after = registry.get(&list).await?.expect_status(200)?;
    check!(after.json()["manifests"] == json!([]), "{after:?}");
    Ok(())
}
