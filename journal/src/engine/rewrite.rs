//! Rewriting: batches that still count are moved out of segments that are pinned by little, so
//! that the space comes back although some log never lets go. See the module `format`.
//!
//! A round copies what is live in some victims into one new segment, piece by piece, and then puts
//! that segment into their place. What happens to logs meanwhile only makes the copies more than is
//! needed: nothing is added to a full segment.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::log::LogInner;
use super::reader::FoundBatch;
use super::seal::write_trailer;
use super::segment::Segment;
use super::writer::{Staged, Writer, plain_section};
use super::{Counters, Engine};
use crate::core::view::CopiedRun;
use crate::error::{Fault, ReadError};
use crate::files::write_all_at;
use crate::format::frame::{FrameKind, HEADER_BYTES, Header, SECTION_BYTES, SectionKind};
use crate::format::index::{self, BatchRef, DirectoryEntry};
use crate::format::{FRAMES_AT, padded};

mod plan;

use plan::{Item, Plan};

/// Copies are written and synced in pieces of about this size, so that no commit waits behind a
/// large flush.
const PIECE_BYTES: usize = 128 << 10;
/// Bytes before the payload of a moved frame.
const HEAD_BYTES: usize = HEADER_BYTES + SECTION_BYTES;

/// The round under way, if any.
#[derive(Debug, Default)]
pub(crate) struct Rewriter {
    round: Option<Round>,
    /// How often victims have been looked for.
    plans: u64,
}

/// What a call of [`Engine::rewrite`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rewritten {
    /// There is nothing to move, or no place for it.
    Nothing,
    /// So many bytes were read or written.
    Moved(u64),
    /// A round has ended.
    Ended,
}

/// Victims on their way into one segment.
#[derive(Debug)]
struct Round {
    target: Arc<Segment>,
    victims: Vec<Arc<Segment>>,
    /// Everything that the plan leaves behind is gone by frames up to this LSN, which must be
    /// durable before the victims go.
    left_out_by: u64,
    /// What is still to be copied, by log and position.
    items: VecDeque<Item>,
    /// The batches of the item that are still to be copied.
    batches: VecDeque<BatchRef>,
    /// The position up to which the item has been copied without a gap.
    copied_to: u64,
    /// Offset of the next frame in the target.
    tail: u64,
    /// Frames that are not written yet; they end at `tail`.
    piece: Vec<u8>,
    logs: Vec<MovedLog>,
    entries: Vec<u8>,
    /// The highest LSN and epoch of the batches.
    last: (u64, u32),
}

/// What has been copied of one log.
#[derive(Debug)]
struct MovedLog {
    inner: Arc<LogInner>,
    /// Number of the log's incarnation.
    number: u64,
    runs: Vec<Run>,
}

/// Positions without a gap.
#[derive(Debug)]
struct Run {
    positions: Range<u64>,
    last: u64,
    bytes: u64,
    batches: Vec<BatchRef>,
}

/// Why a round cannot go on: a batch of a victim that counts does not verify, or cannot be read.
#[derive(Debug)]
struct Halt {
    victim: Arc<Segment>,
    position: u64,
    error: ReadError,
}

impl Engine {
    /// Does one piece of rewriting: looks for victims, or copies a piece, or ends the round.
    /// `writer` is what a caller holds that has the lead of a journal without threads.
    pub(crate) fn rewrite(&self, writer: Option<&mut Writer>) -> Result<Rewritten, Fault> {
        let mut rewriter = self.rewriter.lock();
        let plan = rewriter.plans;
        let Some(round) = &mut rewriter.round else {
            if !self.space.take_victims_due() {
                return Ok(Rewritten::Nothing);
            }
            let begun = self.begin_round(&mut rewriter, self.space.needs_room())?;
            return Ok(if begun { Rewritten::Moved(0) } else { Rewritten::Nothing });
        };
        if let Err(halt) = round.gather(self) {
            self.note_halt(&halt, &round.current_log(), plan);
            self.space.round_ends(&[round.target.slot]);
            rewriter.round = None;
            return Ok(Rewritten::Ended);
        }
        if round.is_copied() {
            if !self.make_durable_up_to(round.left_out_by, writer)? {
                return Ok(Rewritten::Moved(0));
            }
            let ended = self.end_round(round)?;
            if ended {
                rewriter.round = None;
                self.state.lock().full = None;
            }
            return Ok(if ended { Rewritten::Ended } else { Rewritten::Nothing });
        }
        // Held while a piece is written: a close that has returned is followed by no write.
        let _keeper = self.keeper.lock();
        if self.space.stopped() {
            return Ok(Rewritten::Nothing);
        }
        let bytes = round.write_piece()?;
        Counters::add(&self.counters.bytes_rewritten, bytes);
        Ok(Rewritten::Moved(bytes))
    }

