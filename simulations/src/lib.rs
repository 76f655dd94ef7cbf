//! TEMP skeleton.
