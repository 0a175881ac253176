//! Choreographed orders over a bus that fails, delivers twice and out of order, and participants
//! that crash: each whole ends alike everywhere, and every effect is there once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use voussoir_sim::{Rng, Situations};
use voussoir_txn::choreography::*;
use voussoir_txn::{Retry, async_trait};

static SITUATIONS: [&str; 15] = [
    "shipped",
    "refused",
    "released",
    "parked before its first",
    "delivered twice",
    "crashed",
    "commit lost",
    "commit unknown",
    "handler failed",
    "handler ran again",
    "handler too slow",
    "deadline over",
    "second runner",
    "gave up",
    "given back",
];

/// What the participants have done, by idempotency key: the key is noted with the effect.
#[derive(Default)]
struct World {
    effects: Mutex<HashMap<String, (String, String)>>,
    rng: Mutex<Option<Rng>>,
    situations: Option<Arc<Situations>>,
}

impl World {
    fn reached(&self, name: &str) {
        if let Some(situations) = &self.situations {
            situations.reached(name);
        }
    }

    fn below(&self, bound: u64) -> u64 {
        self.rng.lock().as_mut().map_or(u64::MAX, |rng| rng.below(bound))
    }

    /// An effect of the order, which may fail before or after it.
    async fn act(&self, cx: &EventCx, what: &str) -> Result<(), ReactError> {
        if self.below(8) == 0 {
            self.reached("handler failed");
            return Err(ReactError::new("away"));
        }
        {
            let mut effects = self.effects.lock();
            let effect = (cx.event().key.clone(), what.to_owned());
            if effects.insert(cx.key.clone(), effect).is_some() {
                self.reached("handler ran again");
            }
        }
        match self.below(10) {
            0 => Err(ReactError::new("the answer was lost")),
            1 => {
                self.reached("handler too slow");
                sleep(Duration::from_secs(60)).await;
                Ok(())
            }
            rest => {
                sleep(Duration::from_millis(rest.min(20))).await;
                Ok(())
            }
        }
    }

    /// Effects of an order, by name.
    fn of(&self, order: &str) -> BTreeMap<String, u32> {
        let mut of = BTreeMap::new();
        for (key, what) in self.effects.lock().values() {
            if key == order {
                *of.entry(what.clone()).or_default() += 1;
            }
        }
        of
    }
}

fn rule(
    world: &Arc<World>,
    kind: &str,
    name: &'static str,
    then: impl Fn(&EventCx) -> Vec<NewEvent> + Send + Sync + 'static,
) -> Rule {
    let (world, then) = (Arc::clone(world), Arc::new(then));
    let run = move |cx: EventCx| {
        let (world, then) = (Arc::clone(&world), Arc::clone(&then));
        async move {
            world.act(&cx, name).await?;
            Ok(then(&cx))
        }
    };
    let mut retry = Retry::exponential(Duration::from_millis(50), 1000);
    retry.max_delay = Duration::from_secs(1);
    Rule::on(kind, name, run).timeout(Duration::from_secs(5)).retry(retry)
}

/// Stock reserves, payment charges or refuses, stock releases, shipping ships when both have come.
fn shop(world: &Arc<World>) -> Vec<Participant> {
    let say = |kind: &'static str| move |_: &EventCx| vec![NewEvent::new(kind, "")];
    let charge = |cx: &EventCx| {
        let refused = cx.event().key.ends_with('x');
        let kind = if refused { "payment.refused" } else { "payment.charged" };
        vec![NewEvent::new(kind, "")]
    };
    let stock = [
        rule(world, "order.placed", "reserve", say("stock.reserved")),
        rule(world, "order.placed", "release", say("stock.released"))
            .and("payment.refused")
            .within(Duration::from_secs(3600)),
    ];
    let payment = [rule(world, "stock.reserved", "charge", charge).late("payment.refused")];
    let shipping = [rule(world, "order.placed", "ship", say("order.shipped"))
        .and("payment.charged")
        .and("stock.reserved")
        .within(Duration::from_secs(7200))
        .on_timeout("shipping.gave_up")];
    vec![
        Participant::new("stock", stock).unwrap(),
        Participant::new("payment", payment).unwrap(),
        Participant::new("shipping", shipping).unwrap(),
    ]
}

