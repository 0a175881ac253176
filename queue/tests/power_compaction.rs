//! A compacted partition under power losses and restarts, on the journal's crash-simulating files:
//! appends, releases and readers beside compactions that the power cuts off at any point.
//!
//! `VOUSSOIR_POWER_LOSSES` sets how many there are (default 1,500); `VOUSSOIR_SEED` replays one
//! life.

mod support;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use support::{batch, first_at, journal, poll, read_all, work};
use voussoir_journal::Journal;
use voussoir_journal::files::crash::{CrashFiles, Effect, Fault, Loss, Op, When};
use voussoir_queue::store::JournalStore;
use voussoir_queue::{
    AppendFuture, Bytes, Compacted, Compaction, Config, Durability, FetchError, Partition,
    ProduceError, Record, StoreError,
};
use voussoir_sim::Situations;

const LOSSES_A_LIFE: u64 = 6;
const TOMBSTONE_AGE_MS: i64 = 40;
const PRODUCER: i64 = 3;
/// Every so many lives one is armed for each situation that random steps seldom reach.
const ARMED_EVERY: u64 = 10;

static SITUATIONS: [&str; 12] = [
    "power lost while a copy was written",
    "a compaction of unknown outcome had happened",
    "a compaction of unknown outcome had not happened",
    "power lost before a replaced generation was deleted",
    "a compaction of several rounds",
    "a compacted log was compacted again",
    "a release came while a copy was written",
    "a tombstone was kept",
    "a tombstone went",
    "a repeated batch was known though its records were removed",
    "an offset without a record was read",
    "a compaction found the store full",
];

type Compacting = Pin<Box<dyn Future<Output = Result<Compacted, FetchError>>>>;

/// What is done once in a life, whatever the random steps come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Armed {
    /// The store, of as few segments as there may be, is filled and then compacted.
    Full,
    /// The sync of the write that ends a compaction fails, and then the power does.
    Switch(Loss),
}

impl Armed {
    fn of(seed: u64) -> Option<Self> {
        match seed % ARMED_EVERY {
            0 => Some(Self::Full),
            1 => Some(Self::Switch(Loss::Nothing)),
            2 => Some(Self::Switch(Loss::Everything)),
            _ => None,
        }
    }
}

/// A record that was sent.
#[derive(Clone, Debug)]
struct Sent {
    key: u32,
    value: Option<Bytes>,
    /// Time of the first compaction that was begun behind it.
    compacted_at: Option<i64>,
}

struct Life<'a> {
    random: fastrand::Rng,
    disk: CrashFiles,
    journal: Journal,
    partition: Partition,
    config: Config,
    segments: u64,
    now: u64,
    now_ms: i64,
    next_value: u64,
    /// Sequence of the next batch, and the batches without an answer. Sent again after a restart.
    sequence: i32,
    open: Vec<(i32, Vec<Record>)>,
    answers: Vec<Option<AppendFuture>>,
    /// The offset of each batch that was acknowledged, by its sequence.
    acked: BTreeMap<i32, (u64, Vec<Record>)>,
    /// Records by offset, those whose batch is known to be in the log.
    known: BTreeMap<u64, Sent>,
    start: u64,
    compacted_offset: u64,
    compacting: Option<Compacting>,
    /// The disk is about to fail: nothing is read that has to be there.
    is_failing: bool,
    situations: &'a Situations,
}

/// The generations whose copies are logs of the journal.
fn generations(journal: &Journal) -> Vec<u64> {
    let ids = journal.logs().into_iter().map(|log| log.name.id);
    ids.filter(|id| id >> 63 == 1).map(|id| (id >> 32) & 0x7fff_ffff).collect()
}

fn open(disk: &CrashFiles, config: &Config, segments: u64) -> (Journal, Partition) {
    let journal = journal(disk.mount(), segments);
    let store = JournalStore::new(&journal, "topic").expect("a namespace");
    let store = store.partition(0).expect("a partition");
    let partition = Partition::open(store, config.clone()).expect("the partition opens");
    (journal, partition)
}

