//! Deltas and full states against a naive model: sets of changes that name what they replace.
//!
//! Deltas are lost, repeated and reordered. Each replica is compared with the model at each step.

use std::collections::{BTreeMap, BTreeSet};

use voussoir_quorum::crdt::{Causal, Change, Crdt, DotStore, Flag, Map, Set, Values};
use voussoir_quorum::crdt::{CounterError, EnableWinsFlag, GCounter, LwwRegister, PnCounter};
use voussoir_quorum::version::{Actor, Dot, Timestamp};
use voussoir_sim::{Rng, Situations};

static SITUATIONS: [&str; 9] = [
    "a delta was lost",
    "a delta came twice",
    "a delta came after a later one of its actor",
    "a full state was merged",
    "a key was reset while another replica changed it",
    "a key was changed again after a reset",
    "a remove came before the add that it had seen",
    "a replica held dots above a gap",
    "a store was lost, a new incarnation",
];

/// Where a dot lives: a key of the map and an element under it.
type Path = (u8, u8);

/// A change: the dot that it adds, and those that it replaces.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    added: Option<(Dot, Path)>,
    replaced: BTreeSet<Dot>,
}

/// All changes that a replica knows.
#[derive(Clone, Default)]
struct Naive(BTreeSet<Event>);

impl Naive {
    fn live(&self) -> BTreeMap<Dot, Path> {
        let replaced: BTreeSet<Dot> = self.0.iter().flat_map(|e| e.replaced.clone()).collect();
        self.0.iter().filter_map(|e| e.added).filter(|(dot, _)| !replaced.contains(dot)).collect()
    }

    fn known(&self) -> BTreeSet<Dot> {
        let added = |e: &Event| e.added.map(|(dot, _)| dot);
        self.0.iter().flat_map(|e| e.replaced.iter().copied().chain(added(e))).collect()
    }
}

/// A type under test, as a map of keys to something with elements.
trait Kind: DotStore + PartialEq + std::fmt::Debug {
    /// Adds or writes `path`. The model replaces the live dots for which `replaces` says so.
    fn add(&self, path: Path, dot: Dot) -> Change<Self>;
    /// Removes the element of `path`.
    fn remove(&self, path: Path) -> Change<Self>;
    /// Removes the whole key.
    fn reset(&self, key: u8) -> Change<Self>;
    /// The paths that are present, one for each that a user can tell apart.
    fn paths(&self) -> BTreeSet<Path>;
    /// Whether an add or remove of `path` replaces a live dot of `other`.
    fn replaces(path: Path, other: Path) -> bool {
        path == other
    }
}

impl Kind for Map<u8, Set<u8>> {
    fn add(&self, (key, element): Path, dot: Dot) -> Change<Self> {
        self.update(key, |set| set.add(element, dot))
    }
    fn remove(&self, (key, element): Path) -> Change<Self> {
        self.update(key, |set| set.remove(&element))
    }
    fn reset(&self, key: u8) -> Change<Self> {
        Map::remove(self, &key)
    }
    fn paths(&self) -> BTreeSet<Path> {
        self.iter().flat_map(|(key, set)| set.iter().map(|element| (*key, *element))).collect()
    }
}

impl Kind for Map<u8, Values<u8>> {
    fn add(&self, (key, value): Path, dot: Dot) -> Change<Self> {
        self.update(key, |values| values.write(value, dot))
    }
    fn remove(&self, (key, _): Path) -> Change<Self> {
        self.update(key, Values::clear)
    }
    fn reset(&self, key: u8) -> Change<Self> {
        Map::remove(self, &key)
    }
    fn paths(&self) -> BTreeSet<Path> {
        self.iter().flat_map(|(key, values)| values.iter().map(|value| (*key, *value))).collect()
    }
    fn replaces(path: Path, other: Path) -> bool {
        path.0 == other.0
    }
}

impl Kind for Map<u8, Map<u8, Flag>> {
    fn add(&self, (key, inner): Path, dot: Dot) -> Change<Self> {
        self.update(key, |map| map.update(inner, |flag| flag.enable(dot)))
    }
    fn remove(&self, (key, inner): Path) -> Change<Self> {
        self.update(key, |map| map.update(inner, Flag::disable))
    }
    fn reset(&self, key: u8) -> Change<Self> {
        Map::remove(self, &key)
    }
    fn paths(&self) -> BTreeSet<Path> {
        let on = |(inner, flag): (&u8, &Flag)| flag.is_on().then_some(*inner);
        self.iter()
            .flat_map(|(key, map)| map.iter().filter_map(on).map(|inner| (*key, inner)))
            .collect()
    }
}

