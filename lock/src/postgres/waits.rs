//! Those that wait for a notification.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// What is waited for, as the payload of the notification says it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Wait(String);

impl Wait {
    /// The grant of an acquisition.
    pub(super) fn grant(session: i64, request: i64) -> Self {
        Self(format!("{session}/{request}"))
    }

    /// A change of a lock.
    pub(super) fn change(name: &[u8]) -> Self {
        let mut hex = String::with_capacity(2 * name.len());
        for byte in name {
            // Writing to a string does not fail.
            let _ = write!(hex, "{byte:02x}");
        }
        Self(hex)
    }
}

#[derive(Debug, Default)]
pub(super) struct Waits {
    bells: Mutex<HashMap<Wait, Bell>>,
}

#[derive(Debug)]
struct Bell {
    notify: Arc<Notify>,
    /// How many wait by it. Invariant: at least 1.
    calls: usize,
}

/// A wait that is registered. Dropped, it is forgotten.
pub(super) struct Waiting<'a> {
    waits: &'a Waits,
    wait: Wait,
    notify: Arc<Notify>,
}

impl Waits {
    fn bells(&self) -> MutexGuard<'_, HashMap<Wait, Bell>> {
        // Nothing in a critical section panics halfway.
        self.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wait(&self, wait: Wait) -> Waiting<'_> {
        let mut bells = self.bells();
        let fresh = || Bell { notify: Arc::new(Notify::new()), calls: 0 };
        let bell = bells.entry(wait.clone()).or_insert_with(fresh);
        bell.calls += 1;
        Waiting { waits: self, wait, notify: Arc::clone(&bell.notify) }
    }

    pub(super) fn ring(&self, wait: &Wait) {
        if let Some(bell) = self.bells().get(wait) {
            bell.notify.notify_waiters();
        }
    }

    /// A notification has come.
    pub(super) fn notified(&self, payload: &str) {
        self.ring(&Wait(payload.to_owned()));
    }

    /// Notifications may have been lost: everybody looks again.
    pub(super) fn ring_all(&self) {
        self.bells().values().for_each(|bell| bell.notify.notify_waiters());
    }
}

impl Waiting<'_> {
    /// Returns at the next notification from now on, also if it is polled later.
    pub(super) fn notified(&self) -> Notified<'_> {
        self.notify.notified()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Entry::Occupied(mut bell) = self.waits.bells().entry(self.wait.clone()) {
            bell.get_mut().calls -= 1;
            if bell.get().calls == 0 {
                bell.remove();
            }
        }
    }
}
