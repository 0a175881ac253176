//! Reading records back: nothing is returned that was not verified on this read.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Buf, Bytes};

use super::Engine;
use super::cache::{Cached, Key};
use super::log::LogInner;
use super::segment::Segment;
use crate::core::view::Located;
use crate::error::{Fault, ReadError};
use crate::files::{read_full_at, read_full_cached_at};
use crate::format::frame::{FrameKind, HEAD_BYTES_MAX, HEADER_BYTES, Header, Section, SectionKind};
use crate::format::index::{self, BatchRef, DirectoryEntry};
use crate::format::segment::{self, Trailer};
use crate::format::{TRAILER_BYTES, crc32c, frame, padded};
use crate::recovery::rebuild::Rebuild;
use crate::recovery::scan;

/// A head and payload closer together than this are read at once.
const ONE_READ_GAP: u64 = 4096;
/// What a record takes in a batch besides its own bytes.
const TABLE_ENTRY_BYTES: usize = 4;

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
    /// The position after the last record that counts.
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

/// Records that a read has gathered.
struct Taken {
    records: Vec<Bytes>,
    bytes: usize,
    max_bytes: usize,
    /// Position of the next record.
    position: u64,
}

impl Taken {
    /// Bytes of records that there is room for.
    fn room(&self) -> usize {
        self.max_bytes.saturating_sub(self.bytes)
    }

    /// Whether a batch at the position need not be read: there is no room, or the batch is one
    /// record that does not fit. The first record is always taken.
    fn has_no_room_for(&self, found: &FoundBatch) -> bool {
        let room = self.room();
        !self.records.is_empty() && (room == 0 || found.is_one_record_above(room))
    }

    /// Takes the records of a batch from the position on, up to `end`; answers whether there is
    /// room for more.
    fn take(&mut self, batch: &Batch, end: u64) -> Result<bool, ReadError> {
        let end = batch.end.min(end);
        // The count comes from the disk. A record takes at least its four bytes in the table of
        // ends, so the payload bounds what the count may ask for.
        let most = batch.payload.len() / 4;
        self.records.reserve((end.saturating_sub(self.position) as usize).min(most));
        while self.position < end {
            let record = batch.record(self.position)?;
            self.bytes += record.len();
            if self.bytes > self.max_bytes && !self.records.is_empty() {
                return Ok(false);
            }
            self.records.push(record);
            self.position += 1;
        }
        Ok(true)
    }
}

/// What is looked for in a sealed segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sought {
    /// Number of the log's incarnation.
    pub(crate) number: u64,
    pub(crate) position: u64,
    /// LSN of the last batch that the log has in the segment. `None` for a log under suspicion, of
    /// which everything is given that verifies.
    pub(crate) last: Option<u64>,
}

/// Where a batch is.
#[derive(Debug)]
pub(crate) struct FoundBatch {
    /// Number of the log's incarnation.
    pub(crate) number: u64,
    pub(crate) segment: Arc<Segment>,
    pub(crate) batch: BatchRef,
    /// Positions from here on are in another batch, or were truncated.
    pub(crate) end: u64,
}

impl FoundBatch {
    /// Whether one record of the batch counts, and the batch is longer than a record of `bytes`.
    /// A batch of which the rest was truncated may be so too, though its record is short: a reader
    /// then gets the record when it asks for it first.
    fn is_one_record_above(&self, bytes: usize) -> bool {
        self.end - self.batch.first == 1 && self.batch.length as usize > bytes + TABLE_ENTRY_BYTES
    }

    /// Where the frame begins, and how far from there the payload is; both come from the disk.
    fn check_place(&self, position: u64) -> Result<(u64, u64), ReadError> {
        let (frame_at, payload_at) = (self.batch.frame_at(), self.batch.payload_at());
        let payload_end = payload_at + u64::from(self.batch.length);
        if payload_end > self.segment.size || payload_at < frame_at + HEADER_BYTES as u64 {
            return Err(damaged(position, "the index points outside the segment"));
        }
        Ok((frame_at, payload_at - frame_at))
    }

