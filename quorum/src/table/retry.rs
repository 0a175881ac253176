//! When an operation asks a replica again that has given it nothing, and how many such calls a
//! replica gets.

use std::collections::BTreeMap;

/// The longest pause after the first failure, in ns: an operation that has what it waits for by
/// then asks nobody again, so that a dead replica costs it nothing.
const FIRST_NS: u64 = 10_000_000;
/// The longest pause after the first failure is no more than this part of the timeout.
const PARTS: u64 = 16;
/// The pause doubles with each further failure of the replica, up to this part of the timeout.
const LAST_PARTS: u64 = 4;
/// How often the first pause is doubled at once where the replica has answered that it does
/// nothing.
const DOUBLINGS_AT_ONCE: u32 = 4;

/// Why a call gave its operation nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nothing was done.
    NotSent,
    /// Nothing was done: the replica is short of room, and each call makes it shorter.
    Busy,
    /// It may have been carried out.
    Unknown,
    /// Nothing was done that counts: the replica is not whole. It may be when it is asked again.
    NotWhole,
    /// Nothing was done that counts, and nothing will be, however often the replica is asked.
    Final,
}

/// How many calls to a replica may be made again at once. Where a replica fails because it has too
/// much to do, calls that are made again by every operation would keep it so.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    /// In tenths of a call. Invariant: at most [`Budget::MAX`].
    tenths: u64,
}

impl Budget {
    /// A hundred calls: an operation makes up to ten in half of its time while the replica fails.
    const MAX: u64 = 1_000;

    /// A call has succeeded: ten of them pay for one that is made again.
    pub(super) fn succeeded(&mut self) {
        self.tenths = Self::MAX.min(self.tenths + 1);
    }

    /// Takes a call. False: there is none.
    pub(super) fn take(&mut self) -> bool {
        let left = self.tenths.checked_sub(10);
        self.tenths = left.unwrap_or(self.tenths);
        left.is_some()
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self { tenths: Self::MAX }
    }
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
    /// that doubles each time; one that is busy or not whole after a longer one from the first time
    /// on.
    pub(super) fn failed(
        &mut self,
        now: u64,
        replica: u64,
        failure: Failure,
        timeout_ns: u64,
        rng: &mut fastrand::Rng,
    ) {
        let (failures, at) = self.replicas.entry(replica).or_default();
        let at_once = match failure {
            Failure::Busy | Failure::NotWhole => DOUBLINGS_AT_ONCE,
            _ => 0,
        };
        // Beyond any timeout, and within 64 bits.
        let doublings = failures.saturating_add(at_once).min(32);
        *failures = failures.saturating_add(1);
        let first = FIRST_NS.min(timeout_ns / PARTS).max(1);
        let longest = (first << doublings).min(timeout_ns / LAST_PARTS).max(first);
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
