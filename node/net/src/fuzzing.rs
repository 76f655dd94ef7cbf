//! The decoders of this crate that only it can reach, for fuzzing.

use crate::control::fuzzing as control;

/// What a peer pushes about origins.
pub fn introduction(bytes: &[u8]) {
    control::introduction(bytes);
}

/// An address out of identify or a provider record.
pub fn data_address(text: &str) {
    control::data_address(text);
}
