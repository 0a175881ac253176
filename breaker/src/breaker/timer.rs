//! Changes of state that only time causes.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::timeout;

use super::{Breaker, State};

/// The shortest sleep between two looks: the breaker's clock and the runtime's may differ.
const MIN_LOOK: Duration = Duration::from_millis(1);
/// The longest, for the end of a half-open period that no probe holds up yet.
const MAX_LOOK: Duration = Duration::from_secs(60);

impl Breaker {
    /// The time at which [`tick`](Self::tick) will change the state, in nanoseconds since the epoch
    /// of the breaker's clock: the end of an open wait, or of the patience with stuck probes.
    pub fn next_deadline(&self) -> Option<u64> {
        self.machine.next_deadline()
    }

    /// Makes the changes of state that are due without waiting for the next call: an open breaker
    /// whose wait is over becomes half-open, and a half-open breaker whose probes are stuck opens.
    /// Does nothing before their time.
    pub fn tick(&self) {
        self.tick_at(self.clock.now());
    }

    /// [`tick`](Self::tick) with the time passed in: nanoseconds since the epoch of the breaker's
    /// clock.
    pub fn tick_at(&self, now: u64) {
        self.machine.tick(now);
    }

    /// Calls [`tick`](Self::tick) whenever it is time to, so that listeners hear of the end of an
    /// open wait when it comes, not with the first call after it. Spawn it; it ends when the last
    /// other `Arc` of the breaker is gone.
    ///
    /// # Cancel safety
    /// Dropping it leaves the breaker as it is, to be moved on by its calls.
    ///
    /// # Example
    /// ```
    /// # use std::{sync::Arc, time::Duration};
    /// # use voussoir_breaker::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let breaker = Arc::new(Breaker::new("billing", &BreakerConfig::default())?);
    /// tokio::spawn(breaker.keep_time());
    /// breaker.open_for(Duration::from_millis(20));
    /// let mut state = breaker.watch();
    /// state.wait_for(|state| *state == State::HalfOpen).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn keep_time(self: &Arc<Self>) -> impl Future<Output = ()> + Send + 'static + use<> {
        let (breaker, mut state) = (Arc::downgrade(self), self.watch());
        async move {
            // Ends: with the breaker, whose drop closes `state`.
            loop {
                state.mark_unchanged();
                let Some(wait) = wait(&breaker) else { return };
                if let Ok(Err(_closed)) = timeout(wait, state.changed()).await {
                    return;
                }
                // A look that was too early is repeated.
                let Some(breaker) = breaker.upgrade() else { return };
                breaker.tick();
            }
        }
    }
}

/// How long until the next look, if no change of state comes first; `None` if the breaker is gone.
fn wait(breaker: &Weak<Breaker>) -> Option<Duration> {
    let breaker = breaker.upgrade()?;
    if let Some(due) = breaker.next_deadline() {
        let wait = Duration::from_nanos(due.saturating_sub(breaker.clock.now()));
        return Some(wait.max(MIN_LOOK));
    }
    // A half-open breaker gets its deadline when its last probe is taken, of which nobody tells.
    let patience = (breaker.state() == State::HalfOpen).then_some(breaker.patience).flatten();
    Some(patience.map_or(Duration::MAX, |patience| patience.clamp(MIN_LOOK, MAX_LOOK)))
}
