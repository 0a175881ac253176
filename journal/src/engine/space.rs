//! Segments: which exist, which are spare, which can be used again.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::seal::Seal;
use super::segment::Segment;
use crate::config::Config;
use crate::core::reserve::{Claim, RESERVE_SEGMENTS, Supply};
use crate::error::{Fault, FullCause, LogName};
use crate::files::{File, Files, write_all_at};
use crate::format::manifest::{Manifest, SLOT_BYTES, segment_name};
use crate::format::segment::SegmentHeader;

pub(crate) const MANIFEST: &str = "manifest";
/// The operation that opens a new segment file.
const CREATE: &str = "create";
/// Zeros are written and synced in pieces of this size, so that no commit waits behind a large
/// flush...
const ZERO_BYTES: u64 = 128 << 10;
/// ...of this size when they are behind the need...
const ZERO_BYTES_LATE: u64 = 256 << 10;
/// ...and of this size when there are no small commits either.
const ZERO_BYTES_QUIET: u64 = 1 << 20;
/// How far preparation may be ahead of need before it slows down, in thousandths of a segment.
const AHEAD: u64 = 100;

/// The reserve is made ready when so much of the first segment is in use, in thousandths.
const RESERVE_DUE: u64 = 250;

/// After this time it is tried again to prepare a segment, when the disk or the process had no room
/// for one.
const RETRY_AFTER: Duration = Duration::from_secs(1);

mod rewriting;

use rewriting::rewrite_mark;

/// The segments, behind a short lock.
#[derive(Debug)]
pub(crate) struct Space {
    inner: Mutex<Inner>,
    changed: Condvar,
    fill: AtomicU64,
    quiet: AtomicBool,
    pub(crate) prepared: Prepared,
}

/// What preparing segments has done so far.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    pub(crate) created: AtomicU64,
    pub(crate) recycled: AtomicU64,
    pub(crate) bytes_zeroed: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    /// Full, by sequence.
    sealed: BTreeMap<u64, Arc<Segment>>,
    /// Indexes that are still to be written into full ones.
    seals: VecDeque<Seal>,
    spares: VecDeque<Arc<Segment>>,
    /// Spares of the reserve that rewriting has taken and that have not been made ready again.
    /// Invariant: at most one.
    lent: usize,
    /// Slots whose files may be overwritten.
    free: Vec<u32>,
    /// Segment files that exist, live or not.
    files: usize,
    next_slot: u32,
    next_sequence: u64,
    /// The segment whose table is durable; only older ones can go.
    base: u64,
    /// The reserve has not been complete yet.
    is_young: bool,
    /// The reserve is to be made ready, not just the next segment.
    reserve_is_due: bool,
    /// No spare can be prepared until something is released, or until it is tried again.
    stuck: bool,
    /// Why no spare could be prepared the last time.
    cause: Option<FullCause>,
    /// When that was last tried again, by the clock of `work`.
    last_try: u64,
    /// Number of events so far that may end `stuck`: a release, or something became durable.
    retries: u64,
    /// Victims are to be looked for: what is in full segments has changed since the last time.
    victims_due: bool,
    /// They are to be looked for although fewer segments than `rewrite_mark` are pinned.
    victims_asked: bool,
    /// Victims were found, and there was no segment to move batches to.
    target_missing: bool,
    /// The last attempt to open such a segment failed, which may pass without any other event.
    target_refused: bool,
    /// A round of rewriting is under way.
    rewriting: bool,
    /// No spare can be prepared until that round has freed segments.
    blocked: bool,
    /// With so many pinned segments rewriting begins; `usize::MAX` for never.
    rewrite_mark: usize,
    /// A commit waits for a spare.
    urgent: bool,
    /// A spare has been taken and its first group is not durable yet. The keeper writes nothing
    /// meanwhile, so as not to delay that group.
    rotating: bool,
    stopped: bool,
}

impl Inner {
    fn supply(&self) -> Supply {
        Supply { spares: self.spares.len(), lent: self.lent, is_young: self.is_young }
    }

    /// Whether fewer segments are ready than should be.
    fn wants_spare(&self) -> bool {
        let reserve = if self.reserve_is_due { RESERVE_SEGMENTS } else { 0 };
        self.spares.len() <= reserve
    }

    /// Whether batches are to be moved, or victims to be looked for.
    fn wants_rewriting(&self) -> bool {
        let pinned = || self.sealed.values().filter(|segment| segment.pinned()).count();
        let is_much = || pinned() + self.spares.len() + 1 >= self.rewrite_mark;
        self.rewriting || self.victims_due && (self.stuck || self.victims_asked || is_much())
    }

