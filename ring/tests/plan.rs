//! Plans: enough replicas at every moment, nothing moved without need, nothing lost by pausing,
//! failing, turning back or restarting.
//!
//! `VOUSSOIR_PLANS` sets how many random topology changes are tried (default 1000).

mod common;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use common::topology;
use voussoir_ring::{
    Direction, HashRange, HashRing, Input, Maglev, Node, OpId, Output, Owners, Partitioner,
    Placement, Plan, PlanConfig, PlanError, Rebalance, RingConfig, Side, State, Topology, Weight,
    hash, slot_of,
};

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        hash::mix(self.0) % bound
    }
}

fn plans() -> u64 {
    std::env::var("VOUSSOIR_PLANS").ok().and_then(|n| n.parse().ok()).unwrap_or(1000)
}

fn random_node(random: &mut Random, id: u64, zones: u64) -> Node {
    let node = Node::new(id).weighing(Weight::milli(500 + random.below(1500) as u32).unwrap());
    if zones == 0 {
        return node;
    }
    node.in_zone(format!("z{}", random.below(zones))).in_rack(format!("r{}", random.below(3)))
}

/// One join, leave, or change of weight.
fn changed(random: &mut Random, from: &Topology, zones: u64) -> Topology {
    let pick = from.nodes()[random.below(from.len() as u64) as usize].clone();
    match random.below(3) {
        0 => {
            let id = 10_000 + random.below(1000);
            from.with(random_node(random, id, zones)).unwrap()
        }
        1 if from.len() > 1 => from.without(pick.id).unwrap(),
        _ => {
            let weight = Weight::milli(500 + random.below(1500) as u32).unwrap();
            from.replacing(pick.weighing(weight)).unwrap()
        }
    }
}

fn ring(topology: &Topology) -> HashRing {
    let mut config = RingConfig::default();
    config.virtual_nodes = 24;
    HashRing::with_config(topology, &config).unwrap()
}

/// Replicas as they really are: which node holds which range wholly, kept by carrying out the
/// outputs literally, without looking at the plan's own idea of it.
struct World {
    /// For each changed range its holders.
    holders: Vec<(HashRange, Vec<u64>)>,
    wanted: Vec<usize>,
}

impl World {
    fn new(plan: &Plan) -> Self {
        let changes = plan.changes();
        Self {
            holders: changes.iter().map(|change| (change.range, change.old.to_vec())).collect(),
            wanted: changes.iter().map(|c| c.old.len().min(c.new.len())).collect(),
        }
    }

    fn holders(&mut self, range: HashRange) -> &mut Vec<u64> {
        let at = self.holders.binary_search_by_key(&range.start, |(range, _)| range.start);
        let (held, holders) = &mut self.holders[at.expect("a range of the plan")];
        assert_eq!(*held, range);
        holders
    }

    fn copied(&mut self, range: HashRange, sources: &[u64], target: u64) {
        let holders = self.holders(range);
        for source in sources {
            assert!(holders.contains(source), "{source} does not hold {range:?}");
        }
        assert!(!holders.contains(&target), "{target} already holds {range:?}");
        holders.push(target);
    }

    fn removed(&mut self, range: HashRange, node: u64) {
        self.holders(range).retain(|&id| id != node);
        let at = self.holders.partition_point(|(held, _)| held.start < range.start);
        assert!(
            self.holders[at].1.len() >= self.wanted[at],
            "{range:?} is left with {:?}, wanted {}",
            self.holders[at].1,
            self.wanted[at]
        );
    }

    fn check(&self, ends: impl Iterator<Item = Owners>) {
        for ((range, holders), want) in self.holders.iter().zip(ends) {
            let held = Owners::of(holders).expect("no node twice");
            assert!(held.same_set(&want), "{range:?} is at {holders:?}, not {want:?}");
        }
    }
}

/// A copy reads its source from when it is asked for until it is done: the source must still hold.
/// A copy from before a turn may lack writes, so it does not make a holder.
fn carry_out(
    world: &mut World,
    under_way: &mut Vec<Output>,
    nth: usize,
    trusted_from: OpId,
) -> OpId {
    match under_way.swap_remove(nth) {
        Output::Copy { op, range, sources, target } => {
            if op >= trusted_from {
                world.copied(range, &sources, target);
            }
            op
        }
        Output::Remove { op, .. } => op,
        other => panic!("{other:?} is nothing to carry out"),
    }
}

