//! `Range` of downloads (RFC 9110, 14) and `Content-Range` of uploads (distribution specification, "Pushing a blob in
//! chunks").

use std::ops::Range;

/// What of a content is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// All of it (200).
    Whole,
    /// One range (206).
    Single(Range<u64>),
    /// Several, as `multipart/byteranges` (206).
    Multi(Vec<Range<u64>>),
    /// Nothing (416).
    Unsatisfiable,
}

/// Decides what a request with this `Range` header gets of a content of `size` bytes.
///
/// A header that is not understood is ignored (RFC 9110, 14.2). So is any on an empty content, because there are
/// clients that put `bytes=0-` on every request. More than `ranges_max` ranges, or more bytes in all than the content
/// has, are an attack (14.2, "set of many small ranges"): refused.
pub(crate) fn plan(header: Option<&str>, size: u64, ranges_max: usize) -> Plan {
    let Some(specs) = header.and_then(|header| header.trim().strip_prefix("bytes=")) else {
        return Plan::Whole;
    };
    if size == 0 {
        return Plan::Whole;
    }
    let mut wanted = Vec::new();
    for spec in specs.split(',').map(str::trim).filter(|spec| !spec.is_empty()) {
        let Some(range) = parse_spec(spec, size) else { return Plan::Whole };
        wanted.push(range);
        if wanted.len() > ranges_max {
            return Plan::Unsatisfiable;
        }
    }
    if wanted.is_empty() {
        return Plan::Whole;
    }
    wanted.retain(|range| range.start < range.end);
    let total: u128 = wanted.iter().map(|range| u128::from(range.end - range.start)).sum();
    match wanted.len() {
        0 => Plan::Unsatisfiable,
        1 => Plan::Single(wanted.remove(0)),
        _ if total > u128::from(size) => Plan::Unsatisfiable,
        _ => Plan::Multi(wanted),
    }
}

/// One range cut at `size`: empty when it lies beyond, `None` when it is malformed.
fn parse_spec(spec: &str, size: u64) -> Option<Range<u64>> {
    let (first, last) = spec.split_once('-')?;
    match (first, last) {
        ("", suffix) => Some(size - parse_number(suffix)?.min(size)..size),
        (first, "") => Some(parse_number(first)?.min(size)..size),
        (first, last) => {
            let (first, last) = (parse_number(first)?, parse_number(last)?);
            (first <= last).then(|| first.min(size)..last.saturating_add(1).min(size))
        }
    }
}

/// Digits only; a number beyond 64 bits is beyond every content.
fn parse_number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// The `Content-Range` of an upload: `^[0-9]+-[0-9]+$`, both ends inclusive. `None` when it is malformed or runs
/// backwards.
pub(crate) fn parse_content_range(text: &str) -> Option<Range<u64>> {
    let (first, last) = text.split_once('-')?;
    let (first, last) = (parse_number(first)?, parse_number(last)?);
    let end = last.checked_add(1)?;
    (first <= last).then_some(first..end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The bytes a client gets, by walking the content byte by byte.
    fn naive(specs: &[(Option<u64>, Option<u64>)], size: u64) -> Vec<Vec<u64>> {
        let wants = |at: u64, spec: &(Option<u64>, Option<u64>)| match *spec {
            (Some(first), Some(last)) => first <= at && at <= last,
            (Some(first), None) => first <= at,
            (None, Some(suffix)) => size - at <= suffix,
            (None, None) => false,
        };
        specs
            .iter()
            .map(|spec| (0..size).filter(|at| wants(*at, spec)).collect::<Vec<_>>())
            .filter(|bytes| !bytes.is_empty())
            .collect()
    }

    fn spec() -> impl Strategy<Value = (Option<u64>, Option<u64>)> {
        prop_oneof![
            (0..60u64, 0..60u64).prop_map(|(first, more)| (Some(first), Some(first + more))),
            (0..60u64).prop_map(|first| (Some(first), None)),
            (0..60u64).prop_map(|suffix| (None, Some(suffix))),
        ]
    }

    proptest! {
        #[test]
        fn plan_serves_the_bytes_of_the_naive_model(specs in prop::collection::vec(spec(), 1..6), size in 1..50u64) {
            let number = |n: Option<u64>| n.map(|n| n.to_string()).unwrap_or_default();
            let header: Vec<_> =
                specs.iter().map(|(first, last)| format!("{}-{}", number(*first), number(*last))).collect();
            let got = plan(Some(&format!("bytes={}", header.join(", "))), size, 16);
            let wanted = naive(&specs, size);
            let total: usize = wanted.iter().map(Vec::len).sum();
            let expand = |range: &Range<u64>| range.clone().collect::<Vec<_>>();
            match got {
                Plan::Whole => prop_assert!(false, "a well-formed header was ignored"),
                Plan::Single(range) => prop_assert_eq!(vec![expand(&range)], wanted),
                Plan::Multi(ranges) => prop_assert_eq!(ranges.iter().map(expand).collect::<Vec<_>>(), wanted),
                Plan::Unsatisfiable => {
                    prop_assert!(wanted.is_empty() || (wanted.len() > 1 && total as u64 > size));
                }
            }
        }

        #[test]
        fn plan_never_leaves_the_content(header in "(bytes=)?[-0-9, a-z]{0,40}", size: u64, ranges_max in 0..8usize) {
            let inside = |range: &Range<u64>| range.start < range.end && range.end <= size;
            match plan(Some(&header), size, ranges_max) {
                Plan::Single(range) => prop_assert!(inside(&range)),
                Plan::Multi(ranges) => {
                    prop_assert!(ranges.len() <= ranges_max && ranges.iter().all(inside));
                }
                Plan::Whole | Plan::Unsatisfiable => {}
            }
        }

        #[test]
        fn content_range_matches_the_specification(text in "[0-9]{0,4}-?[0-9]{0,4}( |bytes)?") {
            let model = match text.split('-').collect::<Vec<_>>()[..] {
                [first, last] => match (first.parse::<u64>(), last.parse::<u64>()) {
                    (Ok(first), Ok(last)) if first <= last => Some(first..last + 1),
                    _ => None,
                },
                _ => None,
            };
            prop_assert_eq!(parse_content_range(&text), model);
        }
    }

    #[test]
    fn numbers_beyond_64_bits_do_not_wrap() {
        let huge = "99999999999999999999999999";
        assert_eq!(plan(Some(&format!("bytes=3-{huge}")), 10, 4), Plan::Single(3..10));
        assert_eq!(plan(Some(&format!("bytes=-{huge}")), 10, 4), Plan::Single(0..10));
        assert_eq!(plan(Some(&format!("bytes={huge}-")), 10, 4), Plan::Unsatisfiable);
        assert_eq!(parse_content_range(&format!("0-{huge}")), None);
    }

    #[test]
    fn malformed_headers_are_ignored_and_floods_refused() {
        for header in
            ["", "bytes", "bytes=", "bytes=,", "bytes=a-b", "bytes=5-2", "bytes=-", "items=0-1", "bytes=+1-2"]
        {
            assert_eq!(plan(Some(header), 10, 4), Plan::Whole, "{header}");
        }
        assert_eq!(plan(Some("bytes=0-0,1-1,2-2,3-3,4-4"), 10, 4), Plan::Unsatisfiable);
        assert_eq!(plan(Some("bytes=0-,0-"), 10, 4), Plan::Unsatisfiable);
        assert_eq!(plan(Some("bytes=-0"), 10, 4), Plan::Unsatisfiable);
        assert_eq!(plan(Some("bytes=0-"), 0, 4), Plan::Whole);
    }
}
