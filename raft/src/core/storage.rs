//! What has been handed to the store, and what of it is durable.

use std::collections::VecDeque;

use super::io::Persist;
use super::log::Log;
use crate::types::{HardState, SnapshotMeta};

/// A write that has not completed.
#[derive(Clone, Debug)]
struct Write {
    id: u64,
    /// The last entry that is durable once it completes, in the log as it is now: a later
    /// truncation lowers it, so that the completion never vouches for entries that are gone.
    last: u64,
}

/// Follows the log's way to the disk. Completions are named by ids, and ids are cumulative, so a
/// late or repeated one can neither be mistaken for another nor move anything backwards.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    next_id: u64,
    done: u64,
    writes: VecDeque<Write>,
    /// Time of the latest completion; while nothing was under way, of the next hand-over.
    progress_at: u64,
    durable: u64,
    submitted: u64,
    hard: Option<HardState>,
    /// Written together with the next hard state.
    voters: Option<Vec<u64>>,
    hard_id: u64,
    truncate_from: Option<u64>,
    release: Option<u64>,
    snapshot: Option<Box<SnapshotMeta>>,
    repaired: bool,
}

impl Storage {
    /// Everything up to `durable` is on disk. `owed_voters` are the voters that the store does not
    /// know: they go with the first hard state, so that no vote and no entry becomes durable
    /// without them.
    pub(super) fn new(durable: u64, owed_voters: Option<Vec<u64>>) -> Self {
        Self {
            next_id: 1,
            done: 0,
            writes: VecDeque::new(),
            progress_at: 0,
            durable,
            submitted: durable,
            hard: None,
            voters: owed_voters,
            hard_id: 0,
            truncate_from: None,
            release: None,
            snapshot: None,
            repaired: false,
        }
    }

    pub(super) fn durable(&self) -> u64 {
        self.durable
    }

    /// The last entry that has been handed to the store.
    pub(super) fn submitted(&self) -> u64 {
        self.submitted
    }

    /// Gives back memory that only writes need.
    pub(super) fn shrink(&mut self) {
        self.writes.shrink_to_fit();
    }

    /// Whether nothing is being written or has to be.
    pub(super) fn is_idle(&self) -> bool {
        self.writes.is_empty() && self.has_only_entries()
    }

    /// Whether nothing but entries is to be written.
    fn has_only_entries(&self) -> bool {
        self.hard.is_none()
            && self.truncate_from.is_none()
            && self.release.is_none()
            && self.snapshot.is_none()
            && !self.repaired
    }

    /// All that was lost is durable again.
    pub(super) fn repaired(&mut self) {
        self.repaired = true;
    }

    pub(super) fn writes(&self) -> usize {
        self.writes.len()
    }

    /// While writes are under way: since when none of them has completed. Writes that wait behind
    /// others are queued, not stalled, so the time since their own hand-over says nothing.
    pub(super) fn silent_since(&self) -> Option<u64> {
        (!self.writes.is_empty()).then_some(self.progress_at)
    }

    /// The id of the write that makes the current term and vote durable, while it is not done.
    pub(super) fn hard_pending(&self) -> Option<u64> {
        if self.hard.is_some() {
            Some(self.next_id)
        } else if self.hard_id > self.done {
            Some(self.hard_id)
        } else {
            None
        }
    }

    /// The id that the next write will have.
    pub(super) fn next_id(&self) -> u64 {
        self.next_id
    }

    pub(super) fn set_hard(&mut self, hard: HardState) {
        self.hard = Some(hard);
    }

    /// The log was cut: `from` and all after it are gone.
    pub(super) fn truncated(&mut self, from: u64) {
        if self.submitted >= from {
            let earlier = self.truncate_from.map_or(from, |at| at.min(from));
            self.truncate_from = Some(earlier);
            self.submitted = from - 1;
        }
        self.vouch_at_most(from - 1);
    }

    /// The store holds entries from `from` on that the log does not.
    pub(super) fn truncated_on_disk(&mut self, from: u64) {
        self.truncate_from = Some(from);
    }

    /// The log goes on after `meta`; nothing in it is durable beyond `commit`, the index that
    /// was committed before. Returns the snapshot that was to be written and now is not.
    pub(super) fn reset(
        &mut self,
        meta: SnapshotMeta,
        first: u64,
        commit: u64,
    ) -> Option<SnapshotMeta> {
        self.vouch_at_most(commit);
        let earlier = self.truncate_from.map_or(first, |at| at.min(first));
        self.truncate_from = Some(earlier);
        self.release(meta.index + 1);
        self.submitted = meta.index;
        self.snapshot.replace(Box::new(meta)).map(|meta| *meta)
    }

    /// Entries before `first` may go from the disk.
    pub(super) fn release(&mut self, first: u64) {
        self.release = Some(self.release.map_or(first, |at| at.max(first)));
    }

    fn vouch_at_most(&mut self, index: u64) {
        self.durable = self.durable.min(index);
        for write in &mut self.writes {
            write.last = write.last.min(index);
        }
    }

    /// The next write, of entries that weigh at most `max_bytes`, if there is anything to write. No
    /// entries where that is 0.
    pub(super) fn next_write(&mut self, log: &Log, now: u64, max_bytes: u64) -> Option<Persist> {
        let first = self.submitted + 1;
        // One entry may exceed the limit, but none goes where there is no room at all.
        let end = if max_bytes > 0 { log.batch_end(first, u64::MAX, max_bytes) } else { first };
        let range = first..end;
        if range.is_empty() && self.has_only_entries() {
            return None;
        }
        let id = self.next_id;
        self.next_id += 1;
        let hard_state = self.hard.take();
        let voters = hard_state.and_then(|_| self.voters.take());
        if hard_state.is_some() {
            self.hard_id = id;
        }
        self.submitted = range.end - 1;
        if self.writes.is_empty() {
            self.progress_at = now;
        }
        self.writes.push_back(Write { id, last: self.submitted });
        Some(Persist {
            id,
            snapshot: self.snapshot.take(),
            truncate_from: self.truncate_from.take(),
            release: self.release.take(),
            range,
            hard_state,
            voters,
            repaired: std::mem::take(&mut self.repaired),
        })
    }

    /// The write `id` and all before it are durable. Returns whether that is news.
    pub(super) fn complete(&mut self, id: u64, now: u64) -> bool {
        if id <= self.done || id >= self.next_id {
            return false;
        }
        self.done = id;
        self.progress_at = now;
        while let Some(write) = self.writes.front() {
            if write.id > id {
                break;
            }
            self.durable = self.durable.max(write.last);
            self.writes.pop_front();
        }
        true
    }

    /// Whether `id` names a write under way.
    pub(super) fn is_under_way(&self, id: u64) -> bool {
        id > self.done && id < self.next_id
    }
}
