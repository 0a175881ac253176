//! Callers that wait: a queue for each key.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::error::WaitError;

pub(super) struct Waiters {
    /// Of all keys. Changed under the lock of `queues`.
    count: AtomicUsize,
    max: usize,
    queues: Mutex<HashMap<u64, Queue>>,
}

struct Queue {
    line: Arc<Line>,
    /// Callers with a place in the queue. Invariant: at least 1.
    waiting: usize,
}

/// Shared state of the callers that wait for one key.
#[derive(Default)]
pub(super) struct Line {
    /// Held by the first waiter of the key. tokio's mutex is handed on in order.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// Told of refunds and of changes of the quotas, so that the first in line decides again.
    pub(super) changed: Notify,
}

/// A place in the queue of a key, left when dropped.
pub(super) struct Waiter<'a> {
    waiters: &'a Waiters,
    hash: u64,
    pub(super) line: Arc<Line>,
}

impl Waiters {
    pub(super) fn new(max: usize) -> Self {
        Self { count: AtomicUsize::new(0), max, queues: Mutex::default() }
    }

    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether anybody waits for the key.
    pub(super) fn any(&self, hash: u64) -> bool {
        self.count() > 0 && self.queues.lock().contains_key(&hash)
    }

    pub(super) fn enter(&self, hash: u64) -> Result<Waiter<'_>, WaitError> {
        let mut queues = self.queues.lock();
        if self.count() >= self.max {
            return Err(WaitError::QueueFull);
        }
        self.count.fetch_add(1, Ordering::AcqRel);
        let queue =
            queues.entry(hash).or_insert_with(|| Queue { line: Arc::default(), waiting: 0 });
        queue.waiting += 1;
        Ok(Waiter { waiters: self, hash, line: Arc::clone(&queue.line) })
    }

    /// Lets the first in the line of a key decide again. Called after its quota has changed.
    pub(super) fn wake(&self, hash: u64) {
        if self.nobody() {
            return;
        }
        let line = self.queues.lock().get(&hash).map(|queue| Arc::clone(&queue.line));
        // Notify after releasing the lock: a waker is foreign code, and may drop a `Waiter`.
        if let Some(line) = line {
            line.changed.notify_waiters();
        }
    }

    /// Lets the first in each line decide again. Called after the quotas have changed.
    pub(super) fn wake_all(&self) {
        if self.nobody() {
            return;
        }
        let lines: Vec<Arc<Line>> =
            self.queues.lock().values().map(|queue| Arc::clone(&queue.line)).collect();
        for line in lines {
            line.changed.notify_waiters();
        }
    }

    /// Whether nobody waits. An exchange, which sees the newest count where a load may see an old
    /// one: a caller that entered the queue before is seen, and one that enters later sees what
    /// the calling thread has changed.
    fn nobody(&self) -> bool {
        self.count.fetch_add(0, Ordering::AcqRel) == 0
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut queues = self.waiters.queues.lock();
        self.waiters.count.fetch_sub(1, Ordering::AcqRel);
        if let Some(queue) = queues.get_mut(&self.hash) {
            queue.waiting -= 1;
            if queue.waiting == 0 {
                queues.remove(&self.hash);
            }
        }
    }
}
