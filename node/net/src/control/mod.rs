//! The control plane: how members find each other and hear of news. Nothing bulky goes over it.
//!
//! One libp2p host over TCP, TLS (ours, see [`crate::tls`]) and Yamux carries Kademlia, gossipsub, identify and
//! ping. One task owns it ([`Control::start`]); [`ControlHandle`] asks things of it, [`ControlEvent`]s come out.
//!
//! ```text
//! records     provider records kept for others, bounded, written behind
//! reprovide   when to announce which own blob (pure)
//! lookup      searches for providers under way
//! origins     origins alive, by their heartbeats (pure); introduce tells newcomers of them at once
//! gossip      which news is believed and passed on; conduct: how much of it, and who is banned
//! inbound     handshakes at once, connections by address
//! known       peers remembered for the next start
//! pruner      which connections to close (pure)
//! persist     the port to whatever remembers all that
//! ```

mod addr;
mod commands;
pub mod conduct;
pub mod config;
mod events;
mod gossip;
mod handle;
mod host;
mod inbound;
mod introduce;
mod known;
mod lookup;
mod members;
pub mod origins;
pub mod persist;
pub mod pruner;
mod push;
mod records;
pub mod reprovide;
mod revoke;
mod saver;
mod service;
mod stats;
mod upgrade;
mod upkeep;

pub use addr::{BootstrapPeer, BootstrapPeerParseError};
pub use config::ControlConfig;
pub use handle::{
    ControlEvent, ControlHandle, ControlStatus, PeerStatus, Provider, ProviderLookup, PublishError,
};
pub use origins::{Origin, Origins};
pub use persist::{ControlPersistence, MemoryPersistence};
pub use service::{Control, StartError};
pub use stats::{ControlStats, Stat};

/// Addresses of libp2p, as the configuration spells them.
pub use libp2p::Multiaddr;

#[cfg(test)]
mod tests;

#[cfg(feature = "hostile")]
pub(crate) mod fuzzing {
    //! See [`crate::fuzzing`].

    use super::{Multiaddr, addr, introduce, push};

    pub(crate) fn introduction(bytes: &[u8]) {
        if let Ok(read) = <introduce::Introduction as push::Payload>::decode(bytes) {
            let again = <introduce::Introduction as push::Payload>::decode(&introduce::encode(&read.0));
            assert!(again.is_ok_and(|again| again.0 == read.0));
        }
    }

    pub(crate) fn data_address(text: &str) {
        let Ok(address) = text.parse::<Multiaddr>() else { return };
        if let Some((endpoint, Some(zone))) = addr::parse_data_address(&address) {
            let again = addr::parse_data_address(&addr::data_address(&endpoint, &zone));
            assert_eq!(again, Some((endpoint, Some(zone))));
        }
        let _ = addr::is_control_address(&address);
    }
}
