//! No commit of a participant is larger than its bus takes, and a full partition holds up no other.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use voussoir_journal::{Journal, MemoryFiles};
use voussoir_queue::{ProducerConfig, Queue, QueueConfig, Record};
use voussoir_txn::choreography::*;
use voussoir_txn::{Retry, async_trait};

/// The longest body by default.
const LONG: usize = 64 << 10;
const HOUR: Duration = Duration::from_secs(3600);

/// A bus that says how large commits are, and fails one when it is told to.
struct Watched<B> {
    bus: B,
    /// Commits until one fails; 0 for none.
    fails: Arc<AtomicUsize>,
    largest: Arc<AtomicUsize>,
}

impl<B: Bus> Watched<B> {
    fn new(bus: B) -> Arc<Self> {
        Arc::new(Self { bus, fails: Arc::default(), largest: Arc::default() })
    }
}

struct WatchedSubscription {
    inner: Box<dyn Subscription>,
    fails: Arc<AtomicUsize>,
    largest: Arc<AtomicUsize>,
}

#[async_trait]
impl<B: Bus> Bus for Watched<B> {
    async fn publish(&self, events: &[Event]) -> Result<(), BusError> {
        self.bus.publish(events).await
    }

    async fn subscribe(&self, participant: &str) -> Result<Box<dyn Subscription>, BusError> {
        let inner = self.bus.subscribe(participant).await?;
        let (fails, largest) = (Arc::clone(&self.fails), Arc::clone(&self.largest));
        Ok(Box::new(WatchedSubscription { inner, fails, largest }))
    }

    async fn tail(&self) -> Result<Box<dyn Tail>, BusError> {
        self.bus.tail().await
    }
}

#[async_trait]
impl Subscription for WatchedSubscription {
    async fn poll(
        &mut self,
        max_wait: Duration,
        full: &BTreeSet<u32>,
    ) -> Result<Vec<Delivery>, BusError> {
        self.inner.poll(max_wait, full).await
    }

    fn give_back(&mut self, count: usize) -> Result<(), BusError> {
        self.inner.give_back(count)
    }

    async fn commit(&mut self, commit: Commit) -> Result<(), BusError> {
        let bytes = commit.len_bytes();
        assert!(bytes <= self.inner.max_commit_bytes(), "a commit has {bytes} bytes");
        self.largest.fetch_max(bytes, Ordering::SeqCst);
        let fails = self.fails.load(Ordering::SeqCst);
        self.fails.store(fails.saturating_sub(1), Ordering::SeqCst);
        if fails == 1 {
            return Err(BusError::NotApplied("by purpose".into()));
        }
        self.inner.commit(commit).await
    }

    fn max_commit_bytes(&self) -> usize {
        self.inner.max_commit_bytes()
    }
}

fn clock(skipped: &Arc<AtomicU64>) -> Arc<dyn voussoir_txn::Clock> {
    let (started, skipped) = (tokio::time::Instant::now(), Arc::clone(skipped));
    let nanos = move || 1 + u64::try_from(started.elapsed().as_nanos()).unwrap();
    Arc::new(move || nanos() + skipped.load(Ordering::SeqCst))
}

/// All letters that are there by now.
async fn letters(bus: &dyn Bus) -> Vec<DeadLetter> {
    let mut tail = bus.tail().await.unwrap();
    let mut letters = Vec::new();
    // Ends: nothing is published any more.
    loop {
        let next = tail.next(Duration::from_millis(20)).await.unwrap();
        if next.is_empty() {
            return letters;
        }
        letters.extend(next.into_iter().filter_map(|one| match one {
            Observed::Dead(letter) => Some(letter),
            Observed::Event(_) => None,
        }));
    }
}

