//! The checker against one that tries everything, and on histories known good or bad.

use std::collections::HashSet;

use Act::{Begins, Calls, Ends};

use super::*;
use crate::{Ended, History, Rng};

const STEPS: u64 = 10_000_000;

type Kv8 = Kv<u8, u32>;
type Log = History<KvOp<u8, u32>, KvRet<u32>>;

/// Tries every order of every choice of unknown calls. No memory, no shortcuts.
fn brute(history: &Log) -> bool {
    let keys: HashSet<u8> = history.calls().iter().map(|call| Kv8::new().key(&call.op)).collect();
    keys.into_iter().all(|key| {
        let calls = history.calls().iter().enumerate();
        let calls = calls
            .filter(|(_, call)| Kv8::new().key(&call.op) == key && call.ended != Ended::Failed);
        let mut left: Vec<usize> = calls.map(|(at, _)| at).collect();
        brute_from(history, &mut left, None)
    })
}

fn brute_from(history: &Log, left: &mut Vec<usize>, state: Option<u32>) -> bool {
    let known = |at: usize| matches!(history.calls()[at].ended, Ended::Ok(_));
    if !left.iter().any(|&at| known(at)) {
        return true;
    }
    for index in 0..left.len() {
        let at = left[index];
        let call = &history.calls()[at];
        let too_early = left.iter().any(|&other| {
            let other = &history.calls()[other];
            matches!(other.ended, Ended::Ok(_)) && other.end.is_some_and(|end| end < call.begin)
        });
        if too_early {
            continue;
        }
        let ret = match &call.ended {
            Ended::Ok(ret) => Some(ret),
            _ => None,
        };
        let Some(next) = Kv8::new().step(&state, &call.op, ret) else { continue };
        left.remove(index);
        let fits = brute_from(history, left, next);
        left.insert(index, at);
        if fits {
            return true;
        }
    }
    false
}

/// Draws values: of `0..few`, or, if `few` is 0, each only once.
struct Values {
    few: u64,
    used: u32,
}

impl Values {
    fn fresh(&mut self, rng: &mut Rng) -> u32 {
        self.used += 1;
        if self.few == 0 { self.used } else { rng.below(self.few) as u32 }
    }

    fn old(&self, rng: &mut Rng) -> u32 {
        let all = if self.few == 0 { u64::from(self.used) + 1 } else { self.few };
        rng.below(all) as u32
    }
}

fn random_op(rng: &mut Rng, values: &mut Values, state: &[Option<u32>]) -> KvOp<u8, u32> {
    let key = rng.below(state.len() as u64) as u8;
    match rng.below(5) {
        0 | 1 => KvOp::Get { key },
        2 => KvOp::Put { key, value: values.fresh(rng) },
        3 => {
            let guess = rng.chance(500_000).then(|| values.old(rng));
            let expect = if rng.chance(700_000) { state[usize::from(key)] } else { guess };
            KvOp::Cas { key, expect, value: values.fresh(rng) }
        }
        _ => KvOp::Delete { key },
    }
}

fn random_ret(rng: &mut Rng, op: &KvOp<u8, u32>, values: &Values) -> KvRet<u32> {
    match op {
        KvOp::Get { .. } => KvRet::Value(rng.chance(700_000).then(|| values.old(rng))),
        KvOp::Put { .. } => KvRet::Done,
        _ => KvRet::Applied(rng.chance(500_000)),
    }
}

fn right_ret(op: &KvOp<u8, u32>, state: &mut [Option<u32>]) -> KvRet<u32> {
    let at = usize::from(Kv8::new().key(op));
    let options =
        [KvRet::Value(state[at]), KvRet::Done, KvRet::Applied(true), KvRet::Applied(false)];
    let fits = options.into_iter().find_map(|ret| {
        let next = Kv8::new().step(&state[at], op, Some(&ret))?;
        Some((ret, next))
    });
    let (ret, next) = fits.expect("each call has an answer");
    state[at] = next;
    ret
}

/// A call under way: its op, and its answer once it has taken effect.
type Open = (crate::CallId, KvOp<u8, u32>, Option<KvRet<u32>>);

