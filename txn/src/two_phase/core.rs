//! One transaction as a state machine, from the side of its coordinator: presumed abort (Mohan,
//! Lindsay, Obermarck 1986). No task, clock or store.
//!
//! Of a transaction only the decision to commit is recorded. A transaction that is neither active
//! nor recorded has aborted.

use std::collections::VecDeque;

use super::gid::{Gid, TxnId};

/// What becomes of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Its effects stay.
    Commit,
    /// It has no effect.
    Abort,
}

/// When [`Txn::commit`](super::Txn::commit) returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Ack {
    /// As soon as the decision is durable. A reader may find a participant that has not applied it
    /// yet.
    #[default]
    Decided,
    /// When each participant has applied it, or once a later coordinator has taken over, which
    /// tells the others.
    Applied,
}

/// A decision that a participant took alone, against or without its coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Heuristic {
    /// The branch was committed though the transaction aborted.
    #[error("committed though the transaction aborted")]
    Committed,
    /// The branch was rolled back or lost though the transaction committed.
    #[error("rolled back or lost though the transaction committed")]
    RolledBack,
}

/// Position of a branch in its transaction.
pub(crate) type BranchNo = u32;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// A branch began. Only while the transaction is active.
    Enlist,
    Commit(Ack),
    Abort(String),
    Voted(BranchNo, Voted),
    /// The write-once register says what won; `None`: the store failed.
    Decided(Option<Decision>),
    /// The register took no commit, and will take none, because another coordinator decides.
    NotHere(String),
    Finished(BranchNo, Finished),
    Tick,
}

/// How a participant voted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Voted {
    Prepared,
    ReadOnly,
    /// It has no effect, now or later.
    Refused(String),
    /// It may be prepared, or become so.
    Unknown(String),
}

/// How a participant answered a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finished {
    /// Applied, now or before.
    Done,
    Heuristic(Heuristic),
    /// To be tried again.
    Failed,
    /// A later coordinator tells the branches of this transaction.
    Superseded,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Prepare(BranchNo),
    /// Record the commit and the branches that are prepared, unless an abort was recorded first.
    Decide(Vec<BranchNo>),
    Finish(BranchNo, Decision),
    Answer(Answer),
    /// Nothing is left to do. `forget`: the record of the commit is no longer needed.
    Ended {
        forget: bool,
    },
    /// A later coordinator does what is left to do. Participants still need what they remember.
    HandedOver,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Committed,
    Aborted(String),
    /// Aborted, because another coordinator decides.
    NotHere(String),
    /// The store failed at the decision.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Branch {
    Active,
    Preparing,
    Prepared,
    /// It needs no decision: it read only, refused, or has applied the decision.
    Settled,
    /// The decision was sent, for the n-th time.
    Finishing(u32),
    /// The decision is sent again at this time.
    Waiting {
        at: u64,
        attempts: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Active,
    Preparing,
    Deciding,
    Finishing(Decision),
    /// The decision is unknown here; the next coordinator finds it in the store.
    Halted,
    Ended,
}

/// Times of one transaction, in ns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// A transaction that is still active after this long is aborted.
    pub(crate) active: u64,
    /// A vote that takes longer counts as unknown.
    pub(crate) prepare: u64,
    /// The first pause before a decision is sent again; it doubles up to `max_pause`.
    pub(crate) pause: u64,
    pub(crate) max_pause: u64,
}

#[derive(Debug)]
pub(crate) struct Transaction {
    times: Times,
    phase: Phase,
    branches: Vec<Branch>,
    /// Of the active phase, then of the votes.
    deadline: u64,
    ack: Ack,
    /// Invariant: an answer is given once, and never before it is final.
    answered: bool,
    outputs: VecDeque<Output>,
}

impl Transaction {
    pub(crate) fn new(now: u64, times: Times) -> Self {
        Self {
            times,
            phase: Phase::Active,
            branches: Vec::new(),
            deadline: now.saturating_add(times.active),
            ack: Ack::Decided,
            answered: false,
            outputs: VecDeque::new(),
        }
    }

