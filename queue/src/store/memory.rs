//! A partition in memory: for tests, and for what may be lost with the process.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Done, Extent, PartitionLog, PartitionStore, Replace, Write};
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
    log: Arc<MemoryLog>,
    snapshot: Option<Bytes>,
    copy: Vec<Bytes>,
}

/// A generation. A replaced one stays as it was when its successor began.
#[derive(Default)]
struct MemoryLog {
    generation: u64,
    batches: Mutex<Batches>,
}

#[derive(Default)]
struct Batches {
    /// Position of the first of `dense`.
    first: u64,
    dense: VecDeque<Bytes>,
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
        self.check_room(&shared, added)?;
        if let Some(replace) = write.replace {
            shared.replace(replace)?;
        }
        let mut log = shared.log.batches.lock();
        let end = log.first + log.dense.len() as u64;
        if write.position.is_some_and(|position| position != end) {
            return Err(StoreError::Busy { why: format!("the log ends at {end} by now") });
        }
        log.bytes += added;
        log.dense.extend(write.batches);
        if let Some(upto) = write.release {
            log.release(upto);
        }
        drop(log);
        if write.snapshot.is_some() {
            shared.snapshot = write.snapshot;
        }
        Ok(())
    }

    fn check_room(&self, shared: &Shared, added: usize) -> Result<(), StoreError> {
        let copied: usize = shared.copy.iter().map(Bytes::len).sum();
        let used = shared.log.batches.lock().bytes + copied;
        if added > 0 && used + added > self.max_bytes {
            let why = format!("{used} of {} bytes are in use", self.max_bytes);
            return Err(StoreError::Full { why });
        }
        Ok(())
    }
}

impl Shared {
    fn replace(&mut self, Replace { end, batches }: Replace) -> Result<(), StoreError> {
        let old = self.log.batches.lock();
        let kept = end.checked_sub(old.first).filter(|before| *before <= old.dense.len() as u64);
        let fits = kept.is_some_and(|before| batches <= before);
        if !fits || batches != self.copy.len() as u64 {
            let why = format!("{batches} batches do not replace those before position {end}");
            return Err(StoreError::Rejected { why });
        }
        let kept = old.dense.iter().skip((end - old.first) as usize).cloned();
        let dense: VecDeque<Bytes> = self.copy.drain(..).chain(kept).collect();
        drop(old);
        let bytes = dense.iter().map(Bytes::len).sum();
        let held = Batches { first: end - batches, dense, bytes };
        let generation = self.log.generation + 1;
        self.log = Arc::new(MemoryLog { generation, batches: Mutex::new(held) });
        Ok(())
    }
}

impl Batches {
    fn release(&mut self, upto: u64) {
        // Ends: each round lets go of a batch.
        while self.first < upto {
            let Some(batch) = self.dense.pop_front() else { break };
            self.bytes -= batch.len();
            self.first += 1;
        }
    }
}

impl PartitionLog for MemoryLog {
    fn generation(&self) -> u64 {
        self.generation
    }

    fn bounds(&self) -> Range<u64> {
        let log = self.batches.lock();
        log.first..log.first + log.dense.len() as u64
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<Bytes>, StoreError> {
        let log = self.batches.lock();
        let first = log.first;
        let skipped = range.start.checked_sub(first).ok_or(StoreError::Released { first })?;
        let wanted = range.end.saturating_sub(range.start) as usize;
        let mut bytes = 0;
        let has_room = |batch: &&Bytes| {
            let is_first = bytes == 0;
            bytes += batch.len();
            is_first || bytes <= max_bytes
        };
        let batches = log.dense.iter().skip(skipped as usize).take(wanted);
        Ok(batches.take_while(has_room).cloned().collect())
    }

    fn extents(&self) -> Vec<Extent> {
        // One extent for each batch: each may be released by itself.
        let log = self.batches.lock();
        let batches = (log.first..).zip(&log.dense);
        let extent = |(at, batch): (u64, &Bytes)| Extent {
            first: at,
            end: at + 1,
            bytes: batch.len() as u64,
        };
        batches.map(extent).collect()
    }

    fn stored_bytes(&self) -> u64 {
        self.batches.lock().bytes as u64
    }
}

impl PartitionStore for MemoryPartition {
    fn log(&self) -> Arc<dyn PartitionLog> {
        Arc::clone(&self.shared.lock().log) as Arc<dyn PartitionLog>
    }

    fn snapshot(&self) -> Result<Option<Bytes>, StoreError> {
        Ok(self.shared.lock().snapshot.clone())
    }

    fn max_write_bytes(&self) -> usize {
        16 << 20
    }

    fn submit(&self, write: Write, done: Done) {
        let result = self.write(write);
        done.complete(result);
    }

    fn discard_copy(&self, done: Done) {
        self.shared.lock().copy.clear();
        done.complete(Ok(()));
    }

    fn append_copy(&self, batches: Vec<Bytes>, done: Done) {
        let mut shared = self.shared.lock();
        let room = self.check_room(&shared, batches.iter().map(Bytes::len).sum());
        if room.is_ok() {
            shared.copy.extend(batches);
        }
        drop(shared);
        done.complete(room);
    }
}

impl fmt::Debug for MemoryPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bounds = self.shared.lock().log.bounds();
        f.debug_struct("MemoryPartition").field("bounds", &bounds).finish_non_exhaustive()
    }
}

impl fmt::Debug for MemoryLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (generation, bounds) = (self.generation, self.bounds());
        let mut debug = f.debug_struct("MemoryLog");
        debug.field("generation", &generation).field("bounds", &bounds).finish_non_exhaustive()
    }
}
