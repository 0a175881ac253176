//! Registers whose values are unique, in O(n log n) (Gibbons and Korach 1997).
//!
//! When each value is written to a key once, a read names the write that it saw. The write of a
//! value and its reads form a *cluster*: they must be adjacent in any order that explains the
//! answers. So a cluster A comes before a cluster B as a whole when one call of A ended before one
//! of B began; and a key is linearizable if and only if no read ended before its write began, and
//! no two clusters come before each other.
//!
//! The *zone* of a cluster lies between its first end and its last begin. It is *forward* when the
//! first end comes first: calls of other values must stay out of it. Otherwise all calls of the
//! cluster overlap at one moment, and the zone is *backward*: the cluster may be put at any moment
//! in it. Two clusters come before each other if and only if their zones are both forward and
//! overlap, or one is backward and lies inside the other, which is forward. Sorting the forward
//! zones finds both.
//!
//! A write of unknown outcome never ended: with a read it happened, at any time before the end of
//! that read; without one, an order in which it never happened explains as much. The initial state
//! is a cluster whose write ended before everything.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::{Debug, Write as _};
use std::hash::Hash;

use super::search::{check_parts, describe_calls, partition, span_ns};
use super::{CheckError, Checked, Kv};
use crate::{CallId, Ended, History, KvOp, KvRet};

/// Checks that the history of a key-value store is linearizable. Answers what
/// [`check`](crate::check) answers with [`Kv`], and takes O(n log n) for the keys that are
/// registers with unique values: all their calls but the failed ones are [`KvOp::Get`] and
/// [`KvOp::Put`], and no two of these `Put`s write the same value. Such keys are always decided,
/// whatever the number of calls at a time and of unknown outcomes, and take no steps.
///
/// `steps` bounds the search for the other keys, as in [`check`](crate::check).
/// [`Checked::register_keys`] says how many keys needed no search.
///
/// # Errors
/// As [`check`](crate::check).
///
/// # Example
/// ```
/// use voussoir_sim::{History, KvOp, KvRet, check_kv};
/// let mut history = History::new();
/// for value in 0..10_000 {
///     let put = history.invoke(1, KvOp::Put { key: "x", value }, 2 * value);
///     let get = history.invoke(2, KvOp::Get { key: "x" }, 2 * value);
///     history.unknown(put, 2 * value + 1);
///     history.ok(get, KvRet::Value(Some(value)), 2 * value + 1);
/// }
/// assert_eq!(check_kv(&history, 0).unwrap().register_keys, 1);
/// ```
///
/// Source: Gibbons and Korach, *Testing Shared Memories*, 1997, section 4.
pub fn check_kv<K, V>(
    history: &History<KvOp<K, V>, KvRet<V>>,
    steps: u64,
) -> Result<Checked, CheckError<K>>
where
    K: Clone + Eq + Hash + Debug,
    V: Clone + Eq + Hash + Debug,
{
    let mut checked = Checked::default();
    let mut others = Vec::new();
    for (key, calls) in partition(&Kv::new(), history) {
        let Some(clusters) = Clusters::of(history, &calls) else {
            others.push((key, calls));
            continue;
        };
        if let Some(contradiction) = clusters.contradiction() {
            return Err(contradiction.violation(history, key, &clusters));
        }
        checked.calls += clusters.calls;
        checked.unknown += clusters.unknown;
        checked.keys += 1;
        checked.register_keys += 1;
    }
    let searched = check_parts(&Kv::new(), history, others, steps)?;
    checked.calls += searched.calls;
    checked.unknown += searched.unknown;
    checked.keys += searched.keys;
    checked.steps += searched.steps;
    Ok(checked)
}

/// A moment among the beginnings and ends of a history, counted from 1: 0 is before all of them.
type Moment = u64;

const NEVER: Moment = Moment::MAX;

/// What is known of one value.
#[derive(Clone, Copy)]
struct Cluster {
    /// None for the initial state, and as long as only reads of the value were seen.
    write: Option<CallId>,
    write_begin: Moment,
    /// The first end of a call, and the call; none where that is the write of the initial state.
    first_end: (Moment, Option<CallId>),
    /// The last begin of a call, and the call.
    last_begin: (Moment, Option<CallId>),
}

/// The clusters of one key.
struct Clusters {
    /// That of the initial state, and those of the values that were written or read.
    all: Vec<Cluster>,
    calls: u64,
    unknown: u64,
    /// A call that was answered what no call of its kind is.
    absurd: Option<CallId>,
}

/// Calls that cannot all be explained, and why.
struct Contradiction {
    calls: Vec<CallId>,
    why: &'static str,
}

impl Cluster {
    const UNSEEN: Self =
        Self { write: None, write_begin: NEVER, first_end: (NEVER, None), last_begin: (0, None) };
    const INITIAL: Self = Self { write_begin: 0, first_end: (0, None), ..Self::UNSEEN };

    fn add(&mut self, call: CallId, begin: Moment, end: Moment) {
        if end < self.first_end.0 {
            self.first_end = (end, Some(call));
        }
        if begin > self.last_begin.0 {
            self.last_begin = (begin, Some(call));
        }
    }

    fn is_forward(&self) -> bool {
        self.first_end.0 < self.last_begin.0
    }

