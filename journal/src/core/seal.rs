//! Sealing: a full segment gets an index of what is in it, off the way of the commits.

use std::collections::VecDeque;
use std::sync::Arc;

use super::segment::Segment;
use super::view::Extent;
use super::writer::{Active, Staged, Writer, plain_section};
use super::{Core, Counters, LOGS_AT_ONCE};
use crate::error::{Error, Fault};
use crate::files::write_all_at;
use crate::format::TRAILER_BYTES;
use crate::format::frame::{FrameKind, Header, SectionKind};
use crate::format::index::{self, BatchRef, DirectoryEntry};
use crate::format::segment::Trailer;

/// What the index of a full segment has to say: what was in it when the next one was begun,
/// whatever has become of its logs since then.
#[derive(Debug)]
pub(crate) struct Seal {
    pub(crate) segment: Arc<Segment>,
    at: u64,
    lsn: u64,
    epoch: u32,
    mark: u64,
    logs: Vec<SealedLog>,
}

#[derive(Debug)]
struct SealedLog {
    /// Its place in the journal's table of logs.
    place: u32,
    entry: DirectoryEntry,
    batches: Arc<VecDeque<BatchRef>>,
}

impl SealedLog {
    fn new(place: u32, number: u64, extent: &Extent) -> Option<Self> {
        let entry = DirectoryEntry {
            log: number,
            first: extent.first,
            end: extent.end,
            last: extent.last,
            at: 0,
            count: 0,
            crc: 0,
            bytes: u32::try_from(extent.bytes).unwrap_or(u32::MAX),
        };
        Some(Self { place, entry, batches: Arc::clone(extent.batches.as_ref()?) })
    }
}

impl Seal {
    /// Writes the index and the trailer that points at it; answers how many bytes that were.
    fn write(&self) -> Result<u64, Fault> {
        let (mut directory, mut entries) = (Vec::new(), Vec::new());
        let mut at = 0;
        for log in &self.logs {
            let crc = index::encode_entries(log.batches.iter(), &mut entries);
            let count = log.batches.len() as u32;
            DirectoryEntry { at, count, crc, ..log.entry }.encode(&mut directory);
            at += count;
        }
        let sections = [
            plain_section(SectionKind::Directory, 0, self.logs.len(), &directory),
            plain_section(SectionKind::Entries, 0, at as usize, &entries),
        ];
        let mut header = Header::new(FrameKind::Index, self.lsn, self.epoch, &sections);
        header.mark = self.mark;
        let mut staged = Staged::new(self.at);
        staged.put_plain(&self.segment, &header, &sections, &[&directory, &entries]);
        staged
            .write(&self.segment)
            .map_err(|error| Fault::new("write", self.segment.name(), &error))?;
        write_trailer(&self.segment, self.at, u64::from(header.length), self.lsn)?;
        Ok(u64::from(header.length) + TRAILER_BYTES)
    }
}

/// Writes the trailer that points at the index of a sealed segment.
pub(crate) fn write_trailer(
    segment: &Segment,
    offset: u64,
    length: u64,
    lsn: u64,
) -> Result<(), Fault> {
    let at = segment.size - TRAILER_BYTES;
    let trailer = Trailer { offset, length, lsn }.encode(segment.place(at));
    write_all_at(&*segment.file, &trailer, at)
        .map_err(|error| Fault::new("write", segment.name(), &error))
}

impl Core {
    /// What the index of the active segment will say, which takes the next LSN.
    pub(crate) fn seal_of(&self, writer: &mut Writer) -> Seal {
        let lsn = writer.take_lsn();
        let Active { segment, tail, first_lsn, logs, .. } = &writer.active;
        segment.set_full(*first_lsn, lsn);
        let mut places = logs.clone();
        places.sort_unstable();
        places.dedup();
        let mut logs = Vec::with_capacity(places.len());
        // A few at a time, so that nobody who hands a commit in waits for many.
        for places in places.chunks(LOGS_AT_ONCE) {
            let state = self.state.lock();
            logs.extend(places.iter().filter_map(|place| {
                let log = state.logs.get(*place as usize)?.as_ref()?;
                let view = log.inner.view.read();
                SealedLog::new(*place, view.shape.number, view.extent_in(segment)?)
            }));
        }
        let (segment, mark) = (Arc::clone(segment), self.durable_lsn());
        Seal { at: *tail, lsn, epoch: writer.epoch, mark, logs, segment }
    }

    /// Writes the indexes that segments left behind have to get, and forgets in memory what they
    /// say. They are not synced: without one a recovery reads the frames.
    pub(crate) fn seal_full_segments(&self) -> Result<(), Fault> {
        // One thread at a time, and never beside the preparation of the same file for a new life.
        let _keeper = self.keeper.lock();
        if matches!(self.refusal(), Some(Error::Stopped { .. })) {
            return Ok(());
        }
        while let Some(seal) = self.space.next_seal() {
            Counters::add(&self.counters.bytes, seal.write()?);
            for logs in seal.logs.chunks(LOGS_AT_ONCE) {
                let state = self.state.lock();
                for log in logs {
                    if let Some(log) = state.logs.get(log.place as usize).and_then(Option::as_ref) {
                        log.inner.view.write().seal(&seal.segment);
                    }
                }
            }
        }
        Ok(())
    }
}
