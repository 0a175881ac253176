//! Requests under way, and the end of a node: what is under way is answered, what comes later is
//! refused, so that every client learns what became of its request.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

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

    /// From now on requests are to be refused. Returns when none is under way and none has come
    /// for a while. The caller bounds the wait.
    ///
    /// # Cancel safety
    /// Dropped, requests are refused all the same.
    pub async fn drain(&self) {
        self.state.send_modify(|state| state.is_draining = true);
        let mut changes = self.state.subscribe();
        loop {
            let seen = changes.borrow_and_update().seen;
            let next = changes.wait_for(|state| state.seen > seen);
            let is_quiet = timeout(QUIET, next).await.is_err();
            if is_quiet && self.state.borrow().under_way == 0 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_node_drains_until_nothing_is_under_way_and_nothing_comes() {
        let traffic = std::sync::Arc::new(Traffic::default());
        let under_way = traffic.begins();
        let draining = tokio::spawn({
            let traffic = traffic.clone();
            async move { traffic.drain().await }
        });
        tokio::time::sleep(QUIET * 5 + QUIET / 4).await;
        assert!(traffic.is_draining() && !draining.is_finished());
        drop(traffic.begins());
        drop(under_way);
        for _ in 0..5 {
            tokio::time::sleep(QUIET / 2).await;
            drop(traffic.begins());
        }
        assert!(!draining.is_finished(), "requests still come");
        draining.await.unwrap();
    }
}
