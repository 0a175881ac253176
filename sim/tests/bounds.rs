//! The checker: which keys are looked at, and that its bound in steps bounds memory and time.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Instant;

use voussoir_sim::{
    Causality, CheckError, History, Kv, KvOp, KvRet, SessionGuarantee, check, check_causal,
    check_sessions,
};

type Log = History<KvOp<u32, u64>, KvRet<u64>>;

/// Calls of a key that no practical number of steps decides: so many writes at a time, and reads
/// of a value that none of them has written.
fn undecidable(history: &mut Log, key: u32, writes: u64) {
    let open: Vec<_> =
        (0..writes).map(|value| history.invoke(value, KvOp::Put { key, value }, 0)).collect();
    let read = history.invoke(100, KvOp::Get { key }, 1);
    history.ok(read, KvRet::Value(Some(1 << 40)), 2);
    for call in open {
        history.ok(call, KvRet::Done, 3);
    }
}

/// Calls of a key with many compare-and-sets of unknown outcome between few values, and reads that
/// many choices of them explain, up to a last one that none does.
fn many_unknown(history: &mut Log, key: u32, writes: u64) {
    let put = history.invoke(0, KvOp::Put { key, value: 0 }, 0);
    history.ok(put, KvRet::Done, 0);
    for number in 0..writes {
        let (expect, value) = (Some(number % 7), number * 5 % 11);
        let _never_ends = history.invoke(number, KvOp::Cas { key, expect, value }, 0);
    }
    for round in 0..writes / 4 {
        let get = history.invoke(1_000, KvOp::Get { key }, 1);
        history.ok(get, KvRet::Value(Some(round * 3 % 7)), 2);
    }
    let read = history.invoke(1_000, KvOp::Get { key }, 3);
    history.ok(read, KvRet::Value(Some(1 << 40)), 4);
}

fn violation(history: &mut Log, key: u32) {
    let put = history.invoke(1, KvOp::Put { key, value: 1 }, 10);
    history.ok(put, KvRet::Done, 11);
    let get = history.invoke(2, KvOp::Get { key }, 12);
    history.ok(get, KvRet::Value(None), 13);
}

#[test]
fn a_violation_is_found_behind_keys_that_cannot_be_decided() {
    for place in 0..3 {
        let mut history = Log::new();
        for key in 0..3 {
            if key == place {
                violation(&mut history, key);
            } else {
                undecidable(&mut history, key, 24);
            }
        }
        let error = check(&Kv::new(), &history, 1_000_000).unwrap_err();
        assert!(matches!(error, CheckError::Violation { key, .. } if key == place), "{error}");
        assert_eq!(error.span_ns(), Some((12, 13)));
    }
}

