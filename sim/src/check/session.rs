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

/// Checks session guarantees, in time and memory about linear in the calls where a session makes
/// one call at a time; without [`SessionGuarantee::MonotonicReads`] and
/// [`SessionGuarantee::MonotonicWrites`] quadratic in the calls of a session to a key.
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
    let is_asked = |earlier_writes, later_writes| {
        guarantees.contains(&match (earlier_writes, later_writes) {
            (true, false) => SessionGuarantee::ReadYourWrites,
            (false, false) => SessionGuarantee::MonotonicReads,
            (true, true) => SessionGuarantee::MonotonicWrites,
            (false, true) => SessionGuarantee::WritesFollowReads,
        })
    };
    for of_key in calls.sessions(|call| (call.process, &call.key)) {
        calls.each_pair(&of_key, is_asked, |earlier, later| {
            match (calls.all[earlier].version, calls.all[later].version) {
                // The initial state comes before every write.
                (None, _) => {}
                (Some(_), None) => return Err(calls.cycle(&[earlier, later])),
                (Some(before), Some(after)) if before != after => graph.add(before, after),
                _ => {}
            }
            Ok(())
        })?;
    }
    graph.cycle().map_or(Ok(()), |cycle| Err(calls.cycle(&cycle)))
}

/// Checks causal consistency, in time quadratic in the calls times the words of a set of them; in
/// memory for a set of calls for each call, one bit a call.
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
    for session in calls.sessions(|call| call.process) {
        calls.each_pair(
            &session,
            |_, _| true,
            |earlier, later| {
                graph.add(earlier, later);
                Ok(())
            },
        )?;
    }
    for (at, call) in calls.all.iter().enumerate() {
        if let Some(write) = call.version.filter(|_| !call.is_write) {
            graph.add(write, at);
        }
    }
    let order = graph.order().map_err(|cycle| calls.cycle(&calls.shortened(&cycle)))?;
    let past = graph.pasts(&order);
    let mut conflicts = graph.clone();
    for (at, read) in calls.all.iter().enumerate().filter(|(_, call)| !call.is_write) {
        // The last ones of the causal past: what comes before one of them is in order with it.
        let mut last: Vec<usize> = Vec::new();
        for other in past[at].iter().rev().filter(|&other| calls.all[other].is_write) {
            if calls.all[other].key != read.key || Some(other) == read.version {
                continue;
            }
            if last.iter().any(|&later| past[later].contains(other)) {
                continue;
            }
            last.push(other);
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
        return Err(calls.cycle(&calls.shortened(&cycle)));
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

    /// The calls of known outcome, in order, by what `of` says of them.
    fn sessions<'a, S: Eq + Hash>(&'a self, of: impl Fn(&'a Effect<K>) -> S) -> Vec<Vec<usize>> {
        let mut places: HashMap<S, usize> = HashMap::new();
        let mut sessions: Vec<Vec<usize>> = Vec::new();
        for (at, call) in self.all.iter().enumerate().filter(|(_, call)| call.end.is_some()) {
            let place = *places.entry(of(call)).or_insert_with(|| {
                sessions.push(Vec::new());
                sessions.len() - 1
            });
            sessions[place].push(at);
        }
        sessions
    }

    /// Pairs of calls of a session of which the first ended before the second began and which are
    /// asked for, by whether they write: as many as imply all others, through calls between them.
    fn each_pair(
        &self,
        session: &[usize],
        is_asked: impl Fn(bool, bool) -> bool,
        mut take: impl FnMut(usize, usize) -> Result<(), OrderError>,
    ) -> Result<(), OrderError> {
        let mut by_end = session.to_vec();
        by_end.sort_unstable_by_key(|&at| self.all[at].end);
        let mut ending = by_end.into_iter().peekable();
        // Of the calls that had ended: in the order of their ends, and the last to begin.
        let mut ended = [(false, Vec::new(), None), (true, Vec::new(), None)];
        for &later in session {
            let Effect { begin, is_write, .. } = self.all[later];
            while let Some(at) = ending.next_if(|&at| self.all[at].end < Some(begin)) {
                let (_, calls, last_begin) = &mut ended[usize::from(self.all[at].is_write)];
                calls.push(at);
                *last_begin = (*last_begin).max(Some(self.all[at].begin));
            }
            for (writes, calls, _) in &ended {
                if !is_asked(*writes, is_write) {
                    continue;
                }
                let between = ended.iter().filter(|(middle, ..)| {
                    is_asked(*writes, *middle) && is_asked(*middle, is_write)
                });
                // Who ended before this has a call between itself and `later`.
                let since = between.filter_map(|(_, _, last_begin)| *last_begin).max();
                let direct = calls.iter().rev().take_while(|&&at| self.all[at].end > since);
                direct.copied().try_for_each(|earlier| take(earlier, later))?;
            }
        }
        Ok(())
    }

    /// A cycle without the calls that lie between two of their session.
    fn shortened(&self, cycle: &[usize]) -> Vec<usize> {
        let is_before = |before: usize, next: usize| {
            let (before, next) = (&self.all[before], &self.all[next]);
            before.process == next.process && before.end.is_some_and(|end| end < next.begin)
        };
        let mut short: Vec<usize> = Vec::new();
        for (place, &at) in cycle.iter().enumerate() {
            let next = cycle[(place + 1) % cycle.len()];
            if !short.last().is_some_and(|&before| is_before(before, next)) {
                short.push(at);
            }
        }
        if let [first, second, .., last] = short[..]
            && is_before(last, second)
        {
            short.retain(|&at| at != first);
        }
        short
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
        let mut befores = vec![None; open.len()];
        for before in (0..open.len()).rev().filter(|&before| open[before] > 0) {
            self.after[before].iter().for_each(|&after| befores[after] = Some(before));
        }
        let mut path = vec![at];
        loop {
            let Some(before) = befores[at] else {
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

    fn iter(&self) -> impl DoubleEndedIterator<Item = usize> + '_ {
        (0..self.0.len() * 64).filter(|&at| self.contains(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Rng, Situations};

    type Pairs = Vec<Vec<bool>>;

    fn closed(mut pairs: Pairs) -> Pairs {
        for middle in 0..pairs.len() {
            for first in 0..pairs.len() {
                for second in 0..pairs.len() {
                    pairs[first][second] |= pairs[first][middle] && pairs[middle][second];
                }
            }
        }
        pairs
    }

    static SESSIONS: [&str; 2] = ["a pair left out", "calls at a time in a session"];

    #[test]
    fn the_pairs_of_a_session_imply_all_others() {
        let situations = Situations::new(&SESSIONS);
        let mut rng = Rng::new(5);
        for _ in 0..3_000 {
            let mut history = History::<KvOp<u8, u64>, KvRet<u64>>::new();
            let mut open = Vec::new();
            for at in 0..rng.between(2, 16) {
                let is_write = rng.chance(500_000);
                let op =
                    if is_write { KvOp::Put { key: 0, value: at } } else { KvOp::Get { key: 0 } };
                open.push((history.invoke(1, op, at), is_write));
                situations.add(SESSIONS[1], u64::from(open.len() > 1));
                while !open.is_empty() && rng.chance(600_000) {
                    let (call, is_write) = open.swap_remove(rng.below(open.len() as u64) as usize);
                    history.ok(call, if is_write { KvRet::Done } else { KvRet::Value(None) }, at);
                }
            }
            for (call, is_write) in open {
                history.ok(call, if is_write { KvRet::Done } else { KvRet::Value(None) }, 99);
            }
            let calls = Calls::new(&history).unwrap();
            let count = calls.all.len();
            for asked in 0..16_u32 {
                let is_asked = |earlier: bool, later: bool| {
                    asked >> (2 * u32::from(earlier) + u32::from(later)) & 1 == 1
                };
                let mut all = vec![vec![false; count]; count];
                for (first, earlier) in calls.all.iter().enumerate() {
                    for (second, later) in calls.all.iter().enumerate() {
                        all[first][second] = earlier.end < Some(later.begin)
                            && is_asked(earlier.is_write, later.is_write);
                    }
                }
                let mut some = vec![vec![false; count]; count];
                for session in calls.sessions(|call| call.process) {
                    let taken = calls.each_pair(&session, is_asked, |earlier, later| {
                        assert!(all[earlier][later] && !some[earlier][later]);
                        some[earlier][later] = true;
                        Ok(())
                    });
                    taken.unwrap();
                }
                situations.add(SESSIONS[0], u64::from(some != all));
                assert_eq!(closed(some), closed(all), "{asked:#b} {history:#?}");
            }
        }
        situations.assert_all_reached();
    }

    #[test]
    fn a_cycle_is_told_without_the_calls_between() {
        let mut history = History::new();
        let ended = |history: &mut History<_, _>, process, op, ret| {
            let call = history.invoke(process, op, 0);
            history.ok(call, ret, 0);
        };
        // Session 1 reads what session 2 will write, and later writes what session 2 has read.
        ended(&mut history, 1, KvOp::Get { key: 'x' }, KvRet::Value(Some(2)));
        for value in 10..100 {
            ended(&mut history, 1, KvOp::Put { key: 'y', value }, KvRet::Done);
        }
        ended(&mut history, 1, KvOp::Put { key: 'x', value: 1 }, KvRet::Done);
        ended(&mut history, 2, KvOp::Get { key: 'x' }, KvRet::Value(Some(1)));
        ended(&mut history, 2, KvOp::Put { key: 'x', value: 2 }, KvRet::Done);
        let error = check_causal(&history, Causality::Weak).unwrap_err();
        let OrderError::Cycle { calls, text } = error else { panic!("{error}") };
        assert_eq!(calls.len(), 4, "{text}");
    }
}