/// A history whose answers are right as of a moment between begin and end, except that `lies`
/// of a million are not, and that some outcomes are unknown.
fn history(
    rng: &mut Rng,
    calls: usize,
    [processes, keys, few]: [u64; 3],
    [unknown, lies]: [u32; 2],
) -> Log {
    let mut values = Values { few, used: 0 };
    let mut history = Log::new();
    let mut state = vec![None; keys as usize];
    let mut open: Vec<Option<Open>> = vec![None; processes as usize];
    let mut begun = 0;
    while begun < calls || open.iter().any(Option::is_some) {
        let process = rng.below(processes) as usize;
        match open[process].take() {
            None if begun < calls => {
                let op = random_op(rng, &mut values, &state);
                let id = history.invoke(process as u64, op.clone(), begun as u64);
                open[process] = Some((id, op, None));
                begun += 1;
            }
            None => {}
            Some((id, op, None)) => {
                if rng.chance(unknown) {
                    // Half of these take effect, and nobody knows which.
                    if rng.chance(500_000) {
                        right_ret(&op, &mut state);
                    }
                    history.unknown(id, 0);
                } else if rng.chance(50_000) {
                    history.fail(id, 0);
                } else {
                    let ret = right_ret(&op, &mut state);
                    open[process] = Some((id, op, Some(ret)));
                }
            }
            Some((id, op, Some(ret))) => {
                let lie = rng.chance(lies);
                let ret = if lie { random_ret(rng, &op, &values) } else { ret };
                history.ok(id, ret, 0);
            }
        }
    }
    history
}

#[test]
fn agrees_with_trying_everything() {
    let mut rng = Rng::new(11);
    let (mut good, mut bad) = (0, 0);
    for round in 0..20_000 {
        let (calls, processes) = (rng.between(1, 9) as usize, rng.between(1, 5));
        let (keys, few) = (rng.between(1, 2), rng.below(2) * 3);
        let lies = [0, 100_000, 500_000][round % 3];
        let history = history(&mut rng, calls, [processes, keys, few], [150_000, lies]);
        let expected = brute(&history);
        match check(&Kv8::new(), &history, 100_000) {
            Ok(_) => assert!(expected, "{history:#?}"),
            Err(CheckError::Violation { .. }) => assert!(!expected, "{history:#?}"),
            Err(CheckError::Undecided { .. }) => panic!("{history:#?}"),
        }
        assert!(expected || lies > 0);
        good += u32::from(expected);
        bad += u32::from(!expected);
    }
    assert!(good > 5_000 && bad > 2_000, "{good} {bad}");
}

#[test]
fn many_calls_at_a_time_are_decided() {
    let mut rng = Rng::new(13);
    for processes in [4, 8, 12] {
        for _ in 0..5 {
            let history = history(&mut rng, 3_000, [processes, 1, 0], [10_000, 0]);
            assert!(check(&Kv8::new(), &history, STEPS).is_ok());
        }
    }
}

#[test]
fn long_histories_are_decided_either_way() {
    let mut rng = Rng::new(12);
    for round in 0..20 {
        let few = round % 2 * 3;
        let history = history(&mut rng, 10_000, [8, 5, few], [100_000, 0]);
        let checked = check(&Kv8::new(), &history, STEPS).unwrap();
        assert!(checked.calls > 9_000 && checked.keys == 5 && checked.unknown > 500);
        assert!(checked.steps < 300 * checked.calls, "{checked:?}");
    }
    for _ in 0..20 {
        let mut history = history(&mut rng, 10_000, [8, 5, 0], [5_000, 0]);
        // Two writes one after the other, and then a read of the first.
        for (op, ret) in [
            (KvOp::Put { key: 3, value: 1_000_001 }, KvRet::Done),
            (KvOp::Put { key: 3, value: 1_000_002 }, KvRet::Done),
            (KvOp::Get { key: 3 }, KvRet::Value(Some(1_000_001))),
        ] {
            let call = history.invoke(9, op, 0);
            history.ok(call, ret, 0);
        }
        let error = check(&Kv8::new(), &history, STEPS).unwrap_err();
        assert!(matches!(error, CheckError::Violation { key: 3, .. }), "{error}");
    }
}

type Named = History<KvOp<&'static str, u32>, KvRet<u32>>;

