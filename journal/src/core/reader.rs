//! Reading records back: nothing is returned that was not verified on this read.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Buf, Bytes};

use super::Core;
use super::cache::{Cached, Key};
use super::log::LogInner;
use super::segment::Segment;
use super::view::Located;
use crate::error::{Fault, ReadError};
use crate::files::read_full_at;
use crate::format::frame::{FrameKind, HEAD_BYTES_MAX, HEADER_BYTES, Header, Section, SectionKind};
use crate::format::index::{self, BatchRef, DirectoryEntry};
use crate::format::segment::{self, Trailer};
use crate::format::{TRAILER_BYTES, crc32c, frame, padded};
use crate::recovery;

/// A head and payload closer together than this are read at once.
const ONE_READ_GAP: u64 = 4096;

/// A batch that has been read and verified.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) first: u64,
    count: u32,
    /// Up to here the batch counts; the rest was truncated.
    end: u64,
    payload: Bytes,
}

impl Batch {
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// The record at a position of this batch.
    pub(crate) fn record(&self, position: u64) -> Result<Bytes, ReadError> {
        let number = (position - self.first) as u32;
        match frame::record_range(&self.payload, self.count, number) {
            Some(range) => Ok(self.payload.slice(range)),
            None => Err(ReadError::Damaged { position, detail: "malformed table of records" }),
        }
    }
}

impl Core {
    pub(crate) fn read(&self, log: &LogInner, position: u64) -> Result<Bytes, ReadError> {
        self.read_batch(log, position)?.record(position)
    }

    /// Records of a range, as many as `max_bytes` allow, but at least one unless the range is
    /// empty.
    pub(crate) fn read_range(
        &self,
        log: &LogInner,
        range: Range<u64>,
        max_bytes: usize,
    ) -> Result<Vec<Bytes>, ReadError> {
        let mut records = Vec::new();
        let mut bytes = 0;
        let mut position = range.start;
        while position < range.end {
            let batch = match self.read_batch(log, position) {
                Ok(batch) => batch,
                Err(error) if records.is_empty() => return Err(error),
                // The caller gets what there is, and the error when it asks for the rest.
                Err(_) => return Ok(records),
            };
            let end = batch.end().min(range.end);
            // The count comes from the disk. A record takes at least its four bytes in the table of
            // ends, so the payload bounds what the count may ask for.
            let most = batch.payload.len() / 4;
            records.reserve(((end - position) as usize).min(most));
            while position < end {
                let record = batch.record(position)?;
                bytes += record.len();
                if bytes > max_bytes && !records.is_empty() {
                    return Ok(records);
                }
                records.push(record);
                position += 1;
            }
        }
        Ok(records)
    }

