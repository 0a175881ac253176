//! The atomics and the lock that the module `core` uses.
//!
//! `core` imports them from here only, so that `tests/loom.rs` can compile the same files with
//! those of the model checker.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

pub(crate) use std::sync::atomic::{AtomicU64, fence};

pub(crate) use parking_lot::Mutex;

/// No thread's number.
const NONE: usize = usize::MAX;

thread_local!(static OWN: Cell<usize> = const { Cell::new(NONE) });

/// A small number that differs between threads, as far as there are few of them.
#[inline]
pub(crate) fn thread_number() -> usize {
    let own = OWN.get();
    if own == NONE { give_number() } else { own }
}

#[cold]
fn give_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let own = NEXT.fetch_add(1, Relaxed);
    OWN.set(own);
    own
}
