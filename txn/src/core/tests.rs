//! Lives of a saga over peers that fail in every way, with crashes anywhere, against the
//! obligations of a saga.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use voussoir_sim::Situations;

use super::event::{Direction, Event};
use super::graph::{Graph, Kind, Node, StepId};
use super::progress::{Phase, Status};
use super::run::{Call, End, Failure, Input, Output, Resolution, Run};
use crate::config::Retry;

static SITUATIONS: [&str; 22] = [
    "a saga completes",
    "a saga is undone",
    "a saga is undone past a crash",
    "a saga is aborted",
    "a saga's time is over",
    "a domain error of a step",
    "a domain error of the pivot",
    "an action of unknown outcome that ran",
    "an action of unknown outcome that did not run",
    "an attempt whose time is over lands later",
    "a late action meets its tombstone",
    "an action runs twice",
    "an undo runs twice",
    "an undo without an action",
    "steps run in parallel",
    "a probe finds that it ran",
    "a probe finds that it did not run",
    "a step is stuck and tried again",
    "an undo is stuck and skipped",
    "the pivot is resolved by an operator",
    "a crash loses a record",
    "a crash with a call under way",
];

/// What the peer of one step has done, under the keys of the step.
#[derive(Clone, Debug, Default)]
struct Peer {
    ran: bool,
    undone: bool,
    /// Refuses an action that comes after its undo.
    tombstone: bool,
}

/// A call on its way to its peer, which may land after its caller has given it up.
#[derive(Clone, Debug)]
struct Flying {
    step: StepId,
    attempt: u64,
    call: Call,
    lands: u64,
    answers: bool,
    is_of_this_process: bool,
}

struct World<'a> {
    graph: Arc<Graph>,
    peers: Vec<Peer>,
    flying: Vec<Flying>,
    /// Records that are durable, and those that are being written.
    durable: Vec<Event>,
    writing: Vec<(u64, Vec<Event>)>,
    random: fastrand::Rng,
    now: u64,
    /// How likely a call fails, of 100.
    trouble: u32,
    situations: &'a Situations,
    /// The keys of the calls that were made.
    called: BTreeMap<(StepId, Direction), u32>,
}

fn node(random: &mut fastrand::Rng, id: StepId, kind: Kind) -> Node {
    let after = (0..id).filter(|_| random.u8(..3) == 0).collect();
    let mut retry = Retry::exponential(Duration::from_millis(1), random.u32(1..4));
    retry.max_delay = Duration::from_millis(5);
    Node {
        name: format!("step {id}").into(),
        kind,
        after,
        undo_retry: Retry { max_attempts: random.u32(1..6), ..retry.clone() },
        retry,
        timeout: Duration::from_millis(10),
        has_probe: random.u8(..3) == 0,
    }
}

fn graph(random: &mut fastrand::Rng) -> Arc<Graph> {
    let before = random.u16(0..5);
    let behind = random.u16(0..3);
    let has_pivot = before == 0 || random.bool();
    let mut nodes = Vec::new();
    for id in 0..before {
        let has_undo = random.u8(..5) > 0;
        nodes.push(node(random, id, Kind::Compensatable { has_undo }));
    }
    if has_pivot {
        nodes.push(node(random, before, Kind::Pivot));
        for id in 0..behind {
            nodes.push(node(random, before + 1 + id, Kind::Retriable));
        }
    }
    Arc::new(Graph::new("life", 1, nodes).expect("a graph in order"))
}