impl<'a> Life<'a> {
    fn new(seed: u64, situations: &'a Situations) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let disk = CrashFiles::new(seed);
        let mut config = Config::default();
        (config.max_producers, config.max_index_entries) = (10, random.usize(2..10));
        config.tail_cache_bytes = random.usize(..3_000);
        config.snapshot_every = random.u64(1..30);
        config.max_compaction_bytes_per_second = u64::MAX;
        config.max_compaction_map_bytes = if random.u8(..3) == 0 { 200 } else { 4_096 };
        let segments = match Armed::of(seed) {
            Some(Armed::Full) => 4,
            Some(Armed::Switch(_)) => 40,
            None => [6, 40, 40, 40][random.usize(..4)],
        };
        let (journal, partition) = open(&disk, &config, segments);
        Self {
            random,
            disk,
            journal,
            partition,
            config,
            segments,
            now: 0,
            now_ms: 1_000,
            next_value: 0,
            sequence: 0,
            open: Vec::new(),
            answers: Vec::new(),
            acked: BTreeMap::new(),
            known: BTreeMap::new(),
            start: 0,
            compacted_offset: 0,
            compacting: None,
            is_failing: false,
            situations,
        }
    }

    fn send(&mut self) {
        if self.open.len() >= 5 {
            return;
        }
        let records: Vec<Record> = (0..self.random.usize(1..5))
            .map(|_| {
                let key = self.random.u32(..8);
                if self.random.u8(..5) == 0 {
                    return Record::tombstone(format!("k{key}"));
                }
                let filler = "x".repeat(if self.random.u8(..4) == 0 { 2_500 } else { 20 });
                self.next_value += 1;
                Record::new(format!("{}/{filler}", self.next_value)).key(format!("k{key}"))
            })
            .collect();
        let answer = self.append(self.sequence, &records);
        self.open.push((self.sequence, records.clone()));
        self.answers.push(Some(answer));
        self.sequence += i32::try_from(records.len()).expect("few");
    }

    fn append(&self, sequence: i32, records: &[Record]) -> AppendFuture {
        let sent = batch(records, Some((PRODUCER, 0, sequence)));
        self.partition.append(sent, Durability::Synced)
    }

    /// Takes answers in order, and sends again what the store rejected.
    fn take_answers(&mut self) {
        // Ends: each round takes the oldest batch off, or leaves.
        while let Some(Some(answer)) = self.answers.first_mut() {
            match poll(answer) {
                None => return,
                Some(Ok(appended)) => {
                    self.answers.remove(0);
                    let (sequence, records) = self.open.remove(0);
                    self.note(appended.base_offset, &records);
                    self.acked.insert(sequence, (appended.base_offset, records));
                }
                Some(Err(_)) => {
                    self.answers.iter_mut().for_each(|answer| *answer = None);
                    return;
                }
            }
        }
    }

    fn send_again(&mut self) {
        for at in 0..self.open.len() {
            if self.answers[at].is_none() {
                let (sequence, records) = self.open[at].clone();
                self.answers[at] = Some(self.append(sequence, &records));
            }
        }
    }

    fn note(&mut self, base: u64, records: &[Record]) {
        for (record, offset) in records.iter().zip(base..) {
            let key = record.key.as_ref().expect("one");
            let key = std::str::from_utf8(&key[1..]).expect("text").parse().expect("a number");
            let value = record.value.clone();
            self.known.entry(offset).or_insert(Sent { key, value, compacted_at: None });
        }
    }

    fn begin_compaction(&mut self) {
        if self.compacting.is_none() {
            self.compacting = Some(self.compaction());
            self.go_on();
        }
    }

    fn compaction(&mut self) -> Compacting {
        self.take_answers();
        self.now_ms += self.random.i64(0..30);
        let now_ms = self.now_ms;
        for sent in self.known.values_mut() {
            sent.compacted_at.get_or_insert(now_ms);
        }
        let mut policy = Compaction::default();
        policy.min_tombstone_age = Duration::from_millis(TOMBSTONE_AGE_MS as u64);
        let partition = self.partition.clone();
        Box::pin(async move { partition.compact(policy, now_ms).await })
    }

    /// Lets the compaction go on until it waits for the journal.
    fn go_on(&mut self) {
        let Some(compacting) = &mut self.compacting else { return };
        // It yields once for each part that it reads.
        let Some(result) = (0..4).find_map(|_| poll(compacting)) else { return };
        self.compacting = None;
        match result {
            Ok(done) => {
                self.situations.add("a compaction of several rounds", u64::from(done.rounds > 1));
                assert!(done.compacted_offset >= self.compacted_offset);
                self.compacted_offset = done.compacted_offset;
                let generation = generations(&self.journal).into_iter().max().unwrap_or(0);
                self.situations
                    .add("a compacted log was compacted again", u64::from(generation > 1));
                self.take_answers();
                if !self.is_failing {
                    self.check(false);
                }
            }
            Err(error @ FetchError::Store(StoreError::Rejected { .. })) => panic!("{error}"),
            Err(FetchError::Store(_) | FetchError::Closed) => {}
            Err(other) => panic!("{other}"),
        }
    }

