//! What a node does when its store has little room left for entries.
//!
//! The store says how much entries may take beside what snapshots need. A node whose log has more
//! than its share takes a snapshot early, a leader takes no more proposals before the room is used
//! up, and entries that are in the log all the same wait in memory and are not written. So a log
//! cannot grow into the room of the snapshots, behind which alone it can be released.

use super::Core;
use super::io::Output;
use super::left::Left;
use crate::store::Room;
use crate::types::ENTRY_OVERHEAD;

/// A leader takes proposals while more than this part of the store is left for entries.
const REFUSING: u64 = 64;
/// Below this part of the store nothing is kept behind the snapshot, for nobody.
const SCARCE: u64 = 16;
/// How long to wait after a snapshot that failed, in nanoseconds.
const RETRY: u64 = 1_000_000_000;

impl Core {
    /// The weight of the entries that have been applied since the current snapshot, as far as they
    /// were in memory at some time in this life of the node.
    pub fn log_bytes(&self) -> u64 {
        self.log.weight_upto(self.applied).saturating_sub(self.covered_weight)
    }

    /// The weight of all entries that have come in so far.
    pub(crate) fn total_weight(&self) -> u64 {
        self.log.total()
    }

    /// Whether the room for entries is so little that they are turned away.
    pub(crate) fn is_short_of_room(&self) -> bool {
        self.has_at_most_one_of(REFUSING)
    }

    /// Whether no more than one of so many parts of the store is left for entries.
    fn has_at_most_one_of(&self, parts: u64) -> bool {
        let total = self.log.total();
        self.left.is_some_and(|left| left.after(total) <= left.room.max_bytes / parts)
    }

    /// How many bytes of entries before the next snapshot stay in the log.
    pub(super) fn kept_bytes(&self) -> u64 {
        let Some(left) = self.left else { return self.config.keep_bytes };
        if self.has_at_most_one_of(SCARCE) {
            0
        } else {
            self.config.keep_bytes.min(left.room.share / 2)
        }
    }

    /// The first entry that stays for a follower, where there is room for that.
    pub(super) fn kept_for_followers(&self, needed: u64) -> u64 {
        if self.has_at_most_one_of(SCARCE) { u64::MAX } else { needed }
    }

    /// The weight of entries that may be handed to the store now. 0: none.
    ///
    /// One without data, with which each leader begins, may always go: before it is committed
    /// nothing of earlier terms is, and no snapshot makes room.
    pub(super) fn writable_bytes(&self) -> Option<u64> {
        let submitted = self.storage.submitted();
        let handed = self.log.weight_upto(submitted);
        let next = self.log.weight_upto(submitted + 1) - handed;
        let least = if next == ENTRY_OVERHEAD { next } else { 0 };
        // Where the log is covered by the snapshot, so that no other one can be taken, nothing but
        // a write goes on, and what is kept for proposals is all that certainly takes it.
        let most = |left: Left| left.after(handed).min(left.room.max_bytes / REFUSING);
        self.left.map(|left| most(left).max(least))
    }

    /// Whether a follower has as much waiting in memory as a leader may have under way to it.
    pub(super) fn holds_enough(&self) -> bool {
        let waiting = self.log.total() - self.log.weight_upto(self.storage.durable());
        self.left.is_some() && self.is_short_of_room() && waiting >= self.config.max_inflight_bytes
    }

    /// Forgets entries that wait for room, so that the vote of a new term does not wait behind
    /// them, and with it the leader who would make room by a commit. They count nowhere before
    /// they are acknowledged: it is as if they had not come, or had gone with a crash.
    pub(super) fn drop_what_waits_for_room(&mut self) {
        let from = self.last_kept_by_a_vote() + 1;
        if from <= self.log.last() {
            self.truncate(from);
            self.adopt_members();
        }
    }

    /// The last entry that stays in the log when a new term begins now.
    pub(super) fn last_kept_by_a_vote(&self) -> u64 {
        if !self.is_short_of_room() {
            return self.log.last();
        }
        self.log.last().min(self.storage.durable().max(self.commit).max(self.entrusted))
    }

    /// Whether completions of writes may acknowledge entries that would be forgotten with the term.
    pub(crate) fn must_take_acks_back(&self) -> bool {
        self.is_short_of_room() && self.entrusted > self.storage.durable()
    }

    /// Completions have acknowledged entries up to `acked`, and those of writes that were handed
    /// over before acknowledge nothing more.
    pub(crate) fn acks_taken_back(&mut self, acked: u64) {
        self.entrusted = self.entrusted.min(acked);
    }

    pub(super) fn on_room(&mut self, room: Room) {
        let weight = self.log.weight_upto(self.storage.durable());
        self.left = Some(Left { room, weight });
        if self.has_at_most_one_of(SCARCE) {
            self.on_compact(u64::MAX);
        }
        let (busy, failed) = (self.taking_snapshot || self.installing.is_some(), self.failed_at);
        let is_retry_due = failed.is_none_or(|at| self.now.saturating_sub(at) >= RETRY);
        let (bytes, is_news) = (self.log_bytes(), self.applied > self.snapshot_index());
        let is_due = bytes >= room.share || self.is_short_of_room();
        if !busy && is_retry_due && is_news && is_due {
            self.take_snapshot();
        }
    }

    fn snapshot_index(&self) -> u64 {
        self.snapshot.as_ref().map_or(0, |meta| meta.index)
    }

    /// Asks for a snapshot of what has been applied.
    pub(super) fn take_snapshot(&mut self) {
        let (mark, weight) = self.snapshot_mark;
        let weighs = self.log.weight_upto(self.applied);
        self.taking_snapshot = true;
        let entries = self.applied.saturating_sub(mark).max(1);
        self.entry_weight = weighs.saturating_sub(weight).div_ceil(entries);
        self.snapshot_mark = (self.applied, weighs);
        self.out.push_back(Output::TakeSnapshot);
    }

    pub(super) fn on_snapshot_failed(&mut self) {
        self.taking_snapshot = false;
        self.failed_at = Some(self.now);
    }
}