    /// Whether preparing fails for a reason that may go away by itself (the disk was full).
    fn is_transient(&self) -> bool {
        self.stuck && (self.target_refused || matches!(self.cause, Some(FullCause::Disk { .. })))
    }
}

/// A time in nanoseconds, or the longest one that can be told.
pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What came of waiting for a spare.
#[derive(Debug)]
pub(crate) enum Spare {
    Ready(Arc<Segment>),
    NotYet,
    /// There is no room for one, or the journal has stopped.
    Never,
}

/// What recovery found.
#[derive(Debug)]
pub(crate) struct Census {
    pub(crate) sealed: Vec<Arc<Segment>>,
    pub(crate) spares: Vec<Arc<Segment>>,
    pub(crate) free: Vec<u32>,
    pub(crate) files: usize,
    pub(crate) next_slot: u32,
    pub(crate) next_sequence: u64,
    pub(crate) base: u64,
}

/// Why no segment could be prepared.
#[derive(Debug)]
pub(crate) enum PrepareError {
    /// Not now: there is no room, or no file to be had. Nothing has changed.
    Full(FullCause),
    Fault(Fault),
}

impl From<Fault> for PrepareError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// What the keeper is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Nothing,
    Seal,
    Spare,
    Rewrite,
    Stop,
}

impl Space {
    pub(crate) fn new(census: Census, config: &Config) -> Self {
        let sealed: BTreeMap<_, _> =
            census.sealed.into_iter().map(|segment| (segment.sequence, segment)).collect();
        let is_young = sealed.is_empty();
        let inner = Inner {
            sealed,
            seals: VecDeque::new(),
            spares: census.spares.into(),
            lent: 0,
            free: census.free,
            files: census.files,
            next_slot: census.next_slot,
            next_sequence: census.next_sequence,
            base: census.base,
            is_young,
            reserve_is_due: !is_young,
            stuck: false,
            cause: None,
            last_try: 0,
            retries: 0,
            victims_due: config.rewrite_bytes_per_second > 0,
            victims_asked: false,
            target_missing: false,
            target_refused: false,
            rewriting: false,
            blocked: false,
            rewrite_mark: rewrite_mark(config),
            // The call that opens the journal waits for the first segment.
            urgent: true,
            rotating: false,
            stopped: false,
        };
        Self {
            inner: Mutex::new(inner),
            changed: Condvar::new(),
            fill: AtomicU64::new(0),
            quiet: AtomicBool::new(false),
            prepared: Prepared::default(),
        }
    }

    pub(crate) fn supply(&self) -> Supply {
        self.inner.lock().supply()
    }

    /// Takes a spare, if there is one for such a commit.
    pub(crate) fn take_spare(&self, claim: Claim) -> Option<Arc<Segment>> {
        Self::pop_spare(&mut self.inner.lock(), claim)
    }

    fn pop_spare(inner: &mut Inner, claim: Claim) -> Option<Arc<Segment>> {
        if !inner.supply().has_segment_for(claim) {
            return None;
        }
        let spare = inner.spares.pop_front()?;
        inner.urgent = false;
        inner.rotating = true;
        Some(spare)
    }

    /// Takes a spare, waiting some time for the keeper to prepare one or to give up.
    pub(crate) fn wait_for_spare(&self, limit: Duration, claim: Claim) -> Spare {
        let mut inner = self.inner.lock();
        for waited in [false, true] {
            if let Some(spare) = Self::pop_spare(&mut inner, claim) {
                return Spare::Ready(spare);
            }
            if inner.stuck && !inner.rewriting || inner.stopped {
                return Spare::Never;
            }
            if !waited {
                inner.urgent = true;
                inner.reserve_is_due = true;
                self.changed.notify_all();
                self.changed.wait_for(&mut inner, limit);
            }
        }
        Spare::NotYet
    }

    /// How much of the active segment is in use, in thousandths: the next one should be about as
    /// far in its preparation.
    pub(crate) fn set_fill(&self, thousandths: u64) {
        let before = self.fill.swap(thousandths, Ordering::Relaxed);
        if before < RESERVE_DUE && thousandths >= RESERVE_DUE {
            self.inner.lock().reserve_is_due = true;
            self.changed.notify_all();
        }
    }

