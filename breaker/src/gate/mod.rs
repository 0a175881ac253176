//! Permits for concurrent calls, and the queue of callers that wait for one. The bulkhead and the
//! adaptive limit are built on it.

use crossbeam_utils::CachePadded;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::clock::{Clock, TokioClock};
use crate::core::{Patience, QueueOrder, WaitQueue};
use crate::error::GateError;

#[cfg(test)]
mod tests;

const WAITING: u64 = 1 << 32;
/// The count of running calls has 32 bits.
const MAX_LIMIT: usize = u32::MAX as usize;

fn running(word: u64) -> u64 {
    word & (WAITING - 1)
}

/// Sent to a waiter when it gets a permit. A waiter that is dropped meanwhile passes the permit on.
type Line = WaitQueue<oneshot::Sender<()>>;

/// The calls that run and wait, and their limit.
#[derive(Debug)]
pub(crate) struct Gate {
    /// `[waiting 32 | running 32]`. `waiting` changes under the lock of the line only, and while
    /// it is not zero so does the release of a place: nobody overtakes the line.
    word: CachePadded<AtomicU64>,
    limit: AtomicUsize,
    max_queue: usize,
    line: Mutex<Line>,
    clock: TokioClock,
    refused: AtomicU64,
    expired: AtomicU64,
}

/// A gate's figures at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GateStats {
    /// Calls that may run at once.
    pub limit: usize,
    /// Calls that run.
    pub running: usize,
    /// Calls that wait for a place.
    pub waiting: usize,
    /// Calls refused because places and queue were taken.
    pub refused: u64,
    /// Calls that lost patience in the queue.
    pub expired: u64,
}

impl GateStats {
    /// Calls that run or wait, for each that may run. At least 1 if none may run.
    pub fn load(&self) -> f64 {
        let calls = (self.running + self.waiting) as f64;
        if self.limit == 0 { calls.max(1.0) } else { calls / self.limit as f64 }
    }
}

impl Gate {
    pub(crate) fn new(
        limit: usize,
        max_queue: usize,
        order: QueueOrder,
        patience: Patience,
    ) -> Arc<Self> {
        let clock = TokioClock::new();
        Arc::new(Self {
            word: CachePadded::new(AtomicU64::new(0)),
            limit: AtomicUsize::new(limit.min(MAX_LIMIT)),
            max_queue,
            line: Mutex::new(WaitQueue::new(max_queue, order, patience, clock.now())),
            clock,
            refused: AtomicU64::new(0),
            expired: AtomicU64::new(0),
        })
    }

    pub(crate) fn stats(&self) -> GateStats {
        let word = self.word.load(Acquire);
        GateStats {
            limit: self.limit.load(Relaxed),
            running: running(word) as usize,
            waiting: (word / WAITING) as usize,
            refused: self.refused.load(Relaxed),
            expired: self.expired.load(Relaxed),
        }
    }

    fn may_run(&self, word: u64) -> bool {
        running(word) < self.limit.load(Relaxed) as u64
    }

    fn full(&self) -> GateError {
        self.refused.fetch_add(1, Relaxed);
        GateError::Full { limit: self.limit.load(Relaxed), queue: self.max_queue }
    }

    /// A permit, if one is free and no caller waits.
    pub(crate) fn try_enter(self: &Arc<Self>) -> Result<GatePermit, GateError> {
        if self.try_take() { Ok(GatePermit { gate: Arc::clone(self) }) } else { Err(self.full()) }
    }

    fn try_take(&self) -> bool {
        let take = |word| (word < WAITING && self.may_run(word)).then_some(word + 1);
        // Ends, here and below: lock-free. An exchange fails because a call came or went.
        self.word.fetch_update(AcqRel, Relaxed, take).is_ok()
    }

    /// A permit, at once or after a wait in the queue.
    pub(crate) async fn enter(self: &Arc<Self>) -> Result<GatePermit, GateError> {
        if self.try_take() {
            return Ok(GatePermit { gate: Arc::clone(self) });
        }
        let Some((waiter, wait)) = self.line_up()? else {
            return Ok(GatePermit { gate: Arc::clone(self) });
        };
        self.wait(waiter, wait).await
    }

