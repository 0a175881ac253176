//! Synchronisation types of the core. The loom test includes the core with loom's types in their
//! place.

pub(crate) use parking_lot::Mutex;
pub(crate) use std::sync::atomic::{AtomicU64, fence};

/// Called while waiting for another thread's few stores.
pub(crate) fn pause() {
    std::thread::yield_now();
}
