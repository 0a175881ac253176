//! What a policy does, written for the eye: a call is a tree of what would happen if nobody ended
//! it, cut where somebody does. No futures, no clock.

use crate::scripts::{Kind, Script};

pub(crate) const MAX_ATTEMPTS: u32 = 3;
/// All in milliseconds.
pub(crate) const BACKOFF: u64 = 23;
pub(crate) const HEDGE: u64 = 53;
pub(crate) const WHOLE: u64 = 1_009;
pub(crate) const EACH: u64 = 211;
pub(crate) const SLOW: u64 = 100;
pub(crate) const FALLBACK: u16 = 299;

const NEVER: u64 = u64::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Fallback,
    Whole,
    Shed,
    Retry,
    Hedge,
    Breaker,
    Adaptive,
    Bulkhead,
    Each,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Value(u16),
    Failed,
    TimedOut,
    Cut,
    Rejected,
    Panicked,
}

/// What a guard is told of the call that it admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Answer(Answer),
    TimedOut,
    Cut,
    Overtaken,
    Cancelled,
}

/// A call that a guard admitted.
#[derive(Clone, Copy, Debug)]
struct Guarded {
    is_breaker: bool,
    start: u64,
    end: u64,
    told: Told,
}

/// A call, or a part of one, as it goes if nobody ends it.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) end: u64,
    pub(crate) answer: Answer,
    pub(crate) attempts: Vec<(u64, u32, u32)>,
    /// When extra attempts were paid for: a retry pays before its back-off.
    pub(crate) paid: Vec<u64>,
    guarded: Vec<Guarded>,
}

impl Node {
    fn cut_by(mut self, at: u64, told: impl Fn(&Guarded) -> Told) -> Self {
        self.attempts.retain(|(begun, ..)| *begun < at);
        self.paid.retain(|paid| *paid < at);
        self.guarded.retain(|guarded| guarded.start < at);
        for guarded in self.guarded.iter_mut().filter(|guarded| guarded.end > at) {
            guarded.told = told(guarded);
            guarded.end = at;
        }
        self.end = at;
        self
    }

    /// Calls, failures and slow calls that the breaker counts.
    pub(crate) fn breaker(&self) -> (u64, u64, u64) {
        let mut counts = (0, 0, 0);
        for guarded in self.guarded.iter().filter(|guarded| guarded.is_breaker) {
            let is_slow = guarded.end - guarded.start >= SLOW;
            let failed = match guarded.told {
                Told::Answer(Answer::Value(200..300)) => Some(false),
                Told::Answer(Answer::Failed | Answer::Panicked | Answer::TimedOut)
                | Told::TimedOut
                | Told::Overtaken => Some(true),
                // It took that long already, whatever it would have answered.
                Told::Cut => is_slow.then_some(false),
                Told::Answer(Answer::Value(_) | Answer::Cut | Answer::Rejected)
                | Told::Cancelled => None,
            };
            if let Some(failed) = failed {
                counts.0 += 1;
                counts.1 += u64::from(failed);
                counts.2 += u64::from(is_slow);
            }
        }
        counts
    }

    /// Latencies and overloads that the adaptive limit is told.
    pub(crate) fn limit(&self) -> [u32; 2] {
        let mut counts = [0, 0];
        for guarded in self.guarded.iter().filter(|guarded| !guarded.is_breaker) {
            match guarded.told {
                Told::Answer(Answer::TimedOut) | Told::TimedOut => counts[1] += 1,
                Told::Answer(Answer::Value(_) | Answer::Failed) | Told::Overtaken => counts[0] += 1,
                Told::Answer(Answer::Panicked | Answer::Cut | Answer::Rejected)
                | Told::Cut
                | Told::Cancelled => {}
            }
        }
        counts
    }
}

/// What is known where a stage begins.
#[derive(Clone, Copy)]
struct Place {
    now: u64,
    number: u32,
    hedge: u32,
    /// The earliest end, and whether it is one of the policy's own.
    end: u64,
}

pub(crate) fn call(order: &[Stage], script: &Script) -> Node {
    let end = script.deadline.unwrap_or(NEVER);
    let node = go(order, script, Place { now: 0, number: 1, hedge: 0, end });
    if node.end <= end {
        return node;
    }
    let mut node = node.cut_by(end, |_| Told::Cut);
    node.answer = Answer::Cut;
    node
}

fn leaf(end: u64, answer: Answer) -> Node {
    Node { end, answer, attempts: vec![], paid: vec![], guarded: vec![] }
}

