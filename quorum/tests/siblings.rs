//! Siblings against the naive model: sets of events that name what they replace.

use std::collections::{BTreeMap, BTreeSet};

use voussoir_quorum::version::{Actor, Dot, PutError, Siblings, VersionVector};
use voussoir_sim::{Rng, Situations};

static SITUATIONS: [&str; 8] = [
    "three siblings or more",
    "siblings of one actor",
    "a write with a context of another replica",
    "a delete that leaves a value it has not seen",
    "a tombstone merged over a value",
    "a write after a tombstone",
    "a store lost, a new incarnation",
    "a merge that changes nothing",
];

/// A write or a delete.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    /// None for a delete.
    dot: Option<Dot>,
    replaces: BTreeSet<Dot>,
}

/// All events that a replica knows.
#[derive(Clone, Default)]
struct Naive(BTreeSet<Event>);

impl Naive {
    fn seen(&self) -> BTreeSet<Dot> {
        let of =
            |event: &Event| event.replaces.iter().copied().chain(event.dot).collect::<Vec<_>>();
        self.0.iter().flat_map(of).collect()
    }

    fn values(&self) -> BTreeSet<Dot> {
        let replaced: BTreeSet<Dot> = self.0.iter().flat_map(|e| e.replaces.clone()).collect();
        self.0.iter().filter_map(|e| e.dot).filter(|dot| !replaced.contains(dot)).collect()
    }
}

struct Replica {
    actor: Actor,
    siblings: Siblings<Dot>,
    naive: Naive,
}

impl Replica {
    fn check(&self) {
        let values: BTreeSet<Dot> = self.siblings.iter().map(|(dot, _)| dot).collect();
        assert_eq!(values, self.naive.values());
        let context: VersionVector = self.naive.seen().into_iter().collect();
        assert_eq!(self.siblings.context(), &context);
        assert!(self.siblings.iter().all(|(dot, value)| dot == *value));
    }
}

struct Life {
    rng: Rng,
    replicas: Vec<Replica>,
    /// What each client has read, as a context and as the model has it.
    clients: Vec<(VersionVector, BTreeSet<Dot>, usize)>,
    counters: BTreeMap<Actor, u64>,
}

impl Life {
    fn new(seed: u64) -> Self {
        let replica = |node| Replica {
            actor: Actor::new(node, 1),
            siblings: Siblings::new(),
            naive: Naive::default(),
        };
        let clients = (0..3).map(|_| (VersionVector::new(), BTreeSet::new(), 0)).collect();
        let (replicas, counters) = ((1..=3).map(replica).collect(), BTreeMap::new());
        Self { rng: Rng::new(seed), replicas, clients, counters }
    }

    fn step(&mut self, situations: &Situations) {
        let at = self.rng.below(3) as usize;
        let client = self.rng.below(3) as usize;
        match self.rng.below(10) {
            0..=1 => {
                let replica = &self.replicas[at];
                let context = replica.siblings.context().clone();
                self.clients[client] = (context, replica.naive.seen(), at);
            }
            2..=4 => self.write(at, client, situations),
            5 => self.delete(at, client, situations),
            6 if self.rng.chance(100_000) => {
                let replica = &mut self.replicas[at];
                replica.actor.incarnation += 1;
                (replica.siblings, replica.naive) = (Siblings::new(), Naive::default());
                situations.reached("a store lost, a new incarnation");
            }
            _ => self.merge(at, situations),
        }
        self.replicas.iter().for_each(Replica::check);
    }

    fn write(&mut self, at: usize, client: usize, situations: &Situations) {
        let is_blind = self.rng.chance(200_000);
        let (context, replaces, read_at) = if is_blind {
            (VersionVector::new(), BTreeSet::new(), at)
        } else {
            self.clients[client].clone()
        };
        let replica = &mut self.replicas[at];
        let counter = self.counters.entry(replica.actor).or_default();
        *counter += 1;
        let dot = Dot::new(replica.actor, *counter);
        if read_at != at {
            situations.reached("a write with a context of another replica");
        }
        if replica.siblings.is_tombstone() {
            situations.reached("a write after a tombstone");
        }
        replica.siblings.put(&context, dot, dot).unwrap();
        replica.naive.0.insert(Event { dot: Some(dot), replaces });
        if replica.siblings.len() >= 3 {
            situations.reached("three siblings or more");
        }
        if replica.siblings.iter().filter(|(dot, _)| dot.actor == replica.actor).count() > 1 {
            situations.reached("siblings of one actor");
        }
        let again = replica.siblings.put(&context, dot, dot);
        assert_eq!(again, Err(PutError::DotUsed { dot }), "a dot is used once");
    }

