//! Room for entries in a journal that many groups share.
//!
//! A log is released only behind a snapshot, and a snapshot needs room itself, beside the one that
//! it replaces. So entries may not take the room that the next snapshots of all groups need: a
//! journal that is full of entries could never be emptied.
//!
//! The next snapshot takes no more than the current one and all entries behind it, so an entry
//! takes its bytes twice: in the log, and of the room that is kept for the snapshot. Groups see the
//! room from time to time and slow down ([`Account::room`]); what many of them begin between two
//! looks meets the limit when it is written ([`Account::admit`]), and waits.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use voussoir_journal::Journal;

use super::snapshots::Pieces;
use crate::store::{Room, SMALL_LOG};

/// Segments that are left beside the snapshots, of a journal of at least 24: one is begun, and each
/// end of a log that is released or deleted keeps a part of one.
const SPARE_SEGMENTS: u64 = 3;

/// More than the journal adds to a record of a snapshot or a batch of entries, in bytes.
const FRAME_HEAD_BYTES: u64 = 4096;

/// Entries of about so many bytes are counted together.
const PIECE_BYTES: u64 = 256 << 10;

/// What the groups on one journal take, in bytes.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    sums: Mutex<Sums>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    /// What the next snapshots take. Invariant: the sum of `need` over all accounts.
    needs: u64,
    /// Entries on their way. Invariant: the sum of `flying` over all accounts.
    flying: u64,
    /// Groups that take a snapshot to make room. Invariant: those accounts that are `large`.
    large: u64,
    /// Groups with a write that waits for room. Invariant: those accounts that are `waiting`.
    waiting: u64,
}

impl Sums {
    /// What entries may take of a journal, if one byte of them took no more than that, and so many
    /// segments are left beside the snapshots.
    fn free(self, journal: &Journal, spare: u64) -> u64 {
        self.left(journal, spare).unwrap_or(0)
    }

    /// As [`free`](Self::free); `None`: there is less room than the snapshots need.
    fn left(self, journal: &Journal, spare: u64) -> Option<u64> {
        let (_, segment) = journal.limits();
        let longest = Pieces::of(journal).longest as u64;
        let segments = self.needs.div_ceil(filled(segment, longest)) + spare;
        let reserved = segments.saturating_mul(segment);
        journal.room_bytes().checked_sub(reserved)?.checked_sub(self.flying)
    }
}

/// What is used at least of a segment by frames of at most so many bytes: the first one that does
/// not fit leaves the rest unused.
fn filled(segment: u64, longest: u64) -> u64 {
    segment.saturating_sub(longest + FRAME_HEAD_BYTES).max(segment / 2)
}

/// What entries of so many bytes take of a journal in batches of at most `longest`.
pub(super) fn taken(journal: &Journal, bytes: u64, longest: u64) -> u64 {
    let (_, segment) = journal.limits();
    let taken = u128::from(bytes) * u128::from(segment) / u128::from(filled(segment, longest));
    u64::try_from(taken).unwrap_or(u64::MAX)
}

/// How many segments are left beside the snapshots.
fn spare(journal: &Journal) -> u64 {
    let (max_bytes, segment) = journal.limits();
    (max_bytes / segment / 8).min(SPARE_SEGMENTS)
}

/// What one group takes. Dropped, it takes nothing.
#[derive(Debug)]
pub(super) struct Account {
    ledger: Arc<Ledger>,
    /// The log behind the current snapshot, in pieces: the index behind each, and its bytes.
    pieces: VecDeque<(u64, u64)>,
    /// Invariant: the bytes of `pieces`.
    log: u64,
    /// Bytes of the current snapshot.
    snapshot: u64,
    /// Bytes that are stored of the next one, if it has begun.
    staged: Option<u64>,
    /// Entries that are with the journal.
    flying: u64,
    /// What the next snapshot takes, as `ledger` has it.
    need: u64,
    /// As `ledger` has it.
    large: bool,
    /// As `ledger` has it.
    waiting: bool,
}

impl Account {
    /// Of a group with a snapshot of so many bytes, whose log ends before `end` and has `log`.
    pub(super) fn new(ledger: Arc<Ledger>, snapshot: u64, end: u64, log: u64) -> Self {
        let pieces = VecDeque::from([(end, log)]);
        let (staged, flying, need, large, waiting) = (None, 0, 0, false, false);
        let mut account =
            Self { ledger, pieces, log, snapshot, staged, flying, need, large, waiting };
        account.enter();
        account
    }

