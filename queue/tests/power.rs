//! A partition in a journal under power losses and restarts, on the journal's crash-simulating
//! files.
//!
//! `VOUSSOIR_POWER_LOSSES` sets how many there are (default 5,000); `VOUSSOIR_SEED` replays one
//! life.

mod support;

use std::collections::{BTreeMap, HashMap, VecDeque};

use support::{batch, journal, partition, poll, read_all, work};
use voussoir_journal::Journal;
use voussoir_journal::files::crash::{CrashFiles, Effect, Fault, Loss, Op, When};
use voussoir_queue::{
    AppendFuture, Batch, Config, Durability, FetchError, Outcome, Partition, ProduceError, Record,
    Seek, StoreError,
};
use voussoir_sim::Situations;

const LOSSES_A_LIFE: u64 = 10;

static SITUATIONS: [&str; 13] = [
    "power lost with batches on their way",
    "a batch of unknown outcome was in the log",
    "a batch of unknown outcome was not in the log",
    "a repeated batch was answered with its old offset",
    "a repeated batch waited for the sync of its first attempt",
    "a buffered batch was lost, and the next one is a gap",
    "a producer was forgotten",
    "an epoch was fenced",
    "a power loss behind a release of everything",
    "a producer goes on after its batches were released",
    "a batch was found by its timestamp",
    "several batches in one write",
    "an old batch was read from the journal",
];

/// One producer, which keeps what is not acknowledged and sends it again.
struct Producer {
    id: i64,
    epoch: i16,
    sequence: i32,
    durability: Durability,
    /// Sent and not acknowledged, oldest first.
    open: VecDeque<(Batch, String)>,
    /// What `open` waits for, in the same order; `None` to be sent again.
    answers: VecDeque<Option<AppendFuture>>,
    /// Offset of the last record that was acknowledged.
    last: Option<u64>,
}

/// A batch in the log, as the test knows it.
#[derive(Clone, Debug, PartialEq)]
struct Kept {
    value: String,
    is_synced: bool,
    timestamps: Vec<i64>,
}

struct Life<'a> {
    random: fastrand::Rng,
    disk: CrashFiles,
    journal: Journal,
    partition: Partition,
    config: Config,
    segments: u64,
    now: u64,
    next_id: i64,
    producers: Vec<Producer>,
    /// Acknowledged batches by base offset.
    kept: BTreeMap<u64, Kept>,
    /// Timestamps of each value that was ever sent.
    sent: HashMap<String, Vec<i64>>,
    start: u64,
    /// Offset below which everything is known to be durable.
    synced: u64,
    /// The power goes off at some operation of the disk.
    is_failing: bool,
    situations: &'a Situations,
}

fn config(random: &mut fastrand::Rng) -> Config {
    let mut config = Config::default();
    config.max_producers = random.usize(2..6);
    config.max_index_entries = random.usize(2..8);
    config.tail_cache_bytes = random.usize(0..4_000);
    config.snapshot_every = random.u64(1..12);
    config
}

impl<'a> Life<'a> {
    fn new(seed: u64, situations: &'a Situations) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let disk = CrashFiles::new(seed);
        let config = config(&mut random);
        let segments = random.u64(4..10);
        let journal = journal(disk.mount(), segments);
        let partition = partition(&journal, config.clone());
        let mut life = Self {
            random,
            disk,
            journal,
            partition,
            config,
            segments,
            now: 0,
            next_id: 0,
            producers: Vec::new(),
            kept: BTreeMap::new(),
            sent: HashMap::new(),
            start: 0,
            synced: 0,
            is_failing: false,
            situations,
        };
        for at in 0..life.random.usize(1..5) {
            let producer = life.producer(at);
            life.producers.push(producer);
        }
        life
    }

    fn producer(&mut self, at: usize) -> Producer {
        self.next_id += 1;
        Producer {
            id: self.next_id,
            epoch: 0,
            sequence: 0,
            durability: if at == 1 { Durability::Buffered } else { Durability::Synced },
            open: VecDeque::new(),
            answers: VecDeque::new(),
            last: None,
        }
    }

