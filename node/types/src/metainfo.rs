//! Metainfo: what ties a blob's pieces to its digest.
//!
//! An origin signs it; every member can then check each piece on its own, long before the whole blob is there.

use minicbor::bytes::ByteVec;

use crate::bitfield::Bitfield;
use crate::credential::{MeshPublicKey, Role, SignedCredential};
use crate::digest::{Algorithm, Digest, DigestHasher};
use crate::layout::{BLOB_BYTES_MAX, LayoutError, PieceIndex, PieceLayout};
use crate::peer::PeerId;
use crate::signed::{Document, Signed};

/// Bytes of a piece hash (BLAKE3, multihash code `0x1e`).
pub const PIECE_HASH_BYTES: usize = 32;

/// The BLAKE3 hash of one piece.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PieceHash([u8; PIECE_HASH_BYTES]);

impl PieceHash {
    /// The hash of a piece's bytes.
    pub fn of(data: &[u8]) -> Self {
        Self(*blake3::hash(data).as_bytes())
    }

    /// The hash with these bytes.
    pub const fn from_bytes(bytes: [u8; PIECE_HASH_BYTES]) -> Self {
        Self(bytes)
    }

    /// The hash's bytes.
    pub const fn as_bytes(&self) -> &[u8; PIECE_HASH_BYTES] {
        &self.0
    }
}

impl std::fmt::Debug for PieceHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

/// A blob's digest, size, cut and piece hashes.
///
/// A *live* metainfo has the hashes of the first pieces only: an origin makes it while it still reads the blob from
/// somewhere, and replaces it by longer ones until it is whole. An origin makes it whole only when the digest is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metainfo {
    digest: Digest,
    layout: PieceLayout,
    hashes: Vec<PieceHash>,
}

/// A metainfo with its signer's signature.
pub type SignedMetainfo = Signed<Metainfo>;

/// A metainfo together with the proof that its signer is an origin of the mesh.
///
/// It carries the signer's credential, so that it can be checked when the signer is long gone. Whether that
/// credential is still within its time does not matter here: a metainfo vouches for bytes that are checked against
/// their digest in the end, so a wrong one costs work and never correctness.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct VouchedMetainfo {
    /// The metainfo.
    #[n(0)]
    pub metainfo: SignedMetainfo,
    /// The signer's credential.
    #[n(1)]
    pub credential: SignedCredential,
}

/// Why a metainfo is not vouched for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VouchError {
    /// The credential is of another mesh.
    #[error("the metainfo's signer is of another mesh")]
    OtherMesh,
    /// The credential is not the signer's.
    #[error("the metainfo of {0} comes with somebody else's credential")]
    OtherSigner(PeerId),
    /// The signer is not an origin.
    #[error("{0} is not an origin and may not vouch for metainfo")]
    NotAnOrigin(PeerId),
}

impl VouchedMetainfo {
    /// The metainfo itself.
    pub fn value(&self) -> &Metainfo {
        self.metainfo.value()
    }

    /// Checks that an origin of `mesh` signed it.
    ///
    /// # Errors
    /// [`VouchError`]: drop whoever sent it.
    pub fn check(&self, mesh: &MeshPublicKey) -> Result<(), VouchError> {
        let signer = self.metainfo.signer();
        let credential = self.credential.value();
        if !mesh.signed(&self.credential) {
            Err(VouchError::OtherMesh)
        } else if credential.peer != signer {
            Err(VouchError::OtherSigner(signer))
        } else if !credential.roles.contains(Role::Origin) {
            Err(VouchError::NotAnOrigin(signer))
        } else {
            Ok(())
        }
    }
}

/// Why numbers and hashes do not make a metainfo.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetainfoError {
    /// Size or piece size is outside its limits.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The number of hashes is not the number of pieces.
    #[error("{got} piece hashes for {wanted} pieces")]
    HashCount {
        /// Hashes given.
        got: usize,
        /// Pieces of the layout.
        wanted: u32,
    },
}

impl Metainfo {
    /// A metainfo of these parts.
    ///
    /// # Errors
    /// [`MetainfoError::HashCount`].
    pub fn new(digest: Digest, layout: PieceLayout, hashes: Vec<PieceHash>) -> Result<Self, MetainfoError> {
        if hashes.len() != layout.piece_count() as usize {
            return Err(MetainfoError::HashCount { got: hashes.len(), wanted: layout.piece_count() });
        }
        Ok(Self { digest, layout, hashes })
    }

