//! Is a history sequentially consistent?

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use super::{CheckError, Checked, Model};
use crate::history::{Call, CallId, Ended, History};

/// How many calls of the longest order a violation shows.
const SHOWN: usize = 16;

/// Checks that `history` is sequentially consistent with respect to `model` (Lamport 1979): there
/// is one order of all calls in which each answer fits and the calls of each process keep theirs.
/// Unlike [`check`](super::check), the order need not keep the time between processes.
///
/// Keys cannot be checked apart, and the problem is NP-complete even for unique values (Gibbons and
/// Korach 1997): `steps` bounds the points of the search, of which each takes memory for one
/// number per process and the states of all keys. Keep histories short: some hundred calls of a
/// few processes.
///
/// # Errors
/// [`CheckError::Violation`] if the history is not sequentially consistent;
/// [`CheckError::Undecided`] if that was not decided within the bound, which is a failure as well.
pub fn check_sequential<M: Model>(
    model: &M,
    history: &History<M::Op, M::Ret>,
    steps: u64,
) -> Result<Checked, CheckError<()>> {
    let mut search = Search::new(model, history);
    let checked = Checked {
        calls: search.sessions.iter().map(|calls| calls.len() as u64).sum(),
        unknown: search.unknown as u64,
        keys: search.keys.len() as u64,
        ..Checked::default()
    };
    let init: Vec<M::State> = search.keys.iter().map(|key| model.init(key)).collect();
    let mut stack = vec![(vec![0_u32; search.sessions.len()], init)];
    let mut seen: HashSet<(Vec<u32>, Vec<M::State>)> = HashSet::new();
    // Ends: each turn spends a step, or takes a point off the stack that is not put there again.
    while let Some((at, states)) = stack.pop() {
        if search.is_done(&at) {
            return Ok(Checked { steps: search.steps, ..checked });
        }
        if !seen.insert((at.clone(), states.clone())) {
            continue;
        }
        if search.steps >= steps {
            let (calls, unknown, keys) = (checked.calls, checked.unknown, checked.keys);
            return Err(CheckError::Undecided { key: (), calls, unknown, keys, steps });
        }
        search.expand(&at, &states, &mut stack);
    }
    Err(search.violation())
}

struct Search<'a, M: Model> {
    model: &'a M,
    history: &'a History<M::Op, M::Ret>,
    keys: Vec<M::Key>,
    /// The calls of each process, each with the index of its key. A call of unknown outcome is a
    /// process of its own that need not come: it may take effect at any later time.
    sessions: Vec<Vec<(u32, usize)>>,
    /// For each unknown call, of which session the first so many calls come before it.
    after: Vec<Option<(usize, u32)>>,
    unknown: usize,
    steps: u64,
    best: Vec<u32>,
}

impl<'a, M: Model> Search<'a, M> {
    fn new(model: &'a M, history: &'a History<M::Op, M::Ret>) -> Self {
        let (mut keys, mut places) = (Vec::new(), HashMap::new());
        let (mut sessions, mut after) = (Vec::<Vec<_>>::new(), Vec::new());
        let mut processes: HashMap<u64, usize> = HashMap::new();
        let mut alone = Vec::new();
        for (index, call) in history.calls().iter().enumerate() {
            if matches!(call.ended, Ended::Failed) {
                continue;
            }
            let key = model.key(&call.op);
            let place = *places.entry(key.clone()).or_insert_with(|| {
                keys.push(key);
                keys.len() - 1
            });
            let session = *processes.entry(call.process).or_insert_with(|| {
                sessions.push(Vec::new());
                after.push(None);
                sessions.len() - 1
            });
            if matches!(call.ended, Ended::Unknown) {
                alone.push((index as u32, place, session, sessions[session].len() as u32));
            } else {
                sessions[session].push((index as u32, place));
            }
        }
        let unknown = alone.len();
        for (index, place, session, before) in alone {
            sessions.push(vec![(index, place)]);
            after.push(Some((session, before)));
        }
        let best = vec![0; sessions.len()];
        Self { model, history, keys, sessions, after, unknown, steps: 0, best }
    }

