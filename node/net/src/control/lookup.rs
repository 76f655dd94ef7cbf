//! Lookups of providers under way: who waits for what, and when each is over.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use libp2p::kad::QueryId;
use shoal_types::{Digest, PeerId};
use tokio::sync::mpsc;

use super::config::LookupConfig;
use super::handle::{Found, Provider};

type LookupId = u64;

struct Lookup {
    digest: Digest,
    found: mpsc::Sender<Found>,
    query: Option<QueryId>,
    seen: BTreeSet<PeerId>,
    /// Providers whose endpoints are being asked of themselves.
    asked: BTreeSet<PeerId>,
    deadline: Instant,
    yielded: usize,
    answered: bool,
}

impl Lookup {
    fn is_over(&self, now: Instant, config: &LookupConfig) -> bool {
        now >= self.deadline
            || (self.query.is_none() && self.asked.is_empty())
            || self.yielded >= config.providers_max
            || self.found.is_closed()
    }
}

/// What a lookup came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// The query to stop, if it still runs.
    pub(crate) query: Option<QueryId>,
    /// Whether it found anything.
    pub(crate) hit: bool,
}

/// All lookups. Bounded by [`LookupConfig::concurrent_max`].
pub(crate) struct Lookups {
    config: LookupConfig,
    next: LookupId,
    open: BTreeMap<LookupId, Lookup>,
    by_query: HashMap<QueryId, LookupId>,
}

impl Lookups {
    pub(crate) fn new(config: LookupConfig) -> Self {
        Self { config, next: 0, open: BTreeMap::new(), by_query: HashMap::new() }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.open.len() < self.config.concurrent_max
    }

    /// A query for `digest` has begun.
    pub(crate) fn begin(&mut self, digest: Digest, query: QueryId, found: mpsc::Sender<Found>, now: Instant) {
        let id = self.next;
        self.next += 1;
        self.by_query.insert(query, id);
        let lookup = Lookup {
            digest,
            found,
            query: Some(query),
            seen: BTreeSet::new(),
            asked: BTreeSet::new(),
            deadline: now + self.config.timeout,
            yielded: 0,
            answered: false,
        };
        self.open.insert(id, lookup);
    }

    /// The blob a query is about, if the query is one of ours.
    pub(crate) fn digest(&self, query: QueryId) -> Option<Digest> {
        self.lookup(query).map(|lookup| lookup.digest)
    }

    fn lookup(&self, query: QueryId) -> Option<&Lookup> {
        self.open.get(self.by_query.get(&query)?)
    }

    fn lookup_mut(&mut self, query: QueryId) -> Option<&mut Lookup> {
        self.open.get_mut(self.by_query.get(&query)?)
    }

    /// A query names a provider. Returns whether it is new to the lookup.
    pub(crate) fn saw(&mut self, query: QueryId, peer: PeerId) -> bool {
        let most = self.config.providers_max;
        self.lookup_mut(query).is_some_and(|lookup| lookup.seen.len() < most && lookup.seen.insert(peer))
    }

    /// A provider's endpoints must be asked of itself.
    pub(crate) fn ask(&mut self, query: QueryId, peer: PeerId) {
        if let Some(lookup) = self.lookup_mut(query) {
            lookup.asked.insert(peer);
        }
    }

    /// Yields a provider to the lookup of `query`.
    pub(crate) fn yield_to(&mut self, query: QueryId, provider: Provider, now: Instant) {
        let linger = self.config.linger;
        if let Some(lookup) = self.lookup_mut(query) {
            give(lookup, provider, now + linger);
        }
    }

    /// A peer has said where its data plane is (or, with `None`, cannot be asked). Returns how many lookups it was
    /// yielded to.
    pub(crate) fn told(&mut self, peer: PeerId, provider: Option<&Provider>, now: Instant) -> u64 {
        let until = now + self.config.linger;
        let mut yielded = 0;
        for lookup in self.open.values_mut() {
            if lookup.asked.remove(&peer)
                && let Some(provider) = provider
            {
                give(lookup, provider.clone(), until);
                yielded += 1;
            }
        }
        yielded
    }

    /// A peer answered a query.
    pub(crate) fn answered(&mut self, query: QueryId) {
        if let Some(lookup) = self.lookup_mut(query) {
            lookup.answered = true;
        }
    }

    /// A query ran out.
    pub(crate) fn finished(&mut self, query: QueryId) {
        if let Some(lookup) = self.lookup_mut(query) {
            lookup.query = None;
        }
        self.by_query.remove(&query);
    }

    /// The next moment at which [`Self::sweep`] has something to do by time alone.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.open.values().map(|lookup| lookup.deadline).min()
    }

    /// Ends the lookups that are over.
    pub(crate) fn sweep(&mut self, now: Instant) -> Vec<Ended> {
        let config = &self.config;
        let over = self.open.iter().filter(|(_, lookup)| lookup.is_over(now, config));
        let over: Vec<LookupId> = over.map(|(id, _)| *id).collect();
        let mut ended = Vec::new();
        for lookup in over.into_iter().filter_map(|id| self.open.remove(&id)) {
            if let Some(query) = lookup.query {
                self.by_query.remove(&query);
            }
            // Should the reader be so slow that this does not fit, the channel's end says it all the same.
            let _ = lookup.found.try_send(Found::End { answered: lookup.answered || lookup.yielded > 0 });
            ended.push(Ended { query: lookup.query, hit: lookup.yielded > 0 });
        }
        ended
    }
}

fn give(lookup: &mut Lookup, provider: Provider, until: Instant) {
    if lookup.found.try_send(Found::Provider(provider)).is_ok() {
        lookup.yielded += 1;
        lookup.deadline = lookup.deadline.min(until);
    }
}
