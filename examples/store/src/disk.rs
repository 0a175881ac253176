//! Measures the disk: a [`LogStore`] that wraps another one and times its writes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use metrics::Histogram;
use parking_lot::Mutex;
use voussoir_raft::Restored;
use voussoir_raft::{
    Completion, Entry, LogStore, LogWrite, ReadFailed, Room, SnapshotName, SnapshotReader,
    SnapshotWriter, StoreError,
};

/// A write that takes longer than this is logged.
const SLOW: Duration = Duration::from_millis(500);

/// Measures each write from submission to durable, and keeps the first failure.
pub struct WatchedStore {
    store: Arc<dyn LogStore>,
    watch: Arc<DiskWatch>,
}

/// Writes in flight, and the first failure.
pub struct DiskWatch {
    /// The folder, for messages.
    path: String,
    seconds: Histogram,
    writes: Mutex<Writes>,
}

#[derive(Default)]
struct Writes {
    next: u64,
    /// Submission time of each write in flight, by number.
    in_flight: BTreeMap<u64, Instant>,
    failed: Option<String>,
}

impl WatchedStore {
    /// Watches `store`, which keeps its data in `path`.
    pub fn new(store: Arc<dyn LogStore>, path: String) -> Self {
        let seconds = metrics::histogram!("store_disk_write_seconds");
        let watch = Arc::new(DiskWatch { path, seconds, writes: Mutex::default() });
        Self { store, watch }
    }

    /// A handle to the measurements.
    pub fn watch(&self) -> Arc<DiskWatch> {
        self.watch.clone()
    }
}

impl DiskWatch {
    /// Age of the oldest write in flight; zero without one.
    pub fn waiting(&self) -> Duration {
        let writes = self.writes.lock();
        writes.in_flight.first_key_value().map_or(Duration::ZERO, |(_, since)| since.elapsed())
    }

    /// The first failed write: folder and cause.
    pub fn failed(&self) -> Option<String> {
        self.writes.lock().failed.clone()
    }

    fn write_started(&self) -> u64 {
        let mut writes = self.writes.lock();
        let number = writes.next;
        writes.next += 1;
        writes.in_flight.insert(number, Instant::now());
        number
    }

    fn write_ended(&self, number: u64, result: &Result<(), StoreError>) {
        let mut first_failure = None;
        let took = {
            let mut writes = self.writes.lock();
            let since = writes.in_flight.remove(&number);
            if let Err(error) = result
                && writes.failed.is_none()
            {
                let failure = format!("{}: {}", self.path, crate::log::chain(error));
                writes.failed = Some(failure.clone());
                first_failure = Some(failure);
            }
            since.map_or(Duration::ZERO, |since| since.elapsed())
        };
        self.seconds.record(took.as_secs_f64());
        if let Some(failure) = first_failure {
            tracing::error!(%failure, "a write to the disk failed");
        } else if took >= SLOW {
            let took_ms = took.as_millis() as u64;
            tracing::warn!(path = %self.path, took_ms, "the disk is slow: a write took long");
        }
    }
}

#[async_trait]
impl LogStore for WatchedStore {
    fn max_entry_bytes(&self) -> usize {
        self.store.max_entry_bytes()
    }

    fn room(&self) -> Option<Room> {
        self.store.room()
    }

    async fn restore(&self) -> Result<Restored, StoreError> {
        self.store.restore().await
    }

    fn write(&self, write: LogWrite, done: Completion) {
        let (watch, number) = (self.watch.clone(), self.watch.write_started());
        let watched = Completion::new(move |result| {
            watch.write_ended(number, &result);
            done.complete(result);
        });
        self.store.write(write, watched);
    }

    async fn read(&self, range: Range<u64>, max_bytes: u64) -> Result<Vec<Entry>, ReadFailed> {
        self.store.read(range, max_bytes).await
    }

    async fn stage(&self, name: &SnapshotName) -> Result<Box<dyn SnapshotWriter>, StoreError> {
        self.store.stage(name).await
    }

    fn unstage(&self, identity: u64) {
        self.store.unstage(identity);
    }

    async fn open_snapshot(&self) -> Result<Option<Box<dyn SnapshotReader>>, StoreError> {
        self.store.open_snapshot().await
    }
}

#[cfg(test)]
mod tests {
    use voussoir_raft::memory::MemoryStore;

    use super::*;

    /// A store that keeps its completions until it is told what to answer.
    struct Slow {
        store: MemoryStore,
        held: Mutex<Vec<Completion>>,
    }

    #[async_trait]
    impl LogStore for Slow {
        async fn restore(&self) -> Result<Restored, StoreError> {
            self.store.restore().await
        }
        fn write(&self, _write: LogWrite, done: Completion) {
            self.held.lock().push(done);
        }
        async fn read(&self, range: Range<u64>, bytes: u64) -> Result<Vec<Entry>, ReadFailed> {
            self.store.read(range, bytes).await
        }
        async fn stage(&self, name: &SnapshotName) -> Result<Box<dyn SnapshotWriter>, StoreError> {
            self.store.stage(name).await
        }
        fn unstage(&self, identity: u64) {
            self.store.unstage(identity);
        }
        async fn open_snapshot(&self) -> Result<Option<Box<dyn SnapshotReader>>, StoreError> {
            self.store.open_snapshot().await
        }
    }

    #[test]
    fn the_oldest_write_in_flight_and_the_first_failure_are_known() {
        let slow = Arc::new(Slow { store: MemoryStore::new(), held: Mutex::default() });
        let watched = WatchedStore::new(slow.clone(), "data/1".to_owned());
        let watch = watched.watch();
        let told = Arc::new(Mutex::new(Vec::new()));
        let write = || {
            let told = told.clone();
            let done = Completion::new(move |result| told.lock().push(result.is_ok()));
            watched.write(LogWrite::default(), done);
        };
        assert_eq!(watch.waiting(), Duration::ZERO);
        write();
        write();
        std::thread::sleep(Duration::from_millis(2));
        let waited = watch.waiting();
        assert!(waited >= Duration::from_millis(2));
        // The second completes first; the first goes on waiting.
        let second = slow.held.lock().pop().unwrap();
        second.complete(Ok(()));
        assert!(watch.waiting() >= waited && watch.failed().is_none());
        // A store that drops a write without a word has failed it.
        drop(slow.held.lock().pop());
        assert_eq!(watch.waiting(), Duration::ZERO);
        assert!(watch.failed().unwrap().starts_with("data/1: "));
        assert_eq!(*told.lock(), [true, false]);
    }
}
