//! Handing commits in, and who leads: the writer thread, a blocking caller, or `work`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Core;
use super::completion::{Done, Outcome, Slot};
use super::lead::Lead;
use super::queue::{Accepted, Refusal, State};
use crate::commit::{Commit, Receipt, Rejected};
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
    /// Hands a commit in; when there is no room, gives it back.
    pub(crate) fn submit(
        self: &Arc<Self>,
        commit: Commit,
        done: Box<dyn FnOnce(Outcome) + Send>,
    ) -> Result<(), Box<Rejected>> {
        if let Err(error) = self.check_owner(&commit) {
            return Err(Box::new(Rejected { error, commit }));
        }
        let mut state = self.state.lock();
        if state.someone_waits() && state.refused.is_none() {
            let error = state.too_many_bytes();
            return Err(Box::new(Rejected { error, commit }));
        }
        let accepted = state.accept(commit, Done::Callback(done));
        let lead = self.claim(&mut state);
        drop(state);
        self.wake(lead);
        match accepted {
            Ok(Accepted::Queued) => Ok(()),
            Ok(Accepted::Buffered(done, receipt)) => {
                done.tell(Ok(receipt));
                Ok(())
            }
            Err(refusal) => {
                let Refusal { error, commit, .. } = *refusal;
                Err(Box::new(Rejected { error, commit }))
            }
        }
    }

    /// Hands a commit in; when there is no room, it waits.
    pub(crate) fn commit(self: &Arc<Self>, commit: Commit) -> Submitted {
        let mut state = self.state.lock();
        let submitted = self.commit_locked(&mut state, commit);
        let lead = self.claim(&mut state);
        drop(state);
        self.wake(lead);
        submitted.unwrap_or_else(|refusal| Submitted::Told(Err(refusal.error)))
    }

    /// The refusal is to be dropped without the lock.
    fn commit_locked(
        self: &Arc<Self>,
        state: &mut State,
        commit: Commit,
    ) -> Result<Submitted, Box<Refusal>> {
        if let Err(error) = self.check_owner(&commit) {
            return Err(Box::new(Refusal { error, done: Done::Nobody, commit }));
        }
        let commit = if state.someone_waits() && state.refused.is_none() {
            commit
        } else {
            let slot = Slot::accepted();
            match state.accept(commit, Done::Slot(Arc::clone(&slot))) {
                Ok(Accepted::Queued) => return Ok(Submitted::Later(slot)),
                Ok(Accepted::Buffered(_, receipt)) => return Ok(Submitted::Told(Ok(receipt))),
                Err(refusal) if refusal.may_wait() => refusal.commit,
                Err(refusal) => return Err(refusal),
            }
        };
        let slot = Slot::waiting(commit);
        match state.wait_for_room(Arc::clone(&slot)) {
            Ok(()) => Ok(Submitted::Later(slot)),
            Err(error) => {
                let (done, commit) = (Done::Slot(slot), Commit::new());
                Err(Box::new(Refusal { error, done, commit }))
            }
        }
    }

    /// Whoever waited for this commit has gone. A commit that has not been accepted never will be,
    /// and its place in the line is free at once.
    pub(crate) fn abandon(&self, slot: &Arc<Slot>) {
        if let Some(commit) = slot.abandon() {
            self.state.lock().stop_waiting(slot);
            drop(commit);
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
        if state.leading && self.is_leader() {
            return Err(Error::FromCallback);
        }
        let submitted = self.commit_locked(&mut state, commit);
        let slot = match submitted {
            Ok(Submitted::Later(slot)) => slot,
            told => {
                // A buffered commit still has to be written by somebody.
                let lead = self.claim(&mut state);
                drop(state);
                self.wake(lead);
                return match told {
                    Ok(Submitted::Told(outcome)) => outcome,
                    Ok(Submitted::Later(slot)) => wait_for(&slot),
                    Err(refusal) => Err(refusal.error),
                };
            }
        };
        if self.options.manual {
            // Ends when the present leader gives the lead up, after one group.
            while state.leading {
                self.idle.wait(&mut state);
            }
        }
        let free = !state.leading;
        state.leading = true;
        drop(state);
        if free { self.lead_until_done(self.assume_lead(), &slot) } else { wait_for(&slot) }
    }

    /// Ends when the commit has been told: each round writes a group or finds that none waits,
    /// and the commit is among those that wait.
    fn lead_until_done(&self, lead: Lead<'_>, slot: &Slot) -> Result<Receipt, Error> {
        loop {
            if let Some(outcome) = slot.poll_thread() {
                lead.hand_over();
                return outcome;
            }
            self.run_group(0);
        }
    }

    /// Takes the lead for the writer thread, if there is one and nobody leads.
    fn claim(&self, state: &mut State) -> bool {
        let claims = !self.options.manual && !state.leading && !state.is_empty();
        state.leading |= claims;
        claims
    }

    /// Tells the writer thread that it leads.
    pub(crate) fn wake(&self, lead: bool) {
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

    /// Takes no more commits, writes those accepted, and marks the end. From within a callback
    /// that is only asked for.
    pub(crate) fn close(&self) -> Result<Closed, Error> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(Closed::Before);
        }
        let told = self.state.lock().refuse_new(&Error::Closed);
        told.tell();
        if self.is_leader() {
            self.close_is_due.store(true, Ordering::Release);
            return Ok(Closed::Soon);
        }
        let lead = self.lead();
        let outcome = self.finish_close();
        lead.give_up();
        outcome.map(|()| Closed::Now)
    }

    /// Finishes a close that was asked for from within a callback, which runs inside the group
    /// of whoever leads.
    pub(crate) fn finish_due_close(&self) {
        if self.close_is_due.swap(false, Ordering::AcqRel) {
            // Who asked for it has gone on; a failure has been logged.
            let _ = self.finish_close();
        }
    }

    /// Only whoever leads calls this.
    fn finish_close(&self) -> Result<(), Error> {
        // Ends because nothing new is accepted.
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
        if self.closed.load(Ordering::Acquire) {
            return Work::Idle;
        }
        let Some(lead) = self.try_lead() else { return Work::Idle };
        let work = self.work_leading(now);
        lead.give_up();
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
        let wanted = || self.space.need() == super::space::Need::Spare || self.space.try_again(now);
        if self.options.manual && wanted() {
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
        let due = last.saturating_add(super::space::nanos(self.options.idle_mark));
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
