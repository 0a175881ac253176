//! CRDTs as values: their bytes, and tables of them in which writes and repairs are lost, repeated
//! and reordered.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;
use voussoir_quorum::crdt::codec::{Encoded, Limits, merge_siblings};
use voussoir_quorum::crdt::*;
use voussoir_quorum::version::codec::DecodeError;
use voussoir_quorum::version::{Actor, Dot, Siblings, Timestamp};
use voussoir_sim::{Rng, Situations};

type Nested = OrMap<Bytes, Map<Bytes, Flag>>;

fn actor(node: u64) -> Actor {
    Actor::new(node, 1)
}

fn byte(value: u8) -> Bytes {
    Bytes::copy_from_slice(&[value])
}

/// States and deltas with gaps: replicas change a value, and some of the deltas arrive.
fn causal<S: codec::EncodedStore>(
    seed: u64,
    change: impl Fn(&mut Rng, &S, Dot) -> Change<S>,
) -> Vec<Causal<S>> {
    let mut rng = Rng::new(seed);
    let mut replicas = vec![Causal::<S>::new(); 3];
    let mut all = Vec::new();
    for _ in 0..12 {
        let at = rng.below(3) as usize;
        let mut chosen = rng.clone();
        let delta =
            replicas[at].update(actor(at as u64), |store, dot| change(&mut chosen, store, dot));
        rng = chosen;
        let to = rng.below(3) as usize;
        replicas[to].merge(&delta);
        all.push(delta);
    }
    all.extend(replicas);
    all
}

