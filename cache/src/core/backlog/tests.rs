//! The backlog against a plain model: a list of all writes, and a log that is replayed.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use voussoir_sim::Situations;

use super::{Admission, Backlog, Flushed, Limits, Taken, Ticket};

const KEYS: u8 = 4;
const MAX_KEYS: usize = 3;
const MAX_BYTES: u64 = 100;
const FLUSH_AFTER: u64 = 10;

static SITUATIONS: [&str; 11] = [
    "a write of another key had to wait",
    "a write had to wait for room",
    "a write was acknowledged before an older one of its key",
    "a write was abandoned",
    "a value was acknowledged while an older one was flushed",
    "a flush was repeated",
    "records were released",
    "a record was moved",
    "a move was overtaken by a write",
    "a move failed",
    "a mark was reached with newer values waiting",
];

#[derive(Clone, Copy, Debug)]
enum Act {
    /// A write of a key, of so many bytes. `false`: the log rejects it.
    Write(u8, u64, bool),
    /// The log is done with a write; which one of those that wait.
    Acknowledge(usize),
    Wait(u64),
    Take(usize),
    Done(usize),
    Retry(usize),
    Hurry,
    Mark,
    Release,
    BeginMove(usize),
    /// `false`: the log has not taken it.
    EndMove(bool),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let bytes = prop_oneof![8 => 0..40_u64, 1 => Just(MAX_BYTES + 1), 1 => Just(u64::MAX)];
    let act = prop_oneof![
        8 => (0..KEYS, bytes, prop::bool::weighted(0.9)).prop_map(|(k, b, t)| Act::Write(k, b, t)),
        8 => (0..4_usize).prop_map(Act::Acknowledge),
        4 => (0..15_u64).prop_map(Act::Wait),
        4 => (1..4_usize).prop_map(Act::Take),
        4 => (0..3_usize).prop_map(Act::Done),
        2 => (0..3_usize).prop_map(Act::Retry),
        1 => Just(Act::Hurry),
        1 => Just(Act::Mark),
        2 => Just(Act::Release),
        2 => (1..3_usize).prop_map(Act::BeginMove),
        2 => prop::bool::weighted(0.8).prop_map(Act::EndMove),
    ];
    prop::collection::vec(act, 0..150)
}

/// A write that the log has not answered.
#[derive(Clone, Copy)]
struct Waiting {
    key: u8,
    ticket: Ticket,
    /// `None`: the log rejects it.
    position: Option<u64>,
    bytes: u64,
}

/// Keys, sequences and, for each, the position; the lower bound of them.
type Move = (u64, Vec<(u8, u64)>, u64);

struct Model<'a> {
    backlog: Backlog<u8, u64>,
    situations: &'a Situations,
    now: u64,
    waiting: Vec<Waiting>,
    /// The newest acknowledged sequence of each key, with its bytes.
    acknowledged: BTreeMap<u8, (u64, u64)>,
    /// The newest sequence of each key that the sink has.
    sink: BTreeMap<u8, u64>,
    flushing: Vec<Taken<u8, u64>>,
    /// For each key how often its flush has failed since the last one that did not.
    failures: BTreeMap<u8, u32>,
    /// The log: key and sequence by position. Released records are gone.
    log: BTreeMap<u64, (u8, u64)>,
    log_end: u64,
    released: u64,
    moving: Option<Move>,
    /// Marks, with the newest acknowledged sequence of each key at that time.
    marks: Vec<(u64, BTreeMap<u8, u64>)>,
}

impl<'a> Model<'a> {
    fn new(situations: &'a Situations) -> Self {
        let limits = Limits { max_keys: MAX_KEYS, max_bytes: MAX_BYTES, flush_after: FLUSH_AFTER };
        Self {
            backlog: Backlog::new(limits),
            situations,
            now: 0,
            waiting: Vec::new(),
            acknowledged: BTreeMap::new(),
            sink: BTreeMap::new(),
            flushing: Vec::new(),
            failures: BTreeMap::new(),
            log: BTreeMap::new(),
            log_end: 0,
            released: 0,
            moving: None,
            marks: Vec::new(),
        }
    }

    /// Keys whose newest acknowledged value the sink does not have, with sequence and bytes.
    fn dirty(&self) -> BTreeMap<u8, (u64, u64)> {
        let is_dirty = |(key, (sequence, _)): &(&u8, &(u64, u64))| {
            self.sink.get(key).is_none_or(|flushed| flushed < sequence)
        };
        self.acknowledged.iter().filter(is_dirty).map(|(key, newest)| (*key, *newest)).collect()
    }