    /// The header of the frame and the batch's section in it, if both are what the index says.
    pub(crate) fn verify_head(
        &self,
        head: &[u8],
        position: u64,
    ) -> Result<(Header, Section), ReadError> {
        let (frame_at, number) = (self.batch.frame_at(), self.number);
        let header =
            Header::peek(head).ok_or(damaged(position, "no frame where the index points"))?;
        if !header.verify(head, self.segment.location(frame_at)) {
            return Err(damaged(position, "the frame's head fails its checksum"));
        }
        let sections = header.sections(head).map_err(|_| damaged(position, "malformed frame"))?;
        let section = sections.get(self.batch.section as usize).copied();
        let section = section.filter(|section| matches_batch(section, number, &self.batch));
        let section =
            section.ok_or(damaged(position, "the frame is not the one that was looked for"))?;
        Ok((header, section))
    }

    /// The batch, if its head and payload are what the index and the checksums say.
    pub(crate) fn verify(
        &self,
        head: &[u8],
        mut payload: Bytes,
        position: u64,
    ) -> Result<Batch, ReadError> {
        let (_, section) = self.verify_head(head, position)?;
        payload.truncate(section.length as usize);
        if payload.len() as u64 <= self.batch.payload_at() - self.batch.frame_at() {
            // Its head would keep more memory alive than the records themselves.
            payload = Bytes::copy_from_slice(&payload);
        }
        if crc32c(&payload) != section.crc {
            return Err(damaged(position, "the records fail their checksum"));
        }
        let end = self.end.min(section.position + u64::from(section.count));
        if position >= end {
            return Err(damaged(position, "the batch does not reach the position"));
        }
        Ok(Batch { first: section.position, count: section.count, end, payload })
    }
}

fn damaged(position: u64, detail: &'static str) -> ReadError {
    ReadError::Damaged { position, detail }
}

/// Splits what was read at once into the frame's head and the payload.
fn split(mut both: Bytes, gap: usize) -> (Bytes, Bytes) {
    let payload = both.split_off(gap.min(both.len()));
    (both, payload)
}

/// The batch with a position among those of a segment, and where it ends.
fn batch_at(batches: &[BatchRef], position: u64, end: u64) -> Result<(BatchRef, u64), ReadError> {
    let after = batches.partition_point(|batch| batch.first <= position);
    let batch = after.checked_sub(1).and_then(|at| batches.get(at)).copied();
    let batch = batch.ok_or(damaged(position, "not in the index"))?;
    Ok((batch, batches.get(after).map_or(end, |next| next.first.min(end))))
}

impl Engine {
    pub(crate) fn read(&self, log: &LogInner, position: u64) -> Result<Bytes, ReadError> {
        self.read_batch(log, position)?.record(position)
    }

    /// As [`read`](Self::read), of what is at hand; `None` when it is not.
    pub(crate) fn try_read(
        &self,
        log: &LogInner,
        position: u64,
    ) -> Result<Option<Bytes>, ReadError> {
        let batch = self.try_read_batch(log, position, |_| false)?;
        batch.map(|batch| batch.record(position)).transpose()
    }

    /// Records of a range, as many as `max_bytes` allow, but at least one unless the range is
    /// empty.
    pub(crate) fn read_range(
        &self,
        log: &LogInner,
        range: Range<u64>,
        max_bytes: usize,
    ) -> Result<Vec<Bytes>, ReadError> {
        let mut taken = Taken { records: Vec::new(), bytes: 0, max_bytes, position: range.start };
        // Ends because each round takes at least the record at the position, or returns.
        while taken.position < range.end {
            let read = match self.read_run(log, &taken, range.end) {
                Ok(read) if read.is_empty() => break,
                Ok(read) => read,
                Err(error) if taken.records.is_empty() => return Err(error),
                // The caller gets what there is, and the error when it asks for the rest.
                Err(_) => break,
            };
            for batch in read {
                if !taken.take(&batch, range.end)? {
                    return Ok(taken.records);
                }
            }
        }
        Ok(taken.records)
    }

    /// Reads the record at each position and passes it on with its place in `positions`. A batch is
    /// read once for all of its positions that follow one another.
    pub(crate) fn read_each(
        &self,
        log: &LogInner,
        positions: &[u64],
        each: &mut dyn FnMut(usize, Result<Bytes, ReadError>),
    ) {
        let mut last: Option<Batch> = None;
        for (at, position) in positions.iter().enumerate() {
            let is_read =
                last.as_ref().is_some_and(|batch| (batch.first..batch.end).contains(position));
            if !is_read {
                // Dropped first: its buffer is used again for the next one.
                last = None;
                match self.read_batch(log, *position) {
                    Ok(batch) => last = Some(batch),
                    Err(error) => each(at, Err(error)),
                }
            }
            if let Some(batch) = &last {
                each(at, batch.record(*position));
            }
        }
    }