/// A bus over another that loses commits, leaves their outcome open, and delivers twice and out of
/// order, as seeded. It is as strict as the one below it.
struct Faulty {
    bus: MemoryBus,
    world: Arc<World>,
}

struct FaultySubscription {
    inner: Box<dyn Subscription>,
    world: Arc<World>,
    old: Vec<Delivery>,
    /// Events of the latest poll of the bus below.
    fresh: usize,
    /// The latest poll returned others than the bus below has, or in another order.
    is_altered: bool,
}

#[async_trait]
impl Bus for Faulty {
    async fn publish(&self, events: &[Event]) -> Result<(), BusError> {
        self.bus.publish(events).await
    }

    async fn subscribe(&self, participant: &str) -> Result<Box<dyn Subscription>, BusError> {
        let (inner, world) = (self.bus.subscribe(participant).await?, Arc::clone(&self.world));
        let (old, fresh, is_altered) = (Vec::new(), 0, false);
        Ok(Box::new(FaultySubscription { inner, world, old, fresh, is_altered }))
    }

    async fn tail(&self) -> Result<Box<dyn Tail>, BusError> {
        self.bus.tail().await
    }
}

#[async_trait]
impl Subscription for FaultySubscription {
    async fn poll(
        &mut self,
        max_wait: Duration,
        full: &BTreeSet<u32>,
    ) -> Result<Vec<Delivery>, BusError> {
        let mut polled = self.inner.poll(max_wait, full).await?;
        let is_event = |one: &Delivery| matches!(one, Delivery::Event { .. });
        let events = polled.iter().position(is_event).unwrap_or(polled.len());
        let mut fresh = polled.split_off(events);
        self.old.extend(fresh.iter().cloned());
        (self.fresh, self.is_altered) = (fresh.len(), false);
        if self.world.below(4) == 0 && fresh.len() > 1 {
            fresh.reverse();
            self.is_altered = true;
        }
        if self.world.below(4) == 0 && !self.old.is_empty() {
            let at = self.world.below(self.old.len() as u64) as usize;
            fresh.push(self.old[at].clone());
            self.is_altered = true;
            self.world.reached("delivered twice");
        }
        polled.extend(fresh);
        Ok(polled)
    }

    fn give_back(&mut self, count: usize) -> Result<(), BusError> {
        self.world.reached("given back");
        self.inner.give_back(if self.is_altered { self.fresh } else { count })
    }

    fn max_commit_bytes(&self) -> usize {
        self.inner.max_commit_bytes()
    }

    async fn commit(&mut self, commit: Commit) -> Result<(), BusError> {
        match self.world.below(12) {
            0 => {
                self.world.reached("commit lost");
                Err(BusError::NotApplied("lost".into()))
            }
            1 => {
                self.world.reached("commit unknown");
                self.inner.commit(commit).await?;
                Err(BusError::Unknown("no answer".into()))
            }
            _ => self.inner.commit(commit).await,
        }
    }
}

fn clock() -> Arc<dyn voussoir_txn::Clock> {
    let started = Instant::now();
    Arc::new(move || 1 + u64::try_from(started.elapsed().as_nanos()).unwrap())
}

