//! Session guarantees and causal consistency of histories of reads and writes.
//!
//! Both checks take histories of [`KvOp::Get`] and [`KvOp::Put`] in which each value is written to
//! a key once, so that a read names the write that it saw. A process is a session; its calls are
//! in order where one ended before the next began. Writes of unknown outcome count once they were
//! read, and are bound by no order of their session: they may take effect late.
//!
//! Sources: Terry et al., "Session Guarantees for Weakly Consistent Replicated Data" (1994);
//! Bouajjani et al., "On Verifying Causal Consistency" (POPL 2017).

use std::collections::HashMap;
use std::error::Error;
use std::fmt::{self, Debug};
use std::hash::Hash;

use crate::{CallId, Ended, History, KvOp, KvRet};

/// What a session of reads and writes may rely on. Each is about the writes to one key, and asks
/// that an order of these exists which explains what all sessions saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SessionGuarantee {
    /// A read sees the writes of its own session, or later ones.
    ReadYourWrites,
    /// A read sees what an earlier read of its session saw, or a later write.
    MonotonicReads,
    /// Writes of a session are in the order in which the session made them.
    MonotonicWrites,
    /// A write comes after the writes that its session had read.
    WritesFollowReads,
}

impl SessionGuarantee {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::ReadYourWrites,
        Self::MonotonicReads,
        Self::MonotonicWrites,
        Self::WritesFollowReads,
    ];
}

/// Which causal consistency [`check_causal`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Causality {
    /// Each read is explained by the writes of its causal past, in some order that respects
    /// causality; two sessions may see concurrent writes in different orders.
    Weak,
    /// All sessions see concurrent writes in one order, as stores do that let the last writer win.
    Convergent,
}

/// A history does not keep what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OrderError {
    /// The history cannot be checked: the workload is at fault, not the system under test.
    Unsupported {
        /// The call.
        call: CallId,
        /// What the call must be.
        rule: &'static str,
    },
    /// A read saw a value that nobody wrote, or that a failed write would have written.
    Invented {
        /// The read.
        call: CallId,
    },
    /// The system under test is at fault: each of these calls must come before the next one, and
    /// the last one before the first.
    Cycle {
        /// The calls, at least one: a read that had to see a write saw the initial state.
        calls: Vec<CallId>,
        /// The same for a reader.
        text: String,
    },
}

impl fmt::Display for OrderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported { call, rule } => write!(f, "call {} {rule}", call.index()),
            Self::Invented { call } => {
                write!(f, "call {} read a value that nobody wrote", call.index())
            }
            Self::Cycle { text, .. } => f.write_str(text),
        }
    }
}

impl Error for OrderError {}

/// Checks session guarantees, in time linear in the calls times the calls of a session.
///
/// # Errors
/// [`OrderError`].
///
/// # Example
/// ```
/// use voussoir_sim::{History, KvOp, KvRet, SessionGuarantee, check_sessions};
/// let mut history = History::new();
/// let put = history.invoke(1, KvOp::Put { key: "x", value: 5 }, 100);
/// history.ok(put, KvRet::Done, 180);
/// let get = history.invoke(1, KvOp::Get { key: "x" }, 200);
/// history.ok(get, KvRet::Value(None), 230);
/// assert!(check_sessions(&history, &[SessionGuarantee::MonotonicReads]).is_ok());
/// assert!(check_sessions(&history, &[SessionGuarantee::ReadYourWrites]).is_err());
/// ```
pub fn check_sessions<K, V>(
    history: &History<KvOp<K, V>, KvRet<V>>,
    guarantees: &[SessionGuarantee],
) -> Result<(), OrderError>
where
    K: Clone + Eq + Hash + Debug,
    V: Clone + Eq + Hash + Debug,
{
    let calls = Calls::new(history)?;
    let mut graph = Graph::new(calls.all.len());
    for (at, earlier, later) in calls.pairs() {
        let is_asked = match (earlier.is_write, later.is_write) {
            (true, false) => SessionGuarantee::ReadYourWrites,
            (false, false) => SessionGuarantee::MonotonicReads,
            (true, true) => SessionGuarantee::MonotonicWrites,
            (false, true) => SessionGuarantee::WritesFollowReads,
        };
        if earlier.key != later.key || !guarantees.contains(&is_asked) {
            continue;
        }
        match (earlier.version, later.version) {
            // The initial state comes before every write.
            (None, _) => {}
            (Some(_), None) => return Err(calls.cycle(&[at.0, at.1])),
            (Some(before), Some(after)) if before != after => graph.add(before, after),
            _ => {}
        }
    }
    graph.cycle().map_or(Ok(()), |cycle| Err(calls.cycle(&cycle)))
}