    fn send(&mut self, at: usize) {
        let count = self.random.i32(1..4);
        let bytes = if self.random.u8(..8) == 0 { self.random.usize(..4_500) } else { 20 };
        let timestamps: Vec<i64> = (0..count).map(|_| self.random.i64(0..1_000)).collect();
        let producer = &mut self.producers[at];
        if producer.open.len() >= 5 {
            return;
        }
        let value = format!("{}-{}-{}", producer.id, producer.epoch, producer.sequence);
        let record = |(at, timestamp): (usize, &i64)| {
            let filler = "x".repeat(bytes);
            Record::new(format!("{value}/{at}/{filler}")).timestamp(*timestamp)
        };
        let records: Vec<Record> = timestamps.iter().enumerate().map(record).collect();
        let producer_fields = Some((producer.id, producer.epoch, producer.sequence));
        let batch = batch(&records, producer_fields);
        producer.sequence += count;
        self.sent.insert(value.clone(), timestamps);
        let answer = self.partition.append(batch.clone(), producer.durability);
        producer.open.push_back((batch, value));
        producer.answers.push_back(Some(answer));
    }

    /// Sends again what has no answer on its way, in order.
    fn send_again(&mut self, at: usize) {
        let producer = &mut self.producers[at];
        let resend = producer.answers.iter().position(Option::is_none);
        for index in resend.into_iter().flat_map(|from| from..producer.open.len()) {
            let batch = producer.open[index].0.clone();
            let answer = self.partition.append(batch, producer.durability);
            producer.answers[index] = Some(answer);
        }
    }

    /// Takes the answers that have come. Returns whether the journal was full.
    fn take_answers(&mut self, at: usize) -> bool {
        let mut is_full = false;
        // Ends: each round takes the oldest batch off, or leaves.
        while let Some(Some(answer)) = self.producers[at].answers.front_mut() {
            let Some(answered) = poll(answer) else { break };
            let producer = &mut self.producers[at];
            let durability = producer.durability;
            let (sent, value) = producer.open.front().cloned().expect("one for each answer");
            match answered {
                Ok(appended) => {
                    producer.open.pop_front();
                    producer.answers.pop_front();
                    if appended.is_duplicate {
                        self.situations
                            .reached("a repeated batch was answered with its old offset");
                    }
                    let last = u64::from(sent.header().last_offset_delta as u32);
                    assert_eq!(appended.last_offset, appended.base_offset + last);
                    let is_synced = durability == Durability::Synced;
                    if is_synced {
                        self.synced = self.synced.max(appended.last_offset + 1);
                    }
                    let released = producer.last.is_some_and(|last| last < self.start);
                    self.situations.add(
                        "a producer goes on after its batches were released",
                        u64::from(released && !appended.is_duplicate),
                    );
                    producer.last = Some(appended.last_offset);
                    self.note(appended.base_offset, value, is_synced);
                }
                Err(error) => {
                    is_full |= matches!(error, ProduceError::Store(StoreError::Full { .. }));
                    self.failed(at, &error);
                    break;
                }
            }
        }
        is_full
    }

    fn note(&mut self, base: u64, value: String, is_synced: bool) {
        let timestamps = self.sent[&value].clone();
        let kept = Kept { value, is_synced, timestamps };
        if let Some(known) = self.kept.get_mut(&base) {
            assert_eq!(known.value, kept.value, "two batches at offset {base}");
            known.is_synced |= is_synced;
        } else if base >= self.start {
            self.kept.insert(base, kept);
        }
    }

    fn failed(&mut self, at: usize, error: &ProduceError) {
        let durability = self.producers[at].durability;
        match error {
            ProduceError::Store(error) => {
                // To be sent again, with all that came after it.
                assert!(!matches!(error, StoreError::Rejected { .. }), "{error}");
                self.producers[at].answers.iter_mut().for_each(|answer| *answer = None);
            }
            ProduceError::OutOfOrder { .. } => {
                assert_eq!(durability, Durability::Buffered, "{error}");
                self.situations.reached("a buffered batch was lost, and the next one is a gap");
                let producer = &mut self.producers[at];
                producer.epoch += 1;
                producer.last = None;
                producer.sequence = 0;
                producer.open.clear();
                producer.answers.clear();
            }
            ProduceError::UnknownProducer { .. } => {
                self.situations.reached("a producer was forgotten");
                assert_eq!(error.outcome(), Outcome::Unknown);
                let fresh = self.producer(at);
                self.producers[at] = fresh;
            }
            other => panic!("{other}"),
        }
    }

    fn step(&mut self) {
        let at = self.random.usize(..self.producers.len());
        // What reads, and what expects an answer, is done while the disk is in order.
        let kinds = if self.is_failing { 9 } else { 12 };
        match self.random.u8(..kinds) {
            0..=5 => self.send(at),
            6 | 7 => self.pump(),
            8 => self.release(),
            9 => self.read(),
            10 => self.stale_epoch(at),
            _ => self.repeat(at),
        }
    }

