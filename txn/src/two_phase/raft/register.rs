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
    /// A coordinator begins a new epoch. What the earlier ones have not recorded aborts.
    Open,
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
}

/// Invariants: no transaction is in two of `committed`, `aborted` and `told`; `committed` holds no
/// epoch above `epoch`; `bytes` is the sum of [`cost`] over `committed` and `heuristics`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Register {
    /// The epoch of the latest coordinator; 0 before the first.
    pub(super) epoch: u64,
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
            Command::Open => self.open(),
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

    fn open(&mut self) -> Answer {
        // The top is reserved: an epoch has a next one.
        if self.epoch >= u64::MAX - 1 {
            return Answer::Full;
        }
        self.epoch += 1;
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

    /// Only the latest coordinator reports. One that was replaced tells branches that the later one
    /// has told, and that have been forgotten since: to it they look lost.
    fn report(&mut self, outcome: HeuristicOutcome, by: u64) -> Answer {
        if by != self.epoch {
            return Answer::Superseded;
        }
        let HeuristicOutcome { gid, participant, heuristic } = outcome;
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
