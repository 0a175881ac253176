//! The coordinator under thousands of seeds: members that join, leave, crash, are slow, and come
//! back; a disk that is slow and fails; topics that change. `VOUSSOIR_GROUP_SEEDS` sets how many
//! (default 5,000), `VOUSSOIR_SEED` replays one.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use voussoir_sim::Situations;

use super::*;

const SESSION: u64 = 1_000;
const REBALANCE: u64 = 400;

static SITUATIONS: [&str; 15] = [
    "a request to join came again in a later rebalance",
    "a member crashed",
    "a member left",
    "a slow member was removed, and came back",
    "a rebalance ended without a member that did not join",
    "a generation was not durable",
    "a commit of an old generation was rejected",
    "a partition moved in two generations",
    "a member joined while a generation was being made durable",
    "a static member took the place of the one before",
    "the last member left",
    "a topic appeared, or had more partitions",
    "a member kept a partition through a rebalance",
    "more members than partitions",
    "a record was processed twice after a crash",
];

/// A consumer, as the shell drives it.
struct Client {
    member: Option<MemberId>,
    instance: Option<Arc<str>>,
    generation: u32,
    /// The request by which it joined last, as a member that the group knows.
    last_join: Option<Input>,
    /// The next record of each partition that it works on.
    positions: BTreeMap<Place, u64>,
    topics: BTreeSet<Arc<str>>,
    next_poll: u64,
    pace: u64,
}

/// What the table writes, in order.
enum Item {
    Persist(u64),
    Commit { generation: u32, offsets: Vec<(Place, u64)> },
}

struct World<'a> {
    random: fastrand::Rng,
    now: u64,
    coordinator: Coordinator,
    assignor: Assignor,
    clients: BTreeMap<u64, Client>,
    next_client: u64,
    disk: VecDeque<(u64, Item)>,
    /// Of the table.
    generation: u32,
    committed: HashMap<Place, u64>,
    /// Records that somebody has processed, up to here without a gap.
    processed: HashMap<Place, u64>,
    topics: BTreeMap<Arc<str>, u32>,
    is_calm: bool,
    situations: &'a Situations,
}

fn topic(at: u32) -> Arc<str> {
    format!("t{at}").into()
}

impl<'a> World<'a> {
    fn new(seed: u64, situations: &'a Situations) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let assignors =
            [Assignor::Range, Assignor::RoundRobin, Assignor::Sticky, Assignor::CooperativeSticky];
        let assignor = assignors[random.usize(..4)];
        let topics: BTreeMap<_, _> =
            (0..random.u32(1..3)).map(|at| (topic(at), random.u32(1..6))).collect();
        let times = Times { session: SESSION, rebalance: REBALANCE };
        Self {
            coordinator: Coordinator::new(assignor, times, 8, topics.clone()),
            assignor,
            random,
            now: 0,
            clients: BTreeMap::new(),
            next_client: 0,
            disk: VecDeque::new(),
            generation: 0,
            committed: HashMap::new(),
            processed: HashMap::new(),
            topics,
            is_calm: false,
            situations,
        }
    }

    fn input(&mut self, input: Input) -> Result<Option<MemberId>, GroupRejected> {
        let result = self.coordinator.step(self.now, input);
        while let Some(output) = self.coordinator.poll_output() {
            if let Output::Persist { ticket } = output {
                let at = self.now + self.random.u64(1..30);
                self.disk.push_back((at, Item::Persist(ticket)));
            }
        }
        self.check_owners();
        result
    }

    /// No partition is given to two members, and no two members that the group knows work on one.
    fn check_owners(&self) {
        let (mut given, mut worked) = (BTreeSet::new(), BTreeSet::new());
        for (id, member) in &self.coordinator.members {
            for place in &member.given {
                let first = given.insert(place.clone());
                // A static member is given what the one before it had when it joins.
                assert!(first, "{place:?} is given twice at {}", self.now);
            }
            let client = self.clients.values().find(|client| client.member == Some(*id));
            for place in client.iter().flat_map(|client| client.positions.keys()) {
                let first = worked.insert(place.clone());
                assert!(first, "{place:?} is worked on twice at {}", self.now);
            }
        }
    }