    /// Whether there have been no small commits lately, which large flushes would delay.
    pub(crate) fn set_quiet(&self, quiet: bool) {
        self.quiet.store(quiet, Ordering::Relaxed);
    }

    /// Bytes of zeros to write next, when so many thousandths of a segment have been written.
    fn zero_bytes(&self, done: u64) -> u64 {
        let late = self.inner.lock().urgent || done < self.fill.load(Ordering::Relaxed);
        match (late, self.quiet.load(Ordering::Relaxed)) {
            (false, _) => ZERO_BYTES,
            (true, false) => ZERO_BYTES_LATE,
            (true, true) => ZERO_BYTES_QUIET,
        }
    }

    /// The active segment is full, and gets an index unless it has one.
    pub(crate) fn add_sealed(&self, segment: Arc<Segment>, seal: Option<Seal>) {
        let mut inner = self.inner.lock();
        inner.sealed.insert(segment.sequence, segment);
        inner.seals.extend(seal);
        inner.victims_due = inner.rewrites();
    }

    /// The next index to be written.
    pub(crate) fn next_seal(&self) -> Option<Seal> {
        self.inner.lock().seals.pop_front()
    }

    /// The table at the start of this segment is durable.
    pub(crate) fn set_durable_base(&self, sequence: u64) {
        {
            let mut inner = self.inner.lock();
            inner.base = inner.base.max(sequence);
            inner.rotating = false;
        }
        // Notify after releasing the lock; otherwise the keeper wakes only to block on it.
        self.changed.notify_all();
    }

    /// Something was released, or became durable: preparing may succeed again. Answers whether it
    /// had failed.
    pub(crate) fn retry(&self) -> bool {
        let mut inner = self.inner.lock();
        inner.retries += 1;
        if inner.stuck && inner.sealed.values().all(|segment| segment.pinned()) {
            return false;
        }
        let stuck = std::mem::take(&mut inner.stuck);
        drop(inner);
        if stuck {
            self.changed.notify_all();
        }
        stuck
    }

    /// How often [`retry`](Self::retry) was called.
    pub(crate) fn retries(&self) -> u64 {
        self.inner.lock().retries
    }

    /// No segment could be prepared, by what was known after so many calls of `retry`.
    pub(crate) fn set_stuck(&self, retries: u64, cause: FullCause) {
        let mut inner = self.inner.lock();
        inner.stuck = inner.retries == retries;
        inner.cause = Some(cause);
        self.changed.notify_all();
    }

    /// Why the last spare could not be prepared.
    pub(crate) fn cause(&self) -> Option<FullCause> {
        self.inner.lock().cause.clone()
    }

    /// Whether preparing failed for a reason outside the journal, and is due to be tried again, by
    /// the clock of `work`.
    pub(crate) fn try_again(&self, now: u64) -> bool {
        let mut inner = self.inner.lock();
        let due = inner.is_transient() && now.saturating_sub(inner.last_try) >= nanos(RETRY_AFTER);
        if due {
            inner.last_try = now;
        }
        due
    }

    /// Ends all waiting.
    pub(crate) fn stop(&self) {
        self.inner.lock().stopped = true;
        self.changed.notify_all();
    }

    /// What there is to do.
    pub(crate) fn need(&self) -> Need {
        Self::need_of(&self.inner.lock())
    }

    fn need_of(inner: &Inner) -> Need {
        if inner.stopped {
            Need::Stop
        } else if inner.rotating {
            Need::Nothing
        } else if !inner.seals.is_empty() {
            Need::Seal
        } else if inner.wants_spare() && !inner.stuck && !inner.blocked {
            Need::Spare
        } else if inner.wants_rewriting() {
            Need::Rewrite
        } else {
            Need::Nothing
        }
    }

    /// Waits until there is something to do. Ends at the latest when the journal is closed.
    pub(crate) fn wait_for_need(&self) -> Need {
        let mut inner = self.inner.lock();
        loop {
            match Self::need_of(&inner) {
                Need::Nothing if inner.is_transient() => {
                    let waited = self.changed.wait_for(&mut inner, RETRY_AFTER);
                    if waited.timed_out() && inner.is_transient() && !inner.stopped {
                        return Need::Spare;
                    }
                }
                Need::Nothing => self.changed.wait(&mut inner),
                need => return need,
            }
        }
    }

    /// Waits, unless a commit is in need or the journal stops.
    pub(crate) fn pause(&self, time: Duration) {
        let mut inner = self.inner.lock();
        let needed = |inner: &mut Inner| !inner.urgent && !inner.stopped;
        self.changed.wait_while_for(&mut inner, needed, time);
    }