    /// What the next snapshot takes while the log has `log` bytes. With a small log none is taken
    /// soon, or only where there is room for it: see [`admit_snapshot`](Self::admit_snapshot).
    fn need_with(&self, log: u64) -> u64 {
        let is_soon = log >= SMALL_LOG || self.staged.is_some();
        if is_soon { self.next().saturating_add(log) } else { 0 }
    }

    /// The current snapshot, without what is stored of the next one.
    fn next(&self) -> u64 {
        self.snapshot.saturating_sub(self.staged.unwrap_or(0))
    }

    /// Tells the ledger what has changed. Returns the sums.
    fn enter(&mut self) -> Sums {
        let (need, large) = (self.need_with(self.log), self.log >= SMALL_LOG);
        let mut sums = self.ledger.sums.lock();
        sums.needs = (sums.needs - self.need).saturating_add(need);
        sums.large = sums.large - u64::from(self.large) + u64::from(large);
        (self.need, self.large) = (need, large);
        *sums
    }

    /// Whether entries of so many bytes, the last one before index `end`, may be handed to the
    /// journal, all of one write. If so, they are on their way. The spare segments are left where
    /// a snapshot of the log brings them back. Without a log nothing would, and nothing will when
    /// entries have waited for long and no snapshot is under way (`is_stuck`): the log is not
    /// committed then, and the votes for a leader, who would commit it, wait behind the entries.
    pub(super) fn admit(
        &mut self,
        journal: &Journal,
        end: u64,
        bytes: u64,
        is_stuck: bool,
    ) -> bool {
        if bytes == 0 {
            return true;
        }
        let log = self.log + bytes;
        let (need, large) = (self.need_with(log), log >= SMALL_LOG);
        {
            let mut sums = self.ledger.sums.lock();
            let needs = (sums.needs - self.need).saturating_add(need);
            let larger = sums.large - u64::from(self.large) + u64::from(large);
            let after = Sums { needs, large: larger, ..*sums };
            let is_last = self.log == 0 || is_stuck && self.staged.is_none();
            let spare = if is_last { 0 } else { spare(journal) };
            if after.free(journal, spare) < bytes {
                return false;
            }
            *sums = Sums { flying: sums.flying + bytes, ..after };
        }
        (self.need, self.large, self.log) = (need, large, log);
        self.flying += bytes;
        match self.pieces.back_mut() {
            Some((last, held)) if *held + bytes <= PIECE_BYTES => {
                (*last, *held) = (end.max(*last), *held + bytes);
            }
            _ => self.pieces.push_back((end, bytes)),
        }
        true
    }

    /// Whether the next snapshot may be stored: one that was not reckoned with must leave the room
    /// of the others.
    pub(super) fn admit_snapshot(&mut self, journal: &Journal) -> bool {
        let before = self.staged;
        self.staged.get_or_insert(0);
        let need = self.need_with(self.log);
        let mut sums = self.ledger.sums.lock();
        let after = Sums { needs: (sums.needs - self.need).saturating_add(need), ..*sums };
        if need > self.need && after.left(journal, 0).is_none() {
            self.staged = before;
            return false;
        }
        (*sums, self.need) = (after, need);
        true
    }

    /// What was on its way is written, or nobody knows.
    pub(super) fn landed(&mut self, bytes: u64) {
        let bytes = bytes.min(self.flying);
        self.flying -= bytes;
        self.ledger.sums.lock().flying -= bytes;
    }

    /// The journal has not taken what was admitted last.
    pub(super) fn refused(&mut self, mut bytes: u64) {
        if bytes == 0 {
            return;
        }
        self.landed(bytes);
        // Ends: each round takes a piece off, or leaves. A snapshot may have covered some of it.
        while let Some((_, held)) = self.pieces.back_mut() {
            let taken = bytes.min(*held);
            (*held, bytes) = (*held - taken, bytes - taken);
            self.log -= taken;
            if *held > 0 {
                break;
            }
            self.pieces.pop_back();
        }
        self.enter();
    }

    /// No next snapshot holds what is before index `covered` beside the current one.
    pub(super) fn release(&mut self, covered: u64) {
        while let Some((_, bytes)) = self.pieces.front().filter(|(end, _)| *end <= covered) {
            self.log -= bytes;
            self.pieces.pop_front();
        }
    }

