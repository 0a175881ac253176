//! Tables that each thread keeps between picks, so that a pick changes no count that is shared.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::table::Table;

/// Tables that one thread keeps: one for each balancer of a slot.
const SLOTS: usize = 8;

/// Tables of more endpoints than this are not kept: a thread that picks no more holds its table
/// until it ends.
pub(super) const MAX_KEPT: usize = 1_024;

thread_local! {
    static TABLES: [Cell<Option<Arc<Table>>>; SLOTS] =
        const { [const { Cell::new(None) }; SLOTS] };
}

/// The slot of a new balancer. Balancers that share a slot displace each other's tables.
pub(super) fn new_slot() -> usize {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Relaxed) as usize % SLOTS
}

/// A number that no other table of the process has.
pub(super) fn new_serial() -> u64 {
    // 0 is the serial of every table without endpoints that is there before the first set.
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Relaxed)
}

/// Takes the table out of a slot, if it is the one with this serial. A nested pick, such as one
/// that a strategy makes, finds the slot empty.
#[inline]
pub(super) fn take(slot: usize, serial: u64) -> Option<Arc<Table>> {
    let kept = TABLES.try_with(|tables| tables[slot % SLOTS].take()).ok().flatten();
    kept.filter(|table| table.serial == serial)
}

/// Puts a table into a slot.
#[inline]
pub(super) fn put(slot: usize, table: Arc<Table>) {
    if table.is_kept {
        // While the thread ends, the table is dropped.
        let _ = TABLES.try_with(|tables| tables[slot % SLOTS].set(Some(table)));
    }
}