/// Takes the outputs: a removal may happen at once, so it counts from when it is asked for.
fn take(rebalance: &mut Rebalance, world: &mut World, under_way: &mut Vec<Output>) {
    while let Some(output) = rebalance.poll_output() {
        match output {
            Output::Remove { range, node, .. } => {
                world.removed(range, node);
                under_way.push(output);
            }
            Output::Copy { .. } => under_way.push(output),
            Output::StepDone { .. } | Output::Finished(_) => {}
            other => panic!("{other:?} is new here"),
        }
    }
}

fn run(plan: &Arc<Plan>, random: &mut Random, turns: u64) -> Direction {
    let mut rebalance = Rebalance::new(plan.clone(), 0);
    let (mut world, mut under_way, mut now) = (World::new(plan), Vec::new(), 0);
    let (mut turns_left, mut next_op, mut trusted_from) = (turns, id(0, 0), id(0, 0));
    rebalance.step(now, Input::Tick);
    for _ in 0..1_000_000 {
        take(&mut rebalance, &mut world, &mut under_way);
        next_op =
            under_way.iter().map(|output| id(0, op_of(output).number + 1)).fold(next_op, OpId::max);
        if rebalance.progress().state == State::Finished && turns_left == 0 {
            break;
        }
        if turns_left > 0 && random.below(plan.moves().len() as u64 + 4) == 0 {
            turns_left -= 1;
            trusted_from = next_op;
            rebalance.step(now, Input::TurnBack);
        } else if under_way.is_empty() {
            if rebalance.progress().state == State::Finished {
                turns_left = turns_left.saturating_sub(1);
                if turns_left == 0 {
                    break;
                }
                rebalance.step(now, Input::TurnBack);
                continue;
            }
            now = rebalance.next_deadline().expect("something must be due").max(now);
            rebalance.step(now, Input::Tick);
        } else {
            let nth = random.below(under_way.len() as u64) as usize;
            let op = carry_out(&mut world, &mut under_way, nth, trusted_from);
            rebalance.step(now, Input::Done(op));
        }
    }
    let direction = rebalance.progress().direction;
    assert_eq!(rebalance.progress().state, State::Finished);
    world.check(plan.changes().iter().map(|change| match direction {
        Direction::Forward => change.new,
        Direction::Back => change.old,
    }));
    direction
}

/// Point 4 of what a plan promises: at no moment fewer replicas than wanted, and at most 1.05 times
/// the least data moved, over random memberships, weights, zones and replica counts.
#[test]
fn every_step_of_every_plan_keeps_the_replicas() {
    let (mut worst, mut moved, mut least) = (1.0_f64, 0.0, 0.0);
    for seed in 0..plans() {
        let mut random = Random(seed << 20);
        let zones = random.below(5);
        let nodes = (0..2 + random.below(10)).map(|id| random_node(&mut random, id * 3, zones));
        let nodes: Vec<Node> = nodes.collect();
        let before = Topology::new(1, nodes).unwrap();
        let after = changed(&mut random, &before, zones);
        let replicas = 1 + random.below(4) as usize;
        let mut config = PlanConfig::default();
        config.moves_per_step = 1 + random.below(20) as usize;
        config.moves_per_node = 1 + random.below(4) as usize;
        let (old, new) = (ring(&before).placement(replicas), ring(&after).placement(replicas));
        let plan = Arc::new(Plan::new(&old, &new, &config).unwrap());
        if plan.least() > 0.0 {
            worst = worst.max(plan.moved() / plan.least());
            assert!(
                plan.moved() <= 1.05 * plan.least(),
                "seed {seed}: moves {} where {} would do",
                plan.moved(),
                plan.least()
            );
        }
        moved += plan.moved();
        least += plan.least();
        check_limits(&plan, &config);
        assert_eq!(run(&plan, &mut random, 0), Direction::Forward, "seed {seed}");
        run(&plan, &mut random, 1);
        run(&plan, &mut random, 4);
    }
    println!("moved {moved:.3} of at least {least:.3}: {:.4}, worst {worst:.4}", moved / least);
}