    /// The room for entries of the group, whose current snapshot covers what is before index
    /// `covered` in so many bytes, and of whose next one so many are stored already, if any.
    pub(super) fn room(
        &mut self,
        journal: &Journal,
        covered: u64,
        snapshot: u64,
        staged: Option<u64>,
    ) -> Room {
        self.release(covered);
        (self.snapshot, self.staged) = (snapshot, staged);
        let sums = self.enter();
        // Whatever the limits say: the disk may be full, or the log over a quota.
        let free = if self.waiting { 0 } else { sums.free(journal, spare(journal)) };
        let bytes = free / 2;
        // What others hold for the snapshots of their logs may be all that a write waits for. A log
        // weighs at least half of what it takes.
        let share = match sums.waiting {
            0 => (bytes / sums.large.max(1)).max(SMALL_LOG),
            _ => SMALL_LOG / 2,
        };
        Room { bytes, max_bytes: journal.limits().0, share }
    }

    /// Whether a write of the group waits for room.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Says whether a write of the group waits for room. Returns whether it did so before.
    pub(super) fn set_waiting(&mut self, waiting: bool) -> bool {
        let before = std::mem::replace(&mut self.waiting, waiting);
        if before != waiting {
            let mut sums = self.ledger.sums.lock();
            sums.waiting = sums.waiting - u64::from(before) + u64::from(waiting);
        }
        before
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let mut sums = self.ledger.sums.lock();
        sums.needs -= self.need;
        sums.flying -= self.flying;
        sums.large -= u64::from(self.large);
        sums.waiting -= u64::from(self.waiting);
    }
}

#[cfg(test)]
mod tests {
    use voussoir_journal::{Commit, Config, MemoryFiles};

    use super::*;

    const SEGMENT: u64 = 2 << 20;

    /// A journal that may have so many segments, one of which is begun.
    fn journal(segments: u64) -> Journal {
        let mut options = Config::manual();
        (options.segment_bytes, options.max_bytes) = (SEGMENT, segments * SEGMENT);
        Journal::open_with(Arc::new(MemoryFiles::new()), options).unwrap()
    }

    fn account(journal: &Journal) -> Account {
        Account::new(journal.shared(), 0, 1, 0)
    }

    /// Admits 64 KiB at a time until no more is. Returns how many.
    fn fill(account: &mut Account, journal: &Journal) -> u64 {
        (1..=2_000).take_while(|at| account.admit(journal, at + 1, SMALL_LOG, false)).count() as u64
    }

    #[test]
    fn entries_leave_the_room_of_the_snapshot_that_releases_them() {
        let journal = journal(40);
        let mut one = account(&journal);
        let before = one.room(&journal, 0, 0, None).bytes;
        let admitted = fill(&mut one, &journal) * SMALL_LOG;
        // Each byte twice: in the log, and in the snapshot.
        assert!(admitted <= journal.room_bytes() / 2 && admitted > journal.room_bytes() / 3);
        assert!(admitted.abs_diff(before) < 4 * SEGMENT, "it was told so: {before}");
        // What is on its way already counts for everybody.
        let mut other = account(&journal);
        assert!(other.room(&journal, 0, 0, None).bytes < SEGMENT);
        // It has nothing that a snapshot could release, so it may take what else is spare.
        assert!(fill(&mut other, &journal) * SMALL_LOG <= 4 * SEGMENT);
        other.refused(other.flying);
        // It was refused after all.
        for _ in 0..admitted / SMALL_LOG {
            one.refused(SMALL_LOG);
        }
        assert_eq!(one.room(&journal, 0, 0, None).bytes, before);
        drop(one);
        assert!(other.admit(&journal, 2, SMALL_LOG, false));
        other.landed(SMALL_LOG);
        drop(other);
        let sums = *journal.shared::<Ledger>().sums.lock();
        assert_eq!((sums.needs, sums.flying, sums.large), (0, 0, 0));
    }

    #[test]
    fn what_a_snapshot_covers_is_no_part_of_the_next_one() {
        let journal = journal(40);
        let mut one = account(&journal);
        for index in 1..=16 {
            assert!(one.admit(&journal, index + 1, SMALL_LOG, false));
        }
        one.landed(16 * SMALL_LOG);
        one.room(&journal, 0, 0, None);
        assert_eq!(one.need, 16 * SMALL_LOG);
        // Pieces of four entries: that of the twelfth is covered as a whole.
        one.room(&journal, 13, 0, None);
        assert_eq!(one.need, 4 * SMALL_LOG);
        // A small log needs no snapshot soon.
        one.room(&journal, 17, 1 << 30, None);
        assert_eq!(one.need, 0);
        assert!(!one.admit(&journal, 18, SMALL_LOG, false), "it would need one");
        assert!(one.admit(&journal, 18, 1000, false));
        assert!(one.admit(&journal, 19, 0, false), "what has no data needs no room");
    }