fn check<C: Encoded + PartialEq + std::fmt::Debug>(values: &[C], rng: &mut Rng) {
    let limits = Limits::default();
    for value in values {
        let bytes = value.encode();
        assert_eq!(C::decode(bytes.clone(), &limits).as_ref(), Ok(value));
        for cut in 0..bytes.len() {
            assert!(C::decode(bytes.slice(..cut), &limits).is_err(), "{cut} bytes of {value:?}");
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert_eq!(C::decode(longer.into(), &limits), Err(DecodeError::Trailing));
        // Whatever is accepted has one encoding, and can be merged.
        for _ in 0..40 {
            let mut changed = bytes.to_vec();
            for _ in 0..rng.between(1, 3) {
                let at = rng.below(changed.len() as u64) as usize;
                changed[at] =
                    if rng.chance(500_000) { rng.below(4) as u8 } else { rng.next_u64() as u8 };
            }
            let changed = Bytes::from(changed);
            if let Ok(decoded) = C::decode(changed.clone(), &limits) {
                assert_eq!(decoded.encode(), changed);
                let (mut one, mut two) = (decoded.clone_of(), value.clone_of());
                one.merge(value);
                two.merge(&decoded);
            }
        }
    }
}

/// [`Crdt`] does not ask for `Clone`: a merge into a new value is one.
trait CloneOf: Encoded {
    fn clone_of(&self) -> Self {
        let mut new = Self::default();
        new.merge(self);
        new
    }
}

impl<C: Encoded> CloneOf for C {}

#[test]
fn what_is_encoded_is_decoded_and_nothing_else_is_accepted() {
    for seed in 0..30 {
        let mut rng = Rng::stream(seed, 1);
        let flags =
            causal(
                seed,
                |rng, flag: &Flag, dot| {
                    if rng.chance(600_000) { flag.enable(dot) } else { flag.disable() }
                },
            );
        check(&flags, &mut rng);
        check(
            &causal(seed, |rng, values: &Values<Bytes>, dot| {
                values.write(byte(rng.below(9) as u8), dot)
            }),
            &mut rng,
        );
        let sets = causal(seed, |rng, set: &Set<Bytes>, dot| {
            let element = byte(rng.below(3) as u8);
            if rng.chance(700_000) { set.add(element, dot) } else { set.remove(&element) }
        });
        check(&sets, &mut rng);
        let maps: Vec<Nested> = causal(seed, |rng, map: &Map<Bytes, Map<Bytes, Flag>>, dot| {
            let (key, inner) = (byte(rng.below(2) as u8), byte(rng.below(2) as u8));
            if rng.chance(800_000) {
                map.update(key, |map| map.update(inner, |flag| flag.enable(dot)))
            } else {
                map.remove(&key)
            }
        });
        check(&maps, &mut rng);
        let (mut grow, mut both) = (GCounter::new(), PnCounter::new());
        let mut register = LwwRegister::new();
        for _ in 0..rng.below(5) {
            let node = rng.below(4);
            grow.add(actor(node), 1 + rng.next_u64() % 1_000).unwrap();
            both.add(actor(node), rng.next_u64().cast_signed() >> 20).unwrap();
            let timestamp = Timestamp { physical: rng.below(9), logical: 2, actor: actor(node) };
            register.write(timestamp, byte(node as u8));
        }
        check(&[grow], &mut rng);
        check(&[both], &mut rng);
        check(&[register], &mut rng);
    }
}

#[test]
fn golden_bytes_of_a_counter_and_a_set() {
    let mut counter = GCounter::new();
    counter.add(Actor::new(3, 2), 5).unwrap();
    let mut expected = vec![1, 1, 0, 0, 1, 0, 0, 0];
    expected.extend([3_u64, 2, 5].iter().flat_map(|n| n.to_le_bytes()));
    assert_eq!(counter.encode(), expected);
    let mut set: OrSet<Bytes> = OrSet::new();
    set.update(Actor::new(3, 2), |set, dot| set.add(byte(b'x'), dot));
    let mut expected = vec![1, 4, 0, 0, 3, 1, 0, 0, 0];
    expected.extend([3_u64, 2, 1].iter().flat_map(|n| n.to_le_bytes()));
    expected.extend([0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, b'x', 1, 0, 0, 0]);
    expected.extend([3_u64, 2, 1].iter().flat_map(|n| n.to_le_bytes()));
    assert_eq!(set.encode(), expected);
}

#[test]
fn what_no_replica_can_have_is_refused_by_name() {
    let mut set: OrSet<Bytes> = OrSet::new();
    set.update(actor(1), |set, dot| set.add(byte(b'x'), dot));
    let bytes = set.encode();
    let with = |at: usize, byte: u8| {
        let mut changed = bytes.to_vec();
        changed[at] = byte;
        OrSet::<Bytes>::decode(changed.into(), &Limits::default()).unwrap_err()
    };
    assert_eq!(with(0, 2), DecodeError::Version(2));
    assert_eq!(with(1, 1), DecodeError::Kind(1));
    assert_eq!(with(4, 1), DecodeError::Invalid("shape"));
    let live = bytes.len() - 24;
    assert_eq!(with(live, 2), DecodeError::Invalid("live dot"), "a dot that was never seen");
    assert_eq!(with(live - 4, 0), DecodeError::Invalid("entry without a dot"));
    let mut limits = Limits::default();
    limits.max_entries = 1;
    let decoded = OrSet::<Bytes>::decode(bytes.clone(), &limits);
    assert_eq!(decoded, Err(DecodeError::AboveLimit("count of entries")));
    // A count far beyond the bytes: nothing is allocated for it.
    let mut huge = vec![1, 1, 0, 0];
    huge.extend(u32::MAX.to_le_bytes());
    let decoded = GCounter::decode(huge.into(), &Limits::default());
    assert_eq!(decoded, Err(DecodeError::AboveLimit("count of actors")));
}

static SITUATIONS: [&str; 7] = [
    "a replica missed a write",
    "a write was repeated",
    "a write arrived behind a later one",
    "a read found concurrent states",
    "a write of unknown outcome reached nobody",
    "a removed element was added again",
    "a store of a writer was lost, a new incarnation",
];

/// A writer: its own replica of the values, durable before it writes.
#[derive(Default)]
struct Writer {
    incarnation: u64,
    counter: PnCounter,
    set: OrSet<Bytes>,
    dots: u64,
}

/// Two keys of a table, of counters and of sets, on three replicas. The model is the sum of all
/// changes, and for each element the adds that no remove has seen.
#[test]
fn tables_of_crdts_converge_to_the_model() {
    let situations = Situations::new(&SITUATIONS);
    let lives = std::env::var("VOUSSOIR_LIVES").map_or(300, |n| n.parse().unwrap());
    for seed in 0..lives {
        life(seed, &situations);
    }
    situations.assert_all_reached();
}

type Key = Siblings<Bytes>;

struct Life<'a> {
    rng: Rng,
    replicas: Vec<[Key; 2]>,
    writers: Vec<Writer>,
    /// To which replica, what, and as the how manieth write.
    under_way: Vec<(usize, [Key; 2], u64)>,
    sent: u64,
    arrived: u64,
    sum: i128,
    /// The adds of each element, and those that a later change of a writer has seen.
    adds: BTreeMap<u8, BTreeSet<Dot>>,
    replaced: BTreeSet<Dot>,
    counts: &'a Situations,
}

fn merge_all(own: &mut [Key; 2], other: &[Key; 2]) {
    for (own, state) in own.iter_mut().zip(other) {
        own.merge(state.clone());
    }
}

fn life(seed: u64, counts: &Situations) {
    let mut life = Life {
        rng: Rng::new(seed),
        replicas: (0..3).map(|_| [Key::new(), Key::new()]).collect(),
        writers: (0..3).map(|_| Writer::default()).collect(),
        under_way: Vec::new(),
        sent: 0,
        arrived: 0,
        sum: 0,
        adds: BTreeMap::new(),
        replaced: BTreeSet::new(),
        counts,
    };
    for _ in 0..60 {
        let place = (0..life.under_way.len()).find(|_| life.rng.chance(300_000));
        match place {
            Some(place) => life.deliver(place),
            None => life.write(),
        }
    }
    life.converge(seed);
}