    /// A committed transaction whose record was found when the log was opened: `prepared` are the
    /// branches that have to be told.
    pub(crate) fn committed(times: Times, prepared: &[BranchNo]) -> Self {
        let mut txn = Self::new(0, times);
        let count = prepared.iter().max().map_or(0, |last| *last as usize + 1);
        txn.branches = vec![Branch::Settled; count];
        for branch in prepared {
            txn.branches[*branch as usize] = Branch::Prepared;
        }
        txn.answered = true;
        txn.finish(Decision::Commit);
        txn
    }

    pub(crate) fn step(&mut self, now: u64, input: Input) {
        match (input, self.phase) {
            (Input::Enlist, Phase::Active) => self.branches.push(Branch::Active),
            (Input::Commit(ack), Phase::Active) => self.prepare(now, ack),
            (Input::Abort(why), Phase::Active | Phase::Preparing) => self.abort(why),
            (Input::Voted(branch, vote), Phase::Preparing) => self.voted(branch, vote),
            (Input::Voted(branch, vote), Phase::Finishing(Decision::Abort)) => {
                self.voted_late(branch, &vote);
            }
            (Input::Decided(won), Phase::Deciding) => self.decided(won),
            (Input::NotHere(why), Phase::Deciding) => {
                self.answer(Answer::NotHere(why));
                self.finish(Decision::Abort);
            }
            (Input::Finished(_, Finished::Superseded), Phase::Finishing(decision)) => {
                self.hand_over(decision);
            }
            (Input::Finished(branch, how), Phase::Finishing(decision)) => {
                self.finished(now, branch, how, decision);
            }
            (Input::Tick, _) => self.tick(now),
            _ => {}
        }
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        match self.phase {
            Phase::Active | Phase::Preparing => Some(self.deadline),
            Phase::Finishing(_) => self
                .branches
                .iter()
                .filter_map(|branch| match branch {
                    Branch::Waiting { at, .. } => Some(*at),
                    Branch::Preparing => Some(self.deadline),
                    _ => None,
                })
                .min(),
            Phase::Deciding | Phase::Halted | Phase::Ended => None,
        }
    }

    fn prepare(&mut self, now: u64, ack: Ack) {
        self.ack = ack;
        self.phase = Phase::Preparing;
        self.deadline = now.saturating_add(self.times.prepare);
        for (branch, number) in self.branches.iter_mut().zip(0..) {
            *branch = Branch::Preparing;
            self.outputs.push_back(Output::Prepare(number));
        }
        self.decide_if_all_voted();
    }

    fn voted(&mut self, number: BranchNo, vote: Voted) {
        let Some(branch) = self.branches.get_mut(number as usize) else { return };
        if *branch != Branch::Preparing {
            return;
        }
        match vote {
            Voted::Prepared => *branch = Branch::Prepared,
            Voted::ReadOnly => *branch = Branch::Settled,
            Voted::Refused(why) => {
                *branch = Branch::Settled;
                return self.abort(why);
            }
            Voted::Unknown(why) => {
                // Told with the others: no vote is waited for any more.
                *branch = Branch::Active;
                return self.abort(why);
            }
        }
        self.decide_if_all_voted();
    }

    /// A vote for a transaction that another branch has aborted meanwhile.
    fn voted_late(&mut self, number: BranchNo, vote: &Voted) {
        let Some(branch) = self.branches.get_mut(number as usize) else { return };
        if *branch != Branch::Preparing {
            return;
        }
        match vote {
            Voted::ReadOnly | Voted::Refused(_) => *branch = Branch::Settled,
            Voted::Prepared | Voted::Unknown(_) => {
                *branch = Branch::Finishing(1);
                self.outputs.push_back(Output::Finish(number, Decision::Abort));
            }
        }
        self.end_if_settled(Decision::Abort);
    }

    fn decide_if_all_voted(&mut self) {
        if self.branches.contains(&Branch::Preparing) {
            return;
        }
        let is_prepared = |(branch, _): &(&Branch, BranchNo)| **branch == Branch::Prepared;
        let prepared = self.branches.iter().zip(0..).filter(is_prepared);
        let prepared: Vec<BranchNo> = prepared.map(|(_, number)| number).collect();
        if prepared.is_empty() {
            // Nothing was written: there is nothing to decide.
            self.answer(Answer::Committed);
            self.end(false);
        } else {
            self.phase = Phase::Deciding;
            self.outputs.push_back(Output::Decide(prepared));
        }
    }

