//! Reading: by offset, by timestamp, and waiting at the end.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::Shared;
use super::generation::Generation;
use crate::error::{FetchError, StoreError};
use crate::format::{self, Batch, FormatError, Record};
use crate::store::PartitionLog;

/// Bytes that are read at once in a search by timestamp.
pub(super) const SCAN_BYTES: usize = 256 << 10;
/// How often a read begins again because what it was about to read has been released.
const RELEASED_AGAIN: usize = 8;
/// How often a release begins again because a compaction has given its position to another batch.
pub(super) const MOVED_AGAIN: usize = 8;

/// Where a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// At the first record that is kept.
    Earliest,
    /// Behind the last record.
    Latest,
    /// At an offset, or at the nearest one that can be read.
    Offset(u64),
    /// At the first record whose timestamp is at least this, in ms since the UNIX epoch; behind the
    /// last record when there is none.
    Timestamp(i64),
}

/// What a fetch returns.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Fetched {
    /// The batches, in order. The first may begin before the offset that was asked for.
    pub batches: Vec<Batch>,
    /// The offset that was asked for.
    pub offset: u64,
    /// The offset to ask for next.
    pub next_offset: u64,
    /// The offset after the last record of the partition, when this was read.
    pub end_offset: u64,
}

impl Fetched {
    /// The records from the offset that was asked for on. Compressed batches are unpacked one by
    /// one, each to at most `max_bytes`.
    pub fn records(&self, max_bytes: usize) -> Records<'_> {
        Records { batches: self.batches.iter(), current: None, from: self.offset, max_bytes }
    }
}

/// The records of a [`Fetched`]. After a batch that cannot be read it goes on with the next one.
#[derive(Debug)]
pub struct Records<'a> {
    batches: std::slice::Iter<'a, Batch>,
    current: Option<format::Records>,
    from: u64,
    max_bytes: usize,
}

