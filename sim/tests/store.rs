//! The model whose reads cover several keys: against a specification of its own, and on histories
//! known good or bad.

use std::collections::BTreeMap;

use voussoir_sim::{
    CheckError, Ended, History, KvOp, KvRet, Model, Rng, Situations, Store, StoreOp, StoreRet,
    check,
};

type Op = StoreOp<&'static str, u32>;
type Ret = StoreRet<&'static str, u32>;
type Log = History<Op, Ret>;
type Values = BTreeMap<&'static str, u32>;

const KEYS: [&str; 5] = ["a/1", "a/2", "a/3", "b/1", "c"];
const STEPS: u64 = 1_000_000;

/// A specification of its own: what an operation does to a map, and its answer.
fn apply(values: &mut Values, op: &Op) -> Ret {
    match op {
        StoreOp::One(KvOp::Get { key }) => StoreRet::One(KvRet::Value(values.get(key).copied())),
        StoreOp::One(KvOp::Put { key, value }) => {
            values.insert(key, *value);
            StoreRet::One(KvRet::Done)
        }
        StoreOp::One(KvOp::Delete { key }) => {
            StoreRet::One(KvRet::Applied(values.remove(key).is_some()))
        }
        StoreOp::One(KvOp::Cas { key, expect, value }) => {
            let applies = values.get(key) == expect.as_ref();
            if applies {
                values.insert(key, *value);
            }
            StoreRet::One(KvRet::Applied(applies))
        }
        StoreOp::List { prefix, after, limit } => {
            let mut page: Vec<(&'static str, u32)> = Vec::new();
            for (key, value) in values.iter() {
                let is_full = limit.is_some_and(|limit| page.len() >= limit);
                if key.starts_with(prefix) && after.is_none_or(|after| *key > after) && !is_full {
                    page.push((key, *value));
                }
            }
            StoreRet::Listed(page)
        }
        StoreOp::GetMany { keys } => {
            StoreRet::Many(keys.iter().map(|key| values.get(key).copied()).collect())
        }
        other => panic!("{other:?}"),
    }
}

/// Tries every order of every choice of unknown calls, over all keys at once.
fn brute(history: &Log) -> bool {
    let calls = history.calls().iter().enumerate();
    let mut left: Vec<usize> =
        calls.filter(|(_, call)| call.ended != Ended::Failed).map(|(at, _)| at).collect();
    brute_from(history, &mut left, &Values::new())
}

fn brute_from(history: &Log, left: &mut Vec<usize>, values: &Values) -> bool {
    let known = |at: usize| matches!(history.calls()[at].ended, Ended::Ok(_));
    if !left.iter().any(|&at| known(at)) {
        return true;
    }
    for index in 0..left.len() {
        let at = left[index];
        let call = &history.calls()[at];
        let too_early = left.iter().any(|&other| {
            known(other) && history.calls()[other].end.is_some_and(|end| end < call.begin)
        });
        let mut next = values.clone();
        let ret = apply(&mut next, &call.op);
        let fits = match &call.ended {
            Ended::Ok(told) => *told == ret,
            _ => true,
        };
        if too_early || !fits {
            continue;
        }
        left.remove(index);
        let found = brute_from(history, left, &next);
        left.insert(index, at);
        if found {
            return true;
        }
    }
    false
}

fn random_op(rng: &mut Rng, value: u32) -> Op {
    let key = KEYS[rng.below(5) as usize];
    match rng.below(8) {
        0..3 => StoreOp::One(KvOp::Put { key, value }),
        3 => StoreOp::One(KvOp::Get { key }),
        4 => StoreOp::One(KvOp::Delete { key }),
        5 => StoreOp::GetMany { keys: vec![key, KEYS[rng.below(5) as usize]] },
        _ => StoreOp::List {
            prefix: ["a/", "a/", "b/", "x", ""][rng.below(5) as usize],
            after: rng.chance(300_000).then_some(key),
            limit: rng.chance(300_000).then(|| rng.below(3) as usize),
        },
    }
}

/// A history whose answers are right as of a moment between begin and end; then, with a chance,
/// one answer is taken from an earlier or later moment.
fn random_history(rng: &mut Rng, calls: usize, processes: u64, [unknown, lies]: [u32; 2]) -> Log {
    let (mut history, mut values) = (Log::new(), Values::new());
    let mut open: Vec<Option<(voussoir_sim::CallId, Op, Option<Ret>)>> =
        (0..processes).map(|_| None).collect();
    let (mut begun, mut old) = (0, Values::new());
    while begun < calls || open.iter().any(Option::is_some) {
        let process = rng.below(processes) as usize;
        match open[process].take() {
            None if begun < calls => {
                let op = random_op(rng, begun as u32);
                let id = history.invoke(process as u64, op.clone(), begun as u64);
                open[process] = Some((id, op, None));
                begun += 1;
            }
            None => {}
            // Half of the unknown ones take effect, and nobody knows which.
            Some((id, op, None)) => match () {
                () if rng.chance(unknown) => {
                    if rng.chance(500_000) {
                        apply(&mut values, &op);
                    }
                    history.unknown(id, 0);
                }
                () if rng.chance(100_000) => {
                    history.fail(id, 0);
                }
                () => {
                    let stale = apply(&mut old.clone(), &op);
                    let mut ret = apply(&mut values, &op);
                    match &mut ret {
                        StoreRet::Listed(pairs) if !pairs.is_empty() && rng.chance(lies) => {
                            pairs.remove(rng.below(pairs.len() as u64) as usize);
                        }
                        ret if rng.chance(lies) => *ret = stale,
                        _ => {}
                    }
                    open[process] = Some((id, op, Some(ret)));
                }
            },
            Some((id, _, Some(ret))) => {
                history.ok(id, ret, 0);
            }
        }
        if rng.chance(60_000) {
            old = values.clone();
        }
    }
    history
}

static SITUATIONS: [&str; 8] = [
    "linearizable",
    "not linearizable",
    "not linearizable although each key is",
    "several groups",
    "a group of several keys",
    "a page with a limit",
    "a page without any key of the history",
    "a write of unknown outcome",
];

/// Whether the history would pass if each of its single-key calls were all there is.
fn each_key_fits(history: &Log) -> bool {
    let mut alone = History::new();
    let mut ids = BTreeMap::new();
    let calls = history.calls();
    let mut events: Vec<(u64, usize, bool)> = Vec::new();
    for (at, call) in calls.iter().enumerate() {
        events.push((call.begin, at, true));
        events.extend(call.end.map(|end| (end, at, false)));
    }
    events.sort_unstable();
    for (_, at, begins) in events {
        let StoreOp::One(op) = &calls[at].op else { continue };
        if begins {
            ids.insert(at, alone.invoke(0, op.clone(), 0));
            continue;
        }
        match &calls[at].ended {
            Ended::Ok(StoreRet::One(ret)) => alone.ok(ids[&at], ret.clone(), 0),
            Ended::Failed => alone.fail(ids[&at], 0),
            _ => alone.unknown(ids[&at], 0),
        };
    }
    check(&voussoir_sim::Kv::new(), &alone, STEPS).is_ok()
}

#[test]
fn agrees_with_trying_everything() {
    let situations = Situations::new(&SITUATIONS);
    let mut rng = Rng::new(21);
    for round in 0..20_000 {
        let (calls, processes) = (rng.between(2, 8) as usize, rng.between(1, 4));
        let lies = [0, 100_000, 300_000][round % 3];
        let history = random_history(&mut rng, calls, processes, [200_000, lies]);
        let model = Store::of(&history);
        let expected = brute(&history);
        match check(&model, &history, STEPS) {
            Ok(_) => assert!(expected, "{history:#?}"),
            Err(CheckError::Violation { .. }) => assert!(!expected, "{history:#?}"),
            Err(error) => panic!("{error} {history:#?}"),
        }
        situations.add("linearizable", u64::from(expected));
        situations.add("not linearizable", u64::from(!expected));
        if !expected && each_key_fits(&history) {
            situations.reached("not linearizable although each key is");
        }
        situations.add("several groups", u64::from(model.group_sizes().len() > 1));
        let is_joined = model.group_sizes().iter().any(|&keys| keys > 1);
        situations.add("a group of several keys", u64::from(is_joined));
        for call in history.calls() {
            if let StoreOp::List { limit: Some(1..), .. } = call.op {
                situations.reached("a page with a limit");
            }
            // The model knows the calls that did not fail.
            let is_empty =
                call.ended != Ended::Failed && format!("{:?}", model.key(&call.op)) == "no key";
            situations.add("a page without any key of the history", u64::from(is_empty));
            let is_write = matches!(call.op, StoreOp::One(KvOp::Put { .. }));
            let is_unknown = call.ended == Ended::Unknown;
            situations.add("a write of unknown outcome", u64::from(is_write && is_unknown));
        }
    }
    println!("{situations}");
    situations.assert_all_reached();
}

fn put(history: &mut Log, key: &'static str, value: u32) {
    let call = history.invoke(1, StoreOp::One(KvOp::Put { key, value }), 0);
    history.ok(call, StoreRet::One(KvRet::Done), 1);
}

fn list(history: &mut Log, prefix: &'static str, pairs: &[(&'static str, u32)]) {
    let call = history.invoke(2, StoreOp::List { prefix, after: None, limit: None }, 2);
    history.ok(call, StoreRet::Listed(pairs.to_vec()), 3);
}

