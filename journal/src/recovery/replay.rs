//! From frames to the state of all logs, telling a torn tail from damage.
//!
//! Frames are applied in order from the newest table on. Where the next one does not verify, the
//! bytes behind decide: a later frame that says that the missing one was durable proves damage,
//! and replay goes on behind it; without one, it was the torn tail, and the log ends here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::scan::{Frame, Scanner};
use crate::core::bounds::{LogBounds, UNKNOWN};
use crate::core::view::View;
use crate::engine::segment::Segment;
use crate::error::{Fault, LogName, OpenError};
use crate::format::frame::{FLAG_CLOSED, FrameKind, Section, SectionKind};
use crate::format::index::BatchRef;
use crate::format::table::Table;
use crate::format::{COUNT_MAX, FRAMES_AT, NAMESPACE_BYTES_MAX, VERSION};

/// The state that the frames describe.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    pub(crate) logs: BTreeMap<u64, ReplayedLog>,
    pub(crate) next_number: u64,
    pub(crate) names_missing: bool,
    /// LSN expected next; 0 before the first frame.
    pub(crate) next_lsn: u64,
    pub(crate) epoch: u32,
    /// Highest LSN that a frame says was durable.
    pub(crate) mark: u64,
    /// Segment (by its place among those replayed) and offset of the end.
    pub(crate) end: (usize, u64),
    /// The last segment ends in an index: where that is, its length and LSN.
    pub(crate) sealed: Option<(u64, u64, u64)>,
    /// Frames above the mark: LSN, place of the segment, offset. Invariant: ascending by LSN.
    above: VecDeque<(u64, usize, u64)>,
    /// The last frame says that the journal was closed, in this epoch.
    closed_in: Option<u32>,
    /// Places where frames were lost.
    pub(crate) gaps: u64,
    /// A gap since the last table.
    gap_open: bool,
    /// Segments before the next table were freed: what was in them no longer counted.
    freed_open: bool,
}

#[derive(Debug)]
pub(crate) struct ReplayedLog {
    pub(crate) name: LogName,
    pub(crate) view: View,
    pub(crate) last: u64,
    /// Some of its sections may be in a gap.
    unsure: bool,
    /// Some of its sections are in a gap. The writer of the frames behind the gap did not know of
    /// it, so no section there heals the log.
    broken: bool,
}

/// What replay may rely on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trust {
    /// The epoch in the manifest, when both its copies are whole: a journal that was closed in
    /// this epoch has nothing behind its last frame.
    pub(crate) closed_epoch: Option<u32>,
    /// The manifest says that everything up to here was durable.
    pub(crate) mark: u64,
}

/// Replays segments, the first of which begins with a table that verifies.
pub(crate) fn replay(segments: &[Arc<Segment>], trust: Trust) -> Result<Replay, OpenError> {
    let mut replay = Replay { next_number: 1, end: (0, FRAMES_AT), ..Replay::default() };
    let mut scanners: Vec<Scanner<'_>> =
        segments.iter().map(|segment| Scanner::new(segment)).collect();
    let mut at = (0, FRAMES_AT);
    loop {
        let mut next = match scanners.get_mut(at.0) {
            Some(scanner) => scanner.frame(at.1)?.filter(|frame| replay.continues(frame)),
            None => None,
        };
        if next.is_none() {
            if trust.closed_epoch.is_some() && replay.closed_in == trust.closed_epoch {
                break;
            }
            let Some((segment, frame)) = replay.resume(&mut scanners, at)? else {
                replay.gap_at_the_end(trust);
                break;
            };
            replay.gap(segments, segment, &frame);
            at = (segment, frame.offset);
            next = Some(frame);
        }
        let Some(frame) = next else { break };
        if let Some(kind) = frame.unknown {
            let name = segments[at.0].name();
            return Err(OpenError::UnknownKind { name, kind, supported: VERSION });
        }
        let bad = scanners[at.0].bad_payloads(&frame)?;
        let behind = (at.0, frame.end());
        if !bad.is_empty() && !is_durable(&mut scanners, behind, &frame, trust)? {
            break;
        }
        replay.apply(&segments[at.0], at.0, &mut scanners[at.0], &frame, &bad)?;
        at = match frame.kind() {
            Some(FrameKind::Index) => (at.0 + 1, FRAMES_AT),
            _ => behind,
        };
    }
    replay.finish();
    Ok(replay)
}

