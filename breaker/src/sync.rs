//! The atomics and the lock that the cores use.
//!
//! The cores name them through this module only, so that the model checker can compile the very
//! same files over its own (see `tests/loom.rs`).

pub(crate) use std::sync::atomic::AtomicU64;

pub(crate) use parking_lot::Mutex;

/// A small number that differs between threads, as far as there are few of them.
#[inline]
pub(crate) fn thread_number() -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static OWN: usize = NEXT.fetch_add(1, Relaxed));
    OWN.with(|own| *own)
}