impl Life<'_> {
    fn deliver(&mut self, place: usize) {
        let (to, states, number) = self.under_way.swap_remove(place);
        self.counts.add("a write arrived behind a later one", (number < self.arrived).into());
        self.arrived = self.arrived.max(number);
        merge_all(&mut self.replicas[to], &states);
        if self.rng.chance(200_000) {
            self.counts.reached("a write was repeated");
            self.under_way.push((to, states, number));
        }
    }

    /// A writer reads one replica, changes both values, and writes its whole states.
    fn write(&mut self) {
        let (at, from) = (self.rng.below(3) as usize, self.rng.below(3) as usize);
        let mut states = self.replicas[from].clone();
        self.counts.add("a read found concurrent states", (states[0].len() > 1).into());
        let own = self.change(at, &states);
        // The writer's state is durable. Its write may reach nobody: its next one makes up for it.
        let writer = &mut self.writers[at];
        writer.dots += 1;
        let dot = Dot::new(own, writer.dots);
        let values = [writer.counter.encode(), writer.set.encode()];
        for (state, value) in states.iter_mut().zip(values) {
            let seen = state.context().clone();
            state.put(&seen, dot, value).unwrap();
        }
        self.sent += 1;
        let reached: Vec<usize> = (0..3).filter(|_| self.rng.chance(600_000)).collect();
        self.counts.add("a replica missed a write", (reached.len() < 3).into());
        let nobody = reached.is_empty();
        self.counts.add("a write of unknown outcome reached nobody", nobody.into());
        self.under_way.extend(reached.into_iter().map(|to| (to, states.clone(), self.sent)));
        if self.rng.chance(20_000) {
            // The table has all that it had made: it wrote before its store was lost.
            merge_all(&mut self.replicas[from], &states);
            let incarnation = self.writers[at].incarnation + 1;
            self.writers[at] = Writer { incarnation, ..Writer::default() };
            self.counts.reached("a store of a writer was lost, a new incarnation");
        }
    }

    /// A change of the writer's own replica, on top of what it has read.
    fn change(&mut self, at: usize, read: &[Key; 2]) -> Actor {
        let (writer, limits) = (&mut self.writers[at], Limits::default());
        writer.counter.merge(&merge_siblings(&read[0], &limits).unwrap());
        writer.set.merge(&merge_siblings(&read[1], &limits).unwrap());
        let own = Actor::new(at as u64, writer.incarnation);
        let n = self.rng.next_u64().cast_signed() >> 40;
        writer.counter.add(own, n).unwrap();
        self.sum += i128::from(n);
        let (element, is_add) = (self.rng.below(3) as u8, self.rng.chance(600_000));
        let known = self.adds.entry(element).or_default();
        let was_removed = known.iter().any(|dot| self.replaced.contains(dot));
        self.counts.add("a removed element was added again", (is_add && was_removed).into());
        // What this writer has seen of the element is replaced by an add and by a remove.
        let seen = known.iter().filter(|dot| writer.set.context().contains(**dot));
        self.replaced.extend(seen);
        writer.set.update(own, |set, dot| {
            if is_add {
                known.insert(dot);
                set.add(byte(element), dot)
            } else {
                set.remove(&byte(element))
            }
        });
        own
    }

    /// Anti-entropy merges the replicas, and each writer writes what it has once more.
    fn converge(self, seed: u64) {
        let (mut all, limits) = ([Key::new(), Key::new()], Limits::default());
        for replica in &self.replicas {
            merge_all(&mut all, replica);
        }
        let mut counter: PnCounter = merge_siblings(&all[0], &limits).unwrap();
        let mut set: OrSet<Bytes> = merge_siblings(&all[1], &limits).unwrap();
        for writer in &self.writers {
            counter.merge(&writer.counter);
            set.merge(&writer.set);
        }
        assert_eq!(counter.value(), self.sum, "seed {seed}");
        let live = |dots: &BTreeSet<Dot>| dots.iter().any(|dot| !self.replaced.contains(dot));
        let expected = self.adds.iter().filter(|(_, dots)| live(dots));
        let expected: BTreeSet<Bytes> = expected.map(|(element, _)| byte(*element)).collect();
        let found: BTreeSet<Bytes> = set.get().iter().cloned().collect();
        assert_eq!(found, expected, "seed {seed}");
    }
}

proptest! {
    #[test]
    fn random_bytes_are_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let (mut bytes, limits) = (bytes, Limits::default());
        for kind in 1..=4 {
            bytes.splice(..bytes.len().min(4), [1, kind, 0, 0]);
            let bytes = Bytes::from(bytes.clone());
            let _ = GCounter::decode(bytes.clone(), &limits);
            let _ = PnCounter::decode(bytes.clone(), &limits);
            let _ = LwwRegister::<Bytes>::decode(bytes.clone(), &limits);
            let _ = OrSet::<Bytes>::decode(bytes.clone(), &limits);
            let _ = MvRegister::<Bytes>::decode(bytes.clone(), &limits);
            let _ = Nested::decode(bytes, &limits);
        }
    }
}
