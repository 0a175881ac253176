//! A work queue over thousands of lives, against an oracle that knows only what workers were told.
//!
//! `VOUSSOIR_LIVES` sets how many there are (default 5,000); `VOUSSOIR_SEED` replays one.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use voussoir_sim::Situations;

use super::ledger::Event;
use super::*;

static SITUATIONS: [&str; 24] = [
    "crash with a write on its way that was kept",
    "crash with a write on its way that was lost",
    "crash with records leased",
    "lease expired",
    "late acknowledgement rejected",
    "acknowledgement by a receipt of an earlier life rejected",
    "acknowledged twice",
    "negative acknowledgement with a delay",
    "delay outlived a crash",
    "poison record became a dead letter",
    "poison record that crashes the process became a dead letter",
    "record rejected",
    "dead letters were full",
    "dead letter redriven and acknowledged",
    "redriven dead letter died again",
    "redriven dead letter outlived a crash",
    "scheduled record was delivered at its time",
    "record scheduled too late",
    "later record of a key held back",
    "receiver dropped with its delivery on its way",
    "store was full",
    "lease extended beyond its first end",
    "rejection of a record that is too large refused",
    "dead letter redriven before its schedule",
];

pub(super) const SECOND: u64 = 1_000_000_000;

#[derive(Clone, Copy, Debug)]
pub(super) struct Rec {
    pub(super) key: Option<u64>,
    pub(super) deliver_at: u64,
    /// Whether compaction has taken it.
    pub(super) is_gap: bool,
    /// Every worker fails with it.
    pub(super) is_poison: bool,
}

/// What a store keeps.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    records: Vec<Bytes>,
    /// Offset of each dead letter.
    pub(super) letters: Vec<u64>,
}

#[derive(Debug)]
pub(super) struct Unwritten {
    id: u64,
    after: Disk,
}

/// A record in the hands of a worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) held: Held,
    pub(super) until: u64,
    pub(super) first_until: u64,
}

/// What is known of a record for sure.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Times that it was handed out. Of a dead letter: since its redrive.
    handed: u32,
    pub(super) is_acked: bool,
    /// An acknowledgement was on its way when the process crashed.
    pub(super) may_be_acked: bool,
    is_rejected: bool,
    pub(super) may_be_rejected: bool,
    not_before: u64,
    delayed_in: u64,
    /// The lease that nobody has ended, its life and end.
    lease: Option<(u64, u64, u64)>,
}

#[derive(Debug)]
pub(super) enum Asked {
    Receive,
    Ack(Job),
    Nack(Job, u64),
    Reject(Job),
    Extend(u64, u64),
    Redrive(u64),
    Purge,
}

pub(super) struct Life<'a> {
    pub(super) random: fastrand::Rng,
    pub(super) limits: Limits,
    pub(super) core: Core<u64>,
    pub(super) now: u64,
    pub(super) number: u64,
    pub(super) log: Vec<Rec>,
    pub(super) disk: Disk,
    pub(super) unwritten: Option<Unwritten>,
    pub(super) jobs: Vec<Job>,
    pub(super) stale: Vec<Job>,
    pub(super) asked: HashMap<u64, Asked>,
    pub(super) next_id: u64,
    pub(super) known: BTreeMap<Slot, Known>,
    pub(super) redriven_in: HashMap<u64, u64>,
    pub(super) is_full: bool,
    pub(super) situations: &'a Situations,
}

fn limits(random: &mut fastrand::Rng) -> Limits {
    Limits {
        max_deliveries: random.u32(1..5),
        min_backoff: random.u64(0..2 * SECOND),
        max_backoff: 4 * SECOND,
        max_delay: 60 * SECOND,
        max_records: random.usize(1..12),
        max_bytes: random.usize(1..2_000),
        max_dead: random.usize(1..6),
        max_waiting: random.usize(1..4),
        checkpoint_every: random.u64(1..12),
        checkpoint_bytes: 2_000,
        max_events: random.usize(2..20),
        max_dead_bytes: random.usize(120..400),
    }
}

impl<'a> Life<'a> {
    fn new(seed: u64, situations: &'a Situations) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let limits = limits(&mut random);
        let now = 1_000 * SECOND;
        let core = Core::new(limits.clone(), Ledger::default(), 0, now);
        Self {
            random,
            limits,
            core,
            now,
            number: 0,
            log: Vec::new(),
            disk: Disk::default(),
            unwritten: None,
            jobs: Vec::new(),
            stale: Vec::new(),
            asked: HashMap::new(),
            next_id: 1,
            known: BTreeMap::new(),
            redriven_in: HashMap::new(),
            is_full: false,
            situations,
        }
    }

