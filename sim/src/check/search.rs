//! The search for an order (Wing and Gong 1993; Lowe 2017).
//!
//! Calls whose outcome is known must all be put into an order in which each answer fits and no
//! call comes before one that had ended when it began. Calls of unknown outcome may be put in
//! anywhere after their beginning, or left out.
//!
//! What keeps the search short:
//! - A point (the calls in the order so far, and the state) is searched once; and not at all if
//!   one was searched with the same known calls and state that had spent no more unknown calls.
//! - A known call that only reads, and fits, may come at once whatever comes later: nothing else
//!   is tried there. Otherwise the call that ended first is tried first.
//! - An unknown call is put in only where it matters: if the next call gives the same answer and
//!   leads to the same state without it, then the same order without it would do, and is tried
//!   anyway; and if the two can change places, then the unknown one may come later, which is tried
//!   as well. A point right after an unknown call therefore remembers the state before that call.
//! - Single unknown calls are tried before chains of them; and of those that ask the same, the
//!   one that began first.

use std::collections::HashMap;
use std::fmt::{Debug, Write as _};
use std::ops::Range;

use super::cache::{BitSet, Point, Seen};
use super::ring::Ring;
use super::{CheckError, Checked, Model};
use crate::history::{CallId, Ended, History};
use crate::plan::Instant;

/// Bytes of a state on the heap that count as one step when the state is made or remembered.
const BYTES_A_STEP: usize = 64;
/// Unknown calls that are looked at, and not tried, for one step.
const PASSED_A_STEP: u64 = 16;
/// How many calls of the longest order a violation shows.
const SHOWN: usize = 16;

/// Budget of the first round of a check, in steps per key; each further round has 16 times more.
const FIRST_ROUND_STEPS: u64 = 1 << 14;

/// Checks that `history` is linearizable with respect to `model`.
///
/// `steps` bounds time and memory of the whole check. One step is one call tried, 16 unknown calls
/// passed over, one remembered point compared or added, or 64 bytes of these; so each step takes at
/// most a small constant time, 100 to 300 ns in practice, plus the time of [`Model::step`]. A
/// history takes about five steps per call, and with many calls of unknown outcome about as many
/// per call as there are of these. Memory is at most 120 bytes per step, and 300 per call of the
/// largest key, for states that own nothing on the heap. 10,000,000 is a good bound.
///
/// All keys are checked, with small budgets at first: a violation of one key is found although
/// others cannot be decided.
///
/// # Errors
/// [`CheckError::Violation`] if the history is not linearizable. [`CheckError::Undecided`] if no
/// violation was found, and some key was not decided within the bound.
///
/// # Example
/// See [`History`].
pub fn check<M: Model>(
    model: &M,
    history: &History<M::Op, M::Ret>,
    steps: u64,
) -> Result<Checked, CheckError<M::Key>> {
    check_parts(model, history, partition(model, history), steps)
}

/// Searches an order for each of these keys.
pub(super) fn check_parts<M: Model>(
    model: &M,
    history: &History<M::Op, M::Ret>,
    parts: Vec<Part<M::Key>>,
    steps: u64,
) -> Result<Checked, CheckError<M::Key>> {
    let mut checked = Checked { keys: parts.len() as u64, ..Checked::default() };
    let mut open: Vec<usize> = (0..parts.len()).collect();
    let mut budget = FIRST_ROUND_STEPS;
    // Ends: each round decides every key, or spends steps, of which there are finitely many.
    while !open.is_empty() && checked.steps < steps {
        let mut undecided = Vec::new();
        for &at in &open {
            let (key, calls) = &parts[at];
            let limit = budget.min(steps.saturating_sub(checked.steps));
            let mut search = Search::new(model, history, calls, limit);
            let verdict = search.run(model.init(key));
            checked.steps = checked.steps.saturating_add(search.steps);
            match verdict {
                Verdict::Fits => {
                    checked.calls += calls.len() as u64;
                    checked.unknown += search.unknown.len() as u64;
                }
                Verdict::Undecided => undecided.push(at),
                Verdict::Stuck => return Err(search.violation(key.clone())),
            }
        }
        open = undecided;
        budget = budget.saturating_mul(16);
    }
    let Some(&first) = open.first() else { return Ok(checked) };
    let (key, calls) = &parts[first];
    let is_unknown = |at: &&u32| !matches!(history.calls()[**at as usize].ended, Ended::Ok(_));
    Err(CheckError::Undecided {
        key: key.clone(),
        calls: calls.len() as u64,
        unknown: calls.iter().filter(is_unknown).count() as u64,
        keys: open.len() as u64,
        steps,
    })
}

