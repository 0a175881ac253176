//! Reading several batches of one log by one call: a window over the segment.

use bytes::Bytes;

use super::Engine;
use super::log::LogInner;
use super::reader::{Batch, FoundBatch};
use crate::format::index::BatchRef;

/// The most bytes of a segment that are read at once.
const WINDOW_BYTES: u64 = 256 << 10;
/// Batches this long or longer are read by themselves: a call costs little beside them, and their
/// records share the memory of the batch.
const SINGLE_BYTES: u32 = 32 << 10;
/// Batches further apart than this are read by calls of their own: the bytes of other logs between
/// them would cost more than the call.
const GAP_BYTES: u64 = 4 << 10;

/// Short batches that lie close together in one segment.
#[derive(Debug)]
pub(crate) struct Run {
    /// Each with the position at which it ends. Invariant: at least two, in the order of the
    /// segment, all of them within [`WINDOW_BYTES`].
    batches: Vec<(BatchRef, u64)>,
}

impl Run {
    /// Gathers a run from batches in the order of their positions. `limit` is where the last of
    /// them ends; none is taken that begins at `until` or later or would pass `max_bytes`.
    pub(crate) fn gather<'a>(
        batches: impl Iterator<Item = &'a BatchRef>,
        limit: u64,
        until: u64,
        max_bytes: usize,
    ) -> Option<Self> {
        let mut run: Vec<(BatchRef, u64)> = Vec::new();
        let (mut start, mut end, mut bytes) = (0, 0, 0);
        for batch in batches {
            if let Some((_, end)) = run.last_mut() {
                *end = batch.first.min(limit);
            }
            let (at, next) = (batch.frame_at(), batch.payload_at() + u64::from(batch.length));
            if run.is_empty() {
                (start, end) = (at, at);
            }
            bytes += batch.length as usize;
            let fits = batch.length < SINGLE_BYTES
                && batch.first < until
                && (run.is_empty() || bytes <= max_bytes)
                // Several batches of one commit share the frame.
                && at >= start
                && at <= end + GAP_BYTES
                && next > end
                && next - start <= WINDOW_BYTES;
            if !fits {
                return Self::of(run);
            }
            end = next;
            run.push((*batch, limit));
        }
        Self::of(run)
    }

    fn of(batches: Vec<(BatchRef, u64)>) -> Option<Self> {
        (batches.len() > 1).then_some(Self { batches })
    }
}

impl Engine {
    /// The run that begins with a batch that was found, if it is worth one.
    pub(crate) fn run_from(
        &self,
        log: &LogInner,
        found: &FoundBatch,
        until: u64,
        max_bytes: usize,
    ) -> Option<Run> {
        if found.batch.length >= SINGLE_BYTES || found.end >= until {
            return None;
        }
        let view = log.view.read();
        let extent = view
            .extent_with(&found.segment, found.end.saturating_sub(1))
            .filter(|_| view.bounds.number == found.number)?;
        let first = found.batch.first;
        if let Some(batches) = &extent.batches {
            let from = batches.partition_point(|batch| batch.first < first);
            return Run::gather(batches.range(from..), extent.end, until, max_bytes);
        }
        let end = extent.end;
        drop(view);
        let batches = self.cached_batches(&found.segment, found.number)?;
        let from = batches.partition_point(|batch| batch.first < first);
        Run::gather(batches[from..].iter(), end, until, max_bytes)
    }

    /// Reads a run, the first batch of which holds `position`, and verifies its batches. Gives
    /// those before the first that does not verify, and `None` when that is the first of all, for
    /// the caller to find out why.
    pub(crate) fn fetch_run(
        &self,
        found: &FoundBatch,
        run: &Run,
        position: u64,
    ) -> Option<Vec<Batch>> {
        let (Some((first, _)), Some((last, _))) = (run.batches.first(), run.batches.last()) else {
            return None;
        };
        let start = first.frame_at();
        let end = last.payload_at() + u64::from(last.length);
        if end > found.segment.size || end <= start {
            return None;
        }
        // Where the device cannot read all of it, a batch by itself may still be readable.
        let Ok(window) = self.read_bytes(&found.segment, start, (end - start) as usize) else {
            return None;
        };
        let mut read: Vec<Batch> = Vec::with_capacity(run.batches.len());
        let mut position = position;
        for (batch, end) in &run.batches {
            if batch.first > position {
                // An index from a damaged disk may leave positions out.
                break;
            }
            let segment = found.segment.clone();
            let found = FoundBatch { number: found.number, segment, batch: *batch, end: *end };
            let head_at = (batch.frame_at() - start) as usize;
            let at = (batch.payload_at() - start) as usize;
            let Some(payload) = window.get(at..at + batch.length as usize) else { break };
            let Some(head) = window.get(head_at..at) else { break };
            // Copied, so that a record does not keep the whole window in memory.
            let payload = Bytes::copy_from_slice(payload);
            let Ok(batch) = found.verify(head, payload, position) else { break };
            position = batch.end();
            read.push(batch);
        }
        if read.is_empty() { None } else { Some(read) }
    }
}