impl Iterator for Records<'_> {
    type Item = Result<Record, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        // Ends: each round takes a record or a batch.
        loop {
            if let Some(records) = &mut self.current {
                match records.next() {
                    Some(Ok(record)) if record.offset < self.from => continue,
                    Some(read) => return Some(read),
                    None => self.current = None,
                }
            }
            let batch = self.batches.next()?;
            if batch.header().is_control() {
                continue;
            }
            match batch.records(self.max_bytes) {
                Ok(records) => self.current = Some(records),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl Shared {
    pub(super) fn fetch(&self, offset: u64, max_bytes: usize) -> Result<Fetched, FetchError> {
        for _ in 0..RELEASED_AGAIN {
            let (generation, range, end_position, end_offset) = {
                let inner = self.inner.lock();
                let (start, end) = (inner.state.start_offset, inner.state.next_offset);
                if offset < start || offset > end {
                    return Err(FetchError::OutOfRange { offset, start, end });
                }
                if offset == end {
                    let batches = Vec::new();
                    return Ok(Fetched { batches, offset, next_offset: end, end_offset: end });
                }
                if let Some(batches) = inner.tail.read(offset, max_bytes) {
                    return Ok(Fetched::new(batches, offset, end));
                }
                let generation = Arc::clone(&inner.generation);
                (generation, inner.state.search_range(offset), inner.state.next_position, end)
            };
            match read_from(generation.log(), range, offset, end_position, max_bytes) {
                Err(FetchError::Store(StoreError::Released { .. })) => {}
                Err(error) => return Err(error),
                Ok(batches) => return Ok(Fetched::new(batches, offset, end_offset)),
            }
        }
        let inner = self.inner.lock();
        let (start, end) = (inner.state.start_offset, inner.state.next_offset);
        Err(FetchError::OutOfRange { offset, start, end })
    }

    pub(super) fn seek(&self, to: Seek) -> Result<u64, FetchError> {
        let (start, end) = {
            let inner = self.inner.lock();
            (inner.state.start_offset, inner.state.next_offset)
        };
        match to {
            Seek::Earliest => Ok(start),
            Seek::Latest => Ok(end),
            Seek::Offset(offset) => Ok(offset.clamp(start, end)),
            Seek::Timestamp(timestamp) => self.offset_of_timestamp(timestamp),
        }
    }

    /// Offset of the first record whose timestamp is at least `timestamp`, or the end.
    pub(super) fn offset_of_timestamp(&self, timestamp: i64) -> Result<u64, FetchError> {
        'again: for _ in 0..RELEASED_AGAIN {
            let (generation, mut position, end_position, end_offset) = {
                let inner = self.inner.lock();
                let generation = Arc::clone(&inner.generation);
                let state = &inner.state;
                if state.max_timestamp < timestamp {
                    return Ok(state.next_offset);
                }
                let from = state.search_from_timestamp(timestamp);
                let from = from.max(state.first_position);
                (generation, from, state.next_position, state.next_offset)
            };
            // Ends: each round reads at least one batch, or begins again, or fails.
            while position < end_position {
                let read = batches(generation.log(), position..end_position, SCAN_BYTES);
                let batches = match read {
                    Err(FetchError::Store(StoreError::Released { .. })) => continue 'again,
                    batches => batches?,
                };
                if batches.is_empty() {
                    return Err(no_batch(position));
                }
                position += batches.len() as u64;
                let found = batches.iter().find(|b| b.header().max_timestamp >= timestamp);
                if let Some(batch) = found {
                    return Ok(offset_within(batch, timestamp));
                }
            }
            return Ok(end_offset);
        }
        Ok(self.inner.lock().state.start_offset)
    }

    /// Offset at which the batch at `position` of a generation begins, or the end.
    pub(super) fn offset_at(
        &self,
        generation: &Generation,
        position: u64,
    ) -> Result<u64, FetchError> {
        let bounds = generation.log().bounds();
        match position {
            at if at >= bounds.end => Ok(self.inner.lock().state.next_offset),
            at if at < bounds.start => Ok(self.inner.lock().state.start_offset),
            at => Ok(batch_at(generation.log(), at)?.base_offset()),
        }
    }

    /// The generation, the position and the offset up to which whole batches lie before `offset`.
    pub(super) fn release_point(&self, offset: u64) -> Result<(u64, u64, u64), FetchError> {
        let (generation, range, position, start, end) = {
            let inner = self.inner.lock();
            let (generation, state) = (Arc::clone(&inner.generation), &inner.state);
            let range = state.search_range(offset);
            (generation, range, state.next_position, state.start_offset, state.next_offset)
        };
        let number = generation.number();
        if offset >= end {
            return Ok((number, position, end));
        }
        if offset <= start {
            return Ok((number, range.start, start));
        }
        let position = position_of(generation.log(), range, offset)?;
        let batch = batch_at(generation.log(), position)?;
        if batch.last_offset() < offset {
            // Compaction has removed the records between this batch and the next one.
            return Ok((number, position + 1, offset));
        }
        Ok((number, position, batch.base_offset().min(offset)))
    }
}

/// Reads from the batch that holds `offset` on, or from the first one behind it. It begins in
/// `range` or right behind it, unless that is empty.
fn read_from(
    log: &dyn PartitionLog,
    range: std::ops::Range<u64>,
    offset: u64,
    end: u64,
    max_bytes: usize,
) -> Result<Vec<Batch>, FetchError> {
    let mut position = position_of(log, range, offset)?;
    // Ends: the second batch begins behind `offset`.
    loop {
        let mut batches = batches(log, position..end, max_bytes)?;
        // Compaction may have removed the records between a batch and the next one.
        let before = batches.iter().take_while(|batch| batch.last_offset() < offset).count();
        if before == 0 || before < batches.len() {
            batches.drain(..before);
            return Ok(batches);
        }
        position += before as u64;
    }
}

/// The last position in `range` whose batch does not begin behind `offset`; the first one when all
/// do.
pub(super) fn position_of(
    log: &dyn PartitionLog,
    range: std::ops::Range<u64>,
    offset: u64,
) -> Result<u64, FetchError> {
    let std::ops::Range { start: mut low, end: mut high } = range;
    // Ends: the range halves. Invariant: the batch is at `low` or behind, and before `high`.
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if batch_at(log, middle)?.base_offset() <= offset {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

fn batch_at(log: &dyn PartitionLog, position: u64) -> Result<Batch, FetchError> {
    let batch = batches(log, position..position + 1, 1)?.into_iter().next();
    batch.ok_or_else(|| no_batch(position))
}

pub(super) fn no_batch(position: u64) -> FetchError {
    StoreError::Unreadable { why: format!("no batch at position {position}") }.into()
}

pub(super) fn batches(
    log: &dyn PartitionLog,
    range: std::ops::Range<u64>,
    max_bytes: usize,
) -> Result<Vec<Batch>, FetchError> {
    let first = range.start;
    let read = log.read(range, max_bytes)?;
    let batch = |(position, bytes)| {
        Batch::from_store(bytes).map_err(|error| FetchError::Damaged { position, error })
    };
    (first..).zip(read).map(batch).collect()
}

/// The first record of `batch` that is at least as young as `timestamp`. The first record of all
/// when they cannot be unpacked.
fn offset_within(batch: &Batch, timestamp: i64) -> u64 {
    let records = batch.records(format::MAX_UNPACKED_BYTES).into_iter().flatten();
    let mut records = records.map_while(Result::ok);
    let found = records.find(|record| record.timestamp >= timestamp);
    found.map_or(batch.base_offset(), |record| record.offset)
}

impl Fetched {
    fn new(batches: Vec<Batch>, offset: u64, end_offset: u64) -> Self {
        let next = batches.last().map_or(offset, |batch| batch.last_offset() + 1);
        // A batch may have been appended since the end was read.
        Self { batches, offset, next_offset: next, end_offset: end_offset.max(next) }
    }
}

/// Waits for a record at an offset. Dropping it gives its place back.
#[must_use = "a future does nothing unless it is polled"]
pub struct WaitFuture {
    shared: Arc<Shared>,
    offset: u64,
    number: Option<u64>,
}

impl WaitFuture {
    pub(super) fn new(shared: Arc<Shared>, offset: u64) -> Self {
        Self { shared, offset, number: None }
    }
}

impl Future for WaitFuture {
    type Output = Result<(), FetchError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        // Wakers are foreign code: they are cloned and dropped without the lock.
        let waker = context.waker().clone();
        let added = {
            let mut inner = this.shared.inner.lock();
            if inner.state.next_offset > this.offset {
                return Poll::Ready(Ok(()));
            }
            if inner.waiters.is_closed {
                return Poll::Ready(Err(FetchError::Closed));
            }
            inner.waiters.add(this.offset, this.number, waker)
        };
        match added {
            Ok((number, _replaced)) => {
                this.number = Some(number);
                Poll::Pending
            }
            Err(_waker) => {
                let limit = this.shared.config.max_waiters;
                Poll::Ready(Err(FetchError::TooManyWaiters { limit }))
            }
        }
    }
}

impl Drop for WaitFuture {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let waker = self.shared.inner.lock().waiters.remove(self.offset, number);
            drop(waker);
        }
    }
}

impl std::fmt::Debug for WaitFuture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WaitFuture").field("offset", &self.offset).finish_non_exhaustive()
    }
}
