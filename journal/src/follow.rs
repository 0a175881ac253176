//! Following a log as it grows.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_core::Stream;

use crate::error::ReadError;
use crate::log::Log;

/// Records read ahead at once, in bytes.
const AHEAD_BYTES: usize = 256 << 10;

/// Yields the records of a log from a position on, and waits at its end for more. Also a
/// [`Stream`], which ends never but with an error.
///
/// A record that has been yielded may be truncated later; the follower does not take it back.
/// When the log is truncated below the next position, the follower waits there for new records.
#[derive(Debug)]
#[must_use = "a follower does nothing unless it is asked for records"]
pub struct Follow {
    log: Log,
    /// By which the log knows it.
    number: u64,
    next: u64,
    ahead: VecDeque<Bytes>,
}

impl Follow {
    pub(crate) fn new(log: Log, from: u64) -> Self {
        let number = log.inner().followers.new_number();
        Self { log, number, next: from, ahead: VecDeque::new() }
    }

    /// The position of the record that comes next.
    pub fn position(&self) -> u64 {
        self.next
    }

    /// The next record and its position, when it has been acknowledged.
    ///
    /// Reads from the disk in the calling task, up to 256 KiB ahead.
    ///
    /// # Errors
    /// [`ReadError::Released`] when the position is gone: start again from there.
    /// [`ReadError::Closed`] when no more records will come. Otherwise as [`Log::read`].
    ///
    /// # Cancel safety
    /// Safe: a dropped call loses no record.
    pub async fn next(&mut self) -> Result<(u64, Bytes), ReadError> {
        poll_fn(|context| self.poll_record(context)).await
    }

    /// As [`next`](Self::next), for hand-written futures.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub fn poll_record(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<(u64, Bytes), ReadError>> {
        if let Some(record) = self.ahead.pop_front() {
            return Poll::Ready(Ok(self.yielded(record)));
        }
        let mut registered = false;
        loop {
            match self.log.read_range(self.next..u64::MAX, AHEAD_BYTES) {
                Ok(records) => {
                    self.ahead = records.into();
                    return match self.ahead.pop_front() {
                        Some(record) => Poll::Ready(Ok(self.yielded(record))),
                        None => Poll::Pending,
                    };
                }
                Err(ReadError::Absent { .. }) if self.is_over() => {
                    return Poll::Ready(Err(ReadError::Closed));
                }
                Err(ReadError::Absent { .. }) if registered => return Poll::Pending,
                Err(ReadError::Absent { .. }) => {
                    // Once more after registering: the record may have come in between.
                    self.log.inner().followers.register(self.number, context.waker());
                    registered = true;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn yielded(&mut self, record: Bytes) -> (u64, Bytes) {
        self.next += 1;
        (self.next - 1, record)
    }

    fn is_over(&self) -> bool {
        let engine = self.log.engine();
        engine.closed.load(Ordering::Acquire) || engine.rejection().is_some()
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.log.inner().followers.forget(self.number);
    }
}

impl Stream for Follow {
    type Item = Result<(u64, Bytes), ReadError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_record(context).map(Some)
    }
}
