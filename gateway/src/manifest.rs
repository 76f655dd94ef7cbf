//! Manifests: which are accepted, and what they refer to.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use shoal_types::{Digest, DigestParseError, RecordValue};

/// An OCI index, also of referrers.
pub(crate) const MEDIA_TYPE_OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MEDIA_TYPE_OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const MEDIA_TYPE_DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const MEDIA_TYPE_DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Schema 1, plain and signed.
const MEDIA_TYPES_SCHEMA_1: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];
/// Layers that may live elsewhere when they have URLs.
const MEDIA_TYPES_FOREIGN: [&str; 4] = [
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
];

/// Most blobs and manifests one manifest may refer to; each is looked up.
pub(crate) const REFERENCES_MAX: usize = 8192;
/// Most bytes of a referrer's annotations and artifact type: they are kept in its record, which has 64 KiB.
pub(crate) const REFERRER_BYTES_MAX: usize = 48 << 10;
/// Longest media type or artifact type in bytes: RFC 6838, 4.2, allows 127 on each side of the slash.
const MEDIA_TYPE_BYTES_MAX: usize = 255;

/// Why a manifest is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("not a manifest in JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error(
        "schema 1 manifests are not supported: push with a docker of 1.10 or newer, or convert the image"
    )]
    Schema1,
    #[error("schemaVersion must be 2")]
    SchemaVersion,
    #[error("unknown manifest media type {0:?}: push an OCI or docker schema 2 manifest, index or list")]
    MediaTypeUnknown(String),
    #[error("the Content-Type is {header:?} but the manifest's mediaType is {body:?}")]
    MediaTypeMismatch { header: String, body: String },
    #[error("the manifest has neither a mediaType nor a config nor manifests")]
    MediaTypeMissing,
    #[error("a manifest of type {0} cannot have {1}")]
    Mixed(&'static str, &'static str),
    #[error("an image manifest needs a config")]
    ConfigMissing,
    #[error("bad digest {text:?}: {source}")]
    Digest { text: String, source: DigestParseError },
    #[error("not a media type: {0:?}")]
    MediaType(String),
    #[error("a manifest may refer to {REFERENCES_MAX} blobs and manifests at most")]
    TooManyReferences,
    #[error("a referrer's annotations may have {REFERRER_BYTES_MAX} bytes at most")]
    AnnotationsTooLong,
}

/// What a manifest needs to be of use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Blob(Digest),
    Manifest(Digest),
}

impl Target {
    pub(crate) fn digest(&self) -> &Digest {
        match self {
            Self::Blob(digest) | Self::Manifest(digest) => digest,
        }
    }
}

/// A manifest that has been checked.
#[derive(Debug)]
pub(crate) struct Manifest {
    media_type: &'static str,
    pub(crate) references: Vec<Target>,
    pub(crate) subject: Option<Digest>,
    artifact_type: Option<String>,
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    fs_layers: Option<IgnoredAny>,
    subject: Option<Descriptor>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    #[serde(rename = "size")]
    _size: u64,
    urls: Option<Vec<String>>,
}

impl Descriptor {
    fn digest(&self) -> Result<Digest, ManifestError> {
        // A CID would name the same content, but no client reads one in a manifest.
        let parsed =
            if self.digest.contains(':') { self.digest.parse() } else { Err(DigestParseError::Malformed) };
        parsed.map_err(|source| ManifestError::Digest { text: clip(&self.digest), source })
    }

    fn is_elsewhere(&self) -> bool {
        MEDIA_TYPES_FOREIGN.contains(&self.media_type.as_str())
            && self.urls.as_ref().is_some_and(|urls| !urls.is_empty())
    }
}

impl Manifest {
    /// Checks a manifest against its `Content-Type`.
    pub(crate) fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        // "The registry SHOULD ignore parameters on the Content-Type header."
        let header = content_type.map(|text| text.split(';').next().unwrap_or_default().trim());
        let header = header.filter(|header| !header.is_empty());
        if header.is_some_and(|header| MEDIA_TYPES_SCHEMA_1.contains(&header)) {
            return Err(ManifestError::Schema1);
        }
        let raw: Raw = serde_json::from_slice(bytes)?;
        if raw.schema_version == Some(1) || raw.fs_layers.is_some() {
            return Err(ManifestError::Schema1);
        }
        if raw.schema_version != Some(2) {
            return Err(ManifestError::SchemaVersion);
        }
        let media_type = raw.resolve_media_type(header)?;
        let references = match media_type {
            MEDIA_TYPE_OCI_INDEX | MEDIA_TYPE_DOCKER_LIST => raw.index_references(media_type)?,
            _ => raw.image_references(media_type)?,
        };
        raw.finish(media_type, references)
    }

    /// What the manifest's record says.
    pub(crate) fn into_record(self, digest: Digest, size: u64) -> RecordValue {
        RecordValue {
            digest,
            media_type: self.media_type.to_owned(),
            size,
            subject: self.subject,
            artifact_type: self.artifact_type,
            annotations: self.annotations,
        }
    }
}

