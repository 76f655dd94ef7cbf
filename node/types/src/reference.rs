//! Repository names, tags and image references, by the OCI distribution specification v1.1 grammar
//! ("Pulling manifests").

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::cbor::text_forms;
use crate::digest::{Digest, DigestParseError};

/// Longest repository name in bytes: many clients limit host, port and name together to 255 (specification, same
/// section).
pub const REPOSITORY_BYTES_MAX: usize = 255;
/// Longest tag in bytes: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
pub const TAG_BYTES_MAX: usize = 128;

/// Why a text is not a name, tag or reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceParseError {
    /// The repository name breaks the grammar.
    #[error(
        "invalid repository name {0:?}: lower-case letters and digits, separated by . _ __ or -, in parts joined by /"
    )]
    Repository(String),
    /// The tag breaks the grammar.
    #[error("invalid tag {0:?}: 1 to {TAG_BYTES_MAX} of a-z A-Z 0-9 _ . -, not starting with . or -")]
    Tag(String),
    /// The digest does not parse.
    #[error(transparent)]
    Digest(#[from] DigestParseError),
}

/// A repository name such as `library/nginx`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepositoryName(Arc<str>);

impl RepositoryName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RepositoryName {
    type Err = ReferenceParseError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() <= REPOSITORY_BYTES_MAX && text.split('/').all(is_path_component) {
            Ok(Self(Arc::from(text)))
        } else {
            Err(ReferenceParseError::Repository(clip(text)))
        }
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(part: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !alnum(*first) || !alnum(*last) {
        return false;
    }
    // Between letters and digits stand single separators, a double underscore, or any run of hyphens.
    bytes
        .split(|b| alnum(*b))
        .filter(|separator| !separator.is_empty())
        .all(|separator| matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-'))
}

/// A tag such as `1.27-alpine`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TagName(Arc<str>);

impl TagName {
    /// The tag.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TagName {
    type Err = ReferenceParseError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let good = text.len() <= TAG_BYTES_MAX
            && text.bytes().next().is_some_and(word)
            && text.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'));
        if good { Ok(Self(Arc::from(text))) } else { Err(ReferenceParseError::Tag(clip(text))) }
    }
}

/// What names a manifest inside a repository: a tag that may move, or a digest that may not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reference {
    /// By tag.
    Tag(TagName),
    /// By digest.
    Digest(Digest),
}

impl FromStr for Reference {
    type Err = ReferenceParseError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A tag has no colon, a digest always has one.
        if text.contains(':') { Ok(Self::Digest(text.parse()?)) } else { Ok(Self::Tag(text.parse()?)) }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// An image as users write it: `[host[:port]/]repository[:tag][@digest]`. Without tag and digest it means `latest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageReference {
    /// The registry's host and port, when the text names one.
    pub host: Option<String>,
    /// The repository.
    pub repository: RepositoryName,
    /// The tag or digest; a digest wins when both are given, as docker does it.
    pub reference: Reference,
}

impl FromStr for ImageReference {
    type Err = ReferenceParseError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (text_before, digest) = match text.split_once('@') {
            Some((before, digest)) => (before, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        // The first part is a host when it could not be a repository's: it has a dot, a colon, or is localhost.
        let (host, path) = match text_before.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), rest),
            _ => (None, text_before),
        };
        let (name, tag) = match path.split_once(':') {
            Some((name, tag)) => (name, Some(tag.parse::<TagName>()?)),
            None => (path, None),
        };
        let reference = match (digest, tag) {
            (Some(digest), _) => Reference::Digest(digest),
            (None, Some(tag)) => Reference::Tag(tag),
            (None, None) => Reference::Tag(TagName(Arc::from("latest"))),
        };
        Ok(Self { host: host.map(str::to_owned), repository: name.parse()?, reference })
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(host) = &self.host {
            write!(f, "{host}/")?;
        }
        match &self.reference {
            Reference::Tag(tag) => write!(f, "{}:{tag}", self.repository),
            Reference::Digest(digest) => write!(f, "{}@{digest}", self.repository),
        }
    }
}

/// What an error repeats of a bad text.
fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for TagName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

text_forms!(RepositoryName);
text_forms!(TagName);
text_forms!(Reference);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn repository_names_by_the_grammar() {
        for good in ["a", "library/nginx", "a.b_c__d-e---f/0", "x/y/z"] {
            assert_eq!(good.parse::<RepositoryName>().unwrap().as_str(), good);
        }
        let long = format!("a/{}", "b".repeat(REPOSITORY_BYTES_MAX));
        for bad in ["", "A", "a//b", "/a", "a/", "a..b", "a___b", "a._b", "-a", "a-", "a b", "é", &long] {
            assert!(bad.parse::<RepositoryName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn tags_by_the_grammar() {
        for good in ["latest", "1", "_x", "V1.2-rc_3", &"t".repeat(128)] {
            assert_eq!(good.parse::<TagName>().unwrap().as_str(), good);
        }
        for bad in ["", ".a", "-a", "a:b", "a/b", "é", &"t".repeat(129)] {
            assert!(bad.parse::<TagName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn image_references_as_users_write_them() {
        let image = |text: &str| text.parse::<ImageReference>().unwrap();
        assert_eq!(image("localhost:5000/app:1").to_string(), "localhost:5000/app:1");
        assert_eq!(image("localhost:5000/app:1").host.as_deref(), Some("localhost:5000"));
        assert_eq!(image("app").to_string(), "app:latest");
        assert_eq!(image("team/app:v2").host, None);
        let digest = Digest::sha256(b"");
        assert_eq!(image(&format!("r.io/a:1@{digest}")).to_string(), format!("r.io/a@{digest}"));
        assert!("r.io/A".parse::<ImageReference>().is_err());
    }

    proptest! {
        #[test]
        fn agrees_with_the_specification_s_expressions(text in "[a-c0-1._/-]{0,12}") {
            let wanted = spec_repository(&text);
            prop_assert_eq!(text.parse::<RepositoryName>().is_ok(), wanted);
        }

        #[test]
        fn parsing_never_panics(text: String) {
            let _ = text.parse::<ImageReference>();
            let _ = text.parse::<Reference>();
        }
    }

    /// The specification's expression, spelled as a naive backtracking matcher over path components.
    fn spec_repository(text: &str) -> bool {
        fn alnums(s: &str) -> usize {
            s.bytes().take_while(|b| b.is_ascii_lowercase() || b.is_ascii_digit()).count()
        }
        fn component(mut s: &str) -> bool {
            let run = alnums(s);
            if run == 0 {
                return false;
            }
            s = &s[run..];
            while !s.is_empty() {
                let hyphens = s.bytes().take_while(|b| *b == b'-').count();
                let skip = if hyphens > 0 {
                    hyphens
                } else if s.starts_with("__") {
                    2
                } else if s.starts_with('_') || s.starts_with('.') {
                    1
                } else {
                    return false;
                };
                s = &s[skip..];
                let run = alnums(s);
                if run == 0 {
                    return false;
                }
                s = &s[run..];
            }
            true
        }
        text.split('/').all(component)
    }
}
