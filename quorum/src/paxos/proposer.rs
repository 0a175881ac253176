//! The proposer: runs changes, one at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::types::Found;
use super::{Ballot, Change, Learner, Outcome, ProposerConfig, Reply, Request, State, Token};
use crate::ConfigError;
use crate::membership::Membership;
use crate::resend::Resend;
use crate::table::Level;
use crate::version::Dot;

/// What happens to a [`Proposer`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ProposerInput {
    /// A reply of an acceptor arrived.
    Reply {
        /// The acceptor that sent it.
        from: u64,
        /// The reply.
        reply: Reply,
    },
    /// Time has passed: [`Proposer::next_deadline`] is reached.
    Time,
}

/// What a [`Proposer`] wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProposerOutput {
    /// Send the request. It may be lost, repeated and reordered.
    Send {
        /// The acceptor.
        to: u64,
        /// The request.
        request: Request,
    },
    /// The change has ended; the proposer takes the next one.
    Done {
        /// How it ended.
        outcome: Outcome,
    },
}

/// Why a change was not begun. Nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeRejected {
    /// The change before has not ended. Retry when it has.
    #[error("a change is under way; the proposer takes one at a time")]
    Busy,
    /// The dot's counter is out of range.
    #[error("dot {dot} has no valid counter")]
    InvalidDot {
        /// The dot of the change.
        dot: Dot,
    },
}

/// The proposer of one register, for one session of one process: it is made anew after a restart,
/// with a dot of its own, so that no ballot is used twice.
///
/// # Example
/// ```
/// use voussoir_quorum::paxos::*;
/// use voussoir_quorum::version::{Actor, Dot};
/// let dot = |counter| Dot::new(Actor::new(9, 1), counter); // from a DotSource
/// let config = ProposerConfig::with_acceptors([1, 2, 3]);
/// let mut proposer = Proposer::new(dot(1), config)?;
/// let mut acceptors: Vec<_> = (0..3).map(|_| Acceptor::new(Record::EMPTY)).collect();
/// proposer.propose(0, dot(2), Change::Write(Some("a".into())), 1_000_000_000)?;
/// let outcome = loop {
///     match proposer.poll_output().expect("all acceptors answer") {
///         ProposerOutput::Done { outcome } => break outcome,
///         ProposerOutput::Send { to, request } => {
///             let acceptor = &mut acceptors[to as usize - 1];
///             acceptor.step(AcceptorInput::Request { from: 9, request });
///             while let Some(output) = acceptor.poll_output() {
///                 match output {
///                     // … written and synced …
///                     AcceptorOutput::Persist { id, .. } => {
///                         acceptor.step(AcceptorInput::Persisted { id });
///                     }
///                     AcceptorOutput::Reply { reply, .. } => {
///                         proposer.step(0, ProposerInput::Reply { from: to, reply });
///                     }
///                 }
///             }
///         }
///         _ => {}
///     }
/// };
/// assert_eq!(outcome, Outcome::Applied { version: 1 });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Proposer {
    session: Dot,
    config: ProposerConfig,
    /// The acceptors.
    membership: Membership,
    resend_ns: u64,
    backoff_ns: u64,
    rng: fastrand::Rng,
    /// The highest round that was used or seen. Invariant: at most [`Ballot::MAX_ROUND`].
    round: u64,
    /// What the next change can begin phase 2 with: the ballot that a quorum has promised along
    /// with its latest acceptance, and the state that it accepted.
    promised: Option<(Ballot, State)>,
    run: Option<Run>,
    outputs: VecDeque<ProposerOutput>,
}

/// A change under way.
#[derive(Clone, Debug)]
struct Run {
    dot: Dot,
    change: Change,
    /// When the caller no longer waits, in ns.
    deadline: u64,
    /// Once an acceptor was asked to accept the change: the least version that it was to follow.
    base: Option<u64>,
    rejections: u32,
    phase: Phase,
}

#[derive(Clone, Debug)]
enum Phase {
    /// Waits for its next attempt.
    Backoff { until: u64 },
    /// Phase 1.
    Prepare {
        ballot: Ballot,
        promises: BTreeMap<u64, Option<(Ballot, State)>>,
        /// Acceptors that are not whole: they are left out the next time that it is sent.
        refused: BTreeSet<u64>,
        resend: Resend,
    },
    /// Phase 2.
    Accept {
        ballot: Ballot,
        next: Ballot,
        state: State,
        /// What the change answers once `ballot` is chosen.
        outcome: Outcome,
        learner: Learner,
        refused: BTreeSet<u64>,
        resend: Resend,
    },
}

