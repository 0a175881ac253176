//! Digest reads: one replica sends its state, the others say whether theirs is the same.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use voussoir_quorum::merkle::HashKey;
use voussoir_quorum::table::*;
use voussoir_quorum::version::{Actor, Dot, DotSource, Siblings, VersionVector};

fn key() -> Bytes {
    Bytes::from_static(b"k")
}

/// The state after one write at a replica.
fn state(replica: u64, len: usize) -> Siblings<Bytes> {
    let mut state = Siblings::new();
    let dot = Dot::new(Actor::new(replica, 1), 1);
    state.put_blind(dot, Bytes::from(vec![7; len])).unwrap();
    state
}

fn coordinator(read: Level, min_digest_bytes: u32) -> Coordinator {
    let mut config = TableConfig::with_replicas([1, 2, 3]);
    (config.read, config.min_digest_bytes) = (read, min_digest_bytes);
    Coordinator::new(config).unwrap().with_digest_key(HashKey::new([9; 16]))
}

/// What a coordinator does for one read, answered by hand.
struct Read {
    coordinator: Coordinator,
    /// Calls that were made and not yet answered, by replica.
    calls: BTreeMap<u64, (u64, Request)>,
    /// In the order in which the replicas were asked.
    asked: Vec<u64>,
    done: Option<Result<Value, OperationError>>,
}

impl Read {
    fn begin(mut coordinator: Coordinator) -> Self {
        coordinator.get(0, key(), VersionVector::new()).unwrap();
        let (calls, asked) = (BTreeMap::new(), Vec::new());
        let mut read = Self { coordinator, calls, asked, done: None };
        read.drain();
        read
    }

    fn drain(&mut self) {
        while let Some(output) = self.coordinator.poll_output() {
            match output {
                CoordinatorOutput::Call { id, to, request } => {
                    self.asked.push(to);
                    self.calls.insert(to, (id, request));
                }
                CoordinatorOutput::Cancel { id } => self.calls.retain(|_, (call, _)| *call != id),
                CoordinatorOutput::Done { result, .. } => self.done = Some(result),
                _ => {}
            }
        }
    }

    /// Answers the call to a replica that has this state, as that replica does.
    fn answer(&mut self, from: u64, state: &Siblings<Bytes>) {
        let (call, request) = self.calls.remove(&from).expect("it was asked");
        let reply = match request {
            Request::Get { .. } => Reply::Value { state: state.clone() },
            Request::Digest { digester, .. } => match digester.digest(state) {
                Some(digest) => Reply::Digest { digest },
                None => Reply::Value { state: state.clone() },
            },
            Request::Merge { .. } => Reply::Merged,
            other => panic!("{other:?}"),
        };
        self.step(CoordinatorInput::Reply { call, reply });
    }

    fn fail(&mut self, from: u64) {
        let (call, _) = self.calls.remove(&from).expect("it was asked");
        self.step(CoordinatorInput::Failed { call, error: CallError::Unknown });
    }

    fn step(&mut self, input: CoordinatorInput) {
        self.coordinator.step(1, input);
        self.drain();
    }

    fn is_digest(&self, to: u64) -> bool {
        matches!(self.calls[&to].1, Request::Digest { .. })
    }

    fn result(&self) -> &Value {
        self.done.as_ref().expect("it has ended").as_ref().expect("it has a result")
    }
}

#[test]
fn a_digest_that_matches_counts_as_the_state() {
    let state = state(1, 5_000);
    for first in [0, 1] {
        let mut read = Read::begin(coordinator(Level::Quorum, 1_024));
        let (whole, compared) = (read.asked[0], read.asked[1]);
        assert!(!read.is_digest(whole) && read.is_digest(compared));
        // Whichever of the two comes first.
        for from in if first == 0 { [whole, compared] } else { [compared, whole] } {
            assert!(read.done.is_none());
            read.answer(from, &state);
        }
        assert_eq!((read.result(), read.asked.len()), (&state, 2));
        let stats = read.coordinator.stats();
        assert_eq!((stats.digests, stats.unmatched_digests), (1, 0));
        assert_eq!((stats.divergent_reads, stats.operations), (0, 0));
    }
}

