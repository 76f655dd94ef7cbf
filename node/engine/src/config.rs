//! What an operator can set.

use std::time::Duration;

use shoal_types::layout::PIECE_BYTES_MAX;

/// The engine's limits and delays. The defaults suit a machine on a data-centre network.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// Most connected peers a swarm looks for.
    pub peers_per_swarm_max: usize,
    /// The same for a swarm whose peers are ahead of it, if that is more.
    pub peers_per_swarm_behind_max: usize,
    /// Most peers a swarm accepts when they come by themselves.
    pub peers_per_swarm_inbound_max: usize,
    /// Most peers a seeder accepts, if that is more, while no other zone is known of and its wire carries a piece for each of
    /// them within `seed_time`. A crowd that gets its pieces from few of its own has little to exchange at first.
    pub peers_per_swarm_seed_max: usize,
    /// See `peers_per_swarm_seed_max`.
    pub seed_time: Duration,
    /// Most peers remembered a swarm that are not connected.
    pub candidates_per_swarm_max: usize,
    /// Most swarms. Beyond it readers get `Busy` and peers get `Absent::Full`.
    pub swarms_max: usize,
    /// Most open connections and dials.
    pub connections_max: usize,
    /// Most swarms shared with one peer.
    pub channels_per_peer_max: usize,
    /// Most payload bytes requested and being verified, all swarms together.
    pub buffer_bytes_max: u64,
    /// Requests in flight at a new peer, in pieces.
    pub pipeline_pieces_start: u32,
    /// Requests of a swarm in flight, in pieces, above what the quickest peer's pipeline takes; those at a lone seeder
    /// and in other zones aside. More would wait in queues and for this process's own wire, and could not be asked for elsewhere.
    /// Swarms that download at the same time share it, and `pipeline_pieces_start` for each of them but the first.
    pub pipeline_pieces_spread: u32,
    /// Most requests in flight at one peer, in pieces.
    pub pipeline_pieces_max: u32,
    /// Most requests in flight at one peer, in bytes; one piece is always allowed.
    pub pipeline_bytes_max: u64,
    /// How far ahead of what a reader can read its pieces come before all others, in bytes.
    pub reader_window_bytes: u64,
    /// Pieces behind the first missing one that are asked for before all others, of peers that do not have the whole blob
    /// themselves: the blob's digest runs along behind what is there without a gap, and what it has not seen is hashed at the end.
    pub ahead_pieces: u32,
    /// The same of a seeder that is the only one.
    pub ahead_pieces_lone: u32,
    /// Pieces left at most when the last ones may be requested twice.
    pub endgame_pieces_max: usize,
    /// Silence of a peer with requests in flight that counts as a stall while nothing is known about it.
    pub stall_initial: Duration,
    /// Shortest silence that counts as a stall, however quick the peer was before.
    pub stall_min: Duration,
    /// Longest silence that does not count as a stall, however slow the peer was before.
    pub stall_max: Duration,
    /// Silence after which a peer with requests in flight is dropped.
    pub silence_max: Duration,
    /// Stalls without a life sign in between after which a peer is dropped.
    pub stalls_max: u32,
    /// Pieces sent at once, all peers together: always so many.
    pub upload_slots: usize,
    /// Pieces sent at once while no other zone is known of and so many end within `upload_slot_time`. A send that begins
    /// makes the others slower, and a piece is passed on only when it is whole.
    pub upload_slots_max: usize,
    /// See `upload_slots_max`.
    pub upload_slot_time: Duration,
    /// Sends that begin at once; further ones to peers that have next to nothing begin no faster than the wire was seen to carry
    /// them. Sends that share a wire all end late, and a piece is passed on only when it is whole.
    pub upload_burst: usize,
    /// Pieces sent to one peer at once.
    pub upload_slots_per_peer: usize,
    /// Time after which a send that does not end stops holding a slot that others could use.
    pub upload_slot_hold: Duration,
    /// Most requests of one peer that wait; beyond it the answer is `Busy`.
    pub upload_queue_per_peer_max: usize,
    /// Most requests that wait, all peers together, but for one a peer of pieces nobody else has.
    pub upload_queue_max: usize,
    /// Of these no more wait than `upload_slots` serve in this time, at the pace of the last sends: what waits is not asked for
    /// elsewhere, so queues are short.
    pub upload_queue_time: Duration,
    /// Requests that may wait however slow sends are.
    pub upload_queue_min: usize,
    /// How long a lone seeder refuses a second copy of a piece while it has unspread ones to give.
    pub spread_patience: Duration,
    /// Pause before a peer that answered `Busy` is asked for the same piece again; doubles up to eight times this.
    pub busy_retry: Duration,
    /// How long haves are gathered before they are told.
    pub have_delay: Duration,
    /// The same for peers in other zones.
    pub have_delay_far: Duration,
    /// The same for a peer that has enough to ask this process for, while no other zone is known of. Others may
    /// have given it that meanwhile, so it is not left without news for long.
    pub have_delay_enough: Duration,
    /// Pieces that are enough: those that it lacks and was told of.
    pub have_enough_pieces: usize,
    /// Haves that are told without waiting.
    pub have_batch_max: usize,
    /// How long a piece outside any reader's window waits for the zone's importer, a rank.
    pub zone_wait: Duration,
    /// How long a piece in a reader's window waits for the zone's importer, a rank, after the zone last got on.
    pub zone_wait_window: Duration,
    /// The same while the zone gets on: an importer may have stopped that the others do without.
    pub zone_wait_max: Duration,
    /// How long nobody reachable may have the blob before readers get `Unavailable`.
    pub search_patience: Duration,
    /// First pause between two rounds of lookups; doubles up to eight times this.
    pub search_retry: Duration,
    /// How long a peer may take to answer `Join`, and an owner to look a blob up.
    pub ask_patience: Duration,
    /// How long a swarm with pieces to get and nobody to ask waits before it searches.
    pub starved_after: Duration,
    /// How long a download goes on, and a swarm without peers stays, after its last reader is gone.
    pub linger: Duration,
    /// How long a connection stays that no swarm needs.
    pub idle_linger: Duration,
    /// How long a peer that sent a corrupt piece is refused.
    pub ban: Duration,
    /// Most messages accepted from one peer a second.
    pub messages_per_sec_max: u64,
    /// Pieces fetched from the backend at once, a swarm.
    pub backend_fetches_max: usize,
    /// Payload bytes received per second at most.
    pub rate_in_bytes_per_sec: Option<u64>,
    /// Payload bytes sent per second at most.
    pub rate_out_bytes_per_sec: Option<u64>,
    /// Payload bytes received from other zones per second at most.
    pub zone_rate_in_bytes_per_sec: Option<u64>,
    /// Payload bytes sent to other zones per second at most.
    pub zone_rate_out_bytes_per_sec: Option<u64>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        let millis = Duration::from_millis;
        Self {
            peers_per_swarm_max: 8,
            peers_per_swarm_behind_max: 16,
            peers_per_swarm_inbound_max: 24,
            peers_per_swarm_seed_max: 80,
            seed_time: millis(200),
            candidates_per_swarm_max: 128,
            swarms_max: 4096,
            connections_max: 256,
            channels_per_peer_max: 4096,
            buffer_bytes_max: 64 << 20,
            pipeline_pieces_start: 2,
            pipeline_pieces_spread: 18,
            pipeline_pieces_max: 64,
            pipeline_bytes_max: 16 << 20,
            reader_window_bytes: 2 << 20,
            ahead_pieces: 64,
            ahead_pieces_lone: 128,
            endgame_pieces_max: 8,
            stall_initial: millis(4000),
            stall_min: millis(2000),
            stall_max: millis(5000),
            silence_max: millis(15_000),
            stalls_max: 3,
            upload_slots: 10,
            upload_slots_max: 20,
            upload_slot_time: millis(150),
            upload_burst: 3,
            upload_slots_per_peer: 2,
            upload_slot_hold: millis(2000),
            upload_queue_per_peer_max: 128,
            upload_queue_max: 4096,
            upload_queue_time: millis(100),
            upload_queue_min: 3,
            spread_patience: millis(500),
            busy_retry: millis(250),
            have_delay: millis(25),
            have_delay_far: millis(250),
            have_delay_enough: millis(200),
            have_enough_pieces: 4,
            have_batch_max: 64,
            zone_wait: millis(1500),
            zone_wait_window: millis(600),
            zone_wait_max: millis(5000),
            search_patience: millis(10_000),
            search_retry: millis(250),
            ask_patience: millis(5000),
            starved_after: millis(500),
            linger: millis(60_000),
            idle_linger: millis(30_000),
            ban: Duration::from_secs(3600),
            messages_per_sec_max: 20_000,
            backend_fetches_max: 4,
            rate_in_bytes_per_sec: None,
            rate_out_bytes_per_sec: None,
            zone_rate_in_bytes_per_sec: None,
            zone_rate_out_bytes_per_sec: None,
        }
    }
}

