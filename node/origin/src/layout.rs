//! Names of the objects in a backend, the same in all of them. `docs/STORAGE.md` explains them.

use shoal_types::{Digest, RepositoryName, TagName};

/// Prefix of blobs.
pub const BLOBS: &str = "blobs";
/// Prefix of tags.
pub const TAGS: &str = "tags";
/// What stands between a repository and its tags. No part of a repository's name begins with `_` (distribution
/// specification v1.1, "Pulling manifests"), so a tag's name never meets a repository's.
pub const TAGS_OF_REPOSITORY: &str = "_tags";
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

/// `tags/<repository>/_tags/<tag>`.
pub fn tag_key(repository: &RepositoryName, tag: &TagName) -> String {
    format!("{}/{tag}", tags_prefix(repository))
}

/// `tags/<repository>/_tags`.
pub fn tags_prefix(repository: &RepositoryName) -> String {
    format!("{TAGS}/{repository}/{TAGS_OF_REPOSITORY}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_as_documented() {
        let digest = Digest::sha256(b"hello");
        let hex = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        assert_eq!(blob_key(&digest), format!("blobs/sha256/2c/{hex}"));
        assert_eq!(metainfo_key(&digest), format!("blobs/sha256/2c/{hex}.metainfo"));
        let key = tag_key(&"team/app".parse().unwrap(), &"1.0".parse().unwrap());
        assert_eq!(key, "tags/team/app/_tags/1.0");
    }

    #[test]
    fn no_repository_is_in_the_way_of_a_tag() {
        assert!(TAGS_OF_REPOSITORY.parse::<RepositoryName>().is_err());
        assert!(format!("a/{TAGS_OF_REPOSITORY}/b").parse::<RepositoryName>().is_err());
    }
}
