//! A work queue in a journal under power losses, on the journal's crash-simulating files.
//!
//! `VOUSSOIR_POWER_LOSSES` sets how many there are (default 3,000); `VOUSSOIR_SEED` replays one
//! life.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use support::{batch, journal, partition, poll, work};
use voussoir_journal::Journal;
use voussoir_journal::files::crash::{CrashFiles, Effect, Fault, Loss, Op, When};
use voussoir_queue::work::{Delivery, JournalWork, WorkConfig, WorkError, WorkQueue};
use voussoir_queue::{Config, Durability, Outcome, Partition, Record};
use voussoir_sim::Situations;

const LOSSES_A_LIFE: u64 = 10;
const SECOND: u64 = 1_000_000_000;

static SITUATIONS: [&str; 13] = [
    "power lost with an acknowledgement on its way",
    "power lost with a delivery on its way",
    "power lost with records leased",
    "an acknowledgement of unknown outcome was kept",
    "an acknowledgement of unknown outcome was lost",
    "a record was delivered again after a power loss",
    "a dead letter outlived a power loss",
    "a dead letter was redriven and acknowledged",
    "a dead letter was purged",
    "the source was released up to the floor",
    "a receiver was dropped with its delivery on its way",
    "a late acknowledgement was rejected",
    "a record of a redrive was delivered after a power loss",
];

type Answering = Pin<Box<dyn Future<Output = Result<(), WorkError>>>>;
type Receiving = Pin<Box<dyn Future<Output = Result<Vec<Delivery>, WorkError>>>>;

enum Change {
    Ack,
    Nack,
    Reject,
    Redrive,
    Purge,
}

/// What is known of the record at an offset.
#[derive(Clone, Debug, Default)]
struct Known {
    handed: u32,
    is_acked: bool,
    may_be_acked: bool,
    is_dead: bool,
    is_purged: bool,
}

struct Life<'a> {
    random: fastrand::Rng,
    disk: CrashFiles,
    journal: Journal,
    source: Partition,
    queue: WorkQueue,
    config: WorkConfig,
    segments: u64,
    journal_now: u64,
    clock: Arc<AtomicU64>,
    receiving: Vec<Receiving>,
    changing: Vec<(u64, Change, Answering)>,
    jobs: Vec<Delivery>,
    known: BTreeMap<u64, Known>,
    /// Records whose count began anew, with a redrive.
    redriven: BTreeSet<u64>,
    is_failing: bool,
    situations: &'a Situations,
}

fn source_config() -> Config {
    let mut config = Config::default();
    (config.max_producers, config.max_index_entries) = (2, 4);
    config
}

fn config(random: &mut fastrand::Rng) -> WorkConfig {
    let mut config = WorkConfig::default();
    config.visibility_timeout = Duration::from_secs(10);
    config.max_deliveries = random.u32(1..4);
    config.min_backoff = Duration::from_secs(random.u64(0..2));
    config.max_backoff = Duration::from_secs(4);
    config.max_records = random.usize(1..20);
    config.max_dead_letters = random.usize(1..8);
    config.checkpoint_every = random.u64(1..10);
    config
}

fn open(journal: &Journal, config: &WorkConfig, clock: &Arc<AtomicU64>) -> (Partition, WorkQueue) {
    let source = partition(journal, source_config());
    let store = JournalWork::new(journal, "work").expect("a namespace");
    let clock = Arc::clone(clock);
    let clock = move || clock.load(Ordering::Relaxed);
    let queue = WorkQueue::open_with_clock(source.clone(), store, config.clone(), clock);
    (source, queue.expect("the work queue opens"))
}

impl<'a> Life<'a> {
    fn new(seed: u64, situations: &'a Situations) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let disk = CrashFiles::new(seed);
        let segments = random.u64(4..10);
        let journal = journal(disk.mount(), segments);
        let config = config(&mut random);
        let clock = Arc::new(AtomicU64::new(1_000 * SECOND));
        let (source, queue) = open(&journal, &config, &clock);
        Self {
            random,
            disk,
            journal,
            source,
            queue,
            config,
            segments,
            journal_now: 0,
            clock,
            receiving: Vec::new(),
            changing: Vec::new(),
            jobs: Vec::new(),
            known: BTreeMap::new(),
            redriven: BTreeSet::new(),
            is_failing: false,
            situations,
        }
    }

