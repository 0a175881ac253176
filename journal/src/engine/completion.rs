//! How the outcome of a commit reaches its caller.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread::Thread;

use parking_lot::Mutex;

use super::foreign;
use crate::commit::{Commit, Receipt};
use crate::core::queue::Part;
use crate::error::Error;

pub(crate) type Outcome = Result<Receipt, Error>;

/// Whom to tell.
pub(crate) enum Done {
    Slot(Arc<Slot>),
    Callback(Box<dyn FnOnce(Outcome) + Send>),
    /// It has been told already.
    Nobody,
}

impl Done {
    /// Tells. Runs foreign code: no lock may be held.
    pub(crate) fn tell(self, outcome: Outcome) {
        match self {
            Self::Slot(slot) => slot.finish(outcome),
            Self::Callback(callback) => foreign::call("callback", || callback(outcome)),
            Self::Nobody => {}
        }
    }
}

impl fmt::Debug for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Slot(_) => "Slot",
            Self::Callback(_) => "Callback",
            Self::Nobody => "Nobody",
        })
    }
}

/// Passes the outcome of one commit to the one caller that waits for it.
#[derive(Debug)]
pub(crate) struct Slot {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    stage: Stage,
    waiter: Option<Waiter>,
}

#[derive(Debug)]
enum Stage {
    /// There was no room; the commit is not yet accepted.
    Waiting(Commit),
    Accepted,
    Done(Outcome),
    /// The outcome has been handed over, or the waiter has gone.
    Over,
}

#[derive(Debug)]
enum Waiter {
    Task(Waker),
    Thread(Thread),
    /// Nobody asks for the outcome: it is passed on.
    Done(Done),
}

impl Slot {
    pub(crate) fn accepted() -> Arc<Self> {
        Arc::new(Self { inner: Mutex::new(Inner { stage: Stage::Accepted, waiter: None }) })
    }

    pub(crate) fn waiting(commit: Commit) -> Arc<Self> {
        let stage = Stage::Waiting(commit);
        Arc::new(Self { inner: Mutex::new(Inner { stage, waiter: None }) })
    }

    /// Of a commit that waits for room, whose outcome is passed on.
    pub(crate) fn passing_on(commit: Commit, done: Done) -> Arc<Self> {
        let (stage, waiter) = (Stage::Waiting(commit), Some(Waiter::Done(done)));
        Arc::new(Self { inner: Mutex::new(Inner { stage, waiter }) })
    }

    /// Takes the commit of a waiter who is still there.
    pub(crate) fn admit(&self) -> Option<Commit> {
        let mut inner = self.inner.lock();
        match std::mem::replace(&mut inner.stage, Stage::Accepted) {
            Stage::Waiting(commit) => Some(commit),
            other => {
                inner.stage = other;
                None
            }
        }
    }

    /// There is still no room. Hands the commit back when the waiter has gone.
    pub(crate) fn wait_again(&self, commit: Commit) -> Option<Commit> {
        let mut inner = self.inner.lock();
        if !matches!(inner.stage, Stage::Accepted) {
            return Some(commit);
        }
        inner.stage = Stage::Waiting(commit);
        None
    }

    pub(crate) fn finish(&self, outcome: Outcome) {
        let mut inner = self.inner.lock();
        if matches!(inner.stage, Stage::Over) {
            return;
        }
        let waiter = inner.waiter.take();
        if let Some(Waiter::Done(done)) = waiter {
            inner.stage = Stage::Over;
            drop(inner);
            return done.tell(outcome);
        }
        inner.stage = Stage::Done(outcome);
        drop(inner);
        match waiter {
            Some(Waiter::Task(waker)) => foreign::call("waker", || waker.wake()),
            Some(Waiter::Thread(thread)) => thread.unpark(),
            Some(Waiter::Done(_)) | None => {}
        }
    }

    /// The outcome, if it is there; else the task is woken when it comes.
    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<Outcome> {
        let mut inner = self.inner.lock();
        if let Some(outcome) = inner.take() {
            return Poll::Ready(outcome);
        }
        let current = matches!(&inner.waiter, Some(Waiter::Task(waker))
            if waker.will_wake(context.waker()));
        if current {
            return Poll::Pending;
        }
        drop(inner);
        // Cloning a waker and dropping one are foreign code: not under the lock.
        let waiter = Waiter::Task(context.waker().clone());
        let mut inner = self.inner.lock();
        if let Some(outcome) = inner.take() {
            drop(inner);
            return Poll::Ready(outcome);
        }
        let old = inner.waiter.replace(waiter);
        drop(inner);
        drop(old);
        Poll::Pending
    }

    /// The outcome, if it is there; else this thread is unparked when it comes.
    pub(crate) fn poll_thread(&self) -> Option<Outcome> {
        let mut inner = self.inner.lock();
        let outcome = inner.take();
        if outcome.is_none() && inner.waiter.is_none() {
            inner.waiter = Some(Waiter::Thread(std::thread::current()));
        }
        outcome
    }

    /// The waiter goes: a commit that has not been accepted never will be, and is handed back.
    pub(crate) fn abandon(&self) -> Option<Commit> {
        let mut inner = self.inner.lock();
        let stage = std::mem::replace(&mut inner.stage, Stage::Over);
        let waiter = inner.waiter.take();
        drop(inner);
        drop(waiter);
        match stage {
            Stage::Waiting(commit) => Some(commit),
            _ => None,
        }
    }
}

impl Inner {
    fn take(&mut self) -> Option<Outcome> {
        if !matches!(self.stage, Stage::Done(_)) {
            return None;
        }
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Done(outcome) => Some(outcome),
            _ => None,
        }
    }
}

/// Outcomes to be told, and what was rejected with them: found out under a lock, told and dropped
/// without one, as both run foreign code.
#[derive(Debug, Default)]
#[must_use = "somebody waits for it"]
pub(crate) struct Told {
    outcomes: Vec<(Done, Outcome)>,
    rejected: Vec<Commit>,
    parts: Vec<Part>,
    /// Commits that had been acknowledged when they were accepted.
    buffered: u64,
}

impl Told {
    pub(crate) fn push(&mut self, done: Done, outcome: Outcome) {
        self.outcomes.push((done, outcome));
    }

    /// Keeps a commit that was rejected until the lock has been released.
    pub(crate) fn keep(&mut self, rejected: Commit) {
        self.rejected.push(rejected);
    }

    /// Keeps what is left of a commit until the lock has been released.
    pub(crate) fn keep_parts(&mut self, parts: Vec<Part>) {
        self.parts.extend(parts);
    }

    pub(crate) fn extend(&mut self, more: Self) {
        self.outcomes.extend(more.outcomes);
        self.rejected.extend(more.rejected);
        self.parts.extend(more.parts);
        self.buffered += more.buffered;
    }

    /// Counts a buffered commit that failed after its acknowledgement.
    pub(crate) fn lose_buffered(&mut self) {
        self.buffered += 1;
    }

    pub(crate) fn buffered(&self) -> u64 {
        self.buffered
    }

    /// Tells all. No lock may be held.
    pub(crate) fn tell(self) {
        for (done, outcome) in self.outcomes {
            done.tell(outcome);
        }
    }
}
