//! What a commit can do to a log.

use crate::commit::{Batch, Change, Commit, Operation};
use crate::log::Log;

impl Commit {
    /// Appends records to the end of a log, copying them. Without records it does nothing.
    ///
    /// The records of one call are one batch: stored, verified and read together, at most 1 MiB
    /// with 4 bytes per record; larger ones make the commit fail with
    /// [`Error::TooLarge`](crate::Error::TooLarge).
    pub fn append<R: AsRef<[u8]>>(self, log: &Log, records: impl IntoIterator<Item = R>) -> Self {
        let mut records = records.into_iter();
        let Some(first) = records.next() else { return self };
        let more = records.size_hint().0;
        let mut builder = log.batch(first.as_ref().len().saturating_mul(more + 1));
        builder.push(first.as_ref());
        for record in records {
            builder.push(record.as_ref());
        }
        self.append_batch(log, builder.finish())
    }

    /// Appends a batch that has been built before, without copying.
    pub fn append_batch(self, log: &Log, batch: Batch) -> Self {
        if batch.count == 0 { self } else { self.push(log, Change::Append(batch)) }
    }

    /// Drops the record at `from` and all after it, so that the log ends at `from`, which must be
    /// from the log's first position to its end.
    pub fn truncate(self, log: &Log, from: u64) -> Self {
        self.push(log, Change::Truncate(from))
    }

    /// Drops all positions below `upto`; without effect when the log begins there or later. When
    /// `upto` lies past the end, the log is then empty and goes on at `upto`. Beyond both the end
    /// and [`Log::MAX_POSITION`] the commit is rejected with
    /// [`Error::PositionTooLarge`](crate::Error::PositionTooLarge).
    pub fn release(self, log: &Log, upto: u64) -> Self {
        self.push(log, Change::Release(upto))
    }

    /// Deletes a log with all its records. The handle stays valid; a later append creates the
    /// log anew, from position 0.
    pub fn delete(self, log: &Log) -> Self {
        self.push(log, Change::Delete)
    }

    fn push(mut self, log: &Log, change: Change) -> Self {
        let (opening, log) = log.to_operand();
        self.operations.push(Operation { opening, log, change });
        self
    }
}