/// One life: participants that are dropped at any time, and started again.
async fn live(seed: u64, situations: &Arc<Situations>) {
    let world = Arc::new(World {
        rng: Mutex::new(Some(Rng::new(seed))),
        situations: Some(Arc::clone(situations)),
        ..World::default()
    });
    let mut rng = Rng::new(seed ^ 0x5eed);
    let inner = MemoryBus::new(100_000);
    let bus: Arc<dyn Bus> = Arc::new(Faulty { bus: inner.clone(), world: Arc::clone(&world) });
    let shop = shop(&world);
    let clock = clock();
    let mut config = ChoreographyConfig::default();
    config.seed = Some(seed);
    config.max_parallel = 1 + rng.below(4) as usize;
    config.max_due = 1 + rng.below(4) as usize;
    let start = |participant: &Participant| {
        let (bus, config, clock) = (Arc::clone(&bus), config.clone(), Arc::clone(&clock));
        Running::start_with_clock(bus, participant, config, clock).unwrap()
    };
    let mut running: Vec<Running> = shop.iter().map(&start).collect();
    let orders: Vec<String> = (0..6)
        .map(|order| format!("{order}{}", if rng.below(3) == 0 { "x" } else { "" }))
        .collect();
    for order in &orders {
        let mut event = Event::first(&format!("placed {order}"), "order.placed", order, "");
        if rng.below(6) == 0 {
            event = event.deadline(1);
        }
        // Placed twice, since the answer was lost.
        bus.publish(&[event.clone()]).await.unwrap();
        bus.publish(&[event]).await.unwrap();
        sleep(Duration::from_millis(rng.below(40))).await;
        let at = rng.below(3) as usize;
        match rng.below(3) {
            0 => {
                situations.reached("crashed");
                running[at] = start(&shop[at]);
            }
            1 => {
                situations.reached("second runner");
                let second = start(&shop[at]);
                sleep(Duration::from_millis(rng.below(40))).await;
                drop(std::mem::replace(&mut running[at], second));
            }
            _ => {}
        }
    }
    let ended = |order: &str| {
        let of = world.of(order);
        of.contains_key("ship") || of.contains_key("release")
    };
    // Ends: the faults leave each attempt a chance, and there are a thousand for each.
    for _ in 0..100_000 {
        if orders.iter().all(|order| ended(order)) {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    sleep(Duration::from_secs(120)).await;
    check(&orders, &world, &inner, situations, seed);
    for one in running {
        one.stop().await;
    }
}

fn check(orders: &[String], world: &World, bus: &MemoryBus, situations: &Situations, seed: u64) {
    let mut ids: HashMap<String, Event> = HashMap::new();
    for observed in bus.observed() {
        match observed {
            Observed::Event(event) => {
                let known = ids.insert(event.id.clone(), event.clone());
                // The first event of each order is published twice by the test.
                assert!(known.is_none() || event.hops == 0, "seed {seed}: twice: {event:?}");
            }
            Observed::Dead(letter) => panic!("seed {seed}: {letter:?}"),
        }
    }
    for order in orders {
        let effects = world.of(order);
        let count = |what: &str| effects.get(what).copied().unwrap_or(0);
        let said = |kind: &str| {
            ids.values().filter(|event| event.key == *order && event.kind == kind).count()
        };
        let why = format!("seed {seed}, order {order}: {effects:?}");
        assert!(effects.values().all(|count| *count == 1), "an effect twice: {why}");
        assert_eq!(count("reserve"), 1, "{why}");
        assert_eq!(said("payment.charged") + said("payment.refused"), 1, "{why}");
        if said("payment.refused") == 1 {
            assert_eq!((count("release"), count("ship")), (1, 0), "{why}");
            situations.reached("refused");
            situations.reached("released");
            if count("charge") == 0 {
                situations.reached("deadline over");
            }
        } else {
            assert_eq!((count("release"), count("ship")), (0, 1), "{why}");
            situations.reached("shipped");
        }
    }
}

/// An order without payment: shipping gives up after its time, also across a restart.
async fn give_up(situations: &Situations) {
    let world: Arc<World> = Arc::default();
    let bus = Arc::new(MemoryBus::new(1000));
    let shipping = &shop(&world)[2];
    let clock = clock();
    let start = || {
        let (bus, config) = (bus.clone(), ChoreographyConfig::default());
        Running::start_with_clock(bus, shipping, config, Arc::clone(&clock)).unwrap()
    };
    let running = start();
    bus.publish(&[Event::first("r", "stock.reserved", "1", "")]).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let waiting = running.waiting().await;
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0].has, ["stock.reserved"]);
    assert_eq!(waiting[0].missing, ["order.placed", "payment.charged"]);
    situations.reached("parked before its first");
    bus.publish(&[Event::first("p", "order.placed", "1", "body")]).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    drop(running);
    sleep(Duration::from_secs(7100)).await;
    let running = start();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(running.waiting().await[0].missing, ["payment.charged"], "it is remembered");
    assert_eq!(bus.observed().len(), 2, "its time is not over");
    sleep(Duration::from_secs(200)).await;
    let Some(Observed::Event(event)) = bus.observed().pop() else { panic!("nothing was said") };
    assert_eq!((&*event.kind, &*event.cause, event.hops), ("shipping.gave_up", "p", 1));
    assert_eq!(event.body, "body");
    assert!(running.waiting().await.is_empty());
    situations.reached("gave up");
}