    fn release(&mut self) {
        let offsets = self.partition.offsets();
        let upto = self.random.u64(offsets.start..=offsets.end);
        let partition = self.partition.clone();
        let mut releasing = Box::pin(partition.release_before(upto));
        let is_copying = self.compacting.is_some();
        for _ in 0..4 {
            match poll(&mut releasing) {
                None => work(&self.journal, &mut self.now),
                Some(Ok(start)) => {
                    assert!(start <= upto.max(self.start), "{start} is beyond {upto}");
                    self.situations
                        .add("a release came while a copy was written", u64::from(is_copying));
                    self.start = self.start.max(start);
                    return;
                }
                Some(Err(FetchError::Store(_) | FetchError::Closed)) => return,
                Some(Err(other)) => panic!("{other}"),
            }
        }
    }

    fn pump(&mut self) {
        for _ in 0..3 {
            work(&self.journal, &mut self.now);
            self.take_answers();
            self.send_again();
            self.go_on();
        }
    }

    /// A batch that was acknowledged is answered with its old offset, whatever became of it.
    fn repeat(&mut self) {
        if !self.open.is_empty() {
            return;
        }
        let back = self.random.usize(..5);
        let Some((&sequence, (base, records))) = self.acked.iter().rev().nth(back) else { return };
        let mut answer = self.append(sequence, records);
        let mut answered = poll(&mut answer);
        if answered.is_none() {
            work(&self.journal, &mut self.now);
            answered = poll(&mut answer);
        }
        if let Some(Ok(appended)) = answered {
            assert!(appended.is_duplicate && appended.base_offset == *base, "{appended:?}");
        }
        let (base, removed) = (*base, records.len() as u64);
        let Ok(fetched) = self.partition.fetch(base.max(self.start), 1) else { return };
        let there = fetched.records(1 << 20).filter_map(Result::ok);
        let there = there.filter(|record| record.offset < base + removed).count() as u64;
        let is_gone = base >= self.start && there < removed;
        self.situations
            .add("a repeated batch was known though its records were removed", u64::from(is_gone));
    }

    fn step(&mut self) {
        match self.random.u8(..14) {
            0..=5 => self.send(),
            6..=8 => self.pump(),
            9 => self.release(),
            10 => self.repeat(),
            11 => work(&self.journal, &mut self.now),
            _ => self.begin_compaction(),
        }
        self.take_answers();
    }

    /// What is in the log was sent, at its offset; the last record of each key is there, and what
    /// is missing was replaced by a later record, or is a tombstone whose time was over.
    fn check(&mut self, is_quiet: bool) {
        let there: BTreeMap<u64, Record> = read_all(&self.partition, 1 << 14)
            .into_iter()
            .map(|record| (record.offset, record))
            .collect();
        let mut last: HashMap<u32, u64> = HashMap::new();
        for (offset, sent) in self.known.range(self.start..) {
            last.insert(sent.key, *offset);
        }
        let compacted_offset = self.partition.stats().compacted_offset;
        for (offset, sent) in self.known.range(self.start..) {
            if let Some(record) = there.get(offset) {
                assert_eq!(record.value, sent.value, "the record at {offset}");
                let is_replaced = last[&sent.key] > *offset && last[&sent.key] < compacted_offset;
                assert!(!is_replaced, "{offset} is there, though {} is", last[&sent.key]);
                self.situations.add(
                    "a tombstone was kept",
                    u64::from(sent.value.is_none() && *offset < compacted_offset),
                );
                continue;
            }
            assert!(*offset < compacted_offset, "{offset} is lost");
            if last[&sent.key] > *offset {
                continue;
            }
            assert!(sent.value.is_none(), "the last record of key {} is lost", sent.key);
            let since = sent.compacted_at.expect("it was compacted");
            assert!(self.now_ms >= since + TOMBSTONE_AGE_MS, "tombstone {offset} went too early");
            self.situations.reached("a tombstone went");
        }
        if is_quiet {
            let unknown: Vec<&u64> =
                there.keys().filter(|offset| !self.known.contains_key(offset)).collect();
            assert!(unknown.is_empty(), "{unknown:?} were never sent");
        }
        // Any offset leads to the next record.
        let offsets = self.partition.offsets();
        if !offsets.is_empty() {
            let offset = self.random.u64(offsets);
            let first = first_at(&self.partition, offset).map(|record| record.offset);
            assert_eq!(first, there.range(offset..).next().map(|(offset, _)| *offset));
            self.situations.add(
                "an offset without a record was read",
                u64::from(!there.contains_key(&offset)),
            );
        }
    }

