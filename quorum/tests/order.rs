//! Which replicas a coordinator asks first: quick ones, and those whose answers count.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use voussoir_quorum::table::*;
use voussoir_quorum::version::{Actor, Dot, Siblings, VersionVector};

const MS: u64 = 1_000_000;

/// Reads avoid a replica that is slow, and hedge at most their budget.
#[test]
fn reads_avoid_a_slow_replica_and_hedge_within_their_budget() {
    let mut config = TableConfig::with_replicas([1, 2, 3]);
    config.hedge_after = Duration::from_millis(2);
    let mut coordinator = Coordinator::new(config).unwrap();
    let (mut now, mut late, mut to_slow) = (0, 0, 0);
    for _ in 0..2_000 {
        let began = now;
        let read = coordinator.get(now, Bytes::from_static(b"k"), VersionVector::new()).unwrap();
        let mut answers = BTreeSet::new();
        let mut is_done = false;
        while !is_done {
            while let Some(output) = coordinator.poll_output() {
                match output {
                    CoordinatorOutput::Call { id, to, .. } => {
                        to_slow += u64::from(to == 3);
                        let latency = if to == 3 { 50 * MS } else { MS / 2 };
                        answers.insert((now + latency, id));
                    }
                    CoordinatorOutput::Cancel { id } => answers.retain(|(_, call)| *call != id),
                    CoordinatorOutput::Done { operation, result } => {
                        assert_eq!((operation, result.is_ok()), (read, true));
                        is_done = true;
                    }
                    CoordinatorOutput::Missed { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
            let answer = answers.first().copied();
            let timer = coordinator.next_deadline().unwrap_or(u64::MAX);
            match answer.filter(|(at, _)| *at <= timer) {
                Some((at, call)) if !is_done => {
                    answers.remove(&(at, call));
                    now = at;
                    let reply = Reply::Value { state: Siblings::new() };
                    coordinator.step(now, CoordinatorInput::Reply { call, reply });
                }
                None if !is_done => {
                    now = timer;
                    coordinator.step(now, CoordinatorInput::Time);
                }
                _ => {}
            }
        }
        late += u64::from(now - began > 3 * MS);
        now += MS;
    }
    let hedged = coordinator.stats().hedged;
    println!("{to_slow} calls to the slow replica, {hedged} hedges, {late} late reads");
    assert!((1..=2_000 / 20 + 10).contains(&hedged), "{hedged}");
    assert!(late <= 10 && to_slow <= 20, "{late} late, {to_slow} to the slow replica");
}

/// A replica that is being rebuilt says at once that it does not count: whoever asks it first waits
/// for two answers instead of one.
#[test]
fn a_replica_that_is_not_whole_is_asked_last() {
    let mut coordinator = Coordinator::new(TableConfig::with_replicas([1, 2, 3])).unwrap();
    let mut now = 0;
    // How many of so many puts have asked the replica 3 first.
    let mut put = |puts: u64, is_whole: bool| {
        let mut first = 0;
        for _ in 0..puts {
            now += 10 * MS;
            coordinator.put_blind(now, Bytes::from_static(b"k"), Bytes::new()).unwrap();
            let (mut is_first, mut is_done) = (true, false);
            while let Some(output) = coordinator.poll_output() {
                match output {
                    CoordinatorOutput::Call { id: call, to, request } => {
                        let is_write = matches!(request, Request::Write { .. });
                        first += u64::from(to == 3 && is_first);
                        is_first = false;
                        let mut state = Siblings::new();
                        state.put_blind(Dot::new(Actor::new(to, 1), now), Bytes::new()).unwrap();
                        let reply = match is_write {
                            _ if to == 3 && !is_whole => Reply::NotWhole,
                            true => Reply::Written { state },
                            false => Reply::Merged,
                        };
                        coordinator.step(now, CoordinatorInput::Reply { call, reply });
                    }
                    CoordinatorOutput::Done { result, .. } => is_done = result.is_ok(),
                    _ => {}
                }
            }
            assert!(is_done);
        }
        first
    };
    let during = put(300, false);
    assert!(
        (1..=4).contains(&during),
        "asked first {during} times in 3 s: once, and once a second"
    );
    let after = put(30, true);
    assert!((5..=15).contains(&after), "it is one of three again: {after} of 30");
}