/// Checks causal consistency, in time quadratic in the calls times the words of a set of them.
///
/// # Errors
/// [`OrderError`].
pub fn check_causal<K, V>(
    history: &History<KvOp<K, V>, KvRet<V>>,
    causality: Causality,
) -> Result<(), OrderError>
where
    K: Clone + Eq + Hash + Debug,
    V: Clone + Eq + Hash + Debug,
{
    let calls = Calls::new(history)?;
    let mut graph = Graph::new(calls.all.len());
    for (at, ..) in calls.pairs() {
        graph.add(at.0, at.1);
    }
    for (at, call) in calls.all.iter().enumerate() {
        if let Some(write) = call.version.filter(|_| !call.is_write) {
            graph.add(write, at);
        }
    }
    let order = graph.order().map_err(|cycle| calls.cycle(&cycle))?;
    let past = graph.pasts(&order);
    let mut conflicts = graph.clone();
    for (at, read) in calls.all.iter().enumerate().filter(|(_, call)| !call.is_write) {
        for other in past[at].iter().filter(|&other| calls.all[other].is_write) {
            if calls.all[other].key != read.key || Some(other) == read.version {
                continue;
            }
            match read.version {
                // A write of the causal past hides the initial state, and every write before it.
                None => return Err(calls.cycle(&[other, at])),
                Some(seen) if past[other].contains(seen) => {
                    return Err(calls.cycle(&[seen, other, at]));
                }
                Some(seen) => conflicts.add(other, seen),
            }
        }
    }
    if causality == Causality::Convergent
        && let Some(cycle) = conflicts.cycle()
    {
        return Err(calls.cycle(&cycle));
    }
    Ok(())
}

/// A call that took effect.
struct Effect<K> {
    call: CallId,
    process: u64,
    key: K,
    is_write: bool,
    /// The write itself, or the write that a read saw, by its place in `Calls::all`; none for
    /// the initial state.
    version: Option<usize>,
    begin: u64,
    /// None for a write of unknown outcome, which is bound by no order of its session.
    end: Option<u64>,
    text: String,
}

struct Calls<K> {
    all: Vec<Effect<K>>,
}

impl<K: Clone + Eq + Hash + Debug> Calls<K> {
    fn new<V>(history: &History<KvOp<K, V>, KvRet<V>>) -> Result<Self, OrderError>
    where
        V: Clone + Eq + Hash + Debug,
    {
        let mut all = Vec::new();
        let mut writes: HashMap<(&K, &V), usize> = HashMap::new();
        let mut reads = Vec::new();
        for (index, call) in history.calls().iter().enumerate() {
            let id = CallId::new(index as u32);
            let unsupported = |rule| OrderError::Unsupported { call: id, rule };
            let end = match &call.ended {
                Ended::Failed => continue,
                Ended::Ok(_) => call.end,
                Ended::Unknown => None,
            };
            let is_write = match (&call.op, &call.ended) {
                (KvOp::Put { key, value }, _) => {
                    if writes.insert((key, value), all.len()).is_some() {
                        return Err(unsupported("writes a value that was written before"));
                    }
                    true
                }
                (KvOp::Get { key }, Ended::Ok(KvRet::Value(value))) => {
                    reads.push((all.len(), id, key, value));
                    false
                }
                (KvOp::Get { .. }, Ended::Unknown) => continue,
                _ => return Err(unsupported("is neither a put nor a get with a value")),
            };
            all.push(Effect {
                call: id,
                process: call.process,
                key: call.op.key().clone(),
                is_write,
                version: is_write.then_some(all.len()),
                begin: call.begin,
                end,
                text: format!("process {}: {:?} -> {:?}", call.process, call.op, call.ended),
            });
        }
        for (at, id, key, value) in reads {
            if let Some(value) = value {
                let write = writes.get(&(key, value)).ok_or(OrderError::Invented { call: id })?;
                all[at].version = Some(*write);
            }
        }
        Ok(Self { all })
    }

