//! The atomics that the module `core` uses.
//!
//! `core` imports them from here only, so that `tests/loom.rs` can compile the same files with
//! those of the model checker.

pub(crate) use std::sync::atomic::AtomicU64;
