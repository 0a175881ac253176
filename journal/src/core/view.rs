//! What readers see of a log: its bounds and where its acknowledged records are.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use super::bounds::LogBounds;
use crate::engine::segment::Segment;
use crate::format::index::BatchRef;

/// The acknowledged state of one log.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) bounds: LogBounds,
    /// Invariant: ascending and disjoint by position, and also ascending by LSN: an append at a
    /// position drops the records there and after it.
    extents: VecDeque<Extent>,
}

/// The records of one log in one segment.
#[derive(Debug)]
pub(crate) struct Extent {
    pub(crate) segment: Arc<Segment>,
    pub(crate) first: u64,
    pub(crate) end: u64,
    /// LSN of the last batch.
    pub(crate) last: u64,
    /// Bytes of the payloads, as far as whole batches are concerned.
    pub(crate) bytes: u64,
    /// By position; `None` once the segment has an index. Shared with the writer of that index.
    pub(crate) batches: Option<Arc<VecDeque<BatchRef>>>,
}

/// Where to look for a position.
#[derive(Debug)]
pub(crate) enum Located {
    /// In this batch, which ends before `end`.
    Batch { segment: Arc<Segment>, batch: BatchRef, end: u64 },
    /// In this sealed segment, of which the log has the positions up to `end`. `last` is the LSN of
    /// its last batch there, which is not known of a log under suspicion.
    Sealed { segment: Arc<Segment>, end: u64, last: Option<u64> },
    /// Nowhere, though it should be somewhere.
    Lost,
}

impl Extent {
    pub(crate) fn new(segment: Arc<Segment>, first: u64) -> Self {
        segment.pin();
        let batches = Some(Arc::default());
        Self { segment, first, end: first, last: 0, bytes: 0, batches }
    }

    /// What a sealed segment holds.
    pub(crate) fn found(
        segment: &Arc<Segment>,
        positions: Range<u64>,
        last: u64,
        bytes: u64,
    ) -> Self {
        let new = Self::new(Arc::clone(segment), positions.start);
        Self { end: positions.end, last, bytes, batches: None, ..new }
    }

    fn truncate(&mut self, from: u64) {
        self.end = from;
        if let Some(batches) = self.batches.as_mut().map(Arc::make_mut) {
            while batches.back().is_some_and(|batch| batch.first >= from) {
                batches.pop_back();
            }
        }
    }

    fn release(&mut self, upto: u64) {
        self.first = upto;
        if let Some(batches) = self.batches.as_mut().map(Arc::make_mut) {
            while batches.get(1).is_some_and(|next| next.first <= upto) {
                batches.pop_front();
            }
        }
    }
}

/// Positions of a log without a gap, as they were copied.
#[derive(Debug)]
pub(crate) struct CopiedRun<'a> {
    pub(crate) positions: Range<u64>,
    /// By position. Invariant: all of `positions`.
    pub(crate) batches: &'a [BatchRef],
}

impl CopiedRun<'_> {
    fn covers(&self, extent: &Extent) -> bool {
        self.positions.start <= extent.first && extent.end <= self.positions.end
    }

    /// Bytes of the batches that have positions of this extent.
    fn bytes_of(&self, extent: &Extent) -> u64 {
        let from = self.batches.partition_point(|batch| batch.first <= extent.first);
        let upto = self.batches.partition_point(|batch| batch.first < extent.end);
        let batches = self.batches.get(from.saturating_sub(1)..upto).unwrap_or_default();
        batches.iter().map(|batch| u64::from(batch.length)).sum()
    }
}

impl View {
    /// A log without records of its own yet.
    pub(crate) fn new(bounds: LogBounds) -> Self {
        Self { bounds, extents: VecDeque::new() }
    }

    /// Adds a batch; answers whether it is the log's first in this segment.
    pub(crate) fn append(
        &mut self,
        segment: &Arc<Segment>,
        batch: BatchRef,
        end: u64,
        lsn: u64,
    ) -> bool {
        let new = self.extents.back().is_none_or(|extent| !Arc::ptr_eq(&extent.segment, segment));
        if new {
            self.extents.push_back(Extent::new(Arc::clone(segment), batch.first));
        }
        if let Some(extent) = self.extents.back_mut() {
            extent.end = end;
            extent.last = lsn;
            extent.bytes += u64::from(batch.length);
            Arc::make_mut(extent.batches.get_or_insert_default()).push_back(batch);
        }
        new
    }

    /// Adds what other segments hold of the log, and leaves of all extents what still counts: where
    /// two have the same position, the one that was written later, whichever file it is in.
    pub(crate) fn merge(&mut self, more: Vec<Extent>) {
        let mut all: Vec<Extent> = std::mem::take(&mut self.extents).into();
        all.extend(more);
        all.sort_by_key(|extent| extent.last);
        for extent in all {
            self.truncate(extent.first, 0);
            self.extents.push_back(extent);
        }
        self.truncate(self.bounds.end, 0);
        self.release(self.bounds.first, 0);
    }

