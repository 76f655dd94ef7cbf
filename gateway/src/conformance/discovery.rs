//! "Listing Tags" (end-8a, end-8b), "Listing Referrers" (end-12a, end-12b), and docker's catalog.

use serde_json::{Value, json};
use shoal_types::Digest;

use super::client::{OCI_INDEX, OCI_MANIFEST, Reply, descriptor};
use super::{Outcome, Registry, check};

/// A repository with tags, pushed out of order, of both cases.
async fn tagged(registry: &Registry) -> Result<String, String> {
    let repository = registry.fresh_repository();
    let manifest = registry.image(&repository, "tagged").await?.to_string();
    for tag in ["c", "A", "b", "D", "_e"] {
        registry.put_manifest(&repository, tag, OCI_MANIFEST, manifest.clone()).await?.expect_status(201)?;
    }
    Ok(repository)
}

async fn tags(registry: &Registry, repository: &str, query: &str) -> Result<(Value, Reply), String> {
    let reply = registry.get(&format!("/v2/{repository}/tags/list{query}")).await?.expect_status(200)?;
    check!(reply.json()["name"] == *repository, "{reply:?}");
    Ok((reply.json()["tags"].clone(), reply))
}

/// The next page's address, empty when there is none.
fn next(reply: &Reply) -> Result<String, String> {
    let link = reply.header("link");
    if link.is_empty() {
        return Ok(String::new());
    }
    let target = link.strip_prefix('<').and_then(|rest| rest.strip_suffix(">; rel=\"next\""));
    target.map(str::to_owned).ok_or_else(|| format!("not a Link: {link}"))
}

/// "the tags MUST be in lexical order (i.e. case-insensitive alphanumeric order)".
pub(super) async fn spec_list_tags_in_lexical_order(registry: Registry) -> Outcome {
    let repository = tagged(&registry).await?;
    let (tags, reply) = tags(&registry, &repository, "").await?;
    check!(tags == json!(["_e", "A", "b", "c", "D"]), "{tags}");
    check!(reply.header("content-type") == "application/json", "{reply:?}");
    Ok(())
}

/// "Otherwise, the response MUST include <int> results."
pub(super) async fn spec_list_tags_limited_by_n(registry: Registry) -> Outcome {
    let repository = tagged(&registry).await?;
    let (first, _) = tags(&registry, &repository, "?n=2").await?;
    check!(first == json!(["_e", "A"]), "{first}");
    let (all, reply) = tags(&registry, &repository, "?n=5").await?;
    check!(all.as_array().map(Vec::len) == Some(5) && reply.header("link").is_empty(), "{reply:?}");
    Ok(())
}

/// "When n is zero, this endpoint MUST return an empty list, and MUST NOT include a Link header."
pub(super) async fn spec_list_tags_n_zero_is_empty_without_link(registry: Registry) -> Outcome {
    let repository = tagged(&registry).await?;
    let (none, reply) = tags(&registry, &repository, "?n=0").await?;
    check!(none == json!([]) && reply.header("link").is_empty(), "{reply:?}");
    Ok(())
}

/// "beginning non-inclusively with <tagname>"; "the n parameter is OPTIONAL". The tag need not exist.
pub(super) async fn spec_list_tags_after_last(registry: Registry) -> Outcome {
    let repository = tagged(&registry).await?;
    for (query, wanted) in [
        ("?last=b", json!(["c", "D"])),
        ("?n=1&last=b", json!(["c"])),
        ("?last=bb", json!(["c", "D"])),
        ("?last=D", json!([])),
    ] {
        let (found, _) = tags(&registry, &repository, query).await?;
        check!(found == wanted, "{query}: {found}");
    }
    Ok(())
}

/// RFC 5988 links with the relation type `next`.
pub(super) async fn spec_list_tags_link_leads_through_all(registry: Registry) -> Outcome {
    let repository = tagged(&registry).await?;
    let mut path = format!("/v2/{repository}/tags/list?n=2");
    let mut found = Vec::new();
    while !path.is_empty() {
        let reply = registry.get(&path).await?.expect_status(200)?;
        let page = reply.json()["tags"].as_array().cloned().unwrap_or_default();
        check!(!page.is_empty() && page.len() <= 2, "{reply:?}");
        found.extend(page);
        path = next(&reply)?;
    }
    check!(json!(found) == json!(["_e", "A", "b", "c", "D"]), "{found:?}");
    Ok(())
}

