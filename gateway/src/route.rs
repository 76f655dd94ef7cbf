//! From a request's path and query to what it names.

use http::StatusCode;
use shoal_types::{Digest, RepositoryName};

use crate::auth::TOKEN_PATH;
use crate::error::{ApiError, Code};
use crate::metrics::Route;
use crate::port::UploadId;

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Base,
    /// The gateway's own tokens.
    Token,
    /// Whether this process is alive.
    Health,
    /// Of pushes, for preheating.
    Notifications,
    Catalog,
    Blob(RepositoryName, Digest),
    Uploads(RepositoryName),
    Upload(RepositoryName, UploadId),
    /// The reference is not yet parsed: what is wrong with it depends on the method.
    Manifest(RepositoryName, String),
    Tags(RepositoryName),
    Referrers(RepositoryName, Digest),
}

/// What Harbor asks of a provider of the kind Kraken (goharbor/harbor, `src/pkg/p2p/preheat/provider/kraken.go`).
const HEALTH_PATH: &str = "/health";
const NOTIFICATIONS_PATH: &str = "/registry/notifications";

/// Route of requests that name nothing.
pub(crate) const ROUTE_NONE: Route = "none";

impl Target {
    pub(crate) fn route(&self) -> Route {
        match self {
            Self::Base => "/v2/",
            Self::Token => TOKEN_PATH,
            Self::Health => HEALTH_PATH,
            Self::Notifications => NOTIFICATIONS_PATH,
            Self::Catalog => "/v2/_catalog",
            Self::Blob(..) => "/v2/<name>/blobs/<digest>",
            Self::Uploads(..) => "/v2/<name>/blobs/uploads/",
            Self::Upload(..) => "/v2/<name>/blobs/uploads/<reference>",
            Self::Manifest(..) => "/v2/<name>/manifests/<reference>",
            Self::Tags(..) => "/v2/<name>/tags/list",
            Self::Referrers(..) => "/v2/<name>/referrers/<digest>",
        }
    }
}

impl Target {
    /// The same of a repository whose name begins with `prefix`.
    pub(crate) fn below(self, prefix: &str) -> Result<Self, ApiError> {
        let below = |name: &RepositoryName| repository(&[prefix, name.as_str()]);
        Ok(match self {
            Self::Blob(name, digest) => Self::Blob(below(&name)?, digest),
            Self::Manifest(name, reference) => Self::Manifest(below(&name)?, reference),
            other => other,
        })
    }
}

/// Parses a path. Names have slashes, so it is read from its end.
pub(crate) fn parse(path: &str) -> Result<Target, ApiError> {
    let no_route = || ApiError::new(StatusCode::NOT_FOUND, Code::Unsupported, "no such endpoint");
    match path {
        TOKEN_PATH => return Ok(Target::Token),
        HEALTH_PATH => return Ok(Target::Health),
        NOTIFICATIONS_PATH => return Ok(Target::Notifications),
        _ => {}
    }
    let path = percent_decode(path).ok_or_else(no_route)?;
    let rest = match path.strip_prefix("/v2") {
        Some("" | "/") => return Ok(Target::Base),
        Some(rest) => rest.strip_prefix('/').ok_or_else(no_route)?,
        None => return Err(no_route()),
    };
    if rest == "_catalog" {
        return Ok(Target::Catalog);
    }
    let parts: Vec<&str> = rest.split('/').collect();
    let digest = |text: &str| {
        text.parse()
            .map_err(|error| ApiError::bad_request(Code::DigestInvalid, format!("{text:.80}: {error}")))
    };
    match parts.as_slice() {
        [name @ .., "blobs", "uploads"] | [name @ .., "blobs", "uploads", ""] => {
            Ok(Target::Uploads(repository(name)?))
        }
        [name @ .., "blobs", "uploads", id] => {
            let name = repository(name)?;
            let unknown = |_| ApiError::new(StatusCode::NOT_FOUND, Code::BlobUploadUnknown, "no such upload");
            Ok(Target::Upload(name, id.parse().map_err(unknown)?))
        }
        [name @ .., "blobs", text] => Ok(Target::Blob(repository(name)?, digest(text)?)),
        [name @ .., "manifests", text] => Ok(Target::Manifest(repository(name)?, (*text).to_owned())),
        [name @ .., "tags", "list"] => Ok(Target::Tags(repository(name)?)),
        [name @ .., "referrers", text] => Ok(Target::Referrers(repository(name)?, digest(text)?)),
        _ => Err(no_route()),
    }
}

