//! The decoders of this crate that only it can reach, for fuzzing.

use crate::format::{BlobRecord, MetainfoRecord, PiecesRecord, Stored};

/// Reads a stored value as each kind of value there is. What is read must be read again as written.
pub fn stored(bytes: &[u8]) {
    again::<BlobRecord>(bytes);
    again::<MetainfoRecord>(bytes);
    again::<PiecesRecord>(bytes);
}

fn again<T: Stored + PartialEq>(bytes: &[u8]) {
    if let Ok(value) = T::from_bytes(bytes) {
        assert!(T::from_bytes(&value.to_bytes()).is_ok_and(|read| read == value));
    }
}
