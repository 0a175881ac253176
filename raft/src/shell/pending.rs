//! Callers that wait: proposals by token and then by index, reads by token.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::error::{ChangeError, Doubt, ProposeError, ReadError, StopReason};

/// The way back to the caller of a proposal.
pub(crate) type ProposeReply = oneshot::Sender<Result<Bytes, ProposeError>>;
/// The way back to the caller of a read.
pub(crate) type ReadReply = oneshot::Sender<Result<u64, ReadError>>;

/// The way back to the caller of a change of the membership.
pub(crate) type ChangeReply = oneshot::Sender<Result<u64, ChangeError>>;

/// A proposal whose caller waits.
#[derive(Debug)]
pub(crate) struct Proposal {
    pub(crate) reply: ProposeReply,
    /// Bytes that it holds of the limit, given back when it is answered.
    pub(crate) weight: u32,
}

/// A proposal with its place in the log.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) index: u64,
    pub(crate) proposal: Proposal,
}

/// Proposals of one run: consecutive tokens at consecutive indexes of one term.
#[derive(Debug)]
struct Run {
    token: u64,
    count: u64,
    index: u64,
}

/// Proposals that have been handed to the core and not yet to the state machine.
///
/// Tokens are given out in order, so the table is a queue with holes.
#[derive(Debug, Default)]
pub(crate) struct Proposals {
    /// The token of the first slot.
    base: u64,
    slots: VecDeque<Option<(Proposal, u64)>>,
    /// Where they stand in the log, ascending and without overlap.
    runs: VecDeque<Run>,
}

impl Proposals {
    /// A new proposal, submitted at `now`. Returns its token.
    pub(crate) fn add(&mut self, proposal: Proposal, now: u64) -> u64 {
        let token = self.next_token();
        self.slots.push_back(Some((proposal, now)));
        token
    }

    /// The token of the next proposal.
    pub(crate) fn next_token(&self) -> u64 {
        self.base + self.slots.len() as u64
    }

    /// They have a place in the log. What stood there before has been truncated away, and will
    /// be reported as lost.
    pub(crate) fn place(&mut self, token: u64, count: u64, index: u64) {
        while let Some(last) = self.runs.back_mut() {
            last.count = last.count.min(index.saturating_sub(last.index));
            if last.count > 0 {
                break;
            }
            self.runs.pop_back();
        }
        self.runs.push_back(Run { token, count, index });
    }

    /// Takes out one proposal.
    pub(crate) fn take(&mut self, token: u64) -> Option<Proposal> {
        let at = usize::try_from(token.checked_sub(self.base)?).ok()?;
        let taken = self.slots.get_mut(at)?.take();
        while let Some(None) = self.slots.front() {
            self.slots.pop_front();
            self.base += 1;
        }
        taken.map(|(proposal, _)| proposal)
    }

    /// Takes out those that stand in `range`, in order: they are about to be applied.
    pub(crate) fn applying(&mut self, range: &Range<u64>) -> Vec<Placed> {
        let mut placed = Vec::new();
        while let Some(run) = self.runs.front_mut() {
            if run.index >= range.end {
                break;
            }
            let count = run.count.min(range.end - run.index);
            let (token, index) = (run.token, run.index);
            run.token += count;
            run.index += count;
            run.count -= count;
            if run.count == 0 {
                self.runs.pop_front();
            }
            placed.extend((0..count).filter_map(|i| {
                let proposal = self.take(token + i)?;
                Some(Placed { index: index + i, proposal })
            }));
        }
        placed
    }

    /// Takes out those submitted at or before `limit` (nanoseconds).
    pub(crate) fn overdue(&mut self, limit: u64) -> Vec<Proposal> {
        let mut overdue = Vec::new();
        while let Some(front) = self.slots.front_mut() {
            if front.as_ref().is_some_and(|(_, at)| *at > limit) {
                break;
            }
            overdue.extend(front.take().map(|(proposal, _)| proposal));
            self.slots.pop_front();
            self.base += 1;
        }
        overdue
    }

    /// When the oldest was submitted.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.slots.front().and_then(|slot| slot.as_ref().map(|(_, at)| *at))
    }

    /// Answers all that are left: the node stops.
    pub(crate) fn fail_all(&mut self, reason: &StopReason) {
        for (proposal, _) in self.slots.drain(..).flatten() {
            proposal.fail(ProposeError::Unknown(Doubt::Stopped(reason.clone())));
        }
        self.runs.clear();
    }
}

impl Proposal {
    /// Answers the caller, if it still waits.
    pub(crate) fn fail(self, error: ProposeError) {
        // An error here only says that the caller has gone.
        let _ = self.reply.send(Err(error));
    }
}

/// Reads that wait for the core, and then for the state machine. Each holds one permit of
/// `read_room`, which comes back when the read leaves this table.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// By token. With the index that has to be applied first, once the core has confirmed it.
    waiting: BTreeMap<u64, (ReadReply, Option<u64>)>,
    /// Index and token of the confirmed ones.
    confirmed: BTreeSet<(u64, u64)>,
}

impl Reads {
    /// A new read.
    pub(crate) fn add(&mut self, token: u64, reply: ReadReply) {
        self.waiting.insert(token, (reply, None));
    }

    /// Takes out a read that will not be answered with an index. `None` when it has been answered
    /// or withdrawn; else its reply, and whether the core has confirmed it.
    pub(crate) fn take(&mut self, token: u64) -> Option<(ReadReply, bool)> {
        let (reply, confirmed) = self.waiting.remove(&token)?;
        if let Some(index) = confirmed {
            self.confirmed.remove(&(index, token));
        }
        Some((reply, confirmed.is_some()))
    }

    /// The core has confirmed a read at `index`.
    pub(crate) fn confirm(&mut self, token: u64, index: u64) {
        if let Some((_, confirmed)) = self.waiting.get_mut(&token) {
            *confirmed = Some(index);
            self.confirmed.insert((index, token));
        }
    }

    /// Answers those that `applied` satisfies, and says how many.
    pub(crate) fn applied(&mut self, applied: u64) -> usize {
        let mut answered = 0;
        while let Some((index, token)) = self.confirmed.first().copied() {
            if index > applied {
                break;
            }
            self.confirmed.pop_first();
            if let Some((reply, _)) = self.waiting.remove(&token) {
                answered += 1;
                // An error here only says that the caller has gone.
                let _ = reply.send(Ok(applied));
            }
        }
        answered
    }

    /// Answers all that are left: the node stops.
    pub(crate) fn fail_all(&mut self, reason: &StopReason) {
        self.confirmed.clear();
        for (reply, _) in std::mem::take(&mut self.waiting).into_values() {
            let _ = reply.send(Err(ReadError::Stopped(reason.clone())));
        }
    }
}
