//! How the daemon talks to its control plane.

use std::sync::Arc;
use std::time::Duration;

use shoal_types::{Digest, Endpoint, GossipMessage, PeerId, RevocationError, Roles, SignedRevocations, Zone};
use tokio::sync::{mpsc, oneshot, watch};

use super::addr::BootstrapPeer;
use super::origins::Origin;
use super::stats::ControlStats;

/// Somebody who has (part of) a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// Who.
    pub peer: PeerId,
    /// Its zone as it announced it, if known. The credential shown on connecting decides.
    pub zone: Option<Zone>,
    /// Where its data plane is dialled; never empty.
    pub endpoints: Vec<Endpoint>,
}

/// What happens on the control plane.
#[derive(Clone, Debug)]
pub enum ControlEvent {
    /// It listens here now.
    Listening {
        /// The address, as others on this network dial it.
        address: libp2p::Multiaddr,
    },
    /// A member is connected and has said where its data plane is, or has changed it.
    PeerSeen {
        /// Who.
        peer: PeerId,
        /// Its zone, from its credential.
        zone: Zone,
        /// Its roles, from its credential.
        roles: Roles,
        /// Where its data plane is dialled; empty for a member without one.
        endpoints: Vec<Endpoint>,
    },
    /// The last connection with a member is gone.
    PeerGone {
        /// Who.
        peer: PeerId,
    },
    /// News that has been checked: its publisher may say it.
    Gossip {
        /// Who published it.
        source: PeerId,
        /// What.
        message: GossipMessage,
    },
    /// The set of origins alive, or what is known of one, changed: see [`ControlHandle::origins`].
    OriginsChanged,
}

/// Why a message was not published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Only origins publish; others would not be believed.
    #[error("only an origin may publish")]
    NotOrigin,
    /// It is over the size limit of gossip.
    #[error("the message is too large for gossip")]
    TooLarge,
    /// No member listens, or none is connected. The message is lost.
    #[error("nobody is there to hear")]
    NobodyListens,
    /// Every peer's queue is full. The message is lost.
    #[error("all peers are too slow")]
    Overloaded,
    /// The control plane has stopped.
    #[error("the control plane has stopped")]
    Stopped,
}

/// A connected member, for people to look at.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// Who.
    pub peer: PeerId,
    /// Its zone.
    pub zone: Zone,
    /// Its roles.
    pub roles: Roles,
    /// Where its data plane is dialled.
    pub endpoints: Vec<Endpoint>,
    /// The other end of the connection.
    pub address: String,
    /// For how long it has been connected.
    pub connected_for: Duration,
    /// Whether it is in gossip's mesh.
    pub in_gossip_mesh: bool,
}

/// The state of the control plane, for people to look at.
#[derive(Clone, Debug)]
pub struct ControlStatus {
    /// Who this process is.
    pub peer: PeerId,
    /// Where it listens.
    pub listening: Vec<String>,
    /// What it announces of its data plane.
    pub data_endpoints: Vec<Endpoint>,
    /// Members connected.
    pub peers: Vec<PeerStatus>,
    /// Peers in the routing table.
    pub routing_peers: usize,
    /// Gossip topics subscribed to.
    pub topics: Vec<String>,
    /// Origins alive.
    pub origins: Vec<Origin>,
    /// Provider records kept for others.
    pub records: usize,
    /// Own blobs announced.
    pub provided: usize,
    /// Own blobs whose announcement is due.
    pub provided_overdue: usize,
    /// Peers remembered for the next start.
    pub known_peers: usize,
}

/// What the handle asks of the service.
pub(crate) enum Command {
    Provide(Digest),
    Unprovide(Digest),
    Find {
        digest: Digest,
        found: mpsc::Sender<Found>,
    },
    Publish {
        message: GossipMessage,
        done: oneshot::Sender<Result<(), PublishError>>,
    },
    #[cfg(any(test, feature = "hostile"))]
    PublishUnchecked {
        message: GossipMessage,
        done: oneshot::Sender<Result<(), PublishError>>,
    },
    Heartbeat(bool),
    DataEndpoints(Vec<Endpoint>),
    Dial(BootstrapPeer),
    Ban {
        peer: PeerId,
        lasting: Duration,
    },
    Revoke {
        list: SignedRevocations,
        done: oneshot::Sender<Result<bool, RevocationError>>,
    },
    Status(oneshot::Sender<ControlStatus>),
    Shutdown(oneshot::Sender<()>),
}

/// What a lookup says.
pub(crate) enum Found {
    Provider(Provider),
    End { answered: bool },
}

/// A lookup under way. Dropping it ends it.
#[derive(Debug)]
pub struct ProviderLookup {
    pub(crate) found: mpsc::Receiver<Found>,
    pub(crate) answered: bool,
}

impl ProviderLookup {
    /// The next provider, or `None` at the end of the lookup. Cancel safe.
    pub async fn next(&mut self) -> Option<Provider> {
        match self.found.recv().await? {
            Found::Provider(provider) => Some(provider),
            Found::End { answered } => {
                self.answered = answered;
                self.found.close();
                None
            }
        }
    }

    /// After the end: whether the DHT could be asked at all.
    pub fn answered(&self) -> bool {
        self.answered
    }
}