    /// Joins the queue. Returns how long the caller may wait, in ns, or `None` if a permit became
    /// free meanwhile: the caller has it then.
    fn line_up(self: &Arc<Self>) -> Result<Option<(Waiter, Duration)>, GateError> {
        let now = self.clock.now();
        let mut line = self.line.lock();
        let is_full = line.is_full();
        let join = |word| {
            if word < WAITING && self.may_run(word) {
                return Some(word + 1);
            }
            (!is_full).then_some(word + WAITING)
        };
        match self.word.fetch_update(AcqRel, Acquire, join) {
            Err(_) => Err(self.full()),
            Ok(word) if word < WAITING && self.may_run(word) => Ok(None),
            Ok(_) => {
                let (granted, grant) = oneshot::channel();
                let (id, wait) = line.push(now, granted);
                let waiter = Waiter { gate: Arc::clone(self), id, grant };
                Ok(Some((waiter, Duration::from_nanos(wait))))
            }
        }
    }

    async fn wait(
        self: &Arc<Self>,
        mut waiter: Waiter,
        wait: Duration,
    ) -> Result<GatePermit, GateError> {
        if let Ok(Ok(())) = tokio::time::timeout(wait, &mut waiter.grant).await {
            // The place is the caller's now; nothing of the waiter is left to clean up.
            waiter.id = u64::MAX;
            return Ok(GatePermit { gate: Arc::clone(self) });
        }
        // Removed from the queue by another thread, or out of time: the caller hears the same.
        self.expired.fetch_add(1, Relaxed);
        Err(GateError::QueueTimeout(wait))
    }

    fn leave(&self) {
        let go = |word| (word < WAITING).then(|| word - 1);
        if self.word.fetch_update(Release, Acquire, go).is_err() {
            self.pass_on();
        }
    }

    /// Gives the permit of a call that ended to the next waiter, or frees it. The permit counts as
    /// taken until then.
    fn pass_on(&self) {
        // Ends: each round takes one waiter out of the line, and its length is bounded. Those that
        // line up meanwhile are served here too, as they would be by the next call that ends.
        loop {
            let mut line = self.line.lock();
            let is_over = running(self.word.load(Acquire)) > self.limit.load(Relaxed) as u64;
            let next = if is_over { None } else { line.pop(self.clock.now()) };
            let Some((waiter, is_patient)) = next else {
                self.word.fetch_sub(1, AcqRel);
                return;
            };
            self.word.fetch_sub(WAITING, AcqRel);
            // Sending, or dropping the sender, runs the waker of the waiter's task: foreign code.
            drop(line);
            if is_patient && waiter.send(()).is_ok() {
                return;
            }
        }
    }

    /// Changes the limit. A lower limit takes effect as calls end; a higher one serves waiters at
    /// once.
    pub(crate) fn set_limit(&self, limit: usize) {
        let limit = limit.min(MAX_LIMIT);
        if self.limit.swap(limit, AcqRel) >= limit {
            return;
        }
        // Ends: each round serves one waiter, and nobody lines up while there are places.
        loop {
            // Under the lock: a caller that saw the old limit has lined up before, or sees the new
            // one.
            let line = self.line.lock();
            let take = |word| (word >= WAITING && self.may_run(word)).then_some(word + 1);
            if self.word.fetch_update(AcqRel, Acquire, take).is_err() {
                return;
            }
            drop(line);
            self.pass_on();
        }
    }
}

/// A caller in the queue. When dropped it leaves the queue, or passes on the permit that it got.
#[derive(Debug)]
struct Waiter {
    gate: Arc<Gate>,
    /// `u64::MAX` once the permit belongs to the caller.
    id: u64,
    grant: oneshot::Receiver<()>,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.id == u64::MAX {
            return;
        }
        self.grant.close();
        if self.grant.try_recv().is_ok() {
            self.gate.leave();
            return;
        }
        let mut line = self.gate.line.lock();
        if line.remove(self.id, self.gate.clock.now()) {
            self.gate.word.fetch_sub(WAITING, AcqRel);
        }
    }
}

/// The permit to run one call. Given back when dropped.
#[derive(Debug)]
#[must_use = "the place is given back when this is dropped"]
pub(crate) struct GatePermit {
    gate: Arc<Gate>,
}

impl Drop for GatePermit {
    fn drop(&mut self) {
        self.gate.leave();
    }
}
