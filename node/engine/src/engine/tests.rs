//! Tests of the engine as a whole, one engine at a time.
