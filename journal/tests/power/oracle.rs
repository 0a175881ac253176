//! What the journal promised, and whether what it shows after a crash keeps the promise.
//!
//! The rule: the recovered state is the state after a set of the submitted commits that
//! - holds every commit acknowledged as durable, and none that was reported as not applied;
//! - takes each commit wholly or not at all, over all of its logs;
//! - is a prefix of what each log was given, and of the order of LSNs as far as it is known.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;

/// Namespace and id of a log.
pub(crate) type Key = (&'static str, u64);

/// The logs that exist.
pub(crate) type World = BTreeMap<Key, State>;

/// What one log holds: positions `first..first + records.len()`.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) first: u64,
    pub(crate) records: Vec<Bytes>,
}

impl State {
    pub(crate) fn end(&self) -> u64 {
        self.first + self.records.len() as u64
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{} [", self.first, self.end())?;
        for record in self.records.iter().rev().take(8).rev() {
            let id: Vec<u8> = record.iter().copied().take(4).collect();
            write!(f, " {:02x?}+{}", id, record.len())?;
        }
        f.write_str(" ]")
    }
}

/// One change of one log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Append(Vec<Bytes>),
    Truncate(u64),
    Release(u64),
    Delete,
}

/// Changes in the order in which the commit names them.
pub(crate) type Changes = Vec<(Key, Change)>;

/// What the journal has said about a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Nothing,
    /// Acknowledged at the durability that was asked for, with its LSN if it already had one.
    Done(Option<u64>),
    NotApplied,
    Unknown,
}

/// What a commit was promised to survive once acknowledged; in the order of strength.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Survives {
    Nothing,
    Kill,
    PowerLoss,
    /// Not a promise that the journal makes: syncs that lied, and sectors lost.
    BadMedium,
}

#[derive(Clone, Debug)]
struct Submitted {
    changes: Changes,
    survives: Survives,
    said: Said,
}

impl Submitted {
    fn is_required_after(&self, crash: Survives) -> bool {
        matches!(self.said, Said::Done(_)) && self.survives >= crash
    }

