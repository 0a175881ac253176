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
    /// Numbers that may be on their way to the service.
    open: BTreeSet<u64>,
    /// To be released in the background.
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

    /// Below it, the service knows each number, or that it has ended.
    pub(crate) fn floor(&self) -> u64 {
        let state = self.state();
        state.open.first().copied().unwrap_or(state.latest + 1)
    }

    /// The service knows the request, which holds or waits, or knows that it has ended. If it holds
    /// or waits, the service keeps it until it is released, however far the floor rises.
    pub(crate) fn arrived(&self, request: u64) {
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