struct Replica<S> {
    actor: Actor,
    value: Causal<S>,
    naive: Naive,
}

/// A delta, and the changes in it.
struct Message<S> {
    delta: Causal<S>,
    events: Naive,
}

struct Life<S> {
    rng: Rng,
    replicas: Vec<Replica<S>>,
    /// What is under way to each replica.
    under_way: Vec<Vec<Message<S>>>,
    issued: BTreeSet<Dot>,
    resets: BTreeSet<u8>,
}

impl<S: Kind> Life<S> {
    fn new(seed: u64) -> Self {
        let replica = |node| {
            let (value, naive) = (Causal::new(), Naive::default());
            Replica { actor: Actor::new(node, 1), value, naive }
        };
        let under_way = (0..3).map(|_| Vec::new()).collect();
        let (issued, resets) = (BTreeSet::new(), BTreeSet::new());
        let replicas = (1..=3).map(replica).collect();
        Self { rng: Rng::new(seed), replicas, under_way, issued, resets }
    }

    fn step(&mut self, situations: &Situations) {
        let at = self.rng.below(3) as usize;
        match self.rng.below(100) {
            0..40 => self.change(at, situations),
            40..90 => self.deliver(at, situations),
            90..99 => {
                let from = (at + 1 + self.rng.below(2) as usize) % 3;
                let other = (self.replicas[from].value.clone(), self.replicas[from].naive.clone());
                self.replicas[at].value.merge(&other.0);
                self.replicas[at].naive.0.extend(other.1.0);
                situations.reached("a full state was merged");
            }
            _ if self.rng.chance(100_000) => {
                let replica = &mut self.replicas[at];
                replica.actor.incarnation += 1;
                (replica.value, replica.naive) = (Causal::new(), Naive::default());
                situations.reached("a store was lost, a new incarnation");
            }
            _ => {}
        }
        let gaps: usize = self.replicas.iter().map(|r| r.value.context().gaps()).sum();
        situations.add("a replica held dots above a gap", (gaps > 0).into());
        self.check();
    }

    fn change(&mut self, at: usize, situations: &Situations) {
        let path = (self.rng.below(3) as u8, self.rng.below(3) as u8);
        let choice = self.rng.below(10);
        let is_elsewhere = |replicas: &[Replica<S>], own: &BTreeMap<Dot, Path>| {
            let unseen = |(dot, p): (Dot, Path)| p.0 == path.0 && !own.contains_key(&dot);
            replicas.iter().flat_map(|r| r.naive.live()).any(unseen)
        };
        let replica = &mut self.replicas[at];
        let live = replica.naive.live();
        let of = |is_replaced: &dyn Fn(Path) -> bool| -> BTreeSet<Dot> {
            live.iter().filter(|(_, p)| is_replaced(**p)).map(|(dot, _)| *dot).collect()
        };
        let (mut event, mut given) = (Event { added: None, replaced: BTreeSet::new() }, None);
        let actor = replica.actor;
        let delta = replica.value.update(actor, |store, dot| {
            given = Some(dot);
            match choice {
                0..6 => store.add(path, dot),
                6..8 => store.remove(path),
                _ => store.reset(path.0),
            }
        });
        let dot = given.expect("the change was asked for");
        match choice {
            0..6 => {
                event.added = Some((dot, path));
                assert!(self.issued.insert(dot), "{dot} was issued twice");
                let is_again = self.resets.contains(&path.0);
                situations.add("a key was changed again after a reset", is_again.into());
                event.replaced = of(&|other| S::replaces(path, other));
            }
            6..8 => event.replaced = of(&|other| S::replaces(path, other)),
            _ => {
                event.replaced = of(&|other| other.0 == path.0);
                let is_concurrent =
                    !event.replaced.is_empty() && is_elsewhere(&self.replicas, &live);
                let name = "a key was reset while another replica changed it";
                situations.add(name, is_concurrent.into());
                self.resets.insert(path.0);
            }
        }
        self.replicas[at].naive.0.insert(event.clone());
        for to in (0..3).filter(|to| *to != at) {
            let events = Naive(BTreeSet::from([event.clone()]));
            self.under_way[to].push(Message { delta: delta.clone(), events });
        }
    }

