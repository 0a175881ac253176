//! A queue under power losses and restarts: producers, a group, and transactions that move records
//! from one topic to another, on the journal's crash-simulating files. The ledger is exact: what
//! the group has stored as read is in the other topic, once.
//!
//! `VOUSSOIR_POWER_LOSSES` sets how many there are (default 2,000); `VOUSSOIR_SEED` replays one
//! life.

mod support;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use support::{journal, poll, read_all, small, work};
use voussoir_journal::Journal;
use voussoir_journal::files::crash::{CrashFiles, Effect, Fault, Loss, Op, When};
use voussoir_queue::{
    CommitError, Consumer, ConsumerConfig, Durability, Guarantee, Outcome, Producer,
    ProducerConfig, Queue, Record, SendFuture, TopicConfig, TopicPartition, TransactionalProducer,
};
use voussoir_sim::Situations;

const LOSSES_A_LIFE: u64 = 5;
const PARTITIONS: u32 = 2;

static SITUATIONS: [&str; 10] = [
    "power lost with records on their way",
    "power lost with a transaction on its way",
    "a transaction of unknown outcome was committed",
    "a transaction of unknown outcome was not committed",
    "a zombie's transaction was fenced",
    "a transaction was dropped before its commit",
    "a transaction wrote to both partitions",
    "records were released up to what the group has read",
    "a member of a group stored an offset",
    "a record of unknown outcome was in the log",
];

/// What lives until the power goes.
struct Running {
    journal: Journal,
    queue: Queue,
    producer: Producer,
    mover: TransactionalProducer,
    reader: Consumer,
    member: Consumer,
    sent: Vec<(TopicPartition, String, SendFuture)>,
}

struct Life<'a> {
    random: fastrand::Rng,
    disk: CrashFiles,
    now: u64,
    next_value: u64,
    /// Acknowledged records of the first topic.
    acked: BTreeMap<(u32, u64), String>,
    /// Records that were sent, and whether they failed for good.
    all: HashMap<String, bool>,
    /// Transactions that are known to be committed, and those of unknown outcome.
    committed: u64,
    unknown: bool,
    next_transaction: u64,
    /// Offsets of the members' group that were acknowledged.
    stored: BTreeMap<u32, u64>,
    situations: &'a Situations,
}

