//! The search for an order (Wing and Gong 1993; Lowe 2017).
//!
//! Calls whose outcome is known must all be put into an order in which each answer fits and no
//! call comes before one that had ended when it began. Calls of unknown outcome may be put in
//! anywhere after their beginning, or left out.
//!
//! What keeps the search short:
//! - A point (the calls in the order so far, and the state) is searched once; and not at all if
//!   one was searched with the same known calls and state that had spent no more unknown calls.
//! - An unknown call is put in only where it matters: if the next call gives the same answer and
//!   leads to the same state without it, then the same order without it would do, and is tried
//!   anyway. A point right after an unknown call therefore remembers the state before that call.
//! - Of unknown calls that ask the same, the one that began first is used first.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::cache::{BitSet, Point, Seen};
use super::{CheckError, Checked, Model};
use crate::history::{CallId, Ended, History};

/// How many calls of the longest order a violation shows.
const SHOWN: usize = 16;

/// Checks that `history` is linearizable with respect to `model`.
///
/// `steps` bounds the work, per key: a history without violation takes two or three steps a
/// call, and 2,000,000 is a good bound. Memory grows by some 100 bytes a step.
///
/// # Errors
/// [`CheckError::Violation`] if it is not linearizable, [`CheckError::Undecided`] if that was not
/// found out within the bound.
///
/// # Example
/// See [`History`].
pub fn check<M: Model>(
    model: &M,
    history: &History<M::Op, M::Ret>,
    steps: u64,
) -> Result<Checked, CheckError<M::Key>> {
    let mut places: HashMap<M::Key, usize> = HashMap::new();
    let mut parts: Vec<(M::Key, Vec<u32>)> = Vec::new();
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
    let mut checked = Checked { keys: parts.len() as u64, ..Checked::default() };
    for (key, calls) in parts {
        checked.calls += calls.len() as u64;
        let mut search = Search::new(model, history, &calls, steps);
        let init = model.init(&key);
        let verdict = search.run(init);
        checked.unknown += search.unknown.len() as u64;
        checked.steps += search.steps;
        match verdict {
            Verdict::Fits => {}
            Verdict::Undecided => return Err(CheckError::Undecided { key, steps }),
            Verdict::Stuck => return Err(search.violation(key)),
        }
    }
    Ok(checked)
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

/// Where a frame goes on looking for the next call.
#[derive(Clone, Copy)]
enum Cursor {
    /// At this place of the list.
    List(u32),
    /// At this unknown call; only those that began before the bound may come now.
    Unknown { at: u32, bound: u64 },
}

struct Frame<S> {
    /// The call that led here; none at the root.
    pick: Option<Pick>,
    state: S,
    /// The state before that call, if its outcome is unknown.
    before: Option<S>,
    cursor: Cursor,
}

/// Beginnings and ends of the known calls that are not yet in the order, as a linked list in
/// order of recording. Place `n` of the vectors stands for the head.
struct Ring {
    next: Vec<u32>,
    prev: Vec<u32>,
    /// For each place: its event's place in the history, the known call, and whether it begins.
    events: Vec<(u64, u32, bool)>,
    /// For each known call: the places of its beginning and its end.
    ends: Vec<[u32; 2]>,
}

struct Search<'a, M: Model> {
    model: &'a M,
    history: &'a History<M::Op, M::Ret>,
    known: Vec<u32>,
    unknown: Vec<u32>,
    /// For each unknown call, the one before it that asks the same.
    twins: Vec<Option<u32>>,
    ring: Ring,
    in_order: BitSet,
    unknown_in_order: BitSet,
    left: usize,
    steps: u64,
    limit: u64,
    best: Option<Best<M::State>>,
}

struct Best<S> {
    length: usize,
    fitting: Vec<CallId>,
    stuck: Vec<CallId>,
    state: S,
}

impl Ring {
    fn new(mut events: Vec<(u64, u32, bool)>, calls: usize) -> Self {
        events.sort_unstable();
        let head = events.len() as u32;
        let mut ends = vec![[0; 2]; calls];
        for (place, &(_, call, begins)) in events.iter().enumerate() {
            ends[call as usize][usize::from(!begins)] = place as u32;
        }
        let next = (0..=head).map(|place| if place == head { 0 } else { place + 1 }).collect();
        let prev = (0..=head).map(|place| if place == 0 { head } else { place - 1 }).collect();
        Self { next, prev, events, ends }
    }

    fn first(&self) -> u32 {
        self.next[self.events.len()]
    }

    fn take_out(&mut self, call: u32) {
        for place in self.ends[call as usize] {
            let (prev, next) = (self.prev[place as usize], self.next[place as usize]);
            self.next[prev as usize] = next;
            self.prev[next as usize] = prev;
        }
    }

