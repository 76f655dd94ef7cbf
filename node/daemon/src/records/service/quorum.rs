//! Counting majorities: what owners answered, and who has to be counted among them.

use std::cmp::Ordering;
use std::time::Duration;

use shoal_net::control::Origin;
use shoal_net::identity::Identity;
use shoal_net::revocation::Revocations;
use shoal_types::record::SignedRecord;
use shoal_types::{Role, SignedCredential};
use tokio::time::Instant;

use super::RecordError;
use crate::clock::wall_now;
use crate::records::ledger::Ledger;

/// What the owners of one zone answered.
#[derive(Debug, Default)]
pub(super) struct ZoneRead {
    /// How many did.
    pub(super) answers: usize,
    /// How many of them know the newest.
    pub(super) up_to_date: usize,
    pub(super) newest: Option<SignedRecord>,
}

impl ZoneRead {
    pub(super) fn note(&mut self, record: Option<SignedRecord>) {
        self.answers += 1;
        let version = |record: &Option<SignedRecord>| record.as_ref().map(|record| record.value().version);
        match version(&record).cmp(&version(&self.newest)) {
            Ordering::Greater => (self.up_to_date, self.newest) = (1, record),
            Ordering::Equal => self.up_to_date += 1,
            Ordering::Less => {}
        }
    }

    pub(super) fn majority(&self, owners: &[Origin]) -> Result<(), RecordError> {
        let (answers, majority) = (self.answers, owners.len() / 2 + 1);
        if answers >= majority {
            return Ok(());
        }
        let why = format!("{answers} of {} owners answered, {majority} are needed", owners.len());
        Err(RecordError::Unavailable(why))
    }
}

/// The origins of this zone that were known before this process started.
pub(super) struct Expected {
    origins: Vec<Origin>,
    /// Until when they are waited for: as long as an origin lives without a heartbeat.
    until: Instant,
}

impl Expected {
    pub(super) fn read(
        ledger: &Ledger,
        identity: &Identity,
        revocations: &Revocations,
        lifetime: Duration,
    ) -> Self {
        let now = wall_now();
        let own = identity.credential.value();
        let counts = |credential: &SignedCredential| {
            let value = credential.value();
            identity.mesh.check(credential, value.peer, now).is_ok()
                && value.roles.contains(Role::Origin)
                && value.zone == own.zone
                && value.peer != own.peer
                && !revocations.is_revoked(&value.peer, credential)
        };
        let origin = |credential: SignedCredential| Origin {
            peer: credential.value().peer,
            zone: credential.value().zone.clone(),
            endpoints: Vec::new(),
            sent: now,
            credential,
        };
        let known = ledger.authors().unwrap_or_else(|error| {
            tracing::warn!(%error, "the origins of before cannot be read");
            Vec::new()
        });
        let origins = known.into_iter().filter(counts).map(origin).collect();
        Self { origins, until: Instant::now() + lifetime }
    }

    /// Those not heard of yet.
    pub(super) fn still<'a>(&'a self, alive: &'a [Origin]) -> impl Iterator<Item = Origin> + 'a {
        let waiting = Instant::now() < self.until;
        let missing = move |one: &&Origin| waiting && alive.iter().all(|other| other.peer != one.peer);
        self.origins.iter().filter(missing).cloned()
    }
}