fn check_limits(plan: &Plan, config: &PlanConfig) {
    let mut all = 0;
    for step in plan.steps() {
        assert!(!step.is_empty() && step.len() <= config.moves_per_step);
        let mut used: HashMap<u64, usize> = HashMap::new();
        for one in step {
            for id in [one.from, one.to].into_iter().flatten() {
                *used.entry(id).or_default() += 1;
            }
        }
        assert!(used.values().all(|&moves| moves <= config.moves_per_node));
        all += step.len();
    }
    assert_eq!(all, plan.moves().len());
}

/// What the plan says moved is what really differs, position by position.
#[test]
fn a_plan_covers_exactly_what_differs() {
    let before = topology(9);
    let after = before.without(4).unwrap().with(Node::new(77)).unwrap();
    let (old, new) = (ring(&before).placement(3), ring(&after).placement(3));
    let plan = Plan::new(&old, &new, &PlanConfig::default()).unwrap();
    let mut random = Random(5);
    for _ in 0..20_000 {
        let position = hash::mix(random.below(u64::MAX));
        let (was, will) = (old.owners_at(position), new.owners_at(position));
        let change = plan.changes().iter().find(|change| change.range.contains(position));
        match change {
            Some(change) => {
                assert!(change.old.same_set(&was) && change.new.same_set(&will));
            }
            None => assert!(was.same_set(&will)),
        }
    }
    let shares = |placement: &Placement| placement.shares().into_iter().collect::<BTreeMap<_, _>>();
    let (was, will) = (shares(&old), shares(&new));
    let gain: f64 = will
        .iter()
        .map(|(id, share)| share - was.get(id).unwrap_or(&0.0))
        .filter(|gain| *gain > 0.0)
        .sum();
    assert!((gain - plan.least()).abs() < 1e-9);
    assert!((was.values().sum::<f64>() - 3.0).abs() < 1e-9);
}

/// A store of real keys under a plan: writes go on and miss up to `may_miss` nodes, operations
/// fail, the executor is paused, turned back and restarted from its checkpoint at every step. Every
/// write that was ever acknowledged is missing from at most `may_miss` nodes that may be read.
struct Store {
    held: HashMap<u64, BTreeMap<u64, u64>>,
    acknowledged: BTreeMap<u64, u64>,
    written: u64,
    may_miss: usize,
}

impl Store {
    fn new(old: &Placement, may_miss: usize) -> Self {
        let (held, acknowledged) = (HashMap::new(), BTreeMap::new());
        let mut store = Self { held, acknowledged, written: 0, may_miss };
        for n in 0..400 {
            let position = hash::mix(n);
            for &node in &old.owners_at(position) {
                store.held.entry(node).or_default().insert(position, 0);
            }
            store.acknowledged.insert(position, 0);
        }
        store
    }

    fn write(
        &mut self,
        rebalance: &Rebalance,
        old: &Placement,
        position: u64,
        random: &mut Random,
    ) {
        self.written += 1;
        let owners = rebalance.route(position).map_or_else(|| old.owners_at(position), |r| r.write);
        let mut nodes = owners.to_vec();
        for _ in 0..self.may_miss {
            nodes.swap_remove(random.below(nodes.len() as u64) as usize);
        }
        for node in nodes {
            self.held.entry(node).or_default().insert(position, self.written);
        }
        self.acknowledged.insert(position, self.written);
    }

    fn check(&self, rebalance: &Rebalance, old: &Placement, wanted: usize) {
        for (&position, &value) in &self.acknowledged {
            let owners =
                rebalance.route(position).map_or_else(|| old.owners_at(position), |r| r.read);
            assert!(owners.len() >= wanted, "{position:x} is readable at {owners:?} only");
            let lacks = |node: &&u64| {
                self.held.get(*node).and_then(|held| held.get(&position)) != Some(&value)
            };
            let lacking: Vec<_> = owners.iter().filter(lacks).collect();
            assert!(lacking.len() <= self.may_miss, "{position:x} is missing at {lacking:?}");
        }
    }