    /// Goes on with a round to its end; answers whether there was one. `writer` as for
    /// [`rewrite`](Self::rewrite). Ends because each turn takes a batch of finitely many, or ends
    /// the round.
    pub(crate) fn rewrite_to_the_end(&self, writer: &mut Writer) -> Result<bool, Fault> {
        if self.rewriter.lock().round.is_none() {
            return Ok(false);
        }
        loop {
            match self.rewrite(Some(writer))? {
                Rewritten::Moved(_) => {}
                Rewritten::Ended => return Ok(true),
                Rewritten::Nothing => return Ok(false),
            }
        }
    }

    /// No segment can be prepared: answers whether rewriting may free one.
    pub(crate) fn rewriting_may_help(&self) -> Result<bool, Fault> {
        if self.space.block() {
            return Ok(true);
        }
        let mut rewriter = self.rewriter.lock();
        if self.config.rewrite_bytes_per_second == 0 || rewriter.round.is_some() {
            return Ok(false);
        }
        self.space.take_victims_due();
        self.begin_round(&mut rewriter, true)?;
        Ok(self.space.block())
    }

    /// Leaves the victim alone that halted a round, for some plans or for good.
    fn note_halt(&self, halt: &Halt, log: &str, plan: u64) {
        let Halt { victim, position, error } = halt;
        let (segment, is_damage) = (victim.name(), !matches!(error, ReadError::Io(_)));
        let stays = if is_damage {
            victim.set_unmovable();
            true
        } else {
            victim.note_failed_read(plan)
        };
        Counters::add(&self.counters.segments_unmovable, u64::from(stays));
        if is_damage {
            tracing::warn!(
                target: "voussoir::journal", segment, log, position, %error,
                "damaged: not moved"
            );
        } else {
            tracing::warn!(
                target: "voussoir::journal", segment, log, position, %error, stays,
                "unreadable: not moved"
            );
        }
    }

    /// Begins a round if there are victims; answers whether it did. `is_urgent`: appends wait for
    /// room.
    fn begin_round(&self, rewriter: &mut Rewriter, is_urgent: bool) -> Result<bool, Fault> {
        rewriter.plans += 1;
        rewriter.round = self.planned_round(rewriter.plans, is_urgent)?;
        Ok(rewriter.round.is_some())
    }

    fn planned_round(&self, number: u64, is_urgent: bool) -> Result<Option<Round>, Fault> {
        let Some(plan) = self.plan_round(number) else { return Ok(None) };
        // What is left out was so before this: it has been written.
        let left_out_by = self.written.load(Ordering::Acquire);
        let mut keeper = self.keeper.lock();
        if self.space.stopped() {
            return Ok(None);
        }
        let target = keeper.take_target(&self.space, self.durable_lsn(), is_urgent)?;
        let Some(target) = target else { return Ok(None) };
        self.space.round_begins();
        let Plan { victims, items } = plan;
        Ok(Some(Round {
            target,
            victims,
            left_out_by,
            items: items.into(),
            batches: VecDeque::new(),
            copied_to: 0,
            tail: FRAMES_AT,
            piece: Vec::new(),
            logs: Vec::new(),
            entries: Vec::new(),
            last: (0, 0),
        }))
    }

    /// Syncs what has been written up to here, unless that has been done. False when somebody else
    /// writes: to be tried again. A leader that waits for this round holds the writer, and syncs.
    fn make_durable_up_to(&self, lsn: u64, writer: Option<&mut Writer>) -> Result<bool, Fault> {
        const WAIT: Duration = Duration::from_micros(200);
        if self.durable_lsn() >= lsn {
            return Ok(true);
        }
        if let Some(writer) = writer {
            self.sync(writer)?;
        } else if let Some(mut writer) = self.writer.try_lock_for(WAIT) {
            self.sync(&mut writer)?;
        }
        Ok(self.durable_lsn() >= lsn)
    }

