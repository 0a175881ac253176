//! A gate that tasks wait at while it is shut.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// Tasks pass while it is open. When it opens, those that waited go on in the order in which they
/// came; a `watch` channel wakes them in a random order, which no seed decides.
#[derive(Default)]
pub(crate) struct Gate {
    shut: AtomicBool,
    opened: Notify,
}

impl Gate {
    pub(crate) fn set_shut(&self, shut: bool) {
        self.shut.store(shut, Ordering::Relaxed);
        if !shut {
            self.opened.notify_waiters();
        }
    }

    /// Returns at once while the gate is open.
    pub(crate) async fn pass(&self) {
        while self.shut.load(Ordering::Relaxed) {
            self.opened.notified().await;
        }
    }
}