#[test]
fn every_order_ends_alike_everywhere_and_each_effect_is_there_once() {
    let lives = std::env::var("VOUSSOIR_TXN_LIVES").map_or(2000, |lives| lives.parse().unwrap());
    let first = std::env::var("VOUSSOIR_TXN_SEED").map_or(0, |seed| seed.parse().unwrap());
    let situations = Arc::new(Situations::new(&SITUATIONS));
    let run = |future: std::pin::Pin<Box<dyn Future<Output = ()>>>| {
        let runtime = tokio::runtime::Builder::new_current_thread();
        { runtime }.enable_time().start_paused(true).build().unwrap().block_on(future);
    };
    for seed in first..first + lives {
        let situations = Arc::clone(&situations);
        run(Box::pin(async move { live(seed, &situations).await }));
    }
    let of = Arc::clone(&situations);
    run(Box::pin(async move { give_up(&of).await }));
    situations.assert_all_reached();
}

async fn until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < Duration::from_secs(60), "not within 60 s: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn dead_of(bus: &MemoryBus) -> Vec<DeadLetter> {
    let dead = |observed| match observed {
        Observed::Dead(letter) => Some(letter),
        Observed::Event(_) => None,
    };
    bus.observed().into_iter().filter_map(dead).collect()
}

/// Two participants that answer each other for ever.
#[tokio::test(start_paused = true)]
async fn a_loop_ends_and_says_so() {
    let bus = Arc::new(MemoryBus::new(1000));
    let echo = |on: &'static str, say: &'static str| {
        Rule::on(on, "echo", move |_| async move { Ok(vec![NewEvent::new(say, "")]) })
    };
    let ping = Participant::new("ping", [echo("pong", "ping")]).unwrap();
    let pong = Participant::new("pong", [echo("ping", "pong")]).unwrap();
    let mut config = ChoreographyConfig::default();
    config.max_hops = 9;
    let _running =
        [&ping, &pong].map(|one| Running::start(bus.clone(), one, config.clone()).unwrap());
    bus.publish(&[Event::first("1", "ping", "k", "")]).await.unwrap();
    sleep(Duration::from_secs(10)).await;
    let dead = dead_of(&bus);
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].why, DeadReason::TooManyHops { hops: 10, max: 9 });
    assert_eq!(bus.observed().len(), 11, "the first, nine reactions, and the letter");
    let mut watcher = Watcher::new([&ping, &pong], WatcherConfig::default());
    bus.observed().iter().for_each(|observed| watcher.observe(7, observed));
    let view = watcher.saga("k").unwrap();
    assert_eq!((view.hops, view.events, view.dead), (9, 10, 1));
    assert!(view.awaited.is_empty(), "{:?}", view.awaited);
}

