//! The core against models.

use std::collections::HashMap;

use bytes::Bytes;
use voussoir_sim::Situations;

use super::producers::WINDOW;
use super::{Admission, Fence, Limits, Staged, State};
use crate::format::{BatchBuilder, Header, Record};

fn header(id: i64, epoch: i16, sequence: i32, count: i32, timestamp: i64) -> Header {
    let mut builder = BatchBuilder::new();
    if id >= 0 {
        builder = builder.producer(id, epoch, sequence);
    }
    for _ in 0..count {
        builder.push(&Record::new("").timestamp(timestamp)).expect("there is room");
    }
    *builder.finish().expect("a batch").header()
}

static ADMISSION: [&str; 7] = [
    "appended",
    "answered with the old offset",
    "older than the window",
    "a gap",
    "fenced",
    "unknown",
    "sequences wrapped around",
];

/// Everything that was ever appended, by producer.
#[derive(Default)]
struct Model {
    epoch: i16,
    /// (first, last, offset) of the current epoch.
    sent: Vec<(i32, i32, u64)>,
}

#[test]
fn admission_agrees_with_a_model() {
    let situations = Situations::new(&ADMISSION);
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let limits = Limits { max_producers: random.usize(1..5), max_index_entries: 4 };
        let mut state = State::new();
        let mut models: HashMap<i64, Model> = HashMap::new();
        let mut by_age: Vec<i64> = Vec::new();
        let mut forgotten = -1;
        let start = if random.bool() { i32::MAX - 6 } else { 0 };
        for _ in 0..150 {
            let (id, count) = (random.i64(0..6), random.i32(1..4));
            let known = models.get(&id);
            let epoch =
                known.map_or(0, |model| model.epoch) + random.i16(-1..=1).min(random.i16(-1..=1));
            let newest = known.and_then(|model| model.sent.last());
            let expected = newest.map_or(0, |(_, last, _)| last.checked_add(1).unwrap_or(0));
            let sequence = match random.u8(..6) {
                0 => 0,
                1 => random.i32(0..20),
                2 => known
                    .filter(|model| !model.sent.is_empty())
                    .map_or(0, |model| model.sent[random.usize(..model.sent.len())].0),
                _ => expected,
            };
            let mut sent = header(id, epoch.max(0), sequence, count, 0);
            sent.base_offset = state.next_offset.cast_signed();
            let admission = state.admit(&Staged::default(), &sent);
            check(known, id <= forgotten, &sent, expected, admission, &situations);
            if admission != Admission::Append {
                continue;
            }
            // A producer that begins in the middle of all sequences, to reach their end.
            if known.is_none() && start > 0 {
                sent.base_sequence = start;
            }
            let model = models.entry(id).or_default();
            if sent.producer_epoch != model.epoch {
                (model.epoch, model.sent) = (sent.producer_epoch, Vec::new());
            }
            let last = sent.last_sequence();
            situations.add("sequences wrapped around", u64::from(last < sent.base_sequence));
            model.sent.push((sent.base_sequence, last, state.next_offset));
            state.apply(&sent, limits).expect("it follows");
            by_age.retain(|other| *other != id);
            by_age.push(id);
            if by_age.len() > limits.max_producers {
                let oldest = by_age.remove(0);
                models.remove(&oldest);
                forgotten = forgotten.max(oldest);
            }
            assert_eq!(State::decode(state.encode()).as_ref(), Ok(&state), "seed {seed}");
        }
    }
    situations.assert_all_reached();
}

fn check(
    known: Option<&Model>,
    was_forgotten: bool,
    sent: &Header,
    expected: i32,
    admission: Admission,
    situations: &Situations,
) {
    let Some(model) = known else {
        if was_forgotten {
            situations.reached("unknown");
            assert_eq!(admission, Admission::Reject(Fence::Unknown));
        } else if sent.base_sequence == 0 {
            assert_eq!(admission, Admission::Append);
        } else {
            assert!(matches!(admission, Admission::Reject(Fence::Gap { expected: 0, .. })));
        }
        return;
    };
    let same = |(first, last, _): &&(i32, i32, u64)| {
        *first == sent.base_sequence && *last == sent.last_sequence()
    };
    let window = &model.sent[model.sent.len().saturating_sub(WINDOW)..];
    if sent.producer_epoch < model.epoch {
        situations.reached("fenced");
        assert_eq!(admission, Admission::Reject(Fence::Epoch { current: model.epoch }));
    } else if sent.producer_epoch > model.epoch {
        assert_eq!(admission == Admission::Append, sent.base_sequence == 0);
    } else if let Some((_, _, offset)) = window.iter().find(same) {
        situations.reached("answered with the old offset");
        assert_eq!(admission, Admission::Duplicate(*offset));
    } else if sent.base_sequence == expected {
        situations.reached("appended");
        assert_eq!(admission, Admission::Append);
    } else if model.sent.iter().any(|(first, ..)| *first == sent.base_sequence) {
        situations.reached("older than the window");
        assert_eq!(admission, Admission::Reject(Fence::Old { found: sent.base_sequence }));
    } else {
        situations.reached("a gap");
        let is_rejected =
            matches!(admission, Admission::Reject(Fence::Gap { .. } | Fence::Old { .. }));
        assert!(is_rejected, "{admission:?}");
    }
}