async fn until(running: &Running, what: &str, holds: impl Fn(&RunningStats) -> bool) {
    let all = async {
        while !holds(&running.stats()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(120), all).await;
    assert!(ended.is_ok(), "{what}: {running:?}");
}

/// A join of `a` and `b`, whose `b` comes first.
fn join() -> Participant {
    let join = Rule::on("a", "join", |_| async { Ok(vec![]) }).and("b").within(HOUR);
    Participant::new("p", [join]).unwrap()
}

fn parked(prefix: &str, count: usize, bytes: usize) -> Vec<Event> {
    let body = vec![b'x'; bytes];
    let event =
        |at| Event::first(&format!("{prefix}{at}"), "b", &format!("{prefix}{at}"), body.clone());
    (0..count).map(event).collect()
}

#[tokio::test(start_paused = true)]
async fn one_poll_that_evicts_many_long_events_is_committed_in_parts() {
    let bus = Watched::new(MemoryBus::new(10_000));
    let running = Running::start(bus.clone(), &join(), ChoreographyConfig::default()).unwrap();
    bus.publish(&parked("long", 1000, LONG)).await.unwrap();
    until(&running, "parked", |stats| stats.events == 1000).await;
    bus.publish(&parked("short", 300, 1)).await.unwrap();
    until(&running, "evicted", |stats| stats.dead == 300).await;
    assert_eq!((running.waiting().await.len(), running.stats().error), (1000, None));
    assert!(
        bus.largest.load(Ordering::SeqCst) > 1 << 20,
        "commits are no smaller than they may be"
    );
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_many_events_of_a_poll_change_is_written_once() {
    let bus = Watched::new(MemoryBus::new(10_000));
    let running = Running::start(bus.clone(), &join(), ChoreographyConfig::default()).unwrap();
    let event = |at: usize, bytes: usize| Event::first(&format!("{at}"), "b", "k", vec![0; bytes]);
    bus.publish(&(0..3).map(|at| event(at, 80_000)).collect::<Vec<_>>()).await.unwrap();
    until(&running, "parked", |stats| stats.events == 3).await;
    bus.publish(&(3..43).map(|at| event(at, 1)).collect::<Vec<_>>()).await.unwrap();
    until(&running, "all", |stats| stats.events == 43).await;
    assert_eq!((running.stats().error, running.waiting().await[0].has.len()), (None, 43));
    assert!(bus.largest.load(Ordering::SeqCst) < 400_000, "{:?}", bus.largest);
}

#[tokio::test(start_paused = true)]
async fn a_lower_limit_after_a_restart_is_reached_in_parts() {
    let bus = Watched::new(MemoryBus::new(10_000));
    let mut config = ChoreographyConfig::default();
    let running = Running::start(bus.clone(), &join(), config.clone()).unwrap();
    bus.publish(&parked("long", 300, LONG)).await.unwrap();
    until(&running, "parked", |stats| stats.events == 300).await;
    running.stop().await;
    (config.max_parked, config.max_seen) = (1, 1);
    let running = Running::start(bus.clone(), &join(), config).unwrap();
    until(&running, "evicted", |stats| stats.dead == 299).await;
    assert_eq!((running.waiting().await.len(), running.stats().error), (1, None));
}

#[tokio::test(start_paused = true)]
async fn reactions_that_are_late_after_a_restart_are_told_in_parts() {
    let bus = Watched::new(MemoryBus::new(10_000));
    let skipped = Arc::default();
    let rule = Rule::on("a", "r", |_| std::future::pending()).timeout(HOUR).late("too late");
    let participant = Participant::new("p", [rule]).unwrap();
    let start = || {
        let config = ChoreographyConfig::default();
        Running::start_with_clock(bus.clone(), &participant, config, clock(&skipped)).unwrap()
    };
    let running = start();
    // Of one key, one behind the other, and of many.
    let event = |at: u64| {
        let key = format!("{}", at.saturating_sub(100));
        Event::first(&format!("{at}"), "a", &key, vec![0; LONG]).deadline(1_000_000_000_000)
    };
    bus.publish(&(0..200).map(event).collect::<Vec<_>>()).await.unwrap();
    until(&running, "begun", |stats| stats.events == 200).await;
    drop(running);
    skipped.store(1_000_000_000_000, Ordering::SeqCst);
    let running = start();
    until(&running, "told", |stats| stats.published == 200).await;
    assert_eq!((running.waiting().await.len(), running.stats().error), (0, None));
}

/// Letters of what no longer fits the rules are committed before the events that came with the
/// state: a crash between them leaves those to be read.
#[tokio::test(start_paused = true)]
async fn letters_of_a_restart_mark_no_event_as_read() {
    let bus = Watched::new(MemoryBus::new(10_000));
    let running = Running::start(bus.clone(), &join(), ChoreographyConfig::default()).unwrap();
    bus.publish(&parked("long", 100, LONG)).await.unwrap();
    until(&running, "parked", |stats| stats.events == 100).await;
    running.stop().await;
    let done: Arc<AtomicU64> = Arc::default();
    let count = Arc::clone(&done);
    let other = Rule::on("c", "other", move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        async { Ok(vec![]) }
    });
    let other = Participant::new("p", [other]).unwrap();
    bus.publish(&[Event::first("c", "c", "c", "")]).await.unwrap();
    for fails in [2, 3, 0] {
        bus.fails.store(fails, Ordering::SeqCst);
        let config = ChoreographyConfig::default();
        let running = Running::start(bus.clone(), &other, config).unwrap();
        if fails > 0 {
            until(&running, "a commit fails", |stats| stats.error.is_some()).await;
        } else {
            until(&running, "all", |stats| stats.published == 1).await;
        }
    }
    assert_eq!(done.load(Ordering::SeqCst), 1);
    assert_eq!(letters(&*bus).await.len(), 100);
}

fn queue() -> Queue {
    let mut config = voussoir_journal::Config::default();
    config.segment_bytes = 32 << 20;
    config.max_bytes = 16 * config.segment_bytes;
    let journal = Journal::open_with(Arc::new(MemoryFiles::new()), config).unwrap();
    Queue::open(&journal, "q", QueueConfig::default()).unwrap()
}

async fn bus(queue: &Queue, partitions: u32) -> QueueBus {
    let mut config = QueueBusConfig::default();
    config.partitions = partitions;
    QueueBus::open(queue, "shop", config).await.unwrap()
}

/// After an outage that was longer than `within` waits of all partitions are over at once. One
/// partition has more of them than a commit takes; eight have so together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waits_of_all_partitions_that_are_over_at_once_end_in_parts() {
    for partitions in [1, 8] {
        let queue = queue();
        let bus = Watched::new(bus(&queue, partitions).await);
        let skipped = Arc::default();
        let start = || {
            let config = ChoreographyConfig::default();
            Running::start_with_clock(bus.clone(), &join(), config, clock(&skipped)).unwrap()
        };
        let running = start();
        bus.publish(&parked("long", 200, LONG)).await.unwrap();
        until(&running, "parked", |stats| stats.events == 200).await;
        running.stop().await;
        skipped.store(u64::try_from(2 * HOUR.as_nanos()).unwrap(), Ordering::SeqCst);
        let running = start();
        until(&running, "over", |stats| stats.dead == 200).await;
        assert_eq!((running.waiting().await.len(), running.stats().error), (0, None));
        let letters = letters(&*bus).await;
        let ids: HashSet<String> = letters.into_iter().map(|one| one.event.id).collect();
        assert_eq!(ids.len(), 200, "each once");
        assert!(bus.largest.load(Ordering::SeqCst) > 256 << 10);
    }
}