    /// Merges one source more than writes may miss. Half-done copies and removals are what
    /// failures and restarts leave behind.
    fn carry_out(&mut self, output: &Output, part: u64, random: &mut Random) {
        match *output {
            Output::Copy { range, sources, target, .. } => {
                let mut sources = sources.to_vec();
                while sources.len() > self.may_miss + 1 {
                    sources.swap_remove(random.below(sources.len() as u64) as usize);
                }
                for source in sources {
                    let from = self.held.get(&source).cloned().unwrap_or_default();
                    let inside = from.range(range.start..=range.end);
                    let target = self.held.entry(target).or_default();
                    for (&position, &value) in inside.filter(|(p, _)| hash::mix(**p) % 2 < part) {
                        let held = target.entry(position).or_insert(value);
                        *held = value.max(*held);
                    }
                }
            }
            Output::Remove { range, node, .. } => {
                let held = self.held.entry(node).or_default();
                held.retain(|p, _| !range.contains(*p) || hash::mix(*p) % 2 >= part);
            }
            _ => {}
        }
    }
}

fn id(incarnation: u64, number: u64) -> OpId {
    OpId { incarnation, number }
}

fn op_of(output: &Output) -> OpId {
    match output {
        Output::Copy { op, .. } | Output::Remove { op, .. } => *op,
        other => panic!("{other:?}"),
    }
}

fn drain(rebalance: &mut Rebalance, under_way: &mut Vec<Output>) {
    while let Some(output) = rebalance.poll_output() {
        if matches!(output, Output::Copy { .. } | Output::Remove { .. }) {
            under_way.push(output);
        }
    }
}

#[test]
fn nothing_is_lost_by_failing_pausing_turning_or_restarting() {
    for seed in 0..(plans() / 20).max(1) {
        disturbed(seed, 2, 0);
    }
}

/// Three replicas with write quorums of two and of one.
#[test]
fn nothing_is_lost_where_writes_miss_nodes_and_copies_merge_enough_sources() {
    for seed in 0..(plans() / 20).max(1) {
        disturbed(seed, 3, 1);
        disturbed(seed, 3, 2);
    }
}

fn disturbed(seed: u64, replicas: usize, may_miss: usize) {
    let mut random = Random(seed << 24);
    let before = topology(6);
    let between = changed(&mut random, &before, 0);
    let after = changed(&mut random, &between, 0);
    let (old, new) = (ring(&before).placement(replicas), ring(&after).placement(replicas));
    let mut config = PlanConfig::default();
    config.moves_per_step = 8;
    config.step_pause = Duration::from_nanos(random.below(3));
    let plan = Arc::new(Plan::new(&old, &new, &config).unwrap());
    let mut store = Store::new(&old, may_miss);
    let mut incarnation = 0;
    let mut rebalance = Rebalance::new(plan.clone(), 0);
    let (mut under_way, mut now, mut left) = (Vec::new(), 0, 600);
    rebalance.step(now, Input::Tick);
    loop {
        let mut asked = Vec::new();
        drain(&mut rebalance, &mut asked);
        let checkpoint = rebalance.checkpoint();
        under_way.append(&mut asked);
        left -= 1;
        let disturb = left > 0;
        match random.below(if disturb { 12 } else { 4 }) {
            4 => rebalance.step(now, Input::Pause),
            5 => rebalance.step(now, Input::Resume),
            6 if random.below(8) == 0 => rebalance.step(now, Input::TurnBack),
            7 | 8 if !under_way.is_empty() => {
                let output = under_way.swap_remove(random.below(under_way.len() as u64) as usize);
                store.carry_out(&output, 1, &mut random);
                rebalance.step(now, Input::Failed(op_of(&output)));
            }
            9 if random.below(6) == 0 => {
                // The process ends with operations half done, another one goes on, and the
                // completions of the first still arrive.
                incarnation += 1;
                rebalance = Rebalance::restore(plan.clone(), checkpoint, incarnation).unwrap();
                rebalance.step(now, Input::Tick);
                for output in under_way.drain(..) {
                    store.carry_out(&output, 1, &mut random);
                    rebalance.step(now, Input::Done(op_of(&output)));
                }
            }
            _ if !under_way.is_empty() => {
                let output = under_way.swap_remove(random.below(under_way.len() as u64) as usize);
                store.carry_out(&output, 2, &mut random);
                rebalance.step(now, Input::Done(op_of(&output)));
            }
            _ => {
                let deadline = rebalance.next_deadline();
                let is_running = rebalance.progress().state == State::Running;
                assert_eq!(deadline.is_some(), is_running, "nothing is under way: seed {seed}");
                if !disturb {
                    rebalance.step(now, Input::Resume);
                }
                now = deadline.unwrap_or(now).max(now);
                rebalance.step(now, Input::Tick);
            }
        }
        let position = hash::mix(random.below(400));
        store.write(&rebalance, &old, position, &mut random);
        store.check(&rebalance, &old, replicas);
        if !disturb && rebalance.progress().state == State::Finished && under_way.is_empty() {
            break;
        }
    }
    let progress = rebalance.progress();
    assert_eq!(progress.in_flight, 0);
    let back = progress.direction == Direction::Back;
    assert_eq!(progress.moves_done, if back { 0 } else { progress.moves });
}

