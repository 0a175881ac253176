//! A log store in memory.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::core::Restored;
use crate::store::{
    Completion, LogStore, LogWrite, MAX_CHUNK_BYTES, ReadFailed, SnapshotName, SnapshotReader,
    SnapshotWriter, StoreError,
};
use crate::types::{Entry, HardState};

/// Keeps everything in memory. Writes complete before [`write`](LogStore::write) returns.
///
/// Clones share what they hold: hand a clone to a node, and its restart finds what it wrote.
/// Nothing survives the process, so a cluster on it loses acknowledged writes with it.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    disk: Arc<Mutex<Disk>>,
}

#[derive(Debug)]
struct Disk {
    hard_state: HardState,
    voters: Option<Vec<u64>>,
    condemned: bool,
    commit: u64,
    /// A write has failed since the last restore: no other follows it.
    failed: bool,
    first: u64,
    entries: VecDeque<Entry>,
    current: Option<Arc<Snapshot>>,
    /// Staged and finished, by identity.
    staged: HashMap<u64, Arc<Snapshot>>,
}

#[derive(Debug)]
struct Snapshot {
    name: SnapshotName,
    chunks: Vec<Bytes>,
}

impl Default for Disk {
    fn default() -> Self {
        Self {
            hard_state: HardState::default(),
            voters: None,
            condemned: false,
            commit: 0,
            failed: false,
            first: 1,
            entries: VecDeque::new(),
            current: None,
            staged: HashMap::new(),
        }
    }
}

impl MemoryStore {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Disk {
    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn write(&mut self, write: LogWrite) -> Result<(), StoreError> {
        if let Some(name) = write.snapshot {
            let staged = self.staged.remove(&name.identity).ok_or(StoreError::NotStaged)?;
            let current = self.current.as_ref().map_or(0, |it| it.name.meta.index);
            if name.meta.index > current {
                self.current = Some(staged);
            }
        }
        if let Some(from) = write.truncate_from {
            let keep = from.saturating_sub(self.first) as usize;
            self.entries.truncate(keep);
        }
        if let Some(upto) = write.release {
            let gone = upto.saturating_sub(self.first) as usize;
            self.entries.drain(..gone.min(self.entries.len()));
            self.first = self.first.max(upto);
        }
        for entry in write.entries {
            if entry.index != self.end() {
                return Err(StoreError::Damaged(format!(
                    "entry {} was appended at {}",
                    entry.index,
                    self.end()
                )));
            }
            self.entries.push_back(entry);
        }
        if let Some(hard_state) = write.hard_state {
            self.hard_state = hard_state;
        }
        self.voters = write.voters.or(self.voters.take());
        self.condemned |= write.condemned;
        self.commit = write.commit.unwrap_or(self.commit);
        Ok(())
    }

    fn read(&self, range: Range<u64>, max_bytes: u64) -> Result<Vec<Entry>, ReadFailed> {
        if range.start < self.first {
            return Err(ReadFailed::Released);
        }
        let skip = (range.start - self.first) as usize;
        let wanted = range.end.saturating_sub(range.start) as usize;
        let mut weight = 0;
        let fits = |entry: &&Entry| {
            let first = weight == 0;
            weight += entry.weight();
            first || weight <= max_bytes
        };
        let read: Vec<Entry> =
            self.entries.iter().skip(skip).take(wanted).take_while(fits).cloned().collect();
        if read.is_empty() { Err(ReadFailed::Absent) } else { Ok(read) }
    }
}

#[async_trait]
impl LogStore for MemoryStore {
    async fn restore(&self) -> Result<Restored, StoreError> {
        let mut disk = self.disk.lock();
        disk.staged.clear();
        disk.failed = false;
        if disk.condemned {
            return Ok(Restored::damaged());
        }
        let meta = disk.current.as_ref().map(|it| it.name.meta.clone());
        let mut restored = Restored::new(disk.hard_state, meta, disk.first);
        restored.set_commit(disk.commit);
        if let Some(voters) = disk.voters.clone() {
            restored.set_voters(voters);
        }
        for entry in &disk.entries {
            if restored.push(entry.clone()).is_err() {
                return Ok(Restored::damaged());
            }
        }
        Ok(restored)
    }

    fn write(&self, write: LogWrite, done: Completion) {
        let result = {
            let mut disk = self.disk.lock();
            let result = if disk.failed { Err(StoreError::Abandoned) } else { disk.write(write) };
            disk.failed = result.is_err();
            result
        };
        done.complete(result);
    }

    async fn read(&self, range: Range<u64>, max_bytes: u64) -> Result<Vec<Entry>, ReadFailed> {
        self.disk.lock().read(range, max_bytes)
    }

    async fn stage(&self, name: &SnapshotName) -> Result<Box<dyn SnapshotWriter>, StoreError> {
        let snapshot = Snapshot { name: name.clone(), chunks: Vec::new() };
        Ok(Box::new(Writer { disk: Arc::clone(&self.disk), snapshot }))
    }

    fn unstage(&self, identity: u64) {
        self.disk.lock().staged.remove(&identity);
    }

    async fn open_snapshot(&self) -> Result<Option<Box<dyn SnapshotReader>>, StoreError> {
        let current = self.disk.lock().current.clone();
        Ok(current.map(|snapshot| Box::new(Reader { snapshot }) as Box<dyn SnapshotReader>))
    }
}

struct Writer {
    disk: Arc<Mutex<Disk>>,
    snapshot: Snapshot,
}

#[async_trait]
impl SnapshotWriter for Writer {
    async fn append(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        if chunk.is_empty() || chunk.len() > MAX_CHUNK_BYTES {
            return Err(StoreError::ChunkSize { bytes: chunk.len() });
        }
        self.snapshot.chunks.push(chunk);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<(), StoreError> {
        let Self { disk, snapshot } = *self;
        disk.lock().staged.insert(snapshot.name.identity, Arc::new(snapshot));
        Ok(())
    }
}

struct Reader {
    snapshot: Arc<Snapshot>,
}

#[async_trait]
impl SnapshotReader for Reader {
    fn name(&self) -> &SnapshotName {
        &self.snapshot.name
    }

    fn chunks(&self) -> u64 {
        self.snapshot.chunks.len() as u64
    }

    fn bytes(&self) -> u64 {
        self.snapshot.chunks.iter().map(|chunk| chunk.len() as u64).sum()
    }

    async fn chunk(&self, number: u64) -> Result<Bytes, ReadFailed> {
        let at = usize::try_from(number).map_err(|_| ReadFailed::Absent)?;
        self.snapshot.chunks.get(at).cloned().ok_or(ReadFailed::Absent)
    }
}
