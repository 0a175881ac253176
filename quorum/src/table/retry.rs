//! When an operation asks a replica again that has given it nothing.

use std::collections::BTreeMap;

/// The longest pause after the first failure, in ns: an operation that has what it waits for by
/// then asks nobody again, so that a dead replica costs it nothing.
const FIRST_NS: u64 = 10_000_000;
/// The longest pause after the first failure is no more than this part of the timeout.
const PARTS: u64 = 16;
/// The pause doubles with each further failure of the replica, up to so often.
const MAX_DOUBLINGS: u32 = 4;

/// Why a call gave its operation nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nothing was done.
    NotSent,
    /// It may have been carried out.
    Unknown,
    /// Nothing was done that counts: the replica is not whole. It may be when it is asked again.
    NotWhole,
    /// Nothing was done that counts, and nothing will be, however often the replica is asked.
    Final,
}

/// The replicas of one operation whose calls have failed in its present phase.
#[derive(Clone, Debug, Default)]
pub(super) struct Retries {
    /// Of each replica: how often it has failed, and when it is asked again, in ns. None: it is
    /// being asked, or is not to be.
    replicas: BTreeMap<u64, (u32, Option<u64>)>,
}

impl Retries {
    /// Records the failure of a call to a replica. It is asked again after a random part of a pause
    /// that doubles each time; one that refuses is left alone for the longest pause at once.
    pub(super) fn failed(
        &mut self,
        now: u64,
        replica: u64,
        failure: Failure,
        timeout_ns: u64,
        rng: &mut fastrand::Rng,
    ) {
        let (failures, at) = self.replicas.entry(replica).or_default();
        let doublings = match failure {
            Failure::NotWhole => MAX_DOUBLINGS,
            _ => MAX_DOUBLINGS.min(*failures),
        };
        *failures = failures.saturating_add(1);
        let longest = FIRST_NS.min(timeout_ns / PARTS).max(1) << doublings;
        let pause = rng.u64(longest.div_ceil(2)..=longest);
        *at = (failure != Failure::Final).then(|| now.saturating_add(pause));
    }

    /// Whether the replica waits to be asked again.
    pub(super) fn contains(&self, replica: u64) -> bool {
        self.replicas.get(&replica).is_some_and(|(_, at)| at.is_some())
    }

    /// When the first of them is asked again, in ns.
    pub(super) fn due(&self) -> Option<u64> {
        self.replicas.values().filter_map(|(_, at)| *at).min()
    }

    /// A replica that is to be asked now, each of them once.
    pub(super) fn take_due(&mut self, now: u64) -> Option<u64> {
        let is_due = |(_, at): &(u32, Option<u64>)| at.is_some_and(|at| at <= now);
        let (replica, (_, at)) = self.replicas.iter_mut().find(|(_, retry)| is_due(retry))?;
        *at = None;
        Some(*replica)
    }

    pub(super) fn clear(&mut self) {
        self.replicas.clear();
    }
}
