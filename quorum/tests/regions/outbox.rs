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

/// Every write is named by an entry, or will be found by a comparison; and the lag is never less
/// than the age of the oldest write that the region does not have.
#[test]
fn nothing_is_forgotten_and_the_lag_is_never_too_small() {
    let counts = Situations::new(&SITUATIONS);
    for seed in 0..2_000 {
        let mut rng = Rng::new(seed);
        let max = rng.between(1, 6) as usize;
        let mut outbox = Outbox::new(0, max);
        // The times of the writes that the region lacks, by key; the keys on their way, and when
        // their states were read; when the comparison under way began.
        // The first one is of a process before this one.
        let mut lacks: BTreeMap<u64, Vec<u64>> = BTreeMap::from([(0, vec![0])]);
        let (mut flight, mut read_at) = (Vec::<u64>::new(), 0);
        let mut compared: Option<u64> = None;
        let mut now = 1;
        for _ in 0..200 {
            now += 1 + rng.below(40_000_000);
            match rng.below(8) {
                0..=2 => {
                    let key = rng.below(8);
                    if flight.contains(&key) {
                        counts.reached("a key was noted again while it was on its way");
                    } else if lacks.contains_key(&key) {
                        counts.reached("a key was noted again while it waited");
                    }
                    let dropped = outbox.dropped();
                    outbox.note(now, key_of(key));
                    if outbox.dropped() > dropped {
                        counts.reached("the outbox overflowed");
                        let is_comparing = compared.is_some();
                        counts.add("it overflowed during a comparison", is_comparing.into());
                    }
                    lacks.entry(key).or_default().push(now);
                }
                3 | 4 => {
                    let batch = outbox.next_batch(now, rng.between(1, 4) as usize);
                    if !batch.is_empty() {
                        assert!(flight.is_empty(), "one batch at a time");
                        (flight, read_at) = (batch.iter().map(number).collect(), now);
                    }
                }
                5 if !flight.is_empty() => {
                    let sent = rng.between(0, flight.len() as u64) as usize;
                    if rng.below(3) == 0 {
                        counts.reached("a batch failed");
                        outbox.failed(now);
                    } else {
                        counts.add("a batch was sent in part", (sent < flight.len()).into());
                        outbox.shipped(now, &vec![Fate::Held; sent]);
                        flight.truncate(sent);
                        for key in &flight {
                            told(&mut lacks, *key, read_at);
                        }
                    }
                    flight.clear();
                }
                6 if compared.is_none() && outbox.begin_comparison(now) => compared = Some(now),
                7 => {
                    let Some(began) = compared.take() else { continue };
                    let is_complete = rng.below(3) > 0;
                    outbox.compared(now, is_complete, now + 10_000_000_000);
                    if is_complete {
                        for key in 0..8 {
                            told(&mut lacks, key, began);
                        }
                    } else {
                        counts.reached("a comparison failed");
                    }
                }
                _ => {}
            }
            assert!(outbox.pending() <= max, "seed {seed}: {} of {max}", outbox.pending());
            let oldest = lacks.values().flatten().min().map_or(0, |since| now - since);
            assert!(outbox.lag(now) >= oldest, "seed {seed}: {} < {oldest}", outbox.lag(now));
        }
        // Faults have ended: all is told.
        if !flight.is_empty() {
            outbox.failed(now);
        }
        if compared.is_some() {
            outbox.compared(now, false, now);
        }
        for _ in 0..100 {
            now = outbox.next_deadline().filter(|at| *at < END).unwrap_or(now).max(now + 1);
            if outbox.begin_comparison(now) {
                for key in 0..8 {
                    told(&mut lacks, key, now);
                }
                outbox.compared(now, true, END);
            }
            let batch = outbox.next_batch(now, 4);
            for key in &batch {
                told(&mut lacks, number(key), now);
            }
            if !batch.is_empty() {
                outbox.shipped(now, &vec![Fate::Held; batch.len()]);
            }
        }
        assert!(lacks.is_empty(), "seed {seed}: {lacks:?}");
        assert_eq!((outbox.lag(now), outbox.pending()), (0, 0), "seed {seed}");
        counts.reached("all was told");
    }
    counts.assert_all_reached();
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
