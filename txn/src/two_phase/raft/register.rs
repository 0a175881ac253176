//! The decisions of one coordinator as a replicated state: a write-once register for each
//! transaction. No clock, no task: a step depends on the state and the command alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::core::{Decision, Heuristic};
use super::super::gid::{Gid, TxnId};
use super::super::log::{Committed, HeuristicOutcome};

/// Bytes of all records of commits and heuristic outcomes together, as [`cost`] counts them.
/// Beyond it a commit is answered by an abort: its branches are let go, and nothing is lost.
pub(crate) const MAX_STATE_BYTES: usize = 64 << 20;
/// Aborts that are recorded in one epoch. Only a coordinator that could not learn what became of a
/// commit records one; the next epoch forgets them all.
pub(crate) const MAX_ABORTED: usize = 100_000;

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// A coordinator begins a new epoch, above `after`. What the earlier ones have not recorded
    /// aborts. One with the `nonce` of the latest epoch is a repetition, and begins none.
    Open {
        coordinator: Arc<str>,
        after: u64,
        nonce: u64,
    },
    /// The transaction commits, unless an abort stands. Proposed once for each transaction.
    Commit(Committed),
    /// The transaction aborts, unless a commit stands.
    Abort(TxnId),
    /// All branches of a committed transaction were told, by the coordinator of epoch `by`.
    Forget {
        txn: TxnId,
        by: u64,
    },
    /// The coordinator of epoch `by` was told of a heuristic outcome.
    Report {
        outcome: HeuristicOutcome,
        by: u64,
    },
    Resolve(Gid),
}

/// What a command is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Opened {
        epoch: u64,
    },
    /// What stands in the register of the transaction, for ever.
    Decided(Decision),
    Done,
    /// There is no room for the record. Nothing was changed.
    Full,
    /// The epoch of the transaction ended so long ago that its commits may have been forgotten.
    Forgotten,
    /// A later coordinator tells the branches, forgets and reports. Nothing was changed.
    Superseded,
    /// The decisions are those of a coordinator of another name. Nothing was changed.
    OtherCoordinator,
    /// The bytes were no command. Nothing was changed.
    Malformed,
}

/// Invariants: no transaction is in two of `committed`, `aborted` and `told`; `committed` holds no
/// epoch above `epoch`; `bytes` is the sum of [`cost`] over `committed` and `heuristics`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Register {
    /// The epoch of the latest coordinator; 0 before the first.
    pub(super) epoch: u64,
    /// The name of all coordinators; `None` only before the first. The records name branches
    /// without it: under another name they would be other branches.
    pub(super) coordinator: Option<Arc<str>>,
    /// Of the command that began the epoch.
    pub(super) nonce: u64,
    /// Commits whose branches may not have been told.
    pub(super) committed: BTreeMap<TxnId, Arc<[Branch]>>,
    /// Transactions of this epoch whose abort was recorded.
    pub(super) aborted: BTreeSet<TxnId>,
    /// Commits of the epoch before this one that were forgotten since this one began. The
    /// coordinator of that epoch may still ask what became of them; without this set it would take
    /// a commit without a record for an abort. At most as many as stood when the epoch began.
    pub(super) told: BTreeSet<TxnId>,
    pub(super) heuristics: BTreeMap<Gid, (Arc<str>, Heuristic)>,
    pub(super) bytes: usize,
}

/// Number of a branch, and name of its participant.
pub(super) type Branch = (u32, Arc<str>);

/// Bytes that a record counts for.
pub(super) fn cost(names: impl IntoIterator<Item = usize>) -> usize {
    names.into_iter().map(|name| name + 32).sum::<usize>() + 64
}

fn cost_of_commit(branches: &[Branch]) -> usize {
    cost(branches.iter().map(|(_, name)| name.len()))
}

fn cost_of_heuristic(gid: &Gid, participant: &str) -> usize {
    cost([gid.to_string().len(), participant.len()])
}