    /// As [`read_range`](Self::read_range), of what is at hand; `None` when the first record is
    /// not.
    pub(crate) fn try_read_range(
        &self,
        log: &LogInner,
        range: Range<u64>,
        max_bytes: usize,
    ) -> Result<Option<Vec<Bytes>>, ReadError> {
        let mut taken = Taken { records: Vec::new(), bytes: 0, max_bytes, position: range.start };
        // Ends because each round takes at least the record at the position, or returns.
        while taken.position < range.end {
            match self.try_read_batch(log, taken.position, |found| taken.has_no_room_for(found)) {
                Ok(Some(batch)) => {
                    if !taken.take(&batch, range.end)? {
                        break;
                    }
                }
                Ok(None) if taken.records.is_empty() => return Ok(None),
                Err(error) if taken.records.is_empty() => return Err(error),
                Ok(None) | Err(_) => break,
            }
        }
        Ok(Some(taken.records))
    }

    /// Reads again when what was read may have been moved to another segment meanwhile, and its
    /// old place used again. Ends because each turn follows the end of a round of rewriting.
    fn follow_moves<T>(
        &self,
        mut read: impl FnMut() -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        loop {
            let rounds = self.rounds_ended.load(Ordering::Acquire);
            let read = read();
            let is_damaged = matches!(read, Err(ReadError::Damaged { .. }));
            if !is_damaged || self.rounds_ended.load(Ordering::Acquire) == rounds {
                return read;
            }
        }
    }

    /// The batch that holds a position.
    fn read_batch(&self, log: &LogInner, position: u64) -> Result<Batch, ReadError> {
        self.follow_moves(|| {
            let found = self.find(log, position)?;
            let read = self.fetch(&found, position);
            Self::recheck(log, position, found.number, read)
        })
    }

    /// The batch that holds a position, if it is at hand and is not to be left out.
    fn try_read_batch(
        &self,
        log: &LogInner,
        position: u64,
        leave_out: impl Fn(&FoundBatch) -> bool,
    ) -> Result<Option<Batch>, ReadError> {
        self.follow_moves(|| {
            let found = self.find_cached(log, position)?;
            let Some(found) = found.filter(|found| !leave_out(found)) else { return Ok(None) };
            let read = self.fetch_cached(&found, position);
            Self::recheck(log, position, found.number, read)
        })
    }

    /// The batches behind what was taken that one read can have, at least one, or none when there
    /// is no room for it; see [`Run`](super::run::Run).
    fn read_run(&self, log: &LogInner, taken: &Taken, until: u64) -> Result<Vec<Batch>, ReadError> {
        let position = taken.position;
        self.follow_moves(|| {
            let found = self.find(log, position)?;
            if taken.has_no_room_for(&found) {
                return Ok(Vec::new());
            }
            let run = self.run_from(log, &found, until, taken.room());
            if let Some(run) = run
                && let Some(batches) = self.fetch_run(&found, &run, position)
            {
                return Ok(batches);
            }
            let read = self.fetch(&found, position);
            Self::recheck(log, position, found.number, read).map(|batch| vec![batch])
        })
    }

    /// A segment may have been used again while it was read: then the position is gone, and what
    /// was read instead is no damage.
    fn recheck<T>(
        log: &LogInner,
        position: u64,
        number: u64,
        read: Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        if matches!(read, Err(ReadError::Damaged { .. })) {
            let (now, _) = locate(log, position)?;
            if now != number {
                return Err(ReadError::Absent { end: log.view.read().bounds.end });
            }
        }
        read
    }

    /// Where the batch with a position is, reading the index of its segment when it must.
    fn find(&self, log: &LogInner, position: u64) -> Result<FoundBatch, ReadError> {
        self.check_open()?;
        let (number, located) = locate(log, position)?;
        let found = match located {
            Located::Batch { segment, batch, end } => Ok((segment, batch, end)),
            Located::Sealed { segment, end, last } => {
                let batches = self.batches_of(&segment, Sought { number, position, last });
                let found = batches.and_then(|batches| batch_at(&batches, position, end));
                found.map(|(batch, end)| (segment, batch, end))
            }
            Located::Lost => Err(ReadError::Damaged { position, detail: "lost" }),
        };
        let (segment, batch, end) = Self::recheck(log, position, number, found)?;
        Ok(FoundBatch { number, segment, batch, end })
    }

