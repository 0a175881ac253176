//! Wakers of those who wait for a change that concerns all of them.

use std::collections::BTreeMap;
use std::task::Waker;

use parking_lot::Mutex;

use super::foreign;

/// At most one waker for each who waits.
#[derive(Debug, Default)]
pub(crate) struct Wakers {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Number that was given last. Invariant: at least every key of `wakers`.
    last: u64,
    /// By number: woken in this order, which a seed can repeat.
    wakers: BTreeMap<u64, Waker>,
}

impl Wakers {
    /// A number for one more who may wait. Takes no memory until [`register`](Self::register).
    pub(crate) fn new_number(&self) -> u64 {
        let mut waiting = self.waiting.lock();
        waiting.last += 1;
        waiting.last
    }

    /// Wakes `waker` at the next change, instead of an earlier waker of the same number.
    pub(crate) fn register(&self, number: u64, waker: &Waker) {
        // Cloning a waker and dropping one are foreign code: not under the lock.
        let waker = waker.clone();
        let old = self.waiting.lock().wakers.insert(number, waker);
        drop(old);
    }

    /// The one with this number waits no longer.
    pub(crate) fn forget(&self, number: u64) {
        let waker = self.waiting.lock().wakers.remove(&number);
        drop(waker);
    }

    /// Wakes all. Runs foreign wakers: the caller must hold no lock.
    pub(crate) fn wake_all(&self) {
        let wakers = std::mem::take(&mut self.waiting.lock().wakers);
        for waker in wakers.into_values() {
            foreign::call("waker", || waker.wake());
        }
    }

    /// While this is held, nobody registers and nobody is woken.
    #[cfg(test)]
    pub(crate) fn hold(&self) -> impl Sized + '_ {
        self.waiting.lock()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.waiting.lock().wakers.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_leaves_one_waker_at_most_and_none_when_it_goes() {
        let wakers = Wakers::default();
        let kept = wakers.new_number();
        for _ in 0..100 {
            let gone = wakers.new_number();
            wakers.register(gone, Waker::noop());
            wakers.register(kept, Waker::noop());
            wakers.forget(gone);
        }
        assert_eq!(wakers.len(), 1);
        wakers.wake_all();
        assert_eq!(wakers.len(), 0);
    }
}