#[test]
fn an_undecided_history_says_what_is_in_it_and_what_to_do() {
    let mut history = Log::new();
    undecidable(&mut history, 1, 24);
    many_unknown(&mut history, 2, 40);
    undecidable(&mut history, 3, 24);
    let error = check(&Kv::new(), &history, 200_000).unwrap_err();
    let expected = CheckError::Undecided { key: 1, calls: 25, unknown: 0, keys: 3, steps: 200_000 };
    assert_eq!(error, expected);
    let text = error.to_string();
    for part in ["in 200000 steps", "3 keys", "25 calls, 0 of unknown outcome", "allow more"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[test]
fn a_write_beside_many_others_costs_no_more_than_they_do() {
    let calls = 200_000;
    let checked = check(&Kv::new(), &one_open_put(calls), 20 * calls).unwrap();
    assert_eq!(checked.calls, calls + 1);
}

fn one_open_put(calls: u64) -> Log {
    let mut history = Log::new();
    let open = history.invoke(0, KvOp::Put { key: 1, value: 1 << 40 }, 0);
    for value in 0..calls {
        let put = history.invoke(1, KvOp::Put { key: 1, value }, value);
        history.ok(put, KvRet::Done, value);
    }
    history.ok(open, KvRet::Done, calls);
    history
}

const CHILD: &str = "VOUSSOIR_SIM_BOUNDS_CHILD";

/// A line of `/proc/self/status`, in bytes.
fn status(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let kib: u64 = line.trim_matches([':', ' ', '\t']).trim_end_matches(" kB").parse().unwrap();
    kib * 1024
}

/// Histories that take many steps in different ways.
fn hard(case: &str) -> (Log, u64) {
    let mut history = Log::new();
    match case {
        "writes at a time" => undecidable(&mut history, 1, 40),
        "unknown writes" => many_unknown(&mut history, 1, 60),
        "many unknown writes" => many_unknown(&mut history, 1, 2_000),
        "one open write" => return (one_open_put(200_000), 4_000_000),
        "all at once" => {
            for key in 0..8 {
                undecidable(&mut history, key, 20);
                many_unknown(&mut history, key, 100);
            }
        }
        other => panic!("{other}"),
    }
    (history, 4_000_000)
}

const CASES: [&str; 5] =
    ["writes at a time", "unknown writes", "many unknown writes", "one open write", "all at once"];

/// Bytes that a step may take, as the README says.
const BYTES_A_STEP: u64 = 120;
/// Bytes that a call of the largest key may take, as the README says.
const BYTES_A_CALL: u64 = 300;

/// Each case in a process of its own, whose greatest size tells.
#[test]
#[cfg(target_os = "linux")]
fn steps_bound_memory_and_time() {
    if let Ok(case) = std::env::var(CHILD) {
        let (history, steps) = hard(&case);
        let before = status("VmRSS");
        let begun = Instant::now();
        let result = check(&Kv::new(), &history, steps);
        let took = begun.elapsed();
        let grown = status("VmHWM").saturating_sub(before);
        let steps = result.as_ref().map_or(steps, |checked| checked.steps);
        let calls = history.calls().len() as u64;
        // A violation would not tell how many steps it took.
        assert!(!matches!(result, Err(CheckError::Violation { .. })), "{result:?}");
        println!("child {grown} {steps} {calls} {}", took.as_nanos());
        return;
    }
    let mut table = String::from("MiB  bytes/step  ns/step  case\n");
    for case in CASES {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "steps_bound_memory_and_time", "--nocapture"])
            .env(CHILD, case)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().find_map(|line| line.split_once("child ")).expect(&text).1;
        let mut words = line.split(' ');
        let mut number = || words.next().unwrap().parse::<u64>().unwrap();
        let [grown, steps, calls, ns] = [(); 4].map(|()| number());
        let _infallible =
            writeln!(table, "{:>3} {:>11} {:>8}  {case}", grown >> 20, grown / steps, ns / steps);
        let allowed = steps * BYTES_A_STEP + calls * BYTES_A_CALL + (8 << 20);
        assert!(grown <= allowed, "{case}: {grown} bytes for {steps} steps, {calls} calls");
        // Generous, for a machine that does other things: chains of unknown calls that were not
        // counted took 11,000 ns a step, and more with each step.
        assert!(ns / steps < 3_000, "{case}: {} ns a step", ns / steps);
    }
    println!("{table}");
}

/// Sessions that read and write one key in turn.
fn sessions(calls: u64) -> Log {
    let (mut history, mut last) = (Log::new(), None);
    for at in 0..calls {
        let process = at % 4;
        if at / 4 % 2 == 0 {
            let put = history.invoke(process, KvOp::Put { key: 1, value: at }, at);
            history.ok(put, KvRet::Done, at);
            last = Some(at);
        } else {
            let get = history.invoke(process, KvOp::Get { key: 1 }, at);
            history.ok(get, KvRet::Value(last), at);
        }
    }
    history
}

/// An order of each session, not of each pair of its calls: in a process of its own.
#[test]
#[cfg(target_os = "linux")]
fn sessions_take_no_memory_for_each_pair_of_their_calls() {
    const CALLS: u64 = 8_000;
    // One bit for each pair of calls; and of what is linear, 1 KiB a call.
    const ALLOWED: u64 = CALLS * CALLS / 8 + CALLS * 1024;
    if std::env::var(CHILD).is_ok() {
        let history = sessions(CALLS);
        let before = status("VmRSS");
        assert_eq!(check_sessions(&history, &SessionGuarantee::ALL), Ok(()));
        assert_eq!(check_causal(&history, Causality::Convergent), Ok(()));
        println!("child {}", status("VmHWM").saturating_sub(before));
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sessions_take_no_memory_for_each_pair_of_their_calls", "--nocapture"])
        .env(CHILD, "sessions")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find_map(|line| line.split_once("child ")).expect(&text).1;
    let grown: u64 = line.parse().unwrap();
    assert!(grown <= ALLOWED, "{} MiB of {}", grown >> 20, ALLOWED >> 20);
}
