//! Participants over a queue on a journal: power losses, members that share partitions, and a state
//! that stays short.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use voussoir_journal::Journal;
use voussoir_journal::files::crash::{CrashFiles, Loss};
use voussoir_queue::{Queue, QueueConfig};
use voussoir_sim::{Rng, Situations};
use voussoir_txn::choreography::*;

static SITUATIONS: [&str; 5] =
    ["power lost", "effect tried again", "joined", "second member", "went on after a loss"];

#[derive(Default)]
struct World {
    /// Effects by idempotency key, with the number of attempts.
    effects: Mutex<HashMap<String, (String, u32)>>,
    /// A reservation never returns.
    hangs: AtomicBool,
}

type Effects = Arc<World>;

fn note(world: &World, cx: &EventCx, what: &str) {
    let what = format!("{what} {}", cx.event().key);
    world.effects.lock().entry(cx.key.clone()).or_insert((what, 0)).1 += 1;
}

fn participants(effects: &Effects) -> [Participant; 2] {
    let (one, two) = (Arc::clone(effects), Arc::clone(effects));
    let reserve = Rule::on("placed", "reserve", move |cx: EventCx| {
        let effects = Arc::clone(&one);
        async move {
            note(&effects, &cx, "reserve");
            if effects.hangs.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(vec![NewEvent::new("reserved", cx.body().clone())])
        }
    });
    let ship = Rule::on("placed", "ship", move |cx: EventCx| {
        let effects = Arc::clone(&two);
        async move {
            note(&effects, &cx, "ship");
            Ok(vec![NewEvent::new("shipped", "")])
        }
    });
    [
        Participant::new("stock", [reserve]).unwrap(),
        Participant::new("shipping", [ship.and("reserved")]).unwrap(),
    ]
}

fn journal(disk: &CrashFiles) -> Journal {
    let mut config = voussoir_journal::Config::default();
    config.segment_bytes = 32 << 20;
    config.max_bytes = 8 * config.segment_bytes;
    config.identity = Some(7);
    Journal::open_with(disk.mount(), config).unwrap()
}

async fn open(journal: &Journal) -> QueueBus {
    let queue = Queue::open(journal, "q", QueueConfig::default()).unwrap();
    let mut config = QueueBusConfig::default();
    config.partitions = 3;
    QueueBus::open(&queue, "shop", config).await.unwrap()
}

/// All events that are in the log by now.
async fn events(bus: &QueueBus) -> Vec<Event> {
    let mut tail = bus.tail().await.unwrap();
    let mut events = Vec::new();
    loop {
        let next = tail.next(Duration::from_millis(20)).await.unwrap();
        if next.is_empty() {
            return events;
        }
        for observed in next {
            match observed {
                Observed::Event(event) => events.push(event),
                Observed::Dead(letter) => panic!("{letter:?}"),
            }
        }
    }
}

