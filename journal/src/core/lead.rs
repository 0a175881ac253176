//! The lead: one thread at a time writes groups and tells their commits.

use std::io;
use std::sync::atomic::Ordering;

use super::{Core, foreign};
use crate::error::Fault;

/// The right to write groups, held by one thread at a time.
///
/// Each holder ends by giving the lead on ([`hand_over`](Self::hand_over)) or up
/// ([`give_up`](Self::give_up)). A lead that is dropped in any other way was lost in a panic: then
/// nobody knows how far the group under way came, so the journal stops, everybody who waits is
/// told, and the lead is free.
#[derive(Debug)]
#[must_use = "a lead that is dropped stops the journal"]
pub(crate) struct Lead<'a> {
    core: &'a Core,
    held: bool,
}

impl Core {
    /// The lead that `State::leading` has been set for.
    pub(crate) fn assume_lead(&self) -> Lead<'_> {
        Lead { core: self, held: true }
    }

    /// Takes the lead when nobody has it.
    pub(crate) fn try_lead(&self) -> Option<Lead<'_>> {
        let mut state = self.state.lock();
        let free = !state.leading;
        state.leading = true;
        free.then(|| self.assume_lead())
    }

    /// Waits for the lead. Ends when the present leader gives it up, which each leader does after
    /// the groups that wait; the caller must not be the leader.
    pub(crate) fn lead(&self) -> Lead<'_> {
        let mut state = self.state.lock();
        while state.leading {
            self.idle.wait(&mut state);
        }
        state.leading = true;
        self.assume_lead()
    }

    /// Whether this thread is writing a group or telling its commits right now.
    pub(crate) fn is_leader(&self) -> bool {
        *self.leader.lock() == Some(std::thread::current().id())
    }

    /// Nobody leads any more.
    fn free_lead(&self) {
        self.state.lock().leading = false;
        self.idle.notify_all();
    }
}

impl Lead<'_> {
    /// Gives the lead up; what waits is left for whoever leads next.
    pub(crate) fn give_up(mut self) {
        self.core.finish_due_close();
        self.held = false;
        self.core.free_lead();
    }

    /// Gives the lead to the writer thread if anything waits, and up otherwise.
    pub(crate) fn hand_over(mut self) {
        let core = self.core;
        core.finish_due_close();
        let mut state = core.state.lock();
        let more = !state.is_empty() && !core.options.manual;
        if !more {
            state.leading = false;
            core.idle.notify_all();
        }
        drop(state);
        self.held = false;
        if more {
            core.wake(true);
        } else if !core.options.manual && !core.mark_is_due.swap(true, Ordering::AcqRel) {
            // The writer thread sleeps without a limit while nothing has to be marked.
            core.unpark_writer();
        }
    }

    /// As [`hand_over`](Self::hand_over), by the writer thread itself.
    pub(crate) fn hand_over_after_mark(mut self) {
        let core = self.core;
        core.finish_due_close();
        let mut state = core.state.lock();
        if state.is_empty() {
            state.leading = false;
            core.idle.notify_all();
        } else {
            core.writer_leads.store(true, Ordering::Release);
        }
        drop(state);
        self.held = false;
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        if !self.held {
            return;
        }
        let core = self.core;
        *core.leader.lock() = None;
        core.stop_after_panic("leader");
        // A close that was asked for from within a callback still frees the directory.
        foreign::call("close", || core.finish_due_close());
        core.free_lead();
    }
}

/// Stops the journal when the thread that holds it panics.
#[derive(Debug)]
pub(crate) struct StopOnPanic<'a>(pub(crate) &'a Core);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop_after_panic("keeper");
        }
    }
}

impl Core {
    fn stop_after_panic(&self, thread: &'static str) {
        self.stop(&panic_fault(thread));
    }
}

/// What is told when a thread that wrote panicked.
pub(crate) fn panic_fault(thread: &'static str) -> Fault {
    let panicked = io::Error::other("the thread panicked, in the journal or in its `Files`");
    Fault::new("commit", thread, &panicked)
}
