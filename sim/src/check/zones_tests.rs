//! The check by zones against the search, and on histories that the search cannot decide.

use std::time::Instant;

use super::*;
use crate::{Call, CallId, Ended, History, KvOp, KvRet, Rng, Situations};

type Log = History<KvOp<u8, u64>, KvRet<u64>>;

/// What becomes of the answers of a history, each in millionths of the calls.
#[derive(Clone, Copy)]
struct Mix {
    processes: u64,
    keys: u64,
    /// Calls of unknown outcome.
    unknown: u32,
    /// Reads that are answered something else.
    lies: u32,
    /// Calls that no register has: compare-and-set, delete, a value written twice.
    others: u32,
}

/// Draws a history whose answers are those of a store, but for the lies. A write of unknown
/// outcome takes effect at once, long after, or never.
struct Draw<'a> {
    rng: &'a mut Rng,
    mix: Mix,
    history: Log,
    state: Vec<Option<u64>>,
    /// Writes of unknown outcome that may still take effect: key and value.
    late: Vec<(u8, u64)>,
    written: Vec<u64>,
}

/// A call under way, its operation, and its answer once it has taken effect.
type Open = (CallId, KvOp<u8, u64>, Option<KvRet<u64>>);

impl Draw<'_> {
    fn op(&mut self) -> KvOp<u8, u64> {
        let key = self.rng.below(self.mix.keys) as u8;
        if self.rng.chance(self.mix.others) {
            let old = self.rng.pick(&self.written).copied();
            return match (self.rng.below(3), old) {
                (0, _) => KvOp::Delete { key },
                (1, expect) => KvOp::Cas { key, expect, value: self.fresh() },
                (_, Some(value)) => KvOp::Put { key, value },
                (_, None) => KvOp::Get { key },
            };
        }
        if self.rng.chance(550_000) {
            return KvOp::Get { key };
        }
        KvOp::Put { key, value: self.fresh() }
    }

    fn fresh(&mut self) -> u64 {
        let value = self.written.len() as u64 + 1;
        self.written.push(value);
        value
    }

    fn apply(&mut self, op: &KvOp<u8, u64>) -> KvRet<u64> {
        let state = &mut self.state[usize::from(*op.key())];
        match op {
            KvOp::Get { .. } => KvRet::Value(*state),
            KvOp::Put { value, .. } => {
                *state = Some(*value);
                KvRet::Done
            }
            KvOp::Cas { expect, value, .. } => {
                let applies = expect == state;
                *state = if applies { Some(*value) } else { *state };
                KvRet::Applied(applies)
            }
            KvOp::Delete { .. } => {
                *state = None;
                KvRet::Done
            }
        }
    }

    fn lie(&mut self) -> KvRet<u64> {
        match self.rng.below(8) {
            0 => KvRet::Done,
            1 | 2 => KvRet::Value(None),
            // Of the future now and then, or of no write at all.
            3 => KvRet::Value(Some(self.written.len() as u64 + self.rng.between(1, 3))),
            _ => KvRet::Value(self.rng.pick(&self.written).copied()),
        }
    }

    fn advance(&mut self, (id, op, ret): Open, now: u64) -> Option<Open> {
        if self.rng.chance(200_000) && !self.late.is_empty() {
            let at = self.rng.below(self.late.len() as u64) as usize;
            let (key, value) = self.late.swap_remove(at);
            self.state[usize::from(key)] = Some(value);
        }
        if let Some(ret) = ret {
            let lies = matches!(op, KvOp::Get { .. }) && self.rng.chance(self.mix.lies);
            let ret = if lies { self.lie() } else { ret };
            self.history.ok(id, ret, now);
            return None;
        }
        if self.rng.chance(self.mix.unknown) {
            match (&op, self.rng.below(3)) {
                (_, 0) => drop(self.apply(&op)),
                (KvOp::Put { key, value }, 1) => self.late.push((*key, *value)),
                _ => {}
            }
            // Some time out, the others are under way at the end of the history.
            if self.rng.chance(700_000) {
                self.history.unknown(id, now);
            }
            return None;
        }
        if self.rng.chance(30_000) {
            self.history.fail(id, now);
            return None;
        }
        let ret = self.apply(&op);
        Some((id, op, Some(ret)))
    }
}