impl Life<'_> {
    fn open(&mut self) -> Option<Running> {
        let journal = journal(self.disk.mount(), 64);
        let queue = Queue::open(&journal, "q", small()).expect("the queue opens");
        for name in ["in", "out"] {
            if queue.topic(name).is_err() {
                self.wait(&journal, queue.create_topic(name, TopicConfig::partitions(PARTITIONS)))?
                    .expect("it is created");
            }
        }
        let mut config = ProducerConfig::default();
        config.delivery_timeout = None;
        let producer = self.wait(&journal, queue.producer(config))?.expect("a producer");
        let mover = self.wait(&journal, queue.transactional("mover"))?.expect("a producer");
        let mut config = ConsumerConfig::default();
        (config.group, config.guarantee) = (Some("movers".into()), Guarantee::ExactlyOnce);
        config.max_poll_records = self.random.usize(1..6);
        let mut reader = queue.consumer(config).expect("a consumer");
        let places: Vec<_> = (0..PARTITIONS).map(|at| TopicPartition::new("in", at)).collect();
        reader.assign(&places).expect("they exist");
        let mut config = ConsumerConfig::group("members", ["in"]);
        config.max_poll_records = 3;
        let member = queue.consumer(config).expect("a consumer");
        Some(Running { journal, queue, producer, mover, reader, member, sent: Vec::new() })
    }

    /// Lets the journal work for a future; `None` when the power is off.
    fn wait<F: Future>(&mut self, journal: &Journal, future: F) -> Option<F::Output> {
        let mut future = Box::pin(future);
        for _ in 0..20 {
            if let Some(output) = poll(&mut future) {
                return Some(output);
            }
            work(journal, &mut self.now);
        }
        None
    }

    fn send(&mut self, running: &mut Running) {
        let topic = running.queue.topic("in").expect("a topic");
        for _ in 0..self.random.usize(1..5) {
            let partition = self.random.u32(..PARTITIONS);
            let filler = "x".repeat(self.random.usize(..200));
            let value = format!("{}/{filler}", self.next_value);
            self.next_value += 1;
            let record = Record::new(value.clone()).timestamp(1);
            let queued =
                running.producer.try_enqueue(&topic, Some(partition), record, Durability::Synced);
            let Ok(delivery) = queued else { continue };
            self.all.insert(value.clone(), false);
            running.sent.push((TopicPartition::new("in", partition), value, delivery));
        }
    }

    fn take_answers(&mut self, running: &mut Running) {
        let (all, acked) = (&mut self.all, &mut self.acked);
        running.sent.retain_mut(|(place, value, delivery)| match poll(delivery) {
            None => true,
            Some(Ok(delivered)) => {
                acked.insert((place.partition, delivered.offset), value.clone());
                false
            }
            Some(Err(error)) => {
                all.insert(value.clone(), error.outcome() == Outcome::NotApplied);
                false
            }
        });
    }

    /// Moves some records, with the offsets of what was read.
    fn move_records(&mut self, running: &mut Running) -> Option<()> {
        let polled = poll(&mut Box::pin(running.reader.poll(Duration::ZERO)))?.ok()?;
        if polled.records.is_empty() {
            return Some(());
        }
        let out = running.queue.topic("out").expect("a topic");
        let mut transaction = running.mover.begin();
        let number = self.next_transaction;
        self.next_transaction += 1;
        let count = polled.records.len();
        let mut targets = BTreeSet::new();
        for read in &polled.records {
            let target = self.random.u32(..PARTITIONS);
            targets.insert(target);
            let (partition, offset) = (read.partition.partition, read.record.offset);
            let value = format!("{partition}/{offset}/{number}/{count}");
            transaction.send(&out, target, &Record::new(value)).expect("it fits");
        }
        transaction.offsets(&running.reader).expect("they fit");
        if self.random.u8(..6) == 0 {
            transaction.abort();
            self.situations.reached("a transaction was dropped before its commit");
            running.reader.rewind().expect("it goes back");
            return Some(());
        }
        let both = u64::from(targets.len() == 2);
        // One of unknown outcome stays so, whatever is rejected after it.
        let was_unknown = std::mem::replace(&mut self.unknown, true);
        let Some(result) = self.wait(&running.journal, transaction.commit()) else {
            self.situations.reached("power lost with a transaction on its way");
            return None;
        };
        match result {
            Ok(committed) => {
                self.situations.add("a transaction wrote to both partitions", both);
                assert!(committed.number > self.committed);
                (self.committed, self.unknown) = (committed.number, false);
            }
            Err(error) => {
                if error.outcome() == Outcome::Unknown {
                    self.situations.reached("power lost with a transaction on its way");
                } else {
                    self.unknown = was_unknown;
                }
                running.reader.rewind().expect("it goes back");
            }
        }
        Some(())
    }

    /// Another mover takes over while this one has a transaction.
    fn fence(&mut self, running: &mut Running) -> Option<()> {
        let out = running.queue.topic("out").expect("a topic");
        let fresh = self.wait(&running.journal, running.queue.transactional("mover"))?.ok()?;
        let mut zombie = std::mem::replace(&mut running.mover, fresh);
        let mut transaction = zombie.begin();
        transaction.send(&out, 0, &Record::new("zombie")).expect("it fits");
        match self.wait(&running.journal, transaction.commit())? {
            Ok(_) => panic!("a zombie has written"),
            Err(CommitError::Fenced { .. }) => {
                self.situations.reached("a zombie's transaction was fenced");
            }
            Err(error) => assert!(matches!(error, CommitError::Store(_)), "{error}"),
        }
        Some(())
    }

    /// A member reads and stores how far.
    fn member(&mut self, running: &mut Running) -> Option<()> {
        for _ in 0..4 {
            let polling = running.member.poll(Duration::ZERO);
            self.wait(&running.journal, polling)?.ok()?;
        }
        let places = running.member.assignment();
        let position = |place: &TopicPartition| running.member.position(place);
        let positions: Vec<_> =
            places.iter().map(|place| (place.partition, position(place))).collect();
        let committing = running.member.commit();
        if self.wait(&running.journal, committing)?.is_ok() {
            for (partition, position) in positions {
                self.situations.reached("a member of a group stored an offset");
                let stored = self.stored.entry(partition).or_insert(0);
                *stored = (*stored).max(position.expect("it reads it"));
            }
        }
        Some(())
    }

    fn release(&mut self, running: &mut Running) -> Option<()> {
        for lag in running.queue.lag("movers").unwrap_or_default() {
            let members = self.stored.get(&lag.partition.partition).copied().unwrap_or(0);
            let topic = running.queue.topic("in").expect("a topic");
            let partition = topic.partition(lag.partition.partition).expect("one");
            let upto = lag.position.min(members);
            let releasing = partition.release_before(upto);
            if self.wait(&running.journal, releasing)?.is_ok() && upto > 0 {
                self.situations.reached("records were released up to what the group has read");
            }
        }
        Some(())
    }

    fn step(&mut self, running: &mut Running) -> Option<()> {
        match self.random.u8(..12) {
            0..=4 => self.send(running),
            5 | 6 => work(&running.journal, &mut self.now),
            7 | 8 => self.move_records(running)?,
            9 => self.member(running)?,
            10 => self.fence(running)?,
            _ => self.release(running)?,
        }
        self.take_answers(running);
        Some(())
    }

    fn lose_power(&mut self, running: Running) {
        let on_their_way = u64::from(!running.sent.is_empty());
        self.situations.add("power lost with records on their way", on_their_way);
        self.disk.power_loss(Loss::Any);
        drop(running);
        self.disk.heal();
    }

    /// All that was acknowledged is there once, and the ledger is exact.
    fn check(&mut self, queue: &Queue, mover: &TransactionalProducer) {
        let movers = queue.lag("movers").unwrap_or_default();
        let stored: BTreeMap<u32, u64> =
            movers.iter().map(|lag| (lag.partition.partition, lag.position)).collect();
        for lag in queue.lag("members").unwrap_or_default() {
            let known = self.stored.get(&lag.partition.partition).copied().unwrap_or(0);
            assert!(lag.position >= known, "{lag:?} is behind {known}");
        }
        let mut values = BTreeSet::new();
        for partition in 0..PARTITIONS {
            let log = queue.topic("in").expect("a topic").partition(partition).expect("one");
            let start = log.offsets().start;
            let records = read_all(&log, 1 << 16);
            for record in &records {
                let value = record.value.clone().expect("one");
                let value = String::from_utf8(value.into()).expect("text");
                let failed = self.all.get(&value).expect("it was sent");
                assert!(!failed, "{value} is in the log, though it was said not to be");
                if !self.acked.contains_key(&(partition, record.offset)) {
                    self.situations.reached("a record of unknown outcome was in the log");
                }
                assert!(values.insert(value.clone()), "{value} is there twice");
                let acked = self.acked.entry((partition, record.offset)).or_insert(value.clone());
                assert_eq!(*acked, value);
            }
            let first = (partition, start);
            let there: BTreeSet<u64> = records.iter().map(|record| record.offset).collect();
            for ((_, offset), value) in self.acked.range(first..(partition + 1, 0)) {
                assert!(there.contains(offset), "{value} at {partition}/{offset} is lost");
            }
        }
        let mut moved = BTreeSet::new();
        let mut transactions: HashMap<String, (usize, usize)> = HashMap::new();
        for partition in 0..PARTITIONS {
            let log = queue.topic("out").expect("a topic").partition(partition).expect("one");
            for record in read_all(&log, 1 << 16) {
                let value = String::from_utf8(record.value.expect("one").into()).expect("text");
                let parts: Vec<_> = value.split('/').collect();
                let number = |at: usize| parts[at].parse::<u64>().expect("a number");
                assert!(moved.insert((number(0), number(1))), "{value} was moved twice");
                let count = usize::try_from(number(3)).expect("small");
                transactions.entry(parts[2].to_owned()).or_insert((0, count)).0 += 1;
            }
        }
        assert!(transactions.values().all(|(found, count)| found == count), "{transactions:?}");
        let expected = stored.iter().flat_map(|(partition, offset)| {
            (0..*offset).map(|offset| (u64::from(*partition), offset))
        });
        assert_eq!(moved, expected.collect(), "the ledger is not exact");
        assert_eq!(transactions.len() as u64, mover.committed(), "the number tells");
        let more = mover.committed() - self.committed;
        assert!(more <= u64::from(self.unknown), "{more} more than were acknowledged");
        if std::mem::take(&mut self.unknown) {
            self.situations.reached(match more {
                0 => "a transaction of unknown outcome was not committed",
                _ => "a transaction of unknown outcome was committed",
            });
        }
        self.committed = mover.committed();
    }
}