fn repository(parts: &[&str]) -> Result<RepositoryName, ApiError> {
    parts.join("/").parse().map_err(|error| ApiError::bad_request(Code::NameInvalid, format!("{error}")))
}

/// A request's query. Keys that no endpoint knows are ignored. `ns`, by which containerd tells a mirror which registry it
/// stands in for, is `mirror`'s.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(query: Option<&str>) -> Self {
        let pairs = query.unwrap_or_default().split('&').filter_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((percent_decode(key)?, percent_decode(value)?))
        });
        Self(pairs.collect())
    }

    /// The first value of `key`.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(own, _)| own == key).map(|(_, value)| value.as_str())
    }
}

/// Undoes percent-encoding; `None` when it is malformed or not UTF-8. A `+` stays one, because media types have it
/// and clients send it unescaped.
pub(crate) fn percent_decode(text: &str) -> Option<String> {
    let nibble = |b: u8| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let (high, low) = (nibble(rest.next()?)?, nibble(rest.next()?)?);
            bytes.push(high << 4 | low);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Percent-encodes all but unreserved characters (RFC 3986, 2.3) and `/`.
pub(crate) fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'/') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> RepositoryName {
        text.parse().unwrap()
    }

    #[test]
    fn paths_are_read_from_their_end() {
        let digest = Digest::sha256(b"x");
        for (path, target) in [
            ("/v2/".to_owned(), Target::Base),
            ("/v2".to_owned(), Target::Base),
            ("/health".to_owned(), Target::Health),
            ("/registry/notifications".to_owned(), Target::Notifications),
            ("/v2/_catalog".to_owned(), Target::Catalog),
            (format!("/v2/a/b/c/blobs/{digest}"), Target::Blob(name("a/b/c"), digest)),
            (
                format!("/v2/a/blobs/{}", digest.to_string().replace(':', "%3A")),
                Target::Blob(name("a"), digest),
            ),
            ("/v2/a/blobs/uploads/".to_owned(), Target::Uploads(name("a"))),
            ("/v2/a/blobs/uploads".to_owned(), Target::Uploads(name("a"))),
            ("/v2/a/blobs/uploads/u1".to_owned(), Target::Upload(name("a"), "u1".parse().unwrap())),
            ("/v2/manifests/tags/tags/list".to_owned(), Target::Tags(name("manifests/tags"))),
            ("/v2/blobs/manifests/v1".to_owned(), Target::Manifest(name("blobs"), "v1".to_owned())),
            (format!("/v2/a/referrers/{digest}"), Target::Referrers(name("a"), digest)),
        ] {
            assert_eq!(parse(&path).unwrap(), target, "{path}");
        }
        for path in [
            "/",
            "/v1/",
            "/v2x",
            "/v2/a",
            "/v2/a/blobs",
            "/v2/a/%zz/list",
            "/v2/A/tags/list",
            "/v2//tags/list",
        ] {
            assert!(parse(path).is_err(), "{path}");
        }
    }

    proptest! {
        #[test]
        fn percent_encoding_round_trips(text in "\\PC{0,40}") {
            prop_assert_eq!(percent_decode(&percent_encode(&text)), Some(text));
        }

        #[test]
        fn no_path_or_query_panics(text in ".{0,80}") {
            let _ = parse(&format!("/v2/{text}"));
            let _ = Query::parse(Some(&text));
        }
    }
}
