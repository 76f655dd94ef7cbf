//! What clients and other registries send as text.

use std::fmt::Display;
use std::str::FromStr;

use shoal_types::{Digest, Endpoint, ImageReference, PeerId, Reference, RepositoryName, TagName, Zone};

use crate::{choose, chosen, text_of};

/// What parses is printed as something that parses to the same.
fn again<T: FromStr + Display + PartialEq>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert!(value.to_string().parse::<T>().is_ok_and(|again| again == value), "{value}");
    }
}

pub(crate) fn references(data: &[u8]) {
    let Some(text) = text_of(data) else { return };
    again::<RepositoryName>(text);
    again::<TagName>(text);
    again::<Reference>(text);
    again::<ImageReference>(text);
    again::<Digest>(text);
    again::<PeerId>(text);
    again::<Zone>(text);
    again::<Endpoint>(text);
    let _ = text.parse::<shoal_store::UploadId>();
}

pub(crate) fn reference_seeds() -> Vec<Vec<u8>> {
    let hex = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    [
        "app",
        "team/app:1.0",
        &format!("team/app@sha256:{hex}"),
        &format!("sha256:{hex}"),
        "bafkreibm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa7u5bf44yegnrjhc4yeq",
        "12D3KooWQYV9dGMFoRzNStwpXztXaBUjtPqi6aU76ZgUriHhKust",
        "10.0.0.1:4002",
        "[::1]:4002",
        "a.example:4002",
        "eu-west",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

pub(crate) fn ranges(data: &[u8]) {
    let Some((size, header)) = data.split_first_chunk::<8>() else { return };
    let Some(header) = text_of(header) else { return };
    shoal_gateway::fuzzing::range(header, u64::from_be_bytes(*size));
    shoal_gateway::fuzzing::content_range(header);
}

pub(crate) fn range_seeds() -> Vec<Vec<u8>> {
    ["bytes=0-99", "bytes=5-", "bytes=-7", "bytes=0-1,3-4, 8-", "0-99", "bytes=0-18446744073709551615"]
        .map(|text| [&1000u64.to_be_bytes(), text.as_bytes()].concat())
        .to_vec()
}

/// Paths, queries and challenges.
pub(crate) fn requests(data: &[u8]) {
    let Some((choice, data)) = choose(data) else { return };
    let Some(text) = text_of(data) else { return };
    match choice % 2 {
        0 => shoal_gateway::fuzzing::target(text),
        _ => shoal_origin::fuzzing::challenge(text),
    }
}

pub(crate) fn request_seeds() -> Vec<Vec<u8>> {
    let hex = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let targets = [
        "/v2/".to_owned(),
        "/v2/_catalog?n=5&last=a%2Fb".to_owned(),
        "/v2/a/b/tags/list?n=2".to_owned(),
        "/v2/a/b/manifests/latest".to_owned(),
        format!("/v2/a/blobs/sha256:{hex}"),
        format!("/v2/a/blobs/uploads/?mount=sha256%3A{hex}&from=b/c"),
        "/v2/a/blobs/uploads/0123456789abcdef0123456789abcdef?digest=x".to_owned(),
        format!("/v2/a/referrers/sha256:{hex}?artifactType=a%2Fb"),
        "/auth/token?service=a&scope=repository:a:pull".to_owned(),
    ];
    let challenge =
        r#"Bearer realm="https://auth.example/token",service="reg, istry",scope="repository:a/b:pull,push""#;
    let mut seeds: Vec<Vec<u8>> = targets.iter().map(|target| chosen(0, target)).collect();
    seeds.push(chosen(1, challenge));
    seeds.push(chosen(1, "Basic realm=x"));
    seeds
}

pub(crate) fn manifest(data: &[u8]) {
    let Some((choice, data)) = choose(data) else { return };
    let types = [
        None,
        Some("application/vnd.oci.image.manifest.v1+json"),
        Some("application/vnd.oci.image.index.v1+json"),
        Some("application/vnd.docker.distribution.manifest.v2+json"),
        Some("application/vnd.docker.distribution.manifest.list.v2+json; charset=utf-8"),
    ];
    let content_type = types.get(usize::from(choice) % types.len()).copied().flatten();
    shoal_gateway::fuzzing::manifest(content_type, data);
}

pub(crate) fn manifest_seeds() -> Vec<Vec<u8>> {
    let hex = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let descriptor = |kind: &str| format!(r#"{{"mediaType":"{kind}","digest":"sha256:{hex}","size":5}}"#);
    let image = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[{}],"subject":{},"annotations":{{"a":"b"}}}}"#,
        descriptor("application/vnd.oci.image.config.v1+json"),
        descriptor("application/vnd.oci.image.layer.v1.tar+gzip"),
        descriptor("application/vnd.oci.image.manifest.v1+json"),
    );
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
        descriptor("application/vnd.oci.image.manifest.v1+json")
    );
    vec![
        chosen(1, &image),
        chosen(0, image),
        chosen(2, &index),
        chosen(4, index),
        chosen(0, "{\"schemaVersion\":1}"),
    ]
}
