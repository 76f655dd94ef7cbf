//! How members behave in gossip: those who flood are damped, those who pass on what no honest member does are banned.
//!
//! Gossipsub asks this process about each message before it passes it on, so an honest member never passes on what is
//! rejected here, and seldom what is ignored.

use std::time::{Duration, Instant};

use shoal_types::PeerId;

use crate::budget::{Allowance, Budget};

/// What gossip may be like.
#[derive(Clone, Debug)]
pub struct ConductConfig {
    /// News of one origin. More is neither believed nor passed on.
    pub news: Allowance,
    /// Messages passed on by one member that nobody believes. Each one more is an offence. Honest members pass some on:
    /// of an origin that this process has lost sight of.
    pub ignored: Allowance,
    /// Offences of one member. One more, and it is banned.
    pub offences: Allowance,
    /// How long.
    pub ban: Duration,
}

impl Default for ConductConfig {
    fn default() -> Self {
        Self {
            news: Allowance { burst: 5000, per_second: 500.0 },
            ignored: Allowance { burst: 3000, per_second: 50.0 },
            offences: Allowance { burst: 10, per_second: 0.1 },
            ban: Duration::from_secs(300),
        }
    }
}

/// Members remembered: as many as may be connected, and those that have just left.
const MEMBERS_MAX: usize = 8192;

#[derive(Debug)]
pub(crate) struct Conduct {
    news: Budget<PeerId>,
    ignored: Budget<PeerId>,
    offences: Budget<PeerId>,
    ban: Duration,
}

impl Conduct {
    pub(crate) fn new(config: &ConductConfig) -> Self {
        Self {
            news: Budget::new(config.news, MEMBERS_MAX),
            ignored: Budget::new(config.ignored, MEMBERS_MAX),
            offences: Budget::new(config.offences, MEMBERS_MAX),
            ban: config.ban,
        }
    }

    /// Whether one more piece of news of an origin is to be believed now.
    pub(crate) fn may_tell(&mut self, origin: PeerId, now: Instant) -> bool {
        self.news.take(origin, now)
    }

    /// A member passed on what is not believed. Returns how long it is to be banned.
    pub(crate) fn ignored(&mut self, by: PeerId, now: Instant) -> Option<Duration> {
        if self.ignored.take(by, now) { None } else { self.offended(by, now) }
    }

    /// A member passed on what no honest member does. Returns how long it is to be banned.
    pub(crate) fn offended(&mut self, by: PeerId, now: Instant) -> Option<Duration> {
        (!self.offences.take(by, now)).then_some(self.ban)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floods_and_forgeries_end_in_a_ban_and_slips_do_not() {
        let config = ConductConfig::default();
        let (mut conduct, start) = (Conduct::new(&config), Instant::now());
        let peer = |n: u8| PeerId::from_public_key([n; 32]);
        let slips = (0..100).filter_map(|n| conduct.offended(peer(1), start + Duration::from_secs(n * 60)));
        assert_eq!(slips.count(), 0);
        let bans = (0..=config.offences.burst).filter_map(|_| conduct.offended(peer(2), start)).count();
        assert_eq!(bans, 1);
        let until_ban = (0..).take_while(|_| conduct.ignored(peer(3), start).is_none()).count();
        assert_eq!(until_ban, (config.ignored.burst + config.offences.burst) as usize);
        assert!(conduct.ignored(peer(4), start).is_none());
        let told = (0..10_000).filter(|_| conduct.may_tell(peer(5), start)).count();
        assert_eq!(told, config.news.burst as usize);
    }
}