    fn delete(&mut self, at: usize, client: usize, situations: &Situations) {
        let (context, replaces, _) = self.clients[client].clone();
        let replica = &mut self.replicas[at];
        replica.siblings.delete(&context);
        replica.naive.0.insert(Event { dot: None, replaces });
        if !context.is_empty() && !replica.siblings.is_empty() {
            situations.reached("a delete that leaves a value it has not seen");
        }
    }

    fn merge(&mut self, to: usize, situations: &Situations) {
        let from = (to + 1 + self.rng.below(2) as usize) % 3;
        let (other, events) =
            (self.replicas[from].siblings.clone(), self.replicas[from].naive.clone());
        let replica = &mut self.replicas[to];
        if other.is_tombstone() && !replica.siblings.is_empty() {
            situations.reached("a tombstone merged over a value");
        }
        let before = replica.siblings.clone();
        let includes = replica.siblings.includes(&other);
        let mut mirrored = other.clone();
        mirrored.merge(replica.siblings.clone());
        replica.siblings.merge(other.clone());
        replica.naive.0.extend(events.0);
        assert_eq!(mirrored, replica.siblings, "commutative");
        assert_eq!(includes, before == replica.siblings, "`includes` foretells the merge");
        if includes {
            situations.reached("a merge that changes nothing");
        }
        let merged = replica.siblings.clone();
        replica.siblings.merge(other);
        assert_eq!(merged, replica.siblings, "idempotent");
    }
}

#[test]
fn siblings_agree_with_causal_histories() {
    let situations = Situations::new(&SITUATIONS);
    let lives = std::env::var("VOUSSOIR_LIVES").map_or(2_000, |n| n.parse().unwrap());
    for seed in 0..lives {
        let mut life = Life::new(seed);
        let run = std::panic::AssertUnwindSafe(|| {
            (0..60).for_each(|_| life.step(&situations));
        });
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("life {seed} fails");
            std::panic::resume_unwind(panic);
        }
    }
    situations.assert_all_reached();
}

/// riak_kv #679: after a loss, the old incarnation's counters begin anew and new writes look old.
#[test]
fn an_actor_that_forgot_its_dots_is_noticed() {
    let a = Actor::new(1, 1);
    let mut others = Siblings::new();
    others.put_blind(Dot::new(a, 5), "old").unwrap();
    let mut lost = Siblings::new();
    lost.put_blind(Dot::new(a, 1), "new").unwrap();
    lost.merge(others.clone());
    let values: Vec<_> = lost.values().collect();
    assert_eq!(values, [&"old"], "with the old incarnation the new write vanishes");
    assert!(matches!(others.put_blind(Dot::new(a, 5), "new"), Err(PutError::DotUsed { .. })));
    let mut lost = Siblings::new();
    lost.put_blind(Dot::new(Actor::new(1, 2), 1), "new").unwrap();
    lost.merge(others);
    assert_eq!(lost.len(), 2, "with a new incarnation both stay");
}

/// riak_kv, the doomstone: a tombstone that comes late does not swallow a key written anew.
#[test]
fn a_late_tombstone_spares_a_key_that_was_written_anew() {
    let a = Actor::new(1, 1);
    let mut tombstone = Siblings::new();
    tombstone.put_blind(Dot::new(a, 7), "old").unwrap();
    let seen = tombstone.context().clone();
    tombstone.delete(&seen);
    assert!(tombstone.is_tombstone());
    // The tombstone was collected here; counters run on over all keys of the store.
    let mut anew = Siblings::new();
    anew.put_blind(Dot::new(a, 8), "new").unwrap();
    anew.merge(tombstone);
    assert_eq!(anew.values().collect::<Vec<_>>(), [&"new"]);
}

#[test]
fn a_dot_out_of_range_is_refused() {
    let mut siblings = Siblings::new();
    for counter in [0, Dot::MAX_COUNTER + 1, u64::MAX] {
        let dot = Dot::new(Actor::new(1, 1), counter);
        assert_eq!(siblings.put_blind(dot, ()), Err(PutError::InvalidDot { dot }));
    }
    assert!(siblings.context().is_empty());
}
