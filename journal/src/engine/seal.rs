//! Sealing: a full segment gets an index of what is in it, off the way of the commits.

use std::collections::VecDeque;
use std::sync::Arc;

use super::segment::Segment;
use super::writer::{Staged, index_bytes, plain_section};
use crate::core::view::Extent;
use crate::error::Fault;
use crate::files::write_all_at;
use crate::format::TRAILER_BYTES;
use crate::format::frame::{FrameKind, Header, SectionKind};
use crate::format::index::{self, BatchRef, DirectoryEntry};
use crate::format::segment::Trailer;
use crate::recovery::rebuild::{Rebuild, Rebuilt};

/// What the index of a full segment has to say: what was in it when the next one was begun,
/// whatever has become of its logs since then.
#[derive(Debug)]
pub(crate) struct Seal {
    pub(crate) segment: Arc<Segment>,
    pub(crate) at: u64,
    pub(crate) lsn: u64,
    pub(crate) epoch: u32,
    pub(crate) mark: u64,
    pub(crate) logs: Vec<SealedLog>,
}

#[derive(Debug)]
pub(crate) struct SealedLog {
    /// Its index in the journal's table of logs.
    pub(crate) index: u32,
    entry: DirectoryEntry,
    batches: Arc<VecDeque<BatchRef>>,
}

impl SealedLog {
    pub(crate) fn new(index: u32, number: u64, extent: &Extent) -> Option<Self> {
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
        Some(Self { index, entry, batches: Arc::clone(extent.batches.as_ref()?) })
    }

    /// No log of an open journal has these batches in memory.
    fn rebuilt(log: Rebuilt) -> Self {
        let entry = log.directory_entry();
        Self { index: u32::MAX, entry, batches: Arc::new(log.batches.into()) }
    }
}

impl Seal {
    /// The index of a full segment that has lost nothing else, from its frames. `None` when there
    /// is no room for it.
    pub(crate) fn rebuilt(segment: &Arc<Segment>, rebuild: Rebuild) -> Option<Self> {
        let (_, lsn) = rebuild.lsns();
        let (at, epoch) = rebuild.index_place();
        let logs: Vec<SealedLog> = rebuild.logs.into_iter().map(SealedLog::rebuilt).collect();
        let batches: usize = logs.iter().map(|log| log.batches.len()).sum();
        let end = at.checked_add(index_bytes(logs.len() as u64, batches as u64))?;
        let fits = end <= segment.size - TRAILER_BYTES;
        // Whatever stands before the index is durable when the next segment is begun.
        let (segment, mark) = (Arc::clone(segment), lsn.saturating_sub(1));
        fits.then_some(Self { segment, at, lsn, epoch, mark, logs })
    }

    /// Writes the index and the trailer that points at it; answers how many bytes that were.
    pub(crate) fn write(&self) -> Result<u64, Fault> {
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
    let trailer = Trailer { offset, length, lsn }.encode(segment.location(at));
    write_all_at(&*segment.file, &trailer, at)
        .map_err(|error| Fault::new("write", segment.name(), &error))
}