    pub(crate) fn stopped(&self) -> bool {
        self.inner.lock().stopped
    }

    /// (live segments, files).
    pub(crate) fn counts(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        (inner.sealed.len() + 1 + inner.spares.len(), inner.files)
    }

    /// How many segments hold something that counts: the one that is written among them.
    pub(crate) fn used(&self) -> usize {
        self.inner.lock().sealed.values().filter(|segment| segment.pinned()).count() + 1
    }

    /// How many extents logs have in full segments.
    pub(crate) fn extents(&self) -> u64 {
        self.inner.lock().sealed.values().map(|segment| segment.pins()).sum()
    }

    /// Whether the segment of this sequence is full: nothing is added to it any more. The caller
    /// must hold something that pins the segment; one that nothing pins may have been recycled.
    pub(crate) fn is_full(&self, sequence: u64) -> bool {
        self.inner.lock().sealed.contains_key(&sequence)
    }

    /// The oldest sealed segments that are still pinned.
    pub(crate) fn oldest_pinned(&self, count: usize) -> Vec<Arc<Segment>> {
        let inner = self.inner.lock();
        inner.sealed.values().filter(|segment| segment.pinned()).take(count).cloned().collect()
    }

    /// Takes the segments out that nothing needs any more, when what freed them is durable.
    fn take_dead(&self, durable: u64) -> Vec<Arc<Segment>> {
        let mut inner = self.inner.lock();
        let base = inner.base;
        let dead: Vec<u64> = inner
            .sealed
            .iter()
            .filter(|(sequence, segment)| **sequence < base || segment.is_rewritten())
            .filter(|(_, segment)| !segment.pinned() && segment.freed_at() <= durable)
            .map(|(sequence, _)| *sequence)
            .collect();
        dead.iter().filter_map(|sequence| inner.sealed.remove(sequence)).collect()
    }
}

/// Prepares segments and keeps the manifest: the only writer of both.
#[derive(Debug)]
pub(crate) struct Keeper {
    files: Arc<dyn Files>,
    /// As it was last written; `live` is filled in for each write.
    manifest: Manifest,
    live: Vec<Arc<Segment>>,
    file: Arc<dyn File>,
    segment_bytes: u64,
    max_bytes: u64,
    max_files: usize,
    bytes_per_second: u64,
}

impl Keeper {
    pub(crate) fn new(
        files: Arc<dyn Files>,
        config: &Config,
        manifest: Manifest,
        live: Vec<Arc<Segment>>,
        file: Arc<dyn File>,
    ) -> Self {
        Self {
            files,
            manifest,
            live,
            file,
            segment_bytes: config.segment_bytes,
            max_bytes: config.max_bytes,
            max_files: config.max_segments(),
            bytes_per_second: config.prepare_rate(),
        }
    }