    pub(super) fn ask(&mut self, asked: Asked, input: impl FnOnce(u64) -> Input<u64>) {
        let id = self.next_id;
        self.next_id += 1;
        self.asked.insert(id, asked);
        self.feed(input(id));
    }

    pub(super) fn feed(&mut self, input: Input<u64>) {
        self.core.step(self.now, input);
        // Ends: the core has no output when it waits for a write or for time.
        while let Some(output) = self.core.poll_output() {
            self.act(output);
        }
        let redriven = self.core.redriven;
        let most_dead = self.limits.max_dead + self.limits.max_records;
        assert!(self.core.ledger.dead.len() <= most_dead, "dead letters are bounded");
        let most = self.limits.max_records + redriven + self.limits.max_records;
        assert!(self.core.window.entries.len() <= most, "memory is bounded");
    }

    fn act(&mut self, output: Output<u64>) {
        match output {
            Output::Fetch { from, max_records, max_bytes } => {
                let input = self.fetch(from, max_records, max_bytes);
                self.core.step(self.now, input);
            }
            Output::Write { id, events, checkpoint, copies, release_dead } => {
                assert!(self.unwritten.is_none(), "one write at a time");
                let mut after = self.disk.clone();
                if let Some(checkpoint) = checkpoint {
                    after.records = vec![checkpoint];
                }
                after.records.push(events);
                for copy in copies {
                    self.check_death(&copy);
                    after.letters.push(copy.payload);
                }
                let letters = self.core.ledger.dead.keys().next();
                let below = release_dead.unwrap_or(0);
                assert!(letters.is_none_or(|first| *first >= below), "a dead letter is let go");
                self.unwritten = Some(Unwritten { id, after });
            }
            Output::Delivered { id, lease, records } => self.delivered(id, lease, records),
            Output::Answer { id, result } => self.answered(id, result),
        }
    }

    fn check_death(&mut self, copy: &Copy<u64>) {
        let known = self.known.entry(Slot::Log(copy.payload)).or_default();
        let rec = self.log[copy.payload as usize];
        assert!(!known.is_acked, "an acknowledged record dies");
        match copy.reason {
            Reason::MaxDeliveries => {
                assert!(copy.count >= self.limits.max_deliveries, "it had deliveries left");
                self.situations.reached("poison record became a dead letter");
                let is_crashed = known.handed < copy.count;
                self.situations.add(
                    "poison record that crashes the process became a dead letter",
                    u64::from(is_crashed),
                );
            }
            Reason::Rejected(_) => assert!(known.may_be_rejected, "nobody rejected it"),
            Reason::ScheduledTooLate => {
                assert!(rec.deliver_at > self.limits.max_delay, "it was not scheduled");
                self.situations.reached("record scheduled too late");
            }
        }
    }

    fn fetch(&mut self, from: u64, max_records: usize, max_bytes: usize) -> Input<u64> {
        let (mut records, mut bytes, mut next) = (Vec::new(), 0, from);
        // Ends: `next` rises.
        while (next as usize) < self.log.len() && records.len() < max_records && bytes < max_bytes {
            let rec = self.log[next as usize];
            if !rec.is_gap {
                let size = 100 + (next % 7) as usize * 10;
                bytes += size;
                let deliver_at = rec.deliver_at;
                let arrived = Arrived { payload: next, bytes: size, key: rec.key, deliver_at };
                records.push((next, arrived));
            }
            next += 1;
        }
        Input::Fetched { from, next, records, is_end: next as usize == self.log.len() }
    }