    /// Undoes the latest `take_out` that has not been undone.
    fn put_back(&mut self, call: u32) {
        for place in self.ends[call as usize].into_iter().rev() {
            let (prev, next) = (self.prev[place as usize], self.next[place as usize]);
            self.next[prev as usize] = place;
            self.prev[next as usize] = place;
        }
    }
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
            in_order: BitSet::new(known.len()),
            unknown_in_order: BitSet::new(unknown.len()),
            left: known.len(),
            known,
            unknown,
            steps: 0,
            limit,
            best: None,
        }
    }

    fn run(&mut self, init: M::State) -> Verdict {
        let mut seen = Seen::new();
        let cursor = Cursor::List(self.ring.first());
        let mut stack = vec![Frame { pick: None, state: init, before: None, cursor }];
        while let Some(frame) = stack.last_mut() {
            if self.left == 0 {
                return Verdict::Fits;
            }
            let Some(pick) = self.candidate(&mut frame.cursor) else {
                self.remember(&stack);
                if let Some(pick) = stack.pop().and_then(|frame| frame.pick) {
                    self.undo(pick);
                }
                continue;
            };
            if self.steps == self.limit {
                return Verdict::Undecided;
            }
            self.steps += 1;
            let Some((state, before)) = self.follow(frame, pick) else { continue };
            self.put(pick);
            let point = Point {
                known: &self.in_order,
                unknown: &self.unknown_in_order,
                state: &state,
                before: before.as_ref(),
            };
            if seen.insert(&point) {
                let cursor = Cursor::List(self.ring.first());
                stack.push(Frame { pick: Some(pick), state, before, cursor });
            } else {
                self.undo(pick);
            }
        }
        Verdict::Stuck
    }

    /// The next call that may come now. Those of known outcome come first.
    fn candidate(&self, cursor: &mut Cursor) -> Option<Pick> {
        if let Cursor::List(place) = *cursor {
            let (event, call, begins) = *self.ring.events.get(place as usize)?;
            if begins {
                *cursor = Cursor::List(self.ring.next[place as usize]);
                return Some(Pick::Known(call));
            }
            // This one has ended: nothing that begins later may come before it.
            *cursor = Cursor::Unknown { at: 0, bound: event };
        }
        let Cursor::Unknown { at, bound } = cursor else { return None };
        while let Some(&call) = self.unknown.get(*at as usize) {
            if self.history.calls()[call as usize].begin > *bound {
                return None;
            }
            let number = *at;
            *at += 1;
            let twin = self.twins[number as usize];
            let turn = twin.is_none_or(|twin| self.unknown_in_order.contains(twin));
            if turn && !self.unknown_in_order.contains(number) {
                return Some(Pick::Unknown(number));
            }
        }
        None
    }

    /// The state after a call, and the one to remember; `None` if the call does not fit, or need
    /// not be tried here.
    fn follow(&self, frame: &Frame<M::State>, pick: Pick) -> Option<(M::State, Option<M::State>)> {
        let call = &self.history.calls()[self.call(pick).index()];
        let ret = match &call.ended {
            Ended::Ok(ret) => Some(ret),
            _ => None,
        };
        let state = self.model.step(&frame.state, &call.op, ret)?;
        if let Some(before) = &frame.before
            && self.model.step(before, &call.op, ret).is_some_and(|without| without == state)
        {
            return None;
        }
        match pick {
            Pick::Known(_) => Some((state, None)),
            Pick::Unknown(_) if state == frame.state => None,
            Pick::Unknown(_) => Some((state, Some(frame.state.clone()))),
        }
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
                self.in_order.insert(number);
                self.left -= 1;
            }
            Pick::Unknown(number) => self.unknown_in_order.insert(number),
        }
    }

    fn undo(&mut self, pick: Pick) {
        match pick {
            Pick::Known(number) => {
                self.ring.put_back(number);
                self.in_order.remove(number);
                self.left += 1;
            }
            Pick::Unknown(number) => self.unknown_in_order.remove(number),
        }
    }

    /// Keeps the end of the longest order, for the report of a violation.
    fn remember(&mut self, stack: &[Frame<M::State>]) {
        let Some(last) = stack.last() else { return };
        if self.best.as_ref().is_some_and(|best| best.length >= stack.len()) {
            return;
        }
        let tail = stack.len().saturating_sub(SHOWN);
        let fitting = stack[tail..].iter().filter_map(|frame| frame.pick);
        let mut cursor = Cursor::List(self.ring.first());
        let mut stuck = Vec::new();
        while let Some(Pick::Known(number)) = self.candidate(&mut cursor) {
            stuck.push(self.call(Pick::Known(number)));
        }
        self.best = Some(Best {
            length: stack.len(),
            fitting: fitting.map(|pick| self.call(pick)).collect(),
            stuck,
            state: last.state.clone(),
        });
    }

    fn violation(&mut self, key: M::Key) -> CheckError<M::Key> {
        let (length, fitting, stuck, state) = match self.best.take() {
            Some(best) => (best.length - 1, best.fitting, best.stuck, format!("{:?}", best.state)),
            None => (0, Vec::new(), Vec::new(), String::new()),
        };
        let calls = self.known.len() + self.unknown.len();
        let mut text = format!(
            "not linearizable: key {key:?}, {calls} calls ({} of unknown outcome)\n\
             the longest order found has {length} and ends in:\n",
            self.unknown.len()
        );
        self.list(&fitting, &mut text);
        let _infallible = writeln!(text, "the state is then {state}, which none of these fits:");
        self.list(&stuck, &mut text);
        CheckError::Violation { key, fitting, stuck, text }
    }

    fn list(&self, ids: &[CallId], text: &mut String) {
        for id in ids {
            let call = &self.history.calls()[id.index()];
            let _infallible = writeln!(
                text,
                "  call {} of process {}: {:?} -> {:?}",
                id.index(),
                call.process,
                call.op,
                call.ended
            );
        }
    }
}
