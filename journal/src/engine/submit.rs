//! Handing commits in, and who leads: the writer thread, a blocking caller, or `work`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Engine;
use super::completion::{Done, Outcome, Slot};
use super::lead::Lead;
use super::rewrite::Rewritten;
use crate::commit::{Commit, Receipt, Rejected};
use crate::core::queue::{Accepted, Rejection, State};
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
    /// The present leader finishes the close.
    Soon,
    /// It was closed already, or another thread is closing it.
    Before,
}

/// What [`Journal::work`](crate::Journal::work) did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Work {
    /// There was nothing to do, or another thread is writing.
    Idle,
    /// A group was written, and these many commits were told their outcome.
    Committed {
        /// How many.
        commits: usize,
    },
    /// A segment was made ready for use.
    Prepared,
    /// Some of what counts in segments that are pinned by little was moved, or is about to be.
    Rewritten,
    /// Everything was made durable, and a mark says so.
    Marked,
}

impl Engine {
    /// Hands a commit in. When there is no room it waits, if it `may_wait`, and is given back
    /// otherwise.
    pub(crate) fn submit(
        self: &Arc<Self>,
        commit: Commit,
        done: Box<dyn FnOnce(Outcome) + Send>,
        may_wait: bool,
    ) -> Result<(), Box<Rejected>> {
        if let Err(error) = self.check_owner(&commit) {
            return Err(Box::new(Rejected { error, commit }));
        }
        let done = Done::Callback(done);
        let mut state = self.state.lock();
        let accepted = if state.has_waiters() && state.rejected.is_none() {
            let error = state.too_many_bytes();
            Err(Box::new(Rejection { error, done, commit }))
        } else {
            state.accept(commit, done)
        };
        let accepted = accepted.or_else(|rejection| {
            if !may_wait || !rejection.may_wait() {
                return Err(rejection);
            }
            let Rejection { commit, done, .. } = *rejection;
            state.wait_in_turn(Slot::passing_on(commit, done));
            Ok(Accepted::Queued)
        });
        let claim = self.claim(&mut state);
        drop(state);
        self.deliver(claim);
        match accepted {
            Ok(Accepted::Queued) => Ok(()),
            Ok(Accepted::Buffered(done, receipt)) => {
                done.tell(Ok(receipt));
                Ok(())
            }
            Err(rejection) => {
                let Rejection { error, commit, .. } = *rejection;
                Err(Box::new(Rejected { error, commit }))
            }
        }
    }

    /// Hands a commit in; when there is no room, it waits.
    pub(crate) fn commit(self: &Arc<Self>, commit: Commit) -> Submitted {
        let mut state = self.state.lock();
        let submitted = self.commit_locked(&mut state, commit);
        let claim = self.claim(&mut state);
        drop(state);
        self.deliver(claim);
        submitted.unwrap_or_else(|rejection| Submitted::Told(Err(rejection.error)))
    }

    /// The rejection is to be dropped without the lock.
    fn commit_locked(
        self: &Arc<Self>,
        state: &mut State,
        commit: Commit,
    ) -> Result<Submitted, Box<Rejection>> {
        if let Err(error) = self.check_owner(&commit) {
            return Err(Box::new(Rejection { error, done: Done::Nobody, commit }));
        }
        let commit = if state.has_waiters() && state.rejected.is_none() {
            commit
        } else {
            let slot = Slot::accepted();
            match state.accept(commit, Done::Slot(Arc::clone(&slot))) {
                Ok(Accepted::Queued) => return Ok(Submitted::Later(slot)),
                Ok(Accepted::Buffered(_, receipt)) => return Ok(Submitted::Told(Ok(receipt))),
                Err(rejection) if rejection.may_wait() => rejection.commit,
                Err(rejection) => return Err(rejection),
            }
        };
        let slot = Slot::waiting(commit);
        match state.wait_for_room(Arc::clone(&slot)) {
            Ok(()) => Ok(Submitted::Later(slot)),
            Err(error) => {
                let (done, commit) = (Done::Slot(slot), Commit::new());
                Err(Box::new(Rejection { error, done, commit }))
            }
        }
    }

    /// Called when the future of a commit is dropped. A commit that has not been accepted never
    /// will be, and its place in the line is free at once.
    pub(crate) fn abandon(&self, slot: &Arc<Slot>) {
        if let Some(commit) = slot.abandon() {
            self.state.lock().stop_waiting(slot);
            drop(commit);
        }
    }

    fn check_owner(&self, commit: &Commit) -> Result<(), Error> {
        if commit.operations.iter().all(|operation| operation.opening == self.opening) {
            Ok(())
        } else {
            Err(Error::ForeignLog)
        }
    }