    fn delivered(&mut self, id: u64, lease: u64, records: Vec<(Slot, u32, u64)>) {
        let asked = self.asked.remove(&id);
        let is_dropped = !matches!(asked, Some(Asked::Receive));
        let until = self.now + 10 * SECOND;
        for (slot, count, payload) in records {
            let offset = match slot {
                Slot::Log(offset) => offset,
                Slot::Dead(id) => self.disk.letters[id as usize],
            };
            assert_eq!(payload, offset, "the record is the one that it says");
            self.check_order(slot, offset);
            let (life, now) = (self.number, self.now);
            let known = self.known.entry(slot).or_default();
            assert!(!known.is_acked, "{slot:?} comes back after its acknowledgement");
            assert!(!known.is_rejected, "{slot:?} comes back after its rejection");
            assert!(count > known.handed, "the count of {slot:?} went back to {count}");
            assert!(now >= known.not_before, "{slot:?} is delivered before its delay is over");
            if let Some((_, of_life, end)) = known.lease {
                assert!(of_life < life || end <= now, "{slot:?} is leased twice");
            }
            let was_delayed = known.not_before > 0 && known.delayed_in < life;
            self.situations.add("delay outlived a crash", u64::from(was_delayed));
            known.not_before = 0;
            let deliver_at = self.log[offset as usize].deliver_at;
            if deliver_at > 0 && matches!(slot, Slot::Log(_)) {
                assert!(count > 1 || now >= deliver_at, "{slot:?} is delivered too early");
                self.situations.reached("scheduled record was delivered at its time");
            }
            if is_dropped {
                continue;
            }
            known.handed += 1;
            known.lease = Some((lease, life, until));
            let held = Held { slot, incarnation: self.core.incarnation(), lease };
            self.jobs.push(Job { held, until, first_until: until });
        }
        if is_dropped {
            self.situations.reached("receiver dropped with its delivery on its way");
            self.core.step(self.now, Input::GiveBack { lease });
        }
    }

    /// No earlier record of its key is unsettled.
    fn check_order(&mut self, slot: Slot, offset: u64) {
        let (Slot::Log(_), Some(key)) = (slot, self.log[offset as usize].key) else { return };
        for before in 0..offset {
            let rec = self.log[before as usize];
            if rec.key == Some(key) && !rec.is_gap {
                let is_settled = self.core.ledger.is_settled(before);
                assert!(is_settled, "{offset} overtakes {before} of the same key");
            }
        }
        let later = (offset + 1..self.log.len() as u64)
            .any(|later| self.log[later as usize].key == Some(key));
        self.situations.add("later record of a key held back", u64::from(later));
    }

    fn answered(&mut self, id: u64, result: Result<(), Refusal>) {
        let Some(asked) = self.asked.remove(&id) else { return };
        let now = self.now;
        match (asked, result) {
            (Asked::Ack(job), Ok(())) => {
                let known = self.known.entry(job.held.slot).or_default();
                assert!(!known.is_acked, "it was acknowledged twice");
                assert_eq!(job.held.incarnation, self.core.incarnation(), "an old receipt");
                known.is_acked = true;
                known.lease = None;
                let was_redriven = matches!(job.held.slot, Slot::Dead(_));
                let name = "dead letter redriven and acknowledged";
                self.situations.add(name, u64::from(was_redriven));
            }
            (Asked::Nack(job, until), Ok(())) => {
                let life = self.number;
                let known = self.known.entry(job.held.slot).or_default();
                known.lease = None;
                known.not_before = until;
                known.delayed_in = life;
                self.situations.reached("negative acknowledgement with a delay");
            }
            (Asked::Reject(job), Ok(())) => {
                let known = self.known.entry(job.held.slot).or_default();
                (known.lease, known.handed) = (None, 0);
                known.is_rejected = true;
                self.situations.reached("record rejected");
            }
            (Asked::Extend(lease, until), Ok(())) => {
                for job in self.jobs.iter_mut().filter(|job| job.held.lease == lease) {
                    job.until = until;
                    let known = self.known.entry(job.held.slot).or_default();
                    if let Some((of, _, end)) = &mut known.lease
                        && *of == lease
                    {
                        *end = until;
                    }
                }
            }
            (Asked::Redrive(dead), Ok(())) => {
                let before = self.redriven_in.insert(dead, self.number);
                let again = u64::from(before.is_some());
                self.situations.add("redriven dead letter died again", again);
                self.known.insert(Slot::Dead(dead), Known::default());
                let entry = self.core.window.entries.get(&Slot::Dead(dead));
                let is_delayed = entry.is_some_and(|entry| entry.until > now);
                assert!(!is_delayed, "a redriven dead letter waits for its schedule");
                let is_late = self.log[self.disk.letters[dead as usize] as usize].deliver_at > now;
                let name = "dead letter redriven before its schedule";
                self.situations.add(name, u64::from(is_late));
            }
            (Asked::Ack(job), Err(Refusal::LeaseLost)) => self.check_lost(job, now),
            (Asked::Reject(job), Err(Refusal::DeadLettersFull)) => {
                self.situations.reached("dead letters were full");
                self.jobs.push(job);
            }
            (Asked::Reject(job), Err(Refusal::CannotDie)) => {
                self.situations.reached("rejection of a record that is too large refused");
                self.jobs.push(job);
            }
            (Asked::Ack(job) | Asked::Nack(job, _) | Asked::Reject(job), Err(refusal)) => {
                if matches!(refusal, Refusal::Store(_)) {
                    // Nothing happened: the worker tries again while its lease runs.
                    self.jobs.push(job);
                }
            }
            _ => {}
        }
    }

