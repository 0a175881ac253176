//! An operation is tried until its deadline: which replicas are asked again, when, and when not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use voussoir_quorum::paxos::{self, Proposer, ProposerConfig, ProposerInput, ProposerOutput};
use voussoir_quorum::table::*;
use voussoir_quorum::version::{Actor, Dot, Siblings, VersionVector};
use voussoir_quorum::{MemberChange, Membership};

const MS: u64 = 1_000_000;
/// The default of a table.
const TIMEOUT: u64 = 1_000 * MS;

fn key() -> Bytes {
    Bytes::from_static(b"k")
}

fn state() -> Siblings<Bytes> {
    let mut state = Siblings::new();
    state.put_blind(Dot::new(Actor::new(1, 1), 1), Bytes::from_static(b"v")).unwrap();
    state
}

/// What a replica answers that does what it is asked.
fn answer(request: &Request) -> Reply {
    match request {
        Request::Get { .. } | Request::Digest { .. } => Reply::Value { state: state() },
        Request::Write { .. } => Reply::Written { state: state() },
        _ => Reply::Merged,
    }
}

/// A call that was made, and what became of it.
struct Called {
    at: u64,
    ended: u64,
    to: u64,
    request: Request,
    is_good: bool,
}

/// One operation, from its beginning to its end.
struct Run {
    calls: Vec<Called>,
    result: Result<Value, OperationError>,
    answered: u64,
    /// Replicas that have missed a write.
    missed: BTreeSet<u64>,
    stats: Stats,
}