/// A setting with which the engine could not work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A number that must not be zero is.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// Two settings contradict each other.
    #[error("{smaller} must not be above {larger}")]
    Order {
        /// The setting that has to be the smaller one.
        smaller: &'static str,
        /// The setting that has to be the larger one.
        larger: &'static str,
    },
    /// The payload buffer does not hold one piece in flight and one being verified.
    #[error("buffer_bytes_max must be at least {min} bytes, two of the largest pieces")]
    Buffer {
        /// The least that works.
        min: u64,
    },
}

/// Two of the largest pieces: one arrives while one is verified.
const BUFFER_BYTES_MIN: u64 = 2 * PIECE_BYTES_MAX as u64;

impl EngineConfig {
    /// Checks that the engine can work with these settings.
    ///
    /// # Errors
    /// [`ConfigError`] names the settings at fault.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let counts = [
            ("peers_per_swarm_max", self.peers_per_swarm_max),
            ("candidates_per_swarm_max", self.candidates_per_swarm_max),
            ("swarms_max", self.swarms_max),
            ("connections_max", self.connections_max),
            ("channels_per_peer_max", self.channels_per_peer_max),
            ("upload_slots", self.upload_slots),
            ("upload_burst", self.upload_burst),
            ("upload_slots_per_peer", self.upload_slots_per_peer),
            ("upload_queue_per_peer_max", self.upload_queue_per_peer_max),
            ("have_batch_max", self.have_batch_max),
            ("backend_fetches_max", self.backend_fetches_max),
            ("pipeline_pieces_start", self.pipeline_pieces_start as usize),
            ("messages_per_sec_max", usize::from(self.messages_per_sec_max > 0)),
            ("stalls_max", self.stalls_max as usize),
        ];
        if let Some((name, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(ConfigError::Zero(name));
        }
        let rates = [
            ("rate_in_bytes_per_sec", self.rate_in_bytes_per_sec),
            ("rate_out_bytes_per_sec", self.rate_out_bytes_per_sec),
            ("zone_rate_in_bytes_per_sec", self.zone_rate_in_bytes_per_sec),
            ("zone_rate_out_bytes_per_sec", self.zone_rate_out_bytes_per_sec),
        ];
        if let Some((name, _)) = rates.into_iter().find(|(_, rate)| *rate == Some(0)) {
            return Err(ConfigError::Zero(name));
        }
        let order = |good: bool, smaller, larger| {
            if good { Ok(()) } else { Err(ConfigError::Order { smaller, larger }) }
        };
        order(
            self.peers_per_swarm_max <= self.peers_per_swarm_inbound_max,
            "peers_per_swarm_max",
            "peers_per_swarm_inbound_max",
        )?;
        order(
            self.pipeline_pieces_start <= self.pipeline_pieces_max,
            "pipeline_pieces_start",
            "pipeline_pieces_max",
        )?;
        order(self.stall_min <= self.stall_max, "stall_min", "stall_max")?;
        order(self.stall_max <= self.silence_max, "stall_max", "silence_max")?;
        if self.buffer_bytes_max < BUFFER_BYTES_MIN {
            return Err(ConfigError::Buffer { min: BUFFER_BYTES_MIN });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_contradictions_are_named() {
        let good = EngineConfig::default();
        assert_eq!(good.validate(), Ok(()));
        let bad = EngineConfig { upload_slots: 0, ..good.clone() };
        assert_eq!(bad.validate(), Err(ConfigError::Zero("upload_slots")));
        let bad = EngineConfig { rate_in_bytes_per_sec: Some(0), ..good.clone() };
        assert_eq!(bad.validate(), Err(ConfigError::Zero("rate_in_bytes_per_sec")));
        let bad = EngineConfig { buffer_bytes_max: 1, ..good.clone() };
        assert_eq!(bad.validate(), Err(ConfigError::Buffer { min: BUFFER_BYTES_MIN }));
        let bad = EngineConfig { stall_min: good.stall_max + Duration::from_secs(1), ..good };
        assert!(matches!(bad.validate(), Err(ConfigError::Order { .. })));
    }
}
