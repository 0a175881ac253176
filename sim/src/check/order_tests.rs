//! Sessions, causality and sequential consistency, against the definitions tried in full.

use super::*;
use crate::{CallId, Ended, History, KvOp, KvRet, Rng};

type Log = History<KvOp<u8, u32>, KvRet<u32>>;

const STEPS: u64 = 1_000_000;

/// A call in a script: process, key, written value or value read (0: none).
#[derive(Clone, Copy)]
enum Did {
    W(u64, u8, u32),
    R(u64, u8, u32),
}
use Did::{R, W};

/// A history in which each call ends before the next begins.
fn serial(script: &[Did]) -> Log {
    let mut history = Log::new();
    for (did, at) in script.iter().zip(0..) {
        let (process, op, ret) = match *did {
            W(process, key, value) => (process, KvOp::Put { key, value }, KvRet::Done),
            R(process, key, value) => {
                (process, KvOp::Get { key }, KvRet::Value((value > 0).then_some(value)))
            }
        };
        let call = history.invoke(process, op, at);
        history.ok(call, ret, at);
    }
    history
}

/// Reads and writes of unique values over two keys: values are read at random, from anywhere.
fn random(rng: &mut Rng, calls: u64) -> Log {
    let mut history = Log::new();
    // Each is written somewhere in the history, perhaps after it is read.
    let writes: Vec<bool> = (0..calls).map(|_| rng.chance(500_000)).collect();
    let keys: Vec<u8> = (0..calls).map(|_| rng.below(2) as u8).collect();
    for at in 0..calls as usize {
        let (process, key) = (rng.below(3), keys[at]);
        if writes[at] {
            let call = history.invoke(process, KvOp::Put { key, value: at as u32 + 1 }, 0);
            match rng.below(12) {
                0 => history.unknown(call, 0),
                1 => history.fail(call, 0),
                _ => history.ok(call, KvRet::Done, 0),
            };
        } else {
            let call = history.invoke(process, KvOp::Get { key }, 0);
            let same: Vec<usize> =
                (0..calls as usize).filter(|&other| writes[other] && keys[other] == key).collect();
            // Mostly of the past, as a store would answer.
            let past: Vec<usize> = same.iter().copied().filter(|&other| other < at).collect();
            let from = if rng.chance(850_000) { &past } else { &same };
            let seen = if rng.chance(200_000) { None } else { rng.pick(from).copied() };
            history.ok(call, KvRet::Value(seen.map(|seen| seen as u32 + 1)), 0);
        }
    }
    history
}

/// One call of a history as the definitions below see it.
#[derive(Clone, Copy)]
struct One {
    process: u64,
    key: u8,
    /// What is written; none for a read.
    writes: Option<u32>,
    reads: Option<u32>,
    is_known: bool,
}

/// All calls that may count, in order; none when a read saw a value that nobody wrote.
fn ones(history: &Log) -> Option<Vec<One>> {
    let counted = history.calls().iter().filter(|call| call.ended != Ended::Failed);
    let all: Vec<One> = counted
        .map(|call| {
            let (writes, key) = match call.op {
                KvOp::Put { key, value } => (Some(value), key),
                _ => (None, *call.op.key()),
            };
            let reads = match call.ended {
                Ended::Ok(KvRet::Value(value)) => value,
                _ => None,
            };
            let is_known = matches!(call.ended, Ended::Ok(_));
            One { process: call.process, key, writes, reads, is_known }
        })
        .collect();
    let is_written = |one: &One| {
        one.reads
            .is_none_or(|value| all.iter().any(|w| w.writes == Some(value) && w.key == one.key))
    };
    all.iter().all(is_written).then(|| all.clone())
}

/// Every order of `left`, until one is taken.
fn any_order<T: Copy>(
    left: &mut Vec<T>,
    order: &mut Vec<T>,
    takes: &mut dyn FnMut(&[T]) -> bool,
) -> bool {
    if left.is_empty() {
        return takes(order);
    }
    for at in 0..left.len() {
        let one = left.remove(at);
        order.push(one);
        let is_taken = any_order(left, order, takes);
        order.pop();
        left.insert(at, one);
        if is_taken {
            return true;
        }
    }
    false
}

