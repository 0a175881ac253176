//! Handing commits in, and who leads: the writer thread, a blocking caller, or `work`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Core;
use super::completion::{Done, Outcome, Slot};
use super::group::tell;
use super::queue::{Accepted, Refusal, State};
use crate::commit::{Commit, Receipt};
use crate::error::{Error, Fault};

/// Where the outcome of a commit will be.
#[derive(Debug)]
pub(crate) enum Submitted {
    Told(Outcome),
    Later(Arc<Slot>),
}

/// How far closing has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closed {
    /// Everything is durable and the directory is free.
    Now,
    /// Whoever leads will do it.
    Soon,
    /// It was closed already, or somebody is at it.
    Before,
}

impl Core {
    /// Hands a commit in; when there is no room, refuses.
    pub(crate) fn submit(
        self: &Arc<Self>,
        commit: Commit,
        done: Box<dyn FnOnce(Outcome) + Send>,
    ) -> Result<(), Error> {
        self.check_owner(&commit)?;
        let mut state = self.state.lock();
        if state.someone_waits() && state.refused.is_none() {
            return Err(Error::Busy);
        }
        let accepted = match state.accept(commit, Done::Callback(done)) {
            Ok(accepted) => accepted,
            Err(refusal) => return Err(refusal.error),
        };
        let lead = self.claim(&mut state);
        drop(state);
        self.wake(lead);
        if let Accepted::Buffered(done, receipt) = accepted {
            done.tell(Ok(receipt));
        }
        Ok(())
    }

    /// Hands a commit in; when there is no room, it waits.
    pub(crate) fn commit(self: &Arc<Self>, commit: Commit) -> Submitted {
        let mut state = self.state.lock();
        let submitted = self.commit_locked(&mut state, commit);
        let lead = self.claim(&mut state);
        drop(state);
        self.wake(lead);
        submitted
    }

    fn commit_locked(self: &Arc<Self>, state: &mut State, commit: Commit) -> Submitted {
        if let Err(error) = self.check_owner(&commit) {
            return Submitted::Told(Err(error));
        }
        let commit = if state.someone_waits() && state.refused.is_none() {
            commit
        } else {
            let slot = Slot::accepted();
            match state.accept(commit, Done::Slot(Arc::clone(&slot))) {
                Ok(Accepted::Queued) => return Submitted::Later(slot),
                Ok(Accepted::Buffered(_, receipt)) => return Submitted::Told(Ok(receipt)),
                Err(refusal) => match *refusal {
                    Refusal { commit: Some(commit), .. } => commit,
                    Refusal { error, .. } => return Submitted::Told(Err(error)),
                },
            }
        };
        let slot = Slot::waiting(commit);
        match state.wait_for_room(Arc::clone(&slot)) {
            Ok(()) => Submitted::Later(slot),
            Err(error) => Submitted::Told(Err(error)),
        }
    }

    fn check_owner(self: &Arc<Self>, commit: &Commit) -> Result<(), Error> {
        if commit.operations.iter().all(|operation| operation.log.belongs_to(self)) {
            Ok(())
        } else {
            Err(Error::ForeignLog)
        }
    }

    /// Hands a commit in and leads until it is done, or waits for who leads.
    pub(crate) fn commit_blocking(self: &Arc<Self>, commit: Commit) -> Result<Receipt, Error> {
        let mut state = self.state.lock();
        let submitted = self.commit_locked(&mut state, commit);
        let slot = match submitted {
            Submitted::Told(outcome) => {
                // A buffered commit still has to be written by somebody.
                let lead = self.claim(&mut state);
                drop(state);
                self.wake(lead);
                return outcome;
            }
            Submitted::Later(slot) => slot,
        };
        if self.options.manual {
            while state.leading {
                self.idle.wait(&mut state);
            }
        }
        let lead = !state.leading;
        state.leading = true;
        drop(state);
        if lead { self.lead_until_done(&slot) } else { wait_for(&slot) }
    }

    fn lead_until_done(&self, slot: &Slot) -> Result<Receipt, Error> {
        loop {
            if let Some(outcome) = slot.poll_thread() {
                self.hand_over();
                return outcome;
            }
            self.run_group(0);
        }
    }

    /// The leader has what it wanted: the writer thread goes on if anything waits.
    pub(crate) fn hand_over(&self) {
        self.finish_due_close();
        let mut state = self.state.lock();
        let more = !state.is_empty() && !self.options.manual;
        if !more {
            state.leading = false;
            self.idle.notify_all();
        }
        drop(state);
        if more {
            self.wake(true);
        } else if !self.options.manual && !self.mark_is_due.swap(true, Ordering::AcqRel) {
            // The writer thread sleeps without a limit while nothing has to be marked.
            self.unpark_writer();
        }
    }

