//! `/shoal/revocations/1`: the list of revocations, flooded.
//!
//! Whoever learns of a newer list pushes it to everybody it is connected with, and both sides of a new connection push
//! theirs; the root key's signature makes it worth the same from anybody. A list is larger than a gossip message may be,
//! and must reach bootstrap peers, which have no data plane.

use libp2p::StreamProtocol;
use shoal_types::SignedRevocations;
use shoal_types::revocation::REVOCATIONS_BYTES_MAX;

use super::addr;
use super::push::{Payload, Pushed};
use super::service::Service;

/// What `/shoal/revocations/1` carries.
#[derive(Debug)]
pub(crate) struct Revoking(SignedRevocations);

impl Payload for Revoking {
    const PROTOCOL: StreamProtocol = StreamProtocol::new("/shoal/revocations/1");
    // One more than a list may have, so that a longer one is refused rather than cut.
    const BYTES_MAX: u64 = REVOCATIONS_BYTES_MAX as u64 + 1;

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        SignedRevocations::from_bytes(bytes).map(Self).map_err(|error| error.to_string())
    }
}

impl Service {
    /// A peer pushed its list.
    pub(super) fn on_revocations(&mut self, pushed: Pushed<Revoking>) {
        if let Err(error) = self.revoke(&pushed.message.0, Some(pushed.peer)) {
            self.stats.revocations_refused.count();
            tracing::debug!(peer = %pushed.peer, %error, "a list of revocations is not taken");
        }
    }

    /// Puts a list in force if it is newer, passes it on, and lets nobody stay who is on it.
    pub(super) fn revoke(
        &mut self,
        list: &SignedRevocations,
        from: Option<libp2p::PeerId>,
    ) -> Result<bool, shoal_types::RevocationError> {
        if !self.setup.revocations().offer(list)? {
            return Ok(false);
        }
        self.stats.revocations_taken.count();
        tracing::info!(
            version = list.value().version,
            keys = list.value().revoked.len(),
            "revocations are in force"
        );
        let bytes = list.to_bytes();
        let others: Vec<libp2p::PeerId> =
            self.host.connected_peers().filter(|peer| Some(**peer) != from).copied().collect();
        for peer in others {
            self.host.behaviour_mut().revoke.push(peer, bytes.clone());
        }
        self.expel();
        self.revocations_unsaved = true;
        Ok(true)
    }

    /// Tells a new peer what is revoked.
    pub(super) fn introduce_revocations(&mut self, peer: libp2p::PeerId) {
        if let Some(list) = self.setup.revocations().current() {
            self.host.behaviour_mut().revoke.push(peer, list.to_bytes());
        }
    }

    /// Closes the connections of members whose credential has expired or was revoked, and forgets such origins.
    pub(super) fn expel(&mut self) {
        let gone: Vec<shoal_types::PeerId> = self
            .members
            .iter()
            .filter(|(peer, member)| {
                member.credential.as_ref().is_some_and(|own| self.setup.check_member(**peer, own).is_err())
            })
            .map(|(peer, _)| *peer)
            .collect();
        for peer in gone {
            self.stats.expelled.count();
            tracing::info!(%peer, "a member whose credential is no longer good is disconnected");
            let _ = self.host.disconnect_peer_id(addr::to_libp2p(peer));
        }
        let setup = self.setup.clone();
        if self.origins.remove_revoked(|peer, credential| setup.revocations().is_revoked(peer, credential)) {
            self.origins_changed();
        }
    }
}