/// The definition of one set of guarantees: an order of the writes of each key explains all reads.
fn keeps_sessions(history: &Log, guarantees: &[SessionGuarantee]) -> bool {
    let Some(all) = ones(history) else { return false };
    [0, 1].into_iter().all(|key| {
        let mut writes: Vec<u32> =
            all.iter().filter(|one| one.key == key).filter_map(|one| one.writes).collect();
        any_order(&mut writes, &mut Vec::new(), &mut |order| {
            let place = |value: Option<u32>| {
                value.map_or(0, |value| 1 + order.iter().position(|&w| w == value).unwrap())
            };
            let of_key: Vec<&One> =
                all.iter().filter(|one| one.key == key && one.is_known).collect();
            of_key.iter().enumerate().all(|(at, later)| {
                of_key[..at].iter().filter(|one| one.process == later.process).all(|earlier| {
                    let (first, second) = (earlier.writes.is_some(), later.writes.is_some());
                    let guarantee = match (first, second) {
                        (true, false) => SessionGuarantee::ReadYourWrites,
                        (false, false) => SessionGuarantee::MonotonicReads,
                        (true, true) => SessionGuarantee::MonotonicWrites,
                        (false, true) => SessionGuarantee::WritesFollowReads,
                    };
                    let before = place(earlier.writes.or(earlier.reads));
                    let after = place(later.writes.or(later.reads));
                    !guarantees.contains(&guarantee) || before <= after
                })
            })
        })
    })
}

/// Which call lies in the causal past of which: by paths of sessions and reads.
fn causal_past(all: &[One]) -> Vec<Vec<bool>> {
    let count = all.len();
    let mut past = vec![vec![false; count]; count];
    for (at, one) in all.iter().enumerate() {
        for (other, before) in all.iter().enumerate() {
            let of_session =
                other < at && before.process == one.process && before.is_known && one.is_known;
            let of_read =
                one.reads.is_some() && before.writes == one.reads && before.key == one.key;
            past[at][other] = of_session || of_read;
        }
    }
    for middle in 0..count {
        for at in 0..count {
            for other in 0..count {
                past[at][other] |= past[at][middle] && past[middle][other];
            }
        }
    }
    past
}

/// Weak: each read has an order of the writes of its past; convergent: all have one order.
fn is_causal(history: &Log, causality: Causality) -> bool {
    let Some(all) = ones(history) else { return false };
    let past = causal_past(&all);
    if (0..all.len()).any(|at| past[at][at]) {
        return false;
    }
    let respects = |order: &[usize]| {
        (0..order.len()).all(|at| !order[at + 1..].iter().any(|&later| past[order[at]][later]))
    };
    let explains = |order: &[usize], read: usize| {
        let last = order.iter().rfind(|&&w| past[read][w] && all[w].key == all[read].key);
        last.and_then(|&w| all[w].writes) == all[read].reads
    };
    let writes: Vec<usize> = (0..all.len()).filter(|&at| all[at].writes.is_some()).collect();
    let mut reads = (0..all.len()).filter(|&at| all[at].writes.is_none() && all[at].is_known);
    match causality {
        Causality::Weak => reads.all(|read| {
            let mut past: Vec<usize> = writes.iter().copied().filter(|&w| past[read][w]).collect();
            any_order(&mut past, &mut Vec::new(), &mut |order| {
                respects(order) && explains(order, read)
            })
        }),
        Causality::Convergent => {
            let reads: Vec<usize> = reads.collect();
            any_order(&mut writes.clone(), &mut Vec::new(), &mut |order| {
                respects(order) && reads.iter().all(|&read| explains(order, read))
            })
        }
    }
}

