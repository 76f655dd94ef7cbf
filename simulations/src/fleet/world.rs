//! What every node may look at while all of them run: it changes only between two strides.

use std::collections::{BTreeMap, BTreeSet};

use shoal_engine::message::PeerHint;
use shoal_types::{Digest, Endpoint, PeerId, Roles, Zone, rendezvous};

use super::steps::STRIDE_MAX;
use super::{FleetConfig, STEP_MIN};
use crate::network::nanos;
use crate::trace::{HASH_START, hash_word};
use crate::truth::Truth;

/// Delays of pairs of nodes differ by up to this part of the delay inside a zone.
const SPREAD_PART: u64 = 5;

/// What others see of a node, in one cache line.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Fact {
    pub(crate) peer: PeerId,
    /// How often it was started: what was meant for a life before is not for this one.
    pub(crate) life: u32,
    /// Nodes of different parts cannot reach each other.
    pub(crate) part: u32,
    pub(crate) zone: u32,
    pub(crate) alive: bool,
    /// Stopped as by SIGSTOP: it neither reads, sends nor runs, and its connections stay open.
    pub(crate) stopped: bool,
    /// It sends rubbish.
    pub(crate) corrupt: bool,
    pub(crate) roles: Roles,
    /// When it died.
    pub(crate) died: u64,
}

const _: () = assert!(size_of::<Fact>() == 64);

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) config: FleetConfig,
    seed: u64,
    pub(crate) facts: Vec<Fact>,
    pub(crate) origins: Vec<u32>,
    pub(crate) blobs: Vec<Truth>,
    /// Their digests.
    pub(crate) digests: Vec<Digest>,
    pub(crate) by_digest: BTreeMap<Digest, u32>,
    /// Pairs of zones between which nothing passes.
    pub(crate) cut_zones: BTreeSet<(u32, u32)>,
    /// The zones, by their numbers.
    pub(crate) zones: Vec<Zone>,
    /// One-way delays between zones in nanoseconds.
    pub(crate) delays: Vec<Vec<u64>>,
}

impl World {
    pub(crate) fn new(config: FleetConfig, seed: u64) -> Self {
        Self {
            config,
            seed,
            facts: Vec::new(),
            origins: Vec::new(),
            blobs: Vec::new(),
            digests: Vec::new(),
            by_digest: BTreeMap::new(),
            cut_zones: BTreeSet::new(),
            zones: Vec::new(),
            delays: Vec::new(),
        }
    }

    pub(crate) fn fact(&self, node: u32) -> &Fact {
        &self.facts[node as usize]
    }

    pub(crate) fn fact_mut(&mut self, node: u32) -> &mut Fact {
        &mut self.facts[node as usize]
    }

    /// A peer id's node: its number is in the key, see [`super::Fleet::add`]. All peer ids of a fleet are its nodes'.
    pub(crate) fn id_of(&self, peer: &PeerId) -> Option<u32> {
        let bytes = peer.public_key().get(24..28)?;
        let id = u32::from_le_bytes(bytes.try_into().ok()?);
        debug_assert!(self.facts.get(id as usize).is_none_or(|fact| fact.peer == *peer));
        ((id as usize) < self.facts.len()).then_some(id)
    }

    pub(crate) fn blob_of(&self, digest: &Digest) -> Option<u32> {
        self.by_digest.get(digest).copied()
    }

    /// Nanoseconds from when one end of a connection is gone until nothing that the other sent is under way any more, or more: it hears
    /// of that a delay later, what it has said till then comes another later, and mail may be held until its step or stride is over.
    pub(crate) fn in_flight_max(&self) -> u64 {
        let longest = self.delays.iter().flatten().max().copied().unwrap_or(0);
        4 * (longest + nanos(self.config.network.delay) + STEP_MIN) + 2 * STRIDE_MAX
    }

    /// Whether packets get from one node to the other.
    pub(crate) fn reaches(&self, a: u32, b: u32) -> bool {
        let (a, b) = (self.fact(a), self.fact(b));
        a.part == b.part && !self.cut_zones.contains(&(a.zone.min(b.zone), a.zone.max(b.zone)))
    }

    /// One-way delay in nanoseconds: that between the zones, and up to [`SPREAD_PART`] of that inside a zone more, which is each
    /// pair's own. Without it whatever begins at one moment would reach everybody at one moment and in one order.
    pub(crate) fn delay(&self, a: u32, b: u32) -> u64 {
        let between = self.delays[self.fact(a).zone as usize][self.fact(b).zone as usize];
        let pair = u64::from(a.min(b)) << 32 | u64::from(a.max(b));
        let spread = nanos(self.config.network.delay) / SPREAD_PART;
        between + hash_word(hash_word(HASH_START, pair), self.seed) % (spread + 1)
    }

    fn zone(&self, fact: &Fact) -> &Zone {
        &self.zones[fact.zone as usize]
    }

    pub(crate) fn hint(&self, node: u32) -> PeerHint {
        let fact = self.fact(node);
        let ip = std::net::IpAddr::from(node.to_be_bytes());
        PeerHint {
            peer: fact.peer,
            zone: self.zone(fact).clone(),
            endpoints: vec![Endpoint::from_ip(ip, 4002)],
            complete: false,
        }
    }

    /// The owners of a blob as a node knows them at `now`: those of its zone first, then zone by zone.
    pub(crate) fn owners(&self, node: u32, digest: &Digest, now: u64) -> Vec<u32> {
        let key = digest.multihash().to_bytes();
        let own = self.zone(self.fact(node));
        let forgotten = nanos(self.config.lookup.owner_forgotten_after);
        let asked = self.config.lookup.owners_asked;
        let known = |origin: &&u32| {
            let other = self.fact(**origin);
            **origin != node
                && self.reaches(node, **origin)
                && (other.alive || now < other.died.saturating_add(forgotten))
        };
        let mut zones: Vec<_> = self
            .origins
            .iter()
            .filter(known)
            .map(|origin| {
                let zone = self.zone(self.fact(*origin));
                (zone != own, zone, *origin)
            })
            .collect();
        zones.sort();
        let mut owners = Vec::new();
        for part in zones.chunk_by(|a, b| a.1 == b.1) {
            let peers = part.iter().map(|(.., origin)| self.fact(*origin).peer);
            owners.extend(rendezvous::rank(&key, peers).iter().filter_map(|peer| self.id_of(peer)));
            if owners.len() >= asked {
                break;
            }
        }
        owners.truncate(asked);
        owners
    }
}
