//! A disk in memory that knows what has been synced.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;
use voussoir_sim::{Crash, DiskFault, Rng};

use super::disk::{Disk, Done, Job, OpenError, Opened, Ruin, StoreError, StoreFile};
use crate::core::{FetchError, Restored};
use crate::types::{Entry, HardState, SnapshotMeta};

/// What is on the platters.
#[derive(Clone, Debug, Default)]
struct Image {
    hard: HardState,
    /// The index before the first entry.
    base: u64,
    entries: VecDeque<Entry>,
    snapshot: Option<(SnapshotMeta, Bytes)>,
}

impl Image {
    fn end(&self) -> u64 {
        self.base + 1 + self.entries.len() as u64
    }

    fn truncate(&mut self, from: u64) {
        self.entries.truncate(from.saturating_sub(self.base + 1) as usize);
    }

    fn release(&mut self, first: u64) {
        while self.base + 1 < first {
            self.entries.pop_front();
            self.base += 1;
        }
    }

    fn apply(&mut self, job: Job) {
        match job {
            Job::Snapshot { meta, data } => self.snapshot = Some((meta, data)),
            Job::Persist { persist, entries, snapshot } => {
                if let (Some(meta), Some(data)) = (persist.snapshot, snapshot) {
                    self.snapshot = Some((meta, data));
                }
                if let Some(from) = persist.truncate_from {
                    self.truncate(from);
                }
                if let Some(first) = persist.release {
                    self.release(first);
                }
                // A log that was not told to truncate keeps the old entry at an index.
                let end = self.end();
                self.entries.extend(entries.into_iter().filter(|entry| entry.index >= end));
                if let Some(hard) = persist.hard_state {
                    self.hard = hard;
                }
            }
        }
    }
}

#[derive(Debug, Default)]
struct Platters {
    image: Image,
    failing: bool,
    used: bool,
    ruin: Option<Ruin>,
}

/// A disk in memory: atomic writes, nothing durable before it was worked on.
#[derive(Debug, Default)]
pub struct MemoryDisk {
    platters: Rc<RefCell<Platters>>,
}

/// The store over a [`MemoryDisk`].
#[derive(Debug)]
pub struct MemoryStore {
    platters: Rc<RefCell<Platters>>,
    pending: VecDeque<Job>,
    /// Everything handed in, durable or not.
    seen: Image,
}

impl Disk for MemoryDisk {
    type Store = MemoryStore;

    fn open(&mut self, _: u64) -> Result<Opened<MemoryStore>, OpenError> {
        let mut platters = self.platters.borrow_mut();
        if platters.failing {
            return Err(OpenError::Failed);
        }
        if platters.ruin == Some(Ruin::Lost) {
            return Err(OpenError::Absent);
        }
        platters.used = true;
        let image = &platters.image;
        let snapshot = image.snapshot.clone();
        let meta = snapshot.as_ref().map(|(meta, _)| meta.clone());
        let mut restored = Restored::new(image.hard, meta, image.base + 1);
        if image.entries.iter().any(|entry| restored.push(entry.clone()).is_err()) {
            restored = Restored::damaged();
        }
        if platters.ruin.is_some() {
            restored = Restored::damaged();
        }
        let store = MemoryStore {
            platters: Rc::clone(&self.platters),
            pending: VecDeque::new(),
            seen: image.clone(),
        };
        Ok(Opened { store, restored, snapshot })
    }

    fn ruin(&self) -> Option<Ruin> {
        self.platters.borrow().ruin
    }

    fn absolve(&mut self) {
        self.platters.borrow_mut().ruin = None;
    }

    fn crash(&mut self, mut store: MemoryStore, kind: Crash, rng: &mut Rng) {
        let all = store.pending.len() as u64;
        let kept = if kind == Crash::Process { all } else { rng.below(all + 1) };
        let mut platters = self.platters.borrow_mut();
        for job in store.pending.drain(..).take(kept as usize) {
            platters.image.apply(job);
        }
    }

    fn fault(&mut self, fault: DiskFault, _: &mut Rng) {
        let mut platters = self.platters.borrow_mut();
        match fault {
            DiskFault::Fail | DiskFault::Full => platters.failing = true,
            DiskFault::Healed => platters.failing = false,
            DiskFault::Rot if platters.used => platters.ruin = Some(Ruin::Rotten),
            DiskFault::Lost if platters.used => platters.ruin = Some(Ruin::Lost),
            _ => {}
        }
    }
}

impl StoreFile for MemoryStore {
    fn submit(&mut self, job: Job) -> Result<(), StoreError> {
        self.seen.apply(job.clone());
        self.pending.push_back(job);
        Ok(())
    }

    fn work(&mut self, _: u64) -> Result<Vec<Done>, StoreError> {
        let mut platters = self.platters.borrow_mut();
        if platters.failing {
            return Err(StoreError);
        }
        let done = self.pending.drain(..).map(|job| {
            let done = match &job {
                Job::Persist { persist, .. } => Done::Persist(persist.id),
                Job::Snapshot { meta, .. } => Done::Snapshot(meta.clone()),
            };
            platters.image.apply(job);
            done
        });
        Ok(done.collect())
    }

    fn read(&self, range: Range<u64>, max_bytes: u64) -> Result<Vec<Entry>, FetchError> {
        if self.platters.borrow().failing {
            return Err(FetchError::Failed);
        }
        let Some(skip) = range.start.checked_sub(self.seen.base + 1) else {
            return Err(FetchError::Released);
        };
        let mut bytes = 0;
        let wanted = (range.end - range.start) as usize;
        let entries: Vec<Entry> = self
            .seen
            .entries
            .iter()
            .skip(skip as usize)
            .take(wanted)
            .take_while(|entry| {
                let first = bytes == 0;
                bytes += entry.weight();
                first || bytes <= max_bytes
            })
            .cloned()
            .collect();
        if entries.is_empty() { Err(FetchError::Failed) } else { Ok(entries) }
    }
}
