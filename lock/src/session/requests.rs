//! The numbers of a session's acquisitions.

use std::collections::{BTreeSet, VecDeque};
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// So many numbers after it were given out while a request may be on its way: it is time to hear
/// that it has arrived. A tenth of what the services take from one session
/// ([`TooManyRequests`](crate::core::Rejection::TooManyRequests)).
const MANY: u64 = 1_000;

/// Numbers that are in use, and those that are to be released.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    state: Mutex<State>,
    /// Rings when a number was given out that is `MANY` or more above the floor.
    crowded: Notify,
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
        let is_crowded = state.open.first().is_some_and(|first| request - first >= MANY);
        drop(state);
        if is_crowded {
            self.crowded.notify_waiters();
        }
        request
    }

    /// Returns when the request may be on its way still, and `MANY` numbers were given out after
    /// it.
    pub(crate) async fn holds_up_others(&self, request: u64) {
        // Ends: the caller has its answer, or gives it up.
        loop {
            let mut crowded = pin!(self.crowded.notified());
            // Whoever begins between the check and the wait is heard.
            crowded.as_mut().enable();
            {
                let state = self.state();
                if state.open.contains(&request) && state.latest - request >= MANY {
                    return;
                }
            }
            crowded.await;
        }
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