    fn decided(&mut self, won: Option<Decision>) {
        match won {
            Some(Decision::Commit) => {
                if self.ack == Ack::Decided {
                    self.answer(Answer::Committed);
                }
                self.finish(Decision::Commit);
            }
            Some(Decision::Abort) => {
                self.abort("the log of decisions holds an abort, or took no commit".to_owned());
            }
            None => {
                self.phase = Phase::Halted;
                self.answer(Answer::Unknown);
            }
        }
    }

    fn abort(&mut self, why: String) {
        self.answer(Answer::Aborted(why));
        self.finish(Decision::Abort);
    }

    /// Sends the decision to every branch that may be prepared. One that is voting is told when its
    /// vote has come, or does not come in time: an abort that overtakes the vote would find nothing
    /// prepared, and the branch would keep its locks until the next recovery.
    fn finish(&mut self, decision: Decision) {
        self.phase = Phase::Finishing(decision);
        for (branch, number) in self.branches.iter_mut().zip(0..) {
            if !matches!(*branch, Branch::Settled | Branch::Preparing) {
                *branch = Branch::Finishing(1);
                self.outputs.push_back(Output::Finish(number, decision));
            }
        }
        self.end_if_settled(decision);
    }

    fn finished(&mut self, now: u64, number: BranchNo, how: Finished, decision: Decision) {
        let Some(branch) = self.branches.get_mut(number as usize) else { return };
        let Branch::Finishing(attempts) = *branch else { return };
        match how {
            Finished::Done | Finished::Heuristic(_) => *branch = Branch::Settled,
            Finished::Failed | Finished::Superseded => {
                let doubled =
                    self.times.pause.saturating_mul(1 << attempts.min(30).saturating_sub(1));
                let at = now.saturating_add(doubled.min(self.times.max_pause));
                *branch = Branch::Waiting { at, attempts };
            }
        }
        self.end_if_settled(decision);
    }

    fn end_if_settled(&mut self, decision: Decision) {
        if self.branches.iter().all(|branch| *branch == Branch::Settled) {
            if decision == Decision::Commit {
                self.answer(Answer::Committed);
            }
            self.end(decision == Decision::Commit);
        }
    }

    /// The decision stands, whoever tells it.
    fn hand_over(&mut self, decision: Decision) {
        if decision == Decision::Commit {
            self.answer(Answer::Committed);
        }
        self.phase = Phase::Ended;
        self.outputs.push_back(Output::HandedOver);
    }

    fn end(&mut self, forget: bool) {
        self.phase = Phase::Ended;
        self.outputs.push_back(Output::Ended { forget });
    }

    fn tick(&mut self, now: u64) {
        match self.phase {
            Phase::Active if now >= self.deadline => {
                self.abort("the transaction's time is over".to_owned());
            }
            Phase::Preparing if now >= self.deadline => {
                self.abort("a participant did not vote in time".to_owned());
                // Those that did not vote are told as well.
                self.tick(now);
            }
            Phase::Finishing(decision) => {
                for (branch, number) in self.branches.iter_mut().zip(0..) {
                    let attempts = match *branch {
                        Branch::Waiting { at, attempts } if now >= at => attempts,
                        Branch::Preparing if now >= self.deadline => 0,
                        _ => continue,
                    };
                    *branch = Branch::Finishing(attempts.saturating_add(1));
                    self.outputs.push_back(Output::Finish(number, decision));
                }
            }
            _ => {}
        }
    }

    fn answer(&mut self, answer: Answer) {
        if !self.answered {
            self.answered = true;
            self.outputs.push_back(Output::Answer(answer));
        }
    }
}

/// Whether nobody will tell a branch that a participant holds prepared, so that the recovery aborts
/// it. A transaction with a recorded commit is active until all its branches have been told.
///
/// `is_active` is asked after the list of prepared branches was taken, and is also true of
/// transactions that ended since the list was asked for.
pub(crate) fn is_orphan(
    gid: &Gid,
    coordinator: &str,
    epoch: u64,
    is_active: impl Fn(TxnId) -> bool,
) -> bool {
    // A larger epoch: a later coordinator of this name took over.
    gid.coordinator() == coordinator && gid.txn().epoch <= epoch && !is_active(gid.txn())
}