fn life(seed: u64, situations: &Situations) {
    let mut life = Life {
        random: fastrand::Rng::with_seed(seed),
        disk: CrashFiles::new(seed),
        now: 0,
        next_value: 0,
        acked: BTreeMap::new(),
        all: HashMap::new(),
        committed: 0,
        unknown: false,
        next_transaction: 0,
        stored: BTreeMap::new(),
        situations,
    };
    for _ in 0..LOSSES_A_LIFE {
        let mut running = life.open().expect("the disk is in order");
        life.check(&running.queue.clone(), &running.mover);
        let mut steps = life.random.usize(5..40);
        let fails_at = life.random.usize(..60);
        // Ends: each round takes a step.
        while steps > 0 {
            if steps == fails_at {
                let at = When::Nth(life.random.u64(..30));
                life.disk.inject(Fault::new(Op::Any, at, Effect::PowerOff));
            }
            steps -= 1;
            if life.step(&mut running).is_none() {
                break;
            }
        }
        life.lose_power(running);
    }
    let running = life.open().expect("the disk is in order");
    life.check(&running.queue.clone(), &running.mover);
}

#[test]
fn no_power_loss_tears_a_transaction_or_loses_an_offset() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let losses = number("VOUSSOIR_POWER_LOSSES").unwrap_or(2_000);
    let situations = Situations::new(&SITUATIONS);
    if let Some(seed) = number("VOUSSOIR_SEED") {
        return life(seed, &situations);
    }
    for seed in 0..losses.div_ceil(LOSSES_A_LIFE) {
        let run = std::panic::AssertUnwindSafe(|| life(seed, &situations));
        if let Err(panic) = std::panic::catch_unwind(run) {
            let test = "cargo test -p voussoir-queue --test power_queue";
            eprintln!("replay: VOUSSOIR_SEED={seed} {test}");
            std::panic::resume_unwind(panic);
        }
    }
    situations.assert_all_reached();
}