impl Run {
    fn to(&self, replica: u64) -> Vec<&Called> {
        self.calls.iter().filter(|call| call.to == replica).collect()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Get,
    Put,
}

fn config(seed: u64) -> TableConfig {
    let mut config = TableConfig::with_replicas([1, 2, 3]);
    config.seed = Some(seed);
    config
}

/// Runs an operation. `fate` says what becomes of a call that is made at a time: how long it takes,
/// and how it ends.
fn run(
    config: TableConfig,
    kind: Kind,
    mut fate: impl FnMut(u64, u64, &Request) -> (u64, Result<Reply, CallError>),
) -> Run {
    let mut coordinator = Coordinator::new(config).unwrap();
    match kind {
        Kind::Get => coordinator.get(0, key(), VersionVector::new()).unwrap(),
        Kind::Put => coordinator.put_blind(0, key(), Bytes::from_static(b"v")).unwrap(),
    };
    let (mut now, mut calls, mut missed) = (0, Vec::new(), BTreeSet::new());
    let mut done = None;
    // Calls under way: when they end, and how; by their ids.
    let mut ends = BTreeMap::new();
    // Ends: each turn takes an answer or reaches a deadline.
    loop {
        while let Some(output) = coordinator.poll_output() {
            match output {
                CoordinatorOutput::Call { id, to, request } => {
                    let is_free = ends.values().all(|(_, at, _)| calls_to(&calls, *at) != to);
                    assert!(is_free, "two calls to {to} at once");
                    let (takes, result) = fate(now, to, &request);
                    let is_good = result == Ok(answer(&request));
                    let ended = now + takes;
                    ends.insert(id, (ended, calls.len(), result));
                    calls.push(Called { at: now, ended, to, request, is_good });
                }
                CoordinatorOutput::Cancel { id } => drop(ends.remove(&id)),
                CoordinatorOutput::Missed { replica, .. } => drop(missed.insert(replica)),
                CoordinatorOutput::Done { result, .. } => {
                    assert!(done.is_none(), "it is answered once");
                    done = Some((now, result));
                }
                other => panic!("{other:?}"),
            }
        }
        let timer = coordinator.next_deadline();
        let next = ends.iter().map(|(id, (at, ..))| (*at, *id)).min();
        let (at, input) = match (next, timer) {
            (Some((at, call)), timer) if timer.is_none_or(|timer| at <= timer) => {
                let (_, _, result) = ends.remove(&call).unwrap();
                let input = match result {
                    Ok(reply) => CoordinatorInput::Reply { call, reply },
                    Err(error) => CoordinatorInput::Failed { call, error },
                };
                (at, input)
            }
            (_, Some(timer)) => (timer, CoordinatorInput::Time),
            (_, None) => break,
        };
        now = now.max(at);
        coordinator.step(now, input);
    }
    let stats = coordinator.stats();
    assert_eq!(stats.operations, 0, "it has ended");
    let (answered, result) = done.expect("it was answered");
    assert!(answered <= TIMEOUT, "answered after {answered} ns");
    Run { calls, result, answered, missed, stats }
}

fn calls_to(calls: &[Called], at: usize) -> u64 {
    calls[at].to
}

/// One replica is dead, and the calls to the only other one fail for 500 ms.
#[test]
fn a_put_goes_on_when_the_call_to_the_only_other_replica_fails() {
    for error in [CallError::NotSent, CallError::Unknown] {
        for dead in [Err(CallError::NotSent), Ok(Reply::NotWhole)] {
            let run = run(config(1), Kind::Put, |now, to, request| match to {
                3 => (MS, dead.clone()),
                _ if matches!(request, Request::Merge { .. }) && now < 500 * MS => (MS, Err(error)),
                _ => (MS, Ok(answer(request))),
            });
            assert_eq!(run.result, Ok(state()), "{error:?}, {dead:?}");
            assert!((500 * MS..760 * MS).contains(&run.answered), "{}", run.answered);
            let merges: Vec<_> = run
                .calls
                .iter()
                .filter(|call| matches!(call.request, Request::Merge { .. }))
                .collect();
            let merge = Request::Merge { key: key(), state: state() };
            assert!(
                merges.iter().all(|call| call.request == merge),
                "one dot, whatever is repeated"
            );
            assert!((8..24).contains(&merges.len()), "{} merges", merges.len());
            assert_eq!(run.missed, BTreeSet::from([3]));
            let repeated = run.calls.iter().filter(|call| call.to != 3 && !call.is_good).count();
            assert!(run.stats.retried >= repeated as u64, "{:?}", run.stats);
        }
    }
}

/// Nothing becomes better: the operation ends by its deadline and not before.
#[test]
fn an_operation_that_nobody_answers_ends_at_its_deadline() {
    let dead = |_: u64, _: u64, _: &Request| (MS, Err(CallError::NotSent));
    let read = run(config(1), Kind::Get, dead);
    let unavailable = OperationError::Unavailable { answered: 0, needed: 2 };
    assert_eq!((read.result, read.answered), (Err(unavailable.clone()), TIMEOUT));
    // A write that was never sent has had no effect.
    let write = run(config(1), Kind::Put, dead);
    assert_eq!((write.result, write.answered), (Err(unavailable), TIMEOUT));
    assert!(write.missed.is_empty());
    let alone = run(config(1), Kind::Put, |_, _, request| match request {
        Request::Write { .. } => (MS, Ok(answer(request))),
        _ => (MS, Err(CallError::Unknown)),
    });
    let unknown = OperationError::WriteUnknown { holders: 1, needed: 2 };
    assert_eq!((alone.result, alone.answered), (Err(unknown), TIMEOUT));
    assert_eq!(alone.missed.len(), 2);
}

#[test]
fn a_read_goes_on_when_the_call_to_the_only_other_replica_fails() {
    // Of all replicas, the first one sends its state, and the others say whether theirs is the
    // same.
    for read in [Level::Quorum, Level::All] {
        let mut config = config(2);
        (config.read, config.min_digest_bytes) = (read, 0);
        let run = run(config, Kind::Get, |now, to, request| match to {
            3 if read == Level::Quorum => (MS, Err(CallError::NotSent)),
            2 if now < 300 * MS => (MS, Err(CallError::Unknown)),
            _ => (MS, Ok(answer(request))),
        });
        assert_eq!(run.result, Ok(state()));
        assert!((300 * MS..560 * MS).contains(&run.answered), "{}", run.answered);
        assert_eq!(run.to(1).len(), 1, "what has answered is not asked again");
        let last = run.to(2).pop().unwrap();
        assert!(matches!(last.request, Request::Get { .. }), "nobody else may send the state");
    }
}

/// Only while no call of it may have been made, and to one replica after the other.
#[test]
fn a_write_that_was_not_sent_is_tried_again_with_one_primary_at_a_time() {
    let run = run(config(3), Kind::Put, |now, to, request| match request {
        Request::Write { .. } if now < 200 * MS => (to * MS, Err(CallError::NotSent)),
        _ => (MS, Ok(answer(request))),
    });
    assert_eq!(run.result, Ok(state()));
    let writes: Vec<_> =
        run.calls.iter().filter(|call| matches!(call.request, Request::Write { .. })).collect();
    assert!(writes.len() > 9, "{} writes", writes.len());
    assert!(writes.windows(2).all(|pair| pair[0].ended <= pair[1].at), "one at a time");
    assert_eq!(writes.iter().filter(|call| call.is_good).count(), 1, "one dot");
    // What may have been made is not made again.
    let unknown = self::run(config(3), Kind::Put, |_, _, _| (MS, Err(CallError::Unknown)));
    assert_eq!((unknown.calls.len(), unknown.answered), (1, MS));
    assert_eq!(unknown.result, Err(OperationError::WriteUnknown { holders: 0, needed: 2 }));
}

/// A replica that fails is asked after pauses that double up to a quarter of the time; one that is
/// busy or not whole seldom from the first time on. The pauses are random, and of the table's seed.
#[test]
fn the_pauses_double_and_one_that_is_not_whole_is_left_alone() {
    let pauses = |seed, failure: Result<Reply, CallError>| -> Vec<u64> {
        let run = run(config(seed), Kind::Put, |_, _, request| match request {
            Request::Write { .. } => (0, Ok(answer(request))),
            _ => (0, failure.clone()),
        });
        assert_eq!(run.stats.postponed, 0, "one operation alone is within the budget");
        let to = run.calls.last().unwrap().to;
        run.to(to).windows(2).map(|pair| pair[1].at - pair[0].ended).collect()
    };
    let mut seen = BTreeSet::new();
    for seed in 0..20 {
        let not_sent = Err(CallError::NotSent);
        let failed = pauses(seed, not_sent.clone());
        assert!((7..=11).contains(&failed.len()), "{failed:?}");
        for (at, pause) in failed.iter().enumerate() {
            let longest = (250 * MS).min((10 * MS) << at);
            assert!((longest / 2..=longest).contains(pause), "{failed:?}");
        }
        for failure in [Ok(Reply::NotWhole), Err(CallError::Busy)] {
            let seldom = pauses(seed, failure);
            assert!((4..=8).contains(&seldom.len()), "{seldom:?}");
            for (at, pause) in seldom.iter().enumerate() {
                let longest = if at == 0 { 160 * MS } else { 250 * MS };
                assert!((longest / 2..=longest).contains(pause), "{seldom:?}");
            }
        }
        assert_eq!(pauses(seed, not_sent), failed, "the same seed gives the same pauses");
        seen.insert(failed);
    }
    assert_eq!(seen.len(), 20, "other seeds give others");
}

/// What was refused for good is not asked again: too much for a replica, or too old for its epoch.
#[test]
fn what_is_refused_for_good_ends_at_once() {
    for reply in [Reply::Refused, Reply::Stale { epoch: 9 }] {
        let run = run(config(1), Kind::Put, |_, _, request| match request {
            Request::Write { .. } => (MS, Ok(answer(request))),
            _ => (MS, Ok(reply.clone())),
        });
        assert_eq!((run.calls.len(), run.answered), (3, 2 * MS), "{reply:?}");
        assert_eq!(run.result, Err(OperationError::WriteUnknown { holders: 1, needed: 2 }));
    }
    // One that may still hold it is waited for.
    let run = run(config(1), Kind::Put, |now, to, request| match request {
        Request::Write { .. } => (MS, Ok(answer(request))),
        _ if to == 3 => (MS, Ok(Reply::Refused)),
        _ if now < 100 * MS => (MS, Err(CallError::Unknown)),
        _ => (MS, Ok(answer(request))),
    });
    assert!(run.to(3).len() <= 1, "it has refused");
    assert_eq!(run.result, Ok(state()));
}

/// A dead replica costs those nothing that have what they wait for, and hints tell it.
#[test]
fn an_answered_operation_asks_nobody_again() {
    let mut dead_was_asked = false;
    for kind in [Kind::Put, Kind::Get] {
        for (dead, answers_after) in [(3, 4 * MS), (2, 4 * MS), (1, 4 * MS), (3, 900 * MS)] {
            let run = run(config(1), kind, |_, to, request| match to {
                to if to == dead => (MS, Err(CallError::NotSent)),
                _ if matches!(request, Request::Merge { .. }) => {
                    (answers_after, Ok(answer(request)))
                }
                _ => (MS, Ok(answer(request))),
            });
            assert_eq!(run.result, Ok(state()));
            dead_was_asked |= !run.to(dead).is_empty();
            let last = run.calls.iter().map(|call| call.at).max().unwrap();
            assert!(last < run.answered, "nothing is asked behind the answer");
            if answers_after < 5 * MS {
                assert_eq!(run.stats.retried, 0);
            }
            let is_missed = kind == Kind::Put && run.missed == BTreeSet::from([dead]);
            assert!(is_missed || run.missed.is_empty());
        }
    }
    assert!(dead_was_asked);
}

/// Hedges ask those that were not asked; what has failed is asked again beside them, and no replica
/// twice at once.
#[test]
fn hedges_and_repeated_calls_do_not_double_each_other() {
    let mut config = config(5);
    (config.hedge_after, config.max_hedge_percent) = (Duration::from_millis(3), 100);
    let run = run(config, Kind::Get, |now, to, request| match to {
        // One hangs, one fails, and one fails at first.
        1 => (TIMEOUT * 2, Ok(answer(request))),
        2 => (MS, Err(CallError::NotSent)),
        _ if now < 700 * MS => (MS, Err(CallError::Unknown)),
        _ => (MS, Ok(answer(request))),
    });
    assert_eq!(run.answered, TIMEOUT);
    assert_eq!(run.to(1).len(), 1);
    assert!(run.to(3).iter().filter(|call| call.is_good).count() == 1);
    assert!((8..=14).contains(&run.to(2).len()), "{}", run.to(2).len());
}

/// A read whose future is dropped leaves nothing that wakes anybody, also between two calls.
#[test]
fn a_read_that_is_cancelled_between_two_calls_ends() {
    let mut coordinator = Coordinator::new(config(1)).unwrap();
    let read = coordinator.get(0, key(), VersionVector::new()).unwrap();
    // Ends: each replica is asked once at this time.
    while let Some(output) = coordinator.poll_output() {
        if let CoordinatorOutput::Call { id: call, .. } = output {
            coordinator.step(0, CoordinatorInput::Failed { call, error: CallError::NotSent });
        }
    }
    let due = coordinator.next_deadline().unwrap();
    assert!((5 * MS..=10 * MS).contains(&due), "it waits to ask again: {due}");
    coordinator.cancel(read);
    assert_eq!((coordinator.next_deadline(), coordinator.stats().operations), (None, 0));
    coordinator.step(TIMEOUT, CoordinatorInput::Time);
    assert_eq!(coordinator.poll_output(), None);
}

/// The replicas change while a write waits to ask its primary again: it goes to the new ones, and
/// no further to those that have left.
#[test]
fn a_write_between_two_calls_goes_on_at_the_replicas_of_a_later_epoch() {
    let joint =
        Membership::first([1, 2, 3]).begin(MemberChange::Replace { old: 3, new: 4 }, Level::Quorum);
    let joint = joint.unwrap().unwrap();
    let mut coordinator = Coordinator::new(config(1)).unwrap();
    coordinator.put_blind(0, key(), Bytes::new()).unwrap();
    let fail_all = |coordinator: &mut Coordinator, now| {
        let mut asked = Vec::new();
        // Ends: each replica is asked once at this time.
        while let Some(output) = coordinator.poll_output() {
            if let CoordinatorOutput::Call { id: call, to, .. } = output {
                asked.push(to);
                coordinator.step(now, CoordinatorInput::Failed { call, error: CallError::NotSent });
            }
        }
        asked.sort_unstable();
        asked
    };
    assert_eq!(fail_all(&mut coordinator, 0), [1, 2, 3]);
    coordinator.reconfigure(1, joint.clone());
    assert_eq!(fail_all(&mut coordinator, 1), [1, 2, 3, 4], "at once");
    let after = joint.finish().unwrap();
    coordinator.reconfigure(2, after);
    assert_eq!(fail_all(&mut coordinator, 2), [1, 2, 4]);
    for _ in 0..8 {
        let now = coordinator.next_deadline().unwrap();
        coordinator.step(now, CoordinatorInput::Time);
        let asked = fail_all(&mut coordinator, now);
        assert!(!asked.contains(&3), "{asked:?}");
    }
    // Also if its call to one that leaves was under way.
    let mut coordinator = Coordinator::new(config(1)).unwrap();
    coordinator.put_blind(0, key(), Bytes::new()).unwrap();
    let Some(CoordinatorOutput::Call { id: call, to: old, .. }) = coordinator.poll_output() else {
        panic!();
    };
    let replace = MemberChange::Replace { old, new: 4 };
    let joint = Membership::first([1, 2, 3]).begin(replace, Level::Quorum).unwrap().unwrap();
    coordinator.reconfigure(1, joint.finish().unwrap());
    assert_eq!(coordinator.poll_output(), None, "it may have been made");
    coordinator.step(2, CoordinatorInput::Failed { call, error: CallError::NotSent });
    let mut asked = fail_all(&mut coordinator, 2);
    for _ in 0..8 {
        let now = coordinator.next_deadline().unwrap();
        coordinator.step(now, CoordinatorInput::Time);
        asked.extend(fail_all(&mut coordinator, now));
    }
    assert!(asked.len() > 8 && !asked.contains(&old), "{asked:?}");
}

/// Operations of one table, one a millisecond.
struct Load {
    /// Of each: when it began and ended, and how.
    ended: Vec<(u64, u64, Result<Value, OperationError>)>,
    /// When each call was made.
    calls: Vec<u64>,
    stats: Stats,
}

/// Runs many operations. `fate` says how a call ends that is made at a time, a millisecond later.
fn load(kind: Kind, count: u64, fate: impl Fn(u64, &Request) -> Result<Reply, CallError>) -> Load {
    let mut coordinator = Coordinator::new(config(6)).unwrap();
    let (mut began, mut ended, mut calls) = (BTreeMap::new(), Vec::new(), Vec::new());
    let (mut begun, mut now) = (0, 0);
    // Calls under way, by their ends.
    let mut ends: BTreeMap<(u64, u64), Result<Reply, CallError>> = BTreeMap::new();
    // Ends: each turn begins an operation, takes an answer, or reaches a deadline.
    loop {
        while let Some(output) = coordinator.poll_output() {
            match output {
                CoordinatorOutput::Call { id, request, .. } => {
                    calls.push(now);
                    ends.insert((now + MS, id), fate(now, &request));
                }
                CoordinatorOutput::Cancel { id } => ends.retain(|(_, call), _| *call != id),
                CoordinatorOutput::Done { operation, result } => {
                    ended.push((began[&operation], now, result));
                }
                _ => {}
            }
        }
        let next = ends.keys().next().copied();
        let begins = (begun < count).then_some(begun * MS);
        let due = [next.map(|(at, _)| at), begins, coordinator.next_deadline()];
        let Some(at) = due.into_iter().flatten().min() else { break };
        now = now.max(at);
        if begins == Some(at) {
            begun += 1;
            let operation = match kind {
                Kind::Get => coordinator.get(now, key(), VersionVector::new()),
                Kind::Put => coordinator.put_blind(now, key(), Bytes::from_static(b"v")),
            };
            began.insert(operation.unwrap(), now);
        } else if let Some((_, call)) = next.filter(|(ends, _)| *ends == at) {
            let input = match ends.remove(&(at, call)).unwrap() {
                Ok(reply) => CoordinatorInput::Reply { call, reply },
                Err(error) => CoordinatorInput::Failed { call, error },
            };
            coordinator.step(now, input);
        } else {
            coordinator.step(now, CoordinatorInput::Time);
        }
    }
    Load { ended, calls, stats: coordinator.stats() }
}

/// gRPC's retry throttling, the token buckets of the AWS SDKs: where everything fails, calls that
/// are made again are part of what is too much.
#[test]
fn operations_that_all_fail_make_few_calls_again() {
    for kind in [Kind::Get, Kind::Put] {
        let load = load(kind, 2_000, |_, _| Err(CallError::Busy));
        assert!(load.ended.iter().all(|(.., result)| result.is_err()));
        let early = load.calls.iter().filter(|at| **at < 500 * MS).count();
        assert!((1_500..=1_500 + 300).contains(&early), "{early} calls of 500 operations");
        let calls = load.calls.len();
        assert!((3 * 2_000..15 * 2_000).contains(&calls), "{calls} calls of 2,000 operations");
        assert!(load.stats.postponed > 10_000, "{:?}", load.stats);
    }
}

/// All replicas are short of room for a while. Every operation has its answer in time all the same,
/// and later the budget is there again.
#[test]
fn operations_beside_a_shortage_end_well_within_the_budget() {
    for kind in [Kind::Get, Kind::Put] {
        let load = load(kind, 3_000, |now, request| match now / MS {
            0..300 => Err(CallError::Busy),
            2_500..2_520 => Err(CallError::NotSent),
            _ => Ok(answer(request)),
        });
        for (began, ended, result) in &load.ended {
            assert!(result.is_ok(), "{result:?} after {} ns", ended - began);
            let longest = match began / MS {
                // Once half of the time is over: the longest pause, and the calls.
                0..300 => 760 * MS,
                // Within the budget: the failures, and the pause behind the last of them.
                2_490..2_520 => 90 * MS,
                _ => 10 * MS,
            };
            assert!(ended - began <= longest, "{began}: after {} ns", ended - began);
        }
        let early = load.calls.iter().filter(|at| **at < 300 * MS).count();
        assert!((900..=900 + 300).contains(&early), "{early} calls of 300 operations");
    }
}

/// A change of a register asks an acceptor that was not whole again, every second time that it
/// sends its request.
#[test]
fn an_acceptor_that_becomes_whole_is_asked_again() {
    let dot = |counter| Dot::new(Actor::new(9, 1), counter);
    let mut proposer = Proposer::new(dot(1), ProposerConfig::with_acceptors([1, 2, 3])).unwrap();
    let change = paxos::Change::Write(Some(Bytes::from_static(b"v")));
    proposer.propose(0, dot(2), change, TIMEOUT).unwrap();
    let (mut now, mut asked) = (0, Vec::new());
    // Ends: by the deadline of the change.
    let outcome = loop {
        match proposer.poll_output() {
            Some(ProposerOutput::Done { outcome }) => break outcome,
            // 3 is dead.
            Some(ProposerOutput::Send { to: 3, .. }) => {}
            Some(ProposerOutput::Send { to, request }) => {
                let (paxos::Request::Prepare { ballot } | paxos::Request::Accept { ballot, .. }) =
                    request;
                let is_prepare = matches!(request, paxos::Request::Prepare { .. });
                let reply = match is_prepare {
                    _ if to == 2 && now < 150 * MS => paxos::Reply::NotWhole { ballot },
                    true => paxos::Reply::Promise { ballot, accepted: None },
                    false => paxos::Reply::Accepted { ballot },
                };
                asked.push((now / MS, to));
                proposer.step(now, ProposerInput::Reply { from: to, reply });
            }
            Some(other) => panic!("{other:?}"),
            None => {
                now = proposer.next_deadline().unwrap();
                proposer.step(now, ProposerInput::Time);
            }
        }
    };
    assert_eq!(outcome, paxos::Outcome::Applied { version: 1 });
    // The pauses double: the request is sent after 100 ms, to others alone, and after 200 more.
    assert_eq!(asked, [(0, 1), (0, 2), (300, 2), (300, 1), (300, 2)]);
}

/// What a call to a replica comes to.
fn fates() -> impl Strategy<Value = (u64, u8)> {
    (0..80 * MS, 0..6_u8)
}

proptest! {
    /// Whatever the replicas do: no replica has two calls at once (see `run`), nobody is asked in a
    /// tight loop, and what two replicas answer from some time on is had from there.
    #[test]
    fn operations_are_tried_until_their_deadline(
        drawn in proptest::collection::vec(fates(), 40),
        from in 0..600 * MS,
        faulty in 1..=3_u64,
        is_read in any::<bool>(),
        seed in 0..1_000_u64,
    ) {
        let mut at = 0;
        let fate = |now: u64, to: u64, request: &Request| {
            at = (at + 1) % drawn.len();
            let (takes, how) = drawn[at];
            let is_write = matches!(request, Request::Write { .. });
                let is_late = now >= from && to != faulty;
            match how {
                _ if is_late => (takes.min(5 * MS), Ok(answer(request))),
                // Nobody knows what became of it: that ends a write at once.
                0 if !is_write => (takes, Err(CallError::Unknown)),
                1 | 2 => (takes, Ok(Reply::NotWhole)),
                3 => (takes, Ok(answer(request))),
                _ => (takes, Err(CallError::NotSent)),
            }
        };
        let run = run(config(seed), if is_read { Kind::Get } else { Kind::Put }, fate);
        prop_assert!(run.result.is_ok(), "{:?} after {} ns", run.result, run.answered);
        // A call, the longest pause, a call to a primary, and one to another replica.
        let latest = from + (80 + 250 + 5 + 5 + 250 + 80) * MS;
        prop_assert!(run.answered <= latest, "{} ns, from {from} ns", run.answered);
        for to in 1..=3 {
            let calls = run.to(to);
            let same = |one: &Called, other: &Called| {
                std::mem::discriminant(&one.request) == std::mem::discriminant(&other.request)
            };
            for pair in calls.windows(2).filter(|pair| !pair[0].is_good && same(pair[0], pair[1])) {
                prop_assert!(pair[1].at - pair[0].ended >= 5 * MS, "asked again at once");
            }
        }
    }
}
