//! From frames in the order of their LSNs to the logs that they describe, by the code of recovery.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use super::SalvageConfig;
use super::collect::{Collected, MovedBatch, Place, is_table};
use crate::core::bounds::UNKNOWN;
use crate::core::view::Extent;
use crate::engine::segment::Segment;
use crate::error::LogName;
use crate::format::FRAMES_AT;
use crate::format::frame::{FrameKind, SectionKind};
use crate::recovery::replay::Replay;
use crate::recovery::scan::{Frame, Scanner};

/// The namespace of logs whose names are lost.
const UNNAMED: &str = "unnamed";

/// The logs as the frames leave them.
#[derive(Debug)]
pub(super) struct Restored {
    pub(super) replay: Replay,
    pub(super) frames: u64,
    pub(super) lsns: (u64, u64),
    pub(super) missing_lsns: Vec<Range<u64>>,
    pub(super) end_is_proven: bool,
    /// LSN of the last table that was taken, from which on each log that exists is known.
    last_table: u64,
    /// The last frame that was taken, and the LSN of the first one of its segment.
    before: Option<(Place, FrameKind, u64)>,
    /// Numbers of logs whose deletion was found.
    deleted: BTreeSet<u64>,
}

impl Restored {
    pub(super) fn replay(collected: &Collected, config: &SalvageConfig) -> Self {
        let mut restored = Self {
            replay: Replay::salvage(),
            frames: (collected.frames.len() + collected.moved.len()) as u64,
            lsns: (0, 0),
            missing_lsns: Vec::new(),
            end_is_proven: false,
            last_table: 0,
            before: None,
            deleted: BTreeSet::new(),
        };
        // Frames of one segment follow each other, so that one reader of each copy is enough.
        let mut open: (u64, BTreeMap<u32, Scanner<'_>>) = (0, BTreeMap::new());
        for place in &collected.frames {
            if open.0 != place.sequence {
                open = (place.sequence, BTreeMap::new());
            }
            let copies = &collected.segments[&place.sequence];
            let scanner = open
                .1
                .entry(place.copy)
                .or_insert_with(|| Scanner::lenient(&copies[place.copy as usize]));
            match best_copy(collected, place) {
                Some((copy, bad)) => {
                    restored.apply(collected, place, &mut Scanner::lenient(copy), &bad);
                }
                None => restored.apply(collected, place, scanner, &[]),
            }
        }
        restored.add_moved(collected);
        restored.end(collected, config);
        restored
    }

    fn apply(
        &mut self,
        collected: &Collected,
        place: &Place,
        scanner: &mut Scanner<'_>,
        bad: &[usize],
    ) {
        // It verified a moment ago; a device that fails meanwhile makes it one that is missing.
        let frame = scanner.frame(place.offset).ok().flatten();
        // What a newer version wrote is not known here: as if it were missing.
        let Some(frame) = frame.filter(|frame| frame.unknown.is_none()) else {
            return self.skip_to(place.lsn + 1);
        };
        let expected = self.replay.next_lsn;
        if expected == 0 {
            if !is_table(&frame, bad) {
                self.replay.open_gap(place.lsn);
            }
        } else if place.lsn != expected {
            if is_table(&frame, bad) && self.follows_freed(collected, place) {
                self.replay.skip_freed(place.lsn);
            } else {
                self.skip_to(place.lsn);
            }
        }
        if let Some(kind) = frame.kind() {
            let same = self.before.filter(|(before, ..)| before.sequence == place.sequence);
            self.before = Some((*place, kind, same.map_or(place.lsn, |(.., first)| first)));
        }
        let first = if self.lsns.0 == 0 { place.lsn } else { self.lsns.0 };
        self.lsns = (first, place.lsn);
        self.adopt_unknown(collected, &frame, bad);
        if is_table(&frame, bad) {
            self.last_table = place.lsn;
        }
        let deletes = frame.sections.iter().filter(|section| section.kind == SectionKind::Delete);
        self.deleted.extend(deletes.map(|section| section.log));
        let segment = Arc::clone(&collected.segments[&place.sequence][0]);
        if self.replay.apply(&segment, 0, scanner, &frame, bad).is_err() {
            // A table that verifies and is none: nobody writes that, and nothing is taken from it.
            self.replay.names_missing = true;
        }
    }

    /// Takes in the logs that this frame changes and whose creation is missing.
    fn adopt_unknown(&mut self, collected: &Collected, frame: &Frame, bad: &[usize]) {
        let mut created = Vec::new();
        for (number, section) in frame.sections.iter().enumerate() {
            match section.kind {
                SectionKind::Create if !bad.contains(&number) => created.push(section.log),
                SectionKind::Append | SectionKind::Truncate | SectionKind::Release => {
                    let is_known = self.replay.logs.contains_key(&section.log);
                    if !is_known && !created.contains(&section.log) {
                        let name = collected.names.get(&section.log).cloned();
                        let name = name.unwrap_or_else(|| unnamed(collected, section.log));
                        self.replay.adopt_log(section.log, section.position, name);
                    }
                }
                _ => {}
            }
        }
    }

    /// Whether this frame begins a segment, and the manifest proves that the segments between it
    /// and the last frame had been freed.
    fn follows_freed(&self, collected: &Collected, place: &Place) -> bool {
        let Some((before, kind, first)) = self.before else { return false };
        let Some((life, next)) = collected.neighbours(before.sequence) else { return false };
        // An index is not synced: without one, the span says that the segment is whole.
        let is_whole = kind == FrameKind::Index
            || u64::from(life.span) == before.lsn.saturating_sub(first) + 2;
        is_whole && next == place.sequence && place.offset == FRAMES_AT
    }

    /// Adds the batches that were copied from segments which are gone. Each counts as what was
    /// written at its LSN, whatever file it is in.
    fn add_moved(&mut self, collected: &Collected) {
        let mut found: BTreeMap<u64, Vec<Extent>> = BTreeMap::new();
        for moved in &collected.moved {
            if !self.replay.logs.contains_key(&moved.log) && !self.adopt_moved(collected, moved) {
                continue;
            }
            if moved.lsn > self.last_table
                && let Some(log) = self.replay.logs.get_mut(&moved.log)
            {
                // No table says where the log began and ended after this.
                let bounds = &mut log.view.bounds;
                bounds.first = bounds.first.min(moved.batch.first);
                bounds.end = bounds.end.max(moved.end);
            }
            let segment = &collected.segments[&moved.sequence][0];
            let positions = moved.batch.first..moved.end;
            let bytes = u64::from(moved.batch.length);
            let mut extent = Extent::found(segment, positions, moved.lsn, bytes);
            extent.batches = Some(Arc::new([moved.batch].into()));
            found.entry(moved.log).or_default().push(extent);
        }
        for (number, extents) in found {
            if let Some(log) = self.replay.logs.get_mut(&number) {
                log.view.merge(extents);
                if !collected.moved_are_whole() {
                    // A copy that is missing may have replaced one of these.
                    let end = log.view.bounds.end;
                    log.view.bounds.hurt(end, UNKNOWN);
                }
            }
        }
    }

    /// Takes in a log of which only moved batches are there. False when it is known that it had
    /// been deleted, or that another one has its name since.
    fn adopt_moved(&mut self, collected: &Collected, moved: &MovedBatch) -> bool {
        if moved.lsn <= self.last_table || self.deleted.contains(&moved.log) {
            return false;
        }
        let name = collected.names.get(&moved.log).cloned();
        let name = name.unwrap_or_else(|| unnamed(collected, moved.log));
        if self.replay.logs.values().any(|log| log.name == name) {
            return false;
        }
        self.replay.adopt_log(moved.log, moved.batch.first, name);
        true
    }

    /// Frames below this LSN are missing.
    fn skip_to(&mut self, lsn: u64) {
        self.missing_lsns.push(self.replay.next_lsn.max(1)..lsn);
        self.replay.open_gap(lsn);
    }

    fn end(&mut self, collected: &Collected, config: &SalvageConfig) {
        let last = collected.frames.last().map_or(0, |place| place.sequence);
        self.end_is_proven = collected.proves_end(last);
        let mark = collected.manifest.as_ref().map_or(0, |manifest| manifest.mark);
        let next = self.replay.next_lsn;
        if mark >= next && mark > 0 {
            // Known to be lost, whatever anybody accepts.
            self.end_is_proven = false;
            self.skip_to(mark + 1);
        } else if !self.end_is_proven && !config.accept_end {
            self.replay.open_gap(next);
        }
        self.replay.finish();
    }
}

/// Of a frame with damaged payloads: the copy in which most names and tables verify, and the
/// sections whose payload is lost: of batches those that verify in no copy, as they are read from
/// whichever does; of the others those that fail in this one. `None` for a frame that is whole.
fn best_copy<'a>(collected: &'a Collected, place: &Place) -> Option<(&'a Segment, Vec<usize>)> {
    if !place.is_damaged {
        return None;
    }
    let copies = collected.segments[&place.sequence].iter().filter_map(|segment| {
        let mut scanner = Scanner::lenient(segment);
        let frame = scanner.frame(place.offset).ok().flatten()?;
        let bad = scanner.bad_payloads(&frame).ok()?;
        Some((&**segment, frame, bad))
    });
    let copies: Vec<(&Segment, Frame, Vec<usize>)> = copies.collect();
    let is_batch = |frame: &Frame, number: usize| {
        frame.sections.get(number).is_some_and(|section| section.kind == SectionKind::Append)
    };
    let (best, frame, bad) = copies.iter().min_by_key(|(_, frame, bad)| {
        bad.iter().filter(|number| !is_batch(frame, **number)).count()
    })?;
    let is_lost = |number: &usize| {
        !is_batch(frame, *number) || copies.iter().all(|(.., bad)| bad.contains(number))
    };
    Some((*best, bad.iter().copied().filter(is_lost).collect()))
}

/// A name for a log of which only the number is known, that no log has.
fn unnamed(collected: &Collected, number: u64) -> LogName {
    let is_taken = |name: &LogName| collected.names.values().any(|other| other == name);
    let mut name = LogName { namespace: UNNAMED.to_owned(), id: number };
    // Ends: names are finitely many, and each turn tries another.
    while is_taken(&name) {
        name.namespace.push('-');
    }
    name
}
