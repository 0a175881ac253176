//! Writing the records that count to a new journal, log by log.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::collect::Collected;
use super::restore::Restored;
use super::{SalvageError, SalvageProgress, SalvagedLog};
use crate::commit::{Batch, BatchBuilder, Change, Commit, Operation};
use crate::config::{Config, Durability};
use crate::core::bounds::{LogBounds, UNKNOWN};
use crate::engine::Engine;
use crate::engine::log::LogInner;
use crate::engine::segment::Segment;
use crate::error::{Error, Fault, OpenError};
use crate::files::{Files, read_full_at};
use crate::format::frame::{HEADER_BYTES, Header, SECTION_BYTES, SectionKind, record_range};
use crate::format::index::BatchRef;
use crate::format::{
    BATCH_BYTES_MAX, BLOCK, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SEGMENTS_MAX, crc32c, table,
};
use crate::log_info::health_of;
use crate::recovery;
use crate::recovery::replay::ReplayedLog;

/// Bytes of batches in one commit, as far as the segments are large enough, and how many.
const COMMIT_BYTES: u64 = 512 << 10;
const COMMIT_BATCHES: usize = 1_000;

/// A batch that counts, or what is left of it.
struct Piece {
    positions: Range<u64>,
    batch: Batch,
}

/// A log on its way.
struct Target {
    inner: Arc<LogInner>,
    bounds: LogBounds,
    report: SalvagedLog,
}

pub(super) fn write(
    collected: &Collected,
    restored: &Restored,
    to: Arc<dyn Files>,
    progress: &mut dyn FnMut(SalvageProgress),
) -> Result<Vec<SalvagedLog>, SalvageError> {
    let mut logs: Vec<(&u64, &ReplayedLog)> = restored.replay.logs.iter().collect();
    logs.sort_unstable_by(|a, b| a.1.name.cmp(&b.1.name));
    let engine = recovery::open(to, config_for(collected, &logs)).map_err(|error| match error {
        OpenError::InUse => SalvageError::InUse { directory: "new" },
        error => SalvageError::Create(error),
    })?;
    let stopped = |fault: Fault| SalvageError::Write(Error::Stopped { fault });
    // Until all is written, each log says that anything may be missing.
    let mut targets: Vec<Target> =
        logs.iter().map(|(_, log)| Target::create(&engine, log)).collect();
    engine.state.lock().names_missing = true;
    recovery::begin_table(&engine).map_err(stopped)?;
    let mut done = SalvageProgress {
        files: collected.files.len(),
        frames: restored.frames,
        ..SalvageProgress::default()
    };
    for (target, (number, log)) in targets.iter_mut().zip(&logs) {
        target.fill(&engine, collected, **number, log).map_err(SalvageError::Write)?;
        done.records += target.report.records;
        progress(done);
    }
    for target in &mut targets {
        target.settle(&engine);
    }
    engine.state.lock().names_missing = restored.replay.names_missing;
    recovery::begin_table(&engine).map_err(stopped)?;
    engine.close().map_err(SalvageError::Write)?;
    Ok(targets.into_iter().map(|target| target.report).collect())
}

/// Segments as large as those of the old journal, and as many as it takes.
fn config_for(collected: &Collected, logs: &[(&u64, &ReplayedLog)]) -> Config {
    let sizes = collected.segments.values().flatten().map(|segment| segment.size);
    let table = table::bytes(logs.iter().map(|(_, log)| &*log.name.namespace));
    let batches = logs.iter().flat_map(|(_, log)| batches(log));
    let batch = batches.map(|(_, batch, _)| u64::from(batch.length)).max().unwrap_or(0);
    // A commit has to fit into a quarter of a segment, and so has the table.
    let frame = batch.min(BATCH_BYTES_MAX) + 4 * SECTION_BYTES as u64 + HEADER_BYTES as u64;
    let wanted = sizes.chain([4 * table, 4 * frame, SEGMENT_BYTES_MIN]).max().unwrap_or_default();
    let segment_bytes = wanted.next_multiple_of(BLOCK).min(SEGMENT_BYTES_MAX);
    let max_bytes = segment_bytes * SEGMENTS_MAX as u64;
    Config { segment_bytes, max_bytes, ..Config::manual() }
}

impl Target {
    /// Adds a log that has no records yet, and of which nothing is certain.
    fn create(engine: &Engine, log: &ReplayedLog) -> Self {
        let LogBounds { first, end, .. } = log.view.bounds;
        let name = log.name.clone();
        let mut state = engine.state.lock();
        let number = state.next_number;
        state.next_number += 1;
        let bounds = LogBounds { number, first, end: first, damage: Some((first, UNKNOWN)) };
        let inner = state.insert(&name.namespace, name.id, bounds, 0);
        let health = health_of(&bounds);
        let (records, bytes, missing) = (0, 0, Vec::new());
        let report = SalvagedLog { name, first, end, records, bytes, missing, health };
        Self { inner, bounds, report }
    }