    fn release_all(&mut self) {
        let partition = self.partition.clone();
        let mut releasing = Box::pin(partition.release_before(partition.offsets().end));
        for _ in 0..4 {
            if poll(&mut releasing).is_some() {
                break;
            }
            work(&self.journal, &mut self.now);
        }
        self.start = self.start.max(self.partition.offsets().start);
    }

    /// Appends one record; `false` when the store is full. Then it is sent again later.
    fn append_one(&mut self, key: u32, value_bytes: usize) -> bool {
        self.next_value += 1;
        let value = format!("{}/{}", self.next_value, "x".repeat(value_bytes));
        let records = vec![Record::new(value).key(format!("k{key}"))];
        let sequence = self.sequence;
        self.sequence += 1;
        let mut answer = self.append(sequence, &records);
        work(&self.journal, &mut self.now);
        match poll(&mut answer).expect("it is answered") {
            Ok(appended) => {
                self.note(appended.base_offset, &records);
                self.acked.insert(sequence, (appended.base_offset, records));
                true
            }
            Err(ProduceError::Store(StoreError::Full { .. })) => {
                self.open.push((sequence, records));
                self.answers.push(None);
                false
            }
            Err(other) => panic!("{other}"),
        }
    }

    /// Compacts a store that takes no record any more, though each key has many.
    fn compact_when_full(&mut self) {
        self.release_all();
        let before = self.partition.offsets().end;
        // Ends: the store has room for so many.
        while self.append_one(self.next_value as u32 % 8, 2_500) {}
        let appended = self.partition.offsets().end - before;
        assert!(appended >= 16, "the store is full of {appended} records");
        let (records, copies) = (read_all(&self.partition, 1 << 14), generations(&self.journal));
        let mut compacting = self.compaction();
        // Ends: it waits for the journal a few times.
        let result = (0..100).find_map(|_| {
            let result = poll(&mut compacting);
            work(&self.journal, &mut self.now);
            result
        });
        let result = result.expect("it ends");
        assert!(matches!(result, Err(FetchError::Store(StoreError::Full { .. }))), "{result:?}");
        assert_eq!(read_all(&self.partition, 1 << 14), records);
        assert_eq!(generations(&self.journal), copies, "the copy that did not fit is deleted");
        self.situations.reached("a compaction found the store full");
        self.check(false);
    }

    /// A compaction whose last write is on the disk, or lost, while its caller learns neither.
    fn fail_switch(&mut self, loss: Loss) {
        self.release_all();
        for key in [0, 1, 0, 1] {
            assert!(self.append_one(key, 20), "there is room");
        }
        // In a segment that was just begun all that follows has room: the sync that fails is that
        // of the last write, and not the one of a segment that it leaves behind.
        let rotations = self.journal.stats().rotations;
        // Ends: a segment has room for some 25 of them.
        while self.journal.stats().rotations == rotations {
            assert!(self.append_one(self.next_value as u32 % 2, 2_500), "there is room");
        }
        let before = self.partition.stats().compacted_offset;
        let copies = generations(&self.journal);
        let mut compacting = self.compaction();
        let wait = |compacting: &mut Compacting| (0..8).find_map(|_| poll(compacting));
        // What an earlier one left goes first, and the copy is one write: so few records are read
        // at once, and their two keys have room in the map.
        for _ in 0..2 {
            assert!(wait(&mut compacting).is_none(), "the last write comes third");
            work(&self.journal, &mut self.now);
        }
        assert!(wait(&mut compacting).is_none(), "the last write comes third");
        assert_eq!(generations(&self.journal).len(), copies.len() + 1, "the copy is written");
        self.disk.inject(Fault::new(Op::Sync, When::From(0), Effect::Fail));
        self.is_failing = true;
        work(&self.journal, &mut self.now);
        let result = wait(&mut compacting).expect("it ends");
        let is_unknown = matches!(result, Err(FetchError::Store(StoreError::Failed { .. })));
        assert!(is_unknown, "{result:?}");
        drop(compacting);
        self.lose_power(loss);
        let happened = self.partition.stats().compacted_offset > before;
        assert_eq!(happened, loss == Loss::Nothing, "what was written, and nothing else, is there");
        self.situations.reached(if happened {
            "a compaction of unknown outcome had happened"
        } else {
            "a compaction of unknown outcome had not happened"
        });
    }