/// A journal whose commits are too small for the partitions is refused when the bus is opened, not
/// when a participant has much to commit.
#[tokio::test]
async fn a_bus_of_more_partitions_than_fit_into_a_commit_is_refused() {
    for (partitions, fits) in [(400, true), (500, false)] {
        let mut config = QueueBusConfig::default();
        config.partitions = partitions;
        let opened = QueueBus::open(&queue(), "shop", config).await;
        let refused = matches!(opened, Err(BusError::Segments { .. }));
        assert!(opened.is_ok() == fits && refused != fits, "{partitions}: {opened:?}");
    }
}

/// A key whose reactions fail fills its partition; those of other partitions go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_partition_holds_up_no_other() {
    let queue = queue();
    let bus = Arc::new(bus(&queue, 8).await);
    let away = Arc::new(AtomicBool::new(true));
    let is_away = Arc::clone(&away);
    let rule = Rule::on("a", "r", move |cx: EventCx| {
        let fails = cx.event().key == "bad" && is_away.load(Ordering::SeqCst);
        async move { if fails { Err(ReactError::new("away")) } else { Ok(vec![]) } }
    });
    let rule = rule.retry(Retry::exponential(Duration::from_millis(100), 10_000));
    let participant = Participant::new("p", [rule]).unwrap();
    let mut config = ChoreographyConfig::default();
    config.max_due = 2;
    let running = Running::start(bus.clone(), &participant, config).unwrap();
    let event = |id: String, key: &str| Event::first(&id, "a", key, "");
    let bad: Vec<Event> = (0..6).map(|at| event(format!("bad{at}"), "bad")).collect();
    bus.publish(&bad).await.unwrap();
    until(&running, "it fails", |stats| stats.failures > 0).await;
    let good = (0..64).map(|at| event(format!("good{at}"), &format!("good{at}")));
    bus.publish(&good.collect::<Vec<_>>()).await.unwrap();
    // One partition of eight is full; the others have about seven eighths.
    until(&running, "others go on", |stats| stats.published >= 40).await;
    assert!(running.stats().published < 64, "the key is one of its partition");
    // Those of other partitions may be running.
    let waiting = running.waiting().await;
    let bad = waiting.iter().filter(|waiting| waiting.key == "bad").count();
    assert_eq!(bad, 2, "`max_due`, and no more: {waiting:?}");
    away.store(false, Ordering::SeqCst);
    until(&running, "all go on", |stats| stats.published == 70).await;
}