#[test]
fn steps_are_throttled_and_failures_wait() {
    let (old, new) = (ring(&topology(4)).placement(2), ring(&topology(5)).placement(2));
    let mut config = PlanConfig::default();
    config.moves_per_step = 2;
    config.step_pause = Duration::from_micros(1);
    config.retry_after = Duration::from_nanos(50);
    let mut rebalance = Rebalance::new(Arc::new(Plan::new(&old, &new, &config).unwrap()), 0);
    let mut under_way = Vec::new();
    rebalance.step(10, Input::Tick);
    drain(&mut rebalance, &mut under_way);
    assert!((1..=2).contains(&under_way.len()));
    let first = under_way.remove(0);
    rebalance.step(20, Input::Failed(op_of(&first)));
    assert_eq!(rebalance.next_deadline(), Some(70), "a failed move waits");
    rebalance.step(69, Input::Tick);
    assert_eq!(rebalance.poll_output(), None);
    rebalance.step(70, Input::Tick);
    drain(&mut rebalance, &mut under_way);
    while let Some(output) = under_way.pop() {
        rebalance.step(100, Input::Done(op_of(&output)));
        drain(&mut rebalance, &mut under_way);
    }
    assert_eq!((rebalance.progress().step, rebalance.next_deadline()), (1, Some(1100)));
    rebalance.step(1099, Input::Tick);
    assert_eq!(rebalance.poll_output(), None, "the step after waits");
    rebalance.step(1100, Input::Tick);
    assert!(rebalance.poll_output().is_some());
    assert_eq!(rebalance.progress().failures, 1);
}

/// Steps that were done before a restart need nothing. Going over them must come to an end, in
/// either direction, also where the steps are apart.
#[test]
fn a_restored_plan_goes_on_past_the_steps_that_were_done() {
    let (old, new) = (ring(&topology(4)).placement(2), ring(&topology(5)).placement(2));
    let mut config = PlanConfig::default();
    config.moves_per_step = 2;
    config.step_pause = Duration::from_secs(1);
    let plan = Arc::new(Plan::new(&old, &new, &config).unwrap());
    let steps = plan.steps().len();
    assert!(steps > 4, "{steps}");
    for (back, is_back) in [(3, false), (3, true), (steps, true)] {
        let mut first = Rebalance::new(plan.clone(), 1);
        let (mut now, mut under_way) = (0, Vec::new());
        while first.progress().step < back && first.progress().state == State::Running {
            now = first.next_deadline().expect("a deadline");
            first.step(now, Input::Tick);
            drain(&mut first, &mut under_way);
            while let Some(output) = under_way.pop() {
                first.step(now, Input::Done(op_of(&output)));
                drain(&mut first, &mut under_way);
            }
        }
        if is_back {
            first.step(now, Input::TurnBack);
            drain(&mut first, &mut under_way);
        }
        let mut second = Rebalance::restore(plan.clone(), first.checkpoint(), 2).unwrap();
        let began = now;
        second.step(now, Input::Tick);
        let mut pauses = 0;
        under_way.clear();
        drain(&mut second, &mut under_way);
        // Ends: each turn completes an operation, or passes a step.
        while second.progress().state != State::Finished {
            if let Some(output) = under_way.pop() {
                second.step(now, Input::Done(op_of(&output)));
            } else {
                now = second.next_deadline().expect("it stops for ever").max(now);
                pauses += 1;
                second.step(now, Input::Tick);
            }
            drain(&mut second, &mut under_way);
        }
        let left = if is_back { back.min(steps) } else { steps - back };
        assert!(pauses < left, "{pauses} pauses for {left} steps");
        assert!(now - began < left as u64 * 1_000_000_000);
        assert_eq!(second.next_deadline(), None);
    }
}