    /// A lease is lost when it has ended, and not before.
    fn check_lost(&mut self, job: Job, now: u64) {
        if job.held.incarnation < self.core.incarnation() {
            let name = "acknowledgement by a receipt of an earlier life rejected";
            self.situations.reached(name);
        } else if now >= job.until {
            self.situations.reached("late acknowledgement rejected");
        } else {
            let known = &self.known[&job.held.slot];
            let is_other = known.lease.is_none_or(|(lease, ..)| lease != job.held.lease);
            let is_settling = self.asked.values().any(|asked| match asked {
                Asked::Ack(other) | Asked::Nack(other, _) | Asked::Reject(other) => {
                    other.held == job.held
                }
                _ => false,
            });
            assert!(is_other || is_settling, "a lease that runs was lost: {job:?} {known:?}");
            self.situations.reached("acknowledged twice");
        }
    }

    /// Ends the write on its way.
    pub(super) fn land(&mut self) {
        let Some(Unwritten { id, after }) = self.unwritten.take() else { return };
        if self.is_full && self.random.bool() {
            self.situations.reached("store was full");
            let error = StoreError::Full { why: "test".to_owned() };
            return self.feed(Input::Written { id, result: Err(error) });
        }
        self.disk = after;
        self.feed(Input::Written { id, result: Ok(()) });
        if self.unwritten.is_none() {
            assert_eq!(replay(&self.disk), *self.core.ledger(), "live state is what replay says");
        }
    }

    pub(super) fn crash(&mut self) {
        if let Some(Unwritten { after, .. }) = self.unwritten.take() {
            let is_kept = self.random.bool();
            if is_kept {
                self.disk = after;
            }
            let kept = "crash with a write on its way that was kept";
            let lost = "crash with a write on its way that was lost";
            self.situations.reached(if is_kept { kept } else { lost });
        }
        self.situations.add("crash with records leased", u64::from(!self.jobs.is_empty()));
        for (_, asked) in self.asked.drain() {
            match asked {
                Asked::Ack(job) => {
                    self.known.entry(job.held.slot).or_default().may_be_acked = true;
                }
                // A redrive that may have happened, with counts from zero.
                Asked::Redrive(dead) => drop(self.known.remove(&Slot::Dead(dead))),
                _ => {}
            }
        }
        self.stale.append(&mut self.jobs);
        self.stale.truncate(8);
        self.number += 1;
        let ledger = replay(&self.disk);
        for (slot, known) in &self.known {
            if known.is_acked {
                let is_settled = match slot {
                    Slot::Log(offset) => ledger.is_settled(*offset),
                    Slot::Dead(id) => !ledger.dead.contains_key(id),
                };
                assert!(is_settled, "the acknowledgement of {slot:?} is lost");
            }
        }
        let redriven: Vec<(u64, u64)> = ledger
            .dead
            .iter()
            .filter(|(_, dead)| dead.is_redriven)
            .map(|(id, dead)| (*id, dead.offset))
            .collect();
        let replayed = self.disk.records.len() as u64;
        assert!(replayed <= self.limits.checkpoint_every + 2, "replay is bounded");
        self.core = Core::new(self.limits.clone(), ledger, replayed, self.now);
        for (id, offset) in redriven {
            self.situations.reached("redriven dead letter outlived a crash");
            let Rec { key, deliver_at, .. } = self.log[offset as usize];
            let record = Arrived { payload: offset, bytes: 100, key, deliver_at };
            self.core.restore(id, record);
        }
        self.feed(Input::Tick);
    }
}

fn replay(disk: &Disk) -> Ledger {
    let mut ledger = Ledger::default();
    for record in &disk.records {
        ledger.replay(record.clone()).expect("the log can be replayed");
        let mut again = Ledger::default();
        again.replay(ledger.encode()).expect("a checkpoint can be read");
        assert_eq!(again, ledger, "a checkpoint says what the events said");
    }
    ledger
}

fn life(seed: u64, situations: &Situations) {
    let mut life = Life::new(seed, situations);
    for _ in 0..life.random.usize(20..300) {
        life.step();
    }
    life.drain();
}

