//! Appends that wait while a store appends, made together.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::gather::{MAX_PAUSE, PAUSE};
use super::{Record, RecordKind, SagaStore};
use crate::error::StoreError;

/// Records of one append.
const MAX_BATCH_RECORDS: usize = 1_000;
/// Bytes of one append, also of a store that takes more; what one caller appends goes together,
/// however long it is.
const MAX_BATCH_BYTES: usize = 512 << 10;
/// How long a store that has no room is asked again.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long records that are in no hurry wait for an append that they can join.
const JOIN_WITHIN: Duration = Duration::from_millis(10);

/// A store in which each id has one record that stands ([`RecordKind::Whole`]) or none. A task
/// appends: a caller that is dropped takes nothing with it.
pub(crate) struct Batcher<S> {
    shared: Arc<Shared<S>>,
}

struct Shared<S> {
    store: S,
    max_bytes: usize,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// Appended with those that wait, as far as there is room.
    in_no_hurry: VecDeque<Waiting>,
    /// A task appends what waits. Invariant: true while `waiting` is not empty.
    is_appending: bool,
    /// Records that stand, for the store to have them written again.
    standing: HashMap<Arc<str>, Bytes>,
}

struct Waiting {
    records: Vec<Record>,
    done: oneshot::Sender<Result<(), StoreError>>,
}

impl Waiting {
    /// Records, and their bytes in an append.
    fn size(&self) -> (usize, usize) {
        (self.records.len(), self.records.iter().map(Record::len_bytes).sum())
    }
}

fn add(one: (usize, usize), other: (usize, usize)) -> (usize, usize) {
    (one.0 + other.0, one.1 + other.1)
}

impl<S: SagaStore> Batcher<S> {
    pub(crate) fn new(store: S) -> Self {
        let max_bytes = store.max_append_bytes().min(MAX_BATCH_BYTES);
        Self { shared: Arc::new(Shared { store, max_bytes, queue: Mutex::default() }) }
    }

    /// Begins a new epoch. Returns it with the record of each id that has one.
    pub(crate) async fn open(&self) -> Result<(u64, HashMap<Arc<str>, Bytes>), StoreError> {
        let opened = self.shared.store.open().await?;
        let mut last: HashMap<Arc<str>, Bytes> = HashMap::new();
        for record in opened.records {
            match record.kind {
                RecordKind::Forgotten => last.remove(&record.saga),
                _ => last.insert(record.saga, record.events),
            };
        }
        self.shared.queue.lock().standing.clone_from(&last);
        Ok((opened.epoch, last))
    }