/// A hole of steps that are done between others, as an earlier process leaves it whose steps were
/// turned back and forth: the pause after the step before it ends.
#[test]
fn a_pause_before_a_step_that_needs_nothing_ends() {
    let (old, new) = (ring(&topology(4)).placement(2), ring(&topology(5)).placement(2));
    let mut config = PlanConfig::default();
    config.moves_per_step = 2;
    config.step_pause = Duration::from_secs(1);
    let plan = Arc::new(Plan::new(&old, &new, &config).unwrap());
    let mut rebalance = Rebalance::new(plan.clone(), 1);
    let mut checkpoint = rebalance.checkpoint();
    let sizes: Vec<usize> = plan.steps().map(<[_]>::len).collect();
    let second = sizes[0]..sizes[0] + sizes[1];
    for (one, sides) in plan.moves()[second.clone()].iter().zip(&mut checkpoint.sides[second]) {
        let held = if one.to.is_some() { Side::Held } else { Side::Absent };
        *sides = (Side::Absent, held);
    }
    rebalance = Rebalance::restore(plan, checkpoint, 2).unwrap();
    let (mut now, mut under_way) = (0, Vec::new());
    // Ends: each turn completes an operation, or passes a step.
    while rebalance.progress().state != State::Finished {
        now = rebalance.next_deadline().expect("it stops for ever").max(now);
        rebalance.step(now, Input::Tick);
        drain(&mut rebalance, &mut under_way);
        while let Some(output) = under_way.pop() {
            rebalance.step(now, Input::Done(op_of(&output)));
            drain(&mut rebalance, &mut under_way);
        }
    }
}

/// A completion of the first life of an operation must not complete its second.
#[test]
fn stale_and_unknown_completions_are_ignored() {
    let (old, new) = (ring(&topology(4)).placement(2), ring(&topology(5)).placement(2));
    let plan = Plan::new(&old, &new, &PlanConfig::default()).unwrap();
    let mut rebalance = Rebalance::new(Arc::new(plan), 0);
    rebalance.step(0, Input::Tick);
    let mut under_way = Vec::new();
    drain(&mut rebalance, &mut under_way);
    let (op, range) = match under_way[0] {
        Output::Copy { op, range, .. } => (op, range),
        ref other => panic!("{other:?}"),
    };
    rebalance.step(0, Input::Failed(op));
    rebalance.step(0, Input::Done(op));
    rebalance.step(0, Input::Done(id(0, u64::MAX)));
    let route = rebalance.route(range.start).unwrap();
    assert_eq!((route.read.len(), route.write.len()), (2, 3), "the copy has not been made");
}

/// Two replicas of one range move at once: the first to arrive does not take a source away from the
/// copy that is still under way.
#[test]
fn no_source_is_removed_while_a_copy_reads_it() {
    let slots = |ids: std::ops::Range<u64>, epoch| {
        let nodes = Topology::new(epoch, ids.map(Node::new)).unwrap();
        Placement::slots(&ring(&nodes), epoch, 1, 3).unwrap()
    };
    let plan = Plan::new(&slots(0..3, 1), &slots(10..13, 2), &PlanConfig::default()).unwrap();
    assert_eq!((plan.changes().len(), plan.moves().len(), plan.steps().len()), (1, 3, 1));
    let mut rebalance = Rebalance::new(Arc::new(plan), 0);
    rebalance.step(0, Input::Tick);
    let mut copies = Vec::new();
    drain(&mut rebalance, &mut copies);
    while let Some(copy) = copies.pop() {
        let Output::Copy { op, sources, .. } = copy else { panic!("{copy:?} before all copies") };
        assert_eq!(sources.len(), 3);
        assert_eq!(rebalance.next_deadline(), None, "a removal that waits has no deadline");
        rebalance.step(0, Input::Done(op));
        if !copies.is_empty() {
            assert_eq!(rebalance.poll_output(), None);
        }
    }
    drain(&mut rebalance, &mut copies);
    assert_eq!(copies.len(), 3, "all that were replaced are removed: {copies:?}");
}