    /// A metainfo of the first pieces' hashes.
    ///
    /// # Errors
    /// [`MetainfoError::HashCount`]: there are more than pieces.
    pub fn live(digest: Digest, layout: PieceLayout, hashes: Vec<PieceHash>) -> Result<Self, MetainfoError> {
        if hashes.len() > layout.piece_count() as usize {
            return Err(MetainfoError::HashCount { got: hashes.len(), wanted: layout.piece_count() });
        }
        Ok(Self { digest, layout, hashes })
    }

    /// Number of pieces, from the first on, whose hashes are known.
    pub fn known_pieces(&self) -> u32 {
        // No more than the layout's pieces.
        u32::try_from(self.hashes.len()).unwrap_or(u32::MAX)
    }

    /// Whether all hashes are known: it is not live any more.
    pub fn is_whole(&self) -> bool {
        self.known_pieces() == self.layout.piece_count()
    }

    /// Whether this says all that `shorter` says of the same blob, and perhaps more.
    pub fn extends(&self, shorter: &Self) -> bool {
        self.digest == shorter.digest
            && self.layout == shorter.layout
            && self.hashes.starts_with(&shorter.hashes)
    }

    /// The metainfo of a blob in memory.
    ///
    /// # Errors
    /// [`LayoutError::TooLarge`].
    pub fn of_bytes(algorithm: Algorithm, data: &[u8]) -> Result<Self, LayoutError> {
        let mut builder = MetainfoBuilder::new(algorithm, PieceLayout::for_size(data.len() as u64)?);
        builder.update(data);
        #[expect(clippy::expect_used, reason = "exactly the layout's bytes were added on the line above")]
        Ok(builder.finish().expect("all bytes were added"))
    }

    /// The blob's digest.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The blob's cut.
    pub fn layout(&self) -> PieceLayout {
        self.layout
    }

    /// Blob size in bytes.
    pub fn size(&self) -> u64 {
        self.layout.size()
    }

    /// The hash `piece` must have. `piece` comes from this metainfo's layout.
    pub fn hash_of(&self, piece: PieceIndex) -> Option<PieceHash> {
        self.hashes.get(piece.as_usize()).copied()
    }

    /// Whether `data` is `piece` of this blob: right length and right hash.
    pub fn verifies(&self, piece: PieceIndex, data: &[u8]) -> bool {
        data.len() as u64 == u64::from(self.layout.len_of(piece))
            && self.hash_of(piece) == Some(PieceHash::of(data))
    }

    /// An empty bitfield of this blob's piece count.
    pub fn empty_bitfield(&self) -> Bitfield {
        Bitfield::new(self.layout.piece_count())
    }
}

impl Document for Metainfo {
    const DOMAIN: &'static str = "shoal/metainfo/1";
    /// A blob of `BLOB_BYTES_MAX` in the largest pieces, and room for the numbers.
    const PAYLOAD_BYTES_MAX: usize =
        (BLOB_BYTES_MAX / crate::layout::PIECE_BYTES_MAX as u64) as usize * PIECE_HASH_BYTES + 256;
}

/// The CBOR form: an array of digest, size, piece size and the concatenated hashes.
#[derive(minicbor::Encode, minicbor::Decode)]
struct Form {
    #[n(0)]
    digest: Digest,
    #[n(1)]
    size: u64,
    #[n(2)]
    piece_bytes: u32,
    #[n(3)]
    hashes: ByteVec,
}

impl<C> minicbor::Encode<C> for Metainfo {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        let hashes: Vec<u8> = self.hashes.iter().flat_map(|hash| hash.0).collect();
        let form = Form {
            digest: self.digest,
            size: self.layout.size(),
            piece_bytes: self.layout.piece_bytes(),
            hashes: hashes.into(),
        };
        form.encode(e, ctx)
    }
}

impl<'b, C> minicbor::Decode<'b, C> for Metainfo {
    fn decode(d: &mut minicbor::Decoder<'b>, ctx: &mut C) -> Result<Self, minicbor::decode::Error> {
        let at = d.position();
        let form = Form::decode(d, ctx)?;
        let refuse = |error: MetainfoError| minicbor::decode::Error::message(error.to_string()).at(at);
        let layout = PieceLayout::new(form.size, form.piece_bytes).map_err(|error| refuse(error.into()))?;
        let (hashes, rest) = form.hashes.as_chunks::<PIECE_HASH_BYTES>();
        if !rest.is_empty() {
            return Err(minicbor::decode::Error::message("piece hashes are not whole").at(at));
        }
        Self::live(form.digest, layout, hashes.iter().map(|hash| PieceHash(*hash)).collect()).map_err(refuse)
    }
}