/// Events whose first never comes are parked, and the oldest of too many is given up.
#[tokio::test(start_paused = true)]
async fn parked_events_are_bounded_and_the_oldest_becomes_a_letter() {
    let bus = Arc::new(MemoryBus::new(1000));
    let done: Arc<AtomicU64> = Arc::default();
    let count = Arc::clone(&done);
    let join = Rule::on("a", "join", move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        async { Ok(Vec::new()) }
    });
    let join = join.and("b").within(Duration::from_secs(60));
    let participant = Participant::new("p", [join]).unwrap();
    let mut config = ChoreographyConfig::default();
    config.max_parked = 3;
    config.max_waits = 2;
    let running = Running::start(bus.clone(), &participant, config).unwrap();
    for key in ["1", "2", "3", "4", "5"] {
        bus.publish(&[Event::first(&format!("b{key}"), "b", key, "")]).await.unwrap();
    }
    sleep(Duration::from_secs(1)).await;
    let keys = |dead: &[DeadLetter]| -> Vec<String> {
        dead.iter().map(|one| format!("{} {}", one.event.id, one.why)).collect()
    };
    let unmatched = "what it was to be joined with did not come";
    assert_eq!(keys(&dead_of(&bus)), [format!("b1 {unmatched}"), format!("b2 {unmatched}")]);
    assert_eq!(running.waiting().await.len(), 3);
    // One that was parked is joined; of three open joins the third is too many.
    for key in ["5", "6", "7", "8"] {
        bus.publish(&[Event::first(&format!("a{key}"), "a", key, "")]).await.unwrap();
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(done.load(Ordering::Relaxed), 1);
    assert_eq!(keys(&dead_of(&bus))[2..], ["a8 there are too many open joins".to_owned()]);
    sleep(Duration::from_secs(120)).await;
    // The open joins just end; the parked events are told.
    assert_eq!(dead_of(&bus).len(), 5);
    assert!(running.waiting().await.is_empty());
    // A letter that is revived goes its way.
    let revived = dead_of(&bus)[1].revived();
    bus.publish(&[revived, Event::first("a2", "a", "2", "")]).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(done.load(Ordering::Relaxed), 2);
}

/// A second order of a customer is not gone with the first, nor a second payment that came early.
#[tokio::test(start_paused = true)]
async fn a_join_that_is_over_leaves_later_events_their_time() {
    let minutes = |count: u64| sleep(Duration::from_secs(60 * count));
    let bus = Arc::new(MemoryBus::new(1000));
    let ship = |cx: EventCx| async move { Ok(vec![NewEvent::new("shipped", cx.body().clone())]) };
    let rule = Rule::on("placed", "ship", ship).and("paid").on_timeout("gave up");
    let shipping = Participant::new("shipping", [rule]).unwrap();
    let clock = clock();
    let start = || {
        let (bus, config) = (bus.clone(), ChoreographyConfig::default());
        Running::start_with_clock(bus, &shipping, config, Arc::clone(&clock)).unwrap()
    };
    let publish = |kind: &'static str, key: &'static str, number: u32| {
        let id = format!("{key}-{kind}-{number}");
        let event = Event::first(&id, kind, key, number.to_string());
        let bus = Arc::clone(&bus);
        async move { bus.publish(&[event]).await.unwrap() }
    };
    let running = start();
    publish("placed", "a", 1).await;
    publish("paid", "b", 1).await;
    minutes(50).await;
    publish("placed", "a", 2).await;
    publish("placed", "a", 3).await;
    publish("paid", "b", 2).await;
    minutes(1).await;
    // What is waited for, and since when, is in the state.
    running.stop().await;
    let running = start();
    minutes(10).await;
    publish("paid", "a", 2).await;
    publish("placed", "b", 2).await;
    minutes(1).await;
    let waiting = running.waiting().await;
    assert_eq!(waiting.len(), 1, "{waiting:?}");
    assert_eq!(waiting[0].until - waiting[0].since, 3_600_000_000_000);
    minutes(50).await;
    let said = bus.observed().into_iter().filter_map(|observed| match observed {
        Observed::Event(event) if event.hops > 0 => {
            Some(format!("{} {} {}", event.key, event.kind, String::from_utf8_lossy(&event.body)))
        }
        Observed::Event(_) => None,
        Observed::Dead(letter) => Some(format!("letter {}", letter.event.id)),
    });
    let mut said: Vec<String> = said.collect();
    said.sort();
    assert_eq!(
        said,
        ["a gave up 1", "a gave up 3", "a shipped 2", "b shipped 2", "letter b-paid-1"]
    );
}

