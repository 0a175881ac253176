//! Group commit: one write and one sync for all that waits.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::completion::Told;
use super::lead::{Lead, panic_fault};
use super::space::{PrepareError, Spare};
use super::writer::Writer;
use super::{Counters, Engine};
use crate::commit::Receipt;
use crate::config::Durability;
use crate::core::queue::{Queued, Taken};
use crate::core::reserve::{Claim, RESERVE_SEGMENTS};
use crate::error::{Error, Fault, FullCause};
use crate::format::frame::SectionKind;

/// How long a large commit waits for a spare before the leader checks for small ones again.
const SPARE_WAIT: Duration = Duration::from_micros(200);

/// What could be taken to be written.
enum Filled {
    Nothing,
    Group(Vec<Queued>),
    /// There is no room for these.
    Full(Vec<Queued>, Error),
}

impl Lead<'_> {
    /// Writes one group and tells its commits; answers how many were told, or 0 when nothing
    /// waited.
    pub(crate) fn run_group(&self, now: u64) -> usize {
        let engine = self.engine;
        let told = self.as_leader(|| engine.write_and_tell(now));
        if engine.config.manual
            && let Err(fault) = engine.seal_full_segments()
        {
            engine.stop(&fault);
        }
        told
    }

    /// Makes everything durable and writes a mark that says so; answers whether there was
    /// anything to do.
    pub(crate) fn mark(&self, closed: bool) -> Result<bool, Fault> {
        self.engine.write_mark(closed)
    }
}

impl Engine {
    fn write_and_tell(&self, now: u64) -> usize {
        let mut writer = self.writer.lock();
        let filled = self.fill(&mut writer);
        if !matches!(filled, Ok(Filled::Nothing)) {
            writer.last_activity = writer.last_activity.max(now);
        }
        let (group, outcome) = match filled {
            Ok(Filled::Nothing) => return 0,
            Ok(Filled::Group(group)) => {
                let mut group = Untold(group);
                let outcome = self.write_group(&mut writer, &mut group.0);
                (std::mem::take(&mut group.0), outcome.map_err(Some))
            }
            Ok(Filled::Full(failed, error)) => {
                drop(writer);
                return self.tell_failed(failed, &error);
            }
            Err(fault) => (Vec::new(), Err(Some(fault))),
        };
        drop(writer);
        match outcome {
            Ok(()) => self.tell_written(group),
            Err(Some(fault)) => {
                // Reject new commits before any outcome is told, so that a callback cannot
                // submit another commit in between.
                self.stop(&fault);
                self.tell_failed(group, &Error::Failed { fault })
            }
            Err(None) => 0,
        }
    }

    /// Takes what goes into the next group, moving to the next segment when it does not fit.
    ///
    /// Ends because an empty segment has room for its table, which takes at most a quarter of it,
    /// and for any commit, which takes at most another quarter; and because each wait for a segment
    /// ends with one, or with the knowledge that there is none, and then the commits fail unless
    /// the keeper has made another ready meanwhile, which it does for what has been released.
    fn fill(&self, writer: &mut Writer) -> Result<Filled, Fault> {
        loop {
            let supply = self.space.supply();
            let mut room = writer.room(supply);
            let (taken, quiet) = {
                let mut state = self.state.lock();
                (state.take(&mut writer.next_lsn, &mut room), state.is_quiet())
            };
            self.space.set_quiet(quiet);
            let claim = match taken {
                Taken::Nothing => return Ok(Filled::Nothing),
                Taken::Group(group) => return Ok(Filled::Group(group)),
                Taken::NoRoom(claim) => claim,
            };
            match self.find_spare(writer, claim)? {
                Spare::Ready(spare) => self.rotate(writer, spare)?,
                // A small commit may have come that still fits.
                Spare::NotYet => {}
                Spare::Never => {
                    let error = self.full();
                    let mut state = self.state.lock();
                    // Checked under the lock: the keeper clears `full` after it stores a spare.
                    if self.space.supply() == supply {
                        return Ok(Filled::Full(state.fail_full(&error), error));
                    }
                }
            }
        }
    }

