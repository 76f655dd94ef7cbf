//! One virtual process: an engine, a disk, an access link, readers.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use shoal_engine::Engine;
use shoal_engine::io::ReadError;
use shoal_engine::prefetch::{prefetch, prefetch_ends, prefetch_list};
use shoal_types::{Digest, Role, Roles, Timestamp, Zone};

use super::mail::Event;
use super::store::Store;

/// What a node is.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    /// Its zone.
    pub zone: Zone,
    /// Whether it is an origin: a possible owner of every blob.
    pub origin: bool,
    /// Rate of its access link towards the network, in bytes per second on the wire; `None` is unlimited.
    pub up_bytes_per_sec: Option<u64>,
    /// Rate of its access link from the network, in bytes per second on the wire; `None` is unlimited.
    pub down_bytes_per_sec: Option<u64>,
    /// It sends rubbish.
    pub corrupt: bool,
    /// Its disk.
    pub disk: DiskSpec,
    /// Its backend's rate in bytes per second, all fetches together.
    pub backend_bytes_per_sec: Option<u64>,
    /// Processors that open connections.
    pub cores: u32,
}

/// What a node's disk and processor do with a piece.
#[derive(Clone, Copy, Debug)]
pub struct DiskSpec {
    /// Time of an operation, whatever its size.
    pub delay: Duration,
    /// Bytes written per second; `None` is unlimited.
    pub write_bytes_per_sec: Option<u64>,
    /// Bytes read per second; `None` is unlimited. What was just written comes from the page cache.
    pub read_bytes_per_sec: Option<u64>,
    /// Bytes hashed per second when a piece is checked (BLAKE3, 7.5 GB/s a thread, measured).
    pub verify_bytes_per_sec: Option<u64>,
    /// Bytes hashed per second for the blob's digest (SHA-256, 1.95 GB/s a thread, measured).
    pub digest_bytes_per_sec: Option<u64>,
}

impl Default for DiskSpec {
    fn default() -> Self {
        Self {
            delay: Duration::from_micros(300),
            write_bytes_per_sec: Some(1_000_000_000),
            read_bytes_per_sec: Some(2_000_000_000),
            verify_bytes_per_sec: Some(7_500_000_000),
            digest_bytes_per_sec: Some(1_950_000_000),
        }
    }
}

impl Default for NodeSpec {
    fn default() -> Self {
        Self {
            zone: Zone::default(),
            origin: false,
            up_bytes_per_sec: Some(12_500_000),
            down_bytes_per_sec: Some(12_500_000),
            corrupt: false,
            disk: DiskSpec::default(),
            backend_bytes_per_sec: Some(200_000_000),
            cores: 4,
        }
    }
}

impl NodeSpec {
    /// The roles its credential would have.
    pub(crate) fn roles(&self) -> Roles {
        let roles = Roles::NONE.with(Role::Node);
        if self.origin { roles.with(Role::Origin) } else { roles }
    }

    /// The default node with another access rate, each way.
    pub fn with_rate(bytes_per_sec: u64) -> Self {
        Self {
            up_bytes_per_sec: Some(bytes_per_sec),
            down_bytes_per_sec: Some(bytes_per_sec),
            ..Self::default()
        }
    }
}

/// How a reader stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReaderOutcome {
    /// When it was opened.
    pub opened: Timestamp,
    /// Its blob's metainfo is known.
    pub started: bool,
    /// End of what it can read.
    pub until: u64,
    /// When its first byte could be read.
    pub first_byte: Option<Timestamp>,
    /// When it had everything.
    pub done: Option<Timestamp>,
    /// Why it failed.
    pub failed: Option<ReadError>,
}

impl ReaderOutcome {
    /// Whether nothing more will come.
    pub fn is_over(&self) -> bool {
        self.done.is_some() || self.failed.is_some()
    }
}

/// What a node did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Payload bytes sent to peers.
    pub sent_bytes: u64,
    /// Payload bytes of verified pieces.
    pub verified_bytes: u64,
    /// Payload bytes received and thrown away.
    pub wasted_bytes: u64,
    /// Pieces fetched from the backend.
    pub backend_pieces: u64,
    /// Messages sent.
    pub messages: u64,
    /// Their bytes, estimated from their contents.
    pub control_bytes: u64,
    /// Lookups of owners and of the DHT.
    pub lookups: [u64; 2],
}

#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) digest: Digest,
    pub(crate) outcome: ReaderOutcome,
    /// It belongs to the present life of the process.
    pub(crate) live: bool,
}

