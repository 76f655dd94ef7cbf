//! What of an image a machine of some platform needs.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;
use shoal_types::Digest;

/// Most platforms in one preheat.
pub const PLATFORMS_MAX: usize = 16;
/// Longest text of a platform, in bytes.
const PLATFORM_BYTES_MAX: usize = 64;
/// Stands for every platform.
const ALL: &str = "all";

/// A platform as `linux/arm64` or `linux/arm/v7` (OCI image specification, "Image Index": `platform`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// The text is no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no platform: OS/ARCHITECTURE, as in linux/amd64 or linux/arm/v7, or all")]
pub struct PlatformParseError(String);

impl Platform {
    /// That of this program.
    fn own() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self { os: std::env::consts::OS.to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// Without a variant every variant is meant.
    fn is_met_by(&self, other: &Self) -> bool {
        self.os == other.os
            && self.architecture == other.architecture
            && (self.variant.is_none() || self.variant == other.variant)
    }
}

impl FromStr for Platform {
    type Err = PlatformParseError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let good = |part: &&str| {
            let word = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            !part.is_empty() && part.bytes().all(word)
        };
        let parts: Vec<&str> = text.split('/').filter(good).collect();
        match parts.as_slice() {
            _ if text.len() > PLATFORM_BYTES_MAX || parts.len() != text.split('/').count() => None,
            [os, architecture] => Some((*os, *architecture, None)),
            [os, architecture, variant] => Some((*os, *architecture, Some((*variant).to_owned()))),
            _ => None,
        }
        .map(|(os, architecture, variant)| Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant,
        })
        .ok_or_else(|| PlatformParseError(text.chars().take(PLATFORM_BYTES_MAX).collect()))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// Which platforms of an image are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Platforms {
    /// Every one.
    All,
    /// These.
    These(Vec<Platform>),
}

impl Platforms {
    /// Reads a list: of none the own platform of whoever reads it, `all`, or platforms.
    ///
    /// # Errors
    /// [`PlatformParseError`]; too many are one as well.
    pub fn parse(texts: &[String]) -> Result<Self, PlatformParseError> {
        match texts {
            [] => Ok(Self::These(vec![Platform::own()])),
            [one] if one == ALL => Ok(Self::All),
            many if many.len() > PLATFORMS_MAX => {
                Err(PlatformParseError(format!("more than {PLATFORMS_MAX} platforms")))
            }
            many => many.iter().map(|text| text.parse()).collect::<Result<_, _>>().map(Self::These),
        }
    }

    fn want(&self, platform: &Platform) -> bool {
        match self {
            Self::All => true,
            Self::These(these) => these.iter().any(|wanted| wanted.is_met_by(platform)),
        }
    }
}

impl fmt::Display for Platforms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str(ALL),
            Self::These(these) => f.write_str(&join(these)),
        }
    }
}

