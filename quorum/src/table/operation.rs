//! One operation of a coordinator: what it waits for, and what it has.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::answers::Answers;
use super::latency::Latencies;
use super::retry::Retries;
use super::{Level, Request, TableConfig};
use crate::membership::Membership;
use crate::version::{Siblings, VersionVector};

/// An operation from its beginning until its last call has ended.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) key: Bytes,
    /// The epoch in which it began.
    pub(super) epoch: u64,
    /// When it began and when it ends at the latest, in ns.
    pub(super) began: u64,
    pub(super) deadline: u64,
    /// When one more replica is asked, in ns. Only while it reads.
    pub(super) hedge_at: u64,
    /// The time of its entry in the coordinator's timers.
    pub(super) timer: u64,
    /// The replicas in the order in which they are asked.
    pub(super) order: Vec<u64>,
    /// How many of them have been asked, in this phase.
    pub(super) asked: usize,
    /// Calls under way. Invariant: at most one to each replica.
    pub(super) calls: BTreeSet<u64>,
    /// Replicas to be asked again. Empty once its client has been answered.
    pub(super) retries: Retries,
    /// R of a read; W of a write.
    pub(super) read: Level,
    pub(super) write: Level,
    pub(super) phase: Phase,
    /// Whether its client has been answered.
    pub(super) is_answered: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// Collects the states of R replicas.
    Read {
        answers: Answers,
        /// The result must have seen this: a session's earlier operations.
        at_least: VersionVector,
    },
    /// Waits for the primary of a write.
    Primary { seen: VersionVector, value: Option<Bytes> },
    /// Merges a state into the replicas that do not hold it.
    Spread {
        state: Siblings<Bytes>,
        holders: BTreeSet<u64>,
        /// Whether it repairs for a read; else it is a write.
        is_read: bool,
    },
}

/// What a read does next.
pub(super) enum ReadStep {
    /// It waits for more answers.
    Wait,
    /// It returns `state`, which `holders` hold.
    Merged { state: Siblings<Bytes>, holders: BTreeSet<u64> },
}

impl Operation {
    /// Whether the answers suffice, and what they give.
    pub(super) fn read_step(&self, membership: &Membership) -> ReadStep {
        let Phase::Read { answers, at_least } = &self.phase else { return ReadStep::Wait };
        if !self.is_answered_by(answers, membership) {
            return ReadStep::Wait;
        }
        let states = answers.states();
        let mut state = Siblings::new();
        for answer in states.values() {
            state.merge(answer.clone());
        }
        if !state.context().covers(at_least) {
            return ReadStep::Wait;
        }
        let holds = |(id, answer): (&u64, &Siblings<Bytes>)| answer.includes(&state).then_some(*id);
        let holders = states.iter().filter_map(holds).collect();
        ReadStep::Merged { state, holders }
    }

    /// Whether R replicas have answered.
    pub(super) fn is_answered_by(&self, answers: &Answers, membership: &Membership) -> bool {
        membership.is_met(self.read, |id| answers.states().contains_key(&id))
    }

    /// The request that this phase sends to the replica that was asked last, or is asked again.
    pub(super) fn request(&self, is_again: bool) -> Request {
        let key = self.key.clone();
        match &self.phase {
            Phase::Read { .. } if is_again => Request::Get { key },
            // The first of R replicas sends its state, the others compare theirs. Whoever is asked
            // later may have to stand in for the first one.
            Phase::Read { answers, .. } => match answers.digester() {
                Some(digester) if (2..=self.read.count(self.order.len())).contains(&self.asked) => {
                    Request::Digest { key, digester }
                }
                _ => Request::Get { key },
            },
            Phase::Primary { seen, value } => {
                Request::Write { key, seen: seen.clone(), value: value.clone() }
            }
            Phase::Spread { state, .. } => Request::Merge { key, state: state.clone() },
        }
    }

    /// Whether it is time to ask one more replica, or will be at `hedge_at`.
    pub(super) fn may_hedge(&self) -> bool {
        matches!(self.phase, Phase::Read { .. }) && self.asked < self.order.len()
    }

    /// Whether a replica may be asked again: a write has one primary at a time.
    fn may_retry(&self) -> bool {
        !matches!(self.phase, Phase::Primary { .. }) || self.calls.is_empty()
    }

    /// A replica that is to be asked again now.
    pub(super) fn take_retry(&mut self, now: u64) -> Option<u64> {
        if self.may_retry() { self.retries.take_due(now) } else { None }
    }

    /// When the operation wants to be woken, in ns.
    pub(super) fn due(&self) -> u64 {
        let hedge = self.may_hedge().then_some(self.hedge_at);
        let retry = self.retries.due().filter(|_| self.may_retry());
        hedge.into_iter().chain(retry).fold(self.deadline, u64::min)
    }
}

/// The replicas in the order in which the operation `id` asks them: the local one, then the quick
/// ones in turns, then the slow ones.
pub(super) fn order(
    config: &TableConfig,
    membership: &Membership,
    latencies: &mut Latencies,
    now: u64,
    id: u64,
) -> Vec<u64> {
    let mut order = membership.ids();
    let turn = id % order.len() as u64;
    order.rotate_left(turn as usize);
    latencies.sort(now, &mut order);
    if let Some(at) = order.iter().position(|replica| Some(*replica) == config.local) {
        order[..=at].rotate_right(1);
    }
    order
}