/// The handle of a running control plane; cheap to clone. When the control plane has stopped, everything asked of it
/// does nothing.
#[derive(Clone, Debug)]
pub struct ControlHandle {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) origins: watch::Receiver<Arc<Vec<Origin>>>,
    pub(crate) endpoints: watch::Receiver<Arc<Vec<Endpoint>>>,
    pub(crate) stats: Arc<ControlStats>,
    pub(crate) lookup_jitter_max: Duration,
    pub(crate) local: PeerId,
}

impl ControlHandle {
    /// This process's peer id.
    pub fn local_peer(&self) -> PeerId {
        self.local
    }

    /// Announces that this process has (part of) a blob, and keeps it announced, over restarts too. Waits only for
    /// room in a queue.
    pub async fn provide(&self, digest: Digest) {
        let _ = self.commands.send(Command::Provide(digest)).await;
    }

    /// Stops announcing a blob. Records already out lapse by themselves.
    pub async fn unprovide(&self, digest: Digest) {
        let _ = self.commands.send(Command::Unprovide(digest)).await;
    }

    /// Looks for providers of a blob in the DHT. The lookup starts after a random delay, goes on for a moment after
    /// the first hit, and ends by itself. Must be called within a tokio runtime.
    pub fn find_providers(&self, digest: Digest) -> ProviderLookup {
        let (found, receiver) = mpsc::channel(64);
        let commands = self.commands.clone();
        let jitter = self.lookup_jitter_max.mul_f64(random_part());
        tokio::spawn(async move {
            tokio::time::sleep(jitter).await;
            let _ = commands.send(Command::Find { digest, found }).await;
        });
        ProviderLookup { found: receiver, answered: false }
    }

    /// Publishes news to all members.
    ///
    /// # Errors
    /// [`PublishError`]: nobody will hear it. Gossip is a hint: what matters must also be found by asking.
    pub async fn publish(&self, message: GossipMessage) -> Result<(), PublishError> {
        let (done, answer) = oneshot::channel();
        let sent = self.commands.send(Command::Publish { message, done }).await;
        sent.map_err(|_| PublishError::Stopped)?;
        answer.await.unwrap_or(Err(PublishError::Stopped))
    }

    /// What a hostile member would do, for tests: publishes without asking whether it may.
    ///
    /// # Errors
    /// [`PublishError`].
    #[cfg(any(test, feature = "hostile"))]
    pub async fn publish_unchecked(&self, message: GossipMessage) -> Result<(), PublishError> {
        let (done, answer) = oneshot::channel();
        let sent = self.commands.send(Command::PublishUnchecked { message, done }).await;
        sent.map_err(|_| PublishError::Stopped)?;
        answer.await.unwrap_or(Err(PublishError::Stopped))
    }

    /// Starts or stops the heartbeat of an origin; stopping says that it leaves. Without the origin role in this
    /// process's credential nothing happens.
    pub async fn set_heartbeat(&self, beating: bool) {
        let _ = self.commands.send(Command::Heartbeat(beating)).await;
    }

    /// Replaces the data-plane endpoints that are announced.
    pub async fn set_data_endpoints(&self, endpoints: Vec<Endpoint>) {
        let _ = self.commands.send(Command::DataEndpoints(endpoints)).await;
    }

    /// Dials a peer now.
    pub async fn dial(&self, peer: BootstrapPeer) {
        let _ = self.commands.send(Command::Dial(peer)).await;
    }

    /// Closes the connections with `peer` and refuses new ones for a while.
    pub async fn ban(&self, peer: PeerId, lasting: Duration) {
        let _ = self.commands.send(Command::Ban { peer, lasting }).await;
    }

    /// Puts a list of revocations in force, here and in the whole mesh. Returns whether it is news; `None` when the
    /// control plane has stopped.
    ///
    /// # Errors
    /// [`RevocationError`]: the list is not this mesh's, or is an old one.
    pub async fn revoke(&self, list: SignedRevocations) -> Option<Result<bool, RevocationError>> {
        let (done, answer) = oneshot::channel();
        self.commands.send(Command::Revoke { list, done }).await.ok()?;
        answer.await.ok()
    }

    /// The origins alive, by peer id, this process included if it is one.
    pub fn origins(&self) -> Arc<Vec<Origin>> {
        self.origins.borrow().clone()
    }

    /// Follows the origins alive.
    pub fn watch_origins(&self) -> watch::Receiver<Arc<Vec<Origin>>> {
        self.origins.clone()
    }

    /// The data-plane endpoints announced at present.
    pub fn data_endpoints(&self) -> Arc<Vec<Endpoint>> {
        self.endpoints.borrow().clone()
    }

    /// Counters and gauges.
    pub fn stats(&self) -> &ControlStats {
        &self.stats
    }

    /// The state of everything; `None` when the control plane has stopped.
    pub async fn status(&self) -> Option<ControlStatus> {
        let (done, answer) = oneshot::channel();
        self.commands.send(Command::Status(done)).await.ok()?;
        answer.await.ok()
    }

    /// Stops: an origin says that it leaves, what is to be remembered is written, connections are closed.
    pub async fn shutdown(&self) {
        let (done, answer) = oneshot::channel();
        if self.commands.send(Command::Shutdown(done)).await.is_ok() {
            let _ = answer.await;
        }
    }
}

/// A random number from 0 to 1. Jitter need not be unpredictable, so a failure of the system's randomness is not one
/// of ours.
pub(crate) fn random_part() -> f64 {
    f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX)
}