/// end-8a: 404.
pub(super) async fn spec_list_tags_of_unknown_repository_is_404(registry: Registry) -> Outcome {
    for query in ["", "?n=0"] {
        let path = format!("/v2/{}/tags/list{query}", registry.fresh_repository());
        registry.get(&path).await?.expect_error(404, "NAME_UNKNOWN")?;
    }
    Ok(())
}

/// "The list of tags MAY be empty if there are no tags on the repository."
pub(super) async fn spec_list_tags_of_repository_without_tags(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let manifest = registry.push_image(&repository, "v1").await?;
    registry.send("DELETE", &format!("/v2/{repository}/manifests/v1"), &[], "").await?.expect_status(202)?;
    let (none, _) = tags(&registry, &repository, "").await?;
    check!(none == json!([]), "{none} of {manifest}");
    Ok(())
}

/// "<tagname> MUST NOT be a numerical index, but … a proper tag"; n is a number.
pub(super) async fn spec_list_tags_malformed_parameters_are_400(registry: Registry) -> Outcome {
    let repository = tagged(&registry).await?;
    for query in ["?n=x", "?n=-1", "?last=.x"] {
        registry
            .get(&format!("/v2/{repository}/tags/list{query}"))
            .await?
            .expect_error(400, "UNSUPPORTED")?;
    }
    Ok(())
}

/// `_catalog` is docker's: all repositories, in order, in pages.
pub(super) async fn spec_catalog_lists_repositories_in_pages(registry: Registry) -> Outcome {
    let mut wanted = Vec::new();
    for _ in 0..3 {
        let repository = registry.fresh_repository();
        registry.push_image(&repository, "v1").await?;
        wanted.push(repository);
    }
    let mut path = "/v2/_catalog?n=2".to_owned();
    let mut found = Vec::new();
    while !path.is_empty() {
        let reply = registry.get(&path).await?.expect_status(200)?;
        let page = reply.json()["repositories"].as_array().cloned().unwrap_or_default();
        check!(page.len() <= 2, "{reply:?}");
        found.extend(page.into_iter().filter_map(|name| name.as_str().map(str::to_owned)));
        path = next(&reply)?;
    }
    check!(found.is_sorted(), "{found:?}");
    check!(wanted.iter().all(|name| found.contains(name)), "{wanted:?} not in {found:?}");
    let none = registry.get("/v2/_catalog?n=0").await?.expect_status(200)?;
    check!(none.json()["repositories"] == json!([]) && none.header("link").is_empty(), "{none:?}");
    Ok(())
}

async fn referrers(
    registry: &Registry,
    repository: &str,
    subject: &Value,
    query: &str,
) -> Result<Reply, String> {
    let digest = subject["digest"].as_str().unwrap_or_default();
    let reply =
        registry.get(&format!("/v2/{repository}/referrers/{digest}{query}")).await?.expect_status(200)?;
    check!(reply.header("content-type") == OCI_INDEX, "{reply:?}");
    let index = reply.json();
    check!(index["schemaVersion"] == 2 && index["mediaType"] == OCI_INDEX, "{index}");
    Ok(reply)
}

/// Pushes an image that refers to `subject`, changed by `change`; returns its descriptor.
async fn refer(
    registry: &Registry,
    repository: &str,
    subject: &Value,
    seed: &str,
    change: impl FnOnce(&mut Value),
) -> Result<Value, String> {
    let mut manifest = registry.image(repository, seed).await?;
    manifest["subject"] = subject.clone();
    change(&mut manifest);
    let manifest = manifest.to_string();
    let digest = Digest::sha256(manifest.as_bytes()).to_string();
    registry.put_manifest(repository, &digest, OCI_MANIFEST, manifest.clone()).await?.expect_status(201)?;
    Ok(descriptor(OCI_MANIFEST, manifest.as_bytes()))
}

/// "If a query results in no matching referrers, an empty manifest list MUST be returned"; never a 404.
pub(super) async fn spec_referrers_of_unknown_subject_is_empty_index(registry: Registry) -> Outcome {
    let known = registry.fresh_repository();
    registry.push_image(&known, "v1").await?;
    for repository in [known, registry.fresh_repository()] {
        let reply = referrers(&registry, &repository, &descriptor(OCI_MANIFEST, b"nothing"), "").await?;
        check!(reply.json()["manifests"] == json!([]), "{reply:?}");
    }
    Ok(())
}