async fn until_shipped(bus: &QueueBus, orders: usize) {
    let mut tail = bus.tail().await.unwrap();
    let mut shipped = 0;
    let all = async {
        while shipped < orders {
            for observed in tail.next(Duration::from_secs(1)).await.unwrap() {
                let Observed::Event(event) = observed else { panic!("{observed:?}") };
                shipped += usize::from(event.kind == "shipped");
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all).await.expect("all are shipped in 30 s");
}

/// The power goes off while participants work; the last life ends all orders.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_power_loss_loses_an_event_or_repeats_an_effect() {
    let losses: u64 =
        std::env::var("VOUSSOIR_TXN_LOSSES").map_or(15, |losses| losses.parse().unwrap());
    let situations = Situations::new(&SITUATIONS);
    let disk = CrashFiles::new(1);
    let effects: Effects = Arc::default();
    let participants = participants(&effects);
    let mut rng = Rng::new(7);
    let mut acknowledged = Vec::new();
    for life in 0..losses {
        effects.hangs.store(life == 0, Ordering::Relaxed);
        let journal = journal(&disk);
        let bus = open(&journal).await;
        if life > 0 {
            situations.add("went on after a loss", u64::from(!events(&bus).await.is_empty()));
        }
        let shared: Arc<dyn Bus> = Arc::new(bus.clone());
        let config = ChoreographyConfig::default();
        let start = |one| Running::start(Arc::clone(&shared), one, config.clone()).unwrap();
        let mut running: Vec<Running> = participants.iter().map(start).collect();
        if rng.below(2) == 0 {
            running.push(start(&participants[rng.below(2) as usize]));
            situations.reached("second member");
        }
        for order in 0..8 {
            let key = format!("{life}.{order}");
            let event = Event::first(&format!("placed {key}"), "placed", &key, "books");
            if bus.publish(&[event]).await.is_ok() {
                acknowledged.push(key);
            }
        }
        if life == 0 {
            // An effect whose event is not published is tried again.
            while effects.effects.lock().is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        } else {
            tokio::time::sleep(Duration::from_millis(rng.below(30))).await;
        }
        disk.power_loss(Loss::Everything);
        situations.reached("power lost");
        drop(running);
        drop((shared, bus, journal));
        disk.heal();
    }
    effects.hangs.store(false, Ordering::Relaxed);
    let journal = journal(&disk);
    let bus = open(&journal).await;
    let shared: Arc<dyn Bus> = Arc::new(bus.clone());
    let config = ChoreographyConfig::default();
    let start = |one| Running::start(Arc::clone(&shared), one, config.clone()).unwrap();
    let running: Vec<Running> = participants.iter().map(start).collect();
    until_shipped(&bus, acknowledged.len()).await;
    for one in running {
        one.stop().await;
    }
    let mut ids = std::collections::HashSet::new();
    for event in events(&bus).await {
        situations.add("joined", u64::from(event.kind == "shipped"));
        assert!(ids.insert(event.id.clone()), "published twice: {event:?}");
    }
    let effects = effects.effects.lock();
    for key in &acknowledged {
        for what in ["reserve", "ship"] {
            let name = format!("{what} {key}");
            let keys = effects.values().filter(|(effect, _)| *effect == name).count();
            assert_eq!(keys, 1, "{name} has one idempotency key in all lives");
        }
    }
    situations.add("effect tried again", effects.values().filter(|(_, n)| *n > 1).count() as u64);
    situations.assert_all_reached();
}

/// What a participant remembers is written again, so that its log does not grow with its life.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_state_of_a_participant_stays_short() {
    let disk = CrashFiles::new(2);
    let journal = journal(&disk);
    let queue = Queue::open(&journal, "q", QueueConfig::default()).unwrap();
    let mut one = QueueBusConfig::default();
    one.partitions = 1;
    let bus = QueueBus::open(&queue, "shop", one).await.unwrap();
    let rule = Rule::on("a", "r", |_| async { Ok(vec![]) });
    // One join that stays open all the time.
    let join = Rule::on("x", "join", |_| async { Ok(vec![]) }).and("y");
    let participant = Participant::new("p", [rule, join]).unwrap();
    let mut config = ChoreographyConfig::default();
    config.max_seen = 100;
    bus.publish(&[Event::first("x", "x", "x", "")]).await.unwrap();
    let shared: Arc<dyn Bus> = Arc::new(bus.clone());
    let running = Running::start(shared, &participant, config).unwrap();
    for round in 0..30 {
        let event = |id| Event::first(&format!("{round}.{id}"), "a", &format!("{id}"), "");
        let events: Vec<Event> = (0..100).map(event).collect();
        bus.publish(&events).await.unwrap();
    }
    let start = std::time::Instant::now();
    while running.stats().published < 3000 {
        assert!(start.elapsed() < Duration::from_secs(30), "{running:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(running.waiting().await.len(), 1);
    running.stop().await;
    let state = queue.topic("shop.p.state").unwrap().partition(0).unwrap();
    let offsets = state.offsets();
    assert!(offsets.end > 9000, "each event is written, and forgotten: {offsets:?}");
    assert!(offsets.end - offsets.start < 3000, "{offsets:?}");
}

/// A journal whose commits are too small is told apart when the bus is opened, and not by a
/// participant that fails at its first large commit.
#[tokio::test]
async fn a_journal_with_small_segments_is_refused_when_the_bus_is_opened() {
    for (segment_bytes, fits) in [(16 << 20, false), (24 << 20, false), (32 << 20, true)] {
        let disk = CrashFiles::new(3);
        let mut config = voussoir_journal::Config::default();
        config.segment_bytes = segment_bytes;
        config.max_bytes = 8 * segment_bytes;
        let journal = Journal::open_with(disk.mount(), config).unwrap();
        let queue = Queue::open(&journal, "q", QueueConfig::default()).unwrap();
        let opened = QueueBus::open(&queue, "shop", QueueBusConfig::default()).await;
        match opened {
            Ok(_) => assert!(fits, "{segment_bytes}"),
            Err(BusError::Segments { found_bytes, needed_bytes }) => {
                assert!(!fits && found_bytes < needed_bytes, "{found_bytes} {needed_bytes}");
                assert!(queue.topics().is_empty(), "nothing was created");
            }
            Err(other) => panic!("{other}"),
        }
    }
}

/// A commit as large as a participant makes any goes into a journal of the smallest segments,
/// however many partitions and members it is spread over.
#[tokio::test]
async fn the_largest_commit_fits_into_the_smallest_segments() {
    let disk = CrashFiles::new(4);
    let journal = journal(&disk);
    let queue = Queue::open(&journal, "q", QueueConfig::default()).unwrap();
    let mut config = QueueBusConfig::default();
    config.partitions = 400;
    let bus = QueueBus::open(&queue, "shop", config).await.unwrap();
    let mut subscription = bus.subscribe("p").await.unwrap();
    let mut assigned = Vec::new();
    while assigned.len() < 400 {
        for delivery in subscription.poll(Duration::from_secs(10), &BTreeSet::new()).await.unwrap()
        {
            let Delivery::Assigned { partition, .. } = delivery else { panic!("{delivery:?}") };
            assigned.push(partition);
        }
    }
    let mut commit = Commit::default();
    let (mut bytes, mut number) = (0, 0_u32);
    let value = bytes::Bytes::from(vec![7; 500]);
    // Ends: each round adds to `bytes`.
    while bytes + 64 + 4 + value.len() <= subscription.max_commit_bytes() {
        bytes += 64 + 4 + value.len();
        let key = bytes::Bytes::copy_from_slice(&number.to_le_bytes());
        commit.state.push((number % 400, key, Some(value.clone())));
        number += 1;
    }
    subscription.commit(commit).await.unwrap();
}