fn draw(rng: &mut Rng, calls: u64, mix: Mix) -> Log {
    let state = vec![None; mix.keys as usize];
    let (late, written) = (Vec::new(), Vec::new());
    let mut draw = Draw { rng, mix, history: Log::new(), state, late, written };
    let mut open: Vec<Option<Open>> = vec![None; mix.processes as usize];
    let (mut begun, mut now) = (0, 0);
    while begun < calls || open.iter().any(Option::is_some) {
        now += 1;
        let process = draw.rng.below(mix.processes);
        let slot = process as usize;
        match open[slot].take() {
            Some(call) => open[slot] = draw.advance(call, now),
            None if begun < calls => {
                let op = draw.op();
                let id = draw.history.invoke(process, op.clone(), now);
                open[slot] = Some((id, op, None));
                begun += 1;
            }
            None => {}
        }
    }
    draw.history
}

static SITUATIONS: [&str; 11] = [
    "linearizable",
    "two values each before the other",
    "a value read before its write",
    "a value that no write explains",
    "an answer of another kind of call",
    "a stale read of the initial state",
    "a write of unknown outcome that was read",
    "a write of unknown outcome that was not read",
    "a write read after its outcome became unknown",
    "a key that needed a search",
    "keys of both kinds in one history",
];

fn count(situations: &Situations, history: &Log, verdict: &Result<Checked, CheckError<u8>>) {
    match verdict {
        Ok(checked) => {
            situations.reached("linearizable");
            situations.add("a key that needed a search", checked.keys - checked.register_keys);
            let both = checked.register_keys > 0 && checked.register_keys < checked.keys;
            situations.add("keys of both kinds in one history", u64::from(both));
        }
        Err(CheckError::Violation { fitting, stuck, text, .. }) if fitting.is_empty() => {
            for (part, name) in [
                ("each of two values", "two values each before the other"),
                ("before its write", "a value read before its write"),
                ("no write of it", "a value that no write explains"),
                ("answered so", "an answer of another kind of call"),
            ] {
                situations.add(name, u64::from(text.contains(part)));
            }
            let calls = || stuck.iter().map(|id| &history.calls()[id.index()]);
            let initial = calls().any(|call| call.ended == Ended::Ok(KvRet::Value(None)));
            situations.add("a stale read of the initial state", u64::from(initial));
        }
        Err(_) => {}
    }
    for write in history.calls() {
        let (KvOp::Put { key, value }, Ended::Unknown) = (&write.op, &write.ended) else {
            continue;
        };
        let saw = Ended::Ok(KvRet::Value(Some(*value)));
        let reads = || {
            let of_key =
                |call: &&Call<KvOp<u8, u64>, KvRet<u64>>| call.op.key() == key && call.ended == saw;
            history.calls().iter().filter(of_key)
        };
        let late = reads().any(|read| write.end.is_some_and(|end| end < read.begin));
        situations.add("a write of unknown outcome that was read", reads().count() as u64);
        let unread = u64::from(reads().next().is_none());
        situations.add("a write of unknown outcome that was not read", unread);
        situations.add("a write read after its outcome became unknown", u64::from(late));
    }
}

#[test]
fn zones_and_search_agree() {
    let situations = Situations::new(&SITUATIONS);
    let mut rng = Rng::new(21);
    let (mut good, mut bad) = (0, 0);
    for round in 0..40_000 {
        let mix = Mix {
            processes: rng.between(1, 6),
            keys: rng.between(1, 2),
            unknown: [0, 150_000, 400_000][round % 3],
            lies: [0, 60_000, 300_000][round / 3 % 3],
            others: [0, 0, 0, 80_000][round / 9 % 4],
        };
        let calls = rng.between(1, 16);
        let history = draw(&mut rng, calls, mix);
        let searched = check(&Kv::new(), &history, 1_000_000);
        let verdict = check_kv(&history, 1_000_000);
        match (&searched, &verdict) {
            (Ok(searched), Ok(checked)) => {
                let sums = |it: &Checked| (it.calls, it.unknown, it.keys);
                assert_eq!(sums(searched), sums(checked), "round {round}: {history:#?}");
                good += 1;
            }
            (Err(CheckError::Violation { .. }), Err(CheckError::Violation { .. })) => bad += 1,
            _ => panic!("round {round}: {searched:?}, {verdict:?}: {history:#?}"),
        }
        assert!(verdict.is_ok() || mix.lies > 0, "round {round}: {verdict:?}: {history:#?}");
        count(&situations, &history, &verdict);
    }
    assert!(good > 15_000 && bad > 5_000, "{good} {bad}");
    situations.assert_all_reached();
}

