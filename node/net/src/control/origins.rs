//! The origins alive, as their heartbeats tell.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use shoal_types::{
    CredentialError, Endpoint, Heartbeat, MeshPublicKey, PeerId, Role, Signed, SignedCredential, WallTime,
    Zone,
};

use super::config::HeartbeatConfig;

/// An origin that is alive as far as this process knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Who.
    pub peer: PeerId,
    /// Its zone, from its credential.
    pub zone: Zone,
    /// Where its data plane is dialled, best first.
    pub endpoints: Vec<Endpoint>,
    /// When it sent its last heartbeat, by its own clock.
    pub sent: WallTime,
    /// What makes it an origin.
    pub credential: SignedCredential,
}

/// Why a heartbeat is not believed. [`Self::is_hostile`] tells the malicious from the merely late.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeartbeatError {
    /// Its credential does not admit its sender.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// Its sender is a member, but no origin.
    #[error("{0} is not an origin")]
    NotOrigin(PeerId),
    /// It was sent too long ago, or is no newer than the last one.
    #[error("an old heartbeat of {0}")]
    Old(PeerId),
    /// It was sent in the future: one of the two clocks is wrong.
    #[error("a heartbeat of {0} from the future: check both clocks")]
    Future(PeerId),
    /// As many origins as may be are known already.
    #[error("too many origins")]
    Full,
}

impl HeartbeatError {
    /// Whether only somebody who forges heartbeats would pass this one on.
    pub fn is_hostile(&self) -> bool {
        matches!(
            self,
            Self::NotOrigin(_)
                | Self::Credential(
                    CredentialError::Document(_)
                        | CredentialError::OtherMesh
                        | CredentialError::OtherHolder { .. }
                )
        )
    }
}

#[derive(Debug)]
struct Known {
    beat: Signed<Heartbeat>,
    heard: Instant,
    alive: bool,
}

/// The table of origins. Bounded; an origin is forgotten when it says that it leaves, when its heartbeats stay
/// away, and when its credential expires.
#[derive(Debug)]
pub struct Origins {
    mesh: MeshPublicKey,
    config: HeartbeatConfig,
    known: BTreeMap<PeerId, Known>,
}

impl Origins {
    /// An empty table.
    pub fn new(mesh: MeshPublicKey, config: HeartbeatConfig) -> Self {
        Self { mesh, config, known: BTreeMap::new() }
    }

    /// How long an origin lives without a heartbeat.
    pub fn lifetime(&self) -> Duration {
        self.config.interval * self.config.missed_max
    }

    /// Takes in a heartbeat heard `age` ago. Returns whether the set of origins, or what is known of one, changed.
    ///
    /// # Errors
    /// [`HeartbeatError`]: the table is as before.
    pub fn observe(
        &mut self,
        beat: Signed<Heartbeat>,
        age: Duration,
        now: Instant,
        wall: WallTime,
    ) -> Result<bool, HeartbeatError> {
        let value = beat.value();
        let peer = value.peer();
        self.mesh.check(&value.credential, peer, wall)?;
        if !value.credential.value().roles.contains(Role::Origin) || beat.signer() != peer {
            return Err(HeartbeatError::NotOrigin(peer));
        }
        if value.sent.saturating_since(wall) > self.config.clock_skew_max {
            return Err(HeartbeatError::Future(peer));
        }
        let too_old = wall.saturating_since(value.sent) > self.lifetime() + self.config.clock_skew_max;
        let Some(heard) = now.checked_sub(age).filter(|_| !too_old && age < self.lifetime()) else {
            return Err(HeartbeatError::Old(peer));
        };
        let before = self.known.get(&peer);
        if before.is_some_and(|known| known.beat.value().sent >= value.sent) {
            return Err(HeartbeatError::Old(peer));
        }
        if before.is_none() && self.known.len() >= self.config.origins_max {
            return Err(HeartbeatError::Full);
        }
        let changed = match before {
            Some(known) => {
                let old = known.beat.value();
                known.alive == value.leaving
                    || (!value.leaving
                        && (old.endpoints != value.endpoints || old.credential != value.credential))
            }
            None => !value.leaving,
        };
        // One that left stays in the table, dead, for its lifetime: an older heartbeat still under way must not
        // bring it back.
        let alive = !value.leaving;
        self.known.insert(peer, Known { beat, heard, alive });
        Ok(changed)
    }

    /// Forgets those whose credentials are revoked. Returns whether the set of origins changed.
    pub(crate) fn remove_revoked(&mut self, revoked: impl Fn(&PeerId, &SignedCredential) -> bool) -> bool {
        let before = self.known.len();
        self.known.retain(|peer, known| !revoked(peer, &known.beat.value().credential));
        self.known.len() != before
    }

    /// Forgets the silent and the expired. Returns whether the set of origins changed.
    pub fn expire(&mut self, now: Instant, wall: WallTime) -> bool {
        let lifetime = self.lifetime();
        let mut changed = false;
        self.known.retain(|_, known| {
            let silent = now.saturating_duration_since(known.heard) >= lifetime;
            let expired = known.beat.value().credential.value().not_after < wall;
            changed |= (silent || expired) && known.alive;
            !silent && !expired
        });
        changed
    }

    /// Forgets one (it was banned, or its credential revoked). Returns whether it was alive.
    pub fn remove(&mut self, peer: &PeerId) -> bool {
        self.known.remove(peer).is_some_and(|known| known.alive)
    }

    /// Whether `peer` is an origin alive.
    pub fn contains(&self, peer: &PeerId) -> bool {
        self.known.get(peer).is_some_and(|known| known.alive)
    }