    fn step(&mut self) {
        match self.random.u8(..24) {
            0..=5 => self.append(),
            6..=9 => self.receive(),
            10..=13 => self.settle(),
            14..=17 => self.pump(),
            18 => self.pass(12 * SECOND),
            19 => self.dead_letters(),
            20 => self.release(),
            21 => self.drop_receiver(),
            22 => self.settle_again(),
            _ => {}
        }
    }

    fn append(&mut self) {
        let count = self.random.usize(1..4);
        let bytes = if self.random.u8(..6) == 0 { self.random.usize(..2_000) } else { 10 };
        let record = |_| {
            let record = Record::new("x".repeat(bytes));
            if self.random.bool() { record.key(format!("{}", self.random.u8(..3))) } else { record }
        };
        let records: Vec<Record> = (0..count).map(record).collect();
        // Its answer does not matter: what is in the log is to be done.
        drop(self.source.append(batch(&records, None), Durability::Synced));
    }

    fn receive(&mut self) {
        let (queue, max) = (self.queue.clone(), self.random.usize(1..4));
        let receiving = async move { queue.receive(max, Duration::from_secs(3_600)).await };
        self.receiving.push(Box::pin(receiving));
        self.poll();
    }

    fn settle(&mut self) {
        if self.jobs.is_empty() {
            return;
        }
        let job = self.jobs.swap_remove(self.random.usize(..self.jobs.len()));
        let (queue, receipt) = (self.queue.clone(), job.receipt);
        let (change, answering): (Change, Answering) = match self.random.u8(..6) {
            0 => (Change::Nack, Box::pin(async move { queue.nack(&receipt, None).await })),
            1 => (Change::Reject, Box::pin(async move { queue.reject(&receipt, "no").await })),
            // Its lease runs out.
            2 => return,
            _ => (Change::Ack, Box::pin(async move { queue.ack(&receipt).await })),
        };
        self.changing.push((receipt.offset(), change, answering));
        self.poll();
    }

    /// Acknowledges a record without letting go of it.
    fn settle_again(&mut self) {
        let Some(job) = self.jobs.first() else { return };
        let (queue, receipt) = (self.queue.clone(), job.receipt);
        let answering = Box::pin(async move { queue.ack(&receipt).await });
        self.changing.push((receipt.offset(), Change::Ack, answering));
        self.poll();
    }

    fn dead_letters(&mut self) {
        let Ok(letters) = self.queue.dead_letters(0, 100) else { return };
        let Some(letter) = self.random.choice(letters) else { return };
        let (queue, id, offset) = (self.queue.clone(), letter.id, letter.record.offset);
        let (change, answering): (Change, Answering) = if self.random.u8(..4) == 0 {
            (Change::Purge, Box::pin(async move { queue.purge(id).await }))
        } else {
            (Change::Redrive, Box::pin(async move { queue.redrive(id).await }))
        };
        self.changing.push((offset, change, answering));
        self.poll();
    }

    fn drop_receiver(&mut self) {
        if self.receiving.is_empty() {
            return;
        }
        drop(self.receiving.remove(0));
        self.situations.reached("a receiver was dropped with its delivery on its way");
    }

    fn pass(&mut self, upto: u64) {
        self.clock.fetch_add(self.random.u64(0..upto), Ordering::Relaxed);
        self.queue.stats();
        self.poll();
    }

    fn release(&mut self) {
        let floor = self.queue.stats().floor;
        let source = self.source.clone();
        let mut releasing = Box::pin(async move { source.release_before(floor).await });
        let mut answered = poll(&mut releasing);
        if answered.is_none() {
            work(&self.journal, &mut self.journal_now);
            answered = poll(&mut releasing);
        }
        if let Some(Ok(start)) = answered {
            self.situations.add("the source was released up to the floor", u64::from(start > 0));
        }
    }