/// Computes a metainfo while a blob of known size streams by, in any cut.
#[derive(Debug)]
pub struct MetainfoBuilder {
    layout: PieceLayout,
    digest: DigestHasher,
    piece: blake3::Hasher,
    piece_filled: u32,
    hashes: Vec<PieceHash>,
    seen: u64,
}

impl MetainfoBuilder {
    /// A computation over a blob cut as `layout`, with no bytes seen.
    pub fn new(algorithm: Algorithm, layout: PieceLayout) -> Self {
        Self {
            layout,
            digest: DigestHasher::new(algorithm),
            piece: blake3::Hasher::new(),
            piece_filled: 0,
            hashes: Vec::new(),
            seen: 0,
        }
    }

    /// The hashes of the pieces that are whole.
    pub fn hashes(&self) -> &[PieceHash] {
        &self.hashes
    }

    /// Adds the next bytes of the blob.
    pub fn update(&mut self, mut data: &[u8]) {
        self.digest.update(data);
        self.seen += data.len() as u64;
        while !data.is_empty() {
            let room = (self.layout.piece_bytes() - self.piece_filled) as usize;
            let (now, later) = data.split_at(room.min(data.len()));
            self.piece.update(now);
            #[expect(clippy::cast_possible_truncation, reason = "at most piece_bytes, a u32")]
            {
                self.piece_filled += now.len() as u32;
            }
            if self.piece_filled == self.layout.piece_bytes() {
                self.end_piece();
            }
            data = later;
        }
    }

    /// The metainfo, or `None` when other than the layout's number of bytes was added.
    pub fn finish(mut self) -> Option<Metainfo> {
        if self.seen != self.layout.size() {
            return None;
        }
        if self.piece_filled > 0 {
            self.end_piece();
        }
        Metainfo::new(self.digest.finish(), self.layout, self.hashes).ok()
    }

