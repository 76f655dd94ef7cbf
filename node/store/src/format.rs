//! The stored values: a version byte, then CBOR.
//!
//! A value is read in the version it was written in and migrated step by step to the newest, which is the only one
//! written. The golden files under `tests/golden` hold one value of each version that was ever released.

use minicbor::bytes::ByteVec;
use shoal_types::{Metainfo, VouchedMetainfo};

/// Why a stored value cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// There is no value, or an empty one.
    #[error("it is missing")]
    Missing,
    /// Its version is not known to this program.
    #[error("its version {0} is not known")]
    Version(u8),
    /// It does not decode.
    #[error("{0}")]
    Malformed(String),
}

/// A stored value in its newest version.
pub(crate) trait Stored: minicbor::Encode<()> + for<'b> minicbor::Decode<'b, ()> + Sized {
    /// The version written.
    const VERSION: u8;

    /// Reads an older version and migrates it: `Previous::from_bytes(bytes)` and a conversion. The first version
    /// has none.
    fn from_older(bytes: &[u8]) -> Result<Self, FormatError> {
        Err(FormatError::Version(bytes.first().copied().unwrap_or_default()))
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        let (version, payload) = bytes.split_first().ok_or(FormatError::Missing)?;
        if *version < Self::VERSION {
            return Self::from_older(bytes);
        }
        if *version > Self::VERSION {
            return Err(FormatError::Version(*version));
        }
        let mut decoder = minicbor::Decoder::new(payload);
        let value = decoder.decode().map_err(|error| FormatError::Malformed(error.to_string()))?;
        if decoder.position() != payload.len() {
            return Err(FormatError::Malformed("bytes follow the value".to_owned()));
        }
        Ok(value)
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![Self::VERSION];
        #[expect(
            clippy::expect_used,
            reason = "writing to a Vec cannot fail and our encoders have no errors of their own"
        )]
        minicbor::encode(self, &mut bytes).expect("encoding to memory cannot fail");
        bytes
    }
}

/// What is known of a blob besides its content: table `blobs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub(crate) struct BlobRecord {
    /// Size in bytes.
    #[n(0)]
    pub(crate) size: u64,
    /// Its digest has been checked and its file is in its final place.
    #[n(1)]
    pub(crate) complete: bool,
    /// When it was used last: microseconds since the Unix epoch, made unique.
    #[n(2)]
    pub(crate) last_use: u64,
    /// It is safe elsewhere, so it may be evicted.
    #[n(3)]
    pub(crate) anchored: bool,
    /// It was deleted while pinned.
    #[n(4)]
    pub(crate) doomed: bool,
}

impl Stored for BlobRecord {
    const VERSION: u8 = 1;
}

/// A blob's metainfo: table `metainfo`.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub(crate) enum MetainfoRecord {
    /// Nobody vouches for it: this process computed it, or a pusher proposed it.
    #[n(0)]
    Plain(#[n(0)] Box<Metainfo>),
    /// An origin vouches for it.
    #[n(1)]
    Vouched(#[n(0)] Box<VouchedMetainfo>),
}

impl Stored for MetainfoRecord {
    const VERSION: u8 = 1;
}

/// Which pieces of a partial blob are written: table `pieces`.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub(crate) struct PiecesRecord {
    /// `Bitfield::to_bytes`.
    #[n(0)]
    pub(crate) pieces: ByteVec,
}

impl Stored for PiecesRecord {
    const VERSION: u8 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shoal_types::{Algorithm, Bitfield, Credential, Keypair, MeshKey, Role, Roles, Signed, WallTime};

    fn golden(name: &str, text: &str, bytes: &[u8]) {
        let expected: String =
            text.lines().filter(|line| !line.starts_with('#')).flat_map(str::split_whitespace).collect();
        let got = data_encoding::HEXLOWER.encode(bytes);
        assert_eq!(got, expected, "{name}: stores in the field hold this; make a new version");
    }

