//! The atomics that the cores use.
//!
//! The cores name them through this module only, so that the model checker can compile the very
//! same files over its own (see `tests/loom.rs`).

pub(crate) use std::sync::atomic::AtomicU64;