impl Register {
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn committed(&self) -> Vec<Committed> {
        let record =
            |(txn, branches): (&TxnId, &Arc<[Branch]>)| Committed::new(*txn, branches.to_vec());
        self.committed.iter().map(record).collect()
    }

    pub(crate) fn heuristics(&self) -> Vec<HeuristicOutcome> {
        let record = |(gid, (participant, how)): (&Gid, &(Arc<str>, Heuristic))| {
            HeuristicOutcome::new(gid.clone(), Arc::clone(participant), *how)
        };
        self.heuristics.iter().map(record).collect()
    }

    /// The decision that stands for a transaction; `None` while it may still become either, or when
    /// it is too old for the register to know.
    pub(crate) fn decision(&self, txn: TxnId) -> Option<Decision> {
        if self.committed.contains_key(&txn) || self.told.contains(&txn) {
            return Some(Decision::Commit);
        }
        // A later epoch has begun: what the one before had not recorded by then never commits.
        let is_over = txn.epoch.checked_add(1) == Some(self.epoch);
        (is_over || self.aborted.contains(&txn)).then_some(Decision::Abort)
    }

    pub(crate) fn apply(&mut self, command: Command) -> Answer {
        match command {
            Command::Open { coordinator, after, nonce } => self.open(coordinator, after, nonce),
            Command::Commit(Committed { txn, branches }) => self.commit(txn, branches.into()),
            Command::Abort(txn) => self.abort(txn),
            Command::Forget { txn, by } => self.forget(txn, by),
            Command::Report { outcome, by } => self.report(outcome, by),
            Command::Resolve(gid) => {
                if let Some((participant, _)) = self.heuristics.remove(&gid) {
                    self.bytes -= cost_of_heuristic(&gid, &participant);
                }
                Answer::Done
            }
        }
    }

    fn open(&mut self, coordinator: Arc<str>, after: u64, nonce: u64) -> Answer {
        if self.coordinator.as_ref().is_some_and(|own| *own != coordinator) {
            return Answer::OtherCoordinator;
        }
        if self.epoch > 0 && self.nonce == nonce {
            return Answer::Opened { epoch: self.epoch };
        }
        let before = self.epoch.max(after);
        // The top is reserved: an epoch has a next one.
        if before >= u64::MAX - 1 {
            return Answer::Full;
        }
        (self.epoch, self.nonce) = (before + 1, nonce);
        self.coordinator = Some(coordinator);
        self.aborted.clear();
        self.told.clear();
        Answer::Opened { epoch: self.epoch }
    }

    fn commit(&mut self, txn: TxnId, branches: Arc<[Branch]>) -> Answer {
        if let Some(decision) = self.decision(txn) {
            return Answer::Decided(decision);
        }
        if txn.epoch != self.epoch {
            return Answer::Forgotten;
        }
        let cost = cost_of_commit(&branches);
        if self.bytes + cost > MAX_STATE_BYTES {
            return Answer::Full;
        }
        self.bytes += cost;
        self.committed.insert(txn, branches);
        Answer::Decided(Decision::Commit)
    }

    fn abort(&mut self, txn: TxnId) -> Answer {
        if let Some(decision) = self.decision(txn) {
            return Answer::Decided(decision);
        }
        if txn.epoch != self.epoch {
            return Answer::Forgotten;
        }
        if self.aborted.len() >= MAX_ABORTED {
            return Answer::Full;
        }
        self.aborted.insert(txn);
        Answer::Decided(Decision::Abort)
    }

    /// Only the latest coordinator forgets. Were an earlier one told `Done`, it would have the
    /// participants forget that they committed, while the later one still tells them to: they would
    /// answer as if they had lost the branch.
    fn forget(&mut self, txn: TxnId, by: u64) -> Answer {
        if by != self.epoch {
            return Answer::Superseded;
        }
        if let Some(branches) = self.committed.remove(&txn) {
            self.bytes -= cost_of_commit(&branches);
            if txn.epoch.checked_add(1) == Some(self.epoch) {
                self.told.insert(txn);
            }
        }
        Answer::Done
    }