    #[test]
    fn a_snapshot_of_a_small_log_leaves_the_room_of_the_others() {
        let journal = journal(40);
        let (mut large, mut small) = (account(&journal), account(&journal));
        assert!(small.admit(&journal, 2, 1000, false));
        small.landed(1000);
        small.room(&journal, 0, 3 << 20, None);
        assert!(small.admit_snapshot(&journal));
        assert_eq!(small.need, (3 << 20) + 1000);
        // A part of it is stored by now.
        small.room(&journal, 0, 3 << 20, Some(1 << 20));
        assert_eq!(small.need, (2 << 20) + 1000);
        small.room(&journal, 0, 3 << 20, None);
        assert_eq!(small.need, 0);
        fill(&mut large, &journal);
        small.room(&journal, 0, 12 << 20, None);
        assert!(!small.admit_snapshot(&journal));
        assert_eq!(small.need, 0);
        assert!(large.admit_snapshot(&journal), "that one is reckoned with");
    }

    /// A log that asks for no snapshot by itself may hold what a write of another group waits for.
    #[test]
    fn others_take_snapshots_while_a_write_waits() {
        let journal = journal(40);
        let (mut one, mut other) = (account(&journal), account(&journal));
        assert!(one.admit(&journal, 2, SMALL_LOG, false));
        one.landed(SMALL_LOG);
        let before = one.room(&journal, 0, 0, None);
        assert!(before.share > SMALL_LOG);
        assert!(!other.set_waiting(true));
        assert_eq!(other.room(&journal, 0, 0, None).bytes, 0);
        let during = one.room(&journal, 0, 0, None);
        // Half, because that much of what it takes may be unused.
        assert_eq!((during.share, during.bytes), (SMALL_LOG / 2, before.bytes));
        assert!(other.set_waiting(false));
        assert_eq!(one.room(&journal, 0, 0, None), before);
        other.set_waiting(true);
        drop(other);
        assert_eq!(one.room(&journal, 0, 0, None), before);
    }

    #[test]
    fn a_batch_takes_what_it_leaves_unused_of_its_segment() {
        let journal = journal(40);
        let (log, batch) = (journal.log("entries", 1).unwrap(), vec![7; 430 << 10]);
        let (before, mut bytes) = (journal.room_bytes(), 0);
        for _ in 0..120 {
            journal.commit_blocking(Commit::new().append(&log, [&batch])).unwrap();
            bytes += batch.len() as u64;
        }
        assert!(before - journal.room_bytes() <= taken(&journal, bytes, batch.len() as u64));
    }

    /// While the log is covered by the snapshot nothing but a write makes the next one possible,
    /// and it alone brings back what others have left in the segments of this one.
    #[test]
    fn a_snapshot_of_a_third_of_the_journal_leaves_room_for_a_write() {
        let journal = journal(16);
        let third = 16 * SEGMENT / 3;
        let (log, other) = (journal.log("snapshot", 1).unwrap(), journal.log("other", 1).unwrap());
        let piece = vec![7; Pieces::of(&journal).longest];
        while log.info().bytes < third {
            journal.commit_blocking(Commit::new().append(&log, [&piece])).unwrap();
            if other.info().bytes < SEGMENT {
                journal.commit_blocking(Commit::new().append(&other, [&piece])).unwrap();
            }
        }
        let mut one = Account::new(journal.shared(), third, 1, 0);
        assert!(one.admit(&journal, 2, taken(&journal, SEGMENT / 2, 256 << 10), false));
    }

    /// The parts that do not fit into the rest of a segment are left unused.
    #[test]
    fn snapshots_fill_segments_of_any_size() {
        for segment in [128 << 10, 256 << 10, 1 << 20, 64 << 20] {
            let mut options = Config::manual();
            (options.segment_bytes, options.max_bytes) = (segment, 8 * segment);
            let journal = Journal::open_with(Arc::new(MemoryFiles::new()), options).unwrap();
            let filled = filled(segment, Pieces::of(&journal).longest as u64);
            assert!(filled >= segment / 10 * 9, "{filled} of {segment}");
        }
    }

    #[test]
    fn what_others_write_into_the_journal_is_no_room() {
        let journal = journal(12);
        let mut one = account(&journal);
        let other = journal.log("other", 1).unwrap();
        let record = vec![7; 100 << 10];
        while journal.commit_blocking(Commit::new().append(&other, [&record])).is_ok() {}
        assert_eq!(one.room(&journal, 0, 0, None).bytes, 0);
        assert!(!one.admit(&journal, 2, SMALL_LOG, false));
    }
}