    /// Points readers to the copies, and then the manifest. False when the journal stops.
    fn end_round(&self, round: &mut Round) -> Result<bool, Fault> {
        let mut keeper = self.keeper.lock();
        if self.space.stopped() {
            return Ok(false);
        }
        let bytes = round.write_index()?;
        Counters::add(&self.counters.bytes_rewritten, bytes);
        self.space.add_full(&round.target);
        let is_victim =
            |segment: &Segment| round.victims.iter().any(|it| it.sequence == segment.sequence);
        for log in &round.logs {
            let mut view = log.inner.view.write();
            if view.bounds.number == log.number {
                let runs: Vec<CopiedRun<'_>> = log.runs.iter().map(Run::copied).collect();
                view.relocate(is_victim, &round.target, &runs);
            }
        }
        // What was released meanwhile is free for good only when the release is durable.
        for victim in &round.victims {
            round.target.note_freed(victim.freed_at());
        }
        self.rounds_ended.fetch_add(1, Ordering::AcqRel);
        let free = keeper.replace(&self.space, &round.victims, &round.target)?;
        Counters::add(&self.counters.segments_rewritten, free.len() as u64);
        self.space.round_ends(&free);
        Ok(true)
    }
}

impl Run {
    fn copied(&self) -> CopiedRun<'_> {
        CopiedRun { positions: self.positions.clone(), batches: &self.batches }
    }
}

/// No batch is known that has the position.
fn missing(position: u64) -> ReadError {
    ReadError::Damaged { position, detail: "no batch has the position" }
}

impl Round {
    fn is_copied(&self) -> bool {
        self.items.is_empty() && self.batches.is_empty() && self.piece.is_empty()
    }

    fn current_log(&self) -> String {
        self.items.front().map(|item| item.log.name().to_string()).unwrap_or_default()
    }

    /// Reads and verifies batches until they make a piece, or all have been read.
    fn gather(&mut self, engine: &Engine) -> Result<(), Halt> {
        while self.piece.len() < PIECE_BYTES
            && let Some(item) = self.items.front()
        {
            if self.batches.is_empty() {
                let (positions, batches) = (item.positions.clone(), item.batches(engine));
                self.begin_item();
                match batches {
                    Ok(batches) => self.batches = batches.into(),
                    Err(error) => self.fail(positions, error)?,
                }
            }
            while self.piece.len() < PIECE_BYTES
                && let Some(batch) = self.batches.front().copied()
            {
                let from = batch.first.min(self.copied_to);
                match self.copy(engine, batch) {
                    Ok(()) => drop(self.batches.pop_front()),
                    Err(error) => self.fail(from..self.end_of_batch(), error)?,
                }
            }
            if self.batches.is_empty() {
                self.end_item()?;
            }
        }
        Ok(())
    }

    /// All batches of the item that are known have been copied.
    fn end_item(&mut self) -> Result<(), Halt> {
        let Some(item) = self.items.front() else { return Ok(()) };
        let left = self.copied_to..item.positions.end;
        if !left.is_empty() {
            let error = missing(left.start);
            self.fail(left, error)?;
        }
        self.items.pop_front();
        Ok(())
    }

    /// The position after the last that the next batch has of the item.
    fn end_of_batch(&self) -> u64 {
        let end = self.items.front().map_or(0, |item| item.positions.end);
        self.batches.get(1).map_or(end, |next| next.first)
    }

    /// These positions of the item could not be read. When its log has let go of them by now,
    /// nobody needs them, and the segment may even be in use again: then the round goes on without
    /// the item, and what the log still has of it stays where it is.
    fn fail(&mut self, positions: Range<u64>, error: ReadError) -> Result<(), Halt> {
        let Some(item) = self.items.front() else { return Ok(()) };
        let position = positions.start;
        if item.counts(positions) {
            return Err(Halt { victim: Arc::clone(&item.segment), position, error });
        }
        self.batches.clear();
        self.copied_to = item.positions.end;
        let start = item.positions.start;
        let Some(runs) = self.logs.last_mut().map(|log| &mut log.runs) else { return Ok(()) };
        runs.pop_if(|run| run.positions.start >= start);
        if let Some(run) = runs.last_mut() {
            run.positions.end = run.positions.end.min(start);
            run.batches.retain(|batch| batch.first < start);
        }
        Ok(())
    }