impl World<'_> {
    fn reached(&self, situation: &'static str) {
        self.situations.reached(situation);
    }

    fn carry_out(&mut self, run: &mut Run) -> Option<End> {
        let mut end = None;
        while let Some(output) = run.poll_output() {
            match output {
                Output::Persist { id, events } => self.writing.push((id, events)),
                Output::Call { step, attempt, call } => self.call(step, attempt, call),
                Output::Cancel { attempt } => {
                    for flying in &mut self.flying {
                        flying.answers &= flying.attempt != attempt;
                    }
                }
                Output::Ended(how) => end = Some(how),
            }
        }
        end
    }

    fn call(&mut self, step: StepId, attempt: u64, call: Call) {
        let direction = if call == Call::Undo { Direction::Undo } else { Direction::Act };
        // S3: no call before its intent is durable.
        let intent = match direction {
            Direction::Act => Event::Intended(step),
            Direction::Undo => Event::UndoIntended(step),
        };
        assert!(self.durable.contains(&intent), "{call:?} of {step} before its intent");
        *self.called.entry((step, direction)).or_default() += 1;
        // Often long after the attempt's time is over.
        let slow = if self.random.u8(..8) == 0 { 40_000_000 } else { 4_000_000 };
        let lands = self.now + self.random.u64(1..slow);
        let mine = true;
        self.flying.push(Flying {
            step,
            attempt,
            call,
            lands,
            answers: true,
            is_of_this_process: mine,
        });
        let own = self.flying.iter().filter(|flying| flying.is_of_this_process && flying.answers);
        if own.count() > 1 {
            self.reached("steps run in parallel");
        }
    }

    /// A call reaches its peer. The answer, if the caller still waits for it.
    fn land(&mut self, flying: &Flying) -> Option<Input> {
        let Flying { step, attempt, call, answers, .. } = *flying;
        let fails = self.random.u32(..100) < self.trouble;
        let how = self.random.u8(..4);
        let input = match call {
            Call::Act => {
                let result = self.act(step, fails, how, answers);
                Input::Acted { step, attempt, result }
            }
            Call::Probe => {
                let ran = self.peers[usize::from(step)].ran;
                // It will not run later either.
                self.peers[usize::from(step)].tombstone |= !ran && !fails && answers;
                let result = if fails {
                    Err(Failure::Transient("busy".into()))
                } else if ran {
                    self.reached("a probe finds that it ran");
                    Ok(Some(output(step)))
                } else {
                    self.reached("a probe finds that it did not run");
                    // The next attempt is a new one to this peer.
                    self.peers[usize::from(step)].tombstone = false;
                    self.flying.retain(|flying| flying.step != step);
                    Ok(None)
                };
                Input::Probed { step, attempt, result }
            }
            Call::Undo => {
                let result = self.undo(step, fails, how);
                Input::Undone { step, attempt, result }
            }
        };
        if !answers {
            self.reached("an attempt whose time is over lands later");
        }
        answers.then_some(input)
    }

    fn act(&mut self, step: StepId, fails: bool, how: u8, answers: bool) -> Result<Bytes, Failure> {
        let kind = self.graph.node(step).kind;
        let is_retriable = kind == Kind::Retriable;
        if fails && how == 0 {
            return Err(Failure::Transient("refused the connection".into()));
        }
        let peer = &mut self.peers[usize::from(step)];
        if peer.tombstone {
            self.reached("a late action meets its tombstone");
            return Err(Failure::Domain("it was cancelled".into()));
        }
        // A peer with keys answers what it answered before.
        if fails && how == 1 && !peer.ran && !is_retriable {
            // It refuses from now on, also attempts that are late.
            peer.tombstone = true;
            self.reached(if kind == Kind::Pivot {
                "a domain error of the pivot"
            } else {
                "a domain error of a step"
            });
            return Err(Failure::Domain("no seat is free".into()));
        }
        if fails && how == 2 {
            if answers {
                self.reached("an action of unknown outcome that did not run");
            }
            return Err(Failure::Unknown("the connection broke".into()));
        }
        if peer.ran {
            self.situations.reached("an action runs twice");
        }
        peer.ran = true;
        if fails {
            self.reached("an action of unknown outcome that ran");
            return Err(Failure::Unknown("the answer was lost".into()));
        }
        Ok(output(step))
    }

    fn undo(&mut self, step: StepId, fails: bool, how: u8) -> Result<(), Failure> {
        if fails && how < 2 {
            return Err(Failure::Transient("busy".into()));
        }
        // S2: what was done with its output is undone before.
        for id in self.graph.dependents(step) {
            let later = &self.peers[usize::from(*id)];
            let has_undo = self.graph.node(*id).kind == Kind::Compensatable { has_undo: true };
            assert!(!has_undo || !later.ran || later.undone, "{step} undone before {id}");
        }
        let peer = &mut self.peers[usize::from(step)];
        if peer.undone {
            self.situations.reached("an undo runs twice");
        }
        if !peer.ran {
            self.situations.reached("an undo without an action");
        }
        (peer.undone, peer.tombstone) = (true, true);
        if fails { Err(Failure::Unknown("the answer was lost".into())) } else { Ok(()) }
    }

    /// S1: all done, or all that ran before the pivot undone.
    fn check_end(&self, run: &Run, end: &End) {
        for id in self.graph.ids() {
            let (peer, kind) = (&self.peers[usize::from(id)], self.graph.node(id).kind);
            match end {
                End::Completed => assert!(peer.ran && !peer.undone, "{id} of a completed saga"),
                End::Undone { .. } => match kind {
                    Kind::Compensatable { has_undo: true } => {
                        assert!(!peer.ran || peer.undone, "{id} ran and was not undone");
                    }
                    Kind::Compensatable { has_undo: false } => {}
                    Kind::Pivot | Kind::Retriable => assert!(!peer.ran, "{id} of an undone saga"),
                },
                End::GivenUp => panic!("nobody gives up here"),
            }
        }
        assert!(matches!(run.state().phase, Phase::Ended(_)));
    }

    /// The process ends. Records that were being written are lost from some point on.
    fn crash(&mut self) {
        let kept = self.random.usize(..=self.writing.len());
        if kept < self.writing.len() {
            self.reached("a crash loses a record");
        }
        for (_, events) in self.writing.drain(..kept) {
            self.durable.extend(events);
        }
        self.writing.clear();
        for flying in &mut self.flying {
            if flying.answers {
                self.situations.reached("a crash with a call under way");
            }
            (flying.answers, flying.is_of_this_process) = (false, false);
        }
    }
}

