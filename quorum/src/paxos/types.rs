//! Ballots, states and messages.

use std::fmt;

use bytes::Bytes;

use crate::version::{Actor, Dot};

/// The number of an attempt (Paxos Made Simple: proposal number). No two attempts share one: within
/// a session rounds rise, and no two sessions have one dot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ballot {
    /// Compared first. Range: 0 ([`Ballot::ZERO`] only) to [`Ballot::MAX_ROUND`].
    pub round: u64,
    /// The proposer's session, named by a dot that was drawn when the session began.
    pub session: Dot,
}

impl Ballot {
    /// Below every ballot of a proposer.
    pub const ZERO: Self = Self { round: 0, session: Dot::new(Actor::new(0, 0), 0) };
    /// The greatest round: 2^62 - 1. What lies above it is refused wherever it arrives.
    pub const MAX_ROUND: u64 = (1 << 62) - 1;

    /// Whether a proposer can have made it.
    pub const fn is_valid(&self) -> bool {
        self.round >= 1 && self.round <= Self::MAX_ROUND
    }
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}, {})", self.round, self.session)
    }
}

/// The state of a register.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    /// How often the register was changed; 0: never.
    pub version: u64,
    /// The value; none before the first write and after a delete.
    pub value: Option<Bytes>,
    /// The dots of the latest changes, the latest last: the last one made `version`, the one
    /// before it `version - 1`, and so on.
    pub applied: Vec<Dot>,
}

impl State {
    /// The state after one more change.
    pub(super) fn changed(&self, dot: Dot, value: Option<Bytes>, max_tokens: usize) -> Self {
        let mut applied = self.applied.clone();
        applied.push(dot);
        applied.drain(..applied.len().saturating_sub(max_tokens));
        Self { version: self.version + 1, value, applied }
    }

    /// What became of the change of `dot`, which was based on the version `base` or a later one.
    pub(super) fn find(&self, dot: Dot, base: u64) -> Found {
        let later = self.applied.iter().rev().position(|applied| *applied == dot);
        let forgotten = self.version.saturating_sub(self.applied.len() as u64);
        match later {
            Some(later) => Found::Made { version: self.version.saturating_sub(later as u64) },
            None if forgotten <= base => Found::Absent,
            None => Found::Forgotten,
        }
    }
}

/// What a state tells of a change.
pub(super) enum Found {
    /// It made this version.
    Made {
        /// The version.
        version: u64,
    },
    /// It is not part of the state.
    Absent,
    /// The register was changed too often since.
    Forgotten,
}

/// Names a change whose outcome is unknown. It may be stored, and resolved by any proposer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    /// The change.
    pub dot: Dot,
    /// If the change was applied, it made a version above this one.
    pub base: u64,
}

/// What a client asks of a register.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Change {
    /// Reads the state.
    Read,
    /// Writes a value (none: deletes), whatever is there.
    Write(Option<Bytes>),
    /// Writes a value (none: deletes) if the register has this version. 0: if it was never written.
    CompareAndSet {
        /// The version that the register must have.
        expected: u64,
        /// The new value.
        value: Option<Bytes>,
    },
    /// Finds out whether a change of unknown outcome was applied, and makes sure that it will not
    /// be later.
    Resolve(Token),
}

/// How a change ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// A read: the version and the value.
    Read {
        /// The register's version; 0: never written.
        version: u64,
        /// Its value.
        value: Option<Bytes>,
    },
    /// The write was applied, now or, if it is a resolved one, before.
    Applied {
        /// The version that the write made.
        version: u64,
    },
    /// A compare-and-set was not applied: the register has another version. A resolved change was
    /// not applied and will not be.
    NotApplied {
        /// The register's version.
        version: u64,
        /// Its value.
        value: Option<Bytes>,
    },
    /// Nothing was written: no quorum answered before the deadline, and no acceptor had been asked
    /// to accept. Retry when a quorum is there.
    Unavailable,
    /// The change may have been applied or not, and may yet be, until [`Change::Resolve`] has
    /// answered. Retrying the change itself could apply it twice.
    Unknown(Token),
    /// A resolved change can no longer be told: the register was changed more often since than its
    /// state remembers (`ProposerConfig::max_tokens`). It will not be applied later.
    Forgotten,
}

/// What a proposer asks an acceptor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// Phase 1: promise to accept nothing below `ballot`, and tell what was accepted.
    Prepare {
        /// The attempt.
        ballot: Ballot,
    },
    /// Phase 2: accept `state`, unless a higher ballot was promised.
    Accept {
        /// The attempt.
        ballot: Ballot,
        /// What to accept.
        state: State,
        /// A higher ballot of the same session to promise along with it: phase 1 of the proposer's
        /// next change.
        next: Ballot,
    },
}

impl Request {
    /// Whether a proposer can have made it. An acceptor discards what is not valid: a round at the
    /// end of the range would block the register for ever.
    pub fn is_valid(&self) -> bool {
        match self {
            Self::Prepare { ballot } => ballot.is_valid(),
            Self::Accept { ballot, next, .. } => {
                let is_next = next > ballot && next.session == ballot.session;
                ballot.is_valid() && next.is_valid() && is_next
            }
        }
    }
}

/// What an acceptor answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    /// To phase 1: nothing below `ballot` will be accepted.
    Promise {
        /// The ballot that was prepared.
        ballot: Ballot,
        /// The highest ballot that was accepted, and its state.
        accepted: Option<(Ballot, State)>,
    },
    /// To phase 2: accepted, and the next ballot promised.
    Accepted {
        /// The ballot that was accepted.
        ballot: Ballot,
    },
    /// A higher ballot has been promised.
    Rejected {
        /// The ballot of the request.
        ballot: Ballot,
        /// What has been promised.
        promised: Ballot,
    },
    /// The acceptor's record was lost, restored or damaged. It promises and accepts nothing, for
    /// what it had promised is not known.
    NotWhole {
        /// The ballot of the request.
        ballot: Ballot,
    },
}

impl Reply {
    /// The ballot of the request that it answers.
    pub fn ballot(&self) -> Ballot {
        match self {
            Self::Promise { ballot, .. }
            | Self::Accepted { ballot }
            | Self::Rejected { ballot, .. }
            | Self::NotWhole { ballot } => *ballot,
        }
    }
}