fn join(platforms: &[Platform]) -> String {
    platforms.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What a manifest or index refers to, as far as it is wanted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Needed {
    /// Manifests to look into.
    pub manifests: Vec<Digest>,
    /// Config and layers, with their sizes in bytes.
    pub blobs: Vec<(Digest, u64)>,
}

impl Needed {
    /// Reads a manifest or an index. Layers that lie elsewhere, by their URLs, are left out.
    ///
    /// # Errors
    /// A text: it is no manifest, or an index with none of the platforms.
    pub(super) fn parse(bytes: &[u8], platforms: &Platforms) -> Result<Self, String> {
        let manifest: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let list = |key: &str| manifest.get(key).and_then(Value::as_array).into_iter().flatten();
        let mut needed = Self::default();
        let mut others = Vec::new();
        for entry in list("manifests") {
            match platform_of(entry) {
                Some(platform) if !platforms.want(&platform) => others.push(platform),
                // Without a platform it may be an index of some, or content that is no image.
                _ => needed.manifests.push(digest_of(entry)?),
            }
        }
        if needed.manifests.is_empty() && !others.is_empty() {
            return Err(format!("the index has no {platforms}, it has {}", join(&others)));
        }
        let layers = list("layers")
            .filter(|layer| layer.get("urls").and_then(Value::as_array).is_none_or(Vec::is_empty));
        for blob in manifest.get("config").into_iter().chain(layers) {
            let size = blob.get("size").and_then(Value::as_u64).ok_or("a descriptor has no size")?;
            needed.blobs.push((digest_of(blob)?, size));
        }
        Ok(needed)
    }
}

fn platform_of(descriptor: &Value) -> Option<Platform> {
    let platform = descriptor.get("platform").filter(|platform| !platform.is_null())?;
    let text = |key: &str| platform.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    Some(Platform {
        os: text("os").unwrap_or_default().to_owned(),
        architecture: text("architecture").unwrap_or_default().to_owned(),
        variant: text("variant").map(str::to_owned),
    })
}

fn digest_of(descriptor: &Value) -> Result<Digest, String> {
    let text = descriptor.get("digest").and_then(Value::as_str).ok_or("a descriptor has no digest")?;
    text.parse().map_err(|error| format!("{text:.80}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn descriptor(name: &str, platform: Value) -> Value {
        json!({"digest": Digest::sha256(name.as_bytes()).to_string(), "size": 7, "platform": platform})
    }

    fn platforms(texts: &[&str]) -> Platforms {
        Platforms::parse(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn of_an_index_the_platforms_wanted_are_needed() {
        let index = json!({"manifests": [
            descriptor("amd", json!({"os": "linux", "architecture": "amd64"})),
            descriptor("arm6", json!({"os": "linux", "architecture": "arm", "variant": "v6"})),
            descriptor("arm7", json!({"os": "linux", "architecture": "arm", "variant": "v7"})),
            descriptor("proof", json!({"os": "unknown", "architecture": "unknown"})),
        ]});
        let needed = |texts: &[&str]| {
            let needed = Needed::parse(index.to_string().as_bytes(), &platforms(texts));
            needed.map(|needed| needed.manifests)
        };
        let of =
            |names: &[&str]| names.iter().map(|name| Digest::sha256(name.as_bytes())).collect::<Vec<_>>();
        assert_eq!(needed(&["linux/amd64"]).unwrap(), of(&["amd"]));
        assert_eq!(needed(&["linux/arm"]).unwrap(), of(&["arm6", "arm7"]));
        assert_eq!(needed(&["linux/arm/v7", "linux/amd64"]).unwrap(), of(&["amd", "arm7"]));
        assert_eq!(needed(&["all"]).unwrap().len(), 4);
        let why = needed(&["windows/amd64"]).unwrap_err();
        assert!(why.contains("no windows/amd64") && why.contains("linux/arm/v6"), "{why}");
    }

    #[test]
    fn of_a_manifest_all_but_what_lies_elsewhere_is_needed() {
        let mut elsewhere = descriptor("u", Value::Null);
        elsewhere["urls"] = json!(["https://example.org/u"]);
        let manifest = json!({"config": descriptor("c", Value::Null), "layers": [descriptor("l", Value::Null), elsewhere]});
        let needed = Needed::parse(manifest.to_string().as_bytes(), &platforms(&[])).unwrap();
        assert_eq!(needed.blobs, [(Digest::sha256(b"c"), 7), (Digest::sha256(b"l"), 7)]);
        assert!(Needed::parse(b"no json", &Platforms::All).is_err());
        assert!(Needed::parse(br#"{"layers":[{"digest":"sha256:zz"}]}"#, &Platforms::All).is_err());
    }

    #[test]
    fn what_is_no_platform_is_refused() {
        for text in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/a b", "linux//amd64"] {
            assert!(text.parse::<Platform>().is_err(), "{text:?}");
        }
        assert_eq!("linux/arm/v7".parse::<Platform>().unwrap().to_string(), "linux/arm/v7");
        let many: Vec<String> = (0..=PLATFORMS_MAX).map(|n| format!("linux/a{n}")).collect();
        assert!(Platforms::parse(&many).is_err());
    }
}