    /// Writes the records of the log, and notes which positions have none.
    fn fill(
        &mut self,
        engine: &Arc<Engine>,
        collected: &Collected,
        number: u64,
        log: &ReplayedLog,
    ) -> Result<(), Error> {
        let bounds = log.view.bounds;
        let limit = (engine.config.max_frame_bytes() - HEADER_BYTES as u64).min(COMMIT_BYTES);
        let (mut next, mut commit, mut bytes) = (bounds.first, Commit::new(), 0);
        for (segment, batch, end) in batches(log) {
            let range = next.max(batch.first)..end.min(bounds.end);
            let Some(piece) = read_piece(collected, segment, number, &batch, range) else {
                continue;
            };
            if piece.positions.start > next {
                self.report.missing.push(next..piece.positions.start);
            }
            next = piece.positions.end;
            self.report.records += piece.positions.end - piece.positions.start;
            self.report.bytes += piece.batch.record_bytes();
            let more = piece.batch.len_bytes() + 4 * SECTION_BYTES as u64;
            let is_full = commit.operations.len() == COMMIT_BATCHES || bytes + more > limit;
            if bytes > 0 && is_full {
                flush(engine, std::mem::take(&mut commit))?;
                bytes = 0;
            }
            bytes += more;
            commit.operations.push(Operation {
                opening: engine.opening,
                log: Arc::clone(&self.inner),
                change: Change::Append(piece.batch.at(piece.positions.start)),
            });
        }
        if next < bounds.end {
            self.report.missing.push(next..bounds.end);
        }
        flush(engine, commit)?;
        let number = self.bounds.number;
        self.bounds = LogBounds { number, damage: None, ..bounds };
        let is_suspect = bounds.damage.is_some_and(|(_, until)| until == UNKNOWN);
        if is_suspect {
            self.bounds.hurt(bounds.end, UNKNOWN);
        }
        for missing in &self.report.missing {
            self.bounds.hurt(missing.start, missing.end);
        }
        self.report.health = health_of(&self.bounds);
        Ok(())
    }

    /// Says of the log what is known of it, now that all its records are there.
    fn settle(&self, engine: &Engine) {
        let mut state = engine.state.lock();
        if let Some(Some(log)) = state.logs.get_mut(self.inner.index() as usize) {
            (log.submitted, log.taken) = (self.bounds, self.bounds);
        }
        self.inner.view.write().bounds = self.bounds;
    }
}

fn flush(engine: &Arc<Engine>, commit: Commit) -> Result<(), Error> {
    if commit.operations.is_empty() {
        return Ok(());
    }
    engine.commit_blocking(commit.durability(Durability::Written))?;
    // What has no thread in this journal: the next segment, and the index of the last one.
    engine.work(0);
    Ok(())
}

/// The batches of a log by position, each with the position where it ends at the latest. Where a
/// truncation is missing, the batch that was written later counts.
fn batches(log: &ReplayedLog) -> Vec<(&Arc<Segment>, BatchRef, u64)> {
    let mut counting: Vec<(&Arc<Segment>, BatchRef, u64)> = Vec::new();
    for extent in log.view.extents() {
        let batches = extent.batches.iter().flat_map(|batches| batches.iter());
        for batch in batches.filter(|batch| batch.first < extent.end) {
            while counting.pop_if(|(_, before, _)| before.first >= batch.first).is_some() {}
            if let Some((.., end)) = counting.last_mut() {
                *end = batch.first.min(*end);
            }
            counting.push((&extent.segment, *batch, extent.end));
        }
    }
    counting
}

/// The records of a batch at these positions, from whichever copy of the segment verifies. `None`
/// when none does, or when nothing of the batch counts.
fn read_piece(
    collected: &Collected,
    segment: &Segment,
    number: u64,
    batch: &BatchRef,
    range: Range<u64>,
) -> Option<Piece> {
    let copies = collected.segments.get(&segment.sequence)?;
    let (count, payload) = copies.iter().find_map(|copy| read_batch(copy, number, batch))?;
    let positions = range.start..range.end.min(batch.first.checked_add(u64::from(count))?);
    if positions.is_empty() {
        return None;
    }
    let numbers = (positions.start - batch.first) as u32..(positions.end - batch.first) as u32;
    let mut builder: BatchBuilder = Batch::builder(payload.len());
    for record in numbers {
        builder.push(&payload[record_range(&payload, count, record)?]);
    }
    Some(Piece { positions, batch: builder.finish() })
}

/// How many records a batch has, and its payload, if head and payload verify in this file.
fn read_batch(segment: &Segment, number: u64, batch: &BatchRef) -> Option<(u32, Bytes)> {
    let (frame_at, payload_at) = (batch.frame_at(), batch.payload_at());
    // Nobody writes a longer one.
    if u64::from(batch.length) > BATCH_BYTES_MAX {
        return None;
    }
    // No more than the head: what follows may be unreadable.
    let header = Header::peek(&read(segment, frame_at, HEADER_BYTES)?)?;
    let head = read(segment, frame_at, header.head as usize)?;
    let in_place = header.verify(&head, segment.location(frame_at));
    let sections = header.sections(&head).ok().filter(|_| in_place)?;
    let section = sections.get(usize::from(batch.section))?;
    let is_it = section.kind == SectionKind::Append
        && section.log == number
        && section.position == batch.first
        && section.length == batch.length;
    let payload = read(segment, payload_at, batch.length as usize).filter(|_| is_it)?;
    (crc32c(&payload) == section.crc).then(|| (section.count, payload.into()))
}

/// So many bytes, if the file has them and the device can read them.
fn read(segment: &Segment, at: u64, length: usize) -> Option<Vec<u8>> {
    let end = at.checked_add(length as u64)?;
    if end > segment.size {
        return None;
    }
    let mut bytes = vec![0; length];
    let read = read_full_at(&*segment.file, &mut bytes, at).ok()?;
    (read == length).then_some(bytes)
}