    /// The batch that holds a position.
    pub(crate) fn read_batch(&self, log: &LogInner, position: u64) -> Result<Batch, ReadError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(ReadError::Closed);
        }
        let (number, located) = locate(log, position)?;
        let read = match located {
            Located::Batch { segment, batch, end } => {
                self.fetch(&segment, number, batch, end, position)
            }
            Located::Sealed { segment, end } => self
                .sealed_batch(&segment, number, position, end)
                .and_then(|(batch, end)| self.fetch(&segment, number, batch, end, position)),
            Located::Lost => Err(ReadError::Damaged { position, detail: "lost" }),
        };
        // A segment may have been used again while it was read: then the position is gone.
        if matches!(read, Err(ReadError::Damaged { .. })) {
            let (now, _) = locate(log, position)?;
            if now != number {
                return Err(ReadError::Absent { end: log.view.read().shape.end });
            }
        }
        read
    }

    /// Reads and verifies one batch.
    fn fetch(
        &self,
        segment: &Segment,
        number: u64,
        batch: BatchRef,
        end: u64,
        position: u64,
    ) -> Result<Batch, ReadError> {
        let damaged = |detail| ReadError::Damaged { position, detail };
        let (frame_at, payload_at) = (batch.frame_at(), batch.payload_at());
        let payload_end = payload_at + u64::from(batch.length);
        if payload_end > segment.size || payload_at < frame_at + HEADER_BYTES as u64 {
            return Err(damaged("the index points outside the segment"));
        }
        let gap = payload_at - frame_at;
        let (head, mut payload) = if gap <= ONE_READ_GAP {
            let mut both = self.read_bytes(segment, frame_at, (payload_end - frame_at) as usize)?;
            let payload = both.split_off((gap as usize).min(both.len()));
            (both, payload)
        } else {
            let head =
                self.read_bytes(segment, frame_at, gap.min(HEAD_BYTES_MAX as u64) as usize)?;
            (head, self.read_bytes(segment, payload_at, batch.length as usize)?)
        };
        let header = Header::peek(&head).ok_or(damaged("no frame where the index points"))?;
        if !header.verify(&head, segment.place(frame_at)) {
            return Err(damaged("the frame's head fails its checksum"));
        }
        let sections = header.sections(&head).map_err(|_| damaged("malformed frame"))?;
        let section = sections.get(batch.section as usize).copied();
        let section = section.filter(|section| matches_batch(section, number, &batch));
        let section = section.ok_or(damaged("the frame is not the one that was looked for"))?;
        payload.truncate(section.length as usize);
        if payload.len() as u64 <= gap {
            // Its head would keep more memory alive than the records themselves.
            payload = Bytes::copy_from_slice(&payload);
        }
        if crc32c(&payload) != section.crc {
            return Err(damaged("the records fail their checksum"));
        }
        let end = end.min(section.position + u64::from(section.count));
        if position >= end {
            return Err(damaged("the batch does not reach the position"));
        }
        Ok(Batch { first: section.position, count: section.count, end, payload })
    }

    /// Reads bytes of a segment; fewer when the file ends.
    pub(crate) fn read_bytes(
        &self,
        segment: &Segment,
        offset: u64,
        length: usize,
    ) -> Result<Bytes, ReadError> {
        let mut buffer = self.buffers.take(length);
        let read = read_full_at(&*segment.file, &mut buffer[..length], offset)
            .map_err(|error| Fault::read(segment.name(), offset, length, &error))?;
        let mut bytes = self.buffers.share(buffer);
        bytes.truncate(read);
        Ok(bytes)
    }

    /// Finds a batch by the index of a sealed segment, and where it ends.
    fn sealed_batch(
        &self,
        segment: &Arc<Segment>,
        number: u64,
        position: u64,
        end: u64,
    ) -> Result<(BatchRef, u64), ReadError> {
        let batches = self.batches_of(segment, number, position)?;
        let after = batches.partition_point(|batch| batch.first <= position);
        let batch = after.checked_sub(1).and_then(|at| batches.get(at)).copied();
        let batch = batch.ok_or(ReadError::Damaged { position, detail: "not in the index" })?;
        Ok((batch, batches.get(after).map_or(end, |next| next.first.min(end))))
    }

    fn batches_of(
        &self,
        segment: &Arc<Segment>,
        number: u64,
        position: u64,
    ) -> Result<Arc<[BatchRef]>, ReadError> {
        let key = Key::Batches(segment.sequence, number);
        if let Some(Cached::Batches(batches)) = self.index_cache.lock().get(key) {
            return Ok(batches);
        }
        let batches = if let Some(batches) = self.indexed_batches(segment, number)? {
            batches
        } else {
            // The index is only a hint: the frames have everything.
            let rebuild = recovery::scan::rebuild_index(segment)?;
            let log = rebuild.logs.into_iter().find(|log| log.number == number);
            log.map(|log| log.batches).ok_or(ReadError::Damaged { position, detail: "lost" })?
        };
        let batches: Arc<[BatchRef]> = batches.into();
        self.index_cache.lock().put(key, Cached::Batches(Arc::clone(&batches)));
        Ok(batches)
    }

    /// The batches of a log by the segment's own index; `None` when the index cannot be used.
    fn indexed_batches(
        &self,
        segment: &Segment,
        number: u64,
    ) -> Result<Option<Vec<BatchRef>>, ReadError> {
        let key = Key::Directory(segment.sequence);
        let cached = match self.index_cache.lock().get(key) {
            Some(Cached::Directory(directory)) => Some(directory),
            _ => None,
        };
        let Some(found) = find_index(segment)? else { return Ok(None) };
        let directory: Arc<[DirectoryEntry]> = if let Some(directory) = cached {
            directory
        } else {
            let Some(directory) = read_directory(segment, &found)? else { return Ok(None) };
            let directory: Arc<[DirectoryEntry]> = directory.into();
            self.index_cache.lock().put(key, Cached::Directory(Arc::clone(&directory)));
            directory
        };
        let Some(entry) = directory.iter().find(|entry| entry.log == number) else {
            return Ok(None);
        };
        let at = found.entries_at + u64::from(entry.at) * index::ENTRY as u64;
        let length = entry.count as usize * index::ENTRY;
        if at + length as u64 > found.entries_end {
            return Ok(None);
        }
        let bytes = self.read_bytes(segment, at, length)?;
        Ok(index::decode_entries(bytes.chunk(), entry))
    }
}

