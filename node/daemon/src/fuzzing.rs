//! The decoders of this crate that only it can reach, for fuzzing.

/// Reads a stored value as each kind of value that the daemon keeps.
pub fn stored(bytes: &[u8]) {
    crate::persistence::fuzz(bytes);
    crate::records::ledger::fuzz(bytes);
    crate::queue::fuzz(bytes);
}
