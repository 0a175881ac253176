//! Those who wait, a queue for each key.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::error::WaitError;

pub(super) struct Waiters {
    /// Of all keys.
    count: AtomicUsize,
    max: usize,
    queues: Mutex<HashMap<u64, Queue>>,
}

/// Whoever holds the turn is the first of its key. tokio's mutex is handed on in order.
#[derive(Default)]
struct Queue {
    turn: Arc<tokio::sync::Mutex<()>>,
    waiting: usize,
}

/// A place in the queue of a key, left when dropped.
pub(super) struct Waiter<'a> {
    waiters: &'a Waiters,
    hash: u64,
    pub(super) turn: Arc<tokio::sync::Mutex<()>>,
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
        self.count.fetch_add(1, Ordering::Relaxed);
        let queue = queues.entry(hash).or_default();
        queue.waiting += 1;
        Ok(Waiter { waiters: self, hash, turn: Arc::clone(&queue.turn) })
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut queues = self.waiters.queues.lock();
        self.waiters.count.fetch_sub(1, Ordering::Relaxed);
        if let Some(queue) = queues.get_mut(&self.hash) {
            queue.waiting -= 1;
            if queue.waiting == 0 {
                queues.remove(&self.hash);
            }
        }
    }
}