/// A rule that fails for good holds up its key until it is given up; others go on meanwhile.
#[tokio::test(start_paused = true)]
async fn a_reaction_that_fails_for_good_holds_up_its_key_alone() {
    let bus = Arc::new(MemoryBus::new(1000));
    let calls: Arc<Mutex<Vec<String>>> = Arc::default();
    let noted = Arc::clone(&calls);
    let rule = Rule::on("k", "r", move |cx: EventCx| {
        let noted = Arc::clone(&noted);
        async move {
            noted.lock().push(format!("{}/{}", cx.event().id, cx.attempt));
            match &*cx.event().id {
                "bad" => Err(ReactError::new("no")),
                "panics" if cx.attempt == 1 => panic!("by purpose"),
                _ => Ok(Vec::new()),
            }
        }
    });
    let rule = rule.retry(Retry::exponential(Duration::from_secs(1), 3));
    let participant = Participant::new("p", [rule]).unwrap();
    let config = ChoreographyConfig::default();
    let running = Running::start(bus.clone(), &participant, config).unwrap();
    let all = [("bad", "1"), ("after", "1"), ("other", "2"), ("panics", "3")];
    let all = all.map(|(id, key)| Event::first(id, "k", key, ""));
    bus.publish(&all).await.unwrap();
    sleep(Duration::from_millis(100)).await;
    let mut first = calls.lock().clone();
    first.sort();
    assert_eq!(first, ["bad/1", "other/1", "panics/1"]);
    let waiting = running.waiting().await;
    assert_eq!(waiting.len(), 3);
    assert!(waiting.iter().all(|one| one.missing.is_empty()));
    sleep(Duration::from_secs(60)).await;
    let calls = calls.lock().clone();
    let at = |call: &str| calls.iter().position(|one| one == call);
    assert!(at("bad/3") < at("after/1"), "{calls:?}");
    assert!(at("panics/2").is_some(), "a panic is tried again: {calls:?}");
    let dead = dead_of(&bus);
    assert_eq!(dead.len(), 1);
    let why = DeadReason::Failed { rule: "r".into(), attempts: 3, why: "no".into() };
    assert_eq!((&*dead[0].event.id, &dead[0].why), ("bad", &why));
    assert_eq!(running.stats().failures, 4);
}

/// What runs is waited for and committed; what waits behind it is left to the next process.
#[tokio::test(start_paused = true)]
async fn a_participant_that_is_stopped_begins_no_more() {
    let bus = Arc::new(MemoryBus::new(1000));
    let begun: Arc<AtomicU64> = Arc::default();
    let count = Arc::clone(&begun);
    let rule = Rule::on("a", "r", move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        async {
            sleep(Duration::from_secs(1)).await;
            Ok(vec![NewEvent::new("b", "")])
        }
    });
    let participant = Participant::new("p", [rule]).unwrap();
    let mut config = ChoreographyConfig::default();
    config.max_parallel = 2;
    let running = Running::start(bus.clone(), &participant, config.clone()).unwrap();
    // Three of one key, and three that find no free place.
    for (id, key) in ["k", "k", "k", "1", "2", "3"].iter().enumerate() {
        bus.publish(&[Event::first(&id.to_string(), "a", key, "")]).await.unwrap();
    }
    sleep(Duration::from_millis(500)).await;
    running.stop().await;
    assert_eq!(begun.load(Ordering::Relaxed), 2);
    assert_eq!(bus.observed().len(), 8, "what those two publish is there");
    let _running = Running::start(bus.clone(), &participant, config).unwrap();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(begun.load(Ordering::Relaxed), 6, "each is run once");
    assert_eq!(bus.observed().len(), 12);
}

/// A rule that is gone, or has another kind now, leaves letters and no silence.
#[tokio::test(start_paused = true)]
async fn what_no_longer_fits_the_rules_becomes_letters() {
    let bus = Arc::new(MemoryBus::new(1000));
    let rule = |name: &str| Rule::on("a", name, |_| async { Err(ReactError::new("not yet")) });
    let old = Participant::new("p", [rule("old"), rule("join").and("b")]).unwrap();
    let config = ChoreographyConfig::default();
    let running = Running::start(bus.clone(), &old, config.clone()).unwrap();
    bus.publish(&[Event::first("1", "a", "k", "")]).await.unwrap();
    sleep(Duration::from_millis(50)).await;
    assert_eq!(running.waiting().await.len(), 2);
    running.stop().await;
    let new = Participant::new("p", [Rule::on("c", "join", |_| async { Ok(vec![]) })]).unwrap();
    let running = Running::start(bus.clone(), &new, config).unwrap();
    until("letters", || async { dead_of(&bus).len() == 2 }).await;
    assert!(running.waiting().await.is_empty());
}