    /// Hands a commit in and leads until it is done, or waits for who leads.
    pub(crate) fn commit_blocking(self: &Arc<Self>, commit: Commit) -> Result<Receipt, Error> {
        let mut state = self.state.lock();
        if state.lead.is_taken() && self.is_leader() {
            return Err(Error::FromCallback);
        }
        let submitted = self.commit_locked(&mut state, commit);
        let slot = match submitted {
            Ok(Submitted::Later(slot)) => slot,
            told => {
                // A buffered commit is acknowledged, and still has to be written.
                let claim = self.claim(&mut state);
                drop(state);
                self.deliver(claim);
                return match told {
                    Ok(Submitted::Told(outcome)) => outcome,
                    Ok(Submitted::Later(slot)) => wait_for(&slot),
                    Err(rejection) => Err(rejection.error),
                };
            }
        };
        let lead = self.lead_to_commit(&mut state);
        drop(state);
        match lead {
            Some(lead) => lead.run_until_done(&slot),
            None => wait_for(&slot),
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
        let told = self.state.lock().reject_new(&Error::Closed);
        told.tell();
        self.halted.wake_all();
        if self.is_leader() {
            self.leadership.close_later();
            return Ok(Closed::Soon);
        }
        let lead = self.lead();
        let outcome = lead.finish_close();
        lead.give_up();
        outcome.map(|()| Closed::Now)
    }

    /// What can be done now, without a thread: one group, else one segment, else a mark.
    pub(crate) fn work(&self, now: u64) -> Work {
        if self.closed.load(Ordering::Acquire) {
            return Work::Idle;
        }
        let Some(lead) = self.try_lead() else { return Work::Idle };
        let work = lead.work(now);
        lead.give_up();
        work
    }
}

impl Lead<'_> {
    /// Ends when the commit has been told: each round writes a group or finds that none waits,
    /// and the commit is among those that wait.
    fn run_until_done(self, slot: &Slot) -> Result<Receipt, Error> {
        loop {
            if let Some(outcome) = slot.poll_thread() {
                self.hand_over();
                return outcome;
            }
            self.run_group(0);
        }
    }

    /// Writes what was accepted, marks the end, and releases the directory.
    pub(super) fn finish_close(&self) -> Result<(), Error> {
        let engine = self.engine;
        // Ends because nothing new is accepted.
        while self.run_group(0) > 0 {}
        // A keeper in the middle of its work must not be waited for.
        engine.space.stop();
        let outcome = match engine.rejection() {
            Some(Error::Closed) | None => {
                let closed = engine.seal_full_segments().and_then(|()| self.mark_closed());
                closed.map_err(|fault| {
                    engine.stop(&fault);
                    Error::Failed { fault }
                })
            }
            Some(error) => {
                // What the keeper is writing ends before the directory is free; from now on it
                // sees that the journal has stopped.
                drop(engine.keeper.lock());
                Err(error)
            }
        };
        engine.leadership.unpark_writer();
        *engine.guard.lock() = None;
        engine.wake_all_followers();
        outcome
    }

    /// Marks the end in the log and, as the last frame has none behind it that could tell of its
    /// loss, in the manifest.
    fn mark_closed(&self) -> Result<(), Fault> {
        self.mark(true)?;
        self.engine.keeper.lock().note_durable(self.engine.durable_lsn())
    }

    fn work(&self, now: u64) -> Work {
        let engine = self.engine;
        let commits = self.run_group(now);
        if commits > 0 {
            return Work::Committed { commits };
        }
        if engine.rejection().is_some() {
            return Work::Idle;
        }
        let wanted =
            || engine.space.need() == super::space::Need::Spare || engine.space.try_again(now);
        if engine.config.manual && wanted() {
            match engine.prepare() {
                Ok(true) => return Work::Prepared,
                Ok(false) => {}
                Err(fault) => {
                    engine.stop(&fault);
                    return Work::Idle;
                }
            }
        }
        if engine.config.manual && engine.space.need() == super::space::Need::Rewrite {
            let done = engine.rewrite(Some(&mut engine.writer.lock()));
            match done {
                Ok(Rewritten::Nothing) => {}
                Ok(Rewritten::Moved(_) | Rewritten::Ended) => return Work::Rewritten,
                Err(fault) => {
                    engine.stop(&fault);
                    return Work::Idle;
                }
            }
        }
        let last = engine.writer.lock().last_activity;
        let due = last.saturating_add(super::space::nanos(engine.config.idle_mark));
        if now < due {
            return Work::Idle;
        }
        match self.mark(false) {
            Ok(true) => Work::Marked,
            Ok(false) => Work::Idle,
            Err(fault) => {
                engine.stop(&fault);
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
