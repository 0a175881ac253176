//! Where a consumer stands in one partition.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::config::Start;
use crate::core::group::Place;
use crate::error::{ConsumeError, FetchError};
use crate::format::{MAX_UNPACKED_BYTES, Record};
use crate::partition::{Fetched, Partition, WaitFuture};

pub(crate) struct Cursor {
    /// Of all partitions that there ever were in the queue.
    pub(crate) number: u32,
    pub(crate) partition: Partition,
    /// Offset of the next record to be returned.
    pub(crate) position: u64,
    /// Offset at which reading began: when the cursor was made, or last moved.
    pub(crate) began: u64,
    pub(super) is_paused: bool,
    /// The group has stored an offset, so whoever reads the partition next goes on from there.
    pub(super) has_begun: bool,
    /// Records that have been read and not returned. Invariant: the first is at `position` or
    /// beyond, where offsets are missing.
    buffer: VecDeque<Record>,
    /// Offset to read at when the buffer is empty. Invariant: at least `position`.
    next_fetch: u64,
    /// The position of the latest commit that was begun.
    committed: Option<u64>,
    waiting: Option<WaitFuture>,
}

impl Cursor {
    pub(crate) fn new(number: u32, partition: Partition, position: u64) -> Self {
        Self {
            number,
            partition,
            position,
            began: position,
            is_paused: false,
            has_begun: true,
            buffer: VecDeque::new(),
            next_fetch: position,
            committed: Some(position),
            waiting: None,
        }
    }

    pub(crate) fn move_to(&mut self, offset: u64) {
        self.buffer.clear();
        (self.position, self.next_fetch, self.began) = (offset, offset, offset);
        self.waiting = None;
    }

    pub(super) fn has_moved(&self) -> bool {
        self.committed != Some(self.position)
    }

    pub(super) fn note_commit(&mut self) {
        self.committed = Some(self.position);
    }

    pub(super) fn forget_commit(&mut self) {
        self.committed = None;
    }

    /// Up to `room` records that are there.
    pub(crate) fn take(
        &mut self,
        room: usize,
        fetch_bytes: usize,
        start: Start,
        place: &Place,
    ) -> Result<Vec<Record>, ConsumeError> {
        // Ends: each round reads a batch, or leaves.
        while self.buffer.is_empty() {
            let fetched = match self.partition.fetch(self.next_fetch, fetch_bytes) {
                Ok(fetched) if fetched.batches.is_empty() => return Ok(Vec::new()),
                Ok(fetched) => fetched,
                Err(FetchError::OutOfRange { offset, start: first, end }) => {
                    match start {
                        Start::Earliest => self.move_to(first),
                        Start::Latest => self.move_to(end),
                        Start::Stored => {
                            let error = FetchError::OutOfRange { offset, start: first, end };
                            return Err(error.into());
                        }
                    }
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            self.fill(&fetched, place)?;
        }
        let taken: Vec<Record> = self.buffer.drain(..room.min(self.buffer.len())).collect();
        if let Some(last) = taken.last() {
            let next = last.offset + 1;
            // Offsets that have no record are read along with the last one before them.
            self.position = if self.buffer.is_empty() { self.next_fetch } else { next };
        }
        Ok(taken)
    }

    /// Unpacks what was read, up to a batch that cannot be.
    fn fill(&mut self, fetched: &Fetched, (topic, partition): &Place) -> Result<(), ConsumeError> {
        for batch in &fetched.batches {
            let next_offset = batch.last_offset() + 1;
            if !batch.header().is_control() {
                let records = batch.records(MAX_UNPACKED_BYTES);
                match records.and_then(Iterator::collect::<Result<Vec<_>, _>>) {
                    Ok(records) => {
                        let from = self.next_fetch;
                        let wanted = records.into_iter().filter(|record| record.offset >= from);
                        self.buffer.extend(wanted);
                    }
                    Err(_) if !self.buffer.is_empty() => return Ok(()),
                    Err(error) => {
                        let partition = format!("{topic}/{partition}");
                        let offset = self.next_fetch;
                        return Err(ConsumeError::Undecodable {
                            partition,
                            offset,
                            next_offset,
                            error,
                        });
                    }
                }
            }
            self.next_fetch = next_offset;
        }
        if self.buffer.is_empty() {
            self.position = self.next_fetch;
        }
        Ok(())
    }

    /// Puts a record back that was taken last.
    pub(crate) fn put_back(&mut self, record: Record) {
        self.position = record.offset;
        self.buffer.push_front(record);
    }

    /// Resolves when there may be a record to take.
    pub(crate) fn poll_wait(&mut self, context: &mut Context<'_>) -> Poll<Result<(), FetchError>> {
        if !self.buffer.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let Self { partition, next_fetch, waiting, .. } = self;
        let waiting = waiting.get_or_insert_with(|| partition.wait_for(*next_fetch));
        match Pin::new(waiting).poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(result) => {
                self.waiting = None;
                Poll::Ready(result)
            }
        }
    }
}
