//! A door into the mesh: a DHT and gossip entry point, and nothing else.
//!
//! It keeps provider records, passes gossip on and knows peers, like every member; it has no data plane, no blobs
//! and no API. Nothing depends on one once a member has joined: members remember each other.

mod memory;

use std::sync::Arc;

use shoal_net::control::persist::{ControlPersistence, MemoryPersistence};
use shoal_net::control::{
    BootstrapPeer, Control, ControlConfig, ControlEvent, ControlHandle, Multiaddr, StartError,
};
use shoal_net::identity::Identity;
use shoal_net::tls::{SetupError, TlsSetup, system_clock};
use shoal_types::CredentialError;
use tokio::sync::mpsc;

pub use memory::DoorMemory;

/// What a bootstrap peer needs to know besides its identity.
#[derive(Clone, Debug, Default)]
pub struct BootstrapConfig {
    /// Where to listen; empty for the control plane's default.
    pub listen: Vec<Multiaddr>,
    /// Addresses others should dial instead of those listened on (NAT, VPN).
    pub announce: Vec<Multiaddr>,
    /// Other doors, so that all of them are doors into one mesh.
    pub bootstrap: Vec<BootstrapPeer>,
}

/// Why a bootstrap peer does not start.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// Nobody would let it in.
    #[error("this process's own credential does not admit it")]
    Credential(#[from] CredentialError),
    /// The TLS set-up failed.
    #[error(transparent)]
    Tls(#[from] SetupError),
    /// The control plane did not start.
    #[error(transparent)]
    Control(#[from] StartError),
}

/// A bootstrap peer at work.
#[derive(Debug)]
pub struct Bootstrap {
    tls: TlsSetup,
    handle: ControlHandle,
    events: mpsc::Receiver<ControlEvent>,
}

impl Bootstrap {
    /// Starts on the current tokio runtime. With no `persistence` it forgets everything at exit, which the mesh
    /// makes good within a record's lifetime.
    ///
    /// # Errors
    /// [`BootstrapError`]: it does not run; each variant says what to correct.
    pub async fn start(
        config: BootstrapConfig,
        identity: Identity,
        persistence: Option<Arc<dyn ControlPersistence>>,
    ) -> Result<Self, BootstrapError> {
        let clock = system_clock();
        identity.check(clock())?;
        let setup = TlsSetup::new(identity, clock, TlsSetup::admit_members())?;
        let mut control = ControlConfig {
            announce: config.announce,
            bootstrap: config.bootstrap,
            ..ControlConfig::default()
        };
        if !config.listen.is_empty() {
            control.listen = config.listen;
        }
        // Everybody comes here first, so there is more room than at others; the pruner sends them on.
        control.connections.established_max *= 4;
        control.connections.pending_max *= 4;
        let persistence = persistence.unwrap_or_else(|| MemoryPersistence::shared());
        let (handle, events) = Control::start(control, setup.clone(), persistence).await?;
        Ok(Self { tls: setup, handle, events })
    }

    /// The control plane, for status and metrics.
    pub fn control(&self) -> &ControlHandle {
        &self.handle
    }

    /// Its identity, for renewing its credential.
    pub fn tls(&self) -> &TlsSetup {
        &self.tls
    }

    /// Waits until it listens, and says where.
    pub async fn listening(&mut self) -> Option<Multiaddr> {
        loop {
            if let ControlEvent::Listening { address } = self.events.recv().await? {
                return Some(address);
            }
        }
    }

    /// Runs until `stop` is done, then stops in good order.
    pub async fn run_until(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                event = self.events.recv() => match event {
                    Some(event) => tracing::debug!(?event, "control plane"),
                    None => break,
                },
            }
        }
        self.handle.shutdown().await;
    }
}

/// Starts a bootstrap peer and runs it until `stop` is done.
///
/// # Errors
/// [`BootstrapError`]: it did not start.
pub async fn run(
    config: BootstrapConfig,
    identity: Identity,
    persistence: Option<Arc<dyn ControlPersistence>>,
    stop: impl Future<Output = ()>,
) -> Result<(), BootstrapError> {
    Bootstrap::start(config, identity, persistence).await?.run_until(stop).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_types::{Credential, Keypair, MeshKey, Role, Roles, WallTime, Zone};

    fn identity(n: u8, not_after: WallTime) -> Identity {
        let (mesh, keypair) = (MeshKey::from_secret(&[1; 32]), Keypair::from_secret(&[n; 32]));
        let credential = mesh.issue(Credential {
            peer: keypair.peer_id(),
            roles: Roles::NONE.with(Role::Bootstrap),
            zone: Zone::default(),
            namespaces: vec![],
            not_before: WallTime::default(),
            not_after,
            issuer: None,
        });
        Identity { keypair, credential, mesh: mesh.public() }
    }

    fn config(bootstrap: Vec<BootstrapPeer>) -> BootstrapConfig {
        let listen = vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()];
        BootstrapConfig { listen, bootstrap, ..BootstrapConfig::default() }
    }

    #[tokio::test]
    async fn two_doors_meet_and_stop_when_asked() {
        let forever = WallTime::from_unix_millis(u64::MAX);
        let mut one = Bootstrap::start(config(vec![]), identity(2, forever), None).await.unwrap();
        let address = one.listening().await.unwrap();
        let door = address.to_string().parse().unwrap();
        let mut two = Bootstrap::start(config(vec![door]), identity(3, forever), None).await.unwrap();
        let other = loop {
            match two.events.recv().await.unwrap() {
                ControlEvent::PeerSeen { peer, .. } => break peer,
                _ => continue,
            }
        };
        assert_eq!(other, one.control().local_peer());
        let handle = two.control().clone();
        two.run_until(async {}).await;
        assert!(handle.status().await.is_none(), "it has stopped");
    }

    #[tokio::test]
    async fn an_expired_credential_is_said_at_start() {
        let expired = Bootstrap::start(config(vec![]), identity(2, WallTime::default()), None).await;
        assert!(matches!(expired, Err(BootstrapError::Credential(CredentialError::Expired { .. }))));
    }
}
