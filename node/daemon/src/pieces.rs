//! Pieces on their way out: read from the store when their turn comes, so that queued ones hold no memory.

use bytes::Bytes;
use shoal_net::data::PieceSource;
use shoal_store::Store;
use shoal_types::{Digest, PieceIndex};

use crate::driver::blocking;

/// One piece in the store.
pub(crate) fn source(store: Store, digest: Digest, piece: PieceIndex) -> PieceSource {
    PieceSource::read(move || async move {
        let bytes =
            blocking(move || store.read_piece(&digest, piece)).await.map_err(std::io::Error::other)?;
        Ok(Bytes::from(with_fault(bytes)))
    })
}

#[cfg(not(feature = "faults"))]
fn with_fault(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

/// For tests: `SHOAL_FAULT=corrupt-pieces` makes this process serve pieces with a wrong byte.
#[cfg(feature = "faults")]
fn with_fault(mut bytes: Vec<u8>) -> Vec<u8> {
    if std::env::var("SHOAL_FAULT").is_ok_and(|fault| fault == "corrupt-pieces")
        && let Some(byte) = bytes.first_mut()
    {
        *byte ^= 0xff;
    }
    bytes
}