    fn bytes(&self) -> u128 {
        let waiting = self.waiting.iter().map(|waiting| u128::from(waiting.bytes));
        waiting.chain(self.dirty().values().map(|(_, bytes)| u128::from(*bytes))).sum()
    }

    fn keys(&self) -> usize {
        let mut keys: Vec<u8> = self.dirty().into_keys().collect();
        keys.extend(self.waiting.iter().map(|waiting| waiting.key));
        keys.sort_unstable();
        keys.dedup();
        keys.len()
    }

    fn has(&self, key: u8) -> bool {
        self.dirty().contains_key(&key) || self.waiting.iter().any(|waiting| waiting.key == key)
    }

    fn append(&mut self, key: u8, sequence: u64) -> u64 {
        let position = self.log_end;
        self.log.insert(position, (key, sequence));
        self.log_end += 1;
        position
    }

    fn write(&mut self, key: u8, bytes: u64, is_taken: bool) {
        let has_key = self.has(key) || self.keys() < MAX_KEYS;
        let has_bytes = self.bytes() == 0 || self.bytes() + u128::from(bytes) <= MAX_BYTES.into();
        let admission = self.backlog.admit(&key, bytes);
        let Admission::Admitted(ticket) = admission else {
            assert!(!(has_key && has_bytes), "there is room");
            let why = if has_key { SITUATIONS[1] } else { SITUATIONS[0] };
            return self.situations.reached(why);
        };
        assert!(has_key && has_bytes, "there is no room");
        let position = is_taken.then(|| self.append(key, ticket.sequence));
        if self.moving.as_ref().is_some_and(|(_, moved, _)| moved.iter().any(|one| one.0 == key)) {
            self.situations.reached("a move was overtaken by a write");
        }
        self.waiting.push(Waiting { key, ticket, position, bytes });
    }

    fn acknowledge(&mut self, which: usize) {
        if which >= self.waiting.len() {
            return;
        }
        let Waiting { key, ticket, position, bytes } = self.waiting.remove(which);
        let Some(position) = position else {
            self.situations.reached("a write was abandoned");
            return self.backlog.abandon(&key, ticket);
        };
        let value = Arc::new(Some(ticket.sequence));
        self.backlog.acknowledge(self.now, &key, ticket, position, value, None);
        let newest = self.acknowledged.entry(key).or_default();
        if newest.0 > ticket.sequence {
            self.situations.reached("a write was acknowledged before an older one of its key");
            return;
        }
        *newest = (ticket.sequence, bytes);
        if self.flushing.iter().any(|taken| taken.key == key) {
            self.situations.reached("a value was acknowledged while an older one was flushed");
        }
    }

    fn take(&mut self, max: usize) {
        let deadline = self.backlog.next_deadline();
        let taken = self.backlog.take(self.now, max);
        assert!(taken.len() <= max);
        let is_due = deadline.is_some_and(|deadline| deadline <= self.now);
        assert_eq!(taken.is_empty(), !is_due, "due at {deadline:?}, now {}", self.now);
        let dirty = self.dirty();
        for one in taken {
            assert_eq!(dirty[&one.key].0, one.sequence, "the newest value is flushed");
            assert_eq!(*one.value, Some(one.sequence));
            assert!(self.flushing.iter().all(|other| other.key != one.key), "twice at once");
            let failures = self.failures.get(&one.key).copied().unwrap_or(0);
            assert_eq!(one.attempts, failures);
            self.flushing.push(one);
        }
    }

    fn finish(&mut self, which: usize, is_done: bool) {
        if which >= self.flushing.len() {
            return;
        }
        let one = self.flushing.swap_remove(which);
        let how = if is_done { Flushed::Done } else { Flushed::Retry { at: self.now + 3 } };
        self.backlog.finish(self.now, &one.key, one.sequence, how);
        if is_done {
            let flushed = self.sink.entry(one.key).or_default();
            assert!(*flushed < one.sequence, "the sink went back");
            *flushed = one.sequence;
            self.failures.remove(&one.key);
        } else {
            *self.failures.entry(one.key).or_default() += 1;
            self.situations.reached("a flush was repeated");
        }
    }

    fn mark(&mut self) {
        let newest = self.acknowledged.iter().map(|(key, newest)| (*key, newest.0)).collect();
        self.marks.push((self.backlog.mark(), newest));
    }

    fn release(&mut self) {
        let release_point = self.backlog.release_point();
        if release_point > self.released {
            self.situations.reached("records were released");
            self.released = release_point;
            self.log = self.log.split_off(&release_point);
        }
    }