fn output(step: StepId) -> Bytes {
    Bytes::from(format!("output of {step}"))
}

/// An operator looks at the stuck steps, and asks their peers.
fn resolve(world: &mut World<'_>, run: &mut Run) {
    for step in world.graph.ids() {
        let Some((direction, _)) = run.state().step(step).stuck.clone() else { continue };
        // Calls that are under way have landed before anybody looks.
        let (late, rest): (Vec<Flying>, _) =
            world.flying.drain(..).partition(|flying| flying.step == step);
        world.flying = rest;
        for flying in late {
            let landed = world.land(&flying);
            assert!(landed.is_none(), "a stuck step calls nobody");
        }
        let peer = world.peers[usize::from(step)].clone();
        let resolution = match direction {
            Direction::Undo if peer.undone || !peer.ran => {
                world.peers[usize::from(step)].undone = true;
                world.peers[usize::from(step)].tombstone = true;
                world.reached("an undo is stuck and skipped");
                Resolution::Skip
            }
            Direction::Act if world.graph.node(step).kind == Kind::Pivot && world.random.bool() => {
                world.reached("the pivot is resolved by an operator");
                if peer.ran { Resolution::Replace(output(step)) } else { Resolution::NotRun }
            }
            _ => {
                world.reached("a step is stuck and tried again");
                Resolution::Retry
            }
        };
        run.resolve(step, resolution, world.now).expect("a resolution that fits");
    }
}

