//! Invalidations that the second level and the bus do not have yet.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::core::peers::Invalidation;

/// One pending invalidation.
#[derive(Clone, Copy, Debug)]
struct Pending {
    /// The number of the oldest call that it stands for.
    ticket: u64,
    /// Whether this cache's entries are dropped once more when the second level has it. Not for a
    /// value that was written into the cache: that is newer than what the second level had.
    again: bool,
}

/// A set of invalidations.
#[derive(Debug, Default)]
struct Batch(HashMap<Invalidation, Pending>);

impl Batch {
    /// The word of the later call counts, and the ticket of the earlier one.
    fn add(&mut self, invalidation: Invalidation, pending: Pending, max_pending: usize) {
        if self.0.len() >= max_pending && !self.0.contains_key(&invalidation) {
            let oldest = self.0.values().map(|pending| pending.ticket).min();
            let ticket = oldest.unwrap_or(pending.ticket);
            self.0.clear();
            self.0.insert(Invalidation::All, Pending { ticket, again: true });
            return;
        }
        let of_this = self.0.entry(invalidation).or_insert(pending);
        of_this.again = pending.again;
        of_this.ticket = of_this.ticket.min(pending.ticket);
    }

    fn hides(&self, key: &Invalidation) -> bool {
        self.0.contains_key(key) || self.0.contains_key(&Invalidation::All)
    }
}

#[derive(Debug, Default)]
struct State {
    tickets: u64,
    waiting: Batch,
    /// Taken by the publisher, and not yet acknowledged by all.
    sending: Batch,
}

/// The invalidations that are on their way out of this process.
#[derive(Debug)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    max_pending: usize,
    is_closed: AtomicBool,
    /// For the publisher: there is something to do.
    pub(super) wake: Notify,
    /// For those who wait until everything is out.
    progress: Notify,
}

impl Outbox {
    pub(super) fn new(max_pending: usize) -> Self {
        Self {
            state: Mutex::default(),
            max_pending,
            is_closed: AtomicBool::new(false),
            wake: Notify::new(),
            progress: Notify::new(),
        }
    }

    pub(super) fn add(&self, invalidation: Invalidation, again: bool) {
        if self.is_closed() {
            return;
        }
        {
            let mut state = self.state.lock();
            state.tickets += 1;
            let ticket = state.tickets;
            state.waiting.add(invalidation, Pending { ticket, again }, self.max_pending);
        }
        self.wake.notify_one();
    }

    /// Whether the second level may still have a value of the key that was invalidated here.
    pub(super) fn hides_key(&self, key: &[u8]) -> bool {
        let key = Invalidation::Key(key.into());
        let state = self.state.lock();
        state.waiting.hides(&key) || state.sending.hides(&key)
    }

    pub(super) fn hides_tag(&self, tag: &str) -> bool {
        let tag = Invalidation::Tag(tag.into());
        let state = self.state.lock();
        state.waiting.hides(&tag) || state.sending.hides(&tag)
    }

    /// What is to be sent now.
    pub(super) fn take(&self) -> Vec<Invalidation> {
        let mut state = self.state.lock();
        let State { waiting, sending, .. } = &mut *state;
        let taken: Vec<(Invalidation, Pending)> = waiting.0.drain().collect();
        for (invalidation, pending) in &taken {
            // What is being sent is bounded by the publisher.
            sending.add(invalidation.clone(), *pending, usize::MAX);
        }
        taken.into_iter().map(|(invalidation, _)| invalidation).collect()
    }

    /// Whether this cache's entries are to be dropped again.
    pub(super) fn is_again(&self, invalidation: &Invalidation) -> bool {
        let state = self.state.lock();
        // A later call that waits has decided anew.
        let pending = state.waiting.0.get(invalidation).or(state.sending.0.get(invalidation));
        pending.is_some_and(|pending| pending.again)
    }

    /// Everybody has these.
    pub(super) fn done(&self, invalidations: &[Invalidation]) {
        {
            let mut state = self.state.lock();
            for invalidation in invalidations {
                state.sending.0.remove(invalidation);
            }
        }
        self.progress.notify_waiters();
    }

    /// All that is being sent becomes one invalidation of everything.
    pub(super) fn collapse(&self) {
        let mut state = self.state.lock();
        let oldest = state.sending.0.values().map(|pending| pending.ticket).min();
        state.sending.0.clear();
        let ticket = oldest.unwrap_or(state.tickets);
        state.sending.0.insert(Invalidation::All, Pending { ticket, again: true });
    }

    pub(super) fn len(&self) -> u64 {
        let state = self.state.lock();
        (state.waiting.0.len() + state.sending.0.len()) as u64
    }

    /// Waits until everybody has what was invalidated before the call.
    pub(super) async fn settle(&self) {
        let mark = self.state.lock().tickets;
        // Ends: when all of it was acknowledged, or the caller gives up.
        loop {
            let mut progress = pin!(self.progress.notified());
            progress.as_mut().enable();
            {
                let state = self.state.lock();
                let mut pending = state.waiting.0.values().chain(state.sending.0.values());
                if pending.all(|pending| pending.ticket > mark) || self.is_closed() {
                    return;
                }
            }
            progress.await;
        }
    }

    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        self.wake.notify_one();
        self.progress.notify_waiters();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }
}
