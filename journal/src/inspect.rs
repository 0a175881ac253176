//! Looking at a journal without changing it: every frame of every segment is read and verified.

use std::ops::Range;
use std::sync::Arc;

use crate::engine::segment::Segment;
use crate::error::{LogName, OpenError};
use crate::files::Files;
use crate::format::frame::{FrameKind, SectionKind};
use crate::format::{FRAMES_AT, TRAILER_BYTES};
use crate::log_info::{LogInfo, info};
use crate::recovery::scan::{Frame, Scanner};
use crate::recovery::{self, Recovered};

/// What [`inspect`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The journal's identity.
    pub journal: u128,
    /// How often it has been opened.
    pub epoch: u32,
    /// Highest LSN.
    pub last_lsn: u64,
    /// Everything up to here is known to have been durable.
    pub durable_lsn: u64,
    /// The creation of logs may have been lost.
    pub names_missing: bool,
    /// By age.
    pub segments: Vec<SegmentInfo>,
    /// The logs as an opening would find them, by name.
    pub logs: Vec<LogInfo>,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// One live segment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentInfo {
    /// The file.
    pub name: String,
    /// Rises with each use of a file.
    pub sequence: u64,
    /// The state of the segment.
    pub role: Role,
    /// LSN of its first frame, of moved ones the lowest; 0 when it has none.
    pub first_lsn: u64,
    /// LSN of its last frame, of moved ones the highest; 0 when it has none.
    pub last_lsn: u64,
    /// Whether it ends in an index that verifies. An index is not synced, so that a power loss may
    /// take it; the frames are read instead.
    pub indexed: bool,
    /// Frames that verify.
    pub frames: u64,
    /// Bytes in use.
    pub bytes: u64,
}

/// What a segment is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// Full.
    Sealed,
    /// Where the journal would go on.
    Active,
    /// Full, of batches that were moved out of segments pinned by little. Its frames are not in
    /// the order of their LSNs.
    Rewritten,
    /// Prepared for later.
    Spare,
}

/// Something wrong in a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// No frame verifies in these bytes, though there were some.
    Unreadable {
        /// The file.
        segment: String,
        /// Offsets.
        bytes: Range<u64>,
    },
    /// A batch fails its checksum. When its log has released or deleted it since, or it is
    /// not known any more, that does no harm.
    Records {
        /// The file.
        segment: String,
        /// The log, if it still has one.
        log: Option<LogName>,
        /// The positions of the batch.
        positions: Range<u64>,
        /// LSN of the frame.
        lsn: u64,
    },
    /// Another part of a frame fails its checksum: a name or a table.
    Other {
        /// The file.
        segment: String,
        /// LSN of the frame.
        lsn: u64,
    },
}

/// How far an inspection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Segments that have been read.
    pub segments: usize,
    /// Segments there are.
    pub segments_total: usize,
    /// Bytes that have been verified.
    pub bytes: u64,
}

/// Reads and verifies all of a journal that nobody has open. Apart from the lock nothing is
/// written.
///
/// # Errors
/// As [`Journal::open`](crate::Journal::open).
///
/// # Example
/// ```
/// use voussoir_journal::{DiskFiles, Journal, Config, inspect};
/// # let dir = std::env::temp_dir().join(format!("journal-inspect-{}", std::process::id()));
/// # let mut config = Config::default();
/// # config.segment_bytes = 1 << 20;
/// # Journal::open(&dir, config)?.close()?;
/// let report = inspect(&DiskFiles::existing(&dir)?, &mut |_| {})?;
/// assert!(report.problems.is_empty());
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn inspect(files: &dyn Files, progress: &mut dyn FnMut(Progress)) -> Result<Report, OpenError> {
    let _guard = recovery::lock(files)?;
    let recovered = Recovered::read(files)?;
    let active = recovered.active();
    let mut report = Report {
        journal: recovered.directory.manifest.journal,
        epoch: recovered.directory.manifest.epoch,
        last_lsn: recovered.replay.next_lsn - 1,
        durable_lsn: recovered.replay.mark,
        names_missing: recovered.replay.names_missing,
        segments: Vec::new(),
        logs: recovered.replay.logs.values().map(|log| info(&log.name, &log.view)).collect(),
        problems: Vec::new(),
    };
    report.logs.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let live = &recovered.directory.live;
    let rewritten = &recovered.directory.rewritten;
    let segments_total = live.len() + rewritten.len();
    let mut bytes = 0;
    for (number, segment) in live.iter().enumerate() {
        let role = match &active {
            Some((active, _)) if Arc::ptr_eq(active, segment) => Role::Active,
            Some((active, _)) if segment.sequence < active.sequence => Role::Sealed,
            _ => Role::Spare,
        };
        let end = active.as_ref().map_or(FRAMES_AT, |(_, tail)| *tail);
        let mut walk = Walk { segment, recovered: &recovered, problems: &mut report.problems };
        let next = match live.get(number + 1) {
            Some(next) => recovery::scan::first_lsn(next)?,
            None => None,
        };
        let info = walk.run(role, end, next)?;
        bytes += info.bytes;
        report.segments.push(info);
        progress(Progress { segments: number + 1, segments_total, bytes });
    }
    for segment in rewritten {
        let mut walk = Walk { segment, recovered: &recovered, problems: &mut report.problems };
        let info = walk.run_moved()?;
        bytes += info.bytes;
        report.segments.push(info);
        progress(Progress { segments: report.segments.len(), segments_total, bytes });
    }
    report.segments.sort_unstable_by_key(|segment| segment.sequence);
    Ok(report)
}