#[test]
fn staged_batches_count() {
    let state = State::new();
    let limits = Limits { max_producers: 1, max_index_entries: 2 };
    let mut staged = Staged::default();
    let first = header(1, 0, 0, 2, 0);
    assert_eq!(state.admit(&staged, &first), Admission::Append);
    assert!(!state.stage(&mut staged, &first, limits));
    assert_eq!(state.admit(&staged, &first), Admission::Duplicate(0));
    let second = header(1, 0, 2, 3, 0);
    assert_eq!(state.offset_behind(&staged), 2);
    assert_eq!(state.admit(&staged, &second), Admission::Append);
    assert!(!state.stage(&mut staged, &second, limits));
    assert_eq!(state.offset_behind(&staged), 5);
    assert_eq!(
        state.admit(&Staged::default(), &second),
        Admission::Reject(Fence::Gap { expected: 0, found: 2 })
    );
    let other = header(2, 0, 0, 1, 0);
    assert_eq!(state.admit(&staged, &other), Admission::Append);
    assert!(state.stage(&mut staged, &other, limits), "the first producer has to go");
}

/// The index leads to the batch of each offset and each time, whatever its size.
#[test]
fn the_index_leads_to_every_batch() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let limits = Limits { max_producers: 1, max_index_entries: random.usize(2..9) };
        let mut state = State::new();
        let mut batches: Vec<Header> = Vec::new();
        for _ in 0..random.usize(1..200) {
            let mut sent = header(-1, -1, -1, random.i32(1..4), random.i64(0..500));
            sent.base_offset = state.next_offset.cast_signed();
            state.apply(&sent, limits).expect("it follows");
            batches.push(sent);
            if random.u8(..20) == 0 {
                let first = random.u64(state.first_position..=state.next_position);
                let offset = batches.get(first as usize).map(|at| at.base_offset as u64);
                state.release(first, offset.unwrap_or(state.next_offset));
            }
            assert!(state.index.entries.len() <= limits.max_index_entries);
        }
        for offset in state.start_offset..state.next_offset {
            let at = batches.iter().rposition(|b| b.base_offset as u64 <= offset);
            let at = at.expect("the batch") as u64;
            assert!(state.search_range(offset).contains(&at), "seed {seed}, offset {offset}");
        }
        for timestamp in 0..510 {
            let mut kept = batches.iter().enumerate().skip(state.first_position as usize);
            if let Some((at, _)) = kept.find(|(_, batch)| batch.max_timestamp >= timestamp) {
                let from = state.search_from_timestamp(timestamp).max(state.first_position);
                assert!(from <= at as u64, "seed {seed}, timestamp {timestamp}");
            }
        }
    }
}

#[test]
fn a_snapshot_that_is_damaged_is_rejected() {
    let limits = Limits { max_producers: 3, max_index_entries: 4 };
    let mut state = State::new();
    for at in 0..20 {
        let mut sent = header(at % 3, 0, i32::try_from(at / 3).expect("small"), 1, at);
        sent.base_offset = state.next_offset.cast_signed();
        state.apply(&sent, limits).expect("it follows");
    }
    let bytes = state.encode();
    assert!(bytes.len() <= super::codec::max_bytes(limits));
    assert_eq!(State::decode(bytes.clone()), Ok(state));
    for end in 0..bytes.len() {
        assert!(State::decode(bytes.slice(..end)).is_err(), "{end}");
    }
    let mut longer = bytes.to_vec();
    longer.push(0);
    assert!(State::decode(Bytes::from(longer)).is_err());
    for at in 0..bytes.len() {
        let mut flipped = bytes.to_vec();
        flipped[at] = !flipped[at];
        // An error or a state, no panic and no allocation by a count.
        drop(State::decode(Bytes::from(flipped)));
    }
}

/// The snapshot is a record of a log, so it must not be larger than a batch may be.
#[test]
fn the_largest_snapshot_fits() {
    let limits = Limits { max_producers: 8_192, max_index_entries: 8_192 };
    assert!(super::codec::max_bytes(limits) <= crate::format::MAX_BATCH_BYTES);
}
