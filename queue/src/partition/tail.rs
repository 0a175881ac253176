//! The latest batches, for readers at the end of the log.

use std::collections::VecDeque;

use crate::format::Batch;

/// Batches at the positions up to the end of the log, at most `max_bytes` of them.
#[derive(Debug)]
pub(super) struct Tail {
    /// Position of the first of `batches`.
    first: u64,
    batches: VecDeque<Batch>,
    /// Sum of their sizes.
    bytes: usize,
    max_bytes: usize,
}

impl Tail {
    pub(super) fn new(max_bytes: usize, first: u64) -> Self {
        Self { first, batches: VecDeque::new(), bytes: 0, max_bytes }
    }

    /// Adds the batch at the end.
    pub(super) fn push(&mut self, batch: Batch) {
        self.bytes += batch.bytes().len();
        self.batches.push_back(batch);
        // Ends: each round takes one off.
        while self.bytes > self.max_bytes {
            self.pop();
        }
    }

    /// Forgets batches before `position`.
    pub(super) fn release(&mut self, position: u64) {
        // Ends: each round takes one off.
        while self.first < position && !self.batches.is_empty() {
            self.pop();
        }
        self.first = self.first.max(position);
    }

    fn pop(&mut self) {
        if let Some(batch) = self.batches.pop_front() {
            self.bytes -= batch.bytes().len();
            self.first += 1;
        }
    }

    /// The batches from the one that holds `offset` on, about `max_bytes` and at least one. `None`
    /// when that one is not here.
    pub(super) fn read(&self, offset: u64, max_bytes: usize) -> Option<Vec<Batch>> {
        if self.batches.front()?.base_offset() > offset {
            return None;
        }
        let at = self.batches.partition_point(|batch| batch.base_offset() <= offset) - 1;
        let mut bytes = 0;
        let has_room = |batch: &&Batch| {
            let is_first = bytes == 0;
            bytes += batch.bytes().len();
            is_first || bytes <= max_bytes
        };
        Some(self.batches.range(at..).take_while(has_room).cloned().collect())
    }
}