    fn lose_power(&mut self, loss: Loss) {
        let before = generations(&self.journal);
        let was_compacting = self.compacting.take().is_some();
        let before_loss = self.partition.stats().compacted_offset;
        self.disk.power_loss(loss);
        self.is_failing = false;
        self.answers.clear();
        let (journal, partition) = {
            let (disk, config) = (self.disk.clone(), self.config.clone());
            // The old ones go before the directory is opened again.
            let memory = voussoir_queue::store::MemoryPartition::new(1);
            self.partition = Partition::open(memory, config.clone()).expect("it opens");
            let files = voussoir_journal::MemoryFiles::new();
            self.journal = journal(std::sync::Arc::new(files), 8);
            disk.heal();
            open(&disk, &config, self.segments)
        };
        (self.journal, self.partition) = (journal, partition);
        let found = generations(&self.journal);
        let stats = self.partition.stats();
        if was_compacting && before.len() > usize::from(before_loss > 0) {
            self.situations.reached("power lost while a copy was written");
            let happened = stats.compacted_offset > before_loss;
            self.situations.reached(if happened {
                "a compaction of unknown outcome had happened"
            } else {
                "a compaction of unknown outcome had not happened"
            });
        }
        assert!(stats.compacted_offset >= before_loss, "a compaction was undone");
        self.compacted_offset = stats.compacted_offset;
        self.start = self.start.max(self.partition.offsets().start);
        for _ in 0..3 {
            work(&self.journal, &mut self.now);
        }
        let left = generations(&self.journal);
        assert!(left.len() <= 1, "what was left is deleted: {found:?}, {left:?}");
        let is_older = |found: &u64| left.first().is_some_and(|left| found < left);
        self.situations.add(
            "power lost before a replaced generation was deleted",
            u64::from(found.iter().any(is_older)),
        );
        // The producer sends again what has no answer; the log says where it is.
        self.answers = self.open.iter().map(|_| None).collect();
        self.send_again();
        // Ends: a few writes answer all, unless the store is full.
        for round in 0..20 {
            work(&self.journal, &mut self.now);
            self.take_answers();
            self.send_again();
            if self.open.is_empty() {
                return self.check(true);
            }
            if round >= 4 {
                self.release_all();
            }
        }
        panic!("the partition takes no batch: {:?}", self.partition.stats());
    }
}

fn life(seed: u64, situations: &Situations) {
    let mut life = Life::new(seed, situations);
    // In one of its parts, so that there are lives before it and behind it.
    let armed_at = seed / ARMED_EVERY % LOSSES_A_LIFE;
    for at in 0..LOSSES_A_LIFE {
        match Armed::of(seed) {
            Some(Armed::Full) if at == armed_at => life.compact_when_full(),
            Some(Armed::Switch(loss)) if at == armed_at => life.fail_switch(loss),
            _ => {}
        }
        let mut steps = life.random.usize(10..80);
        let fails_at = life.random.usize(..80);
        // Ends: each round takes a step.
        while steps > 0 {
            if steps == fails_at {
                let at = When::Nth(life.random.u64(..30));
                life.disk.inject(Fault::new(Op::Any, at, Effect::PowerOff));
                life.is_failing = true;
            }
            steps -= 1;
            life.step();
        }
        life.lose_power(Loss::Any);
    }
}

#[test]
fn no_power_loss_during_a_compaction_loses_a_record_or_brings_one_back() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let losses = number("VOUSSOIR_POWER_LOSSES").unwrap_or(1_500);
    let situations = Situations::new(&SITUATIONS);
    if let Some(seed) = number("VOUSSOIR_SEED") {
        return life(seed, &situations);
    }
    for seed in 0..losses.div_ceil(LOSSES_A_LIFE) {
        let run = std::panic::AssertUnwindSafe(|| life(seed, &situations));
        if let Err(panic) = std::panic::catch_unwind(run) {
            let test = "cargo test -p voussoir-queue --test power_compaction";
            eprintln!("replay: VOUSSOIR_SEED={seed} {test}");
            std::panic::resume_unwind(panic);
        }
    }
    situations.assert_all_reached();
}
