//! The numbers of a session's acquisitions.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Numbers that are in use, and those that are to be released.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The latest number that was given out.
    latest: u64,
    /// Numbers that may hold, wait or be under way at the service.
    open: BTreeSet<u64>,
    /// To be released in the background. Invariant: each is in `open`.
    releases: VecDeque<u64>,
}

impl Requests {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in a critical section panics halfway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new number.
    pub(crate) fn begin(&self) -> u64 {
        let mut state = self.state();
        state.latest += 1;
        let request = state.latest;
        state.open.insert(request);
        request
    }

    /// The smallest number that has not ended.
    pub(crate) fn floor(&self) -> u64 {
        let state = self.state();
        state.open.first().copied().unwrap_or(state.latest + 1)
    }

    /// The service knows that the request has ended.
    pub(crate) fn end(&self, request: u64) {
        self.state().open.remove(&request);
    }

    /// The request is to be released in the background.
    pub(crate) fn release(&self, request: u64) {
        self.state().releases.push_back(request);
    }

    /// The next request to release.
    pub(crate) fn next_release(&self) -> Option<u64> {
        self.state().releases.pop_front()
    }
}
