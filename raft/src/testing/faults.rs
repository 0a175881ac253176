//! Stores that misbehave on demand.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::core::Restored;
use crate::store::{
    Completion, LogStore, LogWrite, ReadFailed, Room, SnapshotName, SnapshotReader, SnapshotWriter,
    StoreError,
};
use crate::types::Entry;

/// A store around another one, whose writes and snapshots can be held back or made to fail.
///
/// Clones are the same store.
#[derive(Clone)]
pub struct FaultyStore {
    inner: Arc<dyn LogStore>,
    faults: Arc<Mutex<Faults>>,
    staging: Arc<watch::Sender<Staging>>,
}

/// What happens to snapshots that are being staged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Staging {
    #[default]
    Well,
    Held,
    Full,
}

#[derive(Default)]
struct Faults {
    mode: Mode,
    stalled: Vec<(LogWrite, Completion)>,
    damaged: bool,
    unreadable: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Well,
    Stalled,
    Failing,
}

impl FaultyStore {
    /// A store that does what `inner` does, for now.
    pub fn new(inner: Arc<dyn LogStore>) -> Self {
        Self { inner, faults: Arc::default(), staging: Arc::default() }
    }

    /// From now on writes are accepted and not carried out: the disk hangs.
    pub fn stall(&self) {
        self.faults.lock().mode = Mode::Stalled;
    }

    /// Carries out what was held back, in order, and works again.
    pub fn resume(&self) {
        let stalled = {
            let mut faults = self.faults.lock();
            faults.mode = Mode::Well;
            std::mem::take(&mut faults.stalled)
        };
        for (write, done) in stalled {
            self.inner.write(write, done);
        }
    }

    /// Carries out the first `count` of the writes that are held back, and no more.
    pub fn carry_out(&self, count: usize) {
        let now: Vec<_> = {
            let mut faults = self.faults.lock();
            let count = count.min(faults.stalled.len());
            faults.stalled.drain(..count).collect()
        };
        for (write, done) in now {
            self.inner.write(write, done);
        }
    }

    /// From now on no snapshot becomes durable: staging one does not come to its end.
    pub fn hold_snapshots(&self) {
        self.staging.send_replace(Staging::Held);
    }

    /// From now on there is no room for chunks of snapshots.
    pub fn fill(&self) {
        self.staging.send_replace(Staging::Full);
    }

    /// Snapshots can be staged again; those held back go on.
    pub fn free(&self) {
        self.staging.send_replace(Staging::Well);
    }

    /// From now on writes fail, those held back included.
    pub fn fail(&self) {
        let stalled = {
            let mut faults = self.faults.lock();
            faults.mode = Mode::Failing;
            std::mem::take(&mut faults.stalled)
        };
        for (_, done) in stalled {
            done.complete(Err(failure()));
        }
    }

    /// Throws away what was held back, as a crash does, and works again.
    pub fn crash(&self) {
        let mut faults = self.faults.lock();
        faults.mode = Mode::Well;
        faults.stalled.clear();
        self.free();
    }

    /// From now on the store says that it is damaged.
    pub fn damage(&self) {
        self.faults.lock().damaged = true;
    }

    /// From now on entries cannot be read back.
    pub fn make_unreadable(&self) {
        self.faults.lock().unreadable = true;
    }

    /// Writes that are held back.
    pub fn stalled(&self) -> usize {
        self.faults.lock().stalled.len()
    }
}

impl std::fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FaultyStore")
            .field("mode", &self.faults.lock().mode)
            .finish_non_exhaustive()
    }
}

fn failure() -> StoreError {
    StoreError::Failed(Arc::new(std::io::Error::other("injected")))
}

#[async_trait]
impl LogStore for FaultyStore {
    fn max_entry_bytes(&self) -> usize {
        self.inner.max_entry_bytes()
    }

    fn room(&self) -> Option<Room> {
        self.inner.room()
    }

    async fn restore(&self) -> Result<Restored, StoreError> {
        if self.faults.lock().damaged {
            return Ok(Restored::damaged());
        }
        self.inner.restore().await
    }

    fn write(&self, write: LogWrite, done: Completion) {
        let mut faults = self.faults.lock();
        match faults.mode {
            Mode::Stalled => faults.stalled.push((write, done)),
            Mode::Well => {
                drop(faults);
                self.inner.write(write, done);
            }
            Mode::Failing => {
                drop(faults);
                done.complete(Err(failure()));
            }
        }
    }

    async fn read(&self, range: Range<u64>, max_bytes: u64) -> Result<Vec<Entry>, ReadFailed> {
        if self.faults.lock().unreadable {
            return Err(ReadFailed::Failed(Arc::new(std::io::Error::other("injected"))));
        }
        self.inner.read(range, max_bytes).await
    }

    async fn stage(&self, name: &SnapshotName) -> Result<Box<dyn SnapshotWriter>, StoreError> {
        room(&self.staging)?;
        let inner = self.inner.stage(name).await?;
        Ok(Box::new(FaultyWriter { inner, staging: Arc::clone(&self.staging) }))
    }

    fn unstage(&self, identity: u64) {
        self.inner.unstage(identity);
    }

    async fn open_snapshot(&self) -> Result<Option<Box<dyn SnapshotReader>>, StoreError> {
        self.inner.open_snapshot().await
    }
}

fn room(staging: &watch::Sender<Staging>) -> Result<(), StoreError> {
    if *staging.borrow() == Staging::Full {
        return Err(StoreError::Rejected(Arc::new(std::io::Error::other("no room"))));
    }
    Ok(())
}

struct FaultyWriter {
    inner: Box<dyn SnapshotWriter>,
    staging: Arc<watch::Sender<Staging>>,
}

#[async_trait]
impl SnapshotWriter for FaultyWriter {
    async fn append(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        room(&self.staging)?;
        self.inner.append(chunk).await
    }

    async fn finish(self: Box<Self>) -> Result<(), StoreError> {
        let Self { inner, staging } = *self;
        // The sender is here: waiting cannot fail.
        let _ = staging.subscribe().wait_for(|staging| *staging != Staging::Held).await;
        room(&staging)?;
        inner.finish().await
    }
}