    fn add_client(&mut self, instance: Option<Arc<str>>) {
        let mut topics: BTreeSet<_> = self.topics.keys().cloned().collect();
        if topics.len() > 1 && self.random.u8(..4) == 0 && !self.is_calm {
            topics.pop_first();
        }
        let client = Client {
            member: None,
            instance,
            generation: 0,
            last_join: None,
            positions: BTreeMap::new(),
            topics,
            next_poll: self.now + self.random.u64(0..50),
            pace: self.random.u64(5..60),
        };
        let is_persisting = matches!(self.coordinator.phase, Phase::Persisting { .. });
        let name = "a member joined while a generation was being made durable";
        self.situations.add(name, u64::from(is_persisting));
        self.clients.insert(self.next_client, client);
        self.next_client += 1;
    }

    fn chaos(&mut self) {
        let ids: Vec<u64> = self.clients.keys().copied().collect();
        let any = (!ids.is_empty()).then(|| ids[self.random.usize(..ids.len().max(1))]);
        match (self.random.u8(..10), any) {
            (0..=2, _) if self.clients.len() < 8 => {
                let instance = (self.random.u8(..4) == 0).then(|| topic(self.random.u32(50..53)));
                let is_taken = instance.as_ref().is_some_and(|instance| {
                    self.clients.values().any(|client| client.instance.as_ref() == Some(instance))
                });
                self.add_client(instance.filter(|_| !is_taken));
            }
            (3, Some(id)) => {
                let client = self.clients.remove(&id).expect("one");
                self.situations.reached("a member crashed");
                if let Some(instance) = client.instance {
                    self.situations.reached("a static member took the place of the one before");
                    self.add_client(Some(instance));
                }
            }
            (4, Some(id)) => {
                let client = self.clients.remove(&id).expect("one");
                if let Some(member) = client.member {
                    let _ = self.input(Input::Leave { member });
                    self.situations.reached("a member left");
                    let was_last = u64::from(self.coordinator.is_empty());
                    self.situations.add("the last member left", was_last);
                }
            }
            (5, Some(id)) => {
                // It is busy for longer than a session or a rebalance.
                let pause = self.random.u64(1..3 * SESSION);
                self.clients.get_mut(&id).expect("one").next_poll = self.now + pause;
            }
            (6, _) if self.topics.len() < 4 => {
                let at = self.random.u32(..4);
                *self.topics.entry(topic(at)).or_insert(0) += 1;
                self.situations.reached("a topic appeared, or had more partitions");
                let topics = self.topics.clone();
                let _ = self.input(Input::Topics { topics });
            }
            _ => {}
        }
    }

    /// What the shell does in a poll.
    fn poll(&mut self, id: u64) {
        let Some(mut client) = self.clients.remove(&id) else { return };
        self.join_again(&client);
        self.commit(&client);
        let standing = match client.member {
            Some(member) => {
                let beat = self.input(Input::Heartbeat { member });
                beat.and_then(|_| self.coordinator.standing(member))
            }
            None => Err(GroupRejected::UnknownMember),
        };
        match standing {
            Err(_) => {
                let was = client.member.is_some();
                self.situations.add("a slow member was removed, and came back", u64::from(was));
                client.positions.clear();
                (client.member, client.generation) = (None, 0);
                self.join(&mut client);
            }
            Ok(Standing::Waiting) => {}
            Ok(Standing::Stable { generation, places }) => {
                self.adopt(&mut client, generation, &places);
            }
            Ok(Standing::MustJoin { is_cooperative, generation, places }) => {
                assert!(generation >= client.generation, "generations do not go back");
                client.generation = generation;
                if is_cooperative {
                    self.adopt(&mut client, generation, &places);
                    let kept = u64::from(!client.positions.is_empty());
                    self.situations.add("a member kept a partition through a rebalance", kept);
                } else {
                    client.positions.clear();
                }
                self.join(&mut client);
            }
        }
        self.process(&mut client);
        client.next_poll = self.now + client.pace;
        self.clients.insert(id, client);
        self.check_owners();
    }

    fn join(&mut self, client: &mut Client) {
        let owned = client.positions.keys().cloned().collect();
        let (member, instance) = (client.member, client.instance.clone());
        let (topics, generation) = (client.topics.clone(), client.generation);
        let join = Input::Join { member, generation, instance, topics, owned };
        client.last_join = member.map(|_| join.clone());
        match self.input(join) {
            Ok(member) => client.member = member,
            Err(GroupRejected::TooManyMembers) => client.member = None,
            Err(other) => panic!("{other:?}"),
        }
    }

