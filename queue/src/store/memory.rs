//! A partition in memory: for tests, and for what may be lost with the process.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Done, Extent, PartitionStore, Write};
use crate::error::StoreError;

/// Keeps the batches of a partition in memory, up to a number of bytes.
///
/// Clones share the batches: opening another partition over a clone is what a restart is to a
/// store on a disk.
#[derive(Clone)]
pub struct MemoryPartition {
    shared: Arc<Mutex<Shared>>,
    max_bytes: usize,
}

#[derive(Default)]
struct Shared {
    first: u64,
    batches: VecDeque<Bytes>,
    snapshot: Option<Bytes>,
    bytes: usize,
}

impl MemoryPartition {
    /// An empty store of at most `max_bytes` of batches; then writes get [`StoreError::Full`].
    pub fn new(max_bytes: usize) -> Self {
        Self { shared: Arc::default(), max_bytes }
    }

    fn write(&self, write: Write) -> Result<(), StoreError> {
        let mut shared = self.shared.lock();
        let added: usize = write.batches.iter().map(Bytes::len).sum();
        if added > 0 && shared.bytes + added > self.max_bytes {
            let why = format!("{} of {} bytes are in use", shared.bytes, self.max_bytes);
            return Err(StoreError::Full { why });
        }
        shared.bytes += added;
        shared.batches.extend(write.batches);
        if let Some(upto) = write.release {
            // Ends: each round lets go of a batch.
            while shared.first < upto {
                let Some(batch) = shared.batches.pop_front() else { break };
                shared.bytes -= batch.len();
                shared.first += 1;
            }
        }
        if write.snapshot.is_some() {
            shared.snapshot = write.snapshot;
        }
        Ok(())
    }
}

impl PartitionStore for MemoryPartition {
    fn bounds(&self) -> Range<u64> {
        let shared = self.shared.lock();
        shared.first..shared.first + shared.batches.len() as u64
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<Bytes>, StoreError> {
        let shared = self.shared.lock();
        let first = shared.first;
        let skipped = range.start.checked_sub(first).ok_or(StoreError::Released { first })?;
        let wanted = range.end.saturating_sub(range.start) as usize;
        let mut bytes = 0;
        let has_room = |batch: &&Bytes| {
            let is_first = bytes == 0;
            bytes += batch.len();
            is_first || bytes <= max_bytes
        };
        let batches = shared.batches.iter().skip(skipped as usize).take(wanted);
        Ok(batches.take_while(has_room).cloned().collect())
    }

    fn snapshot(&self) -> Result<Option<Bytes>, StoreError> {
        Ok(self.shared.lock().snapshot.clone())
    }

    fn extents(&self) -> Vec<Extent> {
        // One extent for each batch: each may be released by itself.
        let shared = self.shared.lock();
        let batches = (shared.first..).zip(&shared.batches);
        let extent = |(at, batch): (u64, &Bytes)| Extent {
            first: at,
            end: at + 1,
            bytes: batch.len() as u64,
        };
        batches.map(extent).collect()
    }

    fn stored_bytes(&self) -> u64 {
        self.shared.lock().bytes as u64
    }

    fn max_write_bytes(&self) -> usize {
        16 << 20
    }

    fn submit(&self, write: Write, done: Done) {
        let result = self.write(write);
        done.complete(result);
    }
}

impl fmt::Debug for MemoryPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryPartition").field("bounds", &self.bounds()).finish_non_exhaustive()
    }
}