    /// Drops records from `from` on, by the frame with this LSN.
    pub(crate) fn truncate(&mut self, from: u64, lsn: u64) {
        while self.extents.back().is_some_and(|extent| extent.first >= from) {
            if let Some(extent) = self.extents.pop_back() {
                extent.segment.unpin(lsn);
            }
        }
        if let Some(extent) = self.extents.back_mut().filter(|extent| extent.end > from) {
            extent.truncate(from);
        }
    }

    /// Drops records below `upto`, by the frame with this LSN.
    pub(crate) fn release(&mut self, upto: u64, lsn: u64) {
        while self.extents.front().is_some_and(|extent| extent.end <= upto) {
            if let Some(extent) = self.extents.pop_front() {
                extent.segment.unpin(lsn);
            }
        }
        if let Some(extent) = self.extents.front_mut().filter(|extent| extent.first < upto) {
            extent.release(upto);
        }
    }

    /// Drops all records, by the frame with this LSN.
    pub(crate) fn clear(&mut self, lsn: u64) {
        for extent in self.extents.drain(..) {
            extent.segment.unpin(lsn);
        }
    }

    /// Finds a position within the bounds.
    pub(crate) fn locate(&self, position: u64) -> Located {
        let after = self.extents.partition_point(|extent| extent.end <= position);
        let Some(extent) = self.extents.get(after).filter(|extent| extent.first <= position) else {
            return Located::Lost;
        };
        let segment = Arc::clone(&extent.segment);
        match &extent.batches {
            None => {
                let last = (!self.bounds.is_suspect()).then_some(extent.last);
                Located::Sealed { segment, end: extent.end, last }
            }
            Some(batches) => {
                let after = batches.partition_point(|batch| batch.first <= position);
                let Some(batch) = after.checked_sub(1).and_then(|at| batches.get(at)) else {
                    return Located::Lost;
                };
                let end = batches.get(after).map_or(extent.end, |next| next.first);
                Located::Batch { segment, batch: *batch, end }
            }
        }
    }

    pub(crate) fn extents(&self) -> impl DoubleEndedIterator<Item = &Extent> {
        self.extents.iter()
    }

    /// What the log has in this segment, if anything; of moved frames, the last run of positions.
    pub(crate) fn extent_in(&self, segment: &Arc<Segment>) -> Option<&Extent> {
        self.extents.iter().rev().find(|extent| Arc::ptr_eq(&extent.segment, segment))
    }

    /// The extent that has a position, if it is in this segment.
    pub(crate) fn extent_with(&self, segment: &Arc<Segment>, position: u64) -> Option<&Extent> {
        let after = self.extents.partition_point(|extent| extent.end <= position);
        let extent = self.extents.get(after).filter(|extent| extent.first <= position)?;
        Arc::ptr_eq(&extent.segment, segment).then_some(extent)
    }

    /// Points to the copies in `target` of what is in segments for which `is_victim` holds. `runs`
    /// are what `target` has of the log. What it has no copy of stays where it is.
    pub(crate) fn relocate(
        &mut self,
        is_victim: impl Fn(&Segment) -> bool,
        target: &Arc<Segment>,
        runs: &[CopiedRun<'_>],
    ) {
        for mut extent in std::mem::take(&mut self.extents) {
            let copied = runs.iter().find(|run| run.covers(&extent));
            if let Some(run) = copied.filter(|_| is_victim(&extent.segment)) {
                target.pin();
                extent.segment.unpin(0);
                // What had been released or cut off in the victim has not been copied.
                extent.bytes = run.bytes_of(&extent);
                (extent.segment, extent.batches) = (Arc::clone(target), None);
            }
            match self.extents.back_mut() {
                // Two runs that were in different segments are one.
                Some(before)
                    if Arc::ptr_eq(&before.segment, target)
                        && Arc::ptr_eq(&extent.segment, target)
                        && before.end == extent.first =>
                {
                    (before.end, before.last) = (extent.end, extent.last);
                    before.bytes += extent.bytes;
                    target.unpin(0);
                }
                _ => self.extents.push_back(extent),
            }
        }
    }

    /// How many segments hold records of the log.
    pub(crate) fn segments(&self) -> usize {
        let sequences: BTreeSet<u64> =
            self.extents.iter().map(|extent| extent.segment.sequence).collect();
        sequences.len()
    }

    /// The segment has an index, which has the batches from now on.
    pub(crate) fn seal(&mut self, segment: &Arc<Segment>) {
        if let Some(extent) =
            self.extents.iter_mut().rev().find(|extent| Arc::ptr_eq(&extent.segment, segment))
        {
            extent.batches = None;
        }
    }

    /// Bytes of payload, segment by segment.
    pub(crate) fn bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.bytes).sum()
    }

    /// The range that has all positions within the bounds which no extent covers.
    pub(crate) fn hole(&self) -> Option<(u64, u64)> {
        let mut covered = self.bounds.first;
        let mut hole: Option<(u64, u64)> = None;
        let ends = self.extents.iter().map(|extent| (extent.first, extent.end));
        for (first, end) in ends.chain([(self.bounds.end, self.bounds.end)]) {
            if first > covered {
                hole = Some((hole.map_or(covered, |(from, _)| from), first));
            }
            covered = end;
        }
        hole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the README says it.
    #[test]
    fn an_extent_takes_48_bytes() {
        assert_eq!(size_of::<Extent>(), 48);
    }
}