impl Replay {
    /// A journal that has no frames yet.
    pub(crate) fn fresh() -> Self {
        Self { next_number: 1, next_lsn: 1, ..Self::default() }
    }

    fn continues(&self, frame: &Frame) -> bool {
        let first = self.next_lsn == 0;
        (first || frame.header.lsn == self.next_lsn) && frame.header.epoch >= self.epoch
    }

    /// Where replay goes on when the expected frame is missing, provided that a frame behind
    /// proves that the missing one was durable: at the first frame of the epoch of that one.
    /// Frames of older epochs in between may be leftovers from behind an earlier end.
    fn resume(
        &self,
        scanners: &mut [Scanner<'_>],
        at: (usize, u64),
    ) -> Result<Option<(usize, Frame)>, Fault> {
        let mut firsts: Vec<(usize, Frame)> = Vec::new();
        let (mut segment, mut offset) = at;
        while let Some(scanner) = scanners.get_mut(segment) {
            let Some(frame) = scanner.search(offset)? else {
                (segment, offset) = (segment + 1, FRAMES_AT);
                continue;
            };
            offset = frame.offset + 8;
            if frame.header.lsn < self.next_lsn || frame.header.epoch < self.epoch {
                continue;
            }
            let (decides, epoch) = (frame.header.mark >= self.next_lsn, frame.header.epoch);
            if firsts.last().is_none_or(|(_, first)| first.header.epoch < epoch) {
                firsts.push((segment, frame));
            }
            if decides {
                return Ok(firsts.into_iter().find(|(_, first)| first.header.epoch == epoch));
            }
        }
        Ok(None)
    }

    /// Opens a gap if the frames end below the mark of the manifest.
    fn gap_at_the_end(&mut self, trust: Trust) {
        if self.next_lsn > trust.mark {
            return;
        }
        tracing::warn!(
            target: "voussoir::journal",
            from_lsn = self.next_lsn,
            to_lsn = trust.mark,
            "damage: frames that were durable are gone"
        );
        self.open_gap(trust.mark + 1);
    }

    /// Before the first frame of a salvage: nothing is known, not even that there is a journal.
    pub(crate) fn salvage() -> Self {
        Self { next_number: 1, ..Self::default() }
    }

    /// Takes in a log whose creation is missing, as its first section that is there finds it.
    pub(crate) fn adopt_log(&mut self, number: u64, first: u64, name: LogName) {
        self.names_missing = true;
        self.next_number = self.next_number.max(number.saturating_add(1));
        self.logs.retain(|_, log| log.name != name);
        let bounds = LogBounds { number, first, end: first, damage: None };
        let (view, last) = (View::new(bounds), 0);
        self.logs.insert(number, ReplayedLog { name, view, last, unsure: false, broken: true });
    }

    /// Frames below `next_lsn` are missing: any log may have been changed by them.
    pub(crate) fn open_gap(&mut self, next_lsn: u64) {
        self.gaps += 1;
        self.gap_open = true;
        self.next_lsn = next_lsn;
        for log in self.logs.values_mut() {
            log.unsure = true;
        }
    }

    /// The segments with the frames below `next_lsn`, which is the LSN of a table, were freed: the
    /// table says what became of the logs there.
    pub(crate) fn skip_freed(&mut self, next_lsn: u64) {
        self.freed_open = true;
        self.next_lsn = next_lsn;
    }

    /// Frames are missing before this one.
    fn gap(&mut self, segments: &[Arc<Segment>], segment: usize, frame: &Frame) {
        tracing::warn!(
            target: "voussoir::journal",
            segment = segments[segment].name(),
            from_lsn = self.next_lsn,
            to_lsn = frame.header.lsn,
            "damage: frames that were durable are gone"
        );
        self.open_gap(frame.header.lsn);
    }

    /// Applies the next frame. `bad` are the sections whose payload is lost.
    pub(crate) fn apply(
        &mut self,
        segment: &Arc<Segment>,
        number: usize,
        scanner: &mut Scanner<'_>,
        frame: &Frame,
        bad: &[usize],
    ) -> Result<(), OpenError> {
        let header = &frame.header;
        self.next_lsn = header.lsn + 1;
        self.epoch = header.epoch;
        self.mark = self.mark.max(header.mark);
        while self.above.front().is_some_and(|(lsn, ..)| *lsn <= self.mark) {
            self.above.pop_front();
        }
        self.above.push_back((header.lsn, number, frame.offset));
        self.end = (number, frame.end());
        self.sealed = None;
        self.closed_in = None;
        match frame.kind() {
            Some(FrameKind::Mark) if header.flags & FLAG_CLOSED != 0 => {
                self.closed_in = Some(header.epoch);
            }
            Some(FrameKind::Index) => {
                self.sealed = Some((frame.offset, u64::from(header.length), header.lsn));
            }
            Some(FrameKind::Table) => self.adopt_table(scanner, frame, bad)?,
            Some(FrameKind::Commit) => {
                let mut batches = frame.batches().peekable();
                for (at, (payload_at, section)) in frame.payloads().enumerate() {
                    let whole = !bad.contains(&at);
                    if section.kind == SectionKind::Create {
                        let name = scanner.bytes(payload_at, section.length as usize)?;
                        self.create(section, name, whole, header.lsn);
                        continue;
                    }
                    let batch = batches.next_if(|(number, ..)| *number == at);
                    let batch = batch.map(|(_, _, batch, end)| (batch, end));
                    self.change(segment, section, batch, whole, header.lsn);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn create(&mut self, section: &Section, name: &[u8], whole: bool, lsn: u64) {
        self.next_number = self.next_number.max(section.log.saturating_add(1));
        let name = str::from_utf8(name).ok().filter(|name| name.len() <= NAMESPACE_BYTES_MAX);
        let Some(namespace) = name.filter(|_| whole) else {
            self.names_missing = true;
            return;
        };
        let name = LogName { namespace: namespace.to_owned(), id: section.position };
        // A gap may have swallowed the deletion of the one before.
        self.logs.retain(|_, log| log.name != name);
        let bounds = LogBounds { number: section.log, ..LogBounds::default() };
        let view = View::new(bounds);
        self.logs.insert(
            section.log,
            ReplayedLog { name, view, last: lsn, unsure: false, broken: false },
        );
    }

    fn change(
        &mut self,
        segment: &Arc<Segment>,
        section: &Section,
        batch: Option<(BatchRef, u64)>,
        whole: bool,
        lsn: u64,
    ) {
        if section.kind == SectionKind::Delete {
            if let Some(mut log) = self.logs.remove(&section.log) {
                log.view.clear(lsn);
            }
            return;
        }
        let Some(log) = self.logs.get_mut(&section.log) else {
            // Its creation is in a gap.
            self.names_missing = true;
            return;
        };
        log.broken = !section.heals && (log.broken || section.previous != log.last);
        log.unsure = false;
        log.last = lsn;
        match section.kind {
            SectionKind::Append => log.append(segment, batch, whole, lsn),
            SectionKind::Truncate => {
                log.view.truncate(section.position, lsn);
                log.view.bounds.truncate(section.position.max(log.view.bounds.first));
            }
            SectionKind::Release => {
                log.view.release(section.position, lsn);
                log.view.bounds.release(section.position);
            }
            _ => {}
        }
    }

    /// Takes the table at the start of a segment: the truth about what a gap has hidden.
    fn adopt_table(
        &mut self,
        scanner: &mut Scanner<'_>,
        frame: &Frame,
        bad: &[usize],
    ) -> Result<(), OpenError> {
        let Some((at, section)) = frame.payloads().next().filter(|_| bad.is_empty()) else {
            return Ok(());
        };
        let payload = scanner.bytes(at, section.length as usize)?;
        let sane = |table: &Table| {
            section.position <= COUNT_MAX && table.logs.iter().all(|log| log.number <= COUNT_MAX)
        };
        let Some(table) = Table::decode(payload, section.count).filter(sane) else {
            return Err(OpenError::TableDamaged { detail: "malformed table".to_owned() });
        };
        self.next_number = self.next_number.max(section.position);
        let first = frame.header.lsn + 1 == self.next_lsn && self.logs.is_empty() && self.gaps == 0;
        let freed = std::mem::take(&mut self.freed_open);
        if first || freed || self.gap_open {
            let is_known = freed && !self.gap_open;
            self.names_missing = table.names_missing;
            self.gap_open = false;
            let mut known = std::mem::take(&mut self.logs);
            for entry in table.logs {
                let bounds = LogBounds {
                    number: entry.number,
                    first: entry.first,
                    end: entry.end,
                    damage: entry.damage,
                };
                let name = LogName { namespace: entry.namespace, id: entry.id };
                let mut log = known.remove(&entry.number).unwrap_or_else(|| ReplayedLog {
                    name,
                    view: View::default(),
                    last: if first { entry.last } else { 0 },
                    unsure: false,
                    broken: false,
                });
                log.broken |= log.last != entry.last && !is_known;
                log.view.bounds = bounds;
                (log.last, log.unsure) = (entry.last, false);
                self.logs.insert(entry.number, log);
            }
        }
        Ok(())
    }

    /// Marks the logs of which changes may be missing.
    pub(crate) fn finish(&mut self) {
        for log in self.logs.values_mut().filter(|log| log.unsure || log.broken) {
            let end = log.view.bounds.end;
            log.view.bounds.hurt(end, UNKNOWN);
        }
        self.names_missing |= self.gap_open;
    }

    /// Where the frames above the mark begin in this segment.
    pub(crate) fn above_mark(&self, segment: usize) -> Option<u64> {
        self.above.iter().find(|(_, number, _)| *number == segment).map(|(_, _, offset)| *offset)
    }
}

/// Whether a frame behind `at` says that this one was durable.
fn is_durable(
    scanners: &mut [Scanner<'_>],
    at: (usize, u64),
    frame: &Frame,
    trust: Trust,
) -> Result<bool, Fault> {
    if frame.header.lsn <= trust.mark {
        return Ok(true);
    }
    let (mut segment, mut offset) = at;
    while let Some(scanner) = scanners.get_mut(segment) {
        match scanner.search(offset)? {
            None => (segment, offset) = (segment + 1, FRAMES_AT),
            Some(later) => {
                offset = later.offset + 8;
                let header = &later.header;
                if header.mark >= frame.header.lsn && header.epoch >= frame.header.epoch {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

impl ReplayedLog {
    fn append(
        &mut self,
        segment: &Arc<Segment>,
        batch: Option<(BatchRef, u64)>,
        whole: bool,
        lsn: u64,
    ) {
        let Some((batch, end)) = batch else {
            self.broken = true;
            return;
        };
        // Only behind a gap is this not just the end.
        if batch.first < self.view.bounds.end {
            self.view.truncate(batch.first, lsn);
        }
        let bounds = &mut self.view.bounds;
        bounds.first = bounds.first.min(batch.first);
        bounds.end = end;
        if !whole {
            bounds.hurt(batch.first, end);
        }
        self.view.append(segment, batch, end, lsn);
    }
}