    /// All pairs of calls of one session of which the first ended before the second began.
    fn pairs(&self) -> impl Iterator<Item = ((usize, usize), &Effect<K>, &Effect<K>)> {
        let mut sessions: HashMap<u64, Vec<usize>> = HashMap::new();
        for (at, call) in self.all.iter().enumerate().filter(|(_, call)| call.end.is_some()) {
            sessions.entry(call.process).or_default().push(at);
        }
        let mut sessions: Vec<_> = sessions.into_iter().collect();
        sessions.sort_unstable();
        sessions.into_iter().flat_map(move |(_, calls)| {
            let pairs: Vec<_> = (0..calls.len())
                .flat_map(|first| (first + 1..calls.len()).map(move |second| (first, second)))
                .map(|(first, second)| (calls[first], calls[second]))
                .collect();
            pairs.into_iter().filter_map(|(first, second)| {
                let (earlier, later) = (&self.all[first], &self.all[second]);
                let is_before = earlier.end.is_some_and(|end| end < later.begin);
                is_before.then_some(((first, second), earlier, later))
            })
        })
    }

    fn cycle(&self, calls: &[usize]) -> OrderError {
        let mut text = "these calls contradict each other:".to_owned();
        for &at in calls {
            text.push_str("\n  ");
            text.push_str(&self.all[at].text);
        }
        OrderError::Cycle { calls: calls.iter().map(|&at| self.all[at].call).collect(), text }
    }
}

/// Which calls must come before which.
#[derive(Clone)]
struct Graph {
    after: Vec<Vec<usize>>,
}

impl Graph {
    fn new(calls: usize) -> Self {
        Self { after: vec![Vec::new(); calls] }
    }

    fn add(&mut self, before: usize, after: usize) {
        self.after[before].push(after);
    }

    fn cycle(&self) -> Option<Vec<usize>> {
        self.order().err()
    }

    /// An order in which nothing comes before what it must follow; or a cycle.
    fn order(&self) -> Result<Vec<usize>, Vec<usize>> {
        let mut open = vec![0_usize; self.after.len()];
        self.after.iter().flatten().for_each(|&after| open[after] += 1);
        let mut order: Vec<usize> = (0..open.len()).filter(|&at| open[at] == 0).collect();
        let mut done = 0;
        // Ends: each call enters the order once.
        while let Some(&at) = order.get(done) {
            done += 1;
            for &after in &self.after[at] {
                open[after] -= 1;
                if open[after] == 0 {
                    order.push(after);
                }
            }
        }
        let Some(mut at) = open.iter().position(|&count| count > 0) else { return Ok(order) };
        // Every call that is left follows one that is left: going back ends up in a cycle.
        let mut path = vec![at];
        loop {
            let before = (0..open.len()).find(|&b| open[b] > 0 && self.after[b].contains(&at));
            let Some(before) = before else {
                unreachable!("a call that is left has one before it")
            };
            if let Some(begin) = path.iter().position(|&seen| seen == before) {
                let mut cycle = path.split_off(begin);
                cycle.reverse();
                return Err(cycle);
            }
            path.push(before);
            at = before;
        }
    }

    /// For each call, all that come before it by any path.
    fn pasts(&self, order: &[usize]) -> Vec<Set> {
        let mut pasts = vec![Set(vec![0; order.len().div_ceil(64)]); order.len()];
        for &at in order {
            for &after in &self.after[at] {
                let (from, to) = if at < after {
                    let (low, high) = pasts.split_at_mut(after);
                    (&low[at], &mut high[0])
                } else {
                    let (low, high) = pasts.split_at_mut(at);
                    (&high[0], &mut low[after])
                };
                to.0.iter_mut().zip(&from.0).for_each(|(to, from)| *to |= from);
                to.0[at / 64] |= 1 << (at % 64);
            }
        }
        pasts
    }
}

/// A set of calls.
#[derive(Clone)]
struct Set(Vec<u64>);

impl Set {
    fn contains(&self, at: usize) -> bool {
        self.0[at / 64] & (1 << (at % 64)) != 0
    }

    fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.0.len() * 64).filter(|&at| self.contains(at))
    }
}