    /// Appends records with those that wait, all or none of them. They are in the order of the
    /// calls, and appended also if the future is dropped.
    pub(crate) fn append(
        &self,
        records: Vec<Record>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send + use<S> {
        let (done, answer) = oneshot::channel();
        self.shared.enqueue(|queue| queue.waiting.push_back(Waiting { records, done }));
        async { answered(answer.await) }
    }

    /// As [`append`](Self::append), but without an append of their own while another one comes
    /// within `JOIN_WITHIN`. Not in the order of the calls: nothing else is appended under their
    /// ids. Dropped, they are appended with the next ones that are.
    pub(crate) fn append_with_others(
        &self,
        records: Vec<Record>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send + use<S> {
        let (done, mut answer) = oneshot::channel();
        let shared = Arc::clone(&self.shared);
        shared.queue.lock().in_no_hurry.push_back(Waiting { records, done });
        async move {
            if let Ok(answer) = tokio::time::timeout(JOIN_WITHIN, &mut answer).await {
                return answered(answer);
            }
            shared.enqueue(|queue| queue.waiting.append(&mut queue.in_no_hurry));
            answered(answer.await)
        }
    }

    pub(crate) fn standing(&self) -> usize {
        self.shared.queue.lock().standing.len()
    }
}

fn answered(
    answer: Result<Result<(), StoreError>, oneshot::error::RecvError>,
) -> Result<(), StoreError> {
    answer.unwrap_or_else(|_| Err(StoreError::new("the task that appends ended")))
}

async fn append_waiting<S: SagaStore>(mut appending: Appending<S>) {
    let shared = Arc::clone(&appending.shared);
    // Ends: when nothing waits. Each turn takes at least one.
    while let Some(batch) = shared.take_batch() {
        let records = batch.iter().flat_map(|waiting| waiting.records.iter().cloned());
        let result = shared.append(records.collect()).await;
        if result.is_ok() {
            shared.note(&batch);
        }
        for Waiting { done, .. } in batch {
            // A caller that is gone does not hear it.
            let _ = done.send(result.clone());
        }
        shared.rewrite().await;
    }
    // `take_batch` has cleared `is_appending`: another task may append by now.
    appending.is_finished = true;
}

impl<S: SagaStore> Shared<S> {
    /// Changes the queue, and begins the task that appends unless it runs or nothing waits.
    fn enqueue(self: &Arc<Self>, change: impl FnOnce(&mut Queue)) {
        // Panics outside of a runtime, before anything is changed.
        let runtime = Handle::current();
        let begins = {
            let mut queue = self.queue.lock();
            change(&mut queue);
            !queue.waiting.is_empty() && !std::mem::replace(&mut queue.is_appending, true)
        };
        if begins {
            // Part of the future: also a task that is dropped before it runs is noticed.
            let appending = Appending { shared: Arc::clone(self), is_finished: false };
            runtime.spawn(append_waiting(appending));
        }
    }

    /// What fits into one append; `None` ends the task.
    fn take_batch(&self) -> Option<Vec<Waiting>> {
        let mut queue = self.queue.lock();
        let (mut count, mut bytes) = (0, 0);
        let fits = queue.waiting.iter().take_while(|waiting| {
            (count, bytes) = add((count, bytes), waiting.size());
            bytes <= self.max_bytes && count <= MAX_BATCH_RECORDS
        });
        let taken = fits.count().max(1).min(queue.waiting.len());
        queue.is_appending = taken > 0;
        if taken == 0 {
            return None;
        }
        let mut batch: Vec<Waiting> = queue.waiting.drain(..taken).collect();
        let (mut count, mut bytes) = batch.iter().map(Waiting::size).fold((0, 0), add);
        let fits = queue.in_no_hurry.iter().take_while(|waiting| {
            (count, bytes) = add((count, bytes), waiting.size());
            bytes <= self.max_bytes && count <= MAX_BATCH_RECORDS
        });
        let joining = fits.count();
        batch.extend(queue.in_no_hurry.drain(..joining));
        Some(batch)
    }

    /// Appends records, and asks again for a while if the store has no room. An error that is
    /// retryable says that nothing of them is in the store.
    async fn append(&self, records: Vec<Record>) -> Result<(), StoreError> {
        let (since, mut pause) = (Instant::now(), PAUSE);
        // Ends: after `PATIENCE`.
        loop {
            let result = self.store.append(records.clone()).await;
            match &result {
                Err(error) if error.is_retryable() && since.elapsed() < PATIENCE => {}
                _ => return result,
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(MAX_PAUSE);
        }
    }

    fn note(&self, batch: &[Waiting]) {
        let mut queue = self.queue.lock();
        for record in batch.iter().flat_map(|waiting| &waiting.records) {
            match record.kind {
                RecordKind::Forgotten => queue.standing.remove(&record.saga),
                _ => queue.standing.insert(Arc::clone(&record.saga), record.events.clone()),
            };
        }
    }

    /// Writes one old record again if it keeps the store from giving space back. In the task that
    /// appends: so the record is not forgotten meanwhile.
    async fn rewrite(&self) {
        let Some(key) = self.store.to_rewrite() else { return };
        let Some(events) = self.queue.lock().standing.get(&key).cloned() else { return };
        let record = Record { saga: key, kind: RecordKind::Whole, events };
        if let Err(error) = self.store.append(vec![record]).await {
            // The record stands where it was.
            tracing::debug!(target: "voussoir::txn", %error, "a record was not written again");
        }
    }
}

/// The task that appends. It ends early when the store panics or the runtime ends: then what still
/// waits fails, and the next append begins a task.
struct Appending<S> {
    shared: Arc<Shared<S>>,
    is_finished: bool,
}

impl<S> Drop for Appending<S> {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        let failed = {
            let mut queue = self.shared.queue.lock();
            queue.is_appending = false;
            std::mem::take(&mut queue.waiting)
        };
        // After the lock is released: it wakes the callers.
        drop(failed);
    }
}
