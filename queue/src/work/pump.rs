//! The task that makes things happen when nobody calls: leases end, delays pass, records arrive.
//!
//! It is spawned by the first receiver that has to wait, and ends with the last handle.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::Notify;

use super::core::Input;
use super::shell::{Plan, Shared};
use crate::partition::WaitFuture;

/// Shortest sleep: a clock that stands still must not make the task spin.
const MIN_SLEEP: Duration = Duration::from_millis(1);
/// Pause after the source has refused to wake the pump.
const PAUSE: Duration = Duration::from_millis(100);

impl Shared {
    /// Spawns the pump on the runtime of the caller, unless it runs.
    pub(super) fn ensure_pump(self: &Arc<Self>) {
        let mut pump = self.pump.lock();
        if pump.as_ref().is_none_or(tokio::task::JoinHandle::is_finished) {
            let changed = Arc::clone(&self.changed);
            self.inner.lock().armed = Plan::default();
            *pump = Some(tokio::spawn(run(Arc::downgrade(self), changed)));
        }
    }
}

async fn run(shared: Weak<Shared>, changed: Arc<Notify>) {
    // Ends with the last handle: dropping it notifies, and then there is nothing to upgrade.
    loop {
        let Some(strong) = shared.upgrade() else { return };
        let plan = {
            let mut inner = strong.inner.lock();
            let plan = inner.plan();
            inner.armed = plan;
            plan
        };
        let now = strong.clock.now();
        let sleep = plan.deadline.map(|at| Duration::from_nanos(at.saturating_sub(now)));
        let arrival = plan.offset.map(|offset| strong.source.wait_for(offset));
        drop(strong);
        if !plan.has_fetch {
            wait(sleep.map(|sleep| sleep.max(MIN_SLEEP)), arrival, &changed).await;
        }
        let Some(strong) = shared.upgrade() else { return };
        let grown = plan.offset.is_some_and(|offset| strong.source.offsets().end > offset);
        strong.drive(if grown { Input::Grown } else { Input::Tick });
    }
}

/// Waits for the first of: the time, a record, a change of plan.
async fn wait(sleep: Option<Duration>, arrival: Option<WaitFuture>, changed: &Notify) {
    let mut notified = pin!(changed.notified());
    let mut arrival = arrival;
    let mut sleep = pin!(tokio::time::sleep(sleep.unwrap_or(Duration::MAX)));
    poll_fn(|context| {
        if let Some(waiting) = &mut arrival
            && let Poll::Ready(result) = std::pin::Pin::new(waiting).poll(context)
        {
            if result.is_ok() {
                return Poll::Ready(());
            }
            // Too many readers wait, or the partition is closed.
            arrival = None;
            let at = tokio::time::Instant::now() + PAUSE;
            if sleep.deadline() > at {
                sleep.as_mut().reset(at);
            }
        }
        if sleep.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        notified.as_mut().poll(context)
    })
    .await;
}
