//! Zones: where machines are close and traffic is free.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::cbor::text_forms;

/// Longest zone label, in bytes: that of a DNS label (RFC 1035), so that it fits any label of the platforms.
pub const ZONE_BYTES_MAX: usize = 63;

/// A zone label such as `aws-eu-west-1`: lower-case letters, digits, `-`, `.` and `_`, 1 to [`ZONE_BYTES_MAX`]
/// bytes, starting and ending with a letter or digit.
#[derive(Clone, Debug, Eq, PartialOrd, Ord, Hash)]
#[expect(clippy::derived_hash_with_manual_eq, reason = "what is the same text is equal")]
pub struct Zone(Arc<str>);

/// Most labels that are compared are one and the same text.
impl PartialEq for Zone {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

/// The text is not a zone label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a zone: {0:?} must be 1 to {ZONE_BYTES_MAX} of a-z 0-9 - . _, starting and ending with a letter or digit"
)]
pub struct ZoneParseError(String);

impl Zone {
    /// The label.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The zone of a mesh that has only one: `default`.
impl Default for Zone {
    fn default() -> Self {
        Self(Arc::from("default"))
    }
}

impl FromStr for Zone {
    type Err = ZoneParseError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'_');
        let good = text.len() <= ZONE_BYTES_MAX
            && edge(text.bytes().next())
            && edge(text.bytes().next_back())
            && text.bytes().all(inner);
        if good { Ok(Self(Arc::from(text))) } else { Err(ZoneParseError(text.chars().take(80).collect())) }
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

text_forms!(Zone);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_checked() {
        for good in ["a", "default", "aws-eu-west-1", "site_7.rack2"] {
            assert_eq!(good.parse::<Zone>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", "EU", "a b", &"x".repeat(64)] {
            assert!(bad.parse::<Zone>().is_err(), "{bad:?}");
        }
    }
}
