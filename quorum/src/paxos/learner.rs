//! The learner: notices what was chosen.

use std::collections::BTreeMap;

use super::Ballot;

/// Counts acceptances: a ballot is chosen when a quorum of acceptors has accepted it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Learner {
    quorum: usize,
    /// The latest ballot that each acceptor is known to have accepted.
    accepted: BTreeMap<u64, Ballot>,
}

impl Learner {
    /// A learner for which `quorum` acceptors choose a ballot.
    pub fn new(quorum: usize) -> Self {
        Self { quorum, accepted: BTreeMap::new() }
    }

    /// Records that `acceptor` has accepted `ballot`. True: the ballot is chosen. False says
    /// nothing of a ballot that one of its acceptors has replaced by a higher one since. A repeated
    /// notice counts once.
    pub fn accepted(&mut self, acceptor: u64, ballot: Ballot) -> bool {
        let latest = self.accepted.entry(acceptor).or_insert(ballot);
        *latest = ballot.max(*latest);
        self.count(ballot) >= self.quorum
    }

    /// Whether `acceptor` is known to have accepted `ballot`.
    pub fn has_accepted(&self, acceptor: u64, ballot: Ballot) -> bool {
        self.accepted.get(&acceptor) == Some(&ballot)
    }

    /// Which acceptors are known to have accepted `ballot`.
    pub(super) fn acceptors_of(&self, ballot: Ballot) -> impl Fn(u64) -> bool + '_ {
        move |acceptor| self.has_accepted(acceptor, ballot)
    }

    fn count(&self, ballot: Ballot) -> usize {
        self.accepted.values().filter(|accepted| **accepted == ballot).count()
    }
}