    /// A segment to go on in, waiting for one to be prepared if it can be.
    fn find_spare(&self, writer: &mut Writer, claim: Claim) -> Result<Spare, Fault> {
        let spare = self.take_or_prepare(writer, claim)?;
        if writer.unsynced && matches!(spare, Spare::NotYet) && self.space.needs_room() {
            // A round of rewriting ends when what it leaves out has been released durably.
            self.sync(writer)?;
        }
        if !writer.unsynced || !matches!(spare, Spare::Never) {
            return Ok(spare);
        }
        // What freed a segment may be written only.
        self.sync(writer)?;
        self.take_or_prepare(writer, claim)
    }

    fn take_or_prepare(&self, writer: &mut Writer, claim: Claim) -> Result<Spare, Fault> {
        if !self.config.manual {
            return Ok(self.space.wait_for_spare(SPARE_WAIT, claim));
        }
        // Ends because each turn adds a spare, and the reserve has few, or ends a round of
        // rewriting, which frees a segment or meets a faulty one, at most three times for each.
        while !self.space.supply().has_segment_for(claim)
            && (self.prepare()? || self.rewrite_to_the_end(writer)?)
        {}
        Ok(self.space.take_spare(claim).map_or(Spare::Never, Spare::Ready))
    }

    /// Prepares one segment; answers whether there was room.
    pub(crate) fn prepare(&self) -> Result<bool, Fault> {
        let retries = self.space.retries();
        let prepared = {
            let mut keeper = self.keeper.lock();
            if self.space.stopped() {
                // The directory may belong to another opening by now.
                return Ok(false);
            }
            keeper.prepare(&self.space, &|| self.durable_lsn())
        };
        match prepared {
            Ok(()) => {
                self.state.lock().full = None;
                Ok(true)
            }
            Err(PrepareError::Full(cause)) => {
                if !self.rewriting_may_help()? {
                    self.space.set_stuck(retries, cause);
                }
                Ok(false)
            }
            Err(PrepareError::Fault(fault)) => Err(fault),
        }
    }

    /// Something was released or became durable while there was no room.
    pub(crate) fn room_may_have_come(&self) {
        if self.space.retry() {
            self.state.lock().full = None;
        }
    }

    fn write_group(&self, writer: &mut Writer, group: &mut [Queued]) -> Result<(), Fault> {
        let mark = self.durable_lsn();
        for queued in &mut *group {
            writer.stage_commit(queued, mark);
        }
        self.write_staged(writer)?;
        let asked = group.iter().any(|queued| queued.durability == Durability::Synced);
        if writer.sync_next || asked {
            self.sync(writer)?;
        }
        let controls = apply(writer, group);
        if controls {
            self.space.note_released();
            self.room_may_have_come();
        }
        Counters::add(&self.counters.groups, 1);
        Counters::add(&self.counters.commits, group.len() as u64);
        Ok(())
    }

    /// Writes what is staged.
    pub(crate) fn write_staged(&self, writer: &mut Writer) -> Result<(), Fault> {
        writer.check()?;
        let segment = &writer.active.segment;
        if let Err(error) = writer.staged.write(segment) {
            let fault = Fault::new("write", segment.name(), &error);
            return Err(writer.fail(fault));
        }
        Counters::add(&self.counters.bytes, writer.staged.length);
        writer.active.tail = writer.staged.end();
        self.space.set_fill(writer.active.tail * 1000 / segment.size);
        writer.staged.clear();
        writer.unsynced = true;
        self.written.store(writer.next_lsn - 1, Ordering::Release);
        Ok(())
    }

    /// Syncs the active segment; everything written is durable then.
    pub(crate) fn sync(&self, writer: &mut Writer) -> Result<(), Fault> {
        writer.check()?;
        let segment = &writer.active.segment;
        // A journal without threads is deterministic, and so are its figures.
        let began = (!self.config.manual).then(Instant::now);
        if let Err(error) = segment.file.sync_data() {
            let fault = Fault::new("sync", segment.name(), &error);
            return Err(writer.fail(fault));
        }
        let nanos = began.map_or(0, |began| began.elapsed().as_nanos() as u64);
        Counters::add(&self.counters.sync_nanos, nanos);
        Counters::add(&self.counters.syncs, 1);
        writer.unsynced = false;
        self.durable.store(self.written.load(Ordering::Acquire), Ordering::Release);
        if std::mem::take(&mut writer.sync_next) {
            self.space.set_durable_base(writer.active.segment.sequence);
        }
        self.room_may_have_come();
        Ok(())
    }

