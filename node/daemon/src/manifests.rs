//! What a manifest refers to, for whoever walks over images: garbage collection, replication, preheating.

use serde_json::Value;
use shoal_types::Digest;

/// What a manifest refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// An index's manifests.
    pub manifests: Vec<Digest>,
    /// Config and layers.
    pub blobs: Vec<Digest>,
    /// Layers that may lie elsewhere: they name URLs, and a registry need not have them.
    pub elsewhere: Vec<Digest>,
    /// What it is about, which makes it a referrer.
    pub subject: Option<Digest>,
}

impl Contents {
    /// Reads a manifest or index of any type.
    ///
    /// # Errors
    /// A text: it is not JSON, or names something that is no digest.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let manifest: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if !manifest.is_object() {
            return Err("it is no JSON object".to_owned());
        }
        let mut contents = Self { manifests: digests(&manifest, "manifests")?, ..Self::default() };
        if let Some(config) = manifest.get("config") {
            contents.blobs.push(digest(config)?);
        }
        // "blobs" are an artifact manifest's, of a release candidate of the specification that some tools still write.
        for list in ["layers", "blobs"] {
            for layer in manifest.get(list).and_then(Value::as_array).into_iter().flatten() {
                let urls = layer.get("urls").and_then(Value::as_array);
                let target = match urls {
                    Some(urls) if !urls.is_empty() => &mut contents.elsewhere,
                    _ => &mut contents.blobs,
                };
                target.push(digest(layer)?);
            }
        }
        contents.subject = manifest.get("subject").filter(|one| !one.is_null()).map(digest).transpose()?;
        Ok(contents)
    }

    /// All that it refers to but its subject.
    pub fn all(&self) -> impl Iterator<Item = &Digest> {
        self.manifests.iter().chain(&self.blobs).chain(&self.elsewhere)
    }
}

fn digests(manifest: &Value, list: &str) -> Result<Vec<Digest>, String> {
    manifest.get(list).and_then(Value::as_array).into_iter().flatten().map(digest).collect()
}

fn digest(descriptor: &Value) -> Result<Digest, String> {
    let text = descriptor.get("digest").and_then(Value::as_str).ok_or("a descriptor has no digest")?;
    text.parse().map_err(|error| format!("{text:?} is no digest: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(manifest: &Value) -> Result<Contents, String> {
        Contents::parse(manifest.to_string().as_bytes())
    }

    fn of(name: &str) -> Digest {
        Digest::sha256(name.as_bytes())
    }

    fn descriptor(name: &str) -> Value {
        json!({"digest": of(name).to_string(), "size": 1, "mediaType": "x"})
    }

    #[test]
    fn everything_a_manifest_names_is_found() {
        let mut foreign = descriptor("f");
        foreign["urls"] = json!(["https://example.org/f"]);
        let manifest = json!({
            "config": descriptor("c"),
            "layers": [descriptor("l"), foreign],
            "subject": descriptor("s"),
        });
        let contents = parse(&manifest).unwrap();
        assert_eq!(contents.blobs, [of("c"), of("l")]);
        assert_eq!(contents.elsewhere, [of("f")]);
        assert_eq!(contents.subject, Some(of("s")));
        let index = json!({"manifests": [descriptor("a"), descriptor("b")], "subject": null});
        let contents = parse(&index).unwrap();
        assert_eq!((contents.manifests, contents.subject), (vec![of("a"), of("b")], None));
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        assert!(Contents::parse(b"no json").is_err());
        assert!(parse(&json!([])).is_err());
        assert!(parse(&json!({"layers": [{"digest": "sha256:zz"}]})).is_err());
        assert!(parse(&json!({"config": {}})).is_err());
    }
}
