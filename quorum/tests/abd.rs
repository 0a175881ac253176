//! Registers of Attiya, Bar-Noy and Dolev, step by step; `lives` has them among faults.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use voussoir_quorum::abd::*;
use voussoir_quorum::table::Outcome;
use voussoir_quorum::version::{Actor, Dot};

fn dot(node: u64, counter: u64) -> Dot {
    Dot::new(Actor::new(node, 1), counter)
}

fn key() -> Bytes {
    Bytes::from_static(b"k")
}

fn versioned(number: u64, value: &'static str) -> Versioned {
    Versioned { tag: Tag { number, writer: dot(1, 1) }, value: Some(value.into()) }
}

fn coordinator(n: u64) -> Coordinator {
    Coordinator::new(AbdConfig::with_replicas(0..n)).unwrap()
}

fn poll(coordinator: &mut Coordinator) -> Vec<CoordinatorOutput> {
    std::iter::from_fn(|| coordinator.poll_output()).collect()
}

/// The call and the replicas of the requests among the outputs.
fn called(outputs: &[CoordinatorOutput]) -> (u64, Vec<u64>) {
    let mut to = Vec::new();
    let mut call = 0;
    for output in outputs {
        let CoordinatorOutput::Call { id, to: replica, .. } = output else { continue };
        (call, to) = (*id, [to, vec![*replica]].concat());
    }
    (call, to)
}

fn reply(coordinator: &mut Coordinator, now: u64, call: u64, from: u64, reply: Reply) {
    coordinator.step(now, CoordinatorInput::Reply { call, from, reply });
}

/// A read answers at once if a majority agrees, and otherwise when a majority holds the result.
#[test]
fn a_read_is_written_back_unless_a_majority_holds_it() {
    let mut coordinator = coordinator(3);
    let agreed = coordinator.read(0, key()).unwrap();
    let (call, to) = called(&poll(&mut coordinator));
    assert_eq!(to, [0, 1, 2]);
    for from in [0, 2] {
        reply(&mut coordinator, 1, call, from, Reply::Value { versioned: versioned(4, "v") });
    }
    let done = CoordinatorOutput::Done { operation: agreed, result: Ok(versioned(4, "v")) };
    assert_eq!(poll(&mut coordinator), [done]);

    let split = coordinator.read(2, key()).unwrap();
    let (call, _) = called(&poll(&mut coordinator));
    reply(&mut coordinator, 3, call, 0, Reply::Value { versioned: versioned(4, "v") });
    // Of another replica than the configured ones, and a tag that nobody can have made.
    reply(&mut coordinator, 3, call, 9, Reply::Value { versioned: versioned(9, "w") });
    let forged = versioned(Tag::MAX_NUMBER + 1, "w");
    reply(&mut coordinator, 3, call, 1, Reply::Value { versioned: forged });
    assert_eq!(poll(&mut coordinator), []);
    reply(&mut coordinator, 3, call, 1, Reply::Value { versioned: versioned(5, "w") });
    let outputs = poll(&mut coordinator);
    let (back, to) = called(&outputs);
    assert_eq!((back != call, to), (true, vec![0, 2]), "not to the one that holds it");
    reply(&mut coordinator, 4, call, 2, Reply::Stored);
    reply(&mut coordinator, 4, back, 2, Reply::NotWhole);
    reply(&mut coordinator, 4, back, 1, Reply::Stored);
    assert_eq!(poll(&mut coordinator), [], "one holder, however often it says so");
    reply(&mut coordinator, 5, back, 0, Reply::Stored);
    let done = CoordinatorOutput::Done { operation: split, result: Ok(versioned(5, "w")) };
    assert_eq!(poll(&mut coordinator), [done]);
    assert_eq!(coordinator.next_deadline(), None);
}

/// A write goes above what a majority holds, is sent again, and says what is known at its end.
#[test]
fn a_write_is_sent_again_and_ends_unknown() {
    let mut coordinator = coordinator(3);
    let write = coordinator.write(0, key(), dot(7, 1), Some("x".into())).unwrap();
    let (call, _) = called(&poll(&mut coordinator));
    reply(&mut coordinator, 0, call, 0, Reply::Value { versioned: Versioned::NONE });
    reply(&mut coordinator, 0, call, 1, Reply::Value { versioned: versioned(4, "v") });
    let outputs = poll(&mut coordinator);
    let (store, to) = called(&outputs);
    assert_eq!(to, [0, 1, 2]);
    let expected = Versioned { tag: Tag { number: 5, writer: dot(7, 1) }, value: Some("x".into()) };
    let is_stored = |output: &CoordinatorOutput| {
        let CoordinatorOutput::Call { request: Request::Store { versioned, .. }, .. } = output
        else {
            return false;
        };
        *versioned == expected
    };
    assert!(outputs.iter().all(is_stored));
    reply(&mut coordinator, 1, store, 2, Reply::Stored);
    let resend = coordinator.next_deadline().unwrap();
    assert_eq!(resend, 100_000_000);
    coordinator.step(resend, CoordinatorInput::Time);
    assert_eq!(
        called(&poll(&mut coordinator)),
        (store, vec![0, 1]),
        "not to the one that answered"
    );
    // The answer comes behind the deadline, before the timer.
    reply(&mut coordinator, 1_000_000_000, store, 0, Reply::Stored);
    let error = OperationError::WriteUnknown { holders: 1, needed: 2 };
    let done = CoordinatorOutput::Done { operation: write, result: Err(error) };
    assert_eq!(poll(&mut coordinator), [done]);
    assert_eq!((error.outcome(), error.is_retryable()), (Outcome::Unknown, false));
}