    /// The origins alive, by peer id.
    pub fn alive(&self) -> Vec<Origin> {
        let alive = self.known.values().filter(|known| known.alive);
        alive
            .map(|known| {
                let beat = known.beat.value();
                Origin {
                    peer: beat.peer(),
                    zone: beat.credential.value().zone.clone(),
                    endpoints: beat.endpoints.clone(),
                    sent: beat.sent,
                    credential: beat.credential.clone(),
                }
            })
            .collect()
    }

    /// The last heartbeats of up to `most` origins alive, latest first, and how long ago each was heard.
    pub fn heartbeats(&self, most: usize, now: Instant) -> Vec<(Duration, Signed<Heartbeat>)> {
        let alive = self.known.values().filter(|known| known.alive);
        let mut beats: Vec<_> =
            alive.map(|known| (now.saturating_duration_since(known.heard), known.beat.clone())).collect();
        beats.sort_by_key(|(age, beat)| (*age, beat.signer()));
        beats.truncate(most);
        beats
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_types::{Credential, Keypair, MeshKey, Roles};

    const NOW: u64 = 1_000_000_000;

    fn wall(seconds: u64) -> WallTime {
        WallTime::from_unix_millis(NOW + seconds * 1000)
    }

    fn mesh() -> MeshKey {
        MeshKey::from_secret(&[1; 32])
    }

    fn beat(n: u8, role: Role, sent: u64, leaving: bool) -> Signed<Heartbeat> {
        let keypair = Keypair::from_secret(&[n; 32]);
        let credential = mesh().issue(Credential {
            peer: keypair.peer_id(),
            roles: Roles::NONE.with(role),
            zone: Zone::default(),
            namespaces: vec![],
            not_before: WallTime::default(),
            not_after: wall(1_000),
            issuer: None,
        });
        let endpoints = vec!["10.0.0.1:4002".parse().unwrap()];
        Signed::sign(Heartbeat { credential, endpoints, sent: wall(sent), leaving }, &keypair)
    }

    fn table() -> Origins {
        Origins::new(mesh().public(), HeartbeatConfig { origins_max: 2, ..HeartbeatConfig::default() })
    }

    #[test]
    fn lives_as_long_as_it_beats() {
        let (mut table, start) = (table(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(table.observe(beat(2, Role::Origin, 0, false), Duration::ZERO, at(0), wall(0)), Ok(true));
        assert_eq!(table.observe(beat(2, Role::Origin, 5, false), Duration::ZERO, at(5), wall(5)), Ok(false));
        let old = table.observe(beat(2, Role::Origin, 5, false), Duration::ZERO, at(6), wall(6));
        assert!(matches!(old, Err(HeartbeatError::Old(_))));
        assert!(!table.expire(at(19), wall(19)));
        assert_eq!(table.alive().len(), 1);
        assert!(table.expire(at(20), wall(20)));
        assert!(table.alive().is_empty());
    }

    #[test]
    fn passing_a_heartbeat_on_does_not_make_it_younger() {
        let (mut table, start) = (table(), Instant::now() + Duration::from_secs(60));
        let beat = beat(2, Role::Origin, 0, false);
        assert_eq!(table.observe(beat, Duration::from_secs(14), start, wall(14)), Ok(true));
        assert_eq!(table.heartbeats(9, start)[0].0, Duration::from_secs(14));
        assert!(table.expire(start + Duration::from_secs(1), wall(15)));
    }

    #[test]
    fn leaving_is_at_once_and_older_beats_do_not_undo_it() {
        let (mut table, now) = (table(), Instant::now());
        table.observe(beat(2, Role::Origin, 0, false), Duration::ZERO, now, wall(0)).unwrap();
        assert_eq!(table.observe(beat(2, Role::Origin, 2, true), Duration::ZERO, now, wall(2)), Ok(true));
        assert!(table.alive().is_empty() && table.heartbeats(9, now).is_empty());
        assert!(table.observe(beat(2, Role::Origin, 1, false), Duration::ZERO, now, wall(2)).is_err());
        assert_eq!(table.observe(beat(2, Role::Origin, 3, false), Duration::ZERO, now, wall(3)), Ok(true));
        assert_eq!(table.alive().len(), 1);
    }

    #[test]
    fn only_origins_of_the_mesh_and_of_the_present_are_believed() {
        let (mut table, now) = (table(), Instant::now());
        let mut see = |beat, at| table.observe(beat, Duration::ZERO, now, wall(at)).unwrap_err();
        assert!(see(beat(2, Role::Gateway, 0, false), 0).is_hostile());
        assert!(matches!(see(beat(2, Role::Origin, 500, false), 0), HeartbeatError::Future(_)));
        assert!(matches!(see(beat(2, Role::Origin, 0, false), 500), HeartbeatError::Old(_)));
        let expired = see(beat(2, Role::Origin, 1_000, false), 1_001);
        assert!(matches!(expired, HeartbeatError::Credential(CredentialError::Expired { .. })));
        assert!(!expired.is_hostile());
        let mut other = Origins::new(MeshKey::from_secret(&[9; 32]).public(), HeartbeatConfig::default());
        let foreign = other.observe(beat(2, Role::Origin, 0, false), Duration::ZERO, now, wall(0));
        assert!(foreign.unwrap_err().is_hostile());
    }

    #[test]
    fn bounded() {
        let (mut table, now) = (table(), Instant::now());
        for n in [2, 3] {
            table.observe(beat(n, Role::Origin, 0, false), Duration::ZERO, now, wall(0)).unwrap();
        }
        let third = table.observe(beat(4, Role::Origin, 0, false), Duration::ZERO, now, wall(0));
        assert_eq!(third, Err(HeartbeatError::Full));
        assert!(table.remove(&Keypair::from_secret(&[2; 32]).peer_id()));
    }
}
