//! A sparse index: from offsets and timestamps to positions.

/// One entry: what a position of the store holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Position of a batch in the store.
    pub(crate) position: u64,
    /// Its base offset.
    pub(crate) offset: u64,
    /// Largest timestamp of the batches before it.
    pub(crate) timestamp_before: i64,
}

/// At most `max` entries, one for each `stride` batches. It only narrows a search: what is found
/// is read from the batches themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Index {
    /// Invariant: positions and offsets rise strictly; timestamps do not fall.
    pub(crate) entries: Vec<Entry>,
    /// Batches between two entries; doubles when there are too many entries.
    pub(crate) stride: u64,
}

impl Index {
    pub(crate) fn new() -> Self {
        Self { entries: Vec::new(), stride: 1 }
    }

    pub(crate) fn add(&mut self, entry: Entry, max: usize) {
        let next = self.entries.last().map_or(0, |last| last.position + self.stride);
        if entry.position < next {
            return;
        }
        self.entries.push(entry);
        self.fit(max);
    }

    /// Forgets every second entry until there are at most `max`.
    pub(crate) fn fit(&mut self, max: usize) {
        // Ends: a round leaves half of the entries, and `max` is at least 2.
        while self.entries.len() > max {
            let mut at = 0;
            self.entries.retain(|_| {
                at += 1;
                at % 2 == 1
            });
            self.stride = self.stride.saturating_mul(2);
        }
    }

    /// Forgets entries of batches that have been released.
    pub(crate) fn release(&mut self, first_position: u64) {
        let gone = self.entries.partition_point(|entry| entry.position < first_position);
        self.entries.drain(..gone);
    }

    /// The entries around the batch that holds `offset`: the last one at or before it, and the
    /// first one after it.
    pub(crate) fn around(&self, offset: u64) -> (Option<Entry>, Option<Entry>) {
        let after = self.entries.partition_point(|entry| entry.offset <= offset);
        let before = after.checked_sub(1).map(|at| self.entries[at]);
        (before, self.entries.get(after).copied())
    }

    /// The last entry before which all batches are older than `timestamp`.
    pub(crate) fn before_timestamp(&self, timestamp: i64) -> Option<Entry> {
        let after = self.entries.partition_point(|entry| entry.timestamp_before < timestamp);
        after.checked_sub(1).map(|at| self.entries[at])
    }
}
