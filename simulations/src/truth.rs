//! What is really in a blob.

use std::sync::Arc;

use shoal_types::{
    Digest, Keypair, MeshKey, Metainfo, PieceHash, PieceLayout, Role, Roles, SignedMetainfo, VouchedMetainfo,
    WallTime, Zone,
};

/// A blob of which only the description exists.
#[derive(Clone, Debug)]
pub struct Truth {
    /// Pieces and hashes.
    pub metainfo: Arc<Metainfo>,
    /// The same, as an origin vouched for it.
    pub vouched: Arc<VouchedMetainfo>,
}

impl Truth {
    /// The blob numbered `number` of `size` bytes, vouched for by an origin made for the purpose.
    ///
    /// # Panics
    /// When `size` is over the largest blob's.
    #[expect(clippy::expect_used, reason = "the layout's own piece count is used for the hashes")]
    pub fn new(number: u64, size: u64) -> Self {
        let layout = PieceLayout::for_size(size).expect("a simulated blob is not over the limit");
        let digest = Digest::sha256(&number.to_le_bytes());
        let hashes = layout.pieces().map(|piece| PieceHash::of(&piece.get().to_le_bytes())).collect();
        let metainfo = Metainfo::new(digest, layout, hashes).expect("one hash a piece");
        let signer = Keypair::from_secret(&[0xee; 32]);
        let mesh = MeshKey::from_secret(&[0xff; 32]);
        let credential = mesh.issue(shoal_types::Credential {
            peer: signer.peer_id(),
            roles: Roles::NONE.with(Role::Origin),
            zone: Zone::default(),
            namespaces: Vec::new(),
            not_before: WallTime::from_unix_millis(0),
            not_after: WallTime::from_unix_millis(u64::MAX),
            issuer: None,
        });
        let vouched =
            VouchedMetainfo { metainfo: SignedMetainfo::sign(metainfo.clone(), &signer), credential };
        Self { metainfo: Arc::new(metainfo), vouched: Arc::new(vouched) }
    }
}