#[test]
fn a_state_with_another_digest_is_fetched_and_repaired() {
    let (old, new) = (state(1, 5_000), state(2, 5_000));
    let merged = {
        let mut merged = old.clone();
        merged.merge(new.clone());
        merged
    };
    for is_whole_first in [true, false] {
        let mut read = Read::begin(coordinator(Level::Quorum, 1_024));
        let (whole, compared) = (read.asked[0], read.asked[1]);
        let order = if is_whole_first { [whole, compared] } else { [compared, whole] };
        for from in order {
            read.answer(from, if from == whole { &old } else { &new });
        }
        assert!(read.done.is_none(), "a digest that differs counts for nothing");
        assert_eq!(read.asked, [whole, compared, compared]);
        assert!(!read.is_digest(compared));
        assert_eq!(read.coordinator.stats().unmatched_digests, 1);
        read.answer(compared, &new);
        // Both lack something: the read waits until W replicas hold the merge.
        let stats = read.coordinator.stats();
        assert_eq!((stats.divergent_reads, stats.blocking_repairs), (1, 1));
        assert!(read.done.is_none());
        read.answer(whole, &merged);
        assert!(read.done.is_none());
        read.answer(compared, &merged);
        assert_eq!(read.result(), &merged);
    }
}

/// The digest of a third replica may be that of a state that came from the second.
#[test]
fn a_digest_is_compared_with_each_state_that_has_come() {
    let (old, new) = (state(1, 5_000), state(2, 5_000));
    let mut read = Read::begin(coordinator(Level::All, 0));
    let asked = read.asked.clone();
    assert_eq!(asked.iter().filter(|to| read.is_digest(**to)).count(), 2);
    read.answer(asked[0], &old);
    read.answer(asked[1], &new);
    read.answer(asked[1], &new);
    read.answer(asked[2], &new);
    assert_eq!(read.coordinator.stats().unmatched_digests, 1);
    assert_eq!(read.coordinator.stats().divergent_reads, 1, "all three have answered");
}

/// Only one replica was asked for its state: another one stands in for it.
#[test]
fn the_replica_that_stands_in_for_a_failed_one_sends_its_state() {
    let state = state(1, 5_000);
    let mut read = Read::begin(coordinator(Level::Quorum, 0));
    let (whole, compared) = (read.asked[0], read.asked[1]);
    read.answer(compared, &state);
    read.fail(whole);
    let third = read.asked[2];
    assert!(third != whole && third != compared && !read.is_digest(third));
    read.answer(third, &state);
    assert_eq!((read.result(), read.asked.len()), (&state, 3));
}

#[test]
fn a_fetch_that_fails_is_made_good_by_another_replica() {
    let (old, new) = (state(1, 5_000), state(2, 5_000));
    let mut read = Read::begin(coordinator(Level::Quorum, 0));
    let (whole, compared) = (read.asked[0], read.asked[1]);
    read.answer(whole, &old);
    read.answer(compared, &new);
    read.fail(compared);
    let third = read.asked[3];
    assert!(!read.is_digest(third));
    read.answer(third, &old);
    assert_eq!(read.result(), &old, "R replicas have answered with their states");
    // And if that one fails as well, they are asked again, and the read says at last that one
    // replica has answered.
    let mut read = Read::begin(coordinator(Level::Quorum, 0));
    read.answer(whole_of(&read), &old);
    let compared = read.asked[1];
    read.answer(compared, &new);
    read.fail(compared);
    read.fail(read.asked[3]);
    assert!(read.done.is_none() && read.calls.is_empty());
    read.coordinator.step(40_000_000, CoordinatorInput::Time);
    read.drain();
    assert_eq!(read.calls.len(), 2);
    assert!(read.calls.keys().all(|to| !read.is_digest(*to)));
    read.coordinator.step(1_000_000_000, CoordinatorInput::Time);
    read.drain();
    let unavailable = OperationError::Unavailable { answered: 1, needed: 2 };
    assert_eq!(read.done, Some(Err(unavailable)));
}

fn whole_of(read: &Read) -> u64 {
    read.asked[0]
}

#[test]
fn short_states_are_sent_as_they_are() {
    let state = state(1, 900);
    let mut read = Read::begin(coordinator(Level::Quorum, 1_024));
    let (whole, compared) = (read.asked[0], read.asked[1]);
    read.answer(compared, &state);
    read.answer(whole, &state);
    assert_eq!((read.result(), read.asked.len()), (&state, 2));
    assert_eq!(read.coordinator.stats().digests, 0);
    // One replica alone has nothing to be compared with.
    let mut config = TableConfig::with_replicas([1, 2, 3]);
    (config.read, config.write, config.min_digest_bytes) = (Level::One, Level::All, 0);
    let read = Read::begin(Coordinator::new(config).unwrap());
    assert!(!read.is_digest(whole_of(&read)));
}