    fn touches(&self, key: Key) -> bool {
        self.changes.iter().any(|(touched, _)| *touched == key)
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Oracle {
    /// The state that the last recovery showed, all of it durable.
    base: World,
    /// Everything submitted since.
    commits: Vec<Submitted>,
    /// The state after all of it.
    tip: World,
    /// Everything that was ever submitted for a position.
    written: BTreeMap<(Key, u64), Vec<Bytes>>,
    /// Whether LSNs follow the order of submission. Large commits may be overtaken.
    pub(crate) in_order: bool,
}

impl Oracle {
    pub(crate) fn new(in_order: bool) -> Self {
        Self { in_order, ..Self::default() }
    }

    pub(crate) fn tip(&self) -> &World {
        &self.tip
    }

    /// The number that the next commit gets.
    pub(crate) fn submitted(&self) -> usize {
        self.commits.len()
    }

    /// Takes note of a commit; the number to report about it under.
    pub(crate) fn submit(&mut self, changes: Changes, survives: Survives) -> usize {
        for (key, change) in &changes {
            if let Change::Append(records) = change {
                let end = self.tip.get(key).map_or(0, State::end);
                for (position, record) in (end..).zip(records) {
                    self.written.entry((*key, position)).or_default().push(record.clone());
                }
            }
            apply(&mut self.tip, *key, change);
        }
        self.commits.push(Submitted { changes, survives, said: Said::Nothing });
        self.commits.len() - 1
    }

    pub(crate) fn report(&mut self, commit: usize, said: Said) {
        let submitted = &mut self.commits[commit];
        assert_eq!(submitted.said, Said::Nothing, "commit {commit} was completed twice: {said:?}");
        submitted.said = said;
        if said == Said::NotApplied {
            self.tip = self.base.clone();
            for commit in self.commits.iter().filter(|commit| commit.said != Said::NotApplied) {
                for (key, change) in &commit.changes {
                    apply(&mut self.tip, *key, change);
                }
            }
        }
    }

    /// Whether this record was ever submitted for this position.
    pub(crate) fn was_written(&self, key: Key, position: u64, record: &Bytes) -> bool {
        self.written.get(&(key, position)).is_some_and(|written| written.contains(record))
    }

    /// True when every submitted commit has been answered.
    pub(crate) fn all_answered(&self) -> bool {
        self.commits.iter().all(|commit| commit.said != Said::Nothing)
    }

    /// True when every submitted commit has been acknowledged and written.
    pub(crate) fn all_done(&self) -> bool {
        self.commits.iter().all(|commit| matches!(commit.said, Said::Done(Some(_))))
    }

    /// Checks what a recovery shows after `crash`; it is the base of what follows.
    pub(crate) fn recovered(&mut self, seen: World, crash: Survives) -> Result<(), String> {
        self.explain(&seen, crash)?;
        self.tip = seen.clone();
        self.base = seen;
        self.commits.clear();
        Ok(())
    }

    /// The commits that make up `seen`, or why none do.
    pub(crate) fn explain(&self, seen: &World, crash: Survives) -> Result<Vec<bool>, String> {
        self.explain_except(&[], seen, crash)
    }

    /// The same without looking at the logs `except`, which are reported as damaged.
    pub(crate) fn explain_except(
        &self,
        except: &[Key],
        seen: &World,
        crash: Survives,
    ) -> Result<Vec<bool>, String> {
        let mut keys: Vec<Key> = self.base.keys().chain(seen.keys()).copied().collect();
        keys.extend(self.commits.iter().flat_map(|commit| commit.changes.iter().map(|(k, _)| *k)));
        keys.sort_unstable();
        keys.dedup();
        keys.retain(|key| !except.contains(key));
        let mut cuts = Vec::new();
        for key in keys {
            cuts.push((key, self.cuts(key, seen.get(&key), crash)?));
        }
        let mut taken = vec![None; self.commits.len()];
        if self.choose(&cuts, &mut taken) {
            return Ok(taken.into_iter().map(|taken| taken == Some(true)).collect());
        }
        Err(format!("each log is right by itself, but commits are split or out of order: {cuts:?}"))
    }

    /// The commits up to which (exclusively) log `key` may have been recovered, latest first.
    fn cuts(&self, key: Key, seen: Option<&State>, crash: Survives) -> Result<Vec<usize>, String> {
        let mut world = World::new();
        if let Some(state) = self.base.get(&key) {
            world.insert(key, state.clone());
        }
        let (mut least, mut cuts) = (world.clone(), Vec::new());
        if world.get(&key) == seen {
            cuts.push(0);
        }
        for (index, commit) in self.commits.iter().enumerate() {
            if !commit.touches(key) || commit.said == Said::NotApplied {
                continue;
            }
            for (_, change) in commit.changes.iter().filter(|(touched, _)| *touched == key) {
                apply(&mut world, key, change);
            }
            if commit.is_required_after(crash) {
                cuts.clear();
                least.clone_from(&world);
            }
            if world.get(&key) == seen {
                cuts.push(index + 1);
            }
        }
        if cuts.is_empty() {
            let (least, most) = (least.get(&key), world.get(&key));
            return Err(format!(
                "log {key:?} shows {seen:?}, which is no state between what had to survive, \
                 {least:?}, and what was submitted, {most:?}"
            ));
        }
        cuts.reverse();
        Ok(cuts)
    }

    /// Searches cuts that agree about every commit. `taken` holds what is decided so far.
    fn choose(&self, cuts: &[(Key, Vec<usize>)], taken: &mut Vec<Option<bool>>) -> bool {
        let Some(((key, choices), rest)) = cuts.split_first() else {
            return self.is_ordered(taken);
        };
        choices.iter().any(|cut| {
            let before = taken.clone();
            let agrees = self.commits.iter().enumerate().all(|(index, commit)| {
                let take = index < *cut;
                let concerned = commit.touches(*key) && commit.said != Said::NotApplied;
                !concerned || *taken[index].get_or_insert(take) == take
            });
            let found = agrees && self.choose(rest, taken);
            if !found {
                *taken = before;
            }
            found
        })
    }

    fn is_ordered(&self, taken: &[Option<bool>]) -> bool {
        // `None`: not applied, or all logs of the commit were left out.
        let lost = |index: &usize| taken[*index] == Some(false);
        if self.in_order {
            let first_lost = (0..taken.len()).find(lost).unwrap_or(taken.len());
            return taken[first_lost..].iter().all(|taken| *taken != Some(true));
        }
        let lsn = |index: usize| match self.commits[index].said {
            Said::Done(lsn) => lsn,
            _ => None,
        };
        let first_lost = (0..taken.len()).filter(lost).filter_map(lsn).min();
        let last_taken = (0..taken.len()).filter(|index| taken[*index] == Some(true));
        first_lost.is_none() || last_taken.filter_map(lsn).max() < first_lost
    }
}

/// What a change does to a log, said in the simplest way.
pub(crate) fn apply(world: &mut World, key: Key, change: &Change) {
    if *change == Change::Delete {
        world.remove(&key);
        return;
    }
    let state = world.entry(key).or_default();
    match change {
        Change::Append(records) => state.records.extend(records.iter().cloned()),
        Change::Truncate(from) => {
            state.records.truncate(from.saturating_sub(state.first) as usize);
        }
        Change::Release(upto) => {
            let drop = upto.saturating_sub(state.first).min(state.records.len() as u64);
            state.records.drain(..drop as usize);
            state.first = state.first.max(*upto);
        }
        Change::Delete => {}
    }
}

mod tests {
    use super::*;

    const A: Key = ("a", 1);
    const B: Key = ("b", 1);

    fn put(key: Key, record: &'static str) -> (Key, Change) {
        (key, Change::Append(vec![Bytes::from(record)]))
    }

    fn world(logs: &[(Key, u64, &[&'static str])]) -> World {
        let state = |first, records: &[&'static str]| State {
            first,
            records: records.iter().map(|record| Bytes::from(*record)).collect(),
        };
        logs.iter().map(|(key, first, records)| (*key, state(*first, records))).collect()
    }

    /// One commit over both logs, acknowledged, then one to each log, not acknowledged.
    fn oracle(in_order: bool) -> Oracle {
        let mut oracle = Oracle::new(in_order);
        let acked = oracle.submit(vec![put(A, "1"), put(B, "1")], Survives::PowerLoss);
        oracle.report(acked, Said::Done(Some(1)));
        oracle.submit(vec![put(A, "2")], Survives::PowerLoss);
        oracle.submit(vec![put(B, "3")], Survives::PowerLoss);
        oracle
    }

    fn accepts(oracle: &Oracle, logs: &[(Key, u64, &[&'static str])]) -> bool {
        oracle.explain(&world(logs), Survives::PowerLoss).is_ok()
    }

    #[test]
    fn any_prefix_that_holds_what_was_acknowledged_is_accepted() {
        let oracle = oracle(true);
        assert!(accepts(&oracle, &[(A, 0, &["1"]), (B, 0, &["1"])]));
        assert!(accepts(&oracle, &[(A, 0, &["1", "2"]), (B, 0, &["1"])]));
        assert!(accepts(&oracle, &[(A, 0, &["1", "2"]), (B, 0, &["1", "3"])]));
    }

    #[test]
    fn loss_invention_change_and_disorder_are_refused() {
        let oracle = oracle(true);
        assert!(!accepts(&oracle, &[]), "all lost");
        assert!(!accepts(&oracle, &[(A, 0, &["1"])]), "half of a commit lost");
        assert!(!accepts(&oracle, &[(A, 0, &["1"]), (B, 0, &["x"])]), "a wrong payload");
        assert!(!accepts(&oracle, &[(A, 0, &["1", "2", "2"]), (B, 0, &["1"])]), "twice");
        assert!(!accepts(&oracle, &[(A, 1, &["1"]), (B, 0, &["1"])]), "a wrong position");
        assert!(!accepts(&oracle, &[(A, 0, &["1"]), (B, 0, &["1", "3"])]), "a gap");
        let other = ("c", 0);
        assert!(!accepts(&oracle, &[(A, 0, &["1"]), (B, 0, &["1"]), (other, 0, &[])]), "invented");
    }

    #[test]
    fn a_commit_is_never_split() {
        let mut oracle = oracle(false);
        assert!(accepts(&oracle, &[(A, 0, &["1"]), (B, 0, &["1", "3"])]), "order is unknown");
        oracle.submit(vec![put(A, "4"), put(B, "4")], Survives::PowerLoss);
        assert!(!accepts(&oracle, &[(A, 0, &["1", "2", "4"]), (B, 0, &["1", "3"])]));
        assert!(accepts(&oracle, &[(A, 0, &["1", "2", "4"]), (B, 0, &["1", "3", "4"])]));
    }

    #[test]
    fn known_lsns_bind_even_without_order_or_durability() {
        let mut oracle = Oracle::new(false);
        for (key, record, lsn) in [(A, "1", 2), (B, "2", 1)] {
            let commit = oracle.submit(vec![put(key, record)], Survives::Nothing);
            oracle.report(commit, Said::Done(Some(lsn)));
        }
        assert!(accepts(&oracle, &[]));
        assert!(accepts(&oracle, &[(B, 0, &["2"])]));
        assert!(!accepts(&oracle, &[(A, 0, &["1"])]), "LSN 2 without LSN 1");
        assert!(accepts(&oracle, &[(A, 0, &["1"]), (B, 0, &["2"])]));
    }

    #[test]
    fn not_applied_means_never_seen() {
        let mut oracle = Oracle::new(true);
        let failed = oracle.submit(vec![put(A, "1")], Survives::PowerLoss);
        assert!(!oracle.all_answered());
        oracle.report(failed, Said::NotApplied);
        assert!(oracle.all_answered());
        assert!(accepts(&oracle, &[]));
        assert!(!accepts(&oracle, &[(A, 0, &["1"])]));
        assert_eq!(*oracle.tip(), World::new());
        let unknown = oracle.submit(vec![put(B, "1")], Survives::PowerLoss);
        oracle.report(unknown, Said::Unknown);
        assert!(accepts(&oracle, &[]));
        let later = oracle.submit(vec![put(A, "2")], Survives::PowerLoss);
        oracle.report(later, Said::Done(Some(3)));
        assert!(accepts(&oracle, &[(A, 0, &["2"]), (B, 0, &["1"])]));
        assert!(!accepts(&oracle, &[(A, 0, &["1", "2"]), (B, 0, &["1"])]));
    }

    #[test]
    fn what_was_released_truncated_or_deleted_stays_away() {
        let mut oracle = Oracle::new(true);
        oracle.recovered(World::new(), Survives::PowerLoss).unwrap();
        let changes = [
            vec![put(A, "1"), put(A, "2"), put(A, "3"), put(B, "1")],
            vec![(A, Change::Release(1)), (B, Change::Delete)],
            vec![(A, Change::Truncate(2)), put(A, "4")],
        ];
        for changes in changes {
            let commit = oracle.submit(changes, Survives::PowerLoss);
            oracle.report(commit, Said::Done(Some(commit as u64)));
        }
        assert!(accepts(&oracle, &[(A, 1, &["2", "4"])]));
        assert!(!accepts(&oracle, &[(A, 0, &["1", "2", "4"])]), "released");
        assert!(!accepts(&oracle, &[(A, 1, &["2", "3"])]), "truncated");
        assert!(!accepts(&oracle, &[(A, 1, &["2", "4"]), (B, 0, &["1"])]), "deleted");
        assert_eq!(*oracle.tip(), world(&[(A, 1, &["2", "4"])]));
    }

    #[test]
    fn a_release_may_go_past_the_end() {
        let mut seen = world(&[(A, 3, &["x"])]);
        apply(&mut seen, A, &Change::Release(9));
        assert_eq!(seen, world(&[(A, 9, &[])]));
        apply(&mut seen, A, &put(A, "y").1);
        assert_eq!(seen, world(&[(A, 9, &["y"])]));
    }
}
