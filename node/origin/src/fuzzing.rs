//! The decoders of this crate that only it can reach, for fuzzing.

/// A `WWW-Authenticate` header of another registry.
pub fn challenge(text: &str) {
    crate::registry::fuzz_challenge(text);
}