#[test]
fn an_operation_that_no_majority_answers_has_changed_nothing() {
    let mut coordinator = coordinator(3);
    let write = coordinator.write(0, key(), dot(7, 1), None).unwrap();
    let (call, _) = called(&poll(&mut coordinator));
    reply(&mut coordinator, 0, call, 0, Reply::NotWhole);
    reply(&mut coordinator, 0, call, 1, Reply::Value { versioned: Versioned::NONE });
    coordinator.step(1_000_000_000, CoordinatorInput::Time);
    let error = OperationError::Unavailable { answered: 1, needed: 2 };
    assert_eq!(error.outcome(), Outcome::NotApplied);
    let done = CoordinatorOutput::Done { operation: write, result: Err(error) };
    assert_eq!(poll(&mut coordinator), [done]);
}

#[test]
fn a_register_without_a_greater_tag_refuses_writes_and_answers_reads() {
    let mut coordinator = coordinator(1);
    let last = versioned(Tag::MAX_NUMBER, "v");
    let write = coordinator.write(0, key(), dot(7, 1), None).unwrap();
    let read = coordinator.read(0, key()).unwrap();
    for output in poll(&mut coordinator) {
        let CoordinatorOutput::Call { id, .. } = output else { panic!() };
        reply(&mut coordinator, 0, id, 0, Reply::Value { versioned: last.clone() });
    }
    let outputs = poll(&mut coordinator);
    let exhausted = Err(OperationError::Exhausted);
    assert!(outputs.contains(&CoordinatorOutput::Done { operation: write, result: exhausted }));
    assert!(outputs.contains(&CoordinatorOutput::Done { operation: read, result: Ok(last) }));
}

#[test]
fn what_cannot_be_written_is_rejected_before_anything_is_sent() {
    let mut coordinator = coordinator(1);
    let invalid = coordinator.write(0, key(), dot(7, 0), None);
    assert!(matches!(invalid, Err(Rejected::Invalid { field: "dot", .. })));
    let long = Bytes::from(vec![0; Replica::MAX_VALUE_BYTES + 1]);
    let invalid = coordinator.write(0, key(), dot(7, 1), Some(long.clone()));
    assert!(matches!(invalid, Err(Rejected::Invalid { field: "value", .. })));
    assert_eq!(coordinator.poll_output(), None);
    // A peer that sends it nevertheless is not answered, and nothing is stored.
    let mut replica = Replica::recover([], true);
    let long = Versioned { value: Some(long), ..versioned(1, "") };
    for versioned in [long, versioned(0, "v"), versioned(Tag::MAX_NUMBER + 1, "v")] {
        replica.request(1, Request::Store { key: key(), versioned }).unwrap();
    }
    assert_eq!((replica.poll_output(), replica.iter().count()), (None, 0));
}

/// No answer shows or promises what a crash could take.
#[test]
fn a_replica_answers_when_what_it_says_is_durable() {
    let mut replica = Replica::recover([], true);
    let request = Request::Store { key: key(), versioned: versioned(2, "v") };
    replica.request(1, request.clone()).unwrap();
    let Some(ReplicaOutput::Persist { id, .. }) = replica.poll_output() else { panic!() };
    replica.request(2, Request::Get { key: key() }).unwrap();
    replica.request(3, request).unwrap();
    assert_eq!(replica.poll_output(), None);
    replica.step(ReplicaInput::Persisted { id });
    let answers: Vec<_> = std::iter::from_fn(|| replica.poll_output()).collect();
    let value = Reply::Value { versioned: versioned(2, "v") };
    let expected = [(1, Reply::Stored), (2, value), (3, Reply::Stored)];
    assert_eq!(answers, expected.map(|(id, reply)| ReplicaOutput::Reply { id, reply }));
    // A smaller tag is older, and what is there answers for it.
    let older = Request::Store { key: key(), versioned: versioned(1, "u") };
    replica.request(4, older).unwrap();
    assert_eq!(replica.poll_output(), Some(ReplicaOutput::Reply { id: 4, reply: Reply::Stored }));
    let mut lost = Replica::recover([], false);
    lost.request(5, Request::Get { key: key() }).unwrap();
    let not_whole = ReplicaOutput::Reply { id: 5, reply: Reply::NotWhole };
    assert_eq!(lost.poll_output(), Some(not_whole));
    lost.rebuilt();
    assert!(lost.is_whole());
}

proptest! {
    #[test]
    fn a_configuration_that_validates_works(
        n in prop_oneof![0..5_u64, Just(31), Just(32)],
        times in proptest::array::uniform2(prop_oneof![0..3_u64, Just(3_600_000), Just(3_600_001)]),
        max_operations in prop_oneof![0..3_usize, Just(1_000_000), Just(1_000_001)],
    ) {
        let mut config = AbdConfig::with_replicas(0..n);
        [config.timeout, config.resend_after] = times.map(Duration::from_millis);
        config.max_operations = max_operations;
        let is_valid = config.validate().is_ok();
        let Ok(mut coordinator) = Coordinator::new(config.clone()) else {
            prop_assert!(!is_valid);
            return Ok(());
        };
        prop_assert!(is_valid);
        for at in 0..4 {
            let begun = coordinator.read(u64::MAX - 1, key());
            prop_assert_eq!(begun.is_ok(), at < max_operations, "{:?}", begun);
        }
        prop_assert_eq!(poll(&mut coordinator).len(), n as usize * max_operations.min(4));
        coordinator.step(u64::MAX, CoordinatorInput::Time);
        prop_assert_eq!(coordinator.next_deadline(), None, "every operation has ended");
        config.replicas.push(0);
        prop_assert_eq!(config.validate().is_ok(), n == 0);
    }
}