/// A key, and its calls but those that failed, by their places in the history.
pub(super) type Part<K> = (K, Vec<u32>);

/// The calls of each key.
pub(super) fn partition<M: Model>(
    model: &M,
    history: &History<M::Op, M::Ret>,
) -> Vec<Part<M::Key>> {
    let mut places: HashMap<M::Key, usize> = HashMap::new();
    let mut parts: Vec<Part<M::Key>> = Vec::new();
    for (at, call) in history.calls().iter().enumerate() {
        if matches!(call.ended, Ended::Failed) {
            continue;
        }
        let key = model.key(&call.op);
        let place = *places.entry(key.clone()).or_insert_with(|| {
            parts.push((key, Vec::new()));
            parts.len() - 1
        });
        parts[place].1.push(at as u32);
    }
    parts
}

enum Verdict {
    Fits,
    Stuck,
    Undecided,
}

/// A call that is put next: one of known outcome, or one of unknown.
#[derive(Clone, Copy)]
enum Pick {
    Known(u32),
    Unknown(u32),
}

/// Where a point goes on: at its known calls, at single unknown ones, or at chains of these.
#[derive(Clone, Copy)]
enum Stage {
    Known,
    Single(u32),
    Chain(u32),
    Over,
}

/// What may follow at a point: known calls, unknown ones, or both.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    All,
    KnownOnly,
    UnknownOnly,
}

struct Frame<S> {
    /// The call that led here; none at the root.
    pick: Option<Pick>,
    state: S,
    /// The state before that call, if its outcome is unknown.
    before: Option<S>,
    scope: Scope,
    stage: Stage,
    /// Where the known calls that fit lie, and which is next.
    options: Range<usize>,
    floor: usize,
    /// The first end of a call that is not in the order: only what began before may come now.
    bound: u64,
}

/// What to try next at a point.
struct Next<S> {
    pick: Pick,
    state: S,
    before: Option<S>,
    scope: Scope,
}

struct Search<'a, M: Model> {
    model: &'a M,
    history: &'a History<M::Op, M::Ret>,
    known: Vec<u32>,
    unknown: Vec<u32>,
    /// For each unknown call, the one before it that asks the same.
    twins: Vec<Option<u32>>,
    ring: Ring,
    /// The known calls in the order, encoded.
    in_order: Vec<u32>,
    unknown_in_order: BitSet,
    left: usize,
    /// Space for the calls that may come next at a point.
    candidates: Vec<u32>,
    /// The known calls that fit at each point of the stack, with the states after them.
    options: Vec<(u32, M::State)>,
    steps: u64,
    /// How many unknown calls were looked at as the next one.
    passed_over: u64,
    limit: u64,
    best: Option<Best<M::State>>,
}

struct Best<S> {
    length: usize,
    fitting: Vec<CallId>,
    stuck: Vec<CallId>,
    state: S,
}

impl<'a, M: Model> Search<'a, M> {
    fn new(model: &'a M, history: &'a History<M::Op, M::Ret>, calls: &[u32], limit: u64) -> Self {
        let (mut known, mut unknown, mut events) = (Vec::new(), Vec::new(), Vec::new());
        for &at in calls {
            let call = &history.calls()[at as usize];
            if let (Ended::Ok(_), Some(end)) = (&call.ended, call.end) {
                let number = known.len() as u32;
                events.extend([(call.begin, number, true), (end, number, false)]);
                known.push(at);
            } else {
                unknown.push(at);
            }
        }
        let mut latest = HashMap::new();
        let twins = unknown
            .iter()
            .zip(0_u32..)
            .map(|(&at, number)| latest.insert(&history.calls()[at as usize].op, number));
        Self {
            model,
            history,
            twins: twins.collect(),
            ring: Ring::new(events, known.len()),
            in_order: Vec::new(),
            unknown_in_order: BitSet::new(unknown.len()),
            left: known.len(),
            known,
            unknown,
            candidates: Vec::new(),
            options: Vec::new(),
            steps: 0,
            passed_over: 0,
            limit,
            best: None,
        }
    }

    fn run(&mut self, init: M::State) -> Verdict {
        let mut seen = Seen::new();
        let mut stack = vec![self.open(None, init, None, Scope::All)];
        while let Some(frame) = stack.last_mut() {
            if self.left == 0 {
                return Verdict::Fits;
            }
            let next = self.next(frame);
            if self.steps >= self.limit {
                return Verdict::Undecided;
            }
            let Some(Next { pick, state, before, scope }) = next else {
                self.remember(&stack);
                let Some(frame) = stack.pop() else { break };
                self.options.truncate(frame.floor);
                if let Some(pick) = frame.pick {
                    self.undo(pick);
                }
                continue;
            };
            self.put(pick);
            // A point that may only go on with known calls is part of one that is still to come.
            if scope == Scope::KnownOnly || self.is_new(&mut seen, &state, before.as_ref()) {
                let frame = self.open(Some(pick), state, before, scope);
                stack.push(frame);
            } else {
                self.undo(pick);
            }
        }
        Verdict::Stuck
    }