/// A node's end of a connection.
#[derive(Debug)]
pub(crate) struct Link {
    /// Its number at the network.
    pub(crate) connection: u32,
    /// Unlike any other connection's.
    pub(crate) serial: u32,
    /// The network between the ends is cut.
    pub(crate) cut: bool,
    /// One-way delay in nanoseconds.
    pub(crate) delay: u64,
    /// Pieces that the other end may send: this end's channel and the number.
    pub(crate) expected: Vec<(u32, u32)>,
    /// What arrived while the network was cut, and TCP sends again.
    pub(crate) delayed: Vec<Event>,
}

impl Link {
    pub(crate) fn new(connection: u32, serial: u32, delay: u64, cut: bool) -> Self {
        Self { connection, serial, cut, delay, expected: Vec::new(), delayed: Vec::new() }
    }
}

/// Connections among which one is found by counting those before it: all cache lines of them are fetched at once, where a binary search
/// waits for one after the other.
const COUNTED_MAX: usize = 256;
/// Cache lines of connections that are prefetched: 96 of them.
const OTHERS_LINES: usize = 6;

/// What of a node an event will look at.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Uses {
    /// The connection to that node.
    pub(crate) other: Option<u32>,
    /// A piece or a part of one arrives over it.
    pub(crate) arrives: bool,
    /// It is looked at what the disk holds.
    pub(crate) stored: bool,
    /// The piece it is about, once that is known.
    pub(crate) piece: Option<u32>,
}

/// What most events look at stands at the beginning, in few cache lines.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Node {
    pub(crate) engine: Engine,
    /// The next wake-up that is arranged.
    pub(crate) wake: u64,
    /// Until then something may come over a connection that is not there any more, or is cut.
    look_until: u64,
    pub(crate) trace_hash: u64,
    /// The other ends of its connections, in order.
    others: Vec<u32>,
    /// A connection each.
    links: Vec<Link>,
    pub(crate) disk_free: u64,
    pub(crate) disk: Store,
    pub(crate) readers: Vec<Opened>,
    /// Payload the engine has not decided about: its name, and whether it is right.
    pub(crate) buffers: Vec<(u64, bool)>,
    pub(crate) buffers_made: u64,
    pub(crate) tally: Tally,
    pub(crate) spec: NodeSpec,
    /// What reached it while it was stopped.
    pub(crate) missed: VecDeque<Event>,
    /// Whom it refuses.
    pub(crate) bans: BTreeSet<u32>,
    pub(crate) backend: BTreeSet<u32>,
    pub(crate) backend_down: bool,
    pub(crate) backend_free: u64,
    pub(crate) accept_free: u64,
    pub(crate) random: rand_pcg::Pcg64,
}

impl Node {
    pub(crate) fn new(spec: NodeSpec, engine: Engine, random: rand_pcg::Pcg64) -> Self {
        Self {
            spec,
            engine,
            missed: VecDeque::new(),
            wake: u64::MAX,
            others: Vec::new(),
            links: Vec::new(),
            look_until: 0,
            bans: BTreeSet::new(),
            disk: Store::default(),
            disk_free: 0,
            backend: BTreeSet::new(),
            backend_down: false,
            backend_free: 0,
            accept_free: 0,
            buffers: Vec::new(),
            buffers_made: 0,
            readers: Vec::new(),
            tally: Tally::default(),
            random,
            trace_hash: crate::trace::HASH_START,
        }
    }

    /// Prefetches a part of what an event will look at, as [`Engine::prefetch`] does. `link` tells the later stages where the
    /// connection is.
    #[inline]
    pub(crate) fn prefetch(&self, stage: usize, uses: &Uses, link: &mut Option<usize>) {
        let Uses { other, arrives, stored, piece } = *uses;
        match stage {
            0 => {
                prefetch(&self.wake);
                prefetch_ends(&self.links);
                if arrives {
                    prefetch(&self.buffers);
                }
                if stored {
                    self.disk.prefetch();
                }
            }
            1 => {
                if other.is_some() {
                    prefetch_list(&self.others, OTHERS_LINES);
                }
                if arrives {
                    prefetch_list(&self.buffers, 1);
                }
                if stored {
                    self.disk.prefetch_blobs();
                }
            }
            2 => {
                *link = other.and_then(|other| self.place(other).ok());
                if let Some(link) = link.and_then(|place| self.links.get(place)) {
                    prefetch_ends(link);
                }
                if let Some(piece) = piece.filter(|_| stored) {
                    self.disk.prefetch_piece(piece);
                }
            }
            3 if arrives => {
                if let Some(link) = link.and_then(|place| self.links.get(place)) {
                    prefetch_list(&link.expected, 1);
                }
            }
            _ => {}
        }
    }