    /// Lets everything that was sent be answered.
    fn pump(&mut self) {
        for _ in 0..4 {
            let before = (self.partition.stats().appended, self.journal.stats().commits);
            work(&self.journal, &mut self.now);
            let appended = self.partition.stats().appended - before.0;
            let commits = self.journal.stats().commits - before.1;
            self.situations.add("several batches in one write", u64::from(appended > commits));
            let mut is_full = false;
            for at in 0..self.producers.len() {
                is_full |= self.take_answers(at);
            }
            if is_full {
                let end = self.partition.offsets().end;
                self.release_before(end);
            }
            for at in 0..self.producers.len() {
                self.send_again(at);
            }
        }
    }

    fn release(&mut self) {
        let offsets = self.partition.offsets();
        let upto = self.random.u64(offsets.start..=offsets.end);
        self.release_before(upto);
    }

    fn release_before(&mut self, upto: u64) {
        let partition = self.partition.clone();
        let mut releasing = Box::pin(partition.release_before(upto));
        let mut answered = poll(&mut releasing);
        for _ in 0..4 {
            if answered.is_some() {
                break;
            }
            work(&self.journal, &mut self.now);
            answered = poll(&mut releasing);
        }
        match answered {
            Some(Ok(start)) => {
                assert!(start <= upto.max(self.start), "{start} is beyond {upto}");
                self.start = start;
                self.kept = self.kept.split_off(&start);
                // A synced write makes everything before it durable.
                self.synced = self.synced.max(start);
            }
            Some(Err(FetchError::Store(StoreError::Full { .. }))) => {}
            // The power is off.
            Some(Err(FetchError::Store(_) | FetchError::Closed)) | None => {}
            Some(Err(other)) => panic!("{other}"),
        }
    }

    /// Reads at a place of the log, by offset and by timestamp, and compares with what is known.
    fn read(&mut self) {
        self.pump();
        let offsets = self.partition.offsets();
        assert_eq!(offsets.start, self.start);
        if offsets.is_empty() {
            return;
        }
        let offset = self.random.u64(offsets.clone());
        let Ok(fetched) = self.partition.fetch(offset, 1) else { return };
        let first = &fetched.batches[0];
        assert!((first.base_offset()..=first.last_offset()).contains(&offset));
        let known = self.kept.range(..=offset).next_back();
        if let Some((base, kept)) = known.filter(|(base, _)| **base == first.base_offset()) {
            let record = fetched.records(1 << 20).next().expect("one").expect("a record");
            let start = format!("{}/{}/", kept.value, record.offset - base);
            let value = record.value.expect("a value");
            assert!(value.starts_with(start.as_bytes()), "{start} at {offset}");
            self.situations.reached("an old batch was read from the journal");
        }
        let timestamp = self.random.i64(0..1_100);
        let found = self.partition.seek(Seek::Timestamp(timestamp)).expect("it can be read");
        let everything = read_all(&self.partition, self.random.clone().usize(1..5_000));
        let expected = everything.iter().find(|record| record.timestamp >= timestamp);
        assert_eq!(found, expected.map_or(offsets.end, |record| record.offset), "{timestamp}");
        self.situations.add("a batch was found by its timestamp", u64::from(expected.is_some()));
    }

    /// A zombie of an earlier epoch is rejected, whatever it sends.
    fn stale_epoch(&mut self, at: usize) {
        let producer = &self.producers[at];
        if producer.epoch == 0 || producer.last.is_none() || !producer.open.is_empty() {
            return;
        }
        let (id, current) = (producer.id, producer.epoch);
        let zombie = batch(&[Record::new("zombie")], Some((id, current - 1, 0)));
        let mut answer = self.partition.append(zombie, Durability::Synced);
        work(&self.journal, &mut self.now);
        match poll(&mut answer) {
            Some(Err(ProduceError::Fenced { .. })) => {
                self.situations.reached("an epoch was fenced");
            }
            Some(Err(ProduceError::UnknownProducer { .. } | ProduceError::Store(_))) | None => {}
            // The new epoch has sent nothing yet that is still known.
            Some(Ok(_)) => panic!("a zombie has written"),
            Some(Err(other)) => panic!("{other}"),
        }
    }

    /// Sends the latest batch again though it may have been answered, in another durability.
    fn repeat(&mut self, at: usize) {
        let Some((batch, value)) = self.producers[at].open.back().cloned() else { return };
        let mut answer = self.partition.append(batch, Durability::Synced);
        let before = self.partition.stats().duplicates;
        work(&self.journal, &mut self.now);
        if let Some(Ok(appended)) = poll(&mut answer) {
            let is_buffered = self.producers[at].durability == Durability::Buffered;
            let waited = is_buffered && self.partition.stats().duplicates > before;
            self.situations.add(
                "a repeated batch waited for the sync of its first attempt",
                u64::from(waited),
            );
            self.synced = self.synced.max(appended.last_offset + 1);
            self.note(appended.base_offset, value, true);
        }
    }