    /// Remembers a point. Returns false if nothing new can follow from it.
    fn is_new(
        &mut self,
        seen: &mut Seen<M::State>,
        state: &M::State,
        before: Option<&M::State>,
    ) -> bool {
        self.ring.encode(&mut self.in_order);
        let (known, unknown) = (&self.in_order[..], &self.unknown_in_order);
        let point = Point { known, unknown, state, before };
        self.steps += self.weight(state) + before.map_or(0, |before| self.weight(before));
        seen.insert(&point, &mut self.steps)
    }

    /// The steps that a state costs which owns something on the heap.
    fn weight(&self, state: &M::State) -> u64 {
        (self.model.state_bytes(state) / BYTES_A_STEP) as u64
    }

    /// A point, with the known calls that may come next and fit.
    fn open(
        &mut self,
        pick: Option<Pick>,
        state: M::State,
        before: Option<M::State>,
        scope: Scope,
    ) -> Frame<M::State> {
        let floor = self.options.len();
        let mut frame = Frame {
            pick,
            state,
            before,
            scope,
            stage: Stage::Known,
            options: floor..floor,
            floor,
            bound: 0,
        };
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.clear();
        let mut walk = self.ring.candidates();
        candidates.extend(&mut walk);
        frame.bound = walk.bound().unwrap_or(0);
        self.steps += 1 + candidates.len() as u64 / 8;
        for &call in candidates.iter().filter(|_| scope != Scope::UnknownOnly) {
            let Some(state) = self.follow(&frame, Pick::Known(call)) else { continue };
            let alone = self.is_read(Pick::Known(call)) && state == frame.state;
            if alone {
                self.options.truncate(floor);
                // Nothing else need be tried.
                frame.scope = Scope::KnownOnly;
            }
            self.options.push((call, state));
            if alone {
                break;
            }
        }
        self.candidates = candidates;
        let ring = &self.ring;
        self.options[floor..].sort_unstable_by_key(|&(call, _)| ring.end_of(call));
        frame.options = floor..self.options.len();
        frame
    }

    /// The next call to try at a point, in order of the stages.
    fn next(&mut self, frame: &mut Frame<M::State>) -> Option<Next<M::State>> {
        loop {
            match frame.stage {
                Stage::Known => {
                    if let Some(at) = frame.options.next() {
                        let (call, state) = self.options[at].clone();
                        let pick = Pick::Known(call);
                        return Some(Next { pick, state, before: None, scope: Scope::All });
                    }
                    let over = frame.scope == Scope::KnownOnly || self.unknown.is_empty();
                    frame.stage = if over { Stage::Over } else { Stage::Single(0) };
                }
                Stage::Single(from) => {
                    let next = self.next_unknown(frame, from, Scope::KnownOnly);
                    if next.is_some() {
                        return next;
                    }
                    frame.stage = Stage::Chain(0);
                }
                Stage::Chain(from) => {
                    let next = self.next_unknown(frame, from, Scope::UnknownOnly);
                    if next.is_some() {
                        return next;
                    }
                    frame.stage = Stage::Over;
                }
                Stage::Over => return None,
            }
        }
    }

    /// The next unknown call, from the given one on, that may come now and changes the state.
    fn next_unknown(
        &mut self,
        frame: &mut Frame<M::State>,
        from: u32,
        scope: Scope,
    ) -> Option<Next<M::State>> {
        for number in from..self.unknown.len() as u32 {
            let call = &self.history.calls()[self.unknown[number as usize] as usize];
            if call.begin > frame.bound {
                return None;
            }
            self.passed_over += 1;
            if self.passed_over.is_multiple_of(PASSED_A_STEP) {
                self.steps += 1;
            }
            let twin = self.twins[number as usize];
            if self.unknown_in_order.contains(number)
                || twin.is_some_and(|twin| !self.unknown_in_order.contains(twin))
            {
                continue;
            }
            let pick = Pick::Unknown(number);
            let state = self.follow(frame, pick).filter(|state| *state != frame.state);
            if let Some(state) = state {
                let on = number + 1;
                frame.stage = match scope {
                    Scope::KnownOnly => Stage::Single(on),
                    _ => Stage::Chain(on),
                };
                let before = Some(frame.state.clone());
                return Some(Next { pick, state, before, scope });
            }
        }
        None
    }