    /// Where the batch with a position is, if that is known without reading.
    fn find_cached(&self, log: &LogInner, position: u64) -> Result<Option<FoundBatch>, ReadError> {
        self.check_open()?;
        let (number, located) = locate(log, position)?;
        let found = match located {
            Located::Batch { segment, batch, end } => Ok((segment, batch, end)),
            Located::Sealed { segment, end, .. } => {
                let Some(batches) = self.cached_batches(&segment, number) else { return Ok(None) };
                batch_at(&batches, position, end).map(|(batch, end)| (segment, batch, end))
            }
            Located::Lost => Err(ReadError::Damaged { position, detail: "lost" }),
        };
        let (segment, batch, end) = Self::recheck(log, position, number, found)?;
        Ok(Some(FoundBatch { number, segment, batch, end }))
    }

    fn check_open(&self) -> Result<(), ReadError> {
        if self.closed.load(Ordering::Acquire) { Err(ReadError::Closed) } else { Ok(()) }
    }

    /// Reads and verifies one batch.
    fn fetch(&self, found: &FoundBatch, position: u64) -> Result<Batch, ReadError> {
        let (head, payload) = self.fetch_bytes(found, position)?;
        found.verify(&head, payload, position)
    }

    /// Reads the frame's head, with what follows it, and the payload of one batch.
    fn fetch_bytes(&self, found: &FoundBatch, position: u64) -> Result<(Bytes, Bytes), ReadError> {
        let FoundBatch { segment, batch, .. } = found;
        let (frame_at, gap) = found.check_place(position)?;
        let length = batch.length as usize;
        if gap <= ONE_READ_GAP {
            let both = self.read_bytes(segment, frame_at, gap as usize + length)?;
            return Ok(split(both, gap as usize));
        }
        let head = self.read_bytes(segment, frame_at, gap.min(HEAD_BYTES_MAX as u64) as usize)?;
        Ok((head, self.read_bytes(segment, batch.payload_at(), length)?))
    }

    /// One batch as it stands in its segment: the header of its frame, its section and its payload,
    /// verified.
    pub(crate) fn fetch_raw(
        &self,
        found: &FoundBatch,
    ) -> Result<(Header, Section, Bytes), ReadError> {
        let position = found.batch.first;
        let (head, payload) = self.fetch_bytes(found, position)?;
        let (header, section) = found.verify_head(&head, position)?;
        if payload.len() != section.length as usize || crc32c(&payload) != section.crc {
            return Err(damaged(position, "the records fail their checksum"));
        }
        Ok((header, section, payload))
    }