    /// The answer to the latest request to join was lost, so it is sent again.
    fn join_again(&mut self, client: &Client) {
        let Some(join) = client.last_join.as_ref().filter(|_| self.random.u8(..4) == 0) else {
            return;
        };
        let Input::Join { member: Some(member), generation, .. } = join else { return };
        let standing = self.coordinator.standing(*member);
        let is_late = match standing {
            Ok(Standing::MustJoin { generation: told, .. }) => told != *generation,
            _ => false,
        };
        let name = "a request to join came again in a later rebalance";
        self.situations.add(name, u64::from(is_late));
        let _ = self.input(join.clone());
        if is_late {
            assert_eq!(self.coordinator.standing(*member), standing, "it counts for another one");
        }
    }

    fn adopt(&mut self, client: &mut Client, generation: u32, places: &BTreeSet<Place>) {
        assert!(generation >= client.generation, "generations do not go back");
        client.generation = generation;
        client.positions.retain(|place, _| places.contains(place));
        for place in places {
            let committed = self.committed.get(place).copied().unwrap_or(0);
            client.positions.entry(place.clone()).or_insert(committed);
        }
    }

    /// Reads a few records from each partition.
    fn process(&mut self, client: &mut Client) {
        for (place, position) in &mut client.positions {
            let next = *position + self.random.u64(0..4);
            let processed = self.processed.entry(place.clone()).or_insert(0);
            assert!(*position <= *processed, "records of {place:?} are skipped");
            let again = u64::from(*position < *processed && next > *position);
            self.situations.add("a record was processed twice after a crash", again);
            *processed = (*processed).max(next);
            *position = next;
        }
    }

    fn commit(&mut self, client: &Client) {
        let offsets: Vec<_> =
            client.positions.iter().map(|(place, at)| (place.clone(), *at)).collect();
        if !offsets.is_empty() {
            let at = self.now + self.random.u64(1..30);
            let generation = client.generation;
            self.disk.push_back((at, Item::Commit { generation, offsets }));
        }
    }

    /// The table writes what is due, in order.
    fn write(&mut self) {
        while self.disk.front().is_some_and(|(at, _)| *at <= self.now) {
            let Some((_, item)) = self.disk.pop_front() else { return };
            match item {
                Item::Persist(ticket) => {
                    let fails = !self.is_calm && self.random.u8(..20) == 0;
                    let generation = (!fails).then(|| {
                        self.generation += 1;
                        self.generation
                    });
                    self.situations.add("a generation was not durable", u64::from(fails));
                    let before = self.coordinator.phase.clone();
                    if let Phase::Persisting { needs_another: true, .. } = before {
                        self.situations.reached("a partition moved in two generations");
                    }
                    let _ = self.input(Input::Persisted { ticket, generation });
                }
                Item::Commit { generation, offsets } if generation == self.generation => {
                    for (place, offset) in offsets {
                        let committed = self.committed.entry(place.clone()).or_insert(0);
                        assert!(*committed <= offset, "the offset of {place:?} goes back");
                        *committed = offset;
                    }
                }
                Item::Commit { .. } => {
                    self.situations.reached("a commit of an old generation was rejected");
                }
            }
        }
    }

    fn run(&mut self, until: u64) {
        while self.now < until {
            let polls = self.clients.values().map(|client| client.next_poll);
            let disk = self.disk.front().map(|(at, _)| *at);
            let deadline = self.coordinator.next_deadline();
            let next = polls.chain(disk).chain(deadline).min().unwrap_or(until);
            self.now = next.clamp(self.now, until);
            let joining = match self.coordinator.phase {
                Phase::Joining { deadline } => deadline <= self.now,
                _ => false,
            };
            let members = self.coordinator.members.len();
            let _ = self.input(Input::Tick);
            let deadline = self.coordinator.next_deadline();
            assert!(
                deadline.is_none_or(|at| at > self.now),
                "a tick leaves a deadline in the past"
            );
            let missed = joining && self.coordinator.members.len() < members;
            let name = "a rebalance ended without a member that did not join";
            self.situations.add(name, u64::from(missed));
            self.write();
            let due = self.clients.iter().filter(|(_, client)| client.next_poll <= self.now);
            for id in due.map(|(id, _)| *id).collect::<Vec<_>>() {
                self.poll(id);
            }
            if !self.is_calm && self.random.u8(..12) == 0 {
                self.chaos();
            }
        }
    }

