//! A scenario: hosts, blobs, who pulls what when, and what goes wrong. Read from TOML; see `docs/SIMULATION.md`.

mod check;
mod run;
pub mod units;

use serde::Deserialize;

use units::{Bytes, Rate, Time};

pub use check::ScenarioError;
pub use run::{Progress, Simulation};

/// Everything about a run but its seed's consequences.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// What it is about.
    #[serde(default)]
    pub description: String,
    /// The seed all randomness follows from.
    #[serde(default)]
    pub seed: u64,
    /// Virtual time after which the run ends whatever is missing.
    pub limit: Time,
    /// The network.
    #[serde(default)]
    pub network: NetworkTable,
    /// Links between zones.
    #[serde(default)]
    pub links: Vec<LinkTable>,
    /// Discovery.
    #[serde(default)]
    pub lookup: LookupTable,
    /// Settings of the engines that differ from the defaults.
    #[serde(default)]
    pub engine: EngineTable,
    /// Groups of hosts.
    pub hosts: Vec<HostTable>,
    /// Blobs and where they are at the beginning.
    pub blobs: Vec<BlobTable>,
    /// Who pulls what, and when.
    pub pulls: Vec<PullTable>,
    /// What goes wrong.
    #[serde(default)]
    pub faults: Vec<FaultTable>,
    /// What the run has to reach.
    #[serde(default)]
    pub targets: Targets,
}

/// `[network]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkTable {
    /// One-way delay inside a zone.
    pub delay: Option<Time>,
    /// Bytes on the wire a byte of payload.
    pub overhead: Option<f64>,
    /// Time between two settings of the flows' rates.
    pub rebalance: Option<Time>,
    /// How long packets wait in the queue of a full wire; see the model.
    pub queue: Option<Time>,
}

/// `[[links]]`: between two zones, the same each way.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkTable {
    /// The two zones.
    pub between: [String; 2],
    /// Rate on the wire; unlimited when left out.
    pub rate: Option<Rate>,
    /// One-way delay.
    pub delay: Time,
}

/// `[lookup]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LookupTable {
    /// Mean round trips of a DHT lookup.
    pub hops: Option<f64>,
    /// Time of one of them.
    pub hop_delay: Option<Time>,
    /// Answers a second of one DHT server.
    pub answers_per_sec: Option<u64>,
    /// Share of lookups that miss the records.
    pub missing: Option<f64>,
    /// Share of named providers that are not there any more.
    pub stale: Option<f64>,
}

/// `[engine]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineTable {
    /// Most connected peers a swarm looks for.
    pub peers_per_swarm_max: Option<usize>,
    /// Pieces sent at once, always.
    pub upload_slots: Option<usize>,
    /// Pieces sent at once at most.
    pub upload_slots_max: Option<usize>,
    /// How long haves are gathered.
    pub have_delay: Option<Time>,
    /// Payload bytes requested and being verified at most.
    pub buffer_bytes_max: Option<Bytes>,
    /// Payload received per second at most.
    pub rate_in: Option<Rate>,
    /// Payload sent per second at most.
    pub rate_out: Option<Rate>,
}

/// `[[hosts]]`: a group of like hosts.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostTable {
    /// The group's name.
    pub name: String,
    /// How many.
    pub count: usize,
    /// Their zone.
    pub zone: Option<String>,
    /// Rate of the access link each way, on the wire.
    pub rate: Option<Rate>,
    /// Rate towards the network, where it differs.
    pub up: Option<Rate>,
    /// Rate from the network, where it differs.
    pub down: Option<Rate>,
    /// They are origins.
    #[serde(default)]
    pub origin: bool,
    /// They send rubbish.
    #[serde(default)]
    pub corrupt: bool,
    /// Rate at which the disk writes.
    pub disk_write: Option<Rate>,
    /// Rate at which the disk reads.
    pub disk_read: Option<Rate>,
    /// Rate of an origin's backend.
    pub backend: Option<Rate>,
}

/// `[[blobs]]`: like blobs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlobTable {
    /// Their name.
    pub name: String,
    /// How many.
    #[serde(default = "one")]
    pub count: usize,
    /// Size of each.
    pub size: Option<Bytes>,
    /// Smallest and largest size, drawn evenly.
    pub sizes: Option<[Bytes; 2]>,
    /// The groups that hold them.
    pub on: Vec<String>,
    /// How many hosts of each group do, by rendezvous hashing; as many as an origin set keeps when left out.
    pub copies: Option<usize>,
    /// They are in the backends of these hosts, and on no disk.
    #[serde(default)]
    pub in_backend: bool,
}

fn one() -> usize {
    1
}

/// `[[pulls]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PullTable {
    /// The groups that pull.
    pub by: Vec<String>,
    /// The blobs pulled.
    pub blobs: Vec<String>,
    /// Downloads in all, dealt to the hosts in turn and each of a random blob; every host pulls every blob when left out.
    pub downloads: Option<usize>,
    /// How they arrive.
    #[serde(default)]
    pub arrival: Arrival,
    /// When the first one comes.
    pub start: Option<Time>,
    /// Whether hosts read the blobs from the beginning while they arrive, as a container runtime does, or only
    /// want them to be there.
    #[serde(default)]
    pub order: Order,
}

/// How pulls arrive.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Arrival {
    /// All at one moment.
    #[default]
    AtOnce,
    /// One host after the other, evenly over this time.
    Rolling(Time),
    /// At random, so many hosts a second.
    Poisson(f64),
    /// In so many waves, this far apart.
    Waves {
        /// Number of waves.
        count: usize,
        /// From one to the next.
        every: Time,
    },
}

/// How a host reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// From the beginning, while the blob arrives.
    #[default]
    InOrder,
    /// Only the whole.
    Whole,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// The process dies.
    Crash,
    /// The machine disappears from the network.
    Vanish,
    /// The process stops for a while as by SIGSTOP.
    Freeze,
    /// Packets between two zones vanish.
    Cut,
    /// The backend does not answer.
    BackendDown,
}

/// `[[faults]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultTable {
    /// What.
    pub kind: FaultKind,
    /// When.
    pub at: Time,
    /// To hosts of this group.
    pub of: Option<String>,
    /// To how many of them.
    pub count: Option<usize>,
    /// Between these zones.
    pub zones: Option<[String; 2]>,
    /// It is over after this time; never when left out.
    pub back_after: Option<Time>,
    /// Again and again this far apart, to the next hosts of the group.
    pub every: Option<Time>,
    /// How often in all.
    pub times: Option<usize>,
}

/// `[targets]`: what a run has to reach.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Targets {
    /// Time in which half of the hosts are done.
    pub p50: Option<Time>,
    /// Time in which 99 % are.
    pub p99: Option<Time>,
    /// Time in which 99.9 % are.
    pub p99_9: Option<Time>,
    /// Time in which all are.
    pub last: Option<Time>,
    /// The time of 99.9 % as a multiple of the bound.
    pub p99_9_of_bound: Option<f64>,
    /// Copies the origins send together at most.
    pub origin_copies: Option<f64>,
    /// Copies over any one link at most.
    pub link_copies: Option<f64>,
}