    /// As [`fetch`](Self::fetch), of what the system has in memory; `None` when it has not.
    fn fetch_cached(&self, found: &FoundBatch, position: u64) -> Result<Option<Batch>, ReadError> {
        let (frame_at, gap) = found.check_place(position)?;
        if gap > ONE_READ_GAP {
            return Ok(None);
        }
        let (segment, length) = (&found.segment, gap as usize + found.batch.length as usize);
        let mut buffer = self.buffers.take(length);
        let read = read_full_cached_at(&*segment.file, &mut buffer[..length], frame_at)
            .map_err(|error| Fault::read(segment.name(), frame_at, length, &error))?;
        let mut both = self.buffers.share(buffer);
        let Some(read) = read else { return Ok(None) };
        both.truncate(read);
        let (head, payload) = split(both, gap as usize);
        found.verify(&head, payload, position).map(Some)
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

    /// The batches of a log in a sealed segment, if their index has been read already.
    pub(crate) fn cached_batches(&self, segment: &Segment, number: u64) -> Option<Arc<[BatchRef]>> {
        match self.index_cache.lock().get(Key::Batches(segment.sequence, number)) {
            Some(Cached::Batches(batches)) => Some(batches),
            _ => None,
        }
    }

    /// The batches of a log in a sealed segment, by position: all of those that count, or at least
    /// those from some position on.
    fn batches_of(&self, segment: &Segment, sought: Sought) -> Result<Arc<[BatchRef]>, ReadError> {
        if let Some(batches) = self.cached_batches(segment, sought.number) {
            return Ok(batches);
        }
        let batches: Arc<[BatchRef]> = self.find_batches(segment, sought)?.into();
        let key = Key::Batches(segment.sequence, sought.number);
        self.index_cache.lock().put(key, Cached::Batches(Arc::clone(&batches)));
        Ok(batches)
    }

    /// As [`batches_of`](Self::batches_of), from the segment.
    pub(crate) fn find_batches(
        &self,
        segment: &Segment,
        sought: Sought,
    ) -> Result<Vec<BatchRef>, ReadError> {
        let Sought { number, position, last } = sought;
        let indexed = self.indexed_batches(segment, number);
        if let Ok(Some(batches)) = indexed {
            return Ok(batches);
        }
        // The index is only a hint: the frames have everything, unless one of them is lost.
        let batches = self.rebuild_of(segment)?.batches_of(number, last);
        if batches.is_empty() {
            return Err(indexed.err().unwrap_or(damaged(position, "lost")));
        }
        Ok(batches)
    }

    /// What the frames of a segment without an index say. Reading all of them costs as much as the
    /// segment is large, whatever one log has there: it is done once for all logs.
    fn rebuild_of(&self, segment: &Segment) -> Result<Arc<Rebuild>, ReadError> {
        let key = Key::Rebuild(segment.sequence);
        if let Some(Cached::Rebuild(rebuild)) = self.index_cache.lock().get(key) {
            return Ok(rebuild);
        }
        let rebuild = if segment.is_rewritten() {
            scan::rebuild_moved(segment)?
        } else {
            scan::rebuild_index(segment)?
        };
        let rebuild = Arc::new(rebuild);
        self.index_cache.lock().put(key, Cached::Rebuild(Arc::clone(&rebuild)));
        Ok(rebuild)
    }

    /// The batches of a log by the segment's own index; `None` when the index cannot be used.
    fn indexed_batches(
        &self,
        segment: &Segment,
        number: u64,
    ) -> Result<Option<Vec<BatchRef>>, ReadError> {
        let Some((found, directory)) = self.directory_of(segment)? else { return Ok(None) };
        let mut batches = Vec::new();
        // A log has one entry, and in a segment of moved frames one for each run of positions.
        for entry in directory.iter().filter(|entry| entry.log == number) {
            let at = found.entries_at + u64::from(entry.at) * index::ENTRY as u64;
            let length = entry.count as usize * index::ENTRY;
            if at + length as u64 > found.entries_end {
                return Ok(None);
            }
            let bytes = self.read_bytes(segment, at, length)?;
            let Some(run) = index::decode_entries(bytes.chunk(), entry) else { return Ok(None) };
            batches.extend(run);
        }
        Ok((!batches.is_empty()).then_some(batches))
    }

    /// The index of a sealed segment and the directory in it; `None` when it cannot be used.
    fn directory_of(&self, segment: &Segment) -> Result<Option<(IndexAt, Directory)>, ReadError> {
        let key = Key::Directory(segment.sequence);
        let cached = match self.index_cache.lock().get(key) {
            Some(Cached::Directory(directory)) => Some(directory),
            _ => None,
        };
        let Some(found) = find_index(segment)? else { return Ok(None) };
        if let Some(directory) = cached {
            return Ok(Some((found, directory)));
        }
        let Some(directory) = read_directory(segment, &found)? else { return Ok(None) };
        let directory: Directory = directory.into();
        self.index_cache.lock().put(key, Cached::Directory(Arc::clone(&directory)));
        Ok(Some((found, directory)))
    }
}

/// The directory of a segment, shared with the cache.
type Directory = Arc<[DirectoryEntry]>;

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
    let Some(trailer) = Trailer::decode(&bytes[..read], segment.location(at)) else {
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
        || !header.verify(head, segment.location(offset))
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
    let bounds = view.bounds;
    if position < bounds.first {
        return Err(ReadError::Released { first: bounds.first });
    }
    if position >= bounds.end {
        return Err(ReadError::Absent { end: bounds.end });
    }
    Ok((bounds.number, view.locate(position)))
}