/// A peer that answers every question with a digest ends nothing and is asked twice, not for ever.
#[test]
fn a_digest_that_was_not_asked_for_is_no_answer() {
    let state = state(1, 5_000);
    let mut read = Read::begin(coordinator(Level::Quorum, 0));
    let (whole, compared) = (read.asked[0], read.asked[1]);
    read.answer(whole, &state);
    for _ in 0..2 {
        let (call, _) = read.calls.remove(&compared).unwrap();
        read.step(CoordinatorInput::Reply { call, reply: Reply::Digest { digest: 5 } });
    }
    assert!(!read.calls.contains_key(&compared));
    assert!(read.done.is_none());
    let third = read.asked[3];
    read.answer(third, &state);
    assert_eq!(read.result(), &state);
}

/// A digest shows no more than a read does: nothing that is not durable.
#[test]
fn a_digest_waits_for_the_record_of_its_state() {
    let mut replica = Replica::recover(DotSource::recover(Actor::new(1, 1), 0, []), [], true);
    let digester = Digester { key: HashKey::new([1; 16]), min_bytes: 0 };
    let (seen, value) = (VersionVector::new(), Some(Bytes::from_static(b"v")));
    replica.request(1, Request::Write { key: key(), seen, value }).unwrap();
    replica.request(2, Request::Digest { key: key(), digester }).unwrap();
    let Some(ReplicaOutput::Persist { id, state, .. }) = replica.poll_output() else { panic!() };
    assert_eq!(replica.poll_output(), None);
    replica.step(ReplicaInput::Persisted { id });
    assert!(matches!(replica.poll_output(), Some(ReplicaOutput::Reply { id: 1, .. })));
    let digest = digester.digest(&state).unwrap();
    let reply = Reply::Digest { digest };
    assert_eq!(replica.poll_output(), Some(ReplicaOutput::Reply { id: 2, reply }));
}

fn siblings() -> impl Strategy<Value = Siblings<Bytes>> {
    let dot =
        || (0..3_u64, 1..=4_u64).prop_map(|(node, counter)| Dot::new(Actor::new(node, 1), counter));
    // A dot has one value, as in a table.
    let values = proptest::collection::btree_set(dot(), 0..4).prop_map(|dots| {
        let value = |dot: Dot| Bytes::from(format!("{dot:?}"));
        dots.into_iter().map(|dot| (dot, value(dot))).collect::<BTreeMap<_, _>>()
    });
    (proptest::collection::vec(dot(), 0..4), values).prop_map(|(seen, values)| {
        Siblings::from_parts(seen.into_iter().collect::<VersionVector>(), values)
    })
}

proptest! {
    /// Digests are equal where states are, in whatever order they were merged, and nowhere else: a
    /// tombstone and the value that it deletes have one context.
    #[test]
    fn states_have_one_digest_if_they_are_equal(
        parts in proptest::collection::vec(siblings(), 2..5),
    ) {
        let digester = Digester { key: HashKey::new([3; 16]), min_bytes: 0 };
        let merge = |parts: &mut dyn Iterator<Item = &Siblings<Bytes>>| {
            let mut all = Siblings::new();
            parts.for_each(|part| all.merge(part.clone()));
            all
        };
        let (one, other) = (merge(&mut parts.iter()), merge(&mut parts.iter().rev()));
        prop_assert_eq!(digester.digest(&one), digester.digest(&other));
        for part in &parts {
            let is_equal = digester.digest(part) == digester.digest(&one);
            prop_assert_eq!(is_equal, *part == one);
            let mut deleted = part.clone();
            deleted.delete(&part.context().clone());
            let is_equal = digester.digest(part) == digester.digest(&deleted);
            prop_assert_eq!(is_equal, part.is_empty());
        }
        // Of a state that is as long as the shortest one with a digest, and of one that is shorter.
        let bytes = voussoir_quorum::version::codec::encode_siblings(&one).len() as u32;
        let with = |min_bytes| Digester { min_bytes, ..digester }.digest(&one);
        prop_assert!(with(bytes).is_some() && with(bytes + 1).is_none());
    }
}