    fn begin_move(&mut self, max: usize) {
        if self.moving.is_some() {
            return;
        }
        let oldest = self.backlog.oldest(max);
        let movable = |(key, sequence, _): &(u8, u64, _)| self.backlog.is_movable(key, *sequence);
        assert!(oldest.iter().all(movable));
        let moved: Vec<(u8, u64)> = oldest.into_iter().map(|one| (one.0, one.1)).collect();
        let least = self.backlog.begin_move();
        let position = self.log_end;
        for (key, sequence) in &moved {
            self.append(*key, *sequence);
        }
        self.moving = Some((least, moved, position));
    }

    fn end_move(&mut self, is_taken: bool) {
        let Some((least, moved, position)) = self.moving.take() else { return };
        if !is_taken {
            self.situations.reached("a move failed");
            for at in position..position + moved.len() as u64 {
                self.log.remove(&at);
            }
            return self.backlog.end_move(least, &[], None);
        }
        if !moved.is_empty() {
            self.situations.reached("a record was moved");
        }
        self.backlog.end_move(least, &moved, Some(position));
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Write(key, bytes, is_taken) => self.write(key, bytes, is_taken),
            Act::Acknowledge(which) => self.acknowledge(which),
            Act::Wait(time) => self.now += time,
            Act::Take(max) => self.take(max),
            Act::Done(which) => self.finish(which, true),
            Act::Retry(which) => self.finish(which, false),
            Act::Hurry => {
                self.backlog.hurry(self.now);
                // All that has not failed is due, so a flush can begin now.
                let idle = self.dirty().into_keys().find(|key| {
                    !self.failures.contains_key(key)
                        && self.flushing.iter().all(|taken| taken.key != *key)
                });
                let deadline = self.backlog.next_deadline();
                assert!(idle.is_none() || deadline.is_some_and(|at| at <= self.now));
            }
            Act::Mark => self.mark(),
            Act::Release => self.release(),
            Act::BeginMove(max) => self.begin_move(max),
            Act::EndMove(is_taken) => self.end_move(is_taken),
        }
    }

    fn check(&self) {
        let dirty = self.dirty();
        assert_eq!(self.backlog.dirty(), dirty.len());
        assert_eq!(u128::from(self.backlog.bytes()), self.bytes().min(u64::MAX.into()));
        for key in 0..KEYS {
            let expected = dirty.get(&key).map(|(sequence, _)| Some(*sequence));
            assert_eq!(self.backlog.get(&key).map(|value| *value), expected, "key {key}");
            assert_eq!(self.backlog.has(&key), self.has(key), "key {key}");
        }
        assert!(self.backlog.release_point() >= self.released, "it never falls");
        self.check_replay(&dirty);
        for (mark, newest) in &self.marks {
            let has = |(key, sequence): (&u8, &u64)| {
                self.sink.get(key).is_some_and(|flushed| flushed >= sequence)
            };
            if self.backlog.has_flushed(*mark) {
                assert!(newest.iter().all(has), "the barrier opened too early");
                if !newest.is_empty() && !dirty.is_empty() {
                    self.situations.reached("a mark was reached with newer values waiting");
                }
            } else {
                assert!(!dirty.is_empty(), "nothing waits, and the barrier stays shut");
            }
        }
    }

    /// What a process would read back that finds the log released up to where it may be: for each
    /// key nothing or the newest acknowledged value, or one that was submitted after it.
    fn check_replay(&self, dirty: &BTreeMap<u8, (u64, u64)>) {
        let mut replayed = BTreeMap::new();
        for (key, sequence) in self.log.range(self.backlog.release_point()..).map(|one| one.1) {
            replayed.insert(*key, *sequence);
        }
        for (key, (sequence, _)) in dirty {
            let found = replayed.get(key);
            assert!(found.is_some_and(|found| found >= sequence), "key {key}: {found:?}");
        }
        for (key, sequence) in &replayed {
            let newest = self.acknowledged.get(key).map_or(0, |newest| newest.0);
            assert!(*sequence >= newest, "key {key}: {sequence} would be written over {newest}");
        }
    }
}

#[test]
fn the_backlog_does_what_a_list_of_all_writes_says() {
    let situations = Situations::new(&SITUATIONS);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) };
    let mut runner = prop::test_runner::TestRunner::new(config);
    let result = runner.run(&acts(), |acts| {
        let mut model = Model::new(&situations);
        for act in acts {
            model.act(act);
            model.check();
        }
        Ok(())
    });
    result.unwrap();
    situations.assert_all_reached();
}
