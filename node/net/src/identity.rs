//! Who this process is to the other members.

use shoal_types::{CredentialError, Keypair, MeshPublicKey, PeerId, SignedCredential, WallTime};

/// What a process proves itself with, on both planes.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its secret key; the public half is its peer id.
    pub keypair: Keypair,
    /// What the mesh's root key says of it.
    pub credential: SignedCredential,
    /// The mesh it is a member of.
    pub mesh: MeshPublicKey,
}

impl Identity {
    /// Its peer id.
    pub fn peer_id(&self) -> PeerId {
        self.keypair.peer_id()
    }

    /// Checks at start-up what every other member would check on connecting.
    ///
    /// # Errors
    /// [`CredentialError`]: nobody would let this process in; say so instead of starting.
    pub fn check(&self, now: WallTime) -> Result<(), CredentialError> {
        self.mesh.check(&self.credential, self.peer_id(), now)
    }
}