impl Raw {
    /// The type that header and body agree on, or that the shape gives away.
    fn resolve_media_type(&self, header: Option<&str>) -> Result<&'static str, ManifestError> {
        let body = self.media_type.as_deref().filter(|body| !body.is_empty());
        // What curl and careless clients send stands for "no type given".
        let header =
            header.filter(|header| !matches!(*header, "application/json" | "application/octet-stream"));
        match (header, body) {
            (Some(header), Some(body)) if header != body => {
                Err(ManifestError::MediaTypeMismatch { header: clip(header), body: clip(body) })
            }
            (Some(media_type), _) | (None, Some(media_type)) => known_media_type(media_type),
            (None, None) if self.manifests.is_some() => Ok(MEDIA_TYPE_OCI_INDEX),
            (None, None) if self.config.is_some() => Ok(MEDIA_TYPE_OCI_MANIFEST),
            (None, None) => Err(ManifestError::MediaTypeMissing),
        }
    }

    fn index_references(&self, media_type: &'static str) -> Result<Vec<Target>, ManifestError> {
        // Bytes that read as an index to one client and as an image to another are an attack (CVE-2021-41190).
        if self.config.is_some() || self.layers.is_some() {
            return Err(ManifestError::Mixed(media_type, "a config or layers"));
        }
        let children = self.manifests.iter().flatten();
        collect(children.map(|child| child.digest().map(Target::Manifest)))
    }

    fn image_references(&self, media_type: &'static str) -> Result<Vec<Target>, ManifestError> {
        if self.manifests.is_some() {
            return Err(ManifestError::Mixed(media_type, "manifests"));
        }
        let config = self.config.as_ref().ok_or(ManifestError::ConfigMissing)?;
        let layers = self.layers.iter().flatten().filter(|layer| !layer.is_elsewhere());
        collect(std::iter::once(config).chain(layers).map(|blob| blob.digest().map(Target::Blob)))
    }

    fn finish(self, media_type: &'static str, references: Vec<Target>) -> Result<Manifest, ManifestError> {
        let subject = self.subject.as_ref().map(Descriptor::digest).transpose()?;
        // "If the artifactType is empty or missing in the image manifest, the value of artifactType MUST be set to
        // the config descriptor mediaType value. If … in an index, the artifactType MUST be omitted."
        let config_type = self.config.map(|config| config.media_type);
        let artifact_type = self.artifact_type.filter(|own| !own.is_empty()).or(config_type);
        if let Some(bad) = artifact_type.as_deref().filter(|own| own.len() > MEDIA_TYPE_BYTES_MAX) {
            return Err(ManifestError::MediaType(clip(bad)));
        }
        // Only referrers lists repeat annotations.
        let annotations = self.annotations.filter(|_| subject.is_some()).unwrap_or_default();
        let bytes: usize = annotations.iter().map(|(key, text)| key.len() + text.len() + 10).sum();
        if bytes > REFERRER_BYTES_MAX {
            return Err(ManifestError::AnnotationsTooLong);
        }
        Ok(Manifest { media_type, references, subject, artifact_type, annotations })
    }
}

fn known_media_type(media_type: &str) -> Result<&'static str, ManifestError> {
    if MEDIA_TYPES_SCHEMA_1.contains(&media_type) {
        return Err(ManifestError::Schema1);
    }
    [MEDIA_TYPE_OCI_MANIFEST, MEDIA_TYPE_OCI_INDEX, MEDIA_TYPE_DOCKER_MANIFEST, MEDIA_TYPE_DOCKER_LIST]
        .into_iter()
        .find(|known| *known == media_type)
        .ok_or_else(|| ManifestError::MediaTypeUnknown(clip(media_type)))
}

/// The targets in order of appearance, each once, within the limit.
fn collect(
    targets: impl Iterator<Item = Result<Target, ManifestError>>,
) -> Result<Vec<Target>, ManifestError> {
    let mut seen = std::collections::BTreeSet::new();
    let mut own = Vec::new();
    for target in targets {
        let target = target?;
        if seen.insert(*target.digest()) {
            own.push(target);
        }
        if own.len() > REFERENCES_MAX {
            return Err(ManifestError::TooManyReferences);
        }
    }
    Ok(own)
}