    /// Takes any message out of those under way.
    fn deliver(&mut self, to: usize, situations: &Situations) {
        if self.under_way[to].is_empty() {
            return;
        }
        let at = self.rng.below(self.under_way[to].len() as u64) as usize;
        let message = self.under_way[to].swap_remove(at);
        if self.rng.chance(200_000) {
            situations.reached("a delta was lost");
            return;
        }
        let known = self.replicas[to].naive.known();
        for event in &message.events.0 {
            if let Some((dot, _)) = event.added {
                let later = known.iter().any(|k| k.actor == dot.actor && k.counter > dot.counter);
                let name = "a delta came after a later one of its actor";
                situations.add(name, (later && !known.contains(&dot)).into());
            } else {
                let is_early = event.replaced.iter().any(|dot| !known.contains(dot));
                situations.add("a remove came before the add that it had seen", is_early.into());
            }
        }
        self.replicas[to].value.merge(&message.delta);
        self.replicas[to].naive.0.extend(message.events.0.clone());
        if self.rng.chance(300_000) {
            situations.reached("a delta came twice");
            self.under_way[to].push(message);
        }
    }

    fn check(&self) {
        for replica in &self.replicas {
            let expected: BTreeMap<Dot, Path> = replica.naive.live();
            let paths: BTreeSet<Path> = expected.values().copied().collect();
            assert_eq!(replica.value.get().paths(), paths);
            let mut dots = BTreeSet::new();
            replica.value.get().for_each_dot(&mut |dot| {
                dots.insert(dot);
            });
            assert_eq!(dots, expected.into_keys().collect());
            let known = replica.naive.known();
            for dot in &self.issued {
                assert_eq!(replica.value.context().contains(*dot), known.contains(dot), "{dot}");
            }
        }
    }

    /// Full states in both directions make up for every lost delta.
    fn converge(mut self) {
        for (to, from) in [(0, 1), (0, 2), (1, 0), (2, 0)] {
            let other = self.replicas[from].value.clone();
            self.replicas[to].value.merge(&other);
            let events = self.replicas[from].naive.clone();
            self.replicas[to].naive.0.extend(events.0);
        }
        self.check();
        assert_eq!(self.replicas[0].value, self.replicas[1].value);
        assert_eq!(self.replicas[0].value, self.replicas[2].value);
    }
}

fn lives<S: Kind>(name: &str) {
    let situations = Situations::new(&SITUATIONS);
    let lives = std::env::var("VOUSSOIR_LIVES").map_or(150, |n| n.parse().unwrap());
    for seed in 0..lives {
        let run = std::panic::AssertUnwindSafe(|| {
            let mut life = Life::<S>::new(seed);
            (0..120).for_each(|_| life.step(&situations));
            life.converge();
        });
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("{name}: life {seed} fails");
            std::panic::resume_unwind(panic);
        }
    }
    situations.assert_all_reached();
}

#[test]
fn a_map_of_sets_agrees_with_the_model() {
    lives::<Map<u8, Set<u8>>>("a map of sets");
}

#[test]
fn a_map_of_registers_agrees_with_the_model() {
    lives::<Map<u8, Values<u8>>>("a map of registers");
}

#[test]
fn a_map_of_maps_of_flags_agrees_with_the_model() {
    lives::<Map<u8, Map<u8, Flag>>>("a map of maps");
}

/// akka-core #22606: a reset that is followed by more changes does not swallow the later ones.
#[test]
fn adds_after_a_reset_survive_its_late_delta() {
    let (one, two) = (Actor::new(1, 1), Actor::new(2, 1));
    let mut left: Causal<Map<u8, Set<u8>>> = Causal::new();
    let mut right = Causal::new();
    let first = left.update(one, |map, dot| map.add((1, 1), dot));
    right.merge(&first);
    let reset = right.update(two, |map, _| map.reset(1));
    let again = left.update(one, |map, dot| map.add((1, 1), dot));
    right.merge(&again);
    left.merge(&reset);
    right.merge(&first);
    assert_eq!(left, right);
    assert_eq!(left.get().paths(), BTreeSet::from([(1, 1)]), "the second add was not seen");
}