impl Proposer {
    /// A proposer. `session` is a dot that no other session has: draw it from the
    /// [`DotSource`](crate::version::DotSource) of the process.
    ///
    /// # Errors
    /// [`ConfigError`]: the configuration is not valid.
    pub fn new(session: Dot, config: ProposerConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        if !session.is_valid() {
            let rule = "must have a counter from 1 to 2^62 - 1";
            return Err(ConfigError { field: "session", rule });
        }
        Ok(Self {
            session,
            resend_ns: config.resend_after.as_nanos() as u64,
            backoff_ns: config.backoff.as_nanos() as u64,
            rng: config.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed),
            membership: Membership::first(config.acceptors.iter().copied()),
            config,
            round: 0,
            promised: None,
            run: None,
            outputs: VecDeque::new(),
        })
    }

    /// The proposer, before its first change, with the acceptors of a membership.
    pub(crate) fn of(self, membership: Membership) -> Self {
        Self { membership, ..self }
    }

    /// Begins a change. `dot` names it in all of its attempts and has named no other change;
    /// `deadline` is when the caller no longer waits, in ns.
    ///
    /// # Errors
    /// [`ProposeRejected`]: nothing was begun.
    pub fn propose(
        &mut self,
        now: u64,
        dot: Dot,
        change: Change,
        deadline: u64,
    ) -> Result<(), ProposeRejected> {
        if self.run.is_some() {
            return Err(ProposeRejected::Busy);
        }
        if !dot.is_valid() {
            return Err(ProposeRejected::InvalidDot { dot });
        }
        let phase = Phase::Backoff { until: now };
        self.run = Some(Run { dot, change, deadline, base: None, rejections: 0, phase });
        match self.promised.take() {
            Some((ballot, state)) => self.begin_accept(now, ballot, state),
            None => self.begin_prepare(now),
        }
        Ok(())
    }

    /// Takes an input. `now` is in ns and does not go back.
    pub fn step(&mut self, now: u64, input: ProposerInput) {
        // First: an answer behind the deadline may be that of a store that was lost since.
        self.time(now);
        if let ProposerInput::Reply { from, reply } = input
            && self.membership.contains(from)
        {
            self.reply(now, from, reply);
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<ProposerOutput> {
        self.outputs.pop_front()
    }

    /// When [`ProposerInput::Time`] is due, in ns. None: no change is under way.
    pub fn next_deadline(&self) -> Option<u64> {
        let run = self.run.as_ref()?;
        let at = match &run.phase {
            Phase::Backoff { until } => *until,
            Phase::Prepare { resend, .. } | Phase::Accept { resend, .. } => resend.at(),
        };
        Some(at.min(run.deadline))
    }

    /// The acceptors, as far as the proposer knows.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Goes on with the acceptors of a later epoch, which an acceptor has told. An earlier one is
    /// discarded. A change that runs begins again with phase 1: what the acceptors of the old epoch
    /// have promised and accepted is found at the new ones, or can no longer be chosen.
    pub fn reconfigure(&mut self, now: u64, membership: Membership) {
        if membership.epoch() <= self.membership.epoch() {
            return;
        }
        self.membership = membership;
        self.promised = None;
        if self.run.is_some() {
            self.begin_prepare(now);
        }
    }

    /// Whether the acceptors for which `counts` is true are a quorum: a majority; of two sets of
    /// acceptors, one of each.
    fn is_quorum(&self, counts: impl Fn(u64) -> bool) -> bool {
        self.membership.is_met(Level::Quorum, counts)
    }

    /// So many acceptors at least are a quorum.
    fn quorum(&self) -> usize {
        self.membership.sets().map(|set| Level::Quorum.count(set.len())).max().unwrap_or(1)
    }

    fn next_ballot(&mut self) -> Ballot {
        // Rounds seen at the end of the range are not adopted, and nobody counts so far.
        self.round += 1;
        Ballot { round: self.round, session: self.session }
    }

    fn reply(&mut self, now: u64, from: u64, reply: Reply) {
        let Some(run) = &mut self.run else { return };
        let current = match &run.phase {
            Phase::Backoff { .. } => return,
            Phase::Prepare { ballot, .. } | Phase::Accept { ballot, .. } => *ballot,
        };
        if reply.ballot() != current {
            return; // An answer to an earlier attempt.
        }
        match (reply, &mut run.phase) {
            (Reply::Promise { accepted, .. }, Phase::Prepare { promises, .. }) => {
                promises.insert(from, accepted);
                self.finish_prepare(now);
            }
            (Reply::Accepted { .. }, Phase::Accept { learner, .. }) => {
                let is_chosen = learner.accepted(from, current);
                if is_chosen && self.membership.is_met(Level::Quorum, learner.acceptors_of(current))
                {
                    self.finish_accept();
                }
            }
            // The promise of `next` answers a prepare that arrived after its own phase 2.
            (Reply::Rejected { promised, .. }, _) if promised.session == self.session => {}
            (Reply::Rejected { promised, .. }, _) if promised.round < Ballot::MAX_ROUND - 1 => {
                self.round = self.round.max(promised.round);
                self.retreat(now);
            }
            (
                Reply::NotWhole { .. },
                Phase::Prepare { refused, .. } | Phase::Accept { refused, .. },
            ) => {
                refused.insert(from);
            }
            _ => {}
        }
    }

    /// Begins the next attempt later: another proposer is ahead.
    fn retreat(&mut self, now: u64) {
        let Some(run) = &mut self.run else { return };
        let max = self.backoff_ns << run.rejections.min(6);
        run.rejections = run.rejections.saturating_add(1);
        let until = now.saturating_add(self.rng.u64(1..=max));
        run.phase = Phase::Backoff { until };
    }

    fn time(&mut self, now: u64) {
        let Some(run) = &mut self.run else { return };
        if now >= run.deadline {
            let (dot, base) = (run.dot, run.base);
            let is_read = matches!(run.change, Change::Read | Change::Resolve(_));
            self.end(match base {
                Some(base) if !is_read => Outcome::Unknown(Token { dot, base }),
                _ => Outcome::Unavailable,
            });
            return;
        }
        match &mut run.phase {
            Phase::Backoff { until } if now >= *until => self.begin_prepare(now),
            Phase::Prepare { resend, .. } | Phase::Accept { resend, .. } if now >= resend.at() => {
                resend.again(now);
                self.send();
                self.ask_refused_next_time();
            }
            _ => {}
        }
    }

    /// An acceptor that is not whole may be when the request is sent the time after this one.
    fn ask_refused_next_time(&mut self) {
        if let Some(Run {
            phase: Phase::Prepare { refused, .. } | Phase::Accept { refused, .. },
            ..
        }) = &mut self.run
        {
            refused.clear();
        }
    }

    fn begin_prepare(&mut self, now: u64) {
        let ballot = self.next_ballot();
        let resend = Resend::after(now, self.resend_ns);
        let Some(run) = &mut self.run else { return };
        let (promises, refused) = (BTreeMap::new(), BTreeSet::new());
        run.phase = Phase::Prepare { ballot, promises, refused, resend };
        self.send();
    }

    fn finish_prepare(&mut self, now: u64) {
        let Some(Run { phase: Phase::Prepare { promises, .. }, .. }) = &self.run else { return };
        if !self.is_quorum(|id| promises.contains_key(&id)) {
            return;
        }
        let Some(Run { phase: Phase::Prepare { ballot, promises, .. }, .. }) = &mut self.run else {
            return;
        };
        let ballot = *ballot;
        let accepted = std::mem::take(promises).into_values().flatten();
        let highest = accepted.max_by_key(|(ballot, _)| *ballot);
        self.begin_accept(now, ballot, highest.map(|(_, state)| state).unwrap_or_default());
    }

    /// Phase 2 with what the change makes of `found`, the state that phase 1 has found.
    fn begin_accept(&mut self, now: u64, ballot: Ballot, found: State) {
        let learner = Learner::new(self.quorum());
        let max_tokens = self.config.max_tokens;
        let next = self.next_ballot();
        let Some(run) = &mut self.run else { return };
        let (state, outcome) = run.apply(found, max_tokens);
        let resend = Resend::after(now, self.resend_ns);
        let refused = BTreeSet::new();
        run.phase = Phase::Accept { ballot, next, state, outcome, learner, refused, resend };
        self.send();
    }

    fn finish_accept(&mut self) {
        let Some(run) = self.run.take() else { return };
        if let Phase::Accept { next, state, outcome, .. } = run.phase {
            self.promised = Some((next, state));
            self.outputs.push_back(ProposerOutput::Done { outcome });
        }
    }

    fn end(&mut self, outcome: Outcome) {
        self.run = None;
        self.outputs.push_back(ProposerOutput::Done { outcome });
    }

    /// Sends the request of the phase to each acceptor that has not answered it.
    fn send(&mut self) {
        let Some(run) = &self.run else { return };
        let (request, is_missing): (Request, &dyn Fn(u64) -> bool) = match &run.phase {
            Phase::Backoff { .. } => return,
            Phase::Prepare { ballot, promises, refused, .. } => {
                (Request::Prepare { ballot: *ballot }, &|id| {
                    !promises.contains_key(&id) && !refused.contains(&id)
                })
            }
            Phase::Accept { ballot, next, state, learner, refused, .. } => {
                (Request::Accept { ballot: *ballot, state: state.clone(), next: *next }, &|id| {
                    !learner.has_accepted(id, *ballot) && !refused.contains(&id)
                })
            }
        };
        for to in self.membership.ids().into_iter().filter(|id| is_missing(*id)) {
            self.outputs.push_back(ProposerOutput::Send { to, request: request.clone() });
        }
    }
}

impl Run {
    /// The state that is proposed, and what the change answers once it is chosen.
    fn apply(&mut self, found: State, max_tokens: usize) -> (State, Outcome) {
        let version = found.version;
        // An earlier attempt may have been carried on by another proposer: it counts once.
        if let Some(base) = self.base {
            match found.find(self.dot, base) {
                Found::Made { version } => return (found, Outcome::Applied { version }),
                Found::Absent => {}
                Found::Forgotten => {
                    return (found, Outcome::Unknown(Token { dot: self.dot, base }));
                }
            }
        }
        let value = match &self.change {
            Change::Write(value) => value,
            Change::CompareAndSet { expected, value } if *expected == version => value,
            Change::CompareAndSet { .. } => {
                let value = found.value.clone();
                return (found, Outcome::NotApplied { version, value });
            }
            Change::Read => {
                let value = found.value.clone();
                return (found, Outcome::Read { version, value });
            }
            Change::Resolve(token) => {
                let outcome = match found.find(token.dot, token.base) {
                    Found::Made { version } => Outcome::Applied { version },
                    Found::Absent => Outcome::NotApplied { version, value: found.value.clone() },
                    Found::Forgotten => Outcome::Forgotten,
                };
                return (found, outcome);
            }
        };
        // What an earlier attempt found need not have been chosen: a later one may find less.
        self.base = Some(self.base.map_or(version, |base| base.min(version)));
        let state = found.changed(self.dot, value.clone(), max_tokens);
        (state, Outcome::Applied { version: version + 1 })
    }
}

#[cfg(test)]
#[path = "explore.rs"]
mod explore;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::Actor;

    /// What an attempt found need not have been chosen: a later one may find less, and what the
    /// change makes then must not be taken for older than it.
    #[test]
    fn a_change_is_based_on_the_least_version_that_it_was_to_follow() {
        let foreign = |counter| Dot::new(Actor::new(9, 1), counter);
        let more = |state: State, counters: std::ops::Range<u64>| {
            counters.fold(state, |state, counter| state.changed(foreign(counter), None, 16))
        };
        let dot = Dot::new(Actor::new(1, 1), 1);
        let (change, phase) = (Change::Write(None), Phase::Backoff { until: 0 });
        let mut run = Run { dot, change, deadline: 0, base: None, rejections: 0, phase };
        let chosen = more(State::default(), 1..6);
        let (_, outcome) = run.apply(more(chosen.clone(), 6..7), 16);
        assert_eq!(outcome, Outcome::Applied { version: 7 });
        let (applied, outcome) = run.apply(chosen, 16);
        assert_eq!(outcome, Outcome::Applied { version: 6 });
        // It was chosen, and the register was changed until its dot left the state.
        let (state, outcome) = run.apply(more(applied.clone(), 10..26), 16);
        assert_eq!(state.version, applied.version + 16, "it is not applied again");
        assert_eq!(outcome, Outcome::Unknown(Token { dot, base: 5 }));
    }
}