/// A late completion from before a restart must not complete the new copy, whose source would be
/// removed then.
#[test]
fn completions_of_an_earlier_incarnation_are_ignored() {
    let (old, new) = (ring(&topology(4)).placement(1), ring(&topology(5)).placement(1));
    let plan = Arc::new(Plan::new(&old, &new, &PlanConfig::default()).unwrap());
    let mut first = Rebalance::new(plan.clone(), 1);
    first.step(0, Input::Tick);
    let mut asked = Vec::new();
    drain(&mut first, &mut asked);
    let mut second = Rebalance::restore(plan, first.checkpoint(), 2).unwrap();
    second.step(0, Input::Tick);
    let mut again = Vec::new();
    drain(&mut second, &mut again);
    assert_eq!(asked.len(), again.len());
    for late in &asked {
        second.step(0, Input::Done(op_of(late)));
    }
    assert_eq!((second.poll_output(), second.progress().moves_done), (None, 0));
    second.step(0, Input::Done(op_of(&again[0])));
    assert!(matches!(second.poll_output(), Some(Output::Remove { .. })));
}

/// A copy under way when the plan is turned back and forth again has missed writes meanwhile.
#[test]
fn a_copy_that_missed_writes_is_made_again() {
    let (old, new) = (ring(&topology(4)).placement(1), ring(&topology(5)).placement(1));
    let plan = Plan::new(&old, &new, &PlanConfig::default()).unwrap();
    let mut rebalance = Rebalance::new(Arc::new(plan), 0);
    rebalance.step(0, Input::Tick);
    let Some(Output::Copy { op, range, target, .. }) = rebalance.poll_output() else {
        panic!("a copy first")
    };
    rebalance.step(0, Input::TurnBack);
    assert!(!rebalance.route(range.end).unwrap().write.contains(&target));
    rebalance.step(0, Input::TurnBack);
    rebalance.step(0, Input::Done(op));
    assert!(!rebalance.route(range.end).unwrap().read.contains(&target));
    let mut again = Vec::new();
    drain(&mut rebalance, &mut again);
    let made_again =
        |output: &Output| matches!(output, Output::Copy { range: r, .. } if *r == range);
    assert!(again.iter().any(made_again));
}

#[test]
fn lost_nodes_are_not_read_and_what_only_they_held_is_told() {
    let before = topology(5);
    let after = before.without(2).unwrap();
    let (old, new) = (ring(&before), ring(&after));
    let config = PlanConfig::default();
    let plan = Plan::after_loss(&old.placement(2), &new.placement(2), &[2], &config).unwrap();
    assert!(plan.unrecoverable().is_empty());
    let mut rebalance = Rebalance::new(Arc::new(plan), 0);
    rebalance.step(0, Input::Tick);
    let mut under_way = Vec::new();
    drain(&mut rebalance, &mut under_way);
    while let Some(output) = under_way.pop() {
        match output {
            Output::Copy { sources, target, .. } => assert!(!sources.contains(&2) && target != 2),
            Output::Remove { node, .. } => assert_ne!(node, 2),
            _ => {}
        }
        rebalance.step(0, Input::Done(op_of(&output)));
        drain(&mut rebalance, &mut under_way);
    }
    assert_eq!(rebalance.progress().state, State::Finished);
    let plan = Plan::after_loss(&old.placement(1), &new.placement(1), &[2], &config).unwrap();
    let lost: f64 = plan.unrecoverable().iter().map(|range| range.share()).sum();
    let share = old.placement(1).shares().into_iter().find(|(id, _)| *id == 2).unwrap().1;
    assert!((lost - share).abs() < 1e-9);
}