    fn tell_written(&self, group: Vec<Queued>) -> usize {
        let told = {
            let mut state = self.state.lock();
            for queued in &group {
                state.finished(queued);
            }
            if state.has_waiters() { state.admit_waiting() } else { Told::default() }
        };
        let commits = group.len();
        for part in group.iter().flat_map(|queued| &queued.parts) {
            part.log.followers.wake_all();
        }
        for queued in group {
            let receipt = Receipt { lsn: Some(queued.lsn), positions: queued.positions };
            queued.done.tell(Ok(receipt));
        }
        told.tell();
        commits
    }

    fn tell_failed(&self, failed: Vec<Queued>, error: &Error) -> usize {
        let told = {
            let mut state = self.state.lock();
            if matches!(error, Error::Failed { .. }) {
                for queued in &failed {
                    state.finished(queued);
                }
            }
            if state.has_waiters() { state.admit_waiting() } else { Told::default() }
        };
        let commits = failed.len();
        let buffered = |queued: &&Queued| queued.durability == Durability::Buffered;
        self.count_lost(failed.iter().filter(buffered).count() as u64, error);
        for queued in failed {
            queued.done.tell(Err(error.clone()));
        }
        told.tell();
        commits
    }

    fn write_mark(&self, closed: bool) -> Result<bool, Fault> {
        if matches!(self.rejection(), Some(Error::Stopped { .. })) {
            return Ok(false);
        }
        let mut writer = self.writer.lock();
        let writer = &mut *writer;
        let last = writer.next_lsn - 1;
        if !closed && writer.marked >= last && !writer.unsynced {
            return Ok(false);
        }
        if writer.unsynced {
            self.sync(writer)?;
        }
        if writer.mark_fits() {
            writer.stage_mark(last, closed);
            self.write_staged(writer)?;
            self.sync(writer)?;
            Counters::add(&self.counters.marks, 1);
        }
        writer.marked = writer.next_lsn - 1;
        self.room_may_have_come();
        Ok(true)
    }

    /// What is told while there is no segment for appends.
    fn full(&self) -> Error {
        let max_bytes = self.config.max_bytes;
        let segments = self.space.counts().1.saturating_sub(RESERVE_SEGMENTS);
        let limit = || FullCause::Limit { segments, max_bytes };
        let cause = self.space.cause().unwrap_or_else(limit);
        Error::Full { cause, pinned_by: self.pinned_by() }
    }

    /// The logs that keep the oldest segments.
    fn pinned_by(&self) -> Vec<crate::error::LogName> {
        const OLDEST: usize = 4;
        let oldest = self.space.oldest_pinned(OLDEST);
        super::space::pinned_by(&oldest, self.existing().iter().map(AsRef::as_ref))
    }

    pub(crate) fn groups(&self) -> u64 {
        self.counters.groups.load(Ordering::Relaxed)
    }
}

/// A group that is being written. If the write panics, its commits fail with an unknown outcome.
#[derive(Debug)]
struct Untold(Vec<Queued>);

impl Drop for Untold {
    fn drop(&mut self) {
        for queued in self.0.drain(..) {
            queued.done.tell(Err(Error::Failed { fault: panic_fault("leader") }));
        }
    }
}

/// Makes a written group visible to readers; answers whether anything may have been freed.
fn apply(writer: &mut Writer, group: &[Queued]) -> bool {
    let active = &mut writer.active;
    let mut controls = false;
    for queued in group {
        for part in &queued.parts {
            let mut view = part.log.view.write();
            match part.section {
                Some((SectionKind::Append, _)) => {
                    // Always: encoding has given it.
                    if let Some(batch) = part.batch {
                        active.batches += 1;
                        if view.append(&active.segment, batch, part.after.end, queued.lsn) {
                            active.logs.push(part.log.index());
                        }
                    }
                }
                Some((SectionKind::Truncate, from)) => view.truncate(from, queued.lsn),
                Some((SectionKind::Release, upto)) => view.release(upto, queued.lsn),
                Some((SectionKind::Delete, _)) => view.clear(queued.lsn),
                // The creation of a log, and no change of a caller's.
                _ => {}
            }
            controls |= !matches!(part.section, Some((SectionKind::Append, _)));
            view.bounds = part.after;
        }
    }
    controls
}
