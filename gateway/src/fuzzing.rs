//! The decoders of this crate that only it can reach, for fuzzing.

mod sequences;

pub use self::sequences::play;
use crate::manifest::Manifest;
use crate::range::{Plan, parse_content_range, plan};
use crate::{auth, route};

/// A `Range` header, for a content of `size` bytes.
pub fn range(header: &str, size: u64) {
    const RANGES_MAX: usize = 16;
    let inside = |range: &std::ops::Range<u64>| range.start < range.end && range.end <= size;
    match plan(Some(header), size, RANGES_MAX) {
        Plan::Whole | Plan::Unsatisfiable => {}
        Plan::Single(range) => assert!(inside(&range), "{range:?} of {size}"),
        Plan::Multi(ranges) => {
            assert!(ranges.len() <= RANGES_MAX && ranges.iter().all(inside), "{ranges:?} of {size}");
            let total: u128 = ranges.iter().map(|range| u128::from(range.end - range.start)).sum();
            assert!(total <= u128::from(size), "more than there is");
        }
    }
}

/// A `Content-Range` header of an upload.
pub fn content_range(header: &str) {
    if let Some(range) = parse_content_range(header) {
        assert!(range.start < range.end);
    }
}

/// A request's path and query.
pub fn target(text: &str) {
    let (path, query) = text.split_once('?').map_or((text, None), |(path, query)| (path, Some(query)));
    let _ = route::parse(path).map(|target| target.route());
    let _ = route::Query::parse(query).get("digest").map(route::percent_encode);
    if let Some(plain) = route::percent_decode(text) {
        assert_eq!(route::percent_decode(&route::percent_encode(&plain)), Some(plain));
    }
}

/// A manifest with its `Content-Type`.
pub fn manifest(content_type: Option<&str>, bytes: &[u8]) {
    let _ = Manifest::parse(bytes, content_type);
}

/// An access file, an htpasswd file, a set of keys, the headers and the query of a login.
pub fn access(text: &str) {
    auth::fuzz(text);
}
