//! The timer of a node's loop.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::time::{Instant, Sleep};

/// Wakes the loop at the next deadline.
pub(crate) struct Alarm<'a> {
    timer: Pin<&'a mut Sleep>,
    /// Whom it wakes, while it is set.
    rings_for: Option<Waker>,
}

impl<'a> Alarm<'a> {
    pub(crate) fn new(timer: Pin<&'a mut Sleep>) -> Self {
        Self { timer, rings_for: None }
    }

    /// Ready at `deadline`. Deadlines mostly move away from now: the timer is set again only when
    /// it is late, or when it has rung, since each setting costs more than an early ring once in a
    /// while. One that is set and wakes this task is left alone.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let is_set = !self.timer.is_elapsed() && deadline >= self.timer.deadline();
        if is_set && self.rings_for.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        if !is_set {
            self.timer.as_mut().reset(deadline);
        }
        let rung = self.timer.as_mut().poll(cx);
        self.rings_for = rung.is_pending().then(|| cx.waker().clone());
        rung
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use tokio::time::{advance, sleep_until};

    use super::super::mailbox::tests::Count;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_alarm_that_is_set_wakes_the_task_that_asked_last() {
        let at = Instant::now() + Duration::from_millis(10);
        let timer = pin!(sleep_until(at));
        let mut alarm = Alarm::new(timer);
        let counts = [Arc::new(Count::default()), Arc::new(Count::default())];
        let wakers = counts.clone().map(Waker::from);
        for waker in wakers.iter().chain([&wakers[1]]) {
            assert!(alarm.poll(&mut Context::from_waker(waker), at).is_pending());
        }
        advance(Duration::from_millis(20)).await;
        assert_eq!(counts.map(|count| count.0.load(Ordering::SeqCst)), [0, 1]);
        let mut cx = Context::from_waker(&wakers[1]);
        assert!(alarm.poll(&mut cx, at).is_ready(), "it is over");
        let later = at + Duration::from_millis(20);
        assert!(alarm.poll(&mut cx, later).is_pending(), "and is set again");
    }
}
