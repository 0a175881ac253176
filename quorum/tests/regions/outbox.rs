//! The outbox of a region, as a pure state machine, against a model.

use std::collections::BTreeMap;

use voussoir_quorum::Bytes;
use voussoir_quorum::region::{Fate, Outbox};
use voussoir_sim::{Rng, Situations};

static SITUATIONS: [&str; 8] = [
    "a key was noted again while it waited",
    "a key was noted again while it was on its way",
    "the outbox overflowed",
    "it overflowed during a comparison",
    "a batch failed",
    "a batch was sent in part",
    "a comparison failed",
    "all was told",
];

/// No comparison is made by then that nothing asks for.
const END: u64 = 1 << 60;

fn key_of(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

fn number(key: &Bytes) -> u64 {
    u64::from_be_bytes(key[..].try_into().unwrap())
}

/// The region has all writes of a key up to a time.
fn told(lacks: &mut BTreeMap<u64, Vec<u64>>, key: u64, up_to: u64) {
    if let Some(times) = lacks.get_mut(&key) {
        times.retain(|time| *time > up_to);
        if times.is_empty() {
            lacks.remove(&key);
        }
    }
}

/// An outbox, and what its region lacks.
struct Life<'a> {
    outbox: Outbox,
    /// The times of the writes that the region lacks, by key.
    lacks: BTreeMap<u64, Vec<u64>>,
    /// The keys on their way, and when their states were read.
    flight: Vec<u64>,
    read_at: u64,
    /// When the comparison under way began.
    compared: Option<u64>,
    now: u64,
    rng: Rng,
    counts: &'a Situations,
}

impl Life<'_> {
    fn step(&mut self) {
        self.now += 1 + self.rng.below(40_000_000);
        match self.rng.below(8) {
            0..=2 => self.note(),
            3 | 4 => {
                let batch = self.outbox.next_batch(self.now, self.rng.between(1, 4) as usize);
                if !batch.is_empty() {
                    assert!(self.flight.is_empty(), "one batch at a time");
                    self.flight = batch.iter().map(number).collect();
                    self.read_at = self.now;
                }
            }
            5 if !self.flight.is_empty() => self.end_batch(),
            6 if self.compared.is_none() && self.outbox.begin_comparison(self.now) => {
                self.compared = Some(self.now);
            }
            7 => {
                let Some(began) = self.compared.take() else { return };
                let is_complete = self.rng.below(3) > 0;
                self.outbox.compared(self.now, is_complete, self.now + 10_000_000_000);
                self.counts.add("a comparison failed", (!is_complete).into());
                for key in (0..8).filter(|_| is_complete) {
                    told(&mut self.lacks, key, began);
                }
            }
            _ => {}
        }
    }

    fn note(&mut self) {
        let key = self.rng.below(8);
        if self.flight.contains(&key) {
            self.counts.reached("a key was noted again while it was on its way");
        } else if self.lacks.contains_key(&key) {
            self.counts.reached("a key was noted again while it waited");
        }
        let dropped = self.outbox.dropped();
        self.outbox.note(self.now, key_of(key));
        if self.outbox.dropped() > dropped {
            self.counts.reached("the outbox overflowed");
            let is_comparing = self.compared.is_some();
            self.counts.add("it overflowed during a comparison", is_comparing.into());
        }
        self.lacks.entry(key).or_default().push(self.now);
    }

    fn end_batch(&mut self) {
        let sent = self.rng.between(0, self.flight.len() as u64) as usize;
        if self.rng.below(3) == 0 {
            self.counts.reached("a batch failed");
            self.outbox.failed(self.now);
        } else {
            self.counts.add("a batch was sent in part", (sent < self.flight.len()).into());
            self.outbox.shipped(self.now, &vec![Fate::Held; sent]);
            for key in self.flight.iter().take(sent) {
                told(&mut self.lacks, *key, self.read_at);
            }
        }
        self.flight.clear();
    }

    /// Faults have ended: all is told.
    fn finish(&mut self) {
        if !self.flight.is_empty() {
            self.outbox.failed(self.now);
        }
        if self.compared.is_some() {
            self.outbox.compared(self.now, false, self.now);
        }
        for _ in 0..100 {
            let deadline = self.outbox.next_deadline().filter(|at| *at < END);
            self.now = deadline.unwrap_or(self.now).max(self.now + 1);
            if self.outbox.begin_comparison(self.now) {
                for key in 0..8 {
                    told(&mut self.lacks, key, self.now);
                }
                self.outbox.compared(self.now, true, END);
            }
            let batch = self.outbox.next_batch(self.now, 4);
            for key in &batch {
                told(&mut self.lacks, number(key), self.now);
            }
            if !batch.is_empty() {
                self.outbox.shipped(self.now, &vec![Fate::Held; batch.len()]);
            }
        }
        self.counts.reached("all was told");
    }
}

