//! Sizes, rates and times as people write them.

use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error};

/// Bytes: `"1.5GB"`, `"256KiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

/// Bytes per second: `"300MB/s"`, `"1Gbit/s"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(pub u64);

/// A time: `"200us"`, `"1.5s"`, `"2min"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub Duration);

const SIZES: [(&str, f64); 9] = [
    ("B", 1.0),
    ("kB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("TB", 1e12),
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
    ("TiB", 1_099_511_627_776.0),
];
const BITS: [(&str, f64); 4] = [("bit", 0.125), ("kbit", 125.0), ("Mbit", 125e3), ("Gbit", 125e6)];
const TIMES: [(&str, f64); 6] =
    [("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9), ("min", 60e9), ("h", 3600e9)];

/// The number and unit in `text`, as a whole number of the smallest unit.
fn parse(text: &str, units: impl Iterator<Item = (&'static str, f64)>) -> Option<u64> {
    let split = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().ok()?;
    let (_, factor) = units.into_iter().find(|(name, _)| *name == unit.trim())?;
    let value = number * factor;
    (value.is_finite() && value < 1.8e19).then_some(value.round() as u64)
}

fn text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    String::deserialize(from)
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = text(from)?;
        parse(&text, SIZES.into_iter()).map(Self).ok_or_else(|| {
            D::Error::custom(format!("{text:?} is not a size such as \"1.5GB\" or \"256KiB\""))
        })
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = text(from)?;
        text.strip_suffix("/s")
            .and_then(|amount| parse(amount, SIZES.into_iter().chain(BITS)))
            .filter(|rate| *rate > 0)
            .map(Self)
            .ok_or_else(|| {
                D::Error::custom(format!("{text:?} is not a rate such as \"300MB/s\" or \"1Gbit/s\""))
            })
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = text(from)?;
        parse(&text, TIMES.into_iter()).map(|nanos| Self(Duration::from_nanos(nanos))).ok_or_else(|| {
            D::Error::custom(format!("{text:?} is not a time such as \"200us\", \"1.5s\" or \"2min\""))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        let size = |text| parse(text, SIZES.into_iter());
        assert_eq!(size("1.5GB"), Some(1_500_000_000));
        assert_eq!(size("256 KiB"), Some(262_144));
        assert_eq!(size("3"), None);
        assert_eq!(size("GB"), None);
        assert_eq!(size("3 parsecs"), None);
        assert_eq!(parse("10Gbit", BITS.into_iter()), Some(1_250_000_000));
        assert_eq!(parse("200us", TIMES.into_iter()), Some(200_000));
    }
}