/// Somebody else has written to the topic of a state.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_of_others_in_a_state_holds_up_its_partition_alone() {
    let queue = queue();
    let bus = Arc::new(bus(&queue, 4).await);
    drop(bus.subscribe("p").await.unwrap());
    let producer = queue.producer(ProducerConfig::default()).await.unwrap();
    let state = queue.topic("shop.p.state").unwrap();
    let partition =
        producer.send(&state, Record::new("of others")).await.unwrap().partition.partition;
    let rule = Rule::on("a", "r", |_| async { Ok(vec![]) });
    let participant = Participant::new("p", [rule]).unwrap();
    let running = Running::start(bus.clone(), &participant, ChoreographyConfig::default()).unwrap();
    let event = |at| Event::first(&format!("e{at}"), "a", &format!("k{at}"), "");
    bus.publish(&(0..64).map(event).collect::<Vec<_>>()).await.unwrap();
    // One partition of four waits; the others have about three quarters.
    until(&running, "others go on", |stats| stats.published >= 32).await;
    until(&running, "it says so", |stats| stats.error.is_some()).await;
    let RunningStats { published, error, .. } = running.stats();
    assert_eq!(error, Some(BusError::Garbled { partition }));
    assert!(published < 64, "{published}");
}

/// The state of a participant is short in bytes too: few long records keep no segment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_of_long_records_stays_short() {
    let queue = queue();
    let bus = Arc::new(bus(&queue, 1).await);
    let mut config = ChoreographyConfig::default();
    config.max_seen = 10;
    let running = Running::start(bus.clone(), &join(), config).unwrap();
    // One that stays, and some that come and go: too few records for their number to matter.
    bus.publish(&[Event::first("stays", "b", "stays", vec![0; LONG])]).await.unwrap();
    let rounds = 120;
    for round in 0..rounds {
        let key = format!("{round}");
        let event =
            |kind: &str, bytes| Event::first(&format!("{kind}{round}"), kind, &key, vec![0; bytes]);
        bus.publish(&[event("b", LONG), event("a", 1)]).await.unwrap();
    }
    until(&running, "joined", |stats| stats.published == rounds).await;
    assert_eq!(running.waiting().await.len(), 1, "the join that stays");
    running.stop().await;
    let state = queue.topic("shop.p.state").unwrap().partition(0).unwrap();
    let (mut offset, mut bytes) = (state.offsets().start, 0);
    while offset < state.offsets().end {
        let fetched = state.fetch(offset, 1 << 20).unwrap();
        let lengths =
            fetched.records(usize::MAX).map(|one| one.unwrap().value.map_or(0, |v| v.len()));
        bytes += lengths.sum::<usize>();
        offset = fetched.next_offset;
    }
    assert!(bytes < 6 << 20, "{bytes} bytes are kept for one wait of {LONG}");
}