    /// Makes room for what the next item has of its log.
    fn begin_item(&mut self) {
        let Some(item) = self.items.front() else { return };
        self.copied_to = item.positions.start;
        let is_new = self.logs.last().is_none_or(|log| log.number != item.number);
        if is_new {
            let (inner, number) = (Arc::clone(&item.log), item.number);
            self.logs.push(MovedLog { inner, number, runs: Vec::new() });
        }
        let Some(log) = self.logs.last_mut() else { return };
        let follows = |run: &Run| run.positions.end == item.positions.start;
        if !log.runs.last().is_some_and(follows) {
            let (positions, batches) = (item.positions.clone(), Vec::new());
            log.runs.push(Run { positions, last: 0, bytes: 0, batches });
        } else if let Some(run) = log.runs.last_mut() {
            run.positions.end = item.positions.end;
        }
    }

    /// Copies one batch of the item. The copies must leave out no position: what the victim has of
    /// the item is given up when the round ends.
    fn copy(&mut self, engine: &Engine, batch: BatchRef) -> Result<(), ReadError> {
        let Some(item) = self.items.front() else { return Ok(()) };
        if batch.first > self.copied_to {
            return Err(missing(self.copied_to));
        }
        let segment = Arc::clone(&item.segment);
        let found = FoundBatch { number: item.number, segment, batch, end: item.positions.end };
        let (header, section, payload) = engine.fetch_raw(&found)?;
        self.copied_to = section.position.saturating_add(u64::from(section.count));
        let mut moved = Header::new(FrameKind::Moved, header.lsn, header.epoch, &[section]);
        moved.mark = header.mark;
        let (at, start) = (self.tail, self.piece.len());
        self.piece.resize(start + HEAD_BYTES, 0);
        moved.encode(&[section], self.target.location(at), &mut self.piece[start..]);
        self.piece.extend_from_slice(&payload);
        self.piece.resize(padded(self.piece.len() as u64) as usize, 0);
        self.tail += (self.piece.len() - start) as u64;
        self.last = (self.last.0.max(header.lsn), self.last.1.max(header.epoch));
        if let Some(run) = self.logs.last_mut().and_then(|log| log.runs.last_mut()) {
            run.last = header.lsn;
            run.bytes += u64::from(section.length);
            let payload_at = at + HEAD_BYTES as u64;
            run.batches.push(BatchRef::new(batch.first, at, payload_at, section.length, 0));
        }
        Ok(())
    }

    /// Writes what has been gathered, durably.
    fn write_piece(&mut self) -> Result<u64, Fault> {
        let fault =
            |operation, error: &std::io::Error| Fault::new(operation, self.target.name(), error);
        let bytes = self.piece.len() as u64;
        write_all_at(&*self.target.file, &self.piece, self.tail - bytes)
            .map_err(|error| fault("write", &error))?;
        self.target.file.sync_data().map_err(|error| fault("sync", &error))?;
        self.piece.clear();
        Ok(bytes)
    }

    /// Writes the index, durably: from then on the segment is whole.
    fn write_index(&mut self) -> Result<u64, Fault> {
        let (mut directory, mut at, mut logs) = (Vec::new(), 0, 0);
        for log in &self.logs {
            for run in log.runs.iter().filter(|run| !run.batches.is_empty()) {
                let crc = index::encode_entries(run.batches.iter(), &mut self.entries);
                let entry = DirectoryEntry {
                    log: log.number,
                    first: run.positions.start,
                    end: run.positions.end,
                    last: run.last,
                    at,
                    count: run.batches.len() as u32,
                    crc,
                    bytes: u32::try_from(run.bytes).unwrap_or(u32::MAX),
                };
                entry.encode(&mut directory);
                at += entry.count;
                logs += 1;
            }
        }
        let sections = [
            plain_section(SectionKind::Directory, 0, logs, &directory),
            plain_section(SectionKind::Entries, 0, at as usize, &self.entries),
        ];
        let (lsn, epoch) = self.last;
        let mut header = Header::new(FrameKind::Index, lsn, epoch, &sections);
        header.mark = lsn;
        let mut staged = Staged::new(self.tail);
        staged.put_plain(&self.target, &header, &sections, &[&directory, &self.entries]);
        let fault =
            |operation, error: &std::io::Error| Fault::new(operation, self.target.name(), error);
        staged.write(&self.target).map_err(|error| fault("write", &error))?;
        write_trailer(&self.target, self.tail, u64::from(header.length), lsn)?;
        self.target.file.sync_data().map_err(|error| fault("sync", &error))?;
        Ok(u64::from(header.length))
    }
}