    /// As [`hand_over`](Self::hand_over), by the writer thread itself.
    pub(crate) fn hand_over_after_mark(&self) {
        self.finish_due_close();
        let mut state = self.state.lock();
        if state.is_empty() {
            state.leading = false;
            self.idle.notify_all();
        } else {
            self.writer_leads.store(true, Ordering::Release);
        }
    }

    /// Takes the lead for the writer thread, if there is one and nobody leads.
    fn claim(&self, state: &mut State) -> bool {
        let claims = !self.options.manual && !state.leading && !state.is_empty();
        state.leading |= claims;
        claims
    }

    /// Tells the writer thread that it leads.
    fn wake(&self, lead: bool) {
        if lead {
            self.writer_leads.store(true, Ordering::Release);
            self.unpark_writer();
        }
    }

    pub(crate) fn unpark_writer(&self) {
        if let Some(thread) = &*self.thread.lock() {
            thread.unpark();
        }
    }

    /// How many commits have been accepted and not yet taken.
    pub(crate) fn waiting_commits(&self) -> usize {
        self.state.lock().waiting_commits()
    }

    /// Takes the lead when nobody has it.
    pub(crate) fn try_lead(&self) -> bool {
        let mut state = self.state.lock();
        let lead = !state.leading;
        state.leading = true;
        lead
    }

    /// Waits for the lead.
    fn lead(&self) {
        let mut state = self.state.lock();
        while state.leading {
            self.idle.wait(&mut state);
        }
        state.leading = true;
    }

    fn stop_leading(&self) {
        self.state.lock().leading = false;
        self.idle.notify_all();
    }

    /// Takes no more commits, writes those accepted, and marks the end. From within a callback
    /// that is only asked for.
    pub(crate) fn close(&self) -> Result<Closed, Error> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(Closed::Before);
        }
        let told = self.state.lock().refuse_new(Error::Closed);
        tell(told);
        if *self.leader.lock() == Some(std::thread::current().id()) {
            self.close_is_due.store(true, Ordering::Release);
            return Ok(Closed::Soon);
        }
        self.lead();
        let outcome = self.finish_close();
        self.stop_leading();
        outcome.map(|()| Closed::Now)
    }

    /// Finishes a close that was asked for from within a callback, which runs inside the group
    /// of whoever leads.
    fn finish_due_close(&self) {
        if self.close_is_due.swap(false, Ordering::AcqRel) {
            // Who asked for it has gone on; a failure has been logged.
            let _ = self.finish_close();
        }
    }

    /// Only whoever leads calls this.
    fn finish_close(&self) -> Result<(), Error> {
        while self.run_group(0) > 0 {}
        // A keeper in the middle of its work must not be waited for.
        self.space.stop();
        let outcome = match self.refusal() {
            Some(Error::Closed) | None => {
                let closed = self.seal_full_segments().and_then(|()| self.mark_closed());
                closed.map_err(|fault| {
                    self.stop(&fault);
                    Error::Failed { fault }
                })
            }
            Some(error) => Err(error),
        };
        self.unpark_writer();
        *self.guard.lock() = None;
        self.wake_all_followers();
        outcome
    }

    /// Marks the end in the log and, as the last frame has none behind it that could tell of its
    /// loss, in the manifest.
    fn mark_closed(&self) -> Result<(), Fault> {
        self.mark(true)?;
        self.keeper.lock().note_durable(self.durable_lsn())
    }

    /// What can be done now, without a thread: one group, else one segment, else a mark.
    pub(crate) fn work(&self, now: u64) -> crate::journal::Work {
        use crate::journal::Work;
        if self.closed.load(Ordering::Acquire) || !self.try_lead() {
            return Work::Idle;
        }
        let work = self.work_leading(now);
        self.finish_due_close();
        self.stop_leading();
        work
    }

    fn work_leading(&self, now: u64) -> crate::journal::Work {
        use crate::journal::Work;
        let commits = self.run_group(now);
        if commits > 0 {
            return Work::Committed { commits };
        }
        if self.refusal().is_some() {
            return Work::Idle;
        }
        if self.options.manual && self.space.need() == super::space::Need::Spare {
            match self.prepare() {
                Ok(true) => return Work::Prepared,
                Ok(false) => {}
                Err(fault) => {
                    self.stop(&fault);
                    return Work::Idle;
                }
            }
        }
        let last = self.writer.lock().last_activity;
        let due = last.saturating_add(self.options.idle_mark.as_nanos() as u64);
        if now < due {
            return Work::Idle;
        }
        match self.mark(false) {
            Ok(true) => Work::Marked,
            Ok(false) => Work::Idle,
            Err(fault) => {
                self.stop(&fault);
                Work::Idle
            }
        }
    }
}

fn wait_for(slot: &Slot) -> Result<Receipt, Error> {
    loop {
        if let Some(outcome) = slot.poll_thread() {
            return outcome;
        }
        std::thread::park();
    }
}
