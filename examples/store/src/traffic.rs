//! Counts requests in flight, drains them when the node shuts down, and knows how old the state of
//! the node may be.
//!
//! During shutdown, requests in flight are answered and new ones get 503, so that every client
//! learns the outcome of its request.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// A node that shuts down keeps rejecting requests until none has arrived for this long. A request
/// that is on the wire when the socket closes would get no answer at all.
const QUIET: Duration = Duration::from_millis(200);

/// Counts the requests of a node.
#[derive(Debug)]
pub struct Traffic {
    state: watch::Sender<State>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    in_flight: usize,
    /// Requests since the start, in flight or not.
    seen: u64,
    is_draining: bool,
}

impl Default for Traffic {
    fn default() -> Self {
        Self { state: watch::Sender::new(State::default()) }
    }
}

impl Traffic {
    /// Counts a request as in flight until the guard is dropped.
    pub fn start_request(&self) -> Request<'_> {
        self.state.send_modify(|state| {
            state.in_flight += 1;
            state.seen += 1;
        });
        Request(self)
    }

    /// Whether the node shuts down, so that new requests get 503.
    pub fn is_draining(&self) -> bool {
        self.state.borrow().is_draining
    }

    /// Switches to draining, and returns when no request is in flight. The caller bounds the wait.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the node draining.
    pub async fn drain(&self) {
        self.state.send_modify(|state| state.is_draining = true);
        // An error says that the sender is gone, and it is part of `self`.
        let _ = self.state.subscribe().wait_for(|state| state.in_flight == 0).await;
    }

    /// Returns when no request has arrived for 200 ms. The caller bounds the wait.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is changed.
    pub async fn wait_until_quiet(&self) {
        let mut changes = self.state.subscribe();
        loop {
            let seen = changes.borrow_and_update().seen;
            if timeout(QUIET, changes.wait_for(|state| state.seen > seen)).await.is_err() {
                return;
            }
        }
    }
}

/// A request in flight.
#[derive(Debug)]
pub struct Request<'a>(&'a Traffic);

impl Drop for Request<'_> {
    fn drop(&mut self) {
        self.0.state.send_modify(|state| state.in_flight -= 1);
    }
}

/// The time up to which the state of this node is known to be complete.
#[derive(Debug, Default)]
pub struct Freshness {
    /// The state shows every write that was acknowledged anywhere before this time.
    at: Mutex<Option<Instant>>,
}

impl Freshness {
    /// Notes that a linearizable read that began at `time` has succeeded.
    pub fn confirmed_at(&self, time: Instant) {
        let mut at = self.at.lock();
        *at = (*at).max(Some(time));
    }

    /// The state shows every write that was acknowledged anywhere up to this long ago. `None`: no
    /// linearizable read has succeeded in this process yet.
    pub fn age(&self) -> Option<Duration> {
        self.at.lock().map(|at| at.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_node_drains_what_is_in_flight_and_then_waits_until_nothing_comes() {
        let traffic = std::sync::Arc::new(Traffic::default());
        let in_flight = traffic.start_request();
        let ending = tokio::spawn({
            let traffic = traffic.clone();
            async move {
                traffic.drain().await;
                let drained = tokio::time::Instant::now();
                traffic.wait_until_quiet().await;
                (drained, tokio::time::Instant::now())
            }
        });
        tokio::time::sleep(QUIET * 5).await;
        assert!(traffic.is_draining());
        let released = tokio::time::Instant::now();
        drop(in_flight);
        for _ in 0..5 {
            tokio::time::sleep(QUIET / 2).await;
            drop(traffic.start_request());
        }
        let last = tokio::time::Instant::now();
        let (drained, quiet) = ending.await.unwrap();
        assert_eq!((drained, quiet), (released, last + QUIET));
    }
}