fn life(seed: u64, situations: &Situations) {
    let mut random = fastrand::Rng::with_seed(seed);
    let graph = graph(&mut random);
    let mut world = World {
        peers: vec![Peer::default(); graph.len()],
        graph: Arc::clone(&graph),
        flying: Vec::new(),
        durable: Vec::new(),
        writing: Vec::new(),
        now: 1_000,
        trouble: random.u32(0..80),
        random,
        situations,
        called: BTreeMap::new(),
    };
    let deadline = (world.random.u8(..6) == 0).then(|| world.random.u64(1..30_000_000));
    let aborts_at = if world.random.u8(..6) == 0 { world.random.u32(..30) } else { u32::MAX };
    let crashes = world.random.u8(..12);
    let mut run = Run::start(graph, Bytes::from_static(b"in"), deadline, seed, world.now);
    let (mut crashed, mut round) = (false, 0);
    // Trouble ends, so that each saga ends.
    loop {
        round += 1;
        assert!(round < 100_000, "seed {seed}: no end");
        if round > 400 {
            world.trouble = 0;
        }
        if let Some(end) = world.carry_out(&mut run) {
            world.check_end(&run, &end);
            if end != End::Completed && crashed {
                situations.reached("a saga is undone past a crash");
            }
            situations.reached(match &end {
                End::Completed => "a saga completes",
                End::Undone { cause: super::Cause::Abort, .. } => "a saga is aborted",
                End::Undone { cause: super::Cause::Deadline, .. } => "a saga's time is over",
                _ => "a saga is undone",
            });
            // What was on its way lands on peers that know better.
            for flying in std::mem::take(&mut world.flying) {
                let _ = world.land(&flying);
            }
            world.check_end(&run, &end);
            return;
        }
        if round == aborts_at {
            run.step(world.now, Input::Abort("a customer's whim".into()));
            continue;
        }
        if round < 400 && world.random.u8(..100) < crashes {
            crashed = true;
            world.crash();
            if world.durable.is_empty() {
                // It never began.
                return;
            }
            // The record survives its encoding, and a state its own events.
            let events = Event::decode(Event::encode(&world.durable)).expect("own events");
            let graph = Arc::clone(&world.graph);
            let seed = world.random.u64(..);
            run = Run::recover(graph, &events, seed, world.now).expect("its own record");
            if let Some(end) = run.end() {
                // It had ended before, and nobody was told.
                return world.check_end(&run, &end);
            }
            continue;
        }
        if run.is_stuck() && world.writing.is_empty() {
            resolve(&mut world, &mut run);
            continue;
        }
        advance(&mut world, &mut run);
    }
}

/// The next thing happens: a record is durable, a call lands, or time passes.
fn advance(world: &mut World<'_>, run: &mut Run) {
    if !world.writing.is_empty() && world.random.bool() {
        let (id, events) = world.writing.remove(0);
        world.durable.extend(events);
        run.step(world.now, Input::Persisted(id));
        return;
    }
    let next = (0..world.flying.len()).min_by_key(|at| world.flying[*at].lands);
    let lands = next.map(|at| world.flying[at].lands);
    let timer = run.next_deadline();
    match (lands, timer) {
        (Some(lands), timer) if timer.is_none_or(|timer| lands <= timer) => {
            let flying = world.flying.remove(next.expect("it lands"));
            world.now = world.now.max(lands);
            if let Some(input) = world.land(&flying) {
                run.step(world.now, input);
            }
        }
        (_, Some(timer)) => {
            world.now = world.now.max(timer);
            run.step(world.now, Input::Tick);
        }
        _ => assert!(!world.writing.is_empty(), "nothing is left to happen: {run:?}"),
    }
}

#[test]
fn every_saga_ends_done_or_undone() {
    let lives = std::env::var("VOUSSOIR_SAGA_LIVES");
    let lives: u64 = lives.ok().and_then(|lives| lives.parse().ok()).unwrap_or(100_000);
    let first = std::env::var("VOUSSOIR_SEED").ok().and_then(|seed| seed.parse().ok());
    let situations = Situations::new(&SITUATIONS);
    if let Some(seed) = first {
        return life(seed, &situations);
    }
    for seed in 0..lives {
        let result =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| life(seed, &situations)));
        if let Err(panic) = result {
            eprintln!(
                "replay: VOUSSOIR_SEED={seed} cargo test -p voussoir-txn --lib every_saga_ends"
            );
            std::panic::resume_unwind(panic);
        }
    }
    situations.assert_all_reached();
}

