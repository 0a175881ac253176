//! The checker against one that tries everything, and on histories known good or bad.

use std::collections::HashSet;

use super::*;
use crate::{Ended, History, Rng};

const STEPS: u64 = 2_000_000;

type Kv8 = Kv<u8, u8>;
type Log = History<KvOp<u8, u8>, KvRet<u8>>;

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

fn brute_from(history: &Log, left: &mut Vec<usize>, state: Option<u8>) -> bool {
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

fn random_op(rng: &mut Rng, keys: u64, values: u64) -> KvOp<u8, u8> {
    let key = rng.below(keys) as u8;
    let value = rng.below(values) as u8;
    match rng.below(5) {
        0 | 1 => KvOp::Get { key },
        2 => KvOp::Put { key, value },
        3 => {
            let expect = rng.chance(700_000).then(|| rng.below(values) as u8);
            KvOp::Cas { key, expect, value }
        }
        _ => KvOp::Delete { key },
    }
}

fn random_ret(rng: &mut Rng, op: &KvOp<u8, u8>, values: u64) -> KvRet<u8> {
    match op {
        KvOp::Get { .. } => KvRet::Value(rng.chance(700_000).then(|| rng.below(values) as u8)),
        KvOp::Put { .. } => KvRet::Done,
        _ => KvRet::Applied(rng.chance(500_000)),
    }
}

fn right_ret(op: &KvOp<u8, u8>, state: &mut [Option<u8>]) -> KvRet<u8> {
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

/// A history whose answers are right as of a moment between begin and end, except that `lies`
/// of a million are not, and that some outcomes are unknown.
fn history(rng: &mut Rng, calls: usize, processes: u64, keys: u64, lies: u32) -> Log {
    let values = 3;
    let mut history = Log::new();
    let mut state = vec![None; keys as usize];
    // Per process: the call, its op, and its answer once it has taken effect.
    let mut open: Vec<Option<(crate::CallId, KvOp<u8, u8>, Option<KvRet<u8>>)>> =
        vec![None; processes as usize];
    let mut begun = 0;
    while begun < calls || open.iter().any(Option::is_some) {
        let process = rng.below(processes) as usize;
        match open[process].take() {
            None if begun < calls => {
                let op = random_op(rng, keys, values);
                let id = history.invoke(process as u64, op.clone(), begun as u64);
                open[process] = Some((id, op, None));
                begun += 1;
            }
            None => {}
            Some((id, op, None)) => {
                let fate = rng.below(20);
                if fate == 0 {
                    history.unknown(id, 0); // never takes effect, but nobody knows
                } else if fate == 1 {
                    right_ret(&op, &mut state);
                    history.unknown(id, 0);
                } else if fate == 2 {
                    history.fail(id, 0);
                } else {
                    let ret = right_ret(&op, &mut state);
                    open[process] = Some((id, op, Some(ret)));
                }
            }
            Some((id, op, Some(ret))) => {
                let lie = rng.chance(lies);
                let ret = if lie { random_ret(rng, &op, values) } else { ret };
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
        let (keys, lies) = (rng.between(1, 2), [0, 100_000, 500_000][round % 3]);
        let history = history(&mut rng, calls, processes, keys, lies);
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
fn long_histories_are_decided_either_way() {
    let mut rng = Rng::new(12);
    for _ in 0..20 {
        let history = history(&mut rng, 10_000, 8, 5, 0);
        let checked = check(&Kv8::new(), &history, STEPS).unwrap();
        assert!(checked.calls > 9_000 && checked.keys == 5 && checked.unknown > 500);
        eprintln!("{checked:?}");
    }
    for _ in 0..20 {
        let history = history(&mut rng, 10_000, 8, 5, 20_000);
        let error = check(&Kv8::new(), &history, STEPS).unwrap_err();
        assert!(matches!(error, CheckError::Violation { .. }), "{error}");
    }
}