    /// Lets the journal work, and takes what has been answered.
    fn pump(&mut self) {
        for _ in 0..3 {
            work(&self.journal, &mut self.journal_now);
            self.queue.stats();
            self.poll();
        }
    }

    fn poll(&mut self) {
        // A redrive is answered before its record is delivered.
        for (offset, change, mut answering) in std::mem::take(&mut self.changing) {
            match poll(&mut answering) {
                None => self.changing.push((offset, change, answering)),
                Some(result) => self.changed(offset, &change, result),
            }
        }
        for mut receiving in std::mem::take(&mut self.receiving) {
            match poll(&mut receiving) {
                None => self.receiving.push(receiving),
                Some(Ok(deliveries)) => self.delivered(deliveries),
                Some(Err(WorkError::Store(_) | WorkError::Source(_))) => {}
                Some(Err(other)) => panic!("{other}"),
            }
        }
    }

    fn delivered(&mut self, deliveries: Vec<Delivery>) {
        for delivery in deliveries {
            let offset = delivery.receipt.offset();
            let known = self.known.entry(offset).or_default();
            assert!(!known.is_acked, "{offset} comes back after its acknowledgement");
            assert!(!known.is_purged, "{offset} comes back after it was purged");
            assert!(
                delivery.deliveries > known.handed,
                "the count of {offset} went back to {}",
                delivery.deliveries
            );
            let is_dead = self.redriven.contains(&offset);
            assert!(!known.is_dead || is_dead, "a dead letter is delivered: {offset}");
            known.handed += 1;
            self.jobs.push(delivery);
        }
    }

    fn changed(&mut self, offset: u64, change: &Change, result: Result<(), WorkError>) {
        if result.as_ref().is_err_and(|error| error.outcome() == Outcome::Unknown) {
            return self.unknown(offset, change);
        }
        let known = self.known.entry(offset).or_default();
        match (change, result) {
            (Change::Ack, Ok(())) => {
                assert!(!known.is_acked, "{offset} is acknowledged twice");
                known.is_acked = true;
                let was_dead = known.is_dead;
                self.situations
                    .add("a dead letter was redriven and acknowledged", u64::from(was_dead));
            }
            (Change::Purge, Ok(())) => {
                known.is_purged = true;
                self.situations.reached("a dead letter was purged");
            }
            (Change::Redrive, Ok(())) => {
                (known.is_dead, known.handed) = (true, 0);
                self.redriven.insert(offset);
            }
            (Change::Ack, Err(WorkError::LeaseLost { .. })) => {
                self.situations.reached("a late acknowledgement was rejected");
            }
            _ => {}
        }
    }

    /// The change may have happened.
    fn unknown(&mut self, offset: u64, change: &Change) {
        let known = self.known.entry(offset).or_default();
        match change {
            Change::Ack | Change::Purge => known.may_be_acked = true,
            // Its count begins anew.
            Change::Redrive => {
                (known.is_dead, known.handed) = (true, 0);
                self.redriven.insert(offset);
            }
            Change::Nack | Change::Reject => {}
        }
    }

    fn lose_power(&mut self) {
        let acking: Vec<u64> = self.changing.iter().map(|(offset, ..)| *offset).collect();
        self.situations
            .add("power lost with an acknowledgement on its way", u64::from(!acking.is_empty()));
        let receiving = !self.receiving.is_empty();
        self.situations.add("power lost with a delivery on its way", u64::from(receiving));
        self.situations.add("power lost with records leased", u64::from(!self.jobs.is_empty()));
        let mut unknown = Vec::new();
        for (offset, change, _) in std::mem::take(&mut self.changing) {
            self.unknown(offset, &change);
            if matches!(change, Change::Ack) {
                unknown.push(offset);
            }
        }
        self.receiving.clear();
        self.jobs.clear();
        self.disk.power_loss(Loss::Any);
        self.disk.heal();
        self.is_failing = false;
        self.journal = journal(self.disk.mount(), self.segments);
        (self.source, self.queue) = open(&self.journal, &self.config, &self.clock);
        self.check_recovered(&unknown);
    }