    fn lose_power(&mut self) {
        let open = self.producers.iter().any(|producer| !producer.open.is_empty());
        self.situations.add("power lost with batches on their way", u64::from(open));
        let offsets = self.partition.offsets();
        let is_empty = offsets.is_empty() && offsets.end > 0;
        self.situations.add("a power loss behind a release of everything", u64::from(is_empty));
        self.disk.power_loss(Loss::Any);
        self.disk.heal();
        self.is_failing = false;
        self.journal = journal(self.disk.mount(), self.segments);
        self.partition = partition(&self.journal, self.config.clone());
        self.check_recovered();
        for at in 0..self.producers.len() {
            if self.producers[at].durability == Durability::Buffered {
                // What it knows of the log may be lost.
                self.producers[at].last = None;
            }
            self.producers[at].answers.iter_mut().for_each(|answer| *answer = None);
            self.send_again(at);
        }
    }

    /// Nothing durable is lost, nothing is there twice, nothing is there that nobody sent.
    fn check_recovered(&mut self) {
        let offsets = self.partition.offsets();
        assert!(offsets.end >= self.synced, "{offsets:?} ends before {}", self.synced);
        assert!(offsets.start >= self.start, "{offsets:?} begins before {}", self.start);
        let mut found: BTreeMap<u64, Kept> = BTreeMap::new();
        let mut values = HashMap::new();
        let mut next = offsets.start;
        for record in read_all(&self.partition, 2_000) {
            assert_eq!(record.offset, next, "offsets have no gaps");
            next += 1;
            let text = String::from_utf8(record.value.expect("a value").to_vec()).expect("text");
            let mut parts = text.splitn(3, '/');
            let (value, at) = (parts.next().expect("a name"), parts.next().expect("a number"));
            let at: u64 = at.parse().expect("a number");
            let base = record.offset - at;
            let known = values.entry(value.to_owned()).or_insert(base);
            assert_eq!(*known, base, "{value} is there twice");
            let timestamps = self.sent.get(value).expect("it was sent").clone();
            assert_eq!(timestamps[at as usize], record.timestamp);
            let kept = Kept { value: value.to_owned(), is_synced: true, timestamps };
            found.entry(base).or_insert(kept);
        }
        assert_eq!(next, offsets.end);
        for (base, kept) in &self.kept {
            let is_there = found.get(base).is_some_and(|found| found.value == kept.value);
            let may_be_lost = !kept.is_synced && *base >= self.synced;
            assert!(
                is_there || may_be_lost || *base < offsets.start,
                "{kept:?} at {base} is lost, {offsets:?}"
            );
        }
        for producer in &self.producers {
            for (_, value) in &producer.open {
                let name = if values.contains_key(value) {
                    "a batch of unknown outcome was in the log"
                } else {
                    "a batch of unknown outcome was not in the log"
                };
                self.situations.reached(name);
            }
        }
        self.kept = found;
        self.start = offsets.start;
        self.synced = offsets.end;
    }
}

fn life(seed: u64, situations: &Situations) {
    let mut life = Life::new(seed, situations);
    for _ in 0..LOSSES_A_LIFE {
        for _ in 0..life.random.usize(1..40) {
            life.step();
        }
        if life.random.bool() {
            life.is_failing = true;
            let at = When::Nth(life.random.u64(..40));
            life.disk.inject(Fault::new(Op::Any, at, Effect::PowerOff));
            for _ in 0..life.random.usize(1..10) {
                life.step();
            }
        }
        life.lose_power();
    }
    life.pump();
    life.pump();
}

#[test]
fn no_power_loss_loses_or_doubles_a_batch() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let losses = number("VOUSSOIR_POWER_LOSSES").unwrap_or(5_000);
    let situations = Situations::new(&SITUATIONS);
    if let Some(seed) = number("VOUSSOIR_SEED") {
        return life(seed, &situations);
    }
    for seed in 0..losses.div_ceil(LOSSES_A_LIFE) {
        let run = std::panic::AssertUnwindSafe(|| life(seed, &situations));
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("replay: VOUSSOIR_SEED={seed} cargo test -p voussoir-queue --test power");
            std::panic::resume_unwind(panic);
        }
    }
    situations.assert_all_reached();
}
