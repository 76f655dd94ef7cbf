//! Which gateways an image is preheated at.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use shoal_types::Zone;

/// The zones whose gateways are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Zones {
    /// That of the node that is asked.
    #[default]
    Own,
    /// One by its name.
    One(Zone),
    /// All.
    All,
}

/// How many of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Take {
    /// All.
    #[default]
    All,
    /// So many, at least one.
    Count(u32),
    /// So many of a hundred, 1 to 100, rounded up.
    Percent(u8),
}

impl Take {
    /// How many of `there` are meant.
    pub fn of(self, there: usize) -> usize {
        match self {
            Self::All => there,
            Self::Count(count) => there.min(count as usize),
            Self::Percent(percent) => there.saturating_mul(usize::from(percent)).div_ceil(100).min(there),
        }
    }
}

/// Which gateways: as a text `all`, `zone`, `zone=NAME`, with `count=N` or `percent=N` after a comma or alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Scope {
    /// Of which zones.
    pub zones: Zones,
    /// How many of them.
    pub take: Take,
}

/// The text is no scope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} does not say which gateways: all, zone or zone=NAME, and after a comma or alone count=N or percent=N (1 to 100)"
)]
pub struct ScopeParseError(String);

impl FromStr for Scope {
    type Err = ScopeParseError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ScopeParseError(text.to_owned());
        let (mut zones, mut take) = (None, None);
        for part in text.split(',').map(str::trim) {
            match part.split_once('=') {
                None if part == "all" && zones.is_none() => zones = Some(Zones::All),
                None if part == "zone" && zones.is_none() => zones = Some(Zones::Own),
                Some(("zone", name)) if zones.is_none() => {
                    zones = Some(Zones::One(name.parse().map_err(|_| bad())?));
                }
                Some(("count", count)) if take.is_none() => {
                    let count = count.parse::<u32>().ok().filter(|count| *count > 0).ok_or_else(bad)?;
                    take = Some(Take::Count(count));
                }
                Some(("percent", percent)) if take.is_none() => {
                    let percent = percent.parse::<u8>().ok().filter(|percent| (1..=100).contains(percent));
                    take = Some(Take::Percent(percent.ok_or_else(bad)?));
                }
                _ => return Err(bad()),
            }
        }
        Ok(Self { zones: zones.unwrap_or_default(), take: take.unwrap_or_default() })
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.zones {
            Zones::Own => f.write_str("zone")?,
            Zones::One(zone) => write!(f, "zone={zone}")?,
            Zones::All => f.write_str("all")?,
        }
        match self.take {
            Take::All => Ok(()),
            Take::Count(count) => write!(f, ",count={count}"),
            Take::Percent(percent) => write!(f, ",percent={percent}"),
        }
    }
}

impl TryFrom<String> for Scope {
    type Error = ScopeParseError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> Self {
        scope.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_read_as_they_are_written() {
        for (text, written) in [
            ("all", "all"),
            ("zone", "zone"),
            ("zone=eu", "zone=eu"),
            ("count=3", "zone,count=3"),
            ("all, percent=10", "all,percent=10"),
            ("count=1,zone=eu", "zone=eu,count=1"),
        ] {
            let scope: Scope = text.parse().unwrap();
            assert_eq!(scope.to_string(), written);
            assert_eq!(written.parse(), Ok(scope));
        }
        for text in
            ["", "some", "count=0", "percent=0", "percent=101", "all,zone", "count=1,percent=2", "zone=E!"]
        {
            assert!(text.parse::<Scope>().is_err(), "{text}");
        }
    }

    #[test]
    fn shares_are_rounded_up_and_never_more_than_there_is() {
        assert_eq!((Take::All.of(7), Take::Count(3).of(7), Take::Count(9).of(7)), (7, 3, 7));
        assert_eq!((Take::Percent(50).of(7), Take::Percent(1).of(7), Take::Percent(100).of(7)), (4, 1, 7));
        assert_eq!(Take::Percent(50).of(0), 0);
    }
}