    /// Only the latest coordinator reports a branch as rolled back. One that was replaced tells
    /// branches that the later one has told, and that have been forgotten since: to it they look
    /// lost. A branch that was committed though its transaction aborted is not prepared any more,
    /// so the later one never hears of it: whoever finds it reports it.
    fn report(&mut self, outcome: HeuristicOutcome, by: u64) -> Answer {
        let HeuristicOutcome { gid, participant, heuristic } = outcome;
        if by != self.epoch && heuristic == Heuristic::RolledBack {
            return Answer::Superseded;
        }
        let before = self.heuristics.get(&gid);
        let before = before.map_or(0, |(participant, _)| cost_of_heuristic(&gid, participant));
        let bytes = self.bytes - before + cost_of_heuristic(&gid, &participant);
        if bytes > MAX_STATE_BYTES {
            return Answer::Full;
        }
        self.bytes = bytes;
        self.heuristics.insert(gid, (participant, heuristic));
        Answer::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn txn(epoch: u64, number: u64) -> TxnId {
        TxnId { epoch, number }
    }

    fn open(register: &mut Register, after: u64, nonce: u64) -> Answer {
        register.apply(Command::Open { coordinator: "c".into(), after, nonce })
    }

    fn commit(register: &mut Register, txn: TxnId) -> Answer {
        register.apply(Command::Commit(Committed::new(txn, vec![(0, "left".into())])))
    }

    /// Two names in one group would each abort and forget what the other has committed.
    #[test]
    fn a_register_has_one_coordinator() {
        let mut register = Register::default();
        assert_eq!(open(&mut register, 0, 1), Answer::Opened { epoch: 1 });
        assert_eq!(commit(&mut register, txn(1, 0)), Answer::Decided(Decision::Commit));
        let before = register.clone();
        let other = Command::Open { coordinator: "d".into(), after: 0, nonce: 2 };
        assert_eq!(register.apply(other.clone()), Answer::OtherCoordinator);
        assert_eq!(register, before);
        // Also behind a snapshot.
        let mut restored = Register::decode(&register.encode()).unwrap();
        assert_eq!(restored, before);
        assert_eq!(restored.apply(other), Answer::OtherCoordinator);
    }

    #[test]
    fn an_opening_that_is_repeated_begins_one_epoch() {
        let mut register = Register::default();
        assert_eq!(open(&mut register, 0, 7), Answer::Opened { epoch: 1 });
        commit(&mut register, txn(1, 0));
        assert_eq!(open(&mut register, 0, 8), Answer::Opened { epoch: 2 });
        assert_eq!(open(&mut register, 0, 8), Answer::Opened { epoch: 2 });
        // The coordinator before still hears what became of its transactions.
        let aborted = Answer::Decided(Decision::Abort);
        assert_eq!(commit(&mut register, txn(1, 1)), aborted);
        assert_eq!(register.decision(txn(1, 0)), Some(Decision::Commit));
        assert_eq!(open(&mut register, 0, 9), Answer::Opened { epoch: 3 });
        assert_eq!(commit(&mut register, txn(1, 1)), Answer::Forgotten);
    }

    #[test]
    fn an_epoch_is_above_the_floor_and_below_the_top() {
        let mut register = Register::default();
        assert_eq!(open(&mut register, 41, 1), Answer::Opened { epoch: 42 });
        assert_eq!(open(&mut register, 41, 2), Answer::Opened { epoch: 43 });
        assert_eq!(open(&mut register, u64::MAX - 1, 3), Answer::Full);
        assert_eq!(open(&mut register, u64::MAX, 3), Answer::Full);
        assert_eq!(open(&mut register, u64::MAX - 2, 4), Answer::Opened { epoch: u64::MAX - 1 });
        let before = register.clone();
        assert_eq!(open(&mut register, 0, 5), Answer::Full, "no epoch is left");
        assert_eq!(register, before);
        assert_eq!(commit(&mut register, txn(u64::MAX - 1, 0)), Answer::Decided(Decision::Commit));
        assert_eq!(Register::decode(&register.encode()), Ok(register));
    }

    /// An operator commits one branch by hand, the next coordinator aborts the other: only the one
    /// that was replaced still tells the first, and hears of it.
    #[test]
    fn who_finds_a_branch_committed_against_an_abort_reports_it() {
        let mut register = Register::default();
        open(&mut register, 0, 1);
        open(&mut register, 0, 2);
        let gid: Gid = "vs1:c:1:0:1".parse().unwrap();
        let outcome = |how| HeuristicOutcome::new(gid.clone(), "right".into(), how);
        let report = |how, by| Command::Report { outcome: outcome(how), by };
        assert_eq!(register.apply(report(Heuristic::RolledBack, 1)), Answer::Superseded);
        assert_eq!(register.heuristics(), []);
        assert_eq!(register.apply(report(Heuristic::Committed, 1)), Answer::Done);
        assert_eq!(register.heuristics(), [outcome(Heuristic::Committed)]);
        assert_eq!(register.apply(report(Heuristic::RolledBack, 2)), Answer::Done);
        assert_eq!(register.heuristics(), [outcome(Heuristic::RolledBack)]);
        register.apply(Command::Resolve(gid));
        assert_eq!(register.bytes, 0);
    }

    #[test]
    fn records_are_bounded_in_bytes_and_room_comes_back() {
        let mut register = Register::default();
        open(&mut register, 0, 1);
        let name: Arc<str> = "x".repeat(199).into();
        let branches: Vec<Branch> = (0..1000).map(|number| (number, Arc::clone(&name))).collect();
        let commit = |number| Command::Commit(Committed::new(txn(1, number), branches.clone()));
        let fits = (MAX_STATE_BYTES / cost_of_commit(&branches)) as u64;
        for number in 0..fits {
            assert_eq!(register.apply(commit(number)), Answer::Decided(Decision::Commit));
        }
        let before = register.clone();
        assert_eq!(register.apply(commit(fits)), Answer::Full);
        assert_eq!(register, before);
        // What is full restores, and its bytes are what `Decisions::snapshot` says.
        let snapshot = register.encode();
        assert!(snapshot.len() < 70 << 20, "{} bytes", snapshot.len());
        assert_eq!(Register::decode(&snapshot).unwrap(), register);
        register.apply(Command::Forget { txn: txn(1, 0), by: 1 });
        assert_eq!(register.apply(commit(fits)), Answer::Decided(Decision::Commit));
        // Heuristic outcomes are in the same room.
        let mut number = 0;
        let outcome = |number: u32| {
            let gid = Gid::new(&"c".into(), txn(1, 0), number);
            HeuristicOutcome::new(gid, Arc::clone(&name), Heuristic::RolledBack)
        };
        // Ends: each turn takes room, of which there is a bound.
        while register.apply(Command::Report { outcome: outcome(number), by: 1 }) == Answer::Done {
            number += 1;
        }
        assert!(register.bytes <= MAX_STATE_BYTES);
        register.apply(Command::Resolve(outcome(0).gid));
        let again = Command::Report { outcome: outcome(number), by: 1 };
        assert_eq!(register.apply(again), Answer::Done, "room for one");
    }

    #[test]
    fn recorded_aborts_are_bounded_and_end_with_their_epoch() {
        let mut register = Register::default();
        open(&mut register, 0, 1);
        for number in 0..MAX_ABORTED as u64 {
            let told = register.apply(Command::Abort(txn(1, number)));
            assert_eq!(told, Answer::Decided(Decision::Abort));
        }
        assert_eq!(register.apply(Command::Abort(txn(1, u64::MAX))), Answer::Full);
        let repeated = register.apply(Command::Abort(txn(1, 0)));
        assert_eq!(repeated, Answer::Decided(Decision::Abort));
        assert_eq!(Register::decode(&register.encode()).as_ref(), Ok(&register));
        open(&mut register, 0, 2);
        let told = register.apply(Command::Abort(txn(2, 0)));
        assert_eq!(told, Answer::Decided(Decision::Abort));
        assert_eq!(register.aborted.len(), 1);
    }
}