    fn check_recovered(&mut self, unknown: &[u64]) {
        let letters = self.queue.dead_letters(0, usize::MAX).expect("they can be read");
        let dead: BTreeSet<u64> = letters.iter().map(|letter| letter.record.offset).collect();
        assert_eq!(dead.len(), letters.len(), "a record is a dead letter twice");
        self.situations.add("a dead letter outlived a power loss", dead.len() as u64);
        let redriven = letters.iter().filter(|letter| letter.is_redriven).count() as u64;
        self.situations.add("a record of a redrive was delivered after a power loss", redriven);
        let floor = self.queue.stats().floor;
        for offset in unknown {
            let is_kept = *offset < floor && !dead.contains(offset);
            self.situations.reached(if is_kept {
                "an acknowledgement of unknown outcome was kept"
            } else {
                "an acknowledgement of unknown outcome was lost"
            });
        }
        for (offset, known) in &self.known {
            let is_done = known.is_acked || known.is_purged;
            assert!(!is_done || !dead.contains(offset), "{offset} is a dead letter again");
            let again = known.handed > 0 && !is_done && *offset >= floor;
            self.situations
                .add("a record was delivered again after a power loss", u64::from(again));
        }
    }

    /// Everything is acknowledged, and nothing is missing.
    fn drain(&mut self) {
        for _ in 0..2_000 {
            self.pump();
            let letters = self.queue.dead_letters(0, 100).expect("they can be read");
            if self.changing.is_empty() && self.queue.stats().dying > 0 {
                let listed = letters.iter().find(|letter| !letter.is_redriven);
                if let Some(letter) = listed {
                    let (queue, id) = (self.queue.clone(), letter.id);
                    let purging = Box::pin(async move { queue.purge(id).await });
                    self.changing.push((letter.record.offset, Change::Purge, purging));
                }
            }
            for job in std::mem::take(&mut self.jobs) {
                let (queue, receipt) = (self.queue.clone(), job.receipt);
                let acking = Box::pin(async move { queue.ack(&receipt).await });
                self.changing.push((receipt.offset(), Change::Ack, acking));
            }
            self.poll();
            let stats = self.queue.stats();
            if stats.lag == 0 && stats.records == 0 && self.changing.is_empty() {
                return self.check_ended();
            }
            self.release();
            if self.receiving.is_empty() {
                self.receive();
            }
            self.pass(4 * SECOND);
        }
        panic!("it never ends: {:?}", self.queue.stats());
    }

    fn check_ended(&self) {
        let letters = self.queue.dead_letters(0, usize::MAX).expect("they can be read");
        let dead: BTreeSet<u64> = letters.iter().map(|letter| letter.record.offset).collect();
        for offset in 0..self.source.offsets().end {
            let known = self.known.get(&offset).cloned().unwrap_or_default();
            let is_done = known.is_acked || known.may_be_acked || known.is_purged;
            assert!(is_done || dead.contains(&offset), "{offset} is lost: {known:?}");
        }
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
            let at = When::Nth(life.random.u64(..30));
            life.disk.inject(Fault::new(Op::Any, at, Effect::PowerOff));
            for _ in 0..life.random.usize(1..10) {
                life.step();
            }
        }
        life.lose_power();
    }
    life.drain();
}

#[test]
fn no_power_loss_loses_a_record_or_brings_one_back() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let losses = number("VOUSSOIR_POWER_LOSSES").unwrap_or(3_000);
    let situations = Situations::new(&SITUATIONS);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    let _entered = runtime.enter();
    if let Some(seed) = number("VOUSSOIR_SEED") {
        return life(seed, &situations);
    }
    for seed in 0..losses.div_ceil(LOSSES_A_LIFE) {
        let run = std::panic::AssertUnwindSafe(|| life(seed, &situations));
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!(
                "replay: VOUSSOIR_SEED={seed} cargo test -p voussoir-queue --test work_power"
            );
            std::panic::resume_unwind(panic);
        }
    }
    situations.assert_all_reached();
}
