//! The lead: one thread at a time writes groups and tells their commits.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Thread, ThreadId};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{Engine, foreign};
use crate::core::queue::State;
use crate::error::Fault;

pub(crate) mod flag;

/// Who leads, and what the next leader is to do. Whether anybody leads is in [`State::lead`].
#[derive(Debug, Default)]
pub(crate) struct Leadership {
    /// Notified when the lead becomes free.
    freed: Condvar,
    /// The thread that is writing a group or telling its commits at this moment.
    thread: Mutex<Option<ThreadId>>,
    /// The journal was closed from within a callback. Invariant: the leader that ran the callback
    /// finishes the close before it passes the lead on.
    close_is_due: AtomicBool,
    /// The writer thread; `None` in a manual journal.
    writer: Mutex<Option<Thread>>,
    /// The lead belongs to the writer thread, which has not assumed it yet. Invariant: the lead
    /// is taken while this is set.
    is_handed: AtomicBool,
    /// Something was written since the last mark.
    mark_is_due: AtomicBool,
}

/// The right to write groups, held by one thread at a time: everything that only the leader may do
/// is a method of it.
///
/// Each holder ends by passing the lead on ([`hand_over`](Self::hand_over)) or giving it up
/// ([`give_up`](Self::give_up)). A lead that is dropped in any other way was lost in a panic: then
/// it is unknown how much of the group was written, so the journal stops, all waiting commits
/// fail, and the lead is free.
#[derive(Debug)]
#[must_use = "a lead that is dropped stops the journal"]
pub(crate) struct Lead<'a> {
    pub(super) engine: &'a Engine,
    held: bool,
}

/// Whether the lead was taken for the writer thread. To be delivered after the state is unlocked;
/// otherwise the writer wakes only to block on it.
#[derive(Debug)]
#[must_use = "the writer thread leads without knowing"]
pub(crate) struct Claim(bool);

impl Leadership {
    /// Names the writer thread.
    pub(crate) fn set_writer(&self, thread: Thread) {
        *self.writer.lock() = Some(thread);
    }

    pub(crate) fn unpark_writer(&self) {
        if let Some(thread) = &*self.writer.lock() {
            thread.unpark();
        }
    }

    pub(crate) fn is_handed(&self) -> bool {
        self.is_handed.load(Ordering::Acquire)
    }

    pub(crate) fn mark_is_due(&self) -> bool {
        self.mark_is_due.load(Ordering::Acquire)
    }

    /// Leaves a close that was asked for from within a callback to the leader.
    pub(crate) fn close_later(&self) {
        self.close_is_due.store(true, Ordering::Release);
    }
}