/// After a loss no position leads to a node that is lost, whether its range needs a move or not.
#[test]
fn no_route_leads_to_a_lost_node() {
    let (mut all_lost, mut shortened, mut agreeing) = (0, 0, 0);
    for nodes in 3..7 {
        let before = topology(nodes);
        let after = before.without(1).unwrap().without(2).unwrap();
        let (old, new) = (ring(&before).placement(2), ring(&after).placement(2));
        let lost = [1, 2];
        let plan = Plan::after_loss(&old, &new, &lost, &PlanConfig::default()).unwrap();
        let unrecoverable = plan.unrecoverable().to_vec();
        let mut rebalance = Rebalance::new(Arc::new(plan), 0);
        let mut under_way = Vec::new();
        let mut check = |rebalance: &Rebalance| {
            for n in 0..2_000 {
                let position = hash::mix(n);
                let (was, will) = (old.owners_at(position), new.owners_at(position));
                let Some(route) = rebalance.route(position) else {
                    assert!(was.same_set(&will), "{was:?} and {will:?} do not agree");
                    agreeing += 1;
                    continue;
                };
                let all = || route.read.iter().chain(&route.write);
                assert!(all().all(|id| !lost.contains(id)), "{route:?} has lost nodes");
                assert!(!route.write.is_empty());
                let is_lost = unrecoverable.iter().any(|range| range.contains(position));
                assert_eq!(route.read.is_empty(), is_lost);
                all_lost += u32::from(is_lost);
                let left = was.iter().filter(|id| !lost.contains(id)).count();
                shortened += u32::from(left == 1 && will.len() == 1);
            }
        };
        check(&rebalance);
        rebalance.step(0, Input::Tick);
        drain(&mut rebalance, &mut under_way);
        check(&rebalance);
        while let Some(output) = under_way.pop() {
            rebalance.step(0, Input::Done(op_of(&output)));
            drain(&mut rebalance, &mut under_way);
        }
        assert_eq!(rebalance.progress().state, State::Finished);
        check(&rebalance);
    }
    assert!(all_lost > 0 && shortened > 0 && agreeing > 0, "{all_lost} {shortened} {agreeing}");
}

/// Algorithms without ranges move their data by fixed slots.
#[test]
fn slots_carry_any_algorithm() {
    let (before, after) = (topology(10), topology(11));
    let (old, new) = (Maglev::new(&before).unwrap(), Maglev::new(&after).unwrap());
    let place = |of: &dyn Partitioner, epoch| Placement::slots(of, epoch, 4096, 2).unwrap();
    let (a, b) = (place(&old, 1), place(&new, 2));
    let slot = slot_of(b"some key", 4096);
    assert_eq!(a.owners_at(hash::key(b"some key")), old.owners(&slot.to_le_bytes(), 2));
    let plan = Arc::new(Plan::new(&a, &b, &PlanConfig::default()).unwrap());
    assert!(plan.moved() > 0.1 && plan.moved() < 0.5, "{}", plan.moved());
    run(&plan, &mut Random(1), 0);
}

#[test]
fn plans_refuse_what_they_cannot_keep() {
    let config = PlanConfig::default();
    let one = ring(&topology(3));
    let (two, nine) = (one.placement(2), one.placement(9));
    let differ = Plan::new(&two, &one.placement(3), &config).unwrap_err();
    assert_eq!(differ, PlanError::ReplicasDiffer { from: 2, to: 3 });
    assert!(matches!(Plan::new(&nine, &nine, &config), Err(PlanError::Build(_))));
    assert!(matches!(Placement::slots(&one, 1, 0, 2), Err(PlanError::Build(_))));
    let mut none = config.clone();
    none.moves_per_node = 0;
    let error = Plan::new(&two, &two, &none).unwrap_err();
    assert!(matches!(error, PlanError::Config(error) if error.field == "moves_per_node"));
    let nothing = Plan::new(&two, &two, &config).unwrap();
    let mut rebalance = Rebalance::new(Arc::new(nothing), 0);
    rebalance.step(0, Input::Tick);
    assert_eq!(rebalance.poll_output(), Some(Output::Finished(Direction::Forward)));
}
