//! The learner: notices what was chosen.

use std::collections::BTreeMap;

use super::{Ballot, Record, State};
use crate::membership::Membership;
use crate::table::Level;

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

/// What the durable records of acceptors show to be chosen, and the latest: a quorum of them has
/// the same last acceptance, and has promised nothing since but the ballot that came with it. An
/// acceptor with such a record answers the proposer of that ballot again that it has accepted it,
/// also if it has the record from another acceptor: who reads it learns what that proposer would. A
/// state that was chosen before the first of them was read is among the last acceptances of any
/// quorum.
///
/// None: a proposer has to find out. An acceptor that has promised something else may have done so
/// before it was rebuilt with the acceptance of another one.
pub(crate) fn chosen(acceptors: &Membership, records: &BTreeMap<u64, Record>) -> Option<State> {
    let is_quorum = |holds: &dyn Fn(&Record) -> bool| {
        acceptors.is_met(Level::Quorum, |id| records.get(&id).is_some_and(holds))
    };
    let accepted = records.values().filter_map(|record| record.accepted.as_ref());
    let Some((ballot, state)) = accepted.max_by_key(|(ballot, _)| *ballot) else {
        return is_quorum(&|_| true).then(State::default);
    };
    let next = Ballot { round: ballot.round + 1, session: ballot.session };
    let holds = |record: &Record| {
        record.promised == next
            && record.accepted.as_ref().is_some_and(|(other, _)| other == ballot)
    };
    is_quorum(&holds).then(|| state.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::{Actor, Dot};

    fn ballot(round: u64, session: u64) -> Ballot {
        Ballot { round, session: Dot::new(Actor::new(session, 1), 1) }
    }

    fn record(promised: Ballot, accepted: Option<Ballot>) -> Record {
        let state = |ballot: Ballot| State { version: ballot.round, ..State::default() };
        Record { promised, accepted: accepted.map(|ballot| (ballot, state(ballot))) }
    }

    #[test]
    fn a_quorum_of_equal_records_without_another_promise_is_chosen() {
        let (first, last) = (ballot(3, 1), ballot(7, 2));
        let old = record(ballot(4, 1), Some(first));
        let new = record(ballot(8, 2), Some(last));
        // Promised to another proposer, before or after the acceptance was read elsewhere.
        let overtaken = record(ballot(8, 3), Some(last));
        let none = record(Ballot::ZERO, None);
        let promised = record(ballot(9, 3), None);
        let version = |records: [Option<&Record>; 4], acceptors: &Membership| {
            let records = records.into_iter().enumerate();
            let records = records.filter_map(|(at, one)| Some((at as u64 + 1, one?.clone())));
            chosen(acceptors, &records.collect()).map(|state| state.version)
        };
        let three = Membership::first([1, 2, 3]);
        let of_three = |a, b, c| version([a, b, c, None], &three);
        assert_eq!(of_three(Some(&new), Some(&new), None), Some(7));
        assert_eq!(of_three(Some(&new), Some(&old), Some(&new)), Some(7));
        assert_eq!(of_three(Some(&old), Some(&old), None), Some(3));
        assert_eq!(of_three(Some(&none), None, Some(&promised)), Some(0), "never written");
        for unclear in [
            (Some(&new), None, None),
            (Some(&new), Some(&old), None),
            (Some(&old), Some(&old), Some(&new)),
            (Some(&new), Some(&overtaken), None),
            (Some(&overtaken), Some(&overtaken), Some(&overtaken)),
            (Some(&new), Some(&none), Some(&none)),
            (Some(&none), None, None),
        ] {
            assert_eq!(of_three(unclear.0, unclear.1, unclear.2), None, "{unclear:?}");
        }
        // While the acceptors change, a quorum of each set.
        let replace = crate::membership::MemberChange::Replace { old: 3, new: 4 };
        let joint = three.begin(replace, Level::Quorum).unwrap().unwrap();
        assert_eq!(version([Some(&new), None, None, Some(&new)], &joint), None);
        assert_eq!(version([Some(&new), None, Some(&new), Some(&new)], &joint), Some(7));
    }
}
