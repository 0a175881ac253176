//! Room for entries in a journal that many groups share.
//!
//! A log is released only behind a snapshot, and a snapshot needs room itself, beside the one that
//! it replaces. So entries may not take the room that the next snapshots of all groups need: a
//! journal that is full of entries could never be emptied.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use voussoir_journal::Journal;

use crate::store::{Room, SMALL_LOG};

/// Segments that are left beside the snapshots, of a journal of at least 24: one is begun, and each
/// end of a log that is released or deleted keeps a part of one.
const SPARE_SEGMENTS: u64 = 3;

/// The largest commit of entries or of a snapshot, with what the journal adds.
const MAX_FRAME: u64 = (1 << 20) + 4096;

/// What the next snapshots of the groups on one journal will take, in bytes.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    groups: Mutex<Groups>,
}

#[derive(Debug, Default)]
struct Groups {
    needs: BTreeMap<u64, u64>,
    /// Invariant: the sum of `needs`.
    sum: u64,
}

impl Ledger {
    /// Notes what the next snapshot of a group will take; 0 where it needs none soon. Returns the
    /// sum over all groups, and how many of them need one.
    fn note(&self, group: u64, need: u64) -> (u64, u64) {
        let mut groups = self.groups.lock();
        let before = match need {
            0 => groups.needs.remove(&group),
            need => groups.needs.insert(group, need),
        };
        groups.sum = groups.sum - before.unwrap_or(0) + need;
        (groups.sum, groups.needs.len() as u64)
    }

    /// The group is not on this journal any more, or nobody works on it.
    pub(super) fn forget(&self, group: u64) {
        self.note(group, 0);
    }

    /// The room for entries of a group whose current snapshot has so many bytes, of whose next one
    /// so many are stored already, and whose entries since the current one weigh `log_bytes`.
    pub(super) fn room(
        &self,
        journal: &Journal,
        group: u64,
        snapshot: u64,
        staged: u64,
        log_bytes: u64,
    ) -> Room {
        let (max_bytes, segment) = journal.limits();
        // The state grows by no more than what has been applied to it.
        let next = snapshot.saturating_add(log_bytes).saturating_sub(staged);
        let need = if log_bytes < SMALL_LOG { 0 } else { next };
        let (sum, groups) = self.note(group, need);
        // A commit that does not fit into the rest of a segment leaves that rest unused.
        let used_of_segment = segment - MAX_FRAME.min(segment / 4);
        let spare = (max_bytes / segment / 8).min(SPARE_SEGMENTS);
        let reserved = (sum.div_ceil(used_of_segment) + spare).saturating_mul(segment);
        let bytes = journal.room_bytes().saturating_sub(reserved);
        let share = (bytes / 2 / groups.max(1)).max(SMALL_LOG);
        Room { bytes, max_bytes, share }
    }
}