    fn is_read(&self, pick: Pick) -> bool {
        let call = &self.history.calls()[self.call(pick).index()];
        matches!(&call.ended, Ended::Ok(ret) if self.model.is_read(&call.op, ret))
    }

    /// The state after a call; `None` if it does not fit, or need not be tried here.
    fn follow(&mut self, frame: &Frame<M::State>, pick: Pick) -> Option<M::State> {
        self.steps += 1 + self.weight(&frame.state);
        let call = &self.history.calls()[self.call(pick).index()];
        let ret = match &call.ended {
            Ended::Ok(ret) => Some(ret),
            _ => None,
        };
        let state = self.model.step(&frame.state, &call.op, ret)?;
        let Some(before) = &frame.before else { return Some(state) };
        let Some(without) = self.model.step(before, &call.op, ret) else { return Some(state) };
        if without == state {
            return None;
        }
        if let (Pick::Known(_), Some(last @ Pick::Unknown(_))) = (pick, frame.pick) {
            let last = &self.history.calls()[self.call(last).index()];
            let swapped = self.model.step(&without, &last.op, None);
            if swapped.is_some_and(|swapped| swapped == state) {
                return None;
            }
        }
        Some(state)
    }

    fn call(&self, pick: Pick) -> CallId {
        CallId::new(match pick {
            Pick::Known(number) => self.known[number as usize],
            Pick::Unknown(number) => self.unknown[number as usize],
        })
    }

    fn put(&mut self, pick: Pick) {
        match pick {
            Pick::Known(number) => {
                self.ring.take_out(number);
                self.left -= 1;
            }
            Pick::Unknown(number) => self.unknown_in_order.insert(number),
        }
    }

    fn undo(&mut self, pick: Pick) {
        match pick {
            Pick::Known(number) => {
                self.ring.put_back(number);
                self.left += 1;
            }
            Pick::Unknown(number) => self.unknown_in_order.remove(number),
        }
    }

    /// Keeps the end of the longest order, for the report of a violation.
    fn remember(&mut self, stack: &[Frame<M::State>]) {
        let Some(last) = stack.last() else { return };
        let length = self.known.len() - self.left;
        if self.best.as_ref().is_some_and(|best| best.length >= length) {
            return;
        }
        let tail = stack.len().saturating_sub(SHOWN);
        let fitting = stack[tail..].iter().filter_map(|frame| frame.pick);
        let stuck: Vec<CallId> =
            self.ring.candidates().map(|call| self.call(Pick::Known(call))).collect();
        self.steps += stuck.len() as u64;
        self.best = Some(Best {
            length,
            fitting: fitting.map(|pick| self.call(pick)).collect(),
            stuck,
            state: last.state.clone(),
        });
    }

    fn violation(&mut self, key: M::Key) -> CheckError<M::Key> {
        let (length, fitting, stuck, state) = match self.best.take() {
            Some(best) => (best.length, best.fitting, best.stuck, format!("{:?}", best.state)),
            None => (0, Vec::new(), Vec::new(), String::new()),
        };
        let calls = self.known.len() + self.unknown.len();
        let mut text = format!(
            "not linearizable: key {key:?}, {calls} calls ({} of unknown outcome)\n\
             the longest order found has {length} of known outcome and ends in:\n",
            self.unknown.len()
        );
        describe_calls(self.history, &fitting, &mut text);
        let _infallible = writeln!(text, "the state is then {state}, which none of these fits:");
        describe_calls(self.history, &stuck, &mut text);
        let span_ns = span_ns(self.history, &stuck);
        CheckError::Violation { key, fitting, stuck, span_ns, text }
    }
}

/// When these calls began first and ended last, in ns.
pub(super) fn span_ns<O, R>(history: &History<O, R>, ids: &[CallId]) -> (u64, u64) {
    let calls = || ids.iter().map(|id| &history.calls()[id.index()]);
    let from = calls().map(|call| call.begin_ns).min().unwrap_or(0);
    let to = calls().map(|call| call.end_ns.unwrap_or(call.begin_ns)).max().unwrap_or(0);
    (from, to)
}

/// One line for each call.
pub(super) fn describe_calls<O: Debug, R: Debug>(
    history: &History<O, R>,
    ids: &[CallId],
    text: &mut String,
) {
    for id in ids {
        let call = &history.calls()[id.index()];
        let begin = Instant(call.begin_ns);
        let end = call.end_ns.map_or("no end".to_owned(), |at| Instant(at).to_string());
        let _infallible = writeln!(
            text,
            "  call {} of process {}, {begin} to {end}: {:?} -> {:?}",
            id.index(),
            call.process,
            call.op,
            call.ended
        );
    }
}