    fn call(&self, index: u32) -> &'a Call<M::Op, M::Ret> {
        &self.history.calls()[index as usize]
    }

    fn is_done(&self, at: &[u32]) -> bool {
        let known =
            self.sessions.iter().zip(at).zip(&self.after).filter(|(_, after)| after.is_none());
        known.into_iter().all(|((calls, &at), _)| calls.len() == at as usize)
    }

    /// Puts the points that may follow on the stack.
    fn expand(
        &mut self,
        at: &[u32],
        states: &[M::State],
        stack: &mut Vec<(Vec<u32>, Vec<M::State>)>,
    ) {
        let placed = |at: &[u32]| at.iter().sum::<u32>();
        if placed(at) > placed(&self.best) {
            self.best.copy_from_slice(at);
        }
        let mut options = Vec::new();
        for session in 0..self.sessions.len() {
            let Some(&(index, key)) = self.sessions[session].get(at[session] as usize) else {
                continue;
            };
            if self.after[session].is_some_and(|(other, count)| at[other] < count) {
                continue;
            }
            let call = self.call(index);
            let ret = match &call.ended {
                Ended::Ok(ret) => Some(ret),
                _ => None,
            };
            self.steps += 1;
            let Some(state) = self.model.step(&states[key], &call.op, ret) else { continue };
            let is_unchanged = state == states[key];
            if ret.is_none() && is_unchanged {
                // It changes nothing here: leaving it out does as well.
                continue;
            }
            let (mut next, mut after) = (at.to_vec(), states.to_vec());
            next[session] += 1;
            after[key] = state;
            let is_free = ret.is_some_and(|ret| self.model.is_read(&call.op, ret));
            if is_free && is_unchanged {
                // A read that fits may come at once, whatever comes later.
                return stack.push((next, after));
            }
            options.push((call.end.filter(|_| ret.is_some()).unwrap_or(u64::MAX), next, after));
        }
        // The call that ended first is tried first: most stores are nearly linearizable.
        options.sort_by_key(|&(end, ..)| std::cmp::Reverse(end));
        stack.extend(options.into_iter().map(|(_, next, after)| (next, after)));
    }

    fn violation(&self) -> CheckError<()> {
        let (mut fitting, mut stuck) = (Vec::new(), Vec::new());
        for ((calls, &at), after) in self.sessions.iter().zip(&self.best).zip(&self.after) {
            let ids = |calls: &[(u32, usize)]| -> Vec<CallId> {
                calls.iter().map(|&(index, _)| CallId::new(index)).collect()
            };
            let (before, rest) = calls.split_at(at as usize);
            fitting.extend(ids(&before[before.len().saturating_sub(SHOWN)..]));
            if after.is_none() {
                stuck.extend(ids(&rest[..rest.len().min(1)]));
            }
        }
        fitting.sort_unstable();
        fitting.drain(..fitting.len().saturating_sub(SHOWN));
        let times = stuck.iter().map(|id| {
            let call = &self.history.calls()[id.index()];
            (call.begin_ns, call.end_ns.unwrap_or(call.begin_ns))
        });
        let span = |a: (u64, u64), b: (u64, u64)| (a.0.min(b.0), a.1.max(b.1));
        let span_ns = times.reduce(span).unwrap_or_default();
        let mut text = format!(
            "not sequentially consistent: the longest order found has {} calls; none of these fits \
             next:",
            self.best.iter().sum::<u32>()
        );
        for id in &stuck {
            let Call { process, op, ended, .. } = &self.history.calls()[id.index()];
            let _infallible = write!(text, "\n  process {process}: {op:?} -> {ended:?}");
        }
        CheckError::Violation { key: (), fitting, stuck, span_ns, text }
    }
}
