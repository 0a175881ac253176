//! Connections on which nothing comes back any more: their server lost its power, or something on
//! the way forgot them. The kernel notices it after a quarter of an hour.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A call that ends without an answer ends its connection if that has answered nothing for so long.
const MAX_SILENCE: Duration = Duration::from_secs(1);

/// When a connection was asked, and when it has answered.
#[derive(Debug)]
pub(crate) struct Silence {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// When the latest answer came, or the connection began.
    heard_at: Instant,
    /// The first call since `heard_at`; `None` if there was none.
    asked_at: Option<Instant>,
    /// Whether the connection is given up. Never false again.
    is_given_up: bool,
}

impl Silence {
    pub(crate) fn new() -> Self {
        let state = State { heard_at: Instant::now(), asked_at: None, is_given_up: false };
        Self { state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in a critical section panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call is sent now. Its time is an argument of [`missed`](Self::missed).
    pub(crate) fn asked(&self) -> Instant {
        let now = Instant::now();
        self.state().asked_at.get_or_insert(now);
        now
    }

    /// An answer has come, whatever it says.
    pub(crate) fn heard(&self) {
        let mut state = self.state();
        (state.heard_at, state.asked_at) = (Instant::now(), None);
    }

    /// A call that was sent then was not answered in its time. Gives the connection up if nothing
    /// was answered for [`MAX_SILENCE`] while a call waited.
    pub(crate) fn missed(&self, asked_at: Instant) {
        let mut state = self.state();
        let own = asked_at.max(state.heard_at);
        let silent_since = state.asked_at.map_or(own, |first| first.min(own));
        state.is_given_up |= silent_since.elapsed() >= MAX_SILENCE;
    }

    /// Whether the next call should go by another connection.
    pub(crate) fn is_given_up(&self) -> bool {
        self.state().is_given_up
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn short_calls_without_an_answer_add_up() {
        let silence = Silence::new();
        advance(3600 * 1000 * MS).await;
        for _ in 0..10 {
            let asked_at = silence.asked();
            advance(99 * MS).await;
            silence.missed(asked_at);
            assert!(!silence.is_given_up());
        }
        let asked_at = silence.asked();
        advance(10 * MS).await;
        silence.missed(asked_at);
        assert!(silence.is_given_up());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_call_among_answered_ones_gives_nothing_up() {
        let silence = Silence::new();
        let slow = silence.asked();
        for _ in 0..5 {
            silence.asked();
            advance(990 * MS).await;
            silence.heard();
        }
        advance(990 * MS).await;
        silence.missed(slow);
        assert!(!silence.is_given_up());
        // The latest answer was for another call: since then this one waits.
        advance(20 * MS).await;
        silence.missed(slow);
        assert!(silence.is_given_up());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_was_asked_nothing_is_not_silent() {
        let silence = Silence::new();
        silence.asked();
        silence.heard();
        advance(3600 * 1000 * MS).await;
        let asked_at = silence.asked();
        advance(MS).await;
        silence.missed(asked_at);
        assert!(!silence.is_given_up());
    }
}