    /// Makes one segment ready for use. `durable` tells the highest durable LSN.
    ///
    /// When there is no room, everything is as it was: dead segments that have not been struck are
    /// among the full ones again, and free files stay free.
    pub(crate) fn prepare(
        &mut self,
        space: &Space,
        durable: &dyn Fn() -> u64,
    ) -> Result<(), PrepareError> {
        let dead = space.take_dead(durable());
        let free = space.inner.lock().free.pop();
        let (slot, file) = match free {
            Some(slot) => (slot, None),
            None => match self.free_up(space, &dead)? {
                Some(slot) => (slot, None),
                None => self.create(space)?,
            },
        };
        let Prepared { created, recycled, .. } = &space.prepared;
        let count = if file.is_some() { created } else { recycled };
        let segment = match self.prepare_slot(space, slot, file, false) {
            Ok(segment) => segment,
            Err(error) => {
                let mut inner = space.inner.lock();
                inner.free.push(slot);
                // Those that `free_up` has struck are free files now.
                let live = |segment: &&Arc<Segment>| {
                    self.live.iter().any(|live| live.sequence == segment.sequence)
                };
                for segment in dead.iter().filter(live) {
                    inner.sealed.insert(segment.sequence, Arc::clone(segment));
                }
                return Err(error);
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
        self.strike(&dead);
        self.live.push(Arc::clone(&segment));
        self.write_manifest()?;
        let mut inner = space.inner.lock();
        for dead in dead {
            if dead.slot != slot && !inner.free.contains(&dead.slot) {
                inner.free.push(dead.slot);
            }
        }
        inner.stuck = false;
        inner.spares.push_back(segment);
        inner.lent = inner.lent.saturating_sub(1);
        inner.victims_due |= std::mem::take(&mut inner.target_missing);
        inner.is_young &= inner.spares.len() < RESERVE_SEGMENTS;
        space.changed.notify_all();
        Ok(())
    }

    /// Strikes dead segments from the manifest, so that one of their files can be used.
    fn free_up(
        &mut self,
        space: &Space,
        dead: &[Arc<Segment>],
    ) -> Result<Option<u32>, PrepareError> {
        if dead.is_empty() {
            return Ok(None);
        }
        self.strike(dead);
        self.write_manifest()?;
        let mut inner = space.inner.lock();
        inner.free.extend(dead.iter().map(|segment| segment.slot));
        Ok(inner.free.pop())
    }

    fn strike(&mut self, dead: &[Arc<Segment>]) {
        self.live.retain(|live| !dead.iter().any(|dead| dead.sequence == live.sequence));
    }

    /// Creates a file and fills it with zeros, so that commits overwrite blocks that exist.
    fn create(&self, space: &Space) -> Result<(u32, Option<Arc<dyn File>>), PrepareError> {
        let (slot, files) = {
            let inner = space.inner.lock();
            (inner.next_slot, inner.files)
        };
        if files >= self.max_files + RESERVE_SEGMENTS {
            let (segments, max_bytes) = (files - RESERVE_SEGMENTS, self.max_bytes);
            return Err(PrepareError::Full(FullCause::Limit { segments, max_bytes }));
        }
        let name = segment_name(slot);
        match self.create_zeroed(space, &name) {
            Ok(file) => {
                let mut inner = space.inner.lock();
                inner.next_slot += 1;
                inner.files += 1;
                Ok((slot, Some(file)))
            }
            Err((operation, error)) => {
                let full = is_full(error.kind());
                if full {
                    // The part that was written must not keep the disk full. No manifest knows
                    // the file, so it does not matter whether this succeeds.
                    let _ = self.files.remove(&name);
                }
                let fault = Fault::new(operation, name, &error);
                // A file that cannot be had for want of a descriptor can be had later; a folder
                // that is gone does not come back.
                let passes = operation == CREATE && error.kind() != io::ErrorKind::NotFound;
                if full || passes { Err(not_now(fault)) } else { Err(fault.into()) }
            }
        }
    }

    fn create_zeroed(
        &self,
        space: &Space,
        name: &str,
    ) -> Result<Arc<dyn File>, (&'static str, io::Error)> {
        let file = match self.files.create(name) {
            // Left by an attempt that failed; no manifest has ever listed it.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.files.open(name),
            other => other,
        };
        let file = file.map_err(|error| (CREATE, error))?;
        self.zero(space, &*file, 0)?;
        self.files.sync_dir().map_err(|error| ("sync", error))?;
        Ok(file)
    }

    /// Writes zeros from `from` to the end of a segment, at the paced rate.
    fn zero(
        &self,
        space: &Space,
        file: &dyn File,
        from: u64,
    ) -> Result<(), (&'static str, io::Error)> {
        let zeros = vec![0; ZERO_BYTES_QUIET as usize];
        let mut at = from;
        while at < self.segment_bytes && !space.stopped() {
            let piece = space.zero_bytes(at * 1000 / self.segment_bytes);
            let length = (self.segment_bytes - at).min(piece);
            write_all_at(file, &zeros[..length as usize], at).map_err(|error| ("write", error))?;
            file.sync_data().map_err(|error| ("sync", error))?;
            at += length;
            space.prepared.bytes_zeroed.fetch_add(length, Ordering::Relaxed);
            let needed = space.fill.load(Ordering::Relaxed) + AHEAD;
            if at < self.segment_bytes && at * 1000 / self.segment_bytes > needed {
                let nanos = length.saturating_mul(1_000_000_000) / self.bytes_per_second;
                space.pause(Duration::from_nanos(nanos));
            }
        }
        Ok(())
    }

    /// Starts a new life of a file.
    fn prepare_slot(
        &self,
        space: &Space,
        slot: u32,
        file: Option<Arc<dyn File>>,
        is_rewritten: bool,
    ) -> Result<Arc<Segment>, PrepareError> {
        let name = segment_name(slot);
        let fault = |operation, error: &io::Error| Fault::new(operation, name.clone(), error);
        let file = match file {
            Some(file) => file,
            None => self.files.open(&name).map_err(|error| match error.kind() {
                // A file that the manifest lists has been removed from outside.
                io::ErrorKind::NotFound => fault("open", &error).into(),
                _ => not_now(fault("open", &error)),
            })?,
        };
        let sequence = {
            let mut inner = space.inner.lock();
            inner.next_sequence += 1;
            inner.next_sequence - 1
        };
        let journal = self.manifest.journal;
        let header = SegmentHeader {
            slot,
            journal,
            sequence,
            size: self.segment_bytes,
            epoch: self.manifest.epoch,
            is_rewritten,
        };
        let length = file.len().map_err(|error| fault("read", &error))?;
        if length < self.segment_bytes {
            self.zero(space, &*file, length)
                .map_err(|(operation, error)| fault(operation, &error))?;
        }
        write_all_at(&*file, &header.encode(), 0).map_err(|error| fault("write", &error))?;
        file.sync_data().map_err(|error| fault("sync", &error))?;
        let size = self.segment_bytes;
        let segment = Segment::new(journal, slot, sequence, size, file);
        Ok(Arc::new(segment.with_moved_frames(is_rewritten)))
    }

    /// Records in the manifest that everything up to and including `lsn` is durable, when the
    /// journal is closed: no frame follows the last one, whose mark could say so.
    pub(crate) fn note_durable(&mut self, lsn: u64) -> Result<(), Fault> {
        self.manifest.mark = lsn;
        self.write_manifest()
    }

    /// Writes the manifest to the copy that does not hold the current one.
    ///
    /// A segment leaves the manifest only by such a write, which also records the spans of all
    /// older full segments: from then on nothing else proves that a full segment without an index
    /// is whole.
    pub(crate) fn write_manifest(&mut self) -> Result<(), Fault> {
        self.manifest.live = self.live.iter().map(|segment| segment.life()).collect();
        self.manifest.counter += 1;
        let at = (self.manifest.counter % 2) * SLOT_BYTES as u64;
        write_all_at(&*self.file, &self.manifest.encode(), at)
            .map_err(|error| Fault::new("write", MANIFEST, &error))?;
        self.file.sync_data().map_err(|error| Fault::new("sync", MANIFEST, &error))
    }
}

/// A segment cannot be prepared now, for a reason outside the journal.
fn not_now(fault: Fault) -> PrepareError {
    tracing::warn!(target: "voussoir::journal", %fault, "no next segment: trying again");
    PrepareError::Full(FullCause::Disk { fault })
}

/// Whether an error says that there is no room.
pub(crate) fn is_full(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// The names of the logs that pin the oldest segments, at most eight.
pub(crate) fn pinned_by<'a>(
    oldest: &[Arc<Segment>],
    logs: impl Iterator<Item = &'a super::log::LogInner>,
) -> Vec<LogName> {
    const NAMES_MAX: usize = 8;
    let mut found: Vec<(u64, LogName)> = logs
        .filter_map(|log| {
            let view = log.view.read();
            // What was moved comes first in a log, and is in a newer segment than what follows.
            let pinned = oldest.iter().find(|oldest| view.extent_in(oldest).is_some())?;
            Some((pinned.sequence, log.name().clone()))
        })
        .collect();
    found.sort_unstable();
    found.truncate(NAMES_MAX);
    found.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_pins_an_old_segment_behind_what_was_moved() {
        use crate::core::bounds::LogBounds;
        use crate::engine::log::LogInner;
        use crate::format::index::BatchRef;

        let files = crate::MemoryFiles::new();
        let segment = |sequence| {
            let file = files.create(&segment_name(sequence as u32)).unwrap();
            Arc::new(Segment::new(1, sequence as u32, sequence, 1 << 16, file))
        };
        let (old, moved) = (segment(3), segment(9));
        let name = LogName { namespace: "cold".to_owned(), id: 1 };
        let log = LogInner::new(name.clone(), 0, LogBounds { number: 1, ..LogBounds::default() });
        log.view.write().append(&moved, BatchRef::new(0, 4096, 4200, 1, 0), 1, 1);
        log.view.write().append(&old, BatchRef::new(1, 4096, 4200, 1, 0), 2, 2);
        assert_eq!(pinned_by(&[old], [&log].into_iter()), [name]);
    }

    #[test]
    fn only_lack_of_room_counts_as_full() {
        assert!(is_full(io::ErrorKind::StorageFull));
        assert!(!is_full(io::ErrorKind::PermissionDenied));
    }
}