    macro_rules! golden_test {
        ($name:ident, $type:ty, $value:expr) => {
            #[test]
            fn $name() {
                let text = include_str!(concat!("../tests/golden/", stringify!($name), ".hex"));
                let value: $type = $value;
                golden(stringify!($name), text, &value.to_bytes());
                assert_eq!(<$type>::from_bytes(&value.to_bytes()).unwrap(), value);
            }
        };
    }

    golden_test!(
        blob_record_v1,
        BlobRecord,
        BlobRecord {
            size: 5,
            complete: true,
            last_use: 1_700_000_000_000_000,
            anchored: false,
            doomed: false
        }
    );
    golden_test!(
        metainfo_record_plain_v1,
        MetainfoRecord,
        MetainfoRecord::Plain(Box::new(Metainfo::of_bytes(Algorithm::Sha256, b"hello").unwrap()))
    );
    golden_test!(metainfo_record_vouched_v1, MetainfoRecord, MetainfoRecord::Vouched(Box::new(vouched())));
    golden_test!(pieces_record_v1, PiecesRecord, {
        let layout = shoal_types::PieceLayout::for_size(10 << 18).unwrap();
        let mut bits = Bitfield::new(10);
        bits.insert(layout.piece(0).unwrap());
        bits.insert(layout.piece(9).unwrap());
        PiecesRecord { pieces: bits.to_bytes().into() }
    });

    fn vouched() -> VouchedMetainfo {
        let signer = Keypair::from_secret(&[2; 32]);
        VouchedMetainfo {
            metainfo: Signed::sign(Metainfo::of_bytes(Algorithm::Sha256, b"hello").unwrap(), &signer),
            credential: MeshKey::from_secret(&[1; 32]).issue(Credential {
                peer: signer.peer_id(),
                roles: Roles::NONE.with(Role::Origin),
                zone: Default::default(),
                namespaces: vec![],
                not_before: WallTime::from_unix_millis(1),
                not_after: WallTime::from_unix_millis(2),
                issuer: None,
            }),
        }
    }

    /// How a second version reads the first: the shape every migration here will have.
    #[derive(Debug, PartialEq, minicbor::Encode, minicbor::Decode)]
    struct PiecesRecordV2 {
        #[n(0)]
        pieces: ByteVec,
        #[n(1)]
        verified: bool,
    }
    impl Stored for PiecesRecordV2 {
        const VERSION: u8 = 2;
        fn from_older(bytes: &[u8]) -> Result<Self, FormatError> {
            PiecesRecord::from_bytes(bytes).map(|old| Self { pieces: old.pieces, verified: false })
        }
    }

    #[test]
    fn older_values_migrate_and_newer_ones_are_refused() {
        let old = PiecesRecord { pieces: vec![1, 2].into() };
        let new = PiecesRecordV2 { pieces: vec![1, 2].into(), verified: false };
        assert_eq!(PiecesRecordV2::from_bytes(&old.to_bytes()), Ok(new));
        let newer = PiecesRecordV2 { pieces: vec![].into(), verified: true }.to_bytes();
        assert_eq!(PiecesRecord::from_bytes(&newer), Err(FormatError::Version(2)));
        assert_eq!(PiecesRecord::from_bytes(&[0, 1]), Err(FormatError::Version(0)));
        assert_eq!(PiecesRecord::from_bytes(&[]), Err(FormatError::Missing));
        let mut long = old.to_bytes();
        long.push(0);
        assert!(matches!(PiecesRecord::from_bytes(&long), Err(FormatError::Malformed(_))));
    }

    proptest! {
        #[test]
        fn decoding_never_panics(mut bytes: Vec<u8>, version in 0u8..3) {
            bytes.insert(0, version);
            let _ = BlobRecord::from_bytes(&bytes);
            let _ = MetainfoRecord::from_bytes(&bytes);
            let _ = PiecesRecord::from_bytes(&bytes);
        }
    }
}
