//! What is wrong with a scenario.

use std::collections::BTreeSet;

use shoal_types::Zone;

use super::{Arrival, FaultKind, Scenario};

/// Why a scenario cannot be run.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ScenarioError {
    /// It is not TOML, or not of a scenario's form.
    #[error("{0}")]
    Form(String),
    /// A value makes no sense.
    #[error("{place}: {problem}")]
    Value {
        /// Where.
        place: String,
        /// What, and what to do.
        problem: String,
    },
}

fn wrong(place: impl Into<String>, problem: impl Into<String>) -> ScenarioError {
    ScenarioError::Value { place: place.into(), problem: problem.into() }
}

/// Hosts of a scenario at most: the simulator holds an engine for each.
const HOSTS_MAX: usize = 100_000;

impl Scenario {
    /// Reads and checks a scenario.
    ///
    /// # Errors
    /// [`ScenarioError`] says where and what to do.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = toml::from_str(text).map_err(|error| ScenarioError::Form(error.to_string()))?;
        scenario.check()?;
        Ok(scenario)
    }

    fn check(&self) -> Result<(), ScenarioError> {
        let groups = self.check_hosts()?;
        let known = |place: &str, name: &String| {
            let all: Vec<&str> = groups.iter().map(|group| group.as_str()).collect();
            if groups.contains(name) {
                return Ok(());
            }
            Err(wrong(
                place,
                format!("there is no group {name:?}; the groups of [[hosts]] are {}", all.join(", ")),
            ))
        };
        let mut blobs = BTreeSet::new();
        for blob in &self.blobs {
            let place = format!("blobs {:?}", blob.name);
            if !blobs.insert(&blob.name) {
                return Err(wrong(place, "the name is used twice"));
            }
            match (blob.size, blob.sizes) {
                (Some(_), None) => {}
                (None, Some([least, most])) if least.0 <= most.0 => {}
                (None, Some(_)) => return Err(wrong(place, "sizes must be [smallest, largest]")),
                _ => return Err(wrong(place, "give either size or sizes")),
            }
            let largest = blob.size.or(blob.sizes.map(|sizes| sizes[1])).map_or(0, |size| size.0);
            if largest > shoal_types::layout::BLOB_BYTES_MAX {
                return Err(wrong(place, "the size is over the largest blob's"));
            }
            if blob.count == 0 || blob.copies == Some(0) || blob.on.is_empty() {
                return Err(wrong(place, "count, copies and on must not be empty"));
            }
            blob.on.iter().try_for_each(|group| known(&place, group))?;
        }
        for (number, pull) in self.pulls.iter().enumerate() {
            let place = format!("pulls {}", number + 1);
            pull.by.iter().try_for_each(|group| known(&place, group))?;
            if let Some(name) = pull.blobs.iter().find(|name| !blobs.contains(name)) {
                return Err(wrong(place, format!("there are no [[blobs]] {name:?}")));
            }
            let bad = match pull.arrival {
                Arrival::AtOnce | Arrival::Rolling(_) => false,
                Arrival::Poisson(rate) => !(rate.is_finite() && rate > 0.0),
                Arrival::Waves { count, .. } => count == 0,
            };
            if bad || pull.by.is_empty() || pull.blobs.is_empty() {
                return Err(wrong(place, "by, blobs, and the rate or count of arrivals must not be empty"));
            }
        }
        for (number, fault) in self.faults.iter().enumerate() {
            let place = format!("faults {}", number + 1);
            let of_zones = fault.kind == FaultKind::Cut;
            if of_zones != fault.zones.is_some() || of_zones == fault.of.is_some() {
                return Err(wrong(place, "a cut needs zones, every other fault needs of"));
            }
            fault.of.iter().try_for_each(|group| known(&place, group))?;
            if fault.times.is_some_and(|times| times > 1) && fault.every.is_none() {
                return Err(wrong(place, "times needs every"));
            }
            if fault.kind == FaultKind::Freeze && fault.back_after.is_none() {
                return Err(wrong(place, "a freeze needs back_after"));
            }
        }
        if self.network.overhead.is_some_and(|overhead| !(1.0..4.0).contains(&overhead)) {
            return Err(wrong("network", "overhead must be from 1 to 4"));
        }
        if self.network.rebalance.is_some_and(|time| time.0.is_zero()) {
            return Err(wrong("network", "rebalance must not be zero"));
        }
        self.check_zones()
    }

    fn check_hosts(&self) -> Result<BTreeSet<&String>, ScenarioError> {
        let mut groups = BTreeSet::new();
        for group in &self.hosts {
            let place = format!("hosts {:?}", group.name);
            if !groups.insert(&group.name) {
                return Err(wrong(place, "the name is used twice"));
            }
            if group.rate.is_none() && (group.up.is_none() || group.down.is_none()) {
                return Err(wrong(place, "give rate, or both up and down"));
            }
        }
        let count: usize = self.hosts.iter().map(|group| group.count).sum();
        if count == 0 || count > HOSTS_MAX {
            return Err(wrong("hosts", format!("there must be 1 to {HOSTS_MAX} hosts, not {count}")));
        }
        Ok(groups)
    }

    fn check_zones(&self) -> Result<(), ScenarioError> {
        let mut zones = BTreeSet::new();
        for group in &self.hosts {
            let zone = self.zone(group.zone.as_deref())?;
            zones.insert(zone);
        }
        let pairs = self.links.iter().map(|link| ("links", &link.between));
        let cuts = self.faults.iter().filter_map(|fault| Some(("faults", fault.zones.as_ref()?)));
        for (place, [one, other]) in pairs.chain(cuts) {
            for name in [one, other] {
                if !zones.contains(&self.zone(Some(name))?) {
                    return Err(wrong(place, format!("no [[hosts]] are in the zone {name:?}")));
                }
            }
            if one == other {
                return Err(wrong(place, "the two zones must differ"));
            }
        }
        Ok(())
    }

    /// A zone by its name.
    pub(super) fn zone(&self, name: Option<&str>) -> Result<Zone, ScenarioError> {
        let Some(name) = name else { return Ok(Zone::default()) };
        name.parse().map_err(|error: shoal_types::zone::ZoneParseError| wrong("zone", error.to_string()))
    }
}