fn verdict(history: &Log) -> Result<(), String> {
    check(&Store::of(history), history, STEPS).map(|_| ()).map_err(|error| error.to_string())
}

#[test]
fn a_list_that_never_was_is_a_violation_although_each_value_was() {
    for (pairs, fits) in [
        (vec![], true),
        (vec![("a/1", 1)], true),
        (vec![("a/1", 1), ("a/2", 1)], true),
        // The second write without the first.
        (vec![("a/2", 1)], false),
        (vec![("a/2", 1), ("a/1", 1)], false),
        (vec![("a/1", 1), ("a/1", 1)], false),
        (vec![("a/1", 1), ("a/9", 1)], false),
    ] {
        let mut history = Log::new();
        let open = history.invoke(3, StoreOp::List { prefix: "a/", after: None, limit: None }, 0);
        put(&mut history, "a/1", 1);
        put(&mut history, "a/2", 1);
        history.ok(open, StoreRet::Listed(pairs.clone()), 9);
        assert_eq!(verdict(&history).is_ok(), fits, "{pairs:?}");
    }
}

#[test]
fn lists_agree_with_each_other_on_the_order_of_writes() {
    let mut history = Log::new();
    let one = history.invoke(1, StoreOp::One(KvOp::Put { key: "a/1", value: 1 }), 0);
    let two = history.invoke(2, StoreOp::One(KvOp::Put { key: "a/2", value: 2 }), 0);
    list(&mut history, "a/", &[("a/1", 1)]);
    let mut other = history.clone();
    list(&mut history, "a/", &[("a/2", 2)]);
    list(&mut other, "a/", &[("a/1", 1), ("a/2", 2)]);
    for history in [&mut history, &mut other] {
        history.ok(one, StoreRet::One(KvRet::Done), 5);
        history.ok(two, StoreRet::One(KvRet::Done), 5);
    }
    assert!(verdict(&history).is_err(), "a value that was seen is gone");
    assert_eq!(verdict(&other), Ok(()));
}