    /// Without further trouble all members are stable after a session, the rebalances that it
    /// leads to, and their writes. All partitions that are wanted are worked on.
    fn check_stable(&mut self) {
        self.is_calm = true;
        for client in self.clients.values_mut() {
            client.next_poll = client.next_poll.min(self.now + 60);
        }
        self.run(self.now + SESSION + 4 * (REBALANCE + 200));
        let mut worked: BTreeMap<Place, u64> = BTreeMap::new();
        let mut loads = Vec::new();
        for (id, client) in &self.clients {
            let member = client.member.expect("it is a member");
            let standing = self.coordinator.standing(member).expect("it is a member");
            let places: BTreeSet<_> = client.positions.keys().cloned().collect();
            let generation = client.generation;
            assert_eq!(generation, self.generation, "{:?}", self.assignor);
            assert_eq!(standing, Standing::Stable { generation, places: places.clone() });
            loads.push(places.len());
            worked.extend(places.into_iter().map(|place| (place, *id)));
        }
        let wanted = self.topics.iter().filter(|(topic, _)| {
            self.clients.values().any(|client| client.topics.contains(*topic))
        });
        let wanted: BTreeSet<Place> = wanted
            .flat_map(|(topic, count)| (0..*count).map(|at| (Arc::clone(topic), at)))
            .collect();
        assert_eq!(worked.keys().cloned().collect::<BTreeSet<_>>(), wanted);
        let all_equal =
            self.clients.values().all(|client| client.topics.len() == 1) && self.topics.len() == 1;
        if let (Some(most), Some(least), true) = (loads.iter().max(), loads.iter().min(), all_equal)
        {
            assert!(most - least <= 1, "{loads:?} under {:?}", self.assignor);
            self.situations.add("more members than partitions", u64::from(*least == 0));
        }
    }
}

fn life(seed: u64, situations: &Situations) {
    let mut world = World::new(seed, situations);
    for _ in 0..3 {
        let until = world.now + world.random.u64(500..4_000);
        world.is_calm = false;
        world.run(until);
        world.check_stable();
    }
}

#[test]
fn no_partition_has_two_owners_and_no_record_is_skipped() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let situations = Situations::new(&SITUATIONS);
    if let Some(seed) = number("VOUSSOIR_SEED") {
        return life(seed, &situations);
    }
    for seed in 0..number("VOUSSOIR_GROUP_SEEDS").unwrap_or(5_000) {
        let run = std::panic::AssertUnwindSafe(|| life(seed, &situations));
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("replay: VOUSSOIR_SEED={seed} cargo test -p voussoir-queue --lib group");
            std::panic::resume_unwind(panic);
        }
    }
    situations.assert_all_reached();
}

#[test]
fn only_topics_that_members_read_unsettle_a_group() {
    let times = Times { session: SESSION, rebalance: REBALANCE };
    let mut topics = BTreeMap::from([(topic(0), 2)]);
    let mut group = Coordinator::new(Assignor::Range, times, 8, topics.clone());
    let join = Input::Join {
        member: None,
        generation: 0,
        instance: None,
        topics: BTreeSet::from([topic(0)]),
        owned: BTreeSet::new(),
    };
    let member = group.step(0, join).expect("it joins").expect("its number");
    group.step(0, Input::Persisted { ticket: 1, generation: Some(1) }).expect("it is durable");
    let is_stable =
        |group: &Coordinator| matches!(group.standing(member), Ok(Standing::Stable { .. }));
    assert!(is_stable(&group));
    topics.insert(topic(1), 3);
    group.step(0, Input::Topics { topics: topics.clone() }).expect("another topic");
    assert!(is_stable(&group), "a topic that nobody reads");
    topics.insert(topic(0), 3);
    group.step(0, Input::Topics { topics: topics.clone() }).expect("more partitions");
    assert!(!is_stable(&group), "a partition that nobody would read");
}