/// What a reaction must not publish is told, and the events of a first call that misfit are
/// refused.
#[tokio::test(start_paused = true)]
async fn events_that_misfit_are_typed() {
    let bus = Arc::new(MemoryBus::new(1000));
    let long = "x".repeat(100_000);
    let refused = bus.publish(&[Event::first("1", "", "k", "")]).await;
    assert_eq!(refused, Err(BusError::Misfit("kind")));
    let refused = bus.publish(&[Event::first("1", "a", "k", long.clone())]).await;
    assert_eq!(refused, Err(BusError::Misfit("body")));
    let rule = Rule::on("a", "r", move |_| {
        let events = vec![NewEvent::new("b", long.clone()), NewEvent::new("c", "").key("")];
        async move { Ok(events) }
    });
    let participant = Participant::new("p", [rule]).unwrap();
    let config = ChoreographyConfig::default();
    let _running = Running::start(bus.clone(), &participant, config).unwrap();
    bus.publish(&[Event::first("1", "a", "k", "")]).await.unwrap();
    until("letters", || async { dead_of(&bus).len() == 2 }).await;
    let fields = ["body", "key"].map(|field| DeadReason::Misfit { field: field.to_owned() });
    assert_eq!(dead_of(&bus).into_iter().map(|one| one.why).collect::<Vec<_>>(), fields);
}

#[test]
fn participants_that_cannot_work_are_refused() {
    let rule = |kind: &str, name: &str| Rule::on(kind, name, |_| async { Ok(vec![]) });
    let new = |rules: Vec<Rule>| Participant::new("p", rules).map(|_| ());
    assert!(matches!(new(vec![]), Err(ParticipantError::Count { count: 0, .. })));
    assert!(matches!(new(vec![rule("", "r")]), Err(ParticipantError::Name(_))));
    assert!(matches!(new(vec![rule("voussoir.done", "r")]), Err(ParticipantError::Name(_))));
    let twice = vec![rule("a", "r"), rule("b", "r")];
    assert_eq!(new(twice), Err(ParticipantError::Duplicate("r".into())));
    assert_eq!(new(vec![rule("a", "r").and("a")]), Err(ParticipantError::Duplicate("a".into())));
    let never = rule("a", "r").within(Duration::ZERO);
    assert!(matches!(new(vec![never]), Err(ParticipantError::Rule { .. })));
    let names: Vec<String> = (0..9).map(|name| name.to_string()).collect();
    let many = names.iter().map(|name| rule("a", name)).collect();
    assert!(matches!(new(many), Err(ParticipantError::Count { count: 9, max: 8, .. })));
}

/// A watcher that keeps few events of a whole counts the others, and sees what they answer.
#[test]
fn a_watcher_sees_answers_past_its_last_event() {
    let rule = |kind: &str, name: &str| Rule::on(kind, name, |_| async { Ok(vec![]) });
    let participant = Participant::new("p", [rule("a", "r")]).unwrap();
    let mut config = WatcherConfig::default();
    config.max_events = 2;
    let mut watcher = Watcher::new([&participant], config);
    let mut observe = |id: &str, kind: &str, source: &str, cause: &str| {
        let mut event = Event::first(id, kind, "k", "body");
        (event.source, event.cause) = (source.into(), cause.into());
        watcher.observe(1, &Observed::Event(event));
        watcher.saga("k").unwrap()
    };
    // An answer that overtakes what it answers, and one of nobody that is known.
    observe("early", "b", "p/r", "2");
    observe("1", "a", "", "");
    let view = observe("2", "a", "q/r", "1");
    assert_eq!((view.events, view.awaited.len()), (3, 1), "the second is past the last");
    let view = observe("done", "b", "p/r", "1");
    assert_eq!((view.events, &*view.last, view.awaited.len()), (4, "b", 0));
    for more in 0..1000 {
        observe(&format!("more {more}"), "b", "p/r", &format!("unknown {more}"));
    }
    let view = observe("end", "c", "", "");
    assert_eq!((view.events, &*view.last, view.awaited.len()), (1005, "c", 0));
}