#[test]
fn keys_are_joined_only_by_reads_that_cover_them() {
    let mut history = Log::new();
    for key in KEYS {
        put(&mut history, key, 1);
    }
    let sizes = |history: &Log| Store::<_, u32>::of(history).group_sizes();
    assert_eq!(sizes(&history), [1; 5]);
    list(&mut history, "a/", &[("a/1", 1), ("a/2", 1), ("a/3", 1)]);
    assert_eq!(sizes(&history), [3, 1, 1]);
    let many = history.invoke(1, StoreOp::GetMany { keys: vec!["c", "b/1"] }, 0);
    assert_eq!(sizes(&history), [3, 2], "also by a read of unknown outcome");
    history.fail(many, 1);
    assert_eq!(sizes(&history), [3, 1, 1]);
    // A page joins only what lies after its beginning.
    let page = StoreOp::List { prefix: "", after: Some("a/3"), limit: Some(1) };
    let page = history.invoke(1, page, 0);
    assert_eq!(sizes(&history), [3, 2]);
    history.ok(page, StoreRet::Keys(vec!["b/1"]), 1);
    assert_eq!(verdict(&history), Ok(()));
    list(&mut history, "zzz", &[("zzz/1", 1)]);
    let text = verdict(&history).unwrap_err();
    assert!(text.contains("key no key"), "{text}");
}

/// What the README says of sizes: 3,000 calls of one group of five keys.
#[test]
fn long_histories_of_a_group_are_decided() {
    println!("processes  unknown calls  steps");
    for (processes, ppm) in
        [(2, 0), (8, 0), (12, 0), (2, 3_000), (4, 3_000), (8, 1_000), (8, 3_000)]
    {
        let mut rng = Rng::new(22);
        let mut history = random_history(&mut rng, 3_000, processes, [ppm, 0]);
        let good = check(&Store::of(&history), &history, 20_000_000).unwrap();
        println!("{processes:>9} {:>14} {:>6}", good.unknown, good.steps);
        assert!(good.calls > 2_500 && good.keys <= 2);
        // The same with a list at the end that shows what was never written.
        list(&mut history, "a/", &[("a/1", 1 << 20)]);
        let bad = check(&Store::of(&history), &history, 20_000_000).unwrap_err();
        match bad {
            CheckError::Violation { .. } => {}
            // Every choice of unknown calls would have to be tried.
            error => assert!(good.unknown > 0, "{error}"),
        }
    }
}

#[test]
fn histories_dump_as_json() {
    let mut history = Log::new();
    list(&mut history, "a/", &[("a/1", 1)]);
    let many = history.invoke(1, StoreOp::GetMany { keys: vec!["c", "b/1"] }, 0);
    history.ok(many, StoreRet::Many(vec![None, Some(2)]), 1);
    let text = history.to_json_lines();
    for part in [
        r#""op":{"f":"list","prefix":"a/","after":null,"limit":null}"#,
        r#""ret":[["a/1",1]]"#,
        r#""op":{"f":"get_many","keys":["c","b/1"]}"#,
        r#""ret":[null,2]"#,
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}