/// Where the two parts of a segment's index are; the head has been verified.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IndexAt {
    pub(crate) lsn: u64,
    directory: Section,
    directory_at: u64,
    pub(crate) entries_at: u64,
    entries_end: u64,
}

/// Finds the index of a sealed segment by its trailer; `None` when there is none that verifies.
pub(crate) fn find_index(segment: &Segment) -> Result<Option<IndexAt>, ReadError> {
    let at = segment.size - TRAILER_BYTES;
    let mut bytes = [0; segment::BYTES];
    let read = read_full_at(&*segment.file, &mut bytes, at)
        .map_err(|error| Fault::read(segment.name(), at, segment::BYTES, &error))?;
    let Some(trailer) = Trailer::decode(&bytes[..read], segment.place(at)) else {
        return Ok(None);
    };
    let mut head = [0; HEADER_BYTES + 2 * frame::SECTION_BYTES];
    let read = read_full_at(&*segment.file, &mut head, trailer.offset)
        .map_err(|error| Fault::read(segment.name(), trailer.offset, head.len(), &error))?;
    Ok(index_at(segment, &head[..read], trailer.offset))
}

fn index_at(segment: &Segment, head: &[u8], offset: u64) -> Option<IndexAt> {
    let header = Header::peek(head)?;
    if FrameKind::from_byte(header.kind) != Some(FrameKind::Index)
        || !header.verify(head, segment.place(offset))
    {
        return None;
    }
    let sections = header.sections(head).ok()?;
    let [directory, entries] = sections.as_slice() else { return None };
    if (directory.kind, entries.kind) != (SectionKind::Directory, SectionKind::Entries) {
        return None;
    }
    let directory_at = offset + u64::from(header.head);
    let entries_at = directory_at + padded(u64::from(directory.length));
    let entries_end = entries_at + u64::from(entries.length);
    (entries_end <= segment.size).then_some(IndexAt {
        lsn: header.lsn,
        directory: *directory,
        directory_at,
        entries_at,
        entries_end,
    })
}

/// Reads the directory of a sealed segment; `None` when it does not verify.
pub(crate) fn read_directory(
    segment: &Segment,
    index: &IndexAt,
) -> Result<Option<Vec<DirectoryEntry>>, ReadError> {
    // Bounded: the index lies within the segment.
    let mut bytes = vec![0; index.directory.length as usize];
    let at = index.directory_at;
    let read = read_full_at(&*segment.file, &mut bytes, at).map_err(|error| {
        Fault::read(segment.name(), at, index.directory.length as usize, &error)
    })?;
    if read < bytes.len() || crc32c(&bytes) != index.directory.crc {
        return Ok(None);
    }
    Ok(DirectoryEntry::decode_all(&bytes, index.directory.count))
}

fn matches_batch(section: &Section, number: u64, batch: &BatchRef) -> bool {
    section.kind == SectionKind::Append
        && section.log == number
        && section.position == batch.first
        && section.length == batch.length
}

/// Where a position is, with the number of the log's present incarnation.
fn locate(log: &LogInner, position: u64) -> Result<(u64, Located), ReadError> {
    let view = log.view.read();
    let shape = view.shape;
    if position < shape.first {
        return Err(ReadError::Released { first: shape.first });
    }
    if let Some((from, until)) = shape.damage
        && (from..until).contains(&position)
        && until != super::shape::UNKNOWN
    {
        return Err(ReadError::Damaged { position, detail: "known to be lost" });
    }
    if position >= shape.end {
        return Err(ReadError::Absent { end: shape.end });
    }
    Ok((shape.number, view.locate(position)))
}