fn go(order: &[Stage], script: &Script, place: Place) -> Node {
    let Some((stage, inner)) = order.split_first() else { return send(script, place) };
    match stage {
        Stage::Shed | Stage::Bulkhead => go(inner, script, place),
        Stage::Breaker if script.is_rejected => leaf(place.now, Answer::Rejected),
        Stage::Breaker | Stage::Adaptive => {
            let mut node = go(inner, script, place);
            let is_breaker = *stage == Stage::Breaker;
            let (start, end, told) = (place.now, node.end, Told::Answer(node.answer));
            node.guarded.push(Guarded { is_breaker, start, end, told });
            node
        }
        Stage::Fallback => {
            let mut node = go(inner, script, place);
            if !matches!(node.answer, Answer::Value(_) | Answer::Panicked) {
                node.answer = Answer::Value(FALLBACK);
            }
            node
        }
        Stage::Whole => limit(WHOLE, inner, script, place),
        Stage::Each => limit(EACH, inner, script, place),
        Stage::Retry => retry(inner, script, place),
        Stage::Hedge => hedge(inner, script, place),
    }
}

fn send(script: &Script, place: Place) -> Node {
    let step = script.step(place.number, place.hedge);
    let answer = match step.kind {
        Kind::Good => Answer::Value(200),
        Kind::Final => Answer::Value(404),
        Kind::Fail => Answer::Failed,
        Kind::Panic => Answer::Panicked,
    };
    let mut node = leaf(step.millis.map_or(NEVER, |millis| place.now + millis), answer);
    node.attempts.push((place.now, place.number, place.hedge));
    node
}

fn limit(millis: u64, inner: &[Stage], script: &Script, place: Place) -> Node {
    let end = place.now + millis;
    if place.end <= end {
        return go(inner, script, place);
    }
    let node = go(inner, script, Place { end, ..place });
    if node.end <= end {
        return node;
    }
    let mut node = node.cut_by(end, |_| Told::TimedOut);
    node.answer = Answer::TimedOut;
    node
}

fn retry(inner: &[Stage], script: &Script, place: Place) -> Node {
    let mut node = go(inner, script, place);
    for number in 2..=MAX_ATTEMPTS {
        let is_over = node.end >= place.end || place.end - node.end <= BACKOFF;
        let is_retried = matches!(node.answer, Answer::Failed | Answer::TimedOut);
        if script.once || !is_retried || is_over {
            break;
        }
        node.paid.push(node.end);
        let next = go(inner, script, Place { now: node.end + BACKOFF, number, ..place });
        (node.end, node.answer) = (next.end, next.answer);
        node.attempts.extend(next.attempts);
        node.paid.extend(next.paid);
        node.guarded.extend(next.guarded);
    }
    node
}

fn hedge(inner: &[Stage], script: &Script, place: Place) -> Node {
    let first = go(inner, script, place);
    let second_at = place.now + HEDGE;
    if script.once || first.end <= second_at || place.end <= second_at {
        return first;
    }
    let mut second = go(inner, script, Place { now: second_at, hedge: 1, ..place });
    second.paid.push(second_at);
    let ends = |node: &Node| matches!(node.answer, Answer::Value(_) | Answer::Panicked);
    let is_first_earlier = first.end <= second.end;
    let (earlier, later) = if is_first_earlier { (first, second) } else { (second, first) };
    if earlier.end == NEVER {
        return merge(earlier.clone(), later, earlier.answer);
    }
    if ends(&earlier) {
        // What was begun before the winner was overtaken; nobody wins by a panic.
        let won = if is_first_earlier { place.now } else { second_at };
        let is_race_won = earlier.answer != Answer::Panicked;
        let later = later.cut_by(earlier.end, |guarded| {
            if is_race_won && guarded.start < won { Told::Overtaken } else { Told::Cancelled }
        });
        let answer = earlier.answer;
        return merge(earlier, later, answer);
    }
    let rank = |answer: Answer| match answer {
        Answer::Rejected => 0,
        Answer::TimedOut | Answer::Cut => 1,
        Answer::Failed => 2,
        Answer::Value(_) | Answer::Panicked => 3,
    };
    let is_later_better = rank(later.answer) >= rank(earlier.answer);
    let answer = if is_later_better { later.answer } else { earlier.answer };
    let end = later.end;
    let mut node = merge(earlier, later, answer);
    node.end = end;
    node
}

fn merge(mut one: Node, other: Node, answer: Answer) -> Node {
    one.answer = answer;
    one.attempts.extend(other.attempts);
    one.attempts.sort_unstable();
    one.paid.extend(other.paid);
    one.guarded.extend(other.guarded);
    one
}
