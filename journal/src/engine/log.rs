//! One log, shared by its handles and the journal.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use parking_lot::{Mutex, RwLock};

use super::foreign;
use crate::core::bounds::LogBounds;
use crate::core::view::View;
use crate::error::{Error, LogName};

#[derive(Debug)]
pub(crate) struct LogInner {
    name: LogName,
    /// Its place in the journal's table of logs.
    index: u32,
    pub(crate) view: RwLock<View>,
    followers: Mutex<Followers>,
    /// Bytes; `u64::MAX` for none.
    quota: AtomicU64,
}

/// The followers of a log that wait for a change.
#[derive(Debug, Default)]
struct Followers {
    /// Number of the follower that was created last. Invariant: at least every key of `wakers`.
    last: u64,
    /// By follower: at most one waker each, woken in this order, which a seed can repeat.
    wakers: BTreeMap<u64, Waker>,
}

impl LogInner {
    pub(crate) fn new(name: LogName, index: u32, bounds: LogBounds) -> Self {
        Self {
            name,
            index,
            view: RwLock::new(View::new(bounds)),
            followers: Mutex::default(),
            quota: AtomicU64::new(u64::MAX),
        }
    }

    pub(crate) fn name(&self) -> &LogName {
        &self.name
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    pub(crate) fn set_quota(&self, bytes: Option<u64>) {
        self.quota.store(bytes.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Whether `more` bytes beside what is stored stay within the quota.
    pub(crate) fn check_quota(&self, more: u64) -> Result<(), Error> {
        let quota = self.quota.load(Ordering::Relaxed);
        if quota == u64::MAX || self.view.read().bytes().saturating_add(more) <= quota {
            return Ok(());
        }
        Err(Error::OverQuota { log: self.name.clone(), quota })
    }

    /// A number for a new follower.
    pub(crate) fn new_follower(&self) -> u64 {
        let mut followers = self.followers.lock();
        followers.last += 1;
        followers.last
    }

    /// This follower is woken at the next change, and by no earlier waker of its own.
    pub(crate) fn wake_on_change(&self, follower: u64, waker: &Waker) {
        // Cloning a waker and dropping one are foreign code: not under the lock.
        let waker = waker.clone();
        let old = self.followers.lock().wakers.insert(follower, waker);
        drop(old);
    }

    /// This follower goes.
    pub(crate) fn forget_follower(&self, follower: u64) {
        let waker = self.followers.lock().wakers.remove(&follower);
        drop(waker);
    }

    /// Wakes the followers of the log. Runs foreign wakers: the caller must hold no lock.
    pub(crate) fn changed(&self) {
        let followers = std::mem::take(&mut self.followers.lock().wakers);
        for waker in followers.into_values() {
            foreign::call("waker", || waker.wake());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_leaves_one_waker_at_most_and_none_when_it_goes() {
        let name = LogName { namespace: "n".to_owned(), id: 1 };
        let log = LogInner::new(name, 0, LogBounds::default());
        let kept = log.new_follower();
        for _ in 0..100 {
            let gone = log.new_follower();
            log.wake_on_change(gone, Waker::noop());
            log.wake_on_change(kept, Waker::noop());
            log.forget_follower(gone);
        }
        assert_eq!(log.followers.lock().wakers.len(), 1);
        log.changed();
        assert_eq!(log.followers.lock().wakers.len(), 0);
    }
}
