//! The times for which a process may use a worker number.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::IdError;
use super::numbers::WorkerGrant;

/// A worker number, and the times for which this process may use it: from the grant's ceiling on,
/// and below the ceiling that was last raised.
///
/// One window serves at most one [`Snowflake`](super::Snowflake): two would make the same ids.
/// The constructors take it by value, and [`WorkerLease::acquire`](super::WorkerLease::acquire)
/// gives it out once.
#[derive(Debug)]
pub struct WorkerWindow {
    shared: Arc<Shared>,
}

/// The side of a window that raises its ceiling.
#[derive(Clone, Debug)]
pub(crate) struct Ceiling {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    worker: u32,
    /// No id has an earlier time, in ms since the UNIX epoch.
    start_ms: u64,
    /// Every id has an earlier time, in ms since the UNIX epoch. [`CLOSED`] once the lease is lost.
    /// Otherwise it never falls.
    ceiling_ms: AtomicU64,
}

/// The ceiling of a lease that was lost.
const CLOSED: u64 = 0;

impl WorkerWindow {
    /// A window without end, for a process that is the only one to use `worker`, and for which
    /// somebody else has made sure that no restart repeats a time: ids are made from `start_ms` on,
    /// in ms since the UNIX epoch.
    ///
    /// Prefer a [`WorkerLease`](super::WorkerLease).
    pub fn unleased(worker: u32, start_ms: u64) -> Self {
        let (window, ceiling) = Self::new(&WorkerGrant::new(worker, 0, start_ms));
        ceiling.raise(u64::MAX);
        window
    }

    pub(crate) fn new(grant: &WorkerGrant) -> (Self, Ceiling) {
        let shared = Arc::new(Shared {
            worker: grant.worker,
            start_ms: grant.ceiling_ms,
            ceiling_ms: AtomicU64::new(grant.ceiling_ms.max(1)),
        });
        (Self { shared: Arc::clone(&shared) }, Ceiling { shared })
    }

    /// The worker number.
    pub fn worker(&self) -> u32 {
        self.shared.worker
    }

    /// No id has an earlier time, in ms since the UNIX epoch.
    pub(crate) fn start_ms(&self) -> u64 {
        self.shared.start_ms
    }

    /// Checks the time of an id, in ms since the UNIX epoch, against the ceiling.
    #[inline]
    pub(crate) fn check(&self, time_ms: u64) -> Result<(), IdError> {
        // Acquire pairs with the release of `raise`: the ceiling was durable before it was stored.
        let ceiling_ms = self.shared.ceiling_ms.load(Ordering::Acquire);
        if time_ms < ceiling_ms {
            return Ok(());
        }
        Err(if ceiling_ms == CLOSED {
            IdError::LeaseLost
        } else {
            IdError::CeilingReached { ceiling_ms }
        })
    }
}

impl Ceiling {
    /// Raises the ceiling. The caller has made it durable. Does nothing for a lower ceiling or
    /// after [`close`](Self::close).
    pub(crate) fn raise(&self, ceiling_ms: u64) {
        let raised = |old: u64| (old != CLOSED && ceiling_ms > old).then_some(ceiling_ms);
        let _ = self.shared.ceiling_ms.fetch_update(Ordering::Release, Ordering::Relaxed, raised);
    }

    /// From now on every check fails with [`IdError::LeaseLost`]. A check that runs at the same
    /// time may still pass: its id is below the old ceiling, and the next holder begins at it.
    pub(crate) fn close(&self) {
        self.shared.ceiling_ms.store(CLOSED, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_window_stays_closed() {
        let (window, ceiling) = WorkerWindow::new(&WorkerGrant::new(3, 1, 10));
        assert_eq!(window.check(10), Err(IdError::CeilingReached { ceiling_ms: 10 }));
        ceiling.raise(20);
        ceiling.raise(15);
        assert_eq!((window.check(19), window.start_ms()), (Ok(()), 10));
        ceiling.close();
        ceiling.raise(30);
        assert_eq!(window.check(5), Err(IdError::LeaseLost));
    }
}