    /// Some call of this cluster ended before some call of the other began.
    fn is_before(&self, other: &Self) -> bool {
        self.first_end.0 < other.last_begin.0
    }

    /// The calls by which the two clusters come before each other.
    fn contradiction(&self, other: &Self) -> Contradiction {
        let ends = [self.first_end, other.last_begin, other.first_end, self.last_begin];
        let mut calls = Vec::with_capacity(ends.len());
        // What is not there is the initial state, which ended before everything.
        for call in ends.into_iter().filter_map(|(_, call)| call) {
            if !calls.contains(&call) {
                calls.push(call);
            }
        }
        let why = "each of two values was there before the other one:";
        Contradiction { calls, why }
    }
}

impl Clusters {
    /// None if the key is no register with unique values.
    fn of<K, V>(history: &History<KvOp<K, V>, KvRet<V>>, calls: &[u32]) -> Option<Self>
    where
        V: Eq + Hash,
    {
        let mut clusters = Self { all: vec![Cluster::INITIAL], calls: 0, unknown: 0, absurd: None };
        let mut places: HashMap<&V, usize> = HashMap::new();
        for &at in calls {
            let (id, call) = (CallId::new(at), &history.calls()[at as usize]);
            let begin = call.begin + 1;
            let (ret, end) = match (&call.ended, call.end) {
                (Ended::Ok(ret), Some(end)) => (Some(ret), end + 1),
                _ => (None, NEVER),
            };
            clusters.calls += 1;
            clusters.unknown += u64::from(ret.is_none());
            let value = match (&call.op, ret) {
                (KvOp::Put { value, .. }, _) => Some(value),
                (KvOp::Get { .. }, Some(KvRet::Value(value))) => value.as_ref(),
                // Nobody saw the answer.
                (KvOp::Get { .. }, None) => continue,
                (KvOp::Get { .. }, Some(_)) => {
                    clusters.absurd.get_or_insert(id);
                    continue;
                }
                (KvOp::Cas { .. } | KvOp::Delete { .. }, _) => return None,
            };
            let place = value.map_or(0, |value| match places.entry(value) {
                Entry::Occupied(place) => *place.get(),
                Entry::Vacant(vacant) => {
                    clusters.all.push(Cluster::UNSEEN);
                    *vacant.insert(clusters.all.len() - 1)
                }
            });
            let cluster = &mut clusters.all[place];
            if matches!(call.op, KvOp::Put { .. }) {
                if cluster.write.is_some() {
                    return None;
                }
                (cluster.write, cluster.write_begin) = (Some(id), begin);
                if ret.is_some_and(|ret| *ret != KvRet::Done) {
                    clusters.absurd.get_or_insert(id);
                }
            }
            cluster.add(id, begin, end);
        }
        Some(clusters)
    }

    fn contradiction(&self) -> Option<Contradiction> {
        if let Some(call) = self.absurd {
            let why = "no call of its kind is answered so:";
            return Some(Contradiction { calls: vec![call], why });
        }
        for cluster in &self.all {
            let (first_end, read) = cluster.first_end;
            if first_end >= cluster.write_begin {
                continue;
            }
            // Only a read can have ended before the write began.
            let calls = read.into_iter().chain(cluster.write).collect();
            let why = match cluster.write {
                Some(_) => "the value was read before its write began:",
                None => "the value was read, and no write of it took effect:",
            };
            return Some(Contradiction { calls, why });
        }
        self.overlap()
    }

    /// Two clusters that come before each other.
    fn overlap(&self) -> Option<Contradiction> {
        // A write of unknown outcome that nobody read need not have happened.
        let happened = self.all.iter().filter(|cluster| cluster.first_end.0 < NEVER);
        let (mut forward, backward): (Vec<&Cluster>, Vec<&Cluster>) =
            happened.partition(|cluster| cluster.is_forward());
        forward.sort_unstable_by_key(|cluster| cluster.first_end.0);
        let pairs = forward.windows(2).map(|pair| (pair[0], pair[1]));
        if let Some((one, other)) = pairs.into_iter().find(|(one, other)| other.is_before(one)) {
            return Some(one.contradiction(other));
        }
        // No two forward zones overlap, so only the last one that begins before a backward zone
        // can contain it.
        for inner in backward {
            let later = forward.partition_point(|zone| zone.is_before(inner));
            let Some(outer) = later.checked_sub(1).map(|at| forward[at]) else { continue };
            if inner.is_before(outer) {
                return Some(outer.contradiction(inner));
            }
        }
        None
    }
}

impl Contradiction {
    fn violation<K, V>(
        self,
        history: &History<KvOp<K, V>, KvRet<V>>,
        key: K,
        clusters: &Clusters,
    ) -> CheckError<K>
    where
        K: Clone + Eq + Hash + Debug,
        V: Clone + Eq + Hash + Debug,
    {
        let Self { calls, why } = self;
        let mut text = String::new();
        let _infallible = writeln!(
            text,
            "not linearizable: key {key:?}, {} calls ({} of unknown outcome)\n{why}",
            clusters.calls, clusters.unknown
        );
        describe_calls(history, &calls, &mut text);
        let span_ns = span_ns(history, &calls);
        CheckError::Violation { key, fitting: Vec::new(), stuck: calls, span_ns, text }
    }
}