/// What a process does next.
#[derive(Clone)]
enum Act {
    Begins(u64, KvOp<&'static str, u32>),
    Ends(u64, KvRet<u32>),
    /// Both, with nothing in between.
    Calls(u64, KvOp<&'static str, u32>, KvRet<u32>),
}

fn scripted(script: &[Act]) -> Named {
    let mut history = Named::new();
    let mut open = std::collections::HashMap::new();
    for (act, at) in script.iter().cloned().zip(0..) {
        match act {
            Begins(process, op) => {
                open.insert(process, history.invoke(process, op, at));
            }
            Ends(process, ret) => {
                let call = open.remove(&process).expect("ends what it began");
                history.ok(call, ret, at);
            }
            Calls(process, op, ret) => {
                let call = history.invoke(process, op, at);
                history.ok(call, ret, at);
            }
        }
    }
    history
}

fn verdict(script: &[Act]) -> bool {
    check(&Kv::new(), &scripted(script), STEPS).is_ok()
}

fn put(value: u32) -> KvOp<&'static str, u32> {
    KvOp::Put { key: "x", value }
}

fn get() -> KvOp<&'static str, u32> {
    KvOp::Get { key: "x" }
}

fn saw(value: u32) -> KvRet<u32> {
    KvRet::Value((value > 0).then_some(value))
}

const DONE: KvRet<u32> = KvRet::Done;

#[test]
fn a_read_that_overlaps_a_write_may_see_either_value() {
    assert!(verdict(&[
        Begins(1, put(1)),
        Calls(2, get(), saw(0)),
        Calls(3, get(), saw(1)),
        Ends(1, DONE)
    ]));
}

#[test]
fn a_stale_read_is_a_violation() {
    assert!(!verdict(&[Calls(1, put(1), DONE), Calls(1, put(2), DONE), Calls(2, get(), saw(1))]));
}

#[test]
fn a_value_seen_once_does_not_go_away() {
    let script =
        [Begins(1, put(1)), Calls(2, get(), saw(1)), Calls(3, get(), saw(0)), Ends(1, DONE)];
    assert!(!verdict(&script));
}

#[test]
fn two_readers_agree_on_the_order_of_writes() {
    let writes = [Begins(1, put(1)), Begins(2, put(2))];
    let reads = [
        Calls(3, get(), saw(1)),
        Calls(3, get(), saw(2)),
        Calls(4, get(), saw(2)),
        Calls(4, get(), saw(1)),
    ];
    assert!(!verdict(&[&writes[..], &reads].concat()));
    assert!(verdict(&[&writes[..], &reads[..3]].concat()));
}

#[test]
fn a_lost_write_is_a_violation_and_an_unknown_one_is_not() {
    assert!(!verdict(&[Calls(1, put(1), DONE), Calls(2, get(), saw(0))]));
    assert!(verdict(&[Begins(1, put(1)), Calls(2, get(), saw(0))]));
    // It may come into effect late, but only once.
    let late = [
        Begins(1, put(1)),
        Calls(2, get(), saw(0)),
        Calls(2, put(2), DONE),
        Calls(2, get(), saw(1)),
    ];
    assert!(verdict(&late));
    let twice = [&late[..], &[Calls(2, put(3), DONE), Calls(2, get(), saw(1))]].concat();
    assert!(!verdict(&twice));
}

#[test]
fn an_invented_value_is_a_violation() {
    assert!(!verdict(&[Begins(1, put(1)), Calls(2, get(), saw(7))]));
}

#[test]
fn two_winners_of_one_compare_and_set_are_a_violation() {
    let cas = |value| KvOp::Cas { key: "x", expect: None, value };
    let won = || KvRet::Applied(true);
    assert!(!verdict(&[Begins(1, cas(1)), Calls(2, cas(2), won()), Ends(1, won())]));
    let lost = KvRet::Applied(false);
    assert!(verdict(&[Begins(1, cas(1)), Calls(2, cas(2), won()), Ends(1, lost)]));
}

#[test]
fn a_failed_write_must_not_show() {
    let mut history = Named::new();
    let call = history.invoke(1, KvOp::Put { key: "x", value: 1 }, 0);
    history.fail(call, 1);
    let read = history.invoke(2, KvOp::Get { key: "x" }, 2);
    history.ok(read, KvRet::Value(Some(1)), 3);
    assert!(check(&Kv::new(), &history, STEPS).is_err());
}

#[test]
fn too_few_steps_are_undecided_and_a_violation_explains_itself() {
    let history = scripted(&[Calls(1, put(1), DONE), Calls(2, get(), saw(0))]);
    let undecided = check(&Kv::new(), &history, 1).unwrap_err();
    let expected = CheckError::Undecided { key: "x", calls: 2, unknown: 0, keys: 1, steps: 1 };
    assert_eq!(undecided, expected);
    let text = check(&Kv::new(), &history, 100).unwrap_err().to_string();
    for part in ["key \"x\", 2 calls", "longest order found has 1", "Put", "then Some(1)", "Get"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}