/// Every write is named by an entry, or will be found by a comparison; and the lag is never less
/// than the age of the oldest write that the region does not have.
#[test]
fn nothing_is_forgotten_and_the_lag_is_never_too_small() {
    let counts = Situations::new(&SITUATIONS);
    for seed in 0..2_000 {
        let mut rng = Rng::new(seed);
        let max = rng.between(1, 6) as usize;
        let mut life = Life {
            outbox: Outbox::new(0, max),
            // Of a process before this one.
            lacks: BTreeMap::from([(0, vec![0])]),
            flight: Vec::new(),
            read_at: 0,
            compared: None,
            now: 1,
            rng,
            counts: &counts,
        };
        for _ in 0..200 {
            life.step();
            let (pending, lag) = (life.outbox.pending(), life.outbox.lag(life.now));
            assert!(pending <= max, "seed {seed}: {pending} of {max}");
            let oldest = life.lacks.values().flatten().min().map_or(0, |since| life.now - since);
            assert!(lag >= oldest, "seed {seed}: {lag} < {oldest}");
        }
        life.finish();
        assert!(life.lacks.is_empty(), "seed {seed}: {:?}", life.lacks);
        let told = (life.outbox.lag(life.now), life.outbox.pending());
        assert_eq!(told, (0, 0), "seed {seed}");
    }
    counts.assert_all_reached();
}

/// Nothing was held, as after a failure; and what was not held does not hold up the rest.
#[test]
fn what_is_not_held_waits_longer_each_time_and_goes_last() {
    let mut outbox = Outbox::new(0, 10);
    assert!(outbox.begin_comparison(0));
    outbox.compared(0, true, u64::MAX);
    (0..3).for_each(|key| outbox.note(key, key_of(key)));
    let (mut now, mut pauses) = (2, Vec::new());
    for _ in 0..3 {
        assert_eq!(outbox.next_batch(now, 1).len(), 1);
        outbox.shipped(now, &[Fate::Later]);
        let at = outbox.next_deadline().unwrap();
        pauses.push((at - now) / 1_000_000);
        now = at;
    }
    assert_eq!(pauses, [50, 100, 200]);
    assert_eq!(outbox.next_batch(now, 2), [key_of(0), key_of(1)], "each had its turn");
    outbox.shipped(now, &[Fate::Later, Fate::Held]);
    assert_eq!(outbox.lag(now), now, "the oldest waits at the back");
    now = outbox.next_deadline().unwrap();
    assert_eq!(outbox.next_batch(now, 3), [key_of(2), key_of(0)]);
    // A comparison fails meanwhile: its pause stays.
    outbox.shipped(now, &[Fate::Held; 2]);
    let mut outbox = Outbox::new(0, 10);
    outbox.note(0, key_of(0));
    assert!(outbox.begin_comparison(0));
    assert_eq!(outbox.next_batch(0, 1), [key_of(0)]);
    outbox.compared(0, false, 0);
    let at = outbox.next_deadline().unwrap();
    outbox.shipped(1, &[Fate::Held]);
    assert_eq!(outbox.next_deadline(), Some(at));
}

#[test]
fn failures_pause_longer_each_time_up_to_a_limit() {
    let key = || Bytes::from_static(b"cart");
    let mut outbox = Outbox::new(0, 10);
    assert!(outbox.begin_comparison(0));
    outbox.compared(0, true, u64::MAX);
    outbox.note(0, key());
    let (mut now, mut pauses) = (0, Vec::new());
    for _ in 0..9 {
        assert_eq!(outbox.next_batch(now, 10), [key()]);
        outbox.failed(now);
        let at = outbox.next_deadline().unwrap();
        assert!(outbox.next_batch(at - 1, 10).is_empty(), "not before it is time");
        pauses.push((at - now) / 1_000_000);
        now = at;
    }
    assert_eq!(pauses, [50, 100, 200, 400, 800, 1_600, 3_200, 3_200, 3_200]);
    assert_eq!(outbox.next_batch(now, 10), [key()]);
    outbox.shipped(now, &[Fate::Refused]);
    assert_eq!((outbox.refused(), outbox.pending(), outbox.lag(now)), (1, 0, 0));
}
