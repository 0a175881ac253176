//! Requests under way, the end of a node, and the age of what it shows.
//!
//! When a node ends, what is under way is answered and what comes later is refused, so that every
//! client learns what became of its request.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// A node that ends goes on refusing requests until none has come for this long. A request that is
/// already on its way when a node closes its socket would get no answer at all.
const QUIET: Duration = Duration::from_millis(200);

/// Counts requests.
#[derive(Debug)]
pub struct Traffic {
    state: watch::Sender<State>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    under_way: usize,
    /// All requests ever.
    seen: u64,
    is_draining: bool,
}

impl Default for Traffic {
    fn default() -> Self {
        Self { state: watch::Sender::new(State::default()) }
    }
}

impl Traffic {
    /// A request begins; it is under way until the guard is dropped.
    pub fn begins(&self) -> Request<'_> {
        self.state.send_modify(|state| {
            state.under_way += 1;
            state.seen += 1;
        });
        Request(self)
    }

    /// Whether the node ends, and takes no new requests.
    pub fn is_draining(&self) -> bool {
        self.state.borrow().is_draining
    }

    /// From now on requests are to be refused. Returns when none is under way. The caller bounds
    /// the wait.
    ///
    /// # Cancel safety
    /// Dropped, requests are refused all the same.
    pub async fn drain(&self) {
        self.state.send_modify(|state| state.is_draining = true);
        // An error says that the sender is gone, and it is part of `self`.
        let _ = self.state.subscribe().wait_for(|state| state.under_way == 0).await;
    }

    /// Returns when no request has come for a while (200 ms). The caller bounds the wait.
    ///
    /// # Cancel safety
    /// Dropped, nothing is left behind.
    pub async fn quiet(&self) {
        let mut changes = self.state.subscribe();
        loop {
            let seen = changes.borrow_and_update().seen;
            if timeout(QUIET, changes.wait_for(|state| state.seen > seen)).await.is_err() {
                return;
            }
        }
    }
}

/// A request that is under way.
#[derive(Debug)]
pub struct Request<'a>(&'a Traffic);

impl Drop for Request<'_> {
    fn drop(&mut self) {
        self.0.state.send_modify(|state| state.under_way -= 1);
    }
}

/// How old the state of this node may be.
#[derive(Debug, Default)]
pub struct Freshness {
    /// The state shows all that was acknowledged anywhere before this time.
    at: Mutex<Option<Instant>>,
}

impl Freshness {
    /// A linearizable read that began at `time` has succeeded.
    pub fn holds_all_before(&self, time: Instant) {
        let mut at = self.at.lock();
        *at = (*at).max(Some(time));
    }

    /// The state shows all that was acknowledged anywhere up to this long ago. `None` where no
    /// linearizable read has succeeded since the start.
    pub fn age(&self) -> Option<Duration> {
        self.at.lock().map(|at| at.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_node_drains_what_is_under_way_and_then_waits_until_nothing_comes() {
        let traffic = std::sync::Arc::new(Traffic::default());
        let under_way = traffic.begins();
        let ending = tokio::spawn({
            let traffic = traffic.clone();
            async move {
                traffic.drain().await;
                let drained = tokio::time::Instant::now();
                traffic.quiet().await;
                (drained, tokio::time::Instant::now())
            }
        });
        tokio::time::sleep(QUIET * 5).await;
        assert!(traffic.is_draining());
        let released = tokio::time::Instant::now();
        drop(under_way);
        for _ in 0..5 {
            tokio::time::sleep(QUIET / 2).await;
            drop(traffic.begins());
        }
        let last = tokio::time::Instant::now();
        let (drained, quiet) = ending.await.unwrap();
        assert_eq!((drained, quiet), (released, last + QUIET));
    }
}