/// Calls of a key that no number of steps decides: 40 writes at a time, and none of them read.
fn undecidable(history: &mut Log) {
    let values = 1_000_000_000..1_000_000_040;
    let open: Vec<CallId> =
        values.map(|value| history.invoke(value, KvOp::Put { key: 7, value }, 0)).collect();
    let read = history.invoke(0, KvOp::Get { key: 7 }, 1);
    history.ok(read, KvRet::Value(Some(5)), 2);
    for call in open {
        history.ok(call, KvRet::Done, 3);
    }
}

#[test]
fn a_violation_that_the_search_cannot_decide_is_found_and_explained() {
    let mut history = Log::new();
    undecidable(&mut history);
    let undecided = check(&Kv::new(), &history, 100_000).unwrap_err();
    assert!(matches!(undecided, CheckError::Undecided { .. }), "{undecided}");
    let CheckError::Violation { key: 7, stuck, span_ns, text, .. } =
        check_kv(&history, 0).unwrap_err()
    else {
        panic!("decided without a step")
    };
    assert_eq!((stuck, span_ns), (vec![CallId::new(40)], (1, 2)));
    for part in ["key 7, 41 calls (0 of unknown outcome)", "no write of it", "call 40 of process"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

/// One client at a time writes 1 and then 2 while a reader sees 2 and then 1.
#[test]
fn a_contradiction_names_the_calls_of_both_values() {
    let mut history = Log::new();
    let mut done = |process, op, ret| {
        let call = history.invoke(process, op, 0);
        history.ok(call, ret, 0);
        call
    };
    let put = |value| KvOp::Put { key: 0, value };
    let one = done(1, put(1), KvRet::Done);
    done(1, put(2), KvRet::Done);
    let stale = done(2, KvOp::Get { key: 0 }, KvRet::Value(Some(1)));
    let CheckError::Violation { stuck, .. } = check_kv(&history, 0).unwrap_err() else {
        panic!("decided without a step")
    };
    assert!(stuck.contains(&one) && stuck.contains(&stale) && stuck.len() <= 4, "{stuck:?}");
}

fn large(calls: u64) -> Log {
    let mix = Mix { processes: 200, keys: 5, unknown: 50_000, lies: 0, others: 0 };
    draw(&mut Rng::new(22), calls, mix)
}

/// 1,000,000 calls of 200 processes over 5 keys, 50,000 of them of unknown outcome:
/// `VOUSSOIR_LONG=1 cargo test --release -p voussoir-sim --lib a_large_history`.
#[test]
fn a_large_history_is_decided_either_way() {
    let long = std::env::var_os("VOUSSOIR_LONG").is_some();
    let calls = if long { 1_000_000 } else { 60_000 };
    let mut history = large(calls);
    let begun = Instant::now();
    let checked = check_kv(&history, 0).expect("linearizable");
    println!("{} calls in {:?}: {checked:?}", checked.calls, begun.elapsed());
    assert_eq!((checked.register_keys, checked.steps), (5, 0));
    assert!(checked.calls > calls * 9 / 10 && checked.unknown > calls / 30);
    if long && !cfg!(debug_assertions) {
        assert!(begun.elapsed().as_secs() < 10);
    }
    // A value of the middle of the history comes back at its end.
    let middle = &history.calls()[history.calls().len() / 2..];
    let old = middle.iter().find_map(|call| match (&call.op, &call.ended) {
        (KvOp::Put { key, value }, Ended::Ok(_)) => Some((*key, *value)),
        _ => None,
    });
    let (key, value) = old.expect("a write that was acknowledged");
    let read = history.invoke(1_000, KvOp::Get { key }, 0);
    history.ok(read, KvRet::Value(Some(value)), 0);
    let error = check_kv(&history, 0).unwrap_err();
    let CheckError::Violation { stuck, .. } = &error else { panic!("{error}") };
    assert!(stuck.contains(&read), "{error}");
}