#[test]
fn an_enable_wins_over_a_disable_that_has_not_seen_it() {
    let (one, two) = (Actor::new(1, 1), Actor::new(2, 1));
    let (mut left, mut right) = (EnableWinsFlag::new(), EnableWinsFlag::new());
    right.merge(&left.update(one, Flag::enable));
    let off = left.update(one, |flag, _| flag.disable());
    let on = right.update(two, Flag::enable);
    assert!(!left.get().is_on());
    left.merge(&on);
    right.merge(&off);
    assert!(left.get().is_on() && left == right);
    right.update(two, |flag, _| flag.disable());
    assert!(!right.get().is_on());
}

#[test]
fn counters_sum_every_change_once() {
    let mut rng = Rng::new(3);
    for _ in 0..200 {
        let mut replicas = vec![PnCounter::new(); 3];
        let mut deltas: Vec<PnCounter> = Vec::new();
        let mut sum = 0_i128;
        for _ in 0..60 {
            let at = rng.below(3) as usize;
            if rng.chance(500_000) {
                let n = rng.next_u64().cast_signed() >> 8;
                deltas.push(replicas[at].add(Actor::new(at as u64, 1), n).unwrap());
                sum += i128::from(n);
            } else if let Some(delta) = rng.pick(&deltas) {
                replicas[at].merge(delta);
            }
        }
        let all: Vec<PnCounter> = replicas.clone();
        for replica in &mut replicas {
            all.iter().chain(&deltas).for_each(|other| replica.merge(other));
            assert_eq!(replica.value(), sum);
        }
    }
}

/// scylladb #2169: a share that is issued again under one actor hides later additions.
#[test]
fn a_lost_share_continues_under_a_new_incarnation() {
    let mut peer = GCounter::new();
    let mut counter = GCounter::new();
    peer.merge(&counter.add(Actor::new(1, 1), 10).unwrap());
    let mut same = GCounter::new();
    let again = same.add(Actor::new(1, 1), 3).unwrap();
    let mut swallowed = peer.clone();
    swallowed.merge(&again);
    assert_eq!(swallowed.value(), 10, "the old incarnation loses the addition");
    let mut lost = GCounter::new();
    peer.merge(&lost.add(Actor::new(1, 2), 3).unwrap());
    assert_eq!(peer.value(), 13);
}

#[test]
fn a_share_that_does_not_fit_is_refused_and_changes_nothing() {
    let actor = Actor::new(1, 1);
    let mut counter = GCounter::new();
    counter.add(actor, u64::MAX).unwrap();
    let before = counter.clone();
    assert_eq!(counter.add(actor, 1), Err(CounterError { actor }));
    assert_eq!(counter, before);
    assert_eq!(counter.add(actor, 0).unwrap(), before, "nothing was added");
    assert!(counter.add(Actor::new(2, 1), u64::MAX).is_ok());
    assert_eq!(counter.value(), 2 * u128::from(u64::MAX));
    let mut both_ways = PnCounter::new();
    both_ways.add(actor, i64::MIN).unwrap();
    assert_eq!(both_ways.value(), i128::from(i64::MIN));
}

#[test]
fn the_greater_timestamp_wins_in_any_order() {
    let mut rng = Rng::new(5);
    for _ in 0..500 {
        let mut writes: Vec<_> = (0..6)
            .map(|at| {
                let physical = rng.below(3);
                let logical = rng.below(2) as u32;
                (Timestamp { physical, logical, actor: Actor::new(at, 1) }, at)
            })
            .collect();
        let winner = *writes.iter().max().unwrap();
        rng.shuffle(&mut writes);
        let mut register = LwwRegister::new();
        for (timestamp, value) in &writes {
            let is_newer = register.timestamp() < Some(*timestamp);
            assert_eq!(register.write(*timestamp, *value).is_some(), is_newer);
        }
        assert_eq!((register.timestamp(), register.get()), (Some(winner.0), Some(&winner.1)));
        let mut other = LwwRegister::new();
        other.merge(&register);
        register.merge(&LwwRegister::new());
        assert_eq!(other, register);
    }
}
