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
        Ok(Bytes::from(bytes))
    })
}