/// Walks over one segment.
struct Walk<'a> {
    segment: &'a Arc<Segment>,
    recovered: &'a Recovered,
    problems: &'a mut Vec<Problem>,
}

impl Walk<'_> {
    fn run(
        &mut self,
        role: Role,
        active_end: u64,
        next: Option<u64>,
    ) -> Result<SegmentInfo, OpenError> {
        let (name, sequence) = (self.segment.name(), self.segment.sequence);
        let (first_lsn, last_lsn, indexed) = (0, 0, false);
        let (frames, bytes) = (0, 0);
        let mut info =
            SegmentInfo { name, sequence, role, first_lsn, last_lsn, indexed, frames, bytes };
        if role == Role::Spare {
            return Ok(info);
        }
        let limit = self.segment.size - TRAILER_BYTES;
        let end = if role == Role::Active { active_end } else { limit };
        let mut scanner = Scanner::new(self.segment);
        let (mut offset, mut epoch, mut ended) = (FRAMES_AT, 0, false);
        while offset < end && !ended {
            let mut next = scanner.search(offset)?;
            // Leftovers of an earlier epoch do not count.
            while let Some(frame) = next
                .take_if(|frame| frame.header.lsn <= info.last_lsn || frame.header.epoch < epoch)
            {
                next = scanner.search(frame.offset + 8)?;
            }
            let Some(frame) = next.filter(|frame| frame.offset < end) else { break };
            if frame.offset > offset {
                self.unreadable(offset..frame.offset);
            }
            (info.last_lsn, epoch) = (frame.header.lsn, frame.header.epoch);
            if info.first_lsn == 0 {
                info.first_lsn = info.last_lsn;
            }
            info.frames += 1;
            info.bytes += u64::from(frame.header.length);
            ended = frame.kind() == Some(FrameKind::Index);
            // A power loss may tear an index: that is no damage.
            if !ended {
                let bad = scanner.bad_payloads(&frame)?;
                self.report_bad(&frame, &bad);
            }
            offset = frame.end();
        }
        info.indexed = ended && recovery::is_indexed(self.segment)?;
        // Nor is it damage when the power loss takes all of the index.
        let span = u64::from(self.segment.span());
        let only_the_index = info.frames > 0
            && role == Role::Sealed
            && (next == Some(info.last_lsn + 2) || span == info.last_lsn - info.first_lsn + 2);
        if !ended && !only_the_index && offset < end {
            self.unreadable(offset..end);
        }
        Ok(info)
    }

    /// A segment of moved frames. It was synced before it counted, so that all of it must be there.
    fn run_moved(&mut self) -> Result<SegmentInfo, OpenError> {
        let (name, sequence) = (self.segment.name(), self.segment.sequence);
        let mut info = SegmentInfo {
            name,
            sequence,
            role: Role::Rewritten,
            first_lsn: 0,
            last_lsn: 0,
            indexed: recovery::is_indexed(self.segment)?,
            frames: 0,
            bytes: 0,
        };
        let mut scanner = Scanner::new(self.segment);
        let (mut offset, mut ended) = (FRAMES_AT, false);
        while !ended && let Some(frame) = scanner.search(offset)? {
            if frame.offset > offset {
                self.unreadable(offset..frame.offset);
            }
            let lsn = frame.header.lsn;
            let first = if info.first_lsn == 0 { lsn } else { info.first_lsn };
            (info.first_lsn, info.last_lsn) = (first.min(lsn), info.last_lsn.max(lsn));
            info.frames += 1;
            info.bytes += u64::from(frame.header.length);
            let bad = scanner.bad_payloads(&frame)?;
            self.report_bad(&frame, &bad);
            ended = frame.kind() == Some(FrameKind::Index);
            offset = frame.end();
        }
        if !ended {
            self.unreadable(offset..self.segment.size - TRAILER_BYTES);
        } else if !info.indexed {
            self.unreadable(self.segment.size - TRAILER_BYTES..self.segment.size);
        }
        Ok(info)
    }

    fn unreadable(&mut self, bytes: Range<u64>) {
        self.problems.push(Problem::Unreadable { segment: self.segment.name(), bytes });
    }

    fn report_bad(&mut self, frame: &Frame, bad: &[usize]) {
        for number in bad {
            let Some(section) = frame.sections.get(*number) else { continue };
            let (segment, lsn) = (self.segment.name(), frame.header.lsn);
            self.problems.push(match (section.kind, section.positions()) {
                (SectionKind::Append, Some((first, end))) => {
                    let log = self.recovered.replay.logs.get(&section.log);
                    let log = log.map(|log| log.name.clone());
                    Problem::Records { segment, log, positions: first..end, lsn }
                }
                _ => Problem::Other { segment, lsn },
            });
        }
    }
}