/// What an error repeats of a bad text.
fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn descriptor(content: &str) -> Value {
        json!({"mediaType": "application/x", "digest": Digest::sha256(content.as_bytes()), "size": content.len()})
    }

    fn image() -> Value {
        json!({"schemaVersion": 2, "config": descriptor("c"), "layers": [descriptor("l"), descriptor("l")]})
    }

    fn parse(manifest: &Value, content_type: Option<&str>) -> Result<Manifest, ManifestError> {
        Manifest::parse(manifest.to_string().as_bytes(), content_type)
    }

    fn with(mut manifest: Value, key: &str, value: Value) -> Value {
        manifest[key] = value;
        manifest
    }

    #[test]
    fn an_image_refers_to_its_config_and_layers_once_each() {
        let manifest = parse(&image(), Some(MEDIA_TYPE_DOCKER_MANIFEST)).unwrap();
        let blob = |content: &str| Target::Blob(Digest::sha256(content.as_bytes()));
        assert_eq!(manifest.references, [blob("c"), blob("l")]);
        assert_eq!(manifest.media_type, MEDIA_TYPE_DOCKER_MANIFEST);
        assert_eq!(manifest.artifact_type.as_deref(), Some("application/x"));
    }

    #[test]
    fn parameters_of_the_content_type_are_ignored() {
        let header = format!("{MEDIA_TYPE_OCI_MANIFEST}; charset=utf-8");
        assert_eq!(parse(&image(), Some(&header)).unwrap().media_type, MEDIA_TYPE_OCI_MANIFEST);
    }

    #[test]
    fn without_a_type_the_shape_decides() {
        assert_eq!(parse(&image(), None).unwrap().media_type, MEDIA_TYPE_OCI_MANIFEST);
        let index = json!({"schemaVersion": 2, "manifests": []});
        assert_eq!(parse(&index, None).unwrap().media_type, MEDIA_TYPE_OCI_INDEX);
        let bare = json!({"schemaVersion": 2});
        assert!(matches!(parse(&bare, None), Err(ManifestError::MediaTypeMissing)));
    }

    #[test]
    fn foreign_layers_with_urls_need_not_be_here() {
        let mut layer = descriptor("far");
        layer["mediaType"] = json!(MEDIA_TYPES_FOREIGN[0]);
        let without = with(image(), "layers", json!([layer.clone()]));
        assert_eq!(parse(&without, None).unwrap().references.len(), 2);
        layer["urls"] = json!(["https://example.com/layer"]);
        let elsewhere = with(image(), "layers", json!([layer]));
        assert_eq!(parse(&elsewhere, None).unwrap().references.len(), 1);
    }

    #[test]
    fn what_is_not_right_is_refused_for_the_right_reason() {
        use ManifestError as E;
        let refused = |manifest: &Value, content_type| parse(manifest, content_type).unwrap_err();
        let schema1 = json!({"schemaVersion": 1, "fsLayers": []});
        assert!(matches!(refused(&schema1, None), E::Schema1));
        assert!(matches!(refused(&image(), Some(MEDIA_TYPES_SCHEMA_1[1])), E::Schema1));
        assert!(matches!(refused(&with(image(), "schemaVersion", json!(3)), None), E::SchemaVersion));
        assert!(matches!(refused(&image(), Some("text/html")), E::MediaTypeUnknown(_)));
        let typed = with(image(), "mediaType", json!(MEDIA_TYPE_OCI_MANIFEST));
        assert!(matches!(refused(&typed, Some(MEDIA_TYPE_DOCKER_MANIFEST)), E::MediaTypeMismatch { .. }));
        let both = with(image(), "manifests", json!([]));
        assert!(matches!(refused(&both, Some(MEDIA_TYPE_OCI_MANIFEST)), E::Mixed(..)));
        assert!(matches!(refused(&both, Some(MEDIA_TYPE_OCI_INDEX)), E::Mixed(..)));
        let no_config = json!({"schemaVersion": 2, "layers": []});
        assert!(matches!(refused(&no_config, Some(MEDIA_TYPE_OCI_MANIFEST)), E::ConfigMissing));
        let bad = json!({"mediaType": "application/x", "digest": "sha256:12", "size": 1});
        assert!(matches!(refused(&with(image(), "config", bad), None), E::Digest { .. }));
        let negative = json!({"mediaType": "application/x", "digest": Digest::sha256(b""), "size": -1});
        assert!(matches!(refused(&with(image(), "config", negative), None), E::Json(_)));
    }

    #[test]
    fn only_referrers_keep_annotations_and_only_so_many() {
        let annotated = with(image(), "annotations", json!({"key": "text"}));
        assert!(parse(&annotated, None).unwrap().annotations.is_empty());
        let referrer = with(annotated, "subject", descriptor("s"));
        assert_eq!(parse(&referrer, None).unwrap().annotations["key"], "text");
        let long = with(referrer, "annotations", json!({"key": "x".repeat(REFERRER_BYTES_MAX)}));
        assert!(matches!(parse(&long, None), Err(ManifestError::AnnotationsTooLong)));
    }

    #[test]
    fn references_are_bounded() {
        let layers: Vec<Value> = (0..=REFERENCES_MAX).map(|n| descriptor(&n.to_string())).collect();
        let huge = with(image(), "layers", json!(layers));
        assert!(matches!(parse(&huge, None), Err(ManifestError::TooManyReferences)));
    }
}