/// A state that is written as a whole is the same state.
#[test]
fn a_rewritten_saga_is_the_same() {
    let situations = Situations::new(&SITUATIONS);
    for seed in 0..2_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let graph = graph(&mut random);
        let mut world = World {
            peers: vec![Peer::default(); graph.len()],
            graph: Arc::clone(&graph),
            flying: Vec::new(),
            durable: Vec::new(),
            writing: Vec::new(),
            now: 1_000,
            trouble: random.u32(0..80),
            random,
            situations: &situations,
            called: BTreeMap::new(),
        };
        let graph = Arc::clone(&world.graph);
        let mut run = Run::start(Arc::clone(&graph), Bytes::new(), Some(9), seed, world.now);
        for _ in 0..world.random.u32(1..60) {
            if world.carry_out(&mut run).is_some() || run.is_stuck() {
                break;
            }
            advance(&mut world, &mut run);
        }
        let events = run.state().events();
        let again = Run::recover(Arc::clone(&graph), &events, seed, world.now).expect("a state");
        let statuses = |run: &Run| -> Vec<(Status, Option<Bytes>)> {
            run.state()
                .steps
                .iter()
                .map(|step| (step.status.clone(), step.output.clone()))
                .collect()
        };
        // What is settled by the recovery itself goes on from there.
        for (was, is) in statuses(&run).iter().zip(statuses(&again)) {
            assert!(is == *was || is.0 != Status::Waiting, "seed {seed}: {was:?} became {is:?}");
        }
        assert_eq!(run.state().cause.is_some(), again.state().cause.is_some(), "seed {seed}");
    }
}

#[test]
fn a_late_answer_counts_for_nothing() {
    let mut random = fastrand::Rng::with_seed(1);
    let mut only = node(&mut random, 0, Kind::Compensatable { has_undo: true });
    only.retry = Retry::exponential(Duration::ZERO, 9);
    only.has_probe = false;
    let graph = Arc::new(Graph::new("order", 1, vec![only]).expect("a graph"));
    let mut run = Run::start(graph, Bytes::new(), None, 1, 0);
    run.step(0, Input::Persisted(1));
    // Two attempts, the first of which was given up.
    run.step(10_000_000, Input::Tick);
    run.step(10_000_001, Input::Tick);
    let late = Bytes::from_static(b"late");
    run.step(10_000_001, Input::Acted { step: 0, attempt: 1, result: Ok(late) });
    assert_eq!(run.state().step(0).status, Status::Intended);
    let now = Bytes::from_static(b"now");
    run.step(10_000_002, Input::Acted { step: 0, attempt: 2, result: Ok(now.clone()) });
    assert_eq!(run.state().step(0).output, Some(now));
}

#[test]
fn a_record_of_another_shape_is_refused() {
    let mut random = fastrand::Rng::with_seed(1);
    let node = |random: &mut _, id| node(random, id, Kind::Compensatable { has_undo: true });
    let two = vec![node(&mut random, 0), node(&mut random, 1)];
    let one = vec![two[0].clone()];
    let two = Arc::new(Graph::new("order", 1, two).expect("a graph"));
    let one = Arc::new(Graph::new("order", 1, one).expect("a graph"));
    let run = Run::start(two, Bytes::new(), None, 1, 1);
    let error = Run::recover(one, &run.state().events(), 1, 1).expect_err("another shape");
    assert_eq!(error.to_string(), "the definition of the saga has changed since it began");
}

/// Bytes that are no record, cut records, and events in an order that no saga has, are errors.
#[test]
fn garbled_records_are_errors() {
    let mut random = fastrand::Rng::with_seed(7);
    let graph = graph(&mut random);
    let run = Run::start(Arc::clone(&graph), Bytes::from_static(b"in"), Some(5), 1, 1);
    let record = Event::encode(&run.state().events());
    assert!(Event::decode(record.clone()).is_ok());
    for len in 0..record.len() {
        assert!(Event::decode(record.slice(..len)).is_err(), "cut to {len}");
    }
    let mut kinds = HashSet::new();
    for _ in 0..20_000 {
        let mut bytes = record.to_vec();
        for _ in 0..random.u8(1..4) {
            let at = random.usize(..bytes.len());
            bytes[at] = random.u8(..);
        }
        match Event::decode(bytes.into()) {
            Ok(events) => {
                // Applying them may fail, and panics never.
                let _ = Run::recover(Arc::clone(&graph), &events, 1, 1);
            }
            Err(error) => {
                kinds.insert(std::mem::discriminant(&error));
            }
        }
    }
    assert_eq!(kinds.len(), 3, "unknown format, unknown kind, garbled");
}