#[test]
fn no_life_loses_a_record_or_brings_one_back() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let lives = number("VOUSSOIR_LIVES").unwrap_or(5_000);
    let situations = Situations::new(&SITUATIONS);
    if let Some(seed) = number("VOUSSOIR_SEED") {
        return life(seed, &situations);
    }
    for seed in 0..lives {
        let run = std::panic::AssertUnwindSafe(|| life(seed, &situations));
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("replay: VOUSSOIR_SEED={seed} cargo test -p voussoir-queue --lib no_life");
            std::panic::resume_unwind(panic);
        }
    }
    situations.assert_all_reached();
}

#[test]
fn the_format_is_pinned_and_what_is_cut_off_is_an_error() {
    let (log, dead) = (Slot::Log(3), Slot::Dead(0));
    let events = [
        Event::Opened { incarnation: 1 },
        Event::Delivered { slot: log, count: 1 },
        Event::Returned { slot: log, count: 0 },
        Event::Delivered { slot: log, count: 1 },
        Event::Delayed { slot: log, until: 258 },
        Event::Died { slot: log, dead: 0 },
        Event::Redriven { dead: 0 },
        Event::Acked { slot: dead },
        Event::Skipped { from: 5, to: 7 },
        Event::Delivered { slot: Slot::Log(4), count: 1 },
        Event::Died { slot: Slot::Log(4), dead: 1 },
        Event::Purged { dead: 1 },
        Event::Delivered { slot: Slot::Log(8), count: 1 },
    ];
    let bytes = codec::encode_events(&events);
    assert!(events.len() * codec::EVENT_BYTES + codec::HEAD_BYTES >= bytes.len());
    let hex =
        |bytes: &[u8]| bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    let expected = "0100\
        010100000000000000\
        0200030000000000000001000000\
        0300030000000000000000000000\
        0200030000000000000001000000\
        0500030000000000000002010000\
        00000000\
        060003000000000000000000000000000000\
        070000000000000000\
        04010000000000000000\
        0905000000000000000700000000000000\
        0200040000000000000001000000\
        060004000000000000000100000000000000\
        080100000000000000\
        0200080000000000000001000000";
    assert_eq!(hex(&bytes), expected);
    let mut ledger = Ledger::default();
    ledger.replay(bytes.clone()).expect("it is whole");
    let checkpoint = ledger.encode();
    let expected = "0101\
        01000000000000000000000000000000\
        0200000000000000\
        01000000\
        03000000000000000700000000000000\
        01000000\
        0800000000000000010000000000000000000000\
        00000000";
    assert_eq!(hex(&checkpoint), expected);
    let kept = ledger.clone();
    for cut in 0..checkpoint.len() {
        let result = ledger.replay(checkpoint.slice(..cut));
        assert!(result.is_err(), "a checkpoint that is cut off after {cut} bytes");
    }
    assert_eq!(ledger, kept, "a record that is rejected changes nothing");
    for at in 0..bytes.len() {
        let mut damaged = bytes.to_vec();
        damaged[at] ^= 0x55;
        // It may be another valid record; it must not panic, nor allocate what it says.
        let mut ledger = Ledger::default();
        let result = ledger.replay(damaged.into());
        assert!(result.is_err() || ledger.dead.len() <= events.len());
    }
}

/// nats-server#6093, #5008: one state for each record, so an event that does not follow is damage.
#[test]
fn events_that_do_not_follow_are_damage() {
    let slot = Slot::Log(0);
    let delivered = Event::Delivered { slot, count: 1 };
    let cases: [&[Event]; 9] = [
        &[Event::Opened { incarnation: 0 }],
        &[Event::Delivered { slot, count: 2 }],
        &[Event::Returned { slot, count: 0 }],
        &[delivered, Event::Acked { slot }, Event::Acked { slot }],
        &[Event::Acked { slot }, Event::Delayed { slot, until: 1 }],
        &[Event::Died { slot, dead: 1 }],
        &[Event::Died { slot, dead: 0 }, Event::Acked { slot: Slot::Dead(0) }],
        &[Event::Died { slot, dead: 0 }, Event::Redriven { dead: 0 }, Event::Purged { dead: 0 }],
        &[Event::Skipped { from: 2, to: 2 }],
    ];
    for events in cases {
        let (last, before) = events.split_last().expect("one");
        let mut ledger = Ledger::default();
        for event in before {
            ledger.apply(event).expect("it follows");
        }
        assert!(ledger.apply(last).is_err(), "{events:?}");
    }
}
