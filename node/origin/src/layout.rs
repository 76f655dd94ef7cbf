//! Names of the objects in a backend, the same in all of them. `docs/STORAGE.md` explains them.

use shoal_types::{Digest, RecordKey, RecordKind};

/// Prefix of blobs.
pub const BLOBS: &str = "blobs";
/// Prefix of tags.
pub const TAGS: &str = "tags";
/// What stands between a repository and its tags. No part of a repository's name begins with `_` (distribution
/// specification v1.1, "Pulling manifests"), so a tag's name never meets a repository's.
pub const TAGS_OF_REPOSITORY: &str = "_tags";
/// The same for the manifests it holds.
pub const MANIFESTS_OF_REPOSITORY: &str = "_manifests";
/// The same for what is known of its blobs, which is only that one was deleted, or pushed again after that.
pub const BLOBS_OF_REPOSITORY: &str = "_blobs";
/// Suffix of a blob's metainfo.
pub const METAINFO_SUFFIX: &str = ".metainfo";

/// `blobs/<algorithm>/<first two digits>/<hex>`.
pub fn blob_key(digest: &Digest) -> String {
    let hex = digest.hex();
    let fan = hex.get(..2).unwrap_or_default();
    format!("{BLOBS}/{}/{fan}/{hex}", digest.algorithm().name())
}

/// The blob's key and `.metainfo`.
pub fn metainfo_key(digest: &Digest) -> String {
    blob_key(digest) + METAINFO_SUFFIX
}

/// `tags/<repository>/_tags/<tag>`, `tags/<repository>/_manifests/<algorithm>/<hex>`, and `_blobs` likewise.
pub fn record_key(key: &RecordKey) -> String {
    let repository = &key.repository;
    let of_digest = |kind: &str, digest: &Digest| {
        format!("{TAGS}/{repository}/{kind}/{}/{}", digest.algorithm().name(), digest.hex())
    };
    match &key.kind {
        RecordKind::Tag(tag) => format!("{TAGS}/{repository}/{TAGS_OF_REPOSITORY}/{tag}"),
        RecordKind::Manifest(digest) => of_digest(MANIFESTS_OF_REPOSITORY, digest),
        RecordKind::Blob(digest) => of_digest(BLOBS_OF_REPOSITORY, digest),
    }
}

/// The blob an object is; `None` for its metainfo, and for what is no blob at all.
pub fn blob_of(key: &str) -> Option<Digest> {
    let mut parts = key.strip_prefix(BLOBS)?.strip_prefix('/')?.split('/');
    let (algorithm, fan, hex) = (parts.next()?, parts.next()?, parts.next()?);
    let digest = format!("{algorithm}:{hex}").parse::<Digest>().ok()?;
    (parts.next().is_none() && hex.get(..2) == Some(fan)).then_some(digest)
}

/// The record an object is; `None` for what is none.
pub fn record_of(key: &str) -> Option<RecordKey> {
    let rest = key.strip_prefix(TAGS)?.strip_prefix('/')?;
    let (repository, rest) = rest.split_once("/_")?;
    let (kind, name) = rest.split_once('/')?;
    let digest = || {
        let (algorithm, hex) = name.split_once('/')?;
        format!("{algorithm}:{hex}").parse::<Digest>().ok()
    };
    let kind = match kind {
        "tags" => RecordKind::Tag(name.parse().ok()?),
        "manifests" => RecordKind::Manifest(digest()?),
        "blobs" => RecordKind::Blob(digest()?),
        _ => return None,
    };
    Some(RecordKey { repository: repository.parse().ok()?, kind })
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_types::RepositoryName;

    #[test]
    fn keys_as_documented() {
        let digest = Digest::sha256(b"hello");
        let hex = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        assert_eq!(blob_key(&digest), format!("blobs/sha256/2c/{hex}"));
        assert_eq!(metainfo_key(&digest), format!("blobs/sha256/2c/{hex}.metainfo"));
        assert_eq!(blob_of(&blob_key(&digest)), Some(digest));
        for other in
            ["", "blobs/", &metainfo_key(&digest), &format!("blobs/sha256/2d/{hex}"), &format!("x/{hex}")]
        {
            assert_eq!(blob_of(other), None, "{other}");
        }
        let record = |kind| RecordKey { repository: "team/app".parse().unwrap(), kind };
        for (kind, key) in [
            (RecordKind::Tag("1.0".parse().unwrap()), "tags/team/app/_tags/1.0".to_owned()),
            (RecordKind::Tag("_tags".parse().unwrap()), "tags/team/app/_tags/_tags".to_owned()),
            (RecordKind::Manifest(digest), format!("tags/team/app/_manifests/sha256/{hex}")),
            (RecordKind::Blob(digest), format!("tags/team/app/_blobs/sha256/{hex}")),
        ] {
            let record = record(kind);
            assert_eq!(record_key(&record), key);
            assert_eq!(record_of(&key), Some(record));
        }
        for other in [
            "",
            "tags/",
            "tags/team/app",
            "tags/team/_tags/",
            "tags/a/_other/x",
            "tags/A/_tags/x",
            "tags/a/_blobs/x",
        ] {
            assert_eq!(record_of(other), None, "{other}");
        }
    }

    #[test]
    fn no_repository_is_in_the_way_of_a_tag() {
        for part in [TAGS_OF_REPOSITORY, MANIFESTS_OF_REPOSITORY, BLOBS_OF_REPOSITORY] {
            assert!(part.parse::<RepositoryName>().is_err());
            assert!(format!("a/{part}/b").parse::<RepositoryName>().is_err());
        }
    }
}