    fn end_piece(&mut self) {
        self.hashes.push(PieceHash(*self.piece.finalize().as_bytes()));
        self.piece.reset();
        self.piece_filled = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::Keypair;
    use proptest::prelude::*;

    /// The wire form, byte for byte: a change here breaks the mesh and needs a new domain.
    #[test]
    fn golden_bytes() {
        let metainfo = Metainfo::of_bytes(Algorithm::Sha256, b"hello").unwrap();
        let hex = data_encoding::HEXLOWER.encode(&minicbor::to_vec(&metainfo).unwrap());
        let expected = concat!(
            "84", // array of 4
            "5822",
            "1220",                                                             // multihash sha2-256
            "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824", // SHA-256("hello")
            "05",                                                               // size
            "1a00040000",                                                       // piece size 256 KiB
            "5820",
            "ea8f163db38682925e4491c5e58d4bb3506ef8c14eb78a86e908c5624a67200f", // BLAKE3("hello")
        );
        assert_eq!(hex, expected);
    }

    #[test]
    fn the_empty_blob_has_no_pieces() {
        let metainfo = Metainfo::of_bytes(Algorithm::Sha512, b"").unwrap();
        assert_eq!(metainfo.layout().piece_count(), 0);
        assert_eq!(metainfo.digest().algorithm(), Algorithm::Sha512);
    }

    #[test]
    fn lies_about_numbers_are_refused() {
        let honest = Metainfo::of_bytes(Algorithm::Sha256, b"hello").unwrap();
        let form = |size, piece_bytes, hashes: Vec<u8>| {
            let form = Form { digest: honest.digest(), size, piece_bytes, hashes: hashes.into() };
            minicbor::decode::<Metainfo>(&minicbor::to_vec(form).unwrap())
        };
        assert!(form(5, 1 << 18, vec![0; 32]).is_ok());
        assert!(form(5, 1 << 18, vec![0; 31]).is_err());
        assert!(form(5, 1 << 18, vec![0; 64]).is_err());
        assert!(form(5, 1 << 17, vec![0; 32]).is_err());
        assert!(form(u64::MAX, 1 << 22, vec![0; 32]).is_err());
    }

    #[test]
    fn only_origins_of_this_mesh_vouch() {
        use crate::credential::{Credential, MeshKey, Roles};
        let mesh = MeshKey::from_secret(&[1; 32]);
        let signer = Keypair::from_secret(&[2; 32]);
        let vouch = |mesh: &MeshKey, of: &Keypair, role| VouchedMetainfo {
            metainfo: Signed::sign(Metainfo::of_bytes(Algorithm::Sha256, b"x").unwrap(), &signer),
            credential: mesh.issue(Credential {
                peer: of.peer_id(),
                roles: Roles::NONE.with(role),
                zone: Default::default(),
                namespaces: vec![],
                not_before: Default::default(),
                not_after: Default::default(),
                issuer: None,
            }),
        };
        let public = mesh.public();
        let good = vouch(&mesh, &signer, Role::Origin);
        assert_eq!(good.check(&public), Ok(()));
        let bytes = minicbor::to_vec(&good).unwrap();
        assert_eq!(minicbor::decode::<VouchedMetainfo>(&bytes).unwrap(), good);
        let gateway = vouch(&mesh, &signer, Role::Gateway).check(&public);
        assert_eq!(gateway, Err(VouchError::NotAnOrigin(signer.peer_id())));
        let borrowed = vouch(&mesh, &Keypair::from_secret(&[3; 32]), Role::Origin).check(&public);
        assert_eq!(borrowed, Err(VouchError::OtherSigner(signer.peer_id())));
        let foreign = vouch(&MeshKey::from_secret(&[9; 32]), &signer, Role::Origin).check(&public);
        assert_eq!(foreign, Err(VouchError::OtherMesh));
    }

    #[test]
    fn live_ones_grow_until_they_are_whole() {
        let data = vec![7; 600_000];
        let whole = Metainfo::of_bytes(Algorithm::Sha256, &data).unwrap();
        let live = |pieces: usize| {
            Metainfo::live(whole.digest(), whole.layout(), whole.hashes.get(..pieces).unwrap().to_vec())
                .unwrap()
        };
        assert_eq!((live(0).known_pieces(), live(2).known_pieces()), (0, 2));
        assert!(!live(2).is_whole() && whole.is_whole() && live(3) == whole);
        assert!(whole.extends(&live(0)) && live(2).extends(&live(1)) && live(1).extends(&live(1)));
        assert!(!live(1).extends(&live(2)));
        let other = Metainfo::live(whole.digest(), whole.layout(), vec![PieceHash::of(b"x")]).unwrap();
        assert!(!whole.extends(&other) && !live(1).extends(&other));
        let first = whole.layout().piece(0).unwrap();
        assert!(live(1).verifies(first, &data[..1 << 18]) && !live(0).verifies(first, &data[..1 << 18]));
        assert_eq!(minicbor::decode::<Metainfo>(&minicbor::to_vec(live(1)).unwrap()).unwrap(), live(1));
        assert!(Metainfo::live(whole.digest(), whole.layout(), vec![PieceHash::of(b"x"); 4]).is_err());
    }

    proptest! {
        #[test]
        fn streaming_in_any_cut_is_the_same(len in 0usize..600_000, cuts in prop::collection::vec(1usize..200_000, 1..6)) {
            let data: Vec<u8> = (0..len).map(|n| (n * 7 % 251) as u8).collect();
            let whole = Metainfo::of_bytes(Algorithm::Sha256, &data).unwrap();
            let mut builder = MetainfoBuilder::new(Algorithm::Sha256, whole.layout());
            let mut rest = &data[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                builder.update(now);
                rest = later;
            }
            prop_assert_eq!(builder.finish().unwrap(), whole.clone());
            for piece in whole.layout().pieces() {
                let range = whole.layout().range_of(piece);
                let bytes = &data[range.start as usize..range.end as usize];
                prop_assert!(whole.verifies(piece, bytes));
                prop_assert!(!whole.verifies(piece, &bytes[1..]));
            }
            let signed = Signed::sign(whole, &Keypair::from_secret(&[3; 32]));
            prop_assert_eq!(SignedMetainfo::from_bytes(&signed.to_bytes()).unwrap(), signed);
        }

        #[test]
        fn decoding_never_panics(bytes: Vec<u8>) { let _ = minicbor::decode::<Metainfo>(&bytes); }
    }
}