impl Engine {
    /// The lead that the flag has been taken for.
    fn assume_lead(&self) -> Lead<'_> {
        Lead { engine: self, held: true }
    }

    /// The lead, if it was handed to the writer thread, which calls this.
    pub(crate) fn assume_handed_lead(&self) -> Option<Lead<'_>> {
        let handed = self.leadership.is_handed.swap(false, Ordering::AcqRel);
        handed.then(|| self.assume_lead())
    }

    /// Takes the lead if it is free.
    pub(crate) fn try_lead(&self) -> Option<Lead<'_>> {
        let free = self.state.lock().lead.take();
        free.then(|| self.assume_lead())
    }

    /// Waits for the lead. Ends when the present leader gives it up, which each leader does after
    /// the groups that wait; the caller must not be the leader.
    pub(crate) fn lead(&self) -> Lead<'_> {
        self.wait_for_lead(&mut self.state.lock())
    }

    fn wait_for_lead(&self, state: &mut MutexGuard<'_, State>) -> Lead<'_> {
        while !state.lead.take() {
            self.leadership.freed.wait(state);
        }
        self.assume_lead()
    }

    /// The lead for a caller that waits for its commit: in a manual journal always, since no other
    /// thread writes the commit; otherwise if it is free.
    pub(crate) fn lead_to_commit(&self, state: &mut MutexGuard<'_, State>) -> Option<Lead<'_>> {
        if self.config.manual {
            return Some(self.wait_for_lead(state));
        }
        state.lead.take().then(|| self.assume_lead())
    }

    /// Whether this thread is writing a group or telling its commits right now.
    pub(crate) fn is_leader(&self) -> bool {
        *self.leadership.thread.lock() == Some(std::thread::current().id())
    }

    /// Takes the lead for the writer thread, if there is one, commits wait, and the lead is free.
    pub(crate) fn claim(&self, state: &mut State) -> Claim {
        Claim(!self.config.manual && !state.is_empty() && state.lead.take())
    }

    /// Tells the writer thread that it leads, if it does.
    pub(crate) fn deliver(&self, claim: Claim) {
        if claim.0 {
            self.leadership.is_handed.store(true, Ordering::Release);
            self.leadership.unpark_writer();
        }
    }

    /// Marks the lead as free.
    fn free_lead(&self) {
        self.state.lock().lead.free();
        self.leadership.freed.notify_all();
    }
}

impl Lead<'_> {
    /// Calls `write` as the leader's thread, as which callbacks are recognised in it.
    pub(super) fn as_leader<T>(&self, write: impl FnOnce() -> T) -> T {
        let thread = &self.engine.leadership.thread;
        *thread.lock() = Some(std::thread::current().id());
        let result = write();
        *thread.lock() = None;
        result
    }

    /// A mark is about to be written.
    pub(crate) fn mark_begins(&self) {
        self.engine.leadership.mark_is_due.store(false, Ordering::Release);
    }

    /// Finishes a close that was asked for from within a callback, which runs inside the group
    /// of the leader.
    fn finish_due_close(&self) {
        if self.engine.leadership.close_is_due.swap(false, Ordering::AcqRel) {
            // The call of `close` has returned; a failure has been logged.
            let _ = self.finish_close();
        }
    }

    /// Gives the lead up; waiting commits are left for the next leader.
    pub(crate) fn give_up(mut self) {
        self.finish_due_close();
        self.held = false;
        self.engine.free_lead();
    }

    /// Gives the lead to the writer thread if anything waits, and up otherwise.
    pub(crate) fn hand_over(mut self) {
        let engine = self.engine;
        self.finish_due_close();
        let mut state = engine.state.lock();
        let more = !state.is_empty() && !engine.config.manual;
        if !more {
            state.lead.free();
            engine.leadership.freed.notify_all();
        }
        drop(state);
        self.held = false;
        let writer = &engine.leadership;
        if more {
            engine.deliver(Claim(true));
        } else if !engine.config.manual && !writer.mark_is_due.swap(true, Ordering::AcqRel) {
            // The writer thread sleeps without a limit while nothing has to be marked.
            writer.unpark_writer();
        }
    }

    /// As [`hand_over`](Self::hand_over), by the writer thread itself.
    pub(crate) fn hand_over_after_mark(mut self) {
        let engine = self.engine;
        self.finish_due_close();
        let mut state = engine.state.lock();
        if state.is_empty() {
            state.lead.free();
            engine.leadership.freed.notify_all();
        } else {
            engine.leadership.is_handed.store(true, Ordering::Release);
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
        let engine = self.engine;
        *engine.leadership.thread.lock() = None;
        engine.stop_after_panic("leader");
        // A close that was asked for from within a callback still releases the directory.
        foreign::call("close", || self.finish_due_close());
        engine.free_lead();
    }
}

/// Stops the journal when the thread that holds it panics.
#[derive(Debug)]
pub(crate) struct StopOnPanic<'a>(pub(crate) &'a Engine);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop_after_panic("keeper");
        }
    }
}

impl Engine {
    fn stop_after_panic(&self, thread: &'static str) {
        self.stop(&panic_fault(thread));
    }
}

/// What is told when a thread that wrote panicked.
pub(crate) fn panic_fault(thread: &'static str) -> Fault {
    let panicked = io::Error::other("the thread panicked, in the journal or in its `Files`");
    Fault::new("commit", thread, &panicked)
}