/// Every choice of unknown writes, in every order that keeps the sessions.
fn is_sequential(history: &Log) -> bool {
    let Some(all) = ones(history) else { return false };
    let unknown: Vec<usize> = (0..all.len()).filter(|&at| !all[at].is_known).collect();
    (0..1_u32 << unknown.len()).any(|choice| {
        let is_left_out = |at: &usize| {
            unknown.iter().position(|u| u == at).is_some_and(|bit| choice >> bit & 1 == 0)
        };
        let mut left: Vec<usize> = (0..all.len()).filter(|at| !is_left_out(at)).collect();
        any_order(&mut left, &mut Vec::new(), &mut |order| {
            let mut state = [None; 2];
            (0..order.len()).all(|at| {
                let one = all[order[at]];
                // What comes later here and began earlier in the same session breaks its order;
                // an unknown call may take effect late.
                let is_late = order[at + 1..].iter().any(|&later| {
                    later < order[at] && all[later].process == one.process && all[later].is_known
                });
                let slot = &mut state[usize::from(one.key)];
                let fits = one.writes.is_some() || !one.is_known || *slot == one.reads;
                *slot = one.writes.or(*slot);
                fits && !is_late
            })
        })
    })
}

#[test]
fn the_checkers_agree_with_the_definitions() {
    let mut rng = Rng::new(21);
    let sets: Vec<Vec<SessionGuarantee>> = (0..16_u32)
        .map(|bits| {
            let all = SessionGuarantee::ALL.into_iter().zip(0..4);
            all.filter(|(_, bit)| bits >> bit & 1 == 1).map(|(guarantee, _)| guarantee).collect()
        })
        .collect();
    // How many histories kept each, and how many did not.
    let mut seen = [[0_u32; 2]; 8];
    for _ in 0..4_000 {
        let calls = rng.between(2, 6);
        let history = random(&mut rng, calls);
        for guarantees in &sets {
            let expected = keeps_sessions(&history, guarantees);
            let found = check_sessions(&history, guarantees);
            assert_eq!(found.is_ok(), expected, "{guarantees:?} {found:?} {history:#?}");
            if let [one] = guarantees[..] {
                seen[one as usize][usize::from(expected)] += 1;
            }
            seen[4][usize::from(expected)] += u32::from(guarantees.len() == 4);
        }
        for (at, causality) in [(5, Causality::Weak), (6, Causality::Convergent)] {
            let expected = is_causal(&history, causality);
            let found = check_causal(&history, causality);
            assert_eq!(found.is_ok(), expected, "{causality:?} {found:?} {history:#?}");
            seen[at][usize::from(expected)] += 1;
        }
        let expected = is_sequential(&history);
        let found = check_sequential(&Kv::new(), &history, STEPS);
        assert!(!matches!(found, Err(CheckError::Undecided { .. })), "{found:?}");
        assert_eq!(found.is_ok(), expected, "{found:?} {history:#?}");
        seen[7][usize::from(expected)] += 1;
    }
    println!("{seen:?}");
    assert!(seen.iter().flatten().all(|&count| count > 100), "{seen:?}");
}

#[test]
fn each_guarantee_has_a_history_that_breaks_it_alone() {
    use SessionGuarantee::{MonotonicReads, MonotonicWrites, ReadYourWrites, WritesFollowReads};
    // Sessions 1 and 2 fix the order of the writes by what they read, where that is needed.
    let order = [R(8, 0, 1), R(8, 0, 2)];
    let cases: [(SessionGuarantee, &[Did]); 4] = [
        (ReadYourWrites, &[W(1, 0, 1), R(1, 0, 0)]),
        (MonotonicReads, &[W(1, 0, 1), R(2, 0, 1), R(2, 0, 0)]),
        (MonotonicWrites, &[W(1, 0, 2), W(1, 0, 1)]),
        (WritesFollowReads, &[W(1, 0, 2), R(2, 0, 2), W(2, 0, 1)]),
    ];
    for (guarantee, script) in cases {
        let is_order_needed = matches!(guarantee, MonotonicWrites | WritesFollowReads);
        let script = [script, if is_order_needed { &order[..] } else { &[] }].concat();
        let history = serial(&script);
        // The reads of session 8 count only while reads are monotonic.
        let broken = [MonotonicReads, guarantee];
        assert!(check_sessions(&history, &broken).is_err(), "{guarantee:?}");
        let others: Vec<_> =
            SessionGuarantee::ALL.into_iter().filter(|&other| other != guarantee).collect();
        assert_eq!(check_sessions(&history, &others), Ok(()), "{guarantee:?}");
    }
}