/// "If the request is invalid, such as a <digest> with an invalid syntax, a 400 Bad Request MUST be returned."
pub(super) async fn spec_referrers_malformed_digest_is_400(registry: Registry) -> Outcome {
    let path = format!("/v2/{}/referrers/sha256:12", registry.fresh_repository());
    registry.get(&path).await?.expect_error(400, "DIGEST_INVALID")?;
    Ok(())
}

/// "Each descriptor is of an image manifest or index … with a subject field that specifies the value of <digest>", with
/// `artifactType` and annotations.
pub(super) async fn spec_referrers_lists_manifests_with_subject(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let subject = descriptor(OCI_MANIFEST, registry.push_image(&repository, "v1").await?.as_bytes());
    let other = descriptor(OCI_MANIFEST, b"other");
    refer(&registry, &repository, &other, "stranger", |_| {}).await?;
    let mut wanted = refer(&registry, &repository, &subject, "sbom", |manifest| {
        manifest["artifactType"] = json!("application/vnd.example.sbom.v1");
        manifest["annotations"] = json!({"org.example.format": "json"});
    })
    .await?;
    wanted["artifactType"] = json!("application/vnd.example.sbom.v1");
    wanted["annotations"] = json!({"org.example.format": "json"});
    let reply = referrers(&registry, &repository, &subject, "").await?;
    check!(reply.json()["manifests"] == json!([wanted]), "{reply:?}");
    check!(reply.header("oci-filters-applied").is_empty(), "{reply:?}");
    Ok(())
}

/// "If the artifactType is empty or missing in the image manifest, the value of artifactType MUST be set to the config
/// descriptor mediaType value."
pub(super) async fn spec_referrers_artifact_type_falls_back_to_config(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let subject = descriptor(OCI_MANIFEST, repository.as_bytes());
    refer(&registry, &repository, &subject, "missing", |_| {}).await?;
    refer(&registry, &repository, &subject, "empty", |manifest| manifest["artifactType"] = json!("")).await?;
    let reply = referrers(&registry, &repository, &subject, "").await?;
    let found = reply.json()["manifests"].as_array().cloned().unwrap_or_default();
    let all = found.iter().all(|found| found["artifactType"] == "application/vnd.oci.image.config.v1+json");
    check!(found.len() == 2 && all, "{found:?}");
    Ok(())
}

/// "If the artifactType is empty or missing in an index, the artifactType MUST be omitted."
pub(super) async fn spec_referrers_index_without_artifact_type(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let subject = descriptor(OCI_MANIFEST, repository.as_bytes());
    let index =
        json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "subject": subject}).to_string();
    let reply =
        registry.put_manifest(&repository, "index", OCI_INDEX, index.clone()).await?.expect_status(201)?;
    check!(Some(reply.header("oci-subject")) == subject["digest"].as_str(), "{reply:?}");
    let reply = referrers(&registry, &repository, &subject, "").await?;
    check!(reply.json()["manifests"] == json!([descriptor(OCI_INDEX, index.as_bytes())]), "{reply:?}");
    Ok(())
}

/// "If filtering is requested and applied, the response MUST include a header OCI-Filters-Applied: artifactType".
pub(super) async fn spec_referrers_filtered_by_artifact_type(registry: Registry) -> Outcome {
    let repository = registry.fresh_repository();
    let subject = descriptor(OCI_MANIFEST, repository.as_bytes());
    for kind in ["application/vnd.example.sbom+json", "application/vnd.example.signature"] {
        refer(&registry, &repository, &subject, kind, |manifest| manifest["artifactType"] = json!(kind))
            .await?;
    }
    // Media types have a plus, which clients do or do not escape.
    for (kind, count) in [
        ("application/vnd.example.sbom+json", 1),
        ("application%2Fvnd.example.sbom%2Bjson", 1),
        ("application/none", 0),
    ] {
        let reply = referrers(&registry, &repository, &subject, &format!("?artifactType={kind}")).await?;
        let found = reply.json()["manifests"].as_array().map(Vec::len);
        check!(found == Some(count), "{kind}: {reply:?}");
        check!(reply.header("oci-filters-applied") == "artifactType", "{kind}: {reply:?}");
    }
    Ok(())
}
