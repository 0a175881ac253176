//! What clients record: answers, refused calls, unknown outcomes, and the time of recovery.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use voussoir_sim::{
    Answer, Clients, ClientsConfig, Config, Context, Ended, FaultClass, FaultSet, MILLISECOND,
    Node, RequestId, Rng, SECOND, Step, Workload, World,
};

/// Answers the number that it was asked, as node 1; sends clients there, as node 2; never answers,
/// as node 3.
struct Moody;

impl Node for Moody {
    type Disk = ();
    type Event = ();
    type Request = u64;
    type Reply = Option<u64>;

    fn start(&mut self, _: &mut Context<'_, Self>) {}
    fn timer(&mut self, _: &mut Context<'_, Self>) {}
    fn message(&mut self, _: &mut Context<'_, Self>, _: u64, _: Bytes) {}
    fn event(&mut self, _: &mut Context<'_, Self>, (): ()) {}
    fn request(&mut self, ctx: &mut Context<'_, Self>, id: RequestId, request: u64) {
        match ctx.id() {
            1 => ctx.reply(id, Some(request)),
            2 => ctx.reply(id, None),
            _ => {}
        }
    }
}

#[derive(Default)]
struct Numbers {
    drawn: u64,
}

impl Workload for Numbers {
    type Op = u64;
    type Ret = u64;
    type Reply = Option<u64>;

    fn next_op(&mut self, _: u64, _: u64, _: &mut Rng) -> u64 {
        self.drawn += 1;
        self.drawn
    }
    fn answer(&mut self, _: u64, _: &u64, reply: Option<u64>) -> Answer<u64> {
        reply.map_or(Answer::NotApplied { redirect: Some(1) }, Answer::Ok)
    }
}

fn world(seed: u64, nodes: u64) -> World<Moody> {
    let mut config = Config::default();
    config.faults = FaultSet::NONE.with(FaultClass::ClientLoss);
    (config.faults_ns, config.settle_ns) = (SECOND, ClientsConfig::default().settle_ns());
    let mut world = World::new(config.plan(seed).unwrap(), |_| Some(Moody));
    (1..=nodes).for_each(|id| world.add_node(id, ()));
    world
}

#[test]
fn every_outcome_is_recorded_and_a_redirect_is_followed() {
    let mut world = world(3, 3);
    let mut config = ClientsConfig::default();
    config.stray_ppm = 100_000;
    let rest_ns = config.rest_ns;
    let mut clients = Clients::new(Numbers::default(), config);
    clients.run(&mut world, |_, _| Ok(())).unwrap();
    let history = clients.history();
    let (ok, failed, unknown) = history.outcomes();
    assert!(ok > 100 && failed > 2 && unknown > 2, "{ok} {failed} {unknown}");
    assert!(ok > 5 * failed, "a redirected client stays where it was sent");
    for call in history.calls() {
        if let Ended::Ok(ret) = call.ended {
            assert_eq!(ret, call.op, "an answer belongs to its call");
        }
        assert!(call.end.is_some(), "every call ends");
        assert!(call.begin_ns < world.now() - rest_ns, "clients rest at the end");
    }
    // Each client has one call under way at a time.
    for client in 0..4 {
        let calls = history.calls().iter().filter(|call| call.process == client);
        let calls: Vec<_> = calls.collect();
        assert!(calls.windows(2).all(|pair| pair[0].end.unwrap() < pair[1].begin));
    }
    let recovery = clients.recovery_ns().unwrap();
    assert!(recovery < SECOND, "{recovery}");
}

/// Answers each request with its number after up to 400 ms.
#[derive(Default)]
struct Slow {
    answers: Rc<Cell<usize>>,
}

impl Node for Slow {
    type Disk = ();
    type Event = (RequestId, u64);
    type Request = u64;
    type Reply = Option<u64>;

    fn start(&mut self, _: &mut Context<'_, Self>) {}
    fn timer(&mut self, _: &mut Context<'_, Self>) {}
    fn message(&mut self, _: &mut Context<'_, Self>, _: u64, _: Bytes) {}
    fn event(&mut self, ctx: &mut Context<'_, Self>, (id, request): (RequestId, u64)) {
        self.answers.set(self.answers.get() + 1);
        ctx.reply(id, Some(request));
    }
    fn request(&mut self, ctx: &mut Context<'_, Self>, id: RequestId, request: u64) {
        let delay = ctx.rng().below(400 * MILLISECOND);
        ctx.schedule(delay, (id, request));
    }
}

#[test]
fn an_answer_that_comes_late_is_not_taken_for_that_of_the_next_call() {
    let mut plan = Config::default();
    plan.faults = FaultSet::NONE;
    (plan.faults_ns, plan.settle_ns) = (10 * SECOND, ClientsConfig::default().settle_ns());
    let answers = Rc::new(Cell::new(0));
    let counted = Rc::clone(&answers);
    let mut world =
        World::new(plan.plan(5).unwrap(), move |_| Some(Slow { answers: Rc::clone(&counted) }));
    world.add_node(1, ());
    let mut config = ClientsConfig::default();
    config.patience_ns = (100 * MILLISECOND, 200 * MILLISECOND);
    let mut clients = Clients::new(Numbers::default(), config);
    clients.run(&mut world, |_, _| Ok(())).unwrap();
    let (ok, failed, unknown) = clients.history().outcomes();
    for call in clients.history().calls() {
        if let Ended::Ok(ret) = call.ended {
            assert_eq!(ret, call.op, "an answer belongs to its call");
        }
    }
    let late = answers.get() - ok as usize;
    assert!(failed == 0 && ok > 50 && late > 50 && unknown >= late as u64, "{ok} {late} {unknown}");
}

#[test]
fn clients_that_never_succeed_are_a_failure_of_liveness() {
    let mut world = World::new(
        {
            let mut config = Config::default();
            (config.faults_ns, config.settle_ns) = (0, 7 * SECOND);
            config.plan(1).unwrap()
        },
        |_| Some(Moody),
    );
    world.add_node(3, ());
    let mut clients = Clients::new(Numbers::default(), ClientsConfig::default());
    let failure = clients.run(&mut world, |_, _| Ok(())).unwrap_err();
    assert!(failure.message().contains("liveness"), "{}", failure.message());
    let (ok, failed, unknown) = clients.history().outcomes();
    assert!(ok == 0 && failed == 0 && unknown > 4, "{ok} {failed} {unknown}");
}

#[test]
fn the_watcher_sees_every_step_and_ends_the_run() {
    let mut world = world(4, 1);
    world.alarm(500 * MILLISECOND, 7);
    let alarms = Rc::new(Cell::new(0));
    let mut clients = Clients::new(Numbers::default(), ClientsConfig::default());
    let failure = clients.run(&mut world, |world, step| {
        if *step == Step::Alarm(7) {
            alarms.set(alarms.get() + 1);
            return Err(world.failure("seen"));
        }
        Ok(())
    });
    assert_eq!((failure.unwrap_err().message(), alarms.get()), ("seen", 1));
    assert_eq!(world.now(), 500 * MILLISECOND);
}