#[test]
fn causality_reaches_over_sessions() {
    // A photo is put up, a comment on it is read, and the photo is not there.
    let comment = [W(1, 0, 1), R(2, 0, 1), W(2, 1, 2), R(3, 1, 2), R(3, 0, 0)];
    assert_eq!(check_sessions(&serial(&comment), &SessionGuarantee::ALL), Ok(()));
    for causality in [Causality::Weak, Causality::Convergent] {
        let error = check_causal(&serial(&comment), causality).unwrap_err();
        assert!(error.to_string().contains("process 3: Get"), "{error}");
    }
    // Two readers see two writes in different orders: causal, but not convergent.
    let apart = [W(1, 0, 1), W(2, 0, 2), R(3, 0, 1), R(3, 0, 2), R(4, 0, 2), R(4, 0, 1)];
    assert_eq!(check_causal(&serial(&apart), Causality::Weak), Ok(()));
    assert!(check_causal(&serial(&apart), Causality::Convergent).is_err());
}

#[test]
fn a_stale_read_is_sequential_and_two_lost_looks_are_not() {
    let stale = serial(&[W(1, 0, 1), R(2, 0, 0)]);
    assert!(check_sequential(&Kv::new(), &stale, STEPS).is_ok());
    assert!(check(&Kv::new(), &stale, STEPS).is_err(), "it is not linearizable");
    // Dekker: each writes and does not see the other's write.
    let dekker = serial(&[W(1, 0, 1), R(1, 1, 0), W(2, 1, 2), R(2, 0, 0)]);
    assert_eq!(check_causal(&dekker, Causality::Convergent), Ok(()));
    let error = check_sequential(&Kv::new(), &dekker, STEPS).unwrap_err();
    assert!(error.to_string().contains("not sequentially consistent"), "{error}");
    let undecided = check_sequential(&Kv::new(), &dekker, 1).unwrap_err();
    assert!(matches!(undecided, CheckError::Undecided { steps: 1, calls: 4, .. }), "{undecided}");
}

#[test]
fn what_cannot_be_checked_is_named() {
    let twice = serial(&[W(1, 0, 1), W(2, 0, 1)]);
    let is_unsupported = |result: Result<(), OrderError>| match result {
        Err(OrderError::Unsupported { call, .. }) => call == CallId::new(1),
        _ => false,
    };
    assert!(is_unsupported(check_sessions(&twice, &[])));
    let mut deletes = serial(&[W(1, 0, 1)]);
    let call = deletes.invoke(1, KvOp::Delete { key: 0 }, 0);
    deletes.ok(call, KvRet::Done, 0);
    assert!(is_unsupported(check_causal(&deletes, Causality::Weak)));
    let mut invented = serial(&[R(1, 0, 7)]);
    let expected = Err(OrderError::Invented { call: CallId::new(0) });
    assert_eq!(check_causal(&invented, Causality::Weak), expected);
    let write = invented.invoke(2, KvOp::Put { key: 0, value: 7 }, 0);
    invented.fail(write, 0);
    assert_eq!(check_sessions(&invented, &[]), expected, "a failed write shows");
}

#[test]
fn a_long_causal_history_is_checked_in_time() {
    let mut rng = Rng::new(22);
    let (mut history, mut values) = (Log::new(), [None; 2]);
    for value in 1..=3_000 {
        let (process, key) = (rng.below(8), rng.below(2) as u8);
        let (op, ret) = if rng.chance(500_000) {
            values[usize::from(key)] = Some(value);
            (KvOp::Put { key, value }, KvRet::Done)
        } else {
            (KvOp::Get { key }, KvRet::Value(values[usize::from(key)]))
        };
        let call = history.invoke(process, op, 0);
        history.ok(call, ret, 0);
    }
    assert_eq!(check_causal(&history, Causality::Convergent), Ok(()));
    assert_eq!(check_sessions(&history, &SessionGuarantee::ALL), Ok(()));
    assert!(check_sequential(&Kv::new(), &history, STEPS).is_ok());
    let stale = history.invoke(1, KvOp::Get { key: 0 }, 0);
    history.ok(stale, KvRet::Value(None), 0);
    assert!(check_causal(&history, Causality::Weak).is_err());
}