    /// Where the connection to another node is, or would be.
    fn place(&self, other: u32) -> Result<usize, usize> {
        if self.others.len() > COUNTED_MAX {
            return self.others.binary_search(&other);
        }
        let place = self.others.iter().map(|known| u32::from(*known < other)).sum::<u32>() as usize;
        if self.others.get(place) == Some(&other) { Ok(place) } else { Err(place) }
    }

    pub(crate) fn link(&self, other: u32) -> Option<&Link> {
        self.place(other).ok().and_then(|at| self.links.get(at))
    }

    /// Whether what comes over a connection may find none, or one that is cut. Otherwise whoever sent it was connected, and so is
    /// this end: what is on the way is here before that connection's end has long been known.
    pub(crate) fn must_look(&self, now: u64) -> bool {
        now <= self.look_until
    }

    /// From now on what comes over a connection is always looked at.
    pub(crate) fn always_look(&mut self) {
        self.look_until = u64::MAX;
    }

    /// The link to another node, whichever connection's it is.
    pub(crate) fn any_link_mut(&mut self, other: u32) -> Option<&mut Link> {
        let at = self.place(other).ok()?;
        self.links.get_mut(at)
    }

    /// The link to another node, if it is still that connection's.
    pub(crate) fn link_mut(&mut self, other: u32, serial: u32) -> Option<&mut Link> {
        let at = self.place(other).ok()?;
        self.links.get_mut(at).filter(|link| link.serial == serial)
    }

    pub(crate) fn add_link(&mut self, other: u32, link: Link) {
        if link.cut {
            self.always_look();
        }
        if let Err(at) = self.place(other) {
            self.others.insert(at, other);
            self.links.insert(at, link);
        }
    }

    /// Takes a link out, if it is still that connection's. What is on the way over it comes until `late`.
    pub(crate) fn remove_link(&mut self, other: u32, serial: u32, late: u64) -> Option<Link> {
        let at = self.place(other).ok()?;
        if self.links.get(at)?.serial != serial {
            return None;
        }
        self.look_until = self.look_until.max(late);
        self.others.remove(at);
        Some(self.links.remove(at))
    }

    /// Its connections: the other end, the number at the network, the serial.
    pub(crate) fn connections(&self) -> Vec<(u32, u32, u32)> {
        let links = self.others.iter().zip(&self.links);
        links.map(|(other, link)| (*other, link.connection, link.serial)).collect()
    }

    /// When work of the disk that takes `time` and begins now ends: one operation after the other.
    pub(crate) fn disk_work(&mut self, now: u64, time: u64) -> u64 {
        self.disk_free = self.disk_free.max(now) + time;
        self.disk_free
    }
}

/// Time in nanoseconds for `bytes` at a rate.
pub(crate) fn time_of(bytes: u64, bytes_per_sec: Option<u64>) -> u64 {
    bytes_per_sec.map_or(0, |rate| (u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1))) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use rand_core::{Rng as _, SeedableRng as _};

    #[test]
    fn connections_are_found_however_many() {
        let mut random = rand_pcg::Pcg64::seed_from_u64(3);
        let peer = shoal_types::PeerId::from_public_key([1; 32]);
        let engine = Engine::new(
            shoal_engine::EngineConfig::default(),
            peer,
            Zone::default(),
            0,
            Timestamp::from_start(Duration::ZERO),
        );
        let mut node = Node::new(NodeSpec::default(), engine, rand_pcg::Pcg64::seed_from_u64(4));
        let mut model = BTreeMap::new();
        let number = |draw: u64| (draw % 1000) as u32;
        for serial in 0..10_000 {
            let other = number(random.next_u64());
            // It fills, and empties again.
            if serial / 2000 % 2 == 0 || random.next_u64().is_multiple_of(3) {
                node.add_link(other, Link::new(other, serial, 0, false));
                model.entry(other).or_insert(serial);
            } else if let Some(serial) = model.remove(&other) {
                assert_eq!(node.remove_link(other, serial, 0).map(|link| link.serial), Some(serial));
            }
            for other in [other, number(random.next_u64())] {
                assert_eq!(node.link(other).map(|link| link.serial), model.get(&other).copied());
            }
            assert!(node.others.iter().eq(model.keys()));
        }
        assert!(model.len() > COUNTED_MAX);
    }
}
